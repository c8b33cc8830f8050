//! Texts to count: the public corpus where it is, and a generated one everywhere; and an independent
//! count, written without regard for speed.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its share")]

pub mod coordinator;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use mr_worker::{
    app::Program,
    apps,
    args::Args,
    input::{Packing, Piece, Reading, modified_ns},
    local::{LocalJob, LocalResult},
    part::{PartFormat, PartStyle},
    partition::Partitioning,
    record::Records,
    run::Codec,
    words::is_letter,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// The folder of texts and expected results beside the project, if there is one.
pub fn shared_data() -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/data"))
        .find(|folder| folder.join("gutenberg").is_dir());
    if found.is_none() {
        eprintln!("skipped: there is no shared/data/gutenberg in any folder above");
    }
    found
}

/// The files of a folder by name.
pub fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut files: Vec<(String, PathBuf)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "txt"))
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect();
    files.sort();
    files
}

/// Writes texts of words of several scripts, odd bytes and long lines among them.
pub fn generate(folder: &Path, seed: u64, documents: usize, words: usize) {
    const BETWEEN: [&[u8]; 9] =
        [b" ", b" ", b"\n", b", ", b"'", b"\r\n", b"\n\n", b"\xff", b"7\xe2\x82"];
    let mut rng = StdRng::seed_from_u64(seed);
    for document in 0..documents {
        let mut text = Vec::new();
        for _ in 0..words {
            // Squared, so that some words are frequent and many are rare.
            let rank: u32 = rng.random_range(0..60);
            text.extend_from_slice(word(rank * rank).as_bytes());
            text.extend_from_slice(BETWEEN[rng.random_range(0..BETWEEN.len())]);
        }
        fs::write(folder.join(format!("doc-{document}.txt")), text).unwrap();
    }
}

fn word(mut number: u32) -> String {
    const SYLLABLES: [&str; 10] = ["a", "be", "Zo", "tion", "é", "ж", "中文", "ship", "fl", "oT"];
    let mut word = String::new();
    loop {
        word.push_str(SYLLABLES[(number % 10) as usize]);
        number /= 10;
        if number == 0 {
            return word;
        }
    }
}

/// How often each word occurs, and in which documents.
pub type Index = BTreeMap<String, (u64, BTreeSet<String>)>;

/// Counts by the definition.
pub fn naive_index(inputs: &[(String, PathBuf)]) -> Index {
    let mut index = Index::new();
    for (document, path) in inputs {
        let text = fs::read(path).unwrap();
        for piece in String::from_utf8_lossy(&text).split(|character| !is_letter(character)) {
            if !piece.is_empty() {
                let (count, documents) = index.entry(piece.to_owned()).or_default();
                *count += 1;
                documents.insert(document.clone());
            }
        }
    }
    index
}

/// What `wc` makes of it, in key order.
pub fn wc_lines(index: &Index) -> Vec<String> {
    index.iter().map(|(word, (count, _))| format!("{word} {count}")).collect()
}

/// What `indexer` makes of it, in key order.
pub fn indexer_lines(index: &Index) -> Vec<String> {
    index
        .iter()
        .map(|(word, (_, documents))| {
            let names: Vec<&str> = documents.iter().map(String::as_str).collect();
            format!("{word} {} {}", names.len(), names.join(","))
        })
        .collect()
}

/// The lines of all parts, sorted by bytes.
pub fn sorted_lines(parts: &[PathBuf]) -> Vec<String> {
    let mut lines: Vec<String> = parts
        .iter()
        .flat_map(|part| {
            fs::read_to_string(part).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    lines.sort_unstable_by(|left, right| key(left).cmp(key(right)));
    lines
}

fn key(line: &str) -> &str {
    line.split(' ').next().unwrap()
}

/// A job with the tests' usual choices: a map for each file.
pub fn job<'a>(app: &str, inputs: &[(String, PathBuf)], dir: &'a Path) -> LocalJob<'a> {
    let program: &dyn Program = apps::find(apps::BUILT_IN, app).unwrap();
    LocalJob {
        program,
        args: Args::default(),
        maps: cut(inputs, u64::MAX),
        reading: Reading::of(Records::Files),
        partitions: 10,
        partitioning: Partitioning::Hash,
        style: PartStyle { format: PartFormat::Lab, zstd: false, durable: false },
        codec: Codec::None,
        memory_bytes: 64 << 20,
        slots: 2,
        dir,
    }
}

/// The same job, of lines in pieces of so many bytes.
pub fn by_lines<'a>(job: LocalJob<'a>, inputs: &[(String, PathBuf)], split: u64) -> LocalJob<'a> {
    LocalJob { reading: Reading::of(Records::LINES), maps: cut(inputs, split), ..job }
}

/// A map for each piece of at most so many bytes.
pub fn cut(inputs: &[(String, PathBuf)], split: u64) -> Vec<Vec<Piece>> {
    inputs.iter().flat_map(|(document, path)| pieces(document, path, split)).collect()
}

fn pieces(document: &str, path: &Path, split: u64) -> Vec<Vec<Piece>> {
    // One that is missing has the size that it was planned with.
    let metadata = fs::metadata(path).ok();
    let size = metadata.as_ref().map_or(1, fs::Metadata::len);
    let piece = |number: u64| Piece {
        document: document.to_owned(),
        tag: String::new(),
        path: path.to_owned(),
        start: number * split,
        bytes: split.min(size - number * split),
        file_bytes: size,
        modified_ns: metadata.as_ref().map_or(0, modified_ns),
        packing: Packing::None,
    };
    (0..size.div_ceil(split).max(1)).map(|number| vec![piece(number)]).collect()
}

/// Runs a job that has to succeed.
pub fn run(job: &LocalJob<'_>) -> LocalResult {
    job.run(&|_, _, _| {}).unwrap()
}

/// The bytes of every part.
pub fn part_bytes(result: &LocalResult) -> Vec<Vec<u8>> {
    result.parts.iter().map(|part| fs::read(part).unwrap()).collect()
}
