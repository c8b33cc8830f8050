//! Ends leases that nobody kept alive: the leader proposes an Expire for each that is over.
//!
//! Decides only when to look; by which time, and what to propose, is decided in `due.rs`. The entry's
//! own stamp and the lease's renewal decide, when it is applied, whether the lease is over, so an
//! Expire that comes too early or too late, or twice, ends nothing that is alive.

use std::convert::Infallible;

use raft::GroupTime;
use raftd::{
    Handle, Outcome, Role, Status,
    failpoint::{self, Failpoint},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    KvMachine,
    due::{self, EXPIRE_LIMIT, Estimate, LOOK_INTERVAL},
    outcome::{Answer, DueLeases},
};

/// Does so for as long as the member runs.
pub(crate) async fn run(handle: Handle<KvMachine>, shards: u32) -> Infallible {
    let mut status = handle.watch_status();
    loop {
        let led = status.wait_for(|status| status.role == Role::Leader).await;
        let Ok(now) = led.map(|status| Clock::new(&status)) else {
            // The host has ended, which is told elsewhere.
            return std::future::pending().await;
        };
        lead(&handle, shards, now).await;
    }
}

/// Looks after the leases until the member leads no more.
async fn lead(handle: &Handle<KvMachine>, shards: u32, mut now: Clock) {
    let mut applied = handle.watch_applied();
    while handle.leads() {
        now.hear(&handle.status());
        let next = expire(handle, shards, now.group_time()).await;
        sleep(LOOK_INTERVAL).await;
        if next.is_none() && handle.leads() {
            // There is no lease, and there is none until something is applied; or until the
            // member leads no more, which applying something tells as well.
            let until = Instant::now() + EXPIRE_LIMIT;
            let _ = timeout_at(until, applied.changed()).await;
        }
    }
}

/// Ends what is over by this time; when the next lease is over, if there is one.
async fn expire(handle: &Handle<KvMachine>, shards: u32, until: GroupTime) -> Option<GroupTime> {
    let query = due::question(until);
    let Ok(Answer::DueLeases(DueLeases { due, next })) = handle.query_stale(query).await else {
        // A member that has too much to do looks again.
        return Some(until);
    };
    if due.is_empty() {
        return next;
    }
    failpoint::reach(Failpoint::ExpireProposeBefore);
    let deadline = Instant::now() + EXPIRE_LIMIT;
    let expired = due.iter().map(|over| {
        let (lease, command) = (over.lease, due::expire(shards, over));
        async move {
            match timeout_at(deadline, handle.propose(command, deadline)).await {
                Ok(Outcome::Done(_)) => {}
                // What was not ended is due again.
                Ok(Outcome::Rejected(_) | Outcome::Unknown) | Err(_) => {
                    tracing::debug!(%lease, "the end of a lease was not confirmed");
                }
            }
        }
    });
    futures::future::join_all(expired).await;
    failpoint::reach(Failpoint::ExpireProposeAfter);
    Some(until)
}

/// The estimate, by the process's own clock.
struct Clock {
    began: Instant,
    estimate: Estimate,
}

impl Clock {
    fn new(status: &Status) -> Self {
        let began = Instant::now();
        let estimate = Estimate::new(status.applied, status.group_time, began.elapsed());
        Self { began, estimate }
    }

    fn hear(&mut self, status: &Status) {
        self.estimate.hear(status.applied, status.group_time, self.began.elapsed());
    }

    fn group_time(&self) -> GroupTime {
        self.estimate.group_time(self.began.elapsed())
    }
}
