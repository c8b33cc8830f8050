//! `kvd route`: answers clients, and has no shards of its own. It sends each request to the group that
//! has its shard, as the library does, for clients that speak plain gRPC.

mod cli;
mod config;
mod run;

pub(crate) use cli::main;
use config::Config;
