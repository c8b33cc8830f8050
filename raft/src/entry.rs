//! What the log is made of, and what a member's disk is asked to hold.

use std::sync::Arc;

use bytes::Bytes;

use crate::{GroupTime, Index, Log, Membership, NodeId, Position, Term, WriteId};

/// One entry of the log.
///
/// An entry is never changed or encoded anew on its way: what a leader appended is, byte for byte,
/// what every member stores and applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub index: Index,
    /// The term of the leader that appended it.
    pub term: Term,
    /// The group's time when it was appended; never below that of the entry before.
    pub stamp: GroupTime,
    /// What it carries.
    pub payload: Payload,
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: the first entry of a leader's term, by which earlier terms get committed
    /// (section 5.4.2).
    Noop,
    /// Nothing but its stamp: tells the group the time.
    Tick,
    /// A command of the state machine.
    Command(Bytes),
    /// Who belongs to the group from here on (section 6).
    Membership(Arc<Membership>),
}

impl Entry {
    /// Where it stands.
    pub fn position(&self) -> Position {
        Position { term: self.term, index: self.index }
    }

    /// What it counts for in every byte budget: its payload and a fixed share for the rest.
    #[inline]
    pub fn size(&self) -> u64 {
        let payload = match &self.payload {
            Payload::Noop | Payload::Tick => 0,
            Payload::Command(command) => command.len() as u64,
            Payload::Membership(membership) => membership.size(),
        };
        payload + ENTRY_OVERHEAD_BYTES
    }
}

/// What an entry costs beside its payload, in memory and on the disk.
pub const ENTRY_OVERHEAD_BYTES: u64 = 32;

/// The part of a member's memory that Raft requires to be durable beside the log (figure 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term that the member has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
}

/// The root of a content-addressed snapshot: what the log up to `position` amounts to.
///
/// The chunks and the manifest that lists their digests live in the driver's store; the core only
/// moves this root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRoot {
    /// The last entry that it covers.
    pub position: Position,
    /// The stamp of that entry.
    pub stamp: GroupTime,
    /// The digest of the encoded manifest.
    pub manifest: Digest,
    /// How many chunks the manifest lists.
    pub chunks: u64,
    /// How many bytes they hold together.
    pub bytes: u64,
    /// Who belonged to the group at that entry.
    pub membership: Arc<Membership>,
}

/// A BLAKE3 digest. The core never computes one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// Something for the disk. Writes are made durable in the order in which they were handed out, and
/// the driver answers with `written(id)`, which stands for all writes up to that one. Several may
/// be merged into one batch.
///
/// Within one write the parts apply in this order: snapshot, entries, hard state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its name.
    pub id: WriteId,
    /// A new term or vote.
    pub hard_state: Option<HardState>,
    /// New entries, contiguous. The log is first cut so that it ends just before the first of
    /// them: an append is also the truncation of what conflicts with it.
    pub entries: Vec<Entry>,
    /// A snapshot whose chunks are durable already.
    pub snapshot: Option<SnapshotWrite>,
}

/// A snapshot that takes the place of the beginning of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotWrite {
    /// The snapshot.
    pub root: SnapshotRoot,
    /// The first index that the log keeps: everything before it may be removed. At most the
    /// snapshot's index + 1.
    pub first: Index,
    /// True when the whole log is replaced: no entry of it survives (figure 13, step 7).
    pub reset: bool,
}

/// What a member finds on its disk when it starts.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Its term and vote.
    pub hard_state: HardState,
    /// The last installed or taken snapshot.
    pub snapshot: Option<SnapshotRoot>,
    /// The log. When there is a snapshot it goes on behind that, or begins before it when entries
    /// before the snapshot were kept; without one it begins at index 1.
    pub log: Log,
    /// Where the members changed, as far as the log has it: each index of such an entry, ascending.
    pub memberships: Vec<(Index, Arc<Membership>)>,
}

impl Recovered {
    /// Adds the next entry of the log, of which memory holds the last `window_bytes`.
    pub fn push(&mut self, entry: Entry, window_bytes: u64) {
        if let Payload::Membership(membership) = &entry.payload {
            self.memberships.push((entry.index, membership.clone()));
        }
        self.log.push(entry);
        self.log.forget(self.log.last().index, window_bytes);
    }
}
