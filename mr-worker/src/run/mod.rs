//! Run files: what a map leaves for the reduces, and what a map or reduce spills for itself.
//!
//! All numbers are little-endian. A file is its partitions, one behind the other from the first
//! byte, and a footer. A partition is blocks; a block is whole records, in the run's [`Order`]:
//!
//! ```text
//! block   payload bytes u32 | raw bytes u32 | records u32 | codec u32, 0: none, 1: LZ4
//!         CRC-32C u32 | payload
//! record  key bytes varint | value bytes varint | key | value
//! footer  a row for each partition: offset u64 | bytes u64 | records u64 | CRC-32C of blocks u32
//!         CRC-32C u32
//! tail    order u32, 0: by key, 1: none | records u64 | longest block u32 | partitions u32
//!         CRC-32C of rows u32 | format u32 | footer bytes u32 | CRC-32C u32 | magic [8]
//! ```
//!
//! A block's checksum covers its header before the checksum, and its payload. A partition's covers
//! the checksums of its blocks, so that a lost or moved block shows. A row's own covers the row and
//! the partition's number, so that a reduce verifies its row without reading the others: of ten
//! thousand maps with a thousand partitions each reduce reads ten thousand rows, not ten million.
//! The tail's covers the tail; with the length of the file it is what a commit remembers.
//!
//! Runs are never synced: what a power cut takes is found damaged and made again.

mod reader;
mod writer;

pub use reader::{Partition, PartitionReader, Run, RunError};
pub use writer::{RunSummary, RunWriter};

/// The version of the format. A newer one is refused.
pub const FORMAT: u32 = 3;

/// The last bytes of every run.
const MAGIC: [u8; 8] = *b"FLOTRUN\n";

/// How many partitions a run may have.
pub const PARTITIONS_MAX: u32 = 4_096;

/// A block is closed when its payload reaches this; only a single record makes it longer.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;

/// No payload is longer: a block that was almost full, and the longest record.
const BLOCK_BYTES_MAX: usize = BLOCK_BYTES
    + crate::combine::KEY_BYTES_MAX
    + crate::fold::VALUE_BYTES_MAX
    + 2 * crate::fold::VARINT_BYTES_MAX;

/// The length of a block's header, of which the last four bytes are its checksum.
const BLOCK_HEADER_BYTES: usize = 20;

/// The length of a partition's row in the footer.
const ROW_BYTES: usize = 32;

/// The length of what follows the rows.
const TAIL_BYTES: usize = 44;

/// The length of what the tail's checksum does not cover: itself and the magic.
const TAIL_UNCOVERED_BYTES: usize = 12;

const _: () = assert!(BLOCK_BYTES_MAX < u32::MAX as usize);

/// How blocks are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// With LZ4, where that makes a block shorter.
    Lz4,
}

impl Codec {
    fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::None, Self::Lz4].into_iter().find(|codec| codec.number() == number)
    }
}

/// How the records of a partition follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By key, and for one key as they were emitted.
    ByKey,
    /// By nothing but, for one key, as they were emitted: who reads them sorts.
    None,
}

impl Order {
    fn number(self) -> u32 {
        match self {
            Self::ByKey => 0,
            Self::None => 1,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::ByKey, Self::None].into_iter().find(|order| order.number() == number)
    }
}

/// Where a partition lies in its run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Row {
    offset: u64,
    bytes: u64,
    records: u64,
    crc: u32,
}

impl Row {
    fn encode(&self, partition: u32) -> [u8; ROW_BYTES] {
        let mut bytes = [0; ROW_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.records.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.crc.to_le_bytes());
        let crc = row_crc(&bytes, partition);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; ROW_BYTES], partition: u32) -> Option<Self> {
        (row_crc(bytes, partition) == le_u32(&bytes[28..])).then(|| Self {
            offset: le_u64(bytes),
            bytes: le_u64(&bytes[8..]),
            records: le_u64(&bytes[16..]),
            crc: le_u32(&bytes[24..]),
        })
    }
}

fn row_crc(row: &[u8; ROW_BYTES], partition: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&row[..28]), &partition.to_le_bytes())
}

/// The number in the first four bytes; the caller has made sure that they are there.
fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("the caller passes at least 4 bytes"))
}

/// The number in the first eight bytes; the caller has made sure that they are there.
fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("the caller passes at least 8 bytes"))
}

/// A record's share of the combined hash. Shares are added, so their order makes no difference.
pub(crate) fn record_hash(key: &[u8], value: &[u8]) -> u64 {
    use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};
    xxh3_64_with_seed(value, xxh3_64(key))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const PARTITIONS: u32 = 3;

    /// A run with an empty partition in the middle and one of several blocks.
    fn sample(path: &Path, codec: Codec) -> RunSummary {
        let mut writer = RunWriter::create(path, PARTITIONS, codec, Order::ByKey).unwrap();
        for number in 0..3_u32 {
            writer.push(0, format!("key{number}").as_bytes(), b"value").unwrap();
        }
        writer.push(2, b"", b"").unwrap();
        writer.push(2, b"long", &vec![b'x'; BLOCK_BYTES]).unwrap();
        writer.push(2, b"tail", b"1").unwrap();
        writer.finish().unwrap()
    }

    type Record = (u32, Vec<u8>, Vec<u8>);

    fn read(path: &Path, summary: &RunSummary) -> Result<Vec<Record>, RunError> {
        let run = Run::open(path, Some((summary.bytes, summary.footer_crc)))?;
        let mut records = Vec::new();
        for partition in 0..run.partitions() {
            let mut reader = run.partition(partition)?.read(BLOCK_BYTES);
            while reader.advance()? {
                records.push((partition, reader.key().to_vec(), reader.value().to_vec()));
            }
        }
        Ok(records)
    }

    #[test]
    fn what_was_written_comes_back() {
        for codec in [Codec::None, Codec::Lz4] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("data.run");
            let summary = sample(&path, codec);
            assert_eq!(summary.records, 6);
            assert_eq!(summary.bytes, fs::metadata(&path).unwrap().len());
            let records = read(&path, &summary).unwrap();
            let places: Vec<(u32, &[u8])> =
                records.iter().map(|(partition, key, _)| (*partition, &key[..])).collect();
            let expected: [(u32, &[u8]); 6] =
                [(0, b"key0"), (0, b"key1"), (0, b"key2"), (2, b""), (2, b"long"), (2, b"tail")];
            assert_eq!(places, expected);
            assert_eq!(records[4].2.len(), BLOCK_BYTES);
        }
    }

    #[test]
    fn every_flipped_byte_is_found() {
        for codec in [Codec::None, Codec::Lz4] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("data.run");
            let summary = sample(&path, codec);
            let whole = fs::read(&path).unwrap();
            // Inside the long value all bytes are alike; a sample of them will do.
            let offsets = (0..whole.len())
                .filter(|offset| !(1_000..BLOCK_BYTES).contains(offset) || offset % 997 == 0);
            for offset in offsets {
                for bits in [1, 0x80] {
                    let mut damaged = whole.clone();
                    damaged[offset] ^= bits;
                    fs::write(&path, &damaged).unwrap();
                    let found = read(&path, &summary);
                    assert!(found.is_err(), "byte {offset} of {}", whole.len());
                }
            }
        }
    }

    #[test]
    fn a_run_cut_short_or_continued_is_found() {
        for codec in [Codec::None, Codec::Lz4] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("data.run");
            let summary = sample(&path, codec);
            let whole = fs::read(&path).unwrap();
            for length in
                (0..whole.len()).filter(|length| length % 211 == 0 || length + 300 > whole.len())
            {
                fs::write(&path, &whole[..length]).unwrap();
                assert!(read(&path, &summary).is_err(), "{length} bytes");
                // Nor is it taken for a run when nothing is known about it.
                assert!(Run::open(&path, None).is_err(), "{length} bytes");
            }
            let mut longer = whole.clone();
            longer.push(b'\n');
            fs::write(&path, &longer).unwrap();
            assert!(read(&path, &summary).is_err());
        }
    }

    #[test]
    fn another_run_in_its_place_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.run");
        let summary = sample(&path, Codec::None);
        let other = dir.path().join("other.run");
        let mut writer = RunWriter::create(&other, PARTITIONS, Codec::None, Order::ByKey).unwrap();
        for number in 5..8_u32 {
            writer.push(0, format!("key{number}").as_bytes(), b"value").unwrap();
        }
        writer.push(2, b"", b"").unwrap();
        writer.push(2, b"long", &vec![b'x'; BLOCK_BYTES]).unwrap();
        writer.push(2, b"tail", b"1").unwrap();
        let replaced = writer.finish().unwrap();
        assert_eq!(replaced.bytes, summary.bytes);
        assert!(read(&other, &summary).is_err());
        assert!(read(&other, &replaced).is_ok());
    }

    #[test]
    fn blocks_that_changed_places_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.run");
        let mut writer = RunWriter::create(&path, 1, Codec::None, Order::ByKey).unwrap();
        for key in [b"a", b"b"] {
            writer.push(0, key, &vec![b'x'; BLOCK_BYTES]).unwrap();
        }
        let summary = writer.finish().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let blocks = bytes.len() - ROW_BYTES - TAIL_BYTES;
        bytes[..blocks].rotate_left(blocks / 2);
        fs::write(&path, &bytes).unwrap();
        assert!(read(&path, &summary).is_err());
    }

    #[test]
    fn a_newer_format_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.run");
        sample(&path, Codec::None);
        let mut bytes = fs::read(&path).unwrap();
        // As far from the end in every format.
        let format_at = bytes.len() - 20;
        assert_eq!(u32::from(bytes[format_at]), FORMAT);
        bytes[format_at] += 1;
        fs::write(&path, &bytes).unwrap();
        let error = Run::open(&path, None).unwrap_err();
        let newer = format!("format {}", FORMAT + 1);
        assert!(error.to_string().contains(&newer), "{error}");
    }

    #[test]
    fn the_combined_hash_does_not_depend_on_the_order_but_on_every_record() {
        let dir = tempfile::tempdir().unwrap();
        let hash = |name: &str, records: &[(&[u8], &[u8])]| {
            let mut writer =
                RunWriter::create(&dir.path().join(name), 1, Codec::None, Order::None).unwrap();
            for (key, value) in records {
                writer.push(0, key, value).unwrap();
            }
            writer.finish().unwrap().content_hash
        };
        let straight = hash("straight", &[(b"a", b"1"), (b"a", b"2"), (b"b", b"1")]);
        assert_eq!(straight, hash("turned", &[(b"a", b"2"), (b"a", b"1"), (b"b", b"1")]));
        assert_ne!(straight, hash("crossed", &[(b"a", b"1"), (b"b", b"2"), (b"a", b"1")]));
        assert_ne!(straight, hash("shifted", &[(b"a", b"1"), (b"a", b"2"), (b"b1", b"")]));
    }
}
