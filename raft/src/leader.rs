//! The member that leads its group.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{
    AppendResult, Change, ChangeRefused, Entry, Event, Index, Membership, MessageKind, NodeId,
    Payload, Position, ReadId, ReadOutcome, Refused, SnapshotRoot,
    core::Core,
    node::Next,
    progress::{Progress, State},
    reads::Rounds,
};

#[derive(Debug)]
pub(crate) struct Leader {
    /// All other members, and those removed until they have heard of it.
    pub(crate) peers: BTreeMap<NodeId, Progress>,
    /// The first entry of this term: nothing is read before it is committed (section 8).
    noop: Index,
    rounds: Rounds,
    /// Somebody was asked to campaign, and may do so as long as this term lasts, whatever those who
    /// have answered keep to: there is no lease any more.
    asked_to_campaign: bool,
    heartbeat_ticks_left: u32,
    transfer: Option<Transfer>,
}

/// The leadership is being handed over (thesis, section 3.10).
#[derive(Debug)]
struct Transfer {
    to: NodeId,
    /// It was asked to campaign, since the last heartbeat.
    asked: bool,
    ticks_left: u32,
}

impl Leader {
    pub(crate) fn new(core: &mut Core) -> Self {
        core.clock.continue_from(core.last_stamp());
        let next = core.log.last().index.next();
        let noop = core.propose(Payload::Noop).index;
        let mut leader = Self {
            peers: BTreeMap::new(),
            noop,
            rounds: Rounds::new(core.clock.now(), core.commit),
            asked_to_campaign: false,
            heartbeat_ticks_left: core.config.heartbeat_ticks,
            transfer: None,
        };
        leader.follow_membership(core, next);
        // They were there to vote, and get the time to answer.
        leader.peers.values_mut().for_each(|progress| progress.silent_ticks = 0);
        leader
    }

    /// Sends to every other member from now on, at first from `next`. Who is new counts as silent
    /// until it is heard.
    fn follow_membership(&mut self, core: &Core, next: Index) {
        for &peer in core.membership().members().keys().filter(|&&member| member != core.id) {
            self.peers.entry(peer).or_insert_with(|| Progress::new(next));
        }
    }

    pub(crate) fn tick(&mut self, core: &mut Core) -> Next {
        self.heartbeat_ticks_left -= 1;
        if self.heartbeat_ticks_left == 0 {
            self.heartbeat_ticks_left = core.config.heartbeat_ticks;
            self.rounds.begin(core);
            self.part_with_removed(core);
            if let Some(transfer) = &mut self.transfer {
                transfer.asked = false;
            }
            // What was lost on the way is sent again.
            for progress in self.peers.values_mut() {
                if let State::Probe { waiting } = &mut progress.state {
                    *waiting = false;
                }
            }
        }
        if let Some(transfer) = &mut self.transfer {
            transfer.ticks_left -= 1;
            if transfer.ticks_left == 0 {
                core.events.push(Event::TransferFailed { to: transfer.to });
                self.transfer = None;
                // Whoever it was for: proposals get their time before the next one.
                core.durability.excuse();
            }
        }
        for progress in self.peers.values_mut() {
            progress.silent_ticks = progress.silent_ticks.saturating_add(1);
        }
        self.leave_slow_disk(core);
        if core.membership().has_quorum(|voter| self.is_there(core, voter)) {
            return Next::Stay;
        }
        core.events.push(Event::LostQuorum { term: core.hard.term });
        Next::Follow(None)
    }

    /// Whether a member is this one, or was heard within an election timeout.
    fn is_there(&self, core: &Core, id: NodeId) -> bool {
        let heard = |progress: &Progress| progress.is_active(&core.config);
        id == core.id || self.peers.get(&id).is_some_and(heard)
    }

    /// Whether a member is this one, or has answered it and was heard within an election timeout: a
    /// new leader gives everybody the time to answer, but counts on nobody before.
    fn answers(&self, core: &Core, id: NodeId) -> bool {
        let answered = |progress: &Progress| progress.acked_round() > 0;
        id == core.id || self.is_there(core, id) && self.peers.get(&id).is_some_and(answered)
    }

    /// Changes the members of the group. Voters come and go by joint consensus (section 6): the
    /// entry at the position that is returned begins the change, and another one, which follows
    /// when that is committed, ends it.
    pub(crate) fn change(
        &mut self,
        core: &mut Core,
        changes: &[Change],
    ) -> Result<Position, ChangeRefused> {
        if self.is_leaving() {
            return Err(Refused::Transferring.into());
        }
        // A new leader does not know whether the last change in its log is committed, before an
        // entry of its own term is.
        let over = core.memberships.index().max(self.noop) <= core.commit;
        if !over || core.membership().is_joint() {
            return Err(ChangeRefused::Changing);
        }
        let next = core.membership().changed(changes, core.config.members_max)?;
        for change in changes {
            if let &Change::Promote(id) = change
                && !self.has_caught_up(core, id)
            {
                return Err(ChangeRefused::Behind(id));
            }
        }
        if !next.has_quorum(|voter| self.answers(core, voter)) {
            return Err(ChangeRefused::NoQuorum);
        }
        core.check_budget()?;
        Ok(self.reconfigure(core, next))
    }

    /// The first entry that has to stay in the log, for the other members, behind a snapshot: what a
    /// member lacks stays as long as it does not cost more than it may.
    pub(crate) fn first_needed(&self, core: &Core, root: &SnapshotRoot) -> Option<Index> {
        let budget = core.config.retained_bytes_max.max(root.bytes);
        let affordable = core.log.first_of_tail(root.position.index, budget);
        let needs = self.peers.values().filter_map(|progress| match progress.state {
            // Nobody knows what it has; but who never answers must not cost the most for ever.
            _ if progress.acked_round() == 0 => {
                (progress.silent_ticks < core.config.unheard_ticks_max).then_some(affordable)
            }
            State::Probe { .. } | State::Replicate => Some(progress.matched().next()),
            State::Snapshot { from } => Some(from.next()),
        });
        needs.filter(|&need| need >= affordable).min()
    }

    /// The disk has read entries that a follower lacks.
    pub(crate) fn fetched(&mut self, core: &mut Core, reader: NodeId, entries: Vec<Entry>) {
        let Some(progress) = self.peers.get_mut(&reader) else { return };
        let wanted = progress.state == State::Replicate
            && progress.has_room(&core.config)
            && entries.first().is_some_and(|first| first.index == progress.next)
            && core.holds(&entries);
        // The log may have changed meanwhile, and so may what the follower has.
        let previous = core.log.position_at(progress.next.previous());
        if let Some(previous) = previous.filter(|_| wanted) {
            send_entries(core, reader, progress, previous, self.rounds.last(), entries);
        }
    }

    /// Whether a learner would not hold up the group as a voter: what it lacks fits into one message.
    fn has_caught_up(&self, core: &Core, learner: NodeId) -> bool {
        let Some(progress) = self.peers.get(&learner) else { return false };
        let near = core.log.first_of_tail(core.log.last().index, core.config.append_bytes_max);
        self.answers(core, learner) && progress.matched().next() >= near
    }

    fn reconfigure(&mut self, core: &mut Core, next: Membership) -> Position {
        let at = core.propose(Payload::Membership(Arc::new(next)));
        self.follow_membership(core, at.index);
        at
    }

    /// A change of the members goes on when what it waits for is committed: a joint membership ends,
    /// and a leader that is no voter any more leaves (section 6).
    fn proceed_with_change(&mut self, core: &mut Core) -> Next {
        if core.memberships.index().max(self.noop) > core.commit {
            return Next::Stay;
        }
        let membership = core.membership().clone();
        if membership.is_joint() {
            self.reconfigure(core, membership.settled());
            return Next::Stay;
        }
        self.part_with_removed(core);
        if membership.is_voter(core.id) {
            return Next::Stay;
        }
        // Nobody need wait for an election timeout.
        let voters = self.peers.iter().filter(|(peer, _)| membership.is_voter(**peer));
        let best = |progress: &Progress| (progress.is_active(&core.config), progress.matched());
        if let Some((&heir, _)) = voters.max_by_key(|(_, progress)| best(progress)) {
            core.send(heir, MessageKind::TimeoutNow);
        }
        core.events.push(Event::Removed { term: core.hard.term });
        Next::Follow(None)
    }

    /// Who is removed is sent entries until it has the end of the change, or is silent; the last word
    /// to it is that this is committed, so that it campaigns no more.
    fn part_with_removed(&mut self, core: &mut Core) {
        let (index, config, membership) =
            (core.memberships.index(), core.config, core.membership().clone());
        if index > core.commit {
            return;
        }
        let is_over = |peer: &NodeId, progress: &Progress| {
            let removed = !membership.members().contains_key(peer);
            removed && (progress.matched() >= index || !progress.is_active(&config))
        };
        let round = self.rounds.last();
        for (peer, mut progress) in self.peers.extract_if(.., |peer, it| is_over(peer, it)) {
            if progress.matched() >= index {
                heartbeat(core, peer, &mut progress, round);
            }
        }
    }

    /// Whether proposals would only keep the next leader from taking over.
    pub(crate) fn is_leaving(&self) -> bool {
        self.transfer.is_some()
    }

    /// Begins to hand the leadership over.
    pub(crate) fn transfer(&mut self, core: &mut Core, to: NodeId) -> Result<(), ChangeRefused> {
        if to == core.id {
            return Ok(());
        }
        if !core.membership().stays_voter(to) {
            return Err(ChangeRefused::NoVoter(to));
        }
        match &self.transfer {
            Some(transfer) if transfer.to != to => return Err(Refused::Transferring.into()),
            Some(_) => {}
            None => {
                let ticks_left = core.config.election_ticks_min;
                self.transfer = Some(Transfer { to, asked: false, ticks_left });
                core.events.push(Event::Transferring { to });
            }
        }
        Ok(())
    }

    /// Its followers commit without a leader's disk, but all that they get passes it. Whoever has most
    /// of the log, of those that are there, takes over; if that fails, it is tried again.
    fn leave_slow_disk(&mut self, core: &mut Core) {
        let ticks = core.durability.silent_ticks();
        if ticks < core.config.slow_disk_ticks || self.is_leaving() {
            return;
        }
        let membership = core.membership().clone();
        let can = |peer: &NodeId| membership.stays_voter(*peer) && self.answers(core, *peer);
        let peers = self.peers.iter().filter(|(peer, _)| can(peer));
        if let Some((&heir, _)) = peers.max_by_key(|(_, progress)| progress.matched()) {
            core.events.push(Event::SlowDisk { ticks });
            self.transfer(core, heir).expect("a voter that stays may take over");
        }
    }

    /// Asks the next leader to campaign, once it has everything.
    fn ask_to_campaign(&mut self, core: &mut Core) {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| !transfer.asked) else {
            return;
        };
        let progress = self.peers.get(&transfer.to);
        if progress.is_some_and(|progress| progress.matched() == core.log.last().index) {
            transfer.asked = true;
            self.asked_to_campaign = true;
            core.send(transfer.to, MessageKind::TimeoutNow);
        }
    }

    /// A follower answered an append.
    pub(crate) fn replied(
        &mut self,
        core: &mut Core,
        from: NodeId,
        round: u64,
        result: AppendResult,
    ) -> Next {
        let Some(progress) = self.peers.get_mut(&from) else { return Next::Stay };
        progress.silent_ticks = 0;
        progress.heard_round(round.min(self.rounds.last()));
        let mut next = Next::Stay;
        match result {
            AppendResult::Matched(index) => {
                let base = core.log.base().index;
                if index <= core.log.last().index && progress.on_matched(index, base) {
                    next = self.maybe_commit(core);
                }
            }
            AppendResult::Conflict { refused, hint } => {
                if progress.is_current_conflict(refused) {
                    progress.probe(behind_common(core, hint));
                }
            }
        }
        self.confirm_reads(core);
        next
    }

    /// The disk has answered: the leader counts itself by what is durable here.
    pub(crate) fn written(&mut self, core: &mut Core) -> Next {
        self.maybe_commit(core)
    }

    /// Entries of this term are committed by counting; those before them are with them
    /// (section 5.4.2).
    fn maybe_commit(&mut self, core: &mut Core) -> Next {
        let durable = core.durability.index();
        let reached = core.membership().reached(|voter| {
            if voter == core.id {
                return durable;
            }
            self.peers.get(&voter).map_or(Index(0), Progress::matched)
        });
        if reached <= core.commit || core.log.term_at(reached) != Some(core.hard.term) {
            return Next::Stay;
        }
        core.commit_to(reached);
        self.proceed_with_change(core)
    }

    /// Whether nobody else can lead now, because a quorum has bound itself not long ago (thesis,
    /// section 6.4.1).
    fn has_lease(&self, core: &Core) -> bool {
        let allowed = core.memberships.lease_reads(core.commit);
        let undisturbed = !self.is_leaving() && !self.asked_to_campaign;
        allowed && undisturbed && core.commit >= self.noop && self.rounds.has_lease(core)
    }

    /// Takes on a read.
    pub(crate) fn read(&mut self, core: &mut Core, id: ReadId) -> Result<(), Refused> {
        if self.has_lease(core) {
            core.reads.push(ReadOutcome::Ready { id, index: core.commit });
            return Ok(());
        }
        self.rounds.read(&core.config, id)
    }

    /// A follower asks for its reads.
    pub(crate) fn asked(&mut self, core: &mut Core, from: NodeId, context: u64) {
        if self.has_lease(core) {
            core.send(from, MessageKind::ReadReply { context, index: Some(core.commit) });
        } else if self.peers.contains_key(&from) && !self.rounds.ask(&core.config, from, context) {
            core.send(from, MessageKind::ReadReply { context, index: None });
        }
    }

    /// Every read that still waits ends without an answer.
    pub(crate) fn fail_reads(&mut self, core: &mut Core) {
        self.rounds.fail(core);
    }

    /// Sends what is due: called once after all that the driver had to say.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        if core.commit >= self.noop {
            self.rounds.begin_for_those_who_wait(core);
        }
        let round = self.rounds.last();
        for (&peer, progress) in &mut self.peers {
            replicate(core, peer, progress, round);
        }
        self.ask_to_campaign(core);
        self.confirm_reads(core);
    }

    fn confirm_reads(&mut self, core: &mut Core) {
        // There is hardly ever one while nobody reads, and counting costs something.
        if !self.rounds.are_open() {
            return;
        }
        let confirmed = core.membership().reached(|voter| {
            if voter == core.id {
                return self.rounds.last();
            }
            self.peers.get(&voter).map_or(0, Progress::acked_round)
        });
        self.rounds.confirm(core, confirmed);
    }
}

/// Where to go on with a follower that gave this hint: behind the last entry that both may hold. If
/// the log no longer reaches back there, at its base, which a snapshot has to bring.
fn behind_common(core: &Core, hint: Position) -> Index {
    let common = core.log.last_not_after(hint.index, hint.term);
    if common.index > hint.index || common.term > hint.term {
        common.index
    } else {
        common.index.next()
    }
}

/// Sends one follower what its window has room for, and the latest round in any case.
fn replicate(core: &mut Core, peer: NodeId, progress: &mut Progress, round: u64) {
    // Not a matter of room: what fills the window may be lost, and gone from the log as well.
    if needs_snapshot(core, progress) {
        let on_offer = core.snapshot.as_ref().expect("what is gone from the log is in a snapshot");
        progress.offer(on_offer.position.index);
    }
    while progress.has_room(&core.config)
        && (progress.next <= core.log.last().index || must_probe(progress))
    {
        let previous = core
            .log
            .position_at(progress.next.previous())
            .expect("what comes before the next entry is in the log, or a snapshot is on offer");
        let entries = if progress.next >= core.log.held_first() {
            core.log.slice(progress.next, core.config.append_bytes_max)
        } else if must_probe(progress) {
            // Nothing is read for somebody who may need something else.
            Vec::new()
        } else {
            let to = core.log.held_first().previous();
            core.fetch(Some(peer), progress.next, to, core.config.append_bytes_max);
            break;
        };
        send_entries(core, peer, progress, previous, round, entries);
    }
    if progress.sent_round < round {
        heartbeat(core, peer, progress, round);
    }
}

fn send_entries(
    core: &mut Core,
    peer: NodeId,
    progress: &mut Progress,
    previous: Position,
    round: u64,
    entries: Vec<Entry>,
) {
    let last = entries.last().map_or(previous, Entry::position).index;
    progress.sent(last, entries.iter().map(Entry::size).sum());
    send_append(core, peer, progress, previous, round, entries);
}

/// Whether the entry before the next one to be sent is gone from the log.
fn needs_snapshot(core: &Core, progress: &Progress) -> bool {
    match progress.state {
        State::Probe { .. } | State::Replicate => {
            core.log.position_at(progress.next.previous()).is_none()
        }
        State::Snapshot { .. } => false,
    }
}

/// A probe is sent even when there is nothing to send: its answer tells where the logs part.
fn must_probe(progress: &Progress) -> bool {
    matches!(progress.state, State::Probe { waiting: false })
}

/// An append without entries. It stands just before the next entry to be sent, so that a follower
/// that lost what was sent before refuses it, which starts the repair.
fn heartbeat(core: &mut Core, peer: NodeId, progress: &mut Progress, round: u64) {
    let previous = match progress.state {
        State::Probe { .. } | State::Replicate => {
            core.log.position_at(progress.next.previous()).unwrap_or_default()
        }
        State::Snapshot { .. } => {
            let latest =
                core.snapshot.clone().expect("there was one, and only a newer replaces it");
            core.send(peer, MessageKind::SnapshotOffer(latest));
            Position::default()
        }
    };
    send_append(core, peer, progress, previous, round, Vec::new());
}

fn send_append(
    core: &mut Core,
    peer: NodeId,
    progress: &mut Progress,
    previous: Position,
    round: u64,
    entries: Vec<Entry>,
) {
    progress.sent_round = round;
    core.send(peer, MessageKind::AppendRequest { previous, commit: core.commit, round, entries });
}
