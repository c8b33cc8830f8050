//! The pairs of one shard, with what they count and their digest.
//!
//! Decides how a pair's numbers go on when it is written. Which writes happen is decided in
//! `write.rs` and `txn.rs`.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use raft::RECOVERY_GAP;

use crate::{
    command::LeaseId,
    digest,
    limits::{DISCARDED_BYTES_PER_STEP, PAIR_OVERHEAD_BYTES},
    outcome::{Key, Pair, Revision, Version},
    view::Change,
};

/// The pairs. Cloning shares everything.
///
/// Invariant: `bytes` and `digest` are the sums over `map`.
#[derive(Clone, Debug)]
pub(crate) struct Pairs {
    shard: u32,
    map: OrdMap<Key, Arc<Pair>>,
    bytes: u64,
    digest: u128,
}

impl Pairs {
    pub(crate) fn new(shard: u32) -> Self {
        Self { shard, map: OrdMap::new(), bytes: 0, digest: 0 }
    }

    pub(crate) fn map(&self) -> &OrdMap<Key, Arc<Pair>> {
        &self.map
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Pair> {
        self.map.get(key).map(|pair| &**pair)
    }

    /// What they count in what is stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// Lets a key hold something else, or nothing, and says what changed, with the digests of what
    /// was there and of what is. One of the two must be there. That of what was there is taken from
    /// it once more, so that memory which has failed since shows.
    pub(crate) fn set(
        &mut self,
        key: &[u8],
        current: Option<Pair>,
        expired: bool,
    ) -> (Change, [u128; 2]) {
        let current = current.map(Arc::new);
        let (key, previous) = match &current {
            None => match self.map.remove_with_key(key) {
                Some((key, previous)) => (key, Some(previous)),
                None => (Key::from(key), None),
            },
            Some(pair) => match self.map.get_key_value_mut(key) {
                Some((key, slot)) => (key.clone(), Some(std::mem::replace(slot, pair.clone()))),
                None => {
                    let key = Key::from(key);
                    self.map.insert(key.clone(), pair.clone());
                    (key, None)
                }
            },
        };
        assert!(previous.is_some() || current.is_some(), "a change from nothing to nothing");
        let change = Change { key, previous, current, expired };
        let digests = self.digests(&change);
        let cost_of = |pair: &Option<Arc<Pair>>| {
            pair.as_ref().map_or(0, |pair| cost(&change.key, &pair.value))
        };
        self.bytes = self.bytes + cost_of(&change.current) - cost_of(&change.previous);
        self.digest = self.digest.wrapping_sub(digests[0]).wrapping_add(digests[1]);
        (change, digests)
    }

    /// Puts a pair back that a snapshot held; false when the key was there.
    pub(crate) fn restore(&mut self, key: Key, pair: Pair) -> bool {
        self.bytes += cost(&key, &pair.value);
        self.digest = self.digest.wrapping_add(digest::pair(self.shard, &key, &pair));
        self.map.insert(key, Arc::new(pair)).is_none()
    }

    /// Takes out no more than so many pairs, and of large ones few; whether some are left.
    pub(crate) fn discard(&mut self, most: usize) -> bool {
        let mut bytes = 0;
        for _ in 0..most {
            let Some((key, pair)) = self.map.get_min() else { return false };
            bytes += pair.value.len();
            let key = key.clone();
            self.set(&key, None, false);
            if bytes >= DISCARDED_BYTES_PER_STEP {
                break;
            }
        }
        !self.map.is_empty()
    }

    /// The digests of what a key held before a change and since; 0: nothing.
    pub(crate) fn digests(&self, change: &Change) -> [u128; 2] {
        [&change.previous, &change.current]
            .map(|pair| pair.as_ref().map_or(0, |pair| digest::pair(self.shard, &change.key, pair)))
    }
}

/// What a pair counts in what is stored.
pub(crate) fn cost(key: &[u8], value: &[u8]) -> u64 {
    key.len() as u64 + value.len() as u64 + PAIR_OVERHEAD_BYTES
}

/// The pair that a write at a revision makes of what was there.
pub(crate) fn written(
    before: Option<&Pair>,
    revision: Revision,
    value: Bytes,
    lease: Option<LeaseId>,
) -> Pair {
    let (create_revision, version) = match before {
        None => (revision, Version(1 + recoveries(revision) * RECOVERY_GAP)),
        Some(pair) => {
            let passed = recoveries(revision).saturating_sub(recoveries(pair.mod_revision));
            (pair.create_revision, Version(pair.version.0 + 1 + passed * RECOVERY_GAP))
        }
    };
    Pair { value, version, create_revision, mod_revision: revision, lease }
}

/// How often the group was recovered before a revision. A shard that counts beyond the gap moves its
/// versions on as well, which does no harm.
fn recoveries(revision: Revision) -> u64 {
    revision.0 / RECOVERY_GAP
}
