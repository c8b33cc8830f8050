//! The cuts between the chunks of a snapshot that is a sequence of items.
//!
//! Decides where a chunk ends: behind an item whose key's hash says so, so that an item that comes or
//! goes moves only the cuts beside it. An item longer than a chunk begins one and is cut at fixed
//! offsets; whoever reads puts all chunks together again. Pure.

use bytes::Bytes;
use raft::CHUNK_BYTES_MAX;
use xxhash_rust::xxh3::xxh3_64;

/// One key in so many ends a chunk.
const CUT_EVERY: u64 = 64;

/// Cuts a sequence of items into chunks.
#[derive(Debug, Default)]
pub struct Chunks {
    done: Vec<Bytes>,
    open: Vec<u8>,
}

impl Chunks {
    /// The next item, which tells its own length, and the key by which it is known.
    pub fn item(&mut self, key: &[u8], item: &[u8]) {
        if self.open.len() + item.len() > CHUNK_BYTES_MAX {
            self.cut();
        }
        for piece in item.chunks(CHUNK_BYTES_MAX) {
            self.open.extend_from_slice(piece);
            if self.open.len() == CHUNK_BYTES_MAX {
                self.cut();
            }
        }
        if xxh3_64(key).is_multiple_of(CUT_EVERY) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open).into());
        }
    }

    /// All chunks.
    pub fn finish(mut self) -> std::vec::IntoIter<Bytes> {
        self.cut();
        self.done.into_iter()
    }
}
