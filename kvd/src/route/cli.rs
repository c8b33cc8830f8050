//! The command line of `kvd route`, for its own binary and for `flotilla kvd route`.

use std::{env, ffi::OsString};

use daemon::{Code, Failure, flags, health, runtime, settings};
use serde::Serialize;

use super::{Config, config::NAME, run::run};

/// Serves the key/value stores of many groups as one
///
/// A router has no data: it asks the shard controller who has which shard, and sends each request to
/// the group that has it. Any number of them may run; each answers everything. A router that is told
/// nothing listens on 127.0.0.1:7600, and asks a controller on 127.0.0.1:7200. Settings come from a
/// TOML file (--config), then from the environment (FLOTILLA_KVD_ROUTE__LISTEN, ...), then from these
/// flags.
#[derive(clap::Parser, Debug)]
#[command(name = "route", bin_name = "kvd route", version = daemon::version::VERSION)]
#[command(after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    process: flags::Process,
    #[command(flatten)]
    network: flags::Network,
    #[command(flatten)]
    own: Own,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The flags that only a router has. They set settings at the top level.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct Own {
    /// A member of the shard controller (repeat for each) [default: 127.0.0.1:7200]
    #[arg(long = "controller", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controllers: Vec<String>,
    /// Serve at most this many streams of changes
    #[arg(long, value_name = "COUNT")]
    watchers_max: Option<u32>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Asks the router with these settings whether it is ready, and exits with 0 if it is
    Health,
}

const EXAMPLES: &str = "\
Examples:
  A router beside a controller on this machine, and a question to it:
    kvd route
    flotilla kv put greeting hello --endpoints 127.0.0.1:7600

  With a controller of three members:
    kvd route --listen 127.0.0.1:7600 \\
        --controller s1:7200 --controller s2:7200 --controller s3:7200

  Is it ready, that is, has it heard where the shards are?
    kvd route health

Clients that use the library need none: they are given the controller's addresses. Nor do others need
one: each kvd passes on what its group does not have. A router is for those who shall know one address
whatever becomes of the groups.
";

/// The whole program: reads the settings, runs the router, and answers with the exit code.
pub(crate) fn main(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Code {
    runtime::main(NAME, || {
        let arguments: Arguments = flags::parse(arguments)?;
        let config = config(&arguments, env::vars_os())?;
        match arguments.command {
            Some(Command::Health) => Ok(health::run(NAME, config.addresses()?.admin)?),
            None => runtime::run(NAME, &config.process, &config, |shutdown| run(&config, shutdown)),
        }
    })
}

fn config(
    arguments: &Arguments,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, Failure> {
    let given = flags::given(&[&arguments.process, &arguments.network, &arguments.own])?;
    let file = arguments.process.config.as_deref();
    settings::load(NAME, &Config::default(), file, environment, &given)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Config, Failure> {
        config(&Arguments::try_parse_from(arguments).unwrap(), Vec::new())
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_given_is_set_and_all_else_is_not() {
        assert_eq!(parsed(&["route"]).unwrap(), Config::default());
        let given = ["route", "--listen", "127.0.0.1:1", "--controller", "s1:7200"];
        let more = ["--controller", "s2:7200", "--watchers-max", "7", "--admin", "127.0.0.1:2"];
        let config = parsed(&[&given[..], &more].concat()).unwrap();
        assert_eq!(config.controllers, ["s1:7200", "s2:7200"]);
        assert_eq!(config.watchers_max, 7);
        let addresses = config.addresses().unwrap();
        assert_eq!((addresses.listen.port(), addresses.admin.port()), (1, 2));
        let refused = Config { watchers_max: 0, ..config }.check().unwrap_err().to_string();
        assert!(refused.contains("watchers_max is 0"), "{refused}");
    }
}
