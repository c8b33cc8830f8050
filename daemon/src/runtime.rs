//! The life of a daemon's process, from its settings to its exit code.
//!
//! The tokio runtime has one thread by default: on few cores, where most daemons live, that is
//! twice as fast for unary calls as two workers. Blocking work has threads of its own anyway.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use crate::exit::{Code, Failure};
use crate::readiness::Readiness;
use crate::signals::Shutdown;
use crate::telemetry::{self, Format};
use crate::{allocator, panic, settings, version};

/// The most worker threads that a setting may ask for.
pub const WORKER_THREADS_MAX: u16 = 256;

/// The most threads for blocking calls: looking up names, and in a group snapshots that are taken,
/// fetched, given to others and restored, at most a few at a time. The store has threads of its own.
pub const BLOCKING_THREADS_MAX: usize = 16;

/// How long the runtime may take to stop once the daemon is done.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The settings about the process itself: a nested table `process` of every daemon's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// What to log: a level, or levels by target such as `info,raftd=debug`.
    pub log_filter: String,
    /// How to log.
    pub log_format: Format,
    /// On how many threads to run; none means that the main thread does everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_threads: Option<u16>,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            log_filter: telemetry::FILTER_DEFAULT.to_owned(),
            log_format: Format::default(),
            worker_threads: None,
        }
    }
}

/// How a program's main ended before its daemon ran, or after.
#[derive(Debug)]
pub enum Ending {
    /// What there was to say is said.
    Told(Code),
    /// It still has to be told.
    Untold(Failure),
}

impl From<Code> for Ending {
    fn from(code: Code) -> Self {
        Self::Told(code)
    }
}

impl From<Failure> for Ending {
    fn from(failure: Failure) -> Self {
        Self::Untold(failure)
    }
}

/// The body of a daemon's `fn main() -> Code`: tells the failure, if there is one.
pub fn main(name: &str, body: impl FnOnce() -> Result<(), Ending>) -> Code {
    match body() {
        Ok(()) => Code::Done,
        Err(Ending::Told(code)) => code,
        Err(Ending::Untold(failure)) => {
            failure.tell(name);
            failure.code()
        }
    }
}

/// Runs a daemon's future to its end: starts logging, makes panics end the process, turns signals
/// into the [`Shutdown`] that the future gets, and logs the settings in force.
///
/// # Errors
/// What the daemon failed with; configuration or machine, when the process cannot be set up.
pub fn run<F>(
    name: &str,
    process: &Process,
    settings: &impl Serialize,
    daemon: impl FnOnce(Shutdown) -> F,
) -> Result<(), Ending>
where
    F: Future<Output = Result<(), Failure>>,
{
    telemetry::start(&process.log_filter, process.log_format)?;
    panic::install();
    allocator::give_back()?;
    let shutdown = Shutdown::on_signals()?;
    let runtime = build(name, process.worker_threads)?;
    let settings = settings::line(settings);
    let version = version::VERSION;
    tracing::info!(daemon = name, version, pid = std::process::id(), settings, "daemon starts");
    let result = runtime.block_on(daemon(shutdown));
    runtime.shutdown_timeout(STOP_TIMEOUT);
    result?;
    tracing::info!(daemon = name, "daemon stopped");
    Ok(())
}

fn build(name: &str, worker_threads: Option<u16>) -> Result<Runtime, Failure> {
    let mut builder = match worker_threads {
        None => Builder::new_current_thread(),
        Some(count @ 1..=WORKER_THREADS_MAX) => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(count.into());
            builder
        }
        Some(count) => {
            return Err(Failure::configuration(format!(
                "process.worker_threads is {count}, but must be 1 to {WORKER_THREADS_MAX}, \
                 or absent for one thread"
            )));
        }
    };
    builder
        .enable_all()
        .thread_name(name)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .map_err(|error| Failure::machine("the runtime cannot start").because(error))
}

/// Polls what tells readiness until shutdown, from when on the daemon is not ready: it only ends
/// what it has begun. Never returns.
pub async fn until_stopping(
    shutdown: &Shutdown,
    telling: impl Future<Output = ()>,
    readiness: &Readiness,
) {
    tokio::select! {
        biased;
        () = shutdown.requested() => {}
        () = telling => {}
    }
    readiness.not_ready("shutting down");
    std::future::pending::<()>().await;
}

/// Something ended that should have lasted until shutdown; the rest is told to end, too.
///
/// # Errors
/// How it ended; machine, when that was well.
pub fn early(ended: Result<(), Failure>, what: &str, rest: &Shutdown) -> Result<(), Failure> {
    rest.request();
    ended.and_then(|()| Err(Failure::machine(format!("{what} ended before its time"))))
}

/// How a task ended.
///
/// # Errors
/// The task's own; panic.
pub fn joined(
    ended: Result<Result<(), Failure>, tokio::task::JoinError>,
    what: &str,
) -> Result<(), Failure> {
    ended.unwrap_or_else(|error| {
        Err(Failure::new(Code::Panic, format!("the task of {what} panicked")).because(error))
    })
}
