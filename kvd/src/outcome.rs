//! What the machine answers: the vocabulary between the machine and whoever asks it.
//!
//! Plain data. The wire's form of it is in `wire.rs`.

use bytes::Bytes;

use crate::limits::OutOfBounds;

/// The time of a shard, in milliseconds; never falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardTime(pub u64);

/// Counts the mutations of a shard that changed something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// Counts the writes of a key since it was last absent; at least 1, and 0 for "absent".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The value, in an allocation of its own.
    pub value: Bytes,
    /// How often it was written.
    pub version: Version,
    /// When it came into being.
    pub create_revision: Revision,
    /// When it was last written.
    pub mod_revision: Revision,
}

/// Where a key stands after a mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The key's version; 0 after a Delete.
    pub version: Version,
    /// The shard's revision of the mutation.
    pub revision: Revision,
}

/// What came of a command that was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The value is written.
    Written(Written),
    /// The condition did not hold; this is what is there.
    Mismatch(Option<Pair>),
    /// The value is appended.
    Appended {
        /// Where the key stands now.
        written: Written,
        /// The value from before.
        old: Bytes,
    },
    /// The value would have grown over the limit; nothing changed.
    TooLarge {
        /// What it would have been.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The key is removed.
    Removed {
        /// Where the key stands now.
        written: Written,
        /// What was there.
        pair: Pair,
    },
    /// There was no such key to remove; nothing changed.
    Absent,
}

impl Outcome {
    /// The value that it carries, if it carries one: what the budget for kept bodies counts.
    pub(crate) fn body(&self) -> Option<&Bytes> {
        match self {
            Self::Mismatch(Some(pair)) | Self::Removed { pair, .. } => Some(&pair.value),
            Self::Appended { old, .. } => Some(old),
            Self::Written(_) | Self::Mismatch(None) | Self::TooLarge { .. } | Self::Absent => None,
        }
    }

    /// The same without the value.
    pub(crate) fn without_body(&self) -> Self {
        let mut bare = self.clone();
        match &mut bare {
            Self::Mismatch(Some(pair)) | Self::Removed { pair, .. } => pair.value = Bytes::new(),
            Self::Appended { old, .. } => *old = Bytes::new(),
            Self::Written(_) | Self::Mismatch(None) | Self::TooLarge { .. } | Self::Absent => {}
        }
        bare
    }
}

/// Why a command was not executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client had acknowledged this sequence; it never executes now.
    #[error("the client has acknowledged this sequence before")]
    Acknowledged,
    /// Its `expires` passed. It may have been executed by an earlier entry whose reply is gone.
    #[error("the request expired at shard time {} ms; it is {} ms now", expires.0, now.0)]
    Expired {
        /// When it expired.
        expires: ShardTime,
        /// The shard's time.
        now: ShardTime,
    },
    /// Its `expires` is further ahead than any honest client's.
    #[error(
        "expires_ms is {ahead_ms} ms ahead of shard time; the limit expires_ahead_ms_max is {limit}"
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
    /// The key or the value breaks a limit.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// The cluster was created with another number of shards than the proposer is set to.
    #[error("the cluster was created with {created} shards; this command was made for {proposed}")]
    OtherShards {
        /// What the cluster has.
        created: u32,
        /// What the command says.
        proposed: u32,
    },
    /// The bytes are not a command.
    #[error("the command does not decode: {0}")]
    BadCommand(#[from] crate::command::BadCommand),
}

/// Where the shard stands; comes with every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The shard.
    pub shard: u32,
    /// How many shards the cluster has.
    pub shards: u32,
    /// The shard's revision now.
    pub revision: Revision,
    /// The shard's time at the last applied entry.
    pub time: ShardTime,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Where the shard stands now.
    pub header: Header,
    /// What came of the command.
    pub result: Result<Answered, Refusal>,
}

/// The answer to a command that is or was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What came of it.
    pub outcome: Outcome,
    /// Whether this is the kept reply of an earlier execution.
    pub duplicate: bool,
    /// Whether the value in the kept reply was dropped to save space.
    pub body_dropped: bool,
}

/// A read-only question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// What does this key hold?
    Get(Bytes),
    /// What is the time of the shard that holds this key?
    Time(Bytes),
    /// How many shards was the cluster created with?
    Created,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Query::Get`].
    Pair(Header, Option<Pair>),
    /// To [`Query::Time`].
    Time(Header),
    /// To [`Query::Created`]; none before the first command.
    Created(Option<u32>),
}
