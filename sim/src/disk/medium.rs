//! What the real store writes to: a database and two slots, in memory, of which a crash keeps what
//! their contracts allow, and damage what none of them does.
//!
//! Everything that is done is remembered with what it replaced until it is synced. So a crash may
//! be drawn afterwards: what came behind the operation at which it struck is undone, and of what
//! was not synced a part is lost, of the database the last batches, of the slots any sectors.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raftd::store::StoreError;
use raftd::store::records::{Change, Records, Removed, Visit};
use raftd::store::slots::{BLOCK_BYTES, Block, Slot, Slots};
use rand::{RngExt, rngs::StdRng};

use crate::fault::Damage;

/// What disks write whole, or not at all; a controller that loses power may do worse.
const SECTOR_BYTES: usize = 512;

/// How many batches a database may take for torn when it repairs itself.
const REPAIRED_MAX: usize = 24;

/// The disk of a member; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct Medium(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
    slots: [Box<Block>; 2],
    /// What was done and may be undone, in order.
    done: Vec<Done>,
    /// What the last batches replaced that are durable.
    synced: VecDeque<Replaced>,
    /// What the slot held that was synced last, before it was written.
    former: Option<(Slot, Box<Block>)>,
    /// Nothing can be put.
    full: bool,
    /// After how many operations more, reads among them, one is refused.
    refuses_after: Option<usize>,
    /// How many were asked for since one was refused, that one included.
    refused: usize,
}

/// The keys that a batch changed, and what they held before.
type Replaced = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// An operation.
#[derive(Debug)]
enum Done {
    Applied(Replaced),
    Synced,
    /// What the slot held before.
    Wrote(Slot, Box<Block>),
    SlotsSynced,
}

impl Default for State {
    fn default() -> Self {
        Self {
            keys: BTreeMap::new(),
            slots: [Box::new([0; BLOCK_BYTES]), Box::new([0; BLOCK_BYTES])],
            done: Vec::new(),
            synced: VecDeque::new(),
            former: None,
            full: false,
            refuses_after: None,
            refused: 0,
        }
    }
}

/// How many operations had been done at some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(usize);

impl Medium {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been done up to now can't be undone, but what is not synced can still be lost.
    pub(super) fn now(&self) -> Moment {
        let mut state = self.state();
        state.settle();
        Moment(state.done.len())
    }

    /// How many bytes the keys and values of the database have.
    pub(super) fn bytes(&self) -> u64 {
        self.state().keys.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }

    /// From now on nothing can be put, or everything can.
    pub(super) fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// From now on the operation after so many others is refused, or none.
    pub(super) fn refuse_after(&self, operations: Option<usize>) {
        let mut state = self.state();
        state.refuses_after = operations;
        state.refused = 0;
    }

    /// How many operations were asked for since one was refused, that one included.
    pub(super) fn refused(&self) -> usize {
        self.state().refused
    }

    /// Nothing has been done since that moment.
    pub(super) fn undo_to(&self, moment: Moment) {
        self.state().undo_to(moment.0);
    }

    /// The power fails at some moment since that one.
    pub(super) fn cut(&self, since: Moment, rng: &mut StdRng) {
        let mut state = self.state();
        let at = rng.random_range(since.0..=state.done.len());
        state.undo_to(at);
        state.lose_unsynced(rng);
    }

    /// The process ended at some moment since that one, all that was written is there, and something
    /// breaks all the same. Whether there was something to break.
    pub(super) fn damage(&self, since: Moment, damage: Damage, rng: &mut StdRng) -> bool {
        let mut state = self.state();
        let at = rng.random_range(since.0..=state.done.len());
        state.undo_to(at);
        state.sync_all();
        match damage {
            Damage::TailLost => {
                let lost = rng.random_range(1..=REPAIRED_MAX).min(state.synced.len());
                for _ in 0..lost {
                    let replaced = state.synced.pop_back().expect("so many are there");
                    state.put_back(replaced);
                }
                lost > 0
            }
            Damage::DatabaseEmpty => {
                state.synced.clear();
                !std::mem::take(&mut state.keys).is_empty()
            }
            Damage::RecordFlipped => state.flip_record(rng),
            Damage::SlotFlipped => {
                let slot = rng.random_range(0..2);
                let at = rng.random_range(0..SECTOR_BYTES);
                state.slots[slot][at] ^= 1 << rng.random_range(0..8);
                true
            }
            Damage::SlotSyncLost => match state.former.take() {
                Some((slot, block)) => {
                    state.slots[place(slot)] = block;
                    true
                }
                None => false,
            },
        }
    }
}

impl State {
    /// Forgets how to undo what is durable.
    fn settle(&mut self) {
        let last = |state: &Self, is_it: fn(&Done) -> bool| state.done.iter().rposition(is_it);
        let synced = last(self, |done| matches!(done, Done::Synced)).unwrap_or(0);
        let slots_synced = last(self, |done| matches!(done, Done::SlotsSynced)).unwrap_or(0);
        let mut written = None;
        for (at, done) in std::mem::take(&mut self.done).into_iter().enumerate() {
            match done {
                Done::Applied(replaced) if at < synced => {
                    if self.synced.len() == REPAIRED_MAX {
                        self.synced.pop_front();
                    }
                    self.synced.push_back(replaced);
                }
                Done::Wrote(slot, block) if at < slots_synced => {
                    written.get_or_insert((slot, block));
                }
                Done::Synced => {}
                Done::SlotsSynced => self.former = written.take().or(self.former.take()),
                unsynced @ (Done::Applied(_) | Done::Wrote(..)) => self.done.push(unsynced),
            }
        }
    }

    fn sync_all(&mut self) {
        self.done.extend([Done::Synced, Done::SlotsSynced]);
        self.settle();
    }

    fn put_back(&mut self, replaced: Replaced) {
        for (key, value) in replaced.into_iter().rev() {
            match value {
                Some(value) => drop(self.keys.insert(key, value)),
                None => drop(self.keys.remove(&key)),
            }
        }
    }

    fn undo_to(&mut self, at: usize) {
        while self.done.len() > at {
            match self.done.pop() {
                Some(Done::Applied(replaced)) => self.put_back(replaced),
                Some(Done::Wrote(slot, block)) => self.slots[place(slot)] = block,
                Some(Done::Synced | Done::SlotsSynced) | None => {}
            }
        }
    }

    /// What is not synced is lost in part.
    fn lose_unsynced(&mut self, rng: &mut StdRng) {
        self.settle();
        let mut written = Vec::new();
        let batches = self.done.iter().filter(|done| matches!(done, Done::Applied(_))).count();
        let kept = some_of(batches, rng);
        let mut lost = batches - kept;
        while let Some(done) = self.done.pop() {
            match done {
                Done::Applied(replaced) if lost > 0 => {
                    lost -= 1;
                    self.put_back(replaced);
                }
                Done::Wrote(slot, block) => {
                    let after = std::mem::replace(&mut self.slots[place(slot)], block);
                    written.push((slot, after));
                }
                Done::Applied(_) | Done::Synced | Done::SlotsSynced => {}
            }
        }
        while let Some((slot, block)) = written.pop() {
            tear(&mut self.slots[place(slot)], &block, rng);
        }
    }

    /// Whether there was something to flip.
    fn flip_record(&mut self, rng: &mut StdRng) -> bool {
        if self.keys.is_empty() {
            return false;
        }
        let which = rng.random_range(0..self.keys.len());
        let (mut key, value) = self.keys.iter_mut().nth(which).map_or_else(
            || unreachable!("so many keys are there"),
            |(key, value)| (key.clone(), value),
        );
        let (at, bit) = (rng.random_range(0..key.len() + value.len()), rng.random_range(0..8));
        match at.checked_sub(key.len()) {
            Some(at) => value[at] ^= 1 << bit,
            None => {
                let value = self.keys.remove(&key).unwrap_or_default();
                key[at] ^= 1 << bit;
                self.keys.insert(key, value);
            }
        }
        true
    }

    /// An operation is asked for. From the first one that is refused on all are.
    fn operate(&mut self) -> Result<(), StoreError> {
        let refused = || StoreError::machine("the disk refuses", io::Error::other("it fails"));
        match &mut self.refuses_after {
            Some(0) => {
                self.refused += 1;
                Err(refused())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// All, nothing, or any number in between.
fn some_of(count: usize, rng: &mut StdRng) -> usize {
    match rng.random_range(0..3) {
        0 => 0,
        1 => count,
        _ => rng.random_range(0..=count),
    }
}

/// Some of the sectors are written, one of them perhaps in part.
fn tear(block: &mut Block, new: &Block, rng: &mut StdRng) {
    let torn = rng.random_range(0..3);
    for (old, new) in block.chunks_mut(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES)) {
        let written = match torn {
            0 => 0,
            1 => SECTOR_BYTES,
            _ => match rng.random_range(0..8) {
                0..4 => 0,
                4..7 => SECTOR_BYTES,
                _ => rng.random_range(0..=SECTOR_BYTES),
            },
        };
        old[..written].copy_from_slice(&new[..written]);
    }
}

fn place(slot: Slot) -> usize {
    match slot {
        Slot::First => 0,
        Slot::Second => 1,
    }
}

impl Records for Medium {
    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut state = self.state();
        let grows = changes.iter().any(|change| matches!(change, Change::Put(..)));
        if state.full && grows {
            state.refuses_after = Some(0);
        }
        state.operate()?;
        let mut replaced = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Put(key, value) => {
                    let before = state.keys.insert(key.clone(), value);
                    replaced.push((key, before));
                }
                Change::Remove(key) => {
                    let before = state.keys.remove(&key);
                    replaced.push((key, before));
                }
            }
        }
        state.done.push(Done::Applied(replaced));
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        state.operate()?;
        state.done.push(Done::Synced);
        Ok(())
    }

    fn reclaim(&self, _: Removed) -> Result<(), StoreError> {
        self.sync()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let mut state = self.state();
        state.operate()?;
        Ok(state.keys.get(key).cloned())
    }

    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut state = self.state();
        state.operate()?;
        for (key, value) in state.keys.range(from.to_vec()..) {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

impl Slots for Medium {
    fn write(&mut self, slot: Slot, block: &Block) -> Result<(), StoreError> {
        let mut state = self.state();
        state.operate()?;
        let before = std::mem::replace(&mut state.slots[place(slot)], Box::new(*block));
        state.done.push(Done::Wrote(slot, before));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let mut state = self.state();
        state.operate()?;
        state.done.push(Done::SlotsSynced);
        Ok(())
    }

    fn read(&self, slot: Slot) -> Result<Box<Block>, StoreError> {
        let mut state = self.state();
        state.operate()?;
        Ok(state.slots[place(slot)].clone())
    }
}
