//! Sorts more than memory holds: records are spilled to a file of each thread, in pieces of which
//! each is of one range of keys, and then sorted in memory, range by range.
//!
//! Ranges, because their limits are known: total order needs a sample in any case. The alternative,
//! sorted runs that are merged, reads and writes as much but compares more.

use std::{
    fs::File,
    io::{self, Write},
    ops::Range,
};

use anyhow::{Context, Result};

use super::{
    BLOCK_BYTES,
    bucket::{self, Bucket},
    split::{Split, prefix},
    write_parts,
};
use crate::{
    input::{Buffer, Input, read_at_most},
    output::{Output, Part},
    records::RECORD_BYTES,
    threads,
};

/// The most that is gathered of one range before it is written.
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// What fraction of its memory a thread plans for the records of one range: their entries need a
/// sixth of it, their chunks are not all full, and a range may be larger than the sample says.
const RANGE_SHARE: u64 = 3;

/// How a sort is cut to fit into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    parts: usize,
    ranges_per_part: usize,
    piece_bytes: usize,
}

/// The pieces of one thread.
#[derive(Debug)]
struct Spill {
    file: File,
    /// Of each range, where its pieces are in the file.
    pieces: Vec<Vec<Range<u64>>>,
}

impl Plan {
    /// For so many bytes of records, with `memory` bytes for each thread.
    pub(super) fn new(bytes: u64, parts: usize, memory: u64) -> Self {
        let range_bytes = (memory / RANGE_SHARE).max(1);
        let ranges_per_part = bytes.div_ceil(parts as u64).div_ceil(range_bytes).max(1);
        let ranges = ranges_per_part * parts as u64;
        // While records are spilled, nothing else needs memory.
        let piece_bytes = (memory / 2 / ranges).min(PIECE_BYTES_MAX);
        let records = (piece_bytes as usize / RECORD_BYTES).max(1);
        let piece_bytes = records * RECORD_BYTES;
        Self { parts, ranges_per_part: ranges_per_part as usize, piece_bytes }
    }

    fn ranges(&self) -> usize {
        self.parts * self.ranges_per_part
    }

    /// The buckets of a range.
    fn buckets(&self, range: usize, buckets: usize) -> Range<usize> {
        let begin = |range: usize| buckets * range / self.ranges();
        begin(range)..begin(range + 1)
    }
}

pub(super) fn sort(input: &Input, split: &Split, output: &Output, plan: &Plan) -> Result<()> {
    let spills = threads::run(|_| spill(input, split, output, plan))?;
    write_parts(output, plan.parts, |part, out| {
        let mut entries = Vec::new();
        let ranges = part * plan.ranges_per_part..(part + 1) * plan.ranges_per_part;
        ranges.into_iter().try_for_each(|range| {
            let buckets = plan.buckets(range, split.buckets());
            write_range(&spills, range, buckets, split, &mut entries, out)
        })
    })
}

/// Spills what one thread reads.
fn spill(input: &Input, split: &Split, output: &Output, plan: &Plan) -> Result<Spill> {
    let mut range_of = vec![0; split.buckets()];
    for range in 0..plan.ranges() {
        range_of[plan.buckets(range, split.buckets())].fill(range);
    }
    let mut file = output.scratch().context("there is no place for what memory does not hold")?;
    let mut written = 0;
    let mut pieces = vec![Vec::new(); plan.ranges()];
    let mut gathered = vec![Vec::with_capacity(plan.piece_bytes); plan.ranges()];
    let mut write = |range: usize, gathered: &mut Vec<u8>| -> io::Result<()> {
        file.write_all(gathered)?;
        let end = written + gathered.len() as u64;
        pieces[range].push(written..end);
        written = end;
        gathered.clear();
        Ok(())
    };
    let mut buffer = Buffer::default();
    while let Some(block) = input.next(&mut buffer)? {
        for record in block.lines().as_chunks::<RECORD_BYTES>().0 {
            let range = range_of[split.bucket_of(prefix(record))];
            let gathered = &mut gathered[range];
            if gathered.len() == plan.piece_bytes {
                write(range, gathered)?;
            }
            gathered.extend_from_slice(record);
        }
    }
    for (range, gathered) in gathered.iter_mut().enumerate() {
        write(range, gathered)?;
    }
    Ok(Spill { file, pieces })
}

/// Sorts the records of one range in memory, and writes them.
fn write_range(
    spills: &[Spill],
    range: usize,
    numbers: Range<usize>,
    split: &Split,
    entries: &mut Vec<u128>,
    out: &mut Part,
) -> Result<()> {
    let mut buckets: Vec<Bucket> = numbers.clone().map(|_| Bucket::default()).collect();
    let mut block = vec![0; BLOCK_BYTES as usize / RECORD_BYTES * RECORD_BYTES];
    for Spill { file, pieces } in spills {
        for piece in &pieces[range] {
            for offset in piece.clone().step_by(block.len()) {
                let length = (piece.end - offset).min(block.len() as u64) as usize;
                let block = &mut block[..length];
                let read = read_at_most(file, offset, block)?;
                assert!(read == length, "what was spilled is gone");
                for record in block.as_chunks::<RECORD_BYTES>().0 {
                    let bucket = split.bucket_of(prefix(record)) - numbers.start;
                    buckets[bucket].push(record);
                }
            }
        }
    }
    for bucket in buckets {
        bucket::write(&[bucket], entries, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_keeps_within_its_memory() {
        for (bytes, parts, memory) in [
            (4 << 30, 8, 512 << 20),
            (4 << 30, 1, 64 << 20),
            (1 << 40, 8, 512 << 20),
            (1_000, 8, 512 << 20),
            (0, 1, 1 << 20),
        ] {
            let plan = Plan::new(bytes, parts, memory);
            let ranges = plan.ranges() as u64;
            assert!(ranges * plan.piece_bytes as u64 <= memory, "{plan:?}");
            assert!(bytes.div_ceil(ranges) <= memory / RANGE_SHARE, "{plan:?}");
            assert_eq!(plan.piece_bytes % RECORD_BYTES, 0);
            let numbers: Vec<usize> =
                (0..plan.ranges()).flat_map(|range| plan.buckets(range, 1_000)).collect();
            assert!(numbers.into_iter().eq(0..1_000));
        }
    }
}
