//! Jobs in the labs' format: how tests submit and follow them, and what their results have to be.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::JobClient;
use flotilla::demo::{corpus, count};
use proto::mapreduce::{Job, JobState};
use tokio::time::{Instant, sleep};

use super::{flotilla, well};

/// How many reduces each of them has.
pub(crate) const REDUCES: usize = 10;

/// How long any wait may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A job in the labs' format, with its flags.
#[derive(Clone, Copy)]
pub(crate) struct Submission<'a> {
    pub(crate) app: &'a str,
    pub(crate) input: &'a str,
    pub(crate) output: &'a str,
    /// How long each attempt waits before it reports, so that a kill lands within.
    pub(crate) slow_ms: u64,
}

impl Submission<'_> {
    /// Submits it to these coordinators; its id.
    pub(crate) fn submit(&self, coordinators: &str) -> String {
        let reduces = REDUCES.to_string();
        let output = flotilla(&[
            "mr",
            "--coordinator",
            coordinators,
            "submit",
            "--app",
            self.app,
            "--input",
            self.input,
            "--output",
            self.output,
            "--reduces",
            &reduces,
            "--input-format",
            "whole",
            "--output-format",
            "lab",
            "--lease",
            "2s",
            "--slow",
            &format!("{}ms", self.slow_ms),
        ]);
        well(&output)
    }
}

/// Follows a job until the condition holds.
pub(crate) async fn until(
    jobs: &JobClient,
    id: &str,
    what: &str,
    holds: impl Fn(&Job) -> bool,
) -> Job {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let job = jobs.get(id, 0).await.unwrap();
        if holds(&job) {
            return job;
        }
        assert!(!has_ended(&job), "the job ended before {what}: {job:?}");
        assert!(Instant::now() < deadline, "not in time: {what}: {job:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn has_ended(job: &Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

pub(crate) async fn succeeded(jobs: &JobClient, id: &str) -> Job {
    let job = until(jobs, id, "the end", has_ended).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.failure);
    job
}

pub(crate) fn running(job: &Job) -> (u32, u32) {
    (job.maps.unwrap_or_default().running, job.reduces.unwrap_or_default().running)
}

pub(crate) fn retries(job: &Job) -> u32 {
    job.maps.unwrap_or_default().retries + job.reduces.unwrap_or_default().retries
}

pub(crate) fn parts(dir: &Path) -> Vec<PathBuf> {
    (0..REDUCES).map(|part| dir.join(format!("mr-out-{part}"))).collect()
}

/// All lines of all parts, in the order of their bytes.
pub(crate) fn sorted(dir: &Path) -> String {
    let text: Vec<u8> = parts(dir).iter().flat_map(|part| fs::read(part).unwrap()).collect();
    let mut lines: Vec<&[u8]> =
        text.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    String::from_utf8(lines.concat()).unwrap()
}

/// What a sequential count of these files looks like in the labs' format.
pub(crate) fn expected_counts(files: &[PathBuf]) -> String {
    let mut lines: Vec<String> = count::words(files)
        .unwrap()
        .iter()
        .map(|(word, number)| format!("{word} {number}\n"))
        .collect();
    lines.sort_unstable();
    lines.concat()
}

/// Only the results and the mark of success are in the directory.
pub(crate) fn check_nothing_else(dir: &Path) {
    let mut found: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut expected: Vec<String> = (0..REDUCES).map(|part| format!("mr-out-{part}")).collect();
    expected.push("_SUCCESS".to_owned());
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

/// Text in a shared root, and what comes of counting its words.
pub(crate) fn made_up_text(root: &Path) -> String {
    let dir = root.join("text");
    fs::create_dir(&dir).unwrap();
    corpus::write(&dir, 6, 200_000, 11).unwrap();
    expected_counts(&count::files(&dir).unwrap())
}

/// A count of that text.
pub(crate) const COUNT: Submission<'static> =
    Submission { app: "wc", input: "text/*.txt", output: "counts", slow_ms: 0 };
/// The same, and each attempt takes its time.
pub(crate) const SLOW_COUNT: Submission<'static> = Submission { slow_ms: 400, ..COUNT };
