//! All words of the input and how often each was seen, whatever its length.

use std::{
    hash::BuildHasher,
    sync::{Mutex, PoisonError},
};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    shard::{SHARDS, Shard, Shared},
    tally::{Size, Tally},
};

/// The longest word that is its own key.
const KEY_BYTES_MAX: usize = 16;

/// Half a megabyte of frequent words, and 32 of waiting ones.
const SHORT: Size = Size { frequent_log: 15, waiting: 16_384 };

/// Longer words are rarer, so there is less to gain with frequent ones.
const MEDIUM: Size = Size { frequent_log: 13, waiting: 8_192 };

/// For each length the bytes of a word in a number that was read lowest byte first.
const MASKS: [u128; KEY_BYTES_MAX + 1] = {
    let mut masks = [0; KEY_BYTES_MAX + 1];
    let mut length = 1;
    while length < masks.len() {
        masks[length] = u128::MAX >> (128 - 8 * length);
        length += 1;
    }
    masks
};

/// What all threads have counted.
#[derive(Debug)]
pub(super) struct Table {
    short: Shared<u64>,
    medium: Shared<[u64; 2]>,
    long: Mutex<LongWords>,
}

/// What one thread counts. Only [`Counter::finish`] hands all of it over.
#[derive(Debug)]
pub(super) struct Counter<'a> {
    table: &'a Table,
    short: Tally<'a, u64>,
    medium: Tally<'a, [u64; 2]>,
    long: LongWords,
    short_keys: Vec<u64>,
    medium_keys: Vec<[u64; 2]>,
}

/// A word and its count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted<'a> {
    /// The first sixteen bytes as a number that orders as they do, zeros behind a shorter word.
    pub(super) prefix: u128,
    /// What follows them.
    pub(super) rest: &'a [u8],
    pub(super) count: u64,
}

/// All counts, when nobody counts any more.
#[derive(Debug)]
pub(super) struct Counts {
    short: Vec<Shard<u64>>,
    medium: Vec<Shard<[u64; 2]>>,
    long: LongWords,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { short: Shared::new(), medium: Shared::new(), long: Mutex::default() }
    }

    pub(super) fn finish(self) -> Counts {
        Counts {
            short: self.short.into_shards(),
            medium: self.medium.into_shards(),
            long: self.long.into_inner().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl<'a> Counter<'a> {
    /// A thread that takes at most `words_max` words at a time.
    pub(super) fn new(table: &'a Table, words_max: usize) -> Self {
        Self {
            table,
            short: Tally::new(&table.short, SHORT),
            medium: Tally::new(&table.medium, MEDIUM),
            long: LongWords::default(),
            // One place more, for the key that is written although its word is of the other kind.
            short_keys: vec![0; words_max + 1],
            medium_keys: vec![[0; 2]; words_max + 1],
        }
    }

    /// Counts the words of `padded` that go from the first to the second number of each pair.
    pub(super) fn add_all(&mut self, padded: &[u8], words: &[[u32; 2]]) {
        let (mut short, mut medium) = (0, 0);
        for &[begin, end] in words {
            let (begin, length) = (begin as usize, (end - begin) as usize);
            let bytes = padded[begin..].first_chunk().expect("there is padding behind every word");
            let key = u128::from_le_bytes(*bytes) & MASKS[length.min(KEY_BYTES_MAX)];
            // No branch: which of both a word is cannot be predicted.
            self.short_keys[short] = key as u64;
            self.medium_keys[medium] = [key as u64, (key >> 64) as u64];
            short += usize::from(length <= 8);
            medium += usize::from(length > 8);
            if length > KEY_BYTES_MAX {
                medium -= 1;
                self.long.add(&padded[begin..begin + length], 1);
            }
        }
        self.short.add_all(&self.short_keys[..short]);
        self.medium.add_all(&self.medium_keys[..medium]);
    }

    pub(super) fn finish(self) {
        self.short.finish();
        self.medium.finish();
        let mut long = self.table.long.lock().unwrap_or_else(PoisonError::into_inner);
        self.long.words.iter().for_each(|it| long.add(self.long.text(it), it.count));
    }
}

impl Counts {
    /// The words of one of `parts` parts, in no order.
    pub(super) fn part(&self, part: usize, parts: usize) -> Vec<Counted<'_>> {
        let shards = || (part..SHARDS).step_by(parts);
        let short = shards().flat_map(|shard| self.short[shard].slots()).map(|slot| {
            let prefix = u128::from(slot.key.swap_bytes()) << 64;
            Counted { prefix, rest: &[], count: slot.count }
        });
        let medium = shards().flat_map(|shard| self.medium[shard].slots()).map(|slot| {
            let [first, second] = slot.key.map(|half| u128::from(half.swap_bytes()));
            Counted { prefix: (first << 64) | second, rest: &[], count: slot.count }
        });
        let long = self.long.words.iter().filter(|it| it.begin % parts == part).map(|it| {
            let (first, rest) =
                self.long.text(it).split_first_chunk().expect("shorter words are keys");
            Counted { prefix: u128::from_be_bytes(*first), rest, count: it.count }
        });
        short.chain(medium).chain(long).collect()
    }
}

/// Words of more than [`KEY_BYTES_MAX`] bytes, which are few.
#[derive(Debug, Default)]
struct LongWords {
    words: HashTable<LongWord>,
    arena: Vec<u8>,
    hash: DefaultHashBuilder,
}

/// A word in the arena. Where it begins decides its part: as good as chance.
#[derive(Clone, Copy, Debug)]
struct LongWord {
    begin: usize,
    length: usize,
    count: u64,
}

impl LongWords {
    fn text(&self, word: &LongWord) -> &[u8] {
        &self.arena[word.begin..word.begin + word.length]
    }

    #[cold]
    #[inline(never)]
    fn add(&mut self, text: &[u8], times: u64) {
        let hash = self.hash.hash_one(text);
        let arena = &self.arena;
        let same = |it: &LongWord| arena[it.begin..it.begin + it.length] == *text;
        if let Some(found) = self.words.find_mut(hash, same) {
            found.count += times;
            return;
        }
        let new = LongWord { begin: self.arena.len(), length: text.len(), count: times };
        self.arena.extend_from_slice(text);
        let (arena, hasher) = (&self.arena, &self.hash);
        let rehash = |it: &LongWord| hasher.hash_one(&arena[it.begin..it.begin + it.length]);
        self.words.insert_unique(hash, new, rehash);
    }
}
