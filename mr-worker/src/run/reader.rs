//! Reads a run, believing nothing that it has not checked.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path, sync::Arc};

use super::{
    BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, Codec, FORMAT, MAGIC, Order, PARTITIONS_MAX, ROW_BYTES,
    Row, TAIL_BYTES, TAIL_UNCOVERED_BYTES, le_u32,
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

/// An open run whose tail is verified. A partition's row is verified when it is asked for, so that
/// one partition of many costs no look at the others.
#[derive(Debug)]
pub struct Run {
    file: Arc<File>,
    length: u64,
    partitions: u32,
    block_bytes_max: u32,
    order: Order,
}

/// Where a partition of a run lies: what is known of it before it is read.
#[derive(Debug)]
pub struct Partition {
    file: Arc<File>,
    row: Row,
    block_bytes_max: usize,
    order: Order,
}

impl Run {
    /// Opens a run and verifies its tail; `expected` is its length and its tail's checksum, where
    /// they are known.
    pub fn open(path: &Path, expected: Option<(u64, u32)>) -> Result<Self, RunError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if let Some((expected, _)) = expected
            && expected != length
        {
            return Err(RunError::Length { found: length, expected });
        }
        let tail_at =
            length.checked_sub(TAIL_BYTES as u64).ok_or(RunError::Damaged("it is too short"))?;
        let mut tail = [0; TAIL_BYTES];
        file.read_exact_at(&mut tail, tail_at)?;
        if tail[TAIL_BYTES - MAGIC.len()..] != MAGIC {
            return Err(RunError::Damaged("its end is not that of a run"));
        }
        // Where the format is does not change with it.
        let format = le_u32(&tail[24..]);
        if format > FORMAT {
            return Err(RunError::Newer(format));
        }
        let (covered, stored) = tail.split_at(TAIL_BYTES - TAIL_UNCOVERED_BYTES);
        let crc = le_u32(stored);
        if crc32c::crc32c(covered) != crc {
            return Err(RunError::Damaged("the tail's checksum"));
        }
        if expected.is_some_and(|(_, expected)| expected != crc) {
            return Err(RunError::Damaged("it is another run than was committed"));
        }
        let (block_bytes_max, partitions) = (le_u32(&tail[12..]), le_u32(&tail[16..]));
        let footer_bytes = le_u32(&tail[28..]);
        let order = Order::from_number(le_u32(&tail)).ok_or(RunError::Damaged("its order"))?;
        if format != FORMAT || !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err(RunError::Damaged("its format or its number of partitions"));
        }
        if footer_bytes as usize != partitions as usize * ROW_BYTES + TAIL_BYTES
            || u64::from(footer_bytes) > length
        {
            return Err(RunError::Damaged("the footer's length"));
        }
        if block_bytes_max as usize > BLOCK_BYTES_MAX {
            return Err(RunError::Damaged("its longest block"));
        }
        Ok(Self { file: Arc::new(file), length, partitions, block_bytes_max, order })
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// One of its partitions, its row verified.
    pub fn partition(&self, partition: u32) -> Result<Partition, RunError> {
        if partition >= self.partitions {
            return Err(RunError::Damaged("it lacks the partition"));
        }
        let rows_at =
            self.length - u64::from(self.partitions) * ROW_BYTES as u64 - TAIL_BYTES as u64;
        let mut row = [0; ROW_BYTES];
        self.file.read_exact_at(&mut row, rows_at + u64::from(partition) * ROW_BYTES as u64)?;
        let row = Row::decode(&row, partition).ok_or(RunError::Damaged("a partition's row"))?;
        if row.offset.checked_add(row.bytes).is_none_or(|end| end > rows_at) {
            return Err(RunError::Damaged("a partition's place"));
        }
        let file = Arc::clone(&self.file);
        let block_bytes_max = self.block_bytes_max as usize;
        Ok(Partition { file, row, block_bytes_max, order: self.order })
    }
}

impl Partition {
    /// How many bytes of the file it has.
    pub fn bytes(&self) -> u64 {
        self.row.bytes
    }

    /// How its records follow one another.
    pub fn order(&self) -> Order {
        self.order
    }

    /// How much memory a reader of it needs that reads `ahead` bytes at a time.
    pub fn memory(&self, ahead: usize) -> usize {
        let block = self.block_bytes_max;
        let window = ahead.max(block + 2 * BLOCK_HEADER_BYTES);
        let whole = usize::try_from(self.row.bytes).unwrap_or(usize::MAX);
        // Beside the window: a block that has to be unpacked.
        window.min(whole).saturating_add(block)
    }

    /// A reader that takes `ahead` bytes from the file at a time, or a block if that is longer, and
    /// closes the file when it has taken all.
    pub fn read(self, ahead: usize) -> PartitionReader {
        PartitionReader {
            file: (self.row.bytes > 0).then_some(self.file),
            offset: self.row.offset,
            left: self.row.bytes,
            ahead,
            window: Vec::new(),
            window_at: 0,
            row: self.row,
            crc: 0,
            records: 0,
            unpacked: Vec::new(),
            is_unpacked: false,
            block: 0..0,
            block_records: 0,
            key: 0..0,
            value: 0..0,
        }
    }
}

/// Reads the records of one partition, in order.
#[derive(Debug)]
pub struct PartitionReader {
    /// Nothing once everything is in the window.
    file: Option<Arc<File>>,
    /// Where the file is read next, and how much of the partition is there.
    offset: u64,
    left: u64,
    ahead: usize,
    /// What was read and not yet used up.
    window: Vec<u8>,
    window_at: usize,
    row: Row,
    crc: u32,
    records: u64,
    /// The current block, if it was compressed; otherwise it is in the window.
    unpacked: Vec<u8>,
    is_unpacked: bool,
    /// What is left of the current block.
    block: Range<usize>,
    block_records: u32,
    key: Range<usize>,
    value: Range<usize>,
}

impl PartitionReader {
    /// Goes to the next record; false at the verified end.
    #[inline]
    pub fn advance(&mut self) -> Result<bool, RunError> {
        if self.block_records == 0 && !self.next_block()? {
            return Ok(false);
        }
        self.block_records -= 1;
        let bytes = if self.is_unpacked { &self.unpacked } else { &self.window };
        let block = &bytes[self.block.clone()];
        let lengths = get_varint(block).and_then(|(key_bytes, read)| {
            let (value_bytes, more) = get_varint(&block[read..])?;
            Some((
                usize::try_from(key_bytes).ok()?,
                usize::try_from(value_bytes).ok()?,
                read + more,
            ))
        });
        let (key_bytes, value_bytes, read) =
            lengths.ok_or(RunError::Damaged("a record's lengths"))?;
        let left = block.len() - read;
        if key_bytes > left || value_bytes > left - key_bytes {
            return Err(RunError::Damaged("a record reaches beyond its block"));
        }
        let key_at = self.block.start + read;
        self.key = key_at..key_at + key_bytes;
        self.value = self.key.end..self.key.end + value_bytes;
        self.block.start = self.value.end;
        if self.block_records == 0 && !self.block.is_empty() {
            return Err(RunError::Damaged("a block holds more than its records"));
        }
        Ok(true)
    }

    /// The key of the current record.
    #[inline]
    pub fn key(&self) -> &[u8] {
        &self.bytes()[self.key.clone()]
    }

    /// The key of the current record as a place in a text.
    #[inline]
    pub(crate) fn key_in_text(&self) -> (&[u8], Range<usize>) {
        (self.bytes(), self.key.clone())
    }

    /// The value of the current record.
    #[inline]
    pub fn value(&self) -> &[u8] {
        &self.bytes()[self.value.clone()]
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        if self.is_unpacked { &self.unpacked } else { &self.window }
    }

    /// Loads and verifies the next block; false at the end, where the partition's own checksum and
    /// count are verified.
    #[cold]
    #[inline(never)]
    fn next_block(&mut self) -> Result<bool, RunError> {
        if self.window_at == self.window.len() && self.left == 0 {
            if self.crc != self.row.crc || self.records != self.row.records {
                return Err(RunError::Damaged("a partition's blocks or count"));
            }
            return Ok(false);
        }
        self.fill(BLOCK_HEADER_BYTES)?;
        let header = &self.window[self.window_at..][..BLOCK_HEADER_BYTES];
        let (length, raw_length) = (le_u32(header) as usize, le_u32(&header[4..]) as usize);
        let (records, codec) = (le_u32(&header[8..]), Codec::from_number(le_u32(&header[12..])));
        // Compression is used only where it makes a block shorter.
        if length > raw_length || raw_length > BLOCK_BYTES_MAX || records == 0 {
            return Err(RunError::Damaged("a block's header"));
        }
        self.fill(BLOCK_HEADER_BYTES + length)?;
        let whole = &self.window[self.window_at..][..BLOCK_HEADER_BYTES + length];
        let (header, payload) = whole.split_at(BLOCK_HEADER_BYTES);
        let (covered, crc) = header.split_at(BLOCK_HEADER_BYTES - 4);
        if crc32c::crc32c_append(crc32c::crc32c(covered), payload) != le_u32(crc) {
            return Err(RunError::Damaged("a block's checksum"));
        }
        self.crc = crc32c::crc32c_append(self.crc, crc);
        match codec {
            Some(Codec::None) if length == raw_length => {
                let at = self.window_at + BLOCK_HEADER_BYTES;
                (self.is_unpacked, self.block) = (false, at..at + length);
            }
            Some(Codec::Lz4) => {
                self.unpacked.resize(raw_length, 0);
                let unpacked = lz4_flex::block::decompress_into(payload, &mut self.unpacked);
                if unpacked.ok() != Some(raw_length) {
                    return Err(RunError::Damaged("a block that does not unpack"));
                }
                (self.is_unpacked, self.block) = (true, 0..raw_length);
            }
            Some(Codec::None) | None => {
                return Err(RunError::Damaged("a block's codec is not known"));
            }
        }
        self.records += u64::from(records);
        self.block_records = records;
        self.window_at += BLOCK_HEADER_BYTES + length;
        Ok(true)
    }

    /// Makes sure that the next `needed` bytes are in the window.
    fn fill(&mut self, needed: usize) -> Result<(), RunError> {
        let there = self.window.len() - self.window_at;
        if there >= needed {
            return Ok(());
        }
        let wanted = needed.max(self.ahead) - there;
        let wanted = usize::try_from(self.left).map_or(wanted, |left| wanted.min(left));
        if there + wanted < needed {
            return Err(RunError::Damaged("a block is cut off"));
        }
        let Some(file) = &self.file else { return Err(RunError::Damaged("a block is cut off")) };
        self.window.copy_within(self.window_at.., 0);
        self.window.resize(there + wanted, 0);
        self.window_at = 0;
        file.read_exact_at(&mut self.window[there..], self.offset)?;
        self.offset += wanted as u64;
        self.left -= wanted as u64;
        if self.left == 0 {
            self.file = None;
        }
        Ok(())
    }
}
