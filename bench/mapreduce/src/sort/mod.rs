//! P for `sort`: records of 100 bytes in the order of their first ten, over all files of results.
//!
//! A sample divides the keys into buckets of a size that a core's cache can hold ([`split`]). Records
//! go to their bucket as they are read; then each bucket is sorted and written ([`bucket`]), one
//! after the other. With a limit to its memory, a thread first puts records into files, for ranges
//! of buckets that fit into that memory ([`spill`]).

mod bucket;
mod memory;
mod spill;
mod split;

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};

use crate::{
    input::{Input, files},
    output::{Output, Part},
    threads,
};
use split::Split;

/// How much is read at a time: what is read stays in the core's cache until it is in its bucket.
const BLOCK_BYTES: u64 = 256 << 10;

/// How large buckets are. Of 1 GiB in two threads, 2 MiB (512 buckets) took 0.84 s, 512 KiB and
/// 128 MiB, which no cache holds, 0.91 s and 0.94 s.
const BUCKET_BYTES: u64 = 2 << 20;

/// The most buckets: so many pieces of memory are written to at a time.
const BUCKETS_MAX: u64 = 4_096;

/// Sorts the files of `input` into so many files. Each thread has `memory` bytes for records, or as
/// much as it likes.
///
/// # Errors
/// What the file system says, or that the input is not of whole records.
pub fn run(input: &Path, output: Output, parts: usize, memory: Option<u64>) -> Result<()> {
    let parts = parts.max(1);
    let bytes: u64 = files(input)?.iter().map(|(_, bytes)| bytes).sum();
    let buckets = (bytes / BUCKET_BYTES).clamp(1, BUCKETS_MAX);
    let split = Split::sample(input, buckets as usize)?;
    let input = Input::open(input, BLOCK_BYTES)?;
    match memory {
        None => memory::sort(&input, &split, &output, parts)?,
        Some(memory) => {
            let plan = spill::Plan::new(bytes, parts, memory);
            spill::sort(&input, &split, &output, &plan)?;
        }
    }
    output.finish()
}

/// Has two threads write one part after the other.
fn write_parts(
    output: &Output,
    parts: usize,
    write: impl Fn(usize, &mut Part) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    threads::run(|_| {
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(());
            }
            let mut out = output.part(part)?;
            write(part, &mut out)
                .and_then(|()| Ok(out.finish()?))
                .with_context(|| format!("part {part} cannot be written"))?;
        }
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        output::Durability,
        random::Random,
        records::{self, KEY_BYTES, RECORD_BYTES},
    };

    /// The records of all parts after each other.
    fn sorted(files: &[&[u8]], parts: usize, memory: Option<u64>) -> Result<Vec<u8>> {
        let scratch = tempfile::tempdir().unwrap();
        let (input, results) = (scratch.path().join("input"), scratch.path().join("output"));
        fs::create_dir(&input).unwrap();
        for (number, file) in files.iter().enumerate() {
            fs::write(input.join(format!("{number}")), file).unwrap();
        }
        run(&input, Output::create(&results, Durability::Synced)?, parts, memory)?;
        let names = (0..parts).map(|part| results.join(format!("part-{part:05}")));
        let all = names.flat_map(|path| fs::read(path).unwrap()).collect();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2, "something is left behind");
        Ok(all)
    }

    fn naive(files: &[&[u8]]) -> Vec<u8> {
        let all = files.concat();
        let mut records: Vec<_> = all.chunks(RECORD_BYTES).collect();
        records.sort();
        records.concat()
    }

    fn check(files: &[&[u8]]) {
        let expected = naive(files);
        for memory in [None, Some(1 << 20), Some(64 << 20)] {
            for parts in [1, 3, 8] {
                let found = sorted(files, parts, memory).unwrap();
                assert!(found == expected, "{parts} parts, memory of {memory:?}");
            }
        }
    }

    #[test]
    fn random_records_are_sorted_in_memory_and_out_of_it() {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        records::write(1, 0, 0, 50_000, &mut first).unwrap();
        records::write(1, 1, 50_000, 30_001, &mut second).unwrap();
        check(&[&first, &second]);
        check(&[&first[..RECORD_BYTES]]);
        check(&[b""]);
    }

    #[test]
    fn keys_that_differ_in_their_last_bytes_only_are_sorted() {
        let mut text = Vec::new();
        records::write(2, 0, 0, 30_000, &mut text).unwrap();
        let mut random = Random::new(2, 0);
        for record in text.chunks_mut(RECORD_BYTES) {
            record[..KEY_BYTES].fill(b'k');
            record[KEY_BYTES - 1 - random.below(2) as usize] = b'a' + random.below(2) as u8;
        }
        let found = sorted(&[&text], 4, Some(1 << 20)).unwrap();
        let keys = |text: &[u8]| -> Vec<u8> {
            text.chunks(RECORD_BYTES).flat_map(|record| &record[..KEY_BYTES]).copied().collect()
        };
        assert!(keys(&found) == keys(&naive(&[&text])));
        // Equal keys may stand in any order, but every record is there.
        assert!(naive(&[&found]) == naive(&[&text]));
    }

    #[test]
    fn input_that_is_not_of_whole_records_is_refused() {
        assert!(sorted(&[&[b'x'; 150]], 1, None).is_err());
    }
}
