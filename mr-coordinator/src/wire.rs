//! Between the messages of the wire and the types of the coordinator.
//!
//! Decides which messages make sense by themselves; every number and text from outside is checked
//! here before anything else sees it. Wire types stop in this module and in `service.rs`.

use std::collections::BTreeMap;

use proto::mapreduce as pb;

use crate::{
    failure::{Cause, Failure, Reason},
    ids::{AttemptId, AttemptNumber, JobId, TaskId, TaskKind, file_name},
    job::{Job, JobState},
    limits::*,
    schedule::{Assignment, Order, Progress, ReportAnswer, ReportEnd, Run, Work, visible_version},
    spec::{BadSpec, InputFormat, OutputFormat, Spec, Split},
};

/// A message that makes no sense: what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadMessage(pub String);

impl BadMessage {
    fn new(problem: impl Into<String>) -> Self {
        Self(problem.into())
    }
}

/// What a job is to do, with defaults filled in.
///
/// # Errors
/// [`BadSpec`] naming the field.
pub fn spec(wire: pb::JobSpec) -> Result<Spec, BadSpec> {
    let unknown = |field| BadSpec { field, problem: "the format is not known".to_owned() };
    let input_format = match pb::InputFormat::try_from(wire.input_format) {
        Ok(pb::InputFormat::Unspecified | pb::InputFormat::Text) => InputFormat::Text,
        Ok(pb::InputFormat::Whole) => InputFormat::Whole,
        Err(_) => return Err(unknown("input_format")),
    };
    let output_format = match pb::OutputFormat::try_from(wire.output_format) {
        Ok(pb::OutputFormat::Unspecified | pb::OutputFormat::Text) => OutputFormat::Text,
        Ok(pb::OutputFormat::Lab) => OutputFormat::Lab,
        Err(_) => return Err(unknown("output_format")),
    };
    let or = |value, default| if value == 0 { default } else { value };
    let spec = Spec {
        app: wire.app,
        inputs: wire.inputs,
        output: wire.output,
        reduces: wire.reduces,
        input_format,
        output_format,
        split_bytes: wire.split_bytes,
        lease_ms: or(wire.lease_ms, LEASE_MS_DEFAULT),
        task_timeout_ms: or(wire.task_timeout_ms, TASK_TIMEOUT_MS_DEFAULT),
        max_attempts: if wire.max_attempts == 0 { ATTEMPTS_DEFAULT } else { wire.max_attempts },
        name: wire.name,
        slow_ms: wire.slow_ms,
        overwrite: wire.overwrite,
    };
    spec.check()?;
    Ok(spec)
}

/// What a job is to do, for the wire.
#[must_use]
pub fn spec_to_wire(spec: &Spec) -> pb::JobSpec {
    let input_format = match spec.input_format {
        InputFormat::Text => pb::InputFormat::Text,
        InputFormat::Whole => pb::InputFormat::Whole,
    };
    let output_format = match spec.output_format {
        OutputFormat::Text => pb::OutputFormat::Text,
        OutputFormat::Lab => pb::OutputFormat::Lab,
    };
    pb::JobSpec {
        app: spec.app.clone(),
        inputs: spec.inputs.clone(),
        output: spec.output.clone(),
        reduces: spec.reduces,
        input_format: input_format.into(),
        output_format: output_format.into(),
        split_bytes: spec.split_bytes,
        lease_ms: spec.lease_ms,
        task_timeout_ms: spec.task_timeout_ms,
        max_attempts: spec.max_attempts,
        name: spec.name.clone(),
        slow_ms: spec.slow_ms,
        overwrite: spec.overwrite,
    }
}

/// A job's id.
///
/// # Errors
/// When the text is none.
pub fn job_id(text: &str) -> Result<JobId, BadMessage> {
    text.parse().map_err(|error| BadMessage::new(format!("job: {error}")))
}

/// An attempt's name.
///
/// # Errors
/// When it is missing or makes no sense.
pub fn attempt(wire: Option<pb::AttemptId>) -> Result<AttemptId, BadMessage> {
    let wire = wire.ok_or_else(|| BadMessage::new("an attempt is missing"))?;
    let kind = match pb::TaskKind::try_from(wire.kind) {
        Ok(pb::TaskKind::Map) => TaskKind::Map,
        Ok(pb::TaskKind::Reduce) => TaskKind::Reduce,
        Ok(pb::TaskKind::Unspecified) | Err(_) => {
            return Err(BadMessage::new("an attempt is neither map nor reduce"));
        }
    };
    let number = AttemptNumber { epoch: wire.epoch, sequence: wire.sequence };
    Ok(AttemptId { job: job_id(&wire.job)?, task: TaskId { kind, number: wire.task }, number })
}

/// An attempt's name, for the wire.
#[must_use]
pub fn attempt_to_wire(attempt: &AttemptId) -> pb::AttemptId {
    let kind = match attempt.task.kind {
        TaskKind::Map => pb::TaskKind::Map,
        TaskKind::Reduce => pb::TaskKind::Reduce,
    };
    pb::AttemptId {
        job: attempt.job.to_string(),
        kind: kind.into(),
        task: attempt.task.number,
        epoch: attempt.number.epoch,
        sequence: attempt.number.sequence,
    }
}

/// What a worker drew when its process started.
///
/// # Errors
/// When it is not 16 bytes long.
pub fn incarnation(bytes: &[u8]) -> Result<u128, BadMessage> {
    let bytes =
        <[u8; 16]>::try_from(bytes).map_err(|_| BadMessage::new("an incarnation has 16 bytes"))?;
    Ok(u128::from_be_bytes(bytes))
}

/// Checks what a worker says of itself.
///
/// # Errors
/// When it makes no sense or is too much.
pub fn check_registration(wire: &pb::RegisterRequest) -> Result<(), BadMessage> {
    let name_is_good = |name: &str| {
        !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control)
    };
    if !name_is_good(&wire.name) {
        let problem = format!("a worker's name has 1 to {NAME_BYTES_MAX} printable bytes");
        return Err(BadMessage::new(problem));
    }
    if !(1..=SLOTS_MAX).contains(&wire.slots) {
        return Err(BadMessage::new(format!("a worker has 1 to {SLOTS_MAX} slots")));
    }
    if wire.apps.len() > APPS_MAX || !wire.apps.iter().all(|app| name_is_good(app)) {
        return Err(BadMessage::new(format!(
            "a worker has at most {APPS_MAX} apps with good names"
        )));
    }
    check_running(wire.running.len())
}

/// Checks how many attempts a worker lists.
///
/// # Errors
/// When there are too many.
pub fn check_running(count: usize) -> Result<(), BadMessage> {
    if count > RUNNING_LISTED_MAX {
        let problem = format!("{count} attempts are listed; at most {RUNNING_LISTED_MAX}");
        return Err(BadMessage::new(problem));
    }
    Ok(())
}

/// How an attempt ended.
///
/// # Errors
/// When that is missing or makes no sense.
pub fn report_end(
    wire: Option<pb::report_request::End>,
    attempt: &AttemptId,
) -> Result<ReportEnd, BadMessage> {
    use pb::report_request::End;
    match wire {
        Some(End::Success(success)) => {
            if success.file != file_name(attempt.task.kind) {
                let expected = file_name(attempt.task.kind);
                return Err(BadMessage::new(format!("the file of this attempt is `{expected}`")));
            }
            Ok(ReportEnd::Success {
                bytes: success.bytes,
                records: success.records,
                crc: success.crc,
                content_hash: success.content_hash,
                counters: counters(success.counters.into_iter().collect())?,
            })
        }
        Some(End::Failure(failure)) => Ok(ReportEnd::Failure(self::failure(failure)?.clipped())),
        Some(End::Abandoned(pb::Abandoned {})) => Ok(ReportEnd::Abandoned),
        None => Err(BadMessage::new("the report does not say how the attempt ended")),
    }
}

fn counters(wire: BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, BadMessage> {
    if wire.len() > ATTEMPT_COUNTERS_MAX {
        let problem = format!("{} counters; at most {ATTEMPT_COUNTERS_MAX}", wire.len());
        return Err(BadMessage::new(problem));
    }
    let bad = |name: &&String| name.is_empty() || name.len() > COUNTER_NAME_BYTES_MAX;
    if wire.keys().any(|name| bad(&name)) {
        let problem = format!("a counter's name has 1 to {COUNTER_NAME_BYTES_MAX} bytes");
        return Err(BadMessage::new(problem));
    }
    Ok(wire)
}

fn failure(wire: pb::FailureReason) -> Result<Failure, BadMessage> {
    use pb::failure_reason::Kind;
    let kind = wire.kind.ok_or_else(|| BadMessage::new("the failure has no reason"))?;
    let reason = match kind {
        Kind::User(user) => {
            Reason::User { message: user.message, path: user.path, offset: user.offset }
        }
        Kind::Exit(exit) => Reason::Exit { code: exit.code, signal: exit.signal },
        Kind::Input(input) => {
            Reason::Input { path: input.path, message: input.message, permanent: input.permanent }
        }
        Kind::Intermediate(lost) => {
            Reason::Intermediate { map: attempt(lost.map_attempt)?, message: lost.message }
        }
        Kind::Io(io) => Reason::Io { path: io.path, message: io.message },
        Kind::Resource(resource) => Reason::Resource { message: resource.message },
        Kind::Internal(internal) => Reason::Internal { message: internal.message },
        Kind::Timeout(timeout) => Reason::Timeout { idle_ms: timeout.idle_ms },
    };
    Ok(Failure { reason, stderr_tail: wire.stderr_tail })
}

fn failure_to_wire(failure: &Failure) -> pb::FailureReason {
    use pb::failure_reason::Kind;
    let kind = match failure.reason.clone() {
        Reason::User { message, path, offset } => {
            Kind::User(pb::UserError { message, path, offset })
        }
        Reason::Exit { code, signal } => Kind::Exit(pb::UserExit { code, signal }),
        Reason::Input { path, message, permanent } => {
            Kind::Input(pb::InputError { path, message, permanent })
        }
        Reason::Intermediate { map, message } => {
            let map_attempt = Some(attempt_to_wire(&map));
            Kind::Intermediate(pb::IntermediateLost { map_attempt, message })
        }
        Reason::Io { path, message } => Kind::Io(pb::IoError { path, message }),
        Reason::Resource { message } => Kind::Resource(pb::ResourceExhausted { message }),
        Reason::Internal { message } => Kind::Internal(pb::Internal { message }),
        Reason::Timeout { idle_ms } => Kind::Timeout(pb::Timeout { idle_ms }),
    };
    pb::FailureReason { kind: Some(kind), stderr_tail: failure.stderr_tail.clone() }
}

/// What the coordinator decided about a report.
#[must_use]
pub fn verdict(answer: ReportAnswer) -> pb::Verdict {
    match answer {
        ReportAnswer::Accepted => pb::Verdict::Accepted,
        ReportAnswer::AlreadyAccepted => pb::Verdict::AlreadyAccepted,
        ReportAnswer::LostRace => pb::Verdict::LostRace,
        ReportAnswer::Stale => pb::Verdict::Stale,
        ReportAnswer::JobGone => pb::Verdict::JobGone,
        ReportAnswer::Noted => pb::Verdict::Noted,
    }
}

/// What becomes of attempts.
#[must_use]
pub fn orders(orders: &[Order]) -> Vec<pb::AttemptOrder> {
    let order = |order: &Order| pb::AttemptOrder {
        attempt: Some(attempt_to_wire(&order.attempt)),
        go_on: order.stop.is_none(),
        reason: order.stop.unwrap_or_default().to_owned(),
    };
    orders.iter().map(order).collect()
}

/// A task for a worker.
#[must_use]
pub fn assignment(assignment: &Assignment) -> pb::Assignment {
    let task = assignment.attempt.task;
    let work = match &assignment.work {
        Work::Map(plan) => {
            let splits = plan.maps.get(task.number as usize);
            let splits = splits.map(|splits| splits.iter().map(split).collect());
            pb::assignment::Work::Map(pb::MapWork { splits: splits.unwrap_or_default() })
        }
        Work::Reduce(runs) => {
            let runs = runs.iter().map(run).collect();
            pb::assignment::Work::Reduce(pb::ReduceWork { partition: task.number, runs })
        }
    };
    pb::Assignment {
        attempt: Some(attempt_to_wire(&assignment.attempt)),
        lease_ms: assignment.lease_ms,
        // Workers need to know what to do, not which patterns named the files.
        spec: Some(pb::JobSpec { inputs: Vec::new(), ..spec_to_wire(&assignment.spec) }),
        attempt_dir: assignment.attempt.directory(),
        work: Some(work),
    }
}

fn split(split: &Split) -> pb::Split {
    pb::Split {
        path: split.path.clone(),
        start: split.start,
        bytes: split.bytes,
        file_bytes: split.file_bytes,
        modified_ns: split.modified_ns,
    }
}

fn run(run: &Run) -> pb::InputRun {
    pb::InputRun {
        map_task: run.attempt.task.number,
        attempt: Some(attempt_to_wire(&run.attempt)),
        path: run.attempt.file(),
        bytes: run.bytes,
        footer_crc: run.footer_crc,
    }
}

/// The version of a job that callers see.
#[must_use]
pub fn version(job: &Job, progress: Option<&Progress>) -> u64 {
    let recorded = visible_version(job.version);
    progress.map_or(recorded, |progress| progress.version.max(recorded))
}

/// A job as callers see it. `progress` is what only the leader knows of it, `workers` how many
/// there are.
#[must_use]
pub fn job(job: &Job, progress: Option<&Progress>, workers: usize) -> pb::Job {
    let tasks = |kind: TaskKind, bytes_committed, bytes_total| pb::TaskProgress {
        total: job.total(kind),
        committed: job.committed[kind.slot()],
        running: progress.map_or(0, |progress| progress.running[kind.slot()]),
        retries: job.retries[kind.slot()]
            + progress.map_or(0, |progress| progress.retries[kind.slot()]),
        bytes_committed,
        bytes_total,
    };
    let outputs = match job.state {
        JobState::Succeeded => outputs(&job.spec),
        JobState::Queued
        | JobState::Mapping
        | JobState::Reducing
        | JobState::Committing
        | JobState::Failing
        | JobState::Failed
        | JobState::Cancelling
        | JobState::Cancelled => Vec::new(),
    };
    let bytes_total = job.plan.map_or(0, |plan| plan.bytes);
    pb::Job {
        id: job.id.to_string(),
        spec: Some(spec_to_wire(&job.spec)),
        state: state(job.state, progress).into(),
        maps: Some(tasks(TaskKind::Map, job.bytes_committed, bytes_total)),
        reduces: Some(tasks(TaskKind::Reduce, 0, 0)),
        counters: counters_to_wire(job),
        failure: job.cause.as_deref().map(cause),
        submitted_unix_ms: job.submitted_unix_ms,
        ended_unix_ms: job.ended_unix_ms,
        version: version(job, progress),
        workers: u32::try_from(workers).unwrap_or(u32::MAX),
        outputs,
        waiting_for: progress.and_then(|is| is.waiting_for.clone()).unwrap_or_default(),
    }
}

/// The counters that attempts told, and those that the coordinator counts itself.
fn counters_to_wire(job: &Job) -> std::collections::HashMap<String, u64> {
    let mut counters: std::collections::HashMap<_, _> = job.counter_sums().into_iter().collect();
    if job.plan.is_some() {
        counters.insert("MAP_TASKS".to_owned(), job.total(TaskKind::Map).into());
        counters.insert("REDUCE_TASKS".to_owned(), job.total(TaskKind::Reduce).into());
    }
    counters
}

/// The output files of a job, in partition order, as the user named the output.
#[must_use]
pub fn outputs(spec: &Spec) -> Vec<String> {
    let directory = spec.output.trim_end_matches('/');
    let name = |partition| format!("{directory}/{}", spec.output_format.part_name(partition));
    (0..spec.reduces).map(name).collect()
}

fn state(state: JobState, progress: Option<&Progress>) -> pb::JobState {
    match state {
        JobState::Queued if progress.is_some_and(|progress| progress.planning) => {
            pb::JobState::Planning
        }
        JobState::Queued => pb::JobState::Queued,
        JobState::Mapping => pb::JobState::Mapping,
        JobState::Reducing => pb::JobState::Reducing,
        JobState::Committing => pb::JobState::Committing,
        JobState::Succeeded => pb::JobState::Succeeded,
        JobState::Failing => pb::JobState::Failing,
        JobState::Failed => pb::JobState::Failed,
        JobState::Cancelling => pb::JobState::Cancelling,
        JobState::Cancelled => pb::JobState::Cancelled,
    }
}

fn cause(cause: &Cause) -> pb::JobFailure {
    pb::JobFailure {
        message: format!("{}: {}", cause.kind.word(), cause.message),
        attempt: cause.attempt.as_ref().map(attempt_to_wire),
        worker: cause.worker.clone(),
        reason: cause.failure.as_ref().map(failure_to_wire),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> pb::JobSpec {
        pb::JobSpec {
            app: "wc".into(),
            inputs: vec!["in".into()],
            output: "out".into(),
            reduces: 10,
            ..pb::JobSpec::default()
        }
    }

    #[test]
    fn absent_numbers_become_defaults() {
        let spec = spec(wire()).unwrap();
        assert_eq!((spec.lease_ms, spec.max_attempts), (10_000, 4));
        assert_eq!(spec.task_timeout_ms, 600_000);
        assert_eq!(spec.input_format, InputFormat::Text);
        let again = self::spec(spec_to_wire(&spec)).unwrap();
        assert_eq!(spec, again);
    }

    #[test]
    fn wrong_specs_are_refused_by_field() {
        type Change = fn(&mut pb::JobSpec);
        let wrong: [(&str, Change); 11] = [
            ("app", |spec| spec.app = String::new()),
            ("app", |spec| spec.app = "x".repeat(NAME_BYTES_MAX + 1)),
            ("inputs", |spec| spec.inputs.clear()),
            ("inputs", |spec| spec.inputs = vec!["a\0b".into()]),
            ("inputs", |spec| spec.inputs = vec!["x".repeat(10 << 20)]),
            ("output", |spec| spec.output = String::new()),
            ("reduces", |spec| spec.reduces = 0),
            ("reduces", |spec| spec.reduces = 4_097),
            ("input_format", |spec| spec.input_format = 99),
            ("lease_ms", |spec| spec.lease_ms = 1),
            ("max_attempts", |spec| spec.max_attempts = 1_000_000),
        ];
        for (field, change) in wrong {
            let mut wire = wire();
            change(&mut wire);
            assert_eq!(spec(wire).unwrap_err().field, field);
        }
    }

    #[test]
    fn report_names_its_file_and_bounds_its_counters() {
        let job = JobId(1);
        let number = AttemptNumber { epoch: 1, sequence: 1 };
        let id = AttemptId { job, task: TaskId::map(0), number };
        assert_eq!(attempt(Some(attempt_to_wire(&id))), Ok(id));
        let report = |file: &str, count: usize| {
            let counters = (0..count).map(|number| (format!("C{number}"), 1)).collect();
            let success = pb::Success { file: file.into(), counters, ..pb::Success::default() };
            report_end(Some(pb::report_request::End::Success(success)), &id)
        };
        assert!(report("data.run", ATTEMPT_COUNTERS_MAX).is_ok());
        assert!(report("part", 1).is_err());
        assert!(report("../data.run", 1).is_err());
        assert!(report("data.run", ATTEMPT_COUNTERS_MAX + 1).is_err());
        assert!(report_end(None, &id).is_err());
    }
}
