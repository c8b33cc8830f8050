//! Workers that are killed or stand still at the moment that matters, on real processes: each
//! attempt ends as it must, and none runs that need not.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flotilla::local::process::Process;
use proto::mapreduce::{AttemptState, JobSpec, TaskKind};
use rustix::process::Signal;
use support::fleet::{Fleet, LEASE, children, signal_all};
use support::gates::{
    self, aged, attempts, check_attempts, check_lines, gone, idle, made, open, present, run_of,
    spec, stand, submit, task_directory, wait_for, write_inputs,
};
use support::jobs::{PATIENCE, retries, succeeded};
use support::{Depth, Watchdog, contents};
use tokio::time::{Instant, sleep};

use AttemptState::{Aborted, Accepted, Expired, LostRace, Running};
use TaskKind::{Map, Reduce};

/// Whether a file has all that it will have.
type IsWhole = fn(&[u8]) -> bool;

/// Waits until so many attempts at a task have written all that they will.
async fn written(root: &Path, job: &str, task: gates::Task, count: usize, is_whole: IsWhole) {
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
    let slow = JobSpec { slow_ms: 1_000, ..spec("out", 1, "cat", "cat") };
    let id = submit(&jobs, slow).await;
    let tasks: [(_, IsWhole); 2] = [
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
    made(&root, "first").await;
    signal_all(fleet.worker(&first[0].worker), Signal::STOP);
    stand(&jobs, &id, (Map, 0), &[Expired, Running]).await;
    open(&fleet, "gate");
    signal_all(fleet.worker(&first[0].worker), Signal::CONT);
    let job = succeeded(&jobs, &id).await;
    check_attempts(&jobs, &id, &[((Map, 0), &[Accepted, LostRace])]).await;
    assert_eq!(job.counters["MAP_INPUT_BYTES"], "line 0\n".len() as u64, "{job:?}");
    check_lines(&fleet, "out", 1);
    // The second one was stopped: its worker has nothing any more.
    idle(&jobs).await;
    gone(&root, &id).await;
}

/// What a stopped worker's slot writes still.
fn open_part(worker: &Process) -> Option<(u32, PathBuf)> {
    let slots = children(worker.pid().unwrap());
    let files = slots.into_iter().flat_map(|slot| {
        let open = fs::read_dir(format!("/proc/{slot}/fd")).unwrap();
        open.map(move |file| (slot, file.unwrap().path()))
    });
    let is_part = |(_, file): &(u32, PathBuf)| {
        let target = fs::read_link(file).unwrap_or_default();
        target.to_string_lossy().ends_with("/part (deleted)")
    };
    files.into_iter().find(is_part)
}

/// F8.
#[tokio::test]
async fn who_writes_on_when_the_job_has_ended_writes_into_nothing() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let mut fleet = gates::fleet(2, 1).await;
    let (jobs, root) = (fleet.jobs(), fleet.root());
    let reducer = format!(
        "if mkdir {}/first; then while :; do yes much | head -100000; sleep 0.1; done; fi; cat",
        root.display(),
    );
    let id = submit(&jobs, spec("out", 1, "cat", &reducer)).await;
    let first = stand(&jobs, &id, (Reduce, 0), &[Running]).await;
    made(&root, "first").await;
    // Its slot goes on.
    let worker = fleet.worker(&first[0].worker);
    worker.signal(Signal::STOP);
    succeeded(&jobs, &id).await;
    check_attempts(&jobs, &id, &[((Reduce, 0), &[Expired, Accepted])]).await;
    gone(&root, &id).await;
    let results = contents(&root.join("out"));

    let (slot, part) = open_part(worker).expect("the slot has its part open");
    let length = || fs::metadata(&part).unwrap().len();
    let (before, began) = (length(), Instant::now());
    let look = if Depth::asked() == Depth::Deep { Duration::from_secs(30) } else { LEASE };
    while length() == before || began.elapsed() < look {
        assert!(began.elapsed() < PATIENCE, "the slot writes no more");
        assert_eq!(contents(&root.join("out")), results);
        sleep(Duration::from_millis(50)).await;
    }
    worker.signal(Signal::CONT);
    // The worker is told that the job is gone, and stops what its slot does.
    while Path::new(&format!("/proc/{slot}")).exists() {
        assert!(began.elapsed() < 2 * PATIENCE, "the slot runs on");
        sleep(Duration::from_millis(20)).await;
    }
    present(&jobs, 2).await;
    let next = submit(&jobs, spec("next", 1, "cat", "cat")).await;
    assert_eq!(retries(&succeeded(&jobs, &next).await), 0);
    assert_eq!(contents(&root.join("out")), results);
    check_lines(&fleet, "out", 1);
    gone(&root, &id).await;
}

/// F14: what blocks is in slots, and heartbeats are the worker's.
#[tokio::test]
async fn code_that_blocks_every_slot_for_many_leases_costs_no_attempt() {
    const SLOTS: usize = 4;
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start_with(1, 1, &[], &["--allow-exec", "--slots=4"]);
    write_inputs(&fleet.root(), SLOTS);
    fleet.ready(1).await;
    let (jobs, gate) = (fleet.jobs(), fleet.root().join("gate"));
    let spin = format!("while [ ! -e {} ]; do :; done; cat", gate.display());
    let id = submit(&jobs, spec("out", 1, &format!("exec nice -n 19 sh -c '{spin}'"), "cat")).await;
    for map in 0..SLOTS as u32 {
        aged(&jobs, &id, (Map, map), 5 * LEASE).await;
    }
    open(&fleet, "gate");
    assert_eq!(retries(&succeeded(&jobs, &id).await), 0);
    check_attempts(&jobs, &id, &[]).await;
    check_lines(&fleet, "out", SLOTS);
}

/// Which attempt at the map of `in/0` each value of a part comes from.
fn origins(part: &Path) -> Vec<String> {
    let text = fs::read_to_string(part).unwrap();
    let values = text.lines().filter_map(|line| line.split_once("\tin/0 "));
    let mut origins: Vec<String> = values.map(|(_, attempt)| attempt.to_owned()).collect();
    origins.dedup();
    origins
}

/// F22. Three reduces, one after the other: the first one is committed when the run is damaged, the
/// second has it open, the third finds the damage.
async fn check_nondeterministic(nondeterministic_ok: bool) {
    const KEYS: u64 = 30;
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = gates::fleet(1, 2).await;
    let (jobs, root) = (fleet.jobs(), fleet.root());
    let mapper = format!(
        "cat > /dev/null; for key in $(seq {KEYS}); do \
         printf '%s\\t%s %s\\n' $key $FLOTILLA_INPUT_FILE $FLOTILLA_ATTEMPT; done"
    );
    let reducer = format!(
        "case $FLOTILLA_PARTITION in 1) touch {}/second; {};; esac; cat",
        root.display(),
        wait_for(&root, "gate"),
    );
    let spec = JobSpec { nondeterministic_ok, ..spec("out", 3, &mapper, &reducer) };
    let id = submit(&jobs, spec).await;
    stand(&jobs, &id, (Reduce, 0), &[Accepted]).await;
    made(&root, "second").await;
    let run = run_of(&root, &id, 0);
    let mut bytes = fs::read(&run).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&run, bytes).unwrap();
    open(&fleet, "gate");

    let job = succeeded(&jobs, &id).await;
    let twice: &[AttemptState] = &[Accepted, Accepted];
    let mut but = vec![((Map, 0), twice), ((Reduce, 2), &[Aborted, Accepted])];
    if !nondeterministic_ok {
        but.extend([((Reduce, 0), twice), ((Reduce, 1), twice)]);
    }
    check_attempts(&jobs, &id, &but).await;
    let maps: Vec<String> = attempts(&jobs, &id).await[&(Map, 0)]
        .iter()
        .map(|is| is.attempt.as_ref().unwrap())
        .map(|is| format!("{}-{}", is.epoch, is.sequence))
        .collect();
    let expected = if nondeterministic_ok { [0, 0, 1] } else { [1, 1, 1] };
    for (part, origin) in expected.into_iter().enumerate() {
        assert_eq!(origins(&root.join(format!("out/part-0000{part}"))), [maps[origin].as_str()]);
    }
    assert_eq!(job.counters["REDUCE_INPUT_RECORDS"], 2 * KEYS, "{job:?}");
}

#[tokio::test]
async fn a_map_that_writes_something_else_the_second_time_resets_all_reduces() {
    check_nondeterministic(false).await;
}

#[tokio::test]
async fn a_map_that_may_write_something_else_the_second_time_resets_none() {
    check_nondeterministic(true).await;
}

/// F38, as a network file system shows late what another machine wrote: first nothing of the run,
/// then only the half of it.
#[tokio::test]
async fn a_run_that_shows_late_is_waited_for() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = gates::fleet(1, 2).await;
    let (jobs, root) = (fleet.jobs(), fleet.root());
    let reducer = format!(
        "case $FLOTILLA_PARTITION in 0) touch {}/first; {};; esac; cat",
        root.display(),
        wait_for(&root, "gate"),
    );
    let id = submit(&jobs, spec("out", 2, "cat", &reducer)).await;
    made(&root, "first").await;
    let (run, aside) = (run_of(&root, &id, 1), root.join("aside"));
    let bytes = fs::read(&run).unwrap();
    fs::rename(&run, &aside).unwrap();
    open(&fleet, "gate");
    aged(&jobs, &id, (Reduce, 1), Duration::from_millis(2_500)).await;
    fs::write(&run, &bytes[..bytes.len() / 2]).unwrap();
    aged(&jobs, &id, (Reduce, 1), Duration::from_secs(5)).await;
    fs::rename(&aside, &run).unwrap();
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check_attempts(&jobs, &id, &[]).await;
    check_lines(&fleet, "out", 2);
}
