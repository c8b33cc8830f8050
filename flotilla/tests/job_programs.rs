//! What the code of users does to a job on real processes: it fails always or for a while, takes its
//! slot or its worker along, or never ends. The job ends rightly, says why, and costs nobody else
//! anything.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::time::Duration;

use client::JobClient;
use proto::mapreduce::{Command, Job, JobSpec, JobState, Streaming, failure_reason};
use support::Watchdog;
use support::fleet::{Fleet, LEASE};
use support::jobs::{PATIENCE, has_ended, retries, until};
use tokio::time::{Instant, sleep};

/// How many inputs there are, each a line and a map.
const INPUTS: usize = 4;

/// The map that a test does something to.
const BAD: u32 = 1;

async fn fleet(workers: u16) -> Fleet {
    let fleet = Fleet::start_with(1, workers, &[], &["--allow-exec"]);
    fs::create_dir(fleet.root().join("in")).unwrap();
    for input in 0..INPUTS {
        fs::write(fleet.root().join(format!("in/{input}")), format!("line {input}\n")).unwrap();
    }
    fleet.ready(workers.into()).await;
    fleet
}

/// A job whose map [`BAD`] does this and, if that lets it, passes its line on, as the others do.
fn spec(output: &str, bad: &str) -> JobSpec {
    let script = format!("case $FLOTILLA_INPUT_FILE in in/{BAD}) {bad};; esac; cat");
    let argv = ["sh", "-c", &script].map(str::to_owned).to_vec();
    let mapper = Some(Command { argv });
    JobSpec {
        inputs: vec!["in".to_owned()],
        output: output.to_owned(),
        reduces: 1,
        split_bytes: "line 0\n".len() as u64,
        lease_ms: LEASE.as_millis() as u64,
        streaming: Some(Streaming { mapper, ..Streaming::default() }),
        ..JobSpec::default()
    }
}

async fn submit(jobs: &JobClient, spec: JobSpec) -> String {
    jobs.submit(spec, JobClient::token()).await.unwrap().job.unwrap().id
}

async fn end(jobs: &JobClient, id: &str) -> Job {
    until(jobs, id, "the end", has_ended).await
}

fn check_lines(fleet: &Fleet, output: &str) {
    let found = fs::read_to_string(fleet.root().join(output).join("part-00000")).unwrap();
    let expected: String = (0..INPUTS).map(|input| format!("line {input}\t\n")).collect();
    assert_eq!(found, expected);
}

/// The ids of the workers, which are others after each start.
async fn ids(jobs: &JobClient) -> Vec<u64> {
    let workers = jobs.list_workers().await.unwrap().workers;
    workers.into_iter().filter(|worker| worker.present).map(|worker| worker.worker).collect()
}

#[tokio::test]
async fn who_always_fails_fails_the_job_at_the_fourth_time() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = fleet(2).await;
    let jobs = fleet.jobs();
    let id = submit(&jobs, spec("out", "echo no good >&2; exit 3")).await;
    let job = end(&jobs, &id).await;
    assert_eq!(job.state(), JobState::Failed);
    assert_eq!(retries(&job), 4);
    let failure = job.failure.unwrap();
    assert_eq!(failure.attempt.unwrap().task, BAD);
    assert!(failure.worker.starts_with("mr-worker-"), "{}", failure.worker);
    let reason = failure.reason.unwrap();
    assert!(reason.stderr_tail.contains("no good"), "{reason:?}");
    let Some(failure_reason::Kind::User(user)) = reason.kind else { panic!("{reason:?}") };
    assert!(user.message.contains("exited with code 3"), "{}", user.message);
    assert_eq!((user.path.as_str(), user.offset), ("in/1", 0));
    assert!(!fleet.root().join("out").exists());
}

#[tokio::test]
async fn who_fails_twice_costs_two_attempts() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = fleet(2).await;
    let jobs = fleet.jobs();
    let root = fleet.root();
    let twice = format!("mkdir {0}/one && exit 3; mkdir {0}/two && exit 3", root.display());
    let id = submit(&jobs, spec("out", &twice)).await;
    let job = end(&jobs, &id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.failure);
    assert_eq!(retries(&job), 2);
    check_lines(&fleet, "out");
}

#[tokio::test]
async fn who_takes_its_slot_along_costs_an_attempt() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = fleet(2).await;
    let jobs = fleet.jobs();
    let before = ids(&jobs).await;
    let once = format!("if mkdir {}/once; then kill -9 $PPID; fi", fleet.root().display());
    let id = submit(&jobs, spec("out", &once)).await;
    let job = end(&jobs, &id).await;
    assert_eq!(job.state(), JobState::Succeeded, "{:?}", job.failure);
    assert_eq!(retries(&job), 1);
    check_lines(&fleet, "out");
    assert_eq!(ids(&jobs).await, before);
}

#[tokio::test]
async fn who_takes_three_workers_along_fails_its_job_and_no_other() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let fleet = fleet(4).await;
    let jobs = fleet.jobs();
    // The program's parent is its slot, and that one's the worker.
    let poison = "read -r _ _ _ worker _ < /proc/$PPID/stat; kill -9 $worker; sleep 60";
    let id = submit(&jobs, spec("out", poison)).await;
    let other = submit(&jobs, spec("other", ":")).await;
    let job = end(&jobs, &id).await;
    assert_eq!(job.state(), JobState::Failed);
    assert_eq!(retries(&job), 3);
    let message = job.failure.unwrap().message;
    assert!(message.contains("workers"), "{message}");
    assert!(!fleet.root().join("out").exists());

    let other = end(&jobs, &other).await;
    assert_eq!(other.state(), JobState::Succeeded, "{:?}", other.failure);
    check_lines(&fleet, "other");
    // The three that died, and none that came after them.
    let deadline = Instant::now() + PATIENCE;
    while ids(&jobs).await.len() > 1 {
        assert!(Instant::now() < deadline, "a dead worker is not lost");
        sleep(Duration::from_millis(20)).await;
    }
    sleep(2 * LEASE).await;
    assert_eq!(ids(&jobs).await.len(), 1);
}

#[tokio::test]
async fn who_never_ends_is_stopped_and_its_slot_works_again() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = fleet(1).await;
    let jobs = fleet.jobs();
    let before = ids(&jobs).await;
    let endless = spec("out", "while :; do :; done");
    let endless = JobSpec { task_timeout_ms: 1_000, max_attempts: 2, ..endless };
    let id = submit(&jobs, endless).await;
    let job = end(&jobs, &id).await;
    assert_eq!(job.state(), JobState::Failed);
    assert_eq!(retries(&job), 2);
    let reason = job.failure.unwrap().reason.unwrap();
    assert!(matches!(reason.kind, Some(failure_reason::Kind::Timeout(_))), "{reason:?}");

    let next = submit(&jobs, spec("next", ":")).await;
    assert_eq!(end(&jobs, &next).await.state(), JobState::Succeeded);
    check_lines(&fleet, "next");
    assert_eq!(ids(&jobs).await, before);
}
