//! P for `grep`: the lines that hold a literal.

use std::path::Path;

use anyhow::Result;
use memchr::memmem::Finder;

use crate::{
    input::{Buffer, Input},
    output::{Output, Part},
    threads,
};

/// How much is read at a time. From 256 KiB to 2 MiB there is no difference: reading 1 GiB out of the
/// page cache takes nearly all of 0.12 s of processor time.
const BLOCK_BYTES: u64 = 256 << 10;

/// Writes the lines of the files of `input` that hold `pattern`, in a file for each thread.
///
/// # Errors
/// What the file system says.
pub fn run(input: &Path, output: Output, pattern: &[u8]) -> Result<()> {
    let input = Input::open(input, BLOCK_BYTES)?;
    let finder = Finder::new(pattern);
    threads::run(|thread| {
        let mut buffer = Buffer::default();
        let mut part = output.part(thread)?;
        while let Some(block) = input.next(&mut buffer)? {
            write_matching(block.lines(), &finder, &mut part)?;
        }
        Ok(part.finish()?)
    })?;
    output.finish()
}

/// Looks for the pattern in all lines at once, and for a line only around what was found.
fn write_matching(lines: &[u8], finder: &Finder<'_>, part: &mut Part) -> Result<()> {
    let mut rest = lines;
    while let Some(found) = finder.find(rest) {
        let begin = memchr::memrchr(b'\n', &rest[..found]).map_or(0, |it| it + 1);
        let end = memchr::memchr(b'\n', &rest[found..]).map_or(rest.len(), |it| found + it);
        part.write(&rest[begin..end])?;
        part.write(b"\n")?;
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{output::Durability, random::Random};

    #[test]
    fn lines_that_hold_the_pattern_are_found_once() {
        let mut random = Random::new(1, 0);
        let mut text = Vec::new();
        for _ in 0..100_000 {
            let letters = (0..random.below(12)).map(|_| b'a' + random.below(3) as u8);
            text.extend(letters);
            text.push(b'\n');
        }
        text.pop();
        for pattern in ["abab", "cc", "a", "nowhere"] {
            let scratch = tempfile::tempdir().unwrap();
            let (input, results) = (scratch.path().join("input"), scratch.path().join("output"));
            fs::create_dir(&input).unwrap();
            fs::write(input.join("text"), &text).unwrap();
            run(&input, Output::create(&results, Durability::Cached).unwrap(), pattern.as_bytes())
                .unwrap();
            let all: String = (0..crate::THREADS)
                .map(|part| fs::read_to_string(results.join(format!("part-{part:05}"))).unwrap())
                .collect();
            let mut found: Vec<&str> = all.lines().collect();
            let lines = str::from_utf8(&text).unwrap().lines();
            let mut expected: Vec<&str> = lines.filter(|line| line.contains(pattern)).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert!(found == expected, "{pattern}");
        }
    }
}
