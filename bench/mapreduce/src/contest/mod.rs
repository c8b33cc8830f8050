//! The contest: our engine beside P and its peers, in one run on one machine.
//!
//! Decides what is measured and what must hold of it. [`works`] are what everybody can do;
//! [`jobs`], [`memory`] and [`faults`] are about our own clusters. Medians of rounds in turns are
//! what counts: machines are noisy, and that way the noise is everybody's.

mod cluster;
mod contestants;
mod faults;
mod inputs;
mod jobs;
mod memory;
mod process;
mod report;
mod works;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

pub use self::report::{Bar, Report};
use self::{
    contestants::Who,
    inputs::{Data, Inputs},
    works::Work,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Contest {
    /// Words of 1 GiB of Zipf text are counted
    Wc,
    /// Lines of 1 GiB of text that hold a literal are found
    Grep,
    /// 1 GiB of text goes through the program cat
    Cat,
    /// 1 GiB of records is sorted to total order
    Sort,
    /// 4 GiB of records are, with 512 MiB for each of two slots
    SortSpill,
    /// The labs' word count, from the submission to its success, on warm workers
    Labs,
    /// 10,000 empty tasks
    Tasks,
    /// The memory of a worker, for ten million values of one key and for keys of 8 MiB
    Memory,
    /// One of two workers is killed, or slowed ten times
    Faults,
}

/// What a contest is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our release binary.
    pub flotilla: PathBuf,
    /// Where data are made.
    pub data: PathBuf,
    /// So much of the data, and of the tasks.
    pub scale: f64,
    /// How often we and P do everything.
    pub rounds: u32,
    /// How often peers do.
    pub peer_rounds: u32,
    /// The Python that has the peers.
    pub python: PathBuf,
    /// The directory of the peers' scripts.
    pub peers: PathBuf,
    /// The directory of the labs' books.
    pub books: Option<PathBuf>,
    /// Whether inputs are kept for another time.
    pub keep_data: bool,
}

impl Settings {
    /// Whether somebody takes part.
    fn asks(&self, who: Who) -> bool {
        !who.is_peer() || self.peer_rounds > 0
    }
}

impl Contest {
    /// The data that it reads, if others read them, too.
    fn data(self) -> Option<Data> {
        match self {
            Self::Wc | Self::Grep | Self::Cat | Self::Faults => Some(Data::Text),
            Self::Sort => Some(Data::Records),
            Self::SortSpill => Some(Data::ManyRecords),
            Self::Labs | Self::Tasks | Self::Memory => None,
        }
    }

    fn run(self, settings: &Settings, inputs: &Inputs) -> Result<Report> {
        match self {
            Self::Wc => works::run(Work::Wc, settings, inputs),
            Self::Grep => works::run(Work::Grep, settings, inputs),
            Self::Cat => works::run(Work::Cat, settings, inputs),
            Self::Sort => works::run(Work::Sort, settings, inputs),
            Self::SortSpill => works::run(Work::SortSpill, settings, inputs),
            Self::Labs => {
                let books = settings.books.as_deref();
                jobs::labs(settings, inputs, books.context("it needs the labs' books: --books")?)
            }
            Self::Tasks => jobs::tasks(settings, inputs),
            Self::Memory => memory::run(settings, inputs),
            Self::Faults => faults::run(settings, inputs),
        }
    }
}

/// Holds contests, one after the other, and hands on what each has found.
///
/// # Errors
/// That data cannot be made or thrown away. A contest that fails says so in its report.
pub fn hold(
    contests: &[Contest],
    settings: &Settings,
    mut tell: impl FnMut(&Report),
) -> Result<()> {
    process::adopt()?;
    let inputs = Inputs::open(&settings.data, settings.scale, settings.keep_data)?;
    for (number, contest) in contests.iter().enumerate() {
        let name =
            contest.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
        eprintln!("# {name}");
        let report =
            contest.run(settings, &inputs).unwrap_or_else(|error| Report::failed(&name, &error));
        tell(&report);
        inputs.clear_scratch()?;
        let needed_later = |data| contests[number + 1..].iter().any(|it| it.data() == Some(data));
        if let Some(data) = contest.data().filter(|&data| !needed_later(data)) {
            inputs.release(data)?;
        }
    }
    Ok(())
}
