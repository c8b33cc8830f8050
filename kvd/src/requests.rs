//! A request that reached this member: what the leader does with it, and how it gets there.
//!
//! Who executes it and what may be tried again is decided in `raftd::forward`.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use client::{Router, routed};
use proto::{
    kv::{
        ForwardRequest, Request, WatchRequest, forward_client::ForwardClient, forward_reply,
        request,
    },
    lock,
    raft::{Reason, Refusal},
};
use raftd::{
    Handle, Refused,
    edge::{Replied, maybe, never, refused},
    forward::{self, HOPS_MAX, Stamps, with_margin},
};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Status, transport::Channel};

use crate::{
    KvMachine,
    brakes::Brakes,
    claims::Claims,
    command::Command,
    keep_alive::KeepAlives,
    limits::REQUEST_BYTES_MAX,
    look::Looks,
    outcome::{Answer, Claim, Query, Response, Scope},
    routing::{Concerned, Routing},
    view::View,
    wire::{self, Ask, Verb, reply::Acquired, request::Terms},
};

/// Serves requests with the group's replica. Clones share everything.
#[derive(Clone)]
pub(crate) struct Requests {
    handle: Handle<KvMachine>,
    terms: Terms,
    stamps: Stamps,
    keep_alives: KeepAlives,
    claims: Claims,
    looks: Looks,
    gate: Gate,
    /// If there are other groups.
    routing: Option<Routing>,
    brakes: Brakes,
}

/// Whether requests may be answered. One of many groups answers none before its log begins with a step
/// of a move: a client's command in its place would make all shards there. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Of a group that stands alone, or is one of many.
    pub(crate) fn new(alone: bool) -> Self {
        Self(Arc::new(AtomicBool::new(alone)))
    }

    /// Opens it, for ever.
    pub(crate) fn open(&self) {
        self.0.store(true, Relaxed);
    }

    fn is_open(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn check(&self) -> Result<(), Refusal> {
        if self.is_open() {
            return Ok(());
        }
        let message = "this group has no shards yet: it gets some when it joins (shardctl join)";
        Err(never(Reason::WrongGroup, message))
    }
}

/// What a client wants.
pub(crate) struct Wanted<K> {
    pub(crate) kind: K,
    pub(crate) deadline: Instant,
    /// It wants to be told if another group has the shard.
    pub(crate) direct: bool,
}

impl Requests {
    /// Must be called on a runtime.
    pub(crate) fn new(
        handle: Handle<KvMachine>,
        terms: Terms,
        gate: Gate,
        brakes: Brakes,
        routing: Option<Routing>,
    ) -> Self {
        let stamps = Stamps::default();
        let keep_alives = KeepAlives::new(handle.clone(), stamps.clone(), terms.shards);
        let claims = Claims::new(handle.clone());
        let looks = Looks::default();
        Self { handle, terms, stamps, keep_alives, claims, looks, gate, brakes, routing }
    }

    pub(crate) fn handle(&self) -> &Handle<KvMachine> {
        &self.handle
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Answers a client's request here, or has it answered by the group that has its shard.
    pub(crate) async fn serve(
        &self,
        wanted: Wanted<request::Kind>,
    ) -> Result<Replied<forward_reply::Kind>, Refusal> {
        let Wanted { kind, deadline, direct } = wanted;
        let here = self.answer(&kind, deadline, HOPS_MAX);
        let Some(routing) = &self.routing else { return here.await };
        if !direct && client::is_gathered(&kind) {
            return routing.gather(&kind, deadline).await;
        }
        let (place, may_repeat) = (routed::place(&kind), routed::may_repeat(&kind));
        let request = Concerned { place, may_repeat, direct };
        let there = || routing.router().ask(&kind, with_margin(deadline));
        routing.answer(request, here, there).await
    }

    /// The same for a request about a lock.
    pub(crate) async fn serve_lock(
        &self,
        wanted: Wanted<lock::forward_request::Kind>,
    ) -> Result<Replied<lock::forward_reply::Kind>, Refusal> {
        let Wanted { kind, deadline, direct } = wanted;
        let here = self.answer_lock(&kind, deadline, HOPS_MAX);
        let Some(routing) = &self.routing else { return here.await };
        let (place, may_repeat) = (routed::place_of_lock(&kind), routed::may_repeat_lock(&kind));
        let request = Concerned { place, may_repeat, direct };
        let there = || routing.router().ask_lock(&kind, with_margin(deadline));
        routing.answer(request, here, there).await
    }

    /// Who puts a watch together, if it is of shards that other groups may have.
    pub(crate) fn router_of_watch(&self, request: &WatchRequest) -> Option<Arc<Router>> {
        let router = self.routing.as_ref()?.router();
        (request.shards.is_empty() && router.knows_groups()).then(|| router.clone())
    }

    /// Answers a request in this group by `deadline`, passing it on to its leader at most `hops_left`
    /// times.
    pub(crate) async fn answer(
        &self,
        kind: &request::Kind,
        deadline: Instant,
        hops_left: u32,
    ) -> Result<Replied<forward_reply::Kind>, Refusal> {
        let ask = wire::request::ask(kind, &self.terms)?;
        let asked = Asked { requests: self, ask, kind };
        match asked.ask {
            // Whatever this member knows: nobody else is asked.
            Ask::Query { stale: true, .. } | Ask::View { stale: true, .. } => {
                let reply = forward::Ask::execute(&asked, deadline).await?;
                Ok(Replied { reply, leader: None })
            }
            _ => forward::answer(&self.handle, &asked, deadline, hops_left).await,
        }
    }

    /// The same for a request about a lock.
    pub(crate) async fn answer_lock(
        &self,
        kind: &lock::forward_request::Kind,
        deadline: Instant,
        hops_left: u32,
    ) -> Result<Replied<lock::forward_reply::Kind>, Refusal> {
        let ask = wire::request::ask_lock(kind, &self.terms)?;
        let asked = AskedLock { requests: self, ask, kind };
        forward::answer(&self.handle, &asked, deadline, hops_left).await
    }

    async fn query(&self, query: Query, stale: bool, deadline: Instant) -> Result<Answer, Refusal> {
        let answered = if stale {
            let answered = timeout_at(deadline, self.handle.query_stale(query)).await;
            answered.unwrap_or(Err(Refused::Deadline))
        } else {
            self.handle.query(query, deadline).await
        };
        answered.map_err(|refusal| refused(&refusal))
    }

    /// A frozen state of some shards.
    pub(crate) async fn view(
        &self,
        scope: Scope,
        stale: bool,
        deadline: Instant,
    ) -> Result<View, Refusal> {
        self.gate.check()?;
        match self.query(Query::View(scope), stale, deadline).await? {
            Answer::View(view) => Ok(view),
            Answer::Refused(refusal) => Err(wire::refused(&refusal)),
            _ => Err(another_question()),
        }
    }

    async fn propose(
        &self,
        command: &Bytes,
        verb: Verb,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        if verb.grows() {
            self.handle.check_space().map_err(|refusal| refused(&refusal))?;
        }
        if verb.grows() || matches!(verb, Verb::Delete) {
            self.brake(command, deadline).await?;
        }
        self.stamps.propose(&self.handle, command.clone(), deadline, verb.name()).await
    }

    /// Waits for as long as a write to its shard has to.
    async fn brake(&self, command: &Bytes, deadline: Instant) -> Result<(), Refusal> {
        if !self.brakes.are_pressed() {
            return Ok(());
        }
        let shard = Command::decode(command).ok().and_then(|it| it.shard().ok());
        let turn = shard.map_or(Some(Instant::now()), |shard| self.brakes.turn(shard));
        match turn.filter(|turn| *turn < deadline) {
            Some(turn) => {
                sleep_until(turn).await;
                Ok(())
            }
            None => {
                let message = "the shard leaves its group, and is written to faster than it can";
                Err(never(Reason::Limit, message))
            }
        }
    }

    /// Takes a lock, or waits until it is had or the wait is over.
    async fn acquire(
        &self,
        name: Bytes,
        wait: Duration,
        command: &Bytes,
        deadline: Instant,
    ) -> Result<lock::AcquireReply, Refusal> {
        let response = self.propose(command, Verb::Acquire, deadline).await?;
        let lease = match wire::reply::acquired(response)? {
            Acquired::Reply(reply) => return Ok(reply),
            Acquired::Queued(lease) => lease,
        };
        let mut told = pin!(self.claims.wait(name, lease, deadline));
        let until = (Instant::now() + wait).min(deadline);
        let (header, claim) = match timeout_at(until, &mut told).await {
            Ok(told) => told?,
            Err(_) => {
                // In a group that stands still the time of its end does not come by itself. If it
                // can't be told, the deadline ends the wait.
                drop(timeout_at(deadline, self.handle.tell_time(deadline)).await);
                told.await?
            }
        };
        let outcome = match claim {
            Claim::Held { ttl_ms, token } => wire::reply::held(lease, ttl_ms, token),
            Claim::Gone(holder) => wire::reply::busy(holder),
            Claim::Waiting => {
                return Err(maybe(Reason::Deadline, "the lock was not had in time"));
            }
        };
        let header = Some(wire::reply::header(header));
        Ok(lock::AcquireReply { header, outcome: Some(outcome) })
    }
}

/// One request.
struct Asked<'a> {
    requests: &'a Requests,
    ask: Ask,
    kind: &'a request::Kind,
}

impl forward::Ask for Asked<'_> {
    type Reply = forward_reply::Kind;

    fn may_repeat(&self) -> bool {
        routed::may_repeat(self.kind)
    }

    fn is_read(&self) -> bool {
        // Whose gate is closed may have applied less than the leader, which knows.
        self.requests.gate.is_open() && matches!(self.ask, Ask::Query { .. } | Ask::View { .. })
    }

    async fn execute(&self, deadline: Instant) -> Result<forward_reply::Kind, Refusal> {
        let requests = self.requests;
        requests.gate.check()?;
        match &self.ask {
            Ask::Query { query, stale } => {
                let answer = requests.query(query.clone(), *stale, deadline).await?;
                wire::reply::answer(query, answer).unwrap_or_else(|| Err(another_question()))
            }
            Ask::Time(query) => {
                requests.stamps.freshen(&requests.handle, deadline).await?;
                let answer = requests.query(query.clone(), false, deadline).await?;
                wire::reply::answer(query, answer).unwrap_or_else(|| Err(another_question()))
            }
            Ask::View { scope, look, stale } => {
                let view = requests.view(scope.clone(), *stale, deadline).await?;
                requests.looks.look(view, look.clone(), deadline).await
            }
            Ask::Command { command, verb } => {
                wire::reply::reply(*verb, requests.propose(command, *verb, deadline).await?)
            }
            Ask::KeepAlive(lease) => {
                let reply = requests.keep_alives.keep_alive(*lease, deadline).await?;
                Ok(forward_reply::Kind::KeepAlive(reply))
            }
        }
    }

    async fn send(
        &self,
        leader: Channel,
        left: Duration,
        hops_left: u32,
    ) -> Result<Option<Result<forward_reply::Kind, Refusal>>, Status> {
        let mut message = tonic::Request::new(ForwardRequest {
            request: Some(Request { kind: Some(self.kind.clone()) }),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            hops_left,
        });
        message.set_timeout(left);
        let mut client = ForwardClient::new(leader)
            .max_encoding_message_size(2 * REQUEST_BYTES_MAX)
            .max_decoding_message_size(2 * REQUEST_BYTES_MAX);
        let reply = client.execute(message).await?.into_inner();
        Ok(reply.kind.map(|kind| match kind {
            forward_reply::Kind::Refusal(refusal) => Err(refusal),
            kind => Ok(kind),
        }))
    }
}

/// One request about a lock.
struct AskedLock<'a> {
    requests: &'a Requests,
    ask: Ask,
    kind: &'a lock::forward_request::Kind,
}

impl forward::Ask for AskedLock<'_> {
    type Reply = lock::forward_reply::Kind;

    fn may_repeat(&self) -> bool {
        routed::may_repeat_lock(self.kind)
    }

    fn is_read(&self) -> bool {
        self.requests.gate.is_open() && matches!(self.ask, Ask::Query { .. })
    }

    async fn execute(&self, deadline: Instant) -> Result<lock::forward_reply::Kind, Refusal> {
        use lock::{forward_reply, forward_request};
        let requests = self.requests;
        requests.gate.check()?;
        match (&self.ask, self.kind) {
            (Ask::Command { command, .. }, forward_request::Kind::Acquire(acquire)) => {
                let (name, wait) = (acquire.name.clone(), Duration::from_millis(acquire.wait_ms));
                let reply = requests.acquire(name, wait, command, deadline).await?;
                Ok(forward_reply::Kind::Acquire(reply))
            }
            (Ask::Command { command, verb }, _) => {
                wire::reply::released(requests.propose(command, *verb, deadline).await?)
            }
            (Ask::KeepAlive(lease), _) => {
                let reply = requests.keep_alives.keep_alive(*lease, deadline).await?;
                let reply = wire::reply::lock_kept_alive(reply);
                Ok(forward_reply::Kind::KeepAlive(reply))
            }
            (Ask::Query { query, stale }, _) => {
                let answer = requests.query(query.clone(), *stale, deadline).await?;
                wire::reply::lock_answer(answer).unwrap_or_else(|| Err(another_question()))
            }
            (Ask::Time(_) | Ask::View { .. }, _) => Err(another_question()),
        }
    }

    async fn send(
        &self,
        leader: Channel,
        left: Duration,
        hops_left: u32,
    ) -> Result<Option<Result<lock::forward_reply::Kind, Refusal>>, Status> {
        let mut message = tonic::Request::new(lock::ForwardRequest {
            kind: Some(self.kind.clone()),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            hops_left,
        });
        message.set_timeout(left);
        let mut client = lock::forward_client::ForwardClient::new(leader);
        let reply = client.execute(message).await?.into_inner();
        Ok(reply.kind.map(|kind| match kind {
            lock::forward_reply::Kind::Refusal(refusal) => Err(refusal),
            kind => Ok(kind),
        }))
    }
}

fn another_question() -> Refusal {
    never(Reason::Invalid, "the answer is to another question")
}
