//! The disk of a member: what is durable, and what is on its way there.
//!
//! Writes become durable in order, one or several at a time, after a drawn latency. A crash keeps
//! any prefix of those that were on their way, and of the next one what a store leaves that is
//! stopped between two of its operations: the term and vote go first, then the entries, in as many
//! batches as they take, then the snapshot that says which of them count. A sync may fail, and does
//! when the disk is full: what is durable then is unknown, as after a crash.
//!
//! All that is a model. In many runs the real store does the work beside it, record by record, and
//! the model says what it has to find when it is opened: no less than was acknowledged, and no more
//! than was asked for. Then a disk may also break, in ways that no store survives: it has to be
//! refused, or to be as whole as if nothing had happened. Snapshots' chunks are always the model's.

mod image;
mod medium;
mod store;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft::{
    Digest, Entry, Fetch, HardState, Index, Install, Log, Membership, NodeId, Payload,
    RECOVERY_GAP, Recovered, SnapshotRoot, Write, WriteId,
};
use rand::{RngExt, rngs::StdRng};

pub use image::Image;
use raftd::store::{gathered::Gathered, record};
use store::{Found, Store, gather};

use crate::{
    fault::{Damage, Mix},
    machine::History,
};

/// What fits into one batch of the database for certain: it takes a mebibyte of records.
const BATCH_BYTES_MIN: usize = 900 << 10;

/// What each record takes on top, of which an entry may have some of its own: key and header.
const RECORD_BYTES: usize = 128;

/// What a store takes on top: the snapshot's root, and a record that begins before the first entry.
const SLACK_BYTES: usize = 48 << 10;

/// A snapshot with its chunks.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its root.
    pub root: SnapshotRoot,
    /// Its chunks, in order.
    pub chunks: Vec<Bytes>,
    /// The log that it stands for.
    pub history: History,
}

/// A disk.
#[derive(Debug, Default)]
pub struct Disk {
    image: Image,
    pending: VecDeque<Write>,
    /// How many of the pending writes the running sync covers.
    syncing: usize,
    snapshots: BTreeMap<Digest, Stored>,
    /// The transfer that runs, or that ran when the member crashed.
    pub(crate) transfer: Option<Install>,
    /// Nothing that grows has room.
    pub(crate) full: bool,
    /// The real store; none if the model stands for it.
    store: Option<Store>,
    /// Why the store will never open again.
    lost: Option<String>,
}

/// What of the writes on their way survived a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Survival {
    /// How many whole ones.
    pub(crate) writes: usize,
    /// Whether there is a part of the next one.
    pub(crate) torn: bool,
    /// Whether something broke that no contract allows.
    pub(crate) damaged: bool,
}

/// A disk that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The core asked for something that [`Write`] rules out.
    Contract(String),
    /// The store has lost something, made it up, or refuses what it must not.
    Store(String),
}

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Self::Contract(why)
    }
}

impl Disk {
    /// What is durable.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// From now on the real store does the work, on a disk that nothing was written to.
    pub(crate) fn use_store(
        &mut self,
        seed: u64,
        id: NodeId,
        founders: &Membership,
    ) -> Result<(), Broken> {
        self.store = Some(Store::new(seed, id, founders)?);
        Ok(())
    }

    /// The member is lost with all that it had.
    pub(crate) fn destroy(&mut self) {
        self.store = None;
        self.lost = Some("it is gone".to_owned());
    }

    /// The member becomes the only voter of a group that goes on with its log. The entry that says
    /// so, which is its last one.
    pub(crate) fn recover(&mut self, id: NodeId) -> Result<Entry, Broken> {
        let store = self.store.as_mut().expect("only the real store is recovered");
        let found = store.recover()?;
        let entry = found.log.entries().last().cloned();
        let entry = entry.filter(|entry| match &entry.payload {
            Payload::Membership(now) => now.members().keys().eq([&id]) && now.recoveries() > 0,
            Payload::Noop | Payload::Tick | Payload::Command(_) => false,
        });
        let entry = entry.ok_or_else(|| Broken::Store("no membership ends its log".to_owned()))?;
        if entry.term != found.hard_state.term
            || entry.term.0 < self.image.hard_state.term.0 + RECOVERY_GAP
        {
            return Err(Broken::Store(format!("it is recovered in term {}", entry.term)));
        }
        let write = Write {
            id: WriteId(0),
            hard_state: Some(found.hard_state),
            entries: vec![entry.clone()],
            snapshot: None,
        };
        self.image.apply(write, None)?;
        if self.image.is(&found) { Ok(entry) } else { Err(differs(&self.image, &found)) }
    }

    /// Why it will never open again, if that is so.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// A member starts. None: the store refuses.
    pub(crate) fn open(&mut self, window_bytes: u64) -> Result<Option<Recovered>, Broken> {
        if self.lost.is_some() {
            return Ok(None);
        }
        let image = &self.image;
        let Some(store) = &mut self.store else { return Ok(Some(self.recovered(window_bytes))) };
        let found = store.open(window_bytes, |found| image.is(found))?;
        if image.is(&found) { Ok(Some(found)) } else { Err(differs(image, &found)) }
    }

    /// Does all that can wait, of a member that is up. How many bytes too many the store takes then
    /// for what it has to keep.
    pub(crate) fn tidy_up(&mut self) -> Result<u64, Broken> {
        let Some(store) = &mut self.store else { return Ok(0) };
        let taken = store.tidy_up()?;
        let entries = self.image.entries().map(record::encoded_len);
        let overwritten = self.image.overwritten.values().map(|&bytes| bytes as usize);
        let with_records = |bytes| bytes + RECORD_BYTES * (1 + bytes / record::PAYLOAD_BYTES_MAX);
        let needed: usize = entries.chain(overwritten).map(with_records).sum();
        let needed = (needed + SLACK_BYTES) as u64;
        Ok(taken.saturating_sub(needed))
    }

    /// What a member should find when it starts, if its memory holds so much of the log.
    pub fn recovered(&self, window_bytes: u64) -> Recovered {
        let mut recovered = Recovered {
            hard_state: self.image.hard_state,
            snapshot: self.image.snapshot.clone(),
            log: Log::new(self.image.base),
            memberships: Vec::new(),
        };
        for entry in self.image.entries() {
            recovered.push(entry.clone(), window_bytes);
        }
        recovered
    }

    /// Reads entries of the log, as many as are wanted.
    pub(crate) fn read(&mut self, fetch: Fetch) -> Result<Vec<Entry>, Broken> {
        let expected = self.entries(fetch);
        let Some(store) = &mut self.store else { return Ok(expected) };
        let read = store.read(fetch)?;
        // What was compacted away since it was asked for is not read at all.
        if read == expected || (read.is_empty() && fetch.from <= self.image.base.index) {
            return Ok(read);
        }
        let positions = |entries: &[Entry]| entries.iter().map(Entry::position).collect::<Vec<_>>();
        let (read, expected) = (positions(&read), positions(&expected));
        Err(Broken::Store(format!("{fetch:?} gives {read:?} instead of {expected:?}")))
    }

    fn entries(&self, fetch: Fetch) -> Vec<Entry> {
        let mut bytes = 0;
        let log = self.image.entries_behind(fetch.from.previous());
        let wanted = log.take_while(|entry| entry.index <= fetch.to).take_while(|entry| {
            bytes += entry.size();
            bytes == entry.size() || bytes <= fetch.bytes_max
        });
        wanted.cloned().collect()
    }

    /// A write was handed out.
    pub(crate) fn submit(&mut self, write: Write) {
        self.pending.push_back(write);
    }

    /// Begins a sync of some of what is pending, unless one is running. How long it takes.
    pub(crate) fn begin_sync(&mut self, rng: &mut StdRng, mix: &Mix) -> Option<u64> {
        if self.syncing > 0 || self.pending.is_empty() {
            return None;
        }
        let merged = mix.chance(rng, mix.merge_per_mille);
        self.syncing = if merged { self.pending.len() } else { 1 };
        let stalls = mix.chance(rng, mix.stall_per_mille);
        let latency_us_max = if stalls { mix.stall_us_max } else { mix.sync_us_max };
        Some(rng.random_range(0..=latency_us_max))
    }

    /// Whether the running sync fails.
    pub(crate) fn sync_fails(&self, rng: &mut StdRng, mix: &Mix) -> bool {
        self.with_room() < self.syncing || mix.chance(rng, mix.disk_error_per_mille)
    }

    /// For how many of the pending writes there is room.
    fn with_room(&self) -> usize {
        let grows = |write: &Write| !write.entries.is_empty() || write.snapshot.is_some();
        let first = self.pending.iter().position(|write| self.full && grows(write));
        first.unwrap_or(self.pending.len())
    }

    /// The running sync has ended. The last write that it covers.
    ///
    /// # Errors
    /// A write breaks its contract.
    pub(crate) fn end_sync(&mut self) -> Result<Option<WriteId>, Broken> {
        let count = std::mem::take(&mut self.syncing);
        if let Some(store) = self.store.as_mut().filter(|_| count > 0) {
            store.write(&self.pending.make_contiguous()[..count])?;
        }
        Ok(self.make_durable(count)?)
    }

    /// The power fails: some of what was on its way survives. Perhaps something breaks for good.
    ///
    /// # Errors
    /// A write breaks its contract, or the store its promises.
    pub(crate) fn crash(
        &mut self,
        rng: &mut StdRng,
        mix: &Mix,
        damage: Option<Damage>,
    ) -> Result<Survival, Broken> {
        if self.store.is_some() {
            return self.crash_store(rng, damage);
        }
        let writes = rng.random_range(0..=self.with_room());
        self.make_durable(writes)?;
        let next = self.pending.pop_front().filter(|_| mix.chance(rng, mix.torn_per_mille));
        let torn = next.is_some();
        if let Some(part) = next.map(|write| self.tear(write, rng)) {
            self.image.apply(part, None)?;
        }
        self.pending.clear();
        self.syncing = 0;
        Ok(Survival { writes, torn, damaged: false })
    }

    /// The same with the real store: what was being written is what the sync covers, and perhaps
    /// also what came behind it.
    fn crash_store(
        &mut self,
        rng: &mut StdRng,
        damage: Option<Damage>,
    ) -> Result<Survival, Broken> {
        let mut pending: Vec<Write> = self.pending.drain(..).collect();
        let later = pending.split_off(std::mem::take(&mut self.syncing));
        let mut groups = vec![pending.as_slice()];
        if rng.random_range(0..2) == 0 {
            groups.push(&later);
        }
        groups.retain(|group| !group.is_empty());
        let store = self.store.as_mut().expect("there is one");
        let (found, damaged) = store.crash(&groups, self.full, damage)?;
        let found = match found {
            Found::Whole(found) => found,
            // It keeps the promises that its image tells of, if only by not taking part again.
            Found::Refused(why) => {
                self.lost = Some(why);
                return Ok(Survival { writes: 0, torn: false, damaged });
            }
        };
        let mut images = vec![self.image.clone()];
        for group in &groups {
            let mut image = images.last().expect("there is one").clone();
            group.iter().try_for_each(|write| image.apply(write.clone(), self.history(write)))?;
            images.push(image);
        }
        let left = survived(images, &groups, &found, damaged);
        let (image, whole, torn) = left.ok_or_else(|| differs(&self.image, &found))?;
        self.image = image;
        self.forget_snapshots();
        let writes = groups[..whole].iter().map(|group| group.len()).sum();
        Ok(Survival { writes, torn, damaged })
    }

    /// What is left of a write that was not finished.
    fn tear(&self, mut write: Write, rng: &mut StdRng) -> Write {
        let kept = rng.random_range(0..=write.entries.len());
        let first = write.entries.first().map_or(Index(0), |entry| entry.index);
        // What does not follow the log counts only with the snapshot, which was to come last.
        let follows = first > self.image.base.index && first <= self.image.last().index.next();
        write.entries.truncate(if follows && !self.full { kept } else { 0 });
        Write { snapshot: None, ..write }
    }

    fn make_durable(&mut self, count: usize) -> Result<Option<WriteId>, String> {
        let mut last = None;
        for write in self.pending.drain(..count).collect::<Vec<_>>() {
            last = Some(write.id);
            let history = self.history(&write);
            self.image.apply(write, history)?;
        }
        self.forget_snapshots();
        Ok(last)
    }

    /// What the snapshot of a write stands for.
    fn history(&self, write: &Write) -> Option<History> {
        let root = &write.snapshot.as_ref()?.root;
        self.stored(root).map(|stored| stored.history)
    }

    /// Removes those that were replaced.
    fn forget_snapshots(&mut self) {
        let covered = self.image.snapshot.as_ref().map_or(Index(0), |root| root.position.index);
        self.snapshots.retain(|_, stored| stored.root.position.index >= covered);
    }

    /// The chunks of a snapshot were made durable.
    pub(crate) fn store(&mut self, stored: Stored) {
        self.snapshots.insert(stored.root.manifest, stored);
    }

    /// A snapshot that is here.
    pub fn stored(&self, root: &SnapshotRoot) -> Option<&Stored> {
        self.snapshots.get(&root.manifest)
    }

    /// A planted bug: the disk has lost the vote.
    pub(crate) fn lose_vote(&mut self) {
        self.image.hard_state.vote = None;
    }

    /// A planted bug: the disk has lost the last `count` entries that it called durable.
    pub(crate) fn lose_entries(&mut self, count: usize) {
        let covered = self.image.snapshot.as_ref().map_or(Index(0), |root| root.position.index);
        for _ in 0..count {
            if self.image.last().index > covered {
                self.image.log.pop_last();
            }
        }
    }
}

/// Which of the images that groups of writes lead to, one after the other, was found: with it, how
/// many groups are whole in it, and whether it has a part of the next one: its term and vote and, of
/// a group that takes several batches, some of its entries. Damage behind what was acknowledged may
/// cost all of the batches and leave the latest term and vote.
fn survived(
    images: Vec<Image>,
    groups: &[&[Write]],
    found: &Recovered,
    damaged: bool,
) -> Option<(Image, usize, bool)> {
    let hard_states: Vec<HardState> = images.iter().map(|image| image.hard_state).collect();
    for (whole, mut image) in images.into_iter().enumerate().rev() {
        let next = if damaged { hard_states.len() } else { hard_states.len().min(whole + 2) };
        if !hard_states[whole..next].contains(&found.hard_state) {
            continue;
        }
        let mut torn = image.hard_state != found.hard_state;
        image.hard_state = found.hard_state;
        if let Some(part) = groups.get(whole).and_then(|group| part_of(group, found))
            && !image.is(found)
        {
            // What does not follow the log counts only with its snapshot, which comes last.
            torn = image.apply(part, None).is_ok();
        }
        if image.is(found) {
            return Some((image, whole, torn));
        }
    }
    None
}

/// What is left of a group of writes of which only the first batches were found.
fn part_of(group: &[Write], found: &Recovered) -> Option<Write> {
    let Gathered { id, mut entries, .. } = gather(group);
    let bytes: usize = entries.iter().map(record::encoded_len).sum();
    entries.retain(|entry| entry.index <= found.log.last().index);
    let part = Write { id, hard_state: None, entries, snapshot: None };
    (bytes > BATCH_BYTES_MIN).then_some(part)
}

fn differs(image: &Image, found: &Recovered) -> Broken {
    let (base, last) = (image.base, image.last());
    Broken::Store(format!(
        "it opens with {:?}, a snapshot at {:?} and a log {}..{} instead of {:?}, {:?} and \
         {base}..{last}",
        found.hard_state,
        found.snapshot.as_ref().map(|root| root.position),
        found.log.base(),
        found.log.last(),
        image.hard_state,
        image.snapshot.as_ref().map(|root| root.position),
    ))
}
