//! The worker's program against a coordinator that does what the test says: work, faults of slots,
//! orders, draining, and coordinators that are away, elsewhere or of another root.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::{
    fs,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use proto::mapreduce::{
    Assignment, AttemptId, InputFormat, InputRun, JobSpec, MapWork, OutputFormat, ReduceWork,
    ReportRequest, Split, Success, TaskKind, Verdict, assignment::Work, failure_reason,
    report_request::End,
};
use rustix::process::{Pid, Signal, kill_process};
use support::{
    coordinator::{Coordinator, State},
    files, generate, job, part_bytes, run,
};
use tempfile::{TempDir, tempdir};
use tokio::process::{Child, Command};

/// Long enough that a test can act on an attempt, and none waits for its end.
const FOREVER_MS: u64 = 600_000;

/// A shared root with texts in `in/`.
fn root() -> TempDir {
    let root = tempdir().unwrap();
    fs::write(root.path().join(".flotilla-root"), "token\n").unwrap();
    fs::create_dir(root.path().join("in")).unwrap();
    generate(&root.path().join("in"), 3, 3, 500);
    root
}

fn worker(root: &Path, coordinators: &str, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mr-worker"))
        .args(["--coordinator", coordinators, "--admin", "127.0.0.1:0"])
        .env("FLOTILLA_MR_WORKER__SLOTS", "2")
        .arg("--root")
        .arg(root)
        .args(more)
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().unwrap() as i32).unwrap()
}

fn spec(slow_ms: u64) -> JobSpec {
    JobSpec {
        app: "wc".to_owned(),
        reduces: 2,
        input_format: InputFormat::Whole.into(),
        output_format: OutputFormat::Lab.into(),
        slow_ms,
        ..JobSpec::default()
    }
}

fn attempt(kind: TaskKind, task: u32, sequence: u32) -> AttemptId {
    AttemptId { job: "job".to_owned(), kind: kind.into(), task, epoch: 1, sequence }
}

fn dir_of(attempt: &AttemptId) -> String {
    format!(".flotilla/job/{}/{}/1-{}", attempt.kind, attempt.task, attempt.sequence)
}

fn assignment(attempt: AttemptId, slow_ms: u64, work: Work) -> Assignment {
    Assignment {
        attempt_dir: dir_of(&attempt),
        attempt: Some(attempt),
        lease_ms: 10_000,
        spec: Some(spec(slow_ms)),
        work: Some(work),
        careful: false,
    }
}

fn map(root: &Path, task: u32, sequence: u32, slow_ms: u64) -> Assignment {
    let path = format!("in/doc-{task}.txt");
    let metadata = fs::metadata(root.join(&path)).unwrap();
    let split = Split {
        path,
        start: 0,
        bytes: metadata.len(),
        file_bytes: metadata.len(),
        modified_ns: mr_worker::input::modified_ns(&metadata),
        ..Split::default()
    };
    let work = Work::Map(MapWork { splits: vec![split], ..MapWork::default() });
    assignment(attempt(TaskKind::Map, task, sequence), slow_ms, work)
}

fn success(report: &ReportRequest) -> Success {
    match &report.end {
        Some(End::Success(success)) => success.clone(),
        other => panic!("{other:?}"),
    }
}

fn failure(report: &ReportRequest) -> failure_reason::Kind {
    match &report.end {
        Some(End::Failure(reason)) => reason.kind.clone().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Runs the three maps, and answers with their runs.
async fn run_maps(coordinator: &Coordinator, root: &Path) -> Vec<InputRun> {
    coordinator.change(|state| state.pending.extend((0..3).map(|task| map(root, task, 1, 0))));
    let state = coordinator.wait("three reports", |state| state.reports.len() == 3).await;
    coordinator.change(|state| state.reports.clear());
    let mut runs: Vec<InputRun> = state
        .reports
        .iter()
        .map(|report| {
            let (attempt, success) = (report.attempt.clone().unwrap(), success(report));
            InputRun {
                map_task: attempt.task,
                path: format!("{}/{}", dir_of(&attempt), success.file),
                attempt: Some(attempt),
                bytes: success.bytes,
                footer_crc: success.crc,
            }
        })
        .collect();
    runs.sort_by_key(|run| run.map_task);
    runs
}

fn reduce(partition: u32, sequence: u32, runs: Vec<InputRun>) -> Assignment {
    let work = Work::Reduce(ReduceWork { partition, runs });
    assignment(attempt(TaskKind::Reduce, partition, sequence), 0, work)
}

/// The processes whose parent is `parent`.
fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let stat = fs::read_to_string(format!("/proc/{name}/stat")).ok()?;
        let after_name = stat.rsplit_once(')')?.1;
        let is_child = after_name.split_whitespace().nth(1) == Some(&parent);
        is_child.then(|| name.parse().ok().and_then(Pid::from_raw))?
    });
    processes.collect()
}

#[tokio::test]
async fn maps_and_reduces_give_what_one_process_gives() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let _worker = worker(root.path(), &coordinator.address.to_string(), &["--name", "w1"]);
    let runs = run_maps(&coordinator, root.path()).await;
    coordinator.change(|state| {
        state.pending.extend((0..2).map(|partition| reduce(partition, 1, runs.clone())));
    });
    let state = coordinator.wait("two reports", |state| state.reports.len() == 2).await;
    let scratch = tempdir().unwrap();
    let mut alone = job("wc", &files(&root.path().join("in")), scratch.path());
    alone.partitions = 2;
    let alone = run(&alone);
    for report in &state.reports {
        let (attempt, success) = (report.attempt.as_ref().unwrap(), success(report));
        let part = fs::read(root.path().join(dir_of(attempt)).join(&success.file)).unwrap();
        assert_eq!(part, part_bytes(&alone)[attempt.task as usize]);
        assert_eq!(success.crc, crc32c::crc32c(&part));
        assert_eq!(success.counters["OUTPUT_BYTES"], part.len() as u64);
    }
    assert_eq!(state.registered.len(), 1);
    let registered = &state.registered[0];
    assert_eq!((registered.name.as_str(), registered.slots), ("w1", 2));
    assert_eq!(registered.apps, ["wc", "indexer", "grep", "sort", "top", "join"]);
    assert_eq!(registered.incarnation.len(), 16);
}

#[tokio::test]
async fn a_killed_slot_costs_its_attempt_and_nothing_else() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let worker = worker(root.path(), &coordinator.address.to_string(), &["--slots", "1"]);
    coordinator.change(|state| state.pending.push_back(map(root.path(), 0, 1, FOREVER_MS)));
    let progressed = |state: &support::coordinator::State| {
        state.heartbeats.iter().any(|beat| beat.running.iter().any(|running| running.bytes > 0))
    };
    // Small inputs are read before progress is first told, so the slot itself is looked for.
    let run = root.path().join(".flotilla/job/1/0/1-1/data.run");
    coordinator.wait("the map's work", |state| run.exists() || progressed(state)).await;
    let slots = children(pid(&worker));
    assert_eq!(slots.len(), 1, "{slots:?}");
    kill_process(slots[0], Signal::KILL).unwrap();
    coordinator.change(|state| state.pending.push_back(map(root.path(), 1, 2, 0)));
    let state = coordinator.wait("two reports", |state| state.reports.len() == 2).await;
    match failure(&state.reports[0]) {
        failure_reason::Kind::Exit(exit) => assert_eq!((exit.code, exit.signal), (None, Some(9))),
        other => panic!("{other:?}"),
    }
    success(&state.reports[1]);
}

#[tokio::test]
async fn an_attempt_that_is_told_to_stop_is_gone_with_its_directory() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let worker = worker(root.path(), &coordinator.address.to_string(), &["--slots", "1"]);
    let stopped = attempt(TaskKind::Map, 0, 1);
    coordinator.change(|state| state.pending.push_back(map(root.path(), 0, 1, FOREVER_MS)));
    let dir = root.path().join(dir_of(&stopped));
    coordinator.wait("the map's work", |_| dir.join("data.run").exists()).await;
    let slot = children(pid(&worker))[0];
    coordinator.change(|state| state.stop.push(stopped.clone()));
    coordinator.wait("its directory gone", |_| !dir.exists()).await;
    coordinator
        .wait("heartbeats without it", |state| {
            state.heartbeats.last().is_some_and(|beat| beat.running.is_empty())
        })
        .await;
    assert!(!children(pid(&worker)).contains(&slot));
    coordinator.change(|state| state.pending.push_back(map(root.path(), 1, 2, 0)));
    let state = coordinator.wait("a report", |state| !state.reports.is_empty()).await;
    assert_eq!(state.reports[0].attempt, Some(attempt(TaskKind::Map, 1, 2)));
}

#[tokio::test]
async fn only_an_accepted_attempt_keeps_its_directory() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let _worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    run_maps(&coordinator, root.path()).await;
    for verdict in [Verdict::LostRace, Verdict::Stale, Verdict::JobGone, Verdict::Noted] {
        let sequence = 10 + verdict as u32;
        let dir = root.path().join(dir_of(&attempt(TaskKind::Map, 0, sequence)));
        coordinator.change(|state| {
            state.reports.clear();
            state.verdict = Some(verdict);
            state.pending.push_back(map(root.path(), 0, sequence, 0));
        });
        coordinator.wait("a report", |state| state.reports.len() == 1).await;
        coordinator.wait("its directory gone", |_| !dir.exists()).await;
    }
    for task in 0..3 {
        let dir = root.path().join(dir_of(&attempt(TaskKind::Map, task, 1)));
        assert!(dir.join("data.run").exists());
    }
}

#[tokio::test]
async fn a_damaged_run_is_named_as_lost() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let _worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    let runs = run_maps(&coordinator, root.path()).await;
    let damaged = root.path().join(&runs[1].path);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[20] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    coordinator.change(|state| state.pending.push_back(reduce(0, 1, runs.clone())));
    let state = coordinator.wait("a report", |state| !state.reports.is_empty()).await;
    match failure(&state.reports[0]) {
        failure_reason::Kind::Intermediate(lost) => assert_eq!(lost.map_attempt, runs[1].attempt),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn paths_that_leave_the_root_are_refused_and_create_nothing() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let _worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    let outside = root.path().join("../flotilla-escaped");
    let mut up = map(root.path(), 0, 1, 0);
    up.attempt_dir = "../flotilla-escaped".to_owned();
    let mut input = map(root.path(), 0, 2, 0);
    let Some(Work::Map(work)) = &mut input.work else { panic!() };
    work.splits[0].path = "/etc/passwd".to_owned();
    coordinator.change(|state| state.pending.extend([up, input]));
    let state = coordinator.wait("two reports", |state| state.reports.len() == 2).await;
    let mut kinds: Vec<_> = state.reports.iter().map(failure).collect();
    kinds.sort_by_key(|kind| matches!(kind, failure_reason::Kind::Input(_)));
    assert!(matches!(&kinds[0], failure_reason::Kind::Internal(_)), "{kinds:?}");
    assert!(
        matches!(&kinds[1], failure_reason::Kind::Input(input) if input.permanent),
        "{kinds:?}"
    );
    assert!(!outside.exists());
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_finishes_within_its_grace() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let mut worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    coordinator.change(|state| state.pending.push_back(map(root.path(), 0, 1, 1_500)));
    let run = root.path().join(dir_of(&attempt(TaskKind::Map, 0, 1))).join("data.run");
    coordinator.wait("the map's work", |_| run.exists()).await;
    kill_process(pid(&worker), Signal::TERM).unwrap();
    assert_eq!(worker.wait().await.unwrap().code(), Some(0));
    let state = coordinator.state();
    assert_eq!(state.reports.len(), 1);
    success(&state.reports[0]);
    assert_eq!(state.deregistered, 1);
}

#[tokio::test]
async fn a_task_is_kept_ready_and_can_be_taken_back() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let address = coordinator.address.to_string();
    let _worker = worker(root.path(), &address, &["--slots", "1"]);
    coordinator.change(|state| {
        for task in 0..2 {
            state.pending.push_back(map(root.path(), task, task + 1, FOREVER_MS));
        }
    });
    let (first, second) = (attempt(TaskKind::Map, 0, 1), attempt(TaskKind::Map, 1, 2));
    let told = |state: &State, attempt: &AttemptId, queued: bool| {
        state.heartbeats.last().is_some_and(|beat| {
            beat.running
                .iter()
                .any(|is| is.attempt.as_ref() == Some(attempt) && is.queued == queued)
        })
    };
    let both = |state: &State| told(state, &first, false) && told(state, &second, true);
    coordinator.wait("one that runs and one that is ready", both).await;
    coordinator.change(|state| state.stop.push(second.clone()));
    coordinator
        .wait("it taken back", |state| {
            state.heartbeats.last().is_some_and(|beat| beat.running.len() == 1)
        })
        .await;
    assert!(!root.path().join(dir_of(&second)).exists(), "it never began");
    assert!(coordinator.state().reports.is_empty());
}

#[tokio::test]
async fn tasks_come_with_verdicts() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let address = coordinator.address.to_string();
    let _worker = worker(root.path(), &address, &["--slots", "1", "--prefetch", "0"]);
    coordinator.change(|state| state.pending.push_back(map(root.path(), 0, 1, 700)));
    coordinator.wait("the first task", |state| state.pending.is_empty()).await;
    coordinator.change(|state| {
        state.only_with_reports = true;
        for task in 1..3 {
            state.pending.push_back(map(root.path(), task, task + 1, 0));
        }
    });
    let state = coordinator.wait("all reports", |state| state.reports.len() == 3).await;
    let asked: Vec<_> = state.reports.iter().map(|report| report.poll_free_slots).collect();
    assert_eq!(asked, [1; 3], "each asks for the slot that it frees");
}

#[tokio::test]
async fn a_worker_that_the_coordinator_tells_to_leave_finishes_and_leaves() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let address = coordinator.address.to_string();
    let mut worker = worker(root.path(), &address, &["--slots", "1"]);
    coordinator.change(|state| {
        state.pending.push_back(map(root.path(), 0, 1, 1_000));
        state.pending.push_back(map(root.path(), 1, 2, 0));
    });
    let run = root.path().join(dir_of(&attempt(TaskKind::Map, 0, 1))).join("data.run");
    coordinator.wait("the map's work", |_| run.exists()).await;
    coordinator.change(|state| state.drain = true);
    assert_eq!(worker.wait().await.unwrap().code(), Some(0));
    let state = coordinator.state();
    assert!(state.reports.iter().any(|report| matches!(report.end, Some(End::Abandoned(_)))));
    let done = state.reports.iter().find(|report| matches!(report.end, Some(End::Success(_))));
    assert_eq!(done.unwrap().attempt, Some(attempt(TaskKind::Map, 0, 1)));
    assert_eq!(state.deregistered, 1);
}

#[tokio::test]
async fn a_worker_without_grace_gives_its_attempts_back() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let address = coordinator.address.to_string();
    let mut worker = worker(root.path(), &address, &["--drain-grace-ms", "100"]);
    coordinator.change(|state| state.pending.push_back(map(root.path(), 0, 1, FOREVER_MS)));
    let dir = root.path().join(dir_of(&attempt(TaskKind::Map, 0, 1)));
    coordinator.wait("the map's work", |_| dir.join("data.run").exists()).await;
    let slots = children(pid(&worker));
    kill_process(pid(&worker), Signal::TERM).unwrap();
    assert_eq!(worker.wait().await.unwrap().code(), Some(0));
    let state = coordinator.state();
    assert!(matches!(state.reports[..], [ReportRequest { end: Some(End::Abandoned(_)), .. }]));
    assert_eq!(state.deregistered, 1);
    for slot in slots {
        let process = format!("/proc/{}", slot.as_raw_nonzero());
        coordinator.wait("the slot gone", |_| !Path::new(&process).exists()).await;
    }
}

#[tokio::test]
async fn slots_die_with_their_worker() {
    let root = root();
    let coordinator = Coordinator::start().await;
    let mut worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    coordinator.change(|state| state.pending.push_back(map(root.path(), 0, 1, FOREVER_MS)));
    let run = root.path().join(dir_of(&attempt(TaskKind::Map, 0, 1))).join("data.run");
    coordinator.wait("the map's work", |_| run.exists()).await;
    let slots = children(pid(&worker));
    assert!(!slots.is_empty());
    worker.kill().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    for slot in slots {
        let stat = format!("/proc/{}/stat", slot.as_raw_nonzero());
        // Whoever inherits it may leave it a zombie, which is dead enough.
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "{slot:?} lives on");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn another_shared_root_is_a_configuration_error() {
    let root = root();
    let coordinator = Coordinator::start().await;
    coordinator.change(|state| state.token = "another".to_owned());
    let worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    let output = worker.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("shared root mismatch"), "{said}");
}

#[tokio::test]
async fn a_root_that_cannot_be_written_ends_the_worker_before_it_registers() {
    let root = root();
    // A file where the directory should be: nobody can write below it, whatever rights he has.
    fs::write(root.path().join(".flotilla"), "").unwrap();
    let coordinator = Coordinator::start().await;
    let worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    let output = tokio::select! {
        output = worker.wait_with_output() => output.unwrap(),
        state = coordinator.wait("a registration", |state| !state.registered.is_empty()) => {
            panic!("it registered: {:?}", state.registered);
        }
    };
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8_lossy(&output.stderr);
    let directory = root.path().join(".flotilla").display().to_string();
    assert!(said.contains(&directory), "{said}");
}

#[tokio::test]
async fn a_root_whose_token_comes_late_is_looked_at_again() {
    let root = root();
    fs::remove_file(root.path().join(".flotilla-root")).unwrap();
    let coordinator = Coordinator::start().await;
    let _worker = worker(root.path(), &coordinator.address.to_string(), &[]);
    coordinator.wait("a refusal", |state| state.refused > 0).await;
    fs::write(root.path().join(".flotilla-root"), "token\n").unwrap();
    coordinator.wait("a registration", |state| !state.registered.is_empty()).await;
}

#[tokio::test]
async fn the_coordinator_that_leads_is_found() {
    let root = root();
    let (follower, leader) = (Coordinator::start().await, Coordinator::start().await);
    follower.change(|state| state.leader = Some(leader.address.to_string()));
    let dead = "127.0.0.1:9";
    let worker = worker(root.path(), &format!("{dead},{}", follower.address), &[]);
    leader.wait("a registration", |state| !state.registered.is_empty()).await;
    // And found again when it moves, with what is running.
    leader.change(|state| state.pending.push_back(map(root.path(), 0, 1, FOREVER_MS)));
    let run = root.path().join(dir_of(&attempt(TaskKind::Map, 0, 1))).join("data.run");
    leader.wait("the map's work", |_| run.exists()).await;
    follower.change(|state| (state.leader, state.forgetful) = (None, true));
    leader.change(|state| state.leader = Some(follower.address.to_string()));
    let state = follower.wait("a registration", |state| !state.registered.is_empty()).await;
    assert_eq!(state.registered[0].running, [attempt(TaskKind::Map, 0, 1)]);
    assert_eq!(state.registered[0].incarnation, leader.state().registered[0].incarnation);
    assert!(!children(pid(&worker)).is_empty());
}

#[tokio::test]
async fn a_worker_without_any_coordinator_gives_up() {
    let root = root();
    let lost = ["--coordinator-lost-timeout-ms", "300"];
    let worker = worker(root.path(), "127.0.0.1:9", &lost);
    let output = worker.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(71));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no coordinator answered"), "{said}");
}

#[tokio::test]
async fn wrong_settings_end_with_their_code_and_a_reason() {
    let root = root();
    for (arguments, code, reason) in [
        (&["--coordinator", "nowhere"][..], 78, "host:port"),
        (&["--root", "/nowhere/at/all"], 78, "/nowhere/at/all"),
        (&["--slots", "100000"], 78, "slots is 100000"),
        (&["--memory-bytes", "1"], 78, "memory_bytes is 1"),
        (&["--admin", "0.0.0.0:0"], 78, "insecure"),
        (&["--no-such-flag"], 64, "--no-such-flag"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_mr-worker"))
            .env("FLOTILLA_MR_WORKER__ROOT", root.path())
            .env("FLOTILLA_MR_WORKER__ADMIN", "127.0.0.1:0")
            .args(arguments)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}
