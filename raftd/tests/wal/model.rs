//! What a member has promised, and the writes by which it promises more.

use raft::{
    Digest, Entry, GroupTime, HardState, Index, NodeId, Payload, Position, Recovered, SnapshotRoot,
    SnapshotWrite, Term, Write, WriteId,
};
use raftd::store::gathered::Gathered;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::member::membership;

/// The state of a member, as its disk should hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<SnapshotRoot>,
    pub(crate) base: Position,
    pub(crate) entries: Vec<Entry>,
    pub(crate) writes: u64,
}

impl Model {
    pub(crate) fn from_recovered(recovered: &Recovered, writes: u64) -> Self {
        Self {
            hard_state: recovered.hard_state,
            snapshot: recovered.snapshot.clone(),
            base: recovered.log.base(),
            entries: recovered.log.entries().cloned().collect(),
            writes,
        }
    }

    /// Whether this is what was found.
    pub(crate) fn is(&self, found: &Recovered) -> bool {
        *self == Self::from_recovered(found, self.writes)
    }

    pub(crate) fn last(&self) -> Position {
        self.entries.last().map_or(self.base, Entry::position)
    }

    fn position(&self, index: u64) -> Position {
        match index.checked_sub(self.base.index.0 + 1) {
            Some(at) => self.entries[at as usize].position(),
            None => self.base,
        }
    }

    fn reset(&mut self, base: Position) {
        self.entries.clear();
        self.base = base;
    }

    pub(crate) fn apply(&mut self, write: &Write) {
        let mut gathered = Gathered::default();
        gathered.add(write.clone());
        self.apply_gathered(&gathered);
    }

    pub(crate) fn apply_gathered(&mut self, gathered: &Gathered) {
        self.writes = gathered.id.0;
        self.hard_state = gathered.hard_state.unwrap_or(self.hard_state);
        if let Some(reset) = gathered.snapshot.as_ref().and_then(|snapshot| snapshot.reset) {
            self.reset(reset);
        }
        if let Some(first) = gathered.entries.first() {
            self.entries.truncate((first.index.0 - self.base.index.0 - 1) as usize);
            self.entries.extend(gathered.entries.iter().cloned());
        }
        if let Some(snapshot) = &gathered.snapshot {
            self.snapshot = Some(snapshot.root.clone());
            let base = self.position(snapshot.first.0 - 1);
            self.entries.drain(..(base.index.0 - self.base.index.0) as usize);
            self.base = base;
        }
    }

    /// Everything that a crash within a batch may leave.
    pub(crate) fn between(&self, gathered: &Gathered) -> Vec<Self> {
        let nothing = Gathered { id: WriteId(self.writes), ..Gathered::default() };
        let mut parts = vec![nothing.clone()];
        let promised = Gathered { hard_state: gathered.hard_state, ..nothing };
        // Entries behind a reset are not found without it.
        let reset = gathered.snapshot.as_ref().is_some_and(|snapshot| snapshot.reset.is_some());
        for count in (0..=gathered.entries.len()).filter(|_| !reset) {
            let entries = gathered.entries[..count].to_vec();
            parts.push(Gathered { entries, ..promised.clone() });
        }
        parts.push(promised);
        parts.push(Gathered { id: WriteId(self.writes), ..gathered.clone() });
        let left = parts.iter().map(|part| {
            let mut left = self.clone();
            left.apply_gathered(part);
            left
        });
        left.collect()
    }

    /// Some next write.
    pub(crate) fn next(&self, rng: &mut StdRng) -> Write {
        let id = WriteId(self.writes + 1);
        let mut write = Write { id, hard_state: None, entries: vec![], snapshot: None };
        let mut term = self.hard_state.term;
        if term.0 == 0 || rng.random_range(0..6) == 0 {
            term = term.next();
            let vote = rng.random_bool(0.5).then_some(NodeId(rng.random_range(1..4)));
            write.hard_state = Some(HardState { term, vote });
        }
        let last = self.last().index.0;
        // What a snapshot covers is committed.
        let committed =
            self.snapshot.as_ref().map_or(0, |root| root.position.index.0).max(self.base.index.0);
        match rng.random_range(0..10) {
            0 if committed < last => {
                let index = rng.random_range(committed + 1..=last);
                let first = rng.random_range(self.base.index.0 + 1..=index + 1);
                let root = root(self.position(index), id);
                write.snapshot = Some(SnapshotWrite { root, first: Index(first), reset: false });
            }
            1 if self.writes > 20 => {
                let position = Position { term, index: Index(last + rng.random_range(1..9)) };
                let first = position.index.next();
                write.snapshot =
                    Some(SnapshotWrite { root: root(position, id), first, reset: true });
            }
            2 | 3 if committed < last => {
                // What conflicts is of an earlier term.
                if write.hard_state.is_none() {
                    term = term.next();
                    write.hard_state = Some(HardState { term, vote: None });
                }
                let from = rng.random_range(last.saturating_sub(9).max(committed + 1)..=last);
                write.entries = entries(rng, from, term);
            }
            _ => write.entries = entries(rng, last + 1, term),
        }
        write
    }

    /// A write that fills a good part of a database's segment.
    pub(crate) fn append_much(&self, rng: &mut StdRng) -> Write {
        let (from, term) = (self.last().index.0 + 1, self.hard_state.term);
        let entry = |index| {
            let payload = Payload::Command(vec![rng.random(); 60_000].into());
            Entry { index: Index(index), term, stamp: GroupTime(index * 10), payload }
        };
        let entries = (from..from + 50).map(entry).collect();
        Write { id: WriteId(self.writes + 1), hard_state: None, entries, snapshot: None }
    }

    /// A snapshot of everything, which keeps a little of the log or nothing.
    pub(crate) fn compact(&self, rng: &mut StdRng) -> Write {
        let (id, last) = (WriteId(self.writes + 1), self.last());
        if last.index == self.base.index {
            return self.next(rng);
        }
        let first =
            rng.random_range((self.base.index.0 + 1).max(last.index.0 - 2)..=last.index.0 + 1);
        let root = root(last, id);
        let snapshot = Some(SnapshotWrite { root, first: Index(first), reset: false });
        Write { id, hard_state: None, entries: vec![], snapshot }
    }
}

fn entries(rng: &mut StdRng, from: u64, term: Term) -> Vec<Entry> {
    let count = rng.random_range(1..12);
    let entry = |index: u64| {
        let len = match rng.random_range(0..200) {
            0 => 1_200_000,
            1..8 => 70_000,
            8..40 => 9_000,
            _ => rng.random_range(0..300),
        };
        let payload = match rng.random_range(0..12) {
            0 => Payload::Noop,
            1 => Payload::Tick,
            _ => Payload::Command(vec![rng.random(); len].into()),
        };
        Entry { index: Index(index), term, stamp: GroupTime(index * 10), payload }
    };
    (from..from + count).map(entry).collect()
}

fn root(position: Position, id: WriteId) -> SnapshotRoot {
    let mut digest = [7; 32];
    digest[..8].copy_from_slice(&id.0.to_le_bytes());
    let stamp = GroupTime(position.index.0 * 10);
    SnapshotRoot {
        position,
        stamp,
        manifest: Digest(digest),
        chunks: 3,
        bytes: 99,
        membership: membership(),
    }
}
