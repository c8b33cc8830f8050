//! Whole jobs in one process: results equal to the labs' and to an independent count, whatever the
//! splits, the memory and the fan-in.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::fs;

use mr_worker::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    failure::{Failure, Place},
    fold::{Distinct, Sum},
    outcome::{
        COMBINE_OUTPUT_RECORDS, MAP_INPUT_BYTES, MAP_INPUT_LINES, MAP_OUTPUT_RECORDS, OUTPUT_BYTES,
        REDUCE_INPUT_GROUPS, REDUCE_INPUT_RECORDS, REDUCE_OUTPUT_RECORDS, SPILLED_RUNS,
    },
    part::PartFormat,
    record::Record,
};
use sha2::{Digest, Sha256};
use support::{
    by_lines, files, generate, indexer_lines, job, naive_index, part_bytes, run, shared_data,
    sorted_lines, wc_lines,
};
use tempfile::tempdir;

#[test]
fn wc_of_the_corpus_is_golden_in_every_partition() {
    let Some(data) = shared_data() else { return };
    let expected = fs::read_to_string(data.join("expected/wc-partitions.sha256")).unwrap();
    let hashes: Vec<&str> =
        expected.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(hashes.len(), 10);
    for whole in [true, false] {
        let dir = tempdir().unwrap();
        let inputs = files(&data.join("gutenberg"));
        let mut wc = job("wc", &inputs, dir.path());
        if !whole {
            wc = by_lines(wc, &inputs, 100_000);
        }
        let result = run(&wc);
        let found: Vec<String> = part_bytes(&result)
            .iter()
            .map(|part| Sha256::digest(part).iter().map(|byte| format!("{byte:02x}")).collect())
            .collect();
        assert_eq!(found, hashes);
        let lines = fs::read_to_string(data.join("expected/wc.txt")).unwrap();
        assert!(sorted_lines(&result.parts).iter().eq(lines.lines()));
        for (counter, count) in [
            (MAP_INPUT_BYTES, 3_301_104),
            (MAP_OUTPUT_RECORDS, 623_948),
            (REDUCE_INPUT_GROUPS, 22_107),
            (REDUCE_OUTPUT_RECORDS, 22_107),
            (OUTPUT_BYTES, 228_830),
        ] {
            assert_eq!(result.counters.get(counter), count, "{counter}");
        }
        if whole {
            assert_eq!(result.counters.get(COMBINE_OUTPUT_RECORDS), 52_580);
            assert_eq!(result.counters.get(REDUCE_INPUT_RECORDS), 52_580);
        }
        let lines = if whole { 0 } else { 66_602 };
        assert_eq!(result.counters.get(MAP_INPUT_LINES), lines);
    }
}

#[test]
fn the_index_of_the_corpus_is_golden_even_if_documents_are_split() {
    let Some(data) = shared_data() else { return };
    let expected = fs::read_to_string(data.join("expected/indexer.txt")).unwrap();
    let inputs = files(&data.join("gutenberg"));
    for whole in [true, false] {
        let dir = tempdir().unwrap();
        let mut indexer = job("indexer", &inputs, dir.path());
        if !whole {
            indexer = by_lines(indexer, &inputs, 100_000);
        }
        let result = run(&indexer);
        assert!(sorted_lines(&result.parts).iter().eq(expected.lines()));
    }
}

#[test]
fn generated_texts_agree_with_the_independent_count() {
    let texts = tempdir().unwrap();
    generate(texts.path(), 1, 5, 3_000);
    fs::write(texts.path().join("empty.txt"), "").unwrap();
    let inputs = files(texts.path());
    let index = naive_index(&inputs);
    assert!(index.len() > 30, "{} words", index.len());
    for (app, expected) in [("wc", wc_lines(&index)), ("indexer", indexer_lines(&index))] {
        for partitions in [1, 3, 10] {
            let dir = tempdir().unwrap();
            let mut job = job(app, &inputs, dir.path());
            job.partitions = partitions;
            let result = run(&job);
            assert_eq!(sorted_lines(&result.parts), expected, "{app} {partitions}");
            assert_eq!(result.parts.len(), partitions as usize);
        }
    }
}

#[test]
fn parts_have_the_same_bytes_for_every_split() {
    let texts = tempdir().unwrap();
    generate(texts.path(), 2, 2, 400);
    let inputs = files(texts.path());
    for app in ["wc", "indexer"] {
        let whole = tempdir().unwrap();
        let expected = part_bytes(&run(&job(app, &inputs, whole.path())));
        for split_bytes in [7, 64, 100, 999, 1 << 20] {
            let dir = tempdir().unwrap();
            let mut job = by_lines(job(app, &inputs, dir.path()), &inputs, split_bytes);
            // Small pieces make more runs than are merged at once in this memory.
            job.memory_bytes = 1 << 20;
            assert_eq!(part_bytes(&run(&job)), expected, "{app} {split_bytes}");
        }
    }
}

#[test]
fn a_map_that_spills_writes_the_same_records() {
    let texts = tempdir().unwrap();
    let mut text = String::new();
    for round in 0..40 {
        for number in 0..4_000_u32 {
            let tail = (number * 7_919 + round) % 17_576;
            let letters =
                [tail / 676, tail / 26 % 26, tail % 26].map(|place| (b'a' + place as u8) as char);
            text.extend(letters);
            text.push_str(if number % 3 == 0 { "longtailedword " } else { " " });
        }
    }
    fs::write(texts.path().join("many.txt"), &text).unwrap();
    let inputs = files(texts.path());
    for app in ["wc", "indexer"] {
        let (calm, tight) = (tempdir().unwrap(), tempdir().unwrap());
        let expected = run(&job(app, &inputs, calm.path()));
        let mut spilling = job(app, &inputs, tight.path());
        spilling.memory_bytes = 1;
        let found = run(&spilling);
        assert!(found.counters.get(SPILLED_RUNS) > 10, "{:?}", found.counters);
        assert_eq!(expected.counters.get(SPILLED_RUNS), 0);
        assert_eq!(found.maps[0].content_hash, expected.maps[0].content_hash, "{app}");
        assert_eq!(part_bytes(&found), part_bytes(&expected), "{app}");
        let left: Vec<_> = fs::read_dir(tight.path().join("m-0")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

#[test]
fn text_format_separates_by_a_tab() {
    let texts = tempdir().unwrap();
    fs::write(texts.path().join("a.txt"), "b a b").unwrap();
    let dir = tempdir().unwrap();
    let mut wc = job("wc", &files(texts.path()), dir.path());
    (wc.style.format, wc.partitions) = (PartFormat::Text, 1);
    assert_eq!(part_bytes(&run(&wc)), [b"a\t1\nb\t2\n"]);
}

#[test]
fn an_input_that_is_missing_fails_for_good() {
    let dir = tempdir().unwrap();
    let inputs = [("gone.txt".to_owned(), dir.path().join("gone.txt"))];
    let failure = job("wc", &inputs, dir.path()).run(&|_, _, _| {}).unwrap_err();
    assert!(matches!(failure, Failure::Input { permanent: true, .. }), "{failure}");
}

/// Panics at a word.
struct Fragile;

impl App for Fragile {
    type Fold = Sum;
    type Mapper = Self;
    type Reducer = Self;

    fn name(&self) -> &'static str {
        "fragile"
    }

    fn mapper(&self, _: &Context) -> Result<Self, Failure> {
        Ok(Self)
    }

    fn reducer(&self, _: &Context) -> Result<Self, Failure> {
        Ok(Self)
    }
}

impl Mapper for Fragile {
    type Fold = Sum;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Sum>) -> Result<(), Failure> {
        assert!(record.value != b"poison", "this is poison");
        out.emit(record.value, 1);
        Ok(())
    }
}

impl Reducer for Fragile {
    fn reduce(
        &mut self,
        key: &[u8],
        _values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        if key == b"refused" {
            return Err(Failure::user("this is refused"));
        }
        out.write(key, b"")
    }
}

#[test]
fn a_panic_is_told_with_its_place_and_a_refusal_with_its_key() {
    for (text, message, offset) in [
        ("fine\npoison\nfine\n", "this is poison", Some(5)),
        ("fine\nrefused\n", "this is refused (key \"refused\")", None),
    ] {
        let texts = tempdir().unwrap();
        fs::write(texts.path().join("a.txt"), text).unwrap();
        let dir = tempdir().unwrap();
        let inputs = files(texts.path());
        let mut fragile = by_lines(job("wc", &inputs, dir.path()), &inputs, 1 << 20);
        fragile.program = &Fragile;
        match fragile.run(&|_, _, _| {}).unwrap_err() {
            Failure::User { message: said, place, permanent: false } => {
                assert!(said.contains(message), "{said}");
                let document = "a.txt".to_owned();
                let exactly = |offset| Place { document, offset, exact: true };
                assert_eq!(place, offset.map(exactly));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn values_that_a_reducer_leaves_are_skipped() {
    let texts = tempdir().unwrap();
    fs::write(texts.path().join("a.txt"), "x\ny\nx\n").unwrap();
    fs::write(texts.path().join("b.txt"), "x\nz\n").unwrap();
    let dir = tempdir().unwrap();
    let inputs = files(texts.path());
    let mut fragile = by_lines(job("wc", &inputs, dir.path()), &inputs, 1 << 20);
    (fragile.program, fragile.partitions) = (&Fragile, 1);
    let result = run(&fragile);
    assert_eq!(part_bytes(&result), [b"x \ny \nz \n"]);
    assert_eq!(result.counters.get(REDUCE_INPUT_RECORDS), 4);
}

/// Gathers the lines that begin with the same letter.
struct Gather;

impl App for Gather {
    type Fold = Distinct;
    type Mapper = Self;
    type Reducer = Self;

    fn name(&self) -> &'static str {
        "gather"
    }

    fn mapper(&self, _: &Context) -> Result<Self, Failure> {
        Ok(Self)
    }

    fn reducer(&self, _: &Context) -> Result<Self, Failure> {
        Ok(Self)
    }
}

impl Mapper for Gather {
    type Fold = Distinct;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Distinct>) -> Result<(), Failure> {
        out.emit(&record.value[..1], record.value);
        Ok(())
    }
}

impl Reducer for Gather {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let mut all = Vec::new();
        while let Some(value) = values.next()? {
            all.extend_from_slice(value);
        }
        out.write(key, &all)
    }
}

#[test]
fn values_come_in_the_order_of_maps_and_of_emission() {
    let texts = tempdir().unwrap();
    let lines: Vec<String> = (0..9_000)
        .map(|number| format!("{}{};", ["a", "b"][number % 2], number * 7_919 % 9_001))
        .collect();
    fs::write(texts.path().join("a.txt"), lines.join("\n")).unwrap();
    let of = |letter: &str| -> String {
        lines.iter().filter(|line| line.starts_with(letter)).map(String::as_str).collect()
    };
    let expected = format!("a {}\nb {}\n", of("a"), of("b"));
    // One map that spills, and more maps than are merged at once.
    for (split_bytes, memory_bytes) in [(1 << 20, 1), (100, 1 << 20)] {
        let dir = tempdir().unwrap();
        let inputs = files(texts.path());
        let mut gather = by_lines(job("wc", &inputs, dir.path()), &inputs, split_bytes);
        (gather.program, gather.partitions, gather.memory_bytes) = (&Gather, 1, memory_bytes);
        let result = run(&gather);
        assert!(result.maps.len() == 1 || result.maps.len() > 300, "{}", result.maps.len());
        assert_eq!(part_bytes(&result), [expected.as_bytes()], "{split_bytes}");
    }
}
