//! The log machine: against a naive model, its exactly-once table, its quota, and its snapshots.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod driven;
mod model;
mod requests;
mod snapshot;
