//! The works that everybody can be given: in rounds, in turns within a round, and each result is
//! looked at.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Settings,
    contestants::Who,
    inputs::{Data, Inputs},
    process::{self, Measured},
    report::{Bar, Report, median, seconds},
};
use crate::{
    THREADS,
    digest::{Digest, Form},
    sizes,
    text::RARE,
};

/// A work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Wc,
    Sort,
    SortSpill,
    Grep,
    Cat,
}

/// What must hold of a work.
#[derive(Clone, Copy, Debug)]
enum Aim {
    /// P's time as a part of ours is at least this.
    OfP(f64),
    /// Somebody's time is at least so many of ours.
    Times(Who, f64),
    /// So much input a second and core, in MB.
    MegabytesPerCore(f64),
}

/// Somebody's rounds.
#[derive(Debug)]
struct Rounds {
    who: Who,
    measured: Vec<Measured>,
    /// It fails, or is wrong: it is asked no more.
    trouble: Option<String>,
}

impl Work {
    /// What peers call it.
    pub(super) fn peers_name(self) -> &'static str {
        match self {
            Self::Wc => "wc",
            Self::Sort | Self::SortSpill => "sort",
            Self::Grep => "grep",
            Self::Cat => "cat",
        }
    }

    pub(super) fn data(self) -> Data {
        match self {
            Self::Wc | Self::Grep | Self::Cat => Data::Text,
            Self::Sort => Data::Records,
            Self::SortSpill => Data::ManyRecords,
        }
    }

    /// How much is written for each byte of input, passing files included.
    fn written(self) -> u64 {
        match self {
            Self::Wc | Self::Grep | Self::Cat => 1,
            Self::Sort | Self::SortSpill => 2,
        }
    }

    fn title(self, bytes: u64) -> String {
        let bytes = sizes::shown(bytes);
        match self {
            Self::Wc => format!("wc: words of {bytes} of Zipf text"),
            Self::Sort => format!("sort: {bytes} of records to total order"),
            Self::SortSpill => format!("sort-spill: {bytes} of records, 512 MiB a slot"),
            Self::Grep => format!("grep: {bytes} of text, one line in 10,000"),
            Self::Cat => format!("cat: {bytes} of text through the program cat"),
        }
    }

    /// What a result looks like.
    fn form(self) -> Form {
        match self {
            Self::Wc => Form::Counts,
            Self::Sort | Self::SortSpill => Form::Sorted,
            Self::Grep | Self::Cat => Form::Lines,
        }
    }

    /// What the input says of the result; of the word count nothing, which is P's to tell.
    fn of_input(self) -> Form {
        match self {
            Self::Grep => Form::Holding(RARE.to_owned()),
            Self::Wc | Self::Sort | Self::SortSpill | Self::Cat => Form::Lines,
        }
    }

    fn aims(self) -> &'static [Aim] {
        match self {
            Self::Wc => &[
                Aim::Times(Who::DuckDb, 1.0),
                Aim::Times(Who::SparkDataFrame, 8.0),
                Aim::OfP(0.85),
            ],
            Self::Sort => &[Aim::Times(Who::SparkDataFrame, 6.0), Aim::OfP(0.6)],
            Self::SortSpill => &[Aim::OfP(0.6)],
            Self::Grep => &[Aim::OfP(0.85)],
            Self::Cat => &[Aim::MegabytesPerCore(150.0)],
        }
    }
}

/// Has everybody do a work.
///
/// # Errors
/// That there is no room, or that P, by whom others are measured, is not there.
pub(super) fn run(work: Work, settings: &Settings, inputs: &Inputs) -> Result<Report> {
    let (input, bytes) = inputs.need(work.data())?;
    inputs.room_for(bytes * work.written())?;
    // This also brings the input into the page cache.
    let of_input = Digest::of(&inputs.root().join(&input), &work.of_input())?;
    let expected = match work {
        Work::Wc => counted_by_p(settings, inputs, &input)?,
        Work::Sort | Work::SortSpill | Work::Grep | Work::Cat => of_input,
    };
    let mut contest: Vec<Rounds> = Who::ALL
        .into_iter()
        .filter(|who| who.does(work) && settings.asks(*who))
        .map(|who| Rounds { who, measured: Vec::new(), trouble: None })
        .collect();
    for round in 0..settings.rounds.max(settings.peer_rounds) {
        for rounds in &mut contest {
            let wanted = if rounds.who.is_peer() { settings.peer_rounds } else { settings.rounds };
            if round >= wanted || rounds.trouble.is_some() {
                continue;
            }
            match one_round(rounds.who, work, settings, inputs, &input, Some(expected)) {
                Ok((measured, _)) => {
                    let took = seconds(measured.seconds);
                    eprintln!("{} {} of {wanted}: {took} s", rounds.who.name(), round + 1);
                    rounds.measured.push(measured);
                }
                Err(error) => rounds.trouble = Some(format!("{}: {error:#}", rounds.who.name())),
            }
            inputs.clear_scratch()?;
        }
        // Nobody is always the one behind the same other.
        contest.rotate_left(1);
    }
    contest.sort_by_key(|rounds| Who::ALL.iter().position(|who| *who == rounds.who));
    report(work, bytes, &contest)
}

/// What P counts, which peers then have to count as well.
fn counted_by_p(settings: &Settings, inputs: &Inputs, input: &str) -> Result<Digest> {
    let (_, digest) = one_round(Who::P, Work::Wc, settings, inputs, input, None)?;
    inputs.clear_scratch()?;
    Ok(digest)
}

fn one_round(
    who: Who,
    work: Work,
    settings: &Settings,
    inputs: &Inputs,
    input: &str,
    expected: Option<Digest>,
) -> Result<(Measured, Digest)> {
    let output = Inputs::scratch_name("output");
    let mut command = who.command(work, settings, inputs, (input, &output))?;
    let measured = process::run(&mut command, &inputs.scratch())?;
    who.work_seconds(&measured)?;
    let digest = looked_at(&inputs.root().join(&output), &work.form(), expected)?;
    Ok((measured, digest))
}

/// The digest of results, which is as expected.
///
/// # Errors
/// That it is another one.
pub(super) fn looked_at(output: &Path, form: &Form, expected: Option<Digest>) -> Result<Digest> {
    let digest = Digest::of(output, form)?;
    if let Some(expected) = expected {
        ensure!(
            digest == expected,
            "its results are wrong: {} lines, and {} are expected, or their bytes differ",
            digest.lines,
            expected.lines
        );
    }
    Ok(digest)
}

impl Rounds {
    fn median(&self, of: impl Fn(&Measured) -> f64) -> Option<f64> {
        median(self.measured.iter().map(of))
    }

    fn work(&self) -> Option<f64> {
        self.median(|it| self.who.work_seconds(it).unwrap_or(it.seconds))
    }

    fn row(&self, ours: Option<f64>, p: Option<f64>) -> Vec<String> {
        let told = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), seconds);
        let ratio = |over: Option<f64>, under: Option<f64>| match (over, under) {
            (Some(over), Some(under)) => format!("{:.2}", over / under),
            _ => "-".to_owned(),
        };
        let memory = |bytes: Option<f64>| {
            bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.0}", bytes / (1 << 20) as f64))
        };
        let with_start = |it: &Measured| self.who.seconds_with_start(it).unwrap_or(it.seconds);
        vec![
            self.who.name().to_owned(),
            self.measured.len().to_string(),
            told(self.work()),
            told(self.median(with_start)),
            told(self.median(|it| it.cpu_seconds)),
            memory(self.median(|it| it.memory.greatest_bytes as f64)),
            memory(self.median(|it| it.memory.sum_bytes as f64)),
            ratio(p, self.work()),
            ratio(self.work(), ours),
        ]
    }

    fn value(&self) -> Value {
        let rounds = self.measured.iter().map(|it| {
            json!({
                "seconds": self.who.work_seconds(it).ok(),
                "seconds_with_start": self.who.seconds_with_start(it).ok(),
                "cpu_seconds": it.cpu_seconds,
                "greatest_bytes": it.memory.greatest_bytes,
                "sum_bytes": it.memory.sum_bytes,
            })
        });
        json!({ "who": self.who.name(), "rounds": rounds.collect::<Vec<_>>() })
    }
}

fn report(work: Work, bytes: u64, contest: &[Rounds]) -> Result<Report> {
    let of = |who| contest.iter().find(|rounds| rounds.who == who).and_then(Rounds::work);
    let (ours, p) = (of(Who::Flotilla), of(Who::P));
    let head = [
        "",
        "rounds",
        "s",
        "s with start",
        "CPU s",
        "greatest process MiB",
        "all MiB",
        "P's time / its",
        "its time / ours",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(contest.iter().map(|rounds| rounds.row(ours, p)));
    let bars = work.aims().iter().map(|aim| match *aim {
        Aim::OfP(least) => {
            let what = format!("P's time / ours, at least {least}");
            let found = p.zip(ours).map(|(p, ours)| p / ours);
            found.map_or_else(|| Bar::unknown(&what), |found| Bar::at_least(&what, least, found))
        }
        Aim::Times(who, least) => {
            let what = format!("{}'s time / ours, at least {least}", who.name());
            let found = of(who).zip(ours).map(|(its, ours)| its / ours);
            found.map_or_else(|| Bar::unknown(&what), |found| Bar::at_least(&what, least, found))
        }
        Aim::MegabytesPerCore(least) => {
            let what = format!("MB a second and core, at least {least}");
            let found = ours.map(|ours| bytes as f64 / 1e6 / ours / THREADS as f64);
            found.map_or_else(|| Bar::unknown(&what), |found| Bar::at_least(&what, least, found))
        }
    });
    let bars = bars.collect();
    let troubles = contest.iter().filter_map(|rounds| rounds.trouble.clone()).collect();
    let figures = json!({
        "bytes": bytes,
        "contestants": contest.iter().map(Rounds::value).collect::<Vec<_>>(),
    });
    Ok(Report { title: work.title(bytes), rows, bars, troubles, figures })
}
