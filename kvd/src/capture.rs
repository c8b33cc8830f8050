//! A frozen state and its canonical encoding.
//!
//! Decides where a snapshot is cut into chunks. Equal states give equal chunks, and a change to one
//! key changes only the chunks around it: whether a chunk ends behind a record depends on that
//! record alone (its key's hash against its length), except where a chunk would exceed the
//! maximum. Long values are cut at fixed offsets from their start, each part a chunk of its own, so
//! that an Append to a long value leaves all but its last part as they were.
//!
//! The records, in order: a header; for each shard its counters, its leases, its locks, each
//! followed by those who wait for it, its pairs, its changes, its exactly-once rows, each followed
//! by its replies, all in the order of their names; an end with the digest. What follows from
//! something else is left out: what is attached to a lease, and what a change led to, which is what
//! was there before the next change of the key. So the record of a change never changes. The
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
    command::{ClientId, LeaseId},
    kept,
    lease::Lease,
    limits::LONG_VALUE_BYTES,
    lock::Lock,
    machine::MACHINE_VERSION,
    outcome::{Key, Outcome, Revision, Waiter},
    reply::Reply,
    session::Row,
    shard::Shard,
    view::Change,
};

/// The version of the snapshot's encoding, the digests in it included.
pub(crate) const SNAPSHOT_VERSION: u8 = 5;

/// The kinds of records.
pub(crate) mod kind {
    pub(crate) const HEADER: u8 = b'K';
    pub(crate) const SHARD: u8 = 1;
    pub(crate) const PAIR: u8 = 2;
    pub(crate) const ROW: u8 = 3;
    pub(crate) const REPLY: u8 = 4;
    pub(crate) const PART: u8 = 5;
    pub(crate) const END: u8 = 6;
    pub(crate) const LEASE: u8 = 7;
    pub(crate) const LOCK: u8 = 8;
    pub(crate) const WAITER: u8 = 9;
    pub(crate) const CHANGE: u8 = 10;
}

/// What the record of a change says.
pub(crate) mod change_flag {
    /// There was something before.
    pub(crate) const PREVIOUS: u8 = 1;
    /// There is something since.
    pub(crate) const CURRENT: u8 = 2;
    /// It was removed since its lease ended.
    pub(crate) const EXPIRED: u8 = 4;
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
    Leases(usize, Option<LeaseId>),
    Locks(usize, Option<Key>),
    Pairs(usize, Option<Key>),
    Changes(usize, Revision),
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
                    Stage::Leases(at, None)
                }
            },
            Stage::Leases(at, after) => {
                match encode_leases(&mut self.writer, &self.capture.shards[at], after) {
                    Some(last) => Stage::Leases(at, Some(last)),
                    None => Stage::Locks(at, None),
                }
            }
            Stage::Locks(at, after) => {
                let shard = &self.capture.shards[at];
                match encode_lock(&mut self.writer, shard, after.as_ref()) {
                    Some(last) => Stage::Locks(at, Some(last)),
                    None => Stage::Pairs(at, None),
                }
            }
            Stage::Pairs(at, after) => {
                let shard = &self.capture.shards[at];
                match encode_pairs(&mut self.writer, shard, after.as_ref()) {
                    Some(last) => Stage::Pairs(at, Some(last)),
                    None => Stage::Changes(at, Revision(0)),
                }
            }
            Stage::Changes(at, after) => {
                match encode_changes(&mut self.writer, &self.capture.shards[at], after) {
                    Some(last) => Stage::Changes(at, last),
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
    put_number(out, shard.changes.compacted().0);
    put_number(out, shard.time_offset_ms.cast_unsigned());
    put_number(out, shard.sessions.next_order());
    put_number(out, shard.changes.held().map_or(0, |held| held.0 + 1));
    shard.custody.numbers().into_iter().for_each(|number| put_number(out, number));
}

/// Encodes some leases behind `after`; answers with the last one, none at the end.
fn encode_leases(writer: &mut Writer, shard: &Shard, after: Option<LeaseId>) -> Option<LeaseId> {
    let from = after.map_or(Unbounded, Excluded);
    let mut last = None;
    for (id, lease) in shard.leases.map().range((from, Unbounded)).take(RECORDS_PER_STEP) {
        writer.record(Cut::By(xxh3_64(&id.get().to_le_bytes())), |out| {
            out.push(kind::LEASE);
            put_lease(out, *id, lease);
        });
        last = Some(*id);
    }
    last
}

/// Encodes the lock behind `after` with those who wait for it; answers with its name, none at the
/// end.
fn encode_lock(writer: &mut Writer, shard: &Shard, after: Option<&Key>) -> Option<Key> {
    let from = after.map_or(Unbounded, |name| Excluded(&name[..]));
    let (name, lock) = shard.locks.map().range::<_, [u8]>((from, Unbounded)).next()?;
    let hash = xxh3_64(name);
    writer.record(Cut::By(hash), |out| {
        out.push(kind::LOCK);
        put_lock(out, name, lock);
    });
    for (arrival, waiter) in &lock.waiters {
        writer.record(Cut::By(hash ^ xxh3_64(&arrival.0.to_le_bytes())), |out| {
            out.push(kind::WAITER);
            put_waiter(out, *arrival, waiter);
        });
    }
    Some(name.clone())
}

/// Encodes the changes of some revisions behind `after`; answers with the last one, none at the end.
fn encode_changes(writer: &mut Writer, shard: &Shard, after: Revision) -> Option<Revision> {
    let (mut last, mut left) = (None, RECORDS_PER_STEP);
    for (revision, change) in shard.changes.after(after) {
        if left == 0 && last != Some(revision) {
            break;
        }
        encode_change(writer, revision, change);
        (last, left) = (Some(revision), left.saturating_sub(1));
    }
    last
}

fn encode_change(writer: &mut Writer, revision: Revision, change: &Change) {
    let Change { key, previous, current, expired } = change;
    let flag = |there: bool, flag: u8| if there { flag } else { 0 };
    writer.record(Cut::By(xxh3_64(key) ^ xxh3_64(&revision.0.to_le_bytes())), |out| {
        out.push(kind::CHANGE);
        put_number(out, revision.0);
        out.push(
            flag(previous.is_some(), change_flag::PREVIOUS)
                | flag(current.is_some(), change_flag::CURRENT)
                | flag(*expired, change_flag::EXPIRED),
        );
        put_bytes(out, key);
        if let Some(pair) = previous {
            kept::put_pair_numbers(out, pair);
            put_value(out, &pair.value);
        }
    });
    if let Some(pair) = previous {
        writer.parts(&pair.value);
    }
}

/// Encodes some pairs behind `after`; answers with the last one's key, none at the end.
fn encode_pairs(writer: &mut Writer, shard: &Shard, after: Option<&Key>) -> Option<Key> {
    let from = after.map_or(Unbounded, |key| Excluded(&key[..]));
    let mut last = None;
    for (key, pair) in shard.pairs.map().range::<_, [u8]>((from, Unbounded)).take(RECORDS_PER_STEP)
    {
        writer.record(Cut::By(xxh3_64(key)), |out| {
            out.push(kind::PAIR);
            put_bytes(out, key);
            kept::put_pair_numbers(out, pair);
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
            put_row(out, client, row);
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
    let body = kept::body(&answered.outcome);
    let hash = xxh3_64(&client.0) ^ xxh3_64(&reply.sequence.get().to_le_bytes());
    writer.record(Cut::By(hash), |out| {
        out.push(kind::REPLY);
        put_reply(out, reply, &answered.outcome);
        if let Some(body) = &body {
            put_value(out, body);
        }
    });
    if let Some(body) = &body {
        writer.parts(body);
    }
}

pub(crate) fn put_lease(out: &mut Vec<u8>, id: LeaseId, lease: &Lease) {
    put_number(out, id.get());
    put_number(out, lease.ttl_ms);
    put_number(out, lease.renewal);
    put_number(out, lease.deadline.0);
    put_bytes(out, lease.own.as_deref().unwrap_or_default());
}

pub(crate) fn put_lock(out: &mut Vec<u8>, name: &[u8], lock: &Lock) {
    put_bytes(out, name);
    put_number(out, lock.lease.get());
    put_number(out, lock.token.0);
    put_bytes(out, &lock.owner);
}

pub(crate) fn put_waiter(out: &mut Vec<u8>, arrival: Revision, waiter: &Waiter) {
    put_number(out, arrival.0);
    put_number(out, waiter.lease.get());
    put_number(out, waiter.until.0);
    put_bytes(out, &waiter.owner);
}

pub(crate) fn put_row(out: &mut Vec<u8>, client: &ClientId, row: &Row) {
    out.extend_from_slice(&client.0);
    put_number(out, row.acknowledged);
    put_number(out, row.latest.0);
    put_number(out, row.due.0);
}

/// Writes a reply as far as its body.
pub(crate) fn put_reply(out: &mut Vec<u8>, reply: &Reply, outcome: &Outcome) {
    put_number(out, reply.sequence.get());
    put_number(out, reply.expires.0);
    kept::put_outcome(out, outcome);
    if outcome.body().is_some() {
        put_number(out, reply.kept.order().unwrap_or(0));
        out.push(u8::from(reply.kept.body_dropped()));
    }
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
