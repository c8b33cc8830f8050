//! Reads a run, believing nothing that it has not checked.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use super::{
    BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, FORMAT, MAGIC, PARTITIONS_MAX, ROW_BYTES, Row, TAIL_BYTES,
    UNCOVERED_BYTES,
};
use crate::fold::get_varint;

/// Why a run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file system refuses.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file has another length than it was committed with.
    #[error("the file has {found} bytes instead of {expected}")]
    Length {
        /// As it is.
        found: u64,
        /// As it was.
        expected: u64,
    },
    /// The file is not what was written.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// The file was written by a newer Flotilla.
    #[error("run format {0} is newer than this worker's {FORMAT}")]
    Newer(u32),
}

/// An open run whose footer is verified.
#[derive(Debug)]
pub struct Run {
    file: Arc<File>,
    rows: Vec<Row>,
}

impl Run {
    /// Opens a run and verifies its footer; `expected` is its length and its footer's checksum,
    /// where they are known.
    pub fn open(path: &Path, expected: Option<(u64, u32)>) -> Result<Self, RunError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if let Some((expected, _)) = expected
            && expected != length
        {
            return Err(RunError::Length { found: length, expected });
        }
        let footer = read_footer(&file, length)?;
        let tail = &footer[footer.len() - TAIL_BYTES..];
        let covered = &footer[..footer.len() - UNCOVERED_BYTES];
        let crc = le_u32(&tail[20..]);
        if crc32c::crc32c(covered) != crc {
            return Err(RunError::Damaged("the footer's checksum"));
        }
        if expected.is_some_and(|(_, expected)| expected != crc) {
            return Err(RunError::Damaged("it is another run than was committed"));
        }
        let rows: Vec<Row> =
            footer[..footer.len() - TAIL_BYTES].chunks(ROW_BYTES).map(row).collect();
        let mut end = 0_u64;
        let mut records = 0_u64;
        for row in &rows {
            if row.offset != end {
                return Err(RunError::Damaged("its partitions do not tile the file"));
            }
            end = end.checked_add(row.bytes).ok_or(RunError::Damaged("a partition's length"))?;
            records = records.wrapping_add(row.records);
        }
        if end != length - footer.len() as u64 || records != le_u64(tail) {
            return Err(RunError::Damaged("its partitions are not the whole"));
        }
        Ok(Self { file: Arc::new(file), rows })
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> u32 {
        self.rows.len() as u32
    }

    /// A reader of one partition; it keeps the file open and nothing else.
    pub fn partition(&self, partition: u32) -> Result<PartitionReader, RunError> {
        let row = self.rows.get(partition as usize);
        let row = *row.ok_or(RunError::Damaged("it lacks the partition"))?;
        Ok(PartitionReader {
            file: Arc::clone(&self.file),
            offset: row.offset,
            left: row.bytes,
            row,
            crc: 0,
            records: 0,
            block: Vec::new(),
            block_records: 0,
            at: 0,
            key: 0..0,
            value: 0..0,
        })
    }
}

/// Reads the footer, of which magic, format and lengths are plausible.
fn read_footer(file: &File, length: u64) -> Result<Vec<u8>, RunError> {
    let tail_offset =
        length.checked_sub(TAIL_BYTES as u64).ok_or(RunError::Damaged("it is too short"))?;
    let mut tail = [0; TAIL_BYTES];
    file.read_exact_at(&mut tail, tail_offset)?;
    if tail[TAIL_BYTES - MAGIC.len()..] != MAGIC {
        return Err(RunError::Damaged("its end is not that of a run"));
    }
    let (partitions, format, footer_bytes) =
        (le_u32(&tail[8..]), le_u32(&tail[12..]), le_u32(&tail[16..]));
    if format > FORMAT {
        return Err(RunError::Newer(format));
    }
    if format != FORMAT || !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(RunError::Damaged("its format or its number of partitions"));
    }
    let expected = partitions as usize * ROW_BYTES + TAIL_BYTES;
    let offset = length.checked_sub(expected as u64);
    let Some(offset) = offset.filter(|_| footer_bytes as usize == expected) else {
        return Err(RunError::Damaged("the footer's length"));
    };
    let mut footer = vec![0; expected];
    file.read_exact_at(&mut footer, offset)?;
    Ok(footer)
}

/// Reads the records of one partition, in order. Memory: one block.
#[derive(Debug)]
pub struct PartitionReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
    row: Row,
    crc: u32,
    records: u64,
    block: Vec<u8>,
    block_records: u32,
    at: usize,
    key: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

impl PartitionReader {
    /// Goes to the next record; false at the verified end.
    pub fn advance(&mut self) -> Result<bool, RunError> {
        if self.block_records == 0 && !self.next_block()? {
            return Ok(false);
        }
        self.block_records -= 1;
        let key_bytes = self.length()?;
        let value_bytes = self.length()?;
        self.key = self.at..self.end(self.at, key_bytes)?;
        self.value = self.key.end..self.end(self.key.end, value_bytes)?;
        self.at = self.value.end;
        if self.block_records == 0 && self.at != self.block.len() {
            return Err(RunError::Damaged("a block holds more than its records"));
        }
        Ok(true)
    }

    /// The key of the current record.
    #[inline]
    pub fn key(&self) -> &[u8] {
        &self.block[self.key.clone()]
    }

    /// The value of the current record.
    #[inline]
    pub fn value(&self) -> &[u8] {
        &self.block[self.value.clone()]
    }

    /// Loads and verifies the next block; false at the end, where the partition's own checksum and
    /// count are verified.
    fn next_block(&mut self) -> Result<bool, RunError> {
        if self.left == 0 {
            if self.crc != self.row.crc || self.records != self.row.records {
                return Err(RunError::Damaged("a partition's blocks or count"));
            }
            return Ok(false);
        }
        let mut header = [0; BLOCK_HEADER_BYTES];
        if self.left < header.len() as u64 {
            return Err(RunError::Damaged("a block's header is cut off"));
        }
        self.file.read_exact_at(&mut header, self.offset)?;
        let (length, records) = (le_u32(&header) as usize, le_u32(&header[4..]));
        let whole = (header.len() + length) as u64;
        if length > BLOCK_BYTES_MAX || whole > self.left || records == 0 {
            return Err(RunError::Damaged("a block's header"));
        }
        self.block.resize(length, 0);
        self.file.read_exact_at(&mut self.block, self.offset + header.len() as u64)?;
        let (covered, crc) = header.split_at(BLOCK_HEADER_BYTES - 4);
        if crc32c::crc32c_append(crc32c::crc32c(covered), &self.block) != le_u32(crc) {
            return Err(RunError::Damaged("a block's checksum"));
        }
        if le_u32(&header[8..]) != 0 {
            return Err(RunError::Damaged("a block's codec is not known"));
        }
        self.crc = crc32c::crc32c_append(self.crc, crc);
        self.records += u64::from(records);
        self.block_records = records;
        self.at = 0;
        self.offset += whole;
        self.left -= whole;
        Ok(true)
    }

    fn length(&mut self) -> Result<u64, RunError> {
        let found = get_varint(&self.block[self.at..]);
        let (length, bytes) = found.ok_or(RunError::Damaged("a record's length"))?;
        self.at += bytes;
        Ok(length)
    }

    fn end(&self, start: usize, length: u64) -> Result<usize, RunError> {
        let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
        end.filter(|&end| end <= self.block.len())
            .ok_or(RunError::Damaged("a record reaches beyond its block"))
    }
}

fn row(bytes: &[u8]) -> Row {
    Row {
        offset: le_u64(bytes),
        bytes: le_u64(&bytes[8..]),
        records: le_u64(&bytes[16..]),
        crc: le_u32(&bytes[24..]),
    }
}

/// The number in the first four bytes; the caller has made sure that they are there.
fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("the caller passes at least 4 bytes"))
}

/// The number in the first eight bytes; the caller has made sure that they are there.
fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("the caller passes at least 8 bytes"))
}
