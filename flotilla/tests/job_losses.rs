//! Workers that are killed or stand still at the moment that matters, on real processes: each
//! attempt ends as it must, and none runs that need not.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mr_coordinator::ids::{JobId, job_directory};
use proto::mapreduce::{AttemptState, JobSpec, TaskKind};
use rustix::process::Signal;
use support::Watchdog;
use support::fleet::signal_all;
use support::gates::{
    self, check_attempts, check_lines, open, present, spec, stand, submit, wait_for,
};
use support::jobs::{PATIENCE, retries, succeeded};
use tokio::time::{Instant, sleep};

use AttemptState::{Accepted, Expired, LostRace, Running};
use TaskKind::{Map, Reduce};

/// The directory of a job's attempts at a task.
fn task_directory(root: &Path, job: &str, (kind, number): gates::Task) -> PathBuf {
    let job: JobId = job.parse().unwrap();
    let kind = if kind == Map { "m" } else { "r" };
    root.join(job_directory(job)).join(format!("{kind}/{number}"))
}

/// Waits until so many attempts at a task have written all that they will.
async fn written(
    root: &Path,
    job: &str,
    task: gates::Task,
    count: usize,
    is_whole: fn(&[u8]) -> bool,
) {
    let name = if task.0 == Map { "data.run" } else { "part" };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let attempts = fs::read_dir(task_directory(root, job, task)).into_iter().flatten();
        let files = attempts.map(|attempt| attempt.unwrap().path().join(name));
        if files.filter(|file| is_whole(&fs::read(file).unwrap_or_default())).count() == count {
            return;
        }
        assert!(Instant::now() < deadline, "{task:?} writes nothing");
        sleep(Duration::from_millis(5)).await;
    }
}

/// F4.
#[tokio::test]
async fn a_worker_killed_after_its_report_was_accepted_costs_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut fleet = gates::fleet(3, 3).await;
    let (jobs, root) = (fleet.jobs(), fleet.root());
    let [maps, reduces] = ["maps", "reduces"].map(|gate| wait_for(&root, gate));
    let mapper = format!("case $FLOTILLA_INPUT_FILE in in/1) {maps};; esac; cat");
    let reducer = format!("case $FLOTILLA_PARTITION in 1) {reduces};; esac; cat");
    let id = submit(&jobs, spec("out", 2, &mapper, &reducer)).await;
    for (left, kind, gate) in [(2, Map, "maps"), (1, Reduce, "reduces")] {
        let accepted = stand(&jobs, &id, (kind, 0), &[Accepted]).await;
        stand(&jobs, &id, (kind, 1), &[Running]).await;
        if kind == Map {
            stand(&jobs, &id, (kind, 2), &[Accepted]).await;
        }
        fleet.worker(&accepted[0].worker).kill();
        present(&jobs, left).await;
        open(&fleet, gate);
    }
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check_attempts(&jobs, &id, &[]).await;
    check_lines(&fleet, "out", 3);
}

/// F5, with a run and with a part.
#[tokio::test]
async fn a_worker_killed_before_its_report_costs_one_attempt_whose_files_are_removed() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut fleet = gates::fleet(3, 2).await;
    let (jobs, root) = (fleet.jobs(), fleet.root());
    let slow = JobSpec { slow_ms: 1_500, ..spec("out", 1, "cat", "cat") };
    let id = submit(&jobs, slow).await;
    let tasks: [(_, fn(&[u8]) -> bool); 2] = [
        ((Map, 0), |bytes| bytes.ends_with(b"FLOTRUN\n")),
        ((Reduce, 0), |bytes| !bytes.is_empty()),
    ];
    for (task, is_whole) in tasks {
        written(&root, &id, task, 1, is_whole).await;
        let running = stand(&jobs, &id, task, &[Running]).await;
        fleet.worker(&running[0].worker).kill();
        stand(&jobs, &id, task, &[Expired, Running]).await;
        // What the first one wrote is still there.
        written(&root, &id, task, 2, is_whole).await;
    }
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 2, "{job:?}");
    let lost: &[AttemptState] = &[Expired, Accepted];
    check_attempts(&jobs, &id, &[((Map, 0), lost), ((Reduce, 0), lost)]).await;
    check_lines(&fleet, "out", 2);
    gone(&root, &id).await;
}

/// Waits until nothing of a job is left but its results.
async fn gone(root: &Path, job: &str) {
    let directory = root.join(job_directory(job.parse().unwrap()));
    let deadline = Instant::now() + PATIENCE;
    while directory.exists() {
        assert!(Instant::now() < deadline, "{} stays", directory.display());
        sleep(Duration::from_millis(10)).await;
    }
}

/// F7.
#[tokio::test]
async fn a_late_report_is_accepted_while_nobody_else_s_is() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut fleet = gates::fleet(2, 1).await;
    let (jobs, root) = (fleet.jobs(), fleet.root());
    // The first attempt ends when it may, the second one never.
    let mapper = format!(
        "if mkdir {}/first; then {}; cat; else exec sleep 1000; fi",
        root.display(),
        wait_for(&root, "gate"),
    );
    let id = submit(&jobs, spec("out", 1, &mapper, "cat")).await;
    let first = stand(&jobs, &id, (Map, 0), &[Running]).await;
    while !root.join("first").exists() {
        sleep(Duration::from_millis(5)).await;
    }
    signal_all(fleet.worker(&first[0].worker), Signal::STOP);
    stand(&jobs, &id, (Map, 0), &[Expired, Running]).await;
    open(&fleet, "gate");
    signal_all(fleet.worker(&first[0].worker), Signal::CONT);
    let job = succeeded(&jobs, &id).await;
    check_attempts(&jobs, &id, &[((Map, 0), &[Accepted, LostRace])]).await;
    assert_eq!(job.counters["MAP_INPUT_BYTES"], "line 0\n".len() as u64, "{job:?}");
    check_lines(&fleet, "out", 1);
    // The second one was stopped: its worker has nothing any more.
    let deadline = Instant::now() + PATIENCE;
    while jobs.list_workers().await.unwrap().workers.iter().any(|is| !is.attempts.is_empty()) {
        assert!(Instant::now() < deadline, "it runs on");
        sleep(Duration::from_millis(20)).await;
    }
    gone(&root, &id).await;
}
