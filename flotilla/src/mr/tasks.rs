//! What runs where: the tasks of a job with their attempts, and the workers.

use std::time::Duration;

use client::JobClient;
use daemon::Failure;
use mr_coordinator::told;
use proto::mapreduce::{ListTasksRequest, Task};
use serde_json::{Value, json};

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
    let values: Vec<Value> = tasks.iter().map(told::task).collect();
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
            told::worker_state(worker).to_owned(),
            Some(worker.excluded_from)
                .filter(|jobs| *jobs > 0)
                .map_or_else(String::new, |jobs| format!("{jobs} jobs")),
            worker.apps.join(","),
        ]);
    }
    let values: Vec<Value> = found.iter().map(told::worker).collect();
    output.result(&table.text(), &json!({ "workers": values }))
}

/// Tells a worker to leave.
pub(super) async fn drain(jobs: &JobClient, name: &str, output: Output) -> Result<(), Failure> {
    let reply = jobs.drain_worker(name).await.map_err(refused)?;
    let worker = reply.worker.unwrap_or_default();
    let text = format!("{name} ends what it runs, {} tasks, and leaves", worker.attempts.len());
    output.result(&text, &told::worker(&worker))
}

fn ago(ms: u64) -> String {
    format!("{} ago", units::duration(Duration::from_millis(ms)))
}

fn table(tasks: &[Task]) -> String {
    let mut table = Table::new([
        "TASK", "STATE", "INPUT", "FAILURES", "LOST", "ATTEMPT", "WORKER", "TOOK", "WHY",
    ]);
    for task in tasks {
        let last = task.attempts.last();
        table.row([
            format!("{} {}", told::kind(task.kind()), task.number),
            told::task_state(task.state()).to_owned(),
            Some(task.input_bytes)
                .filter(|bytes| *bytes > 0)
                .map_or_else(String::new, units::count),
            task.failures.to_string(),
            task.lost_workers.to_string(),
            last.map_or_else(String::new, |is| told::attempt_state(is).to_owned()),
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
    told::cause(failed)
}
