//! What the log carries: a mutation of one shard, as bytes.
//!
//! Decides the encoding, which lives in logs for ever: a version byte first, so that a member can
//! tell a command that it is too old for. Decoding is total. Reads are not commands, and whether a
//! command makes sense for the state is the machine's business.

use bytes::Bytes;
use raftd::codec::{Malformed, Reader, put_bytes, put_number};

use crate::outcome::{Revision, ShardTime, Version};

/// The newest command version that this build understands.
pub const COMMAND_VERSION: u8 = 1;

const KIND_PUT: u8 = 1;
const KIND_APPEND: u8 = 2;
const KIND_DELETE: u8 = 3;

const FLAG_ID: u8 = 1;
const FLAG_EXPECTED_VERSION: u8 = 2;
const FLAG_EXPECTED_REVISION: u8 = 4;

/// A mutation of one key. Borrows, so that neither side copies a value for the codec's sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// How many shards the proposer believes the cluster has. The first command of a cluster
    /// fixes the number; later ones must repeat it.
    pub shards: u32,
    /// Makes it exactly-once.
    pub id: Option<RequestId>,
    /// What to do.
    pub operation: Operation<'a>,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Writes a value.
    Put {
        /// Where.
        key: &'a [u8],
        /// What.
        value: &'a [u8],
        /// Only if this holds.
        condition: Condition,
    },
    /// Appends to a value; an absent key counts as empty.
    Append {
        /// Where.
        key: &'a [u8],
        /// What is added.
        value: &'a [u8],
        /// How long the whole may become. It travels with the command since it is a setting of
        /// the proposer's and every member must decide alike.
        value_bytes_max: u64,
    },
    /// Removes a key.
    Delete {
        /// Which.
        key: &'a [u8],
    },
}

impl<'a> Operation<'a> {
    /// The key that it is about.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Self::Put { key, .. } | Self::Append { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// When a Put is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Always,
    /// While the pair has this version; 0: while there is no pair.
    Version(Version),
    /// While the pair was last written at this revision; 0: while there is no pair.
    ModRevision(Revision),
}

/// A client, by 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub [u8; 16]);

/// Names a request so that it is executed at most once (design part 6, "Exactly once").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Whose.
    pub client: ClientId,
    /// Counts the client's requests to one shard, from 1.
    pub sequence: u64,
    /// The client never again asks about requests up to this sequence.
    pub acknowledged: u64,
    /// Shard time after which it is no longer executed.
    pub expires: ShardTime,
}

/// A command that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// A newer build wrote it. A member that cannot execute what others execute must stop before
    /// it applies this entry.
    #[error("command version {0} is newer than {COMMAND_VERSION}, which this build understands")]
    NewerVersion(u8),
    /// Its kind is unknown.
    #[error("command kind {0} is unknown")]
    UnknownKind(u8),
    /// Its bytes make no sense.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Whether this build may apply the command: asked before `apply`. Only a newer
/// version is an error; a malformed command is applied, to a response that says so, since every
/// build agrees on that.
///
/// # Errors
/// [`BadCommand::NewerVersion`].
pub fn check_version(command: &[u8]) -> Result<(), BadCommand> {
    match command.first() {
        Some(&version) if version > COMMAND_VERSION => Err(BadCommand::NewerVersion(version)),
        Some(_) | None => Ok(()),
    }
}

impl<'a> Command<'a> {
    /// The bytes for the log.
    pub fn encode(&self) -> Bytes {
        let (kind, value, condition) = match &self.operation {
            Operation::Put { value, condition, .. } => (KIND_PUT, *value, *condition),
            Operation::Append { value, .. } => (KIND_APPEND, *value, Condition::Always),
            Operation::Delete { .. } => (KIND_DELETE, &[][..], Condition::Always),
        };
        let key = self.operation.key();
        let mut out = Vec::with_capacity(key.len() + value.len() + 80);
        out.extend_from_slice(&[COMMAND_VERSION, kind]);
        put_number(&mut out, u64::from(self.shards));
        let id_flag = if self.id.is_some() { FLAG_ID } else { 0 };
        match condition {
            Condition::Always => out.push(id_flag),
            Condition::Version(version) => {
                out.push(id_flag | FLAG_EXPECTED_VERSION);
                put_number(&mut out, version.0);
            }
            Condition::ModRevision(revision) => {
                out.push(id_flag | FLAG_EXPECTED_REVISION);
                put_number(&mut out, revision.0);
            }
        }
        if let Some(id) = &self.id {
            out.extend_from_slice(&id.client.0);
            put_number(&mut out, id.sequence);
            put_number(&mut out, id.acknowledged);
            put_number(&mut out, id.expires.0);
        }
        if let Operation::Append { value_bytes_max, .. } = self.operation {
            put_number(&mut out, value_bytes_max);
        }
        put_bytes(&mut out, key);
        out.extend_from_slice(value);
        Bytes::from(out)
    }

    /// Reads a command from the log.
    ///
    /// # Errors
    /// [`BadCommand`]; never panics, whatever the bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BadCommand> {
        check_version(bytes)?;
        let mut reader = Reader::new(bytes);
        if reader.byte("command version")? == 0 {
            return Err(Malformed("command version").into());
        }
        let kind = reader.byte("command kind")?;
        let shards = reader.number32("number of shards")?;
        let flags = reader.byte("flags")?;
        let condition = match flags & !FLAG_ID {
            0 => Condition::Always,
            FLAG_EXPECTED_VERSION => {
                Condition::Version(Version(reader.number("expected version")?))
            }
            FLAG_EXPECTED_REVISION => {
                Condition::ModRevision(Revision(reader.number("expected revision")?))
            }
            _ => return Err(Malformed("flags").into()),
        };
        let id = if flags & FLAG_ID == 0 { None } else { Some(decode_id(&mut reader)?) };
        if kind != KIND_PUT && condition != Condition::Always {
            return Err(Malformed("flags").into());
        }
        let operation = match kind {
            KIND_PUT => {
                let key = reader.bytes("key")?;
                Operation::Put { key, value: reader.rest(), condition }
            }
            KIND_APPEND => {
                let value_bytes_max = reader.number("value limit")?;
                let key = reader.bytes("key")?;
                Operation::Append { key, value: reader.rest(), value_bytes_max }
            }
            KIND_DELETE => Operation::Delete { key: reader.bytes("key")? },
            unknown => return Err(BadCommand::UnknownKind(unknown)),
        };
        if reader.is_empty() {
            Ok(Self { shards, id, operation })
        } else {
            Err(Malformed("end").into())
        }
    }
}

fn decode_id(reader: &mut Reader<'_>) -> Result<RequestId, Malformed> {
    Ok(RequestId {
        client: ClientId(reader.array("client id")?),
        sequence: reader.number("sequence")?,
        acknowledged: reader.number("acknowledged sequence")?,
        expires: ShardTime(reader.number("expiry")?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> RequestId {
        RequestId {
            client: ClientId([7; 16]),
            sequence: 300,
            acknowledged: 299,
            expires: ShardTime(70_000),
        }
    }

    #[test]
    fn every_kind_comes_back() {
        let put = |condition| Operation::Put { key: b"k", value: b"value", condition };
        let operations = [
            put(Condition::Always),
            put(Condition::Version(Version(0))),
            put(Condition::ModRevision(Revision(u64::MAX))),
            Operation::Append { key: b"key", value: b"", value_bytes_max: 1 << 20 },
            Operation::Delete { key: b"key" },
        ];
        for operation in operations {
            for id in [None, Some(id())] {
                let command = Command { shards: 256, id, operation };
                assert_eq!(Command::decode(&command.encode()), Ok(command));
            }
        }
    }

    #[test]
    fn the_encoding_never_changes() {
        let operation =
            Operation::Put { key: b"k", value: b"v", condition: Condition::Version(Version(300)) };
        let encoded = Command { shards: 256, id: Some(id()), operation }.encode();
        let mut expected = vec![1, 1, 0x80, 2, 3, 0xac, 2];
        expected.extend_from_slice(&[7; 16]);
        expected.extend_from_slice(&[0xac, 2, 0xab, 2, 0xf0, 0xa2, 4, 1, b'k', b'v']);
        assert_eq!(&encoded[..], &expected[..]);
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        assert_eq!(check_version(&[2, 9, 9]), Err(BadCommand::NewerVersion(2)));
        assert_eq!(Command::decode(&[2]), Err(BadCommand::NewerVersion(2)));
        assert_eq!(check_version(&[]), Ok(()));
        assert!(matches!(Command::decode(&[]), Err(BadCommand::Malformed(_))));
        assert_eq!(Command::decode(&[1, 77, 1, 0, 1, 1]), Err(BadCommand::UnknownKind(77)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Command::decode(&bytes);
            let mut versioned = vec![COMMAND_VERSION];
            versioned.extend_from_slice(&bytes);
            if let Ok(command) = Command::decode(&versioned) {
                let again = command.encode();
                prop_assert_eq!(Command::decode(&again), Ok(command));
            }
        }
    }
}
