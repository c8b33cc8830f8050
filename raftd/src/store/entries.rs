//! Entries that are read back from their records: whole pieces of the log when it is opened, and
//! later what is not in memory any more.

use std::collections::BTreeMap;

use raft::{Entry, Fetch, Index};

use crate::store::StoreError;
use crate::store::record::{self, Key, Prefix, Record};
use crate::store::records::Records;
use crate::store::replay::Piece;

/// An entry whose fragments are being put together; they come in order.
#[derive(Default)]
pub(super) struct Whole {
    pub(super) keys: Vec<Key>,
    fragments: u32,
    encoded: Vec<u8>,
}

impl Whole {
    pub(super) fn add(&mut self, key: Key, fragments: u32, part: &[u8], bad: &mut Vec<Key>) {
        let fits = match self.keys.last() {
            None => key.fragment == 0,
            Some(last) => {
                *last == Key { fragment: last.fragment, ..key }
                    && key.fragment == last.fragment + 1
                    && fragments == self.fragments
            }
        };
        if !fits {
            bad.append(&mut self.keys);
            self.encoded.clear();
            if key.fragment != 0 {
                bad.push(key);
                return;
            }
        }
        self.keys.push(key);
        self.fragments = fragments;
        self.encoded.extend_from_slice(part);
    }

    /// The entry, if that was its last fragment.
    pub(super) fn finish(&mut self, length: u32, bad: &mut Vec<Key>) -> Option<Entry> {
        let key = self.keys.last().filter(|_| self.keys.len() == self.fragments as usize)?;
        let entry = record::decode_whole(key.first, &self.encoded)
            .filter(|_| self.encoded.len() == length as usize);
        if entry.is_none() {
            bad.append(&mut self.keys);
        }
        *self = Self::default();
        entry
    }
}

/// Reads the entries of a piece of the log again.
pub(super) fn load<R: Records>(
    records: &R,
    prefix: Prefix,
    piece: &Piece,
) -> Result<Vec<Entry>, StoreError> {
    let mut whole = Whole::default();
    let mut found = Vec::new();
    for key in &piece.keys {
        let value = records.get(&key.encode(prefix))?;
        match value.and_then(|value| record::decode(prefix, key, &value)) {
            Some(Record::Entries { entries, .. }) => found = entries,
            Some(Record::Fragment { fragments, length, part, .. }) => {
                whole.add(*key, fragments, &part, &mut Vec::new());
                found.extend(whole.finish(length, &mut Vec::new()));
            }
            Some(Record::Root(_)) | None => return Err(damaged_record(key)),
        }
    }
    found.retain(|entry| (piece.first..=piece.last).contains(&entry.index));
    Ok(found)
}

/// Entries that are being read. Records that were replaced may still be there: of all that hold an
/// entry of an index, the one of the latest write counts.
pub(super) struct Reading {
    wanted: Fetch,
    /// With each entry the write and the first index of its record.
    found: BTreeMap<Index, (u64, Index, Entry)>,
    whole: Whole,
    /// All that is needed up to here has been found; its size.
    settled: (Index, u64),
}

impl Reading {
    pub(super) fn new(wanted: Fetch) -> Self {
        let settled = (wanted.from.previous(), 0);
        Self { wanted, found: BTreeMap::new(), whole: Whole::default(), settled }
    }

    /// Whether enough was found when all records that begin before `next` have been seen.
    pub(super) fn is_complete(&mut self, next: Index) -> bool {
        let (upto, bytes) = &mut self.settled;
        while let Some((.., entry)) = self.found.get(&upto.next()).filter(|_| upto.next() < next) {
            (*upto, *bytes) = (upto.next(), *bytes + entry.size());
        }
        next > self.wanted.to || *bytes >= self.wanted.bytes_max
    }

    /// None: the record is damaged.
    pub(super) fn add(&mut self, prefix: Prefix, key: Key, value: &[u8]) -> Option<()> {
        if record::last_index(&key, value)? < self.wanted.from {
            return Some(());
        }
        let entries = match record::decode(prefix, &key, value)? {
            Record::Entries { entries, .. } => entries,
            Record::Fragment { fragments, length, part, .. } => {
                let mut bad = Vec::new();
                self.whole.add(key, fragments, &part, &mut bad);
                let entry = self.whole.finish(length, &mut bad);
                if !bad.is_empty() {
                    return None;
                }
                entry.into_iter().collect()
            }
            Record::Root(_) => return None,
        };
        let Fetch { from, to, .. } = self.wanted;
        for entry in entries.into_iter().filter(|entry| (from..=to).contains(&entry.index)) {
            let known = self.found.get(&entry.index);
            if known.is_none_or(|(sequence, ..)| *sequence < key.sequence) {
                self.found.insert(entry.index, (key.sequence, key.first, entry));
            }
        }
        Some(())
    }

    /// As many entries as are wanted, and where the record of the last of them begins; none if the
    /// first is not there.
    pub(super) fn finish(self) -> Option<(Vec<Entry>, Index)> {
        let mut began = self.wanted.from;
        let (mut next, mut left) = (self.wanted.from, self.wanted.bytes_max);
        let mut entries = Vec::new();
        for (index, (_, first, entry)) in self.found {
            let fits = entries.is_empty() || entry.size() <= left;
            if index != next || !fits {
                break;
            }
            left = left.saturating_sub(entry.size());
            (next, began) = (next.next(), first);
            entries.push(entry);
        }
        (!entries.is_empty()).then_some((entries, began))
    }
}

pub(super) fn damaged_record(key: &Key) -> StoreError {
    StoreError::Damaged(format!(
        "the record of entry {} from write {} fails its checksum",
        key.first, key.sequence
    ))
}
