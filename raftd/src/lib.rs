//! The host of a Raft group: everything that `raft` leaves to its driver; and the stand-alone log.
//!
//! `raft` decides; this crate acts. It owns the disk (`store`), the connections to the other
//! members (`peer/`), the clock, and the one task that drives a replica (`host.rs`). A service
//! brings a state machine and gets a [`Handle`]; nothing but the host task touches the machine.
//!
//! # The life of a host
//!
//! [`Host::start`] opens the store, which refuses a directory of somebody else and one that lost
//! what it had acknowledged, and serves the peer port. Then the group is born, if it is not yet
//! (`birth.rs`): every initial member has to be heard before anyone may vote. From then on the
//! host task waits for the first of {shutdown, store failure, jobs, clock, disk, peers, requests},
//! takes in what else is there, and acts once on all of it. That is where batches come from: while
//! the disk is busy, proposals gather.
//!
//! # What daemons share
//!
//! A daemon that serves a group brings a machine and services. Its command line (`cli.rs`), its life
//! (`serve.rs`), passing requests on to the leader (`forward.rs`) and telling why there is no reply
//! (`edge.rs`) are here. The log (`log/`) is such a daemon, in this crate since it has no other
//! purpose than to show the host as it is.
//!
//! # What must hold
//!
//! - A write is answered by the store's thread after its sync, and the core makes votes and
//!   acknowledgements of that answer; nothing here could send one earlier.
//! - A member whose memory is gone or old does not take part: incarnation, boot, nonce and write
//!   sequence travel with every batch (`identity.rs`), and a member that is told so ends.
//! - Every queue has a bound and a name. To peers they drop, since Raft repairs; to the store the
//!   queue is one merged write, no larger than the core's own log.
//! - Blocking work is never on the runtime.
//!
//! # What is absent
//!
//! TLS, and several groups in one process.

// clippy.toml names what the pure half of the log must not use; the host may.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod admin;
mod audit;
pub mod backup;
mod birth;
pub mod chunks;
pub mod cli;
mod clock;
pub mod codec;
pub mod edge;
mod events;
pub mod failpoint;
pub mod forward;
mod handle;
mod host;
mod identity;
mod jobs;
pub mod log;
mod membership;
mod network;
mod peer;
pub mod recovery;
pub mod restoration;
mod serve;
mod settings;
mod start;
pub mod store;
mod wire;

pub use handle::{
    COMMAND_BYTES_MAX, ChangeRejected, Changed, Handle, MemberStatus, Outcome, Refused, Role,
    Status, TransferRefused, Transferring, Wanted,
};
pub use identity::{Founder, Group, GroupId, Incarnation};
pub use network::{Network, PeerFlags};
pub use serve::Served;
pub use settings::{ADDRESS_BYTES_MAX, CLUSTER_BYTES_MAX, Flags, MEMBERS_MAX, Member, Settings};
pub use start::{Advertised, Host};
