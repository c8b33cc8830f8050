//! What users of Flotilla link: clients of the key/value store, of the log, of MapReduce jobs, of the
//! shard controller and of the operators' service.
//!
//! The crate decides how a request finds the member that can answer it, how long it is tried, and
//! what its caller is told: done, rejected (it was not executed and will not be), or unknown. It
//! knows the wire and nothing of Raft or stores.

pub mod admin;
pub mod handoff;
pub mod jobs;

mod calls;
mod error;
mod gather;
mod kv;
mod leases;
mod locks;
pub mod log;
mod members;
mod options;
mod pipeline;
pub mod routed;
pub mod router;
mod scan;
mod sessions;
pub mod shards;
pub mod streams;
mod transport;
mod txn;
mod watch;

pub use error::{Error, InvalidEndpoint, Outcome, Rejected, Unknown};
pub use gather::is_gathered;
pub use jobs::JobClient;
pub use kv::{Appended, Condition, Guard, KvClient, Pair, PutIf, PutOptions, Removed, Written};
pub use leases::{Granted, KeptAlive, LeaseState};
pub use locks::{
    Election, Held as HeldLock, Holder, Leadership, LockClient, LockOptions, LockState,
};
pub use log::LogClient;
pub use options::Options;
pub use proto::kv::{Relation, compare::Operand};
pub use proto::metadata;
pub use router::Router;
pub use scan::{Keys, Scan, ScanOptions};
pub use shards::ShardClient;
pub use streams::Streams;
pub use transport::Transport;
pub use txn::{OperationReply, Txn, TxnDone};
pub use watch::{Event, Watch, WatchOptions, Watched};

/// The longest key of the store, in bytes.
pub const KEY_BYTES_MAX: usize = 8 * 1024;

/// The longest value of the store, in bytes.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;

/// The most pairs of a page.
pub const PAGE_PAIRS_MAX: usize = 1_000;

/// The most bytes of keys and values of a page, unless a single pair has more.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// The longest request that a member reads.
pub const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The longest message that is sent or read.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
