//! Jobs on real processes give the right result, byte for byte, whoever dies on the way.
//!
//! The reference is a count made without MapReduce, and, where the folder with the books and their
//! expected results lies beside the workspace, that.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::JobClient;
use flotilla::demo::{corpus, count};
use flotilla::local::Instance;
use proto::mapreduce::{Job, JobState};
use sha2::{Digest, Sha256};
use support::{TestCluster, Watchdog, complained, flotilla, ready, said, shared_data, well};
use tokio::time::{Instant, sleep};

const WORKERS: u16 = 2;
const REDUCES: usize = 10;

/// How long any wait here may take.
const PATIENCE: Duration = Duration::from_secs(60);

async fn cluster() -> TestCluster {
    TestCluster::start(0, WORKERS, |plan| {
        plan.slots = Some(1);
        plan.further.coordinator = vec!["--lease-ms=2000".to_owned()];
    })
    .await
}

/// A job in the labs' format, with its flags.
struct Submission<'a> {
    app: &'a str,
    input: &'a str,
    output: &'a str,
    /// How long each attempt waits before it reports, so that a kill lands within.
    slow: &'a str,
}

impl Submission<'_> {
    fn submit(&self, test: &TestCluster) -> String {
        let coordinator = test.cluster.description().coordinator().unwrap();
        let reduces = REDUCES.to_string();
        let output = flotilla(&[
            "mr",
            "--coordinator",
            &coordinator,
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
            self.slow,
        ]);
        well(&output)
    }
}

/// Follows a job until the condition holds.
async fn until(jobs: &JobClient, id: &str, what: &str, holds: impl Fn(&Job) -> bool) -> Job {
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

fn has_ended(job: &Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

async fn succeeded(jobs: &JobClient, id: &str) -> Job {
    let job = until(jobs, id, "the end", has_ended).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.failure);
    job
}

fn running(job: &Job) -> (u32, u32) {
    (job.maps.unwrap_or_default().running, job.reduces.unwrap_or_default().running)
}

fn retries(job: &Job) -> u32 {
    job.maps.unwrap_or_default().retries + job.reduces.unwrap_or_default().retries
}

fn parts(dir: &Path) -> Vec<PathBuf> {
    (0..REDUCES).map(|part| dir.join(format!("mr-out-{part}"))).collect()
}

/// All lines of all parts, in the order of their bytes.
fn sorted(dir: &Path) -> String {
    let text: Vec<u8> = parts(dir).iter().flat_map(|part| fs::read(part).unwrap()).collect();
    let mut lines: Vec<&[u8]> =
        text.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    String::from_utf8(lines.concat()).unwrap()
}

/// What a sequential count of these files looks like in the labs' format.
fn expected_counts(files: &[PathBuf]) -> String {
    let mut lines: Vec<String> = count::words(files)
        .unwrap()
        .iter()
        .map(|(word, number)| format!("{word} {number}\n"))
        .collect();
    lines.sort_unstable();
    lines.concat()
}

/// Only the results and the mark of success are in the directory.
fn check_nothing_else(dir: &Path) {
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

/// Text in the shared root of a cluster, and what comes of counting its words.
fn made_up_text(test: &TestCluster) -> String {
    let dir = test.root().join("text");
    fs::create_dir(&dir).unwrap();
    corpus::write(&dir, 6, 200_000, 11).unwrap();
    expected_counts(&count::files(&dir).unwrap())
}

const COUNT: Submission<'static> =
    Submission { app: "wc", input: "text/*.txt", output: "counts", slow: "0ms" };
const SLOW_COUNT: Submission<'static> = Submission { slow: "400ms", ..COUNT };

#[tokio::test]
async fn a_count_equals_a_sequential_one() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let test = cluster().await;
    let expected = made_up_text(&test);
    let id = COUNT.submit(&test);
    let job = succeeded(&test.jobs(), &id).await;
    let output = test.root().join("counts");
    assert_eq!(sorted(&output), expected);
    assert_eq!(job.outputs.len(), REDUCES);
    check_nothing_else(&output);

    let coordinator = test.cluster.description().coordinator().unwrap();
    let root = test.root().to_str().unwrap();
    let cat = flotilla(&["mr", "--coordinator", &coordinator, "cat", &id, "--root", root]);
    let whole: Vec<u8> = parts(&output).iter().flat_map(|part| fs::read(part).unwrap()).collect();
    assert_eq!(cat.stdout, whole, "{}", complained(&cat));
    let list = flotilla(&["mr", "--coordinator", &coordinator, "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&well(&list)).unwrap();
    assert_eq!(list["jobs"][0]["id"], id);
}

#[tokio::test]
async fn a_worker_killed_in_a_map_changes_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut test = cluster().await;
    let expected = made_up_text(&test);
    let (jobs, id) = (test.jobs(), SLOW_COUNT.submit(&test));
    until(&jobs, &id, "all workers map", |job| running(job).0 == u32::from(WORKERS)).await;
    test.cluster.kill(Instance::Worker(1)).unwrap();
    let job = succeeded(&jobs, &id).await;
    assert!(retries(&job) >= 1, "{job:?}");
    assert_eq!(sorted(&test.root().join("counts")), expected);
    check_nothing_else(&test.root().join("counts"));
}

#[tokio::test]
async fn a_worker_killed_in_a_reduce_changes_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut test = cluster().await;
    let expected = made_up_text(&test);
    let (jobs, id) = (test.jobs(), SLOW_COUNT.submit(&test));
    until(&jobs, &id, "all workers reduce", |job| running(job).1 == u32::from(WORKERS)).await;
    test.cluster.kill(Instance::Worker(2)).unwrap();
    let job = succeeded(&jobs, &id).await;
    assert!(job.reduces.unwrap_or_default().retries >= 1, "{job:?}");
    assert_eq!(sorted(&test.root().join("counts")), expected);
    check_nothing_else(&test.root().join("counts"));
}

#[tokio::test]
async fn a_coordinator_killed_in_maps_and_in_reduces_changes_nothing() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut test = cluster().await;
    let expected = made_up_text(&test);
    let id = SLOW_COUNT.submit(&test);
    for (what, in_it) in [
        (
            "a map is committed",
            (|job: &Job| job.maps.unwrap_or_default().committed >= 1) as fn(&_) -> _,
        ),
        ("a reduce is committed", |job: &Job| job.reduces.unwrap_or_default().committed >= 1),
    ] {
        until(&test.jobs(), &id, what, in_it).await;
        test.cluster.kill(Instance::Coordinator).unwrap();
        test.cluster.restart(Instance::Coordinator).unwrap();
        ready(&mut test.cluster).await;
        let job = test.jobs().get(&id, 0).await.unwrap();
        assert!(in_it(&job), "what was committed is forgotten: {job:?}");
    }
    succeeded(&test.jobs(), &id).await;
    assert_eq!(sorted(&test.root().join("counts")), expected);
    check_nothing_else(&test.root().join("counts"));
}

#[tokio::test]
async fn a_job_is_cancelled_and_leaves_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let test = cluster().await;
    made_up_text(&test);
    let id = SLOW_COUNT.submit(&test);
    let jobs = test.jobs();
    until(&jobs, &id, "it runs", |job| running(job).0 > 0).await;
    let coordinator = test.cluster.description().coordinator().unwrap();
    for _ in 0..2 {
        well(&flotilla(&["mr", "--coordinator", &coordinator, "cancel", &id]));
    }
    let job = until(&jobs, &id, "the end", has_ended).await;
    assert_eq!(job.state(), JobState::Cancelled);
    assert!(!test.root().join("counts").exists());
    let wait = flotilla(&["mr", "--coordinator", &coordinator, "get", &id, "--wait"]);
    assert_eq!(wait.status.code(), Some(4), "{}", complained(&wait));
}

#[tokio::test]
async fn jobs_that_cannot_work_are_refused_and_leave_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let test = cluster().await;
    made_up_text(&test);
    fs::create_dir(test.root().join("taken")).unwrap();
    fs::write(test.root().join("taken/mine"), "mine").unwrap();
    let coordinator = test.cluster.description().coordinator().unwrap();
    let submit = |app: &str, input: &str, output: &str| {
        let output = flotilla(&[
            "mr",
            "--coordinator",
            &coordinator,
            "submit",
            "--app",
            app,
            "--input",
            input,
            "--output",
            output,
            "--wait",
        ]);
        (output.status.code().unwrap(), complained(&output))
    };
    for (app, input, output, expected, word) in [
        ("wc", "none/*.txt", "new", 6, "none/*.txt"),
        ("wc", "text/*.txt", "taken", 5, "taken"),
        ("wc", "../*.txt", "new", 2, ".."),
        ("wc", "text/*.txt", "../new", 2, "../new"),
        ("", "text/*.txt", "new", 2, "app"),
    ] {
        let (code, complaint) = submit(app, input, output);
        assert_eq!(code, expected, "{app} {input} {output}: {complaint}");
        assert!(complaint.contains(word), "{app} {input} {output}: {complaint}");
    }
    assert!(!test.root().join("new").exists());
    assert!(!test.root().parent().unwrap().join("new").exists());
    assert_eq!(fs::read_dir(test.root().join("taken")).unwrap().count(), 1);
    let absent = flotilla(&[
        "mr",
        "--coordinator",
        &coordinator,
        "get",
        "018f0000-0000-7000-8000-000000000000",
    ]);
    assert_eq!(absent.status.code(), Some(6), "{}", complained(&absent));
    assert_eq!(said(&absent), "");
}

/// Copies the books into a cluster's root; their names are then those in the expected index.
fn books(test: &TestCluster, data: &Path) {
    for book in count::files(&data.join("gutenberg")).unwrap() {
        fs::copy(&book, test.root().join(book.file_name().unwrap())).unwrap();
    }
}

fn check_books(data: &Path, app: &str, output: &Path) {
    let expected = fs::read_to_string(data.join(format!("expected/{app}.txt"))).unwrap();
    assert!(sorted(output) == expected, "{app} differs from what is expected");
    if app == "wc" {
        let sums = fs::read_to_string(data.join("expected/wc-partitions.sha256")).unwrap();
        for line in sums.lines() {
            let (sum, name) = line.split_once("  ").unwrap();
            let bytes = fs::read(output.join(name)).unwrap();
            let found: String =
                Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, sum, "{name}");
        }
        assert_eq!(sums.lines().count(), REDUCES);
    }
    check_nothing_else(output);
}

#[tokio::test]
async fn books_give_the_expected_results_whoever_is_killed() {
    let _watchdog = Watchdog::new(5 * PATIENCE);
    let Some(data) = shared_data() else {
        eprintln!(
            "skipped: books_give_the_expected_results_whoever_is_killed needs ../shared/data"
        );
        return;
    };
    let mut test = cluster().await;
    books(&test, &data);
    let jobs = test.jobs();
    for app in ["wc", "indexer"] {
        let undisturbed = format!("{app}-undisturbed");
        let submission = Submission { app, input: "pg-*.txt", output: &undisturbed, slow: "0ms" };
        succeeded(&jobs, &submission.submit(&test)).await;
        check_books(&data, app, &test.root().join(&undisturbed));

        let disturbed = format!("{app}-disturbed");
        let submission = Submission { output: &disturbed, slow: "300ms", ..submission };
        let id = submission.submit(&test);
        until(&jobs, &id, "all workers map", |job| running(job).0 == u32::from(WORKERS)).await;
        test.cluster.kill(Instance::Worker(1)).unwrap();
        test.cluster.restart(Instance::Worker(1)).unwrap();
        until(&jobs, &id, "all workers reduce", |job| running(job).1 == u32::from(WORKERS)).await;
        test.cluster.kill(Instance::Worker(2)).unwrap();
        test.cluster.restart(Instance::Worker(2)).unwrap();
        test.cluster.kill(Instance::Coordinator).unwrap();
        test.cluster.restart(Instance::Coordinator).unwrap();
        let job = succeeded(&jobs, &id).await;
        assert!(retries(&job) >= 1, "{job:?}");
        check_books(&data, app, &test.root().join(&disturbed));
    }
}
