//! The bytes of a kept outcome, and of a pair's numbers, in snapshots and digests.
//!
//! Decides how an outcome falls into two parts: its numbers, which a snapshot's record holds, and
//! its body, which may be long and is cut into parts as values are. Reading is total. Outcomes of
//! what can't be made exactly-once are never kept and have no bytes.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use raftd::codec::{Malformed, Reader, put_bytes, put_number};

use crate::{
    command::{LeaseId, Token},
    limits::TXN_OPERATIONS_MAX,
    outcome::{
        ActionReply, Body, Executed, Holder, Outcome, Pair, Refusal, Revision, Version, Written,
    },
};

/// The kinds of kept outcomes.
mod kind {
    pub(super) const WRITTEN: u8 = 1;
    pub(super) const MISMATCH_ABSENT: u8 = 2;
    pub(super) const MISMATCH: u8 = 3;
    pub(super) const APPENDED: u8 = 4;
    pub(super) const TOO_LARGE: u8 = 5;
    pub(super) const REMOVED: u8 = 6;
    pub(super) const ABSENT: u8 = 7;
    pub(super) const GUARD_REFUSED: u8 = 8;
    pub(super) const NO_SUCH_LEASE: u8 = 9;
    pub(super) const TXN: u8 = 10;
    pub(super) const GRANTED: u8 = 11;
    pub(super) const HELD: u8 = 12;
    pub(super) const QUEUED: u8 = 13;
    pub(super) const BUSY: u8 = 14;
    pub(super) const NO_ROOM: u8 = 15;
}

/// The kinds of a Txn's replies.
mod reply {
    pub(super) const GOT_NOTHING: u8 = 1;
    pub(super) const GOT: u8 = 2;
    pub(super) const WRITTEN: u8 = 3;
    pub(super) const APPENDED: u8 = 4;
    pub(super) const REMOVED_NOTHING: u8 = 5;
    pub(super) const REMOVED: u8 = 6;
}

/// Writes what an outcome says beside its body.
pub(crate) fn put_outcome(out: &mut Vec<u8>, outcome: &Outcome) {
    let mut numbers = |kind: u8, numbers: &[u64]| {
        out.push(kind);
        numbers.iter().for_each(|number| put_number(out, *number));
    };
    match outcome {
        Outcome::Written(written) => {
            numbers(kind::WRITTEN, &[written.version.0, written.revision.0]);
        }
        Outcome::Mismatch(None) => numbers(kind::MISMATCH_ABSENT, &[]),
        Outcome::Mismatch(Some(pair)) => {
            numbers(kind::MISMATCH, &[]);
            put_pair_numbers(out, pair);
        }
        Outcome::Appended { written, .. } => {
            numbers(kind::APPENDED, &[written.version.0, written.revision.0]);
        }
        Outcome::TooLarge { bytes, limit } => numbers(kind::TOO_LARGE, &[*bytes, *limit]),
        Outcome::Removed { written, pair } => {
            numbers(kind::REMOVED, &[written.version.0, written.revision.0]);
            put_pair_numbers(out, pair);
        }
        Outcome::Absent => numbers(kind::ABSENT, &[]),
        Outcome::GuardRefused(token) => {
            numbers(kind::GUARD_REFUSED, &[token.map_or(0, |token| token.0)]);
        }
        Outcome::NoSuchLease(lease) => numbers(kind::NO_SUCH_LEASE, &[lease.get()]),
        Outcome::Txn(Executed { succeeded, revision, .. }) => {
            let revision = revision.map_or(0, |revision| revision.0);
            numbers(kind::TXN, &[u64::from(*succeeded), revision]);
        }
        Outcome::Granted { lease, ttl_ms } => numbers(kind::GRANTED, &[lease.get(), *ttl_ms]),
        Outcome::Held { lease, ttl_ms, token } => {
            numbers(kind::HELD, &[lease.get(), *ttl_ms, token.0]);
        }
        Outcome::Queued { lease } => numbers(kind::QUEUED, &[lease.get()]),
        Outcome::Busy(holder) => {
            let Holder { token, lease, remaining_ms, owner: _ } = holder;
            numbers(kind::BUSY, &[token.0, lease.get(), *remaining_ms]);
        }
        Outcome::NoRoom(refusal) => {
            let kept = refusal.numbers().expect("only what has numbers is kept");
            numbers(kind::NO_ROOM, &kept);
        }
        Outcome::Compacted(_)
        | Outcome::KeptAlive(_)
        | Outcome::Ended { .. }
        | Outcome::LivesOn
        | Outcome::Stepped(_)
        | Outcome::Released(_) => unreachable!("{outcome:?} is of a command without an id"),
    }
}

/// Reads an outcome whose body is still empty.
pub(crate) fn read_outcome(reader: &mut Reader<'_>) -> Result<Outcome, Malformed> {
    Ok(match reader.byte("outcome kind")? {
        kind::WRITTEN => Outcome::Written(read_written(reader)?),
        kind::MISMATCH_ABSENT => Outcome::Mismatch(None),
        kind::MISMATCH => Outcome::Mismatch(Some(read_pair_numbers(reader)?)),
        kind::APPENDED => Outcome::Appended { written: read_written(reader)?, old: Bytes::new() },
        kind::TOO_LARGE => {
            Outcome::TooLarge { bytes: reader.number("size")?, limit: reader.number("limit")? }
        }
        kind::REMOVED => {
            Outcome::Removed { written: read_written(reader)?, pair: read_pair_numbers(reader)? }
        }
        kind::ABSENT => Outcome::Absent,
        kind::GUARD_REFUSED => Outcome::GuardRefused(match reader.number("token")? {
            0 => None,
            token => Some(Token(token)),
        }),
        kind::NO_SUCH_LEASE => Outcome::NoSuchLease(read_lease(reader)?),
        kind::TXN => {
            let succeeded = match reader.number("compares")? {
                0 => false,
                1 => true,
                _ => return Err(Malformed("compares")),
            };
            let revision = Some(Revision(reader.number("revision")?)).filter(|it| it.0 > 0);
            Outcome::Txn(Executed { succeeded, replies: Arc::new([]), revision })
        }
        kind::GRANTED => {
            let lease = read_lease(reader)?;
            Outcome::Granted { lease, ttl_ms: reader.number("time to live")? }
        }
        kind::HELD => {
            let lease = read_lease(reader)?;
            let ttl_ms = reader.number("time to live")?;
            Outcome::Held { lease, ttl_ms, token: Token(reader.number("token")?) }
        }
        kind::QUEUED => Outcome::Queued { lease: read_lease(reader)? },
        kind::BUSY => {
            let token = Token(reader.number("token")?);
            let lease = read_lease(reader)?;
            let remaining_ms = reader.number("remaining time")?;
            Outcome::Busy(Holder { token, lease, remaining_ms, owner: Bytes::new() })
        }
        kind::NO_ROOM => {
            let number = reader.number("limit's number")?;
            let (bytes, limit) = (reader.number("size")?, reader.number("limit")?);
            let refusal = Refusal::of_numbers([number, bytes, limit]);
            Outcome::NoRoom(refusal.ok_or(Malformed("limit's number"))?)
        }
        _ => return Err(Malformed("outcome kind")),
    })
}

/// The bytes of an outcome's body, if it is of a kind that has one.
pub(crate) fn body(outcome: &Outcome) -> Option<Cow<'_, [u8]>> {
    Some(match outcome.body()? {
        Body::Value(value) => Cow::Borrowed(&value[..]),
        Body::Replies(replies) => {
            let mut out = Vec::new();
            replies.iter().for_each(|reply| put_reply(&mut out, reply));
            Cow::Owned(out)
        }
    })
}

/// How long a body may be in bytes.
pub(crate) const BODY_BYTES_MAX: usize = crate::limits::TXN_REPLY_BYTES_MAX as usize;

/// Gives an outcome the body with these bytes.
pub(crate) fn set_body(outcome: &mut Outcome, bytes: Bytes) -> Result<(), Malformed> {
    let Outcome::Txn(executed) = outcome else {
        outcome.set_value(bytes);
        return Ok(());
    };
    let mut reader = Reader::new(&bytes);
    let mut replies = Vec::new();
    while !reader.is_empty() {
        if replies.len() == TXN_OPERATIONS_MAX {
            return Err(Malformed("replies of a transaction"));
        }
        replies.push(read_reply(&mut reader)?);
    }
    executed.replies = replies.into();
    Ok(())
}

fn put_reply(out: &mut Vec<u8>, reply: &ActionReply) {
    let mut with_pair = |kind: u8, pair: &Pair| {
        out.push(kind);
        put_pair_numbers(out, pair);
        put_bytes(out, &pair.value);
    };
    match reply {
        ActionReply::Got(None) => out.push(reply::GOT_NOTHING),
        ActionReply::Got(Some(pair)) => with_pair(reply::GOT, pair),
        ActionReply::Written(written) => {
            out.push(reply::WRITTEN);
            put_written(out, written);
        }
        ActionReply::Appended { written, old } => {
            out.push(reply::APPENDED);
            put_written(out, written);
            put_bytes(out, old);
        }
        ActionReply::Removed(None) => out.push(reply::REMOVED_NOTHING),
        ActionReply::Removed(Some(pair)) => with_pair(reply::REMOVED, pair),
    }
}

fn read_reply(reader: &mut Reader<'_>) -> Result<ActionReply, Malformed> {
    Ok(match reader.byte("reply kind")? {
        reply::GOT_NOTHING => ActionReply::Got(None),
        reply::GOT => ActionReply::Got(Some(read_pair(reader)?)),
        reply::WRITTEN => ActionReply::Written(read_written(reader)?),
        reply::APPENDED => {
            let written = read_written(reader)?;
            ActionReply::Appended { written, old: Bytes::copy_from_slice(reader.bytes("value")?) }
        }
        reply::REMOVED_NOTHING => ActionReply::Removed(None),
        reply::REMOVED => ActionReply::Removed(Some(read_pair(reader)?)),
        _ => return Err(Malformed("reply kind")),
    })
}

fn read_pair(reader: &mut Reader<'_>) -> Result<Pair, Malformed> {
    let numbers = read_pair_numbers(reader)?;
    Ok(Pair { value: Bytes::copy_from_slice(reader.bytes("value")?), ..numbers })
}

/// Writes what a pair says beside its value.
pub(crate) fn put_pair_numbers(out: &mut Vec<u8>, pair: &Pair) {
    put_number(out, pair.version.0);
    put_number(out, pair.create_revision.0);
    put_number(out, pair.mod_revision.0);
    put_number(out, pair.lease.map_or(0, LeaseId::get));
}

/// Reads a pair whose value is still empty.
pub(crate) fn read_pair_numbers(reader: &mut Reader<'_>) -> Result<Pair, Malformed> {
    Ok(Pair {
        value: Bytes::new(),
        version: Version(reader.number("version")?),
        create_revision: Revision(reader.number("create revision")?),
        mod_revision: Revision(reader.number("mod revision")?),
        lease: LeaseId::new(reader.number("lease")?),
    })
}

fn put_written(out: &mut Vec<u8>, written: &Written) {
    put_number(out, written.version.0);
    put_number(out, written.revision.0);
}

fn read_written(reader: &mut Reader<'_>) -> Result<Written, Malformed> {
    let version = Version(reader.number("version")?);
    Ok(Written { version, revision: Revision(reader.number("revision")?) })
}

/// Reads a lease that is there.
pub(crate) fn read_lease(reader: &mut Reader<'_>) -> Result<LeaseId, Malformed> {
    LeaseId::new(reader.number("lease")?).ok_or(Malformed("lease"))
}
