//! The core alone, beside raft-rs and openraft: three members in one process, no disk, no network.
//!
//! The work is the same for all. So many commands of [`COMMAND_BYTES`], each in an allocation of its
//! own, are proposed to the leader at once; when the leader has applied them all, the next batch
//! begins. Messages are handed over as they are, without being encoded, one after the other and in
//! the order in which they were sent; each member takes in all that has come before it acts. The log is
//! held in memory, where it is durable at once. A state machine counts what it applies.
//! [`SNAPSHOT_ENTRIES`] entries behind the last one there is another snapshot, which is empty, and
//! the log is cut so that [`KEPT_ENTRIES`] stay before it.
//!
//! Followers may learn of the last commit with the next message; [`Group::end`] checks that they
//! have applied everything in the end. Time stands still where a library lets its driver say what
//! time it is, so nobody pays for heartbeats.

mod flotilla;
mod openraft;
mod raft_rs;

use std::time::{Duration, Instant};

use crate::cpu;

pub use self::{flotilla::Flotilla, openraft::Openraft, raft_rs::RaftRs};

/// How large a command is.
pub const COMMAND_BYTES: usize = 256;
/// How many commands are proposed at once.
pub const BATCHES: [usize; 4] = [1, 16, 128, 1_024];
/// How many members a group has.
const MEMBERS: u64 = 3;
/// How many entries are applied between two snapshots, and how many before one stay in the log.
const SNAPSHOT_ENTRIES: u64 = 5_000;
const KEPT_ENTRIES: u64 = 1_000;

/// A group of three members, one of which leads.
pub trait Group {
    /// What it is made of.
    const NAME: &str;

    /// A group that has elected its leader.
    fn start() -> Self;

    /// Has so many batches of so many commands committed and applied, one batch after the other.
    fn commit(&mut self, batches: usize, count: usize);

    /// How many commands each member has applied, once all have heard of the last commit.
    fn end(self) -> Vec<u64>;
}

/// What some batches have cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Commands a second.
    pub rate: f64,
    /// CPU microseconds a command.
    pub cpu_us: f64,
}

/// Commits batches of `count` commands to a new group for about as long as `measured`.
pub fn measure<G: Group>(count: usize, measured: Duration) -> Cost {
    let mut group = G::start();
    let batches = (4_096 / count).max(1);
    // What has just been started is cold.
    group.commit(4 * batches, count);
    let (began, cpu, mut commands) = (Instant::now(), cpu::time(), 0);
    while began.elapsed() < measured {
        group.commit(batches, count);
        commands += batches * count;
    }
    let (took, cpu) = (began.elapsed().as_secs_f64(), (cpu::time() - cpu).as_secs_f64());
    let applied = (commands + 4 * batches * count) as u64;
    assert_eq!(group.end(), [applied; MEMBERS as usize], "{}: all is applied", G::NAME);
    Cost { rate: commands as f64 / took, cpu_us: cpu * 1e6 / commands as f64 }
}

/// A command, in an allocation of its own as if it had just come from a client.
fn command() -> Vec<u8> {
    vec![7; COMMAND_BYTES]
}
