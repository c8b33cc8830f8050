//! Which reduce gets a key.
//!
//! By default the labs' hash of the key. Cut points give a total order over all parts; the first
//! bytes of a key keep together what begins alike; an app may have a way of its own. Whichever it
//! is, it is asked once for each distinct key that leaves a map, not for each pair.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{failure::Failure, panics};

/// An app's own way.
pub trait Partitioner: Send + Sync {
    /// The partition of a key, below `partitions`.
    fn partition(&self, key: &[u8], partitions: u32) -> u32;
}

/// How keys are spread.
#[derive(Clone, Default)]
pub enum Partitioning {
    /// By the labs' hash of the key.
    #[default]
    Hash,
    /// By the labs' hash of so many of its first bytes.
    Prefix(usize),
    /// Partition `i` gets the keys from cut `i - 1` on and below cut `i`; the cuts are in order.
    Range(Vec<Vec<u8>>),
    /// As the app says.
    Own(Arc<dyn Partitioner>),
}

impl Partitioning {
    /// The partition of a key.
    ///
    /// # Errors
    /// The app's, when its own partitioner panics or answers beyond `partitions`.
    #[inline]
    pub fn of(&self, key: &[u8], partitions: u32) -> Result<u32, Failure> {
        match self {
            _ if partitions == 1 && !matches!(self, Self::Own(_)) => Ok(0),
            Self::Hash => Ok(hash(key) % partitions.max(1)),
            Self::Prefix(bytes) => Ok(hash(&key[..key.len().min(*bytes)]) % partitions.max(1)),
            Self::Range(cuts) => {
                let place = cuts.partition_point(|cut| &cut[..] <= key) as u32;
                Ok(place.min(partitions.saturating_sub(1)))
            }
            Self::Own(own) => ask(&**own, key, partitions),
        }
    }
}

impl Partitioning {
    /// What a pair is sorted by before its key: its partition, unless that follows the order of keys
    /// and comes of itself ([`Self::of_sorted`]).
    #[inline]
    pub(crate) fn sorted_by(&self, key: &[u8], partitions: u32) -> Result<u32, Failure> {
        match self {
            Self::Range(_) => Ok(0),
            Self::Hash | Self::Prefix(_) | Self::Own(_) => self.of(key, partitions),
        }
    }

    /// The partition of a pair that was sorted by `sorted_by` and `key`, and follows on one of the
    /// partition `before`.
    #[inline]
    pub(crate) fn of_sorted(
        &self,
        key: &[u8],
        partitions: u32,
        sorted_by: u32,
        before: u32,
    ) -> u32 {
        let Self::Range(cuts) = self else { return sorted_by };
        let cuts = cuts.get(before as usize..).unwrap_or_default();
        let passed = cuts.iter().take_while(|cut| &cut[..] <= key).count() as u32;
        (before + passed).min(partitions.saturating_sub(1))
    }
}

fn ask(own: &dyn Partitioner, key: &[u8], partitions: u32) -> Result<u32, Failure> {
    let asked = catch_unwind(AssertUnwindSafe(|| own.partition(key, partitions)));
    let named = || String::from_utf8_lossy(shown(key)).into_owned();
    match asked {
        Ok(partition) if partition < partitions => Ok(partition),
        Ok(partition) => Err(Failure::user(format!(
            "the partitioner put key {:?} into partition {partition}, but there are {partitions}",
            named()
        ))),
        Err(panic) => Err(Failure::user(format!(
            "the partitioner failed on key {:?}: {}",
            named(),
            panics::message(&*panic)
        ))),
    }
}

/// As much of a key as a message needs.
pub(crate) fn shown(key: &[u8]) -> &[u8] {
    const SHOWN_BYTES: usize = 100;
    &key[..key.len().min(SHOWN_BYTES)]
}

/// The labs' hash of a key: FNV-1a of 32 bits, the sign bit cleared.
#[inline]
pub fn hash(key: &[u8]) -> u32 {
    let step = |hash: u32, &byte: &u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    key.iter().fold(2_166_136_261, step) & 0x7fff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_those_of_the_labs() {
        assert_eq!(hash(b""), 18_652_613);
        assert_eq!(hash(b"a"), 1_678_518_572);
        assert_eq!(hash(b"foobar"), 1_067_252_072);
        assert_eq!(hash(b"the"), 873_378_332);
        let ten: Vec<u32> =
            (b'a'..=b'j').map(|key| Partitioning::Hash.of(&[key], 10).unwrap()).collect();
        assert_eq!(ten, [2, 9, 0, 5, 6, 3, 4, 3, 4, 1]);
    }

    #[test]
    fn a_cut_begins_its_partition() {
        let range = Partitioning::Range(vec![b"b".to_vec(), b"b".to_vec(), b"d".to_vec()]);
        for (key, expected) in
            [("", 0), ("a", 0), ("b", 2), ("c", 2), ("cz", 2), ("d", 3), ("z", 3)]
        {
            assert_eq!(range.of(key.as_bytes(), 4).unwrap(), expected, "{key}");
        }
        // More cuts than partitions, which only a damaged plan has.
        assert_eq!(range.of(b"z", 2).unwrap(), 1);
    }

    #[test]
    fn sorted_keys_pass_the_cuts() {
        let range = Partitioning::Range(vec![b"b".to_vec(), b"b".to_vec(), b"d".to_vec()]);
        for partitions in 1..6 {
            let mut before = 0;
            for key in ["", "a", "b", "b", "c", "d", "e"] {
                let key = key.as_bytes();
                assert_eq!(range.sorted_by(key, partitions).unwrap(), 0);
                before = range.of_sorted(key, partitions, 0, before);
                assert_eq!(before, range.of(key, partitions).unwrap());
            }
        }
        assert_eq!(Partitioning::Hash.of_sorted(b"a", 4, 3, 0), 3);
    }

    #[test]
    fn a_prefix_keeps_together_what_begins_alike() {
        let prefix = Partitioning::Prefix(2);
        assert_eq!(prefix.of(b"abc", 100).unwrap(), prefix.of(b"abd", 100).unwrap());
        assert_eq!(prefix.of(b"a", 100).unwrap(), Partitioning::Hash.of(b"a", 100).unwrap());
    }

    struct Constant(u32);

    impl Partitioner for Constant {
        fn partition(&self, key: &[u8], _partitions: u32) -> u32 {
            assert_ne!(key, b"panic", "not this one");
            self.0
        }
    }

    #[test]
    fn an_own_partitioner_that_errs_is_named() {
        let own = |partition| Partitioning::Own(Arc::new(Constant(partition)));
        assert_eq!(own(3).of(b"k", 4).unwrap(), 3);
        for partition in [4, u32::MAX] {
            let refused = own(partition).of(b"k", 4).unwrap_err().to_string();
            assert!(refused.contains(&format!("partition {partition}")), "{refused}");
        }
        let refused = own(0).of(b"panic", 4).unwrap_err().to_string();
        assert!(refused.contains("not this one") && refused.contains("panic"), "{refused}");
        assert!(own(9).of(b"k", 1).is_err());
    }
}
