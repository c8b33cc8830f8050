//! Between the wire and the machine: what a request asks, what a reply says, why one is refused.
//!
//! The only place beside the services that knows both vocabularies. What comes from outside is
//! checked here, before it is proposed.

use bytes::Bytes;
use proto::{
    kv::{self as pb, append_reply, forward_reply, put_reply, put_request, request},
    raft::{Reason, Refusal as Refused},
};
use raftd::edge::{maybe, never};

use crate::{
    command::{ClientId, Command, Condition, Operation, RequestId},
    limits::{KEY_BYTES_MAX, PairLimits, VALUE_BYTES_MAX},
    outcome::{
        Answer, Header, Outcome, Pair, Query, Refusal, Response, Revision, ShardTime, Version,
        Written,
    },
};

const _: () = assert!(client::KEY_BYTES_MAX == KEY_BYTES_MAX);
const _: () = assert!(client::VALUE_BYTES_MAX == VALUE_BYTES_MAX);

/// What a request asks of the group.
#[derive(Debug)]
pub(crate) enum Ask {
    /// A question.
    Query(Query),
    /// A question about the time, which must not be old.
    Time(Query),
    /// A command.
    Command {
        /// Encoded.
        command: Bytes,
        /// Which reply it gets.
        verb: Verb,
    },
}

/// The kinds of mutations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Put,
    Append,
    Delete,
}

impl Verb {
    /// What a refusal calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "the Put",
            Self::Append => "the Append",
            Self::Delete => "the Delete",
        }
    }

    /// Whether it may add to what is stored.
    pub(crate) fn grows(self) -> bool {
        match self {
            Self::Put | Self::Append => true,
            Self::Delete => false,
        }
    }
}

/// Whether losing the answer to this request loses what its outcome was: it changes something and
/// has no name under which to ask again.
pub(crate) fn is_anonymous_mutation(kind: &request::Kind) -> bool {
    match kind {
        request::Kind::Get(_) | request::Kind::Time(_) => false,
        request::Kind::Put(put) => put.id.is_none(),
        request::Kind::Append(append) => append.id.is_none(),
        request::Kind::Delete(delete) => delete.id.is_none(),
    }
}

/// Checks a request and says what it asks.
pub(crate) fn ask(kind: &request::Kind, shards: u32, limits: &PairLimits) -> Result<Ask, Refused> {
    let (operation, id, verb) = match kind {
        request::Kind::Get(get) => {
            limits.check_key(&get.key).map_err(|broken| invalid(broken.to_string()))?;
            return Ok(Ask::Query(Query::Get(get.key.clone())));
        }
        request::Kind::Time(time) => {
            limits.check_key(&time.key).map_err(|broken| invalid(broken.to_string()))?;
            return Ok(Ask::Time(Query::Time(time.key.clone())));
        }
        request::Kind::Put(put) => {
            let condition = condition(put.condition);
            let operation = Operation::Put { key: &put.key, value: &put.value, condition };
            (operation, &put.id, Verb::Put)
        }
        request::Kind::Append(append) => {
            let value_bytes_max = limits.value_bytes_max as u64;
            let (key, value) = (&append.key, &append.value);
            (Operation::Append { key, value, value_bytes_max }, &append.id, Verb::Append)
        }
        request::Kind::Delete(delete) => {
            (Operation::Delete { key: &delete.key }, &delete.id, Verb::Delete)
        }
    };
    limits.check_key(operation.key()).map_err(|broken| invalid(broken.to_string()))?;
    if let Operation::Put { value, .. } | Operation::Append { value, .. } = &operation {
        limits.check_value(value).map_err(|broken| invalid(broken.to_string()))?;
    }
    let id = id.as_ref().map(|id| request_id(id, shards)).transpose()?;
    Ok(Ask::Command { command: Command { shards, id, operation }.encode(), verb })
}

fn condition(condition: Option<put_request::Condition>) -> Condition {
    match condition {
        None => Condition::Always,
        Some(put_request::Condition::ExpectedVersion(version)) => {
            Condition::Version(Version(version))
        }
        Some(put_request::Condition::ExpectedModRevision(revision)) => {
            Condition::ModRevision(Revision(revision))
        }
    }
}

fn request_id(id: &pb::RequestId, shards: u32) -> Result<RequestId, Refused> {
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
    if id.shards != 0 && id.shards != shards {
        let message = format!("there are {shards} shards; the client counts in {}", id.shards);
        return Err(never(Reason::OtherShards, message));
    }
    Ok(RequestId {
        client: ClientId(client),
        sequence: id.sequence,
        acknowledged: id.acknowledged,
        expires: ShardTime(id.expires_ms),
    })
}

/// The reply to a question; none for an answer that belongs to another question.
pub(crate) fn answer(answer: Answer) -> Option<forward_reply::Kind> {
    match answer {
        Answer::Pair(at, found) => Some(forward_reply::Kind::Get(pb::GetReply {
            header: Some(header(at)),
            pair: found.map(pair),
        })),
        Answer::Time(at) => {
            Some(forward_reply::Kind::Time(pb::TimeReply { header: Some(header(at)) }))
        }
        Answer::Created(_) => None,
    }
}

/// The reply to a command.
pub(crate) fn reply(verb: Verb, response: Response) -> Result<forward_reply::Kind, Refused> {
    let answered = response.result.map_err(|refusal| refused(&refusal))?;
    let header = Some(pb::ReplyHeader {
        duplicate: answered.duplicate,
        body_dropped: answered.body_dropped,
        ..header(response.header)
    });
    match (verb, answered.outcome) {
        (Verb::Put, Outcome::Written(done)) => {
            let outcome = Some(put_reply::Outcome::Written(written(done)));
            Ok(forward_reply::Kind::Put(pb::PutReply { header, outcome }))
        }
        (Verb::Put, Outcome::Mismatch(current)) => {
            let mismatch = pb::Mismatch { current: current.map(pair) };
            let outcome = Some(put_reply::Outcome::Mismatch(mismatch));
            Ok(forward_reply::Kind::Put(pb::PutReply { header, outcome }))
        }
        (Verb::Append, Outcome::Appended { written: done, old }) => {
            let appended = pb::Appended { written: Some(written(done)), old_value: old };
            let outcome = Some(append_reply::Outcome::Appended(appended));
            Ok(forward_reply::Kind::Append(pb::AppendReply { header, outcome }))
        }
        (Verb::Append, Outcome::TooLarge { bytes, limit }) => {
            let outcome = Some(append_reply::Outcome::TooLarge(pb::TooLarge { bytes, limit }));
            Ok(forward_reply::Kind::Append(pb::AppendReply { header, outcome }))
        }
        (Verb::Delete, Outcome::Removed { written: done, pair: removed }) => {
            let (removed, written) = (Some(pair(removed)), Some(written(done)));
            Ok(forward_reply::Kind::Delete(pb::DeleteReply { header, removed, written }))
        }
        (Verb::Delete, Outcome::Absent) => {
            let reply = pb::DeleteReply { header, removed: None, written: None };
            Ok(forward_reply::Kind::Delete(reply))
        }
        (Verb::Put | Verb::Append | Verb::Delete, _) => Err(invalid(
            "id.sequence names a request of another kind, which was executed before".to_owned(),
        )),
    }
}

/// Why the machine did not execute a command.
fn refused(refusal: &Refusal) -> Refused {
    let message = refusal.to_string();
    match refusal {
        Refusal::Acknowledged => never(Reason::Acknowledged, message),
        Refusal::Expired { .. } => {
            let message = format!("{message}, maybe executed before that");
            maybe(Reason::Expired, message)
        }
        Refusal::Limit { .. } => never(Reason::Limit, message),
        Refusal::OtherShards { .. } => never(Reason::OtherShards, message),
        Refusal::TooFarAhead { .. } | Refusal::OutOfBounds(_) | Refusal::BadCommand(_) => {
            never(Reason::Invalid, message)
        }
    }
}

fn header(header: Header) -> pb::ReplyHeader {
    pb::ReplyHeader {
        shard: header.shard,
        revision: header.revision.0,
        shard_time_ms: header.time.0,
        duplicate: false,
        body_dropped: false,
        shards: header.shards,
    }
}

fn pair(pair: Pair) -> pb::Pair {
    pb::Pair {
        value: pair.value,
        version: pair.version.0,
        create_revision: pair.create_revision.0,
        mod_revision: pair.mod_revision.0,
    }
}

fn written(written: Written) -> pb::Written {
    pb::Written { version: written.version.0, mod_revision: written.revision.0 }
}

fn invalid(message: String) -> Refused {
    never(Reason::Invalid, message)
}
