//! R20, no leader without a quorum: a leader that a majority has not answered for two election
//! timeouts of its own clock leads no more (thesis, section 6.2).
//!
//! Two, since it looks once in a timeout: an answer that comes just after one look counts at the
//! next. That it acknowledges nothing meanwhile is R12.

use std::collections::BTreeMap;

use raft::{NodeId, RoleKind, Term};

use super::{Step, Violation};

/// What is known of the members that lead.
#[derive(Debug, Default)]
pub(super) struct StaleLeader {
    leaders: BTreeMap<NodeId, Watch>,
}

/// One leader in one term.
#[derive(Debug)]
struct Watch {
    term: Term,
    ticks: u32,
    /// At which tick each follower answered last; none has if it is not here.
    answered: BTreeMap<NodeId, u32>,
}

impl StaleLeader {
    pub(super) fn forget(&mut self, node: NodeId) {
        self.leaders.remove(&node);
    }

    pub(super) fn check(&mut self, step: Step<'_>) -> Result<(), Violation> {
        let term = step.after().term;
        if step.after().role != RoleKind::Leader {
            self.forget(step.node);
            return Ok(());
        }
        let fresh = || Watch { term, ticks: 0, answered: BTreeMap::new() };
        let watch = self.leaders.entry(step.node).or_insert_with(fresh);
        if watch.term != term {
            *watch = fresh();
        }
        watch.ticks += step.heard.ticks;
        for (from, _) in step.heard.answers.iter().filter(|(_, spoken)| *spoken == term) {
            watch.answered.insert(*from, watch.ticks);
        }
        let patience = 2 * step.member().config.election_ticks_min;
        let since = watch.ticks.saturating_sub(patience);
        let heard = |voter: NodeId| {
            voter == step.node || watch.answered.get(&voter).is_some_and(|tick| *tick > since)
        };
        if watch.ticks > patience && !step.after().membership.has_quorum(heard) {
            let what = format!(
                "n{} still leads t{term} at its tick {}; its followers answered at {:?}",
                step.node, watch.ticks, watch.answered
            );
            return Err(Violation::new("R20", what));
        }
        Ok(())
    }
}
