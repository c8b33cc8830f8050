//! A disk in memory that crashes between any two operations, and within one.
//!
//! What is not synced may be lost: of the batches a suffix, as a log-structured database loses
//! them; of the slots any mixture of old and new bytes.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use raftd::store::StoreError;
use raftd::store::records::{Change, Records, Removed, Visit};
use raftd::store::slots::{BLOCK_BYTES, Block, Slot, Slots};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How a crash treats what is not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Crash {
    /// The process is killed: everything written stays.
    Kill,
    /// The power fails: chance decides.
    PowerCut(u64),
}

/// The disk of one member; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
    unsynced: Vec<Vec<Change>>,
    slots: [Option<Box<Block>>; 2],
    unsynced_slots: Vec<(Slot, Box<Block>)>,
    /// Everything that was ever put.
    history: BTreeMap<Vec<u8>, Vec<u8>>,
    operations: usize,
    crash_at: Option<usize>,
    /// Whether the operation at which it crashes is still done.
    done_at_crash: bool,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// From now on, the operation after `operations` others is the last.
    pub(crate) fn crash_after(&self, operations: usize, done: bool) {
        let mut state = self.state();
        state.crash_at = Some(state.operations + operations);
        state.done_at_crash = done;
    }

    /// What a process finds that starts after the crash.
    pub(crate) fn restart(&self, crash: Crash) {
        let mut state = self.state();
        state.crash_at = None;
        let (unsynced, slots) =
            (std::mem::take(&mut state.unsynced), std::mem::take(&mut state.unsynced_slots));
        let mut rng = match crash {
            Crash::Kill => None,
            Crash::PowerCut(seed) => Some(StdRng::seed_from_u64(seed)),
        };
        let kept = rng.as_mut().map_or(unsynced.len(), |rng| rng.random_range(0..=unsynced.len()));
        unsynced.into_iter().take(kept).for_each(|batch| state.make(batch));
        for (slot, block) in slots {
            let torn = rng.as_mut().map_or(BLOCK_BYTES, |rng| match rng.random_range(0..3) {
                0 => 0,
                1 => rng.random_range(0..BLOCK_BYTES),
                _ => BLOCK_BYTES,
            });
            let old = state.slots[place(slot)].get_or_insert_with(|| Box::new([0; BLOCK_BYTES]));
            old[..torn].copy_from_slice(&block[..torn]);
        }
    }

    /// All keys with their values.
    pub(crate) fn keys(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.state().keys.clone()
    }

    /// All keys that were ever put and are there no more.
    pub(crate) fn removed(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let state = self.state();
        let gone = state.history.iter().filter(|(key, _)| !state.keys.contains_key(*key));
        gone.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// A disk that holds other keys and the same slots.
    pub(crate) fn with_keys(&self, keys: BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        let slots = self.state().slots.clone();
        Self(Arc::new(Mutex::new(State { keys, slots, ..State::default() })))
    }

    /// Flips one bit of a slot.
    pub(crate) fn flip(&self, slot: Slot, at: usize) {
        self.state().slots[place(slot)].as_mut().unwrap()[at] ^= 0x10;
    }
}

fn place(slot: Slot) -> usize {
    match slot {
        Slot::First => 0,
        Slot::Second => 1,
    }
}

impl State {
    fn make(&mut self, batch: Vec<Change>) {
        for change in batch {
            match change {
                Change::Put(key, value) => {
                    self.history.insert(key.clone(), value.clone());
                    self.keys.insert(key, value);
                }
                Change::Remove(key) => drop(self.keys.remove(&key)),
            }
        }
    }

    /// Does an operation, unless the crash was before it.
    fn operate(&mut self, operation: impl FnOnce(&mut Self)) -> Result<(), StoreError> {
        let at = self.operations;
        self.operations += 1;
        let crashed = || StoreError::machine("crashed", std::io::Error::other("crash"));
        match self.crash_at {
            Some(crash) if at > crash => Err(crashed()),
            Some(crash) if at == crash => {
                if self.done_at_crash {
                    operation(self);
                }
                Err(crashed())
            }
            Some(_) | None => {
                operation(self);
                Ok(())
            }
        }
    }

    fn present(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut present = Self { keys: self.keys.clone(), ..Self::default() };
        self.unsynced.iter().for_each(|batch| present.make(batch.clone()));
        present.keys
    }
}

impl Records for Disk {
    fn apply(&self, changes: Vec<Change>) -> Result<(), StoreError> {
        let bytes: usize = changes
            .iter()
            .map(|change| match change {
                Change::Put(key, value) => key.len() + value.len(),
                Change::Remove(_) => 0,
            })
            .sum();
        assert!(bytes <= (1 << 20) + (34 << 10), "a batch of {bytes} bytes");
        self.state().operate(|state| state.unsynced.push(changes))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.state().operate(|state| {
            let unsynced = std::mem::take(&mut state.unsynced);
            unsynced.into_iter().for_each(|batch| state.make(batch));
        })
    }

    fn reclaim(&self, _: Removed) -> Result<(), StoreError> {
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.state().present().get(key).cloned())
    }

    fn scan(&self, from: &[u8], visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let present = self.state().present();
        for (key, value) in present.range(from.to_vec()..) {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

impl Slots for Disk {
    fn write(&mut self, slot: Slot, block: &Block) -> Result<(), StoreError> {
        let block = Box::new(*block);
        self.state().operate(|state| state.unsynced_slots.push((slot, block)))
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.state().operate(|state| {
            for (slot, block) in std::mem::take(&mut state.unsynced_slots) {
                state.slots[place(slot)] = Some(block);
            }
        })
    }

    fn read(&self, slot: Slot) -> Result<Box<Block>, StoreError> {
        let state = self.state();
        let pending = state.unsynced_slots.iter().rfind(|(pending, _)| *pending == slot);
        let block = pending.map(|(_, block)| block).or(state.slots[place(slot)].as_ref());
        Ok(block.cloned().unwrap_or_else(|| Box::new([0; BLOCK_BYTES])))
    }
}
