//! Between the messages of the wire and the types of the coordinator.
//!
//! Decides which messages make sense by themselves; every number and text from outside is checked
//! here before anything else sees it. Wire types stop in this module and in `service.rs`.

mod streaming;

use std::collections::BTreeMap;

use proto::mapreduce as pb;

use crate::{
    failure::{Cause, Failure, Reason, Record},
    flow::{Compression, Flow, LongLines, Partitioner},
    ids::{AttemptId, AttemptNumber, JobId, PART_FILE, RUN_FILE, TaskId, TaskKind},
    job::{Job, JobState},
    leases::Heard,
    limits::*,
    schedule::{Assignment, Order, Progress, ReportAnswer, ReportEnd, Run, Work, visible_version},
    scheduling::{PRIORITY_DEFAULT, QUEUE_DEFAULT, Scheduling},
    spec::{BadSpec, InputFormat, OutputFormat, Packing, Spec, Split},
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
    let input_format = match pb::InputFormat::try_from(wire.input_format) {
        Ok(pb::InputFormat::Unspecified | pb::InputFormat::Text) => InputFormat::Text,
        Ok(pb::InputFormat::Whole) => InputFormat::Whole,
        Ok(pb::InputFormat::KeyValue) => InputFormat::KeyValue,
        Ok(pb::InputFormat::Fixed) => InputFormat::Fixed(wire.record_bytes),
        Err(_) => return Err(unknown("input_format")),
    };
    let output_format = match pb::OutputFormat::try_from(wire.output_format) {
        Ok(pb::OutputFormat::Unspecified | pb::OutputFormat::Text) => OutputFormat::Text,
        Ok(pb::OutputFormat::Lab) => OutputFormat::Lab,
        Ok(pb::OutputFormat::Raw) => OutputFormat::Raw,
        Err(_) => return Err(unknown("output_format")),
    };
    let flow = flow(&wire)?;
    let (app, streaming) = streaming::from_wire(&wire)?;
    let scheduling = scheduling(&wire, output_format)?;
    let spec = Spec {
        app,
        inputs: wire.inputs,
        output: wire.output,
        reduces: wire.reduces,
        input_format,
        output_format,
        split_bytes: wire.split_bytes,
        lease_ms: or(wire.lease_ms, LEASE_MS_DEFAULT),
        task_timeout_ms: or(wire.task_timeout_ms, TASK_TIMEOUT_MS_DEFAULT),
        max_attempts: or(wire.max_attempts, ATTEMPTS_DEFAULT),
        name: wire.name,
        slow_ms: wire.slow_ms,
        overwrite: wire.overwrite,
        flow,
        scheduling,
        streaming,
    };
    spec.check()?;
    Ok(spec)
}

fn unknown(field: &'static str) -> BadSpec {
    BadSpec { field, problem: "the value is not known".to_owned() }
}

/// The value, or the default if it is 0.
fn or<T: PartialEq + Default>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

fn flow(wire: &pb::JobSpec) -> Result<Flow, BadSpec> {
    let partitioner = match pb::Partitioner::try_from(wire.partitioner) {
        Ok(pb::Partitioner::Unspecified | pb::Partitioner::Hash) => Partitioner::Hash,
        Ok(pb::Partitioner::Prefix) => Partitioner::Prefix(wire.prefix_bytes),
        Ok(pb::Partitioner::Range) => Partitioner::Range {
            samples: or(wire.samples, SAMPLES_DEFAULT),
            key_bytes: wire.sample_key_bytes,
        },
        Err(_) => return Err(unknown("partitioner")),
    };
    Ok(Flow {
        args: wire.args.clone().into_iter().collect(),
        tags: wire.input_tags.clone(),
        strip_cr: wire.strip_cr,
        line_bytes_max: or(wire.line_bytes_max, LINE_BYTES_DEFAULT),
        long_lines: match pb::LongLines::try_from(wire.long_lines) {
            Ok(pb::LongLines::Unspecified | pb::LongLines::Fail) => LongLines::Fail,
            Ok(pb::LongLines::Skip) => LongLines::Skip,
            Ok(pb::LongLines::Cut) => LongLines::Cut,
            Err(_) => return Err(unknown("long_lines")),
        },
        expansion_max: or(wire.expansion_max, EXPANSION_DEFAULT),
        partitioner,
        compression: match pb::Compression::try_from(wire.compression) {
            Ok(pb::Compression::Unspecified) => Compression::Auto,
            Ok(pb::Compression::None) => Compression::None,
            Ok(pb::Compression::Lz4) => Compression::Lz4,
            Err(_) => return Err(unknown("compression")),
        },
        compress_output: wire.compress_output,
    })
}

/// What a job is to do, for the wire.
#[must_use]
pub fn spec_to_wire(spec: &Spec) -> pb::JobSpec {
    let (input_format, record_bytes) = match spec.input_format {
        InputFormat::Text => (pb::InputFormat::Text, 0),
        InputFormat::Whole => (pb::InputFormat::Whole, 0),
        InputFormat::KeyValue => (pb::InputFormat::KeyValue, 0),
        InputFormat::Fixed(width) => (pb::InputFormat::Fixed, width),
    };
    let output_format = match spec.output_format {
        OutputFormat::Text => pb::OutputFormat::Text,
        OutputFormat::Lab => pb::OutputFormat::Lab,
        OutputFormat::Raw => pb::OutputFormat::Raw,
    };
    let flow = &spec.flow;
    let (partitioner, prefix_bytes, samples, sample_key_bytes) = match flow.partitioner {
        Partitioner::Hash => (pb::Partitioner::Hash, 0, 0, 0),
        Partitioner::Prefix(bytes) => (pb::Partitioner::Prefix, bytes, 0, 0),
        Partitioner::Range { samples, key_bytes } => {
            (pb::Partitioner::Range, 0, samples, key_bytes)
        }
    };
    let long_lines = match flow.long_lines {
        LongLines::Fail => pb::LongLines::Fail,
        LongLines::Skip => pb::LongLines::Skip,
        LongLines::Cut => pb::LongLines::Cut,
    };
    let compression = match flow.compression {
        Compression::Auto => pb::Compression::Unspecified,
        Compression::None => pb::Compression::None,
        Compression::Lz4 => pb::Compression::Lz4,
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
        args: flow.args.clone().into_iter().collect(),
        record_bytes,
        strip_cr: flow.strip_cr,
        line_bytes_max: flow.line_bytes_max,
        long_lines: long_lines.into(),
        partitioner: partitioner.into(),
        prefix_bytes,
        samples,
        sample_key_bytes,
        compression: compression.into(),
        compress_output: flow.compress_output,
        input_tags: flow.tags.clone(),
        expansion_max: flow.expansion_max,
        ..streaming::to_wire(spec.streaming.as_deref(), scheduling_to_wire(&spec.scheduling))
    }
}

/// What a job asks of the scheduler, with defaults filled in.
fn scheduling(wire: &pb::JobSpec, output_format: OutputFormat) -> Result<Scheduling, BadSpec> {
    let speculation = match pb::Speculation::try_from(wire.speculation) {
        // The labs count executions.
        Ok(pb::Speculation::Unspecified) => output_format != OutputFormat::Lab,
        Ok(pb::Speculation::On) => true,
        Ok(pb::Speculation::Off) => false,
        Err(_) => return Err(BadSpec::new("speculation", "the choice is not known")),
    };
    let priority = wire.priority.map_or(Ok(PRIORITY_DEFAULT), u8::try_from);
    let after = wire.after.iter().map(|job| job.parse()).collect::<Result<Vec<JobId>, _>>();
    let queue = if wire.queue.is_empty() { QUEUE_DEFAULT } else { &wire.queue };
    Ok(Scheduling {
        priority: priority.unwrap_or(u8::MAX),
        queue: queue.to_owned(),
        speculation,
        after: after.map_err(|error| BadSpec::new("after", error.to_string()))?,
        max_skip: wire.max_skip,
        wait_for_workers: wire.wait_for_workers,
        nondeterministic_ok: wire.nondeterministic_ok,
    })
}

fn scheduling_to_wire(wishes: &Scheduling) -> pb::JobSpec {
    let on = if wishes.speculation { pb::Speculation::On } else { pb::Speculation::Off };
    pb::JobSpec {
        priority: Some(wishes.priority.into()),
        queue: wishes.queue.clone(),
        speculation: on.into(),
        after: wishes.after.iter().map(JobId::to_string).collect(),
        max_skip: wishes.max_skip,
        wait_for_workers: wishes.wait_for_workers,
        nondeterministic_ok: wishes.nondeterministic_ok,
        ..pb::JobSpec::default()
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

pub(crate) fn kind_to_wire(kind: TaskKind) -> pb::TaskKind {
    match kind {
        TaskKind::Map => pb::TaskKind::Map,
        TaskKind::Reduce => pb::TaskKind::Reduce,
    }
}

/// An attempt's name, for the wire.
#[must_use]
pub fn attempt_to_wire(attempt: &AttemptId) -> pb::AttemptId {
    pb::AttemptId {
        job: attempt.job.to_string(),
        kind: kind_to_wire(attempt.task.kind).into(),
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
            let known = match attempt.task.kind {
                TaskKind::Map => &[RUN_FILE, PART_FILE][..],
                TaskKind::Reduce => &[PART_FILE],
            };
            if !known.contains(&success.file.as_str()) {
                let known = known.join(" or ");
                return Err(BadMessage::new(format!("the file of this attempt is {known}")));
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
            let pb::UserError { message, path, offset, permanent, exact } = user;
            Reason::User { message, path, offset, permanent, exact }
        }
        Kind::Exit(exit) => {
            let pb::UserExit { code, signal, path, offset, exact } = exit;
            Reason::Exit { code, signal, path, offset, exact }
        }
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

pub(crate) fn failure_to_wire(failure: &Failure) -> pb::FailureReason {
    use pb::failure_reason::Kind;
    let kind = match failure.reason.clone() {
        Reason::User { message, path, offset, permanent, exact } => {
            Kind::User(pb::UserError { message, path, offset, permanent, exact })
        }
        Reason::Exit { code, signal, path, offset, exact } => {
            Kind::Exit(pb::UserExit { code, signal, path, offset, exact })
        }
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

/// How far a worker says that an attempt has come.
///
/// # Errors
/// When its name makes no sense.
pub fn heard(wire: pb::AttemptProgress) -> Result<(AttemptId, Heard), BadMessage> {
    let heard = Heard { progress: (wire.records, wire.bytes), queued: wire.queued };
    Ok((attempt(wire.attempt)?, heard))
}

/// Tasks for a worker.
#[must_use]
pub fn assignments(given: &[Assignment]) -> pb::Assignments {
    pb::Assignments { assignments: given.iter().map(assignment).collect() }
}

/// A task for a worker.
#[must_use]
pub fn assignment(assignment: &Assignment) -> pb::Assignment {
    let task = assignment.attempt.task;
    let work = match &assignment.work {
        Work::Map(plan) => {
            let splits = plan.maps.get(task.number as usize);
            let splits = splits.map(|splits| splits.iter().map(split).collect());
            let cuts = plan.cuts.clone();
            let (cuts_path, cuts_crc) = cuts.map_or_else(Default::default, |is| (is.path, is.crc));
            let splits = splits.unwrap_or_default();
            let skip = assignment.skip.iter().map(record).collect();
            let maps = plan.maps.len() as u32;
            pb::assignment::Work::Map(pb::MapWork { splits, skip, cuts_path, cuts_crc, maps })
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
        careful: assignment.careful,
    }
}

pub(crate) fn record(record: &Record) -> pb::SkippedRecord {
    pb::SkippedRecord { path: record.path.clone(), offset: record.offset }
}

fn split(split: &Split) -> pb::Split {
    pb::Split {
        path: split.path.clone(),
        start: split.start,
        bytes: split.bytes,
        file_bytes: split.file_bytes,
        modified_ns: split.modified_ns,
        packing: match split.packing {
            Packing::None => pb::Packing::Unspecified,
            Packing::Gzip => pb::Packing::Gzip,
            Packing::Zstd => pb::Packing::Zstd,
        }
        .into(),
        tag: split.tag.clone(),
    }
}

fn run(run: &Run) -> pb::InputRun {
    pb::InputRun {
        map_task: run.attempt.task.number,
        attempt: Some(attempt_to_wire(&run.attempt)),
        path: run.attempt.run(),
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
        backups: progress.map_or(0, |progress| progress.backups[kind.slot()]),
    };
    let outputs = match job.state {
        JobState::Succeeded => outputs(job),
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
        excluded_workers: progress.map(|is| is.excluded.clone()).unwrap_or_default(),
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
pub fn outputs(job: &Job) -> Vec<String> {
    let directory = job.spec.output.trim_end_matches('/');
    let name = |part| format!("{directory}/{}", job.spec.part_name(part));
    (0..job.total(job.spec.last_kind())).map(name).collect()
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
    fn speculation_is_off_in_lab_format_unless_it_is_asked_for() {
        let speculation = |format: pb::OutputFormat, wish: pb::Speculation| {
            let wire =
                pb::JobSpec { output_format: format.into(), speculation: wish.into(), ..wire() };
            let spec = spec(wire).unwrap();
            assert_eq!(self::spec(spec_to_wire(&spec)).as_ref(), Ok(&spec));
            spec.scheduling.speculation
        };
        use pb::{OutputFormat, Speculation};
        assert!(speculation(OutputFormat::Text, Speculation::Unspecified));
        assert!(!speculation(OutputFormat::Text, Speculation::Off));
        assert!(!speculation(OutputFormat::Lab, Speculation::Unspecified));
        assert!(speculation(OutputFormat::Lab, Speculation::On));
    }

    #[test]
    fn wrong_specs_are_refused_by_field() {
        type Change = fn(&mut pb::JobSpec);
        let wrong: [(&str, Change); 16] = [
            ("app", |spec| spec.app = String::new()),
            ("app", |spec| spec.app = "x".repeat(NAME_BYTES_MAX + 1)),
            ("inputs", |spec| spec.inputs.clear()),
            ("inputs", |spec| spec.inputs = vec!["a\0b".into()]),
            ("inputs", |spec| spec.inputs = vec!["x".repeat(10 << 20)]),
            ("output", |spec| spec.output = String::new()),
            ("record_bytes", |spec| spec.input_format = pb::InputFormat::Fixed.into()),
            ("reduces", |spec| spec.reduces = 4_097),
            ("input_format", |spec| spec.input_format = 99),
            ("lease_ms", |spec| spec.lease_ms = 1),
            ("max_attempts", |spec| spec.max_attempts = 1_000_000),
            ("priority", |spec| spec.priority = Some(10)),
            ("priority", |spec| spec.priority = Some(1_000)),
            ("queue", |spec| spec.queue = "q\n".into()),
            ("speculation", |spec| spec.speculation = 9),
            ("after", |spec| spec.after = vec!["yesterday".into()]),
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
        assert!(report("part", 1).is_ok());
        assert!(report("plan", 1).is_err());
        assert!(report("../data.run", 1).is_err());
        assert!(report("data.run", ATTEMPT_COUNTERS_MAX + 1).is_err());
        assert!(report_end(None, &id).is_err());
    }
}
