//! R21, a member that comes back disturbs nobody: no member enters a new term on its own unless so
//! many others were without a leader, at some moment since it asked, that they make a majority with
//! it (pre-vote, thesis section 9.6), or its leader asked it to (section 3.10). So a minority that
//! was cut off can't change the term of a healthy majority.

use std::collections::{BTreeMap, BTreeSet};

use raft::{Event, MessageKind, NodeId, RoleKind, Term};

use super::{Step, Violation};

/// What is known of elections that may come.
#[derive(Debug, Default)]
pub(super) struct NonDisruption {
    /// For how many of its ticks each member has not heard from the leader that it follows; one
    /// that follows nobody is not here, nor is a leader.
    silence: BTreeMap<NodeId, u32>,
    leaders: BTreeSet<NodeId>,
    /// Who was without a leader since a member asked about a term.
    asked: BTreeMap<(NodeId, Term), BTreeSet<NodeId>>,
    /// Whom a leader asked to campaign, in which term.
    heirs: BTreeSet<(NodeId, Term)>,
}

impl NonDisruption {
    /// A member that starts knows no leader. It may still be told yes by those whom it asked in an
    /// earlier life.
    pub(super) fn started(&mut self, node: NodeId) {
        self.leaders.remove(&node);
        self.silence.remove(&node);
        self.leaderless(node);
    }

    pub(super) fn check(&mut self, step: Step<'_>) -> Result<(), Violation> {
        self.listen(step);
        for envelope in &step.output.messages {
            if envelope.message.kind == MessageKind::TimeoutNow {
                self.heirs.insert((envelope.to, envelope.message.term.next()));
            }
        }
        for event in &step.output.events {
            match *event {
                Event::PreCampaigning { term } => self.ask(step, term),
                Event::Campaigning { term } => self.judge(step, term)?,
                Event::Following { .. }
                | Event::Leading { .. }
                | Event::LostQuorum { .. }
                | Event::Removed { .. }
                | Event::Reconfigured { .. }
                | Event::Transferring { .. }
                | Event::SlowDisk { .. }
                | Event::TransferFailed { .. }
                | Event::Voted { .. }
                | Event::Truncated { .. }
                | Event::Committed { .. }
                | Event::Installing { .. }
                | Event::Installed { .. }
                | Event::Compacted { .. }
                | Event::Dropped { .. } => {}
            }
        }
        Ok(())
    }

    /// Whether this member knows a leader that is alive, and knew it all through the step.
    fn listen(&mut self, step: Step<'_>) {
        let (node, before, after) = (step.node, step.before, step.after());
        let same_term = before.term == after.term && before.role == after.role;
        let led = after.role == RoleKind::Leader;
        let followed = after.role == RoleKind::Follower && after.leader.is_some();
        let stayed = same_term && before.leader == after.leader && (led || followed);
        let called = step
            .heard
            .calls
            .iter()
            .any(|&(from, term)| Some(from) == after.leader && term == after.term);
        let silence = self.silence.get(&node).copied().unwrap_or(0) + step.heard.ticks;
        if !stayed || silence >= step.member().config.election_ticks_min {
            self.leaderless(node);
        }
        self.leaders.remove(&node);
        self.silence.remove(&node);
        if led {
            self.leaders.insert(node);
        } else if followed {
            let heard_now = called || !stayed;
            self.silence.insert(node, if heard_now { step.heard.ticks } else { silence });
        }
    }

    fn leaderless(&mut self, node: NodeId) {
        self.asked.values_mut().for_each(|others| {
            others.insert(node);
        });
    }

    /// A member begins to ask about a term.
    fn ask(&mut self, step: Step<'_>, term: Term) {
        let without_leader = step.members.values().filter(|member| {
            let silence = self.silence.get(&member.id).copied();
            let patience = member.config.election_ticks_min;
            !self.leaders.contains(&member.id) && silence.is_none_or(|ticks| ticks >= patience)
        });
        let without_leader: BTreeSet<NodeId> = without_leader.map(|member| member.id).collect();
        self.asked.retain(|&(node, about), _| node != step.node || about >= term);
        self.asked.entry((step.node, term)).or_insert(without_leader);
    }

    /// A member begins an election.
    fn judge(&mut self, step: Step<'_>, term: Term) -> Result<(), Violation> {
        let asked = self.asked.get(&(step.node, term)).cloned().unwrap_or_default();
        // Questions about earlier terms are answered by now. That about this one is not: a crash
        // may take the campaign back, and then a late answer begins it once more.
        self.asked.retain(|&(node, about), _| node != step.node || about >= term);
        let leaderless = |voter: NodeId| voter == step.node || asked.contains(&voter);
        let quorum = step.before.membership.has_quorum(leaderless);
        if self.heirs.remove(&(step.node, term)) || quorum {
            return Ok(());
        }
        let what = format!(
            "n{} campaigns in t{term}, and only {asked:?} were without a leader",
            step.node
        );
        Err(Violation::new("R21", what))
    }
}
