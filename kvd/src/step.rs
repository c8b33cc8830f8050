//! A step of a shard's move, as the log carries it.
//!
//! Decides what can be asked, and its bytes. Which step may follow on what is decided in `custody.rs`.

use bytes::Bytes;
use raftd::codec::{Malformed, Reader, put_number};

use crate::{
    command::{BadCommand, check_version},
    custody::MoveNumber,
    handoff::{Part, Position},
    outcome::{Revision, ShardTime},
};

/// The version of its bytes, the first of them, which no command's is: a build that knows commands only
/// stops before it applies one.
pub const STEP_VERSION: u8 = 3;

const DEED_CREATE: u8 = 1;
const DEED_HOLD: u8 = 2;
const DEED_FREEZE: u8 = 3;
const DEED_CANCEL: u8 = 4;
const DEED_UNFREEZE: u8 = 5;
const DEED_DELETE: u8 = 6;
const DEED_BEGIN: u8 = 7;
const DEED_IMPORT: u8 = 8;
const DEED_INSTALL: u8 = 9;
const DEED_ABORT: u8 = 10;
const DEED_RESTART: u8 = 11;
const DEED_DISCARD: u8 = 12;

/// A step of a move, or of the life of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// How many shards the cluster has.
    pub shards: u32,
    /// Which it is about.
    pub shard: u32,
    /// The move.
    pub number: MoveNumber,
    /// What is to be done.
    pub deed: Deed<'a>,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed<'a> {
    /// Makes the shard, empty, where none has been.
    Create,
    /// At the source: keeps the changes from now on, so that the destination can follow them.
    Hold,
    /// At the source: serves the shard no more.
    Freeze,
    /// At the source: gives the move up, unless the shard is frozen.
    Cancel,
    /// At the source, once the destination has given the move up: serves the shard again.
    Unfreeze,
    /// At the source, once the destination serves the shard: lets go of it.
    Delete,
    /// At the destination: begins with what the shard was at a revision, from which on the source
    /// has its changes.
    Begin {
        /// That revision.
        base: Revision,
    },
    /// At the destination: takes in what follows on a position.
    Import {
        /// Where it belongs.
        at: Position,
        /// What it is.
        records: &'a [u8],
    },
    /// At the destination: serves the shard, if all of it is there.
    Install {
        /// What the source said when it froze it.
        frozen: Frozen,
    },
    /// At the destination: gives the move up.
    Abort,
    /// At the destination: begins anew.
    Restart,
    /// Removes some more of what is not needed, by whichever move.
    Discard,
}

/// What a source says of a shard that it has frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Its last revision.
    pub revision: Revision,
    /// Its time, which goes on at the destination.
    pub time: ShardTime,
    /// The digest of everything in it that moves.
    pub digest: u128,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// It is done, now or before.
    Done,
    /// Of a Hold: from this revision on the changes are kept.
    Held(Revision),
    /// Of a Freeze.
    Frozen(Frozen),
    /// Of a Begin and an Import: so much is here.
    Position(Position),
    /// Of what removes: whether something is left.
    Left(bool),
}

impl<'a> Step<'a> {
    /// The bytes for the log.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![STEP_VERSION];
        put_number(&mut out, u64::from(self.shards));
        put_number(&mut out, u64::from(self.shard));
        put_number(&mut out, self.number.0);
        match self.deed {
            Deed::Create => out.push(DEED_CREATE),
            Deed::Hold => out.push(DEED_HOLD),
            Deed::Freeze => out.push(DEED_FREEZE),
            Deed::Cancel => out.push(DEED_CANCEL),
            Deed::Unfreeze => out.push(DEED_UNFREEZE),
            Deed::Delete => out.push(DEED_DELETE),
            Deed::Begin { base } => {
                out.push(DEED_BEGIN);
                put_number(&mut out, base.0);
            }
            Deed::Import { at, records } => {
                out.extend_from_slice(&[DEED_IMPORT, at.part as u8]);
                put_number(&mut out, at.records);
                put_number(&mut out, at.base.0);
                out.extend_from_slice(records);
            }
            Deed::Install { frozen: Frozen { revision, time, digest } } => {
                out.push(DEED_INSTALL);
                put_number(&mut out, revision.0);
                put_number(&mut out, time.0);
                out.extend_from_slice(&digest.to_le_bytes());
            }
            Deed::Abort => out.push(DEED_ABORT),
            Deed::Restart => out.push(DEED_RESTART),
            Deed::Discard => out.push(DEED_DISCARD),
        }
        Bytes::from(out)
    }

    /// Reads a step from the log.
    ///
    /// # Errors
    /// [`BadCommand`]; never panics, whatever the bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BadCommand> {
        check_version(bytes)?;
        let mut reader = Reader::new(bytes);
        if reader.byte("command version")? != STEP_VERSION {
            return Err(Malformed("command version").into());
        }
        let shards = reader.number32("number of shards")?;
        let shard = reader.number32("shard")?;
        let number = MoveNumber(reader.number("move")?);
        let deed = match reader.byte("step")? {
            DEED_CREATE => Deed::Create,
            DEED_HOLD => Deed::Hold,
            DEED_FREEZE => Deed::Freeze,
            DEED_CANCEL => Deed::Cancel,
            DEED_UNFREEZE => Deed::Unfreeze,
            DEED_DELETE => Deed::Delete,
            DEED_BEGIN => Deed::Begin { base: Revision(reader.number("base")?) },
            DEED_IMPORT => {
                let part = Part::of(reader.byte("part of a shard")?.into());
                let part = part.ok_or(Malformed("part of a shard"))?;
                let records = reader.number("records")?;
                let at = Position { part, records, base: Revision(reader.number("base")?) };
                Deed::Import { at, records: reader.rest() }
            }
            DEED_INSTALL => {
                let revision = Revision(reader.number("revision")?);
                let time = ShardTime(reader.number("shard time")?);
                let digest = u128::from_le_bytes(reader.array("digest")?);
                Deed::Install { frozen: Frozen { revision, time, digest } }
            }
            DEED_ABORT => Deed::Abort,
            DEED_RESTART => Deed::Restart,
            DEED_DISCARD => Deed::Discard,
            _ => return Err(Malformed("step").into()),
        };
        if reader.is_empty() {
            Ok(Self { shards, shard, number, deed })
        } else {
            Err(Malformed("end").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::COMMAND_VERSION;

    fn deeds() -> Vec<Deed<'static>> {
        let at = Position { base: Revision(9), part: Part::Locks, records: 1 << 40 };
        let (revision, time) = (Revision(300), ShardTime(u64::MAX));
        vec![
            Deed::Create,
            Deed::Hold,
            Deed::Freeze,
            Deed::Cancel,
            Deed::Unfreeze,
            Deed::Delete,
            Deed::Begin { base: Revision(u64::MAX) },
            Deed::Install { frozen: Frozen { revision, time, digest: u128::MAX - 5 } },
            Deed::Abort,
            Deed::Restart,
            Deed::Discard,
            Deed::Import { at, records: b"records" },
        ]
    }

    fn step(deed: Deed<'_>) -> Step<'_> {
        Step { shards: 256, shard: 255, number: MoveNumber(7), deed }
    }

    #[test]
    fn steps_come_back() {
        for deed in deeds() {
            assert_eq!(Step::decode(&step(deed).encode()), Ok(step(deed)));
        }
    }

    #[test]
    fn what_is_cut_or_longer_does_not_decode() {
        for deed in deeds() {
            let bytes = step(deed).encode();
            let records = if let Deed::Import { records, .. } = deed { records.len() } else { 0 };
            for length in 0..bytes.len() - records {
                assert!(Step::decode(&bytes[..length]).is_err(), "{deed:?} at {length}");
            }
            assert!(records > 0 || Step::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn no_command_is_a_step() {
        assert_ne!(STEP_VERSION, COMMAND_VERSION);
        assert!(Step::decode(&[COMMAND_VERSION, 1, 1, 1, 1]).is_err());
    }
}
