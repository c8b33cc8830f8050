//! The additive digest of the log's state: equal on members whose states are equal.
//!
//! Each part contributes one hash, keyed by what kind of part it is, and a digest is the wrapping
//! sum of them, so that a change costs the hashes of what changed. It finds members that went apart
//! by a defect or a bad disk; it proves nothing against an adversary who chooses the data.

use xxhash_rust::xxh3::xxh3_128_with_seed;

const SEED_PAYLOAD: u64 = 1;
const SEED_NUMBERS: u64 = 2;

/// What kind of part a hash is of.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Entry = 1,
    Row = 2,
    Reply = 3,
    Machine = 4,
}

fn numbers(part: Part, numbers: [u64; 5]) -> u128 {
    let mut bytes = [0; 48];
    for (place, number) in bytes.chunks_exact_mut(8).zip([part as u64].into_iter().chain(numbers)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    xxh3_128_with_seed(&bytes, SEED_NUMBERS)
}

fn halves(number: u128) -> [u64; 2] {
    [number as u64, (number >> 64) as u64]
}

/// What an entry contributes.
pub(crate) fn entry(index: u64, payload: &[u8]) -> u128 {
    let [low, high] = halves(xxh3_128_with_seed(payload, SEED_PAYLOAD));
    numbers(Part::Entry, [index, low, high, 0, 0])
}

/// What a row of the exactly-once table contributes, without its replies.
pub(crate) fn row(client: [u8; 16], acknowledged: u64, latest: u64) -> u128 {
    let [low, high] = halves(u128::from_le_bytes(client));
    numbers(Part::Row, [low, high, acknowledged, latest, 0])
}

/// What a kept reply contributes.
pub(crate) fn reply(client: [u8; 16], sequence: u64, first: u64, count: u64) -> u128 {
    let [low, high] = halves(u128::from_le_bytes(client));
    numbers(Part::Reply, [low, high, sequence, first, count])
}

/// What the log's bounds and the time contribute.
pub(crate) fn machine(first: u64, next: u64, start: u64, end: u64, time_ms: u64) -> u128 {
    numbers(Part::Machine, [first, next, start, end, time_ms])
}
