//! Time as the core is told it.

use std::time::Duration;

use raft::Instant;
use rustix::time::{ClockId, clock_gettime};

/// The core's clock. It goes on while the machine is suspended, as leases must; std's stands still.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let micros = Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32).as_micros();
    Instant(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// So much later.
pub(crate) fn after(now: Instant, delay: Duration) -> Instant {
    let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
    Instant(now.0.saturating_add(micros))
}

/// What is left until a deadline.
pub(crate) fn left(deadline: tokio::time::Instant) -> Duration {
    deadline.saturating_duration_since(tokio::time::Instant::now())
}

pub(crate) fn is_past(deadline: tokio::time::Instant) -> bool {
    left(deadline).is_zero()
}
