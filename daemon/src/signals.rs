//! The wish that the process ends, and the signals that bring it.
//!
//! The first SIGTERM or SIGINT asks for a graceful shutdown; the second ends the process at once.
//! Signals have a thread of their own, so that the second one works even when the daemon's
//! runtime is stuck, which is when it is needed.

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::exit::{Code, Failure};

/// A handle to the wish that the process, or a part of it, ends. Clones share the wish.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// A wish that nobody has uttered; [`Shutdown::request`] does.
    pub fn new() -> Self {
        Self::default()
    }

    /// A wish that SIGTERM and SIGINT utter from now on.
    ///
    /// # Errors
    /// Machine, when the process gets no signal handlers or no thread.
    pub fn on_signals() -> Result<Self, Failure> {
        let refuse =
            |error: std::io::Error| Failure::machine("signals cannot be received").because(error);
        let runtime = Builder::new_current_thread().enable_io().build().map_err(refuse)?;
        let shutdown = Self::new();
        let wish = shutdown.clone();
        // Registered before the thread starts: no signal is missed after this function returns.
        let (terminate, interrupt) = {
            let _inside = runtime.enter();
            let terminate = signal(SignalKind::terminate()).map_err(refuse)?;
            (terminate, signal(SignalKind::interrupt()).map_err(refuse)?)
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(obey(terminate, interrupt, wish)))
            .map_err(refuse)?;
        Ok(shutdown)
    }

    /// Utters the wish. Doing so again changes nothing.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Whether the wish was uttered.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Ends when the wish is uttered; owned, so that it can move into a task.
    pub fn requested(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// A part that ends with the whole, and can be ended alone.
    #[must_use]
    pub fn part(&self) -> Self {
        Self { token: self.token.child_token() }
    }

    /// The token itself, for code that takes one.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

async fn obey(mut terminate: Signal, mut interrupt: Signal, wish: Shutdown) {
    let first = next(&mut terminate, &mut interrupt).await;
    tracing::info!(signal = first.name(), "shutdown requested");
    wish.request();
    let second = next(&mut terminate, &mut interrupt).await;
    tracing::warn!(signal = second.name(), "second signal, ending at once");
    std::process::exit(second.code() as i32);
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> Received {
    tokio::select! {
        biased;
        _ = terminate.recv() => Received::Terminate,
        _ = interrupt.recv() => Received::Interrupt,
    }
}

#[derive(Clone, Copy)]
enum Received {
    Terminate,
    Interrupt,
}

impl Received {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        }
    }

    fn code(self) -> Code {
        match self {
            Self::Terminate => Code::Terminated,
            Self::Interrupt => Code::Interrupted,
        }
    }
}
