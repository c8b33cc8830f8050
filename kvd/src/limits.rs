//! The published limits of the store, each with its name and its reason.
//!
//! What `apply` reads must be equal on all members, so these are constants of the machine's
//! version. A setting can only be stricter than its constant, and is checked before a request is
//! proposed or travels inside the command. Deliberately absent: limits of transport and queues,
//! which belong to the host.

use raft::CHUNK_BYTES_MAX;

/// The longest key. Keys are copied into every index that names them.
pub const KEY_BYTES_MAX: usize = 8 * 1024;

/// The longest value. A log entry, and with it one disk batch, must hold it.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// The largest request on the wire: a value, its key and a generous margin.
pub const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The most shards of a cluster: what a damaged command could make a member allocate.
pub const SHARDS_MAX: u32 = 16 * 1024;

/// How far ahead of shard time a request may expire, in milliseconds. No honest client gets
/// there, and rows are kept no longer than this.
pub const EXPIRES_AHEAD_MS_MAX: u64 = 5 * 60 * 1000;

/// How many unacknowledged replies one client may have in one shard.
pub const REPLIES_PER_ROW_MAX: usize = 256;

/// How many clients one shard remembers at a time.
pub const ROWS_PER_SHARD_MAX: usize = 100_000;

/// How many replies one shard keeps over all clients.
pub const REPLIES_PER_SHARD_MAX: usize = 400_000;

/// How many bytes of reply bodies (values from before, pairs found) one shard keeps; beyond it the
/// oldest bodies are dropped. The newest always fits.
pub const BODY_BYTES_PER_SHARD_MAX: u64 = 4 * 1024 * 1024;

/// What a kept body costs beside its bytes.
pub const BODY_OVERHEAD_BYTES: u64 = 128;

/// How many due rows one apply looks at in each of the two shards that it sweeps. More than one,
/// so that rows go faster than they come.
pub const SWEEP_ROWS_PER_APPLY: usize = 4;

/// How many compares and operations a Txn has at most.
pub const TXN_OPERATIONS_MAX: usize = 128;

/// How many bytes the replies of a Txn may have, each with [`KEPT_REPLY_OVERHEAD_BYTES`]: a reply
/// is one message, and is kept.
pub const TXN_REPLY_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// What the reply of one operation of a Txn costs beside its value.
pub const KEPT_REPLY_OVERHEAD_BYTES: u64 = 96;

/// How many bytes the changes of all shards may take together, each with
/// [`CHANGE_OVERHEAD_BYTES`]; each shard has an equal part of it. The oldest revisions go first.
pub const CHANGES_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// What a shard may keep of its changes however many shards there are, so that a watch can go on
/// after a break.
pub const CHANGES_BYTES_PER_SHARD_MIN: u64 = 64 * 1024;

/// How many bytes of changes a shard keeps for another group that copies it, or as many as it has of
/// pairs if that is more. Beyond it the copy begins anew.
pub const HELD_CHANGES_BYTES: u64 = 64 * 1024 * 1024;

/// How many pairs, changes, rows, locks or leases one step removes at most of a shard that has gone to
/// another group.
pub const DISCARDED_PER_STEP: usize = 1_000;

/// How many bytes of values it removes, about.
pub const DISCARDED_BYTES_PER_STEP: usize = 1024 * 1024;

/// What a change costs beside its key and the value from before it.
pub const CHANGE_OVERHEAD_BYTES: u64 = 256;

/// How many revisions one apply forgets at most in each of the two shards that it sweeps.
pub const REVISIONS_FORGOTTEN_PER_APPLY: usize = 1_000;

/// What a pair costs beside its key and value, about: its place in the map, two allocations.
pub const PAIR_OVERHEAD_BYTES: u64 = 192;

/// The shortest time that a lease lives: it must outlast a few round trips.
pub const LEASE_TTL_MS_MIN: u64 = 100;

/// The longest time that a lease lives.
pub const LEASE_TTL_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// How many keys are attached to one lease at most: they all go in one apply.
pub const KEYS_PER_LEASE_MAX: usize = 1_024;

/// How many locks one lease holds or waits for at most: they all go on in one apply.
pub const LOCKS_PER_LEASE_MAX: usize = 64;

/// How many leases one shard has at most, those of locks among them.
pub const LEASES_PER_SHARD_MAX: usize = 100_000;

/// What a lease costs in memory, about, and what it counts in what is stored.
pub const LEASE_OVERHEAD_BYTES: u64 = 512;

/// How many leases one KeepAlive names at most.
pub const KEEP_ALIVE_LEASES_MAX: usize = 1_000;

/// How many leases that are over one answer tells at most.
pub const DUE_LEASES_TOLD_MAX: usize = 1_000;

/// How many bytes of names the answer to a question about a lease tells: it is one message.
pub const LEASE_NAMES_BYTES_MAX: usize = 1024 * 1024;

/// How many locks of one shard are held at a time.
pub const LOCKS_PER_SHARD_MAX: usize = 100_000;

/// What a lock costs beside its name and its holder's words of itself.
pub const LOCK_OVERHEAD_BYTES: u64 = 768;

/// How many wait for one lock at most.
pub const WAITERS_PER_LOCK_MAX: usize = 1_000;

/// How many of those who wait are told at most.
pub const WAITERS_TOLD_MAX: usize = 100;

/// The longest wait for a lock.
pub const LOCK_WAIT_MS_MAX: u64 = 5 * 60 * 1000;

/// How much the holder of a lock may say of itself.
pub const LOCK_OWNER_BYTES_MAX: usize = 1024;

/// How many pairs a page has at most.
pub const PAGE_PAIRS_MAX: usize = 1_000;

/// How many bytes the keys and values of a page have at most; one pair always fits.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// How many ranges one watch may name.
pub const WATCH_RANGES_MAX: usize = 128;

/// Values above this are cut at fixed offsets into chunks of their own in a snapshot.
pub const LONG_VALUE_BYTES: usize = 16 * 1024;

/// What the records around a key and a value need at most in a snapshot's chunk.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 256;

const _: () = assert!(BODY_BYTES_PER_SHARD_MAX >= VALUE_BYTES_MAX as u64 + BODY_OVERHEAD_BYTES);
const _: () = assert!(REQUEST_BYTES_MAX >= VALUE_BYTES_MAX + KEY_BYTES_MAX + 4096);
const _: () = assert!(LONG_VALUE_BYTES + KEY_BYTES_MAX + RECORD_OVERHEAD_BYTES <= CHUNK_BYTES_MAX);
const _: () = assert!(REPLIES_PER_SHARD_MAX >= ROWS_PER_SHARD_MAX);
const _: () = assert!(BODY_BYTES_PER_SHARD_MAX >= TXN_REPLY_BYTES_MAX + BODY_OVERHEAD_BYTES);

/// Why a key or a value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// Every key has at least one byte.
    #[error("the key is empty; a key has 1 to {KEY_BYTES_MAX} bytes")]
    KeyEmpty,
    /// The key is too long.
    #[error("the key has {bytes} bytes; the limit key_bytes_max is {limit}")]
    KeyTooLong {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The value is too long.
    #[error("the value has {bytes} bytes; the limit value_bytes_max is {limit}")]
    ValueTooLong {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A Txn has too many compares and operations.
    #[error(
        "the transaction has {operations} compares and operations; the limit txn_operations_max is {limit}"
    )]
    TxnTooLong {
        /// How many it has.
        operations: usize,
        /// What is allowed.
        limit: usize,
    },
    /// A time to live that no lease may have.
    #[error(
        "the time to live is {ttl_ms} ms; the limits lease_ttl_ms_min and lease_ttl_ms_max are {min} and {max}"
    )]
    TtlOutOfRange {
        /// What was asked for.
        ttl_ms: u64,
        /// What is the least.
        min: u64,
        /// What is the most.
        max: u64,
    },
    /// The wait is too long.
    #[error("the wait is {wait_ms} ms; the limit lock_wait_ms_max is {limit}")]
    WaitTooLong {
        /// What was asked for.
        wait_ms: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The owner says too much.
    #[error("the owner has {bytes} bytes; the limit lock_owner_bytes_max is {limit}")]
    OwnerTooLong {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// The limits on keys and values that a member enforces before it proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairLimits {
    /// The longest key, at most [`KEY_BYTES_MAX`].
    pub key_bytes_max: usize,
    /// The longest value, at most [`VALUE_BYTES_MAX`].
    pub value_bytes_max: usize,
}

impl Default for PairLimits {
    fn default() -> Self {
        Self { key_bytes_max: KEY_BYTES_MAX, value_bytes_max: VALUE_BYTES_MAX }
    }
}

impl PairLimits {
    /// Checks a key.
    ///
    /// # Errors
    /// [`OutOfBounds`] says which limit it breaks.
    pub fn check_key(&self, key: &[u8]) -> Result<(), OutOfBounds> {
        let limit = self.key_bytes_max;
        match key.len() {
            0 => Err(OutOfBounds::KeyEmpty),
            bytes if bytes > limit => Err(OutOfBounds::KeyTooLong { bytes, limit }),
            _ => Ok(()),
        }
    }

    /// Checks a value.
    ///
    /// # Errors
    /// [`OutOfBounds`] says which limit it breaks.
    pub fn check_value(&self, value: &[u8]) -> Result<(), OutOfBounds> {
        let (bytes, limit) = (value.len(), self.value_bytes_max);
        if bytes > limit { Err(OutOfBounds::ValueTooLong { bytes, limit }) } else { Ok(()) }
    }
}
