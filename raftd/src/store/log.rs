//! The log in a database: appending, snapshots, removing what they made superfluous.
//!
//! One record holds as many entries of one write as fit, so a busy member appends few records and
//! a compaction removes few. Compaction is logical first: what lies before the installed
//! snapshot's first index counts no more, and is removed a little at a time. Pure over
//! [`Records`]: when to do what is decided by the engine.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use raft::{Entry, Fetch, Index, Position, Recovered, Term};

use crate::failpoint::{self, Failpoint};
use crate::store::StoreError;
use crate::store::entries::{Reading, Whole, damaged_record, load};
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

/// How many places of reads are remembered: more than there are followers.
const BEGINS_MAX: usize = 64;

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
    /// Where the record lies that ends before an index, as the last reads have found: the next read
    /// for the same follower begins there. Void when anything but the end of the log has changed.
    begins: BTreeMap<Index, Index>,
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
        window_bytes: u64,
    ) -> Result<(Self, Found), StoreError> {
        let replayed = replay::replay(scan(records, prefix)?, claims)?;
        for garbage in replayed.garbage.chunks(REMOVALS_MAX) {
            let removals = garbage.iter().map(|key| Change::Remove(key.encode(prefix)));
            records.apply(removals.collect())?;
        }
        let mut terms = Terms::new(replayed.base);
        let snapshot = replayed.root.as_ref().map(|root| root.root.clone());
        let log = raft::Log::new(replayed.base);
        let mut recovered = Recovered { snapshot, log, ..Recovered::default() };
        for piece in &replayed.pieces {
            for entry in load(records, prefix, piece)? {
                terms.push(&entry);
                recovered.push(entry, window_bytes);
            }
        }
        let first = replayed.base.index.next();
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
            begins: BTreeMap::new(),
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
            self.begins.clear();
        }
        if let Some(first) = gathered.entries.first() {
            if first.index <= self.terms.last.index {
                self.begins.clear();
            }
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
        if root.is_some() {
            failpoint::reach(Failpoint::CompactRootBefore);
        }
        for batch in batches.0 {
            records.apply(batch)?;
            failpoint::reach(Failpoint::LogSyncBefore);
            records.sync()?;
            failpoint::reach(Failpoint::LogSyncAfter);
        }
        if root.is_some() {
            failpoint::reach(Failpoint::CompactRootAfter);
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

    /// Reads entries, contiguous from `fetch.from` on, at least one; or none if they have been
    /// removed since they were asked for.
    ///
    /// # Errors
    /// Damaged: they are not there.
    pub(super) fn read<R: Records>(
        &mut self,
        records: &R,
        fetch: Fetch,
    ) -> Result<Vec<Entry>, StoreError> {
        let first = self.root.as_ref().map_or(Index(1), |root| root.first);
        let to = fetch.to.min(self.terms.last.index);
        if fetch.from < first || fetch.from > to {
            return Ok(Vec::new());
        }
        // A record that holds the first entry begins at most so far before it.
        let earliest = Index(fetch.from.0.saturating_sub(record::ENTRIES_MAX as u64));
        let begin = self.begins.remove(&fetch.from).unwrap_or(earliest);
        let mut reading = Reading::new(Fetch { to, ..fetch });
        let mut damaged = None;
        let begin = Key { kind: Kind::Entries, first: begin, sequence: 0, fragment: 0 };
        records.scan(&begin.encode(self.prefix), &mut |encoded, value| {
            let Some(key) = Key::decode(encoded, self.prefix) else {
                return ControlFlow::Break(());
            };
            if reading.is_complete(key.first) {
                return ControlFlow::Break(());
            }
            match reading.add(self.prefix, key, value) {
                Some(()) => ControlFlow::Continue(()),
                None => {
                    damaged = Some(key);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(key) = damaged {
            return Err(damaged_record(&key));
        }
        let read = reading.finish();
        let (entries, began) = read.ok_or_else(|| replay::missing(fetch.from, to))?;
        if self.begins.len() == BEGINS_MAX {
            self.begins.clear();
        }
        self.begins.extend(entries.last().map(|last| (last.index.next(), began)));
        Ok(entries)
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
            failpoint::reach(Failpoint::CompactSweepBefore);
            records.apply(keys)?;
            failpoint::reach(Failpoint::CompactSweepAfter);
        }
        Ok(removed)
    }

    /// Whether [`Log::repack`] may find something.
    pub(super) fn is_fragmented(&self) -> bool {
        self.appended >= APPENDED_MIN
    }

    /// Puts a run of small records into one, and tells how many there were. Only for a floor that is
    /// settled: the new record has the highest sequence of its parts, which the floor must have
    /// reached.
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
        self.begins.clear();
        records.apply(changes)?;
        failpoint::reach(Failpoint::CompactRepackAfter);
        Ok(Removed { keys: run.keys.len(), bytes: run.bytes })
    }
}

impl Root {
    fn id(&self) -> ManifestId {
        ManifestId { sequence: self.sequence, digest: self.root.manifest }
    }
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
            Some(Record::Entries { previous, entries }) => {
                scanned.appended.extend(Appended::new(key.sequence, previous, &entries, 1));
            }
            Some(Record::Fragment { previous, fragments, length, part }) => {
                whole.add(key, fragments, &part, &mut scanned.bad);
                if let Some(entry) = whole.finish(length, &mut scanned.bad) {
                    let entries = std::slice::from_ref(&entry);
                    let appended = Appended::new(key.sequence, previous, entries, fragments);
                    scanned.appended.extend(appended);
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    scanned.bad.append(&mut whole.keys);
    Ok(scanned)
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
