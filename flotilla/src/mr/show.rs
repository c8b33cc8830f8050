//! How a job is told to people and to programs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mr_coordinator::told;
use proto::mapreduce::{Job, TaskProgress};

use crate::output::Table;
use crate::units;

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
    tell("state", told::state_name(job.state()).to_owned());
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
        lines.push(told::explain(failure));
    }
    lines.join("\n")
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
            told::state_name(job.state()).to_owned(),
            done(&job.maps),
            done(&job.reduces),
            took(job).map_or_else(String::new, units::duration),
        ]);
    }
    table.text()
}

/// Jobs that have ended, one a line: how each went.
pub(super) fn history(jobs: &[Job]) -> String {
    let mut table = Table::new([
        "JOB", "NAME", "APP", "STATE", "ENDED", "TOOK", "TASKS", "RETRIED", "READ", "WHY",
    ]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for job in jobs {
        let spec = job.spec.clone().unwrap_or_default();
        let (maps, reduces) = (job.maps.unwrap_or_default(), job.reduces.unwrap_or_default());
        let ended = now.saturating_sub(Duration::from_millis(job.ended_unix_ms));
        table.row([
            job.id.clone(),
            spec.name,
            spec.app,
            told::state_name(job.state()).to_owned(),
            format!("{} ago", units::duration(ended)),
            took(job).map_or_else(String::new, units::duration),
            (u64::from(maps.total) + u64::from(reduces.total)).to_string(),
            (u64::from(maps.retries) + u64::from(reduces.retries)).to_string(),
            units::bytes(maps.bytes_committed),
            job.failure.as_ref().map_or_else(String::new, |failure| failure.message.clone()),
        ]);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_waits_for_is_told() {
        let why = "syncing: No space left on device";
        let stuck = Job { waiting_for: why.to_owned(), ..Job::default() };
        assert!(job(&stuck).contains(why));
        assert_eq!(told::job(&stuck)["waiting_for"], why);
        assert_eq!(told::job(&Job::default())["waiting_for"], serde_json::Value::Null);
    }

    #[test]
    fn progress_says_what_there_is_to_say() {
        let tasks = TaskProgress { total: 8, committed: 3, ..TaskProgress::default() };
        assert_eq!(progress(&tasks), "3/8");
        let tasks = TaskProgress { running: 2, retries: 1, ..tasks };
        assert_eq!(progress(&tasks), "3/8, 2 running, 1 retried");
    }
}
