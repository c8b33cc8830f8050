//! How a call ends, typed by what its caller should do next.

use tonic::{Code, Status};

use crate::metadata;

/// How a request ended, as far as it can be known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome<T> {
    /// It was executed, once, and this is its reply.
    Done(T),
    /// It was not executed and will not be.
    Rejected(Rejected),
    /// It may have been executed, or may be yet. Not a failure: look before doing it again.
    Unknown(Unknown),
}

impl<T> Outcome<T> {
    /// The reply, or why there is none.
    ///
    /// # Errors
    /// [`Error`] keeps what is certain apart from what is not.
    pub fn into_result(self) -> Result<T, Error> {
        match self {
            Self::Done(reply) => Ok(reply),
            Self::Rejected(rejected) => Err(Error::Rejected(rejected)),
            Self::Unknown(unknown) => Err(Error::Unknown(unknown)),
        }
    }
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request was not executed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Nobody knows whether it was.
    #[error(transparent)]
    Unknown(#[from] Unknown),
}

/// Why a request was not executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The request is wrong: change it.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// A limit is reached: slow down, then try again.
    #[error("limit reached: {0}")]
    Limit(String),
    /// Nobody could answer in time: try again later, or look after the cluster.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// What it is about does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// What it would make exists already, and is different.
    #[error("exists already: {0}")]
    Exists(String),
    /// The log has no such index (yet, or any more).
    #[error("out of range: {message}")]
    OutOfRange {
        /// What the log says.
        message: String,
        /// The first index that it keeps, where that was told.
        first_index: Option<u64>,
        /// Its last index, where that was told.
        last_index: Option<u64>,
    },
    /// The state of things does not allow it (any more).
    #[error("refused: {0}")]
    Refused(String),
}

/// Why it is not known whether a request was executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outcome is unknown, the request may have been executed: {reason}")]
pub struct Unknown {
    /// What happened last.
    pub reason: String,
}

/// An endpoint that is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// There is none.
    #[error("there must be at least one endpoint, host:port")]
    None,
    /// This one.
    #[error("the endpoint {0:?} is not host:port")]
    Malformed(String),
}

impl Rejected {
    /// What a status says, given that the request was never executed.
    pub(crate) fn from_status(status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::Unimplemented => Self::Invalid(message),
            Code::OutOfRange => Self::OutOfRange {
                message,
                first_index: metadata::number(status.metadata(), metadata::FIRST_INDEX),
                last_index: metadata::number(status.metadata(), metadata::LAST_INDEX),
            },
            Code::ResourceExhausted => Self::Limit(message),
            Code::NotFound => Self::NotFound(message),
            Code::AlreadyExists => Self::Exists(message),
            Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated => {
                Self::Refused(message)
            }
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unavailable(message),
        }
    }
}
