//! Why the store can't go on, by what whoever runs the member has to do.

use std::io;

use daemon::Failure;

/// Why the store did not open or has stopped. None of them is ever retried within a process.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory belongs to somebody else, or to a newer version: point the daemon elsewhere
    /// or upgrade it. Nothing was changed.
    #[error("{0}")]
    Identity(String),
    /// Data that was acknowledged is damaged or lost; the text says what is missing. Remove the
    /// member and add it again.
    #[error("{0}")]
    Damaged(String),
    /// The machine refused: a failed write or sync, no space, no permission. A restart may help.
    #[error("{what}")]
    Machine {
        /// What was tried.
        what: String,
        /// What the machine answered.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// The machine answered with `source` when `what` was tried.
    pub fn machine(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Machine { what: what.into(), source: source.into() }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Identity(what) => Self::configuration(what),
            StoreError::Damaged(what) => Self::damaged(what),
            StoreError::Machine { what, source } => Self::machine(what).because(source),
        }
    }
}
