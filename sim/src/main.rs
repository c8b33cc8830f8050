//! Replays a seed, or searches a range of them.

use std::{
    io::{self, Write},
    ops::ControlFlow,
    process::ExitCode,
};

use clap::Parser;
use flotilla_sim::{CHAOS_US, Options, Report, Tally, run, trace::Listener};

/// Runs simulated Raft groups from seeds. Exits 1 if an invariant is broken.
#[derive(Debug, Parser)]
#[command(name = "flotilla-sim")]
struct Arguments {
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds to run
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// How many members a group has; by default 1, 3 and 5 in turn
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=7))]
    members: Option<u64>,
    /// How many seconds of virtual time faults happen for
    #[arg(long, default_value_t = CHAOS_US / 1_000_000, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Print every line of the trace
    #[arg(long)]
    trace: bool,
    /// Go on after a failure, and print one line for each
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut total = Tally::default();
    let (mut virtual_us, mut failures) = (0, 0_u64);
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.count) {
        let members =
            arguments.members.unwrap_or([1, 3, 5][usize::try_from(seed % 3).unwrap_or(0)]);
        let options =
            Options { chaos_us: arguments.seconds * 1_000_000, ..Options::new(seed, members) };
        let report = run(options, arguments.trace.then(printer));
        total.add(&report.tally);
        virtual_us += report.virtual_us;
        if report.failure.is_some() {
            failures += 1;
        }
        if tell(&arguments, &report).is_break() {
            break;
        }
    }
    let seconds = virtual_us / 1_000_000;
    let said = writeln!(io::stdout(), "{seconds} virtual seconds, {failures} failures, {total:?}");
    if said.is_err() || failures > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Tells how a run went. Whether to go on.
fn tell(arguments: &Arguments, report: &Report) -> ControlFlow<()> {
    let Options { seed, members, .. } = report.options;
    let said = match &report.failure {
        Some(failure) if arguments.keep_going => {
            let what = failure.violation.to_string();
            let what = what.lines().next().unwrap_or_default();
            writeln!(io::stdout(), "seed {seed} members {members} {what}")
        }
        Some(failure) => writeln!(io::stdout(), "{failure}"),
        None if arguments.count == 1 => {
            let Report { trace_hash, lines, tally, .. } = report;
            writeln!(io::stdout(), "{lines} lines, trace {trace_hash}\n{tally:?}")
        }
        None => Ok(()),
    };
    if said.is_err() || (report.failure.is_some() && !arguments.keep_going) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

/// Prints the lines of a trace. When nobody reads them any more, there is nothing left to do.
fn printer() -> Listener {
    Box::new(|line| {
        if writeln!(io::stdout(), "{line}").is_err() {
            std::process::exit(0);
        }
    })
}
