//! What happened how often in a run.

/// What happened how often: a run in which nothing happened proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Elections won.
    pub elections: u64,
    /// Entries committed.
    pub commits: u64,
    /// Times that a member removed what conflicted.
    pub truncations: u64,
    /// Snapshots taken and stored.
    pub snapshots: u64,
    /// Snapshots that could not be stored.
    pub snapshots_failed: u64,
    /// Times that a leader began to hand over because of its disk.
    pub slow_disks: u64,
    /// Times that entries were read from a disk for a state machine.
    pub reads_to_apply: u64,
    /// Times that entries were read from a disk for a follower.
    pub reads_to_send: u64,
    /// Snapshots installed from another member.
    pub installs: u64,
    /// Of those, the ones that kept what followed.
    pub suffixes_kept: u64,
    /// Leaders that stepped down for want of a quorum.
    pub quorums_lost: u64,
    /// Times that a leader began to hand over.
    pub transfers: u64,
    /// Of those, the ones that it gave up.
    pub transfers_failed: u64,
    /// Times that another membership came to rule a member.
    pub reconfigured: u64,
    /// Changes of the members that were over when they were answered.
    pub changes: u64,
    /// Leaders that left because they voted no more.
    pub leaders_removed: u64,
    /// Crashes.
    pub crashes: u64,
    /// Pauses.
    pub pauses: u64,
    /// Partitions.
    pub partitions: u64,
    /// Times that links were clogged.
    pub clogs: u64,
    /// Times that links were bad.
    pub degraded: u64,
    /// New leaders that were struck at once.
    pub deposed: u64,
    /// Syncs that failed.
    pub disk_errors: u64,
    /// Crashes that left a part of a write.
    pub torn: u64,
    /// Groups founded.
    pub groups: u64,
    /// Times that a whole group was stopped.
    pub groups_stopped: u64,
    /// Damaged disks whose store refused to open.
    pub disks_refused: u64,
    /// Damaged disks on which everything was found all the same.
    pub damage_harmless: u64,
    /// Survivors of a lost majority that were recovered.
    pub recoveries: u64,
    /// Entries that were committed and lost with a majority.
    pub entries_lost: u64,
    /// Messages that members sent to each other.
    pub sent: u64,
    /// Of those, the ones that ask for an answer: what the labs count as calls.
    pub requests: u64,
    /// The size of all that were sent.
    pub bytes: u64,
    /// Messages between members that arrived.
    pub messages: u64,
    /// Messages that came to a member of another group, which refused them.
    pub strangers: u64,
    /// Writes acknowledged.
    pub done: u64,
    /// Writes rejected.
    pub rejected: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// Reads answered.
    pub reads: u64,
    /// Of those, the ones that were answered at once: by a lease, or by who votes alone.
    pub reads_at_once: u64,
    /// Operations with an answer that were judged as a part of what clients saw.
    pub judged: u64,
    /// Requests refused.
    pub refused: u64,
    /// Answers that got lost on their way to a client.
    pub answers_lost: u64,
    /// Moves of shards that were installed, and shards that were made.
    pub moves: u64,
    /// Copies of shards that were begun anew, since the source had not kept what they needed.
    pub copies_anew: u64,
    /// Steps of moves that came once more, much later.
    pub late_steps: u64,
    /// Requests of clerks to groups that do not have the shard.
    pub misrouted: u64,
    /// Times that a leader told the time, and nothing else.
    pub ticks: u64,
    /// Times that a leader proposed the end of a lease.
    pub expires: u64,
    /// What clerks wanted and is over.
    pub operations: u64,
    /// Of those, the ones that were never done.
    pub operations_never: u64,
    /// Those of which nobody knows.
    pub operations_unknown: u64,
    /// Those that were told what an earlier attempt did.
    pub duplicates: u64,
    /// Those of which the body was gone.
    pub bodies_dropped: u64,
}

impl Tally {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        // Of all fields, so that one that is forgotten does not compile.
        *self = Self {
            elections: self.elections + other.elections,
            commits: self.commits + other.commits,
            truncations: self.truncations + other.truncations,
            snapshots: self.snapshots + other.snapshots,
            snapshots_failed: self.snapshots_failed + other.snapshots_failed,
            slow_disks: self.slow_disks + other.slow_disks,
            reads_to_apply: self.reads_to_apply + other.reads_to_apply,
            reads_to_send: self.reads_to_send + other.reads_to_send,
            installs: self.installs + other.installs,
            suffixes_kept: self.suffixes_kept + other.suffixes_kept,
            quorums_lost: self.quorums_lost + other.quorums_lost,
            transfers: self.transfers + other.transfers,
            transfers_failed: self.transfers_failed + other.transfers_failed,
            reconfigured: self.reconfigured + other.reconfigured,
            changes: self.changes + other.changes,
            leaders_removed: self.leaders_removed + other.leaders_removed,
            crashes: self.crashes + other.crashes,
            pauses: self.pauses + other.pauses,
            partitions: self.partitions + other.partitions,
            clogs: self.clogs + other.clogs,
            degraded: self.degraded + other.degraded,
            deposed: self.deposed + other.deposed,
            disk_errors: self.disk_errors + other.disk_errors,
            torn: self.torn + other.torn,
            groups: self.groups + other.groups,
            groups_stopped: self.groups_stopped + other.groups_stopped,
            disks_refused: self.disks_refused + other.disks_refused,
            damage_harmless: self.damage_harmless + other.damage_harmless,
            recoveries: self.recoveries + other.recoveries,
            entries_lost: self.entries_lost + other.entries_lost,
            sent: self.sent + other.sent,
            requests: self.requests + other.requests,
            bytes: self.bytes + other.bytes,
            messages: self.messages + other.messages,
            strangers: self.strangers + other.strangers,
            done: self.done + other.done,
            rejected: self.rejected + other.rejected,
            unknown: self.unknown + other.unknown,
            reads: self.reads + other.reads,
            reads_at_once: self.reads_at_once + other.reads_at_once,
            judged: self.judged + other.judged,
            refused: self.refused + other.refused,
            answers_lost: self.answers_lost + other.answers_lost,
            operations: self.operations + other.operations,
            moves: self.moves + other.moves,
            copies_anew: self.copies_anew + other.copies_anew,
            late_steps: self.late_steps + other.late_steps,
            misrouted: self.misrouted + other.misrouted,
            ticks: self.ticks + other.ticks,
            expires: self.expires + other.expires,
            operations_never: self.operations_never + other.operations_never,
            operations_unknown: self.operations_unknown + other.operations_unknown,
            duplicates: self.duplicates + other.duplicates,
            bodies_dropped: self.bodies_dropped + other.bodies_dropped,
        };
    }
}
