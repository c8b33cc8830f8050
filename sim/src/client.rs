//! Clients: each asks the member that it believes to lead, and waits for the answer or does not.
//!
//! A client never sends a command twice, since there are no sessions here: what was lost or is
//! unknown stays so, and the next question is another one.

use bytes::Bytes;
use raft::{Change, Index, NodeId};

/// The client whose requests come from scripts and from the end of a run, not from the dice.
pub const OPERATOR: u64 = 0;
/// The client that asks for changes of the members.
pub const CHANGER: u64 = u64::MAX;

/// How long a client waits for a reply.
pub(crate) const PATIENCE_US: u64 = 1_500_000;
/// How long a ticket waits to be applied.
pub(crate) const TICKET_US: u64 = 1_000_000;

/// What a client asks.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Write { command: Bytes },
    Read { register: u8 },
    Change { changes: Vec<Change> },
}

/// What a member answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A write was applied at this index.
    Done(Index),
    /// A write was not and will not be executed.
    Rejected,
    /// Nobody knows what became of a write.
    Unknown,
    /// A request was not taken on, or a read came to nothing.
    Refused {
        /// Who may know better.
        leader: Option<NodeId>,
    },
    /// A read, of a state that had seen this index.
    Read(Index),
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    /// The last question.
    pub(crate) number: u64,
    /// The last question that was answered.
    pub(crate) answered: u64,
    pub(crate) target: NodeId,
}

impl Client {
    pub(crate) fn new(target: NodeId) -> Self {
        Self { number: 0, answered: 0, target }
    }
}
