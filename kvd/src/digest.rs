//! The additive digest of the state: equal on members whose states are equal.
//!
//! Each part of the state contributes one hash, keyed by what kind of part it is; a digest is the
//! wrapping sum of them, so that a write costs the old part's hash and the new one's and nothing
//! else. It finds members that went apart by a defect or a bad disk; it proves nothing against an
//! adversary who chooses the data.

use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use crate::{
    command::{LeaseId, Token},
    kept,
    outcome::{Outcome, Pair, Revision, Waiter},
};

const SEED_KEY: u64 = 1;
const SEED_PAIR: u64 = 3;
const SEED_ROW: u64 = 4;
const SEED_REPLY: u64 = 5;
const SEED_SHARD: u64 = 6;
const SEED_MACHINE: u64 = 7;
const SEED_WRITTEN: u64 = 8;
const SEED_OUTCOME: u64 = 9;
const SEED_CHANGE: u64 = 11;
const SEED_LEASE: u64 = 12;
const SEED_LOCK: u64 = 13;
const SEED_WAITER: u64 = 14;
const SEED_CUSTODY: u64 = 15;
const SEED_FROZEN: u64 = 16;

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

fn key_hash(key: &[u8]) -> [u8; 16] {
    xxh3_128_with_seed(key, SEED_KEY).to_le_bytes()
}

/// Without a seed, from which long values would make a secret each time.
fn value_hash(value: &[u8]) -> [u8; 16] {
    xxh3_128(value).to_le_bytes()
}

/// What a pair contributes to its shard.
pub(crate) fn pair(shard: u32, key: &[u8], pair: &Pair) -> u128 {
    Numbers::new()
        .number(u64::from(shard))
        .add(key_hash(key))
        .add(value_hash(&pair.value))
        .number(pair.version.0)
        .number(pair.create_revision.0)
        .number(pair.mod_revision.0)
        .number(pair.lease.map_or(0, LeaseId::get))
        .hash(SEED_PAIR)
}

/// What a change contributes to its shard's log, by the digests of its pairs, which name the key and
/// the shard; 0: nothing.
pub(crate) fn change(revision: Revision, [before, after]: [u128; 2], expired: bool) -> u128 {
    Numbers::new()
        .number(revision.0)
        .add(before.to_le_bytes())
        .add(after.to_le_bytes())
        .add([u8::from(expired)])
        .hash(SEED_CHANGE)
}

/// What a lease contributes; its number names its shard.
pub(crate) fn lease(
    id: LeaseId,
    ttl_ms: u64,
    renewal: u64,
    deadline: u64,
    own: Option<&[u8]>,
) -> u128 {
    Numbers::new()
        .number(id.get())
        .number(ttl_ms)
        .number(renewal)
        .number(deadline)
        .add(own.map_or([0; 16], key_hash))
        .hash(SEED_LEASE)
}

/// What a lock contributes without those who wait for it; its lease names its shard.
pub(crate) fn lock(name: &[u8], lease: LeaseId, token: Token, owner: &[u8]) -> u128 {
    Numbers::new()
        .add(key_hash(name))
        .number(lease.get())
        .number(token.0)
        .add(value_hash(owner))
        .hash(SEED_LOCK)
}

/// What one who waits for a lock contributes.
pub(crate) fn waiter(name: &[u8], arrival: Revision, waiter: &Waiter) -> u128 {
    Numbers::new()
        .add(key_hash(name))
        .number(arrival.0)
        .number(waiter.lease.get())
        .number(waiter.until.0)
        .add(value_hash(&waiter.owner))
        .hash(SEED_WAITER)
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
    let numbers = Numbers::new()
        .add(*client)
        .number(sequence)
        .number(expires)
        .number(order)
        .add([u8::from(dropped)]);
    // The plain write, which is what most are, without an allocation.
    if let Outcome::Written(written) = outcome {
        return numbers.number(written.version.0).number(written.revision.0).hash(SEED_WRITTEN);
    }
    let mut said = Vec::with_capacity(64);
    kept::put_outcome(&mut said, outcome);
    let body = kept::body(outcome).map_or([0; 16], |body| value_hash(&body));
    numbers.add(xxh3_128_with_seed(&said, SEED_OUTCOME).to_le_bytes()).add(body).hash(SEED_REPLY)
}

/// What a shard's counters contribute.
pub(crate) fn shard(shard: u32, revision: Revision, compacted: Revision, next_order: u64) -> u128 {
    Numbers::new()
        .number(u64::from(shard))
        .number(revision.0)
        .number(compacted.0)
        .number(next_order)
        .hash(SEED_SHARD)
}

/// What a shard contributes that does not move with it.
pub(crate) fn custody(shard: u32, time_offset_ms: i64, held: u64, custody: [u64; 6]) -> u128 {
    let numbers = Numbers::new().number(u64::from(shard)).number(time_offset_ms.cast_unsigned());
    custody.into_iter().fold(numbers.number(held), Numbers::number).hash(SEED_CUSTODY)
}

/// What the time of a shard contributes that stands still.
pub(crate) fn frozen(shard: u32, time: u64) -> u128 {
    Numbers::new().number(u64::from(shard)).number(time).hash(SEED_FROZEN)
}

/// What the machine itself contributes.
pub(crate) fn machine(shards: u64, time_ms: u64, recoveries: u64) -> u128 {
    Numbers::new().number(shards).number(time_ms).number(recoveries).hash(SEED_MACHINE)
}
