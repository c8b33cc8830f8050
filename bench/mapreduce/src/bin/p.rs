//! P: the same work as the engine's, by hand, in two threads and as fast as we can make it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use flotilla_bench_mapreduce::{
    cat, count, grep,
    output::{Durability, Output},
    sizes, sort,
};

#[derive(Parser, Debug)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
    /// Leave results to the page cache
    #[arg(long, global = true)]
    no_sync: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Work {
    /// Count words
    Wc {
        #[command(flatten)]
        paths: Paths,
        /// How many files of results
        #[arg(long, default_value_t = 8)]
        parts: usize,
    },
    /// Sort records of 100 bytes by their first ten
    Sort {
        #[command(flatten)]
        paths: Paths,
        /// How many files of results
        #[arg(long, default_value_t = 8)]
        parts: usize,
        /// The memory of each thread, such as 512MiB; without it everything is sorted in memory
        #[arg(long, value_parser = sizes::parse)]
        memory: Option<u64>,
    },
    /// Find the lines that hold a literal
    Grep {
        /// The literal
        pattern: String,
        #[command(flatten)]
        paths: Paths,
    },
    /// Pass all lines through the program cat
    Cat {
        #[command(flatten)]
        paths: Paths,
    },
}

#[derive(clap::Args, Debug)]
struct Paths {
    /// The directory of the input
    input: PathBuf,
    /// The directory of the results, which does not exist yet
    output: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("p: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let durability = if arguments.no_sync { Durability::Cached } else { Durability::Synced };
    let output = |paths: &Paths| Output::create(&paths.output, durability);
    match &arguments.work {
        Work::Wc { paths, parts } => count::run(&paths.input, output(paths)?, *parts),
        Work::Sort { paths, parts, memory } => {
            sort::run(&paths.input, output(paths)?, *parts, *memory)
        }
        Work::Grep { paths, pattern } => {
            grep::run(&paths.input, output(paths)?, pattern.as_bytes())
        }
        Work::Cat { paths } => cat::run(&paths.input, output(paths)?),
    }
}
