//! The sort buffer: pairs as they were emitted, one behind the other, and an entry for each that is
//! sorted in their place.
//!
//! An entry holds the partition and the first eight bytes of the key, so that most comparisons
//! touch no pair. Equal keys stay in the order of emission, which is that of their places.

use std::cmp::Ordering;

use crate::{
    combine::{KEY_BYTES_MAX, prefix},
    failure::Failure,
    fold::{Fold, FoldError, VALUE_BYTES_MAX},
};

/// How many pairs are looked at before they are needed, and how much of each.
const AHEAD: usize = 32;
const BYTES_AHEAD: usize = 256;

/// Pairs in memory.
#[derive(Debug)]
pub(crate) struct SortBuffer {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// The most bytes and entries there ever were: memory that has been touched.
    touched: (usize, usize),
    capacity: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    prefix: u64,
    partition: u32,
    offset: u32,
    key_bytes: u32,
    value_bytes: u32,
}

impl Entry {
    /// Orders pairs of one key as they were emitted: by their places, where one without a byte lies
    /// at the place of the next.
    #[inline]
    fn emission(&self) -> (u32, u32) {
        (self.offset, self.value_bytes)
    }
}

impl SortBuffer {
    /// An empty buffer with room for `budget` bytes and the pair that exceeds them.
    pub(crate) fn new(budget: usize) -> Self {
        let capacity = budget + KEY_BYTES_MAX + VALUE_BYTES_MAX;
        Self {
            bytes: Vec::with_capacity(capacity),
            entries: Vec::with_capacity(budget / size_of::<Entry>() + 1),
            touched: (0, 0),
            capacity,
        }
    }

    /// Takes a pair, its value as `write` puts it.
    #[inline]
    pub(crate) fn add<F: Fold>(
        &mut self,
        partition: u32,
        key: &[u8],
        fold: &F,
        input: F::Input<'_>,
    ) -> Result<(), FoldError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(FoldError::KeyTooLong);
        }
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(key);
        fold.write(input, &mut self.bytes);
        let value_bytes = self.bytes.len() - offset - key.len();
        if value_bytes > VALUE_BYTES_MAX {
            self.bytes.truncate(offset);
            return Err(FoldError::ValueTooLong);
        }
        self.entries.push(Entry {
            prefix: prefix(key),
            partition,
            offset: offset as u32,
            key_bytes: key.len() as u32,
            value_bytes: value_bytes as u32,
        });
        Ok(())
    }

    /// How much memory is in use, in bytes.
    #[inline]
    pub(crate) fn used(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>()
    }

    /// Sorts the pairs by partition, key and emission, and hands them out.
    pub(crate) fn drain(
        &mut self,
        mut each: impl FnMut(u32, &[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let bytes = &self.bytes;
        self.entries.sort_unstable_by(|left, right| {
            (left.partition, left.prefix)
                .cmp(&(right.partition, right.prefix))
                .then_with(|| compare_keys(bytes, left, right))
                .then(left.emission().cmp(&right.emission()))
        });
        let mut ahead = self.entries.chunks(AHEAD);
        let mut seen = ahead.next().map_or(0, |next| look_at(bytes, next));
        for chunk in self.entries.chunks(AHEAD) {
            seen += ahead.next().map_or(0, |next| look_at(bytes, next));
            for entry in chunk {
                each(entry.partition, key(bytes, entry), value(bytes, entry))?;
            }
        }
        std::hint::black_box(seen);
        Ok(())
    }

    /// Forgets everything and keeps the memory, unless much of it was touched for keys and values at
    /// one time and for entries at another.
    pub(crate) fn clear(&mut self) {
        let (bytes, entries) = self.touched;
        self.touched = (bytes.max(self.bytes.len()), entries.max(self.entries.len()));
        if self.touched.0 + self.touched.1 * size_of::<Entry>() > self.capacity {
            *self = Self::new(self.capacity - KEY_BYTES_MAX - VALUE_BYTES_MAX);
        }
        self.bytes.clear();
        self.entries.clear();
    }
}

/// Brings pairs that are needed soon into the cache, all at once instead of one after the other;
/// the sum keeps the reads from being left out.
#[inline(never)]
fn look_at(bytes: &[u8], entries: &[Entry]) -> usize {
    const LINE_BYTES: usize = 64;
    let mut sum = 0;
    for entry in entries {
        let length = entry.key_bytes as usize + entry.value_bytes as usize;
        let pair = &bytes[entry.offset as usize..][..length.min(BYTES_AHEAD)];
        sum += pair.iter().step_by(LINE_BYTES).map(|byte| usize::from(*byte)).sum::<usize>();
    }
    sum
}

fn key<'b>(bytes: &'b [u8], entry: &Entry) -> &'b [u8] {
    &bytes[entry.offset as usize..][..entry.key_bytes as usize]
}

fn value<'b>(bytes: &'b [u8], entry: &Entry) -> &'b [u8] {
    &bytes[entry.offset as usize + entry.key_bytes as usize..][..entry.value_bytes as usize]
}

/// Orders keys whose prefixes are equal.
#[inline]
fn compare_keys(bytes: &[u8], left: &Entry, right: &Entry) -> Ordering {
    if left.key_bytes.max(right.key_bytes) <= 8 {
        // Only zero bytes at the end can tell them apart, and these come last.
        return left.key_bytes.cmp(&right.key_bytes);
    }
    key(bytes, left).cmp(key(bytes, right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::Keep;

    #[test]
    fn pairs_come_by_partition_key_and_emission() {
        let mut buffer = SortBuffer::new(1 << 20);
        let keys: [&[u8]; 9] =
            [b"b", b"", b"abcdefghi", b"abcdefgh", b"a\0", b"a", b"abcdefghi", b"b", b"\xff\xff"];
        for (number, key) in keys.iter().enumerate() {
            let value = number.to_string();
            buffer.add(number as u32 % 2, key, &Keep, value.as_bytes()).unwrap();
        }
        let mut found = Vec::new();
        buffer
            .drain(|partition, key, value| {
                found.push((partition, key.to_vec(), String::from_utf8(value.to_vec()).unwrap()));
                Ok(())
            })
            .unwrap();
        let mut expected: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(number, key)| (number as u32 % 2, key.to_vec(), number.to_string()))
            .collect();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_pair_without_a_byte_keeps_its_place() {
        let mut buffer = SortBuffer::new(1 << 20);
        let values: Vec<String> = (0..500).map(|place| "v".repeat(place * 7 % 3)).collect();
        for value in &values {
            buffer.add(0, b"", &Keep, value.as_bytes()).unwrap();
        }
        let mut found = Vec::new();
        buffer
            .drain(|_, _, value| {
                found.push(String::from_utf8(value.to_vec()).unwrap());
                Ok(())
            })
            .unwrap();
        assert_eq!(found, values);
    }

    #[test]
    fn a_pair_beyond_the_limits_is_refused_and_leaves_nothing() {
        let mut buffer = SortBuffer::new(1 << 20);
        let long = vec![b'a'; KEY_BYTES_MAX + 1];
        assert_eq!(buffer.add(0, &long, &Keep, b""), Err(FoldError::KeyTooLong));
        assert_eq!(buffer.add(0, b"k", &Keep, &long), Err(FoldError::ValueTooLong));
        assert_eq!(buffer.used(), 0);
    }
}
