//! Why a command was not executed: it changed nothing, and was not kept.
//!
//! Decides the words; what a client should make of them is decided in `wire.rs`. Outcomes that a
//! caller expects, a condition that does not hold among them, are no refusals.

use bytes::Bytes;

use crate::{
    command::Place,
    custody::{Custody, MoveNumber},
    limits::OutOfBounds,
    outcome::{Revision, ShardTime},
};

/// The limits on what a shard holds that an execution may run into, by the numbers under which they
/// are kept.
const LIMITS: [(u64, &str); 7] = [
    (1, KEYS_PER_LEASE),
    (2, LOCKS_PER_LEASE),
    (3, LEASES_PER_SHARD),
    (4, LOCKS_PER_SHARD),
    (5, WAITERS_PER_LOCK),
    (6, TXN_REPLY_BYTES),
    (7, LEASE_REVISION),
];

pub(crate) const KEYS_PER_LEASE: &str = "keys_per_lease_max";
pub(crate) const LOCKS_PER_LEASE: &str = "locks_per_lease_max";
pub(crate) const LEASES_PER_SHARD: &str = "leases_per_shard_max";
pub(crate) const LOCKS_PER_SHARD: &str = "locks_per_shard_max";
pub(crate) const WAITERS_PER_LOCK: &str = "waiters_per_lock_max";
pub(crate) const TXN_REPLY_BYTES: &str = "txn_reply_bytes_max";
pub(crate) const LEASE_REVISION: &str = "lease_revision_max";

/// Where the quota stands among those numbers.
const QUOTA: u64 = 0;

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
    /// A limit on what the state holds is reached.
    #[error("the limit {name} of {limit} is reached")]
    Limit {
        /// Which.
        name: &'static str,
        /// What it is.
        limit: u64,
    },
    /// What is stored would grow beyond its limit.
    #[error(
        "{bytes} bytes would be stored; the limit stored_bytes_max is {limit}: delete keys, end \
         leases or compact changes to make room"
    )]
    Quota {
        /// What would be stored.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The command itself breaks a limit.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
    /// A Txn's list changes one key twice.
    #[error("two operations of one list change the key \"{}\"", key.escape_ascii())]
    ChangedTwice {
        /// Which.
        key: Bytes,
    },
    /// What it names is not in one shard.
    #[error("{one} and {other} are in different shards; a request is about one shard")]
    Apart {
        /// Something that it names.
        one: Place,
        /// Something in another shard.
        other: Place,
    },
    /// It names nothing that is in a shard.
    #[error("the request names no key, lock or lease")]
    NoPlace,
    /// There is no such shard.
    #[error("there is no shard {shard}; there are {shards}")]
    NoSuchShard {
        /// The shard that is named, by its number or by a lease.
        shard: u32,
        /// How many there are, counted from 0.
        shards: u32,
    },
    /// The changes of that revision are forgotten.
    #[error("the changes up to revision {} of shard {shard} are compacted", compacted.0)]
    Compacted {
        /// Of which shard.
        shard: u32,
        /// Up to where.
        compacted: Revision,
    },
    /// The shard has not got that far.
    #[error("shard {shard} is at revision {}; {} was asked for", now.0, asked.0)]
    NotYet {
        /// Which shard.
        shard: u32,
        /// Its revision.
        now: Revision,
        /// What was asked for.
        asked: Revision,
    },
    /// A revision was given with keys of more than one shard.
    #[error("a revision is one shard's; the range lies in more than one")]
    ManyShards,
    /// A page token that no page gave.
    #[error("page_token is not one that a page gave")]
    BadPageToken,
    /// The cluster was created with another number of shards than the proposer is set to.
    #[error("the cluster was created with {created} shards; this command was made for {proposed}")]
    OtherShards {
        /// What the cluster has.
        created: u32,
        /// What the command says.
        proposed: u32,
    },
    /// The shard is not served here, or not yet, or no more: another group has it.
    #[error("shard {shard} is not served by this group")]
    NotServed {
        /// Which.
        shard: u32,
    },
    /// A step of a move that does not follow on how the shard stands.
    #[error("move {} of shard {shard} does not go on here: {custody:?}", number.0)]
    NoSuchStep {
        /// Which shard.
        shard: u32,
        /// Which move.
        number: MoveNumber,
        /// How the shard stands.
        custody: Custody,
    },
    /// What came of a shard makes no sense; all of it is discarded.
    #[error("what came of shard {shard} from another group makes no sense: {why}")]
    BadHandoff {
        /// Which shard.
        shard: u32,
        /// What is wrong.
        why: String,
    },
    /// A shard has come that is not the one which was sent; all of it is discarded.
    #[error("shard {shard} has not come as it was sent: the digests differ")]
    HandoffDiffers {
        /// Which shard.
        shard: u32,
    },
    /// A question that would change something.
    #[error("the transaction changes something; only a command can")]
    NotReadOnly,
    /// The bytes are not a command.
    #[error("the command does not decode: {0}")]
    BadCommand(#[from] crate::command::BadCommand),
}

impl Refusal {
    /// The numbers under which it is kept, if an execution ran into it for want of room.
    pub(crate) fn numbers(&self) -> Option<[u64; 3]> {
        match self {
            Self::Quota { bytes, limit } => Some([QUOTA, *bytes, *limit]),
            Self::Limit { name, limit } => {
                let number = LIMITS.iter().find(|(_, known)| known == name).map(|(it, _)| *it)?;
                Some([number, 0, *limit])
            }
            Self::Acknowledged
            | Self::Expired { .. }
            | Self::TooFarAhead { .. }
            | Self::OutOfBounds(_)
            | Self::ChangedTwice { .. }
            | Self::Apart { .. }
            | Self::NoPlace
            | Self::NoSuchShard { .. }
            | Self::Compacted { .. }
            | Self::NotYet { .. }
            | Self::ManyShards
            | Self::BadPageToken
            | Self::OtherShards { .. }
            | Self::NotServed { .. }
            | Self::NoSuchStep { .. }
            | Self::BadHandoff { .. }
            | Self::HandoffDiffers { .. }
            | Self::NotReadOnly
            | Self::BadCommand(_) => None,
        }
    }

    /// The one that is kept under these numbers.
    pub(crate) fn of_numbers([number, bytes, limit]: [u64; 3]) -> Option<Self> {
        if number == QUOTA {
            return Some(Self::Quota { bytes, limit });
        }
        let (_, name) = LIMITS.iter().find(|(known, _)| *known == number)?;
        (bytes == 0).then_some(Self::Limit { name, limit })
    }
}
