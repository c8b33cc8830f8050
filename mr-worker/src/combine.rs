//! The combining table: what a map has emitted so far, one entry for each distinct key.
//!
//! A key is copied into the arena when it is first seen; an entry holds its first eight bytes, so
//! that most words are compared without touching the arena, and the same eight bytes lead the sort.
//! Which partition a key goes to is asked only when the table is drained, once for each distinct
//! key.

use std::hash::{BuildHasher, Hasher};

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::{
    failure::Failure,
    fold::{Arena, Fold, FoldError, Slice, VALUE_BYTES_MAX},
    partition::Partitioning,
};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 8 << 20;

/// What an entry costs in memory beside its key and values: its share of the hash table while that
/// grows, and its place in the sorted list.
const ENTRY_COST: usize = 96;

/// Keys of up to this many bytes are held by their prefix alone.
const PREFIX_BYTES: usize = 8;

/// Keys and what became of their values.
pub(crate) struct Table<F: Fold> {
    entries: HashTable<Entry<F::State>>,
    arena: Arena,
    arena_bytes: usize,
    fold: F,
    hash: KeyHash,
}

#[derive(Clone, Copy)]
struct Entry<S> {
    prefix: u64,
    key: Slice,
    state: S,
}

/// An entry on its way out: ordered by partition, then key.
pub(crate) struct Sorted<S> {
    pub(crate) partition: u32,
    pub(crate) key: Slice,
    prefix: u64,
    state: S,
}

impl<F: Fold> Table<F> {
    /// An empty table for a budget of so many bytes, and the pair that exceeds it.
    pub(crate) fn new(budget: usize) -> Self {
        let hash = KeyHash { long: DefaultHashBuilder::default() };
        let arena_bytes = budget + KEY_BYTES_MAX + VALUE_BYTES_MAX;
        let arena = Arena::with_capacity(arena_bytes);
        Self { entries: HashTable::new(), arena, arena_bytes, fold: F::default(), hash }
    }

    /// Takes one more value of `key`.
    #[inline]
    pub(crate) fn add(&mut self, key: &[u8], input: F::Input<'_>) -> Result<(), FoldError> {
        let prefix = prefix(key);
        let hash = self.hash.of(key, prefix);
        let same = |entry: &Entry<F::State>| {
            entry.prefix == prefix
                && entry.key.length as usize == key.len()
                && (key.len() <= PREFIX_BYTES || self.arena.get(entry.key) == key)
        };
        if let Some(entry) = self.entries.find_mut(hash, same) {
            return self.fold.fold(&mut entry.state, input, &mut self.arena);
        }
        self.insert(hash, prefix, key, input)
    }

    #[cold]
    #[inline(never)]
    fn insert(
        &mut self,
        hash: u64,
        prefix: u64,
        key: &[u8],
        input: F::Input<'_>,
    ) -> Result<(), FoldError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(FoldError::KeyTooLong);
        }
        let mut state = F::State::default();
        self.fold.fold(&mut state, input, &mut self.arena)?;
        let entry = Entry { prefix, key: self.arena.store(key), state };
        let (arena, hasher) = (&self.arena, &self.hash);
        self.entries
            .insert_unique(hash, entry, |entry| hasher.of(arena.get(entry.key), entry.prefix));
        Ok(())
    }

    /// How much memory is in use, what draining will need included, in bytes.
    #[inline]
    pub(crate) fn used(&self) -> usize {
        self.arena.used() + self.entries.len() * ENTRY_COST
    }

    /// How many keys there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// All entries, by partition and key.
    pub(crate) fn sorted(
        &self,
        partitioning: &Partitioning,
        partitions: u32,
    ) -> Result<Vec<Sorted<F::State>>, Failure> {
        let mut sorted = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            sorted.push(Sorted {
                partition: partitioning.of(self.arena.get(entry.key), partitions)?,
                key: entry.key,
                prefix: entry.prefix,
                state: entry.state,
            });
        }
        // Keys are distinct, so stability has nothing to keep.
        sorted.sort_unstable_by(|left, right| {
            (left.partition, left.prefix)
                .cmp(&(right.partition, right.prefix))
                .then_with(|| self.arena.get(left.key).cmp(self.arena.get(right.key)))
        });
        Ok(sorted)
    }

    pub(crate) fn key(&self, entry: &Sorted<F::State>) -> &[u8] {
        self.arena.get(entry.key)
    }

    /// Hands out the values of an entry, in the order of their emission.
    pub(crate) fn values(
        &self,
        entry: &Sorted<F::State>,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.fold.values(&entry.state, &self.arena, each)
    }

    /// Forgets everything, and gives the memory back: what comes next may need it for more keys, or
    /// for longer ones.
    pub(crate) fn clear(&mut self) {
        self.entries = HashTable::new();
        self.arena = Arena::with_capacity(self.arena_bytes);
    }
}

/// The first eight bytes of `key` as a number that orders as they do; a shorter key is filled with
/// zeros.
#[inline]
pub(crate) fn prefix(key: &[u8]) -> u64 {
    if let Some(first) = key.first_chunk::<8>() {
        return u64::from_be_bytes(*first);
    }
    // Two overlapping loads, or three single bytes, so that no length needs a loop.
    if let (Some(first), Some(last)) = (key.first_chunk::<4>(), key.last_chunk::<4>()) {
        let high = u64::from(u32::from_be_bytes(*first)) << 32;
        let low = u64::from(u32::from_be_bytes(*last)) << (8 * (8 - key.len()));
        return high | low;
    }
    match key.len() {
        0 => 0,
        length => {
            let byte = |place: usize| u64::from(key[place]) << (8 * (7 - place));
            byte(0) | byte(length / 2) | byte(length - 1)
        }
    }
}

/// A hash that differs from process to process, so that no input can be made to collide.
struct KeyHash {
    long: DefaultHashBuilder,
}

impl KeyHash {
    #[inline]
    fn of(&self, key: &[u8], prefix: u64) -> u64 {
        let mut hasher = self.long.build_hasher();
        if key.len() <= PREFIX_BYTES {
            // Zero bytes at the end make no difference to the prefix; the comparison sees them.
            hasher.write_u64(prefix);
        } else {
            hasher.write(key);
        }
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::Sum;

    #[test]
    fn a_prefix_is_the_first_eight_bytes() {
        for length in 0..20 {
            let key: Vec<u8> = (1..=length).map(|byte| byte * 11).collect();
            let mut padded = key.clone();
            padded.resize(key.len().max(8), 0);
            let expected = u64::from_be_bytes(*padded.first_chunk().unwrap());
            assert_eq!(prefix(&key), expected, "{length}");
        }
    }

    #[test]
    fn keys_that_differ_in_zeros_or_tails_stay_apart() {
        let mut table: Table<Sum> = Table::new(1 << 20);
        let keys: [&[u8]; 7] =
            [b"", b"\0", b"\0\0", b"abcdefgh", b"abcdefgh\0", b"abcdefghi", b"b"];
        for (times, key) in keys.iter().enumerate() {
            for _ in 0..=times {
                table.add(key, 1).unwrap();
            }
        }
        let sorted = table.sorted(&Partitioning::Hash, 1).unwrap();
        let found: Vec<(&[u8], u64)> =
            sorted.iter().map(|entry| (table.key(entry), entry.state)).collect();
        let expected: Vec<(&[u8], u64)> =
            keys.iter().enumerate().map(|(place, key)| (*key, place as u64 + 1)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_key_beyond_the_limit_is_refused() {
        let mut table: Table<Sum> = Table::new(1 << 20);
        assert_eq!(table.add(&vec![b'a'; KEY_BYTES_MAX + 1], 1), Err(FoldError::KeyTooLong));
        assert_eq!(table.len(), 0);
    }
}
