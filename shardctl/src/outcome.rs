//! What commands come to.

use crate::{
    command::BadCommand,
    ids::{GroupId, Number, ShardId},
    placement::Stale,
};

/// What a command came to that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The latest configuration behind it.
    pub number: Number,
    /// It was executed before, by the same request.
    pub duplicate: bool,
}

/// Why a command changed nothing, but that its request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It makes no sense.
    #[error(transparent)]
    Bad(#[from] BadCommand),
    /// The same request was refused when it came first.
    #[error("this request was refused when it came first; ask again under another id")]
    RefusedBefore,
    /// It is about another number of shards.
    #[error("there are {created} shards, not {proposed}: the number never changes")]
    OtherShards {
        /// How many there are.
        created: u32,
        /// How many the proposer has.
        proposed: u32,
    },
    /// A limit would be passed; names it.
    #[error("{found} is over the limit {name} of {limit}")]
    Limit {
        /// Its name.
        name: &'static str,
        /// How much was asked for.
        found: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// There is no such shard.
    #[error("there is no shard {shard}, only 0 to {last}")]
    NoShard {
        /// Which was asked for.
        shard: ShardId,
        /// The last.
        last: u32,
    },
    /// Nothing is asked for.
    #[error("no group is named")]
    NoGroups,
    /// The group is named twice.
    #[error("group {0} is named twice")]
    Twice(GroupId),
    /// The group does not take part.
    #[error("group {0} has not joined")]
    NotJoined(GroupId),
    /// It takes part already, otherwise.
    #[error("group {group} has joined, with weight {weight}: `shardctl weigh` changes that")]
    Joined {
        /// Which.
        group: GroupId,
        /// Its weight.
        weight: u32,
    },
    /// Nobody has said where it is.
    #[error("group {0} has not reported yet: start it, or give the addresses of its members")]
    Unknown(GroupId),
    /// A group without members reports.
    #[error("group {0} reports no members")]
    NoMembers(GroupId),
    /// The groups that would take part have no weight.
    #[error("the groups that take part would all have weight 0")]
    NoWeight,
    /// The group can't be adopted, since others take part or have taken part.
    #[error("a group is adopted only by a controller that has no configuration yet")]
    NotEmpty,
    /// The group can't be adopted, since there is nothing in it.
    #[error("group {0} has no data yet: it can join")]
    NothingToAdopt(GroupId),
    /// Another Raft group speaks as this one.
    #[error("group {0} is known with another identity: was it made anew, or recovered?")]
    OtherIdentity(GroupId),
    /// The report is older than what is known, or of no move that there is.
    #[error("this is no longer so")]
    Stale,
}

impl From<Stale> for Refusal {
    fn from(Stale: Stale) -> Self {
        Self::Stale
    }
}
