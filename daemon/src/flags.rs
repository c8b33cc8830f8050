//! The flags that daemons share, and how flags become a layer of the settings.
//!
//! Every flag is an `Option` without a default: a flag that was not given must not override the
//! file or the environment. A daemon adds its own in the same way.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::Serialize;

use crate::exit::{Code, Failure};
use crate::telemetry::Format;

/// A set of flags that can be laid over other settings.
///
/// Implemented by every serializable struct whose fields are named like the settings they set;
/// a flag that was not given is `None`, which the table then lacks.
pub trait Given {
    /// The settings that were given, by their names.
    ///
    /// # Errors
    /// Usage, when a value has no place in a settings file (a number beyond 2^63, for example).
    fn table(&self) -> Result<toml::Table, Failure>;
}

impl<T: Serialize> Given for T {
    fn table(&self) -> Result<toml::Table, Failure> {
        toml::Table::try_from(self)
            .map_err(|error| Failure::usage("a flag has a value out of range").because(error))
    }
}

/// The flags about the process itself, which every daemon takes.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
pub struct Process {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    #[serde(rename = "process")]
    settings: ProcessSettings,
}

/// The nested table of [`Process`], in the shape of [`crate::runtime::Process`].
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct ProcessSettings {
    /// What to log, such as `info` or `info,raftd=debug`
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// How to log
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
    /// Run on this many threads instead of one
    #[arg(long, value_name = "COUNT")]
    worker_threads: Option<u16>,
}

/// The flags of a daemon that serves clients. They set settings at the top level.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
pub struct Network {
    /// Listen for clients on this address
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Tell others to reach this daemon at this address instead of where it listens
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Serve metrics and health over HTTP on this address instead of the port plus 1000
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<String>,
    /// Accept clients and peers without TLS on addresses other than loopback
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<bool>,
}

/// Reads the command line of a daemon.
///
/// # Errors
/// [`Code::Done`] after `--help` and `--version`, [`Code::Usage`] after a wrong call; the text is
/// printed already.
pub fn parse<P: clap::Parser>(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<P, Code> {
    P::try_parse_from(arguments).map_err(|error| {
        // Nothing can be done about a closed terminal, and the exit code still tells.
        let _ = error.print();
        if error.use_stderr() { Code::Usage } else { Code::Done }
    })
}

/// One layer of settings from several sets of flags.
///
/// # Errors
/// Usage, as [`Given::table`].
pub fn given(sets: &[&dyn Given]) -> Result<toml::Table, Failure> {
    let mut all = toml::Table::new();
    for set in sets {
        all.extend(set.table()?);
    }
    Ok(all)
}
