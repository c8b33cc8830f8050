//! From the machine to the wire: what a reply says.

use std::sync::Arc;

use bytes::Bytes;
use proto::{
    kv::{
        self as pb, append_reply, forward_reply, keep_alive_reply, operation_reply, put_reply,
        time_to_live_reply, txn_reply,
    },
    lock,
    raft::Refusal as Refused,
};

use crate::{
    command::{LeaseId, Token},
    outcome::{
        ActionReply, Answer, Answered, Executed, Header, Holder, LeaseState, LockState, Outcome,
        Pair, Query, Response, Waiter, Written,
    },
    view::Change,
    wire::{Verb, invalid, refused},
};

/// The reply to a question; none for an answer that belongs to another question.
pub(crate) fn answer(
    query: &Query,
    answer: Answer,
) -> Option<Result<forward_reply::Kind, Refused>> {
    Some(Ok(match answer {
        Answer::Pair(at, found) => forward_reply::Kind::Get(pb::GetReply {
            header: Some(header(at)),
            pair: found.map(pair),
        }),
        Answer::Time(at) => forward_reply::Kind::Time(pb::TimeReply { header: Some(header(at)) }),
        Answer::Txn(response) => return Some(reply(Verb::Txn, response)),
        Answer::Lease(at, state) => {
            let Query::Lease { lease, .. } = query else { return None };
            forward_reply::Kind::TimeToLive(lease_state(at, *lease, state))
        }
        Answer::Refused(refusal) => return Some(Err(refused(&refusal))),
        Answer::Created(_)
        | Answer::View(_)
        | Answer::Custody(_)
        | Answer::Standings(_)
        | Answer::Contents(_)
        | Answer::Lock(..)
        | Answer::Claim(..)
        | Answer::DueLeases(_) => return None,
    }))
}

/// The reply to a question about a lock, as [`answer`].
pub(crate) fn lock_answer(answer: Answer) -> Option<Result<lock::forward_reply::Kind, Refused>> {
    match answer {
        Answer::Lock(at, state) => Some(Ok(lock::forward_reply::Kind::Inspect(inspect(at, state)))),
        Answer::Refused(refusal) => Some(Err(refused(&refusal))),
        _ => None,
    }
}

/// The reply to a command.
pub(crate) fn reply(verb: Verb, response: Response) -> Result<forward_reply::Kind, Refused> {
    let Response { header: at, result } = response;
    let Answered { outcome, duplicate, body_dropped } =
        result.map_err(|refusal| refused(&refusal))?;
    let header = Some(pb::ReplyHeader { duplicate, body_dropped, ..header(at) });
    match verb {
        Verb::Put => put(outcome).map(|outcome| {
            forward_reply::Kind::Put(pb::PutReply { header, outcome: Some(outcome) })
        }),
        Verb::Append => append(outcome).map(|outcome| {
            forward_reply::Kind::Append(pb::AppendReply { header, outcome: Some(outcome) })
        }),
        Verb::Delete => {
            delete(outcome).map(|it| forward_reply::Kind::Delete(pb::DeleteReply { header, ..it }))
        }
        Verb::Txn => txn(outcome).map(|outcome| {
            forward_reply::Kind::Txn(pb::TxnReply { header, outcome: Some(outcome) })
        }),
        Verb::Compact => match outcome {
            Outcome::Compacted(revision) => Some(forward_reply::Kind::Compact(pb::CompactReply {
                header,
                compacted_revision: revision.0,
            })),
            _ => None,
        },
        Verb::Grant => match outcome {
            Outcome::Granted { lease, ttl_ms } => {
                Some(forward_reply::Kind::Grant(pb::GrantReply {
                    header,
                    lease_id: lease.get(),
                    ttl_ms,
                }))
            }
            _ => None,
        },
        Verb::Revoke => match outcome {
            Outcome::Ended { keys_removed } => {
                let (ended, keys_removed) = (true, keys_removed);
                let reply = pb::RevokeReply { header, ended, keys_removed };
                Some(forward_reply::Kind::Revoke(reply))
            }
            Outcome::NoSuchLease(_) => {
                let reply = pb::RevokeReply { header, ended: false, keys_removed: 0 };
                Some(forward_reply::Kind::Revoke(reply))
            }
            _ => None,
        },
        Verb::Acquire | Verb::Release => None,
    }
    .ok_or_else(of_another_kind)
}

/// What an Acquire came to at first.
pub(crate) enum Acquired {
    /// It is over.
    Reply(lock::AcquireReply),
    /// The lease waits.
    Queued(LeaseId),
}

/// The reply to an Acquire, unless it waits.
pub(crate) fn acquired(response: Response) -> Result<Acquired, Refused> {
    let Response { header: at, result } = response;
    let Answered { outcome, duplicate, body_dropped } =
        result.map_err(|refusal| refused(&refusal))?;
    let header = pb::ReplyHeader { duplicate, body_dropped, ..header(at) };
    let outcome = match outcome {
        Outcome::Held { lease, ttl_ms, token } => held(lease, ttl_ms, token),
        Outcome::Busy(holder) => busy(Some(holder)),
        Outcome::NoSuchLease(lease) => {
            lock::acquire_reply::Outcome::NoSuchLease(no_such_lease(lease))
        }
        Outcome::Queued { lease } => return Ok(Acquired::Queued(lease)),
        _ => return Err(of_another_kind()),
    };
    Ok(Acquired::Reply(lock::AcquireReply { header: Some(header), outcome: Some(outcome) }))
}

/// That a lock is held.
pub(crate) fn held(lease: LeaseId, ttl_ms: u64, token: Token) -> lock::acquire_reply::Outcome {
    let (lease_id, token) = (lease.get(), token.0);
    lock::acquire_reply::Outcome::Held(lock::Held { lease_id, ttl_ms, token })
}

/// That somebody else holds a lock, or did.
pub(crate) fn busy(holder: Option<Holder>) -> lock::acquire_reply::Outcome {
    lock::acquire_reply::Outcome::Busy(lock::Busy { holder: holder.map(self::holder) })
}

/// The reply to a Release.
pub(crate) fn released(response: Response) -> Result<lock::forward_reply::Kind, Refused> {
    let Response { header: at, result } = response;
    let answered = result.map_err(|refusal| refused(&refusal))?;
    let released = match answered.outcome {
        Outcome::Released(released) => released,
        Outcome::NoSuchLease(_) => false,
        _ => return Err(of_another_kind()),
    };
    let header = Some(header(at));
    Ok(lock::forward_reply::Kind::Release(lock::ReleaseReply { header, released }))
}

/// The reply to a KeepAlive: how long the lease lives from now on; none: it has ended.
pub(crate) fn kept_alive(at: Header, lease: LeaseId, ttl_ms: Option<u64>) -> pb::KeepAliveReply {
    let outcome = match ttl_ms {
        Some(ttl_ms) => keep_alive_reply::Outcome::TtlMs(ttl_ms),
        None => keep_alive_reply::Outcome::NoSuchLease(no_such_lease(lease)),
    };
    pb::KeepAliveReply { header: Some(header(at)), outcome: Some(outcome) }
}

/// The same for a lock's.
pub(crate) fn lock_kept_alive(reply: pb::KeepAliveReply) -> lock::KeepAliveReply {
    let outcome = reply.outcome.map(|outcome| match outcome {
        keep_alive_reply::Outcome::TtlMs(ttl_ms) => lock::keep_alive_reply::Outcome::TtlMs(ttl_ms),
        keep_alive_reply::Outcome::NoSuchLease(lease) => {
            lock::keep_alive_reply::Outcome::NoSuchLease(lease)
        }
    });
    lock::KeepAliveReply { header: reply.header, outcome }
}

/// A change, as a watch tells it.
pub(crate) fn event(change: Change, previous: bool) -> pb::Event {
    let shared = |it| pair(Arc::unwrap_or_clone(it));
    pb::Event {
        key: key(&change.key),
        pair: change.current.map(shared),
        previous: change.previous.filter(|_| previous).map(shared),
        expired: change.expired,
    }
}

pub(crate) fn key(key: &[u8]) -> Bytes {
    Bytes::copy_from_slice(key)
}

pub(crate) fn header(header: Header) -> pb::ReplyHeader {
    pb::ReplyHeader {
        shard: header.shard,
        revision: header.revision.0,
        shard_time_ms: header.time.0,
        duplicate: false,
        body_dropped: false,
        shards: header.shards,
    }
}

pub(crate) fn pair(pair: Pair) -> pb::Pair {
    pb::Pair {
        value: pair.value,
        version: pair.version.0,
        create_revision: pair.create_revision.0,
        mod_revision: pair.mod_revision.0,
        lease_id: pair.lease.map_or(0, LeaseId::get),
    }
}

fn put(outcome: Outcome) -> Option<put_reply::Outcome> {
    Some(match outcome {
        Outcome::Written(done) => put_reply::Outcome::Written(written(done)),
        Outcome::Mismatch(current) => {
            put_reply::Outcome::Mismatch(pb::Mismatch { current: current.map(pair) })
        }
        Outcome::GuardRefused(token) => put_reply::Outcome::GuardRefused(guard_refused(token)),
        Outcome::NoSuchLease(lease) => put_reply::Outcome::NoSuchLease(no_such_lease(lease)),
        _ => return None,
    })
}

fn append(outcome: Outcome) -> Option<append_reply::Outcome> {
    Some(match outcome {
        Outcome::Appended { written: done, old } => {
            append_reply::Outcome::Appended(appended(done, old))
        }
        Outcome::TooLarge { bytes, limit } => {
            append_reply::Outcome::TooLarge(pb::TooLarge { bytes, limit })
        }
        Outcome::GuardRefused(token) => append_reply::Outcome::GuardRefused(guard_refused(token)),
        _ => return None,
    })
}

fn delete(outcome: Outcome) -> Option<pb::DeleteReply> {
    Some(match outcome {
        Outcome::Removed { written: done, pair: removed } => pb::DeleteReply {
            removed: Some(pair(removed)),
            written: Some(written(done)),
            ..pb::DeleteReply::default()
        },
        Outcome::Absent => pb::DeleteReply::default(),
        Outcome::GuardRefused(token) => pb::DeleteReply {
            guard_refused: Some(guard_refused(token)),
            ..pb::DeleteReply::default()
        },
        _ => return None,
    })
}

fn txn(outcome: Outcome) -> Option<txn_reply::Outcome> {
    Some(match outcome {
        Outcome::Txn(Executed { succeeded, replies, revision }) => {
            txn_reply::Outcome::Done(pb::TxnDone {
                succeeded,
                replies: replies.iter().cloned().map(operation_reply).collect(),
                mod_revision: revision.map_or(0, |revision| revision.0),
            })
        }
        Outcome::GuardRefused(token) => txn_reply::Outcome::GuardRefused(guard_refused(token)),
        Outcome::TooLarge { bytes, limit } => {
            txn_reply::Outcome::TooLarge(pb::TooLarge { bytes, limit })
        }
        Outcome::NoSuchLease(lease) => txn_reply::Outcome::NoSuchLease(no_such_lease(lease)),
        _ => return None,
    })
}

fn operation_reply(reply: ActionReply) -> pb::OperationReply {
    let kind = match reply {
        ActionReply::Got(found) => {
            operation_reply::Kind::Get(pb::GetResult { pair: found.map(pair) })
        }
        ActionReply::Written(done) => operation_reply::Kind::Put(written(done)),
        ActionReply::Appended { written: done, old } => {
            operation_reply::Kind::Append(appended(done, old))
        }
        ActionReply::Removed(removed) => {
            operation_reply::Kind::Delete(pb::DeleteResult { removed: removed.map(pair) })
        }
    };
    pb::OperationReply { kind: Some(kind) }
}

fn lease_state(at: Header, lease: LeaseId, state: Option<LeaseState>) -> pb::TimeToLiveReply {
    let outcome = state.map(|state| {
        time_to_live_reply::Outcome::State(pb::LeaseState {
            remaining_ms: state.remaining_ms,
            ttl_ms: state.ttl_ms,
            keys: state.keys.iter().map(|it| key(it)).collect(),
            locks: state.locks.iter().map(|it| key(it)).collect(),
        })
    });
    let none = time_to_live_reply::Outcome::NoSuchLease(no_such_lease(lease));
    pb::TimeToLiveReply { header: Some(header(at)), outcome: Some(outcome.unwrap_or(none)) }
}

fn inspect(at: Header, state: LockState) -> lock::InspectReply {
    lock::InspectReply {
        header: Some(header(at)),
        holder: state.holder.map(holder),
        waiters: state.waiters.into_iter().map(waiter).collect(),
        waiting: state.waiting,
    }
}

fn holder(holder: Holder) -> lock::Holder {
    lock::Holder {
        token: holder.token.0,
        lease_id: holder.lease.get(),
        remaining_ms: holder.remaining_ms,
        owner: holder.owner,
    }
}

fn waiter(waiter: Waiter) -> lock::Waiter {
    lock::Waiter { lease_id: waiter.lease.get(), owner: waiter.owner }
}

fn written(written: Written) -> pb::Written {
    pb::Written { version: written.version.0, mod_revision: written.revision.0 }
}

fn appended(done: Written, old: Bytes) -> pb::Appended {
    pb::Appended { written: Some(written(done)), old_value: old }
}

fn guard_refused(token: Option<Token>) -> pb::GuardRefused {
    pb::GuardRefused { token: token.map_or(0, |token| token.0) }
}

fn no_such_lease(lease: LeaseId) -> pb::NoSuchLease {
    pb::NoSuchLease { lease_id: lease.get() }
}

fn of_another_kind() -> Refused {
    invalid("id.sequence names a request of another kind, which was executed before".to_owned())
}
