//! Keys that are too long to be short ones: their bytes are in the arena.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::Listed;
use crate::fold::{Arena, Slice};

/// A table of longer keys and what became of their values.
#[derive(Debug)]
pub(super) struct LongKeys<S> {
    places: HashTable<u32>,
    entries: Vec<(Slice, S)>,
    hash: RandomState,
}

impl<S> Default for LongKeys<S> {
    fn default() -> Self {
        Self { places: HashTable::new(), entries: Vec::new(), hash: RandomState::new() }
    }
}

impl<S: Copy + Default> LongKeys<S> {
    /// The state of a key, a new one if it is new.
    pub(super) fn state(&mut self, key: &[u8], arena: &mut Arena) -> &mut S {
        let Self { places, entries, hash } = self;
        let same = |place: &u32| arena.get(entries[*place as usize].0) == key;
        if let Some(place) = places.find(hash.hash_one(key), same).copied() {
            return &mut entries[place as usize].1;
        }
        let place = u32::try_from(entries.len()).expect("the memory budget is below 4 GiB");
        entries.push((arena.store(key), S::default()));
        let hash_of = |place: &u32| hash.hash_one(arena.get(entries[*place as usize].0));
        places.insert_unique(hash.hash_one(key), place, hash_of);
        &mut entries[place as usize].1
    }

    /// The memory of the entries and what sorting them will need, in bytes: room for twice as many,
    /// while they grow.
    pub(super) fn bytes(&self) -> usize {
        self.entries.len() * (2 * size_of::<(Slice, S)>() + 16 + size_of::<Listed<S>>())
    }

    /// All keys, in the order in which they came.
    pub(super) fn entries(&self) -> &[(Slice, S)] {
        &self.entries
    }
}
