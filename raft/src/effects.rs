//! What the core asks of its driver, and what it says of itself.

use std::sync::Arc;

use crate::{
    BadChange, Entry, Envelope, Event, Index, Membership, NodeId, Position, ReadId, SnapshotRoot,
    Term, Write,
};

/// What the driver has to do, in any order, except that writes are made durable in the order of
/// their ids and messages to one member are sent in the order given.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be sent. They may be lost.
    pub messages: Vec<Envelope>,
    /// To be made durable, and then told to [`crate::Node::written`].
    pub write: Option<Write>,
    /// Entries to be read from the disk, and then told to [`crate::Node::fetched`].
    pub fetches: Vec<Fetch>,
    /// To be applied to the state machine, contiguous behind those given before.
    pub committed: Vec<Entry>,
    /// More of them are at hand: the driver comes again when it has taken in what else is there.
    pub again: bool,
    /// Reads that have come to an end.
    pub reads: Vec<ReadOutcome>,
    /// A snapshot to be fetched.
    pub install: Option<Install>,
    /// Who belongs to the group now, if that has changed.
    pub membership: Option<Arc<Membership>>,
    /// What happened.
    pub events: Vec<Event>,
}

/// Entries that are not in memory, to be read from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The follower that lacks them; none if this member's own state machine does.
    pub reader: Option<NodeId>,
    /// The first one; it is durable.
    pub from: Index,
    /// The last one that is wanted.
    pub to: Index,
    /// As many as fit into this are enough, but at least one.
    pub bytes_max: u64,
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// To be answered from a state that has seen `index`.
    Ready {
        /// Which read.
        id: ReadId,
        /// The index.
        index: Index,
    },
    /// There is no answer here.
    Refused {
        /// Which read.
        id: ReadId,
        /// What to do.
        why: Refused,
    },
}

/// A snapshot to be fetched from another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// Who has it.
    pub from: NodeId,
    /// Which.
    pub root: SnapshotRoot,
}

/// Why something was not taken on. It was not and will not be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Ask the leader.
    #[error("this member does not lead")]
    NotLeader,
    /// Ask again, soon: the leadership is being handed over.
    #[error("the leadership is being handed over")]
    Transferring,
    /// Ask another member: what this one holds differs from what others hold, see
    /// [`crate::Trust`].
    #[error("the state of this member is in doubt")]
    Doubted,
    /// Ask again later.
    #[error("the limit {0} is reached")]
    Overloaded(&'static str),
}

/// Why the leadership was not handed over, or the members were not changed: nothing was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// As a proposal would have been.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The leadership can't be handed to who does not vote.
    #[error("{0} is no voter of the group")]
    NoVoter(NodeId),
    /// Ask again, soon: another change of the members is under way, or the leader is so new that it
    /// does not know whether one is.
    #[error("another change of the members is under way")]
    Changing,
    /// Ask again, later: the learner lacks too much of the log to vote.
    #[error("member {0} has not caught up with the log")]
    Behind(NodeId),
    /// With this change too few of the voters would be there to go on.
    #[error("no majority of the voters after this change answers now")]
    NoQuorum,
    /// The change of the members makes no sense.
    #[error(transparent)]
    BadChange(#[from] BadChange),
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// It follows, or waits for a leader.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
}

/// How a member stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is.
    pub role: RoleKind,
    /// Its term.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// The leader it knows of.
    pub leader: Option<NodeId>,
    /// The first index that its log holds.
    pub first: Index,
    /// The end of its log.
    pub last: Position,
    /// Its log is durable up to here.
    pub durable: Index,
    /// What it knows to be committed.
    pub commit: Index,
    /// Bytes in its log.
    pub log_bytes: u64,
    /// Its last snapshot.
    pub snapshot: Option<SnapshotRoot>,
    /// Who belongs to the group, as far as it knows.
    pub membership: Arc<Membership>,
    /// Where that stands in the log, if it still does.
    pub membership_index: Index,
    /// On a leader: how its followers stand.
    pub peers: Vec<Progress>,
}

/// How a follower stands, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which.
    pub node: NodeId,
    /// Its log is durable and equal to the leader's up to here.
    pub matched: Index,
    /// It was heard from lately.
    pub active: bool,
    /// How many append messages are on their way to it.
    pub in_flight_messages: usize,
    /// How many bytes of entries they carry.
    pub in_flight_bytes: u64,
}
