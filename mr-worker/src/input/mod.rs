//! Inputs: pieces of files as blocks of whole records.
//!
//! A record belongs to the piece in which it begins. With `B(x)` the first record's beginning at or
//! behind offset `x`, a piece from `s` to `e` is exactly the bytes from `B(s)` to `B(e)`, so that
//! pieces that tile a file yield each of its records once, whatever their borders. A last line needs
//! no line feed. A compressed file is one piece, and its offsets are those of what it unpacks to.
//!
//! A file is checked against the size and time that it was planned with before it is read and
//! afterwards: half of one version and half of another would be nobody's result.

mod lines;
mod source;

use std::{
    fs::{File, Metadata},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

pub use self::source::Packing;
use self::source::Source;
use crate::{
    failure::Failure,
    record::{Block, Records},
};

/// How much is read at a time.
pub(crate) const READ_BYTES: usize = 1 << 20;

/// The longest line without a wish of the job's, in bytes.
pub const LINE_BYTES_DEFAULT: usize = 16 << 20;

/// The longest line that a job may allow, in bytes.
pub const LINE_BYTES_MAX: usize = 64 << 20;

/// The largest file that can be one record, in bytes.
pub const WHOLE_FILE_BYTES_MAX: u64 = 1 << 30;

/// How many times its size a file may unpack to without a wish of the job's. Honest gzip stays
/// below 1,033.
pub const EXPANSION_DEFAULT: u32 = 2_000;

/// A piece of an input file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The path as the user named it.
    pub document: String,
    /// What the job calls this input among several.
    pub tag: String,
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
    /// How the file is compressed; such a file is one piece.
    pub packing: Packing,
}

/// How a job's inputs are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// What a record is.
    pub records: Records,
    /// The longest line, in bytes, without its line feed.
    pub line_bytes_max: usize,
    /// What becomes of longer ones.
    pub long_lines: LongLines,
    /// How many times its size a file may unpack to.
    pub expansion_max: u32,
}

/// What becomes of lines beyond the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LongLines {
    /// The job fails.
    #[default]
    Fail,
    /// They are left out.
    Skip,
    /// They are cut to the limit.
    Cut,
}

impl Reading {
    /// Records of a kind, within the limits that hold without a wish.
    #[must_use]
    pub fn of(records: Records) -> Self {
        let long_lines = LongLines::Fail;
        let (line_bytes_max, expansion_max) = (LINE_BYTES_DEFAULT, EXPANSION_DEFAULT);
        Self { records, line_bytes_max, long_lines, expansion_max }
    }
}

/// What was read of a piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of the file.
    pub bytes: u64,
    /// Lines beyond the limit, left out or cut.
    pub long_lines: u64,
}

/// Takes blocks.
pub(crate) type Each<'e> = &'e mut dyn FnMut(Block<'_>) -> Result<(), Failure>;

/// A file's modification time in nanoseconds of Unix time, as plans hold it.
pub fn modified_ns(metadata: &Metadata) -> u64 {
    let nanoseconds =
        i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    u64::try_from(nanoseconds).unwrap_or(0)
}

impl Piece {
    /// Hands the blocks of this piece to `each`, in order.
    ///
    /// # Errors
    /// What is wrong with the file, or what `each` says.
    pub fn blocks(
        &self,
        reading: &Reading,
        each: &mut dyn FnMut(Block<'_>) -> Result<(), Failure>,
    ) -> Result<Taken, Failure> {
        let file =
            File::open(&self.path).map_err(|error| Failure::input(&self.document, &error))?;
        self.unchanged(&file)?;
        let end = self.start.checked_add(self.bytes).filter(|&end| end <= self.file_bytes);
        let end = end.ok_or_else(|| self.misplaced("beyond its file"))?;
        let is_whole = self.start == 0 && end == self.file_bytes;
        if self.packing != Packing::None && !is_whole {
            return Err(self.misplaced("of a compressed file"));
        }
        let taken = match reading.records {
            Records::Lines { .. } | Records::KeyValues { .. } => {
                lines::read(self, &file, reading, end, each)?
            }
            Records::Fixed(width) => self.fixed(&file, reading, width, end, each)?,
            Records::Files if is_whole => self.whole(&file, reading, each)?,
            Records::Files => return Err(self.misplaced("of a whole file")),
        };
        self.unchanged(&file)?;
        Ok(taken)
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

    /// An order that makes no sense.
    fn misplaced(&self, what: &str) -> Failure {
        Failure::Internal(format!("{}: a piece {what}", self.document))
    }

    fn whole(&self, file: &File, reading: &Reading, each: Each<'_>) -> Result<Taken, Failure> {
        let mut source = Source::open(self, file, reading, 0, self.file_bytes)?;
        let mut bytes = Vec::new();
        loop {
            let filled = bytes.len();
            // One byte more than is expected shows the end without another growth.
            let room = match self.packing {
                Packing::None if filled == 0 => (self.file_bytes as usize).saturating_add(1),
                Packing::None | Packing::Gzip | Packing::Zstd => READ_BYTES,
            };
            if filled as u64 > WHOLE_FILE_BYTES_MAX || room as u64 > WHOLE_FILE_BYTES_MAX + 1 {
                return Err(self.refuse(format!(
                    "it has more bytes than a whole-file record may have \
                     ({WHOLE_FILE_BYTES_MAX}); formats of lines have no such limit"
                )));
            }
            bytes.resize(filled + room, 0);
            let read = source.fill(&mut bytes[filled..])?;
            bytes.truncate(filled + read);
            if read < room {
                break;
            }
        }
        each(self.block(0, &bytes, reading.records))?;
        Ok(Taken { bytes: self.file_bytes, long_lines: 0 })
    }

    fn fixed(
        &self,
        file: &File,
        reading: &Reading,
        width: u32,
        end: u64,
        each: Each<'_>,
    ) -> Result<Taken, Failure> {
        let width = u64::from(width.max(1));
        let remainder = |bytes: u64| {
            let over = bytes % width;
            let message = format!(
                "its {bytes} bytes are not a multiple of the record's width of {width}: {over} \
                 are left over"
            );
            if over == 0 { Ok(()) } else { Err(self.refuse(message)) }
        };
        let (first, last) = if self.packing == Packing::None {
            remainder(self.file_bytes)?;
            let begin = |offset: u64| offset.div_ceil(width).saturating_mul(width);
            (begin(self.start), begin(end).min(self.file_bytes))
        } else {
            (0, self.file_bytes)
        };
        let mut source = Source::open(self, file, reading, first, last)?;
        let whole_records = (READ_BYTES as u64 / width).max(1) * width;
        let mut buffer = vec![0; whole_records as usize];
        let mut at = first;
        loop {
            let read = source.fill(&mut buffer)?;
            remainder(at - first + read as u64)?;
            if read == 0 {
                break;
            }
            each(self.block(at, &buffer[..read], reading.records))?;
            at += read as u64;
        }
        Ok(Taken { bytes: last.saturating_sub(first), long_lines: 0 })
    }

    fn block<'a>(&'a self, offset: u64, bytes: &'a [u8], records: Records) -> Block<'a> {
        Block { document: &self.document, tag: &self.tag, offset, bytes, records }
    }
}

#[cfg(test)]
mod tests;
