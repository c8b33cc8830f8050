//! The key/value store beside etcd: clusters of a few processes on one machine and one disk, with
//! fresh data, driven by the same closed loops.
//!
//! Every system is given what makes it fastest: its clients speak to the leader, over as many
//! connections. Puts are durable on a majority, gets are linearizable. Ours are exactly-once, too,
//! which etcd's puts are not.

mod cluster;
mod load;
mod process;
mod steady;
mod store;

pub use cluster::{Cluster, Plan, Snapshots};
pub use load::{Clients, Cost, KEYS, drive, fill};
pub use process::Spent;
pub use steady::{Steady, steady};
pub use store::Store;

use std::io;

/// How long a value is.
pub const VALUE_BYTES: usize = 256;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A durable write of one key.
    Put,
    /// A linearizable read of one key.
    Get,
}

/// What is driven, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// etcd, by unary calls.
    Etcd,
    /// kvd, by unary calls.
    Unary,
    /// kvd, all requests of a connection on one stream.
    Pipelined,
}

#[allow(missing_docs, clippy::all)]
mod etcd {
    tonic::include_proto!("etcdserverpb");
}

/// Any error, in words.
fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}
