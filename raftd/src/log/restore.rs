//! Reads the chunks of a snapshot back: the inverse of `capture.rs`.
//!
//! Total: whatever the chunks hold, the result is a state that keeps every invariant of its types,
//! or an error; nothing is allocated by a number that was merely read. Segments are not believed:
//! their entries are appended one by one, which makes the same segments again.

use bytes::Bytes;
use raft::{BadSnapshot, CHUNK_BYTES_MAX, GroupTime, StateMachine};

use crate::codec::{Malformed, Reader};
use crate::log::capture::{PART_BYTES, SNAPSHOT_VERSION, kind};
use crate::log::command::ClientId;
use crate::log::entries::{Entries, LENGTH_BYTES_MAX, STRETCH_BYTES};
use crate::log::limits::ENTRY_BYTES_MAX;
use crate::log::machine::{LogMachine, MACHINE_VERSION};
use crate::log::outcome::LogIndex;
use crate::log::sessions::{Kept, Row, SessionLimits};

/// The longest segment: its last entry begins in its stretch.
const SEGMENT_BYTES_MAX: usize = STRETCH_BYTES as usize + LENGTH_BYTES_MAX + ENTRY_BYTES_MAX;

/// Places and indexes stay so far below the end of their type that no addition overflows.
const NUMBER_MAX: u64 = 1 << 62;

fn wrong<T>(why: impl Into<String>) -> Result<T, BadSnapshot> {
    Err(BadSnapshot(why.into()))
}

/// Reads a whole snapshot.
pub(crate) fn restore(
    chunks: &mut dyn Iterator<Item = Bytes>,
    limits: SessionLimits,
) -> Result<LogMachine, BadSnapshot> {
    let mut builder = Builder { limits, machine: None, segment: Vec::new(), digest: None };
    for (number, chunk) in chunks.enumerate() {
        let read = builder.chunk(&chunk);
        read.map_err(|BadSnapshot(why)| BadSnapshot(format!("chunk {number}: {why}")))?;
    }
    let (Some(machine), Some(digest)) = (builder.machine, builder.digest) else {
        return Err(BadSnapshot("it has no end".to_owned()));
    };
    let found = machine.digest();
    if found != digest {
        let why = format!("the state's digest is {found:032x}, the snapshot says {digest:032x}");
        return Err(BadSnapshot(why));
    }
    Ok(machine)
}

struct Builder {
    limits: SessionLimits,
    /// From the header on.
    machine: Option<LogMachine>,
    /// The segment whose parts are still coming.
    segment: Vec<u8>,
    digest: Option<u128>,
}

impl Builder {
    fn chunk(&mut self, chunk: &Bytes) -> Result<(), BadSnapshot> {
        if chunk.len() > CHUNK_BYTES_MAX {
            return wrong(format!("it has {} bytes", chunk.len()));
        }
        if self.digest.is_some() {
            return wrong("there is more behind the end");
        }
        let mut reader = Reader::new(chunk);
        let kind = reader.byte("chunk kind")?;
        if kind != kind::PART {
            self.take_segment()?;
        }
        match (kind, &mut self.machine) {
            (kind::HEADER, machine @ None) => *machine = Some(header(&mut reader, self.limits)?),
            (_, None) => return wrong("it does not begin with a header"),
            (kind::SEGMENT, Some(_)) => self.segment.extend_from_slice(reader.rest()),
            (kind::PART, Some(_)) => {
                let whole =
                    self.segment.len().is_multiple_of(PART_BYTES) && !self.segment.is_empty();
                if !whole || self.segment.len() + reader.remaining() > SEGMENT_BYTES_MAX {
                    return wrong("a part that belongs to no segment");
                }
                self.segment.extend_from_slice(reader.rest());
            }
            (kind::ROWS, Some(machine)) => {
                while !reader.is_empty() {
                    row(&mut reader, machine)?;
                }
            }
            (kind::END, Some(_)) => {
                self.digest = Some(u128::from_le_bytes(reader.array("digest")?));
            }
            (unknown, Some(_)) => return wrong(format!("chunk kind {unknown} is out of place")),
        }
        if reader.is_empty() { Ok(()) } else { wrong("it is longer than what it holds") }
    }

    /// Appends the entries of the segment that is whole now.
    fn take_segment(&mut self) -> Result<(), BadSnapshot> {
        let segment = std::mem::take(&mut self.segment);
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let mut reader = Reader::new(&segment);
        while !reader.is_empty() {
            let payload = reader.bytes("entry")?;
            if payload.len() > ENTRY_BYTES_MAX {
                return wrong(format!("an entry of {} bytes", payload.len()));
            }
            machine.entries.append(payload);
        }
        Ok(())
    }
}

fn header(reader: &mut Reader<'_>, limits: SessionLimits) -> Result<LogMachine, BadSnapshot> {
    let version = reader.byte("snapshot version")?;
    let machine = reader.number32("machine version")?;
    if version != SNAPSHOT_VERSION || machine != MACHINE_VERSION {
        return wrong(format!(
            "it has version {version} of machine version {machine}; this build reads \
             {SNAPSHOT_VERSION} of {MACHINE_VERSION}"
        ));
    }
    let first = reader.number("first index")?;
    let start = reader.number("place of the first entry")?;
    let time = GroupTime(reader.number("time")?);
    if !(1..NUMBER_MAX).contains(&first) || start >= NUMBER_MAX {
        return wrong("an impossible beginning");
    }
    let entries = Entries::behind(LogIndex(first), start);
    Ok(LogMachine { entries, time, ..LogMachine::with_limits(limits) })
}

fn row(reader: &mut Reader<'_>, machine: &mut LogMachine) -> Result<(), BadSnapshot> {
    let client = ClientId(reader.array("client id")?);
    let acknowledged = reader.number("acknowledged sequence")?;
    let latest = GroupTime(reader.number("latest expiry")?);
    let count = reader.number("reply count")?;
    if count > machine.sessions.limits().replies_per_client as u64 {
        return wrong(format!("a row of {count} replies"));
    }
    let replies: Vec<Kept> = (0..count)
        .map(|_| {
            let sequence = reader.number("sequence")?;
            let first = LogIndex(reader.number("first index")?);
            Ok(Kept { sequence, first, count: reader.number("entry count")? })
        })
        .collect::<Result<_, Malformed>>()?;
    if machine.sessions.restore(client, Row::new(acknowledged, latest), &replies) {
        Ok(())
    } else {
        wrong("an impossible row")
    }
}
