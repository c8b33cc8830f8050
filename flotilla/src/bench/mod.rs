//! `flotilla bench`: how fast a service is, seen by clients that wait for each answer.
//!
//! Without endpoints a cluster of its own is started ([`own`]), and then it is also told what the
//! members spent: fdatasyncs and processor time. Clients and members share this machine's processors
//! then, so the clients are kept cheap: one thread, a few connections.

mod forward;
mod groups;
mod join;
mod kv;
mod log;
mod measure;
mod moves;
mod own;
mod scale;
mod scale_chart;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use daemon::{Code, Failure};
use measure::{Step, table};
use serde_json::{Value, json};

use crate::output::Output;
use crate::units;

/// The most clients of one step: each is a task with a request in flight.
const CLIENTS_MAX: u32 = 4_096;

/// The most of `scale`, which has many on purpose.
const CLIENTS_SCALE_MAX: u32 = 100_000;

/// The arguments of `flotilla bench`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Measure the key/value store: puts, then linearizable gets
    Kv(kv::Arguments),
    /// Measure how long it takes a group to join, and what is served meanwhile
    Join(join::Arguments),
    /// Measure what clients notice of shards that move
    Moves(moves::Arguments),
    /// Measure one store of more and more members and groups, and draw it
    Scale(scale::Arguments),
    /// Measure what a request costs that is asked of another group, or of a router
    Forward(forward::Arguments),
    /// Measure the log: appends of one entry each
    Log(log::Arguments),
}

/// What every benchmark can be told.
#[derive(clap::Args, Clone, Debug)]
struct Usual {
    /// How long a value is
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "256")]
    value_bytes: u64,
    /// How long each step is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// How many members the own cluster has
    #[arg(long, value_name = "COUNT", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=7))]
    members: u16,
    /// Where the own cluster keeps its data [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Usual {
    fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    fn value(&self) -> Bytes {
        let bytes = usize::try_from(self.value_bytes).expect("a value's limit was checked");
        Bytes::from(vec![b'v'; bytes])
    }
}

/// What is known so far.
struct Report {
    output: Output,
    steps: Vec<Step>,
}

impl Report {
    fn begin(&self, operation: &str, clients: u32) {
        self.note(&format!("measuring {operation} with {clients} clients"));
    }

    /// Tells what came of it, and fails if requests did.
    fn end(&self, text: &str, value: &Value, failures: u64) -> Result<(), Failure> {
        self.output.result(text, value)?;
        match failures {
            0 => Ok(()),
            _ => Err(Failure::new(Code::Failed, format!("{failures} requests failed"))),
        }
    }

    /// Says what is being done.
    fn note(&self, doing: &str) {
        if !self.output.is_json() {
            eprintln!("{doing} ...");
        }
    }
}

/// Measures.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let mut report = Report { output, steps: Vec::new() };
    let value_bytes = match &arguments.command {
        Command::Kv(arguments) => kv::run(arguments, &mut report).await?,
        Command::Log(arguments) => log::run(arguments, &mut report).await?,
        Command::Forward(arguments) => return forward::run(arguments, &report).await,
        Command::Join(arguments) => return join::run(arguments, &report).await,
        Command::Moves(arguments) => return moves::run(arguments, &report).await,
        Command::Scale(arguments) => return scale::run(arguments, &report).await,
    };
    let steps = &report.steps;
    let values: Vec<Value> = steps.iter().map(Step::value).collect();
    let failures = steps.iter().map(|step| step.failures).sum();
    report.end(&table(steps), &json!({ "value_bytes": value_bytes, "steps": values }), failures)
}
