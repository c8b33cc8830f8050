//! Failpoints: named places at which a process can be told to die, as by SIGKILL.
//!
//! For tests of crashes between any two steps, on real processes and disks. Decides which places
//! there are and how they are asked for: `FLOTILLA_FAILPOINTS="log.sync.before=crash@3"` ends the
//! process when it comes there for the third time. At one place nothing dies: `state.flip=flip@3`
//! damages the state there, as memory does that fails. Not for production: a daemon that has any
//! says so when it starts. While none is asked for, a place costs one load.

use std::ffi::OsStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use daemon::Failure;

/// The variable that asks for failpoints: `NAME=crash` or `NAME=crash@N`, with commas between them;
/// `flip` instead of `crash` at `state.flip`.
pub const VARIABLE: &str = "FLOTILLA_FAILPOINTS";

/// Makes the failpoints from their one list: the enum, and their names.
macro_rules! failpoints {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// A place at which the process can be told to die.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failpoint { $($(#[$doc])+ $variant,)+ }

        impl Failpoint {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

failpoints! {
    /// The store was opened and its log checked; the floor has not counted the boot.
    OpenFloorBefore = "open.floor.before",
    /// Writes were taken in; nothing of their entries is on the disk.
    LogAppendBefore = "log.append.before",
    /// A batch is with the database, but not synced.
    LogSyncBefore = "log.sync.before",
    /// A batch is durable; the floor does not know.
    LogSyncAfter = "log.sync.after",
    /// The floor is to be written.
    FloorWriteBefore = "floor.write.before",
    /// One slot holds a new state durably, the other one still an old state.
    FloorWriteBetween = "floor.write.between",
    /// The floor is written, but not synced.
    FloorSyncBefore = "floor.sync.before",
    /// The floor is synced.
    FloorSyncAfter = "floor.sync.after",
    /// A write is durable, and nobody was told.
    AnswerBefore = "answer.before",
    /// Entries are committed, and not applied here.
    ApplyBefore = "apply.before",
    /// Entries are applied, and nobody was answered.
    ApplyAfter = "apply.after",
    /// Entries are committed: with the next command that is applied a bit of the state changes.
    StateFlip = "state.flip",
    /// A frozen state is to be stored.
    SnapshotCreateBefore = "snapshot.create.before",
    /// Some chunks of a snapshot are stored.
    SnapshotCreateBetween = "snapshot.create.between",
    /// A snapshot is durable; the log does not name it.
    SnapshotCreateAfter = "snapshot.create.after",
    /// Some chunks of the leader's snapshot are stored.
    SnapshotInstallBetween = "snapshot.install.between",
    /// The leader's snapshot is durable; the state machine does not have it.
    SnapshotInstallBefore = "snapshot.install.before",
    /// The state machine has the leader's snapshot, unless it was overtaken; the log does not name it.
    SnapshotInstallAfter = "snapshot.install.after",
    /// The log is to name a new snapshot.
    CompactRootBefore = "compact.root.before",
    /// The log names a new snapshot durably; the floor does not know.
    CompactRootAfter = "compact.root.after",
    /// Records before the log's first index are to be removed.
    CompactSweepBefore = "compact.sweep.before",
    /// Some are removed, but that is not synced.
    CompactSweepAfter = "compact.sweep.after",
    /// Small records are one larger record, but that is not synced.
    CompactRepackAfter = "compact.repack.after",
    /// Chunks of an older snapshot are removed, but that is not synced.
    CompactChunksAfter = "compact.chunks.after",
    /// A leader knows leases that are over, and has proposed no end of them.
    ExpireProposeBefore = "expire.propose.before",
    /// The ends of leases that a leader has proposed are applied, or their fate is not known.
    ExpireProposeAfter = "expire.propose.after",
    /// A shard that leaves is held: its source has told the destination nothing yet.
    MoveHoldAfter = "move.hold.after",
    /// The destination has begun to take a shard in.
    MoveBeginAfter = "move.begin.after",
    /// Some of it is there.
    MoveImportAfter = "move.import.after",
    /// A shard is frozen: its source has told the destination nothing yet.
    MoveFreezeAfter = "move.freeze.after",
    /// All of a shard is there, and the destination is to install it.
    MoveInstallBefore = "move.install.before",
    /// The destination serves a shard: it has told nobody yet.
    MoveInstallAfter = "move.install.after",
    /// The shard controller was told of what became of moves.
    MoveReportAfter = "move.report.after",
    /// The source knows that the destination serves a shard, and is to delete its own.
    MoveDeleteBefore = "move.delete.before",
    /// The source has deleted some of a shard that has gone.
    MoveDeleteAfter = "move.delete.after",
    /// A job's results are being put in place: a part is to be moved, and the ones before it are.
    PublishMoveBefore = "publish.move.before",
    /// All parts are moved; the mark of success is to be.
    PublishSuccessBefore = "publish.success.before",
    /// All results lie together; the rename by which they appear is to be made.
    PublishSwapBefore = "publish.swap.before",
    /// The results have appeared; neither that nor the job's end is durable.
    PublishSwapAfter = "publish.swap.after",
    /// `flotilla members recover` has looked at the directory, and is to change it.
    RecoverIdentityBefore = "recover.identity.before",
    /// The group has its new identity; the log has the old members.
    RecoverEntryBefore = "recover.entry.before",
    /// The log has the new membership; the recovery is not marked as finished.
    RecoverEndBefore = "recover.end.before",
    /// The recovery is finished, and nobody was told.
    RecoverEndAfter = "recover.end.after",
}

/// After how many visits each place kills; 0: never, or not any more.
static ARMED: OnceLock<[AtomicU64; Failpoint::ALL.len()]> = OnceLock::new();

/// Arms what the environment asks for. Once, before anything else runs.
///
/// # Errors
/// Configuration: a name or a value is wrong; the text lists the names.
pub fn arm_from_environment() -> Result<(), Failure> {
    let Some(asked) = std::env::var_os(VARIABLE).filter(|asked| !asked.is_empty()) else {
        return Ok(());
    };
    let visits = parse(&asked)?;
    ARMED.get_or_init(|| visits.map(AtomicU64::new));
    Ok(())
}

/// Tells the log that this process is meant to die.
pub fn warn() {
    if ARMED.get().is_some() {
        tracing::warn!(
            "{VARIABLE} is set: this process will end by itself or damage its state; for tests only"
        );
    }
}

/// The process is at this place, and ends here if it was told to.
#[inline]
pub fn reach(at: Failpoint) {
    if is_struck(at) {
        crash(at);
    }
}

/// Whether something is to happen at this place now, at which nothing dies.
#[inline]
pub fn is_struck(at: Failpoint) -> bool {
    ARMED.get().is_some_and(|armed| {
        let visits = &armed[at as usize];
        let count = |left: u64| left.checked_sub(1);
        visits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) == Ok(1)
    })
}

/// Nothing is flushed or dropped, as if the process were killed. It is not quite SIGKILL, so that
/// tests can tell this end from theirs.
fn crash(at: Failpoint) -> ! {
    let failpoint = at.name();
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(failpoint, "crashing at a failpoint");
    } else {
        eprintln!("crashing at a failpoint: {failpoint}");
    }
    std::process::abort();
}

fn parse(asked: &OsStr) -> Result<[u64; Failpoint::ALL.len()], Failure> {
    let mut visits = [0; Failpoint::ALL.len()];
    let asked = asked.to_string_lossy();
    for one in asked.split(',') {
        let (name, action) = one.split_once('=').unwrap_or((one, ""));
        let point = Failpoint::ALL.iter().find(|point| point.name() == name.trim());
        let wanted = if point == Some(&Failpoint::StateFlip) { "flip" } else { "crash" };
        let count = match action.trim().split_once('@') {
            None if action.trim() == wanted => Some(1),
            Some((action, count)) if action == wanted => {
                count.parse().ok().filter(|&count: &u64| count > 0)
            }
            None | Some(_) => None,
        };
        let (Some(&point), Some(count)) = (point, count) else {
            let names: Vec<_> = Failpoint::ALL.iter().map(|point| point.name()).collect();
            return Err(Failure::configuration(format!(
                "{VARIABLE}: \"{one}\" is not NAME=crash or NAME=crash@N with N at least 1 and one \
                 of the names {}; at state.flip it is flip instead of crash",
                names.join(", ")
            )));
        };
        visits[point as usize] = count;
    }
    Ok(visits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_read_with_their_counts() {
        let asked = "log.sync.before=crash@3, floor.write.between=crash, state.flip=flip@2";
        let visits = parse(OsStr::new(asked)).unwrap();
        assert_eq!(visits[Failpoint::StateFlip as usize], 2);
        assert_eq!(visits[Failpoint::LogSyncBefore as usize], 3);
        assert_eq!(visits[Failpoint::FloorWriteBetween as usize], 1);
        assert_eq!(visits.iter().sum::<u64>(), 6);
    }

    #[test]
    fn what_is_wrong_is_refused_with_all_names() {
        for wrong in [
            "log.sink.before=crash",
            "log.sync.before",
            "log.sync.before=pause",
            "log.sync.before=flip",
            "state.flip=crash",
            "log.sync.before=crash@0",
            "log.sync.before=crash@x",
            "log.sync.before=crash,",
        ] {
            let failure = parse(OsStr::new(wrong)).unwrap_err();
            assert_eq!(failure.code(), daemon::Code::Configuration, "{wrong}");
            for point in Failpoint::ALL {
                assert!(failure.to_string().contains(point.name()), "{failure}");
            }
        }
    }

    #[test]
    fn every_name_is_there_once() {
        let names: BTreeSet<_> = Failpoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Failpoint::ALL.len());
    }
}
