//! How patient a client is.

use std::time::Duration;

use crate::Transport;

/// The settings of a client; the default suits most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long a call is tried, over all members.
    pub deadline: Duration,
    /// How long one member is waited for before another is asked.
    pub attempt: Duration,
    /// How long a connection may take to come about.
    pub connect: Duration,
    /// How requests to the key/value store travel; others have no choice.
    pub transport: Transport,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            attempt: Duration::from_millis(2_500),
            connect: Duration::from_secs(1),
            transport: Transport::default(),
        }
    }
}

impl Options {
    /// The default with another deadline.
    pub fn with_deadline(deadline: Duration) -> Self {
        Self { deadline, ..Self::default() }
    }
}
