//! What it costs when one of two workers is killed at half time, and when one is slowed ten times.
//!
//! Slowed means stopped for nine tenths of every tenth of a second, its slots too. Then 1.1 of two
//! workers are left, so even an engine that knows it beforehand needs 1.8 times as long; what is
//! held against ours is that even split.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::json;

use super::{
    Settings,
    cluster::{Cluster, Job, MEMORY_BYTES_DEFAULT, Workers},
    inputs::{Data, Inputs},
    process::{family, signal_all},
    report::{Bar, Report, median, seconds},
    works::looked_at,
};
use crate::digest::{Digest, Form};

/// After how much silence a worker counts as lost.
const LEASE: Duration = Duration::from_secs(2);

const WORKERS: Workers =
    Workers { count: 2, slots: 1, memory_bytes: MEMORY_BYTES_DEFAULT, lease: LEASE };

/// How often the text is counted in one job, so that it takes several leases.
const TIMES: usize = 8;

/// The most rounds: each takes minutes.
const ROUNDS_MAX: u32 = 3;

/// How slow a slowed worker is.
const SLOWED: f64 = 10.0;

/// How long a slowed worker runs, and is stopped, in turns.
const PERIOD: Duration = Duration::from_millis(100);

/// What a kill may cost beside a lease, and slowness over an even split.
const KILL_MAX: f64 = 1.6;
const SLOW_MAX: f64 = 1.4;

/// What befalls one of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// It is killed after so long.
    Kill(Duration),
    /// It is slowed all the time.
    Slow,
}

/// Runs the job without and with faults, in turns.
///
/// # Errors
/// That a job fails, or counts otherwise than before.
pub(super) fn run(settings: &Settings, inputs: &Inputs) -> Result<Report> {
    let (input, _) = inputs.need(Data::Text)?;
    let mut expected = None;
    let mut times: [Vec<f64>; 3] = Default::default();
    let mut retries = [0; 3];
    for round in 1..=settings.rounds.min(ROUNDS_MAX) {
        for place in 0..times.len() {
            let fault = match place {
                0 => Fault::None,
                1 => {
                    let whole = median(times[0].iter().copied()).context("it was run")?;
                    Fault::Kill(Duration::from_secs_f64(whole / 2.0))
                }
                _ => Fault::Slow,
            };
            let (job, digest) = one(settings, inputs, &input, fault, expected)?;
            expected = Some(digest);
            eprintln!("{fault:?} {round}: {} s, {} retries", seconds(job.seconds), job.retries);
            times[place].push(job.seconds);
            retries[place] += job.retries;
            inputs.clear_scratch()?;
        }
    }
    let middle = |place: usize| median(times[place].iter().copied()).unwrap_or_default();
    let (whole, killed, slowed) = (middle(0), middle(1), middle(2));
    let (lease, even) = (LEASE.as_secs_f64(), whole * 2.0 / (1.0 + 1.0 / SLOWED));
    let row = |name: &str, place: usize| {
        let time = middle(place);
        let ratio = format!("{:.2}", time / whole);
        vec![name.to_owned(), seconds(time), ratio, retries[place].to_string()]
    };
    Ok(Report {
        title: format!("faults: wc of {input} {TIMES} times, two workers, a lease of {lease} s"),
        rows: vec![
            ["", "s", "times as long", "retries"].map(str::to_owned).to_vec(),
            row("both well", 0),
            row("one killed at half time", 1),
            row("one slowed ten times", 2),
        ],
        bars: vec![
            Bar::at_most(
                format!("killed: times as long, less one lease, at most {KILL_MAX}"),
                KILL_MAX,
                (killed - lease) / whole,
            ),
            Bar::at_most(
                format!("slowed: times as long as an even split, at most {SLOW_MAX}"),
                SLOW_MAX,
                slowed / even,
            ),
        ],
        figures: json!({ "well": times[0], "killed": times[1], "slowed": times[2] }),
        ..Report::default()
    })
}

fn one(
    settings: &Settings,
    inputs: &Inputs,
    input: &str,
    fault: Fault,
    expected: Option<Digest>,
) -> Result<(Job, Digest)> {
    let mut cluster = Cluster::start(settings, inputs, WORKERS)?;
    // A small one starts the processes of the slots.
    let book = inputs.scratch().join("warm");
    fs::write(&book, "a word\n")?;
    cluster.job(&["--app", "wc", "--input", &Inputs::scratch_name("warm")])?;
    let victim = cluster.worker(0);
    let ended = AtomicBool::new(false);
    let job = thread::scope(|scope| {
        scope.spawn(|| befall(victim, fault, &ended));
        let mut arguments = vec!["--app", "wc", "--input"];
        arguments.extend([input; TIMES]);
        let job = cluster.job(&arguments);
        ended.store(true, Ordering::Relaxed);
        job
    })?;
    let digest = looked_at(&job.output, &Form::Counts, expected)?;
    Ok((job, digest))
}

/// Lets a fault befall a worker, until the job has ended.
fn befall(worker: u32, fault: Fault, ended: &AtomicBool) {
    match fault {
        Fault::None => {}
        Fault::Kill(after) => {
            let at = Instant::now() + after;
            while Instant::now() < at {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(PERIOD / 10);
            }
            signal_all(&[worker], Signal::KILL);
        }
        Fault::Slow => {
            while !ended.load(Ordering::Relaxed) {
                // Its slots may be other processes by now.
                let family = family(worker);
                signal_all(&family, Signal::STOP);
                thread::sleep(PERIOD.mul_f64(1.0 - 1.0 / SLOWED));
                signal_all(&family, Signal::CONT);
                thread::sleep(PERIOD.mul_f64(1.0 / SLOWED));
            }
        }
    }
}
