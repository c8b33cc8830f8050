//! Reads the chunks of a snapshot back: the inverse of `capture.rs`.
//!
//! Total: whatever the chunks hold, the result is a state that keeps every invariant of its types,
//! or an error; nothing is allocated by a number that was merely read.

use bytes::{Bytes, BytesMut};
use proto::shard_of;
use raft::{BadSnapshot, CHUNK_BYTES_MAX, GroupTime};
use raftd::codec::{Malformed, Reader};

use crate::{
    capture::{PART_BYTES, SNAPSHOT_VERSION, kind, outcome_kind},
    command::ClientId,
    limits::{KEY_BYTES_MAX, LONG_VALUE_BYTES, SHARDS_MAX, VALUE_BYTES_MAX},
    machine::MACHINE_VERSION,
    outcome::{Outcome, Pair, Revision, ShardTime, Version, Written},
    reply::{Kept, Replies, Reply},
    session::{Row, SessionLimits},
    shard::{Key, Shard},
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
enum Wrong {
    Malformed(Malformed),
    Other(String),
}

impl From<Malformed> for Wrong {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Other(why.into()))
}

/// Reads a whole snapshot.
pub(crate) fn restore(
    chunks: &mut dyn Iterator<Item = Bytes>,
    limits: SessionLimits,
) -> Result<Restored, BadSnapshot> {
    let mut builder = Builder::new(limits);
    for (number, chunk) in chunks.enumerate() {
        builder.chunk(&chunk).map_err(|wrong| match wrong {
            Wrong::Malformed(malformed) => BadSnapshot(format!("chunk {number}: {malformed}")),
            Wrong::Other(why) => BadSnapshot(format!("chunk {number}: {why}")),
        })?;
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
    Reply { sequence: u64, expires: ShardTime, outcome: Outcome, order: u64 },
}

struct Builder {
    limits: SessionLimits,
    /// From the header: how many shards there must be, the time, and the recoveries.
    header: Option<(u32, GroupTime, u64)>,
    shards: Vec<Shard>,
    last_key: Option<Key>,
    last_client: Option<ClientId>,
    pending: Option<Pending>,
    digest: Option<u128>,
}

impl Builder {
    fn new(limits: SessionLimits) -> Self {
        Self {
            limits,
            header: None,
            shards: Vec::new(),
            last_key: None,
            last_client: None,
            pending: None,
            digest: None,
        }
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
                kind::PAIR => self.pair(&mut reader)?,
                kind::ROW => self.row(&mut reader)?,
                kind::REPLY => self.reply(&mut reader)?,
                kind::PART => self.part(reader.rest())?,
                kind::END => self.digest = Some(u128::from_le_bytes(reader.array("digest")?)),
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

    fn shard(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        let number = reader.number32("shard number")?;
        let shards = self.header.map_or(0, |(shards, ..)| shards);
        if number as usize != self.shards.len() || number >= shards {
            return wrong(format!("shard {number} of {shards} comes out of order"));
        }
        let mut shard = Shard::new(number, self.limits);
        shard.revision = Revision(reader.number("revision")?);
        shard.time_offset_ms = reader.number("time offset")?;
        let next_order = reader.number("body order")?;
        if next_order == 0 {
            return wrong("the body order is 0");
        }
        shard.sessions.restore_next_order(next_order);
        self.shards.push(shard);
        self.last_key = None;
        self.last_client = None;
        Ok(())
    }

    fn pair(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        let key = reader.bytes("key")?;
        let mut pair = read_pair_numbers(reader)?;
        let shards = self.header.map_or(0, |(shards, ..)| shards);
        let Some(shard) = self.shards.last() else { return wrong("a pair before its shard") };
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return wrong(format!("a key of {} bytes", key.len()));
        }
        if shard_of(key, shards) != shard.number || self.last_client.is_some() {
            return wrong("a pair in the wrong place");
        }
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return wrong("keys out of order");
        }
        if pair.version.0 == 0
            || pair.create_revision.0 == 0
            || pair.create_revision > pair.mod_revision
            || pair.mod_revision > shard.revision
        {
            return wrong("a pair with impossible revisions");
        }
        let key = Key::from(key);
        self.last_key = Some(key.clone());
        match read_value(reader)? {
            Value::Short(value) => {
                pair.value = value;
                self.owned(Owner::Pair(key, pair))
            }
            Value::Long(length) => self.expect(Owner::Pair(key, pair), length),
        }
    }

    fn row(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        let client = ClientId(reader.array("client id")?);
        let row = Row {
            acknowledged: reader.number("acknowledged sequence")?,
            latest: ShardTime(reader.number("latest expiry")?),
            due: ShardTime(reader.number("due time")?),
            replies: Replies::Empty,
        };
        let rows_max = self.limits.rows;
        let Some(shard) = self.shards.last_mut() else { return wrong("a row before its shard") };
        if self.last_client.is_some_and(|last| last >= client) {
            return wrong("rows out of order");
        }
        if row.due > row.latest || shard.sessions.rows().len() >= rows_max {
            return wrong("an impossible row");
        }
        self.last_client = Some(client);
        shard.sessions.restore_row(client, row);
        Ok(())
    }

    fn reply(&mut self, reader: &mut Reader<'_>) -> Result<(), Wrong> {
        let sequence = reader.number("sequence")?;
        let expires = ShardTime(reader.number("expiry")?);
        let mut outcome = read_outcome(reader)?;
        if outcome.body().is_none() {
            return self.kept(sequence, expires, Kept::new(outcome, 0, false));
        }
        let order = reader.number("body order")?;
        let dropped = match reader.byte("body flag")? {
            0 => false,
            1 => true,
            _ => return wrong("a body flag that is neither 0 nor 1"),
        };
        match read_value(reader)? {
            Value::Short(value) => {
                if (order > 0) == value.is_empty() || (dropped && order > 0) {
                    return wrong("a body that contradicts its order");
                }
                set_body(&mut outcome, value);
                self.kept(sequence, expires, Kept::new(outcome, order, dropped))
            }
            Value::Long(_) if order == 0 || dropped => wrong("a dropped body that is there"),
            Value::Long(length) => {
                self.expect(Owner::Reply { sequence, expires, outcome, order }, length)
            }
        }
    }

    fn expect(&mut self, owner: Owner, length: usize) -> Result<(), Wrong> {
        if length > VALUE_BYTES_MAX {
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
            Owner::Reply { outcome, .. } => set_body(outcome, value),
        }
        self.owned(owner)
    }

    /// Puts what is whole where it belongs.
    fn owned(&mut self, owner: Owner) -> Result<(), Wrong> {
        match owner {
            Owner::Pair(key, pair) => {
                let Some(shard) = self.shards.last_mut() else { return wrong("no shard") };
                shard.insert(key, pair);
                Ok(())
            }
            Owner::Reply { sequence, expires, outcome, order } => {
                self.kept(sequence, expires, Kept::new(outcome, order, false))
            }
        }
    }

    fn kept(&mut self, sequence: u64, expires: ShardTime, kept: Kept) -> Result<(), Wrong> {
        let (Some(client), Some(shard)) = (self.last_client, self.shards.last_mut()) else {
            return wrong("a reply before its row");
        };
        if shard.sessions.restore_reply(client, Reply { sequence, expires, kept }) {
            Ok(())
        } else {
            wrong("a reply that contradicts its row")
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

fn read_pair_numbers(reader: &mut Reader<'_>) -> Result<Pair, Malformed> {
    Ok(Pair {
        value: Bytes::new(),
        version: Version(reader.number("version")?),
        create_revision: Revision(reader.number("create revision")?),
        mod_revision: Revision(reader.number("mod revision")?),
    })
}

fn read_written(reader: &mut Reader<'_>) -> Result<Written, Malformed> {
    let version = Version(reader.number("version")?);
    Ok(Written { version, revision: Revision(reader.number("revision")?) })
}

/// An outcome whose body is still empty.
fn read_outcome(reader: &mut Reader<'_>) -> Result<Outcome, Wrong> {
    Ok(match reader.byte("outcome kind")? {
        outcome_kind::WRITTEN => Outcome::Written(read_written(reader)?),
        outcome_kind::MISMATCH_ABSENT => Outcome::Mismatch(None),
        outcome_kind::MISMATCH => Outcome::Mismatch(Some(read_pair_numbers(reader)?)),
        outcome_kind::APPENDED => {
            Outcome::Appended { written: read_written(reader)?, old: Bytes::new() }
        }
        outcome_kind::TOO_LARGE => {
            Outcome::TooLarge { bytes: reader.number("size")?, limit: reader.number("limit")? }
        }
        outcome_kind::REMOVED => {
            Outcome::Removed { written: read_written(reader)?, pair: read_pair_numbers(reader)? }
        }
        outcome_kind::ABSENT => Outcome::Absent,
        unknown => return wrong(format!("outcome kind {unknown} is unknown")),
    })
}

fn set_body(outcome: &mut Outcome, value: Bytes) {
    match outcome {
        Outcome::Mismatch(Some(pair)) | Outcome::Removed { pair, .. } => pair.value = value,
        Outcome::Appended { old, .. } => *old = value,
        Outcome::Written(_)
        | Outcome::Mismatch(None)
        | Outcome::TooLarge { .. }
        | Outcome::Absent => {}
    }
}
