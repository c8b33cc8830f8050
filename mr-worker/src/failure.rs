//! Why a task failed, in terms of what the coordinator should do about it.
//!
//! The data plane speaks of runs by their place in the task; [`crate::task`] turns that into the
//! attempt that wrote them. Deciding whether a failure counts, or is retried, is the coordinator's.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The app refused its input or panicked.
    #[error("the app failed{}: {message}", place.as_ref().map(ToString::to_string).unwrap_or_default())]
    User {
        /// The app's words, or the panic's with its place.
        message: String,
        /// What was being read; nothing in a reduce.
        place: Option<Place>,
        /// Whether another attempt would fail the same way, in the app's own judgement.
        permanent: bool,
    },
    /// A program that streams failed.
    #[error("{message}{}", place.as_ref().map(ToString::to_string).unwrap_or_default())]
    Program {
        /// How it ended, and what it was.
        message: String,
        /// What it was given last; nothing in a reduce.
        place: Option<Place>,
        /// What follows from that.
        end: ProgramEnd,
        /// Its last words on standard error.
        stderr: String,
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

/// How a program failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramEnd {
    /// It ran and failed, or wrote what makes no sense: another attempt may do better.
    Failed,
    /// It cannot run at all, here or anywhere.
    Unfit,
    /// It met a limit.
    Exhausted,
}

/// Where in the inputs something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The document, as the user named it.
    pub document: String,
    /// Where the record, or the block that holds it, begins.
    pub offset: u64,
    /// Whether it is the record, and not only its block.
    pub exact: bool,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " at {}:{}", self.document, self.offset)
    }
}

impl Failure {
    /// An app's refusal of what it was given, to be tried again; the engine adds the place.
    pub fn user(message: impl Into<String>) -> Self {
        Self::User { message: message.into(), place: None, permanent: false }
    }

    /// An app's refusal that no other attempt would change: the job fails at once.
    pub fn fatal(message: impl Into<String>) -> Self {
        Self::User { message: message.into(), place: None, permanent: true }
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
    pub(crate) fn at(self, at: impl FnOnce() -> Place) -> Self {
        match self {
            Self::User { message, place: None, permanent } => {
                Self::User { message, place: Some(at()), permanent }
            }
            Self::Program { message, place: None, end, stderr } => {
                Self::Program { message, place: Some(at()), end, stderr }
            }
            other => other,
        }
    }
}
