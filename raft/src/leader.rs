//! The member that leads its group.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    AppendResult, Entry, Event, Index, MessageKind, NodeId, Payload, Position, ReadId, ReadOutcome,
    Refused,
    core::Core,
    node::Next,
    progress::{Progress, State},
    quorum,
};

#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) peers: BTreeMap<NodeId, Progress>,
    /// The first entry of this term: nothing is read before it is committed (section 8).
    noop: Index,
    /// Counts the times that followers were asked to confirm this leader. Every append carries
    /// the latest, and a follower that repeats it still followed when it was sent.
    round: u64,
    reads_waiting: Vec<ReadId>,
    rounds: VecDeque<Round>,
    heartbeat_ticks_left: u32,
    quorum_ticks_left: u32,
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

/// Reads that wait for one confirmation.
#[derive(Debug)]
struct Round {
    number: u64,
    commit: Index,
    reads: Vec<ReadId>,
}

impl Leader {
    pub(crate) fn new(core: &mut Core) -> Self {
        core.clock.continue_from(core.last_stamp());
        let next = core.log.last().index.next();
        let noop = core.propose(Payload::Noop).index;
        Self {
            peers: core.peers().into_iter().map(|peer| (peer, Progress::new(next))).collect(),
            noop,
            round: 1,
            reads_waiting: Vec::new(),
            rounds: VecDeque::new(),
            heartbeat_ticks_left: core.config.heartbeat_ticks,
            quorum_ticks_left: core.config.election_ticks_min,
            transfer: None,
        }
    }

    pub(crate) fn tick(&mut self, core: &mut Core) -> Next {
        self.heartbeat_ticks_left -= 1;
        if self.heartbeat_ticks_left == 0 {
            self.heartbeat_ticks_left = core.config.heartbeat_ticks;
            self.round += 1;
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
            }
        }
        self.quorum_ticks_left -= 1;
        if self.quorum_ticks_left > 0 {
            return Next::Stay;
        }
        self.quorum_ticks_left = core.config.election_ticks_min;
        let active = 1 + self.peers.values().filter(|progress| progress.active).count();
        for progress in self.peers.values_mut() {
            progress.active = false;
        }
        if active >= quorum::majority(core.voters.len()) {
            return Next::Stay;
        }
        core.events.push(Event::LostQuorum { term: core.hard.term });
        Next::Follow(None)
    }

    /// Whether proposals would only keep the next leader from taking over.
    pub(crate) fn is_leaving(&self) -> bool {
        self.transfer.is_some()
    }

    /// Begins to hand the leadership over.
    pub(crate) fn transfer(&mut self, core: &mut Core, to: NodeId) -> Result<(), Refused> {
        if to == core.id {
            return Ok(());
        }
        if !self.peers.contains_key(&to) {
            return Err(Refused::NoSuchMember);
        }
        match &self.transfer {
            Some(transfer) if transfer.to != to => return Err(Refused::Transferring),
            Some(_) => {}
            None => {
                let ticks_left = core.config.election_ticks_min;
                self.transfer = Some(Transfer { to, asked: false, ticks_left });
                core.events.push(Event::Transferring { to });
            }
        }
        Ok(())
    }

    /// Asks the next leader to campaign, once it has everything.
    fn ask_to_campaign(&mut self, core: &mut Core) {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| !transfer.asked) else {
            return;
        };
        let progress = self.peers.get(&transfer.to);
        if progress.is_some_and(|progress| progress.matched() == core.log.last().index) {
            transfer.asked = true;
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
    ) {
        let Some(progress) = self.peers.get_mut(&from) else { return };
        progress.active = true;
        progress.heard_round(round.min(self.round));
        match result {
            AppendResult::Matched(index) => {
                let base = core.log.base().index;
                if index <= core.log.last().index && progress.on_matched(index, base) {
                    self.maybe_commit(core);
                }
            }
            AppendResult::Conflict { refused, hint } => {
                if progress.is_current_conflict(refused) {
                    progress.probe(behind_common(core, hint));
                }
            }
        }
        self.confirm_reads(core);
    }

    /// The disk has answered: the leader counts itself by what is durable here.
    pub(crate) fn written(&mut self, core: &mut Core) {
        self.maybe_commit(core);
    }

    /// Entries of this term are committed by counting; those before them are with them
    /// (section 5.4.2).
    fn maybe_commit(&mut self, core: &mut Core) {
        let durable = core.durability.index();
        let matched = self.peers.values().map(Progress::matched);
        let reached = quorum::reached(matched.chain([durable]));
        if core.log.term_at(reached) == Some(core.hard.term) {
            core.commit_to(reached);
        }
    }

    /// Whether another read may wait.
    pub(crate) fn has_room_for_read(&self, core: &Core) -> bool {
        self.reads_waiting.len() < core.config.reads_waiting_max
    }

    pub(crate) fn read(&mut self, id: ReadId) {
        self.reads_waiting.push(id);
    }

    /// Every read that still waits ends without an answer.
    pub(crate) fn fail_reads(&mut self, core: &mut Core) {
        let in_rounds = self.rounds.drain(..).flat_map(|round| round.reads);
        core.reads.extend(in_rounds.chain(self.reads_waiting.drain(..)).map(ReadOutcome::Refused));
    }

    /// Sends what is due: called once after all that the driver had to say.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        self.begin_round(core);
        let round = self.round;
        for (&peer, progress) in &mut self.peers {
            replicate(core, peer, progress, round);
        }
        self.ask_to_campaign(core);
        self.confirm_reads(core);
    }

    /// All reads that wait share one confirmation (thesis, section 6.4).
    fn begin_round(&mut self, core: &Core) {
        let may_read = core.commit >= self.noop && self.rounds.len() < core.config.read_rounds_max;
        if may_read && !self.reads_waiting.is_empty() {
            self.round += 1;
            let reads = std::mem::take(&mut self.reads_waiting);
            self.rounds.push_back(Round { number: self.round, commit: core.commit, reads });
        }
    }

    fn confirm_reads(&mut self, core: &mut Core) {
        if self.rounds.is_empty() {
            return;
        }
        let heard = self.peers.values().map(Progress::acked_round);
        let confirmed = quorum::reached(heard.chain([self.round]));
        while let Some(round) = self.rounds.pop_front_if(|round| round.number <= confirmed) {
            let ready =
                round.reads.into_iter().map(|id| ReadOutcome::Ready { id, index: round.commit });
            core.reads.extend(ready);
        }
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
        progress.offer(core.snapshot.expect("what is gone from the log is in a snapshot"));
    }
    while progress.has_room(&core.config)
        && (progress.next <= core.log.last().index || must_probe(progress))
    {
        let previous = core
            .log
            .position_at(progress.next.previous())
            .expect("what comes before the next entry is in the log, or a snapshot is on offer");
        let entries = core.log.slice(progress.next, core.config.append_bytes_max);
        let last = entries.last().map_or(previous, Entry::position).index;
        progress.sent(last, entries.iter().map(Entry::size).sum());
        send_append(core, peer, progress, previous, round, entries);
    }
    if progress.sent_round < round {
        heartbeat(core, peer, progress, round);
    }
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
        State::Snapshot { root } => {
            let latest = core.snapshot.unwrap_or(root);
            progress.offer(latest);
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
