//! The second act: a worker dies while it holds a task of a word count.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{JobClient, Options};
use daemon::{Code, Failure};
use proto::mapreduce::{InputFormat, Job, JobSpec, JobState, OutputFormat};
use tokio::time::{Instant, sleep};

use super::report::Story;
use super::{corpus, count};
use crate::local::cluster::LOOK_INTERVAL;
use crate::local::{Cluster, Instance};
use crate::mr::{explain, has_ended, state_name};
use crate::output::{malformed, refused};
use crate::units;

/// The text that is made: some 100 MB.
const FILES: u32 = 8;
const FILE_BYTES: u64 = 12_500_000;
const SEED: u64 = 2_026;

/// The job: enough tasks that one is in the hands of the worker that dies.
const SPLITS: u64 = 24;
const SPLIT_BYTES_MIN: u64 = 1024;
const REDUCES: u32 = 4;

/// After how long without a sign of life a worker's tasks go to others.
pub(super) const LEASE_MS: u64 = 2_000;

/// How many tasks are in work when every worker holds one.
const ALL_WORKERS: u32 = super::WORKERS as u32;

/// How long the job may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How many words are shown.
const SHOWN: usize = 10;

/// The worker that dies.
const VICTIM: Instance = Instance::Worker(1);

/// Files of the user's to count words in.
#[derive(Clone, Debug)]
pub(super) struct Input {
    files: Vec<PathBuf>,
}

impl Input {
    /// The files directly in a directory.
    ///
    /// # Errors
    /// Not found, when there are none; failed, when the directory cannot be read.
    pub(super) fn of(dir: &Path) -> Result<Self, Failure> {
        let name = dir.display();
        let files = count::files(dir).map_err(|error| {
            let code =
                if error.kind() == io::ErrorKind::NotFound { Code::NotFound } else { Code::Failed };
            Failure::new(code, format!("the directory {name} cannot be read")).because(error)
        })?;
        if files.is_empty() {
            return Err(Failure::new(Code::NotFound, format!("there are no files in {name}")));
        }
        Ok(Self { files })
    }
}

/// Plays the act.
pub(super) async fn act(
    cluster: &mut Cluster,
    story: &mut Story,
    input: Option<Input>,
) -> Result<(), Failure> {
    story.chapter("A word count, and a worker is killed in the middle of it")?;
    let root = cluster.description().root.clone();
    let (files, bytes) = prepare(&root.join("input"), input, story)?;

    let jobs = JobClient::connect(
        cluster.description().coordinator().into_iter().collect(),
        Options::with_deadline(Duration::from_secs(10)),
    )
    .map_err(malformed)?;
    let began = Instant::now();
    let job = submit(&jobs, bytes).await?;
    let (killed, job) = kill_a_busy_worker(cluster, &jobs, job, story).await?;
    let job = finish(&jobs, job, began + PATIENCE).await?;
    let took = began.elapsed();
    let retries = job.maps.unwrap_or_default().retries + job.reduces.unwrap_or_default().retries;
    story.say(&format!(
        "The job has {} after {}: {} map and {} reduce tasks, {retries} of them begun again.",
        state_name(job.state()),
        units::duration(took),
        job.maps.unwrap_or_default().total,
        job.reduces.unwrap_or_default().total,
    ))?;
    if let Some(failure) = &job.failure {
        story.say(&explain(failure))?;
    }
    if killed {
        story.check(
            format!("the job survives the SIGKILL of {VICTIM}, which held a task"),
            retries > 0 && job.state() == JobState::Succeeded,
        )?;
    } else {
        story.say("It was too short to kill a worker in the middle of it.")?;
    }
    let what =
        if killed { "for the word count with a killed worker" } else { "for the word count" };
    story.duration("job_ms", what, took);
    story.number("input_bytes", bytes);
    story.number("retries", retries.into());
    compare(&root, &job, &files, story)
}

/// Puts the text where the workers see it, and answers with its files and size.
fn prepare(
    dir: &Path,
    input: Option<Input>,
    story: &mut Story,
) -> Result<(Vec<PathBuf>, u64), Failure> {
    let failed = |error: io::Error| {
        Failure::new(Code::Failed, "the text cannot be put into place").because(error)
    };
    fs::create_dir_all(dir).map_err(failed)?;
    let began = Instant::now();
    let bytes = match input {
        None => {
            let bytes = corpus::write(dir, FILES, FILE_BYTES, SEED).map_err(failed)?;
            story.say(&format!(
                "A text of {} was made up in {}.",
                units::bytes(bytes),
                units::duration(began.elapsed())
            ))?;
            bytes
        }
        Some(input) => {
            let bytes = input.files.iter().map(|file| place(file, dir)).sum::<io::Result<u64>>();
            let bytes = bytes.map_err(failed)?;
            let files = input.files.len();
            story.say(&format!("The input is {files} files with {}.", units::bytes(bytes)))?;
            bytes
        }
    };
    Ok((count::files(dir).map_err(failed)?, bytes))
}

/// Makes a file of the user's appear in the directory: as a second name for it, else as a copy.
fn place(file: &Path, dir: &Path) -> io::Result<u64> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let source = file.canonicalize()?;
    let there = dir.join(name);
    match fs::hard_link(&source, &there) {
        Ok(()) => Ok(fs::metadata(&there)?.len()),
        Err(_) => fs::copy(&source, &there),
    }
}

async fn submit(jobs: &JobClient, bytes: u64) -> Result<Job, Failure> {
    let spec = JobSpec {
        app: "wc".to_owned(),
        inputs: vec!["input/*".to_owned()],
        output: "counts".to_owned(),
        reduces: REDUCES,
        input_format: InputFormat::Text.into(),
        output_format: OutputFormat::Text.into(),
        split_bytes: (bytes / SPLITS).max(SPLIT_BYTES_MIN),
        lease_ms: LEASE_MS,
        name: "demo".to_owned(),
        ..JobSpec::default()
    };
    let reply = jobs.submit(spec, JobClient::token()).await.map_err(refused)?;
    reply.job.ok_or_else(|| Failure::new(Code::Failed, "the coordinator answered without a job"))
}

/// Kills a worker that holds a task. Whether it does is looked at while it is paused: when all
/// workers together hold a task each, then so does this one. False: the job was too short for it.
async fn kill_a_busy_worker(
    cluster: &mut Cluster,
    jobs: &JobClient,
    mut job: Job,
    story: &mut Story,
) -> Result<(bool, Job), Failure> {
    let busy = |job: &Job| {
        let maps = job.maps.unwrap_or_default();
        maps.committed > 0 && maps.running >= ALL_WORKERS
    };
    while !has_ended(job.state()) {
        if !busy(&job) {
            job = jobs.get(&job.id, job.version.max(1)).await.map_err(refused)?;
            continue;
        }
        cluster.pause(VICTIM)?;
        // What it had reported before has arrived when the state is told twice.
        jobs.get(&job.id, 0).await.map_err(refused)?;
        sleep(LOOK_INTERVAL).await;
        job = jobs.get(&job.id, 0).await.map_err(refused)?;
        if busy(&job) {
            cluster.kill(VICTIM)?;
            let maps = job.maps.unwrap_or_default();
            story.say(&format!(
                "SIGKILL to {VICTIM}, which holds a task, after {} of {} map tasks; after {} \
                 without a sign of life its task goes to the other worker.",
                maps.committed,
                maps.total,
                units::duration(Duration::from_millis(LEASE_MS))
            ))?;
            return Ok((true, job));
        }
        cluster.resume(VICTIM)?;
    }
    Ok((false, job))
}

async fn finish(jobs: &JobClient, mut job: Job, deadline: Instant) -> Result<Job, Failure> {
    while !has_ended(job.state()) {
        if Instant::now() >= deadline {
            return Err(Failure::new(Code::Failed, "the job does not end"));
        }
        job = jobs.get(&job.id, job.version.max(1)).await.map_err(refused)?;
    }
    Ok(job)
}

/// Compares the result with a count that was made without MapReduce, and shows the top of it.
fn compare(root: &Path, job: &Job, files: &[PathBuf], story: &mut Story) -> Result<(), Failure> {
    let unreadable = |error| Failure::new(Code::Failed, "a file cannot be read").because(error);
    let began = Instant::now();
    let expected = count::words(files).map_err(unreadable)?;
    let took = began.elapsed();
    let parts: Vec<PathBuf> = job.outputs.iter().map(|name| root.join(name)).collect();
    let found = count::results(&parts, '\t').map_err(unreadable)?;
    let total: u64 = expected.values().sum();
    story.check(
        format!(
            "its result equals a sequential count ({} words, {} different ones)",
            units::count(total),
            units::count(expected.len() as u64)
        ),
        found == expected,
    )?;
    story.duration("sequential_ms", "for the same count by one plain loop", took);
    story.number("words", total);
    story.say(&format!("The most frequent words:\n{}", top(&found)))
}

fn top(counts: &HashMap<String, u64>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by(|one, other| other.1.cmp(one.1).then(one.0.cmp(other.0)));
    let lines = counts
        .iter()
        .take(SHOWN)
        .map(|(word, number)| format!("{:>14}  {word}", units::count(**number)));
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_words_come_first_and_equals_by_name() {
        let counts = [("b", 2_000), ("a", 2_000), ("c", 3_000)];
        let counts = counts.map(|(word, number)| (word.to_owned(), number)).into();
        let shown = top(&counts);
        let lines: Vec<&str> = shown.lines().map(str::trim).collect();
        assert_eq!(lines, ["3,000  c", "2,000  a", "2,000  b"]);
    }

    #[test]
    fn input_that_matches_nothing_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Input::of(dir.path()).unwrap_err().code(), Code::NotFound);
        assert_eq!(Input::of(&dir.path().join("none")).unwrap_err().code(), Code::NotFound);
        fs::write(dir.path().join(".hidden"), "x").unwrap();
        assert!(Input::of(dir.path()).is_err());
        fs::write(dir.path().join("seen"), "x").unwrap();
        assert_eq!(Input::of(dir.path()).unwrap().files.len(), 1);
    }
}
