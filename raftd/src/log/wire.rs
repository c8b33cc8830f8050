//! Between the wire and the machine: what a request asks, what a reply says, why one is refused.
//!
//! The only place beside the services that knows both vocabularies. What comes from outside is
//! checked here, before it is proposed.

use bytes::Bytes;
use proto::log::{self as pb, forward_reply, request};
use proto::metadata::{FIRST_INDEX, LAST_INDEX};
use proto::raft::{Reason, Refusal as Refused};
use raft::GroupTime;
use tonic::Status;

use crate::edge::{self, maybe, never};
use crate::log::command::{ClientId, Command, RequestId};
use crate::log::limits::ProposeLimits;
use crate::log::outcome::{Header, LogIndex, Outcome, Refusal, Response};

/// What a request asks of the group.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Where the log stands.
    Status,
    /// What time it is, which must not be old.
    Time,
    /// A command.
    Command {
        /// Encoded.
        command: Bytes,
        /// Which reply it gets.
        verb: Verb,
    },
}

/// The kinds of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Propose,
    Trim,
}

impl Verb {
    /// What a refusal calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Propose => "the Propose",
            Self::Trim => "the Trim",
        }
    }

    /// Whether it adds to what is stored.
    pub(crate) fn grows(self) -> bool {
        match self {
            Self::Propose => true,
            Self::Trim => false,
        }
    }
}

/// Whether losing the answer to this request loses what its outcome was: it changes something, a
/// second time again, and has no name under which to ask.
pub(crate) fn is_anonymous_append(kind: &request::Kind) -> bool {
    match kind {
        request::Kind::Propose(propose) => propose.id.is_none(),
        request::Kind::Trim(_) | request::Kind::Status(_) | request::Kind::Time(_) => false,
    }
}

/// Checks a request and says what it asks.
pub(crate) fn ask(
    kind: &request::Kind,
    limits: &ProposeLimits,
    quota_bytes: u64,
) -> Result<Ask, Refused> {
    let (command, verb) = match kind {
        request::Kind::Status(pb::StatusRequest { stale: _ }) => return Ok(Ask::Status),
        request::Kind::Time(pb::TimeRequest {}) => return Ok(Ask::Time),
        request::Kind::Propose(pb::ProposeRequest { payloads, id }) => {
            limits.check(payloads).map_err(|broken| invalid(broken.to_string()))?;
            let id = id.as_ref().map(request_id).transpose()?;
            let payloads = payloads.iter().map(|payload| &payload[..]).collect();
            (Command::Propose { id, quota_bytes, payloads }, Verb::Propose)
        }
        request::Kind::Trim(pb::TrimRequest { first_index }) => {
            if *first_index == 0 {
                return Err(invalid("first_index is 0; indexes count from 1".to_owned()));
            }
            (Command::Trim { first: LogIndex(*first_index) }, Verb::Trim)
        }
    };
    Ok(Ask::Command { command: command.encode(), verb })
}

fn request_id(id: &pb::RequestId) -> Result<RequestId, Refused> {
    let client: [u8; 16] = id.client[..].try_into().map_err(|_| {
        invalid(format!("id.client has {} bytes; it must have 16", id.client.len()))
    })?;
    if id.sequence == 0 {
        return Err(invalid("id.sequence is 0; sequences count from 1".to_owned()));
    }
    if id.acknowledged >= id.sequence {
        return Err(invalid(format!(
            "id.acknowledged is {}, not below id.sequence, which is {}",
            id.acknowledged, id.sequence
        )));
    }
    Ok(RequestId {
        client: ClientId(client),
        sequence: id.sequence,
        acknowledged: id.acknowledged,
        expires: GroupTime(id.expires_ms),
    })
}

/// The reply to a command.
pub(crate) fn reply(response: Response) -> Result<forward_reply::Kind, Refused> {
    let header = Some(header(response.header));
    match response.result.map_err(|refusal| refused(&refusal))? {
        Outcome::Appended { first, count, duplicate } => {
            let first_index = first.0;
            let reply = pb::ProposeReply { header, first_index, count, duplicate };
            Ok(forward_reply::Kind::Propose(reply))
        }
        Outcome::Trimmed => Ok(forward_reply::Kind::Trim(pb::TrimReply { header })),
    }
}

/// Why the machine did not execute a command.
fn refused(refusal: &Refusal) -> Refused {
    let message = refusal.to_string();
    match refusal {
        Refusal::Acknowledged => never(Reason::Acknowledged, message),
        Refusal::Expired { .. } => {
            maybe(Reason::Expired, format!("{message}, maybe executed before that"))
        }
        Refusal::Limit { .. } => never(Reason::Limit, message),
        Refusal::Quota { .. } => never(Reason::Quota, message),
        Refusal::BeyondEnd { .. } => never(Reason::OutOfRange, message),
        Refusal::TooFarAhead { .. } | Refusal::OutOfBounds(_) | Refusal::BadCommand(_) => {
            never(Reason::Invalid, message)
        }
    }
}

/// Why a subscriber gets nothing from this index on (or nothing more).
pub(crate) fn out_of_range(from: LogIndex, header: Header) -> Status {
    let Header { first, last, .. } = header;
    let message = if from < first {
        format!("the log has no index {from} any more: its first index is {first}")
    } else {
        format!("the log has no index {from} yet: its last index is {last}")
    };
    let mut status = edge::status(never(Reason::OutOfRange, message));
    status.metadata_mut().insert(FIRST_INDEX, first.0.into());
    status.metadata_mut().insert(LAST_INDEX, last.0.into());
    status
}

pub(crate) fn header(header: Header) -> pb::Header {
    pb::Header {
        first_index: header.first.0,
        last_index: header.last.0,
        bytes: header.bytes,
        group_time_ms: header.time.0,
    }
}

pub(crate) fn invalid(message: String) -> Refused {
    never(Reason::Invalid, message)
}
