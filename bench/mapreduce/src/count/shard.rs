//! The table that all threads share: words of up to sixteen bytes and their counts, in shards.
//!
//! A word of up to eight bytes is its own key, zeros behind it: letters are never zero, so the
//! number says the length as well. A word of up to sixteen bytes is two such numbers. A slot holds
//! nothing else than the key and its count.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Odd, and with no pattern in its bits: 2^64 by the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// How many shards there are, as a power of two.
const SHARDS_LOG: u32 = 8;

/// How many shards there are.
pub(super) const SHARDS: usize = 1 << SHARDS_LOG;

/// How many slots a shard has at first, as a power of two.
const SLOTS_LOG_FIRST: u32 = 6;

/// A word as a number.
pub(super) trait Key: Copy + Eq + Default {
    /// Its highest bits depend on every bit of the key.
    fn hash(self) -> u64;
}

impl Key for u64 {
    #[inline]
    fn hash(self) -> u64 {
        fold(self ^ MIX, MIX)
    }
}

impl Key for [u64; 2] {
    #[inline]
    fn hash(self) -> u64 {
        fold(self[0] ^ MIX, self[1].rotate_left(32) ^ MIX)
    }
}

#[inline]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product >> 64) as u64 ^ product as u64
}

/// The shard of keys with this hash.
#[inline]
pub(super) fn shard_of(hash: u64) -> usize {
    (hash >> (u64::BITS - SHARDS_LOG)) as usize
}

/// A key and its count; nobody if that is 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot<K> {
    pub(super) key: K,
    pub(super) count: u64,
}

/// Open addressing with linear probing; never more than half full.
#[derive(Debug)]
pub(super) struct Shard<K> {
    slots: Vec<Slot<K>>,
    slots_log: u32,
    used: usize,
}

impl<K: Key> Shard<K> {
    pub(super) fn new() -> Self {
        Self::with_slots(SLOTS_LOG_FIRST)
    }

    fn with_slots(slots_log: u32) -> Self {
        Self { slots: vec![Slot::default(); 1 << slots_log], slots_log, used: 0 }
    }

    #[inline]
    pub(super) fn add(&mut self, key: K, times: u64) {
        let mask = self.slots.len() - 1;
        // The highest bits have chosen the shard already.
        let mut place = (key.hash() >> (u64::BITS - SHARDS_LOG - self.slots_log)) as usize & mask;
        loop {
            let slot = &mut self.slots[place];
            if slot.count == 0 {
                return self.insert(place, key, times);
            }
            if slot.key == key {
                slot.count += times;
                return;
            }
            place = (place + 1) & mask;
        }
    }

    /// Adds one of each. On its own, so that it does not fill the loop that rarely calls it.
    #[inline(never)]
    pub(super) fn add_all(&mut self, keys: &[K]) {
        for &key in keys {
            self.add(key, 1);
        }
    }

    #[cold]
    fn insert(&mut self, place: usize, key: K, times: u64) {
        self.slots[place] = Slot { key, count: times };
        self.used += 1;
        if 2 * self.used > self.slots.len() {
            let larger = Self::with_slots(self.slots_log + 1);
            let smaller = std::mem::replace(self, larger);
            for slot in smaller.slots() {
                self.add(slot.key, slot.count);
            }
        }
    }

    /// Everybody who is here, in no order.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot<K>> {
        self.slots.iter().copied().filter(|slot| slot.count > 0)
    }
}

/// All shards of words of one kind.
#[derive(Debug)]
pub(super) struct Shared<K> {
    shards: Vec<Mutex<Shard<K>>>,
}

impl<K: Key> Shared<K> {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(Shard::new())).collect() }
    }

    /// Nobody panics with a shard, so whoever holds it finds it whole.
    pub(super) fn lock(&self, shard: usize) -> MutexGuard<'_, Shard<K>> {
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, key: K, times: u64) {
        self.lock(shard_of(key.hash())).add(key, times);
    }

    /// The shards, when all threads have ended.
    pub(super) fn into_shards(self) -> Vec<Shard<K>> {
        let shards = self.shards.into_iter();
        shards.map(|it| it.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::random::Random;

    #[test]
    fn counts_survive_growth() {
        let mut random = Random::new(1, 0);
        let shared = Shared::new();
        let mut expected: HashMap<[u64; 2], u64> = HashMap::new();
        for _ in 0..200_000 {
            // The empty key is a key like any other.
            let key = [random.below(300), random.below(300)];
            let times = 1 + random.below(3);
            shared.add(key, times);
            *expected.entry(key).or_default() += times;
        }
        let shards = shared.into_shards();
        let found: HashMap<[u64; 2], u64> =
            shards.iter().flat_map(Shard::slots).map(|slot| (slot.key, slot.count)).collect();
        assert!(found == expected);
        let largest = shards.iter().map(|shard| shard.used).max().unwrap();
        assert!(largest < 2 * expected.len() / SHARDS, "{largest} in one shard");
    }
}
