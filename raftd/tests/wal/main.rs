//! The store keeps what it has acknowledged, or says what is missing: crashes between any two
//! operations, damaged bytes, lost records, directories in every state.

#![allow(clippy::unwrap_used, reason = "a test may fail")]
#![allow(clippy::disallowed_methods, reason = "a test of the store may read the clock")]

mod child;
mod chunks;
mod crash;
mod depth;
mod directories;
mod flips;
mod kill;
mod member;
mod memory;
mod model;
mod power;
mod recover;
mod space;
mod transfers;
