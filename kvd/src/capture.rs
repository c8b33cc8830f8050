//! A frozen state and its canonical encoding.
//!
//! Decides where a snapshot is cut into chunks. Equal states give equal chunks, and a change to one
//! key changes only the chunks around it: whether a chunk ends behind a record depends on that
//! record alone (its key's hash against its length), except where a chunk would exceed the
//! maximum. Long values are cut at fixed offsets from their start, each part a chunk of its own, so
//! that an Append to a long value leaves all but its last part as they were.
//!
//! The records, in order: a header; for each shard its counters, its pairs in key order, its
//! exactly-once rows in client order, each followed by its replies; an end with the digest. The
//! inverse is `restore.rs`.

use std::{
    collections::VecDeque,
    ops::Bound::{Excluded, Unbounded},
};

use bytes::Bytes;
use raft::{CHUNK_BYTES_MAX, Capture, GroupTime};
use raftd::codec::{put_bytes, put_number};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    command::ClientId,
    limits::LONG_VALUE_BYTES,
    machine::MACHINE_VERSION,
    outcome::{Outcome, Pair},
    reply::{Kept, Reply},
    shard::{Key, Shard},
};

/// The version of the snapshot's encoding.
pub(crate) const SNAPSHOT_VERSION: u8 = 2;

/// The kinds of records.
pub(crate) mod kind {
    pub(crate) const HEADER: u8 = b'K';
    pub(crate) const SHARD: u8 = 1;
    pub(crate) const PAIR: u8 = 2;
    pub(crate) const ROW: u8 = 3;
    pub(crate) const REPLY: u8 = 4;
    pub(crate) const PART: u8 = 5;
    pub(crate) const END: u8 = 6;
}

/// The kinds of kept outcomes.
pub(crate) mod outcome_kind {
    pub(crate) const WRITTEN: u8 = 1;
    pub(crate) const MISMATCH_ABSENT: u8 = 2;
    pub(crate) const MISMATCH: u8 = 3;
    pub(crate) const APPENDED: u8 = 4;
    pub(crate) const TOO_LARGE: u8 = 5;
    pub(crate) const REMOVED: u8 = 6;
    pub(crate) const ABSENT: u8 = 7;
}

/// How many bytes of a long value one chunk holds, behind its kind.
pub(crate) const PART_BYTES: usize = CHUNK_BYTES_MAX - 1;

/// What chunks are long on average, where values are short.
const CHUNK_BYTES_TARGET: u128 = 12 * 1024;

/// How many pairs or rows are encoded between two looks at whether a chunk is ready.
const RECORDS_PER_STEP: usize = 64;

/// A frozen state.
#[derive(Debug)]
pub struct KvCapture {
    shards: Vec<Shard>,
    time: GroupTime,
    recoveries: u64,
    digest: u128,
}

impl KvCapture {
    pub(crate) fn new(shards: Vec<Shard>, time: GroupTime, recoveries: u64, digest: u128) -> Self {
        Self { shards, time, recoveries, digest }
    }
}

impl Capture for KvCapture {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        Chunks { capture: self, stage: Stage::Header, writer: Writer::default() }
    }
}

/// Encodes as it is asked: holds at most a few chunks.
struct Chunks {
    capture: KvCapture,
    stage: Stage,
    writer: Writer,
}

/// What is encoded next.
enum Stage {
    Header,
    Shard(usize),
    Pairs(usize, Option<Key>),
    Rows(usize, Option<ClientId>),
    End,
    Finished,
}

impl Iterator for Chunks {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.writer.ready.pop_front() {
                return Some(chunk);
            }
            if matches!(self.stage, Stage::Finished) {
                return None;
            }
            self.step();
        }
    }
}

impl Chunks {
    fn step(&mut self) {
        let stage = std::mem::replace(&mut self.stage, Stage::Finished);
        self.stage = match stage {
            Stage::Header => {
                let shards = self.capture.shards.len() as u64;
                self.writer.record(Cut::Never, |out| {
                    out.extend_from_slice(&[kind::HEADER, SNAPSHOT_VERSION]);
                    put_number(out, u64::from(MACHINE_VERSION));
                    put_number(out, shards);
                    put_number(out, self.capture.time.0);
                    put_number(out, self.capture.recoveries);
                });
                self.writer.cut();
                Stage::Shard(0)
            }
            Stage::Shard(at) => match self.capture.shards.get(at) {
                None => Stage::End,
                Some(shard) => {
                    self.writer.record(Cut::Never, |out| encode_shard(out, shard));
                    Stage::Pairs(at, None)
                }
            },
            Stage::Pairs(at, after) => {
                let shard = &self.capture.shards[at];
                match encode_pairs(&mut self.writer, shard, after.as_ref()) {
                    Some(last) => Stage::Pairs(at, Some(last)),
                    None => Stage::Rows(at, None),
                }
            }
            Stage::Rows(at, after) => {
                let shard = &self.capture.shards[at];
                match encode_rows(&mut self.writer, shard, after) {
                    Some(last) => Stage::Rows(at, Some(last)),
                    None => Stage::Shard(at + 1),
                }
            }
            Stage::End => {
                self.writer.cut();
                self.writer.record(Cut::Never, |out| {
                    out.push(kind::END);
                    out.extend_from_slice(&self.capture.digest.to_le_bytes());
                });
                self.writer.cut();
                Stage::Finished
            }
            Stage::Finished => Stage::Finished,
        };
    }
}

fn encode_shard(out: &mut Vec<u8>, shard: &Shard) {
    out.push(kind::SHARD);
    put_number(out, u64::from(shard.number));
    put_number(out, shard.revision.0);
    put_number(out, shard.time_offset_ms);
    put_number(out, shard.sessions.next_order());
}

/// Encodes some pairs behind `after`; answers with the last one's key, none at the end.
fn encode_pairs(writer: &mut Writer, shard: &Shard, after: Option<&Key>) -> Option<Key> {
    let from = after.map_or(Unbounded, |key| Excluded(&key[..]));
    let mut last = None;
    for (key, pair) in shard.pairs.range::<_, [u8]>((from, Unbounded)).take(RECORDS_PER_STEP) {
        writer.record(Cut::By(xxh3_64(key)), |out| {
            out.push(kind::PAIR);
            put_bytes(out, key);
            put_pair_numbers(out, pair);
            put_value(out, &pair.value);
        });
        writer.parts(&pair.value);
        last = Some(key);
    }
    last.cloned()
}

/// Encodes some rows behind `after`; answers with the last one's client, none at the end.
fn encode_rows(writer: &mut Writer, shard: &Shard, after: Option<ClientId>) -> Option<ClientId> {
    let from = after.map_or(Unbounded, Excluded);
    let mut last = None;
    let rows = shard.sessions.rows();
    for (client, row) in rows.range::<_, ClientId>((from, Unbounded)).take(RECORDS_PER_STEP) {
        writer.record(Cut::By(xxh3_64(&client.0)), |out| {
            out.push(kind::ROW);
            out.extend_from_slice(&client.0);
            put_number(out, row.acknowledged);
            put_number(out, row.latest.0);
            put_number(out, row.due.0);
        });
        for reply in row.replies.as_slice() {
            encode_reply(writer, client, reply);
        }
        last = Some(*client);
    }
    last
}

fn encode_reply(writer: &mut Writer, client: &ClientId, reply: &Reply) {
    let answered = reply.kept.recall();
    let outcome = &answered.outcome;
    let hash = xxh3_64(&client.0) ^ xxh3_64(&reply.sequence.to_le_bytes());
    writer.record(Cut::By(hash), |out| {
        out.push(kind::REPLY);
        put_number(out, reply.sequence);
        put_number(out, reply.expires.0);
        put_outcome(out, outcome, &reply.kept);
    });
    if let Some(body) = outcome.body() {
        writer.parts(body);
    }
}

fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome, kept: &Kept) {
    let mut numbers = |kind: u8, first: u64, second: u64| {
        out.push(kind);
        put_number(out, first);
        put_number(out, second);
    };
    match outcome {
        Outcome::Written(written) => {
            numbers(outcome_kind::WRITTEN, written.version.0, written.revision.0);
        }
        Outcome::Mismatch(None) => out.push(outcome_kind::MISMATCH_ABSENT),
        Outcome::Mismatch(Some(pair)) => {
            out.push(outcome_kind::MISMATCH);
            put_pair_numbers(out, pair);
        }
        Outcome::Appended { written, .. } => {
            numbers(outcome_kind::APPENDED, written.version.0, written.revision.0);
        }
        Outcome::TooLarge { bytes, limit } => numbers(outcome_kind::TOO_LARGE, *bytes, *limit),
        Outcome::Removed { written, pair } => {
            numbers(outcome_kind::REMOVED, written.version.0, written.revision.0);
            put_pair_numbers(out, pair);
        }
        Outcome::Absent => out.push(outcome_kind::ABSENT),
    }
    if let Some(body) = outcome.body() {
        put_number(out, kept.order().unwrap_or(0));
        out.push(u8::from(kept.body_dropped()));
        put_value(out, body);
    }
}

fn put_pair_numbers(out: &mut Vec<u8>, pair: &Pair) {
    put_number(out, pair.version.0);
    put_number(out, pair.create_revision.0);
    put_number(out, pair.mod_revision.0);
}

/// A short value in place; of a long one only its length: its parts follow.
fn put_value(out: &mut Vec<u8>, value: &[u8]) {
    if value.len() <= LONG_VALUE_BYTES {
        put_bytes(out, value);
    } else {
        put_number(out, value.len() as u64);
    }
}

/// Whether a chunk may end behind a record.
#[derive(Clone, Copy)]
enum Cut {
    Never,
    /// It does when this hash is low for the record's length.
    By(u64),
}

/// Cuts a row of records into chunks.
#[derive(Default)]
struct Writer {
    open: Vec<u8>,
    scratch: Vec<u8>,
    ready: VecDeque<Bytes>,
}

impl Writer {
    fn record(&mut self, cut: Cut, encode: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        encode(&mut self.scratch);
        let length = self.scratch.len();
        assert!(length <= CHUNK_BYTES_MAX, "a record of {length} bytes fits no chunk");
        if self.open.len() + length > CHUNK_BYTES_MAX {
            self.cut();
        }
        self.open.extend_from_slice(&self.scratch);
        match cut {
            Cut::By(hash) if (u128::from(hash) * CHUNK_BYTES_TARGET) >> 64 < length as u128 => {
                self.cut();
            }
            Cut::By(_) | Cut::Never => {}
        }
    }

    /// The parts of a long value, each a chunk of its own.
    fn parts(&mut self, value: &[u8]) {
        if value.len() <= LONG_VALUE_BYTES {
            return;
        }
        self.cut();
        for part in value.chunks(PART_BYTES) {
            let mut chunk = Vec::with_capacity(part.len() + 1);
            chunk.push(kind::PART);
            chunk.extend_from_slice(part);
            self.ready.push_back(Bytes::from(chunk));
        }
    }

    fn cut(&mut self) {
        if !self.open.is_empty() {
            self.ready.push_back(Bytes::copy_from_slice(&self.open));
            self.open.clear();
        }
    }
}
