//! Between the core's messages and those on the wire. Wire types of the peer port stop here and in
//! `peer/`.

use bytes::{Bytes, BytesMut};
use proto::raft as pb;
use raft::{
    AppendResult, AuditMessage, Ballot, Digest, Entry, GroupTime, Index, Message, MessageKind,
    Payload, Position, Report, SnapshotRoot, Term,
};

use crate::membership;

/// A message that does not make sense.
#[derive(Debug, thiserror::Error)]
#[error("a malformed message: {0}")]
pub(crate) struct Malformed(&'static str);

pub(crate) fn to_wire(message: Message) -> pb::Message {
    use pb::message::Kind;
    let kind = match message.kind {
        MessageKind::VoteRequest { ballot, last } => Kind::VoteRequest(pb::VoteRequest {
            pre_vote: ballot == Ballot::PreVote,
            transfer: ballot == Ballot::Transfer,
            last_index: last.index.0,
            last_term: last.term.0,
        }),
        MessageKind::TimeoutNow => Kind::TimeoutNow(pb::TimeoutNow {}),
        MessageKind::ReadRequest { context } => Kind::ReadRequest(pb::ReadRequest { context }),
        MessageKind::ReadReply { context, index } => {
            Kind::ReadReply(pb::ReadReply { context, index: index.map(|index| index.0) })
        }
        MessageKind::VoteReply { pre_vote, granted } => {
            Kind::VoteReply(pb::VoteReply { pre_vote, granted })
        }
        MessageKind::AppendRequest { previous, commit, round, entries } => {
            Kind::AppendRequest(pb::AppendRequest {
                previous_index: previous.index.0,
                previous_term: previous.term.0,
                commit: commit.0,
                round,
                entries: entries.into_iter().map(entry_to_wire).collect(),
            })
        }
        MessageKind::AppendReply { round, result } => Kind::AppendReply(pb::AppendReply {
            round,
            result: Some(match result {
                AppendResult::Matched(index) => pb::append_reply::Result::Matched(index.0),
                AppendResult::Conflict { refused, hint } => {
                    pb::append_reply::Result::Conflict(pb::Conflict {
                        refused: refused.0,
                        hint_index: hint.index.0,
                        hint_term: hint.term.0,
                    })
                }
            }),
        }),
        MessageKind::SnapshotOffer(root) => Kind::SnapshotOffer(offer_to_wire(&root)),
    };
    pb::Message { term: message.term.0, kind: Some(kind) }
}

pub(crate) fn from_wire(message: pb::Message) -> Result<Message, Malformed> {
    use pb::message::Kind;
    let kind = match message.kind.ok_or(Malformed("it says nothing"))? {
        Kind::VoteRequest(request) => MessageKind::VoteRequest {
            ballot: match (request.pre_vote, request.transfer) {
                (true, false) => Ballot::PreVote,
                (false, false) => Ballot::Vote,
                (false, true) => Ballot::Transfer,
                (true, true) => return Err(Malformed("a dry run is no transfer")),
            },
            last: position(request.last_index, request.last_term),
        },
        Kind::TimeoutNow(pb::TimeoutNow {}) => MessageKind::TimeoutNow,
        Kind::ReadRequest(request) => MessageKind::ReadRequest { context: request.context },
        Kind::ReadReply(reply) => {
            MessageKind::ReadReply { context: reply.context, index: reply.index.map(Index) }
        }
        Kind::VoteReply(reply) => {
            MessageKind::VoteReply { pre_vote: reply.pre_vote, granted: reply.granted }
        }
        Kind::AppendRequest(request) => MessageKind::AppendRequest {
            previous: position(request.previous_index, request.previous_term),
            commit: Index(request.commit),
            round: request.round,
            entries: entries_from_wire(Index(request.previous_index), request.entries)?,
        },
        Kind::AppendReply(reply) => MessageKind::AppendReply {
            round: reply.round,
            result: match reply.result.ok_or(Malformed("an append reply without a result"))? {
                pb::append_reply::Result::Matched(index) => AppendResult::Matched(Index(index)),
                pb::append_reply::Result::Conflict(conflict) => AppendResult::Conflict {
                    refused: Index(conflict.refused),
                    hint: position(conflict.hint_index, conflict.hint_term),
                },
            },
        },
        Kind::SnapshotOffer(offer) => MessageKind::SnapshotOffer(offer_from_wire(offer)?),
    };
    Ok(Message { term: Term(message.term), kind })
}

pub(crate) fn audit_to_wire(audit: AuditMessage) -> pb::Audit {
    use pb::audit::Kind;
    let kind = match audit {
        AuditMessage::Report(Report { index, digest, replayed, is_answer }) => {
            let digest = Bytes::copy_from_slice(&digest.to_be_bytes());
            Kind::Report(pb::StateReport { index: index.0, digest, replayed, is_answer })
        }
        AuditMessage::CheckWanted => Kind::CheckWanted(pb::CheckWanted {}),
        AuditMessage::SnapshotWanted { from } => {
            Kind::SnapshotWanted(pb::SnapshotWanted { from: from.0 })
        }
        AuditMessage::SnapshotOffer(root) => Kind::SnapshotOffer(offer_to_wire(&root)),
    };
    pb::Audit { kind: Some(kind) }
}

/// None: it is of a kind that only newer builds know.
pub(crate) fn audit_from_wire(audit: pb::Audit) -> Result<Option<AuditMessage>, Malformed> {
    use pb::audit::Kind;
    Ok(match audit.kind {
        None => None,
        Some(Kind::Report(pb::StateReport { index, digest, replayed, is_answer })) => {
            let digest = digest.as_ref().try_into().map(u128::from_be_bytes);
            let digest = digest.map_err(|_| Malformed("a state's digest is not 16 bytes"))?;
            Some(AuditMessage::Report(Report { index: Index(index), digest, replayed, is_answer }))
        }
        Some(Kind::CheckWanted(pb::CheckWanted {})) => Some(AuditMessage::CheckWanted),
        Some(Kind::SnapshotWanted(pb::SnapshotWanted { from })) => {
            Some(AuditMessage::SnapshotWanted { from: Index(from) })
        }
        Some(Kind::SnapshotOffer(offer)) => {
            Some(AuditMessage::SnapshotOffer(offer_from_wire(offer)?))
        }
    })
}

fn offer_to_wire(root: &SnapshotRoot) -> pb::SnapshotOffer {
    pb::SnapshotOffer {
        index: root.position.index.0,
        term: root.position.term.0,
        stamp_ms: root.stamp.0,
        manifest: Bytes::copy_from_slice(&root.manifest.0),
        chunks: root.chunks,
        bytes: root.bytes,
        membership: Some(membership::to_wire(&root.membership)),
    }
}

fn offer_from_wire(offer: pb::SnapshotOffer) -> Result<SnapshotRoot, Malformed> {
    Ok(SnapshotRoot {
        position: position(offer.index, offer.term),
        stamp: GroupTime(offer.stamp_ms),
        manifest: digest(&offer.manifest).ok_or(Malformed("a digest is not 32 bytes"))?,
        chunks: offer.chunks,
        bytes: offer.bytes,
        membership: offer
            .membership
            .and_then(|it| membership::from_wire(&it))
            .ok_or(Malformed("an offer without a membership"))?,
    })
}

/// The digest in `bytes`, if they are as many as a digest has.
pub(crate) fn digest(bytes: &[u8]) -> Option<Digest> {
    bytes.try_into().ok().map(Digest)
}

fn position(index: u64, term: u64) -> Position {
    Position { term: Term(term), index: Index(index) }
}

fn entry_to_wire(entry: Entry) -> pb::Entry {
    let (kind, payload) = match entry.payload {
        Payload::Noop => (pb::EntryKind::Noop, Bytes::new()),
        Payload::Tick => (pb::EntryKind::Tick, Bytes::new()),
        Payload::Command(command) => (pb::EntryKind::Command, command),
        Payload::Membership(it) => (pb::EntryKind::Membership, membership::encode(&it)),
    };
    pb::Entry { term: entry.term.0, stamp_ms: entry.stamp.0, kind: kind.into(), payload }
}

/// The entries behind `previous`. Their payloads share one allocation of their own: a slice of the
/// receive buffer would keep that buffer alive for as long as the log holds the entry.
fn entries_from_wire(previous: Index, entries: Vec<pb::Entry>) -> Result<Vec<Entry>, Malformed> {
    if previous.0 > raft::NUMBER_MAX {
        return Err(Malformed("an index is impossibly large"));
    }
    let mut payloads =
        BytesMut::with_capacity(entries.iter().map(|entry| entry.payload.len()).sum());
    let mut index = previous;
    entries
        .into_iter()
        .map(|entry| {
            index = index.next();
            let payload = match entry.kind() {
                pb::EntryKind::Unspecified => return Err(Malformed("an entry of no known kind")),
                pb::EntryKind::Noop => Payload::Noop,
                pb::EntryKind::Tick => Payload::Tick,
                pb::EntryKind::Membership => membership::decode(&entry.payload)
                    .map(Payload::Membership)
                    .ok_or(Malformed("a membership that does not decode"))?,
                pb::EntryKind::Command => {
                    payloads.extend_from_slice(&entry.payload);
                    Payload::Command(payloads.split().freeze())
                }
            };
            Ok(Entry { index, term: Term(entry.term), stamp: GroupTime(entry.stamp_ms), payload })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft::{Membership, NodeId};

    use super::*;

    #[test]
    fn every_message_survives_the_wire() {
        let at = position(7, 3);
        let contacts = [1, 2].map(|id| (NodeId(id), Bytes::from_static(b"contact")));
        let members = Arc::new(Membership::founders(contacts));
        let root = SnapshotRoot {
            position: at,
            stamp: GroupTime(5),
            manifest: Digest([9; 32]),
            chunks: 2,
            bytes: 77,
            membership: members.clone(),
        };
        let entry = |index, payload| Entry {
            index: Index(index),
            term: Term(3),
            stamp: GroupTime(1),
            payload,
        };
        let entries = vec![
            entry(8, Payload::Noop),
            entry(9, Payload::Command(Bytes::from_static(b"command"))),
            entry(10, Payload::Command(Bytes::new())),
            entry(11, Payload::Tick),
            entry(12, Payload::Membership(members)),
        ];
        for kind in [
            MessageKind::VoteRequest { ballot: Ballot::PreVote, last: at },
            MessageKind::VoteRequest { ballot: Ballot::Vote, last: at },
            MessageKind::VoteRequest { ballot: Ballot::Transfer, last: at },
            MessageKind::TimeoutNow,
            MessageKind::ReadRequest { context: u64::MAX },
            MessageKind::ReadReply { context: 7, index: Some(Index(9)) },
            MessageKind::ReadReply { context: 0, index: None },
            MessageKind::VoteReply { pre_vote: false, granted: true },
            MessageKind::AppendRequest { previous: at, commit: Index(6), round: 4, entries },
            MessageKind::AppendReply { round: 4, result: AppendResult::Matched(Index(9)) },
            MessageKind::AppendReply {
                round: 4,
                result: AppendResult::Conflict { refused: Index(9), hint: at },
            },
            MessageKind::SnapshotOffer(root.clone()),
        ] {
            let message = Message { term: Term(3), kind };
            assert_eq!(from_wire(to_wire(message.clone())).unwrap(), message);
        }
        let report = Report { index: Index(7), digest: 1 << 99, replayed: true, is_answer: false };
        for audit in [
            AuditMessage::Report(report),
            AuditMessage::Report(Report { replayed: false, is_answer: true, ..report }),
            AuditMessage::CheckWanted,
            AuditMessage::SnapshotWanted { from: Index(9) },
            AuditMessage::SnapshotOffer(root),
        ] {
            assert_eq!(audit_from_wire(audit_to_wire(audit.clone())).unwrap(), Some(audit));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(from_wire(pb::Message { term: 1, kind: None }).is_err());
        let reply = pb::AppendReply { round: 0, result: None };
        let kind = Some(pb::message::Kind::AppendReply(reply));
        assert!(from_wire(pb::Message { term: 1, kind }).is_err());
        assert!(audit_from_wire(pb::Audit { kind: None }).unwrap().is_none());
        let report = pb::audit::Kind::Report(pb::StateReport::default());
        assert!(audit_from_wire(pb::Audit { kind: Some(report) }).is_err());
        let unknown = pb::Entry { kind: 99, ..pb::Entry::default() };
        assert!(entries_from_wire(Index(0), vec![unknown]).is_err());
    }
}
