//! Many seeds on all cores.
//!
//! Each run is a world of its own on one thread, so that which thread takes which seed changes
//! nothing. What is printed is in the order of the seeds: two sweeps by one build print the same.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
    process::ExitCode,
    sync::{Mutex, mpsc},
    thread,
};

use flotilla_sim::{Options, Report, run};

use crate::{Total, line};

/// Runs the seeds and prints a line for each; one that fails is followed by the command that shows
/// it again, and all those commands stand at the end once more.
pub(crate) fn sweep(
    seeds: Range<u64>,
    until_failure: bool,
    options: impl Fn(u64) -> Options + Sync,
) -> ExitCode {
    let first = seeds.start;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (reports, finished) = mpsc::sync_channel(threads);
    let seeds = Mutex::new(seeds);
    let next = || seeds.lock().ok()?.next();
    let (total, commands) = thread::scope(|scope| {
        for _ in 0..threads {
            let reports = reports.clone();
            scope.spawn(|| {
                let reports = reports;
                // When nobody listens any more there is nothing left to do.
                while let Some(seed) = next() {
                    if reports.send((seed, run(options(seed), None))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(reports);
        listen(first, until_failure, finished)
    });
    for command in commands {
        if writeln!(io::stdout(), "again: {command}").is_err() {
            return ExitCode::FAILURE;
        }
    }
    total.tell()
}

/// Tells of the runs in the order of their seeds. What they amount to, and what shows the failures
/// again.
fn listen(
    first: u64,
    until_failure: bool,
    finished: mpsc::Receiver<(u64, Report)>,
) -> (Total, Vec<String>) {
    let (mut total, mut commands) = (Total::new(), Vec::new());
    let mut early = BTreeMap::new();
    let mut next = first;
    for (seed, report) in finished {
        early.insert(seed, report);
        while let Some(report) = early.remove(&next) {
            next += 1;
            total.add(&report);
            let again = report.failure.is_some().then(|| report.options.command());
            let said = writeln!(io::stdout(), "{}", line(&report)).and_then(|()| match &again {
                Some(command) => writeln!(io::stdout(), "  again: {command}"),
                None => Ok(()),
            });
            let failed = again.is_some();
            commands.extend(again);
            if said.is_err() || (failed && until_failure) {
                return (total, commands);
            }
        }
    }
    (total, commands)
}
