//! The MapReduce engine beside its peers: the data that all are given ([`text`], [`records`]) and
//! P, the hand-written programs of two threads that show what the machine can do without any
//! framework; and the contest between them ([`contest`]), in which nobody is believed before its
//! results were looked at ([`digest`]).

pub mod cat;
pub mod contest;
pub mod count;
pub mod digest;
pub mod grep;
pub mod input;
pub mod output;
pub mod pieces;
pub mod random;
pub mod records;
pub mod sizes;
pub mod sort;
pub mod text;
mod threads;

/// How many threads everybody has who takes part.
pub const THREADS: usize = 2;
