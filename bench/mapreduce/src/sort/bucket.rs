//! Records of one bucket, in the order of their arrival, and how they are written in that of their
//! keys.
//!
//! A bucket is small enough for a core's cache, so that taking its records in any order costs
//! little.

use std::io;

use crate::{
    output::Part,
    records::{KEY_BYTES, RECORD_BYTES},
};

/// How many records a chunk has: memory is taken in so small pieces that a bucket may have any size.
const CHUNK_RECORDS: usize = 640;

/// The low bits of an entry, behind the key: the chunk and the place in it.
const PLACE_BITS: u32 = 48;
const PLACE_IN_CHUNK_BITS: u32 = 16;

const _: () = assert!(CHUNK_RECORDS <= 1 << PLACE_IN_CHUNK_BITS);
const _: () = assert!(8 * KEY_BYTES + PLACE_BITS as usize == 128);

/// Records, in chunks of which only the last is not full.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    chunks: Vec<Vec<u8>>,
    last: Vec<u8>,
}

impl Bucket {
    #[inline]
    pub(super) fn push(&mut self, record: &[u8; RECORD_BYTES]) {
        if self.last.len() == self.last.capacity() {
            self.next_chunk();
        }
        self.last.extend_from_slice(record);
    }

    #[cold]
    #[inline(never)]
    fn next_chunk(&mut self) {
        let next = Vec::with_capacity(CHUNK_RECORDS * RECORD_BYTES);
        let full = std::mem::replace(&mut self.last, next);
        if !full.is_empty() {
            self.chunks.push(full);
        }
    }

    /// All records, chunk by chunk.
    fn chunks(&self) -> impl Iterator<Item = &[[u8; RECORD_BYTES]]> {
        self.chunks.iter().chain([&self.last]).map(|chunk| chunk.as_chunks().0)
    }
}

/// Writes the records of all `buckets`, which are of the same keys, in the order of their keys.
/// `entries` is memory that is used again and again.
pub(super) fn write(buckets: &[Bucket], entries: &mut Vec<u128>, out: &mut Part) -> io::Result<()> {
    let chunks: Vec<&[[u8; RECORD_BYTES]]> = buckets.iter().flat_map(Bucket::chunks).collect();
    entries.clear();
    for (number, chunk) in chunks.iter().enumerate() {
        let first = (number as u128) << PLACE_IN_CHUNK_BITS;
        entries.extend(chunk.iter().zip(first..).map(|(record, place)| key(record) | place));
    }
    entries.sort_unstable();
    for entry in entries {
        let place = *entry as u64;
        let chunk = (place & ((1 << PLACE_BITS) - 1)) >> PLACE_IN_CHUNK_BITS;
        let place = place & ((1 << PLACE_IN_CHUNK_BITS) - 1);
        out.write(&chunks[chunk as usize][place as usize])?;
    }
    Ok(())
}

/// The key of a record as the high bits of a number.
#[inline]
fn key(record: &[u8; RECORD_BYTES]) -> u128 {
    let first = record.first_chunk().expect("a record is longer");
    u128::from_be_bytes(*first) >> PLACE_BITS << PLACE_BITS
}
