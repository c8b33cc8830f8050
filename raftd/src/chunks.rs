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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn cut(items: &[(u32, Vec<u8>)]) -> Vec<Bytes> {
        let mut chunks = Chunks::default();
        for (key, item) in items {
            chunks.item(&key.to_le_bytes(), item);
        }
        chunks.finish().collect()
    }

    #[test]
    fn an_item_that_comes_changes_few_chunks_and_long_ones_are_cut() {
        let mut items: Vec<_> = (0..2_000_u32).map(|key| (key, vec![key as u8; 50])).collect();
        items[700].1 = vec![7; 3 * CHUNK_BYTES_MAX + 5];
        let before = cut(&items);
        assert!(before.iter().all(|chunk| (1..=CHUNK_BYTES_MAX).contains(&chunk.len())));
        let whole: Vec<u8> = items.iter().flat_map(|(_, item)| item.clone()).collect();
        assert_eq!(before.concat(), whole);
        items.insert(300, (9_999, vec![1; 50]));
        let known: BTreeSet<_> = before.iter().collect();
        let after = cut(&items);
        let new = after.iter().filter(|chunk| !known.contains(chunk)).count();
        assert!(before.len() > 20 && (1..=2).contains(&new), "{new} of {}", after.len());
    }
}
