//! What holds whatever memory there is, however keys are spread, and whatever an app of one's own
//! does.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod support;

use std::{collections::BTreeMap, fs, path::Path};

use mr_worker::{
    input::Reading,
    local::LocalJob,
    outcome::{MAP_OUTPUT_RECORDS, SPILLED_RUNS},
    part::{PartFormat, PartStyle},
    partition::Partitioning,
    prelude::*,
    run::Codec,
};
use proptest::prelude::*;
use support::{cut, job, part_bytes, run};
use tempfile::tempdir;

/// Gathers the values of each key, in the order in which they come.
struct Gather;

impl App for Gather {
    type Fold = Keep;
    type Mapper = Pairs<Keep>;
    type Reducer = Gathered;

    fn name(&self) -> &'static str {
        "gather"
    }

    fn mapper(&self, _: &Context) -> Result<Pairs<Keep>, Failure> {
        Ok(Pairs::default())
    }

    fn reducer(&self, _: &Context) -> Result<Gathered, Failure> {
        Ok(Gathered)
    }
}

/// The same with a fold that drops some.
struct GatherDistinct;

impl App for GatherDistinct {
    type Fold = Distinct;
    type Mapper = Pairs<Distinct>;
    type Reducer = Gathered;

    fn name(&self) -> &'static str {
        "gather-distinct"
    }

    fn mapper(&self, _: &Context) -> Result<Pairs<Distinct>, Failure> {
        Ok(Pairs::default())
    }

    fn reducer(&self, _: &Context) -> Result<Gathered, Failure> {
        Ok(Gathered)
    }
}

/// Emits key-value lines as they are, their escapes undone.
#[derive(Default)]
struct Pairs<F>(std::marker::PhantomData<F>);

impl<F> Mapper for Pairs<F>
where
    F: for<'a> Fold<Input<'a> = &'a [u8]>,
{
    type Fold = F;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, F>) -> Result<(), Failure> {
        // So many times, so that a short file makes long keys and values.
        let long = |bytes: &[u8]| match bytes {
            [b'*', rest @ ..] => rest.repeat(1 << 20),
            other => other.to_vec(),
        };
        out.emit(&long(record.key), &long(record.value));
        Ok(())
    }
}

struct Gathered;

impl Reducer for Gathered {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        out.write_raw(&[key, b":"])?;
        while let Some(value) = values.next()? {
            out.write_raw(&[value, b","])?;
        }
        out.write_raw(&[b"\n"])
    }
}

fn pairs_job<'a>(
    program: &'a dyn Program,
    dir: &'a Path,
    inputs: &Path,
    split: u64,
) -> LocalJob<'a> {
    let inputs = [("in".to_owned(), inputs.to_owned())];
    LocalJob {
        program,
        reading: Reading::of(Records::KeyValues { strip_cr: false }),
        maps: cut(&inputs, split),
        partitions: 3,
        style: PartStyle { format: PartFormat::Text, zstd: false, durable: false },
        ..job("wc", &inputs, dir)
    }
}

/// What a job that gathers should come to, by partition.
fn gathered(text: &str, distinct: bool) -> Vec<Vec<u8>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines() {
        let (key, value) = line.split_once('\t').unwrap_or((line, ""));
        let values = groups.entry(key).or_default();
        if !(distinct && values.last() == Some(&value)) {
            values.push(value);
        }
    }
    let mut parts = vec![Vec::new(); 3];
    for (key, values) in groups {
        let partition = Partitioning::Hash.of(key.as_bytes(), 3).unwrap() as usize;
        let values: String = values.into_iter().map(|value| format!("{value},")).collect();
        parts[partition].extend_from_slice(format!("{key}:{values}\n").as_bytes());
    }
    parts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn any_memory_cut_and_compression_give_the_same_parts(
        lines in proptest::collection::vec("[a-d]{0,9}(\t[xyz]{0,12})?", 0..2_000),
        memory_bytes in prop_oneof![Just(1_usize), 65_536_usize..200_000, Just(64 << 20)],
        split in 1_000_u64..60_000,
        lz4 in any::<bool>(),
    ) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let source = tempdir().unwrap();
        let path = source.path().join("in");
        fs::write(&path, &text).unwrap();
        for (program, distinct) in [(&Gather as &dyn Program, false), (&GatherDistinct, true)] {
            let dir = tempdir().unwrap();
            let mut job = pairs_job(program, dir.path(), &path, split);
            job.memory_bytes = memory_bytes;
            job.codec = if lz4 { Codec::Lz4 } else { Codec::None };
            let (found, expected) = (part_bytes(&run(&job)), gathered(&text, distinct));
            let lines = |parts: &[Vec<u8>]| -> Vec<String> {
                String::from_utf8(parts.concat()).unwrap().lines().map(str::to_owned).collect()
            };
            let (found, expected) = (lines(&found), lines(&expected));
            let differs = found.iter().zip(&expected).find(|(one, other)| one != other);
            prop_assert!(found == expected, "{}: {differs:?}", program.name());
        }
    }
}

#[test]
fn keys_and_values_of_any_length_come_through_little_memory() {
    let mut text = String::new();
    for round in 0..4 {
        for key in ["*abcdefgh", "*abcdefgi", "", "short", "*b"] {
            text.push_str(&format!("{key}\t{round}\n{key}\t*v\n"));
        }
    }
    let source = tempdir().unwrap();
    let path = source.path().join("in");
    fs::write(&path, &text).unwrap();
    let mut expected = None;
    for memory_bytes in [64 << 10, 1 << 20, 16 << 20, 256 << 20] {
        let dir = tempdir().unwrap();
        let mut job = pairs_job(&Gather, dir.path(), &path, 1 << 20);
        job.memory_bytes = memory_bytes;
        let result = run(&job);
        let parts = part_bytes(&result);
        // Three long keys, two of them of eight MiB; eight values each, half of them of one MiB.
        let long = (2 * (8 << 20) + (1 << 20)) + 5 * 4 * (1 << 20);
        assert_eq!(parts.concat().len(), long + 5 * (4 * 2 + 4) + 5 * 2 + "short".len());
        assert!(*expected.get_or_insert(parts.clone()) == parts, "{memory_bytes}");
        assert_eq!(result.counters.get(MAP_OUTPUT_RECORDS), 40);
        assert_eq!(result.counters.get(SPILLED_RUNS) > 0, memory_bytes < 64 << 20);
    }
}

/// Puts everything into one partition.
struct Stray(u32);

impl Partitioner for Stray {
    fn partition(&self, key: &[u8], _: u32) -> u32 {
        assert_ne!(key, b"panic", "no place for it");
        self.0
    }
}

struct Astray(u32);

impl App for Astray {
    type Fold = Keep;
    type Mapper = Pairs<Keep>;
    type Reducer = Gathered;

    fn name(&self) -> &'static str {
        "astray"
    }

    fn mapper(&self, _: &Context) -> Result<Pairs<Keep>, Failure> {
        Ok(Pairs::default())
    }

    fn reducer(&self, _: &Context) -> Result<Gathered, Failure> {
        Ok(Gathered)
    }

    fn partitioner(&self, _: &Context) -> Result<Option<Box<dyn Partitioner>>, Failure> {
        Ok(Some(Box::new(Stray(self.0))))
    }
}

/// F45: a partitioner that answers as many as there are, as a negative number would look, or panics.
#[test]
fn a_partitioner_that_errs_fails_the_task_by_name() {
    let source = tempdir().unwrap();
    let path = source.path().join("in");
    for (partition, text, named) in [
        (3, "k\tv\n", "partition 3, but there are 3"),
        (u32::MAX, "k\tv\n", "partition 4294967295"),
        (0, "panic\tv\n", "no place for it"),
    ] {
        fs::write(&path, text).unwrap();
        let dir = tempdir().unwrap();
        let astray = Astray(partition);
        let failed = pairs_job(&astray, dir.path(), &path, 100).run(&|_, _, _| {}).unwrap_err();
        assert!(failed.to_string().contains(named), "{failed}");
    }
    fs::write(&path, "b\t1\na\t2\nb\t3\n").unwrap();
    let dir = tempdir().unwrap();
    let parts = part_bytes(&run(&pairs_job(&Astray(2), dir.path(), &path, 100)));
    assert_eq!(parts, [&b""[..], b"", b"a:2,\nb:1,3,\n"]);
    // What the job asks for goes before what the app would do.
    let dir = tempdir().unwrap();
    let mut ranged = pairs_job(&Astray(2), dir.path(), &path, 100);
    ranged.partitioning = Partitioning::Range(vec![b"b".to_vec(), b"c".to_vec()]);
    assert_eq!(part_bytes(&run(&ranged)), [&b"a:2,\n"[..], b"b:1,3,\n", b""]);
}

/// Counts what it sees, under too many names if it is told to.
struct Counting;

impl App for Counting {
    type Fold = Keep;
    type Mapper = Seen;
    type Reducer = Gathered;

    fn name(&self) -> &'static str {
        "counting"
    }

    fn args(&self) -> &'static [Arg] {
        &[("names", "how many counters")]
    }

    fn mapper(&self, task: &Context) -> Result<Seen, Failure> {
        Ok(Seen(task.args.parsed("names", 1)?))
    }

    fn reducer(&self, _: &Context) -> Result<Gathered, Failure> {
        Ok(Gathered)
    }
}

struct Seen(u32);

impl Mapper for Seen {
    type Fold = Keep;

    fn map(&mut self, _: Record<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        (0..self.0).try_for_each(|number| out.count(&format!("SEEN-{number}"), 2))
    }
}

#[test]
fn an_app_s_counters_are_added_up_within_a_limit() {
    let source = tempdir().unwrap();
    let path = source.path().join("in");
    fs::write(&path, "a\nb\nc\n").unwrap();
    let dir = tempdir().unwrap();
    let result = run(&pairs_job(&Counting, dir.path(), &path, 2));
    assert_eq!(result.counters.get("SEEN-0"), 6);
    let dir = tempdir().unwrap();
    let mut many = pairs_job(&Counting, dir.path(), &path, 2);
    many.args = [("names", "1000")].into_iter().collect();
    let failed = many.run(&|_, _, _| {}).unwrap_err().to_string();
    assert!(failed.contains("more than 48 counters"), "{failed}");
}
