//! `flotilla mr`: submits, watches, lists and cancels MapReduce jobs, and shows their results.
//!
//! [`programs`] are jobs' own programs, [`submit`] turns flags into a job, [`explain`] shows how it
//! would be cut, [`local`] runs one in this process, [`watch`] follows one to its end, [`tasks`] tells
//! what runs where, [`logs`] what it said there, [`show`] how a job is.

mod explain;
mod local;
mod logs;
mod programs;
mod results;
mod show;
mod submit;
mod tasks;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use client::{JobClient, Options};
use daemon::Failure;
use proto::mapreduce::{Job, ListRequest};
use serde_json::{Value, json};

use crate::output::{Output, malformed, refused};
use crate::units;
use crate::whereabouts::Coordinator;

pub(crate) use mr_coordinator::told::{self, explain, state_name};
pub(crate) use watch::has_ended;

pub(crate) const HELP: &str = "\
Examples:
  flotilla mr submit --app wc --input 'books/*.txt' --output counts --wait
  flotilla mr submit --app indexer --input 'books/*.txt' --output index --reduces 4
  flotilla mr run --local --app sort --total-order --input log.txt --output sorted
  flotilla mr submit --mapper ./m.py --reducer ./r.py --file m.py --file r.py --input log --output out
  flotilla mr test --mapper ./m.py --reducer ./r.py --file m.py --file r.py < sample
  flotilla mr explain --app wc --input 'books/*.txt' --output counts --root shared
  flotilla mr list
  flotilla mr get JOB
  flotilla mr watch JOB
  flotilla mr logs JOB map-3
  flotilla mr cat JOB | sort -k2 -nr | head
  flotilla mr get-output JOB counts.txt --merge
  flotilla mr cancel JOB
  flotilla mr history

Paths are below the root that coordinator and workers share.";

/// The most jobs of one page.
const PAGE_JOBS: u32 = 100;

/// The arguments of `flotilla mr`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    coordinator: Coordinator,
    /// How long to try
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "10s",
          global = true)]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Submit a job; prints its id, or with --wait how it ended
    Submit(Box<submit::Arguments>),
    /// Run a job and wait for its end; with --local in this process, without a cluster
    Run(Box<Run>),
    /// Run programs on standard input as a job would, and print their results: mapper, sort, reducer
    Test(programs::Test),
    /// Show what a job would read and how that would be cut, without running or writing anything
    Explain(Box<explain::Explain>),
    /// List jobs, newest first
    List {
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: u32,
    },
    /// List the jobs that have ended, newest first: how each went
    History {
        /// At most so many; the coordinator remembers the last 1,000
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20)]
        limit: u32,
    },
    /// Show a job
    Get {
        /// Its id
        job: String,
        /// Wait for its end
        #[arg(long)]
        wait: bool,
    },
    /// Show a job's tasks: where each stands, and how its last attempt went
    Tasks {
        /// The job's id
        job: String,
        /// Only tasks that had a failure
        #[arg(long)]
        failed: bool,
    },
    /// List the workers
    Workers,
    /// Tell a worker to end what it runs and leave
    Drain {
        /// Its name
        worker: String,
    },
    /// Cancel a job; cancelling again changes nothing
    Cancel {
        /// Its id
        job: String,
    },
    /// Follow a job to its end: a line of progress, then how it ended
    Watch {
        /// Its id
        job: String,
    },
    /// Show what a job has counted, of committed tasks
    Counters {
        /// The job's id
        job: String,
    },
    /// Print what a job's attempts wrote to standard error, task after task
    #[command(after_help = logs::HELP)]
    Logs(logs::Logs),
    /// Print the results of a job, partition after partition
    Cat(results::Where),
    /// Print the first lines of a job's results
    Head {
        #[command(flatten)]
        of: results::Where,
        /// How many
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10)]
        lines: u64,
    },
    /// Copy the results of a job to a new directory, or with --merge to one new file
    GetOutput {
        #[command(flatten)]
        of: results::Where,
        /// The directory or file, which must not exist
        target: PathBuf,
        /// Unpack all results, one behind the other, into one file
        #[arg(long)]
        merge: bool,
    },
}

#[derive(clap::Args, Clone, Debug)]
struct Run {
    #[command(flatten)]
    job: submit::Arguments,
    #[command(flatten)]
    here: local::Here,
}

/// Executes one command.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    if let Command::Run(run) = &arguments.command
        && run.here.local
    {
        return local::run(run.job.clone(), &run.here, output);
    }
    if let Command::Test(test) = &arguments.command {
        return programs::test(test, output);
    }
    let options = Options::with_deadline(Duration::from_millis(arguments.timeout));
    let jobs = JobClient::connect(arguments.coordinator.resolve()?, options).map_err(malformed)?;
    match arguments.command {
        Command::Submit(submit) => submit::run(&jobs, *submit, output).await,
        Command::Run(run) => {
            let mut submit = run.job;
            submit.wait = true;
            submit::run(&jobs, submit, output).await
        }
        Command::Test(test) => programs::test(&test, output),
        Command::Explain(explain) => explain::run(*explain, output),
        Command::List { limit } => {
            let found = newest(&jobs, limit, |_| true).await?;
            told_all(&found, &show::table(&found), output)
        }
        Command::History { limit } => {
            let found = newest(&jobs, limit, |job| has_ended(job.state())).await?;
            told_all(&found, &show::history(&found), output)
        }
        Command::Get { job, wait } => {
            let found = jobs.get(&job, 0).await.map_err(refused)?;
            if wait {
                return watch::to_the_end(&jobs, found, output).await;
            }
            output.result(&show::job(&found), &told::job(&found))
        }
        Command::Tasks { job, failed } => tasks::list(&jobs, &job, failed, output).await,
        Command::Workers => tasks::workers(&jobs, output).await,
        Command::Drain { worker } => tasks::drain(&jobs, &worker, output).await,
        Command::Cancel { job } => {
            let found = jobs.cancel(&job).await.map_err(refused)?;
            let text = format!("{} is {}", found.id, state_name(found.state()));
            output.result(&text, &told::job(&found))
        }
        Command::Watch { job } => {
            let found = jobs.get(&job, 0).await.map_err(refused)?;
            watch::to_the_end(&jobs, found, output).await
        }
        Command::Counters { job } => results::counters(&jobs, &job, output).await,
        Command::Logs(logs) => logs::print(&jobs, &logs, output).await,
        Command::Cat(of) => results::cat(&jobs, &of).await,
        Command::Head { of, lines } => results::head(&jobs, &of, lines).await,
        Command::GetOutput { of, target, merge } => {
            results::get_output(&jobs, &of, &target, merge, output).await
        }
    }
}

/// The newest jobs, at most so many, of those that are wanted.
async fn newest(
    jobs: &JobClient,
    limit: u32,
    wanted: impl Fn(&Job) -> bool,
) -> Result<Vec<Job>, Failure> {
    let limit = limit as usize;
    let mut found = Vec::new();
    let mut page_token = String::new();
    while found.len() < limit {
        let request = ListRequest { limit: PAGE_JOBS, page_token };
        let reply = jobs.list(request).await.map_err(refused)?;
        found.extend(reply.jobs.into_iter().filter(&wanted));
        page_token = reply.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    found.truncate(limit);
    Ok(found)
}

fn told_all(jobs: &[Job], text: &str, output: Output) -> Result<(), Failure> {
    let values: Vec<Value> = jobs.iter().map(told::job).collect();
    output.result(text, &json!({ "jobs": values }))
}
