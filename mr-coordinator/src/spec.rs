//! What a job is to do, and the plan that its inputs make.
//!
//! Decides which specs make sense by themselves; whether their files exist is `plan.rs`'s matter.

#![deny(clippy::disallowed_types)]

use crate::{
    codec::{BadBytes, Decoder, Encoder},
    flow::{Flow, put_flow, take_flow},
    ids::TaskKind,
    limits::*,
    scheduling::{Scheduling, put_scheduling, take_scheduling},
    streaming::{Streaming, put_streaming, take_streaming},
};

/// How inputs become records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputFormat {
    /// A record is a line.
    Text,
    /// A record is a file.
    Whole,
    /// A record is a line, key and value parted by its first TAB.
    KeyValue,
    /// A record is so many bytes.
    Fixed(u32),
}

/// How an input file is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    #[default]
    None,
    /// As gzip members.
    Gzip,
    /// As zstd frames.
    Zstd,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// part-00000 ...: key, TAB, value, LF.
    Text,
    /// mr-out-0 ...: key, space, value, LF.
    Lab,
    /// part-00000 ...: key and value.
    Raw,
}

/// What a job is to do. Every number has its final value: defaults are filled in before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The name of an app that workers have.
    pub app: String,
    /// Input patterns, as the user named them.
    pub inputs: Vec<String>,
    /// The directory of the results, as the user named it.
    pub output: String,
    /// Reduce partitions; 0: what maps write is the result.
    pub reduces: u32,
    /// How inputs become records.
    pub input_format: InputFormat,
    /// How results are written.
    pub output_format: OutputFormat,
    /// The largest split in bytes; 0: chosen when it is planned.
    pub split_bytes: u64,
    /// How long an attempt may be without a heartbeat.
    pub lease_ms: u64,
    /// How long it may make no progress.
    pub task_timeout_ms: u64,
    /// How many counted failures a task may have.
    pub max_attempts: u32,
    /// A name for people.
    pub name: String,
    /// For tests: how long each attempt waits before it reports.
    pub slow_ms: u64,
    /// Replace an existing output.
    pub overwrite: bool,
    /// How its data flows.
    pub flow: Flow,
    /// What it asks of the scheduler.
    pub scheduling: Scheduling,
    /// The programs that are its app, if it brings some.
    pub streaming: Option<Box<Streaming>>,
}

/// A spec that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadSpec {
    /// Which field of the wire's `JobSpec`.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl BadSpec {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

impl Spec {
    /// Checks what can be checked without looking at any file.
    ///
    /// # Errors
    /// [`BadSpec`] naming the first field that is wrong.
    pub fn check(&self) -> Result<(), BadSpec> {
        check_name("app", &self.app, true)?;
        check_name("name", &self.name, false)?;
        if self.inputs.is_empty() {
            return Err(BadSpec::new("inputs", "there is none"));
        }
        if self.inputs.len() > INPUTS_MAX {
            let problem = format!("{} patterns; at most {INPUTS_MAX}", self.inputs.len());
            return Err(BadSpec::new("inputs", problem));
        }
        for input in &self.inputs {
            check_path("inputs", input)?;
        }
        let bytes: usize = self.inputs.iter().map(String::len).sum();
        if bytes > INPUT_PATTERN_BYTES_MAX {
            let problem = format!("{bytes} bytes of patterns; at most {INPUT_PATTERN_BYTES_MAX}");
            return Err(BadSpec::new("inputs", problem));
        }
        check_path("output", &self.output)?;
        check_range("reduces", self.reduces.into(), 0, REDUCES_MAX.into())?;
        if let InputFormat::Fixed(width) = self.input_format {
            check_range("record_bytes", width.into(), 1, RECORD_BYTES_MAX.into())?;
        }
        self.flow.check(self.inputs.len())?;
        if self.split_bytes != 0 {
            check_range("split_bytes", self.split_bytes, SPLIT_BYTES_MIN, u64::MAX)?;
        }
        check_range("lease_ms", self.lease_ms, LEASE_MS_MIN, LEASE_MS_MAX)?;
        let timeout = self.task_timeout_ms;
        check_range("task_timeout_ms", timeout, TASK_TIMEOUT_MS_MIN, TASK_TIMEOUT_MS_MAX)?;
        check_range("max_attempts", self.max_attempts.into(), 1, ATTEMPTS_MAX.into())?;
        check_range("slow_ms", self.slow_ms, 0, SLOW_MS_MAX)?;
        self.streaming.as_ref().map_or(Ok(()), |streaming| streaming.check(self))?;
        self.scheduling.check()
    }

    /// Which tasks leave the parts of the output.
    #[must_use]
    pub fn last_kind(&self) -> TaskKind {
        if self.reduces == 0 { TaskKind::Map } else { TaskKind::Reduce }
    }

    /// The name of a part's file.
    #[must_use]
    pub fn part_name(&self, part: u32) -> String {
        let name = match self.output_format {
            OutputFormat::Text | OutputFormat::Raw => format!("part-{part:05}"),
            OutputFormat::Lab => format!("mr-out-{part}"),
        };
        if self.flow.compress_output { format!("{name}.zst") } else { name }
    }

    /// A digest that two specs share only when they are the same.
    #[must_use]
    pub fn digest(&self) -> u128 {
        let mut out = Encoder::new();
        put_spec(&mut out, self);
        xxhash_rust::xxh3::xxh3_128(&out.finish())
    }
}

fn check_name(field: &'static str, name: &str, required: bool) -> Result<(), BadSpec> {
    if required && name.is_empty() {
        return Err(BadSpec::new(field, "it is empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        let problem = format!("{} bytes; at most {NAME_BYTES_MAX}", name.len());
        return Err(BadSpec::new(field, problem));
    }
    if name.chars().any(char::is_control) {
        return Err(BadSpec::new(field, "it has control characters"));
    }
    Ok(())
}

fn check_path(field: &'static str, path: &str) -> Result<(), BadSpec> {
    if path.is_empty() {
        return Err(BadSpec::new(field, "a path is empty"));
    }
    if path.len() > PATH_BYTES_MAX {
        let problem = format!("a path of {} bytes; at most {PATH_BYTES_MAX}", path.len());
        return Err(BadSpec::new(field, problem));
    }
    if path.contains('\0') {
        return Err(BadSpec::new(field, "a path has a NUL"));
    }
    Ok(())
}

pub(crate) fn check_range(
    field: &'static str,
    value: u64,
    min: u64,
    max: u64,
) -> Result<(), BadSpec> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(BadSpec::new(field, format!("{value} is not within {min} and {max}")))
}

/// A piece of an input file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// The path as the user named it.
    pub path: String,
    /// The first byte.
    pub start: u64,
    /// How many bytes.
    pub bytes: u64,
    /// The file's size when it was planned.
    pub file_bytes: u64,
    /// Its modification time when it was planned, in nanoseconds since 1970.
    pub modified_ns: u64,
    /// How it is compressed; such a file is one split.
    pub packing: Packing,
    /// What the job calls files like this one.
    pub tag: String,
}

/// What each map task reads: fixed once and never made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The pieces of each map task, in order.
    pub maps: Vec<Vec<Split>>,
    /// Where the cut points of a total order are.
    pub cuts: Option<Cuts>,
}

/// A file of cut points, in the job's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cuts {
    /// Its path, relative to the shared root.
    pub path: String,
    /// CRC-32C of its bytes.
    pub crc: u32,
}

/// What the log holds of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRoot {
    /// The BLAKE3 digest of the plan file.
    pub digest: [u8; 32],
    /// How many map tasks it has.
    pub maps: u32,
    /// How many input bytes.
    pub bytes: u64,
}

impl Plan {
    /// How many bytes a map task reads; 0 for a task that is not there.
    #[must_use]
    pub fn map_bytes(&self, task: u32) -> u64 {
        let splits = self.maps.get(task as usize);
        splits.map_or(0, |splits| splits.iter().map(|split| split.bytes).sum())
    }

    /// How many bytes all map tasks read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.maps.iter().flatten().map(|split| split.bytes).sum()
    }
}

pub(crate) fn put_spec(out: &mut Encoder, spec: &Spec) {
    out.text(&spec.app);
    out.count(spec.inputs.len());
    for input in &spec.inputs {
        out.text(input);
    }
    out.text(&spec.output);
    out.u32(spec.reduces);
    out.u8(match spec.input_format {
        InputFormat::Text => 1,
        InputFormat::Whole => 2,
        InputFormat::KeyValue => 3,
        InputFormat::Fixed(_) => 4,
    });
    if let InputFormat::Fixed(width) = spec.input_format {
        out.u32(width);
    }
    out.u8(match spec.output_format {
        OutputFormat::Text => 1,
        OutputFormat::Lab => 2,
        OutputFormat::Raw => 3,
    });
    out.u64(spec.split_bytes);
    out.u64(spec.lease_ms);
    out.u64(spec.task_timeout_ms);
    out.u32(spec.max_attempts);
    out.text(&spec.name);
    out.u64(spec.slow_ms);
    out.u8(u8::from(spec.overwrite));
    put_flow(out, &spec.flow);
    put_scheduling(out, &spec.scheduling);
    out.option(spec.streaming.as_deref(), put_streaming);
}

pub(crate) fn take_spec(from: &mut Decoder<'_>) -> Result<Spec, BadBytes> {
    Ok(Spec {
        app: from.text()?,
        inputs: (0..from.count()?).map(|_| from.text()).collect::<Result<_, _>>()?,
        output: from.text()?,
        reduces: from.u32()?,
        input_format: match from.u8()? {
            1 => InputFormat::Text,
            2 => InputFormat::Whole,
            3 => InputFormat::KeyValue,
            4 => InputFormat::Fixed(from.u32()?),
            other => return Err(BadBytes::tag("input format", other)),
        },
        output_format: match from.u8()? {
            1 => OutputFormat::Text,
            2 => OutputFormat::Lab,
            3 => OutputFormat::Raw,
            other => return Err(BadBytes::tag("output format", other)),
        },
        split_bytes: from.u64()?,
        lease_ms: from.u64()?,
        task_timeout_ms: from.u64()?,
        max_attempts: from.u32()?,
        name: from.text()?,
        slow_ms: from.u64()?,
        overwrite: from.u8()? != 0,
        flow: take_flow(from)?,
        scheduling: take_scheduling(from)?,
        streaming: from.option(take_streaming)?.map(Box::new),
    })
}

/// Writes a plan.
pub fn put_plan(out: &mut Encoder, plan: &Plan) {
    out.count(plan.maps.len());
    for splits in &plan.maps {
        out.count(splits.len());
        for split in splits {
            out.text(&split.path);
            out.u64(split.start);
            out.u64(split.bytes);
            out.u64(split.file_bytes);
            out.u64(split.modified_ns);
            out.u8(match split.packing {
                Packing::None => 0,
                Packing::Gzip => 1,
                Packing::Zstd => 2,
            });
            out.text(&split.tag);
        }
    }
    out.option(plan.cuts.as_ref(), |out, cuts| {
        out.text(&cuts.path);
        out.u32(cuts.crc);
    });
}

/// Reads a plan.
///
/// # Errors
/// When the bytes are none.
pub fn take_plan(from: &mut Decoder<'_>) -> Result<Plan, BadBytes> {
    let mut plan = Plan::default();
    for _ in 0..from.count()? {
        let mut splits = Vec::new();
        for _ in 0..from.count()? {
            splits.push(Split {
                path: from.text()?,
                start: from.u64()?,
                bytes: from.u64()?,
                file_bytes: from.u64()?,
                modified_ns: from.u64()?,
                packing: match from.u8()? {
                    0 => Packing::None,
                    1 => Packing::Gzip,
                    2 => Packing::Zstd,
                    other => return Err(BadBytes::tag("packing", other)),
                },
                tag: from.text()?,
            });
        }
        plan.maps.push(splits);
    }
    plan.cuts = from.option(|from| Ok(Cuts { path: from.text()?, crc: from.u32()? }))?;
    Ok(plan)
}
