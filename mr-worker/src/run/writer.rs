//! Writes a run: records come in order of partition, and within one in the run's order.
//!
//! A block is put together where it is written from, behind room for its header; only one that is
//! compressed is put together elsewhere first.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use super::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, Codec, FORMAT, MAGIC, Order, PARTITIONS_MAX, ROW_BYTES, Row,
    TAIL_BYTES, record_hash,
};
use crate::fold::{VARINT_BYTES_MAX, put_varint};

/// How much is gathered before it is written.
const BUFFER_BYTES: usize = 256 << 10;

/// A run that is being written.
#[derive(Debug)]
pub struct RunWriter {
    file: File,
    /// Blocks that are done, and, unless it is to be compressed, the open one.
    buffer: Vec<u8>,
    /// The open block, if it is to be compressed.
    raw: Vec<u8>,
    codec: Codec,
    order: Order,
    /// Where the open block begins in `buffer`, with the room for its header.
    block_at: usize,
    block_records: u32,
    block_bytes_max: u32,
    rows: Vec<Row>,
    partitions: u32,
    /// How many bytes of blocks are done, written or not.
    blocks_bytes: u64,
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
    /// The checksum of its tail.
    pub footer_crc: u32,
    /// The sum of the hashes of its records.
    pub content_hash: u64,
}

impl RunWriter {
    /// Creates the file, which must not exist, for `partitions` partitions, 1 to
    /// [`PARTITIONS_MAX`].
    pub fn create(path: &Path, partitions: u32, codec: Codec, order: Order) -> io::Result<Self> {
        assert!((1..=PARTITIONS_MAX).contains(&partitions), "{partitions} partitions");
        let mut rows = Vec::with_capacity(partitions as usize);
        rows.push(Row::default());
        let mut writer = Self {
            file: File::create_new(path)?,
            buffer: Vec::with_capacity(BUFFER_BYTES + 2 * BLOCK_BYTES),
            raw: Vec::new(),
            codec,
            order,
            block_at: 0,
            block_records: 0,
            block_bytes_max: 0,
            rows,
            partitions,
            blocks_bytes: 0,
            records: 0,
            content_hash: 0,
        };
        writer.open_block();
        Ok(writer)
    }

    /// Adds a record. `partition` is never below that of the record before.
    #[inline]
    pub fn push(&mut self, partition: u32, key: &[u8], value: &[u8]) -> io::Result<()> {
        if partition as usize != self.rows.len() - 1 {
            self.enter(partition)?;
        }
        let length = key.len() + value.len() + 2 * VARINT_BYTES_MAX;
        if self.block_records > 0 && self.payload_bytes() + length > BLOCK_BYTES {
            self.close_block()?;
        }
        let payload = match self.codec {
            Codec::None => &mut self.buffer,
            Codec::Lz4 => &mut self.raw,
        };
        put_varint(payload, key.len() as u64);
        put_varint(payload, value.len() as u64);
        payload.extend_from_slice(key);
        payload.extend_from_slice(value);
        self.block_records += 1;
        self.records += 1;
        self.content_hash = self.content_hash.wrapping_add(record_hash(key, value));
        Ok(())
    }

    /// Writes the footer and closes the file, without syncing it.
    pub fn finish(mut self) -> io::Result<RunSummary> {
        self.close_partitions(self.partitions as usize - 1)?;
        self.close_block()?;
        self.buffer.truncate(self.block_at);
        let mut rows_crc = 0;
        for (partition, row) in self.rows.iter().enumerate() {
            let encoded = row.encode(partition as u32);
            rows_crc = crc32c::crc32c_append(rows_crc, &encoded);
            self.buffer.extend_from_slice(&encoded);
        }
        let footer_bytes = self.rows.len() * ROW_BYTES + TAIL_BYTES;
        let mut tail = Vec::with_capacity(TAIL_BYTES);
        tail.extend_from_slice(&self.order.number().to_le_bytes());
        tail.extend_from_slice(&self.records.to_le_bytes());
        tail.extend_from_slice(&self.block_bytes_max.to_le_bytes());
        tail.extend_from_slice(&self.partitions.to_le_bytes());
        tail.extend_from_slice(&rows_crc.to_le_bytes());
        tail.extend_from_slice(&FORMAT.to_le_bytes());
        tail.extend_from_slice(&(footer_bytes as u32).to_le_bytes());
        let footer_crc = crc32c::crc32c(&tail);
        tail.extend_from_slice(&footer_crc.to_le_bytes());
        tail.extend_from_slice(&MAGIC);
        assert_eq!(tail.len(), TAIL_BYTES, "the tail has a fixed length");
        self.buffer.extend_from_slice(&tail);
        self.file.write_all(&self.buffer)?;
        let bytes = self.blocks_bytes + footer_bytes as u64;
        let Self { records, content_hash, .. } = self;
        Ok(RunSummary { bytes, records, footer_crc, content_hash })
    }

    fn payload_bytes(&self) -> usize {
        match self.codec {
            Codec::None => self.buffer.len() - self.block_at - BLOCK_HEADER_BYTES,
            Codec::Lz4 => self.raw.len(),
        }
    }

    #[cold]
    #[inline(never)]
    fn enter(&mut self, partition: u32) -> io::Result<()> {
        assert!(partition < self.partitions, "partition {partition} of {}", self.partitions);
        let current = self.rows.len() - 1;
        assert!(partition as usize > current, "partition {partition} after {current}");
        self.close_partitions(partition as usize)
    }

    /// Closes partitions until `partition` is the open one.
    fn close_partitions(&mut self, partition: usize) -> io::Result<()> {
        while self.rows.len() <= partition {
            self.close_block()?;
            let offset = self.blocks_bytes;
            self.rows.push(Row { offset, ..Row::default() });
        }
        Ok(())
    }

    fn open_block(&mut self) {
        self.block_at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; BLOCK_HEADER_BYTES]);
        self.block_records = 0;
    }

    #[cold]
    #[inline(never)]
    fn close_block(&mut self) -> io::Result<()> {
        if self.block_records == 0 {
            return Ok(());
        }
        let raw_bytes = self.payload_bytes();
        let payload_at = self.block_at + BLOCK_HEADER_BYTES;
        let codec = self.compress(payload_at);
        let (done, payload) = self.buffer.split_at_mut(payload_at);
        let header = &mut done[self.block_at..];
        header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(raw_bytes as u32).to_le_bytes());
        header[8..12].copy_from_slice(&self.block_records.to_le_bytes());
        header[12..16].copy_from_slice(&codec.number().to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..16]), payload).to_le_bytes();
        header[16..].copy_from_slice(&crc);
        let (bytes, records) = ((header.len() + payload.len()) as u64, self.block_records);
        self.blocks_bytes += bytes;
        self.block_bytes_max = self.block_bytes_max.max(raw_bytes as u32);
        let row = self.rows.last_mut().expect("a run has a first partition from the start");
        row.bytes += bytes;
        row.records += u64::from(records);
        row.crc = crc32c::crc32c_append(row.crc, &crc);
        if self.buffer.len() >= BUFFER_BYTES {
            self.file.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        self.open_block();
        Ok(())
    }

    /// Puts the payload in its place, compressed if that makes it shorter.
    fn compress(&mut self, payload_at: usize) -> Codec {
        match self.codec {
            Codec::None => Codec::None,
            Codec::Lz4 => {
                let bound = lz4_flex::block::get_maximum_output_size(self.raw.len());
                self.buffer.resize(payload_at + bound, 0);
                let place = &mut self.buffer[payload_at..];
                let compressed = lz4_flex::block::compress_into(&self.raw, place)
                    .ok()
                    .filter(|&bytes| bytes < self.raw.len());
                self.buffer.truncate(payload_at + compressed.unwrap_or(0));
                if compressed.is_none() {
                    self.buffer.extend_from_slice(&self.raw);
                }
                self.raw.clear();
                if compressed.is_some() { Codec::Lz4 } else { Codec::None }
            }
        }
    }
}
