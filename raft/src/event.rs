//! What the core reports of itself. The host logs and counts events, golden scripts print them and
//! invariants eat them; nothing in the core depends on them.

use std::sync::Arc;

use crate::{Index, Membership, NodeId, Position, SnapshotRoot, Term};

/// Something that happened in a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It follows, a leader or nobody yet.
    Following {
        /// In which term.
        term: Term,
        /// Whom.
        leader: Option<NodeId>,
    },
    /// It asks whether it would be elected.
    PreCampaigning {
        /// The term that it would campaign in.
        term: Term,
    },
    /// It asks for votes.
    Campaigning {
        /// In which term.
        term: Term,
    },
    /// It leads.
    Leading {
        /// In which term.
        term: Term,
        /// The end of its log when it was elected.
        last: Position,
    },
    /// It leads no more, because it heard from no quorum.
    LostQuorum {
        /// In which term.
        term: Term,
    },
    /// It leads no more, because it is no voter any more.
    Removed {
        /// In which term.
        term: Term,
    },
    /// It hands its leadership over.
    Transferring {
        /// To whom.
        to: NodeId,
    },
    /// Its disk is slow, and another will lead better.
    SlowDisk {
        /// For so many ticks it has not answered.
        ticks: u32,
    },
    /// It keeps its leadership: who was to take it over did not, in time.
    TransferFailed {
        /// Who.
        to: NodeId,
    },
    /// It gave its vote.
    Voted {
        /// In which term.
        term: Term,
        /// To whom.
        candidate: NodeId,
    },
    /// Another membership rules: its entry was appended, or the one behind it was removed.
    Reconfigured {
        /// Where it stands.
        index: Index,
        /// Which.
        membership: Arc<Membership>,
    },
    /// It removed entries that conflicted with the leader's.
    Truncated {
        /// From this index on.
        from: Index,
    },
    /// It learned that more is committed.
    Committed {
        /// Up to here.
        index: Index,
    },
    /// It was offered a snapshot and asks its driver to fetch it.
    Installing {
        /// By whom.
        from: NodeId,
        /// Which.
        root: SnapshotRoot,
    },
    /// A snapshot took the place of its log.
    Installed {
        /// Which.
        root: SnapshotRoot,
        /// Whether entries behind it were kept.
        suffix_kept: bool,
    },
    /// Its own snapshot allowed it to remove the beginning of its log.
    Compacted {
        /// The snapshot.
        root: SnapshotRoot,
        /// The first index that it still holds.
        first: Index,
    },
    /// It dropped a message.
    Dropped {
        /// From whom.
        from: NodeId,
        /// Why.
        reason: DropReason,
    },
}

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The sender bears this member's own name.
    Stranger,
    /// It contradicts itself.
    Malformed,
    /// It asks for a vote while a leader is alive, or may be (thesis, section 4.2.3).
    LeaderAlive,
    /// It is of an earlier term.
    Stale,
    /// It claims to lead in a term in which another leads, or contradicts what is committed: the
    /// sender, or this member, is not what it seems.
    Contradiction,
}
