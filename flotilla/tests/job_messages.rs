//! What comes between coordinator and workers, on real processes: calls that are lost, come twice
//! and late, replies that are lost, clocks that jump.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proto::mapreduce::{AttemptState, JobSpec, TaskKind, Verdict};
use support::clock::Clocks;
use support::fleet::Fleet;
use support::gates::{
    OF_WORKERS, attempts, check_attempts, check_lines, spec, states, submit, write_inputs,
};
use support::jobs::{
    COUNT, PATIENCE, SLOW_COUNT, Submission, check_nothing_else, made_up_text, retries, sorted,
    succeeded, until,
};
use support::relay::{Relay, Verdicts, Weather};
use support::{Depth, Watchdog};
use tokio::time::{Instant, sleep};

/// A fleet whose workers go through this weather.
async fn fleet(workers: u16, inputs: usize, weather: Weather, lease: Duration) -> (Fleet, Relay) {
    let relay = Relay::start(weather, 7).await;
    let flag = relay.flag();
    let of_workers = [OF_WORKERS, &[&*flag]].concat();
    let lease = format!("--lease-ms={}", lease.as_millis());
    let fleet = Fleet::start_with(1, workers, &[&lease], &of_workers);
    relay.lead_to(&fleet.everybody());
    write_inputs(&fleet.root(), inputs);
    fleet.ready(workers.into()).await;
    (fleet, relay)
}

/// How often the results of each task were accepted.
fn accepted(verdicts: &Verdicts) -> BTreeMap<(TaskKind, u32), usize> {
    let mut accepted = BTreeMap::new();
    for ((kind, task, ..), verdicts) in verdicts {
        let count = verdicts.iter().filter(|verdict| **verdict == Verdict::Accepted).count();
        *accepted.entry((*kind, *task)).or_default() += count;
    }
    accepted
}

/// F9.
#[tokio::test]
async fn calls_that_are_lost_doubled_and_late_change_nothing() {
    const INPUTS: usize = 4;
    let _watchdog = Watchdog::new(10 * PATIENCE);
    let (delay_max, lease) = match Depth::asked() {
        Depth::Quick | Depth::Ci => (Duration::from_millis(100), Duration::from_secs(10)),
        Depth::Deep => (Duration::from_secs(3), Duration::from_secs(30)),
    };
    let weather =
        Weather { lost_percent: (10, 10), doubled: true, delay_max, ..Weather::default() };
    let (mut fleet, relay) = fleet(3, INPUTS, weather, lease).await;
    let jobs = fleet.jobs();
    let lease_ms = lease.as_millis() as u64;
    let id = submit(&jobs, JobSpec { lease_ms, ..spec("out", 2, "cat", "cat") }).await;
    let job = succeeded(&jobs, &id).await;
    assert!(fleet.coordinators[0].take_end().is_none(), "the coordinator ended");
    assert_eq!(job.counters["REDUCE_INPUT_RECORDS"], INPUTS as u64, "{job:?}");
    check_lines(&fleet, "out", INPUTS);
    let verdicts = relay.verdicts();
    let accepted = accepted(&verdicts);
    assert_eq!(accepted.len(), INPUTS + 2, "{verdicts:?}");
    // An acceptance that was told twice is told as such.
    assert!(accepted.values().all(|count| *count == 1), "{verdicts:?}");
}

/// F10.
#[tokio::test]
async fn a_report_whose_reply_is_lost_is_repeated_and_nothing_else_is() {
    const INPUTS: usize = 3;
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let weather = Weather { loses_first_reports: true, ..Weather::default() };
    let (fleet, relay) = fleet(2, INPUTS, weather, Duration::from_secs(10)).await;
    let jobs = fleet.jobs();
    let id = submit(&jobs, spec("out", 1, "cat", "cat")).await;
    succeeded(&jobs, &id).await;
    check_lines(&fleet, "out", INPUTS);
    let deadline = Instant::now() + PATIENCE;
    let verdicts = loop {
        let verdicts = relay.verdicts();
        if verdicts.values().all(|found| found.len() > 1) {
            break verdicts;
        }
        assert!(Instant::now() < deadline, "not repeated: {verdicts:?}");
        sleep(Duration::from_millis(20)).await;
    };
    // Each task was executed once, and its attempt accepted.
    assert_eq!(verdicts.len(), INPUTS + 1, "{verdicts:?}");
    assert_eq!(accepted(&verdicts).len(), INPUTS + 1, "{verdicts:?}");
    for (attempt, found) in &verdicts {
        assert_eq!(found.len(), 2, "{attempt:?}: {found:?}");
        assert_eq!(found[0], Verdict::Accepted, "{attempt:?}");
        // With the last one the job ends.
        let is_over = attempt.0 == TaskKind::Reduce && found[1] == Verdict::JobGone;
        assert!(is_over || found[1] == Verdict::AlreadyAccepted, "{attempt:?}: {found:?}");
    }
    // A task that was given out with the reply that was lost is given out again.
    for (task, mut found) in attempts(&jobs, &id).await {
        let reported = |is: &AttemptState| *is != AttemptState::Expired;
        let last = found.split_off(found.len() - 1);
        assert_eq!(states(&last), [AttemptState::Accepted], "{task:?}: {last:?}");
        assert!(!states(&found).iter().any(reported), "{task:?}: {found:?}");
    }
}

/// F39.
#[tokio::test]
async fn clocks_that_jump_by_an_hour_change_nothing() {
    const NAME: &str = "clocks_that_jump_by_an_hour_change_nothing";
    const HOUR: i64 = 3_600;
    let _watchdog = Watchdog::new(2 * PATIENCE);
    let mut fleet = Fleet::set_up(1, 2, &[], &["--prefetch=0"]);
    let Some(clocks) = Clocks::new(fleet.dir()) else {
        eprintln!("skipped: {NAME} needs a C compiler");
        return;
    };
    for process in fleet.coordinators.iter_mut().chain(&mut fleet.workers) {
        clocks.give_to(process);
    }
    let expected = made_up_text(&fleet.root());
    fleet.start_all();
    fleet.ready(2).await;
    let jobs = fleet.jobs();
    let id = SLOW_COUNT.submit(&fleet.everybody());
    let jump = |hours: [i64; 3]| {
        let processes = fleet.coordinators.iter().chain(&fleet.workers);
        processes.zip(hours).for_each(|(process, hours)| clocks.set(process, hours * HOUR));
    };
    until(&jobs, &id, "a map", |job| job.maps.unwrap_or_default().committed > 0).await;
    jump([1, -1, 1]);
    until(&jobs, &id, "a reduce", |job| job.reduces.unwrap_or_default().committed > 0).await;
    jump([-1, 1, -1]);
    let job = succeeded(&jobs, &id).await;
    assert_eq!(retries(&job), 0, "{job:?}");
    check_attempts(&jobs, &id, &[]).await;
    let output = fleet.root().join("counts");
    assert!(sorted(&output) == expected, "the result is not that of a sequential count");
    check_nothing_else(&output);
    // The coordinator went by the clock that was set: the job ended before it was submitted.
    let lasted = i128::from(job.ended_unix_ms) - i128::from(job.submitted_unix_ms);
    let hour_ms = i128::from(HOUR) * 1_000;
    assert!((-hour_ms..-hour_ms / 2).contains(&lasted), "{job:?}");

    // Jobs go on being found and run.
    jump([1, 0, 0]);
    let next = Submission { output: "next", ..COUNT }.submit(&fleet.everybody());
    let job = succeeded(&jobs, &next).await;
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
    assert!(u128::from(job.submitted_unix_ms) > now + hour_ms.unsigned_abs() / 2, "{job:?}");
}
