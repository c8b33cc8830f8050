//! Writes a run: records come in order of partition, and of key within a partition.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use super::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, FORMAT, MAGIC, PARTITIONS_MAX, ROW_BYTES, Row, TAIL_BYTES,
    UNCOVERED_BYTES, record_hash,
};
use crate::fold::{VARINT_BYTES_MAX, put_varint};

/// How much is gathered before it is written.
const BUFFER_BYTES: usize = 256 << 10;

/// A run that is being written.
#[derive(Debug)]
pub struct RunWriter {
    file: BufWriter<File>,
    rows: Vec<Row>,
    partitions: u32,
    block: Vec<u8>,
    block_records: u32,
    records: u64,
    content_hash: u64,
}

/// What a finished run is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSummary {
    /// The length of the file.
    pub bytes: u64,
    /// The records in it.
    pub records: u64,
    /// The checksum of its footer.
    pub footer_crc: u32,
    /// The sum of the hashes of its records.
    pub content_hash: u64,
}

impl RunWriter {
    /// Creates the file, which must not exist, for `partitions` partitions, 1 to
    /// [`PARTITIONS_MAX`].
    pub fn create(path: &Path, partitions: u32) -> io::Result<Self> {
        assert!((1..=PARTITIONS_MAX).contains(&partitions), "{partitions} partitions");
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::create_new(path)?);
        let mut rows = Vec::with_capacity(partitions as usize);
        rows.push(Row::default());
        let block = Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 4);
        Ok(Self { file, rows, partitions, block, block_records: 0, records: 0, content_hash: 0 })
    }

    /// Adds a record. `partition` is never below that of the record before.
    pub fn push(&mut self, partition: u32, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert!(partition < self.partitions, "partition {partition} of {}", self.partitions);
        let current = self.rows.len() - 1;
        assert!(partition as usize >= current, "partition {partition} after {current}");
        if partition as usize > current {
            self.close_partitions(partition as usize)?;
        }
        let length = key.len() + value.len() + 2 * VARINT_BYTES_MAX;
        if !self.block.is_empty() && self.block.len() + length > BLOCK_BYTES {
            self.close_block()?;
        }
        put_varint(&mut self.block, key.len() as u64);
        put_varint(&mut self.block, value.len() as u64);
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        self.block_records += 1;
        self.records += 1;
        self.content_hash = self.content_hash.wrapping_add(record_hash(key, value));
        Ok(())
    }

    /// Writes the footer and closes the file, without syncing it.
    pub fn finish(mut self) -> io::Result<RunSummary> {
        self.close_partitions(self.partitions as usize - 1)?;
        self.close_block()?;
        let mut footer = Vec::with_capacity(self.rows.len() * ROW_BYTES + TAIL_BYTES);
        for row in &self.rows {
            footer.extend_from_slice(&row.offset.to_le_bytes());
            footer.extend_from_slice(&row.bytes.to_le_bytes());
            footer.extend_from_slice(&row.records.to_le_bytes());
            footer.extend_from_slice(&row.crc.to_le_bytes());
        }
        let footer_bytes = footer.len() + TAIL_BYTES;
        footer.extend_from_slice(&self.records.to_le_bytes());
        footer.extend_from_slice(&self.partitions.to_le_bytes());
        footer.extend_from_slice(&FORMAT.to_le_bytes());
        footer.extend_from_slice(&(footer_bytes as u32).to_le_bytes());
        debug_assert_eq!(footer.len() + UNCOVERED_BYTES, footer_bytes);
        let footer_crc = crc32c::crc32c(&footer);
        footer.extend_from_slice(&footer_crc.to_le_bytes());
        footer.extend_from_slice(&MAGIC);
        self.file.write_all(&footer)?;
        self.file.flush()?;
        let bytes = self.row().offset + self.row().bytes + footer_bytes as u64;
        let Self { records, content_hash, .. } = self;
        Ok(RunSummary { bytes, records, footer_crc, content_hash })
    }

    fn row(&mut self) -> &mut Row {
        self.rows.last_mut().expect("a run has a first partition from the start")
    }

    /// Closes partitions until `partition` is the open one.
    fn close_partitions(&mut self, partition: usize) -> io::Result<()> {
        while self.rows.len() <= partition {
            self.close_block()?;
            let offset = self.row().offset + self.row().bytes;
            self.rows.push(Row { offset, ..Row::default() });
        }
        Ok(())
    }

    fn close_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut header = Vec::with_capacity(BLOCK_HEADER_BYTES);
        header.extend_from_slice(&(self.block.len() as u32).to_le_bytes());
        header.extend_from_slice(&self.block_records.to_le_bytes());
        header.extend_from_slice(&0_u32.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header), &self.block).to_le_bytes();
        header.extend_from_slice(&crc);
        self.file.write_all(&header)?;
        self.file.write_all(&self.block)?;
        let (bytes, records) = (header.len() + self.block.len(), self.block_records);
        let row = self.row();
        row.bytes += bytes as u64;
        row.records += u64::from(records);
        row.crc = crc32c::crc32c_append(row.crc, &crc);
        self.block.clear();
        self.block_records = 0;
        Ok(())
    }
}
