//! Which chunks have to stay, and the removal of all others.
//!
//! Named are the installed snapshot, the one that is being fetched, those that are whole and may
//! be installed next, those that somebody reads, and for a while those that another member was
//! fetching; pinned are the chunks of those that are being written. What a snapshot
//! leaves behind that is none of these any more is looked through by its manifest; everything is
//! looked through once, when the store opens, for what a crash left.
//!
//! The lock is held to decide, never while the disk works: what is decided to go is named, and whoever
//! is about to need one of those names waits until it has gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{MutexGuard, PoisonError};
use std::time::Instant;

use raft::{Digest, SnapshotRoot};

use crate::failpoint::{self, Failpoint};
use crate::store::StoreError;
use crate::store::manifest::Manifest;
use crate::store::receiving::Transfer;
use crate::store::records::{Change, Records as _, Removed};
use crate::store::snapshots::{Named, PIECE_BYTES, Shared, chunk_key, piece_key};

/// How many keys are looked at, and at most removed, between two syncs.
const STEP: usize = 64;

/// How large a chunk is taken to be when its space is given back; that needs no exact number.
const CHUNK_BYTES_GUESSED: usize = 8 << 10;

/// How many finished snapshots are kept that have not been installed: one that was taken and one
/// that was fetched, and those before them in case they are about to be installed.
const FINISHED_MAX: usize = 4;

/// What has to stay, and what may not have to.
#[derive(Default)]
pub(super) struct Pins {
    installed: Option<Digest>,
    /// The snapshot that is being fetched, or was when the process ended.
    pub(super) transfer: Option<Transfer>,
    /// Who gave it gives no more.
    pub(super) given_up: bool,
    /// Snapshots that are whole, in the order in which they were finished.
    finished: VecDeque<Digest>,
    /// Snapshots that are being read, and how often.
    reading: BTreeMap<Digest, usize>,
    /// Snapshots that another member was fetching, and until when they stay.
    lingering: BTreeMap<Digest, Instant>,
    /// The names of snapshots that are being written, and of their chunks.
    writing: BTreeMap<u64, BTreeSet<Digest>>,
    next_writer: u64,
    /// The names of what is being removed just now.
    removing: BTreeSet<Digest>,
    /// Changes with every change of what is named.
    epoch: u64,
    suspects: Suspects,
    /// Suspects are being looked through.
    collecting: bool,
    /// Somebody has read or written a snapshot, of which the database keeps much in memory.
    cached: bool,
    pub(super) stop: bool,
}

/// What may be garbage.
#[derive(Default)]
struct Suspects {
    everything: bool,
    snapshots: BTreeSet<Digest>,
    /// Names that a writer that was never finished has left behind.
    names: BTreeSet<Digest>,
}

impl Suspects {
    fn is_empty(&self) -> bool {
        !self.everything && self.snapshots.is_empty() && self.names.is_empty()
    }
}

impl Pins {
    pub(super) fn new(installed: Option<Digest>) -> Self {
        let suspects = Suspects { everything: true, ..Suspects::default() };
        Self { installed, suspects, ..Self::default() }
    }

    pub(super) fn install(&mut self, root: &SnapshotRoot) {
        let name = root.manifest;
        // Another that was finished before may be about to be installed all the same: one that was
        // fetched while this one was taken. What is not is pushed out by later ones.
        self.finished.retain(|finished| *finished != name);
        self.suspects.snapshots.extend(self.installed);
        self.installed = Some(name);
        let over = |transfer: &mut Transfer| transfer.root.position.index <= root.position.index;
        let ended = self.transfer.take_if(over);
        self.suspects.snapshots.extend(ended.map(|transfer| transfer.root.manifest));
        self.epoch += 1;
    }

    /// A snapshot is being fetched, whose manifest is durable.
    pub(super) fn begin_transfer(&mut self, transfer: Transfer) {
        let before = self.transfer.replace(transfer);
        self.suspects.snapshots.extend(before.map(|transfer| transfer.root.manifest));
        self.given_up = false;
        self.epoch += 1;
    }

    pub(super) fn begin_writing(&mut self) -> u64 {
        self.next_writer += 1;
        self.writing.insert(self.next_writer, BTreeSet::new());
        self.next_writer
    }

    /// Whether all garbage has gone that there may be now.
    pub(super) fn are_clean(&self) -> bool {
        self.stop || self.suspects.is_empty() && !self.collecting
    }

    /// Whether it is as it will be: not about to go.
    pub(super) fn is_settled(&self, name: &Digest) -> bool {
        !self.removing.contains(name)
    }

    /// Whether nothing is about to go.
    pub(super) fn are_settled(&self) -> bool {
        self.removing.is_empty()
    }

    /// Keeps a chunk or manifest as long as it is being written.
    pub(super) fn keep(&mut self, writer: u64, name: Digest) {
        self.writing.entry(writer).or_default().insert(name);
    }

    /// The snapshot is whole.
    pub(super) fn finish(&mut self, name: Digest) {
        self.finished.retain(|finished| *finished != name);
        self.finished.push_back(name);
        if self.finished.len() > FINISHED_MAX {
            self.suspects.snapshots.extend(self.finished.pop_front());
        }
        self.epoch += 1;
    }

    /// All that the writer has kept is part of something that is named.
    pub(super) fn release(&mut self, writer: u64) {
        self.writing.remove(&writer);
    }

    /// The writer has gone, finished or not.
    pub(super) fn end_writing(&mut self, writer: u64) {
        self.suspects.names.extend(self.writing.remove(&writer).unwrap_or_default());
        self.cached = true;
    }

    pub(super) fn begin_reading(&mut self, name: Digest) {
        *self.reading.entry(name).or_insert(0) += 1;
        self.epoch += 1;
    }

    /// A reader has gone; some: another member may come back for it until then.
    pub(super) fn end_reading(&mut self, name: Digest, until: Option<Instant>) {
        let readers = self.reading.entry(name).or_insert(1);
        *readers -= 1;
        if *readers == 0 {
            self.reading.remove(&name);
            self.suspects.snapshots.insert(name);
        }
        if let Some(until) = until {
            self.lingering.insert(name, until);
            self.suspects.snapshots.remove(&name);
        }
        self.cached = true;
        self.epoch += 1;
    }

    /// Keeps what no member has come back for no longer.
    fn expire(&mut self, now: Instant) {
        let expired = self.lingering.iter().filter(|(_, until)| **until <= now);
        let expired: Vec<Digest> = expired.map(|(name, _)| *name).collect();
        for name in expired {
            self.lingering.remove(&name);
            self.suspects.snapshots.insert(name);
            self.epoch += 1;
        }
    }

    fn named(&self) -> BTreeSet<Digest> {
        let transfer = self.transfer.iter().map(|transfer| &transfer.root.manifest);
        let names = self.installed.iter().chain(transfer).chain(&self.finished);
        names.chain(self.reading.keys()).chain(self.lingering.keys()).copied().collect()
    }

    fn is_pinned(&self, name: &Digest) -> bool {
        self.writing.values().any(|writing| writing.contains(name))
    }
}

/// Removes what nobody needs from the disk and from memory, whenever there may be something, until it
/// is stopped.
pub(super) fn run(shared: &Shared) -> Result<(), StoreError> {
    loop {
        let mut pins = shared.pins();
        loop {
            let now = Instant::now();
            pins.expire(now);
            if !pins.suspects.is_empty() || pins.cached || pins.stop {
                break;
            }
            pins = match pins.lingering.values().min().map(|until| *until - now) {
                Some(wait) => {
                    let waited = shared.changed.wait_timeout(pins, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => shared.changed.wait(pins).unwrap_or_else(PoisonError::into_inner),
            };
        }
        if pins.stop {
            return Ok(());
        }
        let suspects = std::mem::take(&mut pins.suspects);
        (pins.collecting, pins.cached) = (true, false);
        drop(pins);
        let mut collector = Collector { shared, known: None };
        if suspects.everything {
            collector.look_through_everything()?;
        } else {
            collector.look_through(&suspects)?;
        }
        shared.records.let_go()?;
        shared.pins().collecting = false;
        shared.changed.notify_all();
    }
}

/// Removes keys that nobody needs.
struct Collector<'a> {
    shared: &'a Shared,
    known: Option<Known>,
}

/// What was named at some epoch.
struct Known {
    epoch: u64,
    snapshots: BTreeSet<Digest>,
    chunks: BTreeSet<Digest>,
}

impl Collector<'_> {
    fn look_through_everything(&mut self) -> Result<(), StoreError> {
        let mut from = Some(Vec::new());
        while let Some(begin) = from.take().filter(|_| !self.shared.pins().stop) {
            let mut keys = Vec::new();
            self.shared.records.scan(&begin, &mut |key, _| {
                if keys.len() == STEP {
                    from = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                keys.push(key.to_vec());
                ControlFlow::Continue(())
            })?;
            self.step(keys)?;
        }
        Ok(())
    }

    fn look_through(&mut self, suspects: &Suspects) -> Result<(), StoreError> {
        let mut names: BTreeSet<Digest> = suspects.names.clone();
        let mut pieces = Vec::new();
        for &name in &suspects.snapshots {
            let Some(encoded) = whole(self.shared, name, None)? else { continue };
            names.extend(chunks(&encoded));
            pieces.extend((0..encoded.len().div_ceil(PIECE_BYTES)).map(|at| (name, at as u32)));
        }
        let chunks = names.iter().map(|&name| chunk_key(name));
        let unfinished = suspects.names.iter().map(|&name| piece_key(name, 0));
        let pieces = pieces.into_iter().map(|(name, at)| piece_key(name, at));
        // A manifest goes after its chunks, so that a crash in between leaves it to be found.
        let keys: Vec<Vec<u8>> = chunks.chain(unfinished).chain(pieces).collect();
        keys.chunks(STEP).try_for_each(|keys| self.step(keys.to_vec()))
    }

    /// Removes those of a few keys that nobody needs.
    fn step(&mut self, mut keys: Vec<Vec<u8>>) -> Result<(), StoreError> {
        let Some((known, mut pins)) = self.know()? else { return Ok(()) };
        keys.retain(|key| match Named::decode(key) {
            Some(Named::Chunk(name)) => !known.chunks.contains(&name) && !pins.is_pinned(&name),
            Some(Named::Piece(name)) => !known.snapshots.contains(&name) && !pins.is_pinned(&name),
            Some(Named::Transfer) => false,
            None => true,
        });
        pins.removing = keys.iter().filter_map(|key| Named::decode(key)?.name()).collect();
        drop(pins);
        self.known = Some(known);
        let mut removed = Removed::default();
        let applied = keys.into_iter().try_for_each(|key| {
            removed.add(CHUNK_BYTES_GUESSED);
            self.shared.records.apply(vec![Change::Remove(key)])
        });
        self.shared.pins().removing.clear();
        self.shared.changed.notify_all();
        applied?;
        if removed.keys > 0 {
            failpoint::reach(Failpoint::CompactChunksAfter);
            self.shared.records.sync()?;
            self.shared.pace.wait();
            self.shared.records.reclaim(removed)?;
        }
        self.shared.pace.wait();
        Ok(())
    }

    /// What is named, and the lock under which that holds; none: it is time to stop.
    fn know(&mut self) -> Result<Option<(Known, MutexGuard<'_, Pins>)>, StoreError> {
        let shared = self.shared;
        let mut known = self.known.take();
        loop {
            let pins = shared.pins();
            if pins.stop {
                return Ok(None);
            }
            if let Some(known) = known.take_if(|known| known.epoch == pins.epoch) {
                return Ok(Some((known, pins)));
            }
            let (epoch, snapshots, installed) = (pins.epoch, pins.named(), pins.installed);
            drop(pins);
            known = Some(look_up(shared, epoch, snapshots, installed)?);
        }
    }
}

fn look_up(
    shared: &Shared,
    epoch: u64,
    snapshots: BTreeSet<Digest>,
    installed: Option<Digest>,
) -> Result<Known, StoreError> {
    let mut all = BTreeSet::new();
    for &name in &snapshots {
        if let Some(encoded) = whole(shared, name, installed)? {
            all.extend(chunks(&encoded));
        }
    }
    Ok(Known { epoch, snapshots, chunks: all })
}

/// The manifest of a snapshot, if all of it is here. One that is being written, or that a crash has
/// left in part, names nothing; that of the installed snapshot must be whole.
fn whole(
    shared: &Shared,
    name: Digest,
    installed: Option<Digest>,
) -> Result<Option<Vec<u8>>, StoreError> {
    match shared.manifest(name) {
        Err(StoreError::Damaged(_)) if installed != Some(name) => Ok(None),
        manifest => manifest,
    }
}

fn chunks(encoded: &[u8]) -> impl Iterator<Item = Digest> {
    let manifest = Manifest::decode(encoded).unwrap_or_default();
    manifest.chunks.into_iter().map(|(digest, _)| digest)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    use bytes::Bytes;
    use raft::{GroupTime, Index, Membership, Position, Term};

    use super::*;
    use crate::store::manifest::digest;
    use crate::store::pace::{Fatal, Pace};
    use crate::store::reading::SERVED_GRACE;
    use crate::store::records::{Records, Visit};
    use crate::store::sled_records::SledRecords;
    use crate::store::snapshots::Snapshots;

    #[test]
    fn what_a_member_was_fetching_stays_for_the_grace_after_its_last_reader() {
        let name = Digest([1; 32]);
        let mut pins = Pins::new(None);
        pins.suspects = Suspects::default();
        let begun = Instant::now();
        let until = Some(begun + SERVED_GRACE);
        pins.begin_reading(name);
        pins.begin_reading(name);
        pins.end_reading(name, until);
        pins.end_reading(name, until);
        let last = begun + SERVED_GRACE - Duration::from_millis(1);
        pins.expire(last);
        assert!(pins.named().contains(&name) && pins.suspects.is_empty());
        // It comes back, and breaks off once more.
        pins.begin_reading(name);
        pins.end_reading(name, Some(last + SERVED_GRACE));
        pins.expire(begun + SERVED_GRACE);
        assert!(pins.named().contains(&name) && pins.suspects.is_empty());
        pins.expire(last + SERVED_GRACE);
        assert!(!pins.named().contains(&name) && pins.suspects.snapshots.contains(&name));
        // What this member reads for itself goes at once.
        pins.begin_reading(name);
        assert!(pins.named().contains(&name));
        pins.end_reading(name, None);
        assert!(!pins.named().contains(&name));
    }

    /// Waits before it removes the first key, until another has met it at the barrier, twice.
    struct Waiting {
        records: SledRecords,
        waited: AtomicBool,
        barrier: Barrier,
    }

    impl Records for Waiting {
        fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
            let removes = |change: &Change| matches!(change, Change::Remove(_));
            if changes.iter().any(removes) && !self.waited.swap(true, Ordering::SeqCst) {
                self.barrier.wait();
                self.barrier.wait();
            }
            self.records.apply(changes)
        }

        fn sync(&self) -> Result<(), StoreError> {
            self.records.sync()
        }

        fn reclaim(&self, removed: Removed) -> Result<(), StoreError> {
            self.records.reclaim(removed)
        }

        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.records.get(key)
        }

        fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
            self.records.scan(from, visit)
        }
    }

    #[test]
    fn only_who_needs_what_is_being_removed_waits_for_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let records = SledRecords::open(directory.path()).unwrap();
        let chunk = Bytes::from(vec![7; 9_000]);
        let name = digest(&chunk);
        records.apply(vec![Change::Put(chunk_key(name), chunk.to_vec())]).unwrap();
        let records =
            Arc::new(Waiting { records, waited: AtomicBool::new(false), barrier: Barrier::new(2) });
        let (pace, fatal) = (Arc::new(Pace::new()), Arc::new(Fatal::new(Box::new(|_| ()))));
        let snapshots = Snapshots::open(records.clone(), None, pace, fatal).unwrap();
        let shared = snapshots.0.clone();
        let removing = std::thread::spawn(move || {
            let mut collector = Collector { shared: &shared, known: None };
            collector.look_through(&Suspects { names: [name].into(), ..Suspects::default() })
        });
        records.barrier.wait();
        let (done, told) = std::sync::mpsc::channel();
        let (other, finished) = (snapshots.clone(), done.clone());
        std::thread::spawn(move || finished.send(other.transfer().map(|it| it.root)));
        let free = told.recv_timeout(Duration::from_secs(20));
        assert_eq!(free, Ok(None), "the lock is held while the disk works");
        let (writer, kept) = (snapshots.clone(), chunk.clone());
        std::thread::spawn(move || {
            let at = Position { term: Term(1), index: Index(1) };
            let membership = Arc::new(Membership::founders([]));
            let chunks = std::iter::once(kept);
            done.send(Some(writer.store_chunks(at, GroupTime(1), membership, chunks).unwrap()))
        });
        let early = told.recv_timeout(Duration::from_millis(300));
        assert!(early.is_err(), "it relies on what is about to go");
        records.barrier.wait();
        removing.join().unwrap().unwrap();
        let root = told.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!(snapshots.load(root.manifest).unwrap(), [chunk]);
    }

    #[test]
    fn half_a_manifest_names_nothing_unless_it_is_installed() {
        let directory = tempfile::tempdir().unwrap();
        let records = Arc::new(SledRecords::open(directory.path()).unwrap());
        let name = Digest([1; 32]);
        let piece = Change::Put(piece_key(name, 0), vec![7; PIECE_BYTES]);
        records.apply(vec![piece]).unwrap();
        let (pace, fatal) = (Arc::new(Pace::new()), Arc::new(Fatal::new(Box::new(|_| ()))));
        let snapshots = Snapshots::open(records, None, pace, fatal).unwrap();
        let mut pins = Pins::new(None);
        pins.begin_reading(name);
        let known = look_up(&snapshots.0, 0, pins.named(), None).unwrap();
        assert!(known.snapshots.contains(&name) && known.chunks.is_empty());
        let mut collector = Collector { shared: &snapshots.0, known: None };
        let suspects = Suspects { snapshots: [name].into(), ..Suspects::default() };
        collector.look_through(&suspects).unwrap();
        let refused = look_up(&snapshots.0, 0, pins.named(), Some(name));
        assert!(matches!(refused, Err(StoreError::Damaged(_))));
    }
}
