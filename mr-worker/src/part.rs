//! A part of the output: how results become bytes, and how these become a durable file.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    failure::Failure,
    fold::Fold,
    outcome::{Counters, OUTPUT_BYTES, Outcome},
};

/// The name of a part in its attempt's directory.
pub const PART_FILE: &str = "part";

/// How much is gathered before it is written.
const BUFFER_BYTES: usize = 256 << 10;

/// How hard outputs are compressed: what zstd itself does without a wish.
const ZSTD_LEVEL: i32 = 3;

/// How a result becomes bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PartFormat {
    /// Key, TAB, value, LF.
    #[default]
    Text,
    /// Key, space, value, LF, as the labs have it.
    Lab,
    /// Key and value, nothing between or behind them.
    Raw,
}

/// How a part is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartStyle {
    /// How a result becomes bytes.
    pub format: PartFormat,
    /// Whether they are compressed, as one zstd frame.
    pub zstd: bool,
    /// Whether the part is durable when its task has ended; else whoever runs the task calls
    /// [`sync`].
    pub durable: bool,
}

/// A part that is being written.
pub(crate) struct Part {
    path: PathBuf,
    stream: Stream,
    style: PartStyle,
    buffer: Vec<u8>,
    /// Where values are put together that are not bytes yet.
    value: Vec<u8>,
    bytes: u64,
    records: u64,
}

enum Stream {
    Plain(Summed),
    Zstd(Box<zstd::stream::write::Encoder<'static, Summed>>),
}

/// A file, and the checksum of what was written to it.
struct Summed {
    file: File,
    crc: u32,
    bytes: u64,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Part {
    /// Creates the part in an attempt's directory.
    pub(crate) fn create(dir: &Path, style: PartStyle) -> Result<Self, Failure> {
        let path = dir.join(PART_FILE);
        let failed = |error| Failure::io(&path, &error);
        let file = Summed { file: File::create_new(&path).map_err(failed)?, crc: 0, bytes: 0 };
        let stream = if style.zstd {
            let mut encoder =
                zstd::stream::write::Encoder::new(file, ZSTD_LEVEL).map_err(failed)?;
            encoder.include_checksum(true).map_err(failed)?;
            Stream::Zstd(Box::new(encoder))
        } else {
            Stream::Plain(file)
        };
        let buffer = Vec::with_capacity(BUFFER_BYTES + BUFFER_BYTES / 4);
        Ok(Self { path, stream, style, buffer, value: Vec::new(), bytes: 0, records: 0 })
    }

    /// Writes a result in the part's format.
    #[inline]
    pub(crate) fn write(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.buffer.extend_from_slice(key);
        match self.style.format {
            PartFormat::Text => self.buffer.push(b'\t'),
            PartFormat::Lab => self.buffer.push(b' '),
            PartFormat::Raw => {}
        }
        self.buffer.extend_from_slice(value);
        match self.style.format {
            PartFormat::Text | PartFormat::Lab => self.buffer.push(b'\n'),
            PartFormat::Raw => {}
        }
        self.written()
    }

    /// Writes pieces of a result as they are, whatever the format.
    #[inline]
    pub(crate) fn write_raw(&mut self, pieces: &[&[u8]]) -> Result<(), Failure> {
        for piece in pieces {
            self.buffer.extend_from_slice(piece);
        }
        self.written()
    }

    /// Writes what a mapper emitted.
    pub(crate) fn write_folded<F: Fold>(
        &mut self,
        fold: &F,
        key: &[u8],
        input: F::Input<'_>,
    ) -> Result<(), Failure> {
        let mut value = std::mem::take(&mut self.value);
        value.clear();
        fold.write(input, &mut value);
        let written = self.write(key, &value);
        self.value = value;
        written
    }

    #[inline]
    fn written(&mut self) -> Result<(), Failure> {
        self.records += 1;
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn flush(&mut self) -> Result<(), Failure> {
        self.bytes += self.buffer.len() as u64;
        let written = match &mut self.stream {
            Stream::Plain(file) => file.write_all(&self.buffer),
            Stream::Zstd(encoder) => encoder.write_all(&self.buffer),
        };
        self.buffer.clear();
        written.map_err(|error| Failure::io(&self.path, &error))
    }

    /// Ends the part; `records` is the counter of its results.
    pub(crate) fn finish(mut self, records: &'static str) -> Result<Outcome, Failure> {
        self.flush()?;
        let failed = |error| Failure::io(&self.path, &error);
        let Summed { file, crc, bytes } = match self.stream {
            Stream::Plain(file) => file,
            Stream::Zstd(encoder) => encoder.finish().map_err(failed)?,
        };
        if self.style.durable {
            file.sync_all().map_err(failed)?;
            sync_dir_of(&self.path)?;
        }
        let mut counters = Counters::default();
        counters.add(records, self.records);
        counters.add(OUTPUT_BYTES, self.bytes);
        Ok(Outcome {
            file: PART_FILE,
            bytes,
            records: self.records,
            crc,
            // The order of results is fixed, so the bytes are the content.
            content_hash: u64::from(crc),
            counters,
        })
    }
}

/// Makes a closed part durable, file and directory.
///
/// On a file system of another machine the part has to be written as `durable` instead: what failed
/// there may be known only to who wrote it.
pub(crate) fn sync(part: &Path) -> Result<(), Failure> {
    let synced = File::open(part).and_then(|file| file.sync_all());
    synced.map_err(|error| Failure::io(part, &error))?;
    sync_dir_of(part)
}

fn sync_dir_of(part: &Path) -> Result<(), Failure> {
    let dir = part.parent().expect("a part lies in its attempt's directory");
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Failure::io(part, &error))
}
