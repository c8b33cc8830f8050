//! Inputs: pieces of files as blocks of whole records.
//!
//! A line belongs to the piece in which it begins. With `B(x)` the first line start at or behind
//! offset `x`, a piece from `s` to `e` is exactly the bytes from `B(s)` to `B(e)`, so that pieces
//! that tile a file yield each of its lines once, whatever their borders. A last line needs no line
//! feed; a carriage return is part of its line.
//!
//! A file is checked against the size and time that it was planned with before it is read and
//! afterwards: half of one version and half of another would be nobody's result.

use std::{
    fs::{File, Metadata},
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

use crate::{app::Block, failure::Failure};

/// How much is read at a time.
const READ_BYTES: usize = 1 << 20;

/// The longest line, in bytes; a longer one fails the job.
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// The largest file that can be one record, in bytes.
pub const WHOLE_FILE_BYTES_MAX: u64 = 1 << 30;

/// A piece of an input file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The path as the user named it.
    pub document: String,
    /// The file.
    pub path: PathBuf,
    /// The first byte.
    pub start: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The file's size when it was planned.
    pub file_bytes: u64,
    /// The file's modification time when it was planned, in nanoseconds of Unix time.
    pub modified_ns: u64,
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// A line.
    Lines,
    /// A whole file.
    Files,
}

/// A file's modification time in nanoseconds of Unix time, as plans hold it.
pub fn modified_ns(metadata: &Metadata) -> u64 {
    let nanoseconds =
        i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    u64::try_from(nanoseconds).unwrap_or(0)
}

impl Piece {
    /// Hands the blocks of this piece to `each`, in order; answers how many bytes they had.
    pub fn blocks(
        &self,
        records: Records,
        each: &mut dyn FnMut(Block<'_>) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let file =
            File::open(&self.path).map_err(|error| Failure::input(&self.document, &error))?;
        self.unchanged(&file)?;
        // Advice: that a file system has none changes nothing.
        let _ = rustix::fs::fadvise(&file, self.start, None, rustix::fs::Advice::Sequential);
        let bytes = match records {
            Records::Lines => self.lines(&file, each)?,
            Records::Files => self.whole(&file, each)?,
        };
        self.unchanged(&file)?;
        Ok(bytes)
    }

    fn unchanged(&self, file: &File) -> Result<(), Failure> {
        let metadata = file.metadata().map_err(|error| Failure::input(&self.document, &error))?;
        if !metadata.is_file() {
            return Err(self.refuse("it is not a regular file"));
        }
        if metadata.len() != self.file_bytes || modified_ns(&metadata) != self.modified_ns {
            return Err(self.refuse("it changed since the job was planned"));
        }
        Ok(())
    }

    /// A failure that another attempt would meet again.
    fn refuse(&self, message: impl Into<String>) -> Failure {
        Failure::Input { path: self.document.clone(), message: message.into(), permanent: true }
    }

    fn whole(
        &self,
        file: &File,
        each: &mut dyn FnMut(Block<'_>) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        if self.start != 0 || self.bytes != self.file_bytes {
            return Err(Failure::Internal(format!("{}: a piece of a whole file", self.document)));
        }
        if self.file_bytes > WHOLE_FILE_BYTES_MAX {
            return Err(self.refuse(format!(
                "{} bytes are more than a whole-file record may have ({WHOLE_FILE_BYTES_MAX}); \
                 the text format has no such limit",
                self.file_bytes
            )));
        }
        let mut bytes = vec![0; self.file_bytes as usize];
        self.read(file, &mut bytes, 0)?;
        each(self.block(0, &bytes, false))?;
        Ok(self.file_bytes)
    }

    fn lines(
        &self,
        file: &File,
        each: &mut dyn FnMut(Block<'_>) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let end = self.start.checked_add(self.bytes).filter(|&end| end <= self.file_bytes);
        let end = end.ok_or_else(|| {
            Failure::Internal(format!("{}: a piece beyond its file", self.document))
        })?;
        let first = self.line_start(file, self.start)?;
        let last = self.line_start(file, end)?;
        let mut buffer = vec![0; READ_BYTES];
        let mut kept = 0;
        let mut at = first;
        while at + (kept as u64) < last {
            if kept == buffer.len() {
                if kept >= LINE_BYTES_MAX {
                    return Err(self.long_line(at));
                }
                buffer.resize(2 * kept, 0);
            }
            let wanted = (last - at - kept as u64).min((buffer.len() - kept) as u64) as usize;
            self.read(file, &mut buffer[kept..kept + wanted], at + kept as u64)?;
            let filled = kept + wanted;
            let whole = if at + filled as u64 == last {
                filled
            } else {
                kept + memchr::memrchr(b'\n', &buffer[kept..filled]).map_or(0, |found| found + 1)
            };
            if whole == kept && at + (filled as u64) < last {
                kept = filled;
                continue;
            }
            each(self.block(at, &buffer[..whole], true))?;
            buffer.copy_within(whole..filled, 0);
            kept = filled - whole;
            at += whole as u64;
        }
        Ok(last.saturating_sub(first))
    }

    /// The first offset at or behind `from` at which a line begins, or the end of the file.
    fn line_start(&self, file: &File, from: u64) -> Result<u64, Failure> {
        if from == 0 {
            return Ok(0);
        }
        const SCAN_BYTES: usize = 16 << 10;
        let mut buffer = vec![0; SCAN_BYTES];
        let mut at = from - 1;
        while at < self.file_bytes {
            let wanted = (self.file_bytes - at).min(SCAN_BYTES as u64) as usize;
            self.read(file, &mut buffer[..wanted], at)?;
            if let Some(found) = memchr::memchr(b'\n', &buffer[..wanted]) {
                return Ok(at + found as u64 + 1);
            }
            at += wanted as u64;
            if at - from > LINE_BYTES_MAX as u64 {
                return Err(self.long_line(from));
            }
        }
        Ok(self.file_bytes)
    }

    fn long_line(&self, at: u64) -> Failure {
        self.refuse(format!(
            "the line at or before byte {at} is longer than {LINE_BYTES_MAX} bytes"
        ))
    }

    fn read(&self, file: &File, buffer: &mut [u8], offset: u64) -> Result<(), Failure> {
        file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => self.refuse("it became shorter while it was read"),
            _ => Failure::input(&self.document, &error),
        })
    }

    fn block<'a>(&'a self, offset: u64, bytes: &'a [u8], lines: bool) -> Block<'a> {
        Block { document: &self.document, offset, bytes, lines }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn piece(path: &Path, start: u64, bytes: u64) -> Piece {
        let metadata = fs::metadata(path).unwrap();
        Piece {
            document: "doc".to_owned(),
            path: path.to_owned(),
            start,
            bytes,
            file_bytes: metadata.len(),
            modified_ns: modified_ns(&metadata),
        }
    }

    /// The lines of a file, read in pieces of `split` bytes, with their offsets.
    fn lines(path: &Path, split: u64) -> (Vec<(u64, Vec<u8>)>, u64) {
        let size = fs::metadata(path).unwrap().len();
        let (mut lines, mut bytes) = (Vec::new(), 0);
        let mut start = 0;
        while start < size {
            let piece = piece(path, start, split.min(size - start));
            let mut keep = |block: Block<'_>| {
                for line in block.records() {
                    assert!((start..start + split).contains(&line.offset), "{line:?}");
                    lines.push((line.offset, line.value.to_vec()));
                }
                Ok(())
            };
            bytes += piece.blocks(Records::Lines, &mut keep).unwrap();
            start += split;
        }
        (lines, bytes)
    }

    #[test]
    fn every_split_yields_the_same_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.txt");
        let long = "x".repeat(300);
        let texts = [
            "",
            "\n",
            "\n\n\n",
            "one",
            "one\n",
            "one\ntwo\r\n\r\n\nfour, no end",
            &format!("short\n{long}\nshort\n\n{long}"),
            &"0123456789\n".repeat(30),
        ];
        for text in texts {
            fs::write(&path, text).unwrap();
            let mut offset = 0;
            let expected: Vec<(u64, Vec<u8>)> = text
                .split_inclusive('\n')
                .map(|line| {
                    let at = offset;
                    offset += line.len() as u64;
                    (at, line.strip_suffix('\n').unwrap_or(line).as_bytes().to_vec())
                })
                .collect();
            for split in 1..=200 {
                let (found, bytes) = lines(&path, split);
                assert_eq!(found, expected, "split {split} of {text:?}");
                assert_eq!(bytes, text.len() as u64, "split {split} of {text:?}");
            }
        }
    }

    #[test]
    fn lines_around_the_read_size_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.txt");
        let lengths = [READ_BYTES - 1, READ_BYTES, 3 * READ_BYTES + 1, 0, 5, READ_BYTES / 2];
        let text: Vec<String> = lengths.iter().map(|length| "y".repeat(*length)).collect();
        fs::write(&path, text.join("\n")).unwrap();
        let (found, bytes) = lines(&path, 10 * READ_BYTES as u64);
        let found: Vec<usize> = found.iter().map(|(_, line)| line.len()).collect();
        assert_eq!(found, lengths);
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn a_line_beyond_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.txt");
        let file = File::create(&path).unwrap();
        file.set_len(LINE_BYTES_MAX as u64 + 2 * READ_BYTES as u64).unwrap();
        let whole = piece(&path, 0, file.metadata().unwrap().len());
        let refused = whole.blocks(Records::Lines, &mut |_| Ok(())).unwrap_err();
        assert!(matches!(refused, Failure::Input { permanent: true, .. }), "{refused}");
        let behind = Piece { start: 1, bytes: 1, ..whole };
        assert!(behind.blocks(Records::Lines, &mut |_| Ok(())).is_err());
    }

    #[test]
    fn a_changed_missing_or_strange_file_is_refused_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.txt");
        fs::write(&path, "one\n").unwrap();
        let planned = piece(&path, 0, 4);
        let refused = |piece: &Piece| match piece.blocks(Records::Lines, &mut |_| Ok(())) {
            Err(Failure::Input { permanent, path, .. }) => permanent && path == "doc",
            other => panic!("{other:?}"),
        };
        assert!(refused(&Piece { modified_ns: planned.modified_ns + 1, ..planned.clone() }));
        assert!(refused(&Piece { file_bytes: 5, ..planned.clone() }));
        assert!(refused(&Piece { path: dir.path().to_owned(), ..planned.clone() }));
        fs::remove_file(&path).unwrap();
        assert!(refused(&planned));
    }

    #[test]
    fn a_file_that_shrinks_under_the_reader_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.txt");
        fs::write(&path, "a\n".repeat(READ_BYTES)).unwrap();
        let piece = piece(&path, 0, 2 * READ_BYTES as u64);
        let mut cut = |_: Block<'_>| {
            File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
            Ok(())
        };
        assert!(matches!(
            piece.blocks(Records::Lines, &mut cut),
            Err(Failure::Input { permanent: true, .. })
        ));
    }
}
