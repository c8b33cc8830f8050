//! What becomes of a request that reached this member: it is executed here if this member leads, or
//! if it is a read and there is a leader, else passed on to the leader, within the caller's deadline.
//!
//! Decides who executes and what may be tried again. A request that was certainly not executed is
//! tried again whoever made it; one of unknown fate only if its service says that this cannot mean
//! twice. How a request is executed and how it travels is the service's business ([`Ask`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use proto::raft::{Executed, Reason, Refusal};
use raft::StateMachine;
use tokio::time::{Instant, timeout_at};
use tonic::Status;
use tonic::transport::Channel;

use crate::edge::{DEADLINE_MAX, Replied, maybe, never, refused};
use crate::handle::{Handle, Outcome, Refused, Role};
use crate::settings::Member;

/// How often a request may be passed on: once to whom is believed to lead, once more when the
/// leadership has moved on meanwhile.
pub const HOPS_MAX: u32 = 2;

/// How long a request waits for the group to have a leader before its caller is told that there is
/// none, so that it can ask a member that may know more.
const LEADER_WAIT: Duration = Duration::from_secs(1);

/// How long to wait before a leader that could not be reached is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What is left of a deadline for the way back of an answer.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

/// The time that is told is at most 10 s old; the rest of that is for the answer's way.
const TIME_AGE_MAX: Duration = Duration::from_secs(8);

/// A request of a client.
pub trait Ask: Sync {
    /// What it is answered with.
    type Reply: Send;

    /// Whether it may be tried again after an attempt of unknown fate: it changes nothing, or has
    /// a name by which a second execution is prevented.
    fn may_repeat(&self) -> bool;

    /// Whether a member that follows answers it, too: it only asks for what was applied.
    fn is_read(&self) -> bool;

    /// Executes it on this member, which believes that it leads, or follows if this is a read.
    fn execute(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Reply, Refusal>> + Send;

    /// Sends it to the leader's peer port with what is left of the time and of the hops. Outside is
    /// what became of the call, inside what the leader says; none is an empty answer.
    fn send(
        &self,
        leader: Channel,
        left: Duration,
        hops_left: u32,
    ) -> impl Future<Output = Result<Option<Result<Self::Reply, Refusal>>, Status>> + Send;
}

/// Until when a request is answered that another member has passed on, and how often it may still be
/// passed on: what its message says, within what any may ask for.
pub fn passed_on(deadline_ms: u64, hops_left: u32) -> (Instant, u32) {
    let limit = Duration::from_millis(deadline_ms).min(DEADLINE_MAX);
    (Instant::now() + limit, hops_left.min(HOPS_MAX))
}

/// By when an answer has to be there so that it reaches its caller by `deadline`.
pub fn with_margin(deadline: Instant) -> Instant {
    deadline - ANSWER_MARGIN.min(deadline.duration_since(Instant::now()) / 10)
}

/// Answers a request by `deadline`, passing it on at most `hops_left` times.
///
/// # Errors
/// The refusal, which says whether it may have been executed.
pub async fn answer<S: StateMachine, A: Ask>(
    handle: &Handle<S>,
    ask: &A,
    deadline: Instant,
    mut hops_left: u32,
) -> Result<Replied<A::Reply>, Refusal> {
    let deadline = with_margin(deadline);
    let mut never_executed = true;
    loop {
        let attempt = if handle.leads() {
            ask.execute(deadline).await.map(|reply| Replied { reply, leader: None })
        } else {
            match leader(handle, deadline).await {
                Some(leader) if hops_left > 0 && leader.node != handle.node() => {
                    hops_left -= 1;
                    let reply = if ask.is_read() && handle.serves() {
                        ask.execute(deadline).await
                    } else {
                        pass_on(handle, ask, &leader, deadline, hops_left).await
                    };
                    // A read costs less at the leader, which a client of ours turns to from now on.
                    reply.map(|reply| Replied { reply, leader: Some(leader) })
                }
                Some(_) | None => Err(not_leading(handle)),
            }
        };
        let refusal = match attempt {
            Ok(replied) => return Ok(replied),
            Err(refusal) => refusal,
        };
        let repeats = ask.may_repeat() || refusal.executed() == Executed::Never;
        let refusal = of_all_attempts(&mut never_executed, refusal);
        let again = match refusal.reason() {
            Reason::NotLeader => repeats,
            Reason::Unspecified
            | Reason::Deadline
            | Reason::Invalid
            | Reason::Limit
            | Reason::Expired
            | Reason::Acknowledged
            | Reason::Shutdown
            | Reason::OtherShards
            | Reason::NoSpace
            | Reason::OutOfRange
            | Reason::Quota
            | Reason::WrongGroup => false,
        };
        let pause = Instant::now() + RETRY_PAUSE;
        if !again || hops_left == 0 || pause >= deadline {
            return Err(refusal);
        }
        wait_for_change(handle, pause).await;
    }
}

/// What the last attempt was told, as it is told of all of them: what is certain of the last one is
/// not of those before.
fn of_all_attempts(never_executed: &mut bool, mut refusal: Refusal) -> Refusal {
    *never_executed &= refusal.executed() == Executed::Never;
    if !*never_executed {
        refusal.set_executed(Executed::Maybe);
    }
    refusal
}

/// The leader; waits a little for there to be one.
async fn leader<S: StateMachine>(handle: &Handle<S>, deadline: Instant) -> Option<Member> {
    if let Some(leader) = handle.leader() {
        return Some(leader);
    }
    let mut status = handle.watch_status();
    let until = deadline.min(Instant::now() + LEADER_WAIT);
    let known = status.wait_for(|status| status.leader.is_some());
    // In vain, or the host has ended: either way there is none.
    let _ = timeout_at(until, known).await;
    handle.leader()
}

/// Waits for the leadership to move, at most until `until`.
async fn wait_for_change<S: StateMachine>(handle: &Handle<S>, until: Instant) {
    let mut status = handle.watch_status();
    let before = {
        let status = status.borrow_and_update();
        (status.term, status.leader)
    };
    let changed = status.wait_for(|status| (status.term, status.leader) != before);
    // In vain: it is tried again all the same.
    let _ = timeout_at(until, changed).await;
}

async fn pass_on<S: StateMachine, A: Ask>(
    handle: &Handle<S>,
    ask: &A,
    leader: &Member,
    deadline: Instant,
    hops_left: u32,
) -> Result<A::Reply, Refusal> {
    let Some(channel) = handle.peer(leader.node) else {
        return Err(never(Reason::NotLeader, "the leader is not among this member's peers"));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let node = leader.node;
    // In a place of its own: a call to a peer is large, and every request, also one that is never
    // passed on, would be as large as it.
    let sent = Box::pin(ask.send(channel, left, hops_left));
    match timeout_at(deadline, sent).await {
        Ok(Ok(Some(answer))) => answer,
        Ok(Ok(None)) => Err(maybe(Reason::NotLeader, "the leader gave an empty answer")),
        Ok(Err(status)) if proto::metadata::was_never_executed(&status) => {
            Err(never(Reason::NotLeader, format!("the leader, member {node}, is out of reach")))
        }
        Ok(Err(status)) => {
            let message = format!("the connection to the leader, member {node}, broke");
            tracing::debug!(leader = %node, %status, "a forwarded request was lost");
            Err(maybe(Reason::NotLeader, message))
        }
        Err(_) => Err(maybe(Reason::Deadline, "the leader did not answer before the deadline")),
    }
}

fn not_leading<S: StateMachine>(handle: &Handle<S>) -> Refusal {
    let role = handle.status().role;
    match handle.leader() {
        Some(leader) => {
            let message = format!("member {} leads", leader.node);
            let leader = leader.client_address;
            Refusal { leader, ..never(Reason::NotLeader, message) }
        }
        None if role == Role::Unborn => refused(&Refused::Unborn),
        None => never(Reason::NotLeader, "the group has no leader, as far as this member knows"),
    }
}

/// Knows how old the last stamp that was applied on this leader is at most. Clones share it.
#[derive(Clone, Debug)]
pub struct Stamps {
    began: Instant,
    /// A stamp of at least this moment (in milliseconds since `began`) has been applied; 0: none.
    stamped_at_ms: Arc<AtomicU64>,
}

impl Default for Stamps {
    fn default() -> Self {
        Self { began: Instant::now(), stamped_at_ms: Arc::default() }
    }
}

impl Stamps {
    /// Proposes a command, whose stamp then counts. By the deadline, since the host looks at it only
    /// once a tick, which may be too late for the caller.
    ///
    /// # Errors
    /// The refusal; `what` names the request in it.
    pub async fn propose<S: StateMachine>(
        &self,
        handle: &Handle<S>,
        command: bytes::Bytes,
        deadline: Instant,
        what: &str,
    ) -> Result<S::Response, Refusal> {
        let began = self.now_ms();
        match timeout_at(deadline, handle.propose(command, deadline)).await {
            Ok(Outcome::Done(response)) => {
                self.stamped_at_ms.fetch_max(began, Relaxed);
                Ok(response)
            }
            Ok(Outcome::Rejected(rejected)) => Err(refused(&rejected)),
            Ok(Outcome::Unknown) | Err(_) => {
                let message =
                    format!("{what} was not confirmed in time; it may have been executed");
                Err(maybe(Reason::Deadline, message))
            }
        }
    }

    /// Makes sure that the last applied stamp is young enough to be told.
    ///
    /// # Errors
    /// The refusal.
    pub async fn freshen<S: StateMachine>(
        &self,
        handle: &Handle<S>,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let now = self.now_ms();
        let stamped_at = self.stamped_at_ms.load(Relaxed);
        let age_max = u64::try_from(TIME_AGE_MAX.as_millis()).unwrap_or(u64::MAX);
        if stamped_at > 0 && now.saturating_sub(stamped_at) <= age_max {
            return Ok(());
        }
        match timeout_at(deadline, handle.tell_time(deadline)).await {
            Ok(Outcome::Done(())) => {
                self.stamped_at_ms.fetch_max(now, Relaxed);
                Ok(())
            }
            Ok(Outcome::Rejected(rejected)) => Err(refused(&rejected)),
            Ok(Outcome::Unknown) | Err(_) => {
                Err(never(Reason::Deadline, "the time could not be told before the deadline"))
            }
        }
    }

    fn now_ms(&self) -> u64 {
        // From 1, so that 0 stays "none".
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_may_have_been_executed_is_not_forgotten() {
        let lost = || maybe(Reason::NotLeader, "the connection broke");
        let refused = || never(Reason::NotLeader, "nobody leads");
        let mut never_executed = true;
        let mut told = |refusal| of_all_attempts(&mut never_executed, refusal).executed();
        assert_eq!(told(refused()), Executed::Never);
        assert_eq!(told(lost()), Executed::Maybe);
        assert_eq!(told(refused()), Executed::Maybe);
    }
}
