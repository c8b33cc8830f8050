//! The built-in apps and apps of one's own, against what they should come to by definition.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use mr_worker::{
    input::{Packing, Reading},
    local::{LocalJob, LocalResult},
    outcome::MAP_OUTPUT_RESULTS,
    part::{PartFormat, PartStyle},
    partition::Partitioning,
    prelude::*,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use support::{by_lines, cut, files, job, part_bytes, run};
use tempfile::{TempDir, tempdir};

/// Texts in a folder of their own, by name.
fn texts(of: &[(&str, &str)]) -> (TempDir, Vec<(String, PathBuf)>) {
    let dir = tempdir().unwrap();
    for (name, text) in of {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let inputs = files(dir.path());
    (dir, inputs)
}

fn lines<'a>(app: &str, inputs: &[(String, PathBuf)], dir: &'a Path) -> LocalJob<'a> {
    let style = PartStyle { format: PartFormat::Text, zstd: false, durable: false };
    LocalJob { style, ..by_lines(job(app, inputs, dir), inputs, 100) }
}

fn args(of: &[(&str, &str)]) -> Args {
    of.iter().map(|(name, value)| (*name, *value)).collect()
}

fn all(result: &LocalResult) -> String {
    String::from_utf8(part_bytes(result).concat()).unwrap()
}

fn refused(job: &LocalJob<'_>) -> String {
    match job.run(&|_, _, _| {}).unwrap_err() {
        Failure::User { message, permanent: true, .. } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn grep_finds_what_a_search_line_by_line_finds() {
    let mut rng = StdRng::seed_from_u64(5);
    let mut text = String::new();
    for _ in 0..3_000 {
        let words = ["needle", "need", "le", "", "NEEDLE", "x needle y"];
        text.push_str(words[rng.random_range(0..words.len())]);
        text.push_str(["\n", " ", "\n\n", "\r\n"][rng.random_range(0..4)]);
    }
    let (_dir, inputs) = texts(&[("a.txt", &text), ("b.txt", "needle"), ("c.txt", "none\n")]);
    let holds = |line: &&str| line.contains("needle");
    let whole: Vec<&str> = text.split('\n').collect();
    let ends = usize::from(text.ends_with('\n'));
    let found = whole[..whole.len() - ends].iter().copied().filter(holds);
    let expected: String = found.chain(["needle"]).map(|line| format!("{line}\n")).collect();
    for (pattern, regex) in [("needle", "false"), ("ne{2}dle", "true")] {
        for partitions in [0, 1] {
            let dir = tempdir().unwrap();
            let mut grep = lines("grep", &inputs, dir.path());
            grep.partitions = partitions;
            grep.args = args(&[("pattern", pattern), ("regex", regex)]);
            assert_eq!(all(&run(&grep)), expected, "{pattern} {partitions}");
        }
    }
    let dir = tempdir().unwrap();
    let mut grep = lines("grep", &inputs, dir.path());
    (grep.partitions, grep.args) = (0, args(&[("pattern", "needle"), ("invert", "true")]));
    let result = run(&grep);
    assert_eq!(
        result.counters.get(MAP_OUTPUT_RESULTS) as usize,
        whole.len() - ends - expected.lines().count() + 1 + 1
    );
}

#[test]
fn arguments_that_will_not_do_are_refused_for_good() {
    let (_dir, inputs) = texts(&[("a.txt", "x\n")]);
    for (app, given, named) in [
        ("grep", vec![], "pattern is missing"),
        ("grep", vec![("pattern", "")], "empty"),
        ("grep", vec![("pattern", "("), ("regex", "true")], "regular expression"),
        ("grep", vec![("patern", "x")], "takes: pattern, regex, invert"),
        ("top", vec![("k", "0")], "k is 0"),
        ("top", vec![("k", "x")], "argument k"),
        ("join", vec![], "left is missing"),
        ("join", vec![("left", "a")], "tags"),
        ("wc", vec![("k", "1")], "takes: none"),
    ] {
        let dir = tempdir().unwrap();
        let mut job = lines(app, &inputs, dir.path());
        job.args = args(&given);
        let message = refused(&job);
        assert!(message.contains(named), "{app}: {message}");
    }
    for app in ["wc", "sort", "top", "join"] {
        let dir = tempdir().unwrap();
        let mut job = lines(app, &inputs, dir.path());
        job.partitions = 0;
        assert!(refused(&job).contains("reduce"), "{app}");
    }
}

/// Records of 100 bytes whose keys come from `key`.
fn records(count: usize, mut key: impl FnMut(usize) -> [u8; 10]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(100 * count);
    for number in 0..count {
        bytes.extend_from_slice(&key(number));
        write!(bytes, "{number:090}").unwrap();
    }
    bytes
}

/// In total order: records of a width that the sort never changes, however they lie.
#[test]
fn sort_puts_all_parts_in_one_order_whatever_the_keys() {
    const COUNT: usize = 20_000;
    let mut rng = StdRng::seed_from_u64(3);
    let number = |number: usize| *format!("{number:010}").as_bytes().first_chunk().unwrap();
    let random: Vec<[u8; 10]> = (0..COUNT).map(|_| rng.random()).collect();
    let one_key: Vec<bool> = (0..COUNT).map(|_| rng.random_range(0..10) > 0).collect();
    let skewed = |at: usize| if one_key[at] { [b'k'; 10] } else { random[at] };
    for (name, bytes) in [
        ("random", records(COUNT, |at| random[at])),
        ("sorted", records(COUNT, number)),
        ("reverse", records(COUNT, |at| number(COUNT - at))),
        ("equal", records(COUNT, |_| [b'k'; 10])),
        ("skewed", records(COUNT, skewed)),
    ] {
        let source = tempdir().unwrap();
        let path = source.path().join("in.txt");
        fs::write(&path, &bytes).unwrap();
        let inputs = [("in.txt".to_owned(), path)];
        let dir = tempdir().unwrap();
        let mut sort = job("sort", &inputs, dir.path());
        sort.maps = cut(&inputs, 333_333);
        sort.reading = Reading::of(Records::Fixed(100));
        sort.args = args(&[("key_bytes", "10")]);
        let mut cuts: Vec<Vec<u8>> =
            (1..10).map(|place| bytes[place * 200_000..][..10].to_vec()).collect();
        cuts.sort();
        sort.partitioning = Partitioning::Range(cuts);
        // Tight, so that maps spill.
        sort.memory_bytes = 200_000;
        let result = run(&sort);
        let found = part_bytes(&result).concat();
        let mut expected: Vec<&[u8]> = bytes.chunks(100).collect();
        expected.sort_by_key(|record| &record[..10]);
        assert!(found == expected.concat(), "{name}");
    }
}

#[test]
fn sort_of_lines_keeps_them_and_of_pairs_writes_them_in_the_job_s_format() {
    let (_dir, inputs) = texts(&[("a.txt", "b\t2\nc\n\na\t1\nb\t1\n")]);
    let dir = tempdir().unwrap();
    let mut sort = lines("sort", &inputs, dir.path());
    sort.partitions = 1;
    assert_eq!(all(&run(&sort)), "\na\t1\nb\t1\nb\t2\nc\n");
    let dir = tempdir().unwrap();
    let mut sort = lines("sort", &inputs, dir.path());
    sort.partitions = 1;
    sort.reading = Reading::of(Records::KeyValues { strip_cr: false });
    assert_eq!(all(&run(&sort)), "\t\na\t1\nb\t2\nb\t1\nc\t\n");
}

#[test]
fn top_tells_the_greatest_first_and_a_key_once() {
    let mut text = String::new();
    for number in 0..500 {
        text.push_str(&format!("key{}\t{}\n", number % 200, number * 7_919 % 1_009));
    }
    let mut best: BTreeMap<&str, u64> = BTreeMap::new();
    for line in text.lines() {
        let (key, number) = line.split_once('\t').unwrap();
        let number: u64 = number.parse().unwrap();
        let known = best.entry(key).or_default();
        *known = number.max(*known);
    }
    let mut ranked: Vec<_> =
        best.into_iter().map(|(key, number)| (u64::MAX - number, key)).collect();
    ranked.sort_unstable();
    let (_dir, inputs) = texts(&[("a.txt", &text)]);
    for k in [1, 7, 150, 1_000] {
        let expected: String = ranked
            .iter()
            .take(k)
            .map(|(turned, key)| format!("{key}\t{}\n", u64::MAX - turned))
            .collect();
        for records in [Records::LINES, Records::KeyValues { strip_cr: false }] {
            let dir = tempdir().unwrap();
            let mut top = lines("top", &inputs, dir.path());
            (top.reading, top.args) = (Reading::of(records), args(&[("k", &k.to_string())]));
            assert_eq!(all(&run(&top)), expected, "{k}");
        }
    }
}

#[test]
fn top_names_the_line_that_is_no_number() {
    let (_dir, inputs) = texts(&[("a.txt", "a\t1\nb\t-1\n")]);
    let dir = tempdir().unwrap();
    match lines("top", &inputs, dir.path()).run(&|_, _, _| {}).unwrap_err() {
        Failure::User { place: Some(place), permanent: false, .. } => {
            assert_eq!((place.document.as_str(), place.offset, place.exact), ("a.txt", 4, true));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn join_puts_lines_of_two_inputs_together_in_four_kinds() {
    let people = "1\tann\tx\n2\tbob\ty\n2\tbea\tz\n4\tdan\t\n";
    let cities = "oslo\t1\nrome\t2\nbern\t3\nparis\t2\n";
    // The right input comes first, and its key is its second field.
    let (_dir, inputs) = texts(&[("cities.txt", cities), ("people.txt", people)]);
    let inner = [
        "1\tann\tx\toslo",
        "2\tbea\tz\tparis",
        "2\tbea\tz\trome",
        "2\tbob\ty\tparis",
        "2\tbob\ty\trome",
    ];
    let (left, right) = ("4\tdan\t\t", "3\t\tbern");
    for (kind, more) in [
        ("inner", vec![]),
        ("left", vec![left]),
        ("right", vec![right]),
        ("full", vec![left, right]),
    ] {
        for partitions in [1, 4] {
            let dir = tempdir().unwrap();
            let mut join = lines("join", &inputs, dir.path());
            for piece in join.maps.iter_mut().flatten() {
                piece.tag = piece.document.trim_end_matches(".txt").to_owned();
            }
            join.partitions = partitions;
            join.args = args(&[("left", "people"), ("right_on", "2"), ("kind", kind)]);
            let joined = all(&run(&join));
            let mut found: Vec<&str> = joined.lines().collect();
            found.sort_unstable();
            let mut expected: Vec<&str> = inner.iter().copied().chain(more.clone()).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{kind}");
        }
    }
}

#[test]
fn one_side_of_a_join_may_be_larger_than_memory() {
    let mut many = String::new();
    for number in 0..50_000 {
        many.push_str(&format!("k\t{number:050}\n"));
    }
    let (_dir, inputs) = texts(&[("left.txt", "k\tone\n"), ("right.txt", &many)]);
    let dir = tempdir().unwrap();
    let mut join = lines("join", &inputs, dir.path());
    join.maps = cut(&inputs, 1 << 20);
    for piece in join.maps.iter_mut().flatten() {
        piece.tag = piece.document.trim_end_matches(".txt").to_owned();
    }
    join.memory_bytes = 100_000;
    join.args = args(&[("left", "left")]);
    let expected: String = many.lines().map(|line| format!("k\tone\t{}\n", &line[2..])).collect();
    assert!(all(&run(&join)) == expected);
}

/// Counts the words of a document by its two functions.
const WORDS: Lab = Lab {
    name: "words",
    map: |_, contents| {
        let words = contents.split(|letter: char| !letter.is_ascii_alphabetic());
        words.filter(|word| !word.is_empty()).map(|word| KeyValue::new(word, "1")).collect()
    },
    reduce: |_, values| values.len().to_string(),
};

#[test]
fn the_labs_two_functions_are_an_app() {
    let (_dir, inputs) = texts(&[("a.txt", "b a b"), ("b.txt", "c, b!"), ("c.txt", "")]);
    let dir = tempdir().unwrap();
    let mut words = job("wc", &inputs, dir.path());
    (words.program, words.partitions) = (&WORDS, 1);
    assert_eq!(all(&run(&words)), "a 1\nb 3\nc 1\n");
    let dir = tempdir().unwrap();
    let mut facts = job("wc", &inputs, dir.path());
    facts.program = mr_worker::apps::find(mr_worker::apps::LABS, "nocrash").unwrap();
    let expected = "a a.txt b.txt c.txt\nb 5 5 5\nc 0 5 5\nd xyzzy xyzzy xyzzy\n";
    let mut found: Vec<String> =
        all(&run(&facts)).lines().map(|line| format!("{line}\n")).collect();
    found.sort();
    assert_eq!(found.concat(), expected);
}

#[test]
fn compressed_outputs_unpack_to_what_others_are() {
    let (_dir, inputs) = texts(&[("a.txt", "b a b"), ("b.txt", "c b")]);
    let dir = tempdir().unwrap();
    let mut wc = job("wc", &inputs, dir.path());
    (wc.partitions, wc.style.zstd) = (2, true);
    let result = run(&wc);
    let unpack = |part: &Vec<u8>| zstd::decode_all(&part[..]).unwrap();
    let unpacked: Vec<u8> = part_bytes(&result).iter().flat_map(unpack).collect();
    let mut lines: Vec<&str> = str::from_utf8(&unpacked).unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a 1", "b 3", "c 1"]);
    for (part, outcome) in part_bytes(&result).iter().zip(&result.reduces) {
        assert_eq!((part.len() as u64, crc32c::crc32c(part)), (outcome.bytes, outcome.crc));
    }
}

#[test]
fn compressed_inputs_give_what_they_unpack_to() {
    let text = "b a b\nc b\n";
    let dir = tempdir().unwrap();
    let path = dir.path().join("in.zst");
    fs::write(&path, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
    let inputs = [("in.zst".to_owned(), path)];
    let out = tempdir().unwrap();
    let mut wc = by_lines(job("wc", &inputs, out.path()), &inputs, u64::MAX);
    wc.partitions = 1;
    wc.maps[0][0].packing = Packing::Zstd;
    assert_eq!(all(&run(&wc)), "a 1\nb 3\nc 1\n");
}
