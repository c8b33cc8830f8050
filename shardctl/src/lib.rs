//! The shard controller: which group shall have which shard, and where each shard is.
//!
//! Two things are replicated. A *configuration* (`target.rs`) is a wish: Join, Leave and Move publish
//! the next at once, whatever is under way. A *placement* (`placement.rs`) is how far the wish has
//! come for one shard: who has it, and at most one move. Groups act on placements, shard by shard, so
//! that a group that is dead holds up its own shards and no other. `rebalance.rs` decides whom a
//! configuration gives which shard; `machine.rs` is all of it as a state machine.
//!
//! Not here yet: the daemon and the admin's commands, and groups that act (docs/decisions.md, "Put
//! off").

pub mod command;
pub mod ids;
pub mod limits;
pub mod machine;
pub mod outcome;
pub mod placement;
pub mod rebalance;
mod requests;
pub mod snapshot;
pub mod target;

pub use machine::ShardMachine;
