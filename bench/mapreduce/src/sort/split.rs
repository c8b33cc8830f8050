//! How the key space is divided: by a sample of the input, into buckets of nearly equal size.

use std::{fs::File, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    input::{files, read_at_most},
    random::Random,
    records::RECORD_BYTES,
};

/// How many records of the sample there are for each bucket: with so many few are
/// a half larger than the others.
const SAMPLE_PER_BUCKET: usize = 32;

/// How many leading bits of a key find its bucket, or nearly.
const CELL_BITS: u32 = 16;

/// The number of buckets, and where each begins.
#[derive(Debug)]
pub(super) struct Split {
    /// The least prefix of each bucket but the first.
    begins: Vec<u64>,
    /// For each value of the leading bits the bucket of the least prefix that has them.
    cells: Vec<u16>,
}

/// The first eight bytes of a record, as a number that orders as they do.
#[inline]
pub(super) fn prefix(record: &[u8; RECORD_BYTES]) -> u64 {
    u64::from_be_bytes(*record.first_chunk().expect("a record is longer"))
}

impl Split {
    /// Divides the keys of `directory` into so many buckets.
    ///
    /// # Errors
    /// What the file system says, or that the input is not of whole records.
    pub(super) fn sample(directory: &Path, buckets: usize) -> Result<Self> {
        let mut starts = Vec::new();
        let mut records = 0;
        for (path, bytes) in files(directory)? {
            let whole = bytes.is_multiple_of(RECORD_BYTES as u64);
            ensure!(whole, "{} is not of whole records", path.display());
            let file = File::open(&path)?;
            starts.push((records, path, file));
            records += bytes / RECORD_BYTES as u64;
        }
        let mut random = Random::new(records, 0);
        let mut sample = Vec::new();
        let wanted = if records == 0 { 0 } else { buckets * SAMPLE_PER_BUCKET };
        for _ in 0..wanted {
            let number = random.below(records);
            let after = starts.partition_point(|(first, ..)| *first <= number);
            let (first, path, file) = &starts[after - 1];
            let mut record = [0; RECORD_BYTES];
            read_at_most(file, (number - first) * RECORD_BYTES as u64, &mut record)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            sample.push(prefix(&record));
        }
        Ok(Self::new(sample, buckets))
    }

    fn new(mut sample: Vec<u64>, buckets: usize) -> Self {
        sample.sort_unstable();
        let mut begins: Vec<u64> = (1..buckets)
            .filter_map(|bucket| sample.get(sample.len() * bucket / buckets).copied())
            .collect();
        begins.dedup();
        let cells = 0..=1_u64 << CELL_BITS;
        let least = |cell: u64| u128::from(cell) << (u64::BITS - CELL_BITS);
        let cells = cells
            .map(|cell| begins.partition_point(|&begin| u128::from(begin) <= least(cell)) as u16)
            .collect();
        Self { begins, cells }
    }

    /// How many buckets there are: fewer than wished for, if many keys are equal.
    pub(super) fn buckets(&self) -> usize {
        self.begins.len() + 1
    }

    #[inline]
    pub(super) fn bucket_of(&self, prefix: u64) -> usize {
        let cell = (prefix >> (u64::BITS - CELL_BITS)) as usize;
        let (first, last) = (usize::from(self.cells[cell]), usize::from(self.cells[cell + 1]));
        if first == last {
            return first;
        }
        first + self.begins[first..last].partition_point(|&begin| begin <= prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_the_order_of_keys() {
        let mut random = Random::new(1, 0);
        let narrow: Vec<u64> = (0..5_000).map(|_| (7 << 60) | random.below(1_000_000)).collect();
        let wide: Vec<u64> = (0..5_000).map(|_| random.draw()).collect();
        for sample in [narrow, wide, vec![3; 100], vec![0, u64::MAX], Vec::new()] {
            let split = Split::new(sample.clone(), 100);
            let mut keys = sample;
            keys.extend([0, 1, 3, 4, 7 << 60, u64::MAX - 1, u64::MAX]);
            for key in keys {
                let expected = split.begins.iter().filter(|&&begin| begin <= key).count();
                assert_eq!(split.bucket_of(key), expected, "{key}");
                assert!(expected < split.buckets());
            }
        }
    }
}
