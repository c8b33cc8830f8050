//! How a job is told to people and to programs.

use std::time::Duration;

use proto::mapreduce::failure_reason::Kind;
use proto::mapreduce::{FailureReason, Job, JobFailure, JobState, TaskKind, TaskProgress};
use serde_json::{Value, json};

use crate::output::Table;
use crate::units;

/// A state's word.
pub(crate) fn state_name(state: JobState) -> &'static str {
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

/// What became of a submission.
pub(super) fn accepted(existed: bool) -> &'static str {
    if existed { "submitted before with this token" } else { "submitted" }
}

/// How far a kind of task has come, in a few words.
pub(super) fn progress(progress: &TaskProgress) -> String {
    let mut text = format!("{}/{}", progress.committed, progress.total);
    if progress.running > 0 {
        text.push_str(&format!(", {} running", progress.running));
    }
    if progress.retries > 0 {
        text.push_str(&format!(", {} retried", progress.retries));
    }
    text
}

/// How long a job has run; none while it does.
pub(super) fn took(job: &Job) -> Option<Duration> {
    let ended = Some(job.ended_unix_ms).filter(|&ended| ended > 0)?;
    Some(Duration::from_millis(ended.saturating_sub(job.submitted_unix_ms)))
}

/// All that there is to say about a job.
pub(super) fn job(job: &Job) -> String {
    let mut lines = Vec::new();
    let mut tell = |name: &str, text: String| lines.push(format!("{name:<9}{text}"));
    tell("job", job.id.clone());
    if let Some(spec) = &job.spec {
        if !spec.name.is_empty() {
            tell("name", spec.name.clone());
        }
        tell("app", spec.app.clone());
        tell("inputs", spec.inputs.join(" "));
        tell("output", spec.output.clone());
    }
    tell("state", state_name(job.state()).to_owned());
    if !job.waiting_for.is_empty() {
        tell("waiting", format!("tried in vain, and again: {}", job.waiting_for));
    }
    tell("maps", progress(&job.maps.unwrap_or_default()));
    tell("reduces", progress(&job.reduces.unwrap_or_default()));
    tell("workers", job.workers.to_string());
    if let Some(took) = took(job) {
        tell("took", units::duration(took));
    }
    let mut counters: Vec<_> = job.counters.iter().collect();
    counters.sort();
    lines.extend(
        counters
            .into_iter()
            .map(|(name, count)| format!("  {name:<24}{:>16}", units::count(*count))),
    );
    if let Some(failure) = &job.failure {
        lines.push(explain(failure));
    }
    lines.join("\n")
}

/// Why a job failed: what, where, by whom, and its last words.
pub(crate) fn explain(failure: &JobFailure) -> String {
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
            lines.extend(reason.stderr_tail.lines().map(|line| format!("    {line}")));
        }
    }
    lines.join("\n")
}

/// Why an attempt failed, in a few words.
pub(super) fn cause(reason: &FailureReason) -> Option<String> {
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

/// Jobs, one a line.
pub(super) fn table(jobs: &[Job]) -> String {
    let mut table = Table::new(["JOB", "NAME", "APP", "STATE", "MAPS", "REDUCES", "TOOK"]);
    for job in jobs {
        let spec = job.spec.clone().unwrap_or_default();
        let done = |tasks: &Option<TaskProgress>| {
            let tasks = tasks.unwrap_or_default();
            format!("{}/{}", tasks.committed, tasks.total)
        };
        table.row([
            job.id.clone(),
            spec.name,
            spec.app,
            state_name(job.state()).to_owned(),
            done(&job.maps),
            done(&job.reduces),
            took(job).map_or_else(String::new, units::duration),
        ]);
    }
    table.text()
}

/// A job for programs.
pub(super) fn value(job: &Job) -> Value {
    let tasks = |tasks: &Option<TaskProgress>| {
        let tasks = tasks.unwrap_or_default();
        json!({
            "total": tasks.total,
            "committed": tasks.committed,
            "running": tasks.running,
            "retries": tasks.retries,
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
        "outputs": job.outputs,
        "waiting_for": (!job.waiting_for.is_empty()).then_some(&job.waiting_for),
    })
}

#[cfg(test)]
mod tests {
    use proto::mapreduce::{AttemptId, UserError};

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
        let failure = JobFailure {
            message: "a task failed 4 times".to_owned(),
            attempt: Some(attempt),
            worker: "w1".to_owned(),
            reason: Some(reason),
        };
        let expected = "failed: a task failed 4 times\n  map 3, attempt 2-9\n  on worker w1\n  \
                        the app at a.txt:7: no number\n  its last words:\n    thread panicked\n    \
                        at app.rs";
        assert_eq!(explain(&failure), expected);
    }

    #[test]
    fn what_a_job_waits_for_is_told() {
        let why = "syncing: No space left on device";
        let stuck = Job { waiting_for: why.to_owned(), ..Job::default() };
        assert!(job(&stuck).contains(why));
        assert_eq!(value(&stuck)["waiting_for"], why);
        assert_eq!(value(&Job::default())["waiting_for"], Value::Null);
    }

    #[test]
    fn progress_says_what_there_is_to_say() {
        let tasks = TaskProgress { total: 8, committed: 3, ..TaskProgress::default() };
        assert_eq!(progress(&tasks), "3/8");
        let tasks = TaskProgress { running: 2, retries: 1, ..tasks };
        assert_eq!(progress(&tasks), "3/8, 2 running, 1 retried");
    }
}
