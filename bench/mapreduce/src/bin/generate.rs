//! Writes the data that everybody is measured with: `generate text` and `generate records`, a
//! directory of files each.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use flotilla_bench_mapreduce::{
    pieces::{FILES_DEFAULT, Pieces},
    records::{self, RECORD_BYTES},
    sizes,
    text::{VOCABULARY_DEFAULT, Vocabulary},
};

#[derive(Parser, Debug)]
enum Arguments {
    /// Lines of words by Zipf's law
    Text {
        #[command(flatten)]
        common: Common,
        /// How many distinct words there are
        #[arg(long, default_value_t = VOCABULARY_DEFAULT)]
        vocabulary: u32,
    },
    /// Records of 100 bytes with random keys
    Records {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args, Debug)]
struct Common {
    /// The directory, which does not exist yet
    directory: PathBuf,
    /// How much data, such as 256MiB
    #[arg(long, value_parser = sizes::parse, default_value = "1GiB")]
    bytes: u64,
    /// Over how many files they are spread
    #[arg(long, default_value_t = FILES_DEFAULT)]
    files: u64,
    /// The same seed gives the same data
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Common {
    fn pieces(&self, unit_bytes: u64) -> Pieces {
        let Self { directory, bytes, files, .. } = self;
        Pieces { directory: directory.clone(), bytes: *bytes, files: *files, unit_bytes }
    }
}

fn main() -> ExitCode {
    let written = match Arguments::parse() {
        Arguments::Text { common, vocabulary } => {
            let vocabulary = Vocabulary::new(vocabulary, common.seed);
            common
                .pieces(1)
                .write(|piece, out| vocabulary.write(common.seed, piece.number, piece.bytes, out))
        }
        Arguments::Records { common } => {
            let unit = RECORD_BYTES as u64;
            common.pieces(unit).write(|piece, out| {
                let (first, count) = (piece.offset / unit, piece.bytes / unit);
                records::write(common.seed, piece.number, first, count, out)
            })
        }
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {error:#}");
            ExitCode::FAILURE
        }
    }
}
