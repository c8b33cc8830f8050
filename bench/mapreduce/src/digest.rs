//! What results are compared by: lines, however they are spread over files and whatever their order
//! is, or in the one order that a sort must have put them in.
//!
//! The digest of a set of lines is the sum of their hashes, so it needs no memory and no order, and
//! a line that is lost, doubled or changed shows.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use memchr::memmem::Finder;
use xxhash_rust::xxh3::xxh3_128;

use crate::records::KEY_BYTES;

/// How much of a file is read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// The lines of the files of a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// How many there are.
    pub lines: u64,
    /// The sum of their hashes.
    sum: u128,
}

/// What lines are.
#[derive(Clone, Debug)]
pub enum Form {
    /// Just lines.
    Lines,
    /// Records whose keys never fall from the first file's first to the last file's last.
    Sorted,
    /// A word and its number, with a TAB or, in the labs' format, a space between them.
    Counts,
    /// Lines that are words; what is meant is how a count of them looks that finds each once.
    Once,
    /// Only the lines that hold this count.
    Holding(String),
}

impl Digest {
    /// Looks at the files of `directory` in the order of their names, but those that begin with `_`
    /// or a dot.
    ///
    /// # Errors
    /// What the file system says, or that records are out of order.
    pub fn of(directory: &Path, form: &Form) -> Result<Self> {
        let mut lines = Lines::new(form);
        for path in files(directory)? {
            lines.take(&path).with_context(|| format!("{} is refused", path.display()))?;
        }
        Ok(lines.digest)
    }
}

/// The files of results of a directory.
///
/// # Errors
/// What the file system says.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let entries = fs::read_dir(directory)
        .with_context(|| format!("there are no results in {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(['_', '.']) {
            paths.push(entry.path());
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

/// How far the lines have been looked at.
struct Lines<'a> {
    form: &'a Form,
    finder: Option<Finder<'a>>,
    last_key: Vec<u8>,
    digest: Digest,
}

impl<'a> Lines<'a> {
    fn new(form: &'a Form) -> Self {
        let finder = match form {
            Form::Holding(text) => Some(Finder::new(text)),
            Form::Lines | Form::Sorted | Form::Counts | Form::Once => None,
        };
        Self { form, finder, last_key: Vec::new(), digest: Digest::default() }
    }

    fn take(&mut self, path: &Path) -> Result<()> {
        let mut file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if file.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            line.pop_if(|last| *last == b'\n');
            self.take_line(&mut line)?;
        }
    }

    fn take_line(&mut self, line: &mut Vec<u8>) -> Result<()> {
        match self.form {
            Form::Lines => {}
            Form::Sorted => {
                let key = line.get(..KEY_BYTES).context("a record is too short")?;
                anyhow::ensure!(self.last_key.as_slice() <= key, "records are out of order");
                self.last_key.clear();
                self.last_key.extend_from_slice(key);
            }
            Form::Counts => {
                let parted = line.iter().rposition(|byte| b" \t".contains(byte));
                line[parted.context("a word has no number")?] = b'\t';
            }
            Form::Once => line.extend_from_slice(b"\t1"),
            Form::Holding(_) => {
                if self.finder.as_ref().is_some_and(|finder| finder.find(line).is_none()) {
                    return Ok(());
                }
            }
        }
        self.digest.lines += 1;
        self.digest.sum = self.digest.sum.wrapping_add(xxh3_128(line));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(parts: &[&str], form: &Form) -> Result<Digest> {
        let scratch = tempfile::tempdir().unwrap();
        for (number, part) in parts.iter().enumerate() {
            fs::write(scratch.path().join(format!("part-{number:05}")), part).unwrap();
        }
        fs::write(scratch.path().join("_SUCCESS"), "no result").unwrap();
        Digest::of(scratch.path(), form)
    }

    #[test]
    fn lines_count_wherever_they_are() {
        let whole = digest(&["a\nb\n", "c\n"], &Form::Lines).unwrap();
        assert_eq!(whole.lines, 3);
        assert_eq!(whole, digest(&["c\nb", "", "a\n"], &Form::Lines).unwrap());
        for other in [&["a\nb\n"][..], &["a\nb\nc\nc\n"], &["a\nb\nd\n"]] {
            assert_ne!(whole, digest(other, &Form::Lines).unwrap());
        }
    }

    #[test]
    fn records_must_be_in_order_over_all_files() {
        let (low, high) = ("aaaaaaaaaa 1\n", "aaaaaaaaab 0\n");
        let sorted = digest(&[low, high], &Form::Sorted).unwrap();
        assert_eq!(sorted, digest(&[high, low], &Form::Lines).unwrap());
        assert!(digest(&[high, low], &Form::Sorted).is_err());
        assert!(digest(&["short\n"], &Form::Sorted).is_err());
    }

    #[test]
    fn the_labs_format_counts_alike() {
        let text = digest(&["word\t3\n"], &Form::Counts).unwrap();
        assert_eq!(text, digest(&["word 3\n"], &Form::Counts).unwrap());
        assert_ne!(text, digest(&["word 4\n"], &Form::Counts).unwrap());
        assert!(digest(&["word\n"], &Form::Counts).is_err());
        assert_eq!(
            digest(&["word\n"], &Form::Once).unwrap(),
            digest(&["word\t1\n"], &Form::Lines).unwrap()
        );
    }

    #[test]
    fn only_lines_that_hold_the_text_count() {
        let form = Form::Holding("ell".to_owned());
        let found = digest(&["hello\nworld\nbell\n"], &form).unwrap();
        assert_eq!(found, digest(&["bell\nhello\n"], &Form::Lines).unwrap());
    }
}
