//! Who gets the next slot, and which record comes where, on real processes: priorities, shares of
//! queues, and sorts of records however their keys lie.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::io::Write as _;

use client::JobClient;
use proto::mapreduce::{
    InputFormat, Job, JobSpec, OutputFormat, Partitioner, Speculation, TaskKind,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::fleet::{Fleet, LEASE};
use support::gates::{attempts, submit};
use support::jobs::{PATIENCE, retries, succeeded, until};
use support::{Depth, Watchdog};

/// The bytes of a record and of its key.
const RECORD: usize = 100;
const KEY: usize = 10;

const PARTS: u32 = 10;

/// Records with these keys, each of which is another.
fn records(count: usize, mut key: impl FnMut(usize) -> [u8; KEY]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD * count);
    for number in 0..count {
        bytes.extend_from_slice(&key(number));
        write!(bytes, "{number:090}").unwrap();
    }
    bytes
}

fn digits(number: usize) -> [u8; KEY] {
    *format!("{number:010}").as_bytes().first_chunk().unwrap()
}

/// F46. Two files, of which equal keys come in order.
#[tokio::test]
async fn records_are_sorted_over_all_parts_however_their_keys_lie() {
    let count = match Depth::asked() {
        Depth::Quick | Depth::Ci => 100_000,
        Depth::Deep => 1_000_000,
    };
    let _watchdog = Watchdog::new(10 * PATIENCE);
    let fleet = Fleet::start(1, 2, &[]);
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let mut rng = StdRng::seed_from_u64(3);
    let random: Vec<[u8; KEY]> = (0..count).map(|_| rng.random()).collect();
    let is_common: Vec<bool> = (0..count).map(|_| rng.random_range(0..10) > 0).collect();
    let skewed = |at: usize| if is_common[at] { [b'k'; KEY] } else { random[at] };
    let mut running = Vec::new();
    for (shape, bytes) in [
        ("random", records(count, |at| random[at])),
        ("sorted", records(count, digits)),
        ("reverse", records(count, |at| digits(count - at))),
        ("equal", records(count, |_| [b'k'; KEY])),
        ("skewed", records(count, skewed)),
    ] {
        let input = fleet.root().join(format!("{shape}-in"));
        fs::create_dir(&input).unwrap();
        let (first, second) = bytes.split_at(count / 3 * RECORD);
        fs::write(input.join("1"), first).unwrap();
        fs::write(input.join("2"), second).unwrap();
        let spec = JobSpec {
            app: "sort".to_owned(),
            args: [("key_bytes".to_owned(), KEY.to_string())].into(),
            inputs: vec![format!("{shape}-in")],
            output: shape.to_owned(),
            reduces: PARTS,
            input_format: InputFormat::Fixed.into(),
            record_bytes: RECORD as u32,
            partitioner: Partitioner::Range.into(),
            output_format: OutputFormat::Raw.into(),
            ..JobSpec::default()
        };
        running.push((shape, bytes, submit(&jobs, spec).await));
    }
    for (shape, bytes, id) in running {
        let job = succeeded(&jobs, &id).await;
        let mut expected: Vec<&[u8]> = bytes.chunks(RECORD).collect();
        expected.sort_by_key(|record| &record[..KEY]);
        let part = |part: &u32| fleet.root().join(format!("{shape}/part-{part:05}"));
        let parts: Vec<_> = (0..PARTS).map(|number| fs::read(part(&number)).unwrap()).collect();
        assert!(parts.concat() == expected.concat(), "{shape}");
        assert_eq!(job.counters["REDUCE_OUTPUT_RECORDS"], count as u64, "{shape}");
        if shape == "random" {
            // The sample is good enough for parts of like length.
            let most = parts.iter().map(Vec::len).max().unwrap();
            assert!(most < 3 * bytes.len() / PARTS as usize, "{most}");
        }
    }
}

/// Writes lines, each of which will be a map.
fn write_lines(fleet: &Fleet, maps: u32) {
    let lines: String = (0..maps).map(|number| format!("{number:07}\n")).collect();
    fs::write(fleet.root().join(format!("lines-{maps}")), lines).unwrap();
}

/// A job of so many maps, each of which takes so long, and a reduce.
fn spec(output: &str, maps: u32, slow_ms: u64) -> JobSpec {
    JobSpec {
        app: "sort".to_owned(),
        inputs: vec![format!("lines-{maps}")],
        output: output.to_owned(),
        reduces: 1,
        split_bytes: 8,
        slow_ms,
        speculation: Speculation::Off.into(),
        lease_ms: LEASE.as_millis() as u64,
        ..JobSpec::default()
    }
}

/// The places of a job's attempts in the order in which slots were given, and of which kind they are.
async fn places(jobs: &JobClient, id: &str) -> Vec<(u32, TaskKind)> {
    let mut places = Vec::new();
    for ((kind, _), found) in attempts(jobs, id).await {
        assert_eq!(found.len(), 1, "{found:?}");
        places.push((found[0].attempt.as_ref().unwrap().sequence, kind));
    }
    places.sort_unstable_by_key(|(place, _)| *place);
    places
}

fn maps_committed(job: &Job) -> u32 {
    job.maps.unwrap_or_default().committed
}

/// F47.
#[tokio::test]
async fn the_next_slot_goes_to_the_job_of_the_higher_priority() {
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let fleet = Fleet::start_with(1, 1, &[], &["--prefetch=0"]);
    [30, 10].into_iter().for_each(|maps| write_lines(&fleet, maps));
    fleet.ready(1).await;
    let jobs = fleet.jobs();
    let low = JobSpec { priority: Some(0), ..spec("low", 30, 50) };
    let low = submit(&jobs, low).await;
    until(&jobs, &low, "a map", |job| maps_committed(job) > 2).await;
    let high = JobSpec { priority: Some(9), ..spec("high", 10, 50) };
    let high = submit(&jobs, high).await;
    for id in [&low, &high] {
        assert_eq!(retries(&succeeded(&jobs, id).await), 0);
    }
    let (low, high) = (places(&jobs, &low).await, places(&jobs, &high).await);
    let (first, last) = (high[0].0, high.last().unwrap().0);
    assert_eq!(last - first + 1, high.len() as u32, "another came between: {high:?} {low:?}");
    assert!(low[0].0 < first && low.last().unwrap().0 > last, "{high:?} {low:?}");
}

/// F47. Of four slots a queue gets its share, while both have more to do.
#[tokio::test]
async fn queues_get_slots_by_their_weights() {
    let maps = match Depth::asked() {
        Depth::Quick | Depth::Ci => 40,
        // Half a minute.
        Depth::Deep => 600,
    };
    let _watchdog = Watchdog::new(4 * PATIENCE);
    let fleet =
        Fleet::start_with(1, 2, &["--queue-weight=heavy=3"], &["--prefetch=0", "--slots=2"]);
    write_lines(&fleet, maps);
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    for (queue, share) in [("even", 0.5), ("heavy", 0.75)] {
        let mut ids = Vec::new();
        for queue in ["light", queue] {
            let output = format!("{queue}-{share}");
            let spec = JobSpec { queue: queue.to_owned(), ..spec(&output, maps, 100) };
            ids.push(submit(&jobs, spec).await);
        }
        for id in &ids {
            assert_eq!(retries(&succeeded(&jobs, id).await), 0);
        }
        let (light, other) = (places(&jobs, &ids[0]).await, places(&jobs, &ids[1]).await);
        let maps_of = |places: &[(u32, TaskKind)]| -> Vec<u32> {
            let maps = places.iter().filter(|(_, kind)| *kind == TaskKind::Map);
            maps.map(|(place, _)| *place).collect()
        };
        let (light, other) = (maps_of(&light), maps_of(&other));
        // From when both have begun until one has given out all that it had.
        let from = light[0].max(other[0]) + 4;
        let to = (*light.last().unwrap()).min(*other.last().unwrap());
        let within =
            |places: &[u32]| places.iter().filter(|place| (from..=to).contains(place)).count();
        let (light, other) = (within(&light) as f64, within(&other) as f64);
        let is = other / (light + other);
        assert!((is / share - 1.0).abs() < 0.1, "{queue}: {is}, not {share}");
    }
}
