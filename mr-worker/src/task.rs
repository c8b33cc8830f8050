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
    app::{Context, Program},
    apps,
    failure::{Failure, Place, ProgramEnd},
    input::{
        EXPANSION_DEFAULT, LINE_BYTES_DEFAULT, LINE_BYTES_MAX, LongLines, Packing, Piece, Reading,
    },
    map::{Care, MapTask, POSITION_FILE},
    outcome::{Outcome, Progress},
    panics,
    part::{PartFormat, PartStyle},
    partition::Partitioning,
    paths::{PathError, Root},
    record::Records,
    reduce::{InputRun, Patience, ReduceTask},
    run::{Codec, PARTITIONS_MAX},
    stream::{self, Allowed, Streaming},
};

/// The largest file of cut points, in bytes.
const CUTS_BYTES_MAX: u64 = 4 << 20;

/// The longest message of a failure that travels, in bytes.
const MESSAGE_BYTES_MAX: usize = 4_096;

/// What a slot knows besides its assignment.
pub struct Bench<'a> {
    /// The apps.
    pub programs: &'a [&'static dyn Program],
    /// The shared root.
    pub root: &'a Root,
    /// The memory of a map's table, in bytes.
    pub memory_bytes: usize,
    /// Whether results are durable when their task has ended; else whoever reports them sees to it.
    pub durable: bool,
    /// What running programs takes, if jobs may have their own run here.
    pub programs_of_jobs: Option<&'a Allowed>,
}

impl Bench<'_> {
    /// Runs an assignment to its end.
    ///
    /// # Errors
    /// Why it failed.
    pub fn execute(
        &self,
        assignment: &Assignment,
        progress: Progress,
    ) -> Result<wire::Success, FailureReason> {
        let executed = catch_unwind(AssertUnwindSafe(|| self.attempt(assignment, progress)));
        let result =
            executed.unwrap_or_else(|panic| Err(Failure::Internal(panics::message(&*panic))));
        result.map(|outcome| success(&outcome)).map_err(|failure| reason(failure, assignment))
    }

    fn attempt(&self, assignment: &Assignment, mut progress: Progress) -> Result<Outcome, Failure> {
        let spec = assignment.spec.as_ref().ok_or_else(|| senseless("it has no spec"))?;
        let work = assignment.work.as_ref().ok_or_else(|| senseless("it has no work"))?;
        let streaming = self.streaming(assignment, spec)?;
        let program: &dyn Program = match &streaming {
            Some(streaming) => streaming,
            None => apps::find(self.programs, &spec.app)
                .ok_or_else(|| Failure::user(format!("this worker has no app {:?}", spec.app)))?,
        };
        let dir = self.create_dir(&assignment.attempt_dir)?;
        let context = context(assignment, spec)?;
        let outcome = match work {
            Work::Map(work) => {
                let task = self.map_task(context, spec, work, dir)?;
                let care = assignment.careful.then(|| care(work));
                program.map(MapTask { care, ..task }, &mut progress)
            }
            Work::Reduce(work) => {
                program.reduce(&self.reduce_task(context, spec, work, dir)?, &mut progress)
            }
        }?;
        // The hook of tests that must catch an attempt between its work and its report.
        thread::sleep(Duration::from_millis(spec.slow_ms));
        Ok(outcome)
    }

    /// The programs of a job that brings its own.
    fn streaming(
        &self,
        assignment: &Assignment,
        spec: &wire::JobSpec,
    ) -> Result<Option<Streaming>, Failure> {
        let Some(programs) = stream::programs(spec)? else { return Ok(None) };
        let allowed = self.programs_of_jobs.cloned().ok_or_else(|| {
            Failure::user(
                "this worker runs no programs of jobs: it was started without --allow-exec",
            )
        })?;
        let attempt = assignment.attempt.clone().unwrap_or_default();
        let attempt = format!("{}-{}", attempt.epoch, attempt.sequence);
        let line_bytes_max = reading(spec)?.line_bytes_max;
        Ok(Some(Streaming { programs, allowed, attempt, line_bytes_max }))
    }

    fn create_dir(&self, relative: &str) -> Result<PathBuf, Failure> {
        self.root.create_attempt_dir(relative).map_err(|error| match error {
            PathError::Refused { .. } => Failure::Internal(error.to_string()),
            PathError::Io { source, .. } => Failure::io(&self.root.path().join(relative), &source),
        })
    }

    fn map_task(
        &self,
        context: Context,
        spec: &wire::JobSpec,
        work: &MapWork,
        dir: PathBuf,
    ) -> Result<MapTask, Failure> {
        let pieces = work.splits.iter().map(|split| self.piece(split)).collect::<Result<_, _>>()?;
        Ok(MapTask {
            context,
            pieces,
            reading: reading(spec)?,
            partitioning: self.partitioning(spec, work)?,
            codec: self.codec(spec)?,
            style: self.style(spec)?,
            dir,
            memory_bytes: self.memory_bytes,
            maps: work.maps,
            care: None,
        })
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
            tag: split.tag.clone(),
            path,
            start: split.start,
            bytes: split.bytes,
            file_bytes: split.file_bytes,
            modified_ns: split.modified_ns,
            packing: match known("packing", wire::Packing::try_from(split.packing))? {
                wire::Packing::Unspecified => Packing::None,
                wire::Packing::Gzip => Packing::Gzip,
                wire::Packing::Zstd => Packing::Zstd,
            },
        })
    }

    fn partitioning(&self, spec: &wire::JobSpec, work: &MapWork) -> Result<Partitioning, Failure> {
        use wire::Partitioner;
        Ok(match known("partitioner", Partitioner::try_from(spec.partitioner))? {
            Partitioner::Unspecified | Partitioner::Hash => Partitioning::Hash,
            Partitioner::Prefix => Partitioning::Prefix(spec.prefix_bytes as usize),
            Partitioner::Range => Partitioning::Range(self.cuts(work)?),
        })
    }

    /// Reads the cut points of a job.
    fn cuts(&self, work: &MapWork) -> Result<Vec<Vec<u8>>, Failure> {
        let path = self.root.own(&work.cuts_path).map_err(|error| senseless(&error.to_string()))?;
        let failed = |error| Failure::io(&path, &error);
        let bytes = std::fs::metadata(&path).map_err(failed)?.len();
        if bytes > CUTS_BYTES_MAX {
            return Err(senseless("its cut points are too long"));
        }
        let bytes = std::fs::read(&path).map_err(failed)?;
        if crc32c::crc32c(&bytes) != work.cuts_crc {
            let message = "it is not what was planned".to_owned();
            return Err(Failure::Io { path, message });
        }
        let mut cuts = Vec::new();
        let mut rest = &bytes[..];
        while let Some((length, behind)) = rest.split_first_chunk() {
            let length = u32::from_le_bytes(*length) as usize;
            let (cut, behind) = behind
                .split_at_checked(length)
                .ok_or_else(|| senseless("its cut points end early"))?;
            cuts.push(cut.to_vec());
            rest = behind;
        }
        if !rest.is_empty() || !cuts.is_sorted() {
            return Err(senseless("its cut points are not in order"));
        }
        Ok(cuts)
    }

    fn style(&self, spec: &wire::JobSpec) -> Result<PartStyle, Failure> {
        use wire::OutputFormat;
        let format = match known("output format", OutputFormat::try_from(spec.output_format))? {
            OutputFormat::Unspecified | OutputFormat::Text => PartFormat::Text,
            OutputFormat::Lab => PartFormat::Lab,
            OutputFormat::Raw => PartFormat::Raw,
        };
        Ok(PartStyle { format, zstd: spec.compress_output, durable: self.durable })
    }

    fn codec(&self, spec: &wire::JobSpec) -> Result<Codec, Failure> {
        use wire::Compression;
        Ok(match known("compression", Compression::try_from(spec.compression))? {
            Compression::Unspecified if self.root.is_remote() => Codec::Lz4,
            Compression::Unspecified | Compression::None => Codec::None,
            Compression::Lz4 => Codec::Lz4,
        })
    }

    fn reduce_task(
        &self,
        context: Context,
        spec: &wire::JobSpec,
        work: &ReduceWork,
        dir: PathBuf,
    ) -> Result<ReduceTask, Failure> {
        // The order of values depends on the order of runs, so it is made sure of here.
        if !work.runs.is_sorted_by_key(|run| run.map_task) {
            return Err(senseless("its runs are not in the order of their maps"));
        }
        let runs = work.runs.iter().map(|run| {
            let path = self.root.own(&run.path);
            let path = path.map_err(|error| Failure::Internal(error.to_string()))?;
            Ok(InputRun { path, bytes: run.bytes, footer_crc: run.footer_crc })
        });
        Ok(ReduceTask {
            context,
            partition: work.partition,
            runs: runs.collect::<Result<_, Failure>>()?,
            style: self.style(spec)?,
            dir,
            memory_bytes: self.memory_bytes,
            patience: Patience::default(),
        })
    }
}

/// Which records a careful map leaves out.
fn care(work: &MapWork) -> Care {
    let skip = work.skip.iter().map(|record| (record.path.clone(), record.offset));
    Care { skip: skip.collect() }
}

/// Adds to the failure of a careful map whose process ended which record it was at.
pub(crate) fn add_place(reason: &mut FailureReason, root: &Root, assignment: &Assignment) {
    if let (Some(Kind::Exit(exit)), Some(Work::Map(work))) = (&mut reason.kind, &assignment.work)
        && let Some((path, offset)) = last_position(root, assignment, work)
    {
        *exit = wire::UserExit { path, offset, exact: true, ..exit.clone() };
    }
}

fn last_position(root: &Root, assignment: &Assignment, work: &MapWork) -> Option<(String, u64)> {
    let dir = root.own(&assignment.attempt_dir).ok()?;
    let position = std::fs::read(dir.join(POSITION_FILE)).ok()?;
    let (piece, offset) = position.split_first_chunk()?;
    let split = work.splits.get(u32::from_le_bytes(*piece) as usize)?;
    Some((split.path.clone(), u64::from_le_bytes(offset.try_into().ok()?)))
}

/// An assignment that makes no sense.
fn senseless(what: &str) -> Failure {
    Failure::Internal(format!("an assignment that makes no sense: {what}"))
}

/// A value of an enum that this worker knows.
fn known<T>(field: &str, value: Result<T, prost::UnknownEnumValue>) -> Result<T, Failure> {
    value.map_err(|error| senseless(&format!("{field}: {error}")))
}

fn context(assignment: &Assignment, spec: &wire::JobSpec) -> Result<Context, Failure> {
    if spec.reduces > PARTITIONS_MAX {
        return Err(senseless(&format!("it has {} reduces", spec.reduces)));
    }
    let attempt = assignment.attempt.clone().unwrap_or_default();
    Ok(Context {
        job: attempt.job,
        task: attempt.task,
        partitions: spec.reduces,
        records: reading(spec)?.records,
        args: spec.args.clone().into_iter().collect(),
    })
}

fn reading(spec: &wire::JobSpec) -> Result<Reading, Failure> {
    use wire::InputFormat;
    let strip_cr = spec.strip_cr;
    let records = match known("input format", InputFormat::try_from(spec.input_format))? {
        InputFormat::Unspecified | InputFormat::Text => Records::Lines { strip_cr },
        InputFormat::KeyValue => Records::KeyValues { strip_cr },
        InputFormat::Whole => Records::Files,
        InputFormat::Fixed => Records::Fixed(spec.record_bytes),
    };
    let long_lines = match known("long lines", wire::LongLines::try_from(spec.long_lines))? {
        wire::LongLines::Unspecified | wire::LongLines::Fail => LongLines::Fail,
        wire::LongLines::Skip => LongLines::Skip,
        wire::LongLines::Cut => LongLines::Cut,
    };
    let line_bytes_max = match spec.line_bytes_max as usize {
        0 => LINE_BYTES_DEFAULT,
        bytes => bytes.min(LINE_BYTES_MAX),
    };
    let expansion_max =
        if spec.expansion_max == 0 { EXPANSION_DEFAULT } else { spec.expansion_max };
    Ok(Reading { records, line_bytes_max, long_lines, expansion_max })
}

fn success(outcome: &Outcome) -> wire::Success {
    wire::Success {
        file: outcome.file.to_owned(),
        bytes: outcome.bytes,
        records: outcome.records,
        crc: outcome.crc,
        content_hash: outcome.content_hash,
        counters: outcome.counters.iter().map(|(name, count)| (name.to_owned(), count)).collect(),
    }
}

pub(crate) fn reason(failure: Failure, assignment: &Assignment) -> FailureReason {
    let kind = match failure {
        Failure::User { message, place, permanent } => {
            let (path, offset, exact) = place
                .map_or_else(Default::default, |place| (place.document, place.offset, place.exact));
            let message = cut(message);
            Kind::User(wire::UserError { message, path, offset, permanent, exact })
        }
        Failure::Program { message, place, end, stderr } => {
            return program_reason(message, place, end, stderr);
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

fn program_reason(
    message: String,
    place: Option<Place>,
    end: ProgramEnd,
    stderr_tail: String,
) -> FailureReason {
    let kind = match end {
        ProgramEnd::Exhausted => Kind::Resource(wire::ResourceExhausted { message: cut(message) }),
        ProgramEnd::Failed | ProgramEnd::Unfit => {
            let (path, offset) = place.map_or_else(Default::default, |at| (at.document, at.offset));
            let permanent = end == ProgramEnd::Unfit;
            // It has read ahead: the place is the block that it was given, never a record.
            Kind::User(wire::UserError {
                message: cut(message),
                path,
                offset,
                permanent,
                exact: false,
            })
        }
    };
    FailureReason { kind: Some(kind), stderr_tail }
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
