//! What a run has shown so far, for all invariants to compare with. No crash erases it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kvd::{
    KvMachine,
    command::{Command, LeaseId},
    custody::Phase,
    handoff::Contents,
    outcome::{Answer, LeaseState, LockState, Pair, Query, Response},
    step::Step,
};
use raft::{Entry, Index, Membership, NodeId, Payload, Position, StateMachine, Term};
use shardctl::ShardMachine;

use crate::application::inner;
use crate::disk::Image;
use crate::machine::{CommandId, History, Machine, Said};

/// The facts.
#[derive(Debug, Default)]
pub struct Ghost {
    /// C: the entry at each index that anybody was first seen to know committed.
    committed: Vec<Committed>,
    /// A machine that has applied exactly those.
    machine: Machine,
    /// The memberships among them, behind that of the founders at 0.
    memberships: Vec<(Index, Arc<Membership>)>,
    /// What its key/value store said, where nobody has looked at it yet.
    executed: Vec<Executed>,
    /// Where each command was committed.
    commands: BTreeMap<CommandId, Index>,
    /// The log up to each entry that was ever in anybody's memory.
    pub(super) prefixes: BTreeMap<(Index, Term), History>,
    /// The log in the memory of each member that is up.
    pub(super) logs: BTreeMap<NodeId, MemoryLog>,
    /// The size of the largest entry that was ever in anybody's memory.
    pub(super) largest_entry_bytes: u64,
    /// Who led each term.
    pub(super) leaderships: BTreeMap<Term, Leadership>,
}

/// A committed entry.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// Its term.
    pub term: Term,
    /// The term of the member that was first seen to know it committed.
    pub in_term: Term,
    /// The log up to it.
    pub history: History,
    /// The digest of the state behind it.
    pub digest: u128,
    /// All answers up to it.
    pub answers: History,
}

/// What came of a committed command for the key/value store.
#[derive(Debug)]
pub(super) struct Executed {
    pub(super) index: Index,
    command: Bytes,
    pub(super) response: Response,
    /// The store behind it. Shares all that did not change since.
    after: KvMachine,
}

impl Executed {
    pub(super) fn new(index: Index, command: Bytes, response: Response, after: KvMachine) -> Self {
        Self { index, command, response, after }
    }

    /// The command; none if it is none.
    pub(super) fn command(&self) -> Option<Command<'_>> {
        Command::decode(&self.command).ok()
    }

    /// What a key holds now.
    pub(super) fn pair(&self, key: &[u8]) -> Option<Pair> {
        match self.after.query(Query::Get(Bytes::copy_from_slice(key))) {
            Answer::Pair(_, pair) => pair,
            _ => None,
        }
    }

    /// How a lock stands now.
    pub(super) fn lock(&self, name: &[u8]) -> LockState {
        match self.after.query(Query::Lock(Bytes::copy_from_slice(name))) {
            Answer::Lock(_, state) => state,
            _ => LockState::default(),
        }
    }

    /// How a lease stands now.
    pub(super) fn lease(&self, lease: LeaseId) -> Option<LeaseState> {
        match self.after.query(Query::Lease { lease, attached: false }) {
            Answer::Lease(_, state) => state,
            _ => None,
        }
    }

    /// The step of a move; none if it is none.
    pub(super) fn step(&self) -> Option<Step<'_>> {
        Step::decode(&self.command).ok()
    }

    /// What is in a shard now.
    pub(super) fn contents(&self, shard: u32) -> Option<Box<Contents>> {
        match self.after.query(Query::Contents(shard)) {
            Answer::Contents(contents) => contents,
            _ => None,
        }
    }

    /// The shards that are not served here; none, where all are.
    pub(super) fn unserved(&self) -> Vec<u32> {
        let Answer::Custody(all) = self.after.query(Query::Custody) else { return Vec::new() };
        let all = (0..).zip(all).filter(|(_, it)| !matches!(it.phase, Phase::Serving { .. }));
        all.map(|(shard, _)| shard).collect()
    }

    /// How many pairs, leases and locks are in a shard.
    pub(super) fn counts_of(&self, shard: u32) -> [u64; 3] {
        self.contents(shard).map_or([0; 3], |contents| contents.counts())
    }

    /// How many pairs, leases and locks there are in all shards but these.
    pub(super) fn counts_without(&self, unserved: &[u32]) -> [u64; 3] {
        let mut counts = [self.after.pairs(), self.after.leases(), self.after.locks()];
        for shard in unserved {
            let of = self.counts_of(*shard);
            counts.iter_mut().zip(of).for_each(|(all, of)| *all -= of);
        }
        counts
    }
}

/// The log in a member's memory, as hashes.
#[derive(Debug, Default)]
pub(super) struct MemoryLog {
    pub(super) base: Index,
    pub(super) base_history: History,
    pub(super) entries: VecDeque<(Term, History)>,
    /// Steps since a stretch of it was last hashed anew.
    pub(super) steps: u32,
    /// The end of that stretch.
    pub(super) rechecked: Index,
}

/// A leader of a term and the log with which it was elected.
#[derive(Debug)]
pub(super) struct Leadership {
    pub(super) node: NodeId,
    last: Position,
    base: Index,
    /// The terms of its entries behind `base`; none if it was deposed before it could speak.
    terms: Option<Vec<Term>>,
}

impl Ghost {
    /// G: everything up to here is known to be committed by somebody.
    pub fn committed(&self) -> Index {
        Index(self.committed.len() as u64)
    }

    /// The committed entry at `index`; none for 0 and for what nobody knows committed.
    pub fn at(&self, index: Index) -> Option<&Committed> {
        self.committed.get(usize::try_from(index.0.checked_sub(1)?).ok()?)
    }

    /// The committed log up to `index`; none if nobody knows that far.
    pub fn history_at(&self, index: Index) -> Option<History> {
        if index == Index(0) {
            Some(History::default())
        } else {
            self.at(index).map(|entry| entry.history)
        }
    }

    /// Begins with these founders, and with this machine.
    pub(super) fn of(founders: Arc<Membership>, blank: &Machine) -> Self {
        Self { memberships: vec![(Index(0), founders)], machine: blank.clone(), ..Self::default() }
    }

    /// A machine that has seen nothing.
    pub(super) fn blank(&self) -> Machine {
        self.machine.empty()
    }

    /// The shard controller, as it is by what was committed, if the group is one.
    pub(crate) fn controller(&self) -> Option<&ShardMachine> {
        self.machine.application().shards()
    }

    /// The key/value store, as it is by what was committed, if the group has one.
    pub(crate) fn store(&self) -> Option<&KvMachine> {
        self.machine.application().kv()
    }

    /// All that was executed since this was asked last.
    pub(super) fn take_executed(&mut self) -> Vec<Executed> {
        std::mem::take(&mut self.executed)
    }

    /// All answers up to `index`; none if nobody knows that far.
    pub(super) fn answers_at(&self, index: Index) -> Option<History> {
        if index == Index(0) {
            Some(History::default())
        } else {
            self.at(index).map(|entry| entry.answers)
        }
    }

    /// The last membership that is committed.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.memberships.last().expect("there are founders").1
    }

    /// The last committed membership up to `index`.
    pub(super) fn membership_at(&self, index: Index) -> &Arc<Membership> {
        let upto = self.memberships.partition_point(|(at, _)| *at <= index);
        &self.memberships[upto - 1].1
    }

    /// Whether no membership was committed behind `index` but joint ones.
    pub(super) fn is_joint_since(&self, index: Index) -> bool {
        let mut since = self.memberships.iter().filter(|(at, _)| *at > index);
        since.all(|(_, membership)| membership.is_joint())
    }

    /// How far a disk's log is what was committed.
    pub(super) fn agrees_up_to(&self, image: &Image) -> Index {
        let mut kept = image.base().0.index;
        while kept < self.committed()
            && self.history_at(kept.next()) == image.history_at(kept.next())
        {
            kept = kept.next();
        }
        kept
    }

    /// Only what is up to `kept` was ever committed. `machine` has applied what is up to the snapshot
    /// of whoever is left, `log` is behind that, and its last entry is the new membership.
    pub(super) fn forget(&mut self, machine: Machine, kept: Index, log: &[Entry]) {
        let at = machine.last_applied().index;
        let again = self.committed.split_off(usize::try_from(at.0).unwrap_or(usize::MAX));
        self.memberships.retain(|(index, _)| *index <= at);
        self.commands.retain(|_, index| *index <= at);
        self.machine = machine;
        for (entry, before) in log.iter().take_while(|entry| entry.index <= kept).zip(again) {
            self.commit(entry, before.in_term);
        }
        let mut history = self.history_at(kept).unwrap_or_default();
        for entry in log.iter().skip_while(|entry| entry.index <= kept) {
            history = history.then_entry(entry);
            self.prefixes.insert((entry.index, entry.term), history);
            if let Payload::Membership(membership) = &entry.payload {
                self.memberships.push((entry.index, membership.clone()));
            }
        }
    }

    /// Where a command was committed.
    pub fn index_of(&self, command: CommandId) -> Option<Index> {
        self.commands.get(&command).copied()
    }

    /// The next entry is committed.
    pub(super) fn commit(&mut self, entry: &Entry, in_term: Term) {
        assert_eq!(entry.index, self.committed().next(), "commits are contiguous");
        let history = self.machine.history().then_entry(entry);
        let at = raft::Applied { index: entry.index, term: entry.term, time: entry.stamp };
        match &entry.payload {
            Payload::Noop | Payload::Tick => self.machine.pass(at),
            Payload::Membership(membership) => {
                self.machine.pass(at);
                if self.memberships.last().is_none_or(|(at, _)| *at < entry.index) {
                    self.memberships.push((entry.index, membership.clone()));
                }
            }
            Payload::Command(command) => {
                let response = self.machine.apply(at, command);
                match response.said {
                    Some(Said::Kv(response)) => {
                        self.note_execution(entry.index, inner(command), response);
                    }
                    Some(Said::Shards(_)) | None => {}
                }
                if let Some(id) = CommandId::of(command) {
                    self.commands.insert(id, entry.index);
                }
            }
        }
        let (digest, answers) = (self.machine.digest(), self.machine.answers());
        self.committed.push(Committed { term: entry.term, in_term, history, digest, answers });
    }

    fn note_execution(&mut self, index: Index, command: Bytes, response: Response) {
        let Some(after) = self.machine.application().kv().cloned() else { return };
        self.executed.push(Executed::new(index, command, response, after));
    }
}

impl MemoryLog {
    pub(super) fn last_index(&self) -> Index {
        Index(self.base.0 + self.entries.len() as u64)
    }

    pub(super) fn last_history(&self) -> History {
        self.entries.back().map_or(self.base_history, |entry| entry.1)
    }

    pub(super) fn get(&self, index: Index) -> Option<(Term, History)> {
        let offset = index.0.checked_sub(self.base.0 + 1)?;
        self.entries.get(usize::try_from(offset).ok()?).copied()
    }

    pub(super) fn history_at(&self, index: Index) -> Option<History> {
        if index == self.base {
            Some(self.base_history)
        } else {
            self.get(index).map(|entry| entry.1)
        }
    }
}

impl Leadership {
    pub(super) fn new(node: NodeId, last: Position, log: &MemoryLog) -> Self {
        let still_there = last.index == log.base
            || log.get(last.index).is_some_and(|(term, _)| term == last.term);
        let length = usize::try_from(last.index.0.saturating_sub(log.base.0)).unwrap_or(0);
        let terms =
            still_there.then(|| log.entries.iter().take(length).map(|&(term, _)| term).collect());
        Self { node, last, base: log.base, terms }
    }

    /// The term of the entry that this leader's log has at `index`.
    pub(super) fn term_at(&self, ghost: &Ghost, term: Term, index: Index) -> Option<Term> {
        if index > self.last.index {
            Some(term)
        } else if index <= self.base {
            ghost.at(index).map(|entry| entry.term)
        } else {
            let offset = usize::try_from(index.0 - self.base.0 - 1).ok()?;
            self.terms.as_ref()?.get(offset).copied()
        }
    }
}
