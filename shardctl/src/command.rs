//! What Raft's log carries for this machine, as bytes.
//!
//! Decides the encoding, which lives in logs for ever: a version byte first, so that a member can
//! tell a command that it is too old for. Decoding is total, and allocates no more than it reads.
//! Limits, and whether a command makes sense for the state, are the machine's business.

use std::num::NonZeroU32;

use bytes::Bytes;
use raftd::codec::{Malformed, Reader, put_bytes, put_number};

use crate::ids::{GroupId, Identity, MoveNumber, RequestId, ShardId};

/// The newest command version that this build understands.
pub const COMMAND_VERSION: u8 = 1;

const REQUEST: u8 = 1;
const REPORT: u8 = 2;
const SETTLED: u8 = 3;
const CANCELLED: u8 = 4;
const ABORTED: u8 = 5;

const JOIN: u8 = 1;
const LEAVE: u8 = 2;
const WEIGH: u8 = 3;
const MOVE: u8 = 4;
const UNPIN: u8 = 5;
const ADOPT: u8 = 6;

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// An administrator asks for a configuration.
    Request {
        /// Makes it exactly-once.
        id: Option<RequestId>,
        /// How many shards the proposer's settings ask for; the first request fixes it.
        shards: NonZeroU32,
        /// What is asked for.
        request: Request,
    },
    /// A group's leader tells who its members are.
    Report {
        /// Which group.
        group: GroupId,
        /// Which Raft group that is.
        identity: Identity,
        /// The index of the entry of its log that says so.
        index: u64,
        /// How many shards its store was made with; none, if there is nothing in it.
        shards: Option<NonZeroU32>,
        /// The client addresses of its members.
        members: Vec<String>,
    },
    /// A group has installed a shard.
    Settled(Step),
    /// A group has ended a move before it froze the shard, or made it.
    Cancelled(Step),
    /// A group has given up a move to it.
    Aborted(Step),
}

/// What a group did for a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which group.
    pub group: GroupId,
    /// Which Raft group that is.
    pub identity: Identity,
    /// Which shard.
    pub shard: ShardId,
    /// Which of the shard's moves.
    pub number: MoveNumber,
}

/// What an administrator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Groups take part.
    Join(Vec<Joining>),
    /// Groups take part no more.
    Leave(Vec<GroupId>),
    /// A group that takes part has another weight.
    Weigh {
        /// Which.
        group: GroupId,
        /// Its weight; 0: it shall have no shards but those that are pinned to it.
        weight: u32,
    },
    /// A shard goes to a group and stays there.
    Move {
        /// Which.
        shard: ShardId,
        /// Where to.
        group: GroupId,
    },
    /// A shard need not stay where it was moved to.
    Unpin(ShardId),
    /// A group that has been alone takes part, and has all shards already.
    Adopt(GroupId),
}

/// A group that is to take part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joining {
    /// Which.
    pub group: GroupId,
    /// How much it shall have, beside the others.
    pub weight: u32,
    /// The client addresses of its members, for as long as it has not reported them itself.
    pub members: Vec<String>,
}

/// A command that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCommand {
    /// A newer build wrote it.
    #[error("command version {0} is newer than {COMMAND_VERSION}, which this build understands")]
    NewerVersion(u8),
    /// Its bytes make no sense.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Whether this build may apply the command: asked before `apply`. A malformed one may be, since all
/// builds agree on what comes of it.
///
/// # Errors
/// [`BadCommand::NewerVersion`].
pub fn check_version(command: &[u8]) -> Result<(), BadCommand> {
    match command.first() {
        Some(&version) if version > COMMAND_VERSION => Err(BadCommand::NewerVersion(version)),
        Some(_) | None => Ok(()),
    }
}

impl Command {
    /// The bytes for Raft's log.
    pub fn encode(&self) -> Bytes {
        let mut out = vec![COMMAND_VERSION];
        match self {
            Self::Request { id, shards, request } => {
                out.push(REQUEST);
                match id {
                    None => out.push(0),
                    Some(RequestId(id)) => {
                        out.push(1);
                        out.extend_from_slice(id);
                    }
                }
                put_number(&mut out, u64::from(shards.get()));
                request.put(&mut out);
            }
            Self::Report { group, identity, index, shards, members } => {
                out.push(REPORT);
                put_group(&mut out, *group);
                out.extend_from_slice(identity);
                put_number(&mut out, *index);
                put_number(&mut out, shards.map_or(0, |shards| shards.get().into()));
                put_members(&mut out, members);
            }
            Self::Settled(step) => step.put(SETTLED, &mut out),
            Self::Cancelled(step) => step.put(CANCELLED, &mut out),
            Self::Aborted(step) => step.put(ABORTED, &mut out),
        }
        Bytes::from(out)
    }

    /// Reads a command from Raft's log.
    ///
    /// # Errors
    /// [`BadCommand`]; never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadCommand> {
        check_version(bytes)?;
        let mut reader = Reader::new(bytes);
        if reader.byte("command version")? != COMMAND_VERSION {
            return Err(Malformed("command version").into());
        }
        let command = match reader.byte("command kind")? {
            REQUEST => {
                let id = match reader.byte("id flag")? {
                    0 => None,
                    1 => Some(RequestId(reader.array("request id")?)),
                    _ => return Err(Malformed("id flag").into()),
                };
                let shards = NonZeroU32::new(reader.number32("number of shards")?);
                let shards = shards.ok_or(Malformed("number of shards"))?;
                Self::Request { id, shards, request: Request::take(&mut reader)? }
            }
            REPORT => Self::Report {
                group: take_group(&mut reader)?,
                identity: reader.array("identity")?,
                index: reader.number("index")?,
                shards: NonZeroU32::new(reader.number32("number of shards")?),
                members: take_members(&mut reader)?,
            },
            SETTLED => Self::Settled(Step::take(&mut reader)?),
            CANCELLED => Self::Cancelled(Step::take(&mut reader)?),
            ABORTED => Self::Aborted(Step::take(&mut reader)?),
            _ => return Err(Malformed("command kind").into()),
        };
        if reader.is_empty() { Ok(command) } else { Err(Malformed("end of the command").into()) }
    }
}

impl Step {
    fn put(self, kind: u8, out: &mut Vec<u8>) {
        out.push(kind);
        put_group(out, self.group);
        out.extend_from_slice(&self.identity);
        put_number(out, u64::from(self.shard.0));
        put_number(out, self.number.0);
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            group: take_group(reader)?,
            identity: reader.array("identity")?,
            shard: ShardId(reader.number32("shard")?),
            number: MoveNumber(reader.number("number")?),
        })
    }
}

impl Request {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Join(groups) => {
                out.push(JOIN);
                put_number(out, groups.len() as u64);
                for Joining { group, weight, members } in groups {
                    put_group(out, *group);
                    put_number(out, u64::from(*weight));
                    put_members(out, members);
                }
            }
            Self::Leave(groups) => {
                out.push(LEAVE);
                put_number(out, groups.len() as u64);
                groups.iter().for_each(|group| put_group(out, *group));
            }
            Self::Weigh { group, weight } => {
                out.push(WEIGH);
                put_group(out, *group);
                put_number(out, u64::from(*weight));
            }
            Self::Move { shard, group } => {
                out.push(MOVE);
                put_number(out, u64::from(shard.0));
                put_group(out, *group);
            }
            Self::Unpin(shard) => {
                out.push(UNPIN);
                put_number(out, u64::from(shard.0));
            }
            Self::Adopt(group) => {
                out.push(ADOPT);
                put_group(out, *group);
            }
        }
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match reader.byte("kind of request")? {
            JOIN => Self::Join(take_list(reader, "number of groups", |reader| {
                let (group, weight) = (take_group(reader)?, reader.number32("weight")?);
                Ok(Joining { group, weight, members: take_members(reader)? })
            })?),
            LEAVE => Self::Leave(take_list(reader, "number of groups", take_group)?),
            WEIGH => Self::Weigh { group: take_group(reader)?, weight: reader.number32("weight")? },
            MOVE => {
                let shard = ShardId(reader.number32("shard")?);
                Self::Move { shard, group: take_group(reader)? }
            }
            UNPIN => Self::Unpin(ShardId(reader.number32("shard")?)),
            ADOPT => Self::Adopt(take_group(reader)?),
            _ => return Err(Malformed("kind of request")),
        })
    }
}

pub(crate) fn put_group(out: &mut Vec<u8>, group: GroupId) {
    put_number(out, u64::from(group.0.get()));
}

pub(crate) fn take_group(reader: &mut Reader<'_>) -> Result<GroupId, Malformed> {
    GroupId::new(reader.number32("group")?).ok_or(Malformed("group"))
}

pub(crate) fn put_members(out: &mut Vec<u8>, members: &[String]) {
    put_number(out, members.len() as u64);
    members.iter().for_each(|member| put_bytes(out, member.as_bytes()));
}

pub(crate) fn take_members(reader: &mut Reader<'_>) -> Result<Vec<String>, Malformed> {
    take_list(reader, "number of members", |reader| {
        let address = std::str::from_utf8(reader.bytes("address")?).ok();
        let address = address.filter(|address| !address.is_empty());
        address.map(str::to_owned).ok_or(Malformed("address"))
    })
}

fn take_list<T>(
    reader: &mut Reader<'_>,
    what: &'static str,
    mut take: impl FnMut(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    (0..reader.number(what)?).map(|_| take(reader)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<Command> {
        let [one, two] = [1, 2].map(|number| GroupId::new(number).unwrap());
        let members = vec!["a:7300".to_owned(), "b:7300".to_owned()];
        let number = MoveNumber(u64::MAX);
        let step = Step { group: two, identity: [4; 32], shard: ShardId(255), number };
        let requests = [
            Request::Join(vec![
                Joining { group: one, weight: 1, members: members.clone() },
                Joining { group: two, weight: 3, members: Vec::new() },
            ]),
            Request::Leave(vec![one, two]),
            Request::Weigh { group: one, weight: 0 },
            Request::Move { shard: ShardId(7), group: two },
            Request::Unpin(ShardId(300)),
            Request::Adopt(one),
        ];
        let ids = [None, Some(RequestId([9; 16]))].into_iter().cycle();
        let requests = ids.zip(requests);
        let shards = NonZeroU32::MIN;
        let requests = requests.map(|(id, request)| Command::Request { id, shards, request });
        let report = |shards, members| {
            let (identity, index) = ([3; 32], 1 << 40);
            Command::Report { group: one, identity, index, shards, members }
        };
        let steps = [Command::Settled(step), Command::Cancelled(step), Command::Aborted(step)];
        let reports = [report(None, members), report(NonZeroU32::new(256), Vec::new())];
        requests.chain(reports).chain(steps).collect()
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
        let mut bytes = vec![COMMAND_VERSION, REQUEST, 0, 1, LEAVE];
        put_number(&mut bytes, u64::MAX);
        assert_eq!(Command::decode(&bytes), Err(Malformed("group").into()));
    }
}
