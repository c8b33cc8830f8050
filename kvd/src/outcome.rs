//! What the machine answers to commands: the vocabulary between the machine and whoever asks it.
//!
//! Plain data. Why a command was refused is in `refusal.rs`, questions are in `query.rs`, and the
//! wire's form of it all is in `wire.rs`.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    command::{LeaseId, Token},
    limits::KEPT_REPLY_OVERHEAD_BYTES,
    step::Stepped,
};
pub use crate::{query::*, refusal::Refusal};

/// The time of a shard, in milliseconds; never falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardTime(pub u64);

/// Counts the mutations of a shard that changed something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// Counts the writes of a key since it was last absent; at least 1, and 0 for "absent".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// A key in its own allocation, shared by everything that names it.
pub type Key = Arc<[u8]>;

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
    /// With which lease it goes.
    pub lease: Option<LeaseId>,
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
    /// A value would have grown over the limit; nothing changed.
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
    /// The lock is not held under the guard's token, but under this one, or none; or its lease is
    /// past its deadline. Nothing changed.
    GuardRefused(Option<Token>),
    /// The lease has ended, or never was; nothing changed.
    NoSuchLease(LeaseId),
    /// One of a Txn's lists was executed.
    Txn(Executed),
    /// Changes are forgotten up to this revision.
    Compacted(Revision),
    /// A lease is made.
    Granted {
        /// Which.
        lease: LeaseId,
        /// How long it lives.
        ttl_ms: u64,
    },
    /// For each lease that was named, how long it lives from now on; none: it has ended, or never
    /// was.
    KeptAlive(Vec<(LeaseId, Option<u64>)>),
    /// The lease is ended.
    Ended {
        /// How many keys went with it.
        keys_removed: u32,
    },
    /// The lease was renewed, or is not over yet: it lives on.
    LivesOn,
    /// The lock is held.
    Held {
        /// Under which lease.
        lease: LeaseId,
        /// How long that lives.
        ttl_ms: u64,
        /// What to guard writes with.
        token: Token,
    },
    /// The lock is somebody else's, and the lease waits for it: [`Query::Claim`] tells how that
    /// goes on.
    Queued {
        /// Which waits.
        lease: LeaseId,
    },
    /// The lock is somebody else's, and nothing changed.
    Busy(Holder),
    /// Whether the lock was held or waited for by the lease until now.
    Released(bool),
    /// A step of a move is done.
    Stepped(Stepped),
    /// There was no room for it. Only kept: told as the refusal that it is, now and to whoever asks
    /// again, so that what was refused is never executed by a copy that comes later.
    NoRoom(Refusal),
}

/// A Txn that was executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Whether the compares held.
    pub succeeded: bool,
    /// What came of each operation, in order. Empty in a kept reply whose body was dropped.
    pub replies: Arc<[ActionReply]>,
    /// The revision of all that was changed; none: nothing was.
    pub revision: Option<Revision>,
}

/// What came of one operation of a Txn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionReply {
    /// Of a Get: what is there.
    Got(Option<Pair>),
    /// Of a Put.
    Written(Written),
    /// Of an Append.
    Appended {
        /// Where the key stands now.
        written: Written,
        /// The value from before.
        old: Bytes,
    },
    /// Of a Delete: what was there.
    Removed(Option<Pair>),
}

impl ActionReply {
    /// The value that it carries, if it carries one.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Got(Some(pair)) | Self::Removed(Some(pair)) => Some(&pair.value),
            Self::Appended { old, .. } => Some(old),
            Self::Got(None) | Self::Removed(None) | Self::Written(_) => None,
        }
    }
}

/// What a kept reply can lose to save space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    /// A value.
    Value(&'a Bytes),
    /// The replies of a Txn.
    Replies(&'a Arc<[ActionReply]>),
}

impl Body<'_> {
    /// How much of the budget it takes, without the overhead of each body; 0: there is nothing to
    /// drop.
    pub(crate) fn cost(&self) -> u64 {
        match self {
            Self::Value(value) => value.len() as u64,
            Self::Replies(replies) => replies.iter().map(reply_cost).sum(),
        }
    }
}

/// What a reply of a Txn counts where they are limited.
pub(crate) fn reply_cost(reply: &ActionReply) -> u64 {
    reply.value().map_or(0, |value| value.len() as u64) + KEPT_REPLY_OVERHEAD_BYTES
}

impl Outcome {
    /// What it carries that may be large, if it is of a kind that does.
    pub(crate) fn body(&self) -> Option<Body<'_>> {
        match self {
            Self::Mismatch(Some(pair)) | Self::Removed { pair, .. } => {
                Some(Body::Value(&pair.value))
            }
            Self::Appended { old, .. } => Some(Body::Value(old)),
            Self::Busy(holder) => Some(Body::Value(&holder.owner)),
            Self::Txn(executed) => Some(Body::Replies(&executed.replies)),
            Self::Written(_)
            | Self::Mismatch(None)
            | Self::TooLarge { .. }
            | Self::Absent
            | Self::GuardRefused(_)
            | Self::NoSuchLease(_)
            | Self::Compacted(_)
            | Self::Granted { .. }
            | Self::KeptAlive(_)
            | Self::Ended { .. }
            | Self::LivesOn
            | Self::Held { .. }
            | Self::Queued { .. }
            | Self::Released(_)
            | Self::Stepped(_)
            | Self::NoRoom(_) => None,
        }
    }

    /// The same without it.
    pub fn without_body(&self) -> Self {
        let mut bare = self.clone();
        if let Self::Txn(executed) = &mut bare {
            executed.replies = Arc::new([]);
        }
        bare.set_value(Bytes::new());
        bare
    }

    /// Puts a value into an outcome of a kind that carries one.
    pub(crate) fn set_value(&mut self, value: Bytes) {
        match self {
            Self::Mismatch(Some(pair)) | Self::Removed { pair, .. } => pair.value = value,
            Self::Appended { old, .. } => *old = value,
            Self::Busy(holder) => holder.owner = value,
            Self::Txn(_)
            | Self::Written(_)
            | Self::Mismatch(None)
            | Self::TooLarge { .. }
            | Self::Absent
            | Self::GuardRefused(_)
            | Self::NoSuchLease(_)
            | Self::Compacted(_)
            | Self::Granted { .. }
            | Self::KeptAlive(_)
            | Self::Ended { .. }
            | Self::LivesOn
            | Self::Held { .. }
            | Self::Queued { .. }
            | Self::Released(_)
            | Self::Stepped(_)
            | Self::NoRoom(_) => {}
        }
    }
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
