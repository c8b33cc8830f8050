//! Coordinators that die while results appear, whose log is torn or damaged, or whose disk is full,
//! and jobs of many tasks through restarts: the right result, and nothing done twice.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{JobClient, Options};
use flotilla::local::process::{Ended, Process};
use proto::mapreduce::{
    AttemptState, InputFormat, Job, JobSpec, OutputFormat, TaskKind, failure_reason,
};
use raftd::failpoint::VARIABLE;
use support::disk::Disk;
use support::fleet::{Fleet, LEASE};
use support::gates::{attempts, states, submit};
use support::jobs::{
    COUNT, PATIENCE, REDUCES, SLOW_COUNT, Submission, check_nothing_else, made_up_text, parts,
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
        let id = Submission { output: &output, ..COUNT }.submit(&fleet.everybody());
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

/// Takes the last bytes off the log that a coordinator left: they never came to the disk.
fn tear(log: &Path) {
    let bytes = fs::read(log).unwrap();
    let (tip, filler) = (written(&bytes), *bytes.last().unwrap());
    let file = fs::File::options().write(true).open(log).unwrap();
    file.write_all_at(&[filler; 8], tip as u64 - 8).unwrap();
}

/// F17. A record whose end never came to the disk: while nobody was told of it, it never was.
#[tokio::test]
async fn a_torn_last_record_costs_nothing() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = SLOW_COUNT.submit(&fleet.everybody());
    let data = fleet.dir().join("coordinator-1");
    for (phase, holds) in PHASES {
        let told = until(&jobs, &id, phase, holds).await;
        fleet.coordinators[0].kill();
        start_to_die(&mut fleet, "log.sync.after=crash@4");
        dead(&mut fleet).await;
        tear(&log_of(&data));
        start_to_live(&mut fleet);
        let job = jobs.get(&id, 0).await.unwrap();
        assert!(committed(&job) >= committed(&told), "{told:?} {job:?}");
    }
    // Who reported it reports it again.
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check(&fleet, "counts", &expected);
}

type Holds = fn(&Job) -> bool;

/// Until when a test waits, twice: a map is committed, a reduce is.
const PHASES: [(&str, Holds); 2] =
    [("a map", |job| committed(job).0 > 0), ("a reduce", |job| committed(job).1 > 0)];

/// F17. A bit of what was acknowledged is another, or its end is missing.
#[tokio::test]
async fn a_coordinator_whose_log_is_damaged_does_not_start_and_says_what_is_missing() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = Fleet::start(1, 2, &[]);
    let expected = made_up_text(&fleet.root());
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = SLOW_COUNT.submit(&fleet.everybody());
    let told = until(&jobs, &id, "a reduce", |job| committed(job).1 > 0).await;
    fleet.coordinators[0].kill();
    // It is about to answer.
    start_to_die(&mut fleet, "answer.before=crash@4");
    dead(&mut fleet).await;
    fleet.coordinators[0].set_environment(Vec::new());
    let (data, whole) = (fleet.dir().join("coordinator-1"), fleet.dir().join("whole"));
    copy(&data, &whole);
    let flip = |log: &Path, part: usize| {
        let mut bytes = fs::read(log).unwrap();
        let at = written(&bytes) * part / 4;
        bytes[at] ^= 1;
        fs::write(log, bytes).unwrap();
    };
    for part in 1..=4 {
        if part < 4 {
            flip(&log_of(&data), part);
        } else {
            tear(&log_of(&data));
        }
        fleet.coordinators[0].start().unwrap();
        let ended = end_of(&mut fleet.coordinators[0]).await;
        assert_eq!(ended.status.code(), Some(74), "{part}: {ended}");
        let words = ["are missing from the log", "log can't be opened"];
        assert!(words.iter().any(|words| ended.tail.contains(words)), "{part}: {ended}");
        fs::remove_dir_all(&data).unwrap();
        copy(&whole, &data);
    }
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
        split_bytes: 100_000,
        slow_ms: 300,
        ..JobSpec::default()
    }
}

/// Whether an attempt of this kind failed for want of space.
async fn exhausted(jobs: &JobClient, id: &str, kind: TaskKind) -> bool {
    let mut tasks = attempts(jobs, id).await;
    tasks.retain(|(of, _), _| *of == kind);
    let reasons = tasks.into_values().flatten().filter_map(|attempt| attempt.failure?.kind);
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
    for ((phase, holds), kind) in PHASES.into_iter().zip([TaskKind::Map, TaskKind::Reduce]) {
        until(&jobs, &id, phase, holds).await;
        disk.leave(0);
        let deadline = Instant::now() + PATIENCE;
        while !exhausted(&jobs, &id, kind).await {
            assert!(Instant::now() < deadline, "nobody notices");
            sleep(Duration::from_millis(20)).await;
        }
        disk.relieve();
    }
    let job = succeeded(&jobs, &id).await;
    assert!(job.counters["SPILLED_RUNS"] > 0, "{job:?}");
    let found: String = parts(&fleet.root().join("sorted"))
        .iter()
        .map(|part| fs::read_to_string(part).unwrap())
        .collect();
    let mut found: Vec<&str> = found.lines().collect();
    found.sort_unstable();
    assert!(found == expected);
    check_nothing_else(&fleet.root().join("sorted"));
}

/// F30, the coordinator's own disk.
#[tokio::test]
async fn a_coordinator_whose_disk_is_full_ends_and_goes_on_when_there_is_room() {
    const NAME: &str = "a_coordinator_whose_disk_is_full_ends_and_goes_on_when_there_is_room";
    const OUTPUTS: [&str; 3] = ["counts", "more", "most"];
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = Fleet::set_up(1, 2, &[], &[]);
    let Some(disk) = Disk::mount(&fleet.dir().join("coordinator-1"), 32 << 20) else {
        eprintln!("skipped: {NAME} needs the right to mount a disk");
        return;
    };
    // Nothing is kept in reserve.
    let setting = ("FLOTILLA_MR_COORDINATOR__GROUP__FREE_BYTES_MIN".to_owned(), "0".to_owned());
    fleet.coordinators[0].set_environment(vec![setting]);
    let expected = made_up_text(&fleet.root());
    fleet.start_all();
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let ids = OUTPUTS.map(|output| {
        let submission = Submission { output, slow_ms: 100, ..COUNT };
        submission.submit(&fleet.everybody())
    });
    let mut told = until(&jobs, &ids[0], "a map", |job| committed(job).0 > 0).await;
    disk.leave(0);
    // It acknowledges what it can write, and nothing else.
    let alone = Options::with_deadline(Duration::from_millis(300));
    let alone = JobClient::connect(fleet.addresses.clone(), alone).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        if let Some(ended) = fleet.coordinators[0].take_end() {
            break ended;
        }
        assert!(Instant::now() < deadline, "it goes on");
        told = alone.get(&ids[0], 0).await.unwrap_or(told);
    };
    assert_eq!(ended.status.code(), Some(71), "{ended}");
    disk.relieve();
    fleet.coordinators[0].start().unwrap();
    let job = jobs.get(&ids[0], 0).await.unwrap();
    assert!(committed(&job) >= committed(&told), "{told:?} {job:?}");
    for (id, output) in ids.iter().zip(OUTPUTS) {
        let job = succeeded(&jobs, id).await;
        assert_eq!(retries(&job), 0, "{job:?}");
        check(&fleet, output, &expected);
    }
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
    // What a worker kept ready may have been taken back, unbegun, for another.
    for (task, mut found) in attempts(&jobs, &id).await {
        found.retain(|attempt| attempt.state() != AttemptState::Abandoned);
        assert_eq!(states(&found), [AttemptState::Accepted], "{task:?}: {found:?}");
    }
}
