//! Why a task failed, in terms of what the coordinator should do about it.
//!
//! The data plane speaks of runs by their place in the task; [`crate::task`] turns that into the
//! attempt that wrote them. Deciding whether a failure counts, or is retried, is the coordinator's.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The app refused its input or panicked.
    #[error("the app failed at {path}:{offset}: {message}")]
    User {
        /// The app's words, or the panic's with its place.
        message: String,
        /// The document that was being read; empty in a reduce.
        path: String,
        /// Where in the document the record, or the block that holds it, begins.
        offset: u64,
    },
    /// An input could not be read.
    #[error("input {path}: {message}")]
    Input {
        /// The path as the user named it.
        path: String,
        /// What is wrong with it.
        message: String,
        /// Whether another attempt would fail the same way.
        permanent: bool,
    },
    /// A map's committed run is missing or damaged; that map has to run again.
    #[error("the run of input {input} is lost: {message}")]
    Lost {
        /// The place of the run in the task's list.
        input: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A file of this attempt could not be written or read back.
    #[error("{}: {message}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What happened.
        message: String,
    },
    /// Space or memory ran out; another worker may have more.
    #[error("out of resources: {0}")]
    Resource(String),
    /// A defect of Flotilla itself, or an order that makes no sense.
    #[error("internal: {0}")]
    Internal(String),
}

impl Failure {
    /// An app's refusal of what it was given; the engine adds document and offset.
    pub fn user(message: impl Into<String>) -> Self {
        Self::User { message: message.into(), path: String::new(), offset: 0 }
    }

    /// The failure of an operation on one of the attempt's own files.
    pub fn io(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::OutOfMemory => Self::Resource(format!("{}: {error}", path.display())),
            _ => Self::Io { path: path.to_owned(), message: error.to_string() },
        }
    }

    /// The failure of reading an input.
    pub(crate) fn input(document: &str, error: &io::Error) -> Self {
        let permanent = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory
        );
        Self::Input { path: document.to_owned(), message: error.to_string(), permanent }
    }

    /// Names the place that the app was reading, where it is not named yet.
    pub(crate) fn at(self, document: &str, position: u64) -> Self {
        match self {
            Self::User { message, path, offset } if path.is_empty() && offset == 0 => {
                Self::User { message, path: document.to_owned(), offset: position }
            }
            other => other,
        }
    }
}
