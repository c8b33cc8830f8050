//! What becomes of a request that reached this member: it is executed here if this member leads,
//! else passed on to the leader, within the caller's deadline.
//!
//! Decides who executes and what may be tried again. A request that was certainly not executed is
//! tried again whoever made it; one of unknown fate only if it changes nothing or has a name, so
//! never one for which that could mean twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use proto::kv::{
    Executed, ForwardRequest, Reason, Refusal, Request, forward_client::ForwardClient,
    forward_reply, request,
};
use raftd::{Handle, Member, Outcome, Refused, Role};
use tokio::time::{Instant, timeout_at};

use crate::{
    KvMachine,
    limits::{PairLimits, REQUEST_BYTES_MAX},
    outcome::Query,
    wire::{self, Ask, Verb, maybe, never},
};

/// How often a request may be passed on: once to whom is believed to lead, once more when the
/// leadership has moved on meanwhile.
pub(crate) const HOPS_MAX: u32 = 2;

/// How long a request waits for the group to have a leader before its caller is told that there is
/// none, so that it can ask a member that may know more.
const LEADER_WAIT: Duration = Duration::from_secs(1);

/// How long to wait before a leader that could not be reached is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What is left of a deadline for the way back of an answer.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);

/// The time that is told is at most 10 s old; the rest of that is for the answer's way.
const TIME_AGE_MAX: Duration = Duration::from_secs(8);

/// Serves requests with the group's replica. Clones share everything.
#[derive(Clone)]
pub(crate) struct Requests {
    handle: Handle<KvMachine>,
    shards: u32,
    limits: PairLimits,
    began: Instant,
    /// A stamp of at least this moment (in milliseconds since `began`) has been applied.
    stamped_at_ms: Arc<AtomicU64>,
}

/// A reply, and who gave it if that was not this member.
pub(crate) struct Replied {
    pub(crate) kind: forward_reply::Kind,
    pub(crate) leader: Option<Member>,
}

impl Requests {
    pub(crate) fn new(handle: Handle<KvMachine>, shards: u32, limits: PairLimits) -> Self {
        let stamped_at_ms = Arc::new(AtomicU64::new(0));
        Self { handle, shards, limits, began: Instant::now(), stamped_at_ms }
    }

    /// Answers a request by `deadline`, passing it on at most `hops_left` times.
    pub(crate) async fn answer(
        &self,
        kind: request::Kind,
        deadline: Instant,
        mut hops_left: u32,
    ) -> Result<Replied, Refusal> {
        let ask = wire::ask(&kind, self.shards, &self.limits)?;
        let deadline = deadline - ANSWER_MARGIN.min(deadline.duration_since(Instant::now()) / 10);
        let may_repeat = !wire::is_anonymous_mutation(&kind);
        loop {
            let attempt = if self.handle.leads() {
                self.execute(&ask, deadline).await.map(|kind| Replied { kind, leader: None })
            } else {
                match self.leader(deadline).await {
                    Some(leader) if hops_left > 0 && leader.node != self.handle.node() => {
                        hops_left -= 1;
                        let sent = self.pass_on(&kind, &leader, deadline, hops_left).await;
                        sent.map(|kind| Replied { kind, leader: Some(leader) })
                    }
                    Some(_) | None => Err(self.not_leading()),
                }
            };
            let refusal = match attempt {
                Ok(replied) => return Ok(replied),
                Err(refusal) => refusal,
            };
            let again = match refusal.reason() {
                Reason::NotLeader => may_repeat || refusal.executed() == Executed::Never,
                Reason::Unspecified
                | Reason::Deadline
                | Reason::Invalid
                | Reason::Limit
                | Reason::Expired
                | Reason::Acknowledged
                | Reason::Shutdown
                | Reason::OtherShards
                | Reason::NoSpace => false,
            };
            let pause = Instant::now() + RETRY_PAUSE;
            if !again || hops_left == 0 || pause >= deadline {
                return Err(refusal);
            }
            self.wait_for_change(pause).await;
        }
    }

    /// Executes a request on this member, which believes that it leads.
    async fn execute(&self, ask: &Ask, deadline: Instant) -> Result<forward_reply::Kind, Refusal> {
        match ask {
            Ask::Query(query) => self.query(query.clone(), deadline).await,
            Ask::Time(query) => {
                self.freshen(deadline).await?;
                self.query(query.clone(), deadline).await
            }
            Ask::Command { command, verb } => {
                if verb.grows() {
                    self.handle.check_space().map_err(|refused| refusal(&refused))?;
                }
                let began = self.now_ms();
                // The host looks at deadlines once a tick, which may be too late for the caller.
                let proposed = self.handle.propose(command.clone(), deadline);
                match timeout_at(deadline, proposed).await {
                    Ok(Outcome::Done(response)) => {
                        self.stamped_at_ms.fetch_max(began, Relaxed);
                        wire::reply(*verb, response)
                    }
                    Ok(Outcome::Rejected(refused)) => Err(refusal(&refused)),
                    Ok(Outcome::Unknown) | Err(_) => Err(unknown(*verb)),
                }
            }
        }
    }

    async fn query(&self, query: Query, deadline: Instant) -> Result<forward_reply::Kind, Refusal> {
        let answer =
            self.handle.query(query, deadline).await.map_err(|refused| refusal(&refused))?;
        wire::answer(answer)
            .ok_or_else(|| never(Reason::Invalid, "the answer is to another question"))
    }

    /// Makes sure that the last applied stamp is young.
    async fn freshen(&self, deadline: Instant) -> Result<(), Refusal> {
        let now = self.now_ms();
        let stamped_at = self.stamped_at_ms.load(Relaxed);
        let age_max = u64::try_from(TIME_AGE_MAX.as_millis()).unwrap_or(u64::MAX);
        if stamped_at > 0 && now.saturating_sub(stamped_at) <= age_max {
            return Ok(());
        }
        match timeout_at(deadline, self.handle.tell_time(deadline)).await {
            Ok(Outcome::Done(())) => {
                self.stamped_at_ms.fetch_max(now, Relaxed);
                Ok(())
            }
            Ok(Outcome::Rejected(refused)) => Err(refusal(&refused)),
            Ok(Outcome::Unknown) | Err(_) => {
                Err(never(Reason::Deadline, "the time could not be told before the deadline"))
            }
        }
    }

    /// The leader; waits a little for there to be one.
    async fn leader(&self, deadline: Instant) -> Option<Member> {
        if let Some(leader) = self.handle.leader() {
            return Some(leader);
        }
        let mut status = self.handle.watch_status();
        let until = deadline.min(Instant::now() + LEADER_WAIT);
        let known = status.wait_for(|status| status.leader.is_some());
        // In vain, or the host has ended: either way there is none.
        let _ = timeout_at(until, known).await;
        self.handle.leader()
    }

    /// Waits for the leadership to move, at most until `until`.
    async fn wait_for_change(&self, until: Instant) {
        let mut status = self.handle.watch_status();
        let before = {
            let status = status.borrow_and_update();
            (status.term, status.leader)
        };
        let changed = status.wait_for(|status| (status.term, status.leader) != before);
        // In vain: it is tried again all the same.
        let _ = timeout_at(until, changed).await;
    }

    /// Sends a request to the leader's peer port.
    async fn pass_on(
        &self,
        kind: &request::Kind,
        leader: &Member,
        deadline: Instant,
        hops_left: u32,
    ) -> Result<forward_reply::Kind, Refusal> {
        let Some(channel) = self.handle.peer(leader.node) else {
            return Err(never(Reason::NotLeader, "the leader is not among this member's peers"));
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let mut message = tonic::Request::new(ForwardRequest {
            request: Some(Request { kind: Some(kind.clone()) }),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            hops_left,
        });
        message.set_timeout(left);
        let mut client = ForwardClient::new(channel)
            .max_encoding_message_size(2 * REQUEST_BYTES_MAX)
            .max_decoding_message_size(2 * REQUEST_BYTES_MAX);
        let node = leader.node;
        match timeout_at(deadline, client.execute(message)).await {
            Ok(Ok(reply)) => match reply.into_inner().kind {
                Some(forward_reply::Kind::Refusal(refusal)) => Err(refusal),
                Some(kind) => Ok(kind),
                None => Err(maybe(Reason::NotLeader, "the leader gave an empty answer")),
            },
            Ok(Err(status)) if client::metadata::was_never_executed(&status) => {
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

    fn not_leading(&self) -> Refusal {
        let role = self.handle.status().role;
        match self.handle.leader() {
            Some(leader) => {
                let message = format!("member {} leads", leader.node);
                let leader = leader.client_address;
                Refusal { leader, ..never(Reason::NotLeader, message) }
            }
            None if role == Role::Unborn => refusal(&Refused::Unborn),
            None => {
                never(Reason::NotLeader, "the group has no leader, as far as this member knows")
            }
        }
    }

    fn now_ms(&self) -> u64 {
        // From 1, so that 0 stays "never".
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Why the host did not do it: it never will.
fn refusal(refused: &Refused) -> Refusal {
    let message = refused.to_string();
    match refused {
        Refused::NotLeader { leader } => {
            let leader = leader.as_ref().map(|leader| leader.client_address.clone());
            Refusal { leader: leader.unwrap_or_default(), ..never(Reason::NotLeader, message) }
        }
        Refused::Overtaken | Refused::Unborn | Refused::Transferring => {
            never(Reason::NotLeader, message)
        }
        Refused::Overloaded { .. } => never(Reason::Limit, message),
        Refused::LowSpace => never(Reason::NoSpace, message),
        Refused::TooLarge { .. } => never(Reason::Invalid, message),
        Refused::Deadline => never(Reason::Deadline, message),
        Refused::Shutdown => never(Reason::Shutdown, message),
    }
}

fn unknown(verb: Verb) -> Refusal {
    let what = match verb {
        Verb::Put => "the Put",
        Verb::Append => "the Append",
        Verb::Delete => "the Delete",
    };
    maybe(Reason::Deadline, format!("{what} was not confirmed in time; it may have been executed"))
}
