//! What a leader still knows of the last jobs that ended, for those who look at them. It decides
//! nothing.

use std::collections::VecDeque;

use super::active::Active;
use crate::{
    ids::JobId,
    leases::{AttemptEnd, Millis},
    limits::{PAST_ATTEMPTS_MAX, PAST_JOBS_MAX},
};

/// The last jobs that ended under this leader, the latest behind.
#[derive(Default)]
pub(super) struct Past {
    jobs: VecDeque<Active>,
}

impl Past {
    /// Keeps a job that has ended, and lets go of the oldest ones beyond the limits.
    pub(super) fn keep(&mut self, mut active: Active, now: Millis) {
        (active.plan, active.runs) = (None, None);
        for number in active.leases.numbers(|_| true) {
            active.leases.end(number, AttemptEnd::Aborted, now);
        }
        self.jobs.push_back(active);
        while self.jobs.len() > PAST_JOBS_MAX || self.attempts() > PAST_ATTEMPTS_MAX {
            self.jobs.pop_front();
        }
    }

    /// A job that ended, if it is still known.
    pub(super) fn job(&self, id: JobId) -> Option<&Active> {
        self.jobs.iter().find(|active| active.job.id == id)
    }

    fn attempts(&self) -> usize {
        self.jobs.iter().map(|active| active.leases.iter_ended().count()).sum()
    }
}
