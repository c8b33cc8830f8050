//! Coordinators that die while results appear, whose log is torn or damaged, or whose disk is full,
//! and jobs of many tasks through restarts: the right result, and nothing done twice.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::JobClient;
use flotilla::local::process::{Ended, Process};
use proto::mapreduce::{
    AttemptState, InputFormat, Job, JobSpec, JobState, OutputFormat, failure_reason,
};
use raftd::failpoint::VARIABLE;
use support::disk::Disk;
use support::fleet::{Fleet, LEASE};
use support::gates::{attempts, check_attempts, submit};
use support::jobs::{
    COUNT, PATIENCE, REDUCES, SLOW_COUNT, check_nothing_else, has_ended, made_up_text, parts,
    retries, sorted, succeeded, until,
};
use support::{Depth, Watchdog, contents, copy};
use tokio::time::{Instant, sleep};

/// What a process ends with at a failpoint.
const ABORTED: Option<i32> = Some(6);

async fn end_of(process: &mut Process) -> Ended {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(ended) = process.take_end() {
            return ended;
        }
        assert!(Instant::now() < deadline, "it goes on");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Starts the coordinator so that it dies somewhere.
fn start_to_die(fleet: &mut Fleet, at: &str) {
    let coordinator = &mut fleet.coordinators[0];
    coordinator.set_environment(vec![(VARIABLE.to_owned(), at.to_owned())]);
    coordinator.start().unwrap();
}

async fn dead(fleet: &mut Fleet) {
    let ended = end_of(&mut fleet.coordinators[0]).await;
    assert_eq!(ended.status.signal(), ABORTED, "{ended}");
}

fn start_to_live(fleet: &mut Fleet) {
    fleet.coordinators[0].set_environment(Vec::new());
    fleet.coordinators[0].start().unwrap();
}

fn check(fleet: &Fleet, output: &str, expected: &str) {
    let output = fleet.root().join(output);
    assert!(sorted(&output) == expected, "the result is not that of a sequential count");
    check_nothing_else(&output);
}

/// What is in the root beside inputs and what belongs to Flotilla itself.
fn outputs(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with(".flotilla") && name != "text");
    names.sort();
    names
}

/// F16. Where it dies: before each part is moved, before the mark of success is, before the rename,
/// and behind it.
fn publishing_deaths() -> Vec<String> {
    let moves = (1..=REDUCES).map(|part| format!("publish.move.before=crash@{part}"));
    let last = ["publish.success.before", "publish.swap.before", "publish.swap.after"];
    moves.chain(last.map(|at| format!("{at}=crash"))).collect()
}

/// F16. Each life of the coordinator comes one step further.
#[tokio::test]
async fn results_appear_whole_and_once_however_often_the_coordinator_dies_meanwhile() {
    let _watchdog = Watchdog::new(4 * PATIENCE);
    let mut fleet = Fleet::set_up(1, 2, &[], &[]);
    let expected = made_up_text(&fleet.root());
    let deaths = publishing_deaths();
    start_to_die(&mut fleet, &deaths[0]);
    fleet.start_all();
    fleet.ready(2).await;
    let id = COUNT.submit(&fleet.everybody());
    dead(&mut fleet).await;
    for steps in 1..deaths.len() {
        // Parts that are in their place are not moved again.
        let next = if steps < REDUCES { &deaths[1] } else { &deaths[steps] };
        start_to_die(&mut fleet, next);
        dead(&mut fleet).await;
        let appeared = outputs(&fleet.root());
        if steps + 1 == deaths.len() {
            check(&fleet, "counts", &expected);
        } else {
            assert!(!fleet.root().join("counts").exists(), "{steps}: {appeared:?}");
        }
        assert_eq!(appeared.len(), 1, "{steps}: {appeared:?}");
    }
    let results = contents(&fleet.root().join("counts"));
    start_to_live(&mut fleet);
    let job = succeeded(&fleet.jobs(), &id).await;
    assert_eq!((retries(&job), job.outputs.len()), (0, REDUCES), "{job:?}");
    assert_eq!(contents(&fleet.root().join("counts")), results);
    assert_eq!(outputs(&fleet.root()), ["counts"]);
}

/// F16, each death by itself.
#[tokio::test]
async fn results_appear_whole_and_once_wherever_the_coordinator_dies() {
    if Depth::asked() < Depth::Deep {
        return;
    }
    let _watchdog = Watchdog::new(20 * PATIENCE);
    let mut fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    for (steps, death) in publishing_deaths().iter().enumerate() {
        fleet.coordinators[0].kill();
        start_to_die(&mut fleet, death);
        fleet.ready(2).await;
        let output = format!("counts-{steps}");
        let id = support::jobs::Submission { output: &output, ..COUNT }.submit(&fleet.everybody());
        dead(&mut fleet).await;
        start_to_live(&mut fleet);
        let job = succeeded(&fleet.jobs(), &id).await;
        assert_eq!(retries(&job), 0, "{death}: {job:?}");
        check(&fleet, &output, &expected);
        assert_eq!(outputs(&fleet.root()).len(), steps + 1, "{death}");
    }
}

fn committed(job: &Job) -> (u32, u32) {
    (job.maps.unwrap_or_default().committed, job.reduces.unwrap_or_default().committed)
}

/// The file of sled in a coordinator's directory that holds the log.
fn log_of(data: &Path) -> PathBuf {
    data.join("log/db")
}

/// Up to where a file has been written: behind it, all bytes are the same.
fn written(bytes: &[u8]) -> usize {
    let filler = bytes.last();
    bytes.iter().rposition(|byte| Some(byte) != filler).map_or(bytes.len(), |at| at + 1)
}

/// F17: a record that is on the disk, that nobody was told of, and whose last bytes never came.
#[tokio::test]
async fn a_torn_last_record_costs_nothing() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = SLOW_COUNT.submit(&fleet.everybody());
    until(&jobs, &id, "a map", |job| committed(job).0 > 0).await;
    fleet.coordinators[0].kill();
    // The third and the fourth sync from the start are of workers that register or report.
    start_to_die(&mut fleet, "log.sync.after=crash@4");
    dead(&mut fleet).await;
    let log = log_of(&fleet.dir().join("coordinator-1"));
    let bytes = fs::read(&log).unwrap();
    let (tip, filler) = (written(&bytes), *bytes.last().unwrap());
    let file = fs::File::options().write(true).open(&log).unwrap();
    file.write_all_at(&[filler; 8], tip as u64 - 8).unwrap();
    start_to_live(&mut fleet);
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check(&fleet, "counts", &expected);
}

/// F17: a bit of what was acknowledged is another.
#[tokio::test]
async fn a_coordinator_whose_log_is_damaged_does_not_start_and_says_what_is_missing() {
    const PLACES: usize = 8;
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = SLOW_COUNT.submit(&fleet.everybody());
    until(&jobs, &id, "a reduce", |job| committed(job).1 > 0).await;
    let told = jobs.get(&id, 0).await.unwrap();
    fleet.coordinators[0].kill();
    let (data, whole) = (fleet.dir().join("coordinator-1"), fleet.dir().join("whole"));
    copy(&data, &whole);
    let bytes = fs::read(log_of(&data)).unwrap();
    let mut refused = 0;
    for place in 1..=PLACES {
        let at = written(&bytes) * place / (PLACES + 1);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(log_of(&data), damaged).unwrap();
        fleet.coordinators[0].start().unwrap();
        let ended = end_of(&mut fleet.coordinators[0]).await;
        assert_eq!(ended.status.code(), Some(74), "{ended}");
        refused += 1;
        fs::remove_dir_all(&data).unwrap();
        copy(&whole, &data);
    }
    assert_eq!(refused, PLACES);
    fleet.coordinators[0].start().unwrap();
    let job = jobs.get(&id, 0).await.unwrap();
    assert!(committed(&job) >= committed(&told), "{told:?} {job:?}");
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check(&fleet, "counts", &expected);
}

/// A sort, whose maps and reduces write as much as they read.
fn sort() -> JobSpec {
    JobSpec {
        app: "sort".to_owned(),
        inputs: vec!["text/*.txt".to_owned()],
        output: "sorted".to_owned(),
        reduces: REDUCES as u32,
        output_format: OutputFormat::Lab.into(),
        lease_ms: LEASE.as_millis() as u64,
        slow_ms: 300,
        ..JobSpec::default()
    }
}

/// Whether an attempt failed for want of space.
async fn exhausted(jobs: &JobClient, id: &str) -> bool {
    let attempts = attempts(jobs, id).await.into_values().flatten();
    let reasons = attempts.filter_map(|attempt| attempt.failure?.kind);
    reasons.into_iter().any(|kind| matches!(kind, failure_reason::Kind::Resource(_)))
}

/// F30, the shared root.
#[tokio::test]
async fn attempts_that_find_the_disk_full_are_tried_again() {
    const NAME: &str = "attempts_that_find_the_disk_full_are_tried_again";
    let _watchdog = Watchdog::new(3 * PATIENCE);
    // So little memory that maps spill.
    let mut fleet = Fleet::set_up(1, 2, &[], &["--memory-bytes=65536", "--prefetch=0"]);
    let Some(disk) = Disk::mount(&fleet.root(), 32 << 20) else {
        eprintln!("skipped: {NAME} needs the right to mount a disk");
        return;
    };
    made_up_text(&fleet.root());
    let mut expected: Vec<String> = contents(&fleet.root().join("text"))
        .into_values()
        .flat_map(|text| {
            String::from_utf8(text).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    expected.sort_unstable();
    fleet.start_all();
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = submit(&jobs, sort()).await;
    for (phase, holds) in [
        ("a map", (|job| committed(job).0 > 0) as fn(&Job) -> bool),
        ("a reduce", |job| committed(job).1 > 0),
    ] {
        until(&jobs, &id, phase, holds).await;
        let before = exhausted(&jobs, &id).await;
        eprintln!("{phase} {before}");
        disk.leave(0);
        while !exhausted(&jobs, &id).await {
            sleep(Duration::from_millis(20)).await;
        }
        disk.relieve();
    }
    let job = succeeded(&jobs, &id).await;
    let found: String = parts(&fleet.root().join("sorted"))
        .iter()
        .map(|part| fs::read_to_string(part).unwrap())
        .collect();
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    assert!(found == expected);
    check_nothing_else(&fleet.root().join("sorted"));
}

/// F30, the coordinator's own disk: with little room it acknowledges nothing more; when a write
/// fails, it ends.
#[tokio::test]
async fn a_coordinator_whose_disk_is_full_ends_and_goes_on_when_there_is_room() {
    const NAME: &str = "a_coordinator_whose_disk_is_full_ends_and_goes_on_when_there_is_room";
    const FREE_BYTES_MIN: &str = "FLOTILLA_MR_COORDINATOR__GROUP__FREE_BYTES_MIN";
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = Fleet::set_up(1, 2, &[], &[]);
    let Some(disk) = Disk::mount(&fleet.dir().join("coordinator-1"), 32 << 20) else {
        eprintln!("skipped: {NAME} needs the right to mount a disk");
        return;
    };
    let keep_free = |fleet: &mut Fleet, bytes: u32| {
        let setting = (FREE_BYTES_MIN.to_owned(), bytes.to_string());
        fleet.coordinators[0].set_environment(vec![setting]);
    };
    let expected = made_up_text(&fleet.root());
    keep_free(&mut fleet, 8 << 20);
    fleet.start_all();
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = SLOW_COUNT.submit(&fleet.everybody());
    until(&jobs, &id, "a map", |job| committed(job).0 > 0).await;
    disk.leave(4 << 20);
    // What was under way is over when both workers wait for an answer.
    let told = stands_still(&jobs, &id).await;
    disk.relieve();
    let more = until(&jobs, &id, "another", |job| committed(job) > committed(&told)).await;

    fleet.coordinators[0].kill();
    keep_free(&mut fleet, 0);
    fleet.coordinators[0].start().unwrap();
    disk.leave(0);
    let ended = end_of(&mut fleet.coordinators[0]).await;
    assert_eq!(ended.status.code(), Some(71), "{ended}");
    disk.relieve();
    fleet.coordinators[0].start().unwrap();
    let job = jobs.get(&id, 0).await.unwrap();
    assert!(committed(&job) >= committed(&more), "{more:?} {job:?}");
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check(&fleet, "counts", &expected);
}

/// Waits until nothing of a job is committed for so long that each worker must have reported.
async fn stands_still(jobs: &JobClient, id: &str) -> Job {
    let deadline = Instant::now() + PATIENCE;
    let (mut job, mut since) = (jobs.get(id, 0).await.unwrap(), Instant::now());
    while since.elapsed() < LEASE {
        assert!(Instant::now() < deadline, "it goes on: {job:?}");
        sleep(Duration::from_millis(20)).await;
        let now = jobs.get(id, 0).await.unwrap();
        if committed(&now) != committed(&job) {
            (job, since) = (now, Instant::now());
        }
    }
    assert!(!has_ended(&job), "{job:?}");
    job
}

/// How many tasks F48 has.
fn many() -> u32 {
    match Depth::asked() {
        Depth::Quick => 1_000,
        Depth::Ci => 3_000,
        Depth::Deep => 9_999,
    }
}

/// F48.
#[tokio::test]
async fn many_tasks_are_each_committed_once_through_three_restarts() {
    let maps = many();
    let _watchdog = Watchdog::new(10 * PATIENCE);
    let mut fleet = Fleet::start_with(1, 2, &[], &["--prefetch=3"]);
    let lines: Vec<String> =
        (0..maps).map(|number| format!("{:07}\n", number * 7919 % maps)).collect();
    fs::write(fleet.root().join("lines"), lines.concat()).unwrap();
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let spec = JobSpec {
        app: "sort".to_owned(),
        inputs: vec!["lines".to_owned()],
        output: "sorted".to_owned(),
        reduces: 1,
        input_format: InputFormat::Text.into(),
        split_bytes: 8,
        lease_ms: LEASE.as_millis() as u64,
        ..JobSpec::default()
    };
    let began = Instant::now();
    let id = submit(&jobs, spec).await;
    for part in 1..=3 {
        let before =
            until(&jobs, &id, "a quarter", |job| committed(job).0 >= maps / 4 * part).await;
        fleet.coordinators[0].kill();
        let restarted = Instant::now();
        fleet.coordinators[0].start().unwrap();
        let after = jobs.get(&id, 0).await.unwrap();
        println!("{:?} after {} commits", restarted.elapsed(), committed(&after).0);
        assert!(committed(&after) >= committed(&before));
    }
    let job = succeeded(&jobs, &id).await;
    println!("{maps} maps in {:?}", began.elapsed());
    assert_eq!(job.maps.unwrap().committed, maps, "{job:?}");
    assert_eq!(retries(&job), 0, "{job:?}");
    assert_eq!(job.counters["MAP_INPUT_BYTES"], u64::from(maps) * 8);
    let mut expected = lines;
    expected.sort_unstable();
    assert!(
        fs::read_to_string(fleet.root().join("sorted/part-00000")).unwrap() == expected.concat()
    );
    check_attempts(&jobs, &id, &[]).await;
}
