//! `flotilla demo`: what Flotilla does and survives, in under a minute, on real processes.
//!
//! Three acts: [`keys`] kills the leader of the key/value store while it is written to, [`words`]
//! kills a worker while it holds a task of a word count, [`shards`] lets a second group take over half
//! of the keys under load. [`load`] writes, [`corpus`] makes the text, [`count`] checks the result,
//! [`report`] tells the story.

pub mod corpus;
pub mod count;
mod keys;
mod load;
mod report;
mod shards;
mod words;

use std::path::PathBuf;
use std::time::Duration;

use daemon::{Code, Failure, Shutdown};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::local::{Cluster, Plan};
use crate::output::Output;
use crate::units;
use report::Story;

pub(crate) const HELP: &str = "\
It starts a cluster of six processes in a temporary directory, writes and reads keys, kills the
leader while it is written to and counts what is left, then counts the words of a text, kills a
worker in the middle of it and compares the result with a count made without MapReduce. At last it
starts two groups and a shard controller, and moves half of the keys from one group to the other
while they are written to.

Examples:
  flotilla demo
  flotilla demo --input ~/books        count the words of these files instead of made-up ones";

/// How many members the key/value store has: one may be lost.
const KV: u16 = 3;

/// How many workers there are: one may be lost.
const WORKERS: u16 = 2;

/// How long the cluster may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The arguments of `flotilla demo`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Count the words of the files in this directory instead of made-up ones
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
    /// Keep the directory with all data and logs
    #[arg(long)]
    keep: bool,
}

/// Runs the demo; it ends well only if every check holds.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let input = arguments.input.as_deref().map(words::Input::of).transpose()?;
    let shutdown = Shutdown::on_signals()?;
    let mut dir = tempfile::Builder::new().prefix("flotilla-demo-").tempdir().map_err(|error| {
        Failure::new(Code::Failed, "no temporary directory can be made").because(error)
    })?;
    if arguments.keep {
        dir.disable_cleanup(true);
    }
    let ended = tokio::select! {
        biased;
        () = shutdown.requested() => {
            Err(Failure::new(Code::Interrupted, "the demo was interrupted; everything was stopped"))
        }
        ended = play(&dir, input, output) => ended,
    };
    if arguments.keep {
        eprintln!("data and logs are in {}", dir.path().display());
    }
    ended
}

async fn play(dir: &TempDir, input: Option<words::Input>, output: Output) -> Result<(), Failure> {
    let mut story = Story::begin(output);
    let mut plan = Plan::new(binary()?, dir.path(), KV, WORKERS);
    plan.slots = Some(1);
    plan.further.coordinator = vec![format!("--lease-ms={}", words::LEASE_MS)];

    story.chapter("A cluster of six processes on this machine")?;
    let began = Instant::now();
    let mut cluster = Cluster::start(&plan)?;
    cluster.ready(READY_TIMEOUT).await?;
    let took = began.elapsed();
    story.say(&format!(
        "{KV} kvd (one replicated key/value store), 1 mr-coordinator and {WORKERS} mr-worker are \
         ready after {}.",
        units::duration(took)
    ))?;
    story.say(&format!(
        "They listen at {} and keep their data in {}.",
        cluster.description().place.ip,
        cluster.dir().display()
    ))?;
    story.duration("start_ms", "to start the cluster", took);

    keys::act(&mut cluster, &mut story).await?;
    words::act(&mut cluster, &mut story, input).await?;

    let stray = cluster.take_ended();
    story.check("no other process ended".to_owned(), stray.is_empty())?;
    for ended in stray {
        eprintln!("{ended}");
    }
    cluster.stop().await;

    shards::act(&dir.path().join("groups"), &mut story).await?;
    story.end()
}

/// What is started.
fn binary() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::new(Code::Failed, "this binary is not found").because(error))
}
