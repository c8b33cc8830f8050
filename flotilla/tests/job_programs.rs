//! What the code of users does to a job on real processes: it fails always or for a while, takes its
//! slot or its worker along, or never ends. The job ends rightly, says why, and costs nobody else
//! anything.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use client::JobClient;
use proto::mapreduce::{Command, Job, JobSpec, JobState, Streaming, failure_reason};
use support::fleet::{Fleet, LEASE};
use support::jobs::{PATIENCE, has_ended, retries, until};
use support::{Watchdog, complained, flotilla, said, well};
use tokio::time::{Instant, sleep};

/// How many inputs there are, each a line and a map.
const INPUTS: usize = 4;

/// The map that a test does something to.
const BAD: u32 = 1;

async fn fleet(workers: u16) -> Fleet {
    fleet_with(workers, &[], &["--allow-exec"]).await
}

/// With flags of the coordinator and of the workers.
async fn fleet_with(workers: u16, further: &[&str], of_workers: &[&str]) -> Fleet {
    let fleet = Fleet::start_with(1, workers, further, of_workers);
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

/// What `flotilla mr logs` ends with, says, and complains about.
fn logs(fleet: &Fleet, arguments: &[&str]) -> (Option<i32>, String, String) {
    let (coordinator, root) = (fleet.everybody(), fleet.root());
    let root = root.to_str().unwrap();
    let command = ["mr", "--coordinator", &coordinator, "logs", "--root", root];
    let output = flotilla(&[&command, arguments].concat());
    (output.status.code(), said(&output), complained(&output))
}

/// Waits until all logs of a job are as long ago as they are kept, has another leader look at them,
/// and waits until they are gone.
async fn forgotten(fleet: &mut Fleet, job: &Job, kept: Duration) {
    let ended = UNIX_EPOCH + Duration::from_millis(job.ended_unix_ms);
    sleep(kept.saturating_sub(ended.elapsed().unwrap_or_default())).await;
    fleet.coordinators[0].kill();
    fleet.coordinators[0].start().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while fleet.root().join(".flotilla/logs").join(&job.id).exists() {
        assert!(Instant::now() < deadline, "the logs of {} are kept", job.id);
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_attempts_say_can_be_read_until_long_after_the_end() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let of_workers = ["--allow-exec", "--log-bytes-max=50"];
    let mut fleet = fleet_with(2, &["--logs-kept-s=1"], &of_workers).await;
    let jobs = fleet.jobs();
    let once =
        format!("mkdir {}/one 2>/dev/null && echo no good >&2 && exit 3", fleet.root().display());
    let mut spoken = spec("out", &format!("{once}; printf '%060d' 0 >&2"));
    let reducer = ["sh", "-c", "echo reducing >&2; cat"].map(str::to_owned).to_vec();
    spoken.streaming.as_mut().unwrap().reducer = Some(Command { argv: reducer });
    let spoken = submit(&jobs, spoken).await;
    let silent = submit(&jobs, spec("silent", ":")).await;
    let failing = JobSpec { max_attempts: 1, ..spec("no", "echo no good >&2; exit 3") };
    let failing = submit(&jobs, failing).await;

    let ended = end(&jobs, &spoken).await;
    assert_eq!(ended.state(), JobState::Succeeded, "{:?}", ended.failure);
    let (code, all, _) = logs(&fleet, &[&spoken]);
    assert_eq!(code, Some(0));
    let lines: Vec<&str> = all.lines().collect();
    let [first, no_good, "", second, zeros, dropped, "", reduce, "reducing"] = lines[..] else {
        panic!("{all}")
    };
    assert!(first.starts_with("==> map 1, attempt ") && first.ends_with(" <=="), "{all}");
    assert!(second.starts_with("==> map 1, attempt ") && second != first, "{all}");
    assert!(reduce.starts_with("==> reduce 0, attempt "), "{all}");
    assert_eq!(no_good, "no good");
    assert_eq!(zeros, "0".repeat(50));
    assert!(dropped.contains("bytes were dropped: limit log_bytes_max, 50"), "{all}");

    let (_, of_task, _) = logs(&fleet, &[&spoken, "map-1", "--json"]);
    let of_task: Vec<serde_json::Value> =
        of_task.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(of_task.len(), 2);
    assert_eq!((&of_task[0]["task"], &of_task[0]["bytes"]), (&"map 1".into(), &8.into()));
    assert_eq!(of_task[0]["text"], "no good\n");
    let attempt = of_task[0]["attempt"].as_str().unwrap();
    let (_, of_attempt, _) = logs(&fleet, &[&spoken, &format!("map-1.{attempt}")]);
    assert_eq!(of_attempt, format!("{first}\nno good"));

    end(&jobs, &silent).await;
    let (code, said, complaint) = logs(&fleet, &[&silent]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(complaint.contains("wrote nothing"), "{complaint}");
    assert!(!fleet.root().join(".flotilla/logs").join(&silent).exists());
    for (absent, word) in [
        (&[&spoken, "map-4"][..], "has no map 4: it has 4 maps"),
        (&["01890a5d-ac96-774b-bcce-b302099a8057"], "not found"),
    ] {
        let (code, _, complaint) = logs(&fleet, absent);
        assert_eq!(code, Some(6), "{complaint}");
        assert!(complaint.contains(word), "{complaint}");
    }

    let ended_badly = end(&jobs, &failing).await;
    let shown = flotilla(&["mr", "--coordinator", &fleet.everybody(), "get", &failing]);
    let hint = format!("    no good\n  all its words: flotilla mr logs {failing} map-1");
    assert!(well(&shown).ends_with(&hint), "{}", well(&shown));
    forgotten(&mut fleet, &ended_badly, Duration::from_secs(1)).await;
    // A job is told from its logs that are gone.
    let (code, _, complaint) = logs(&fleet, &[&failing]);
    assert_eq!(code, Some(0), "{complaint}");
}
