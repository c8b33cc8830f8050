//! Records that a job leaves out, since its tasks keep failing at them.
//!
//! Decides when one is left out: when two counted failures of a task name it exactly, and the job
//! may leave out more. Then the task's count of failures begins anew, and attempts from before are
//! void. What is left out stays so for the life of the job, so that a map that is run again writes
//! the same.

#![deny(clippy::disallowed_types)]

use super::{Job, Task};
use crate::{
    failure::{Failure, Record},
    ids::{AttemptNumber, TaskId},
};

impl Job {
    /// Whether a failure is the second at one record, which may be left out: then it is, and the
    /// task's count of failures begins anew. Earlier attempts are void.
    pub(super) fn skip_record(
        &mut self,
        record: &mut Task,
        attempt: AttemptNumber,
        failure: &Failure,
    ) -> bool {
        if self.spec.scheduling.max_skip == 0 {
            return false;
        }
        let Some(at) = failure.record() else { return false };
        let again = record.suspects.contains(&at) && !record.skipped.contains(&at);
        if !again || self.skipped >= self.spec.scheduling.max_skip {
            if !record.suspects.contains(&at) {
                record.suspects.push(at);
            }
            return false;
        }
        self.skipped += 1;
        record.skipped.push(at);
        record.suspects.clear();
        let last = record.failed.drain(..).fold(attempt, AttemptNumber::max);
        record.invalidated = record.invalidated.max(Some(last));
        true
    }

    /// Every record that is left out, with its task.
    pub fn skipped_records(&self) -> impl Iterator<Item = (TaskId, &Record)> {
        self.tasks.iter().flat_map(|(id, task)| task.skipped.iter().map(|record| (*id, record)))
    }

    /// What a failure says when the job may leave out no more.
    pub(super) fn skips_exhausted(&self) -> String {
        match self.spec.scheduling.max_skip {
            0 => String::new(),
            max if self.skipped < max => String::new(),
            max => format!("; {max} records, all that may be, are left out already"),
        }
    }
}
