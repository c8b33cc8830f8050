//! What a replicated service is made of: a deterministic state machine.

use bytes::Bytes;

use crate::{GroupTime, Index, Term};

/// How far what counts up is moved on by a recovery: more than anything is counted up in the time
/// that a group lives.
pub const RECOVERY_GAP: u64 = 1 << 32;

/// A deterministic state machine: its state is a function of the commands applied to it.
///
/// The host owns one and nothing else touches it. Every member applies the same commands in the
/// same order with the same stamps, so everything that `apply` reads must come from its arguments
/// and the state: no clock, no randomness, no order of a hash table.
pub trait StateMachine: Send + 'static {
    /// A read-only question.
    type Query: Send + 'static;
    /// The answer to it.
    type Answer: Send + 'static;
    /// What `apply` answers to whoever proposed the command.
    type Response: Send + 'static;
    /// A frozen view of the state, made in time proportional to the number of shards, sharing
    /// memory with the live state.
    type Capture: Capture;

    /// Whether this build can execute the command. One that it can't is of another version, which
    /// another build proposed: to go on would be to end with another state than the others, so the
    /// process ends before it applies one.
    fn understands(&self, command: &Bytes) -> bool;

    /// Executes a command. Total: a command that makes no sense gets a response that says so.
    /// What it keeps of the command it copies, since the bytes may pin a receive buffer.
    fn apply(&mut self, at: Applied, command: &Bytes) -> Self::Response;

    /// Tells the machine about an entry without a command: time has passed.
    fn pass(&mut self, at: Applied);

    /// The group has lost entries that were acknowledged: it was recovered from the loss of its
    /// majority. What was given out meanwhile and must never be given out again (versions, tokens,
    /// names that count up) begins [`RECOVERY_GAP`] further on. Follows [`StateMachine::pass`].
    fn recover(&mut self);

    /// Answers a question from the state as it is.
    fn query(&self, query: Self::Query) -> Self::Answer;

    /// Freezes the state.
    fn capture(&self) -> Self::Capture;

    /// A machine with the settings of this one that has seen nothing yet: a snapshot is put into it
    /// away from this one's thread, while this one serves on.
    fn empty(&self) -> Self;

    /// Replaces the state by the one that a capture's chunks encode, given in order.
    ///
    /// # Errors
    /// [`BadSnapshot`] when the chunks do not decode; the state is then unchanged.
    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot>;

    /// A digest of the state, equal on all members at equal applied index.
    fn digest(&self) -> u128;
}

/// A frozen state, to be encoded away from the machine's thread.
pub trait Capture: Send + 'static {
    /// The canonical encoding: equal states give equal chunks, each at most
    /// [`CHUNK_BYTES_MAX`] long, and a small change to the state changes few of them.
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send;
}

/// The largest chunk of a snapshot: what the store keeps in one record.
pub const CHUNK_BYTES_MAX: usize = 32 * 1024;

/// Which entry is being applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Its index.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// Its stamp.
    pub time: GroupTime,
}

/// A snapshot that does not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot does not decode: {0}")]
pub struct BadSnapshot(pub String);
