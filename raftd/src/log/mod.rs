//! The stand-alone replicated log: the daemon `raftd`.
//!
//! Two halves. The pure one, from [`command`] to [`machine`], is a deterministic state machine that
//! knows neither clocks nor sockets. The thin one serves it: settings, the gRPC services, streams to
//! subscribers (`subscribe.rs`), and [`run`].

#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod command;
pub mod config;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod limits;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod machine;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
pub mod outcome;

#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod capture;
mod cli;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod digest;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod entries;
mod requests;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod restore;
mod run;
mod service;
#[deny(clippy::disallowed_types, clippy::disallowed_methods)]
mod sessions;
mod subscribe;
mod wire;

pub use capture::LogCapture;
pub use cli::main;
pub use config::Config;
pub use machine::LogMachine;
pub use run::run;
pub use sessions::SessionLimits;
