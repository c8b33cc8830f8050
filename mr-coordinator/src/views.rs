//! Tasks and workers as operators see them.
//!
//! Decides how the replicated state of a task and the leader's own knowledge of its attempts are
//! told as one. An attempt that left a record is told even where the leader did not see it.

use proto::mapreduce as pb;

use crate::{
    ids::{AttemptId, AttemptNumber, TaskId, TaskKind},
    job::{Job, JobState},
    leases::AttemptEnd,
    machine::WorkerRecord,
    schedule::{AttemptStanding, AttemptView, TasksView, WorkerView},
    wire,
};

/// The task behind this one in the order of pages, if there is one.
#[must_use]
pub fn next_task(job: &Job, task: TaskId) -> Option<TaskId> {
    let next = TaskId { number: task.number + 1, ..task };
    if next.number < job.total(task.kind) {
        return Some(next);
    }
    (task.kind == TaskKind::Map).then(|| TaskId::reduce(0)).filter(|_| reduces(job) > 0)
}

/// The first task, if there is one.
#[must_use]
pub fn first_task(job: &Job) -> Option<TaskId> {
    let maps = (job.total(TaskKind::Map) > 0).then(|| TaskId::map(0));
    maps.or_else(|| (reduces(job) > 0).then(|| TaskId::reduce(0)))
}

fn reduces(job: &Job) -> u32 {
    job.total(TaskKind::Reduce)
}

/// A page token.
#[must_use]
pub fn page_token(task: TaskId) -> String {
    match task.kind {
        TaskKind::Map => format!("map-{}", task.number),
        TaskKind::Reduce => format!("reduce-{}", task.number),
    }
}

/// The task that a page token names, where the page begins.
#[must_use]
pub fn page_start(token: &str) -> Option<TaskId> {
    let (kind, number) = token.split_once('-')?;
    let number = number.parse().ok()?;
    match kind {
        "map" => Some(TaskId::map(number)),
        "reduce" => Some(TaskId::reduce(number)),
        _ => None,
    }
}

/// A task.
#[must_use]
pub fn task(job: &Job, id: TaskId, view: &TasksView) -> pb::Task {
    let record = job.task(id);
    let mut attempts: Vec<pb::AttemptInfo> = view
        .attempts
        .range((id, AttemptNumber::default())..)
        .take_while(|((task, _), _)| *task == id)
        .map(|(_, attempt)| attempt_info(job, attempt))
        .collect();
    let seen = |number: AttemptNumber| view.attempts.contains_key(&(id, number));
    let mut unseen = |number: AttemptNumber, state: pb::AttemptState, worker: String| {
        if !seen(number) {
            let attempt = AttemptId { job: job.id, task: id, number };
            attempts.push(pb::AttemptInfo {
                attempt: Some(wire::attempt_to_wire(&attempt)),
                state: state.into(),
                worker,
                ..pb::AttemptInfo::default()
            });
        }
    };
    if let Some(record) = record {
        for number in &record.failed {
            unseen(*number, pb::AttemptState::Failed, String::new());
        }
        for number in &record.lost {
            unseen(*number, pb::AttemptState::Expired, String::new());
        }
        if let Some(result) = &record.committed {
            let name = view.workers.get(&result.worker).cloned();
            let worker = name.unwrap_or_else(|| format!("worker {}", result.worker));
            unseen(result.attempt, pb::AttemptState::Accepted, worker);
        }
    }
    let order = |attempt: &pb::AttemptInfo| {
        attempt.attempt.as_ref().map(|attempt| (attempt.epoch, attempt.sequence))
    };
    attempts.sort_by_key(order);
    attempts.dedup_by_key(|attempt| order(attempt));
    if let Some(result) = record.and_then(|record| record.committed.as_ref())
        && let number = Some((result.attempt.epoch, result.attempt.sequence))
        && let Some(accepted) = attempts.iter_mut().find(|is| order(is) == number)
    {
        // The leader saw a lease end that was over before the report came.
        accepted.set_state(pb::AttemptState::Accepted);
        // What it told last, on its way, is less.
        accepted.bytes = accepted.bytes.max(result.input_bytes);
    }
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let size = match id.kind {
        TaskKind::Map => view.sizes.get(id.number as usize).copied(),
        TaskKind::Reduce => None,
    };
    let committed = record.and_then(|record| record.committed.as_ref());
    pb::Task {
        kind: wire::kind_to_wire(id.kind).into(),
        number: id.number,
        state: state(job, id, view).into(),
        input_bytes: size.or(committed.map(|result| result.input_bytes)).unwrap_or(0),
        failures: record.map_or(0, |record| count(record.failed.len())),
        lost_workers: record.map_or(0, |record| count(record.lost.len())),
        invalidations: record.map_or(0, |record| record.invalidations),
        skipped: record
            .map_or_else(Vec::new, |record| record.skipped.iter().map(wire::record).collect()),
        attempts,
    }
}

/// Where a task stands.
#[must_use]
pub fn state(job: &Job, id: TaskId, view: &TasksView) -> pb::TaskState {
    let failed = job.cause.as_ref().and_then(|cause| cause.attempt).is_some_and(|a| a.task == id);
    if failed {
        return pb::TaskState::Failed;
    }
    if job.result(id).is_some() || job.state == JobState::Succeeded {
        return pb::TaskState::Committed;
    }
    let mut attempts = view
        .attempts
        .range((id, AttemptNumber::default())..)
        .take_while(|((task, _), _)| *task == id);
    if attempts.any(|(_, attempt)| attempt.standing == AttemptStanding::Running) {
        return pb::TaskState::Running;
    }
    let blocked = id.kind == TaskKind::Reduce && !job.all_committed(TaskKind::Map);
    if blocked || !job.state.runs_tasks() { pb::TaskState::Blocked } else { pb::TaskState::Pending }
}

fn attempt_info(job: &Job, attempt: &AttemptView) -> pb::AttemptInfo {
    let id = AttemptId { job: job.id, task: attempt.task, number: attempt.number };
    let state = match attempt.standing {
        AttemptStanding::Queued => pb::AttemptState::Queued,
        AttemptStanding::Running => pb::AttemptState::Running,
        AttemptStanding::Ended(AttemptEnd::Accepted) => pb::AttemptState::Accepted,
        AttemptStanding::Ended(AttemptEnd::LostRace) => pb::AttemptState::LostRace,
        AttemptStanding::Ended(AttemptEnd::Failed) => pb::AttemptState::Failed,
        AttemptStanding::Ended(AttemptEnd::Expired) => pb::AttemptState::Expired,
        AttemptStanding::Ended(AttemptEnd::Aborted) => pb::AttemptState::Aborted,
        AttemptStanding::Ended(AttemptEnd::Abandoned | AttemptEnd::Withdrawn) => {
            pb::AttemptState::Abandoned
        }
    };
    pb::AttemptInfo {
        attempt: Some(wire::attempt_to_wire(&id)),
        state: state.into(),
        worker: attempt.worker.clone(),
        age_ms: attempt.age_ms,
        duration_ms: attempt.duration_ms,
        records: attempt.progress.0,
        bytes: attempt.progress.1,
        backup: attempt.backup,
        failure: attempt.failure.as_ref().map(wire::failure_to_wire),
    }
}

/// A worker that the leader heard.
#[must_use]
pub fn worker(view: &WorkerView) -> pb::WorkerInfo {
    pb::WorkerInfo {
        name: view.name.clone(),
        worker: view.id.0,
        slots: view.slots,
        apps: view.apps.clone(),
        attempts: view.attempts.iter().map(wire::attempt_to_wire).collect(),
        heard_ms_ago: view.heard_ms_ago,
        draining: view.draining,
        excluded_from: view.excluded_from,
        present: true,
    }
}

/// A worker that is registered and that the leader has not heard.
#[must_use]
pub fn absent_worker(record: &WorkerRecord) -> pb::WorkerInfo {
    pb::WorkerInfo {
        name: record.name.clone(),
        worker: record.id.0,
        slots: record.slots,
        apps: record.apps.clone(),
        ..pb::WorkerInfo::default()
    }
}
