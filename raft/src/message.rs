//! What members say to each other.

use crate::{Entry, GroupTime, Index, NodeId, Payload, Position, SnapshotRoot, Term};

/// A message and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The receiver.
    pub to: NodeId,
    /// The message.
    pub message: Message,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's term. Of a pre-vote request, and of the reply that grants one, the term in
    /// which the election would be.
    pub term: Term,
    /// What it says.
    pub kind: MessageKind,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// RequestVote (figure 2), or its dry run (Ongaro's thesis, section 9.6).
    VoteRequest {
        /// What the answer is for.
        ballot: Ballot,
        /// The end of the candidate's log.
        last: Position,
    },
    /// The answer to it.
    VoteReply {
        /// The answer to a dry run.
        pre_vote: bool,
        /// The vote.
        granted: bool,
    },
    /// AppendEntries (figure 2); without entries a heartbeat.
    AppendRequest {
        /// The entry just before those sent.
        previous: Position,
        /// The leader's commit index.
        commit: Index,
        /// Grows each time the leader wants to be confirmed; see [`crate::Node::read`].
        round: u64,
        /// The entries, contiguous behind `previous`.
        entries: Vec<Entry>,
    },
    /// The answer to it.
    AppendReply {
        /// The latest round that this answers.
        round: u64,
        /// What came of it.
        result: AppendResult,
    },
    /// A leader offers a snapshot in place of entries that it no longer holds. The receiver's
    /// driver fetches the chunks; an [`AppendResult::Matched`] tells the leader that it is done.
    SnapshotOffer(SnapshotRoot),
    /// The leader asks a follower that has all of its log to campaign at once (TimeoutNow of
    /// Ongaro's thesis, section 3.10).
    TimeoutNow,
    /// A follower asks its leader how far it must have applied to answer reads.
    ReadRequest {
        /// Names the question.
        context: u64,
    },
    /// The answer to it.
    ReadReply {
        /// Which question.
        context: u64,
        /// What was committed, on a leader that was confirmed after the question came. None: the
        /// leader has too many questions of this follower's already.
        index: Option<Index>,
    },
}

/// What a vote is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ballot {
    /// A dry run, which promises nothing.
    PreVote,
    /// An election, because no leader is heard.
    Vote,
    /// An election that the leader itself has asked for: that it is alive is no objection.
    Transfer,
}

/// What came of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendResult {
    /// The follower's log is durable, and equal to the leader's, up to this index.
    Matched(Index),
    /// The follower has no such entry as `previous`.
    Conflict {
        /// The index of the `previous` that was refused.
        refused: Index,
        /// The last entry at or before `refused` in the follower's log whose term does not exceed
        /// that of the refused `previous`: the logs can't be equal anywhere behind it.
        hint: Position,
    },
}

/// The largest term, and the largest index, that a member takes from another: no group gets there,
/// and arithmetic on what is below can't overflow.
pub const NUMBER_MAX: u64 = 1 << 62;
/// The latest stamp that a member takes from another; a clock counts it in microseconds.
const STAMP_MAX: GroupTime = GroupTime(NUMBER_MAX / 1_000);

impl Message {
    /// Whether a message that came from outside makes sense at all: its numbers are possible, its
    /// entries stand in order and nothing in it is of a term after the message's.
    pub fn is_well_formed(&self) -> bool {
        self.term.0 <= NUMBER_MAX && self.kind_is_well_formed()
    }

    fn kind_is_well_formed(&self) -> bool {
        let in_term = self.term >= Term(1);
        let possible = |at: Position| at.index.0 <= NUMBER_MAX && at.term <= self.term;
        match &self.kind {
            MessageKind::VoteRequest { last, .. } => in_term && possible(*last),
            MessageKind::VoteReply { .. } => true,
            MessageKind::TimeoutNow | MessageKind::ReadRequest { .. } => in_term,
            MessageKind::ReadReply { index, .. } => {
                in_term && index.is_none_or(|index| index.0 <= NUMBER_MAX)
            }
            MessageKind::AppendRequest { previous, entries, .. } => {
                in_term && possible(*previous) && self.in_order(*previous, entries)
            }
            MessageKind::AppendReply { result: AppendResult::Matched(index), .. } => {
                index.0 <= NUMBER_MAX
            }
            MessageKind::AppendReply {
                result: AppendResult::Conflict { refused, hint }, ..
            } => refused.0 <= NUMBER_MAX && hint.index <= *refused && possible(*hint),
            MessageKind::SnapshotOffer(root) => {
                let something = root.position.index >= Index(1) && root.position.term >= Term(1);
                something
                    && possible(root.position)
                    && root.stamp <= STAMP_MAX
                    && root.membership.is_well_formed()
            }
        }
    }

    /// Whether the entries follow `previous` and each other.
    fn in_order(&self, previous: Position, entries: &[Entry]) -> bool {
        let mut last = previous;
        let mut stamp = GroupTime(0);
        entries.iter().all(|entry| {
            let follows = entry.index == last.index.next()
                && (last.term.max(Term(1))..=self.term).contains(&entry.term)
                && (stamp..=STAMP_MAX).contains(&entry.stamp)
                && match &entry.payload {
                    Payload::Noop | Payload::Tick | Payload::Command(_) => true,
                    Payload::Membership(membership) => membership.is_well_formed(),
                };
            (last, stamp) = (entry.position(), entry.stamp);
            follows
        })
    }
}
