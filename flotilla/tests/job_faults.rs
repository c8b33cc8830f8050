//! Jobs on real processes whose coordinators and workers die, stand still, come back or leave, and
//! whose intermediate files are lost or damaged: the right result, byte for byte, and no work done
//! twice that need not be.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{JobClient, Options};
use flotilla::local::process::Process;
use mr_coordinator::ids::{JobId, job_directory};
use proto::mapreduce::{Job, JobSpec, JobState};
use rustix::process::Signal;
use support::fleet::{Fleet, LEASE, signal_all};
use support::jobs::{
    COUNT, PATIENCE, REDUCES, SLOW_COUNT, Submission, check_nothing_else, has_ended, made_up_text,
    parts, retries, running, sorted, succeeded, until,
};
use support::{Watchdog, flotilla, well};
use tokio::time::{Instant, sleep};

const MAPS: u32 = 6;

fn check(fleet: &Fleet, expected: &str) {
    let output = fleet.root().join("counts");
    assert!(sorted(&output) == expected, "the result is not that of a sequential count");
    check_nothing_else(&output);
}

fn committed(job: &Job) -> (u32, u32) {
    (job.maps.unwrap_or_default().committed, job.reduces.unwrap_or_default().committed)
}

/// What is done to a run.
type Damage = fn(&Path);

/// The run of a map, of which there was one attempt.
fn run_of(root: &Path, job: &str, map: u32) -> PathBuf {
    let job: JobId = job.parse().unwrap();
    let attempts = root.join(job_directory(job)).join(format!("m/{map}"));
    let mut attempts: Vec<_> = fs::read_dir(attempts).unwrap().collect();
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    attempts.remove(0).unwrap().path().join("data.run")
}

#[tokio::test]
async fn a_leader_that_is_killed_delays_a_job_and_repeats_nothing() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = Fleet::start(3, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let id = SLOW_COUNT.submit(&fleet.everybody());
    let jobs = fleet.jobs();
    for phase in ["a map", "a reduce"] {
        let holds = |job: &Job| {
            let (maps, reduces) = committed(job);
            if phase == "a map" { maps > 0 } else { reduces > 0 }
        };
        let before = until(&jobs, &id, phase, holds).await;
        let leader = fleet.leader().await;
        fleet.coordinators[leader].kill();
        let after = jobs.get(&id, 0).await.unwrap();
        assert!(committed(&after) >= committed(&before), "{before:?} {after:?}");
        fleet.coordinators[leader].start().unwrap();
    }
    let job = succeeded(&jobs, &id).await;
    // Who runs a task tells the next leader so, and goes on.
    assert_eq!(retries(&job), 0, "{job:?}");
    check(&fleet, &expected);
}

#[tokio::test]
async fn a_leader_that_stands_still_changes_nothing_when_it_goes_on() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let fleet = Fleet::start(3, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let id = SLOW_COUNT.submit(&fleet.everybody());
    let jobs = fleet.jobs();
    until(&jobs, &id, "a map", |job| committed(job).0 > 0).await;
    let leader = fleet.leader().await;
    fleet.coordinators[leader].signal(Signal::STOP);
    let others: Vec<String> = fleet
        .addresses
        .iter()
        .enumerate()
        .filter(|(member, _)| *member != leader)
        .map(|(_, address)| address.clone())
        .collect();
    let theirs = JobClient::connect(others, Options::with_deadline(PATIENCE)).unwrap();
    succeeded(&theirs, &id).await;
    check(&fleet, &expected);
    let modified = |name: &PathBuf| fs::metadata(name).unwrap().modified().unwrap();
    let output = parts(&fleet.root().join("counts"));
    let before: Vec<_> = output.iter().map(modified).collect();
    fleet.coordinators[leader].signal(Signal::CONT);
    // It has caught up when it tells of the end itself, or says who leads.
    let job = succeeded(&jobs, &id).await;
    assert_eq!(job.outputs.len(), REDUCES);
    check(&fleet, &expected);
    assert_eq!(output.iter().map(modified).collect::<Vec<_>>(), before);
}

#[tokio::test]
async fn a_worker_that_stands_still_is_replaced_and_its_late_report_loses() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let id = SLOW_COUNT.submit(&fleet.everybody());
    let jobs = fleet.jobs();
    until(&jobs, &id, "both map", |job| running(job).0 == 2).await;
    signal_all(&fleet.workers[0], Signal::STOP);
    until(&jobs, &id, "the other did all maps", |job| committed(job).0 == MAPS).await;
    signal_all(&fleet.workers[0], Signal::CONT);
    let job = succeeded(&jobs, &id).await;
    assert!(job.maps.unwrap().retries >= 1, "{job:?}");
    check(&fleet, &expected);
    let input: u64 = fs::read_dir(fleet.root().join("text"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(job.counters["MAP_INPUT_BYTES"], input, "counted twice");
}

#[tokio::test]
async fn a_worker_that_is_busy_for_many_leases_is_not_lost() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start(1, 1, &[]);
    let root = fleet.root();
    fs::create_dir(root.join("text")).unwrap();
    fs::write(root.join("text/one.txt"), "some words").unwrap();
    fleet.ready(1).await;
    let long = Submission { slow_ms: 10_000, ..COUNT };
    let spec = JobSpec { reduces: 1, ..spec_of(&long) };
    let jobs = fleet.jobs();
    let id = jobs.submit(spec, "one".to_owned()).await.unwrap().job.unwrap().id;
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    assert!(job.ended_unix_ms - job.submitted_unix_ms > 5 * LEASE.as_millis() as u64);
}

#[tokio::test]
async fn without_workers_a_job_fails_after_its_grace_and_with_new_ones_it_goes_on() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let grace = Duration::from_secs(6);
    let grace_flag = format!("--no-workers-grace-ms={}", grace.as_millis());
    let mut fleet = Fleet::start(1, 2, &[&grace_flag]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();

    let id = SLOW_COUNT.submit(&fleet.everybody());
    until(&jobs, &id, "both map", |job| running(job).0 == 2).await;
    fleet.workers.iter_mut().for_each(Process::kill);
    fleet.workers.iter_mut().for_each(|worker| worker.start().unwrap());
    succeeded(&jobs, &id).await;
    check(&fleet, &expected);

    let id = Submission { output: "again", ..SLOW_COUNT }.submit(&fleet.everybody());
    until(&jobs, &id, "both map", |job| running(job).0 == 2).await;
    fleet.workers.iter_mut().for_each(Process::kill);
    let killed = Instant::now();
    let job = until(&jobs, &id, "the end", has_ended).await;
    let took = killed.elapsed();
    assert_eq!(job.state(), JobState::Failed, "{job:?}");
    assert!(took < LEASE + grace + Duration::from_secs(4), "{took:?}");
    assert!(!fleet.root().join("again").exists());
    let everybody = fleet.everybody();
    let wait = flotilla(&["mr", "--coordinator", &everybody, "get", &id, "--wait"]);
    assert_eq!(wait.status.code(), Some(1));
    let complaint = support::complained(&wait);
    assert!(complaint.contains("worker"), "{complaint}");
}

#[tokio::test]
async fn runs_that_are_lost_or_damaged_are_made_again() {
    let _watchdog = Watchdog::new(4 * PATIENCE);
    let fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let damages: [(&str, Damage); 4] = [
        ("removed", |run| fs::remove_file(run).unwrap()),
        ("cut", |run| {
            let length = fs::metadata(run).unwrap().len();
            fs::File::options().write(true).open(run).unwrap().set_len(length - 1).unwrap();
        }),
        ("longer", |run| {
            let mut bytes = fs::read(run).unwrap();
            bytes.extend(b"garbage");
            fs::write(run, bytes).unwrap();
        }),
        ("flipped", |run| {
            let mut bytes = fs::read(run).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(run, bytes).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let job = Submission { output: what, ..SLOW_COUNT };
        let id = job.submit(&fleet.everybody());
        until(&jobs, &id, "all maps", |job| committed(job).0 == MAPS).await;
        damage(&run_of(&fleet.root(), &id, 2));
        let job = succeeded(&jobs, &id).await;
        assert!(retries(&job) >= 1, "{what}: nobody noticed: {job:?}");
        let output = fleet.root().join(what);
        assert!(sorted(&output) == expected, "{what}");
        check_nothing_else(&output);
    }
}

#[tokio::test]
async fn a_job_is_one_however_often_it_is_submitted() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start(3, 1, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(1).await;
    let jobs = fleet.jobs();
    let submissions = (0..50).map(|_| {
        let jobs = jobs.clone();
        let spec = spec_of(&COUNT);
        tokio::spawn(async move { jobs.submit(spec, "the same".to_owned()).await })
    });
    let mut ids = Vec::new();
    for submission in submissions.collect::<Vec<_>>() {
        ids.push(submission.await.unwrap().unwrap().job.unwrap().id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    succeeded(&jobs, &ids[0]).await;
    check(&fleet, &expected);
    let everybody = fleet.everybody();
    let second = flotilla(&[
        "mr",
        "--coordinator",
        &everybody,
        "submit",
        "--app",
        "wc",
        "--input",
        "text/*.txt",
        "--output",
        "counts",
    ]);
    assert_eq!(second.status.code(), Some(5), "{}", support::complained(&second));
}

#[tokio::test]
async fn a_worker_that_is_told_to_leave_costs_nothing() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = SLOW_COUNT.submit(&fleet.everybody());
    until(&jobs, &id, "both map", |job| running(job).0 == 2).await;
    fleet.workers[0].signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        if let Some(ended) = fleet.workers[0].take_end() {
            break ended;
        }
        assert!(Instant::now() < deadline, "it does not leave");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ended.status.code(), Some(0), "{ended}");
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check(&fleet, &expected);
    let list = flotilla(&["mr", "--coordinator", &fleet.everybody(), "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&well(&list)).unwrap();
    assert_eq!(list["jobs"][0]["state"], "succeeded");
}

/// The same job for those who call the service themselves.
fn spec_of(job: &Submission<'_>) -> JobSpec {
    JobSpec {
        app: job.app.to_owned(),
        inputs: vec![job.input.to_owned()],
        output: job.output.to_owned(),
        reduces: REDUCES as u32,
        input_format: proto::mapreduce::InputFormat::Whole.into(),
        output_format: proto::mapreduce::OutputFormat::Lab.into(),
        lease_ms: LEASE.as_millis() as u64,
        slow_ms: job.slow_ms,
        ..JobSpec::default()
    }
}
