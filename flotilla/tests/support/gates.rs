//! Jobs of programs that wait for what a test does, and what became of each of their attempts.
//!
//! Each input is a file of one line, and a map. A program that waits looks for a file, its gate,
//! which the test makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::JobClient;
use mr_coordinator::ids::{JobId, job_directory};
use proto::mapreduce::{
    AttemptInfo, AttemptState, Command, Job, JobSpec, ListTasksRequest, Speculation, Streaming,
    TaskKind,
};
use tokio::time::{Instant, sleep};

use super::fleet::{Fleet, LEASE};
use super::jobs::{PATIENCE, has_ended};

/// Workers that run programs, one at a time, and keep none ready.
pub(crate) const OF_WORKERS: &[&str] = &["--allow-exec", "--prefetch=0"];

/// A fleet of one coordinator with so many inputs.
pub(crate) async fn fleet(workers: u16, inputs: usize) -> Fleet {
    let fleet = Fleet::start_with(1, workers, &[], OF_WORKERS);
    write_inputs(&fleet.root(), inputs);
    fleet.ready(workers.into()).await;
    fleet
}

/// Writes so many inputs.
pub(crate) fn write_inputs(root: &Path, inputs: usize) {
    fs::create_dir(root.join("in")).unwrap();
    for input in 0..inputs {
        fs::write(root.join(format!("in/{input}")), line(input)).unwrap();
    }
}

fn line(input: usize) -> String {
    format!("line {input}\n")
}

/// What waits until the gate is there.
pub(crate) fn wait_for(root: &Path, gate: &str) -> String {
    format!("while [ ! -e {}/{gate} ]; do sleep 0.02; done", root.display())
}

/// Waits until a program has made a file.
pub(crate) async fn made(root: &Path, name: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !root.join(name).exists() {
        assert!(Instant::now() < deadline, "{name} is not made");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Makes a gate.
pub(crate) fn open(fleet: &Fleet, gate: &str) {
    fs::write(fleet.root().join(gate), "").unwrap();
}

/// A job whose mappers and reducers are these scripts of the shell, with a slot for each attempt
/// and none twice.
pub(crate) fn spec(output: &str, reduces: u32, mapper: &str, reducer: &str) -> JobSpec {
    let command = |script: &str| {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        Some(Command { argv })
    };
    let streaming =
        Streaming { mapper: command(mapper), reducer: command(reducer), ..Streaming::default() };
    JobSpec {
        inputs: vec!["in".to_owned()],
        output: output.to_owned(),
        reduces,
        split_bytes: line(0).len() as u64,
        lease_ms: LEASE.as_millis() as u64,
        streaming: Some(streaming),
        speculation: Speculation::Off.into(),
        ..JobSpec::default()
    }
}

pub(crate) async fn submit(jobs: &JobClient, spec: JobSpec) -> String {
    jobs.submit(spec, JobClient::token()).await.unwrap().job.unwrap().id
}

/// All parts of a job that passes its lines on have all lines, each once.
pub(crate) fn check_lines(fleet: &Fleet, output: &str, inputs: usize) {
    let entries = fs::read_dir(fleet.root().join(output)).unwrap().map(Result::unwrap);
    let parts = entries.filter(|entry| entry.file_name() != "_SUCCESS");
    let text: String = parts.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
    let mut found: Vec<&str> = text.lines().collect();
    found.sort_unstable();
    let mut expected: Vec<String> = (0..inputs).map(|input| format!("line {input}\t")).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

/// A task of a job.
pub(crate) type Task = (TaskKind, u32);

/// The directory of a job's attempts at a task.
pub(crate) fn task_directory(root: &Path, job: &str, (kind, number): Task) -> PathBuf {
    let job: JobId = job.parse().unwrap();
    let kind = if kind == TaskKind::Map { "m" } else { "r" };
    root.join(job_directory(job)).join(format!("{kind}/{number}"))
}

/// The run of a map, of which there was one attempt.
pub(crate) fn run_of(root: &Path, job: &str, map: u32) -> PathBuf {
    let attempts = fs::read_dir(task_directory(root, job, (TaskKind::Map, map))).unwrap();
    let mut attempts: Vec<_> = attempts.collect();
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    attempts.remove(0).unwrap().path().join("data.run")
}

/// Waits until nothing of a job is left but its results.
pub(crate) async fn gone(root: &Path, job: &str) {
    let directory = root.join(job_directory(job.parse().unwrap()));
    let deadline = Instant::now() + PATIENCE;
    while directory.exists() {
        assert!(Instant::now() < deadline, "{} stays", directory.display());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a task's only attempt is so old, as its coordinator sees it.
pub(crate) async fn aged(jobs: &JobClient, id: &str, task: Task, age: Duration) {
    loop {
        let found = stand(jobs, id, task, &[AttemptState::Running]).await;
        if Duration::from_millis(found[0].age_ms) >= age {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until no worker has anything to do.
pub(crate) async fn idle(jobs: &JobClient) {
    let deadline = Instant::now() + PATIENCE;
    while jobs.list_workers().await.unwrap().workers.iter().any(|is| !is.attempts.is_empty()) {
        assert!(Instant::now() < deadline, "somebody is at work");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The attempts of all tasks, in the order in which they were given out.
pub(crate) async fn attempts(jobs: &JobClient, id: &str) -> BTreeMap<Task, Vec<AttemptInfo>> {
    let mut found = BTreeMap::new();
    let mut request = ListTasksRequest { job: id.to_owned(), ..ListTasksRequest::default() };
    loop {
        let page = jobs.list_tasks(request.clone()).await.unwrap();
        for task in page.tasks {
            found.insert((task.kind(), task.number), task.attempts);
        }
        if page.next_page_token.is_empty() {
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

/// How they stand.
pub(crate) fn states(attempts: &[AttemptInfo]) -> Vec<AttemptState> {
    attempts.iter().map(AttemptInfo::state).collect()
}

/// Waits until a task's attempts stand so, and answers with them.
pub(crate) async fn stand(
    jobs: &JobClient,
    id: &str,
    task: Task,
    expected: &[AttemptState],
) -> Vec<AttemptInfo> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = attempts(jobs, id).await.remove(&task).unwrap_or_default();
        if states(&found) == expected {
            return found;
        }
        assert!(Instant::now() < deadline, "{task:?}: {found:?}, not {expected:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Each task was tried once, and that was accepted; but those named, whose attempts ended so.
pub(crate) async fn check_attempts(jobs: &JobClient, id: &str, but: &[(Task, &[AttemptState])]) {
    let but: BTreeMap<_, _> = but.iter().copied().collect();
    for (task, found) in attempts(jobs, id).await {
        let expected = but.get(&task).copied().unwrap_or(&[AttemptState::Accepted]);
        assert_eq!(states(&found), expected, "{task:?}: {found:?}");
    }
}

/// Waits until so many workers, no more and no less, are not lost.
pub(crate) async fn present(jobs: &JobClient, workers: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let list = jobs.list_workers().await.unwrap().workers;
        if list.iter().filter(|worker| worker.present).count() == workers {
            return;
        }
        assert!(Instant::now() < deadline, "not {workers} workers: {list:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The end of a job.
pub(crate) async fn end(jobs: &JobClient, id: &str) -> Job {
    super::jobs::until(jobs, id, "the end", has_ended).await
}
