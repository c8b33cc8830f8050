//! How jobs, tasks, attempts and workers are told, to people in words and to programs as JSON: the
//! same by the command line and by the admin port.

use std::time::Duration;

use daemon::units;
use proto::mapreduce::{
    AttemptId, AttemptInfo, AttemptState, FailureReason, Job, JobFailure, JobState, Task, TaskKind,
    TaskProgress, TaskState, WorkerInfo, failure_reason::Kind,
};
use serde_json::{Value, json};

/// How many of the last lines of standard error are told with a failure.
const LAST_WORDS: usize = 20;

/// A state's word.
#[must_use]
pub fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "in an unknown state",
        JobState::Queued => "queued",
        JobState::Planning => "planning",
        JobState::Mapping => "mapping",
        JobState::Reducing => "reducing",
        JobState::Committing => "committing",
        JobState::Succeeded => "succeeded",
        JobState::Failing => "failing",
        JobState::Failed => "failed",
        JobState::Cancelling => "cancelling",
        JobState::Cancelled => "cancelled",
    }
}

/// Why a job failed: what, where, by whom, and its last words.
#[must_use]
pub fn explain(failure: &JobFailure) -> String {
    let mut lines = vec![format!("failed: {}", failure.message)];
    if let Some(attempt) = &failure.attempt {
        let kind = match attempt.kind() {
            TaskKind::Unspecified => "task",
            TaskKind::Map => "map",
            TaskKind::Reduce => "reduce",
        };
        lines.push(format!(
            "  {kind} {}, attempt {}-{}",
            attempt.task, attempt.epoch, attempt.sequence
        ));
    }
    if !failure.worker.is_empty() {
        lines.push(format!("  on worker {}", failure.worker));
    }
    if let Some(reason) = &failure.reason {
        lines.extend(cause(reason).map(|cause| format!("  {cause}")));
        if !reason.stderr_tail.is_empty() {
            lines.push("  its last words:".to_owned());
            let words: Vec<_> = reason.stderr_tail.lines().collect();
            let last = &words[words.len().saturating_sub(LAST_WORDS)..];
            lines.extend(last.iter().map(|line| format!("    {line}")));
            lines.extend(failure.attempt.as_ref().and_then(more_words));
        }
    }
    lines.join("\n")
}

/// How to read all that attempts at a task said. A job that ran in one process has no name here, and
/// no logs.
fn more_words(attempt: &AttemptId) -> Option<String> {
    let AttemptId { job, task, .. } = attempt;
    let kind = kind(attempt.kind());
    (!job.is_empty()).then(|| format!("  all its words: flotilla mr logs {job} {kind}-{task}"))
}

/// Why an attempt failed, in a few words.
#[must_use]
pub fn cause(reason: &FailureReason) -> Option<String> {
    Some(match reason.kind.as_ref()? {
        Kind::User(user) if user.path.is_empty() => format!("the app: {}", user.message),
        Kind::User(user) => format!("the app at {}:{}: {}", user.path, user.offset, user.message),
        Kind::Exit(exit) => match (exit.code, exit.signal) {
            (Some(code), _) => format!("its process ended with exit code {code}"),
            (None, Some(signal)) => format!("its process was ended by signal {signal}"),
            (None, None) => "its process ended".to_owned(),
        },
        Kind::Input(input) => format!("the input {}: {}", input.path, input.message),
        Kind::Intermediate(lost) => format!("the output of a map was lost: {}", lost.message),
        Kind::Io(io) => format!("the file {}: {}", io.path, io.message),
        Kind::Resource(resource) => resource.message.clone(),
        Kind::Internal(internal) => format!("a defect of Flotilla: {}", internal.message),
        Kind::Timeout(timeout) => {
            let idle = Duration::from_millis(timeout.idle_ms);
            format!("no progress for {}", units::duration(idle))
        }
    })
}

/// A job for programs.
#[must_use]
pub fn job(job: &Job) -> Value {
    let tasks = |tasks: &Option<TaskProgress>| {
        let tasks = tasks.unwrap_or_default();
        json!({
            "total": tasks.total,
            "committed": tasks.committed,
            "running": tasks.running,
            "retries": tasks.retries,
            "backups": tasks.backups,
            "bytes_committed": tasks.bytes_committed,
            "bytes_total": tasks.bytes_total,
        })
    };
    let spec = job.spec.clone().unwrap_or_default();
    json!({
        "id": job.id,
        "name": spec.name,
        "app": spec.app,
        "inputs": spec.inputs,
        "output": spec.output,
        "state": state_name(job.state()),
        "maps": tasks(&job.maps),
        "reduces": tasks(&job.reduces),
        "counters": job.counters,
        "failure": job.failure.as_ref().map(explain),
        "submitted_unix_ms": job.submitted_unix_ms,
        "ended_unix_ms": (job.ended_unix_ms > 0).then_some(job.ended_unix_ms),
        "version": job.version,
        "workers": job.workers,
        "excluded_workers": job.excluded_workers,
        "outputs": job.outputs,
        "waiting_for": (!job.waiting_for.is_empty()).then_some(&job.waiting_for),
    })
}

/// How a worker stands.
#[must_use]
pub fn worker_state(worker: &WorkerInfo) -> &'static str {
    match (worker.present, worker.draining) {
        (false, _) => "not heard",
        (true, true) => "draining",
        (true, false) => "at work",
    }
}

/// A worker for programs.
#[must_use]
pub fn worker(worker: &WorkerInfo) -> Value {
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

/// A kind's word.
#[must_use]
pub fn kind(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Unspecified => "task",
        TaskKind::Map => "map",
        TaskKind::Reduce => "reduce",
    }
}

/// A task's state's word.
#[must_use]
pub fn task_state(state: TaskState) -> &'static str {
    match state {
        TaskState::Unspecified => "unknown",
        TaskState::Blocked => "blocked",
        TaskState::Pending => "pending",
        TaskState::Running => "running",
        TaskState::Committed => "committed",
        TaskState::Failed => "failed",
    }
}

/// How an attempt stands.
#[must_use]
pub fn attempt_state(attempt: &AttemptInfo) -> &'static str {
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

/// A task for programs.
#[must_use]
pub fn task(task: &Task) -> Value {
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
            "failure": is.failure.as_ref().and_then(cause),
        })
    };
    let skipped = task.skipped.iter().map(|record| format!("{}:{}", record.path, record.offset));
    json!({
        "kind": kind(task.kind()),
        "number": task.number,
        "state": task_state(task.state()),
        "input_bytes": task.input_bytes,
        "failures": task.failures,
        "lost_workers": task.lost_workers,
        "invalidations": task.invalidations,
        "skipped": skipped.collect::<Vec<_>>(),
        "attempts": task.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use proto::mapreduce::UserError;

    use super::*;

    #[test]
    fn a_failure_is_told_from_the_task_to_its_last_words() {
        let user = UserError {
            message: "no number".to_owned(),
            path: "a.txt".to_owned(),
            offset: 7,
            exact: true,
            permanent: false,
        };
        let reason = FailureReason {
            kind: Some(Kind::User(user)),
            stderr_tail: "thread panicked\nat app.rs".to_owned(),
        };
        let attempt = AttemptId {
            kind: TaskKind::Map.into(),
            task: 3,
            epoch: 2,
            sequence: 9,
            ..AttemptId::default()
        };
        let mut failure = JobFailure {
            message: "a task failed 4 times".to_owned(),
            attempt: Some(attempt.clone()),
            worker: "w1".to_owned(),
            reason: Some(reason),
        };
        let expected = "failed: a task failed 4 times\n  map 3, attempt 2-9\n  on worker w1\n  \
                        the app at a.txt:7: no number\n  its last words:\n    thread panicked\n    \
                        at app.rs";
        assert_eq!(explain(&failure), expected);
        failure.attempt = Some(AttemptId { job: "JOB".to_owned(), ..attempt });
        let expected = format!("{expected}\n  all its words: flotilla mr logs JOB map-3");
        assert_eq!(explain(&failure), expected);
    }
}
