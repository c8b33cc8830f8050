//! The command line of `shardctl serve`, for its own binary and for `flotilla shardctl serve`.

use std::ffi::OsString;

use daemon::Code;
use raftd::cli::HostFlags;
use serde::Serialize;

use crate::config::NAME;

/// Serves a member of the shard controller
///
/// A controller that is told nothing is one of one member: it listens on 127.0.0.1:7200 and keeps
/// its data in ./shardctl-data. Settings come from a TOML file (--config), then from the environment
/// (FLOTILLA_SHARDCTL__LISTEN, FLOTILLA_SHARDCTL__GROUP__DATA, ...), then from these flags.
#[derive(clap::Parser, Debug)]
#[command(name = NAME, bin_name = "shardctl serve", version = daemon::version::VERSION)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    host: HostFlags,
    #[command(flatten)]
    own: Own,
}

/// The flags that only the controller has. They set settings at the top level.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct Own {
    /// How many shards there are, if the first request does not say
    #[arg(long, value_name = "COUNT")]
    shards: Option<u32>,
    /// Serve at most this many streams of changes
    #[arg(long, value_name = "COUNT")]
    watchers_max: Option<u32>,
}

const EXAMPLES: &str = "\
Examples:
  A controller of one member, and a group that joins:
    shardctl serve --data /var/lib/shardctl
    shardctl join 1=127.0.0.1:7300

  The first of three members on one machine; the others have another --node, --listen, --data:
    shardctl serve --node 1 --listen 127.0.0.1:7200 --data data1 \\
        --member 1=127.0.0.1:7200 --member 2=127.0.0.1:7201 --member 3=127.0.0.1:7202

  Is it ready (for images and scripts)?
    shardctl serve --listen 127.0.0.1:7200 health
";

/// Reads the settings, runs the daemon, and answers with the exit code.
pub(crate) fn main(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Code {
    raftd::cli::main(arguments, |given: &Arguments| (&given.host, &given.own), crate::run)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::Config;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_find_their_settings_and_change_nothing_else() {
        let config = |arguments: &[&str]| -> Config {
            let parsed = Arguments::try_parse_from(arguments).unwrap();
            parsed.host.settings(&parsed.own, Vec::new()).unwrap()
        };
        assert_eq!(config(&["serve"]), Config::default());
        let config = config(&["serve", "--shards", "16", "--watchers-max", "3", "--node", "2"]);
        assert_eq!((config.shards, config.watchers_max, config.group.node), (16, 3, 2));
    }
}
