//! The command line of `kvd`, for its own binary and for `flotilla kvd`.

use std::ffi::OsString;

use daemon::Code;
use raftd::cli::HostFlags;
use serde::Serialize;

use crate::{config::NAME, route};

/// Serves a replicated key/value store
///
/// A kvd that is told nothing is a store of one member: it listens on 127.0.0.1:7300 and keeps its
/// data in ./data. Settings come from a TOML file (--config), then from the environment
/// (FLOTILLA_KVD__LISTEN, FLOTILLA_KVD__GROUP__DATA, ...), then from these flags.
#[derive(clap::Parser, Debug)]
#[command(name = NAME, version = daemon::version::VERSION, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    host: HostFlags,
    #[command(flatten)]
    own: Own,
}

/// The flags that only kvd has. They set settings at the top level.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct Own {
    /// How many shards to create a new cluster with
    #[arg(long, value_name = "COUNT")]
    shards: Option<u32>,
    /// The number of this group among those that share the shards; without it, it has them all
    #[arg(long, value_name = "NUMBER")]
    shard_group: Option<u32>,
    /// A member of the shard controller, for a group with a number (repeat for each)
    #[arg(long = "controller", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controllers: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  A store of one member, and a question to it:
    kvd --data /var/lib/kvd
    flotilla kv put greeting hello

  The first of three members on one machine; the others have another --node, --listen, --data:
    kvd --node 1 --listen 127.0.0.1:7300 --data data1 \\
        --member 1=127.0.0.1:7300 --member 2=127.0.0.1:7301 --member 3=127.0.0.1:7302

  One of several groups that share the shards, which has none until it joins:
    kvd --listen 127.0.0.1:7310 --data data4 --shard-group 2 --controller 127.0.0.1:7200
    shardctl join 2=127.0.0.1:7310

  A router, which serves all groups at one address: kvd route --help
    kvd route --controller 127.0.0.1:7200

  Is it ready (for images and scripts)?
    kvd --listen 127.0.0.1:7300 health
";

/// The whole program: reads the settings, runs the daemon, and answers with the exit code.
pub fn main(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Code {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    // A router has other flags.
    if arguments.get(1).is_some_and(|first| first == "route") {
        return route::main(arguments.into_iter().skip(1));
    }
    raftd::cli::main(arguments, |given: &Arguments| (&given.host, &given.own), crate::run)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use raftd::cli::Configuration;

    use super::*;
    use crate::Config;

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
        assert_eq!(config(&["kvd"]).unwrap(), Config::default());
    }

    #[test]
    fn every_flag_finds_its_setting() {
        let config = config(&[
            "kvd",
            "--node",
            "2",
            "--cluster",
            "c",
            "--data",
            "d",
            "--listen",
            "0.0.0.0:1",
            "--advertise",
            "a:1",
            "--peer-listen",
            "0.0.0.0:2",
            "--peer-advertise",
            "a:2",
            "--admin",
            "127.0.0.1:3",
            "--member",
            "1=b:1",
            "--member",
            "2=a:1,a:2",
            "--shards",
            "16",
            "--shard-group",
            "3",
            "--controller",
            "s1:7200",
            "--controller",
            "s2:7200",
            "--insecure",
            "--log-format",
            "json",
        ])
        .unwrap();
        assert_eq!((config.group.node, config.group.cluster.as_str()), (2, "c"));
        assert_eq!(config.group.data.to_str(), Some("d"));
        assert_eq!(config.group.members, ["1=b:1", "2=a:1,a:2"]);
        assert_eq!((config.shards, config.insecure), (16, true));
        assert_eq!(config.shard_group, Some(3));
        assert_eq!(config.controllers, ["s1:7200", "s2:7200"]);
        let addresses = config.addresses().unwrap();
        assert_eq!(addresses.peer.port(), 2);
        assert_eq!(addresses.admin.port(), 3);
        assert_eq!((&*addresses.advertise, &*addresses.advertise_peer), ("a:1", "a:2"));
    }
}
