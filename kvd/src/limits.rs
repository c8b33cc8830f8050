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

/// Values above this are cut at fixed offsets into chunks of their own in a snapshot.
pub const LONG_VALUE_BYTES: usize = 16 * 1024;

/// What the records around a key and a value need at most in a snapshot's chunk.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 256;

const _: () = assert!(BODY_BYTES_PER_SHARD_MAX >= VALUE_BYTES_MAX as u64 + BODY_OVERHEAD_BYTES);
const _: () = assert!(REQUEST_BYTES_MAX >= VALUE_BYTES_MAX + KEY_BYTES_MAX + 4096);
const _: () = assert!(LONG_VALUE_BYTES + KEY_BYTES_MAX + RECORD_OVERHEAD_BYTES <= CHUNK_BYTES_MAX);
const _: () = assert!(REPLIES_PER_SHARD_MAX >= ROWS_PER_SHARD_MAX);

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
