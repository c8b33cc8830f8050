//! Who gets which slot when: priorities, queues, backups, excluded and draining workers, jobs that
//! wait for others, tasks kept ready, records left out. In the world of `world/`, in virtual time.

#![allow(dead_code, reason = "not every test uses all of the world")]

mod world;

use std::collections::BTreeSet;

use mr_coordinator::{
    failure::CauseKind,
    ids::JobId,
    job::JobState,
    schedule::{Settings, Weights},
    spec::OutputFormat,
};
use world::{CALM, Weather, World, settings};

const MINUTE: u64 = 60_000;

fn states(world: &World) -> Vec<(JobState, [u32; 2], Option<String>)> {
    let cause = |job: &mr_coordinator::job::Job| job.cause.as_ref().map(|c| c.message.clone());
    world.machine.jobs().map(|job| (job.state, job.committed, cause(job))).collect()
}

/// F47. One worker with one slot, so that there is one next free slot.
#[test]
fn next_free_slot_goes_to_the_job_of_the_higher_priority() {
    let mut world = World::new(1, CALM, 1);
    world.set_up(0, (1, 0), 1);
    let low = world.submit_as(1, (20, 2), "wc", |spec| spec.scheduling.priority = 0);
    assert!(world.run(MINUTE, |world| world.running(0).is_some()));
    let high = world.submit_as(2, (5, 2), "wc", |spec| spec.scheduling.priority = 9);
    // Its plan takes a moment, within which one more task of the first job may begin.
    let planned = |world: &World| world.state(high) == Some(JobState::Mapping);
    assert!(world.run(world.now + 1_000, planned));
    let before = world.given.len();
    assert!(world.run(10 * MINUTE, World::all_ended));
    let jobs: Vec<_> = world.given[before..].iter().map(|(_, attempt)| attempt.job).collect();
    assert!(jobs[..5].iter().all(|job| *job == high), "{jobs:?}");
    assert_eq!(world.state(low), Some(JobState::Succeeded));
}

/// F47. Shares of slots over 30 s, by time, for queues of equal and of unequal weight.
#[test]
fn queues_get_slots_by_their_weights() {
    for (weight, share) in [(1, 0.5), (3, 0.75)] {
        let weights = Weights::new([("heavy".to_owned(), weight)].into());
        let mut world = World::with_settings(1, CALM, 4, Settings { weights, ..settings() });
        for worker in 0..4 {
            world.set_up(worker, (2, 0), 1);
        }
        world.task_ms = 200..600;
        // The light queue has more jobs, and the older ones: neither gets it more.
        let mut light = Vec::new();
        for number in 1..=2 {
            light.push(world.submit_as(number, (900, 1), "wc", |spec| {
                spec.scheduling.queue = "light".into();
            }));
        }
        let heavy = world.submit_as(3, (900, 1), "wc", |spec| {
            spec.scheduling.queue = "heavy".into();
        });
        let began = |world: &World| world.state(heavy) == Some(JobState::Mapping);
        assert!(world.run(MINUTE, began));
        world.run(world.now + 2_000, |_| false);
        let (mut heavy_time, mut all_time) = (0, 0);
        let end = world.now + 30_000;
        while world.now < end {
            world.run(world.now + world.step_ms, |_| false);
            heavy_time += world.attempts_of(heavy);
            all_time += world.attempts_of(heavy)
                + light.iter().map(|job| world.attempts_of(*job)).sum::<usize>();
        }
        let is = heavy_time as f64 / all_time as f64;
        assert!((is / share - 1.0).abs() < 0.1, "weight {weight}: {is}, not {share}");
    }
}

#[test]
fn jobs_are_admitted_by_priority_and_less_urgent_ones_do_not_keep_others_out() {
    let mut world = World::new(1, CALM, 1);
    let mut jobs = Vec::new();
    for number in 1..=5 {
        jobs.push(world.submit_as(number, (30, 1), "wc", |spec| spec.scheduling.priority = 1));
    }
    world.run(2_000, |_| false);
    let urgent = world.submit_as(6, (3, 1), "wc", |spec| spec.scheduling.priority = 2);
    world.run(3_000, |_| false);
    let mapping = |job| world.state(job) == Some(JobState::Mapping);
    assert_eq!(jobs.iter().filter(|job| mapping(**job)).count(), 3, "three at a time");
    assert!(mapping(urgent), "a place of its own");
    assert!(world.run(10 * MINUTE, World::all_ended));
}

/// F33. One worker 20 times as slow as the others.
#[test]
fn slow_attempt_gets_one_backup_and_the_first_to_finish_is_accepted() {
    for seed in 0..20 {
        let mut world = World::new(seed, CALM, 3);
        world.set_up(0, (1, 0), 20);
        world.set_up(1, (1, 0), 1);
        world.set_up(2, (1, 0), 1);
        world.task_ms = 800..1_200;
        let job = world.submit(1, 8, 10, "wc");
        let succeeded = |world: &World| world.state(job) == Some(JobState::Succeeded);
        assert!(world.run(5 * MINUTE, succeeded), "seed {seed}: {:?}", states(&world));
        // At worst the slow one has a map and a reduce.
        assert!((1..=2).contains(&world.backups_given), "seed {seed}: {}", world.backups_given);
        assert!(world.given.len() <= 18 + 18 / 10 + 1, "seed {seed}: {}", world.given.len());
        assert!(world.now < 30_000, "seed {seed}: without backups it takes 40 s");
        // The other attempt is stopped, without waiting for its end.
        let idle = |world: &World| (0..3).all(|worker| world.running(worker).is_none());
        assert!(world.run(world.now + 3_000, idle));
        let tasks: BTreeSet<_> =
            world.given.iter().map(|(worker, attempt)| (*worker, attempt.task)).collect();
        assert_eq!(tasks.len(), world.given.len(), "never twice at one worker");
        assert_eq!(world.job(job).unwrap().retries, [0, 0]);
    }
}

/// F34. In lab mode, which has no speculation, a slow worker's tasks are waited for.
#[test]
fn job_without_speculation_runs_each_task_once_however_slow() {
    let mut world = World::new(1, CALM, 3);
    world.set_up(0, (1, 0), 20);
    let job = world.submit_as(1, (8, 10), "wc", |spec| {
        spec.output_format = OutputFormat::Lab;
        spec.scheduling.speculation = false;
        spec.task_timeout_ms = 10 * MINUTE;
    });
    assert!(world.run(20 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert_eq!((world.executions, world.given.len(), world.backups_given), (18, 18, 0));
}

#[test]
fn phase_of_one_task_gets_a_backup_after_a_minute() {
    let mut world = World::new(1, CALM, 2);
    world.set_up(0, (1, 0), 200);
    world.set_up(1, (1, 0), 200);
    world.task_ms = 1_000..1_100;
    let job = world.submit_as(1, (1, 1), "wc", |spec| spec.task_timeout_ms = 60 * MINUTE);
    assert!(world.run(5 * MINUTE, |world| world.running(0).or(world.running(1)).is_some()));
    let slow = usize::from(world.running(0).is_none());
    world.set_up(1 - slow, (1, 0), 1);
    let began = world.now;
    assert!(world.run(30 * MINUTE, |world| world.state(job) == Some(JobState::Reducing)));
    let took = world.now - began;
    assert!((60_000..70_000).contains(&took), "{took} ms; without a backup it takes 200 s");
}

#[test]
fn worker_that_alone_keeps_failing_a_job_is_excluded_from_it() {
    let mut world = World::new(1, CALM, 3);
    world.faulty = Some(0);
    let job = world.submit_as(1, (30, 2), "wc", |spec| spec.max_attempts = 10);
    assert!(world.run(10 * MINUTE, |world| world.state(job) == Some(JobState::Reducing)));
    assert_eq!(world.excluded(job), ["worker 0"]);
    let failures = world.job(job).unwrap().retries[0];
    assert!((3..=8).contains(&failures), "{failures}: three, and what ran there meanwhile");
    assert!(world.run(10 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    // Nobody else is left: better a bad worker than none.
    let mut world = World::new(1, CALM, 2);
    world.faulty = Some(0);
    let job = world.submit_as(1, (30, 2), "wc", |spec| spec.max_attempts = 100);
    assert!(world.run(10 * MINUTE, |world| !world.excluded(job).is_empty()));
    world.workers_come_back = false;
    world.kill(1);
    assert!(world.run(world.now + 5 * MINUTE, |world| world.excluded(job).is_empty()));
    world.faulty = None;
    assert!(world.run(world.now + 10 * MINUTE, World::all_ended));
    assert_eq!(world.state(job), Some(JobState::Succeeded), "{:?}", states(&world));
}

#[test]
fn job_waits_for_the_ones_it_comes_after_and_fails_with_them() {
    let after = |jobs: &[u128]| jobs.iter().map(|number| JobId(*number)).collect::<Vec<_>>();
    for (weather, ends) in [
        (CALM, [JobState::Succeeded; 3]),
        (Weather { attempt_fails: 1_000, ..CALM }, [JobState::Failed; 3]),
    ] {
        let mut world = World::new(1, weather, 2);
        let first = world.submit(1, 3, 2, "wc");
        world.run(1_000, |_| false);
        let second = world.submit_as(2, (2, 1), "wc", |spec| spec.scheduling.after = after(&[1]));
        world.run(world.now + 1_000, |_| false);
        let third = world.submit_as(3, (2, 1), "wc", |spec| spec.scheduling.after = after(&[2, 1]));
        world.run(world.now + 1_000, |_| false);
        assert_eq!(world.state(second), Some(JobState::Queued));
        assert!(world.waiting_for(second).unwrap().contains(&first.to_string()));
        assert!(world.run(10 * MINUTE, World::all_ended), "{:?}", states(&world));
        let states = [first, second, third].map(|job| world.state(job).unwrap());
        assert_eq!(states, ends);
        if ends[0] == JobState::Failed {
            for (job, before) in [(second, first), (third, first)] {
                let cause = world.job(job).unwrap().cause.clone().unwrap();
                assert_eq!(cause.kind, CauseKind::Dependency);
                let named = cause.message.contains(&before.to_string())
                    || cause.message.contains(&second.to_string());
                assert!(named, "{}", cause.message);
            }
        }
    }
    let mut world = World::new(1, CALM, 2);
    world.submit_as(2, (2, 1), "wc", |spec| spec.scheduling.after = after(&[1]));
    world.run(1_000, |_| false);
    assert!(world.job(JobId(2)).is_none(), "job 1 is not known");
}

#[test]
fn job_that_waits_for_workers_outlives_the_grace() {
    let mut world = World::new(1, CALM, 1);
    world.workers_come_back = false;
    let job = world.submit_as(1, (50, 2), "wc", |spec| spec.scheduling.wait_for_workers = true);
    assert!(world.run(MINUTE, |world| world.running(0).is_some()));
    world.kill(0);
    world.run(world.now + 30 * MINUTE, |_| false);
    assert_eq!(world.state(job), Some(JobState::Mapping));
    world.bring_back(0);
    assert!(world.run(world.now + 10 * MINUTE, World::all_ended));
    assert_eq!(world.state(job), Some(JobState::Succeeded));
}

#[test]
fn record_that_fails_twice_is_left_out_as_long_as_there_may_be_more() {
    for (max_skip, ends) in [(2, JobState::Succeeded), (1, JobState::Failed)] {
        let mut world = World::new(1, CALM, 2);
        let job = world.submit_as(1, (3, 2), "wc", |spec| spec.scheduling.max_skip = max_skip);
        let model = world.models.get_mut(&job).unwrap();
        model.bad.extend([(1, 4), (1, 7)]);
        world.run(1_000, |_| false);
        assert!(world.run(10 * MINUTE, World::all_ended), "{:?}", states(&world));
        assert_eq!(world.state(job), Some(ends));
        let job = world.job(job).unwrap();
        assert_eq!(job.skipped, max_skip);
        if ends == JobState::Succeeded {
            assert_eq!(job.counter_sums()["SKIPPED_RECORDS"], 2);
        } else {
            let message = &job.cause.as_ref().unwrap().message;
            assert!(message.contains("left out already"), "{message}");
        }
    }
}

#[test]
fn drained_worker_gets_nothing_new_and_leaves_without_cost() {
    let mut world = World::new(1, CALM, 2);
    world.workers_come_back = false;
    let job = world.submit(1, 20, 4, "wc");
    assert!(world.run(MINUTE, |world| world.running(0).is_some()));
    world.drain(0);
    let before = world.given.len();
    assert!(world.run(world.now + 10_000, |world| world.leaves(0) && world.running(0).is_none()));
    let to_it = world.given[before..].iter().filter(|(worker, _)| *worker == 0).count();
    assert_eq!(to_it, 0, "it got a task");
    assert!(world.run(10 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert_eq!((world.executions, world.job(job).unwrap().retries), (24, [0, 0]));
}

#[test]
fn tasks_kept_ready_go_to_a_worker_that_has_nothing_to_do() {
    let mut world = World::new(1, CALM, 2);
    world.set_up(0, (1, 3), 50);
    world.set_up(1, (1, 0), 1);
    world.task_ms = 1_000..1_100;
    let job = world.submit_as(1, (10, 1), "wc", |spec| {
        spec.task_timeout_ms = 60 * MINUTE;
        spec.scheduling.speculation = false;
    });
    assert!(world.run(MINUTE, |world| world.queued(0) > 0), "some are kept ready");
    let committed = |world: &World| world.job(job).unwrap().committed[0];
    assert!(world.run(2 * MINUTE, |world| committed(world) == 9), "{:?}", states(&world));
    assert!(world.now < 30_000, "they did not wait for the slow worker");
    assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert_eq!(world.executions, 11, "none ran twice");
    assert_eq!(world.job(job).unwrap().retries, [0, 0]);
}

#[test]
fn slow_attempt_gets_no_backup_at_its_own_worker() {
    let mut world = World::new(1, CALM, 1);
    world.set_up(0, (3, 0), 200);
    world.task_ms = 1_000..1_100;
    let job = world.submit_as(1, (1, 1), "wc", |spec| spec.task_timeout_ms = 60 * MINUTE);
    assert!(world.run(10 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert_eq!((world.given.len(), world.backups_given), (2, 0));
}

#[test]
fn task_kept_ready_may_wait_for_longer_than_tasks_may_stand_still() {
    let mut world = World::new(1, CALM, 1);
    world.set_up(0, (1, 1), 1);
    world.task_ms = 20_000..21_000;
    let job = world.submit_as(1, (6, 1), "wc", |spec| spec.task_timeout_ms = 5_000);
    assert!(world.run(MINUTE, |world| world.queued(0) > 0));
    assert!(world.run(10 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert_eq!(world.job(job).unwrap().retries, [0, 0]);
}
