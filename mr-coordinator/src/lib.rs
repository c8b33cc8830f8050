//! The MapReduce coordinator: jobs, leases, commits and publication, replicated by the Raft host.
//!
//! The pure half decides: `machine` and `job` are the replicated state, `leases` and `schedule`
//! what only the leader knows, each a function of its inputs. The thin half acts: `plan`,
//! `publish`, `output`, `cleanup` and `logs` on the shared filesystem, `driver` and `service` between the
//! network, the log and the scheduler, `page` and `told` before the eyes of people.

// The thin half may; the pure modules deny it for themselves.
#![allow(clippy::disallowed_types)]

pub mod codec;
pub mod command;
pub mod failure;
pub mod flow;
pub mod ids;
pub mod job;
pub mod leases;
pub mod limits;
pub mod machine;
pub mod schedule;
pub mod scheduling;
pub mod snapshot;
pub mod spec;
pub mod streaming;

pub mod blobs;
pub mod cleanup;
pub mod glob;
pub mod logs;
pub mod output;
pub mod plan;
pub mod publish;
pub mod root;
pub mod sample;

mod cli;
mod config;
pub mod driver;
pub mod lanes;
mod page;
mod run;
pub mod service;
pub mod told;
pub mod views;
pub mod wire;

pub use cli::main;
pub use config::Config;
pub use run::run;
