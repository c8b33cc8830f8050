//! Input: the files of a directory, cut into blocks of whole lines that threads take one after the
//! other.
//!
//! A block owns the lines whose first byte is within its bounds, so every line is seen once, however
//! files are cut.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};

/// Behind the bytes of a block are at least so many zeros, so that loads may go beyond its end.
pub const PADDING: usize = 64;

/// How much beyond its bounds a block is read at first, for the rest of its last line.
const TAIL_BYTES: usize = 1 << 10;

/// The files of a directory, in the order of their names, and who reads what of them.
#[derive(Debug)]
pub struct Input {
    files: Vec<(PathBuf, File, u64)>,
    blocks: Vec<Bounds>,
    next: AtomicUsize,
}

/// What a block owns of a file.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    file: usize,
    begin: u64,
    end: u64,
}

/// Memory that block after block is read into.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
}

/// Whole lines.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The lines, then at least [`PADDING`] zeros.
    pub padded: &'a [u8],
    /// How many bytes the lines have.
    pub length: usize,
}

impl Block<'_> {
    /// The lines alone.
    pub fn lines(&self) -> &[u8] {
        &self.padded[..self.length]
    }
}

/// The files of `directory` and their sizes, in the order of their names; hidden ones and those that
/// begin with `_` are not data, as everywhere in this trade.
///
/// # Errors
/// What the file system says.
pub fn files(directory: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let list = || -> io::Result<_> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file()
                && !entry.file_name().as_encoded_bytes().starts_with(b"_")
                && !entry.file_name().as_encoded_bytes().starts_with(b".")
            {
                files.push((entry.path(), metadata.len()));
            }
        }
        files.sort();
        Ok(files)
    };
    list().with_context(|| format!("{} cannot be listed", directory.display()))
}

impl Input {
    /// The files of `directory`, to be read in blocks of about `block_bytes`.
    ///
    /// # Errors
    /// What the file system says, or that there are no files.
    pub fn open(directory: &Path, block_bytes: u64) -> Result<Self> {
        let mut input = Self { files: Vec::new(), blocks: Vec::new(), next: AtomicUsize::new(0) };
        for (path, bytes) in files(directory)? {
            let file =
                File::open(&path).with_context(|| format!("{} is not opened", path.display()))?;
            let count = bytes.div_ceil(block_bytes.max(1));
            input.blocks.extend((0..count).map(|number| Bounds {
                file: input.files.len(),
                begin: number * block_bytes,
                end: bytes.min((number + 1) * block_bytes),
            }));
            input.files.push((path, file, bytes));
        }
        ensure!(!input.files.is_empty(), "there are no files in {}", directory.display());
        Ok(input)
    }

    /// The next block that nobody has taken; none when all are.
    ///
    /// # Errors
    /// What the file system says.
    pub fn next<'a>(&self, buffer: &'a mut Buffer) -> Result<Option<Block<'a>>> {
        let Some(bounds) = self.blocks.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
            return Ok(None);
        };
        let (path, file, _) = &self.files[bounds.file];
        let read = buffer.read(file, *bounds);
        read.with_context(|| format!("{} cannot be read", path.display())).map(Some)
    }
}

impl Buffer {
    fn read(&mut self, file: &File, bounds: Bounds) -> io::Result<Block<'_>> {
        // The byte before the block tells whether a line begins with it.
        let from = bounds.begin.saturating_sub(1);
        let inside = (bounds.end - from) as usize;
        let mut filled = self.fill(file, from, 0, inside + TAIL_BYTES)?;
        let begin = match bounds.begin {
            0 => 0,
            _ => memchr::memchr(b'\n', &self.bytes[..filled]).map_or(filled, |found| found + 1),
        };
        let end = loop {
            if begin >= inside {
                // The first line that begins here or later belongs to a later block.
                break begin;
            }
            let found = memchr::memchr(b'\n', &self.bytes[inside - 1..filled]);
            if let Some(found) = found {
                break inside + found;
            }
            let more = filled.max(TAIL_BYTES);
            let before = filled;
            filled += self.fill(file, from + filled as u64, filled, more)?;
            if filled == before {
                break filled;
            }
        };
        self.bytes[end..end + PADDING].fill(0);
        Ok(Block { padded: &self.bytes[begin..end + PADDING], length: end - begin })
    }

    /// Reads `count` bytes from `offset` of the file to `place`, fewer only at the end of the file.
    fn fill(&mut self, file: &File, offset: u64, place: usize, count: usize) -> io::Result<usize> {
        if self.bytes.len() < place + count + PADDING {
            self.bytes.resize(place + count + PADDING, 0);
        }
        read_at_most(file, offset, &mut self.bytes[place..place + count])
    }
}

/// Fills `bytes` from `offset` of the file on; answers with how many, fewer only at its end.
pub(crate) fn read_at_most(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn blocks(directory: &Path, block_bytes: u64) -> Vec<u8> {
        let input = Input::open(directory, block_bytes).unwrap();
        let mut buffer = Buffer::default();
        let mut all = Vec::new();
        while let Some(block) = input.next(&mut buffer).unwrap() {
            assert!(block.padded[block.length..].iter().all(|&byte| byte == 0));
            assert_eq!(block.padded.len(), block.length + PADDING);
            all.extend_from_slice(block.lines());
        }
        all
    }

    #[test]
    fn lines_are_seen_once_however_files_are_cut() {
        let directory = tempfile::tempdir().unwrap();
        let mut random = Random::new(1, 0);
        let mut all = Vec::new();
        for file in 0..3 {
            let mut text = Vec::new();
            for _ in 0..100 {
                let width = if random.below(20) == 0 { 3_000 } else { random.below(30) };
                text.extend((0..width).map(|_| b'a' + random.below(26) as u8));
                text.push(b'\n');
            }
            if file == 1 {
                text.pop();
            }
            fs::write(directory.path().join(format!("{file}")), &text).unwrap();
            all.extend(text);
        }
        fs::write(directory.path().join("_SUCCESS"), b"not data").unwrap();
        fs::write(directory.path().join("3"), b"").unwrap();
        for block_bytes in [1, 2, 3, 7, 100, 1_000, 2_999, 1 << 20] {
            assert!(blocks(directory.path(), block_bytes) == all, "{block_bytes}");
        }
    }

    #[test]
    fn a_directory_without_files_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Input::open(directory.path(), 1).is_err());
        assert!(Input::open(&directory.path().join("absent"), 1).is_err());
    }
}
