//! The settings of the core. Time is in ticks, budgets are in bytes as [`Entry::size`] counts them.
//!
//! [`Entry::size`]: crate::Entry::size

/// How a member behaves. All members of a group should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a tick is, in microseconds. Only group time depends on it.
    pub tick_us: u64,
    /// A leader speaks at least this often.
    pub heartbeat_ticks: u32,
    /// A follower waits for this long and up to twice as long before it campaigns; a leader that
    /// hears from no quorum for this long steps down.
    pub election_ticks_min: u32,
    /// The most that one append message carries, unless a single entry is larger.
    pub append_bytes_max: u64,
    /// How many append messages may be on their way to a follower.
    pub inflight_messages_max: usize,
    /// How many bytes may be on their way to a follower.
    pub inflight_bytes_max: u64,
    /// How many bytes a leader appends beyond what is committed, and beyond what its own disk has
    /// answered for, before it refuses proposals.
    pub uncommitted_bytes_max: u64,
    /// How many rounds that confirm leadership for reads may be on their way.
    pub read_rounds_max: usize,
    /// How many reads may wait for a round.
    pub reads_waiting_max: usize,
    /// A snapshot is due when the log since the last one exceeds this and that one's size.
    pub snapshot_log_bytes_min: u64,
    /// How many members a group may have, learners included.
    pub members_max: usize,
    /// How much of the log before a snapshot stays for followers that are a little behind.
    pub retained_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick_us: 20_000,
            heartbeat_ticks: 5,
            election_ticks_min: 30,
            append_bytes_max: 1 << 20,
            inflight_messages_max: 4,
            inflight_bytes_max: 8 << 20,
            uncommitted_bytes_max: 64 << 20,
            read_rounds_max: 4,
            reads_waiting_max: 65_536,
            snapshot_log_bytes_min: 64 << 20,
            members_max: 16,
            retained_bytes: 16 << 20,
        }
    }
}

impl Config {
    /// Whether the settings fit together.
    ///
    /// # Errors
    /// A sentence that names what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.tick_us == 0 {
            return Err("a tick must last");
        }
        if self.heartbeat_ticks == 0 || self.election_ticks_min < 2 * self.heartbeat_ticks {
            return Err("an election timeout must be at least two heartbeats");
        }
        if self.inflight_messages_max == 0
            || self.inflight_bytes_max == 0
            || self.append_bytes_max == 0
        {
            return Err("the window to a follower must hold something");
        }
        if self.uncommitted_bytes_max == 0
            || self.read_rounds_max == 0
            || self.reads_waiting_max == 0
        {
            return Err("a leader must be allowed to take something on");
        }
        if self.members_max == 0 {
            return Err("a group must be allowed a member");
        }
        if self.snapshot_log_bytes_min == 0 {
            return Err("a snapshot must stand for something");
        }
        Ok(())
    }
}
