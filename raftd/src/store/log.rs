//! The log in a database: appending, snapshots, removing what they made superfluous.
//!
//! One record holds as many entries of one write as fit, so a busy member appends few records and
//! a compaction removes few. Compaction is logical first: what lies before the installed
//! snapshot's first index counts no more, and is removed a little at a time. Pure over
//! [`Records`]: when to do what is decided by the engine.

use std::ops::ControlFlow;

use raft::{Entry, Index, Position, Recovered, Term};

use crate::store::StoreError;
use crate::store::floor::{ManifestId, Reach};
use crate::store::gathered::Gathered;
use crate::store::record::{self, Key, Kind, PAYLOAD_BYTES_MAX, Prefix, Record, Root};
use crate::store::records::{Change, Records, Removed};
use crate::store::replay::{self, Appended, Claims, Scanned};

/// How much is written between two syncs.
pub(super) const BATCH_BYTES_MAX: usize = 1 << 20;

/// How many records are removed between two appends.
pub(super) const REMOVALS_MAX: usize = 64;

/// Records below this size are worth repacking.
const SMALL_BYTES: usize = 8 << 10;

/// How many small records in a row are worth repacking.
const RUN_MIN: usize = 4;

/// How many new records make it worthwhile to look for small ones again.
const APPENDED_MIN: usize = 64;

/// How many records one step of repacking looks at.
const LOOKED_AT_MAX: usize = 512;

/// The log of one group.
#[derive(Debug)]
pub(super) struct Log {
    prefix: Prefix,
    reach: Reach,
    root: Option<Root>,
    terms: Terms,
    /// Whether something may be left before the first index.
    leftovers: bool,
    /// From where on records have not been repacked.
    packed_to: Index,
    /// How many records were appended since repacking last came to the end.
    appended: usize,
}

/// What was found when a log was opened.
#[derive(Debug)]
pub(super) struct Found {
    /// The snapshot and the entries; the hard state is the floor's.
    pub(super) recovered: Recovered,
    /// The highest write sequence that was seen.
    pub(super) highest: u64,
}

impl Log {
    /// Finds the log of a group, checks it against the floor, and removes what was never
    /// acknowledged and does not count. The caller syncs.
    ///
    /// # Errors
    /// Damaged: something that was acknowledged is missing.
    pub(super) fn open<R: Records>(
        records: &R,
        prefix: Prefix,
        claims: &Claims,
    ) -> Result<(Self, Found), StoreError> {
        let replayed = replay::replay(scan(records, prefix)?, claims)?;
        for garbage in replayed.garbage.chunks(REMOVALS_MAX) {
            let removals = garbage.iter().map(|key| Change::Remove(key.encode(prefix)));
            records.apply(removals.collect())?;
        }
        let recovered = replayed.recovered;
        let mut terms = Terms::new(recovered.base);
        for entry in &recovered.entries {
            terms.push(entry);
        }
        let first = recovered.base.index.next();
        let log = Self {
            prefix,
            reach: Reach {
                log_sequence: replayed.log_sequence,
                last: terms.last,
                manifest: replayed.root.as_ref().map(Root::id),
            },
            leftovers: replayed.root.is_some(),
            root: replayed.root,
            terms,
            packed_to: first,
            appended: APPENDED_MIN,
        };
        Ok((log, Found { recovered, highest: replayed.highest }))
    }

    /// How far the log is durable.
    pub(super) fn reach(&self) -> Reach {
        self.reach
    }

    /// Makes a write durable, in as few batches as it fits into.
    ///
    /// # Errors
    /// Fatal: what is stored is unknown.
    pub(super) fn write<R: Records>(
        &mut self,
        records: &R,
        sequence: u64,
        gathered: &Gathered,
    ) -> Result<Reach, StoreError> {
        if let Some(reset) = gathered.snapshot.as_ref().and_then(|snapshot| snapshot.reset) {
            self.terms = Terms::new(reset);
        }
        if let Some(first) = gathered.entries.first() {
            self.terms.truncate(first.index);
        }
        let mut batches = Batches::default();
        let root = gathered.snapshot.as_ref().map(|snapshot| Root {
            sequence,
            root: snapshot.root.clone(),
            first: snapshot.first,
            reset: snapshot.reset,
            log_end: self.terms.last.index,
        });
        let mut put = |key: Key, value| batches.push(key.encode(self.prefix), value);
        let (previous, entries) = (self.terms.last.term, &gathered.entries);
        let mut appended = 0;
        record::encode_entries(self.prefix, sequence, previous, entries, |key, value| {
            appended += 1;
            put(key, value);
        });
        // A snapshot must not be found without the entries that it says are kept.
        if let Some(root) = &root {
            let (key, value) = record::encode_root(self.prefix, root);
            put(key, value);
        }
        for batch in batches.0 {
            records.apply(batch)?;
            records.sync()?;
        }
        for entry in entries {
            self.terms.push(entry);
        }
        self.appended += appended;
        if root.is_some() {
            self.root = root;
            self.leftovers = true;
        }
        let manifest = self.root.as_ref().map(Root::id);
        self.reach = Reach { log_sequence: sequence, last: self.terms.last, manifest };
        Ok(self.reach)
    }

    /// Whether [`Log::sweep`] may find something.
    pub(super) fn has_leftovers(&self) -> bool {
        self.leftovers
    }

    /// Removes at most [`REMOVALS_MAX`] records that count no more, and tells how many. The next
    /// sync is early enough.
    ///
    /// # Errors
    /// Fatal: what is stored is unknown.
    pub(super) fn sweep<R: Records>(&mut self, records: &R) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let Some(root) = self.root.as_ref().filter(|_| self.leftovers) else { return Ok(removed) };
        let mut keys = Vec::new();
        let mut damaged = None;
        let begin = replay::root_key(0).encode(self.prefix);
        records.scan(&begin, &mut |encoded, value| {
            let Some(key) = Key::decode(encoded, self.prefix) else {
                return ControlFlow::Break(());
            };
            let superfluous = match key.kind {
                Kind::Root => key.sequence < root.sequence,
                Kind::Entries if key.first >= root.first => return ControlFlow::Break(()),
                Kind::Entries => match record::last_index(&key, value) {
                    Some(last) => last < root.first,
                    None => {
                        damaged = Some(key);
                        return ControlFlow::Break(());
                    }
                },
            };
            if superfluous {
                removed.add(encoded.len() + value.len());
                keys.push(Change::Remove(encoded.to_vec()));
            }
            if keys.len() < REMOVALS_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        if let Some(key) = damaged {
            return Err(damaged_record(&key));
        }
        self.leftovers = keys.len() == REMOVALS_MAX;
        if !keys.is_empty() {
            records.apply(keys)?;
        }
        Ok(removed)
    }

    /// Whether [`Log::repack`] may find something.
    pub(super) fn is_fragmented(&self) -> bool {
        self.appended >= APPENDED_MIN
    }

    /// Puts a run of small records into one, and tells how many there were. Only for a floor that is settled: the new record has
    /// the highest sequence of its parts, which the floor must have reached.
    ///
    /// # Errors
    /// Fatal: what is stored is unknown.
    pub(super) fn repack<R: Records>(&mut self, records: &R) -> Result<Removed, StoreError> {
        let first = self.root.as_ref().map_or(Index(1), |root| root.first);
        let from = self.packed_to.max(first);
        let begin = Key { kind: Kind::Entries, first: from, sequence: 0, fragment: 0 };
        let (mut run, mut looked_at, mut damaged) = (Run::default(), 0, None);
        let mut complete = None;
        records.scan(&begin.encode(self.prefix), &mut |encoded, value| {
            let Some(key) = Key::decode(encoded, self.prefix) else {
                return ControlFlow::Break(());
            };
            let Some(record) = record::decode(self.prefix, &key, value) else {
                damaged = Some(key);
                return ControlFlow::Break(());
            };
            looked_at += 1;
            if run.add(&key, record, value.len()) {
                return ControlFlow::Continue(());
            }
            if run.keys.len() >= RUN_MIN || looked_at >= LOOKED_AT_MAX {
                complete = Some(run.behind().unwrap_or(key.first.next()));
                return ControlFlow::Break(());
            }
            run.restart(&key, value, self.prefix)
        })?;
        if let Some(key) = damaged {
            return Err(damaged_record(&key));
        }
        self.packed_to = complete.unwrap_or_else(|| {
            // The end of the log was reached; its last run may grow yet.
            self.appended = 0;
            run.first().unwrap_or(from)
        });
        let changes = run.pack(self.prefix);
        if changes.is_empty() {
            return Ok(Removed::default());
        }
        records.apply(changes)?;
        Ok(Removed { keys: run.keys.len(), bytes: run.bytes })
    }
}

impl Root {
    fn id(&self) -> ManifestId {
        ManifestId { sequence: self.sequence, digest: self.root.manifest }
    }
}

fn damaged_record(key: &Key) -> StoreError {
    StoreError::Damaged(format!(
        "the record of entry {} from write {} fails its checksum",
        key.first, key.sequence
    ))
}

/// Reads all records of a group.
fn scan<R: Records>(records: &R, prefix: Prefix) -> Result<Scanned, StoreError> {
    let mut scanned = Scanned::default();
    let mut whole = Whole::default();
    records.scan(&replay::root_key(0).encode(prefix), &mut |encoded, value| {
        let Some(key) = Key::decode(encoded, prefix) else { return ControlFlow::Break(()) };
        match record::decode(prefix, &key, value) {
            None => scanned.bad.push(key),
            Some(Record::Root(root)) => scanned.roots.push(root),
            Some(Record::Entries { previous, entries }) => scanned.appended.push(Appended {
                sequence: key.sequence,
                previous,
                entries,
                keys: 1,
            }),
            Some(Record::Fragment { previous, fragments, length, part }) => {
                whole.add(key, fragments, &part, &mut scanned.bad);
                whole.finish(length, previous, &mut scanned);
            }
        }
        ControlFlow::Continue(())
    })?;
    scanned.bad.append(&mut whole.keys);
    Ok(scanned)
}

/// An entry whose fragments are being put together; they come in order.
#[derive(Default)]
struct Whole {
    keys: Vec<Key>,
    fragments: u32,
    encoded: Vec<u8>,
}

impl Whole {
    fn add(&mut self, key: Key, fragments: u32, part: &[u8], bad: &mut Vec<Key>) {
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

    fn finish(&mut self, length: u32, previous: Term, scanned: &mut Scanned) {
        let Some(key) = self.keys.last().filter(|_| self.keys.len() == self.fragments as usize)
        else {
            return;
        };
        let entry = record::decode_whole(key.first, &self.encoded)
            .filter(|_| self.encoded.len() == length as usize);
        match entry {
            Some(entry) => scanned.appended.push(Appended {
                sequence: key.sequence,
                previous,
                entries: vec![entry],
                keys: self.fragments,
            }),
            None => scanned.bad.append(&mut self.keys),
        }
        *self = Self::default();
    }
}

/// Changes, cut into batches.
#[derive(Default)]
struct Batches(Vec<Vec<Change>>, usize);

impl Batches {
    fn push(&mut self, key: Vec<u8>, value: Vec<u8>) {
        let bytes = key.len() + value.len();
        if self.0.is_empty() || self.1 + bytes > BATCH_BYTES_MAX {
            self.0.push(Vec::new());
            self.1 = 0;
        }
        self.1 += bytes;
        if let Some(batch) = self.0.last_mut() {
            batch.push(Change::Put(key, value));
        }
    }
}

/// Small records that follow each other without anything replaced in between.
#[derive(Default)]
struct Run {
    keys: Vec<Key>,
    previous: Term,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Run {
    /// Whether the record is the next of the run.
    fn add(&mut self, key: &Key, record: Record, value_len: usize) -> bool {
        let Record::Entries { previous, entries } = record else { return false };
        let payload = value_len - record::HEADER_BYTES;
        let follows = match (self.keys.last(), self.entries.last()) {
            (Some(last_key), Some(last)) => {
                key.first == last.index.next()
                    && key.sequence >= last_key.sequence
                    && previous == last.term
            }
            _ => true,
        };
        let fits = self.bytes + payload <= PAYLOAD_BYTES_MAX && self.keys.len() < REMOVALS_MAX;
        if value_len > SMALL_BYTES || !follows || !fits {
            return false;
        }
        if self.keys.is_empty() {
            self.previous = previous;
        }
        self.keys.push(*key);
        self.entries.extend(entries);
        self.bytes += payload;
        true
    }

    /// Begins anew with a record that did not follow.
    fn restart(&mut self, key: &Key, value: &[u8], prefix: Prefix) -> ControlFlow<()> {
        *self = Self::default();
        if let Some(record) = record::decode(prefix, key, value) {
            self.add(key, record, value.len());
        }
        ControlFlow::Continue(())
    }

    fn first(&self) -> Option<Index> {
        self.keys.first().map(|key| key.first)
    }

    fn behind(&self) -> Option<Index> {
        self.entries.last().map(|entry| entry.index.next())
    }

    /// What packs the run, if that is worthwhile.
    fn pack(&self, prefix: Prefix) -> Vec<Change> {
        let Some(last) = self.keys.last().filter(|_| self.keys.len() >= RUN_MIN) else {
            return Vec::new();
        };
        let mut changes: Vec<Change> =
            self.keys.iter().map(|key| Change::Remove(key.encode(prefix))).collect();
        record::encode_entries(
            prefix,
            last.sequence,
            self.previous,
            &self.entries,
            |key, value| {
                let key = key.encode(prefix);
                changes.retain(|change| *change != Change::Remove(key.clone()));
                changes.push(Change::Put(key, value));
            },
        );
        changes
    }
}

/// The term at every index of the log, as the few places where it changes.
#[derive(Debug)]
struct Terms {
    base: Position,
    last: Position,
    begins: Vec<Position>,
}

impl Terms {
    fn new(base: Position) -> Self {
        Self { base, last: base, begins: Vec::new() }
    }

    fn push(&mut self, entry: &Entry) {
        let position = entry.position();
        assert_eq!(position.index, self.last.index.next(), "an entry follows the last one");
        if position.term != self.last.term {
            self.begins.push(position);
        }
        self.last = position;
    }

    /// The log ends just before `from`.
    fn truncate(&mut self, from: Index) {
        let (first, next) = (self.base.index.next(), self.last.index.next());
        assert!(first <= from && from <= next, "{from} is not in {first}..={next}");
        while self.begins.pop_if(|begin| begin.index >= from).is_some() {}
        let term = self.begins.last().map_or(self.base.term, |begin| begin.term);
        self.last = Position { term, index: from.previous() };
    }
}
