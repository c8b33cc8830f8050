//! `flotilla members`: what operators do to the members of a group.

use std::time::Duration;

use daemon::{Code, Failure};
use serde_json::json;

use crate::output::{Output, refused};
use crate::status;
use crate::units;
use crate::whereabouts::Endpoints;

/// The arguments of `flotilla members`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    endpoints: Endpoints,
    /// How long to wait for an answer
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = units::milliseconds,
        default_value = "10s",
        global = true
    )]
    timeout: u64,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Hand the leadership over to another member, before its machine is stopped for example
    ///
    /// Requests wait for the moment that it takes; none fails. A leader that is stopped with SIGTERM
    /// does this by itself. The members of a log and the coordinators of MapReduce are members
    /// of a group too: name one with --endpoints.
    Transfer {
        /// The member that is to lead [default: the one that has most of the log]
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
}

/// Does it, and says who leads.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let Command::Transfer { to } = arguments.command;
    let limit = Duration::from_millis(arguments.timeout);
    let answers = status::ask(arguments.endpoints.resolve()?, limit).await;
    if let Some(error) = status::malformed(&answers) {
        return Err(refused(error));
    }
    let heard =
        answers.iter().filter_map(|(endpoint, answer)| Some((endpoint, answer.as_ref().ok()?)));
    let heard: Vec<_> = heard.collect();
    if heard.is_empty() {
        let asked: Vec<&str> = answers.keys().map(String::as_str).collect();
        let message = format!("no member answers at {}", asked.join(", "));
        return Err(Failure::new(Code::Unreachable, message));
    }
    if heard.iter().any(|(_, reply)| reply.group != heard[0].1.group) {
        let message = "these are members of several groups: name those of one with --endpoints";
        return Err(Failure::new(Code::WrongCall, message));
    }
    let leader = status::leader(heard.iter().map(|(_, reply)| *reply));
    let Some((endpoint, before)) =
        heard.iter().find(|(_, reply)| leader.is_some_and(|leader| leader.node == reply.node))
    else {
        return Err(Failure::new(Code::Failed, "the group has no leader, or it does not answer"));
    };
    let leads = client::admin::transfer(endpoint, to, limit).await.map_err(refused)?;
    let text = match leads == before.node {
        true => format!("member {leads} leads, as before"),
        false => format!("member {leads} leads; before it was member {}", before.node),
    };
    output.result(&text, &json!({ "leader": leads, "before": before.node }))
}
