//! P for `wc`: how often each word occurs, as files of `WORD TAB COUNT` lines, each sorted.
//!
//! Blocks of lines are taken by two threads. [`words`] finds where words begin and end, [`table`]
//! counts them; then each thread sorts and writes one part after the other.

mod shard;
mod table;
mod tally;
mod words;

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};

use crate::{
    input::{Buffer, Input},
    output::{Output, Part},
    threads,
};
use shard::SHARDS;
use table::{Counted, Counter, Counts, Table};
use words::{Cursor, Edges};

/// The most parts that the words can be spread over.
pub const PARTS_MAX: usize = SHARDS;

/// How much is read at a time: what is read stays in the core's cache until its words are counted.
const BLOCK_BYTES: u64 = 256 << 10;

/// How many words are found before they are counted.
const WORDS: usize = 256;

/// Counts the words of the files of `input`, and spreads them over so many files.
///
/// # Errors
/// What the file system says.
pub fn run(input: &Path, output: Output, parts: usize) -> Result<()> {
    let parts = parts.clamp(1, PARTS_MAX);
    let counts = count(&Input::open(input, BLOCK_BYTES)?)?;
    let next = AtomicUsize::new(0);
    threads::run(|_| {
        loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return Ok(());
            }
            write(&counts, part, parts, output.part(part)?)
                .with_context(|| format!("part {part} cannot be written"))?;
        }
    })?;
    output.finish()
}

fn count(input: &Input) -> Result<Counts> {
    let table = Table::new();
    threads::run(|_| {
        let mut buffer = Buffer::default();
        let mut edges = Edges::new(WORDS);
        let mut counter = Counter::new(&table, edges.words_max());
        while let Some(block) = input.next(&mut buffer)? {
            let mut cursor = Cursor::default();
            while edges.find(block.padded, &mut cursor) {
                counter.add_all(block.padded, edges.words());
            }
        }
        counter.finish();
        Ok(())
    })?;
    Ok(table.finish())
}

fn write(counts: &Counts, part: usize, parts: usize, mut out: Part) -> io::Result<()> {
    let mut words = counts.part(part, parts);
    words.sort_unstable_by(|left, right| {
        left.prefix.cmp(&right.prefix).then_with(|| left.rest.cmp(right.rest))
    });
    for Counted { prefix, rest, count } in words {
        let length = 16 - prefix.trailing_zeros() as usize / 8;
        out.write(&prefix.to_be_bytes()[..length])?;
        out.write(rest)?;
        out.write(b"\t")?;
        out.write_number(count)?;
        out.write(b"\n")?;
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;
    use crate::{
        output::Durability,
        random::Random,
        text::{RARE, Vocabulary},
    };

    fn counted(text: &[u8], parts: usize) -> BTreeMap<Vec<u8>, u64> {
        let scratch = tempfile::tempdir().unwrap();
        let (input, results) = (scratch.path().join("input"), scratch.path().join("output"));
        fs::create_dir(&input).unwrap();
        let middle = text.len() / 2;
        let cut = memchr::memchr(b'\n', &text[middle..]).map_or(middle, |it| middle + it + 1);
        fs::write(input.join("a"), &text[..cut]).unwrap();
        fs::write(input.join("b"), &text[cut..]).unwrap();
        run(&input, Output::create(&results, Durability::Cached).unwrap(), parts).unwrap();
        let mut all = BTreeMap::new();
        for part in 0..parts {
            let text = fs::read(results.join(format!("part-{part:05}"))).unwrap();
            let mut last = Vec::new();
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                let tab = memchr::memchr(b'\t', line).unwrap();
                let count = str::from_utf8(&line[tab + 1..line.len() - 1]).unwrap();
                assert!(last.as_slice() < &line[..tab], "not in order");
                last = line[..tab].to_vec();
                assert!(all.insert(last.clone(), count.parse().unwrap()).is_none());
            }
        }
        assert_eq!(fs::read_dir(&results).unwrap().count(), parts);
        all
    }

    fn naive(text: &[u8]) -> BTreeMap<Vec<u8>, u64> {
        let mut counts = BTreeMap::new();
        words::tests::naive(text).into_iter().for_each(|it| *counts.entry(it).or_default() += 1);
        counts
    }

    #[test]
    fn zipf_text_is_counted_as_the_definition_says() {
        let mut text = Vec::new();
        Vocabulary::new(40_000, 1).write(1, 0, 6 << 20, &mut text).unwrap();
        let found = counted(&text, 8);
        assert!(found == naive(&text));
        assert!(found.contains_key(RARE.as_bytes()));
    }

    #[test]
    fn words_of_any_length_and_script_are_counted() {
        let mut random = Random::new(2, 0);
        let mut text = Vec::new();
        let letters = ["a", "b", "é", "中", "я"];
        for _ in 0..20_000 {
            for _ in 0..random.below(10) * random.below(5) {
                text.extend_from_slice(letters[random.below(5) as usize].as_bytes());
            }
            text.push(b" .\n\xff"[random.below(4) as usize]);
        }
        for parts in [1, 3, 256] {
            assert!(counted(&text, parts) == naive(&text), "{parts}");
        }
        assert!(counted(b"", 2).is_empty());
    }
}
