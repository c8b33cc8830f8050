//! The host: one task that owns a replica and drives it.
//!
//! It waits for the first of {shutdown, jobs, clock, disk, peers, requests}, takes in what else is
//! there up to a bound, and then acts once on everything: so proposals batch by themselves, and the
//! disk sees one write where it would have seen many. What comes seldom goes first, since a busy
//! member always has some of the rest. It decides nothing that `raft` can decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use daemon::{Failure, Shutdown};
use raft::{
    Change, ChangeRefused, Entry, Event, Frozen, Index, Instant, Membership, NodeId, Output,
    Payload, ReadId, Replica, RoleKind, SnapshotRoot, StateMachine, TicketId,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::audit::Doubt;
use crate::clock::{after, is_past, left, now};
use crate::events;
use crate::failpoint::{self, Failpoint};
use crate::handle::{
    MemberStatus, Outcome, Refused, Request, Role, Status, TransferRefused, Transferred,
};
use crate::jobs::{Job, Jobs};
use crate::peer::{Directory, Incoming, News, Parcel, Peers, Senders};
use crate::settings::Member;
use crate::store::{Store, Written};

/// How many of each input are taken in before the host acts.
const DRAIN_MAX: usize = 1_024;

/// How long a member that is to stop waits for another to lead in its place.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a member that was removed goes on: a leader that removes itself answers who asked for
/// it, and says farewell. Clients that come here meanwhile wait, so it is not long.
const REMOVED_LINGER: Duration = Duration::from_millis(200);

/// What the host task is fed by.
pub(crate) struct Inputs<S: StateMachine> {
    pub(crate) requests: mpsc::Receiver<Request<S>>,
    pub(crate) inbox: mpsc::Receiver<Incoming>,
    pub(crate) written: watch::Receiver<Written>,
    pub(crate) read: mpsc::UnboundedReceiver<(Option<NodeId>, Vec<Entry>)>,
    pub(crate) jobs: mpsc::Receiver<Job<S>>,
    pub(crate) lost: watch::Receiver<Option<String>>,
    pub(crate) news: mpsc::UnboundedReceiver<News>,
    pub(crate) store_failed: oneshot::Receiver<Failure>,
}

/// What the host task acts on.
pub(crate) struct Driver<S: StateMachine> {
    pub(crate) replica: Replica<S>,
    pub(crate) store: Store,
    pub(crate) peers: Arc<Peers>,
    pub(crate) senders: Senders,
    pub(crate) directory: Arc<Directory>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) applied: watch::Sender<Index>,
    pub(crate) jobs: Jobs<S>,
    pub(crate) tick: Duration,
    pub(crate) waiting: Waiting<S>,
    /// The replica has more to do, whatever comes in.
    pub(crate) again: bool,
    /// Since when it is certain that this member belongs to the group no more.
    pub(crate) removed: Option<std::time::Instant>,
    pub(crate) doubt: Doubt<S>,
}

/// What a state that is to be frozen comes to.
type Freezing<S> = Result<Frozen<<S as StateMachine>::Capture>, Refused>;

/// Who waits for an answer.
pub(crate) struct Waiting<S: StateMachine> {
    next: u64,
    proposals: HashMap<TicketId, oneshot::Sender<Outcome<S::Response>>>,
    ticks: HashMap<TicketId, oneshot::Sender<Outcome<()>>>,
    queries: HashMap<ReadId, oneshot::Sender<Result<S::Answer, Refused>>>,
    states: HashMap<ReadId, oneshot::Sender<Freezing<S>>>,
    /// Who waits for the leadership to be handed over, and to whom.
    transfers: Vec<(NodeId, oneshot::Sender<Transferred>)>,
    changes: HashMap<TicketId, oneshot::Sender<Outcome<Result<(), ChangeRefused>>>>,
}

impl<S: StateMachine> Default for Waiting<S> {
    fn default() -> Self {
        Self {
            next: 0,
            proposals: HashMap::new(),
            ticks: HashMap::new(),
            queries: HashMap::new(),
            states: HashMap::new(),
            transfers: Vec::new(),
            changes: HashMap::new(),
        }
    }
}

impl<S: StateMachine> Waiting<S> {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<S: StateMachine> Driver<S> {
    /// Drives the replica until shutdown or a failure. A leader that is to stop hands over first.
    pub(crate) async fn run(
        mut self,
        mut inputs: Inputs<S>,
        shutdown: Shutdown,
    ) -> Result<(), Failure> {
        let mut clock = tokio::time::interval(self.tick);
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut leaving = None;
        self.act();
        loop {
            let mut ticked = false;
            tokio::select! {
                biased;
                () = shutdown.requested(), if leaving.is_none() => leaving = Some(self.leave()),
                failure = &mut inputs.store_failed => return Err(store_failure(failure)),
                failure = lost(&mut inputs.lost) => return Err(failure),
                Some(job) = inputs.jobs.recv() => self.finish(job)?,
                _ = clock.tick() => { ticked = true; self.tick() },
                Some(news) = inputs.news.recv() => self.remember(news),
                Ok(()) = inputs.written.changed() => self.written(&mut inputs.written),
                Some((reader, entries)) = inputs.read.recv() => self.fetched(reader, entries),
                Some(incoming) = inputs.inbox.recv() => self.step(incoming),
                Some(request) = inputs.requests.recv() => self.take(request),
                () = tokio::task::yield_now(), if self.again => {}
            }
            self.drain(&mut inputs);
            self.act();
            self.publish(ticked);
            if self.removed.is_some_and(|since| since.elapsed() >= REMOVED_LINGER) {
                return Err(removed());
            }
            // Its vote counts for the next leader, so it stays until there is one.
            let follows = !self.leads() && self.replica.node().leader().is_some();
            if leaving.is_some_and(|until| follows || now() >= until) {
                return Ok(());
            }
        }
    }

    fn tick(&mut self) {
        let now = now();
        self.replica.tick(now);
        self.senders.part();
        self.keep_mark();
    }

    fn leads(&self) -> bool {
        self.replica.node().role() == RoleKind::Leader
    }

    /// Begins to hand the leadership over, if it is here; until when to wait for that.
    fn leave(&mut self) -> Instant {
        let begun = self.successor().is_some_and(|to| self.replica.transfer(to).is_ok());
        let patience = if begun { LEAVE_TIMEOUT } else { Duration::ZERO };
        after(now(), patience)
    }

    /// Who has most of the log, of those that were heard from lately.
    fn successor(&self) -> Option<NodeId> {
        let status = self.replica.status();
        let voter = |progress: &raft::Progress| status.membership.stays_voter(progress.node);
        let peers = status.peers.iter().filter(|progress| voter(progress));
        let best = peers.max_by_key(|progress| (progress.active, progress.matched));
        best.map(|progress| progress.node)
    }

    /// Takes in what else is there.
    fn drain(&mut self, inputs: &mut Inputs<S>) {
        if inputs.written.has_changed().unwrap_or(false) {
            self.written(&mut inputs.written);
        }
        // One for each follower and one for the machine: a busy disk must not keep them waiting.
        while let Ok((reader, entries)) = inputs.read.try_recv() {
            self.fetched(reader, entries);
        }
        for _ in 0..DRAIN_MAX {
            let Ok(news) = inputs.news.try_recv() else { break };
            self.remember(news);
        }
        for _ in 0..DRAIN_MAX {
            let Ok(incoming) = inputs.inbox.try_recv() else { break };
            self.step(incoming);
        }
        for _ in 0..DRAIN_MAX {
            let Ok(request) = inputs.requests.try_recv() else { break };
            self.take(request);
        }
    }

    fn written(&mut self, written: &mut watch::Receiver<Written>) {
        let Written { id, write_sequence } = *written.borrow_and_update();
        self.peers.write_sequence.store(write_sequence, Ordering::Relaxed);
        self.replica.written(id);
        self.doubt.written = id;
    }

    fn step(&mut self, incoming: Incoming) {
        let now = now();
        for message in incoming.messages {
            self.replica.step(now, incoming.from, message);
        }
        for audit in incoming.audits {
            self.replica.hear(incoming.from, audit);
        }
    }

    fn take(&mut self, request: Request<S>) {
        match request {
            Request::Propose { command, deadline, answer, _room } => {
                match self.propose(Payload::Command(command), deadline) {
                    Ok(ticket) => drop(self.waiting.proposals.insert(ticket, answer)),
                    Err(refused) => reply(answer, Outcome::Rejected(refused)),
                }
            }
            Request::Tick { deadline, answer } => match self.propose(Payload::Tick, deadline) {
                Ok(ticket) => drop(self.waiting.ticks.insert(ticket, answer)),
                Err(refused) => reply(answer, Outcome::Rejected(refused)),
            },
            Request::Query { query, answer } => {
                let id = ReadId(self.waiting.number());
                // Not before the request was taken: a lease is as fresh as this.
                match self.replica.query(now(), id, query) {
                    Ok(()) => drop(self.waiting.queries.insert(id, answer)),
                    Err(refused) => reply(answer, Err(self.refused(refused))),
                }
            }
            Request::QueryStale { query, answer } => {
                let answered = self.replica.query_stale(query);
                reply(answer, answered.map_err(|refused| self.refused(refused)));
            }
            Request::Freeze { answer } => {
                let id = ReadId(self.waiting.number());
                match self.replica.freeze(now(), id) {
                    Ok(()) => drop(self.waiting.states.insert(id, answer)),
                    Err(refused) => reply(answer, Err(self.refused(refused))),
                }
            }
            Request::Transfer { to, answer } => match self.transfer(to) {
                Ok(to) if to == self.peers.me.node => reply(answer, Ok(to)),
                Ok(to) => self.waiting.transfers.push((to, answer)),
                Err(refused) => reply(answer, Err(refused)),
            },
            Request::Change { deadline, answer, .. } if is_past(deadline) => {
                reply(answer, Outcome::Rejected(Refused::Deadline));
            }
            Request::Change { changes, deadline, answer } => {
                match self.change(&changes, deadline) {
                    Ok(ticket) => drop(self.waiting.changes.insert(ticket, answer)),
                    Err(ChangeRefused::Refused(refused)) => {
                        reply(answer, Outcome::Rejected(self.refused(refused)));
                    }
                    Err(refused) => reply(answer, Outcome::Done(Err(refused))),
                }
            }
        }
    }

    /// Begins to change the members.
    fn change(
        &mut self,
        changes: &[Change],
        deadline: tokio::time::Instant,
    ) -> Result<TicketId, ChangeRefused> {
        let now = now();
        let deadline = after(now, left(deadline));
        let ticket = TicketId(self.waiting.number());
        self.replica.change(now, ticket, changes, deadline)?;
        Ok(ticket)
    }

    /// These are the members now. Whoever waits for a change sees them when it is answered.
    fn follow(&mut self, membership: &Membership) {
        self.peers.follow(membership);
        self.senders.follow(membership);
        self.status.send_replace(self.describe());
    }

    /// Begins to hand the leadership over; to whom.
    fn transfer(&mut self, to: Option<NodeId>) -> Transferred {
        let Some(to) = to.or_else(|| self.successor()) else {
            let refused = raft::Refused::NotLeader;
            let nobody = self.leads().then_some(TransferRefused::Nobody);
            return Err(nobody.unwrap_or_else(|| self.refused(refused).into()));
        };
        self.replica.transfer(to).map(|()| to).map_err(|refused| match refused {
            ChangeRefused::Refused(refused) => self.refused(refused).into(),
            refused => TransferRefused::Change(refused),
        })
    }

    /// Tells those who wait for a transfer what came of it.
    fn end_transfers(&mut self, event: &Event) {
        let leader = match event {
            Event::Following { leader: Some(leader), .. } => Some(*leader),
            Event::TransferFailed { .. } | Event::Leading { .. } => None,
            _ => return,
        };
        for (to, answer) in self.waiting.transfers.drain(..) {
            let led = leader.filter(|leader| *leader == to);
            reply(answer, led.ok_or(TransferRefused::NotTakenOver));
        }
    }

    /// A peer has started anew: should its disk be put back to an older state, this tells.
    fn remember(&self, news: News) {
        self.store.heard(news.node, news.incarnation, news.boot, news.write_sequence);
    }

    fn propose(
        &mut self,
        payload: Payload,
        deadline: tokio::time::Instant,
    ) -> Result<TicketId, Refused> {
        if is_past(deadline) {
            return Err(Refused::Deadline);
        }
        let now = now();
        let deadline = after(now, left(deadline));
        let ticket = TicketId(self.waiting.number());
        self.replica
            .propose(now, ticket, payload, deadline)
            .map_err(|refused| self.refused(refused))?;
        Ok(ticket)
    }

    fn refused(&self, refused: raft::Refused) -> Refused {
        match refused {
            raft::Refused::NotLeader => Refused::NotLeader { leader: self.leader() },
            raft::Refused::Transferring => Refused::Transferring,
            raft::Refused::Doubted => Refused::Doubted,
            raft::Refused::Overloaded(limit) => Refused::Overloaded { limit },
        }
    }

    fn leader(&self) -> Option<Member> {
        self.directory.member(self.replica.node().leader()?)
    }

    fn finish(&mut self, job: Job<S>) -> Result<(), Failure> {
        match job {
            Job::Captured(Ok(root)) => {
                info!(index = %root.position.index, bytes = root.bytes, "stored a snapshot");
                self.replica.captured(Some(root));
            }
            Job::Captured(Err(failure)) => {
                self.replica.captured(None);
                return Err(failure);
            }
            Job::Fetched(Ok(root)) => self.jobs.restore(root, self.replica.machine().empty()),
            Job::Fetched(Err(reason)) => {
                warn!(reason, "a snapshot could not be fetched");
                self.replica.install_failed();
            }
            Job::Restored(restored) => {
                let (root, machine) = restored?;
                self.take_place(root, machine);
            }
            Job::Replayed(replay) => self.go_on_with(replay?),
            Job::Marked(marked) => self.doubt.marked(marked?),
        }
        Ok(())
    }

    /// Puts the state of a snapshot in the place of the one that there is.
    fn take_place(&mut self, root: SnapshotRoot, mut machine: S) {
        let index = root.position.index;
        let installed = self.replica.installed(root, &mut machine);
        failpoint::reach(Failpoint::SnapshotInstallAfter);
        if installed {
            info!(%index, "installed a snapshot");
        } else {
            info!(%index, "a snapshot was overtaken by the log");
        }
        self.jobs.discard(machine);
    }

    /// Does what the replica asks for.
    fn act(&mut self) {
        let applies = self.replica.node().commit() > self.replica.applied().index;
        if applies {
            failpoint::reach(Failpoint::ApplyBefore);
            if failpoint::is_struck(Failpoint::StateFlip) {
                self.replica.flip();
            }
        }
        let output: Output<S> = self.replica.take_output();
        if applies {
            failpoint::reach(Failpoint::ApplyAfter);
        }
        // The leader's followers work while its own disk does, so they are told first.
        if let Some(membership) = output.membership {
            self.follow(&membership);
        }
        let mut committed = None;
        if let Some(membership) = output.committed_membership {
            self.peers.pin(&membership);
            committed = Some(membership.clone());
            if !membership.may_belong(self.peers.me.node) {
                self.removed.get_or_insert(std::time::Instant::now());
            }
        }
        for envelope in output.messages {
            if !self.senders.send(envelope.to, Parcel::Message(envelope.message)) {
                metrics::counter!("flotilla_raft_messages_dropped_total").increment(1);
            }
        }
        if let Some(write) = output.write {
            self.doubt.submitted = write.id;
            self.store.submit(write);
        }
        // Behind the write that may hold it: who was removed is forgotten only then.
        if let Some(membership) = committed {
            self.store.follow(membership);
        }
        for fetch in output.fetches {
            let reader = if fetch.reader.is_some() { "follower" } else { "machine" };
            metrics::counter!("flotilla_raft_log_reads_total", "reader" => reader).increment(1);
            self.store.fetch(fetch);
        }
        self.again = output.again;
        for (ticket, outcome) in output.outcomes {
            self.end(ticket, outcome);
        }
        for (id, answer) in output.answers {
            if let Some(waiting) = self.waiting.queries.remove(&id) {
                reply(waiting, answer.map_err(|refused| self.refused(refused)));
            }
        }
        for (id, state) in output.states {
            if let Some(waiting) = self.waiting.states.remove(&id) {
                reply(waiting, state.map_err(|refused| self.refused(refused)));
            }
        }
        if let Some(frozen) = output.capture {
            self.jobs.capture(frozen);
        }
        self.audit(output.audited, output.replay);
        if let Some(install) = output.install {
            self.jobs.fetch(install, self.replica.node().commit());
        }
        for event in &output.events {
            events::observe(event);
            self.end_transfers(event);
        }
    }

    fn end(&mut self, ticket: TicketId, outcome: raft::Outcome<S::Response>) {
        if let Some(waiting) = self.waiting.proposals.remove(&ticket) {
            let outcome = match outcome {
                raft::Outcome::Done(response) => {
                    Outcome::Done(response.expect("a command has a response"))
                }
                raft::Outcome::Rejected => Outcome::Rejected(Refused::Overtaken),
                raft::Outcome::Unknown => Outcome::Unknown,
            };
            reply(waiting, outcome);
        } else if let Some(waiting) = self.waiting.ticks.remove(&ticket) {
            let outcome = match outcome {
                raft::Outcome::Done(_) => Outcome::Done(()),
                raft::Outcome::Rejected => Outcome::Rejected(Refused::Overtaken),
                raft::Outcome::Unknown => Outcome::Unknown,
            };
            reply(waiting, outcome);
        } else if let Some(waiting) = self.waiting.changes.remove(&ticket) {
            let outcome = match outcome {
                raft::Outcome::Done(_) => Outcome::Done(Ok(())),
                raft::Outcome::Rejected => Outcome::Rejected(Refused::Overtaken),
                raft::Outcome::Unknown => Outcome::Unknown,
            };
            reply(waiting, outcome);
        }
    }

    /// Tells how the member stands: role, term, leader, want of space and what is applied at once,
    /// the rest with a tick.
    fn publish(&self, ticked: bool) {
        let applied = self.replica.applied().index;
        self.applied.send_if_modified(|last| std::mem::replace(last, applied) != applied);
        let node = self.replica.node();
        self.peers.led(node.leader().is_some());
        let changed = {
            let last = self.status.borrow();
            last.term != node.term()
                || last.leader != node.leader()
                || last.role != role(node.role())
                || last.low_on_space != self.store.is_low_on_space()
                || last.trust != self.replica.trust()
        };
        let moved = ticked && {
            let last = self.status.borrow();
            last.applied != applied
                || last.transfer != self.jobs.transfer()
                || last.taking_snapshot != self.replica.is_capturing()
        };
        let peers_moved = ticked && node.role() == RoleKind::Leader;
        if changed || moved || peers_moved {
            let status = self.describe();
            events::measure(&status);
            self.status.send_if_modified(|last| {
                let news = *last != status;
                *last = status;
                news
            });
        }
    }

    fn describe(&self) -> Status {
        let (core, applied) = (self.replica.status(), self.replica.applied());
        let contacts = self.directory.members().into_iter();
        let members = contacts.filter_map(|member| {
            let standing = core.membership.members().get(&member.node)?.standing;
            let progress = core.peers.iter().find(|progress| progress.node == member.node);
            let itself = member.node == self.peers.me.node && core.role == RoleKind::Leader;
            Some(MemberStatus {
                matched: progress
                    .map_or(if itself { core.durable } else { Index(0) }, |p| p.matched),
                active: progress.map_or(itself, |progress| progress.active),
                standing,
                member,
            })
        });
        let last = self.status.borrow();
        Status {
            cluster: last.cluster.clone(),
            group: last.group,
            node: last.node,
            role: role(core.role),
            term: core.term,
            leader: core.leader,
            first: core.first,
            last: core.last.index,
            durable: core.durable,
            commit: core.commit,
            applied: applied.index,
            group_time: applied.time,
            log_bytes: core.log_bytes,
            snapshot: core.snapshot,
            state_digest: self.replica.machine().digest(),
            trust: self.replica.trust(),
            low_on_space: self.store.is_low_on_space(),
            transfer: self.jobs.transfer(),
            taking_snapshot: self.replica.is_capturing(),
            lease_reads: core.membership.lease_reads(),
            members: members.collect(),
        }
    }
}

fn role(role: RoleKind) -> Role {
    match role {
        RoleKind::Follower => Role::Follower,
        RoleKind::Candidate => Role::Candidate,
        RoleKind::Leader => Role::Leader,
    }
}

/// Answers, unless the asker has gone.
fn reply<T>(answer: oneshot::Sender<T>, value: T) {
    drop(answer.send(value));
}

fn removed() -> Failure {
    Failure::configuration(
        "this member was removed from its group: its data is of no more use; to come back it needs \
         an empty directory and a new id",
    )
}

pub(crate) fn store_failure(failure: Result<Failure, oneshot::error::RecvError>) -> Failure {
    failure.unwrap_or_else(|_| Failure::machine("the store's thread has ended"))
}

/// Ends when a peer says that this member has lost data.
pub(crate) async fn lost(lost: &mut watch::Receiver<Option<String>>) -> Failure {
    let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
    match reason {
        Some(reason) => Failure::configuration(reason),
        None => std::future::pending().await,
    }
}
