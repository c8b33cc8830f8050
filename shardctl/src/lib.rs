//! The shard controller: which group shall have which shard, and where each shard is.
//!
//! Two things are replicated. A *configuration* (`target.rs`) is a wish: Join, Leave and Move publish
//! the next at once, whatever is under way. A *placement* (`placement.rs`) is how far the wish has
//! come for one shard: who has it, and at most one move. Groups act on placements, shard by shard, so
//! that a group that is dead holds up its own shards and no other. `rebalance.rs` decides whom a
//! configuration gives which shard; `machine.rs` is all of it as a state machine.
//!
//! That half is pure, and the simulator links it. The thin one serves it (`shardctl serve`) and asks
//! for changes and shows how they come about (`shardctl join`, `status`, `wait`: `cli/`).

// clippy.toml names what the pure half must not use; the thin half may.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)]

#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod command;
pub mod config;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod ids;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod limits;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod machine;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod outcome;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod placement;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod rebalance;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod snapshot;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod target;

pub mod picture;

mod cli;
mod desk;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod requests;
mod run;
mod serve;
mod service;
mod watch;
mod wire;

pub use cli::{main, main_beside, malformed, refused};
pub use config::Config;
pub use machine::ShardMachine;
pub use run::run;
