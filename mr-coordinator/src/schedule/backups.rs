//! Second attempts at tasks whose first one is much slower than others: the paper's backup tasks
//! (3.6), which Hadoop and Spark call speculation.
//!
//! Decides which attempts are slow, and how many backups there are. An attempt is slow when
//!
//! * nothing of its phase waits to be given out, or three quarters of it are committed;
//! * it has run for 5 s, and for twice the median of the phase's committed attempts;
//! * by its own rate so far it will take longer than a fresh attempt, which is expected to take
//!   that median. Where a task's input size is not known, as a reduce's, its time alone decides.
//!
//! While nothing of the phase is committed, as in a phase of one task, there is no median. Then an
//! attempt is slow that has run for a minute and is less than half done by its own rate, or of
//! which nobody knows how far it is: a backup costs a slot that nobody else wants.
//!
//! A backup takes a slot that no pending task wants. It never goes to the worker that runs the
//! first attempt, and no task has more than two attempts at a time. At a time a tenth of a job's
//! attempts may be backups, and over its life it gets no more than a tenth of its tasks and one.
//! Which attempt wins is not decided here: it is the one whose report comes first.

use super::active::Active;
use crate::{
    ids::{TaskId, TaskKind, WorkerId},
    leases::{Lease, Millis},
};

/// The shortest time after which an attempt can be slow: starting another one costs something too.
const SLOW_MS: u64 = 5_000;
/// So many medians make an attempt slow.
const SLOW_MEDIANS: u64 = 2;
/// After how long an attempt without anything to compare it with can be slow.
const SLOW_ALONE_MS: u64 = 60_000;
/// How often slow attempts are looked for.
const LOOK_MS: u64 = 1_000;
/// A tenth of the attempts may be backups.
const SHARE: u32 = 10;
/// The durations that a median is taken of: the latest ones.
const DURATIONS_MAX: usize = 1_024;

/// How fast the attempts of a job are.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How long accepted attempts at maps and reduces took, in milliseconds.
    durations: [Vec<u64>; 2],
    /// Where the next one goes.
    next: [usize; 2],
    /// When slow attempts are looked for again.
    look_at: Millis,
    /// Tasks with slow attempts, the one that will take longest first.
    slow: Vec<TaskId>,
    /// Backups given out so far.
    pub(super) backups: [u32; 2],
}

impl Pace {
    /// Takes note of an accepted attempt.
    pub(super) fn finished(&mut self, lease: &Lease, now: Millis) {
        if !lease.whole {
            return;
        }
        let slot = lease.task.kind.slot();
        let (durations, took) = (&mut self.durations[slot], now.since(lease.begun));
        if durations.len() < DURATIONS_MAX {
            durations.push(took);
        } else {
            durations[self.next[slot]] = took;
            self.next[slot] = (self.next[slot] + 1) % DURATIONS_MAX;
        }
    }

    fn median(&self, kind: TaskKind) -> Option<u64> {
        let mut durations = self.durations[kind.slot()].clone();
        let middle = durations.len() / 2;
        (!durations.is_empty()).then(|| *durations.select_nth_unstable(middle).1)
    }
}

impl Active {
    /// Looks for slow attempts, now and then; whether there are some.
    pub(super) fn look_for_slow(&mut self, now: Millis) -> bool {
        if !self.job.spec.scheduling.speculation || now < self.pace.look_at {
            return !self.pace.slow.is_empty();
        }
        self.pace.look_at = now.plus(LOOK_MS);
        self.pace.slow.clear();
        let kind = self.phase();
        let (total, committed) =
            (u64::from(self.job.total(kind)), u64::from(self.job.committed[kind.slot()]));
        let near_the_end = self.pending.is_empty() || committed * 4 >= total * 3;
        if !self.job.state.runs_tasks() || !near_the_end || self.leases.is_empty() {
            return false;
        }
        let median = self.pace.median(kind);
        let mut slow: Vec<(u64, TaskId)> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.task.kind == kind && !lease.queued)
            .filter(|(_, lease)| self.leases.of_task(lease.task).len() == 1)
            .filter_map(|(_, lease)| {
                let left = left_if_slow(lease, self.pending.size(lease.task), median, now)?;
                Some((left, lease.task))
            })
            .collect();
        slow.sort_unstable_by(|one, other| other.0.cmp(&one.0).then(one.1.cmp(&other.1)));
        self.pace.slow = slow.into_iter().map(|(_, task)| task).collect();
        !self.pace.slow.is_empty()
    }

    /// Whether another backup may be given out.
    pub(super) fn backup_fits(&self) -> bool {
        let at_a_time = (self.leases.len() as u64 / u64::from(SHARE)).max(1);
        let tasks = self.job.total(TaskKind::Map) + self.job.total(TaskKind::Reduce);
        let in_all = tasks / SHARE + 1;
        !self.pace.slow.is_empty()
            && u64::from(self.leases.backups()) < at_a_time
            && self.pace.backups.iter().sum::<u32>() < in_all
    }

    /// Takes a task with a slow attempt for a worker that has none at it.
    pub(super) fn take_slow(&mut self, worker: WorkerId) -> Option<TaskId> {
        if !self.backup_fits() || !self.job.state.runs_tasks() {
            return None;
        }
        // What reduces read is in doubt.
        if self.phase() == TaskKind::Reduce && self.invalidating > 0 {
            return None;
        }
        let place = self.pace.slow.iter().position(|task| self.could_back_up(*task, worker))?;
        let task = self.pace.slow.remove(place);
        self.pace.backups[task.kind.slot()] += 1;
        Some(task)
    }

    fn could_back_up(&self, task: TaskId, worker: WorkerId) -> bool {
        let [number] = self.leases.of_task(task) else { return false };
        let elsewhere = self.leases.live(*number).is_some_and(|lease| lease.worker != worker);
        elsewhere && task.kind == self.phase() && self.job.result(task).is_none()
    }
}

/// How long an attempt is expected to take yet, if it is slow. `size`: its input bytes, where
/// known; `median`: how long attempts of its phase took.
fn left_if_slow(lease: &Lease, size: Option<u64>, median: Option<u64>, now: Millis) -> Option<u64> {
    let ran = now.since(lease.begun);
    let least = match median {
        Some(median) => SLOW_MS.max(SLOW_MEDIANS * median),
        None => SLOW_ALONE_MS,
    };
    if ran <= least {
        return None;
    }
    let left = match (size, lease.progress.1) {
        (Some(size), read) if size > 0 && read > 0 => {
            let left = u128::from(ran) * u128::from(size.saturating_sub(read)) / u128::from(read);
            u64::try_from(left).unwrap_or(u64::MAX)
        }
        // It has read nothing of what it should have: it may never.
        (Some(size), 0) if size > 0 => u64::MAX,
        // Nobody knows; half of it is over, as far as one can tell.
        (Some(_) | None, _) => ran.saturating_add(1),
    };
    (left > median.unwrap_or(ran)).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(begun: u64, read: u64) -> Lease {
        let begun = Millis(begun);
        Lease {
            task: TaskId::map(0),
            worker: WorkerId(1),
            granted: begun,
            begun,
            whole: true,
            until: begun,
            renewed: begun,
            running: true,
            queued: false,
            backup: false,
            progress: (0, read),
            progressed: begun,
        }
    }

    #[test]
    fn attempt_is_slow_by_its_time_and_by_its_rate() {
        let slow = |ran, read, size, median| {
            left_if_slow(&lease(0, read), size, median, Millis(ran)).is_some()
        };
        assert!(!slow(5_000, 1, Some(100), Some(100)), "the floor");
        assert!(slow(5_001, 1, Some(100), Some(100)));
        assert!(!slow(19_000, 1, Some(100), Some(10_000)), "not twice the median");
        assert!(!slow(21_000, 90, Some(100), Some(10_000)), "done sooner than a fresh attempt");
        assert!(slow(21_000, 50, Some(100), Some(10_000)));
        assert!(slow(21_000, 0, Some(100), Some(10_000)), "it reads nothing");
        assert!(slow(21_000, 0, None, Some(10_000)), "its size is not known");
        assert!(!slow(60_000, 0, None, None) && slow(60_001, 0, None, None));
        assert!(!slow(61_000, 51, Some(100), None), "alone, and more than half done");
        assert!(slow(61_000, 49, Some(100), None));
    }

    #[test]
    fn median_follows_the_latest_attempts() {
        let mut pace = Pace::default();
        assert_eq!(pace.median(TaskKind::Map), None);
        for took in [10, 30, 20] {
            pace.finished(&lease(0, 0), Millis(took));
        }
        assert_eq!(pace.median(TaskKind::Map), Some(20));
        for _ in 0..DURATIONS_MAX {
            pace.finished(&lease(0, 0), Millis(7));
        }
        assert_eq!(pace.median(TaskKind::Map), Some(7));
        pace.finished(&Lease { whole: false, ..lease(0, 0) }, Millis(99));
        assert_eq!(pace.durations[0].len(), DURATIONS_MAX);
    }
}
