//! A cluster of real processes on this machine: what `flotilla up`, `flotilla demo`, `flotilla
//! bench` and the end-to-end tests start.
//!
//! Decides which processes there are ([`plan`]), where they listen ([`place`]), how they live and
//! die ([`process`]), what makes a directory one cluster's ([`cluster`]), and how groups come to share
//! the shards ([`sharing`]). Which binary is started
//! is the caller's word, a path. What is done with the cluster is left to the callers.

pub mod cluster;
pub mod http;
pub mod place;
pub mod plan;
pub mod process;
pub mod sharing;

pub use cluster::{Cluster, Description};
pub use place::Place;
pub use plan::Plan;
pub use process::Instance;
