//! The additive digest of the state: equal on members whose states are equal.
//!
//! Each part of the state contributes one hash, keyed by what kind of part it is; a digest is the
//! wrapping sum of them, so that a write costs the old part's hash and the new one's and nothing
//! else. It finds members that went apart by a defect or a bad disk; it proves nothing against an
//! adversary who chooses the data.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::outcome::{Outcome, Pair};

const SEED_KEY: u64 = 1;
const SEED_VALUE: u64 = 2;
const SEED_PAIR: u64 = 3;
const SEED_ROW: u64 = 4;
const SEED_REPLY: u64 = 5;
const SEED_SHARD: u64 = 6;
const SEED_MACHINE: u64 = 7;

/// Collects fixed-size numbers for one hash without allocating.
struct Numbers {
    bytes: [u8; Self::BYTES_MAX],
    length: usize,
}

impl Numbers {
    const BYTES_MAX: usize = 128;

    fn new() -> Self {
        Self { bytes: [0; Self::BYTES_MAX], length: 0 }
    }

    fn add<const N: usize>(mut self, part: [u8; N]) -> Self {
        self.bytes[self.length..self.length + N].copy_from_slice(&part);
        self.length += N;
        self
    }

    fn number(self, number: u64) -> Self {
        self.add(number.to_le_bytes())
    }

    fn hash(&self, seed: u64) -> u128 {
        xxh3_128_with_seed(&self.bytes[..self.length], seed)
    }
}

fn value_hash(value: &[u8]) -> [u8; 16] {
    xxh3_128_with_seed(value, SEED_VALUE).to_le_bytes()
}

/// What a pair contributes to its shard.
pub(crate) fn pair(shard: u32, key: &[u8], pair: &Pair) -> u128 {
    Numbers::new()
        .number(u64::from(shard))
        .add(xxh3_128_with_seed(key, SEED_KEY).to_le_bytes())
        .add(value_hash(&pair.value))
        .number(pair.version.0)
        .number(pair.create_revision.0)
        .number(pair.mod_revision.0)
        .hash(SEED_PAIR)
}

/// What a row of the exactly-once table contributes, without its replies.
pub(crate) fn row(client: &[u8; 16], acknowledged: u64, latest: u64, due: u64) -> u128 {
    Numbers::new().add(*client).number(acknowledged).number(latest).number(due).hash(SEED_ROW)
}

/// What a kept reply contributes. `order` is 0 for a reply without a body to drop.
pub(crate) fn reply(
    client: &[u8; 16],
    sequence: u64,
    expires: u64,
    outcome: &Outcome,
    order: u64,
    dropped: bool,
) -> u128 {
    let (kind, [first, second, third]) = match outcome {
        Outcome::Written(written) => (1, [written.version.0, written.revision.0, 0]),
        Outcome::Mismatch(None) => (2, [0; 3]),
        Outcome::Mismatch(Some(pair)) => (3, numbers_of(pair)),
        Outcome::Appended { written, .. } => (4, [written.version.0, written.revision.0, 0]),
        Outcome::TooLarge { bytes, limit } => (5, [*bytes, *limit, 0]),
        Outcome::Removed { written, pair } => {
            let [version, create, modified] = numbers_of(pair);
            (6, [version, create, modified ^ written.revision.0.rotate_left(32)])
        }
        Outcome::Absent => (7, [0; 3]),
    };
    let body = outcome.body().map_or([0; 16], |body| value_hash(body));
    Numbers::new()
        .add(*client)
        .number(sequence)
        .number(expires)
        .number(order)
        .add([kind, u8::from(dropped)])
        .number(first)
        .number(second)
        .number(third)
        .add(body)
        .hash(SEED_REPLY)
}

fn numbers_of(pair: &Pair) -> [u64; 3] {
    [pair.version.0, pair.create_revision.0, pair.mod_revision.0]
}

/// What a shard's counters contribute.
pub(crate) fn shard(shard: u32, revision: u64, time_offset_ms: u64, next_order: u64) -> u128 {
    Numbers::new()
        .number(u64::from(shard))
        .number(revision)
        .number(time_offset_ms)
        .number(next_order)
        .hash(SEED_SHARD)
}

/// What the machine itself contributes.
pub(crate) fn machine(shards: u64, time_ms: u64, recoveries: u64) -> u128 {
    Numbers::new().number(shards).number(time_ms).number(recoveries).hash(SEED_MACHINE)
}
