//! A whole schedule drawn from a seed: small jobs with wishes of every kind, workers of every kind,
//! any weather. Times are short, so that very many fit into a minute.

use std::collections::BTreeMap;

use mr_coordinator::{
    failure::CauseKind,
    ids::JobId,
    job::JobState,
    schedule::{Settings, Weights},
    spec::Spec,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{CALM, STORM, Weather, World};

/// How long bad weather lasts. Where leaders change faster than workers find them no job can end.
const STORM_MS: u64 = 120_000;
/// How long jobs may take from then on: beyond what a slow worker alone takes for all of them.
const LIMIT_MS: u64 = 7_200_000;

/// What happened in a schedule, to see that everything does in some.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) schedules: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) dependency: u64,
    pub(crate) backups: u64,
    pub(crate) skipped: u64,
    pub(crate) executions: u64,
    pub(crate) virtual_ms: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.cancelled += other.cancelled;
        self.dependency += other.dependency;
        self.backups += other.backups;
        self.skipped += other.skipped;
        self.executions += other.executions;
        self.virtual_ms += other.virtual_ms;
    }
}

/// A share of a kind of trouble: none of it in half of the schedules.
fn some(rng: &mut StdRng, most: u32) -> u32 {
    if rng.random_bool(0.5) { 0 } else { rng.random_range(0..=most) }
}

fn weather(rng: &mut StdRng) -> Weather {
    match rng.random_range(0..8) {
        0 => CALM,
        1 => STORM,
        _ => Weather {
            message_lost: some(rng, 150),
            message_doubled: some(rng, 150),
            attempt_fails: some(rng, 150),
            attempt_kills: some(rng, 30),
            worker_killed: some(rng, 10),
            worker_paused: some(rng, 10),
            leader_changes: some(rng, 20),
            proposal_refused: some(rng, 60),
            proposal_unknown: some(rng, 60),
            intermediate_lost: some(rng, 100),
            output_lost: some(rng, 100),
            attempt_stuck: some(rng, 30),
            worker_drained: some(rng, 8),
            answer_late: some(rng, 300),
            delay_ms: [1, 20, 200, 1_000][rng.random_range(0..4)],
        },
    }
}

fn wishes(rng: &mut StdRng, number: u128, spec: &mut Spec) {
    spec.lease_ms = [1_000, 3_000][rng.random_range(0..2)];
    spec.task_timeout_ms = [3_000, 20_000][rng.random_range(0..2)];
    spec.max_attempts = rng.random_range(2..=5);
    let wishes = &mut spec.scheduling;
    wishes.priority = rng.random_range(0..=9);
    wishes.queue = ["default", "fast", "slow"][rng.random_range(0..3)].to_owned();
    wishes.speculation = rng.random_bool(0.7);
    wishes.max_skip = [0, 1, 3][rng.random_range(0..3)];
    wishes.wait_for_workers = rng.random_bool(0.2);
    wishes.nondeterministic_ok = rng.random_bool(0.3);
    if number > 1 && rng.random_bool(0.3) {
        wishes.after = vec![JobId(rng.random_range(1..number))];
    }
}

impl World {
    fn drawn(seed: u64, rng: &mut StdRng) -> Self {
        let settings = Settings {
            lease_ms: 2_000,
            heartbeat_ms: 200,
            no_workers_grace_ms: Some(10_000),
            jobs_running_max: rng.random_range(1..=3),
            weights: Weights::new(BTreeMap::from([("fast".to_owned(), 3)])),
        };
        let workers = rng.random_range(1..=4);
        let mut world = Self::with_settings(seed, weather(rng), workers, settings);
        world.task_ms = 20..[100, 1_000, 3_000][rng.random_range(0..3)];
        world.step_ms = [50, 100, 200, 400][rng.random_range(0..4)];
        world.pause_ms = 6_000;
        for worker in 0..workers {
            let prefetch = rng.random_range(0..3);
            let slowness = if rng.random_bool(0.1) { 20 } else { 1 };
            world.set_up(worker, (rng.random_range(1..=2), prefetch), slowness);
        }
        world
    }

    /// Lives through the schedule of a seed, with every check on the way.
    pub(crate) fn live_through(seed: u64) -> Tally {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5ced);
        let mut world = Self::drawn(seed, &mut rng);
        let jobs = rng.random_range(1..=3);
        let mut submitted = Vec::new();
        for number in 1..=jobs {
            let size = (rng.random_range(0..=6), rng.random_range(1..=4));
            let job = world.submit_as(number, size, "wc", |spec| wishes(&mut rng, number, spec));
            let model = world.models.entry(job).or_default();
            model.nondeterministic = rng.random_bool(0.2);
            if size.0 > 0 && !model.nondeterministic && rng.random_bool(0.2) {
                for _ in 0..rng.random_range(1..=3) {
                    model.bad.insert((rng.random_range(0..size.0), rng.random_range(0..5)));
                }
            }
            submitted.push(job);
            let pause = rng.random_range(0..2_000);
            world.run(world.now + pause, |_| false);
            if rng.random_bool(0.05) {
                world.cancel(job);
            }
        }
        let ended = world.run(STORM_MS, Self::all_ended);
        let ended = ended || {
            world.weather = CALM;
            world.run(world.now + LIMIT_MS, Self::all_ended)
        };
        assert!(ended, "seed {seed}: a job never ends: {}", world.plight());
        let mut tally = Tally { schedules: 1, ..Tally::default() };
        for job in submitted {
            world.count(job, &mut tally);
        }
        tally.executions = world.executions.into();
        tally.virtual_ms = world.now;
        tally.backups = world.backups_given;
        tally
    }

    /// What keeps jobs from ending, for who reads of it.
    fn plight(&self) -> String {
        let mut told = format!("{:?}\n", self.weather);
        for job in self.machine.jobs().filter(|job| !job.state.terminal()) {
            let progress = self.scheduler.progress(job.id);
            told += &format!(
                "{} {:?} {:?} {:?} {progress:?}\n",
                job.id, job.state, job.committed, job.spec
            );
        }
        for worker in self.scheduler.worker_views() {
            told += &format!("{worker:?}\n");
        }
        told
    }

    fn count(&self, job: JobId, tally: &mut Tally) {
        let Some(job) = self.job(job) else { return };
        tally.skipped += u64::from(job.skipped);
        match job.state {
            JobState::Succeeded => tally.succeeded += 1,
            JobState::Cancelled => tally.cancelled += 1,
            JobState::Failed => {
                tally.failed += 1;
                let cause = job.cause.as_ref().expect("a failed job says why");
                tally.dependency += u64::from(cause.kind == CauseKind::Dependency);
            }
            JobState::Queued
            | JobState::Mapping
            | JobState::Reducing
            | JobState::Committing
            | JobState::Failing
            | JobState::Cancelling => unreachable!("every job has ended"),
        }
    }
}
