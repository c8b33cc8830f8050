//! Replays a seed, searches a range of them, or sees whether planted bugs are found.

mod mutants;
mod sweep;

use std::{
    io::{self, Write},
    ops::{ControlFlow, Range},
    process::ExitCode,
    time::Instant,
};

use clap::{Args, Parser, Subcommand};
use flotilla_sim::{CHAOS_US, Faults, Options, Report, TICK_US, Tally, run, trace::Listener};

/// Runs simulated Raft groups from seeds. Exits 1 if an invariant is broken.
#[derive(Debug, Parser)]
#[command(name = "flotilla-sim", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds to run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    #[command(flatten)]
    world: WorldArguments,
    /// Print every line of the trace
    #[arg(long)]
    trace: bool,
    /// Go on after a failure, and print one line for each
    #[arg(long)]
    keep_going: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs many seeds on all cores, and prints for each failure the command that shows it again
    Sweep {
        /// The seeds, as `A..B`; B is not run
        #[arg(long, value_parser = seeds)]
        seeds: Range<u64>,
        /// End with the first failure
        #[arg(long)]
        until_failure: bool,
        #[command(flatten)]
        world: WorldArguments,
    },
    /// Plants each bug of sim/bugs in a copy of the sources, and runs seeds until one shows it
    Mutants {
        /// The name of a bug, without `.patch`; all, if none is given
        #[arg(long)]
        only: Vec<String>,
        /// How many seeds have to do
        #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// Only see whether the patches fit, and say what they do
        #[arg(long)]
        check: bool,
    },
}

/// What the world of a seed is like, besides what the seed says.
#[derive(Clone, Copy, Debug, Args)]
struct WorldArguments {
    /// How many members a group has; by default 1, 3 and 5 in turn
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=7))]
    members: Option<u64>,
    /// How many seconds of virtual time faults happen for
    #[arg(long, default_value_t = CHAOS_US / 1_000_000, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// The same in ticks of 10 ms
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..=8_640_000))]
    ticks: Option<u64>,
    /// The faults and clients of the labs' unreliable churn, instead of what the seed draws
    #[arg(long)]
    labs: bool,
    /// The real store on every member's disk, whatever the seed draws
    #[arg(long)]
    store: bool,
    /// The key/value store in every group, whatever the seed draws
    #[arg(long)]
    kv: bool,
}

impl WorldArguments {
    fn options(&self, seed: u64) -> Options {
        let chaos_us = self.ticks.map_or(self.seconds * 1_000_000, |ticks| ticks * TICK_US);
        let members = self.members.unwrap_or([1, 3, 5][usize::try_from(seed % 3).unwrap_or(0)]);
        let faults = if self.labs { Faults::Labs } else { Faults::Drawn };
        let Self { store, kv, .. } = *self;
        Options { chaos_us, faults, store, kv, ..Options::new(seed, members) }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Sweep { seeds, until_failure, world }) => {
            return sweep::sweep(seeds, until_failure, |seed| world.options(seed));
        }
        Some(Command::Mutants { only, seeds, check }) => {
            return mutants::mutants(&only, seeds, check);
        }
        None => {}
    }
    let mut total = Total::new();
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.count) {
        let report = run(arguments.world.options(seed), arguments.trace.then(printer));
        total.add(&report);
        if tell(&arguments, &report).is_break() {
            break;
        }
    }
    total.tell()
}

/// What several runs amount to.
#[derive(Debug)]
struct Total {
    begun: Instant,
    tally: Tally,
    virtual_us: u64,
    failures: u64,
}

impl Total {
    #[allow(clippy::disallowed_methods, reason = "how fast the simulator is, is no part of a run")]
    fn new() -> Self {
        Self { begun: Instant::now(), tally: Tally::default(), virtual_us: 0, failures: 0 }
    }

    fn add(&mut self, report: &Report) {
        self.tally.add(&report.tally);
        self.virtual_us += report.virtual_us;
        self.failures += u64::from(report.failure.is_some());
    }

    fn tell(self) -> ExitCode {
        let Self { begun, tally, virtual_us, failures } = self;
        let seconds = virtual_us / 1_000_000;
        let passed = begun.elapsed();
        let speed = seconds as f64 / passed.as_secs_f64().max(0.001);
        // Beside what is printed, which is the same for the same seeds.
        eprintln!("{speed:.0} virtual seconds a second, for {:.1} s", passed.as_secs_f64());
        let said =
            writeln!(io::stdout(), "{seconds} virtual seconds, {failures} failures, {tally:?}");
        if said.is_err() || failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Tells how a run went. Whether to go on.
fn tell(arguments: &Arguments, report: &Report) -> ControlFlow<()> {
    let said = match &report.failure {
        Some(failure) if !arguments.keep_going => writeln!(io::stdout(), "{failure}"),
        Some(_) | None => Ok(()),
    };
    let said = said.and_then(|()| writeln!(io::stdout(), "{}", line(report)));
    let stops = report.failure.is_some() && !arguments.keep_going;
    if said.is_err() || stops { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// A run in one line.
fn line(report: &Report) -> String {
    let Report { options: Options { seed, members, .. }, lines, trace_hash, .. } = report;
    let what = report.failure.as_ref().map(|failure| failure.violation.to_string());
    let what = what.as_deref().and_then(|what| what.lines().next()).unwrap_or("ok");
    format!("seed {seed} members {members} {what}, {lines} lines, trace {trace_hash}")
}

/// `A..B`, with something in between.
fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || "seeds are given as A..B, with A below B".to_owned();
    let (from, to) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let seeds = number(from)?..number(to)?;
    if seeds.is_empty() { Err(wrong()) } else { Ok(seeds) }
}

/// Prints the lines of a trace. When nobody reads them any more, there is nothing left to do.
fn printer() -> Listener {
    Box::new(|line| {
        if writeln!(io::stdout(), "{line}").is_err() {
            std::process::exit(0);
        }
    })
}
