//! What a reduce goes through: records by key, wherever they are.
//!
//! Values that fold are folded across maps, whether their runs are merged or read into a table: what
//! a reducer sees does not depend on how much memory there was.

use crate::{
    combine::{Listed, Table, prefix},
    failure::Failure,
    fold::Fold,
    merge::{Merge, replace},
    partition::Partitioning,
    run::Order,
};

/// Records by key, positioned at the first that was not taken.
pub(crate) enum Cursor {
    /// Sorted runs of values that do not fold.
    Merge(Merge),
    /// Values that do.
    Folded(Box<dyn Folded>),
}

/// Folded values, whatever the fold.
pub(crate) trait Folded {
    /// The first record, if any is left.
    fn top(&self) -> Option<(&[u8], &[u8])>;
    /// The value of the first record, if its key is this one, whose prefix is known.
    fn value_of(&self, key: &[u8], key_prefix: u64) -> Option<&[u8]>;
    /// Goes to the next record.
    fn advance(&mut self) -> Result<(), Failure>;
    /// How many records were read for the first one.
    fn records(&self) -> u64;
}

impl Cursor {
    /// The first record, if any is left.
    #[inline]
    pub(crate) fn top(&self) -> Option<(&[u8], &[u8])> {
        match self {
            Self::Merge(merge) => merge.top(),
            Self::Folded(folded) => folded.top(),
        }
    }

    /// The value of the first record, if its key is this one, whose prefix is known.
    #[inline]
    pub(crate) fn value_of(&self, key: &[u8], key_prefix: u64) -> Option<&[u8]> {
        match self {
            Self::Merge(merge) => merge.value_of(key, key_prefix),
            Self::Folded(folded) => folded.value_of(key, key_prefix),
        }
    }

    /// Goes to the next record.
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Failure> {
        match self {
            Self::Merge(merge) => merge.advance(),
            Self::Folded(folded) => folded.advance(),
        }
    }

    /// How many records were read for the first one.
    #[inline]
    pub(crate) fn records(&self) -> u64 {
        match self {
            Self::Merge(_) => 1,
            Self::Folded(folded) => folded.records(),
        }
    }
}

/// Sorted runs, whose values are folded as they meet.
pub(crate) struct Folding<F> {
    merge: Merge,
    fold: F,
    key: Vec<u8>,
    prefix: u64,
    value: Vec<u8>,
    /// How many records went into the value; 0 at the end.
    joined: u64,
    /// Whether they were counted before.
    counted: bool,
}

impl<F: Fold> Folding<F> {
    /// What is left of `merge`; `counted`: its records were read before.
    pub(crate) fn new(merge: Merge, counted: bool) -> Result<Self, Failure> {
        let (key, value) = (Vec::new(), Vec::new());
        let mut folding =
            Self { merge, fold: F::default(), key, prefix: 0, value, joined: 0, counted };
        folding.advance()?;
        Ok(folding)
    }
}

impl<F: Fold> Folded for Folding<F> {
    fn top(&self) -> Option<(&[u8], &[u8])> {
        (self.joined > 0).then_some((&self.key, &self.value))
    }

    fn value_of(&self, key: &[u8], key_prefix: u64) -> Option<&[u8]> {
        let same = self.joined > 0 && self.prefix == key_prefix && self.key == key;
        same.then_some(&self.value)
    }

    fn advance(&mut self) -> Result<(), Failure> {
        let Self { merge, fold, key, value, .. } = self;
        self.joined = 0;
        let Some((first, its)) = merge.top() else { return Ok(()) };
        replace(key, first);
        replace(value, its);
        self.prefix = prefix(key);
        loop {
            merge.advance()?;
            self.joined += 1;
            match merge.value_of(key, self.prefix) {
                Some(next) if fold.join(value, next)? => {}
                Some(_) | None => return Ok(()),
            }
        }
    }

    fn records(&self) -> u64 {
        if self.counted { 0 } else { self.joined }
    }
}

/// The entries of a table, by key. Its records were read before.
pub(crate) struct Listing<F: Fold> {
    table: Table<F>,
    entries: std::vec::IntoIter<Listed<F::State>>,
    /// The key at which it is, its prefix, and its values, one behind the other.
    key: Vec<u8>,
    prefix: u64,
    values: Vec<u8>,
    /// Where each value ends.
    ends: Vec<usize>,
    /// Which value is next, and where it begins.
    at: usize,
    begin: usize,
}

impl<F: Fold> Listing<F> {
    /// All that is in the table.
    pub(crate) fn new(mut table: Table<F>) -> Result<Self, Failure> {
        let entries = table.listed(&Partitioning::Hash, 1, Order::ByKey)?.into_iter();
        let (key, values, ends) = (Vec::new(), Vec::new(), Vec::new());
        let mut listing = Self { table, entries, key, prefix: 0, values, ends, at: 0, begin: 0 };
        listing.list()?;
        Ok(listing)
    }

    /// Lists the values of the next key that has any.
    fn list(&mut self) -> Result<(), Failure> {
        let Self { table, entries, key, values, ends, .. } = self;
        values.clear();
        ends.clear();
        (self.at, self.begin) = (0, 0);
        for entry in entries {
            table.write_entry(&entry, &mut |of, value| {
                if ends.is_empty() {
                    key.clear();
                    key.extend_from_slice(of);
                }
                values.extend_from_slice(value);
                ends.push(values.len());
                Ok(())
            })?;
            if !ends.is_empty() {
                break;
            }
        }
        self.prefix = prefix(key);
        Ok(())
    }
}

impl<F: Fold> Folded for Listing<F> {
    fn top(&self) -> Option<(&[u8], &[u8])> {
        let end = *self.ends.get(self.at)?;
        Some((&self.key, &self.values[self.begin..end]))
    }

    fn value_of(&self, key: &[u8], key_prefix: u64) -> Option<&[u8]> {
        let end = *self.ends.get(self.at)?;
        let same = self.prefix == key_prefix && self.key == key;
        same.then(|| &self.values[self.begin..end])
    }

    fn advance(&mut self) -> Result<(), Failure> {
        if let Some(end) = self.ends.get(self.at) {
            (self.at, self.begin) = (self.at + 1, *end);
        }
        if self.at < self.ends.len() { Ok(()) } else { self.list() }
    }

    fn records(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        collect::{Collector, Layout},
        fold::{Distinct, Sum},
        run::Codec,
    };

    fn collector<F: Fold>(dir: &Path, memory_bytes: usize) -> Collector<F> {
        Collector::new(Layout {
            dir: dir.to_owned(),
            partitions: 1,
            partitioning: Partitioning::Hash,
            codec: Codec::None,
            memory_bytes,
            maps: 0,
        })
    }

    /// Every key, and its values, as a reduce goes through them.
    fn groups(mut cursor: Cursor) -> Vec<(Vec<u8>, Vec<Vec<u8>>)> {
        let mut groups = Vec::new();
        while let Some((key, _)) = cursor.top() {
            let key = key.to_vec();
            let mut values = Vec::new();
            while let Some(value) = cursor.value_of(&key, prefix(&key)) {
                values.push(value.to_vec());
                cursor.advance().unwrap();
            }
            assert!(!values.is_empty());
            groups.push((key, values));
        }
        groups
    }

    /// Short keys and long ones, each several times.
    fn keys() -> impl Iterator<Item = Vec<u8>> {
        (0..40_000_u64).map(|number| match number % 5 {
            0 => format!("a key that is long, the {:04}th", number * 7 % 3_001).into_bytes(),
            _ => (number * number % 9_001).to_string().into_bytes(),
        })
    }

    #[test]
    fn a_table_that_is_spilled_holds_what_one_in_memory_holds() {
        let dir = tempfile::tempdir().unwrap();
        let sums = |memory_bytes| {
            let mut collector: Collector<Sum> = collector(dir.path(), memory_bytes);
            keys().zip(0..).for_each(|(key, number)| collector.add(&key, number));
            groups(collector.into_cursor().unwrap())
        };
        let expected = sums(64 << 20);
        assert!(expected.is_sorted() && expected.len() > 5_000);
        assert!(expected.iter().all(|(_, sums)| sums.len() == 1));
        assert!(sums(64 << 10) == expected);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0, "spills are left");
    }

    #[test]
    fn values_come_in_the_order_of_emission() {
        let dir = tempfile::tempdir().unwrap();
        for memory_bytes in [64 << 10, 64 << 20] {
            let mut collector: Collector<Distinct> = collector(dir.path(), memory_bytes);
            for document in 0..40_u32 {
                let document = document.to_string().into_bytes();
                keys().step_by(37).for_each(|key| collector.add(&key, &document));
            }
            let expected: Vec<Vec<u8>> = (0..40_u32).map(|it| it.to_string().into()).collect();
            let groups = groups(collector.into_cursor().unwrap());
            assert!(groups.is_sorted() && groups.len() > 500);
            for (key, values) in groups {
                assert!(values == expected, "{key:?}");
            }
        }
    }

    #[test]
    fn without_a_pair_there_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let collector: Collector<Sum> = collector(dir.path(), 1 << 20);
        assert!(groups(collector.into_cursor().unwrap()).is_empty());
    }
}
