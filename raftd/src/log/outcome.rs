//! What the log machine answers: the vocabulary between the machine and whoever asks it.
//!
//! Plain data. The wire's form of it is in `wire.rs`.

use std::fmt;

use bytes::Bytes;
use raft::GroupTime;

use crate::log::command::BadCommand;
use crate::log::limits::OutOfBounds;

/// A place in the log that users see: the first entry has 1. Not Raft's index, of which elections
/// and the passing of time take some too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// The one behind it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The one before it; that of 0 is 0.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// Where the log stands; comes with every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The first entry that is kept; the one behind `last` when none is.
    pub first: LogIndex,
    /// The last entry; 0 before the first.
    pub last: LogIndex,
    /// How many bytes the kept entries take.
    pub bytes: u64,
    /// The group's time at the last applied entry.
    pub time: GroupTime,
}

/// What came of a command that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The entries are in the log.
    Appended {
        /// The first of them.
        first: LogIndex,
        /// How many.
        count: u64,
        /// Whether they were appended by an earlier execution of the same request.
        duplicate: bool,
    },
    /// The entries are gone.
    Trimmed,
}

/// Why a command was not executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client had acknowledged this sequence; it never executes now.
    #[error("the client has acknowledged this sequence before")]
    Acknowledged,
    /// Its `expires` passed. It may have been executed by an earlier entry whose reply is gone.
    #[error("the request expired at group time {expires} ms; it is {now} ms now")]
    Expired {
        /// When it expired.
        expires: GroupTime,
        /// The group's time.
        now: GroupTime,
    },
    /// Its `expires` is further ahead than any honest client's.
    #[error(
        "expires_ms is {ahead_ms} ms ahead of group time; the limit expires_ahead_ms_max is {limit}"
    )]
    TooFarAhead {
        /// How far ahead.
        ahead_ms: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A limit of the exactly-once table is reached.
    #[error("the limit {name} of {limit} is reached")]
    Limit {
        /// Which.
        name: &'static str,
        /// What it is.
        limit: u64,
    },
    /// The log would take more than it may.
    #[error(
        "the log has {bytes} bytes and would have {asked} more; the limit quota_bytes is {limit}: \
         trim it first"
    )]
    Quota {
        /// What it takes.
        bytes: u64,
        /// What was to be added.
        asked: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A trim of what is not there yet.
    #[error("the log cannot be trimmed to {first}: its last index is {last}")]
    BeyondEnd {
        /// The first entry that was to be kept.
        first: LogIndex,
        /// The last entry.
        last: LogIndex,
    },
    /// The entries break a limit.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// The bytes are not a command.
    #[error("the command does not decode: {0}")]
    BadCommand(#[from] BadCommand),
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Where the log stands now.
    pub header: Header,
    /// What came of the command.
    pub result: Result<Outcome, Refusal>,
}

/// A read-only question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// Where does the log stand?
    Status,
    /// What are the entries from this one on?
    Read {
        /// The first that is asked for.
        from: LogIndex,
        /// How much to answer, unless a single entry is larger.
        bytes_max: usize,
    },
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where the log stands.
    pub header: Header,
    /// To [`Query::Read`]: entries in a row from the one that was asked for. None when that is
    /// gone, or not there yet.
    pub entries: Vec<Bytes>,
}
