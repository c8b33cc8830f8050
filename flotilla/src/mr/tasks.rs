//! What runs where: the tasks of a job with their attempts, and the workers.

use std::time::Duration;

use client::JobClient;
use daemon::Failure;
use proto::mapreduce::{
    AttemptInfo, AttemptState, ListTasksRequest, Task, TaskKind, TaskState, WorkerInfo,
};
use serde_json::{Value, json};

use super::show;
use crate::output::{Output, Table, refused};
use crate::units;

/// The tasks of one page.
const PAGE_TASKS: u32 = 1_000;

/// Shows the tasks of a job, or those only that had a failure.
pub(super) async fn list(
    jobs: &JobClient,
    job: &str,
    failed: bool,
    output: Output,
) -> Result<(), Failure> {
    let mut tasks = Vec::new();
    let mut page_token = String::new();
    loop {
        let limit = PAGE_TASKS;
        let request =
            ListTasksRequest { job: job.to_owned(), limit, page_token, ..Default::default() };
        let page = jobs.list_tasks(request).await.map_err(refused)?;
        tasks.extend(page.tasks.into_iter().filter(|task| !failed || task.failures > 0));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let values: Vec<Value> = tasks.iter().map(value).collect();
    output.result(&table(&tasks), &json!({ "tasks": values }))
}

/// Shows the workers.
pub(super) async fn workers(jobs: &JobClient, output: Output) -> Result<(), Failure> {
    let found = jobs.list_workers().await.map_err(refused)?.workers;
    let mut table =
        Table::new(["WORKER", "SLOTS", "TASKS", "HEARD", "STATE", "EXCLUDED FROM", "APPS"]);
    for worker in &found {
        table.row([
            worker.name.clone(),
            worker.slots.to_string(),
            worker.attempts.len().to_string(),
            if worker.present { ago(worker.heard_ms_ago) } else { String::new() },
            worker_state(worker).to_owned(),
            Some(worker.excluded_from)
                .filter(|jobs| *jobs > 0)
                .map_or_else(String::new, |jobs| format!("{jobs} jobs")),
            worker.apps.join(","),
        ]);
    }
    let values: Vec<Value> = found.iter().map(worker_value).collect();
    output.result(&table.text(), &json!({ "workers": values }))
}

/// Tells a worker to leave.
pub(super) async fn drain(jobs: &JobClient, name: &str, output: Output) -> Result<(), Failure> {
    let reply = jobs.drain_worker(name).await.map_err(refused)?;
    let worker = reply.worker.unwrap_or_default();
    let text = format!("{name} ends what it runs, {} tasks, and leaves", worker.attempts.len());
    output.result(&text, &worker_value(&worker))
}

fn ago(ms: u64) -> String {
    format!("{} ago", units::duration(Duration::from_millis(ms)))
}

fn worker_state(worker: &WorkerInfo) -> &'static str {
    match (worker.present, worker.draining) {
        (false, _) => "not heard",
        (true, true) => "draining",
        (true, false) => "at work",
    }
}

fn worker_value(worker: &WorkerInfo) -> Value {
    json!({
        "name": worker.name,
        "worker": worker.worker,
        "slots": worker.slots,
        "apps": worker.apps,
        "tasks": worker.attempts.len(),
        "heard_ms_ago": worker.present.then_some(worker.heard_ms_ago),
        "state": worker_state(worker),
        "excluded_from": worker.excluded_from,
    })
}

fn table(tasks: &[Task]) -> String {
    let mut table = Table::new([
        "TASK", "STATE", "INPUT", "FAILURES", "LOST", "ATTEMPT", "WORKER", "TOOK", "WHY",
    ]);
    for task in tasks {
        let last = task.attempts.last();
        table.row([
            format!("{} {}", kind(task.kind()), task.number),
            state(task.state()).to_owned(),
            Some(task.input_bytes)
                .filter(|bytes| *bytes > 0)
                .map_or_else(String::new, units::count),
            task.failures.to_string(),
            task.lost_workers.to_string(),
            last.map_or_else(String::new, |is| attempt_state(is).to_owned()),
            last.map_or_else(String::new, |is| is.worker.clone()),
            last.filter(|is| is.duration_ms > 0).map_or_else(String::new, |is| {
                units::duration(Duration::from_millis(is.duration_ms))
            }),
            why(task).unwrap_or_default(),
        ]);
    }
    table.text()
}

/// Why an attempt at a task failed, the last that did.
fn why(task: &Task) -> Option<String> {
    let failed = task.attempts.iter().rev().find_map(|attempt| attempt.failure.as_ref())?;
    show::cause(failed)
}

fn kind(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Unspecified => "task",
        TaskKind::Map => "map",
        TaskKind::Reduce => "reduce",
    }
}

fn state(state: TaskState) -> &'static str {
    match state {
        TaskState::Unspecified => "unknown",
        TaskState::Blocked => "blocked",
        TaskState::Pending => "pending",
        TaskState::Running => "running",
        TaskState::Committed => "committed",
        TaskState::Failed => "failed",
    }
}

fn attempt_state(attempt: &AttemptInfo) -> &'static str {
    match attempt.state() {
        AttemptState::Unspecified => "unknown",
        AttemptState::Queued => "queued",
        AttemptState::Running if attempt.backup => "running (backup)",
        AttemptState::Running => "running",
        AttemptState::Accepted => "accepted",
        AttemptState::LostRace => "lost race",
        AttemptState::Failed => "failed",
        AttemptState::Expired => "expired",
        AttemptState::Aborted => "aborted",
        AttemptState::Abandoned => "abandoned",
    }
}

fn value(task: &Task) -> Value {
    let attempt = |is: &AttemptInfo| {
        let id = is.attempt.clone().unwrap_or_default();
        json!({
            "attempt": format!("{}-{}", id.epoch, id.sequence),
            "state": attempt_state(is),
            "backup": is.backup,
            "worker": is.worker,
            "age_ms": is.age_ms,
            "duration_ms": is.duration_ms,
            "records": is.records,
            "bytes": is.bytes,
            "failure": is.failure.as_ref().and_then(show::cause),
        })
    };
    let skipped = task.skipped.iter().map(|record| format!("{}:{}", record.path, record.offset));
    json!({
        "kind": kind(task.kind()),
        "number": task.number,
        "state": state(task.state()),
        "input_bytes": task.input_bytes,
        "failures": task.failures,
        "lost_workers": task.lost_workers,
        "invalidations": task.invalidations,
        "skipped": skipped.collect::<Vec<_>>(),
        "attempts": task.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}
