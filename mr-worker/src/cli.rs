//! The command line of a worker: the daemon, its health check, and, hidden, a slot.

use std::{env, ffi::OsString, path::PathBuf};

use daemon::{Code, Failure, addresses, flags, health, runtime, settings};
use proto::BLOBS_DIR;
use serde::Serialize;

use crate::{
    app::Program,
    apps,
    config::Config,
    paths::Root,
    slot::{self, SlotCommand},
    stream::{
        Allowed, Launcher,
        launch::{self, LaunchArguments, launch},
    },
    task::Bench,
    worker,
};

/// The name under which settings are found.
const NAME: &str = "mr-worker";

/// Runs map and reduce tasks for a coordinator with which it shares a filesystem
#[derive(clap::Parser, Debug)]
#[command(name = NAME, version = daemon::version::VERSION)]
struct Arguments {
    #[command(flatten)]
    process: flags::Process,
    #[command(flatten)]
    own: Flags,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The settings of a worker that can be given as flags.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct Flags {
    /// Find coordinators here; several with commas
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: Option<String>,
    /// The directory that coordinator and workers share
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// A name that no other worker has, instead of host name and admin port
    #[arg(long)]
    name: Option<String>,
    /// Run this many tasks at a time; 0: as many as there are processors
    #[arg(long, value_name = "COUNT")]
    slots: Option<u32>,
    /// Keep so many tasks ready for each slot; 0: none
    #[arg(long, value_name = "COUNT")]
    prefetch: Option<u32>,
    /// The memory of one slot for sorting, combining and merging
    #[arg(long, value_name = "BYTES")]
    memory_bytes: Option<u64>,
    /// How long tasks may go on after the wish to stop
    #[arg(long, value_name = "MILLISECONDS")]
    drain_grace_ms: Option<u64>,
    /// After how long without any coordinator to give up
    #[arg(long, value_name = "MILLISECONDS")]
    coordinator_lost_timeout_ms: Option<u64>,
    /// Serve metrics and health over HTTP on this address
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Have the apps by which the labs test a MapReduce, too: they crash and dawdle
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    lab_apps: Option<bool>,
    /// Run programs that jobs bring or name, which can do whatever this worker's user can
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_exec: Option<bool>,
    /// Keep so much of what an attempt says on standard error in its log; 0: nothing
    #[arg(long, value_name = "BYTES")]
    log_bytes_max: Option<u64>,
    /// Accept an admin address that other machines can reach
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: Option<bool>,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Ask the worker whether it is ready
    Health,
    /// Run tasks for the worker that started this process
    #[command(hide = true)]
    Slot(SlotArguments),
    /// Become a program, within limits, for the slot that started this process
    #[command(hide = true)]
    Launch(LaunchArguments),
}

#[derive(clap::Args, Debug)]
struct SlotArguments {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    memory_bytes: usize,
    #[arg(long)]
    lab_apps: bool,
    #[arg(long)]
    allow_exec: bool,
}

/// The body of a worker's `main`, with the apps that it has of its own, which go before built-in
/// ones of the same name. `slot_prefix` is what must stand before the subcommand `slot` when this
/// very program is started again.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    slot_prefix: &[&str],
    own: &'static [&'static dyn Program],
) -> Code {
    runtime::main(NAME, || {
        let arguments: Arguments = flags::parse(arguments)?;
        match &arguments.command {
            Some(Command::Slot(slot)) => return Ok(serve_slot(slot, slot_prefix, own)?),
            Some(Command::Launch(program)) => return Err(launch(program).into()),
            Some(Command::Health) | None => {}
        }
        let given = flags::given(&[&arguments.process, &arguments.own])?;
        let file = arguments.process.config.as_deref();
        let config: Config =
            settings::load(NAME, &Config::default(), file, env::vars_os(), &given)?;
        match arguments.command {
            Some(Command::Health) => {
                let admin = addresses::resolve("admin", &config.admin)?;
                Ok(health::run(NAME, admin)?)
            }
            Some(Command::Slot(_) | Command::Launch(_)) | None => {
                let slot = this_program(slot_prefix);
                let programs = apps::all(own, config.lab_apps);
                runtime::run(NAME, &config.process, &config, |shutdown| {
                    worker::run(&config, &programs, slot, shutdown)
                })
            }
        }
    })
}

fn serve_slot(
    slot: &SlotArguments,
    prefix: &[&str],
    own: &[&'static dyn Program],
) -> Result<(), Failure> {
    let programs = &apps::all(own, slot.lab_apps);
    let root = Root::open(&slot.root).map_err(|error| {
        Failure::configuration("a slot cannot open the shared root").because(error)
    })?;
    let allowed = slot.allow_exec.then(|| Allowed {
        launcher: Launcher::of_this_program(prefix),
        blobs: root.path().join(BLOBS_DIR),
    });
    let programs_of_jobs = allowed.as_ref();
    slot::serve(&Bench {
        programs,
        root: &root,
        memory_bytes: slot.memory_bytes,
        // A part is synced by the worker, together with others, unless what goes wrong is known
        // only here.
        durable: root.is_remote(),
        programs_of_jobs,
    })
}

/// How to start this program again as a slot.
fn this_program(slot_prefix: &[&str]) -> SlotCommand {
    let arguments = slot_prefix.iter().chain(&["slot"]).map(OsString::from).collect();
    SlotCommand { program: launch::this_program(), arguments }
}
