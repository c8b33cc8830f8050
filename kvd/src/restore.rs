//! Reads the chunks of a snapshot back: the inverse of `capture.rs`.
//!
//! Total: whatever the chunks hold, the result is a state that keeps every invariant of its types,
//! or an error; nothing is allocated by a number that was merely read.

use std::fmt;

use bytes::{Bytes, BytesMut};
use raft::{BadSnapshot, CHUNK_BYTES_MAX, GroupTime};
use raftd::codec::{Malformed, Reader};

use crate::{
    capture::{PART_BYTES, SNAPSHOT_VERSION, kind},
    custody::Custody,
    kept::BODY_BYTES_MAX,
    limits::{LONG_VALUE_BYTES, SHARDS_MAX, VALUE_BYTES_MAX},
    machine::{MACHINE_VERSION, MachineLimits},
    outcome::{Key, Pair, Revision},
    rebuild::{Rebuild, ReplyTold, Told},
    shard::Shard,
};

/// What a snapshot holds.
pub(crate) struct Restored {
    pub(crate) shards: Vec<Shard>,
    pub(crate) time: GroupTime,
    pub(crate) recoveries: u64,
    /// The digest that the state had when it was captured.
    pub(crate) digest: u128,
}

/// Why reading stopped.
pub(crate) enum Wrong {
    Malformed(Malformed),
    Other(String),
}

impl From<Malformed> for Wrong {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::Other(why) => why.fmt(f),
        }
    }
}

pub(crate) fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Other(why.into()))
}

/// Reads a whole snapshot.
pub(crate) fn restore(
    chunks: &mut dyn Iterator<Item = Bytes>,
    limits: MachineLimits,
) -> Result<Restored, BadSnapshot> {
    let mut builder = Builder::new(limits);
    for (number, chunk) in chunks.enumerate() {
        builder.chunk(&chunk).map_err(|wrong| BadSnapshot(format!("chunk {number}: {wrong}")))?;
    }
    builder.finish()
}

/// A long value whose parts are still coming, and what it belongs to.
struct Pending {
    owner: Owner,
    length: usize,
    parts: BytesMut,
}

enum Owner {
    Pair(Key, Pair),
    Change(Told),
    Reply(ReplyTold),
}

struct Builder {
    limits: MachineLimits,
    /// From the header: how many shards there must be, the time, and the recoveries.
    header: Option<(u32, GroupTime, u64)>,
    /// Those that are whole.
    shards: Vec<Shard>,
    /// The one behind them.
    open: Option<Rebuild>,
    pending: Option<Pending>,
    digest: Option<u128>,
}

impl Builder {
    fn new(limits: MachineLimits) -> Self {
        let shards = Vec::new();
        Self { limits, header: None, shards, open: None, pending: None, digest: None }
    }

    fn chunk(&mut self, chunk: &Bytes) -> Result<(), Wrong> {
        if chunk.is_empty() || chunk.len() > CHUNK_BYTES_MAX {
            return wrong(format!("it has {} bytes", chunk.len()));
        }
        let mut reader = Reader::new(chunk);
        while !reader.is_empty() {
            if self.digest.is_some() {
                return wrong("there is more behind the end");
            }
            let kind = reader.byte("record kind")?;
            if self.header.is_none() && kind != kind::HEADER {
                return wrong("it does not begin with a header");
            }
            if self.pending.is_some() && kind != kind::PART {
                return wrong("a long value is not whole");
            }
            match kind {
                kind::HEADER => self.header(&mut reader)?,
                kind::SHARD => self.shard(&mut reader)?,
                kind::LEASE => self.open()?.lease(&mut reader)?,
                kind::LOCK => self.open()?.lock(&mut reader)?,
                kind::WAITER => self.open()?.waiter(&mut reader)?,
                kind::PAIR => self.pair(&mut reader)?,
                kind::CHANGE => self.change(&mut reader)?,
                kind::ROW => self.open()?.row(&mut reader)?,
                kind::REPLY => self.reply(&mut reader)?,
                kind::PART => self.part(reader.rest())?,
                kind::END => {
                    self.close()?;
                    self.digest = Some(u128::from_le_bytes(reader.array("digest")?));
                }
                unknown => return wrong(format!("record kind {unknown} is unknown")),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Restored, BadSnapshot> {
        let (Some((shards, time, recoveries)), Some(digest)) = (self.header, self.digest) else {
            return Err(BadSnapshot("it has no end".to_owned()));
        };
        if self.shards.len() != shards as usize || self.pending.is_some() {
            return Err(BadSnapshot(format!(
                "it ends after {} of {shards} shards",
                self.shards.len()
            )));
        }
        Ok(Restored { shards: self.shards, time, recoveries, digest })
    }

    fn header(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        if self.header.is_some() {
            return wrong("a second header");
        }
        let format = reader.byte("snapshot version")?;
        if format != SNAPSHOT_VERSION {
            return wrong(format!(
                "snapshot version {format}; this build understands {SNAPSHOT_VERSION}"
            ));
        }
        let machine = reader.number32("machine version")?;
        if machine != MACHINE_VERSION {
            return wrong(format!(
                "machine version {machine}; this build understands {MACHINE_VERSION}"
            ));
        }
        let shards = reader.number32("number of shards")?;
        if shards > SHARDS_MAX {
            return wrong(format!("{shards} shards; the limit is {SHARDS_MAX}"));
        }
        let time = GroupTime(reader.number("group time")?);
        // So few that their gaps fit into a revision.
        let recoveries = reader.number32("number of recoveries")?.into();
        self.header = Some((shards, time, recoveries));
        Ok(())
    }

    /// The shard that is being read.
    fn open(&mut self) -> Result<&mut Rebuild, Wrong> {
        match &mut self.open {
            Some(open) => Ok(open),
            None => wrong("a record before its shard"),
        }
    }

    /// Ends the shard that is being read.
    fn close(&mut self) -> Result<(), Wrong> {
        if let Some(open) = self.open.take() {
            self.shards.push(open.finish()?);
        }
        Ok(())
    }

    fn shard(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        self.close()?;
        let number = reader.number32("shard number")?;
        let shards = self.header.map_or(0, |(shards, ..)| shards);
        if number as usize != self.shards.len() || number >= shards {
            return wrong(format!("shard {number} of {shards} comes out of order"));
        }
        let mut shard = Shard::new(number, self.limits.of_shard(shards));
        shard.revision = Revision(reader.number("revision")?);
        shard.changes.compact(Revision(reader.number("compacted revision")?));
        shard.time_offset_ms = reader.number("time offset")?.cast_signed();
        let next_order = reader.number("body order")?;
        let held = reader.number("held revision")?;
        shard.changes.hold(held.checked_sub(1).map(Revision));
        shard.custody = Custody::take(reader)?;
        if next_order == 0 {
            return wrong("the body order is 0");
        }
        if shard.changes.compacted() > shard.revision {
            return wrong("more is compacted than there was");
        }
        shard.sessions.restore_next_order(next_order);
        self.open = Some(Rebuild::new(shard, shards));
        Ok(())
    }

    fn pair(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        let (key, mut pair) = self.open()?.pair(reader)?;
        match read_value(reader)? {
            Value::Short(value) => {
                pair.value = value;
                self.owned(Owner::Pair(key, pair))
            }
            Value::Long(length) => self.expect(Owner::Pair(key, pair), length, VALUE_BYTES_MAX),
        }
    }

    fn change(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        let mut told = self.open()?.change(reader)?;
        let Some(previous) = &mut told.previous else { return self.owned(Owner::Change(told)) };
        match read_value(reader)? {
            Value::Short(value) => {
                previous.value = value;
                self.owned(Owner::Change(told))
            }
            Value::Long(length) => self.expect(Owner::Change(told), length, VALUE_BYTES_MAX),
        }
    }

    fn reply(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        let reply = self.open()?.reply(reader)?;
        if !reply.has_body() {
            return self.owned(Owner::Reply(reply));
        }
        match read_value(reader)? {
            Value::Short(value) => {
                let mut reply = reply;
                reply.set_body(value)?;
                self.owned(Owner::Reply(reply))
            }
            Value::Long(length) => self.expect(Owner::Reply(reply), length, BODY_BYTES_MAX),
        }
    }

    fn expect(&mut self, owner: Owner, length: usize, most: usize) -> Result<(), Wrong> {
        if length > most {
            return wrong(format!("a value of {length} bytes"));
        }
        self.pending = Some(Pending { owner, length, parts: BytesMut::new() });
        Ok(())
    }

    fn part(&mut self, part: &[u8]) -> Result<(), Wrong> {
        let Some(mut pending) = self.pending.take() else { return wrong("a part of no value") };
        let missing = pending.length - pending.parts.len();
        if part.len() != missing.min(PART_BYTES) {
            return wrong("a part of the wrong length");
        }
        pending.parts.extend_from_slice(part);
        if pending.parts.len() < pending.length {
            self.pending = Some(pending);
            return Ok(());
        }
        let value = Bytes::copy_from_slice(&pending.parts);
        let mut owner = pending.owner;
        match &mut owner {
            Owner::Pair(_, pair) => pair.value = value,
            Owner::Change(told) => {
                if let Some(previous) = &mut told.previous {
                    previous.value = value;
                }
            }
            Owner::Reply(reply) => reply.set_body(value)?,
        }
        self.owned(owner)
    }

    /// Puts what is whole where it belongs.
    fn owned(&mut self, owner: Owner) -> Result<(), Wrong> {
        match owner {
            Owner::Pair(key, pair) => {
                if self.open()?.shard.pairs.restore(key, pair) {
                    Ok(())
                } else {
                    wrong("a key twice")
                }
            }
            Owner::Change(told) => {
                self.open()?.told(told);
                Ok(())
            }
            Owner::Reply(reply) => self.open()?.replied(reply),
        }
    }
}

enum Value {
    Short(Bytes),
    Long(usize),
}

fn read_value(reader: &mut Reader<'_>) -> Result<Value, Wrong> {
    let length =
        usize::try_from(reader.number("value length")?).map_err(|_| Malformed("value length"))?;
    if length > LONG_VALUE_BYTES {
        return if reader.remaining() == 0 {
            Ok(Value::Long(length))
        } else {
            wrong("no cut at a value")
        };
    }
    Ok(Value::Short(Bytes::copy_from_slice(reader.take(length, "value")?)))
}
