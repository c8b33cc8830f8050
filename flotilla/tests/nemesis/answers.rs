//! What members say on the wire, as the judge of histories understands it.

use bytes::Bytes;
use kvd::outcome::{Answered, Header, Outcome, Pair, Revision, ShardTime, Version, Written};
use proto::kv::{
    self, AppendReply, DeleteReply, GetReply, PutReply, ReplyHeader, TxnReply, append_reply,
    operation_reply, put_reply, txn_reply,
};
use sim::operation::{Done, Verdict};

fn header(header: &ReplyHeader) -> Header {
    Header {
        shard: header.shard,
        shards: header.shards,
        revision: Revision(header.revision),
        time: ShardTime(header.shard_time_ms),
    }
}

/// A pair that keeps nothing of the message that it came in.
fn pair(pair: &kv::Pair) -> Pair {
    Pair {
        value: Bytes::copy_from_slice(&pair.value),
        version: Version(pair.version),
        create_revision: Revision(pair.create_revision),
        mod_revision: Revision(pair.mod_revision),
        lease: None,
    }
}

fn written(written: kv::Written) -> Written {
    Written { version: Version(written.version), revision: Revision(written.mod_revision) }
}

fn executed(head: Option<&ReplyHeader>, outcome: Outcome) -> Verdict {
    let head = head.expect("every reply has a header");
    let (duplicate, body_dropped) = (head.duplicate, head.body_dropped);
    Verdict::Done(Done::Executed(header(head), Answered { outcome, duplicate, body_dropped }))
}

pub(crate) fn found(head: Option<&ReplyHeader>, found: Option<&kv::Pair>) -> Verdict {
    Verdict::Done(Done::Read(header(head.expect("every reply has a header")), found.map(pair)))
}

pub(crate) fn get(reply: &GetReply) -> Verdict {
    found(reply.header.as_ref(), reply.pair.as_ref())
}

pub(crate) fn put(reply: &PutReply) -> Verdict {
    let outcome = match reply.outcome.as_ref().expect("every Put has an outcome") {
        put_reply::Outcome::Written(it) => Outcome::Written(written(*it)),
        put_reply::Outcome::Mismatch(it) => Outcome::Mismatch(it.current.as_ref().map(pair)),
        put_reply::Outcome::GuardRefused(_) | put_reply::Outcome::NoSuchLease(_) => {
            panic!("a Put without guard and lease was told {reply:?}")
        }
    };
    executed(reply.header.as_ref(), outcome)
}

pub(crate) fn append(reply: &AppendReply) -> Verdict {
    let outcome = match reply.outcome.as_ref().expect("every Append has an outcome") {
        append_reply::Outcome::Appended(it) => Outcome::Appended {
            written: written(it.written.expect("what was appended was written")),
            old: Bytes::copy_from_slice(&it.old_value),
        },
        append_reply::Outcome::TooLarge(it) => {
            Outcome::TooLarge { bytes: it.bytes, limit: it.limit }
        }
        append_reply::Outcome::GuardRefused(_) => {
            panic!("an Append without a guard was told {reply:?}")
        }
    };
    executed(reply.header.as_ref(), outcome)
}

pub(crate) fn delete(reply: &DeleteReply) -> Verdict {
    assert!(reply.guard_refused.is_none(), "a Delete without a guard was told {reply:?}");
    let outcome = match (reply.written, &reply.removed) {
        (Some(it), Some(removed)) => Outcome::Removed { written: written(it), pair: pair(removed) },
        (None, None) => Outcome::Absent,
        (told, removed) => panic!("a Delete was told {told:?} of {removed:?}"),
    };
    executed(reply.header.as_ref(), outcome)
}

/// What a transaction did to the key that it compared and to the other one.
pub(crate) fn txn(reply: TxnReply) -> [Verdict; 2] {
    let head = reply.header.as_ref();
    let Some(txn_reply::Outcome::Done(done)) = reply.outcome else {
        panic!("a Txn without guard and lease was told {reply:?}");
    };
    if head.is_some_and(|head| head.body_dropped) {
        let verdict = if done.succeeded { Verdict::Unknown } else { Verdict::Never };
        return [verdict.clone(), verdict];
    }
    let replies: Vec<_> = done.replies.into_iter().filter_map(|reply| reply.kind).collect();
    match (done.succeeded, &replies[..]) {
        (true, [operation_reply::Kind::Put(one), operation_reply::Kind::Put(other)]) => {
            let revisions = [one.mod_revision, other.mod_revision];
            assert_eq!(revisions, [done.mod_revision; 2], "one transaction, one revision");
            [one, other].map(|it| executed(head, Outcome::Written(written(*it))))
        }
        (false, [operation_reply::Kind::Get(found)]) => {
            let found = found.pair.as_ref().map(pair);
            [executed(head, Outcome::Mismatch(found)), Verdict::Never]
        }
        (succeeded, replies) => panic!("a Txn, succeeded: {succeeded}, was told {replies:?}"),
    }
}

/// The version that a key is known to have had last.
pub(crate) fn version(verdict: &Verdict) -> Option<u64> {
    match verdict {
        Verdict::Never | Verdict::Unknown | Verdict::Done(Done::Claim(..)) => None,
        Verdict::Done(Done::Read(_, found)) => {
            Some(found.as_ref().map_or(0, |pair| pair.version.0))
        }
        Verdict::Done(Done::Executed(_, answered)) => match &answered.outcome {
            Outcome::Written(written) | Outcome::Appended { written, .. } => {
                Some(written.version.0)
            }
            Outcome::Mismatch(found) => Some(found.as_ref().map_or(0, |pair| pair.version.0)),
            Outcome::Removed { .. } | Outcome::Absent => Some(0),
            _ => None,
        },
    }
}
