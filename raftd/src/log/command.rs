//! What Raft's log carries for this machine: an append or a trim, as bytes.
//!
//! Decides the encoding, which lives in logs for ever: a version byte first, so that a member can
//! tell a command that it is too old for. Decoding is total. Whether a command makes sense for the
//! state is the machine's business.

use bytes::Bytes;
use raft::GroupTime;

use crate::codec::{Malformed, Reader, put_bytes, put_number};
use crate::log::limits::PROPOSE_ENTRIES_MAX;
use crate::log::outcome::LogIndex;

/// The newest command version that this build understands.
pub const COMMAND_VERSION: u8 = 1;

const KIND_PROPOSE: u8 = 1;
const KIND_TRIM: u8 = 2;

const WITHOUT_ID: u8 = 0;
const WITH_ID: u8 = 1;

/// A change of the log. Borrows, so that neither side copies payloads for the codec's sake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Appends entries.
    Propose {
        /// Makes it exactly-once.
        id: Option<RequestId>,
        /// How many bytes the log may take. It travels with the command since it is a setting of
        /// the proposer's and every member must decide alike.
        quota_bytes: u64,
        /// What is appended.
        payloads: Vec<&'a [u8]>,
    },
    /// Removes the entries below an index.
    Trim {
        /// The first that is kept.
        first: LogIndex,
    },
}

/// A client, by 16 random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub [u8; 16]);

/// Names a request so that it is executed at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Whose.
    pub client: ClientId,
    /// Counts the client's requests, from 1.
    pub sequence: u64,
    /// The client never again asks about requests up to this sequence.
    pub acknowledged: u64,
    /// Group time after which it is no longer executed.
    pub expires: GroupTime,
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

/// Whether this build may apply the command: asked before `apply`. Only a newer version is an
/// error; a malformed command is applied, to a response that says so, since every build agrees on
/// that.
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
    /// The bytes for Raft's log.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![COMMAND_VERSION];
        match self {
            Self::Propose { id, quota_bytes, payloads } => {
                let bytes: usize = payloads.iter().map(|payload| payload.len() + 4).sum();
                out.reserve(bytes + 64);
                out.push(KIND_PROPOSE);
                match id {
                    None => out.push(WITHOUT_ID),
                    Some(id) => {
                        out.push(WITH_ID);
                        out.extend_from_slice(&id.client.0);
                        put_number(&mut out, id.sequence);
                        put_number(&mut out, id.acknowledged);
                        put_number(&mut out, id.expires.0);
                    }
                }
                put_number(&mut out, *quota_bytes);
                put_number(&mut out, payloads.len() as u64);
                for payload in payloads {
                    put_bytes(&mut out, payload);
                }
            }
            Self::Trim { first } => {
                out.push(KIND_TRIM);
                put_number(&mut out, first.0);
            }
        }
        Bytes::from(out)
    }

    /// Reads a command from Raft's log.
    ///
    /// # Errors
    /// [`BadCommand`]; never panics, whatever the bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BadCommand> {
        check_version(bytes)?;
        let mut reader = Reader::new(bytes);
        if reader.byte("command version")? != COMMAND_VERSION {
            return Err(Malformed("command version").into());
        }
        let command = match reader.byte("command kind")? {
            KIND_PROPOSE => {
                let id = match reader.byte("id flag")? {
                    WITHOUT_ID => None,
                    WITH_ID => Some(RequestId::read(&mut reader)?),
                    _ => return Err(Malformed("id flag").into()),
                };
                let quota_bytes = reader.number("quota")?;
                let count = reader.number("entry count")?;
                if count > PROPOSE_ENTRIES_MAX as u64 {
                    return Err(Malformed("entry count").into());
                }
                let payloads =
                    (0..count).map(|_| reader.bytes("entry")).collect::<Result<_, _>>()?;
                Self::Propose { id, quota_bytes, payloads }
            }
            KIND_TRIM => Self::Trim { first: LogIndex(reader.number("first index")?) },
            unknown => return Err(BadCommand::UnknownKind(unknown)),
        };
        if reader.is_empty() { Ok(command) } else { Err(Malformed("end of the command").into()) }
    }
}

impl RequestId {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            client: ClientId(reader.array("client id")?),
            sequence: reader.number("sequence")?,
            acknowledged: reader.number("acknowledged sequence")?,
            expires: GroupTime(reader.number("expiry")?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<Command<'static>> {
        let id = RequestId {
            client: ClientId([7; 16]),
            sequence: 300,
            acknowledged: 299,
            expires: GroupTime(u64::MAX),
        };
        vec![
            Command::Propose { id: None, quota_bytes: 0, payloads: vec![b""] },
            Command::Propose {
                id: Some(id),
                quota_bytes: 1 << 40,
                payloads: vec![b"a", &[0; 300]],
            },
            Command::Trim { first: LogIndex(1 << 50) },
        ]
    }

    #[test]
    fn commands_come_back() {
        for command in commands() {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }

    #[test]
    fn what_is_cut_or_longer_does_not_decode() {
        for command in commands() {
            let bytes = command.encode();
            for length in 0..bytes.len() {
                assert!(Command::decode(&bytes[..length]).is_err(), "{command:?} at {length}");
            }
            assert!(Command::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn only_a_newer_version_is_not_understood() {
        assert_eq!(check_version(&[2, 1]), Err(BadCommand::NewerVersion(2)));
        for other in [&[][..], &[0, 9], &[1, 9], &[1]] {
            assert_eq!(check_version(other), Ok(()));
            assert!(Command::decode(other).is_err());
        }
    }

    #[test]
    fn a_count_that_was_merely_read_allocates_nothing() {
        let mut bytes = vec![COMMAND_VERSION, KIND_PROPOSE, WITHOUT_ID, 0];
        put_number(&mut bytes, u64::MAX);
        assert_eq!(Command::decode(&bytes), Err(Malformed("entry count").into()));
    }
}
