//! Whether the daemon can do its work now, and if not, why.
//!
//! The daemon says so; `/readyz`, the gRPC health service and through them load balancers and
//! containers' health checks repeat it.

use std::sync::Arc;

use tokio::sync::watch;

/// Ready, or the reason why not.
pub type State = Result<(), String>;

/// The handle with which a daemon tells its readiness. Clones share the state.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: Arc<watch::Sender<State>>,
}

impl Readiness {
    /// Not ready yet, for this reason.
    pub fn waiting(reason: impl Into<String>) -> Self {
        Self { state: Arc::new(watch::Sender::new(Err(reason.into()))) }
    }

    /// From now on the daemon can do its work.
    pub fn ready(&self) {
        self.set(Ok(()));
    }

    /// From now on it cannot, for this reason.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Err(reason.into()));
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The state now and its changes.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Watchers wake only when the state changes, so that a daemon may say the same every tick.
    fn set(&self, new: State) {
        self.state.send_if_modified(|state| {
            let changed = *state != new;
            *state = new;
            changed
        });
    }
}
