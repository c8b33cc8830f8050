//! The command line of `shardctl`, for its own binary and for `flotilla shardctl`: what can be asked
//! for, and what `--help` teaches.
//!
//! Decides how arguments become a command and how a command's failure becomes an exit code. It knows
//! the controller as every client does, by [`client::ShardClient`].

mod change;
mod show;
mod status;
mod wait;

use std::{ffi::OsString, time::Duration};

use clap::Parser;
use client::{Error, InvalidEndpoint, Options, Rejected, ShardClient};
use daemon::{Code, Failure, output::Output, ports, units, version};
use tokio::runtime::Builder;

use crate::{config::NAME, serve};

const EXAMPLES: &str = "\
Examples:
  shardctl serve                                a controller of one member, until Ctrl-C
  shardctl join 1=127.0.0.1:7300                group 1 takes part; its members are there
  shardctl plan join 2=127.0.0.1:7310           what group 2 would get
  shardctl join 2=127.0.0.1:7310 --weight 2     it gets twice as much as group 1
  shardctl wait --timeout 10m                   until every shard is where it shall be
  shardctl move 17 1                            shard 17 goes to group 1, and stays there
  shardctl unpin 17                             it need not stay
  shardctl leave 1                              group 1 gives up what it has
  shardctl status                               where everything is, and how much of it
  shardctl status --watch                       the same again and again, with changes per second
  shardctl history --last 5

A change is a wish, published at once as the next configuration; groups then move shards one by one,
and serve those that do not move all the time. `status` shows how far that is, `wait` waits for it.

Exit codes: 0 done, 1 failed, 2 wrong call, 3 nobody answered, 5 exists already, 6 not found,
7 unknown (it may have been executed), 8 waited in vain, 130 interrupted. Those of `serve` are other
ones.";

/// Says which replica group shall have which shard of a key/value store
#[derive(Parser, Debug)]
#[command(name = NAME, bin_name = NAME, version = version::VERSION, after_help = EXAMPLES)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    /// Print results, and failures, as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Where members of the controller are, some or all [default: of `flotilla shardctl` the running
    /// `flotilla up`, else 127.0.0.1:7200]
    #[arg(
        long,
        env = "FLOTILLA_SHARD_ENDPOINTS",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        global = true
    )]
    endpoints: Vec<String>,
    /// How long to try to reach the controller [default: 10s]; of `wait`, how long to wait [default:
    /// as long as it takes]
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, global = true)]
    timeout: Option<u64>,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Change(change::Change),
    /// Tell what a change would move, and change nothing
    #[command(subcommand)]
    Plan(change::Change),
    /// Show a configuration: which group shall have which shard
    Query(show::Query),
    /// List the configurations that are kept, the newest first
    History(show::History),
    /// Show where each shard is, how the groups are, and how much they have
    Status(status::Arguments),
    /// Wait until every shard is where the latest configuration wants it
    Wait(wait::Arguments),
    /// Serve a member of the controller: `shardctl serve --help`
    Serve,
}

/// The whole program.
pub fn main(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Code {
    main_beside(arguments, || Ok(Vec::new()))
}

/// The whole program, beside a cluster that `find` finds if nobody says where the controller is:
/// the addresses of its controller's members, or none.
pub fn main_beside(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    find: impl FnOnce() -> Result<Vec<String>, Failure>,
) -> Code {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    // A daemon has other flags and other exit codes.
    if arguments.get(1).is_some_and(|first| first == "serve") {
        return serve::main(arguments.into_iter().skip(1));
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed terminal, and the exit code still tells.
            let _ = error.print();
            return if error.use_stderr() { Code::WrongCall } else { Code::Done };
        }
    };
    let output = Output::new(NAME, cli.json);
    match run(cli, find, output) {
        Ok(()) => Code::Done,
        Err(failure) => {
            output.failure(&failure);
            failure.code()
        }
    }
}

/// Commands wait more than they compute, so one thread does.
fn run(
    cli: Cli,
    find: impl FnOnce() -> Result<Vec<String>, Failure>,
    output: Output,
) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, "the runtime cannot start").because(error))?;
    let limit = cli.timeout.map(Duration::from_millis);
    let mut endpoints: Vec<_> = cli.endpoints.iter().map(|text| text.trim().to_owned()).collect();
    if endpoints.is_empty() {
        endpoints = find()?;
    }
    if endpoints.is_empty() {
        endpoints = vec![format!("127.0.0.1:{}", ports::SHARDCTL)];
    }
    let options = match (&cli.command, limit) {
        // It asks again for as long as it waits.
        (Command::Wait(_), _) | (_, None) => Options::default(),
        (_, Some(limit)) => Options::with_deadline(limit),
    };
    runtime.block_on(async {
        let client = ShardClient::connect(endpoints, options).map_err(malformed)?;
        match cli.command {
            Command::Change(change) => change.run(&client, output).await,
            Command::Plan(change) => change.plan(&client, output).await,
            Command::Query(query) => show::query(&client, &query, output).await,
            Command::History(history) => show::history(&client, &history, output).await,
            Command::Status(arguments) => status::run(&client, &arguments, output).await,
            Command::Wait(arguments) => wait::run(&client, &arguments, limit, output).await,
            Command::Serve => {
                let message = "`serve` comes first: shardctl serve ...";
                Err(Failure::new(Code::WrongCall, message))
            }
        }
    })
}

/// What the end of a request without a reply means for a command.
pub fn refused(error: Error) -> Failure {
    match error {
        Error::Unknown(unknown) => Failure::new(Code::Unknown, unknown.to_string()),
        Error::Rejected(rejected) => {
            let code = match &rejected {
                Rejected::Invalid(_) => Code::WrongCall,
                Rejected::Limit(_) | Rejected::Refused(_) => Code::Failed,
                Rejected::Unavailable(_) => Code::Unreachable,
                Rejected::NotFound(_) | Rejected::OutOfRange { .. } => Code::NotFound,
                Rejected::Exists(_) => Code::Exists,
            };
            Failure::new(code, rejected.to_string())
        }
    }
}

/// What a malformed endpoint means for a command.
pub fn malformed(error: InvalidEndpoint) -> Failure {
    Failure::new(Code::WrongCall, "a wrong address").because(error)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_calls_and_help_have_their_codes() {
        let code = |call: &str| main(call.split(' ').map(OsString::from));
        assert_eq!(code("shardctl --help"), Code::Done);
        assert_eq!(code("shardctl serve --help"), Code::Done);
        assert_eq!(code("shardctl serve --shards many"), Code::Usage);
        for call in [
            "shardctl",
            "shardctl sink",
            "shardctl join",
            "shardctl join 0",
            "shardctl join one",
            "shardctl join 1=",
            "shardctl leave",
            "shardctl weigh 1",
            "shardctl move 1",
            "shardctl move -1 1",
            "shardctl plan",
            "shardctl plan status",
            "shardctl wait --timeout soon",
            "shardctl --json serve",
            "shardctl status --endpoints nowhere",
            "shardctl status --interval soon",
            "shardctl leave 1 --once",
        ] {
            assert_eq!(code(call), Code::WrongCall, "{call}");
        }
    }

    #[test]
    fn a_cluster_is_looked_for_only_if_nobody_says_where_it_is() {
        let code = |call: &str| {
            main_beside(call.split(' ').map(OsString::from), || {
                Err(Failure::new(Code::Configuration, "looked for"))
            })
        };
        assert_eq!(code("shardctl query"), Code::Configuration);
        assert_eq!(code("shardctl query --endpoints nowhere"), Code::WrongCall);
        assert_eq!(code("shardctl --help"), Code::Done);
    }

    #[test]
    fn uncertainty_is_never_told_as_failure() {
        let unknown = client::Unknown { reason: "lost".to_owned() };
        assert_eq!(refused(unknown.into()).code(), Code::Unknown);
        let rejected = Rejected::Unavailable("gone".to_owned());
        assert_eq!(refused(rejected.into()).code(), Code::Unreachable);
    }
}
