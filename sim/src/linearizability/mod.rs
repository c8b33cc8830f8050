//! Whether what clients saw of an object can have happened one operation after the other, each at
//! some moment between its question and its answer: linearizability (Herlihy and Wing, 1990).
//!
//! The search is just-in-time linearization (Lowe, 2017), a descendant of Wing's and Gong's: events
//! are taken in by their times, and when an answer arrives, its operation and as few others as it
//! takes are put in order before it, in every possible way. What has ended is kept as nothing but
//! the states in which the object may be, so that a history may be as long as it likes. Each object
//! is judged on its own: a history is linearizable if that of each object is.
//!
//! An operation of which nobody knows whether it happened, or will, is considered once another has
//! seen something of it. A search that takes too long is told as [`Finding::Undecided`], which is
//! no pass.

mod checker;
mod search;

use std::fmt;

pub use checker::{Checker, Finding};

/// What an object is, to whoever uses it.
pub trait Model {
    /// What it may be in.
    type State: Clone + Ord + fmt::Display;
    /// A question together with its answer, if there is one.
    type Operation: Clone + fmt::Display;
    /// What operations leave for others to see. The fewer leave the same, the shorter the search.
    type Mark: Clone + Ord;

    /// The state behind an operation; none if the operation can't have happened there, or not with
    /// this answer.
    fn step(state: &Self::State, operation: &Self::Operation) -> Option<Self::State>;

    /// Whether an operation can't happen any more, whatever happens before. Saying no too often
    /// costs time only.
    fn is_too_late(state: &Self::State, operation: &Self::Operation) -> bool;

    /// Whether an operation that leaves one state as it is does so with every later one in which it
    /// can happen. Saying no too often costs time only.
    fn only_reads(operation: &Self::Operation) -> bool;

    /// What an operation leaves. Of one that leaves nothing nobody can ever have seen anything.
    fn leaves(operation: &Self::Operation) -> Option<Self::Mark>;

    /// All that an operation has seen of others, or that has to be there for it to happen.
    fn saw(operation: &Self::Operation) -> impl Iterator<Item = Self::Mark>;

    /// Whether an operation can be what one without an answer has happened for, just before it. As
    /// it stands, if it saw it: that will do where whoever does not see what is there takes its place.
    fn makes_use(operation: &Self::Operation, unanswered: &Self::Operation) -> bool {
        let mark = Self::leaves(unanswered);
        Self::saw(operation).any(|saw| Some(saw) == mark)
    }
}

/// The name of an operation.
pub type OperationId = u64;
