//! The stand-alone replicated log: the daemon `raftd`.
//!
//! Two halves. The pure one, from [`command`] to [`machine`], is a deterministic state machine that
//! knows neither clocks nor sockets. The thin one serves it: settings, the gRPC services, streams to
//! subscribers (`subscribe.rs`), and [`run`].

pub mod command;
pub mod config;
pub mod limits;
pub mod machine;
pub mod outcome;

mod capture;
mod cli;
mod digest;
mod entries;
mod requests;
mod restore;
mod run;
mod service;
mod sessions;
mod subscribe;
mod wire;

pub use capture::LogCapture;
pub use cli::main;
pub use config::Config;
pub use machine::LogMachine;
pub use run::run;
pub use sessions::SessionLimits;
