//! Between the wire and the engine: an assignment becomes a task, an outcome or a failure becomes
//! what is reported.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    thread,
    time::Duration,
};

use proto::mapreduce::{
    self as wire, Assignment, AttemptId, FailureReason, MapWork, ReduceWork, assignment::Work,
    failure_reason::Kind,
};

use crate::{
    app::Program,
    apps,
    failure::Failure,
    input::{Piece, Records},
    map::MapTask,
    outcome::{Outcome, Progress},
    panics,
    paths::{PathError, Root},
    reduce::{InputRun, PartFormat, Patience, ReduceTask},
    run::PARTITIONS_MAX,
};

/// The longest message of a failure that travels, in bytes.
const MESSAGE_BYTES_MAX: usize = 4_096;

/// What a slot knows besides its assignment.
pub(crate) struct Bench<'a> {
    /// The apps.
    pub(crate) programs: &'a [&'static dyn Program],
    /// The shared root.
    pub(crate) root: &'a Root,
    /// The memory of a map's table, in bytes.
    pub(crate) memory_bytes: usize,
}

impl Bench<'_> {
    /// Runs an assignment to its end.
    pub(crate) fn execute(
        &self,
        assignment: &Assignment,
        progress: Progress,
    ) -> Result<wire::Success, FailureReason> {
        let executed = catch_unwind(AssertUnwindSafe(|| self.attempt(assignment, progress)));
        let result =
            executed.unwrap_or_else(|panic| Err(Failure::Internal(panics::message(&*panic))));
        result.map(success).map_err(|failure| reason(failure, assignment))
    }

    fn attempt(&self, assignment: &Assignment, mut progress: Progress) -> Result<Outcome, Failure> {
        let missing = |what: &str| Failure::Internal(format!("the assignment has no {what}"));
        let spec = assignment.spec.as_ref().ok_or_else(|| missing("spec"))?;
        let work = assignment.work.as_ref().ok_or_else(|| missing("work"))?;
        let program = apps::find(self.programs, &spec.app)
            .ok_or_else(|| Failure::user(format!("this worker has no app {:?}", spec.app)))?;
        let dir = self.create_dir(&assignment.attempt_dir)?;
        let outcome = match work {
            Work::Map(work) => program.map(&self.map_task(spec, work, dir)?, &mut progress),
            Work::Reduce(work) => {
                program.reduce(&self.reduce_task(spec, work, dir)?, &mut progress)
            }
        }?;
        // The hook of tests that must catch an attempt between its work and its report.
        thread::sleep(Duration::from_millis(spec.slow_ms));
        Ok(outcome)
    }

    fn create_dir(&self, relative: &str) -> Result<PathBuf, Failure> {
        self.root.create_attempt_dir(relative).map_err(|error| match error {
            PathError::Refused { .. } => Failure::Internal(error.to_string()),
            PathError::Io { source, .. } => Failure::io(&self.root.path().join(relative), &source),
        })
    }

    fn map_task(
        &self,
        spec: &wire::JobSpec,
        work: &MapWork,
        dir: PathBuf,
    ) -> Result<MapTask, Failure> {
        if !(1..=PARTITIONS_MAX).contains(&spec.reduces) {
            return Err(Failure::Internal(format!("a job with {} reduces", spec.reduces)));
        }
        let records = match wire::InputFormat::try_from(spec.input_format) {
            Ok(wire::InputFormat::Unspecified | wire::InputFormat::Text) => Records::Lines,
            Ok(wire::InputFormat::Whole) => Records::Files,
            Err(error) => return Err(Failure::Internal(format!("input format: {error}"))),
        };
        let pieces = work.splits.iter().map(|split| self.piece(split)).collect::<Result<_, _>>()?;
        let memory_bytes = self.memory_bytes;
        Ok(MapTask { pieces, records, partitions: spec.reduces, dir, memory_bytes })
    }

    fn piece(&self, split: &wire::Split) -> Result<Piece, Failure> {
        let path = self.root.input(&split.path).map_err(|error| match &error {
            PathError::Refused { .. } => Failure::Input {
                path: split.path.clone(),
                message: error.to_string(),
                permanent: true,
            },
            PathError::Io { source, .. } => Failure::input(&split.path, source),
        })?;
        Ok(Piece {
            document: split.path.clone(),
            path,
            start: split.start,
            bytes: split.bytes,
            file_bytes: split.file_bytes,
            modified_ns: split.modified_ns,
        })
    }

    fn reduce_task(
        &self,
        spec: &wire::JobSpec,
        work: &ReduceWork,
        dir: PathBuf,
    ) -> Result<ReduceTask, Failure> {
        let format = match wire::OutputFormat::try_from(spec.output_format) {
            Ok(wire::OutputFormat::Unspecified | wire::OutputFormat::Text) => PartFormat::Text,
            Ok(wire::OutputFormat::Lab) => PartFormat::Lab,
            Err(error) => return Err(Failure::Internal(format!("output format: {error}"))),
        };
        // The order of values depends on the order of runs, so it is made sure of here.
        if !work.runs.is_sorted_by_key(|run| run.map_task) {
            return Err(Failure::Internal("the runs are not in the order of their maps".into()));
        }
        let runs = work.runs.iter().map(|run| {
            let path = self.root.own(&run.path);
            let path = path.map_err(|error| Failure::Internal(error.to_string()))?;
            Ok(InputRun { path, bytes: run.bytes, footer_crc: run.footer_crc })
        });
        Ok(ReduceTask {
            partition: work.partition,
            runs: runs.collect::<Result<_, Failure>>()?,
            format,
            dir,
            patience: Patience::default(),
        })
    }
}

fn success(outcome: Outcome) -> wire::Success {
    let counters = outcome.counters.into_iter();
    wire::Success {
        file: outcome.file.to_owned(),
        bytes: outcome.bytes,
        records: outcome.records,
        crc: outcome.crc,
        content_hash: outcome.content_hash,
        counters: counters.map(|(name, count)| (name.to_owned(), count)).collect(),
    }
}

fn reason(failure: Failure, assignment: &Assignment) -> FailureReason {
    let kind = match failure {
        Failure::User { message, path, offset } => {
            Kind::User(wire::UserError { message: cut(message), path, offset })
        }
        Failure::Input { path, message, permanent } => {
            Kind::Input(wire::InputError { path, message: cut(message), permanent })
        }
        Failure::Lost { input, message } => Kind::Intermediate(wire::IntermediateLost {
            map_attempt: attempt_of_run(assignment, input),
            message: cut(message),
        }),
        Failure::Io { path, message } => Kind::Io(wire::IoError {
            path: path.to_string_lossy().into_owned(),
            message: cut(message),
        }),
        Failure::Resource(message) => {
            Kind::Resource(wire::ResourceExhausted { message: cut(message) })
        }
        Failure::Internal(message) => Kind::Internal(wire::Internal { message: cut(message) }),
    };
    FailureReason { kind: Some(kind), stderr_tail: String::new() }
}

fn attempt_of_run(assignment: &Assignment, input: usize) -> Option<AttemptId> {
    match &assignment.work {
        Some(Work::Reduce(work)) => work.runs.get(input)?.attempt.clone(),
        Some(Work::Map(_)) | None => None,
    }
}

/// A failure of the worker itself, not of what it ran.
pub(crate) fn internal(message: String) -> FailureReason {
    let kind = Kind::Internal(wire::Internal { message: cut(message) });
    FailureReason { kind: Some(kind), stderr_tail: String::new() }
}

fn cut(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    message
}
