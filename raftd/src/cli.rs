//! The command line that all daemons with a group share: their flags, and their main.
//!
//! A daemon's own file keeps what only it has: its settings type, its own flags, and what its
//! `--help` teaches.

use std::ffi::OsString;

use daemon::addresses::Addresses;
use daemon::flags::{Given, Network, Process};
use daemon::{Code, Failure, Shutdown, flags, health, runtime, settings};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failpoint;
use crate::network::PeerFlags;
use crate::settings::Flags;

/// The flags of every daemon with a group, and its one subcommand.
#[derive(clap::Args, Debug)]
pub struct HostFlags {
    #[command(flatten)]
    process: Process,
    #[command(flatten)]
    network: Network,
    #[command(flatten)]
    peers: PeerFlags,
    #[command(flatten)]
    group: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Asks the daemon with these settings whether it is ready, and exits with 0 if it is
    Health,
}

/// A daemon's settings, as far as its main has to know them.
pub trait Configuration: Default + Serialize + DeserializeOwned {
    /// The daemon's name: of its binary, and in the environment (`FLOTILLA_NAME__...`).
    const NAME: &'static str;

    /// The settings of the process.
    fn process(&self) -> &runtime::Process;

    /// Where it listens.
    ///
    /// # Errors
    /// Configuration, naming the setting.
    fn addresses(&self) -> Result<Addresses, Failure>;
}

impl HostFlags {
    /// The settings in force: what was said with these flags and the daemon's `own`, over the
    /// environment, over the settings file, over the defaults.
    ///
    /// # Errors
    /// As [`settings::load`].
    pub fn settings<C: Configuration>(
        &self,
        own: &dyn Given,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<C, Failure> {
        let given = flags::given(&[&self.process, &self.network, &self.peers, &self.group, own])?;
        let file = self.process.config.as_deref();
        settings::load(C::NAME, &C::default(), file, environment, &given)
    }
}

/// The whole program: reads the settings, runs the daemon or the subcommand, and answers with the
/// exit code. `split` tells the shared flags from the daemon's own.
pub fn main<A: clap::Parser, C: Configuration>(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    split: impl FnOnce(&A) -> (&HostFlags, &dyn Given),
    run: impl AsyncFnOnce(&C, Shutdown) -> Result<(), Failure>,
) -> Code {
    runtime::main(C::NAME, || {
        let arguments: A = flags::parse(arguments)?;
        let (host, own) = split(&arguments);
        let config: C = host.settings(own, std::env::vars_os())?;
        match host.command {
            Some(Command::Health) => Ok(health::run(C::NAME, config.addresses()?.admin)?),
            None => {
                failpoint::arm_from_environment()?;
                runtime::run(C::NAME, config.process(), &config, |shutdown| {
                    failpoint::warn();
                    run(&config, shutdown)
                })
            }
        }
    })
}
