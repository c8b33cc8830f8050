//! The command line: what can be asked for, and what `--help` teaches.
//!
//! Decides how arguments become a command and how a command's failure becomes an exit code.

use std::ffi::OsString;

use clap::Parser;
use daemon::{Code, Failure, version};
use tokio::runtime::Builder;

use crate::output::Output;
use crate::{backup, bench, demo, kv, lock, log, members, mr, proto_files, status, up};

const EXAMPLES: &str = "\
Try it:
  flotilla demo                                 see it survive its own failures, in a minute
  flotilla up                                   a cluster on this machine, until Ctrl-C
  flotilla up --groups 2                        one whose keys are shared by two groups
  flotilla kv put greeting hello                then, in another terminal
  flotilla kv get greeting
  flotilla status
  flotilla mr submit --app wc --input 'books/*.txt' --output counts --wait

Daemons (each has its own --help, and is also what a link of its name to this binary is):
  flotilla kvd               a member of the key/value store
  flotilla kvd route         serves the stores of many groups as one
  flotilla raftd             a member of a replicated log
  flotilla mr-coordinator    schedules MapReduce jobs
  flotilla mr-worker         runs their tasks
  flotilla shardctl serve    a member of the shard controller; `flotilla shardctl` is its command line

Exit codes: 0 done, 1 failed, 2 wrong call, 3 nobody answered, 4 cancelled, 5 exists already,
6 not found, 7 unknown (it may have been executed), 130 interrupted.";

/// A replicated key/value store, a replicated log and a MapReduce engine: one binary for all of it
#[derive(Parser, Debug)]
#[command(name = "flotilla", version = version::VERSION, after_help = EXAMPLES)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    /// Print results, and failures, as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Show in under a minute what Flotilla does, and that it survives failures
    #[command(after_help = demo::HELP)]
    Demo(demo::Arguments),
    /// Run a cluster on this machine until Ctrl-C
    #[command(after_help = up::HELP)]
    Up(up::Arguments),
    /// Read, write and watch keys
    #[command(after_help = kv::HELP)]
    Kv(kv::Arguments),
    /// Run a command while holding a lock, or look at one
    #[command(after_help = lock::HELP)]
    Lock(lock::Arguments),
    /// Append to a replicated log, read and trim it
    #[command(after_help = log::HELP)]
    Log(log::Arguments),
    /// Ask every member how it is: who leads, terms, indexes, lag
    Status(status::Arguments),
    /// Who belongs to a group and who leads it; recover from the loss of a majority
    Members(members::Arguments),
    /// Write the state of a running cluster to a file
    #[command(after_help = backup::BACKUP_HELP)]
    Backup(backup::BackupArguments),
    /// Make a new cluster of a backup
    #[command(after_help = backup::RESTORE_HELP)]
    Restore(backup::RestoreArguments),
    /// Submit, watch and cancel MapReduce jobs
    #[command(after_help = mr::HELP)]
    Mr(mr::Arguments),
    /// Measure
    Bench(bench::Arguments),
    /// Write the .proto files, for clients in other languages
    Proto(proto_files::Arguments),
}

/// The body of the command line.
pub(crate) fn main(arguments: Vec<OsString>) -> Code {
    let program = arguments
        .first()
        .map_or_else(|| crate::NAME.to_owned(), |program| program.to_string_lossy().into_owned());
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about a closed terminal, and the exit code still tells.
            let _ = error.print();
            return if error.use_stderr() { Code::WrongCall } else { Code::Done };
        }
    };
    let output = Output::new(crate::NAME, cli.json);
    match run(cli.command, &program, output) {
        Ok(()) => Code::Done,
        Err(failure) => {
            output.failure(&failure);
            failure.code()
        }
    }
}

/// Commands wait more than they compute, so one thread does.
fn run(command: Command, program: &str, output: Output) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, "the runtime cannot start").because(error))?;
    runtime.block_on(async {
        match command {
            Command::Demo(arguments) => demo::run(arguments, output).await,
            Command::Up(arguments) => up::run(arguments, program, output).await,
            Command::Kv(arguments) => kv::run(arguments, output).await,
            Command::Lock(arguments) => lock::run(arguments, output).await,
            Command::Log(arguments) => log::run(arguments, output).await,
            Command::Status(arguments) => status::run(arguments, output).await,
            Command::Members(arguments) => members::run(arguments, output).await,
            Command::Backup(arguments) => backup::backup(arguments, output).await,
            Command::Restore(arguments) => backup::restore(arguments, output).await,
            Command::Mr(arguments) => mr::run(arguments, output).await,
            Command::Bench(arguments) => bench::run(arguments, output).await,
            Command::Proto(arguments) => proto_files::run(&arguments, output),
        }
    })
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
        let code = |call: &str| main(call.split(' ').map(OsString::from).collect());
        assert_eq!(code("flotilla --help"), Code::Done);
        assert_eq!(code("flotilla --version"), Code::Done);
        for call in [
            "flotilla",
            "flotilla sink",
            "flotilla kv",
            "flotilla kv get",
            "flotilla kv get key --colour blue",
            "flotilla kv put key value --if-version -1",
            "flotilla log",
            "flotilla log trim",
            "flotilla log trim 0",
            "flotilla log tail --last 1 --from 1",
            "flotilla kv get key --timeout soon",
            "flotilla mr submit --app wc",
            "flotilla backup",
            "flotilla restore",
            "flotilla restore file --check data",
        ] {
            assert_eq!(code(call), Code::WrongCall, "{call}");
        }
    }
}
