//! Turns flags into a job and submits it.

use std::collections::HashMap;

use client::{Error, JobClient};
use daemon::{Code, Failure};
use proto::mapreduce::{
    self as wire, Compression, InputFormat, JobSpec, LongLines, OutputFormat, Partitioner,
};

use super::{programs::Programs, show, told, watch};
use crate::output::{Output, refused};
use crate::units;

/// The app whose records are whole files: it counts the files that a word is in.
const INDEXER: &str = "indexer";

/// The arguments of `flotilla mr submit`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// What to run: an app of the workers, such as wc, indexer, grep, sort, top or join
    #[arg(long, required_unless_present_any = ["mapper", "reducer"],
          conflicts_with_all = ["mapper", "combiner", "reducer"])]
    app: Option<String>,
    #[command(flatten)]
    pub(super) programs: Programs,
    /// What the app is told; say it again for more
    #[arg(short = 'D', value_name = "NAME=VALUE")]
    define: Vec<String>,
    /// Input files below the shared root: patterns, directories, or @FILE with one on each line; a
    /// name before a pattern (people=data/*.tsv) is what the app knows its files by. Say it again
    /// for more
    #[arg(long = "input", value_name = "[TAG=]PATTERN", required = true, num_args = 1..)]
    inputs: Vec<String>,
    /// The directory for the results, below the shared root; it must not exist yet
    #[arg(long, value_name = "DIR")]
    output: String,
    /// How many reduce tasks, and so result files; 0: what maps write is the result
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    reduces: u32,
    /// What a record is: text (a line), kv (a line, key and value parted by a TAB), whole (a file),
    /// or fixed:N (N bytes) [default: whole for the app indexer, else text]
    #[arg(long, value_name = "FORMAT", value_parser = input_format)]
    input_format: Option<(InputFormat, u32)>,
    /// Leave out a carriage return at the end of a line
    #[arg(long)]
    strip_cr: bool,
    /// The longest line [default: 16MiB]
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "0",
          hide_default_value = true)]
    line_limit: u64,
    /// What becomes of longer lines
    #[arg(long, value_name = "WHAT", default_value = "error")]
    long_line: LongLine,
    /// How results are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output_format: Results,
    /// Compress each result file with zstd
    #[arg(long)]
    compress_output: bool,
    /// How what maps write for reduces is compressed [default: lz4 on a network file system]
    #[arg(long, value_name = "HOW")]
    compress: Option<Compress>,
    /// Which reduce gets a key: hash, or prefix:N (what begins with the same N bytes stays together)
    #[arg(long, value_name = "HOW", value_parser = prefix, default_value = "hash",
          conflicts_with = "total_order")]
    partitioner: u32,
    /// Put all result files together in order of keys, by a look at a sample of the inputs
    #[arg(long)]
    total_order: bool,
    /// How many keys to look at for that
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    sample: u32,
    /// A key of the sample is so many of a record's first bytes [default: as -D key_bytes says,
    /// else the key of a kv line, else all of the record]
    #[arg(long, value_name = "BYTES")]
    sample_key_bytes: Option<u32>,
    /// The most input for one map task [default: as the coordinator thinks fit]
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "0",
          hide_default_value = true)]
    split_size: u64,
    /// A name for people
    #[arg(long, default_value = "")]
    name: String,
    /// How often a task may fail before the job does [default: 4]
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    max_attempts: u32,
    /// How long a worker may be silent before its tasks are given to others [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "0",
          hide_default_value = true)]
    lease: u64,
    /// How long a task may make no progress [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "0",
          hide_default_value = true)]
    task_timeout: u64,
    /// Which job gets the next free slot: 0 to 9, the higher one first [default: 5]
    #[arg(long, value_name = "0..9", value_parser = clap::value_parser!(u32).range(0..=9))]
    priority: Option<u32>,
    /// Queues share the slots among jobs of one priority, by the weights that the coordinator has
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    queue: String,
    /// Begin when these jobs have succeeded; say it again for more
    #[arg(long, value_name = "JOB")]
    after: Vec<String>,
    /// Whether attempts that are much slower than others get a backup [default: on, but off with
    /// the output format lab]
    #[arg(long, value_name = "WHETHER")]
    speculation: Option<Speculate>,
    /// Leave out so many records at most that end their task again and again
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    max_skip: u32,
    /// Wait for ever for workers instead of failing without any
    #[arg(long)]
    wait_for_workers: bool,
    /// Keep results of reduces when a map is run again and its output differs
    #[arg(long)]
    nondeterministic_ok: bool,
    /// Makes submitting again with the same token answer with the same job
    #[arg(long)]
    token: Option<String>,
    /// Replace the results of an earlier job, as a whole, when this one has succeeded
    #[arg(long)]
    overwrite: bool,
    /// Show the progress and wait for the end
    #[arg(long)]
    pub(super) wait: bool,
    /// For tests: how long each attempt waits before it reports
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "0",
          hide = true)]
    slow: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Results {
    /// part-00000 ...: key, TAB, value
    Text,
    /// mr-out-0 ...: key, space, value
    Lab,
    /// part-00000 ...: key and value, nothing between or behind them
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LongLine {
    /// The job fails
    Error,
    /// It is left out, and counted
    Skip,
    /// It is cut, and counted
    Truncate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Compress {
    /// Not
    None,
    /// With LZ4
    Lz4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Speculate {
    /// They do
    On,
    /// They do not
    Off,
}

fn input_format(text: &str) -> Result<(InputFormat, u32), String> {
    match text {
        "text" => Ok((InputFormat::Text, 0)),
        "kv" => Ok((InputFormat::KeyValue, 0)),
        "whole" => Ok((InputFormat::Whole, 0)),
        _ => {
            let width = text.strip_prefix("fixed:").and_then(|width| width.parse().ok());
            let width = width.filter(|width| *width > 0);
            let width = width.ok_or("it is text, kv, whole, or fixed:N with N bytes a record")?;
            Ok((InputFormat::Fixed, width))
        }
    }
}

/// How many bytes a key's prefix has; 0: all of it.
fn prefix(text: &str) -> Result<u32, String> {
    if text == "hash" {
        return Ok(0);
    }
    let bytes = text.strip_prefix("prefix:").and_then(|bytes| bytes.parse().ok());
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "it is hash, or prefix:N with N bytes".to_owned())
}

/// Submits, and waits if that is wished.
pub(super) async fn run(
    jobs: &JobClient,
    mut arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    let token = arguments.token.take().unwrap_or_else(JobClient::token);
    let wait = arguments.wait;
    let programs = arguments.programs.clone();
    let mut spec = spec(arguments)?;
    spec.files = programs.send(jobs).await?;
    let submitted = jobs.submit(spec, token.clone()).await;
    let reply = submitted.map_err(|error| unsettled(error, &token))?;
    let existed = reply.existed;
    let job = reply.job.unwrap_or_default();
    if wait {
        return watch::to_the_end(jobs, job, output).await;
    }
    let mut value = told::job(&job);
    value["existed"] = existed.into();
    output.result(&job.id, &value)?;
    if !output.is_json() {
        eprintln!("{}; see how it does with: flotilla mr get {}", show::accepted(existed), job.id);
    }
    Ok(())
}

/// Why there is no job to tell of. Where nobody knows whether there is one, the token settles it.
fn unsettled(error: Error, token: &str) -> Failure {
    let unknown = matches!(error, Error::Unknown(_));
    let failure = refused(error);
    if !unknown {
        return failure;
    }
    let settle = "submit again, with the same flags and this token, to get the one job";
    Failure::new(failure.code(), format!("{failure}; {settle}: --token {token}"))
}

/// The job that the flags ask for.
///
/// # Errors
/// A wrong call, naming the flag.
pub(super) fn spec(arguments: Arguments) -> Result<JobSpec, Failure> {
    let whole = arguments.app.as_deref() == Some(INDEXER);
    let default = if whole { (InputFormat::Whole, 0) } else { (InputFormat::Text, 0) };
    let (input_format, record_bytes) = arguments.input_format.unwrap_or(default);
    let output_format = match arguments.output_format {
        Results::Text => OutputFormat::Text,
        Results::Lab => OutputFormat::Lab,
        Results::Raw => OutputFormat::Raw,
    };
    let args = definitions(&arguments.define)?;
    let key_bytes = args.get("key_bytes").and_then(|bytes| bytes.parse().ok());
    let (input_tags, inputs) = tagged(arguments.inputs);
    let partitioner = match arguments.partitioner {
        _ if arguments.total_order => Partitioner::Range,
        0 => Partitioner::Hash,
        _ => Partitioner::Prefix,
    };
    Ok(JobSpec {
        app: arguments.app.unwrap_or_default(),
        streaming: arguments.programs.streaming()?,
        inputs,
        output: arguments.output,
        reduces: arguments.reduces,
        input_format: input_format.into(),
        output_format: output_format.into(),
        split_bytes: arguments.split_size,
        lease_ms: arguments.lease,
        task_timeout_ms: arguments.task_timeout,
        max_attempts: arguments.max_attempts,
        name: arguments.name,
        slow_ms: arguments.slow,
        overwrite: arguments.overwrite,
        args,
        record_bytes,
        strip_cr: arguments.strip_cr,
        line_bytes_max: u32::try_from(arguments.line_limit).unwrap_or(u32::MAX),
        long_lines: long_lines(arguments.long_line).into(),
        partitioner: partitioner.into(),
        prefix_bytes: arguments.partitioner,
        samples: arguments.sample,
        sample_key_bytes: arguments.sample_key_bytes.or(key_bytes).unwrap_or(0),
        compression: compression(arguments.compress).into(),
        compress_output: arguments.compress_output,
        input_tags,
        priority: arguments.priority,
        queue: arguments.queue,
        speculation: speculation(arguments.speculation).into(),
        after: arguments.after,
        max_skip: arguments.max_skip,
        wait_for_workers: arguments.wait_for_workers,
        nondeterministic_ok: arguments.nondeterministic_ok,
        ..JobSpec::default()
    })
}

fn long_lines(what: LongLine) -> wire::LongLines {
    match what {
        LongLine::Error => LongLines::Fail,
        LongLine::Skip => LongLines::Skip,
        LongLine::Truncate => LongLines::Cut,
    }
}

fn speculation(whether: Option<Speculate>) -> wire::Speculation {
    match whether {
        None => wire::Speculation::Unspecified,
        Some(Speculate::On) => wire::Speculation::On,
        Some(Speculate::Off) => wire::Speculation::Off,
    }
}

fn compression(how: Option<Compress>) -> Compression {
    match how {
        None => Compression::Unspecified,
        Some(Compress::None) => Compression::None,
        Some(Compress::Lz4) => Compression::Lz4,
    }
}

pub(super) fn definitions(given: &[String]) -> Result<HashMap<String, String>, Failure> {
    let pair = |text: &String| {
        let parted = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = parted.ok_or_else(|| {
            Failure::new(Code::WrongCall, format!("-D {text}: it must be NAME=VALUE"))
        })?;
        Ok((name.to_owned(), value.to_owned()))
    };
    given.iter().map(pair).collect()
}

/// Tags and patterns, parted; no tags if no pattern has one. A tag is a word: whatever else stands
/// before an equals sign belongs to a path.
fn tagged(given: Vec<String>) -> (Vec<String>, Vec<String>) {
    let is_word = |tag: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        !tag.is_empty() && tag.bytes().all(is_part)
    };
    let parted = given.into_iter().map(|text| match text.split_once('=') {
        Some((tag, pattern)) if is_word(tag) => (tag.to_owned(), pattern.to_owned()),
        Some(_) | None => (String::new(), text),
    });
    let (tags, patterns): (Vec<String>, Vec<String>) = parted.unzip();
    if tags.iter().all(String::is_empty) { (Vec::new(), patterns) } else { (tags, patterns) }
}

#[cfg(test)]
mod tests {
    use client::{Rejected, Unknown};
    use daemon::Code;

    use super::*;

    #[test]
    fn a_tag_is_a_word_before_a_pattern() {
        let given = ["left=in/a=b.txt", "in/x=y/*.txt", "right=in"].map(str::to_owned);
        let (tags, patterns) = tagged(given.to_vec());
        assert_eq!(tags, ["left", "", "right"]);
        assert_eq!(patterns, ["in/a=b.txt", "in/x=y/*.txt", "in"]);
        assert_eq!(tagged(vec!["in".to_owned()]), (vec![], vec!["in".to_owned()]));
    }

    #[test]
    fn formats_and_partitioners_are_parsed_or_explained() {
        assert_eq!(input_format("fixed:100"), Ok((InputFormat::Fixed, 100)));
        assert_eq!(input_format("kv"), Ok((InputFormat::KeyValue, 0)));
        for bad in ["fixed:", "fixed:0", "fixed:-1", "csv", ""] {
            assert!(input_format(bad).unwrap_err().contains("fixed:N"), "{bad}");
        }
        assert_eq!((prefix("hash"), prefix("prefix:3")), (Ok(0), Ok(3)));
        assert!(prefix("prefix:0").is_err() && prefix("range").is_err());
        let refused = definitions(&["x".to_owned()]).unwrap_err();
        assert_eq!(refused.code(), Code::WrongCall);
    }

    #[test]
    fn an_unknown_outcome_names_the_token_that_settles_it() {
        let unknown = Error::Unknown(Unknown { reason: "no answer".to_owned() });
        let failure = unsettled(unknown, "0123");
        assert_eq!(failure.code(), Code::Unknown);
        assert!(failure.chain().ends_with("--token 0123"), "{}", failure.chain());
        let rejected = Error::Rejected(Rejected::Invalid("app".to_owned()));
        assert!(!unsettled(rejected, "0123").chain().contains("0123"));
    }
}
