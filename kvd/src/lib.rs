//! The key/value replica daemon.
//!
//! Two halves. The pure one, from [`command`] to [`machine`], is a deterministic state machine and
//! knows neither clocks nor sockets; the simulator links it. The thin one serves it: settings, the
//! gRPC services, passing requests on to the leader, and [`run`].

// clippy.toml names what the pure half must not use; the thin half may.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod command;
pub mod config;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod custody;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod due;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod handoff;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod limits;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod machine;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod outcome;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod query;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod range;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod refusal;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod session;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod step;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod steward;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod view;

#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod answer;
mod brakes;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod capture;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod changes;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod check;
mod claims;
mod cli;
mod desk;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod digest;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod encoding;
mod expiry;
mod giver;
mod intake;
mod keep_alive;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod kept;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod lease;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod lock;
mod locks;
mod look;
mod merged;
mod mover;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod pairs;
mod pipeline;
mod pull;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod rebuild;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod recount;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod reply;
mod requests;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod restore;
mod route;
mod routing;
mod run;
mod service;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod shard;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod tenure;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod txn;
mod watch;
mod wire;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod write;

pub use capture::KvCapture;
pub use cli::main;
pub use config::Config;
pub use machine::{KvMachine, MachineLimits};
pub use raftd::codec::Malformed;
pub use run::run;
