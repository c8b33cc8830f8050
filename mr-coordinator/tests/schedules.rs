//! The scheduler in its world: random schedules from seeds, and the cases of mapreduce.md 6.6 that
//! need no process.

#![allow(dead_code, reason = "not every test uses all of the world")]

mod world;

use mr_coordinator::{
    failure::CauseKind,
    ids::TaskKind,
    job::JobState,
    schedule::{Effect, Reply, ReportAnswer},
};
use world::{CALM, STORM, Weather, World, drawn::Tally};

/// How many seeds a test of many runs.
fn seeds() -> u64 {
    match std::env::var("FLOTILLA_TEST_DEPTH").as_deref() {
        Ok("deep") => 2_000,
        Ok(_) | Err(_) => 100,
    }
}

const MINUTE: u64 = 60_000;

/// How many drawn schedules there are; `SCHEDULES_FROM` and `SCHEDULES` choose others.
fn schedules() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let from = number("SCHEDULES_FROM").unwrap_or(0);
    let count = number("SCHEDULES").unwrap_or_else(|| {
        match std::env::var("FLOTILLA_TEST_DEPTH").as_deref() {
            Ok("deep") => 1_000_000,
            Ok("ci") => 100_000,
            Ok(_) | Err(_) => 4_000,
        }
    });
    from..from + count
}

/// M1 to M6: at most one accepted attempt per task, counters and results as those of a run of one
/// task after the other, every job ends, whatever happens.
#[test]
fn any_schedule_ends_with_the_results_of_a_sequential_run() {
    let (range, threads) = (schedules(), std::thread::available_parallelism().unwrap().get());
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let part = |thread| {
            let range = range.clone();
            scope.spawn(move || {
                let mut tally = Tally::default();
                for seed in range.skip(thread).step_by(threads) {
                    let lived = std::panic::catch_unwind(|| World::live_through(seed));
                    match lived {
                        Ok(one) => tally.add(&one),
                        Err(panic) => {
                            eprintln!("the schedule of seed {seed} went wrong");
                            std::panic::resume_unwind(panic);
                        }
                    }
                }
                tally
            })
        };
        for thread in (0..threads).map(part).collect::<Vec<_>>() {
            tally.add(&thread.join().unwrap());
        }
    });
    println!("{tally:?}");
    // Everything happens somewhere, or the schedules show less than they seem to.
    if tally.schedules >= 1_000 {
        for (what, count) in [
            ("success", tally.succeeded),
            ("failure", tally.failed),
            ("cancelled", tally.cancelled),
            ("dependency", tally.dependency),
            ("backup", tally.backups),
            ("skipped record", tally.skipped),
        ] {
            assert!(count > 0, "no {what} in {} schedules", tally.schedules);
        }
    }
}

/// F1. What comes out is compared with a sequential run in `world/model.rs`.
#[test]
fn calm_world_runs_each_task_once() {
    for seed in 0..20 {
        for (workers, slots) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (8, 1), (8, 2)] {
            let mut world = World::new(seed, CALM, workers);
            for worker in 0..workers {
                world.set_up(worker, (slots, (seed % 3) as u32), 1);
            }
            let job = world.submit(1, 8, 10, "wc");
            assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
            assert_eq!(world.executions, 18);
            assert_eq!(world.job(job).unwrap().retries, [0, 0]);
        }
    }
}

#[test]
fn every_job_ends_in_any_weather() {
    for seed in 0..seeds() {
        let mut world = World::new(seed, STORM, 3);
        for number in 0..4 {
            world.submit(number + 1, (seed % 7) as u32, 1 + (seed % 5) as u32, "wc");
            world.run(world.now + 2_000, |_| false);
        }
        if seed % 3 == 0 {
            world.cancel(mr_coordinator::ids::JobId(2));
        }
        let ended = world.run(400 * MINUTE, World::all_ended);
        assert!(ended, "seed {seed}: {:?}", states(&world));
    }
}

#[test]
fn bad_messages_and_lost_workers_alone_never_fail_a_job() {
    let weather = Weather {
        attempt_fails: 0,
        attempt_kills: 0,
        worker_killed: 0,
        intermediate_lost: 0,
        output_lost: 0,
        worker_paused: 1,
        ..STORM
    };
    for seed in 0..seeds() {
        let mut world = World::new(seed, weather, 3);
        let job = world.submit(1, 5, 3, "wc");
        assert!(world.run(400 * MINUTE, World::all_ended), "seed {seed}: {:?}", states(&world));
        let poisoned = world.job(job).is_some_and(|job| {
            job.cause.as_ref().is_some_and(|cause| cause.kind == CauseKind::PoisonTask)
        });
        let submitted = world.state(job).is_some();
        let succeeded = world.state(job) == Some(JobState::Succeeded);
        assert!(succeeded || poisoned || !submitted, "seed {seed}: {:?}", states(&world));
    }
}

fn states(world: &World) -> Vec<(JobState, [u32; 2], Option<String>)> {
    let cause = |job: &mr_coordinator::job::Job| job.cause.as_ref().map(|c| c.message.clone());
    world.machine.jobs().map(|job| (job.state, job.committed, cause(job))).collect()
}

#[test]
fn killed_worker_s_tasks_run_elsewhere() {
    let mut world = World::new(1, CALM, 2);
    world.workers_come_back = false;
    let job = world.submit(1, 6, 2, "wc");
    assert!(world.run(MINUTE, |world| world.running(0).is_some()));
    world.kill(0);
    assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert!(world.job(job).unwrap().retries[0] > 0, "the loss left a record");
}

#[test]
fn two_workers_of_one_name_cost_no_task_and_the_second_comes_when_the_first_is_gone() {
    for seed in 0..20 {
        let mut world = World::new(seed, CALM, 2);
        world.name_alike(1, 0);
        world.workers_come_back = false;
        let job = world.submit(1, 8, 4, "wc");
        let succeeded = |world: &World| world.state(job) == Some(JobState::Succeeded);
        assert!(world.run(5 * MINUTE, succeeded), "seed {seed}: {:?}", states(&world));
        assert_eq!(world.job(job).unwrap().retries, [0, 0], "seed {seed}");
        let first = usize::from(world.registered(1));
        world.kill(first);
        let heir = |world: &World| world.registered(1 - first);
        // Four heartbeats of silence, and the second between two questions.
        assert!(world.run(world.now + 3_200, heir), "seed {seed}");
    }
}

/// F6.
#[test]
fn late_report_of_a_paused_worker_loses_the_race() {
    let mut world = World::new(1, CALM, 2);
    let job = world.submit(1, 1, 1, "wc");
    assert!(world.run(MINUTE, |world| (0..2).any(|worker| world.running(worker).is_some())));
    let slow = (0..2).find(|worker| world.running(*worker).is_some()).unwrap();
    let attempt = world.running(slow).unwrap();
    world.pause(slow, 10 * MINUTE);
    assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert!(world.run(20 * MINUTE, |world| world.running(slow).is_none()), "it is told to stop");
    let accepted = |answer: &ReportAnswer| matches!(answer, ReportAnswer::Accepted);
    assert!(!world.verdicts.iter().any(|(id, answer)| *id == attempt && accepted(answer)));
}

/// F7.
#[test]
fn late_report_wins_while_nobody_else_committed() {
    let mut world = World::new(3, CALM, 1);
    let job = world.submit(1, 1, 1, "wc");
    assert!(world.run(MINUTE, |world| world.running(0).is_some()));
    let attempt = world.running(0).unwrap();
    // Longer than the lease of the attempt and of the worker; there is nobody else to run it.
    world.pause(0, 15_000);
    assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    assert!(world.verdicts.contains(&(attempt, ReportAnswer::Accepted)));
    assert_eq!(world.executions, 2);
}

#[test]
fn running_attempts_survive_a_change_of_leader() {
    for seed in 0..20 {
        let mut world = World::new(seed, CALM, 3);
        let job = world.submit(1, 8, 10, "wc");
        for _ in 0..5 {
            world.run(world.now + 700, |_| false);
            world.change_leader();
        }
        assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
        assert_eq!(world.executions, 18, "seed {seed}: a task ran twice");
    }
}

#[test]
fn job_without_workers_fails_after_the_grace_and_queued_ones_stay() {
    let mut world = World::new(1, CALM, 2);
    world.workers_come_back = false;
    let started = world.submit(1, 50, 2, "wc");
    assert!(world.run(MINUTE, |world| world.running(0).is_some()));
    world.kill(0);
    world.kill(1);
    let killed = world.now;
    world.run(killed + 20_000, |_| false);
    let queued = world.submit(2, 3, 2, "wc");
    assert!(
        world.run(killed + 10 * MINUTE, |world| world.state(started) == Some(JobState::Failed))
    );
    let took = world.now - killed;
    assert!((59_000..=62_500).contains(&took), "failed after {took} ms");
    let cause = world.job(started).unwrap().cause.clone().unwrap();
    assert_eq!(cause.kind, CauseKind::NoWorkers);
    world.run(world.now + 10 * MINUTE, |_| false);
    assert_eq!(world.state(queued), Some(JobState::Queued));
}

#[test]
fn busy_worker_that_only_sends_heartbeats_is_not_lost() {
    for seed in 0..10 {
        let mut world = World::new(seed, CALM, 2);
        world.task_ms = 55_000..59_000;
        let job = world.submit(1, 6, 4, "wc");
        assert!(world.run(60 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
        assert_eq!(world.executions, 10, "seed {seed}");
        assert_eq!(world.job(job).unwrap().retries, [0, 0], "seed {seed}");
    }
}

#[test]
fn task_that_kills_its_workers_is_poison() {
    let weather = Weather { attempt_kills: 1_000, ..CALM };
    let mut world = World::new(1, weather, 5);
    let job = world.submit(1, 1, 1, "wc");
    assert!(world.run(20 * MINUTE, |world| world.state(job) == Some(JobState::Failed)));
    assert_eq!(world.job(job).unwrap().cause.as_ref().unwrap().kind, CauseKind::PoisonTask);
}

#[test]
fn task_that_always_fails_runs_four_times() {
    let weather = Weather { attempt_fails: 1_000, ..CALM };
    let mut world = World::new(1, weather, 2);
    let job = world.submit(1, 1, 1, "wc");
    assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Failed)));
    assert_eq!(world.executions, 4);
    assert_eq!(world.job(job).unwrap().cause.as_ref().unwrap().kind, CauseKind::TaskFailed);
}

#[test]
fn cancelled_job_ends_soon_and_its_attempts_are_stopped() {
    let mut world = World::new(1, CALM, 2);
    let job = world.submit(1, 50, 2, "wc");
    assert!(world.run(MINUTE, |world| world.running(0).is_some() && world.running(1).is_some()));
    world.cancel(job);
    let deadline = world.now + 3_000;
    assert!(world.run(deadline, |world| world.state(job) == Some(JobState::Cancelled)));
    assert!(world.run(world.now + 2_000, |world| {
        world.running(0).is_none() && world.running(1).is_none()
    }));
}

#[test]
fn app_that_no_worker_has_is_refused_while_workers_are_there() {
    let mut world = World::new(1, CALM, 1);
    world.run(2_000, |_| false);
    let job = world.submit(1, 1, 1, "no such app");
    world.run(world.now + 2_000, |_| false);
    assert_eq!(world.unknown_apps, 1);
    assert!(world.job(job).is_none());
}

#[test]
fn job_whose_inputs_cannot_be_planned_fails_with_the_reason() {
    let mut world = World::new(1, CALM, 1);
    let job = world.submit(1, 9_999, 1, "wc");
    assert!(world.run(MINUTE, |world| world.state(job) == Some(JobState::Failed)));
    let cause = world.job(job).unwrap().cause.clone().unwrap();
    assert_eq!((cause.kind, cause.message.as_str()), (CauseKind::Planning, "no such input"));
}

#[test]
fn job_that_cannot_publish_says_why_until_it_can() {
    let mut world = World::new(1, CALM, 2);
    let job = world.submit(1, 3, 2, "wc");
    assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Reducing)));
    world.disk_refuses = Some("no space left".into());
    let told = |world: &World| world.waiting_for(job).as_deref() == Some("no space left");
    assert!(world.run(world.now + 5 * MINUTE, told), "{:?}", states(&world));
    world.run(world.now + 60 * MINUTE, |_| false);
    assert!(told(&world), "it says so as long as it waits: {:?}", states(&world));
    world.disk_refuses = None;
    assert!(world.run(world.now + MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
}

#[test]
fn filesystem_that_refuses_for_a_while_costs_no_job() {
    // At the loading of the plan, and at the look at the output.
    for (reach, change) in [(JobState::Mapping, true), (JobState::Reducing, false)] {
        for (outage, ends) in [(2, JobState::Succeeded), (20, JobState::Failed)] {
            let mut world = World::new(1, CALM, 2);
            let job = world.submit(1, 3, 2, "wc");
            assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(reach)));
            world.looks_refused = Some("input/output error".into());
            if change {
                world.change_leader();
            }
            world.run(world.now + outage * MINUTE, |_| false);
            world.looks_refused = None;
            assert!(world.run(world.now + 5 * MINUTE, World::all_ended), "{:?}", states(&world));
            assert_eq!(world.state(job), Some(ends), "{reach:?}, {outage} min");
            let cause = world.job(job).unwrap().cause.clone();
            let why = cause.map(|cause| cause.message.clone());
            assert_eq!(why.is_some_and(|why| why.contains("input/output")), outage == 20);
        }
    }
}

#[test]
fn stalled_leader_takes_nobody_for_lost() {
    let mut world = World::new(5, CALM, 2);
    let job = world.submit(1, 8, 4, "wc");
    assert!(world.run(MINUTE, |world| world.running(0).is_some()));
    // The coordinator is stopped for a minute; workers work on, and their calls wait.
    world.now += MINUTE;
    assert!(
        world.run(world.now + 5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded))
    );
    assert_eq!(world.job(job).unwrap().retries, [0, 0]);
    assert_eq!(world.job(job).unwrap().committed[TaskKind::Map.slot()], 8);
}

/// F9.
#[test]
fn calls_that_are_doubled_lost_and_late_cost_no_job() {
    let weather = Weather { message_lost: 200, message_doubled: 1_000, delay_ms: 3_000, ..CALM };
    for seed in 0..seeds() {
        let mut world = World::new(seed, weather, 3);
        let job = world.submit(1, 8, 10, "wc");
        assert!(world.run(200 * MINUTE, World::all_ended), "seed {seed}: {:?}", states(&world));
        if world.job(job).is_none() {
            continue; // Its submission was lost.
        }
        // A late heartbeat can make a worker look lost, three times even.
        let poisoned = world.job(job).unwrap().cause.as_ref().map(|cause| cause.kind)
            == Some(CauseKind::PoisonTask);
        let succeeded = world.state(job) == Some(JobState::Succeeded);
        assert!(succeeded || poisoned, "seed {seed}: {:?}", states(&world));
    }
}

/// F15.
#[test]
fn leader_change_behind_any_record_costs_no_execution() {
    let life = |change_leader_at: Option<u64>| {
        let mut world = World::new(7, CALM, 3);
        world.change_leader_at = change_leader_at;
        let job = world.submit(1, 8, 10, "wc");
        // A submission that the old leader took along is sent again.
        world.run(5_000, |world| world.job(job).is_some());
        if world.job(job).is_none() {
            world.submit(1, 8, 10, "wc");
        }
        let succeeded = |world: &World| world.state(job) == Some(JobState::Succeeded);
        assert!(world.run(5 * MINUTE, succeeded), "{change_leader_at:?}: {:?}", states(&world));
        assert_eq!(world.executions, 18, "{change_leader_at:?}");
        assert_eq!(world.job(job).unwrap().retries, [0, 0], "{change_leader_at:?}");
        world.records()
    };
    let records = life(None);
    assert!(records > 20, "{records}");
    for at in 1..=records {
        life(Some(at));
    }
}

/// F18.
#[test]
fn leader_that_is_cut_off_from_the_log_acknowledges_nothing() {
    for seed in 0..20 {
        let mut world = World::new(seed, CALM, 3);
        let job = world.submit(1, 8, 10, "wc");
        assert!(world.run(MINUTE, |world| world.job(job).is_some_and(|job| job.committed[0] > 2)));
        let (committed, verdicts) = (world.job(job).unwrap().committed, world.verdicts.len());
        world.isolate_leader(4_000);
        let log = world.job(job).unwrap();
        for (attempt, answer) in &world.verdicts[verdicts..] {
            let in_log = log.result(attempt.task).is_some_and(|is| is.attempt == attempt.number);
            assert!(in_log || *answer != ReportAnswer::Accepted, "{attempt}");
        }
        assert_eq!(world.job(job).unwrap().committed, committed);
        world.change_leader();
        assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
    }
}

/// F19.
#[test]
fn leader_that_was_stopped_and_wakes_up_acknowledges_nothing() {
    for seed in 0..20 {
        let mut world = World::new(seed, CALM, 3);
        let job = world.submit(1, 8, 10, "wc");
        assert!(world.run(MINUTE, |world| world.job(job).is_some_and(|job| job.committed[0] > 2)));
        let effects = world.change_leader_and_wake_the_old_one_later(|world| {
            let succeeded = |world: &World| world.state(job) == Some(JobState::Succeeded);
            assert!(world.run(5 * MINUTE, succeeded));
        });
        // It may propose, which the log refuses it, and repeat what was acknowledged before; new
        // acknowledgements would be answers.
        let accepted = |effect: &&Effect| {
            matches!(effect, Effect::Reply { reply: Reply::Report { answer, .. }, .. }
                if *answer == ReportAnswer::Accepted)
        };
        assert_eq!(effects.iter().filter(accepted).count(), 0, "seed {seed}");
        let published = |effect: &&Effect| matches!(effect, Effect::Publish { .. });
        assert_eq!(effects.iter().filter(published).count(), 0, "seed {seed}");
    }
}

/// F20 and F21, as decisions: the map is run again, once, and what reduces wrote stays.
#[test]
fn lost_map_output_is_made_again_once() {
    for seed in 0..20 {
        let mut world = World::new(seed, CALM, 3);
        let job = world.submit(1, 8, 10, "wc");
        let reducing = |world: &World| world.job(job).is_some_and(|job| job.committed[1] > 0);
        assert!(world.run(5 * MINUTE, reducing));
        let lost = world.committed_map(job, 2);
        world.damaged.insert(lost);
        assert!(world.run(5 * MINUTE, |world| world.state(job) == Some(JobState::Succeeded)));
        let accepted = |kind: TaskKind| {
            let of_kind = world.verdicts.iter().filter(|(id, _)| id.task.kind == kind);
            of_kind.filter(|(_, answer)| *answer == ReportAnswer::Accepted).count()
        };
        assert_eq!([accepted(TaskKind::Map), accepted(TaskKind::Reduce)], [9, 10], "seed {seed}");
    }
}

/// F22.
#[test]
fn map_that_writes_something_else_the_second_time_resets_reduces_unless_that_is_fine() {
    for (fine, again) in [(false, true), (true, false)] {
        for seed in 0..20 {
            let mut world = World::new(seed, CALM, 3);
            let job = world.submit_as(1, (8, 10), "wc", |spec| {
                spec.scheduling.nondeterministic_ok = fine;
            });
            world.models.get_mut(&job).unwrap().nondeterministic = true;
            let reducing = |world: &World| world.job(job).is_some_and(|job| job.committed[1] > 0);
            assert!(world.run(5 * MINUTE, reducing));
            let first = world.committed_reduces(job);
            world.damaged.insert(world.committed_map(job, 2));
            let taken_back = |world: &World| world.job(job).unwrap().taken_back > 0;
            assert!(world.run(5 * MINUTE, taken_back));
            let mapped = |world: &World| world.job(job).unwrap().committed[0] == 8;
            assert!(world.run(5 * MINUTE, mapped));
            let left = world.committed_reduces(job);
            assert_eq!(left.is_empty(), again, "seed {seed}, {fine}: {left:?}");
            assert!(again || left.is_superset(&first));
            let succeeded = |world: &World| world.state(job) == Some(JobState::Succeeded);
            assert!(world.run(5 * MINUTE, succeeded), "{:?}", states(&world));
        }
    }
}
