//! Linearizable reads without entries in the log (ReadIndex; Ongaro's thesis, section 6.4).
//!
//! Decides which reads share a confirmation, on a leader a round, on a follower a question to its
//! leader, and how long a confirmation stands for a lease. When a round begins, what confirms it and
//! whether a lease counts is the leader's business (`leader.rs`).

use std::collections::VecDeque;

use crate::{
    Config, Index, Instant, MessageKind, NodeId, ReadId, ReadOutcome, Refused, core::Core,
};

/// The rounds by which a leader confirms that it leads.
#[derive(Debug)]
pub(crate) struct Rounds {
    /// Counts the times that followers were asked to confirm this leader. Every append carries
    /// the latest, and a follower that repeats it still followed when it was sent.
    last: u64,
    waiting: Askers,
    open: VecDeque<Round>,
    /// When the latest round began that a quorum has answered.
    confirmed: Option<Instant>,
}

/// Who waits for one confirmation.
#[derive(Debug, Default)]
struct Askers {
    reads: Vec<ReadId>,
    /// Other members and what they call their questions.
    questions: Vec<(NodeId, u64)>,
}

#[derive(Debug)]
struct Round {
    number: u64,
    /// Before it was sent.
    begun: Instant,
    commit: Index,
    askers: Askers,
}

impl Rounds {
    pub(crate) fn new(begun: Instant, commit: Index) -> Self {
        let first = Round { number: 1, begun, commit, askers: Askers::default() };
        let open = VecDeque::from([first]);
        Self { last: 1, waiting: Askers::default(), open, confirmed: None }
    }

    /// The latest round.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Begins a round that nobody waits for.
    pub(crate) fn begin(&mut self, core: &Core) {
        self.begin_for(core, Askers::default());
    }

    fn begin_for(&mut self, core: &Core, askers: Askers) {
        // What confirms nothing any more is forgotten: so there are never more than heartbeats in a
        // lease and rounds for reads.
        self.open.retain(|round| !round.askers.is_empty() || is_fresh(core, round.begun));
        self.last += 1;
        let (begun, commit) = (core.clock.now(), core.commit);
        self.open.push_back(Round { number: self.last, begun, commit, askers });
    }

    /// A read of this member's own.
    pub(crate) fn read(&mut self, config: &Config, id: ReadId) -> Result<(), Refused> {
        if self.waiting.reads.len() >= config.reads_waiting_max {
            return Err(Refused::Overloaded("reads_waiting_max"));
        }
        self.waiting.reads.push(id);
        Ok(())
    }

    /// Another member asks. Whether it is answered later; one that has asked too much is not.
    pub(crate) fn ask(&mut self, config: &Config, from: NodeId, context: u64) -> bool {
        let open = self.open.iter().map(|round| &round.askers).chain([&self.waiting]);
        let (mut asked, mut count) = (false, 0);
        for question in open.flat_map(|askers| &askers.questions) {
            asked |= *question == (from, context);
            count += usize::from(question.0 == from);
        }
        if !asked && count < config.read_questions_max {
            self.waiting.questions.push((from, context));
            asked = true;
        }
        asked
    }

    /// All that waits shares one round.
    pub(crate) fn begin_for_those_who_wait(&mut self, core: &Core) {
        let awaited = self.open.iter().filter(|round| !round.askers.is_empty()).count();
        if !self.waiting.is_empty() && awaited < core.config.read_rounds_max {
            let askers = std::mem::take(&mut self.waiting);
            self.begin_for(core, askers);
        }
    }

    /// Whether a quorum has heard of this leader so lately that it elects nobody else yet.
    pub(crate) fn has_lease(&self, core: &Core) -> bool {
        self.confirmed.is_some_and(|begun| is_fresh(core, begun))
    }

    /// Whether a quorum still has to answer any of them.
    pub(crate) fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// A quorum has answered this round, and with it all before.
    pub(crate) fn confirm(&mut self, core: &mut Core, number: u64) {
        while let Some(round) = self.open.pop_front_if(|round| round.number <= number) {
            let Round { begun, commit: index, askers: Askers { reads, questions }, .. } = round;
            self.confirmed = Some(begun);
            core.reads.extend(reads.into_iter().map(|id| ReadOutcome::Ready { id, index }));
            for (peer, context) in questions {
                core.send(peer, MessageKind::ReadReply { context, index: Some(index) });
            }
        }
    }

    /// This member leads no more. Who asked from elsewhere learns it by itself.
    pub(crate) fn fail(&mut self, core: &mut Core) {
        let open = self.open.drain(..).flat_map(|round| round.askers.reads);
        core.refuse_reads(open.chain(self.waiting.reads.drain(..)), Refused::NotLeader);
    }
}

/// Whether those who heard of a round that began then keep to this leader still.
fn is_fresh(core: &Core, begun: Instant) -> bool {
    core.clock.now().0 < begun.0.saturating_add(core.config.lease_us())
}

impl Askers {
    fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.questions.is_empty()
    }
}

/// What a follower asks its leader for the reads that it is asked.
///
/// A question dies with the role in which it was asked. Its name is never used twice, not in
/// another life of the member either (see `Core::read_context`), so an answer is to this question or
/// to none; and since the index in it was confirmed after the question came, it may be as late as it
/// likes.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    waiting: Vec<ReadId>,
    open: Vec<Question>,
}

#[derive(Debug)]
struct Question {
    context: u64,
    reads: Vec<ReadId>,
    /// Until it is asked again.
    ticks_left: u32,
}

impl Questions {
    pub(crate) fn read(&mut self, config: &Config, id: ReadId) -> Result<(), Refused> {
        if self.waiting.len() >= config.reads_waiting_max {
            return Err(Refused::Overloaded("reads_waiting_max"));
        }
        self.waiting.push(id);
        Ok(())
    }

    /// All reads that wait share one question.
    pub(crate) fn ask(&mut self, core: &mut Core, leader: NodeId) {
        if self.waiting.is_empty() || self.open.len() >= core.config.read_questions_max {
            return;
        }
        let context = core.next_read_context();
        let (reads, ticks_left) = (std::mem::take(&mut self.waiting), core.config.heartbeat_ticks);
        self.open.push(Question { context, reads, ticks_left });
        core.send(leader, MessageKind::ReadRequest { context });
    }

    /// The question or the answer may be lost: it is asked again with every heartbeat.
    pub(crate) fn tick(&mut self, core: &mut Core, leader: NodeId) {
        for question in &mut self.open {
            question.ticks_left -= 1;
            if question.ticks_left == 0 {
                question.ticks_left = core.config.heartbeat_ticks;
                core.send(leader, MessageKind::ReadRequest { context: question.context });
            }
        }
    }

    /// The leader answers; without an index when it has too many questions of this member's.
    pub(crate) fn answered(&mut self, core: &mut Core, context: u64, index: Option<Index>) {
        for question in self.open.extract_if(.., |question| question.context == context) {
            let Some(index) = index else {
                core.refuse_reads(question.reads, Refused::Overloaded("read_questions_max"));
                continue;
            };
            let ready = question.reads.into_iter().map(|id| ReadOutcome::Ready { id, index });
            core.reads.extend(ready);
        }
    }

    /// There is nobody to ask any more.
    pub(crate) fn fail(&mut self, core: &mut Core) {
        let open = self.open.drain(..).flat_map(|question| question.reads);
        core.refuse_reads(open.chain(self.waiting.drain(..)), Refused::NotLeader);
    }
}
