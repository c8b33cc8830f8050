//! What every Flotilla process does the same way: settings, logging, signals, panics, exit codes,
//! the admin port, and the gRPC services that every server has; and for command lines how they talk
//! ([`output`], [`progress`], [`units`]).
//!
//! The crate decides how a process starts, tells about itself and ends. It knows nothing of Raft,
//! stores or our services: a daemon brings its own settings type, its routes and a future.
//! A daemon's main then looks like this (`kvd::run` binds, serves, and returns after shutdown):
//!
//! ```ignore
//! /// Serves keys and values: what --help says first
//! #[derive(clap::Parser)]
//! #[command(version = daemon::version::VERSION)]
//! struct Flags {
//!     #[command(flatten)] process: daemon::flags::Process,
//!     #[command(flatten)] network: daemon::flags::Network,
//!     #[command(flatten)] own: kvd::Flags, // Serialize, every field an Option
//! }
//!
//! fn main() -> Code {
//!     daemon::runtime::main("kvd", || {
//!         let flags: Flags = daemon::flags::parse(std::env::args_os())?;
//!         let given = flags::given(&[&flags.process, &flags.network, &flags.own])?;
//!         let file = flags.process.config.as_deref();
//!         let kvd: Config = settings::load("kvd", &Config::default(), file, vars_os(), &given)?;
//!         daemon::runtime::run("kvd", &kvd.process, &kvd, |shutdown| kvd::run(&kvd, shutdown))
//!     })
//! }
//! ```

pub mod addresses;
pub mod admin;
mod allocator;
pub mod exit;
pub mod flags;
pub mod grpc;
pub mod health;
pub mod metrics;
pub mod output;
pub mod panic;
pub mod ports;
pub mod progress;
pub mod readiness;
pub mod runtime;
pub mod settings;
pub mod signals;
pub mod telemetry;
pub mod units;
pub mod version;

pub use exit::{Code, Failure};
pub use readiness::Readiness;
pub use signals::Shutdown;
