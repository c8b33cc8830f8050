//! What must hold after every event, one property per file.
//!
//! The checkers read the members' memory, disks and messages, and compare them with the [`Ghost`]:
//! what the run has shown so far, which no crash erases. The names R1, R2 and so on are those of
//! docs/testing.md, which also says by which bug each was seen to fail.

mod acknowledged;
mod acknowledged_numbers;
mod append_only;
mod at_most_once;
mod bounded;
mod commit_rule;
mod committed_never_lost;
mod config_safety;
mod conservation;
mod controller_fencing;
mod custodians;
mod durable_before_ack;
mod durable_before_use;
mod election_safety;
mod equal_states;
mod exclusive_ownership;
mod expiry;
mod fencing;
mod fresh_reads;
mod ghost;
mod guards;
mod handoff_equality;
mod key_value;
mod leader_completeness;
mod lease_life;
mod ledger;
mod lock_exclusion;
mod lock_handover;
mod lock_independence;
mod lock_release;
mod log_matching;
mod model;
mod monotonic;
mod non_disruption;
pub(crate) mod progress;
mod promises;
mod rejection;
mod restart_equivalence;
mod same_reply;
mod snapshot_equivalence;
mod snapshot_install;
mod stale_leader;
mod state_machine_safety;
mod target_history;
mod transactions;
mod truncation;
mod turn;
#[cfg(test)]
mod turn_tests;
mod up_to_date_voter;
mod vote_once;

use std::{collections::BTreeMap, fmt, sync::Arc};

use kvd::command::{ClientId, RequestId};
use raft::{Entry, Index, Membership, MessageKind, NodeId, Output, StateMachine, Term};

use crate::{
    agenda::Input,
    client::Reply,
    disk::Stored,
    group::GroupId,
    machine::Machine,
    member::{Asked, Member, Standing},
};

pub use ghost::Ghost;
pub(crate) use ledger::Ledger;

/// Something that must never happen has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What it breaks: `R1` and so on.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }

    /// Says of which group it is, if that is not the first.
    pub(crate) fn of(self, group: GroupId) -> Self {
        match group {
            GroupId::FIRST => self,
            GroupId(group) => Self { what: format!("group {group}: {}", self.what), ..self },
        }
    }
}

/// Leaves out a violation of an invariant that nobody looks at.
pub(crate) fn wanted(
    only: Option<&'static str>,
    found: Result<(), Violation>,
) -> Result<(), Violation> {
    match (found, only) {
        (Err(violation), Some(only)) if violation.invariant != only => Ok(()),
        (found, _) => found,
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What a member took in with a step, as far as checkers ask: how often its clock ticked, and in
/// which term others spoke to it.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) ticks: u32,
    /// Who answered an append.
    pub(crate) answers: Vec<(NodeId, Term)>,
    /// Who spoke as a leader.
    pub(crate) calls: Vec<(NodeId, Term)>,
}

impl Heard {
    pub(crate) fn hear(&mut self, input: &Input) {
        match input {
            Input::Message { from, message } => match message.kind {
                MessageKind::AppendReply { .. } => self.answers.push((*from, message.term)),
                MessageKind::AppendRequest { .. } | MessageKind::SnapshotOffer(_) => {
                    self.calls.push((*from, message.term));
                }
                MessageKind::VoteRequest { .. }
                | MessageKind::VoteReply { .. }
                | MessageKind::TimeoutNow
                | MessageKind::ReadRequest { .. }
                | MessageKind::ReadReply { .. } => {}
            },
            Input::Tick => self.ticks += 1,
            Input::Written(_)
            | Input::Captured(_)
            | Input::Fetched(..)
            | Input::Read(..)
            | Input::Transfer(_)
            | Input::Ask { .. } => {}
        }
    }
}

/// What a checker sees: a member has taken in its inputs, and nothing of its output is done yet.
#[derive(Clone, Copy)]
pub(crate) struct Step<'a> {
    pub(crate) node: NodeId,
    pub(crate) heard: &'a Heard,
    pub(crate) before: &'a Standing,
    pub(crate) output: &'a Output<Machine>,
    pub(crate) members: &'a BTreeMap<NodeId, Member>,
}

impl<'a> Step<'a> {
    pub(crate) fn member(&self) -> &'a Member {
        &self.members[&self.node]
    }

    pub(crate) fn after(&self) -> &'a Standing {
        &self.member().standing
    }
}

/// A request to the key/value store that named itself, and what came of it.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    id: &'a RequestId,
    group: GroupId,
    executed: &'a ghost::Executed,
}

impl<'a> Seen<'a> {
    fn name(&self) -> RequestName {
        RequestName::of(self.response().header.shard, self.id)
    }

    fn response(&self) -> &'a kvd::outcome::Response {
        &self.executed.response
    }

    /// What came of it, if it was executed now.
    fn first(&self) -> Option<&'a kvd::outcome::Answered> {
        self.response().result.as_ref().ok().filter(|answered| !answered.duplicate)
    }

    /// A finding, of this request.
    fn broken(&self, invariant: &'static str, what: &str) -> Violation {
        let (name, index) = (self.name(), self.executed.index);
        let (id, response) = (self.id, self.response());
        Violation::new(invariant, format!("{name}, at {index}: {what}: {id:?}: {response:?}"))
    }
}

/// A request to the key/value store: a shard, a client, and which of that client's to that shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestName {
    shard: u32,
    client: ClientId,
    sequence: u64,
}

impl RequestName {
    fn of(shard: u32, id: &RequestId) -> Self {
        Self { shard, client: id.client, sequence: id.sequence }
    }
}

impl fmt::Display for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Clerks keep their number in the second half.
        let client =
            self.client.0[8..].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        write!(f, "request {} of c{client} to shard {}", self.sequence, self.shard)
    }
}

/// All checkers and what they remember.
#[derive(Debug)]
pub struct Invariants {
    group: GroupId,
    only: Option<&'static str>,
    ghost: Ghost,
    monotonic: monotonic::Monotonic,
    votes: vote_once::Votes,
    acknowledged: acknowledged::Acknowledged,
    candidates: up_to_date_voter::Candidates,
    stale_leader: stale_leader::StaleLeader,
    non_disruption: non_disruption::NonDisruption,
    config_safety: config_safety::ConfigSafety,
    targets: target_history::TargetHistory,
}

impl Invariants {
    /// All of them, or only the one that is named.
    pub(crate) fn new(
        group: GroupId,
        only: Option<&'static str>,
        founders: Arc<Membership>,
        blank: &Machine,
    ) -> Self {
        Self {
            group,
            only,
            ghost: Ghost::of(founders, blank),
            monotonic: monotonic::Monotonic::default(),
            votes: vote_once::Votes::default(),
            acknowledged: acknowledged::Acknowledged::default(),
            candidates: up_to_date_voter::Candidates::default(),
            stale_leader: stale_leader::StaleLeader::default(),
            non_disruption: non_disruption::NonDisruption::default(),
            config_safety: config_safety::ConfigSafety::default(),
            targets: target_history::TargetHistory::default(),
        }
    }

    /// Leaves out what nobody looks at, and says of which group it is.
    fn keep(&self, found: Result<(), Violation>) -> Result<(), Violation> {
        wanted(self.only, found).map_err(|violation| violation.of(self.group))
    }

    /// What the run has shown so far.
    pub fn ghost(&self) -> &Ghost {
        &self.ghost
    }

    /// A member has been started.
    pub(crate) fn started(&mut self, member: &Member) -> Result<(), Violation> {
        let found = self.monotonic.started(member);
        self.keep(found)?;
        self.stale_leader.forget(member.id);
        self.non_disruption.started(member.id);
        self.keep(restart_equivalence::started(member))?;
        let found = log_matching::started(&mut self.ghost, member);
        self.keep(found)?;
        self.keep(state_machine_safety::started(&self.ghost, member))?;
        self.keep(equal_states::compare(&self.ghost, member))
    }

    /// A majority was lost for good, and this member is to go on alone with its log, whose last
    /// entry says so. What else was committed counts no more. How many entries are lost with it.
    pub(crate) fn recovered(&mut self, member: &Member, entry: &Entry) -> Result<u64, Violation> {
        let image = member.disk().image();
        let mut machine = self.ghost.blank();
        let mut from = Index(0);
        if let Some(root) = &image.snapshot {
            let stored = member.disk().stored(root);
            let restored = stored.map(|it| machine.restore(&mut it.chunks.iter().cloned()));
            if !matches!(restored, Some(Ok(()))) {
                return Err(Violation::new("R15", format!("n{} has no snapshot", member.id)));
            }
            from = root.position.index;
        }
        let log: Vec<Entry> = image.entries_behind(from).cloned().collect();
        assert_eq!(log.last(), Some(entry), "the log ends with the new membership");
        let kept = self.ghost.agrees_up_to(image);
        let before = self.ghost.committed();
        self.ghost.forget(machine, kept, &log);
        let lost = before.0 - self.ghost.committed().0;
        if lost > 0 {
            self.acknowledged.forget_rejected();
        }
        Ok(lost)
    }

    /// A member has taken in its inputs.
    pub(crate) fn step(&mut self, step: Step<'_>, ledger: &mut Ledger) -> Result<(), Violation> {
        let found = self.stale_leader.check(step);
        self.keep(found)?;
        let found = self.non_disruption.check(step);
        self.keep(found)?;
        let quiet = step.output.events.is_empty()
            && step.output.messages.is_empty()
            && step.output.outcomes.is_empty()
            && step.output.answers.is_empty()
            && step.before == step.after();
        if quiet {
            return Ok(());
        }
        let committed = self.ghost.committed();
        // These two look at the log as the ghost remembers it from before the step.
        self.keep(truncation::check(&self.ghost, step))?;
        self.keep(snapshot_install::check(&self.ghost, step))?;
        // The order matters where one checker leaves facts in the ghost that the next ones use.
        let found = log_matching::check(&mut self.ghost, step);
        self.keep(found)?;
        let found = election_safety::check(&mut self.ghost, step);
        self.keep(found)?;
        let found = state_machine_safety::check(&mut self.ghost, step);
        self.keep(found)?;
        self.executed(ledger)?;
        self.keep(equal_states::check(&self.ghost, step))?;
        let found = self.monotonic.check(step);
        self.keep(found)?;
        let found = self.votes.check(step);
        self.keep(found)?;
        let found = self.acknowledged.check(&self.ghost, step);
        self.keep(found)?;
        let found = self.candidates.check(step);
        self.keep(found)?;
        let found = self.config_safety.check(step);
        self.keep(found)?;
        self.keep(append_only::check(step))?;
        self.keep(bounded::check(&self.ghost, step))?;
        self.keep(leader_completeness::check(&self.ghost, step))?;
        self.keep(commit_rule::check(step))?;
        // The disks are as they were: only more may be known to be committed.
        if self.ghost.committed() > committed {
            self.keep(committed_never_lost::check(&self.ghost, step.members))?;
        }
        self.keep(durable_before_use::check(step))?;
        self.keep(durable_before_ack::check(&self.ghost, step))?;
        self.keep(fresh_reads::check(step))
    }

    /// Commands for a daemon's machine were committed.
    fn executed(&mut self, ledger: &mut Ledger) -> Result<(), Violation> {
        if let Some(controller) = self.ghost.controller() {
            ledger.decided(controller);
            let found = self.targets.check(controller);
            self.keep(found)?;
        }
        for executed in self.ghost.take_executed() {
            let found = ledger.take(self.group, &executed);
            found.map_err(|violation| violation.of(self.group))?;
        }
        Ok(())
    }

    /// The disk of `node` has changed: it synced, or a crash has taken something away.
    pub(crate) fn disk_changed(
        &mut self,
        node: NodeId,
        members: &BTreeMap<NodeId, Member>,
    ) -> Result<(), Violation> {
        self.keep(committed_never_lost::check(&self.ghost, members))?;
        self.keep(snapshot_install::check_disk(&self.ghost, &members[&node]))
    }

    /// A member has stored a snapshot, of its own or of another's.
    pub(crate) fn stored(&self, node: NodeId, stored: &Stored) -> Result<(), Violation> {
        self.keep(snapshot_equivalence::check(&self.ghost, node, stored))
    }

    /// A member answered a request without taking it on.
    pub(crate) fn answered_at_once(
        &mut self,
        node: NodeId,
        client: u64,
        number: u64,
        reply: &Reply,
        floor: Index,
    ) -> Result<(), Violation> {
        match reply {
            Reply::Refused { .. } => self.acknowledged.refused(client, number),
            Reply::Read(answer) => {
                let asked = Asked { client, number, floor };
                return self.keep(fresh_reads::check_answer(node, asked, answer.index));
            }
            Reply::Found(index, _) | Reply::Configuration(index, _) => {
                let asked = Asked { client, number, floor };
                return self.keep(fresh_reads::check_answer(node, asked, *index));
            }
            Reply::Done(_)
            | Reply::Applied(..)
            | Reply::Configured(..)
            | Reply::Rejected
            | Reply::Unknown => {}
        }
        Ok(())
    }

    /// The run is over: what can only be said in hindsight, and all logs once more from the start.
    pub(crate) fn finish(&self, members: &BTreeMap<NodeId, Member>) -> Result<(), Violation> {
        for member in members.values() {
            self.keep(log_matching::recheck(&self.ghost, member))?;
        }
        self.keep(self.acknowledged.finish(&self.ghost))
    }
}
