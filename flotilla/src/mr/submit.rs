//! Turns flags into a job and submits it.

use client::{Error, JobClient};
use daemon::Failure;
use proto::mapreduce::{InputFormat, JobSpec, OutputFormat};

use super::{show, watch};
use crate::output::{Output, refused};
use crate::units;

/// The app whose records are whole files: it counts the files that a word is in.
const INDEXER: &str = "indexer";

/// The arguments of `flotilla mr submit`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// What to run: an app built into the workers, such as wc or indexer
    #[arg(long)]
    app: String,
    /// Input files below the shared root; patterns are expanded by the coordinator. Say it again
    /// for more
    #[arg(long = "input", value_name = "PATTERN", required = true, num_args = 1..)]
    inputs: Vec<String>,
    /// The directory for the results, below the shared root; it must not exist yet
    #[arg(long, value_name = "DIR")]
    output: String,
    /// How many reduce tasks, and so result files
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    reduces: u32,
    /// What a record is [default: whole for the app indexer, else text]
    #[arg(long, value_name = "FORMAT")]
    input_format: Option<Input>,
    /// How results are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output_format: Results,
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
    /// Makes submitting again with the same token answer with the same job
    #[arg(long)]
    token: Option<String>,
    /// Replace the results of an earlier job, as a whole, when this one has succeeded
    #[arg(long)]
    overwrite: bool,
    /// Show the progress and wait for the end
    #[arg(long)]
    wait: bool,
    /// For tests: how long each attempt waits before it reports
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "0",
          hide = true)]
    slow: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Input {
    /// A record is a line
    Text,
    /// A record is a file
    Whole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Results {
    /// part-00000 ...: key, TAB, value
    Text,
    /// mr-out-0 ...: key, space, value
    Lab,
}

/// Submits, and waits if that is wished.
pub(super) async fn run(
    jobs: &JobClient,
    mut arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    let token = arguments.token.take().unwrap_or_else(JobClient::token);
    let wait = arguments.wait;
    let submitted = jobs.submit(spec(arguments), token.clone()).await;
    let reply = submitted.map_err(|error| unsettled(error, &token))?;
    let existed = reply.existed;
    let job = reply.job.unwrap_or_default();
    if wait {
        return watch::to_the_end(jobs, job, output).await;
    }
    let mut value = show::value(&job);
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

fn spec(arguments: Arguments) -> JobSpec {
    let whole = arguments.app == INDEXER;
    let input = arguments.input_format.unwrap_or(if whole { Input::Whole } else { Input::Text });
    let input_format = match input {
        Input::Text => InputFormat::Text,
        Input::Whole => InputFormat::Whole,
    };
    let output_format = match arguments.output_format {
        Results::Text => OutputFormat::Text,
        Results::Lab => OutputFormat::Lab,
    };
    JobSpec {
        app: arguments.app,
        inputs: arguments.inputs,
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
    }
}

#[cfg(test)]
mod tests {
    use client::{Rejected, Unknown};
    use daemon::Code;

    use super::*;

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
