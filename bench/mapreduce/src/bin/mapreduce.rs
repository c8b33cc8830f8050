//! Our engine beside P, DuckDB, Polars and Spark, in one run.
//!
//! Tables for people go to standard output, or with `--json` values for programs; how far it is
//! goes to standard error.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use flotilla_bench_mapreduce::contest::{self, Contest, Settings};
use serde_json::json;

const HELP: &str = "\
Once:
  cargo build --release -p flotilla --bin flotilla
  python3 -m venv peers && peers/bin/pip install -r bench/mapreduce/peers/requirements.txt
  cargo build --release --manifest-path bench/Cargo.toml -p flotilla-bench-mapreduce

Then, on a quiet machine with 15 GB of room and nobody else on its disk:
  bench/target/release/mapreduce --flotilla target/release/flotilla --data /var/tmp/contest \\
      --python peers/bin/python --books BOOKS

All in a hundredth of the size, to see that it works:
  ... --scale 0.01 --rounds 1 --peer-rounds 1

Everybody has two threads. Inputs are in the page cache. Times of peers are without their start (a
virtual machine of Java takes seconds), which has a column of its own; ours and P's are from the
start of the process to its end, with results synchronised to the disk, which peers do not do.
Results are compared before any time counts.

Exit code 0: every bar is met; 1: one is not, or something went wrong.";

/// Where the peers' scripts were when this was built.
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");

/// Measures Flotilla's MapReduce beside its peers.
#[derive(Parser, Debug)]
#[command(version, after_long_help = HELP, after_help = "--help says how to begin.")]
struct Arguments {
    /// Our binary, of a release build
    #[arg(long, value_name = "PATH")]
    flotilla: PathBuf,
    /// Make data below this directory, up to 12 GiB at a time
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Measure only these, with commas between [default: all; labs only with --books]
    #[arg(long, value_delimiter = ',', value_name = "CONTEST")]
    only: Vec<Contest>,
    /// How often we and P do everything
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How often peers do; 0: they take no part
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    peer_rounds: u32,
    /// So much of all data and tasks; bars are meant for 1
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// The Python that has the peers (requirements.txt beside their scripts)
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// The directory of the peers' scripts
    #[arg(long, default_value = PEERS, hide_default_value = true)]
    peers: PathBuf,
    /// The directory of the labs' eight books
    #[arg(long, value_name = "DIR")]
    books: Option<PathBuf>,
    /// Keep inputs for another time
    #[arg(long)]
    keep_data: bool,
    /// Print values for programs
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mapreduce: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every bar is met.
fn run(arguments: Arguments) -> Result<bool> {
    ensure!(
        arguments.scale > 0.0 && arguments.scale <= 10.0,
        "--scale is {}, but must be above 0 and at most 10",
        arguments.scale
    );
    let mut contests = arguments.only;
    if contests.is_empty() {
        contests.extend(Contest::value_variants());
        contests.retain(|contest| *contest != Contest::Labs || arguments.books.is_some());
    }
    let settings = Settings {
        // They are started in other directories.
        flotilla: std::path::absolute(arguments.flotilla)?,
        data: arguments.data,
        scale: arguments.scale,
        rounds: arguments.rounds,
        peer_rounds: arguments.peer_rounds,
        python: match arguments.python.components().count() {
            1 => arguments.python,
            _ => std::path::absolute(arguments.python)?,
        },
        peers: std::path::absolute(arguments.peers)?,
        books: arguments.books,
        keep_data: arguments.keep_data,
    };
    ensure!(settings.flotilla.exists(), "there is no {}", settings.flotilla.display());
    let (mut is_well, mut values) = (true, Vec::new());
    if !arguments.json && settings.scale != 1.0 {
        println!("Scale {}: bars are meant for 1.\n", settings.scale);
    }
    contest::hold(&contests, &settings, |report| {
        is_well &= report.is_well();
        if arguments.json {
            values.push(report.value());
        } else {
            println!("{}", report.markdown());
        }
    })?;
    if arguments.json {
        println!("{}", json!({ "scale": settings.scale, "contests": values }));
    }
    Ok(is_well)
}
