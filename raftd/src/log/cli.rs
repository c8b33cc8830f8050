//! The command line of `raftd`, for its own binary and for `flotilla raftd`.

use std::ffi::OsString;

use daemon::Code;
use serde::Serialize;

use crate::cli::HostFlags;
use crate::log::config::NAME;

/// Serves a replicated log
///
/// A raftd that is told nothing is a log of one member: it listens on 127.0.0.1:7100 and keeps its
/// data in ./raftd-data. Settings come from a TOML file (--config), then from the environment
/// (FLOTILLA_RAFTD__LISTEN, FLOTILLA_RAFTD__GROUP__DATA, ...), then from these flags.
#[derive(clap::Parser, Debug)]
#[command(name = NAME, version = daemon::version::VERSION, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    host: HostFlags,
    #[command(flatten)]
    own: Own,
}

/// The flags that only raftd has. They set settings at the top level.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct Own {
    /// Refuse to append while the log takes this many bytes; `flotilla log trim` makes room
    #[arg(long, value_name = "BYTES")]
    quota_bytes: Option<u64>,
    /// Serve at most this many subscribers
    #[arg(long, value_name = "COUNT")]
    subscribers_max: Option<usize>,
}

const EXAMPLES: &str = "\
Examples:
  A log of one member, and something in it:
    raftd --data /var/lib/raftd
    flotilla log append hello

  The first of three members on one machine; the others have another --node, --listen, --data:
    raftd --node 1 --listen 127.0.0.1:7100 --data data1 \\
        --member 1=127.0.0.1:7100 --member 2=127.0.0.1:7101 --member 3=127.0.0.1:7102

  Is it ready (for images and scripts)?
    raftd --listen 127.0.0.1:7100 health
";

/// The whole program: reads the settings, runs the daemon, and answers with the exit code.
pub fn main(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Code {
    crate::cli::main(arguments, |given: &Arguments| (&given.host, &given.own), crate::log::run)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::log::Config;

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
        assert_eq!(config(&["raftd"]), Config::default());
        let flags = ["raftd", "--quota-bytes", "9", "--subscribers-max", "3", "--node", "2"];
        let config = config(&flags);
        assert_eq!((config.quota_bytes, config.subscribers_max, config.group.node), (9, 3, 2));
    }
}
