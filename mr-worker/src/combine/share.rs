//! A share of the large table: open addressing, at most half full: a longer way to an empty slot is
//! a branch that nobody can predict.

use super::key::ShortKey;

/// How many slots a share has at first, a power of two.
const SLOTS_MIN: usize = 16;

/// A key and what became of its values.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slot<S> {
    pub(super) key: ShortKey,
    pub(super) state: S,
}

/// Keys whose hashes begin alike.
#[derive(Debug)]
pub(super) struct Share<S> {
    slots: Vec<Slot<S>>,
    used: usize,
}

impl<S: Copy + Default> Default for Share<S> {
    fn default() -> Self {
        Self { slots: vec![Slot::default(); SLOTS_MIN], used: 0 }
    }
}

impl<S: Copy + Default> Share<S> {
    /// The state of the key with this hash, a new one if it is new.
    #[inline]
    pub(super) fn state(&mut self, key: ShortKey, hash: impl Fn(ShortKey) -> u64) -> &mut S {
        let mut place = self.place(key, hash(key));
        if self.slots[place].key.is_none() {
            if 2 * (self.used + 1) > self.slots.len() {
                self.grow(&hash);
                place = self.place(key, hash(key));
            }
            self.used += 1;
            self.slots[place].key = key;
        }
        &mut self.slots[place].state
    }

    /// Where the key with this hash belongs, and whether it is there and not behind that.
    #[inline]
    pub(super) fn look(&self, key: ShortKey, hash: u64) -> (usize, bool) {
        let place = hash as usize & (self.slots.len() - 1);
        (place, self.slots[place].key == key)
    }

    /// The state of a key that was found there.
    #[inline]
    pub(super) fn state_at(&mut self, place: u32) -> &mut S {
        &mut self.slots[place as usize].state
    }

    /// Where the key is, or would be. The highest bits of the hash have chosen the share.
    #[inline]
    fn place(&self, key: ShortKey, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut place = hash as usize & mask;
        while self.slots[place].key != key && !self.slots[place].key.is_none() {
            place = (place + 1) & mask;
        }
        place
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, hash: impl Fn(ShortKey) -> u64) {
        let larger = vec![Slot::default(); 2 * self.slots.len()];
        let smaller = std::mem::replace(&mut self.slots, larger);
        for slot in keys(&smaller) {
            let place = self.place(slot.key, hash(slot.key));
            self.slots[place] = slot;
        }
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// The memory that it has, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<Slot<S>>()
    }

    /// Everything that is here, in no order.
    pub(super) fn keys(&self) -> impl Iterator<Item = Slot<S>> {
        keys(&self.slots)
    }
}

/// The slots that have a key.
pub(super) fn keys<S: Copy>(slots: &[Slot<S>]) -> impl Iterator<Item = Slot<S>> {
    slots.iter().copied().filter(|slot| !slot.key.is_none())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn states_survive_growth() {
        let mut share: Share<u64> = Share::default();
        let mut expected: BTreeMap<u128, u64> = BTreeMap::new();
        for number in 0..20_000_u64 {
            let key = ShortKey::within(&(number * number % 3_001).to_le_bytes(), 0..8).unwrap();
            // So few hashes that many keys meet.
            *share.state(key, |key| key.hash([1, 2]) % 1_000) += number;
            *expected.entry(key.order()).or_default() += number;
        }
        let found: BTreeMap<u128, u64> =
            share.keys().map(|slot| (slot.key.order(), slot.state)).collect();
        assert_eq!(found, expected);
        assert_eq!(share.used, expected.len());
    }
}
