//! The settings of the core. Time is in ticks, budgets are in bytes as [`Entry::size`] counts them.
//!
//! [`Entry::size`]: crate::Entry::size

/// How a member behaves. All members of a group should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a tick is, in microseconds. Group time and leases depend on it.
    pub tick_us: u64,
    /// A leader speaks at least this often.
    pub heartbeat_ticks: u32,
    /// A follower waits for this long and up to twice as long before it campaigns; a leader that
    /// hears from no quorum for this long steps down.
    pub election_ticks_min: u32,
    /// By how much the clock of one member may go faster than that of another: leases are shorter by
    /// that.
    pub clock_drift_percent_max: u64,
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
    /// How many reads may wait: for a round, for a question to the leader, or to be applied.
    pub reads_waiting_max: usize,
    /// How many questions for its reads a follower may have open with its leader.
    pub read_questions_max: usize,
    /// A snapshot is due when the log since the last one exceeds this and that one's size.
    pub snapshot_log_bytes_min: u64,
    /// How many members a group may have, learners included.
    pub members_max: usize,
    /// How much of the log before a snapshot stays for followers that are a little behind.
    pub retained_bytes: u64,
    /// How much of it a leader keeps for members that lack it: this much or, if that is more, as much
    /// as the snapshot is large, which they would need instead.
    pub retained_bytes_max: u64,
    /// How long a new leader keeps as much for a member that has not answered it: so long it may
    /// lack anything.
    pub unheard_ticks_max: u32,
    /// How much of the log stays in memory, beside what is not committed or not durable yet.
    pub log_window_bytes: u64,
    /// A leader whose disk does not answer for so long hands the leadership over.
    pub slow_disk_ticks: u32,
    /// How long a leader lets pass between two checks that all members hold the same state, if
    /// something has changed meanwhile; 0: there are none.
    pub check_ticks: u32,
    /// How much the state machine is given at once, unless a single entry is larger; and how much of
    /// the log is fetched at once from the disk.
    pub apply_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick_us: 20_000,
            heartbeat_ticks: 5,
            election_ticks_min: 30,
            clock_drift_percent_max: 10,
            append_bytes_max: 1 << 20,
            inflight_messages_max: 4,
            inflight_bytes_max: 8 << 20,
            uncommitted_bytes_max: 64 << 20,
            read_rounds_max: 4,
            reads_waiting_max: 65_536,
            read_questions_max: 4,
            snapshot_log_bytes_min: 128 << 20,
            members_max: 16,
            retained_bytes: 16 << 20,
            retained_bytes_max: 1 << 30,
            unheard_ticks_max: 15_000,
            log_window_bytes: 32 << 20,
            slow_disk_ticks: 50,
            check_ticks: 500,
            apply_bytes_max: 4 << 20,
        }
    }
}

impl Config {
    /// For how long a member that has heard a leader elects no other, by its own clock.
    pub(crate) fn bound_us(&self) -> u64 {
        u64::from(self.election_ticks_min) * self.tick_us
    }

    /// For how long a leader counts on that, by its own clock.
    pub(crate) fn lease_us(&self) -> u64 {
        self.bound_us() * (100 - self.clock_drift_percent_max) / 100
    }

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
        if self.clock_drift_percent_max >= 100 {
            return Err("clocks must agree better than that");
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
            || self.read_questions_max == 0
        {
            return Err("a member must be allowed to take something on");
        }
        if self.members_max == 0 {
            return Err("a group must be allowed a member");
        }
        if self.snapshot_log_bytes_min == 0 {
            return Err("a snapshot must stand for something");
        }
        if self.slow_disk_ticks == 0 {
            return Err("a disk must be given the time to answer");
        }
        if self.apply_bytes_max == 0 {
            return Err("the state machine must be given something");
        }
        Ok(())
    }
}
