//! What was handed to the disk, and what the disk has answered.
//!
//! Keeps the one fact that acknowledgements are made of: up to which index the log *as it is now*
//! is durable. A write that is answered after some of its entries were truncated says nothing
//! about what stands at their indexes today (the ABA trap: an entry may even have come back), so
//! every truncation lowers what the writes in flight can still prove.

use std::collections::VecDeque;

use crate::{Entry, HardState, Index, SnapshotWrite, Write, WriteId};

#[derive(Debug)]
pub(crate) struct Durability {
    /// The write that is being gathered; it is handed out by `take`.
    gathering: Write,
    gathering_bytes: u64,
    /// Handed out, not answered yet; ids ascend.
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    /// The id of the last write that changed the hard state.
    hard_state_write: WriteId,
    /// The last answered write.
    answered: WriteId,
    /// The log is durable up to here.
    index: Index,
    /// Ticks that the disk has let pass without an answer, while one was due.
    silent_ticks: u32,
}

#[derive(Debug)]
struct InFlight {
    id: WriteId,
    /// Up to where the log is durable once it is answered.
    proves: Index,
    bytes: u64,
}

impl Durability {
    /// A member whose log was found durable up to `index`.
    pub(crate) fn new(index: Index) -> Self {
        Self {
            gathering: Write::empty(WriteId(1)),
            gathering_bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            hard_state_write: WriteId(0),
            answered: WriteId(0),
            index,
            silent_ticks: 0,
        }
    }

    pub(crate) fn tick(&mut self) {
        self.silent_ticks =
            if self.in_flight.is_empty() { 0 } else { self.silent_ticks.saturating_add(1) };
    }

    /// Gives the disk its time from anew.
    pub(crate) fn excuse(&mut self) {
        self.silent_ticks = 0;
    }

    /// How long the disk has not answered, though it should.
    pub(crate) fn silent_ticks(&self) -> u32 {
        self.silent_ticks
    }

    /// The log is durable up to here.
    pub(crate) fn index(&self) -> Index {
        self.index
    }

    /// The size of the entries that the disk has not answered for.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.gathering_bytes + self.in_flight_bytes
    }

    /// Whether the latest term and vote are durable.
    pub(crate) fn hard_state_is_durable(&self) -> bool {
        self.hard_state_write <= self.answered
    }

    pub(crate) fn save(&mut self, hard_state: HardState) {
        self.gathering.hard_state = Some(hard_state);
        self.hard_state_write = self.gathering.id;
    }

    /// Adds an entry to the end of the log.
    pub(crate) fn append(&mut self, entry: Entry) {
        self.gathering_bytes += entry.size();
        self.gathering.entries.push(entry);
    }

    /// The log was truncated from `from` on. The disk learns of it by the entries that follow.
    pub(crate) fn truncate(&mut self, from: Index) {
        let keeps = from.previous();
        self.index = self.index.min(keeps);
        for write in &mut self.in_flight {
            write.proves = write.proves.min(keeps);
        }
        self.retain(|entry| entry.index < from);
    }

    /// Forgets the others of the entries that are being gathered.
    fn retain(&mut self, stays: impl Fn(&Entry) -> bool) {
        self.gathering.entries.retain(stays);
        self.gathering_bytes = self.gathering.entries.iter().map(Entry::size).sum();
    }

    pub(crate) fn snapshot(&mut self, snapshot: SnapshotWrite) {
        if snapshot.reset {
            assert!(
                self.gathering
                    .entries
                    .iter()
                    .all(|entry| entry.index <= snapshot.root.position.index),
                "a reset comes after the truncation of what it replaces"
            );
        }
        // What was gathered and is covered by the snapshot would stand before the log's beginning.
        self.retain(|entry| entry.index >= snapshot.first);
        let earlier = self.gathering.snapshot.as_ref();
        let reset = snapshot.reset || earlier.is_some_and(|earlier| earlier.reset);
        self.gathering.snapshot = Some(SnapshotWrite { reset, ..snapshot });
    }

    /// What has been gathered since the last call.
    pub(crate) fn take(&mut self) -> Option<Write> {
        if self.gathering.is_empty() {
            return None;
        }
        let next = Write::empty(WriteId(self.gathering.id.0 + 1));
        let write = std::mem::replace(&mut self.gathering, next);
        let entries = write.entries.last().map_or(Index(0), |entry| entry.index);
        let snapshot = write.snapshot.as_ref();
        let snapshot = snapshot.map_or(Index(0), |snapshot| snapshot.root.position.index);
        let bytes = std::mem::take(&mut self.gathering_bytes);
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(InFlight { id: write.id, proves: entries.max(snapshot), bytes });
        Some(write)
    }

    /// The disk has answered for all writes up to `id`.
    pub(crate) fn written(&mut self, id: WriteId) {
        assert!(id < self.gathering.id, "write {id} was never handed out");
        while let Some(write) = self.in_flight.pop_front_if(|write| write.id <= id) {
            self.index = self.index.max(write.proves);
            self.answered = write.id;
            self.in_flight_bytes -= write.bytes;
            self.silent_ticks = 0;
        }
    }
}

impl Write {
    fn empty(id: WriteId) -> Self {
        Self { id, hard_state: None, entries: Vec::new(), snapshot: None }
    }

    fn is_empty(&self) -> bool {
        self.hard_state.is_none() && self.entries.is_empty() && self.snapshot.is_none()
    }
}
