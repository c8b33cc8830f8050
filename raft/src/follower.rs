//! A member that follows a leader, or waits for one to appear.

use crate::{
    AppendResult, Ballot, DropReason, Entry, Event, Index, Install, MessageKind, NodeId, Position,
    ReadId, Refused, SnapshotRoot, core::Core, node::Next, reads::Questions,
};

#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) leader: Option<NodeId>,
    /// Ticks since the leader was last heard.
    silent_ticks: u32,
    timeout_ticks: u32,
    /// In this term the log is known to equal the leader's up to here.
    matched: Index,
    /// The highest index that was acknowledged in this term.
    acknowledged: Index,
    /// The latest round heard; acknowledgements repeat it.
    round: u64,
    /// The latest round repeated to the leader.
    answered_round: u64,
    pub(crate) questions: Questions,
}

impl Follower {
    pub(crate) fn new(core: &mut Core, leader: Option<NodeId>) -> Self {
        Self {
            leader,
            silent_ticks: 0,
            timeout_ticks: core.draw_timeout_ticks(),
            // By Leader Completeness (figure 3) every leader to come holds what is committed.
            matched: core.commit,
            acknowledged: Index(0),
            round: 0,
            answered_round: 0,
            questions: Questions::default(),
        }
    }

    pub(crate) fn tick(&mut self, core: &mut Core) -> Next {
        self.silent_ticks = self.silent_ticks.saturating_add(1);
        match self.leader.filter(|_| self.leader_is_alive(core)) {
            Some(leader) => self.questions.tick(core, leader),
            None => self.questions.fail(core),
        }
        // Who does not vote waits to be led, however long that takes.
        if self.silent_ticks >= self.timeout_ticks && core.may_campaign() && !core.is_bound() {
            Next::Campaign(Ballot::PreVote)
        } else {
            Next::Stay
        }
    }

    /// Whether a leader was heard lately: then it can be asked for reads, and nobody needs an election
    /// (thesis, section 4.2.3).
    pub(crate) fn leader_is_alive(&self, core: &Core) -> bool {
        self.leader.is_some() && self.silent_ticks < core.config.election_ticks_min
    }

    /// Takes on a read, as long as there is a leader to be asked.
    pub(crate) fn read(&mut self, core: &Core, id: ReadId) -> Result<(), Refused> {
        if !self.leader_is_alive(core) {
            return Err(Refused::NotLeader);
        }
        self.questions.read(&core.config, id)
    }

    /// Sends what is due: called once after all that the driver had to say.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        if let Some(leader) = self.leader {
            self.questions.ask(core, leader);
        }
    }

    /// A vote was given: let the candidate have its time.
    pub(crate) fn reset_timeout(&mut self, core: &mut Core) {
        self.silent_ticks = 0;
        self.timeout_ticks = core.draw_timeout_ticks();
    }

    /// Whether `from` may lead this term; the first to say so does.
    fn accepts(&mut self, core: &mut Core, from: NodeId) -> bool {
        match self.leader {
            Some(leader) if leader != from => {
                core.drop_message(from, DropReason::Contradiction);
                return false;
            }
            Some(_) => {}
            None => {
                self.leader = Some(from);
                core.events.push(Event::Following { term: core.hard.term, leader: self.leader });
            }
        }
        self.silent_ticks = 0;
        core.bind();
        true
    }

    /// AppendEntries, receiver's side (figure 2).
    pub(crate) fn append(
        &mut self,
        core: &mut Core,
        from: NodeId,
        previous: Position,
        commit: Index,
        round: u64,
        entries: Vec<Entry>,
    ) {
        if !self.accepts(core, from) {
            return;
        }
        // What is committed or was matched equals the leader's log; only what lies behind needs to
        // be compared.
        let known = self.matched.max(core.commit);
        let conflicts =
            previous.index > known && core.log.term_at(previous.index) != Some(previous.term);
        if !conflicts && contradicts(core, known, previous, &entries) {
            return core.drop_message(from, DropReason::Contradiction);
        }
        self.round = self.round.max(round);
        let last = entries.last().map_or(previous, Entry::position);
        if conflicts {
            let hint = core.log.last_not_after(previous.index, previous.term);
            return self.reply(
                core,
                from,
                AppendResult::Conflict { refused: previous.index, hint },
            );
        }
        for entry in entries.into_iter().filter(|entry| entry.index > known) {
            match core.log.term_at(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) => core.truncate(entry.index),
                None => {}
            }
            core.append(entry);
        }
        self.matched = self.matched.max(last.index);
        core.commit_to(commit.min(last.index));
        // Entries are acknowledged by the disk; but a round that a read may wait for is repeated at
        // once, with what is durable now.
        if self.acknowledgeable(core) >= last.index || self.round > self.answered_round {
            self.acknowledge(core, from);
        }
    }

    /// A leader offers a snapshot.
    pub(crate) fn offered(&mut self, core: &mut Core, from: NodeId, root: SnapshotRoot) {
        if !self.accepts(core, from) {
            return;
        }
        if root.position.index <= core.commit {
            self.acknowledge(core, from);
        } else if core.log.term_at(core.commit) > Some(root.position.term)
            || core.stamp_at(core.commit) > root.stamp
        {
            core.drop_message(from, DropReason::Contradiction);
        } else if core.installing.is_none() {
            core.installing = Some(root.clone());
            core.install = Some(Install { from, root: root.clone() });
            core.events.push(Event::Installing { from, root });
        }
    }

    /// The disk has answered, or a snapshot has taken the place of the log.
    pub(crate) fn written(&mut self, core: &mut Core) {
        self.matched = self.matched.max(core.commit);
        if let Some(leader) = self.leader
            && self.acknowledgeable(core) > self.acknowledged
        {
            self.acknowledge(core, leader);
        }
    }

    /// Both durable here and equal to the leader's log.
    fn acknowledgeable(&self, core: &Core) -> Index {
        self.matched.min(core.durability.index())
    }

    fn acknowledge(&mut self, core: &mut Core, leader: NodeId) {
        self.acknowledged = self.acknowledgeable(core);
        self.reply(core, leader, AppendResult::Matched(self.acknowledged));
    }

    fn reply(&mut self, core: &mut Core, leader: NodeId, result: AppendResult) {
        self.answered_round = self.round;
        core.send(leader, MessageKind::AppendReply { round: self.round, result });
    }
}

/// Whether an append denies what is `known` to be equal, or lets the group's time fall. No leader of
/// this group sends such a thing.
fn contradicts(core: &Core, known: Index, previous: Position, entries: &[Entry]) -> bool {
    let denied = |at: Position| {
        at.index <= known && core.log.term_at(at.index).is_some_and(|term| term != at.term)
    };
    let falls = entries
        .iter()
        .find(|entry| entry.index > known)
        .is_some_and(|entry| entry.stamp < core.stamp_at(entry.index.previous()));
    // An entry that is here already stands in the log with the stamp that it was given once.
    let restamped = |entry: &Entry| {
        core.log
            .get(entry.index)
            .is_some_and(|own| own.term == entry.term && own.stamp != entry.stamp)
    };
    falls
        || denied(previous)
        || entries.iter().any(|entry| denied(entry.position()) || restamped(entry))
}
