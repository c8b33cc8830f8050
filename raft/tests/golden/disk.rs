//! What a member's disk would hold if it lost power now: the writes that were answered, in order.

use std::collections::VecDeque;

use flotilla_raft::{
    Entry, Fetch, HardState, Index, Log, Position, Recovered, SnapshotRoot, Write, WriteId,
};

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    pub(crate) snapshot: Option<SnapshotRoot>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) base: Position,
    /// Handed over, not durable yet.
    pub(crate) pending: VecDeque<Write>,
}

impl Disk {
    /// Makes all pending writes up to `upto` durable.
    pub(crate) fn sync(&mut self, upto: WriteId) {
        while let Some(write) = self.pending.pop_front_if(|write| write.id <= upto) {
            self.apply(write);
        }
    }

    /// In the order that [`Write`] documents: snapshot, entries, hard state.
    fn apply(&mut self, write: Write) {
        let first_kept = write.snapshot.as_ref().map(|snapshot| snapshot.first);
        if let Some(snapshot) = write.snapshot {
            if snapshot.reset {
                self.entries.clear();
                self.base = snapshot.root.position;
            }
            self.snapshot = Some(snapshot.root);
        }
        if let Some(first) = write.entries.first() {
            let end = first.index.previous();
            self.entries.retain(|entry| entry.index <= end);
            let last = self.entries.last().map_or(self.base, Entry::position);
            assert_eq!(last.index, end, "write {} leaves a hole", write.id);
            self.entries.extend(write.entries);
        }
        if let Some(first) = first_kept {
            self.remove_before(first);
        }
        if let Some(hard_state) = write.hard_state {
            assert!(hard_state.term >= self.hard_state.term, "a durable term never falls");
            self.hard_state = hard_state;
        }
    }

    fn remove_before(&mut self, first: Index) {
        let kept = self.entries.partition_point(|entry| entry.index < first);
        if let Some(last) = self.entries.drain(..kept).next_back() {
            self.base = last.position();
        }
    }

    pub(crate) fn recovered(&self, window_bytes: u64) -> Recovered {
        let mut recovered = Recovered {
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            log: Log::new(self.base),
            memberships: Vec::new(),
        };
        for entry in &self.entries {
            recovered.push(entry.clone(), window_bytes);
        }
        recovered
    }

    /// What it holds of what a member wants to read.
    pub(crate) fn read(&self, fetch: Fetch) -> Vec<Entry> {
        let wanted = self.entries.iter().filter(|it| (fetch.from..=fetch.to).contains(&it.index));
        let mut bytes = 0;
        wanted
            .take_while(|entry| {
                bytes += entry.size();
                bytes == entry.size() || bytes <= fetch.bytes_max
            })
            .cloned()
            .collect()
    }
}
