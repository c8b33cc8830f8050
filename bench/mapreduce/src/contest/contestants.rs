//! Who takes part, and how each is told to do its work.
//!
//! Ours is driven as users drive it, with its defaults; P and the peers get two threads as well.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Settings, inputs::Inputs, process::Measured, works::Work};
use crate::{THREADS, text::RARE};

/// The memory of each slot, and of each thread of P, for the sort that spills.
const SPILLING_MEMORY: &str = "512MiB";

/// One who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Flotilla,
    P,
    DuckDb,
    Polars,
    SparkDataFrame,
    SparkRdd,
}

impl Who {
    pub(super) const ALL: [Self; 6] =
        [Self::Flotilla, Self::P, Self::DuckDb, Self::Polars, Self::SparkDataFrame, Self::SparkRdd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Flotilla => "Flotilla",
            Self::P => "P",
            Self::DuckDb => "DuckDB",
            Self::Polars => "Polars",
            Self::SparkDataFrame => "Spark DataFrame",
            Self::SparkRdd => "Spark RDD",
        }
    }

    /// The script of a peer; none for us and P.
    fn script(self) -> Option<&'static str> {
        match self {
            Self::Flotilla | Self::P => None,
            Self::DuckDb => Some("duckdb_run.py"),
            Self::Polars => Some("polars_run.py"),
            Self::SparkDataFrame => Some("spark_dataframe.py"),
            Self::SparkRdd => Some("spark_rdd.py"),
        }
    }

    pub(super) fn is_peer(self) -> bool {
        self.script().is_some()
    }

    /// Whether it can do this work. Python functions that sort a record at a time are nobody's way
    /// to sort with Spark.
    pub(super) fn does(self, work: Work) -> bool {
        match work {
            Work::Wc | Work::Grep => true,
            Work::Sort => self != Self::SparkRdd,
            Work::SortSpill | Work::Cat => !self.is_peer(),
        }
    }

    /// How it is told to; input and output are names below the root.
    ///
    /// # Errors
    /// That P is not there.
    pub(super) fn command(
        self,
        work: Work,
        settings: &Settings,
        inputs: &Inputs,
        (input, output): (&str, &str),
    ) -> Result<Command> {
        let (root, scratch) = (inputs.root(), inputs.scratch());
        let paths = [root.join(input), root.join(output)];
        let mut command = match self {
            Self::Flotilla => {
                let mut command = Command::new(&settings.flotilla);
                command.args(["mr", "--json", "run", "--local", "--slots", &THREADS.to_string()]);
                command.arg("--root").arg(root).args(ours(work));
                command.args(["--input", input, "--output", output]);
                command
            }
            Self::P => by_hand(work, &paths)?,
            Self::DuckDb | Self::Polars | Self::SparkDataFrame | Self::SparkRdd => {
                let mut command = Command::new(&settings.python);
                command.arg(settings.peers.join(self.script().expect("it is a peer")));
                command.arg(work.peers_name()).args(&paths);
                if work == Work::Grep {
                    command.arg(RARE);
                }
                // What they put aside goes where results go.
                command.env("SPARK_LOCAL_DIRS", &scratch).env("TMPDIR", &scratch);
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
        };
        command.current_dir(&scratch);
        Ok(command)
    }

    /// How long the work itself took: of a peer without its start, of which it tells.
    ///
    /// # Errors
    /// That it does not tell.
    pub(super) fn work_seconds(self, measured: &Measured) -> Result<f64> {
        self.told(measured, "seconds")
    }

    /// How long it took from its start on.
    ///
    /// # Errors
    /// That it does not tell.
    pub(super) fn seconds_with_start(self, measured: &Measured) -> Result<f64> {
        self.told(measured, "seconds_with_start")
    }

    fn told(self, measured: &Measured, what: &str) -> Result<f64> {
        if !self.is_peer() {
            return Ok(measured.seconds);
        }
        let line = measured.said.lines().last().unwrap_or_default();
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("{} says {line:?}", self.name()))?;
        value[what].as_f64().with_context(|| format!("{} does not tell {what}", self.name()))
    }
}

/// Our own flags.
fn ours(work: Work) -> Vec<String> {
    let pattern = format!("pattern={RARE}");
    let sort = ["--app", "sort", "-D", "key_bytes=10", "--input-format", "fixed:100"];
    let flags: Vec<&str> = match work {
        Work::Wc => vec!["--app", "wc"],
        Work::Sort => [&sort[..], &["--total-order"]].concat(),
        Work::SortSpill => [&sort[..], &["--total-order", "--memory", SPILLING_MEMORY]].concat(),
        Work::Grep => vec!["--app", "grep", "-D", &pattern, "--reduces", "0"],
        Work::Cat => vec!["--mapper", "cat", "--reduces", "0"],
    };
    flags.into_iter().map(str::to_owned).collect()
}

/// P, which is built with this program.
pub(super) fn by_hand(work: Work, paths: &[PathBuf; 2]) -> Result<Command> {
    let program = std::env::current_exe()?.with_file_name("p");
    anyhow::ensure!(
        program.exists(),
        "P is not at {}: cargo build --release -p flotilla-bench-mapreduce builds it",
        program.display()
    );
    let mut command = Command::new(program);
    match work {
        Work::Wc => command.arg("wc"),
        Work::Sort => command.arg("sort"),
        Work::SortSpill => command.args(["sort", "--memory", SPILLING_MEMORY]),
        Work::Grep => command.args(["grep", RARE]),
        Work::Cat => command.arg("cat"),
    };
    command.args(paths.iter().map(|path| -> &Path { path }));
    Ok(command)
}
