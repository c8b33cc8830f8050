//! Workers that a job keeps failing on, and only there.
//!
//! Decides when a worker is given no more of a job's tasks: after [`FAILURES_MAX`] counted failures
//! there, while another worker that is still there, and is not under suspicion itself, has
//! succeeded since the first of them. So the last worker that has the app is never excluded. A
//! failure that names the record at fault, in a job that may leave records out, is held against
//! the record. All this is the leader's own knowledge: after a change of leader, and after a
//! restart of the worker, everybody begins anew.

use std::collections::BTreeMap;

use crate::{ids::WorkerId, leases::Millis};

/// So many counted failures of one job make a worker suspect.
const FAILURES_MAX: u32 = 3;

/// What a job has seen of one worker.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    failures: u32,
    first_failed: Millis,
    last_succeeded: Option<Millis>,
}

/// What a job has seen of the workers.
#[derive(Debug, Default)]
pub(super) struct Trust {
    records: BTreeMap<WorkerId, Record>,
    suspects: usize,
}

impl Trust {
    pub(super) fn failed(&mut self, worker: WorkerId, now: Millis) {
        let record = self.records.entry(worker).or_default();
        if record.failures == 0 {
            record.first_failed = now;
        }
        record.failures += 1;
        self.suspects += usize::from(record.failures == FAILURES_MAX);
    }

    pub(super) fn succeeded(&mut self, worker: WorkerId, now: Millis) {
        self.records.entry(worker).or_default().last_succeeded = Some(now);
    }

    fn suspect(&self, worker: WorkerId) -> Option<&Record> {
        if self.suspects == 0 {
            return None;
        }
        self.records.get(&worker).filter(|record| record.failures >= FAILURES_MAX)
    }

    /// Whether a worker is excluded. `others` are the workers that could run the job's tasks.
    pub(super) fn excludes(
        &self,
        worker: WorkerId,
        mut others: impl Iterator<Item = WorkerId>,
    ) -> bool {
        let Some(record) = self.suspect(worker) else { return false };
        others.any(|other| {
            let since = self.records.get(&other).and_then(|other| other.last_succeeded);
            other != worker
                && self.suspect(other).is_none()
                && since.is_some_and(|since| since >= record.first_failed)
        })
    }

    /// Whether anybody could be excluded.
    pub(super) fn is_whole(&self) -> bool {
        self.suspects == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WorkerId = WorkerId(1);
    const TWO: WorkerId = WorkerId(2);

    #[test]
    fn worker_is_excluded_only_while_another_that_succeeded_since_is_there() {
        let mut trust = Trust::default();
        trust.succeeded(TWO, Millis(5));
        for at in 10..13 {
            assert!(!trust.excludes(ONE, [ONE, TWO].into_iter()));
            trust.failed(ONE, Millis(at));
        }
        assert!(!trust.excludes(ONE, [ONE, TWO].into_iter()), "no success since");
        trust.succeeded(TWO, Millis(11));
        assert!(trust.excludes(ONE, [ONE, TWO].into_iter()));
        assert!(!trust.excludes(ONE, [ONE].into_iter()), "it is the last one");
        for at in 20..23 {
            trust.failed(TWO, Millis(at));
        }
        assert!(!trust.excludes(ONE, [ONE, TWO].into_iter()), "both are suspect");
        assert!(!trust.excludes(TWO, [ONE, TWO].into_iter()));
    }
}
