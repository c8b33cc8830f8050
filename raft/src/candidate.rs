//! A member that wants to lead: first it asks whether it would be elected (pre-vote, thesis
//! section 9.6), then it asks for votes.

use std::collections::BTreeMap;

use crate::{Ballot, MessageKind, NodeId, core::Core, node::Next, quorum::Tally};

#[derive(Debug)]
pub(crate) struct Candidate {
    ballot: Ballot,
    votes: BTreeMap<NodeId, bool>,
    ticks_left: u32,
}

impl Candidate {
    /// Asks the others. Its term is the one it asks for, unless this is a dry run.
    pub(crate) fn new(core: &mut Core, ballot: Ballot) -> Self {
        let term = match ballot {
            Ballot::PreVote => core.hard.term.next(),
            Ballot::Vote | Ballot::Transfer => core.hard.term,
        };
        let last = core.log.last();
        let membership = core.membership().clone();
        let own = core.id;
        for peer in membership.voters().filter(|&voter| voter != own) {
            core.send_as(term, peer, MessageKind::VoteRequest { ballot, last });
        }
        Self { ballot, votes: BTreeMap::new(), ticks_left: core.draw_timeout_ticks() }
    }

    /// Whether it only asks what would be.
    pub(crate) fn is_dry_run(&self) -> bool {
        self.ballot == Ballot::PreVote
    }

    /// Without an answer the candidate starts over, with a dry run again. As long as its own vote is
    /// not durable it has asked nobody, and its time does not run: on a disk slower than the timeout
    /// each new term would only put off the answer to the one before.
    pub(crate) fn tick(&mut self, core: &Core) -> Next {
        if !core.durability.hard_state_is_durable() {
            return Next::Stay;
        }
        self.ticks_left = self.ticks_left.saturating_sub(1);
        if self.ticks_left == 0 { Next::Campaign(Ballot::PreVote) } else { Next::Stay }
    }

    /// A member answered. A candidate's own vote counts, like any other, once it is durable.
    pub(crate) fn voted(&mut self, core: &Core, voter: NodeId, granted: bool) -> Next {
        self.votes.entry(voter).or_insert(granted);
        match core.membership().tally(|voter| self.votes.get(&voter).copied()) {
            Tally::Open => Next::Stay,
            Tally::Lost => Next::Follow(None),
            Tally::Won if self.is_dry_run() => Next::Campaign(Ballot::Vote),
            Tally::Won => Next::Lead,
        }
    }

    /// The disk has answered.
    pub(crate) fn written(&mut self, core: &Core) -> Next {
        if core.durability.hard_state_is_durable() {
            self.voted(core, core.id, true)
        } else {
            Next::Stay
        }
    }
}
