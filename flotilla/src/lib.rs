//! The user's one binary: the command line, a local cluster, the demo, and every daemon by its name.
//!
//! Decides what a call of the binary means: a daemon, if it is named like one or told to be one;
//! else a command ([`cli`]). What daemons do is in their own crates; what a command does is in the
//! module of its name. Commands end with the exit codes of [`daemon::Code`].

mod backup;
mod bench;
mod cli;
pub mod demo;
mod kv;
pub mod local;
mod lock;
mod log;
mod members;
mod mr;
mod output;
mod proto_files;
mod recover;
mod status;
mod up;
mod whereabouts;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use daemon::{Code, Failure, units};
use local::process::{LEASH, leash};

/// The name of the binary, and of the commands' voice.
const NAME: &str = "flotilla";

/// The body of the binary's `main`.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> Code {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let arguments = match unleashed(arguments) {
        Ok(arguments) => arguments,
        Err(failure) => {
            failure.print(NAME);
            return failure.code();
        }
    };
    match Daemon::meant(&arguments) {
        Some((daemon, arguments)) => daemon.run(arguments),
        None => cli::main(arguments),
    }
}

/// A daemon that this binary can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Kvd,
    Raftd,
    MrCoordinator,
    MrWorker,
    /// The controller, and its command line.
    Shardctl,
}

impl Daemon {
    fn named(name: &OsStr) -> Option<Self> {
        match name.to_str()? {
            "kvd" => Some(Self::Kvd),
            "raftd" => Some(Self::Raftd),
            "mr-coordinator" => Some(Self::MrCoordinator),
            "mr-worker" => Some(Self::MrWorker),
            "shardctl" => Some(Self::Shardctl),
            _ => None,
        }
    }

    /// The daemon that a call means, and the call as the daemon's own binary would see it: the
    /// binary may be a link of the daemon's name, or its first argument be that name. By hand,
    /// since clap's multicall refuses every other name for the binary.
    fn meant(arguments: &[OsString]) -> Option<(Self, Vec<OsString>)> {
        let name = |argument: &OsString| Path::new(argument).file_name().and_then(Self::named);
        if let Some(daemon) = arguments.first().and_then(name) {
            return Some((daemon, arguments.to_vec()));
        }
        let daemon = arguments.get(1).and_then(|argument| Self::named(argument))?;
        Some((daemon, arguments[1..].to_vec()))
    }

    fn run(self, arguments: Vec<OsString>) -> Code {
        match self {
            Self::Kvd => kvd::main(arguments),
            Self::Raftd => raftd::log::main(arguments),
            Self::MrCoordinator => mr_coordinator::main(arguments),
            Self::Shardctl => shardctl::main_beside(arguments, whereabouts::controllers),
            // Slots are this very binary again, which has to be told what it is.
            Self::MrWorker => mr_worker::cli::main(arguments, &["mr-worker"], &[]),
        }
    }
}

/// The arguments without the leash that the starter of a local cluster puts in front, once that
/// is fastened.
fn unleashed(mut arguments: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    if arguments.get(1).is_none_or(|argument| argument != LEASH) {
        return Ok(arguments);
    }
    let parent = arguments.get(2).and_then(|parent| parent.to_str()).unwrap_or_default().to_owned();
    arguments.drain(1..arguments.len().min(3));
    match leash(&parent) {
        Ok(true) => Ok(arguments),
        Ok(false) => Err(Failure::machine("the process that started this one has ended")),
        Err(error) => {
            Err(Failure::machine("this process cannot be tied to its parent's life").because(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(call: &str) -> Option<(Daemon, String)> {
        let arguments: Vec<OsString> = call.split(' ').map(OsString::from).collect();
        let (daemon, rest) = Daemon::meant(&arguments)?;
        Some((daemon, rest.join(OsStr::new(" ")).into_string().unwrap()))
    }

    #[test]
    fn a_link_with_a_daemons_name_is_that_daemon() {
        for (call, daemon) in [
            ("kvd --help", Daemon::Kvd),
            ("./raftd --help", Daemon::Raftd),
            ("/usr/bin/mr-worker --help", Daemon::MrWorker),
            ("./mr-coordinator --help", Daemon::MrCoordinator),
            ("/bin/shardctl serve --help", Daemon::Shardctl),
        ] {
            assert_eq!(meant(call), Some((daemon, call.to_owned())));
        }
    }

    #[test]
    fn the_first_argument_may_name_a_daemon_and_then_is_dropped() {
        let expected = (Daemon::Kvd, "kvd --node 2 mr-worker".to_owned());
        assert_eq!(meant("flotilla kvd --node 2 mr-worker"), Some(expected));
        assert_eq!(meant("anything mr-worker"), Some((Daemon::MrWorker, "mr-worker".to_owned())));
    }

    #[test]
    fn other_calls_are_commands() {
        for call in ["flotilla", "flotilla kv get kvd", "flotilla --json kvd", "kvd2"] {
            assert_eq!(meant(call), None, "{call}");
        }
    }
}
