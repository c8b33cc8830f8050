//! The published limits of the log, each with its name and its reason.
//!
//! What `apply` reads must be equal on all members, so these are constants of the machine's
//! version. A setting can only be stricter than its constant, and is checked before a request is
//! proposed or travels inside the command, as the quota does.

/// The longest entry, `entry_bytes_max`.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

/// The most entries of one Propose, `propose_entries_max`.
pub const PROPOSE_ENTRIES_MAX: usize = 1_024;

/// The most bytes of one Propose, `propose_bytes_max`: what a command of the host may hold.
pub const PROPOSE_BYTES_MAX: usize = 2 << 20;

/// How many bytes the kept entries take at most unless the setting `quota_bytes` says otherwise.
/// They are in memory on every member, and once more on its disk.
pub const QUOTA_BYTES_DEFAULT: u64 = 512 << 20;

/// How many subscribers a member serves unless the setting `subscribers_max` says otherwise.
pub const SUBSCRIBERS_DEFAULT: usize = 1_024;

/// The most that the setting may say: each is a stream with a buffer.
pub const SUBSCRIBERS_MAX: usize = 65_536;

/// How far ahead of group time a request may expire, in milliseconds. No honest client gets there,
/// and rows of the exactly-once table are kept no longer than this.
pub const EXPIRES_AHEAD_MS_MAX: u64 = 5 * 60 * 1_000;

/// How many unacknowledged replies one client may have.
pub const REPLIES_PER_CLIENT_MAX: usize = 256;

/// How many clients are remembered at a time.
pub const CLIENTS_MAX: usize = 100_000;

/// How many replies are kept over all clients.
pub const REPLIES_MAX: usize = 400_000;

/// How many rows one apply may forget: more than it can add.
pub const SWEEP_ROWS_PER_APPLY: usize = 4;

/// What the numbers around the payloads of a Propose take at most.
const PROPOSE_OVERHEAD_BYTES: usize = 128 + 4 * PROPOSE_ENTRIES_MAX;

const _: () = assert!(PROPOSE_BYTES_MAX + PROPOSE_OVERHEAD_BYTES <= crate::COMMAND_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX <= PROPOSE_BYTES_MAX);
const _: () = assert!(REPLIES_MAX >= CLIENTS_MAX);

/// Why a Propose is refused for its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// There is nothing to append, or too much.
    #[error("{entries} entries; a Propose has 1 to propose_entries_max, which is {limit}")]
    Entries {
        /// How many there are.
        entries: usize,
        /// How many there may be.
        limit: usize,
    },
    /// An entry is too long.
    #[error("an entry has {bytes} bytes; the limit entry_bytes_max is {limit}")]
    EntryTooLong {
        /// What it has.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// All together are too long.
    #[error("the entries have {bytes} bytes together; the limit propose_bytes_max is {limit}")]
    TooLong {
        /// What they have.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// The limits on a Propose that a member enforces before it proposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposeLimits {
    /// The longest entry, at most [`ENTRY_BYTES_MAX`].
    pub entry_bytes_max: usize,
    /// The most entries, at most [`PROPOSE_ENTRIES_MAX`].
    pub entries_max: usize,
}

impl Default for ProposeLimits {
    fn default() -> Self {
        Self { entry_bytes_max: ENTRY_BYTES_MAX, entries_max: PROPOSE_ENTRIES_MAX }
    }
}

impl ProposeLimits {
    /// Checks what is to be appended.
    ///
    /// # Errors
    /// [`OutOfBounds`] says which limit it breaks.
    pub fn check(&self, payloads: &[impl AsRef<[u8]>]) -> Result<(), OutOfBounds> {
        let (entries, limit) = (payloads.len(), self.entries_max);
        if !(1..=limit).contains(&entries) {
            return Err(OutOfBounds::Entries { entries, limit });
        }
        let limit = self.entry_bytes_max;
        let mut sum = 0;
        for payload in payloads {
            let bytes = payload.as_ref().len();
            if bytes > limit {
                return Err(OutOfBounds::EntryTooLong { bytes, limit });
            }
            sum += bytes;
        }
        let (bytes, limit) = (sum, PROPOSE_BYTES_MAX);
        if bytes > limit { Err(OutOfBounds::TooLong { bytes, limit }) } else { Ok(()) }
    }
}
