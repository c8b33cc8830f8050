//! Small jobs on warm workers: the labs' word count, and many tasks with nothing to do.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Settings,
    cluster::{Cluster, Job, MEMORY_BYTES_DEFAULT, Workers},
    contestants,
    inputs::Inputs,
    process,
    report::{Bar, Report, median},
    works::{Work, looked_at},
};
use crate::digest::{Form, files};

/// Two workers with a slot each, as the labs would have them, with the usual lease.
const WORKERS: Workers = Workers {
    count: 2,
    slots: 1,
    memory_bytes: MEMORY_BYTES_DEFAULT,
    lease: Duration::from_secs(10),
};

/// How often the labs' job is run in each round: it is short.
const LABS_JOBS: u32 = 10;

/// How many reduces the labs' job has.
const LABS_REDUCES: &str = "10";

/// How long the labs' job may take, in milliseconds.
const LABS_MS_MAX: f64 = 150.0;

/// How many tasks there are with nothing to do.
const TASKS: u64 = 10_000;

/// How many of them are to be done a second.
const TASKS_PER_SECOND_MIN: f64 = 1_000.0;

/// The labs' word count of these books, from the submission to its success.
///
/// # Errors
/// That there are no books, or that a job fails or counts otherwise than P.
pub(super) fn labs(settings: &Settings, inputs: &Inputs, books: &Path) -> Result<Report> {
    let copies = inputs.scratch().join("books");
    fs::create_dir(&copies)?;
    for book in files(books)? {
        let name = book.file_name().context("a book has no name")?;
        fs::copy(&book, copies.join(name))?;
    }
    let count = files(&copies)?.len();
    let counted = inputs.scratch().join("counted");
    let mut p = contestants::by_hand(Work::Wc, &[copies, counted.clone()])?;
    process::run(&mut p, &inputs.scratch())?;
    let expected = looked_at(&counted, &Form::Counts, None)?;
    let mut cluster = Cluster::start(settings, inputs, WORKERS)?;
    let input = Inputs::scratch_name("books");
    let arguments = [
        "--app",
        "wc",
        "--input-format",
        "whole",
        "--output-format",
        "lab",
        "--reduces",
        LABS_REDUCES,
        "--input",
        &input,
    ];
    let mut job = || -> Result<Job> {
        let job = cluster.job(&arguments)?;
        looked_at(&job.output, &Form::Counts, Some(expected))?;
        Ok(job)
    };
    // The first one starts the processes of the slots.
    job()?;
    let jobs: Vec<Job> = (0..settings.rounds * LABS_JOBS).map(|_| job()).collect::<Result<_>>()?;
    let all: Vec<f64> = jobs.iter().map(|job| job.seconds * 1e3).collect();
    let middle = median(all.iter().copied()).context("there is a round")?;
    let coordinator = median(jobs.iter().map(|job| job.coordinator_ms as f64)).unwrap_or_default();
    let slowest = all.iter().copied().fold(0.0, f64::max);
    let cells = |name: &str, value: f64| vec![name.to_owned(), format!("{value:.0}")];
    Ok(Report {
        title: format!("labs: wc of {count} books, {} jobs on warm workers", jobs.len()),
        rows: vec![
            vec![String::new(), "ms".to_owned()],
            cells("`flotilla mr submit --wait`, median", middle),
            cells("the slowest", slowest),
            cells("by the coordinator's clock, median", coordinator),
        ],
        bars: vec![Bar::at_most(
            format!("ms from the start of `submit` to SUCCEEDED, at most {LABS_MS_MAX}"),
            LABS_MS_MAX,
            middle,
        )],
        figures: json!({ "milliseconds": all, "coordinator_milliseconds":
            jobs.iter().map(|job| job.coordinator_ms).collect::<Vec<_>>() }),
        ..Report::default()
    })
}

/// Many maps of an empty file each: once with a result each, which is synchronised and published,
/// once with a reduce that finds nothing.
///
/// # Errors
/// That a job fails, or does not have all results.
pub(super) fn tasks(settings: &Settings, inputs: &Inputs) -> Result<Report> {
    let count = inputs.scaled(TASKS);
    let directory = inputs.scratch().join("empty");
    fs::create_dir(&directory)?;
    for number in 0..count {
        fs::write(directory.join(format!("{number:05}")), "")?;
    }
    let mut cluster = Cluster::start(settings, inputs, WORKERS)?;
    let (one, all) = (Inputs::scratch_name("empty/00000"), Inputs::scratch_name("empty"));
    let mut run = |input: &str, reduces: &str, results: u64| -> Result<f64> {
        let flags = ["--app", "grep", "-D", "pattern=x", "--input-format", "whole"];
        let more = ["--reduces", reduces, "--input", input];
        let job = cluster.job(&[&flags[..], &more].concat())?;
        let found = files(&job.output)?.len() as u64;
        ensure!(found == results, "there are {found} results, not {results}");
        fs::remove_dir_all(&job.output)?;
        Ok(job.seconds)
    };
    // A small one starts the processes of the slots.
    run(&one, "0", 1)?;
    let (mut published, mut reduced) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        published.push(run(&all, "0", count)?);
        reduced.push(run(&all, "1", 1)?);
    }
    let rate = |seconds: &[f64]| median(seconds.iter().map(|it| count as f64 / it));
    let (published_rate, reduced_rate) = (rate(&published), rate(&reduced));
    let row = |name: &str, rate: Option<f64>| {
        vec![name.to_owned(), format!("{:.0}", rate.unwrap_or_default())]
    };
    Ok(Report {
        title: format!("tasks: {count} empty ones, {} jobs of either kind", published.len()),
        rows: vec![
            vec![String::new(), "tasks a second".to_owned()],
            row("a result of each published (`--reduces 0`)", published_rate),
            row("one reduce", reduced_rate),
        ],
        bars: vec![Bar::at_least(
            format!("tasks a second with `--reduces 0`, at least {TASKS_PER_SECOND_MIN}"),
            TASKS_PER_SECOND_MIN,
            published_rate.context("there is a round")?,
        )],
        figures: json!({ "tasks": count, "published_seconds": published,
            "reduced_seconds": reduced }),
        ..Report::default()
    })
}
