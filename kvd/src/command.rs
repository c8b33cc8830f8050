//! What the log carries: what is to be done in one shard.
//!
//! Decides what can be asked, and which shard it is asked of. The bytes are in `encoding.rs`.
//! Reads are not commands, and whether a command makes sense for the state is the machine's
//! business.

use std::{fmt, num::NonZeroU64};

use bytes::Bytes;
use proto::shard_of;
use raftd::codec::Malformed;

use crate::{
    limits::{SHARDS_MAX, VALUE_BYTES_MAX},
    outcome::{Refusal, Revision, ShardTime, Version},
    step::STEP_VERSION,
};

/// The command version that this build understands.
pub const COMMAND_VERSION: u8 = 2;

/// Something to be done in one shard. Borrows, so that neither side copies a value for the codec's
/// sake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// How many shards the proposer believes the cluster has. The first command of a cluster
    /// fixes the number; later ones must repeat it.
    pub shards: u32,
    /// Makes it exactly-once. Only for what `Operation::takes_id` says.
    pub id: Option<RequestId>,
    /// Lets it happen only while a lock is held. Only for what `Operation::takes_guard` says.
    pub guard: Option<Guard<'a>>,
    /// How far it may let the state grow.
    pub bounds: Bounds,
    /// What to do.
    pub operation: Operation<'a>,
}

/// Settings of the proposer by which every member must decide alike: they travel with the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long a value may become by an Append, at most [`VALUE_BYTES_MAX`].
    pub value_bytes_max: u64,
    /// How many bytes the group may store; what would grow beyond is refused.
    pub stored_bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { value_bytes_max: VALUE_BYTES_MAX as u64, stored_bytes_max: u64::MAX }
    }
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Writes a value.
    Put {
        /// Where.
        key: &'a [u8],
        /// What.
        value: &'a [u8],
        /// Only if this holds.
        condition: Condition,
        /// What the pair is attached to from now on.
        lease: Option<LeaseId>,
    },
    /// Appends to a value; an absent key counts as empty. The pair stays attached to its lease.
    Append {
        /// Where.
        key: &'a [u8],
        /// What is added.
        value: &'a [u8],
    },
    /// Removes a key.
    Delete {
        /// Which.
        key: &'a [u8],
    },
    /// Compares, and executes one list or the other, all of it or nothing.
    Txn(Txn<'a>),
    /// Forgets the changes of a shard.
    Compact {
        /// Which shard.
        shard: u32,
        /// Up to which revision; none: all there are.
        revision: Option<Revision>,
    },
    /// Makes a lease.
    Grant {
        /// In the shard of this key.
        key: &'a [u8],
        /// How long it lives without being kept alive.
        ttl_ms: u64,
    },
    /// Lets leases of one shard begin anew.
    KeepAlive {
        /// Which.
        leases: Vec<LeaseId>,
    },
    /// Ends a lease.
    Revoke {
        /// Which.
        lease: LeaseId,
    },
    /// Ends a lease that nobody kept alive: proposed by a leader, and done only if the lease was
    /// not renewed meanwhile and its deadline has passed by this entry's own stamp.
    Expire {
        /// Which.
        lease: LeaseId,
        /// What the leader saw.
        renewal: u64,
    },
    /// Takes a lock, or a place in its queue.
    Acquire {
        /// Which lock.
        name: &'a [u8],
        /// Under which lease.
        tenure: Tenure,
        /// How long to wait for it; 0: not at all.
        wait_ms: u64,
        /// For people: who it is.
        owner: &'a [u8],
    },
    /// Gives a lock back, or a place in its queue.
    Release {
        /// Which lock.
        name: &'a [u8],
        /// The lease that holds it or waits for it.
        lease: LeaseId,
    },
}

/// Compares what keys hold, and what to do then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn<'a> {
    /// What must hold, all of it.
    pub compares: Vec<Compare<'a>>,
    /// Executed in order if it does.
    pub then: Vec<Action<'a>>,
    /// Executed in order if it does not.
    pub otherwise: Vec<Action<'a>>,
}

/// Compares what a key holds with something: the key's is on the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare<'a> {
    /// The key.
    pub key: &'a [u8],
    /// How they have to be to each other.
    pub relation: Relation,
    /// What it is compared with.
    pub operand: Operand<'a>,
}

/// How two things are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same.
    Equal,
    /// Not the same; so is a value that is not there.
    NotEqual,
    /// Less.
    Less,
    /// Greater.
    Greater,
}

/// What is compared. An absent key has version 0, revisions 0, no lease, and no value, which is
/// neither equal to one nor less nor greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand<'a> {
    /// The version.
    Version(Version),
    /// When it came into being.
    CreateRevision(Revision),
    /// When it was last written.
    ModRevision(Revision),
    /// The value, byte for byte.
    Value(&'a [u8]),
    /// What it is attached to; none counts as less than any.
    Lease(Option<LeaseId>),
}

/// One operation of a Txn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Reads a key.
    Get {
        /// Which.
        key: &'a [u8],
    },
    /// Writes a value.
    Put {
        /// Where.
        key: &'a [u8],
        /// What.
        value: &'a [u8],
        /// What the pair is attached to from now on.
        lease: Option<LeaseId>,
    },
    /// Appends to a value.
    Append {
        /// Where.
        key: &'a [u8],
        /// What is added.
        value: &'a [u8],
    },
    /// Removes a key.
    Delete {
        /// Which.
        key: &'a [u8],
    },
}

impl<'a> Action<'a> {
    /// The key that it is about.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::Append { key, .. }
            | Self::Delete { key } => key,
        }
    }

    /// Whether it may change something.
    pub fn mutates(&self) -> bool {
        match self {
            Self::Get { .. } => false,
            Self::Put { .. } | Self::Append { .. } | Self::Delete { .. } => true,
        }
    }
}

/// When a Put is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Always,
    /// While the pair has this version; 0: while there is no pair.
    Version(Version),
    /// While the pair was last written at this revision; 0: while there is no pair.
    ModRevision(Revision),
}

/// Lets a mutation happen only while a lock is held under a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard<'a> {
    /// The lock's name.
    pub lock: &'a [u8],
    /// What its holder was given.
    pub token: Token,
}

/// Under which lease a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// One that is made for it and ends with it; lives for so many milliseconds without being kept
    /// alive, from when the lock is granted.
    Own {
        /// How long.
        ttl_ms: u64,
    },
    /// One that lives already.
    Lease(LeaseId),
}

/// Fences off who held a lock before: the shard's revision at the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A lease, by a number that contains its shard: the shard's revision at the grant above
/// [`LeaseId::SHARD_BITS`] bits of the shard. Revisions never repeat, so neither do these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub NonZeroU64);

impl LeaseId {
    /// How many bits name the shard.
    pub const SHARD_BITS: u32 = proto::LEASE_SHARD_BITS;

    /// The lease that is granted at this revision; none when the revision is too large to be told.
    pub fn of(revision: Revision, shard: u32) -> Option<Self> {
        let fits = revision.0.leading_zeros() >= Self::SHARD_BITS && shard < SHARDS_MAX;
        fits.then(|| NonZeroU64::new(revision.0 << Self::SHARD_BITS | u64::from(shard)).map(Self))?
    }

    /// A number from the wire; none for 0, which stands for no lease.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number on the wire.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The shard that it is in.
    pub fn shard(self) -> u32 {
        (self.get() & u64::from(SHARDS_MAX - 1)) as u32
    }
}

const _: () = assert!(SHARDS_MAX == 1 << LeaseId::SHARD_BITS);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A client, by 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub [u8; 16]);

/// Names a request so that it is executed at most once (design part 6, "Exactly once").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Whose.
    pub client: ClientId,
    /// Counts the client's requests to one shard, from 1.
    pub sequence: u64,
    /// The client never again asks about requests up to this sequence.
    pub acknowledged: u64,
    /// Shard time after which it is no longer executed.
    pub expires: ShardTime,
}

/// Something by which a command names its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A key.
    Key(Bytes),
    /// A lock's name.
    Lock(Bytes),
    /// A lease.
    Lease(LeaseId),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "key \"{}\"", key.escape_ascii()),
            Self::Lock(name) => write!(f, "lock \"{}\"", name.escape_ascii()),
            Self::Lease(lease) => write!(f, "lease {lease}"),
        }
    }
}

/// As [`Place`], without a copy.
#[derive(Clone, Copy)]
enum Named<'a> {
    Key(&'a [u8]),
    Lock(&'a [u8]),
    Lease(LeaseId),
}

impl Named<'_> {
    fn shard(&self, shards: u32) -> u32 {
        match self {
            Self::Key(name) | Self::Lock(name) => shard_of(name, shards),
            Self::Lease(lease) => lease.shard(),
        }
    }

    fn to_place(self) -> Place {
        match self {
            Self::Key(key) => Place::Key(Bytes::copy_from_slice(key)),
            Self::Lock(name) => Place::Lock(Bytes::copy_from_slice(name)),
            Self::Lease(lease) => Place::Lease(lease),
        }
    }
}

/// A command that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// Another build wrote it. A member that cannot execute what others execute must stop before
    /// it applies this entry.
    #[error(
        "command version {0} is neither {COMMAND_VERSION} nor {STEP_VERSION}, which this build understands"
    )]
    OtherVersion(u8),
    /// Its kind is unknown.
    #[error("command kind {0} is unknown")]
    UnknownKind(u8),
    /// Its bytes make no sense.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Whether this build may apply the command: asked before `apply`. Only another version is an
/// error; a malformed command is applied, to a response that says so, since every build of its
/// version agrees on that.
///
/// # Errors
/// [`BadCommand::OtherVersion`].
pub fn check_version(command: &[u8]) -> Result<(), BadCommand> {
    match command.first() {
        Some(&(COMMAND_VERSION | STEP_VERSION)) | None => Ok(()),
        Some(&version) => Err(BadCommand::OtherVersion(version)),
    }
}

impl<'a> Command<'a> {
    /// A command without a name, a guard and bounds.
    pub fn new(shards: u32, operation: Operation<'a>) -> Self {
        Self { shards, id: None, guard: None, bounds: Bounds::default(), operation }
    }

    /// The shard that it is about.
    ///
    /// # Errors
    /// [`Refusal::Apart`] when it names two, [`Refusal::NoSuchShard`] when there is none such, and
    /// [`Refusal::NoPlace`] when it names nothing.
    pub fn shard(&self) -> Result<u32, Refusal> {
        self.shard_among(self.shards)
    }

    /// The same if there were so many shards.
    pub(crate) fn shard_among(&self, shards: u32) -> Result<u32, Refusal> {
        if let Operation::Compact { shard, .. } = self.operation {
            return exists(shard, shards);
        }
        let mut first: Option<(Named<'_>, u32)> = None;
        let mut apart: Option<Named<'_>> = None;
        self.operation.for_each_name(&mut |name| match first {
            None => first = Some((name, name.shard(shards))),
            Some((_, shard)) if apart.is_none() && name.shard(shards) != shard => {
                apart = Some(name);
            }
            Some(_) => {}
        });
        let Some((one, shard)) = first else { return Err(Refusal::NoPlace) };
        let guard = self.guard.map(|guard| Named::Lock(guard.lock));
        let guard = guard.filter(|name| name.shard(shards) != shard);
        match apart.or(guard) {
            Some(other) => Err(Refusal::Apart { one: one.to_place(), other: other.to_place() }),
            None => exists(shard, shards),
        }
    }
}

/// The shard, if there are more than its number.
pub(crate) fn exists(shard: u32, shards: u32) -> Result<u32, Refusal> {
    if shard < shards { Ok(shard) } else { Err(Refusal::NoSuchShard { shard, shards }) }
}

impl<'a> Operation<'a> {
    /// Whether it can be made exactly-once. The others change nothing when they are repeated.
    pub fn takes_id(&self) -> bool {
        match self {
            Self::Put { .. }
            | Self::Append { .. }
            | Self::Delete { .. }
            | Self::Txn(_)
            | Self::Grant { .. }
            | Self::Acquire { .. } => true,
            Self::Compact { .. }
            | Self::KeepAlive { .. }
            | Self::Revoke { .. }
            | Self::Expire { .. }
            | Self::Release { .. } => false,
        }
    }

    /// Whether it can depend on a lock.
    pub fn takes_guard(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Append { .. } | Self::Delete { .. } | Self::Txn(_) => true,
            Self::Compact { .. }
            | Self::Grant { .. }
            | Self::KeepAlive { .. }
            | Self::Revoke { .. }
            | Self::Expire { .. }
            | Self::Acquire { .. }
            | Self::Release { .. } => false,
        }
    }

    fn for_each_name(&self, see: &mut dyn FnMut(Named<'a>)) {
        match self {
            Self::Put { key, lease, .. } => {
                see(Named::Key(key));
                lease.map(Named::Lease).into_iter().for_each(see);
            }
            Self::Append { key, .. } | Self::Delete { key } | Self::Grant { key, .. } => {
                see(Named::Key(key));
            }
            Self::Txn(txn) => txn.for_each_name(see),
            Self::Compact { .. } => {}
            Self::KeepAlive { leases } => leases.iter().copied().map(Named::Lease).for_each(see),
            Self::Revoke { lease } | Self::Expire { lease, .. } => see(Named::Lease(*lease)),
            Self::Acquire { name, tenure, .. } => {
                see(Named::Lock(name));
                match tenure {
                    Tenure::Own { .. } => {}
                    Tenure::Lease(lease) => see(Named::Lease(*lease)),
                }
            }
            Self::Release { name, lease } => {
                see(Named::Lock(name));
                see(Named::Lease(*lease));
            }
        }
    }
}

impl<'a> Txn<'a> {
    /// All its operations, of both lists.
    pub fn actions(&self) -> impl Iterator<Item = &Action<'a>> {
        self.then.iter().chain(&self.otherwise)
    }

    fn for_each_name(&self, see: &mut dyn FnMut(Named<'a>)) {
        for compare in &self.compares {
            see(Named::Key(compare.key));
        }
        for action in self.actions() {
            see(Named::Key(action.key()));
            match action {
                Action::Put { lease: Some(lease), .. } => see(Named::Lease(*lease)),
                Action::Put { lease: None, .. }
                | Action::Get { .. }
                | Action::Append { .. }
                | Action::Delete { .. } => {}
            }
        }
    }
}
