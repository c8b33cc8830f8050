//! Moves of shards, as they travel between groups.

use proto::kv::{
    FreezeReply, HandoffPiece, HandoffPosition, PullRequest, ShardPhase, ShardStanding,
};

use crate::{
    custody::{MoveNumber, Phase},
    handoff::{Cursor, Part, Piece, Position, Wanted},
    outcome::{Revision, ShardTime, Standing},
    step::Frozen,
};

/// Where a destination wants its source to go on; none: the position can't be.
pub(crate) fn wanted(request: &PullRequest) -> Option<Wanted> {
    let number = MoveNumber(request.handoff.as_ref()?.number);
    let name = request.cursor_name.to_vec();
    let cursor = Cursor { name, number: request.cursor_number };
    Some(Wanted { number, position: position(request.position.as_ref()?)?, cursor })
}

/// A position; none: it can't be.
pub(crate) fn position(told: &HandoffPosition) -> Option<Position> {
    let HandoffPosition { base, part, records } = *told;
    Some(Position { base: Revision(base), part: Part::of(part.into())?, records })
}

/// What is asked of a source.
pub(crate) fn pull_request(shards: u32, shard: u32, wanted: &Wanted) -> PullRequest {
    let Wanted { number, position, cursor } = wanted;
    PullRequest {
        handoff: Some(proto::kv::HandoffRequest { shards, shard, number: number.0 }),
        position: Some(told_position(*position)),
        cursor_name: cursor.name.clone().into(),
        cursor_number: cursor.number,
    }
}

/// Some records.
pub(crate) fn piece(piece: Piece) -> HandoffPiece {
    HandoffPiece { at: Some(told_position(piece.at)), records: piece.records }
}

/// What a source says of what it has frozen.
pub(crate) fn frozen_reply(frozen: &Frozen) -> FreezeReply {
    let Frozen { revision, time, digest } = *frozen;
    let digest = digest.to_le_bytes().to_vec().into();
    FreezeReply { revision: revision.0, time_ms: time.0, digest }
}

/// The same, read back; none: it makes no sense.
pub(crate) fn frozen(reply: &FreezeReply) -> Option<Frozen> {
    let digest = u128::from_le_bytes(reply.digest[..].try_into().ok()?);
    Some(Frozen { revision: Revision(reply.revision), time: ShardTime(reply.time_ms), digest })
}

/// How a shard stands, of which so many requests were answered.
pub(crate) fn standing(standing: &Standing, requests: u64) -> ShardStanding {
    let Standing { custody, keys, bytes, revision, held: _ } = *standing;
    let (phase, number) = match custody.phase {
        Phase::Absent => (ShardPhase::Absent, None),
        Phase::Serving { leaving: None } => (ShardPhase::Serving, None),
        Phase::Serving { leaving } => (ShardPhase::Leaving, leaving),
        Phase::Frozen { number, .. } => (ShardPhase::Frozen, Some(number)),
        Phase::Incoming { number, .. } => (ShardPhase::Incoming, Some(number)),
        Phase::Discarding => (ShardPhase::Discarding, None),
    };
    ShardStanding {
        phase: phase.into(),
        settled: custody.settled.0,
        number: number.map_or(0, |number| number.0),
        keys,
        bytes,
        revision: revision.0,
        requests,
    }
}

fn told_position(position: Position) -> HandoffPosition {
    let Position { base, part, records } = position;
    HandoffPosition { base: base.0, part: part as u32, records }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_comes_back() {
        let position = Position { base: Revision(7), part: Part::Locks, records: 9 };
        let cursor = Cursor { name: b"lock".to_vec(), number: 3 };
        let asked = Wanted { number: MoveNumber(5), position, cursor };
        let mut request = pull_request(256, 17, &asked);
        assert_eq!(wanted(&request), Some(asked));
        request.position = Some(HandoffPosition { part: 5, ..HandoffPosition::default() });
        assert_eq!(wanted(&request), None);
    }

    #[test]
    fn what_is_frozen_comes_back() {
        let told = Frozen { revision: Revision(1), time: ShardTime(2), digest: u128::MAX - 3 };
        let reply = frozen_reply(&told);
        assert_eq!(frozen(&reply), Some(told));
        assert_eq!(frozen(&FreezeReply { digest: vec![0; 15].into(), ..reply }), None);
    }
}
