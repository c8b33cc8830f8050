//! The command line of `mr-coordinator`, for its own binary and for `flotilla mr-coordinator`.

use std::{ffi::OsString, path::PathBuf};

use daemon::Code;
use raftd::cli::HostFlags;
use serde::Serialize;

use crate::config::NAME;

/// Schedules MapReduce jobs over a directory that workers share with it
///
/// A coordinator that is told nothing is alone: it listens on 127.0.0.1:7400, keeps its data in
/// ./mr-coordinator-data and takes the current directory for the shared root. Settings come from a
/// TOML file (--config), then from the environment (FLOTILLA_MR_COORDINATOR__ROOT, ...), then from
/// these flags.
#[derive(clap::Parser, Debug)]
#[command(name = NAME, version = daemon::version::VERSION, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    host: HostFlags,
    #[command(flatten)]
    own: Own,
}

/// The flags that only the coordinator has. They set settings at the top level.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct Own {
    /// The directory that coordinators and workers share
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Count a worker as lost after so much silence
    #[arg(long, value_name = "MILLISECONDS")]
    lease_ms: Option<u64>,
    /// Fail a started job after so long without any worker for it; 0: never
    #[arg(long, value_name = "MILLISECONDS")]
    no_workers_grace_ms: Option<u64>,
    /// The longest file that a job may send along
    #[arg(long, value_name = "BYTES")]
    blob_bytes_max: Option<u64>,
    /// Remove the logs of a job's attempts so long after its end
    #[arg(long, value_name = "SECONDS")]
    logs_kept_s: Option<u64>,
    /// What a queue gets of the slots, against 1 of a queue that is not named; repeatable
    #[arg(long = "queue-weight", value_name = "NAME=WEIGHT", value_parser = queue_weight)]
    #[serde(serialize_with = "as_table", skip_serializing_if = "Vec::is_empty")]
    queues: Vec<(String, u32)>,
}

fn queue_weight(text: &str) -> Result<(String, u32), String> {
    let parts = text.rsplit_once('=').ok_or("it must be NAME=WEIGHT")?;
    let weight = parts.1.parse().map_err(|_| "the weight must be a whole number")?;
    Ok((parts.0.to_owned(), weight))
}

fn as_table<S: serde::Serializer>(queues: &[(String, u32)], out: S) -> Result<S::Ok, S::Error> {
    out.collect_map(queues.iter().map(|(name, weight)| (name, weight)))
}

const EXAMPLES: &str = "\
Examples:
  A coordinator and a worker on one machine, and a job:
    mr-coordinator --root /srv/shared --data /var/lib/mr-coordinator
    mr-worker --root /srv/shared --coordinator 127.0.0.1:7400
    flotilla mr submit --app wc --input 'texts/*.txt' --output counts --wait

  Is it ready (for images and scripts)?
    mr-coordinator --listen 127.0.0.1:7400 health
";

/// The whole program: reads the settings, runs the daemon, and answers with the exit code.
pub fn main(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Code {
    raftd::cli::main(arguments, |given: &Arguments| (&given.host, &given.own), crate::run)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use raftd::cli::Configuration;

    use super::*;
    use crate::config::Config;

    fn config(arguments: &[&str]) -> Result<Config, daemon::Failure> {
        let parsed = Arguments::try_parse_from(arguments).unwrap();
        parsed.host.settings(&parsed.own, Vec::new())
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_that_are_not_given_change_nothing() {
        assert_eq!(config(&["mr-coordinator"]).unwrap(), Config::default());
    }

    #[test]
    fn every_flag_finds_its_setting() {
        let config = config(&[
            "mr-coordinator",
            "--node=2",
            "--cluster=c",
            "--data=d",
            "--root=r",
            "--listen=0.0.0.0:1",
            "--peer-listen=0.0.0.0:2",
            "--admin=127.0.0.1:3",
            "--member=1=b:1",
            "--member=2=a:1,a:2",
            "--lease-ms=2000",
            "--no-workers-grace-ms=0",
            "--logs-kept-s=60",
            "--queue-weight=fast=3",
            "--queue-weight=a=b=2",
            "--insecure",
        ])
        .unwrap();
        assert_eq!((config.group.node, config.group.cluster.as_str()), (2, "c"));
        assert_eq!((config.root.to_str(), config.group.data.to_str()), (Some("r"), Some("d")));
        assert_eq!((config.lease_ms, config.no_workers_grace_ms), (2_000, 0));
        assert_eq!(config.logs_kept_s, 60);
        let queues = [("a=b".to_owned(), 2), ("fast".to_owned(), 3)];
        assert_eq!(config.queues, queues.into());
        let addresses = config.addresses().unwrap();
        assert_eq!((addresses.peer.port(), addresses.admin.port()), (2, 3));
        assert_eq!((&*addresses.advertise, &*addresses.advertise_peer), ("a:1", "a:2"));
    }
}
