//! Questions to the machine, and the answers to them.
//!
//! Decides what can be asked of the task that owns the machine, which is only what takes a short,
//! bounded time. What may take longer (pages, counts, old revisions, changes) is asked of a
//! [`View`], which such a question answers with, by whoever wants to know.

use bytes::Bytes;
use raft::GroupTime;

use crate::{
    command::{LeaseId, Token},
    custody::Custody,
    handoff::Contents,
    outcome::{Header, Key, Pair, Refusal, Response, Revision, ShardTime},
    view::View,
};

/// A read-only question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// What does this key hold?
    Get(Bytes),
    /// What is the time of the shard that holds this key?
    Time(Bytes),
    /// How many shards was the cluster created with?
    Created,
    /// What is the state? Answers with a frozen one that shares memory.
    View(Scope),
    /// What would this command answer, an encoded Txn that only reads?
    Txn(Bytes),
    /// How does a lease stand?
    Lease {
        /// Which.
        lease: LeaseId,
        /// Whether to tell what is attached to it.
        attached: bool,
    },
    /// How does a lock stand?
    Lock(Bytes),
    /// How does each shard stand here?
    Custody,
    /// How does each shard stand here, and how much is in it?
    Standings,
    /// What is in a shard, served or not? Answers with a frozen state that shares memory.
    Contents(u32),
    /// How does a lease stand with a lock?
    Claim {
        /// Which lock.
        name: Bytes,
        /// Which lease.
        lease: LeaseId,
    },
    /// Which leases are over?
    DueLeases {
        /// By this group time.
        until: GroupTime,
        /// How many are told at most.
        most: usize,
    },
}

/// Which shards a [`View`] shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that are served here.
    All,
    /// This one, if there is such a shard. It must be served here.
    Shard(u32),
    /// Those of these that are served here.
    Served(Vec<u32>),
    /// Those in which keys of these ranges may be. All of them must be served here.
    Ranges(Vec<crate::range::Range>),
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Query::Get`].
    Pair(Header, Option<Pair>),
    /// To [`Query::Time`].
    Time(Header),
    /// To [`Query::Created`]; none before the first command.
    Created(Option<u32>),
    /// To [`Query::View`].
    View(View),
    /// To [`Query::Txn`].
    Txn(Response),
    /// To [`Query::Lease`]; none: it has ended, or never was.
    Lease(Header, Option<LeaseState>),
    /// To [`Query::Lock`].
    Lock(Header, LockState),
    /// To [`Query::Claim`].
    Claim(Header, Claim),
    /// To [`Query::DueLeases`].
    DueLeases(DueLeases),
    /// To [`Query::Custody`]: by shard; empty before the first command.
    Custody(Vec<Custody>),
    /// To [`Query::Standings`]: by shard; empty before the first command.
    Standings(Vec<Standing>),
    /// To [`Query::Contents`], if there is such a shard.
    Contents(Option<Box<Contents>>),
    /// To a question about a shard that is not served here.
    Refused(Refusal),
}

/// How a shard stands in a group, and how much of it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How it stands.
    pub custody: Custody,
    /// How many keys it has here.
    pub keys: u64,
    /// What it stores here: keys, values and all else that counts against the quota.
    pub bytes: u64,
    /// Its revision.
    pub revision: Revision,
    /// While it leaves: how many bytes its log of changes has, and how many it may have.
    pub held: Option<(u64, u64)>,
}

/// How a lease stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// How long it lives on at least.
    pub remaining_ms: u64,
    /// How long it lives from being kept alive on.
    pub ttl_ms: u64,
    /// The keys that are attached to it, if they were asked for.
    pub keys: Vec<Key>,
    /// The locks that it holds or waits for, if they were asked for.
    pub locks: Vec<Key>,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The fencing token.
    pub token: Token,
    /// The lease.
    pub lease: LeaseId,
    /// How long the lease lives on at least.
    pub remaining_ms: u64,
    /// What it said of itself.
    pub owner: Bytes,
}

/// Who waits for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The lease.
    pub lease: LeaseId,
    /// What it said of itself.
    pub owner: Bytes,
    /// When it gives up.
    pub until: ShardTime,
}

/// How a lock stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockState {
    /// Who holds it.
    pub holder: Option<Holder>,
    /// Who waits, in order; at most [`crate::limits::WAITERS_TOLD_MAX`] are told.
    pub waiters: Vec<Waiter>,
    /// How many wait.
    pub waiting: u32,
}

/// How a lease stands with a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It holds it.
    Held {
        /// How long the lease lives.
        ttl_ms: u64,
        /// What to guard writes with.
        token: Token,
    },
    /// It waits for it.
    Waiting,
    /// Neither: the wait is over, or the lock was released, or the lease has ended. Tells who holds
    /// the lock now.
    Gone(Option<Holder>),
}

/// Leases that are over, to be ended by an Expire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueLeases {
    /// Those that are told.
    pub due: Vec<DueLease>,
    /// When the next one is over by group time, as it stands, if there is one that is not told.
    pub next: Option<GroupTime>,
}

/// A lease that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueLease {
    /// Which.
    pub lease: LeaseId,
    /// How often it was renewed.
    pub renewal: u64,
    /// When it was over, by group time.
    pub deadline: GroupTime,
}
