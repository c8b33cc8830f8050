//! Group time, as the leader makes it.

use crate::{GroupTime, Instant};

/// Continues the stamps of the log by the driver's monotonic clock.
///
/// Keeps: it never runs backwards, and between two calls it advances by two ticks at most, so a
/// pause of the process, or a clock that jumps, only stretches group time.
#[derive(Debug)]
pub(crate) struct Clock {
    now: Instant,
    group_us: u64,
    step_us_max: u64,
}

impl Clock {
    pub(crate) fn new(now: Instant, tick_us: u64) -> Self {
        Self { now, group_us: 0, step_us_max: 2 * tick_us }
    }

    /// The driver's time is `now`.
    pub(crate) fn advance(&mut self, now: Instant) {
        let step = now.0.saturating_sub(self.now.0).min(self.step_us_max);
        self.group_us += step;
        self.now = self.now.max(now);
    }

    /// The latest that the driver has told.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// A new leader continues from the stamp of the last entry in its log, committed or not.
    pub(crate) fn continue_from(&mut self, stamp: GroupTime) {
        self.group_us = stamp.0 * 1_000;
    }

    pub(crate) fn group_time(&self) -> GroupTime {
        GroupTime(self.group_us / 1_000)
    }
}
