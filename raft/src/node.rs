//! One member of one group, as a function of its inputs.

use std::sync::Arc;

use crate::{
    AppendResult, Ballot, Change, ChangeRefused, Config, DropReason, Effects, Entry, Event, Index,
    Install, Instant, Membership, Message, MessageKind, NodeId, Payload, Position, Progress,
    ReadId, Recovered, Refused, RoleKind, SnapshotRoot, Status, Term, WriteId,
    candidate::Candidate, core::Core, follower::Follower, leader::Leader,
};

/// One member of one group. It answers calls at once, by changing itself and by gathering
/// [`Effects`] for its driver; it never waits, reads a clock, or touches anything outside.
#[derive(Debug)]
pub struct Node {
    core: Core,
    role: Role,
}

/// What dies with a role lives in the role.
#[derive(Debug)]
enum Role {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Leader),
}

/// What a role wants to become.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    Stay,
    /// A follower in the current term.
    Follow(Option<NodeId>),
    Campaign(Ballot),
    Lead,
}

impl Node {
    /// A member that starts from what its disk holds.
    ///
    /// `founders` are the group's first members, whether this is one of them or came later; `seed`
    /// decides its election timeouts.
    pub fn new(
        config: Config,
        id: NodeId,
        founders: Arc<Membership>,
        recovered: Recovered,
        seed: u64,
        now: Instant,
    ) -> Self {
        assert_eq!(config.check(), Ok(()));
        let mut core = Core::new(config, id, founders, recovered, seed, now);
        let role = Role::Follower(Follower::new(&mut core, None));
        Self { core, role }
    }

    /// Takes a message from another member.
    pub fn step(&mut self, now: Instant, from: NodeId, message: Message) {
        self.core.clock.advance(now);
        // Anybody else may be a member that this one has not heard of yet (section 6): who may speak
        // at all is the driver's to know.
        if from == self.core.id {
            return self.core.drop_message(from, DropReason::Stranger);
        }
        if !message.is_well_formed() {
            return self.core.drop_message(from, DropReason::Malformed);
        }
        if self.passes_term_rule(from, &message) {
            self.dispatch(from, message);
        }
    }

    /// A tick has passed. A driver that comes late calls this once for all the ticks it missed.
    pub fn tick(&mut self, now: Instant) {
        self.core.clock.advance(now);
        self.core.durability.tick();
        let next = match &mut self.role {
            Role::Follower(follower) => follower.tick(&mut self.core),
            Role::Candidate(candidate) => candidate.tick(&self.core),
            Role::Leader(leader) => leader.tick(&mut self.core),
        };
        self.transition(next);
    }

    /// Appends an entry, if this member leads.
    ///
    /// # Errors
    /// [`Refused`]: nothing was appended, and the payload will never be executed.
    pub fn propose(&mut self, now: Instant, payload: Payload) -> Result<Position, Refused> {
        self.core.clock.advance(now);
        let Role::Leader(leader) = &self.role else { return Err(Refused::NotLeader) };
        if leader.is_leaving() {
            return Err(Refused::Transferring);
        }
        self.core.check_budget()?;
        Ok(self.core.propose(payload))
    }

    /// Asks for a linearizable read, which [`Effects::reads`] answers: the state at the index given
    /// there, or any later one, is as new as everything acknowledged before this call. A member that
    /// follows a leader asks it. `now` is told by a clock that was looked at after the read came: one
    /// that a lease covers is as fresh as `now`.
    ///
    /// # Errors
    /// [`Refused`]: the read will not be answered.
    pub fn read(&mut self, now: Instant, id: ReadId) -> Result<(), Refused> {
        self.core.clock.advance(now);
        match &mut self.role {
            Role::Leader(leader) => leader.read(&mut self.core, id),
            Role::Follower(follower) => follower.read(&self.core, id),
            Role::Candidate(_) => Err(Refused::NotLeader),
        }
    }

    /// Hands the leadership over to another member, as soon as that has all of the log. Proposals
    /// are refused meanwhile. It is given up after an election timeout, which an event tells.
    ///
    /// # Errors
    /// [`ChangeRefused`]: nothing was begun.
    pub fn transfer(&mut self, to: NodeId) -> Result<(), ChangeRefused> {
        match &mut self.role {
            Role::Leader(leader) => leader.transfer(&mut self.core, to),
            Role::Follower(_) | Role::Candidate(_) => Err(Refused::NotLeader.into()),
        }
    }

    /// Changes the members of the group, all at once, by joint consensus if voters come or go. When
    /// the entry at the position returned is committed, nothing but the end of the change can follow;
    /// this leader appends that itself.
    ///
    /// # Errors
    /// [`ChangeRefused`]: nothing was changed, and nothing will be.
    pub fn change(&mut self, now: Instant, changes: &[Change]) -> Result<Position, ChangeRefused> {
        self.core.clock.advance(now);
        match &mut self.role {
            Role::Leader(leader) => leader.change(&mut self.core, changes),
            Role::Follower(_) | Role::Candidate(_) => Err(Refused::NotLeader.into()),
        }
    }

    /// The disk has made all writes up to `id` durable.
    pub fn written(&mut self, id: WriteId) {
        self.core.written(id);
        let next = match &mut self.role {
            Role::Follower(follower) => {
                follower.written(&mut self.core);
                Next::Stay
            }
            Role::Candidate(candidate) => candidate.written(&self.core),
            Role::Leader(leader) => leader.written(&mut self.core),
        };
        self.transition(next);
    }

    /// The driver's own snapshot is durable; `root` is of a state that [`Effects::committed`] made.
    pub fn compact(&mut self, root: SnapshotRoot) {
        let needed = match &self.role {
            Role::Follower(_) | Role::Candidate(_) => None,
            Role::Leader(leader) => leader.first_needed(&self.core, &root),
        };
        self.core.compact(root, needed);
    }

    /// The disk has read what [`Effects::fetches`] asked for: contiguous from there on, at least one
    /// entry if the log still holds any of them.
    pub fn fetched(&mut self, reader: Option<NodeId>, entries: Vec<Entry>) {
        self.core.fetching.remove(&reader);
        match (reader, &mut self.role) {
            (None, _) => self.core.fetched(entries),
            (Some(reader), Role::Leader(leader)) => {
                leader.fetched(&mut self.core, reader, entries);
            }
            // It leads no more.
            (Some(_), Role::Follower(_) | Role::Candidate(_)) => {}
        }
    }

    /// The driver has fetched the snapshot of [`Effects::install`], or one that a leader offered
    /// before, and its chunks are durable.
    /// Whether it takes the place of the state machine's state: if so, `committed` goes on behind it.
    pub fn installed(&mut self, root: SnapshotRoot) -> bool {
        self.core.install(root)
    }

    /// Asks for a snapshot of a member whose state is right, since that of this one is not. Whether it
    /// is asked for: not while another is, nor one that is not of this log.
    pub(crate) fn wants(&mut self, from: NodeId, root: SnapshotRoot) -> bool {
        let fits = self.core.installing.is_none() && self.core.may_rebuild(&root);
        if fits {
            self.core.installing = Some(root.clone());
            self.core.install = Some(Install { from, root: root.clone() });
            self.core.events.push(Event::Installing { from, root });
        }
        fits
    }

    /// The snapshot that was asked for so, and is durable. Whether it takes the place of the state
    /// machine's state: then [`Effects::committed`] goes on behind it.
    pub(crate) fn rebuilt(&mut self, root: SnapshotRoot) -> bool {
        self.core.rebuild(root)
    }

    /// The state machine is put back. Whether the log still holds what follows.
    pub(crate) fn rewind(&mut self, to: Index) -> bool {
        let can = to >= self.core.log.base().index;
        if can {
            self.core.rewind(to);
        }
        can
    }

    /// The snapshot that [`Effects::install`] asked for can't be had.
    pub fn install_failed(&mut self) {
        self.core.installing = None;
    }

    /// Everything for the driver to do since the last call.
    pub fn take_effects(&mut self) -> Effects {
        match &mut self.role {
            Role::Leader(leader) => leader.flush(&mut self.core),
            Role::Follower(follower) => follower.flush(&mut self.core),
            Role::Candidate(_) => {}
        }
        let committed = self.core.take_committed();
        self.core.forget();
        Effects {
            messages: std::mem::take(&mut self.core.messages),
            write: self.core.durability.take(),
            fetches: std::mem::take(&mut self.core.fetches),
            committed,
            again: self.core.has_committed(),
            reads: std::mem::take(&mut self.core.reads),
            install: self.core.install.take(),
            membership: self.core.take_membership(),
            events: std::mem::take(&mut self.core.events),
        }
    }

    /// The leader that this member knows of; itself, if it leads.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.core.id),
        }
    }

    /// What this member is.
    pub fn role(&self) -> RoleKind {
        match &self.role {
            Role::Follower(_) => RoleKind::Follower,
            Role::Candidate(_) => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }

    /// Its term.
    pub fn term(&self) -> Term {
        self.core.hard.term
    }

    /// Everything up to here is known to be committed.
    pub fn commit(&self) -> Index {
        self.core.commit
    }

    /// The last snapshot, taken or installed.
    pub fn snapshot(&self) -> Option<&SnapshotRoot> {
        self.core.snapshot.as_ref()
    }

    /// Who belongs to the group, as far as this member knows.
    pub fn membership(&self) -> &Arc<Membership> {
        self.core.membership()
    }

    /// Where that stands in the log, or an index behind it that a snapshot covers.
    pub fn membership_index(&self) -> Index {
        self.core.memberships.index()
    }

    /// Who belonged to it when the log ended at `index`, which was handed out or is about to be.
    pub(crate) fn membership_at(&self, index: Index) -> Option<&Arc<Membership>> {
        self.core.memberships.at(index)
    }

    /// How the member stands.
    pub fn status(&self) -> Status {
        let peers = match &self.role {
            Role::Follower(_) | Role::Candidate(_) => Vec::new(),
            Role::Leader(leader) => {
                let peers = leader.peers.iter().map(|(&node, progress)| Progress {
                    node,
                    matched: progress.matched(),
                    active: progress.is_active(&self.core.config),
                    in_flight_messages: progress.in_flight_messages(),
                    in_flight_bytes: progress.in_flight_bytes(),
                });
                peers.collect()
            }
        };
        Status {
            role: self.role(),
            term: self.core.hard.term,
            vote: self.core.hard.vote,
            leader: self.leader(),
            first: self.core.log.first(),
            last: self.core.log.last(),
            durable: self.core.durability.index(),
            commit: self.core.commit,
            log_bytes: self.core.log.bytes(),
            snapshot: self.core.snapshot.clone(),
            membership: self.core.membership().clone(),
            membership_index: self.core.memberships.index(),
            peers,
        }
    }

    /// The log from `from` on, as far as it is in memory. For checkers and tests.
    pub fn log(&self, from: Index) -> impl Iterator<Item = &Entry> {
        self.core.log.range(from, self.core.log.last().index)
    }

    /// The term of the entry at `index`; none if the log does not hold it.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.core.log.term_at(index)
    }

    /// The one rule about terms (section 5.1), for every message. Whether the message goes on to
    /// the role; it is then of the current term, or a pre-vote of a later one.
    fn passes_term_rule(&mut self, from: NodeId, message: &Message) -> bool {
        let current = self.core.hard.term;
        if let MessageKind::VoteRequest { ballot: Ballot::PreVote | Ballot::Vote, .. } =
            message.kind
            && message.term > current
            && self.is_bound()
        {
            self.core.drop_message(from, DropReason::LeaderAlive);
            return false;
        }
        if message.term < current {
            self.answer_stale(from, &message.kind);
            return false;
        }
        let dry_run = match message.kind {
            MessageKind::VoteRequest { ballot, .. } => ballot == Ballot::PreVote,
            MessageKind::VoteReply { pre_vote, granted } => pre_vote && granted,
            MessageKind::AppendRequest { .. }
            | MessageKind::AppendReply { .. }
            | MessageKind::SnapshotOffer(_)
            | MessageKind::TimeoutNow
            | MessageKind::ReadRequest { .. }
            | MessageKind::ReadReply { .. } => false,
        };
        if message.term > current && !dry_run {
            self.core.enter(message.term, None);
            self.transition(Next::Follow(None));
        }
        true
    }

    /// Whether it elects nobody now: it leads, or a leader may be alive.
    fn is_bound(&self) -> bool {
        match &self.role {
            Role::Follower(follower) => {
                follower.leader_is_alive(&self.core) || self.core.is_bound()
            }
            Role::Candidate(_) => self.core.is_bound(),
            Role::Leader(_) => true,
        }
    }

    /// A sender of an earlier term learns of the current one: a leader cut off for a while would
    /// otherwise wait for a follower that pre-vote keeps from ever telling it.
    fn answer_stale(&mut self, from: NodeId, kind: &MessageKind) {
        match *kind {
            MessageKind::AppendRequest { .. } => {
                // The round is one of an earlier term. The sender may lead the current one by now,
                // and must not take it for an answer to a round of this term: reads would go stale.
                let result = AppendResult::Matched(Index(0));
                self.core.send(from, MessageKind::AppendReply { round: 0, result });
            }
            MessageKind::VoteRequest { ballot, .. } => {
                let pre_vote = ballot == Ballot::PreVote;
                self.core.send(from, MessageKind::VoteReply { pre_vote, granted: false });
            }
            MessageKind::SnapshotOffer(_)
            | MessageKind::TimeoutNow
            | MessageKind::VoteReply { .. }
            | MessageKind::AppendReply { .. }
            | MessageKind::ReadRequest { .. }
            | MessageKind::ReadReply { .. } => {
                self.core.drop_message(from, DropReason::Stale);
            }
        }
    }

    fn dispatch(&mut self, from: NodeId, message: Message) {
        let core = &mut self.core;
        let next = match (message.kind, &mut self.role) {
            (MessageKind::VoteRequest { ballot, last }, _) => {
                self.answer_vote(from, message.term, ballot, last);
                Next::Stay
            }
            (MessageKind::VoteReply { pre_vote, granted }, Role::Candidate(candidate))
                if pre_vote == candidate.is_dry_run()
                    && is_answer_to(pre_vote, granted, message.term, core) =>
            {
                candidate.voted(core, from, granted)
            }
            (MessageKind::AppendReply { round, result }, Role::Leader(leader)) => {
                leader.replied(core, from, round, result)
            }
            (MessageKind::ReadRequest { context }, Role::Leader(leader)) => {
                leader.asked(core, from, context);
                Next::Stay
            }
            (MessageKind::ReadReply { context, index }, Role::Follower(follower))
                if follower.leader == Some(from) =>
            {
                follower.questions.answered(core, context, index);
                Next::Stay
            }
            (
                MessageKind::AppendRequest { .. } | MessageKind::SnapshotOffer(_),
                Role::Leader(_),
            ) => {
                core.drop_message(from, DropReason::Contradiction);
                Next::Stay
            }
            (
                kind @ (MessageKind::AppendRequest { .. } | MessageKind::SnapshotOffer(_)),
                Role::Candidate(_),
            ) => {
                self.transition(Next::Follow(Some(from)));
                return self.dispatch(from, Message { term: message.term, kind });
            }
            (
                MessageKind::AppendRequest { previous, commit, round, entries },
                Role::Follower(follower),
            ) => {
                follower.append(core, from, previous, commit, round, entries);
                Next::Stay
            }
            (MessageKind::SnapshotOffer(root), Role::Follower(follower)) => {
                follower.offered(core, from, root);
                Next::Stay
            }
            (MessageKind::TimeoutNow, Role::Follower(follower))
                if follower.leader == Some(from) && core.may_campaign() =>
            {
                Next::Campaign(Ballot::Transfer)
            }
            (
                MessageKind::VoteReply { .. }
                | MessageKind::AppendReply { .. }
                | MessageKind::TimeoutNow
                | MessageKind::ReadRequest { .. }
                | MessageKind::ReadReply { .. },
                _,
            ) => {
                core.drop_message(from, DropReason::Stale);
                Next::Stay
            }
        };
        self.transition(next);
    }

    /// RequestVote, receiver's side (figure 2), and its dry run.
    fn answer_vote(&mut self, candidate: NodeId, term: Term, ballot: Ballot, last: Position) {
        let pre_vote = ballot == Ballot::PreVote;
        let may_elect = ballot == Ballot::Transfer || !self.core.is_bound();
        let core = &mut self.core;
        let up_to_date = last >= core.log.last();
        if pre_vote {
            // A yes speaks of the term asked for, a no of the term that stands in its way.
            let granted = up_to_date && term > core.hard.term;
            let term = if granted { term } else { core.hard.term };
            return core.send_as(term, candidate, MessageKind::VoteReply { pre_vote, granted });
        }
        let free = core.hard.vote.is_none_or(|vote| vote == candidate);
        let granted = match &mut self.role {
            Role::Follower(follower)
                if free && may_elect && up_to_date && follower.leader.is_none() =>
            {
                core.vote(candidate);
                follower.reset_timeout(core);
                true
            }
            Role::Follower(_) | Role::Candidate(_) | Role::Leader(_) => false,
        };
        core.send(candidate, MessageKind::VoteReply { pre_vote, granted });
    }

    /// Every change of role.
    fn transition(&mut self, next: Next) {
        let core = &mut self.core;
        if !matches!(next, Next::Stay) {
            match &mut self.role {
                Role::Leader(leader) => leader.fail_reads(core),
                Role::Follower(follower) => follower.questions.fail(core),
                Role::Candidate(_) => {}
            }
        }
        match next {
            Next::Stay => {}
            Next::Follow(leader) => {
                core.events.push(Event::Following { term: core.hard.term, leader });
                self.role = Role::Follower(Follower::new(core, leader));
            }
            Next::Campaign(Ballot::PreVote) => {
                core.events.push(Event::PreCampaigning { term: core.hard.term.next() });
                let mut candidate = Candidate::new(core, Ballot::PreVote);
                // Its own yes to a dry run promises nothing, so it need not wait for the disk.
                let next = candidate.voted(core, core.id, true);
                self.role = Role::Candidate(candidate);
                self.transition(next);
            }
            Next::Campaign(ballot @ (Ballot::Vote | Ballot::Transfer)) => {
                core.enter(core.hard.term.next(), Some(core.id));
                core.events.push(Event::Campaigning { term: core.hard.term });
                self.role = Role::Candidate(Candidate::new(core, ballot));
            }
            Next::Lead => {
                core.events.push(Event::Leading { term: core.hard.term, last: core.log.last() });
                self.role = Role::Leader(Leader::new(core));
            }
        }
    }
}

/// Whether a reply belongs to the running election, not to an earlier dry run.
fn is_answer_to(pre_vote: bool, granted: bool, term: Term, core: &Core) -> bool {
    let asked = if pre_vote && granted { core.hard.term.next() } else { core.hard.term };
    term == asked
}
