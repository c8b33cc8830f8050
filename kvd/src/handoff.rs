//! The contents of a shard on their way to another group.
//!
//! Decides in which order they go, where they are cut, and what the destination believes. First come
//! the pairs as they were at the *base*, the revision from which on the source keeps its changes; then
//! the changes behind it, each with what the key holds since: the destination's pairs and its change
//! log grow together, as the source's did. All that happens while the source serves. Once it is frozen
//! come the last changes, its counters, its leases, its locks with their queues, and its exactly-once
//! rows with their replies. Where to go on follows from what the destination has, so that any member of
//! either group can go on at any record.
//!
//! Total: whatever the records say, the result is a shard that keeps every invariant of its types, or
//! an error; that it is the right one is told by its digest.

use std::{
    collections::BTreeMap,
    ops::Bound::{self, Excluded, Unbounded},
    sync::Arc,
};

use bytes::Bytes;
use raftd::codec::{Reader, put_bytes, put_number};

use crate::{
    capture::{change_flag, put_lease, put_lock, put_reply, put_row, put_waiter},
    command::{ClientId, LeaseId},
    custody::{Custody, MoveNumber, Phase},
    kept,
    limits::VALUE_BYTES_MAX,
    outcome::{Key, Pair, Refusal, Revision},
    rebuild::{Rebuild, is_possible},
    restore::{Wrong, wrong},
    shard::Shard,
    view::Change,
};

/// The kinds of records.
mod kind {
    pub(super) const PAIR: u8 = 1;
    pub(super) const CHANGE: u8 = 2;
    pub(super) const COUNTERS: u8 = 3;
    pub(super) const LEASE: u8 = 4;
    pub(super) const LOCK: u8 = 5;
    pub(super) const WAITER: u8 = 6;
    pub(super) const ROW: u8 = 7;
    pub(super) const REPLY: u8 = 8;
}

/// The parts of a shard, in the order in which they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The pairs as they were at the base.
    Pairs,
    /// What was changed since.
    Changes,
    /// The counters and the leases.
    Leases,
    /// The locks, each with those who wait for it.
    Locks,
    /// The exactly-once rows, each with its replies.
    Rows,
}

impl Part {
    const ALL: [Self; 5] = [Self::Pairs, Self::Changes, Self::Leases, Self::Locks, Self::Rows];

    /// The one with this number, from 0.
    pub fn of(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// How much of a shard is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The revision as of which the pairs are copied.
    pub base: Revision,
    /// In which part the next record may still be.
    pub part: Part,
    /// How many records are there.
    pub records: u64,
}

impl Position {
    /// Nothing is there.
    pub(crate) fn start(base: Revision) -> Self {
        Self { base, part: Part::Pairs, records: 0 }
    }
}

/// The last record of a part that is there: a key; a key and its revision; a lease; a lock and the
/// arrival of one who waits for it; a client and a sequence. Nothing: none is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The name in it.
    pub name: Vec<u8>,
    /// The number in it.
    pub number: u64,
}

/// Where a destination wants a source to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// By which move.
    pub number: MoveNumber,
    /// How much it has.
    pub position: Position,
    /// The last that it has of that part.
    pub cursor: Cursor,
}

/// Some records of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What must be there before them.
    pub at: Position,
    /// What they are.
    pub records: Bytes,
}

/// A shard as it was at one applied entry, with what is in it.
#[derive(Clone, Debug)]
pub struct Contents(pub(crate) Shard);

impl Contents {
    /// How it stands.
    pub fn custody(&self) -> Custody {
        self.0.custody
    }

    /// Where a source is to go on, if the shard is coming.
    pub fn wanted(&self) -> Option<Wanted> {
        self.0.wanted()
    }

    /// The digest of everything in it that moves.
    pub fn digest(&self) -> u128 {
        self.0.contents_digest()
    }

    /// How many pairs, leases and locks are in it.
    pub fn counts(&self) -> [u64; 3] {
        let Shard { pairs, leases, locks, .. } = &self.0;
        [pairs.map().len() as u64, leases.len() as u64, locks.len() as u64]
    }

    /// What follows on what a destination has, in pieces that end with the record that makes them
    /// as long as `piece_bytes`. Takes its time where changes were held for long.
    ///
    /// # Errors
    /// [`Refusal::NoSuchStep`] when the shard does not leave by that move, or is not yet known here to
    /// be frozen, and [`Refusal::Compacted`] when the changes since the base are not there any more.
    pub fn handoff(self, wanted: Wanted, piece_bytes: usize) -> Result<Handoff, Refusal> {
        Handoff::new(self.0, wanted, piece_bytes)
    }
}

impl PartialEq for Contents {
    fn eq(&self, other: &Self) -> bool {
        (self.0.number, self.0.digest()) == (other.0.number, other.0.digest())
    }
}

impl Eq for Contents {}

/// The contents of a shard, a piece at a time; to be read off the task that owns the machine.
#[derive(Clone, Debug)]
pub struct Handoff {
    shard: Shard,
    /// What the keys that were changed since the base held then.
    then: BTreeMap<Key, Option<Arc<Pair>>>,
    out: Out,
}

/// What was told, and what is to be told next.
#[derive(Clone, Debug)]
struct Out {
    position: Position,
    cursor: Cursor,
    /// The counters, with which the leases begin, are there already.
    counted: bool,
    records: Vec<u8>,
    piece_bytes: usize,
}

impl Handoff {
    fn new(shard: Shard, wanted: Wanted, piece_bytes: usize) -> Result<Self, Refusal> {
        let Wanted { number, position, cursor } = wanted;
        let base = position.base;
        let (leaving, frozen) = match shard.custody.phase {
            Phase::Serving { leaving } => (leaving, false),
            Phase::Frozen { number, .. } => (Some(number), true),
            Phase::Absent | Phase::Incoming { .. } | Phase::Discarding => (None, false),
        };
        // What comes behind the changes is told as it is in the end: not by a member that is behind.
        if leaving != Some(number) || !frozen && position.part > Part::Changes {
            let (shard, custody) = (shard.number, shard.custody);
            return Err(Refusal::NoSuchStep { shard, number, custody });
        }
        // What is not held may be there still; but it can't be frozen any more, and may soon be gone.
        let held = frozen || shard.changes.held().is_some();
        let oldest = shard.changes.oldest();
        let there = held && (oldest..=shard.revision).contains(&base);
        if position.part <= Part::Changes && !there {
            return Err(Refusal::Compacted { shard: shard.number, compacted: oldest });
        }
        let mut then = BTreeMap::new();
        if position.part == Part::Pairs {
            for (_, change) in shard.changes.after(base) {
                then.entry(change.key.clone()).or_insert_with(|| change.previous.clone());
            }
        }
        let counted = position.part >= Part::Leases;
        let out = Out { position, cursor, counted, records: Vec::new(), piece_bytes };
        Ok(Self { shard, then, out })
    }

    /// Whether it goes on to the end, and not only to what was changed when it was asked for.
    pub fn is_frozen(&self) -> bool {
        matches!(self.shard.custody.phase, Phase::Frozen { .. })
    }

    /// What comes next; none: nothing more.
    pub fn next_piece(&mut self) -> Option<Piece> {
        let frozen = self.is_frozen();
        let Self { shard, then, out } = self;
        let at = out.position;
        while out.has_room() {
            match out.position.part {
                Part::Pairs => put_pairs(shard, then, out),
                Part::Changes => put_changes(shard, out),
                Part::Leases => put_leases(shard, out),
                Part::Locks => put_locks(shard, out),
                Part::Rows => put_rows(shard, out),
            }
            if out.has_room() && !out.advance(frozen) {
                break;
            }
        }
        let records = std::mem::take(&mut out.records);
        (!records.is_empty()).then(|| Piece { at, records: Bytes::from(records) })
    }
}

impl Out {
    fn has_room(&self) -> bool {
        self.records.len() < self.piece_bytes
    }

    /// Goes on to the next part, if there is one whose turn it is.
    fn advance(&mut self, frozen: bool) -> bool {
        self.position.part = match self.position.part {
            Part::Pairs => Part::Changes,
            Part::Changes if frozen => Part::Leases,
            Part::Leases => Part::Locks,
            Part::Locks => Part::Rows,
            Part::Changes | Part::Rows => return false,
        };
        self.cursor = Cursor::default();
        true
    }

    fn record(&mut self, kind: u8, name: &[u8], number: u64, put: impl FnOnce(&mut Vec<u8>)) {
        self.records.push(kind);
        put(&mut self.records);
        self.position.records = self.position.records.wrapping_add(1);
        self.cursor = Cursor { name: name.to_vec(), number };
    }
}

fn put_pairs(shard: &Shard, then: &BTreeMap<Key, Option<Arc<Pair>>>, out: &mut Out) {
    let last = out.cursor.name.clone();
    let from = if last.is_empty() { Unbounded } else { Excluded(&last[..]) };
    let now = shard.pairs.map().range::<_, [u8]>((from, Unbounded));
    let mut now = now.filter(|(key, _)| !then.contains_key(&key[..])).peekable();
    let then = then.range::<[u8], _>((from, Unbounded));
    let mut then = then.filter_map(|(key, pair)| Some((key, pair.as_ref()?))).peekable();
    while out.has_room() {
        let old = match (now.peek(), then.peek()) {
            (Some((one, _)), Some((other, _))) => one > other,
            (one, _) => one.is_none(),
        };
        let Some((key, pair)) = (if old { then.next() } else { now.next() }) else { return };
        out.record(kind::PAIR, key, 0, |out| {
            put_bytes(out, key);
            put_pair(out, pair);
        });
    }
}

fn put_changes(shard: &Shard, out: &mut Out) {
    let Cursor { name, number } = out.cursor.clone();
    // Without a key nothing was told yet; otherwise the revision may have more.
    let after = match name.is_empty() {
        true => out.position.base,
        false => Revision(number.saturating_sub(1)),
    };
    let told = (Revision(number), &name[..]);
    let changes = shard.changes.after(after);
    for (revision, change) in changes.filter(|(at, change)| (*at, &change.key[..]) > told) {
        if !out.has_room() {
            return;
        }
        let Change { key, previous: _, current, expired } = change;
        let flags = match current {
            Some(_) => change_flag::CURRENT,
            None if *expired => change_flag::EXPIRED,
            None => 0,
        };
        out.record(kind::CHANGE, key, revision.0, |out| {
            put_number(out, revision.0);
            out.push(flags);
            put_bytes(out, key);
            if let Some(pair) = current {
                put_pair(out, pair);
            }
        });
    }
}

fn put_leases(shard: &Shard, out: &mut Out) {
    let last = LeaseId::new(out.cursor.number);
    if !std::mem::replace(&mut out.counted, true) {
        out.record(kind::COUNTERS, &[], 0, |out| {
            put_number(out, shard.revision.0);
            put_number(out, shard.changes.compacted().0);
            put_number(out, shard.sessions.next_order());
        });
    }
    for (id, lease) in shard.leases.map().range((last.map_or(Unbounded, Excluded), Unbounded)) {
        if !out.has_room() {
            return;
        }
        out.record(kind::LEASE, &[], id.get(), |out| put_lease(out, *id, lease));
    }
}

fn put_locks(shard: &Shard, out: &mut Out) {
    let Cursor { name: last, number } = out.cursor.clone();
    put_waiters(shard, &last, Revision(number), out);
    for (name, lock) in shard.locks.map().range::<_, [u8]>((behind(&last), Unbounded)) {
        if !out.has_room() {
            return;
        }
        out.record(kind::LOCK, name, 0, |out| put_lock(out, name, lock));
        put_waiters(shard, name, Revision(0), out);
    }
}

fn put_waiters(shard: &Shard, name: &[u8], last: Revision, out: &mut Out) {
    let Some(lock) = shard.locks.get(name) else { return };
    for (arrival, waiter) in lock.waiters.range((Excluded(last), Unbounded)) {
        if !out.has_room() {
            return;
        }
        out.record(kind::WAITER, name, arrival.0, |out| put_waiter(out, *arrival, waiter));
    }
}

fn put_rows(shard: &Shard, out: &mut Out) {
    let Cursor { name, number } = out.cursor.clone();
    let last = <[u8; 16]>::try_from(&name[..]).ok().map(ClientId);
    if let Some(last) = last {
        put_replies(shard, last, number, out);
    }
    let from = last.map_or(Unbounded, Excluded);
    for (client, row) in shard.sessions.rows().range((from, Unbounded)) {
        if !out.has_room() {
            return;
        }
        out.record(kind::ROW, &client.0, 0, |out| put_row(out, client, row));
        put_replies(shard, *client, 0, out);
    }
}

fn put_replies(shard: &Shard, client: ClientId, last: u64, out: &mut Out) {
    let Some(row) = shard.sessions.rows().get(&client) else { return };
    let replies = row.replies.as_slice().iter();
    for reply in replies.filter(|reply| reply.sequence.get() > last) {
        if !out.has_room() {
            return;
        }
        out.record(kind::REPLY, &client.0, reply.sequence.get(), |out| {
            let answered = reply.kept.recall();
            let body = kept::body(&answered.outcome);
            put_reply(out, reply, &answered.outcome);
            if let Some(body) = body {
                put_bytes(out, &body);
            }
        });
    }
}

/// Where what is behind a name begins.
fn behind(name: &[u8]) -> Bound<&[u8]> {
    if name.is_empty() { Unbounded } else { Excluded(name) }
}

fn put_pair(out: &mut Vec<u8>, pair: &Pair) {
    kept::put_pair_numbers(out, pair);
    put_bytes(out, &pair.value);
}

fn take_pair(reader: &mut Reader<'_>) -> Result<Pair, Wrong> {
    let numbers = kept::read_pair_numbers(reader)?;
    Ok(Pair { value: take_value(reader)?, ..numbers })
}

fn take_value(reader: &mut Reader<'_>) -> Result<Bytes, Wrong> {
    match reader.bytes("value")? {
        value if value.len() > VALUE_BYTES_MAX => {
            wrong(format!("a value of {} bytes", value.len()))
        }
        value => Ok(Bytes::copy_from_slice(value)),
    }
}

impl Shard {
    /// Begins to take in a shard as it was at a revision.
    pub(crate) fn begin(&mut self, base: Revision) {
        *self = self.emptied();
        self.revision = base;
        self.changes.compact(base);
    }

    /// Where a source is to go on, if the shard is coming.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        let Phase::Incoming { number, position } = self.custody.phase else { return None };
        let last = match position.part {
            Part::Pairs => self.pairs.map().get_max().map(|(key, _)| (key.to_vec(), 0)),
            Part::Changes => self.changes.last().map(|(revision, key)| (key.to_vec(), revision.0)),
            Part::Leases => self.leases.map().get_max().map(|(id, _)| (Vec::new(), id.get())),
            Part::Locks => self.locks.map().get_max().map(|(name, lock)| {
                (name.to_vec(), lock.waiters.get_max().map_or(0, |(arrival, _)| arrival.0))
            }),
            Part::Rows => self.sessions.rows().get_max().map(|(client, row)| {
                let last = row.replies.as_slice().last();
                (client.0.to_vec(), last.map_or(0, |reply| reply.sequence.get()))
            }),
        };
        let cursor = last.map_or_else(Cursor::default, |(name, number)| Cursor { name, number });
        Some(Wanted { number, position, cursor })
    }

    /// Takes in what follows on a position: all of it or nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn import(
        &mut self,
        shards: u32,
        position: Position,
        records: &[u8],
    ) -> Result<Position, Wrong> {
        let Position { base, mut part, records: mut count } = position;
        let mut rebuild = Rebuild::resume(self.clone(), shards);
        let mut reader = Reader::new(records);
        while !reader.is_empty() {
            let kind = reader.byte("record kind")?;
            let of = match kind {
                kind::PAIR => Part::Pairs,
                kind::CHANGE => Part::Changes,
                kind::COUNTERS | kind::LEASE => Part::Leases,
                kind::LOCK | kind::WAITER => Part::Locks,
                kind::ROW | kind::REPLY => Part::Rows,
                unknown => return wrong(format!("record kind {unknown} is unknown")),
            };
            if of < part {
                return wrong(format!("a record of {of:?} behind {part:?}"));
            }
            part = of;
            match kind {
                kind::PAIR => {
                    let (key, numbers) = rebuild.pair(&mut reader)?;
                    let value = take_value(&mut reader)?;
                    rebuild.shard.pairs.restore(key, Pair { value, ..numbers });
                }
                kind::CHANGE => take_change(&mut rebuild, &mut reader)?,
                kind::COUNTERS => {
                    take_counters(&mut rebuild.shard, &mut reader)?;
                    // A snapshot has the leases before the pairs.
                    rebuild = Rebuild::resume(rebuild.shard, shards);
                }
                kind::LEASE => rebuild.lease(&mut reader)?,
                kind::LOCK => rebuild.lock(&mut reader)?,
                kind::WAITER => rebuild.waiter(&mut reader)?,
                kind::ROW => rebuild.row(&mut reader)?,
                _ => {
                    let mut reply = rebuild.reply(&mut reader)?;
                    if reply.has_body() {
                        reply.set_body(Bytes::copy_from_slice(reader.bytes("body")?))?;
                    }
                    rebuild.replied(reply)?;
                }
            }
            count = count.wrapping_add(1);
        }
        *self = rebuild.shard;
        Ok(Position { base, part, records: count })
    }
}

/// A change and what it led to, which becomes what the key holds.
fn take_change(rebuild: &mut Rebuild, reader: &mut Reader<'_>) -> Result<(), Wrong> {
    let revision = Revision(reader.number("revision")?);
    let (is_there, expired) = match reader.byte("change flags")? {
        0 => (false, false),
        change_flag::CURRENT => (true, false),
        change_flag::EXPIRED => (false, true),
        _ => return wrong("an impossible change"),
    };
    let key = reader.bytes("key")?;
    let key = rebuild.name(key)?;
    let current = is_there.then(|| take_pair(reader)).transpose()?;
    let shard = &mut rebuild.shard;
    let last = shard.changes.last();
    if revision <= shard.changes.compacted()
        || last.is_some_and(|(last, name)| (last, &name[..]) >= (revision, &key[..]))
        || current
            .as_ref()
            .is_some_and(|it| !is_possible(it, revision) || it.mod_revision != revision)
        || current.is_none() && shard.pairs.get(&key).is_none()
    {
        return wrong("an impossible change");
    }
    let (change, digests) = shard.pairs.set(&key, current, expired);
    let lease_of = |pair: &Option<Arc<Pair>>| pair.as_ref().and_then(|pair| pair.lease);
    if let Some(lease) = lease_of(&change.previous) {
        shard.leases.detach(lease, &change.key);
    }
    if let Some(lease) = lease_of(&change.current) {
        shard.leases.expect(lease, &change.key);
    }
    shard.changes.push(revision, change, digests);
    shard.revision = revision;
    Ok(())
}

fn take_counters(shard: &mut Shard, reader: &mut Reader<'_>) -> Result<(), Wrong> {
    let revision = Revision(reader.number("revision")?);
    let compacted = Revision(reader.number("compacted revision")?);
    let next_order = reader.number("body order")?;
    let possible = shard.changes.compacted()..=revision;
    if revision < shard.revision || !possible.contains(&compacted) || next_order == 0 {
        return wrong("impossible counters");
    }
    shard.revision = revision;
    shard.changes.compact(compacted);
    shard.sessions.restore_next_order(next_order);
    Ok(())
}
