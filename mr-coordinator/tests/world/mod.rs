//! A world for the scheduler, in virtual time and from one seed: a log, leaders that change,
//! workers that are killed, paused, drained and cut off, a disk that answers late and sometimes
//! badly, apps that fail, get stuck, and meet records that they cannot take.
//!
//! What attempts write is modelled by a hash of what they read, so that the results of a job can be
//! compared with those of a run from first task to last, one after the other (`model.rs`).

pub(crate) mod drawn;
mod model;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mr_coordinator::{
    command::Command,
    ids::{AttemptId, JobId, TaskId, WorkerId},
    job::{Job, JobState},
    leases::Millis,
    machine::{Machine, Response},
    schedule::{
        Effect, Event, Now, ProposalId, PublishOutcome, Reply, ReportAnswer, ReportEnd, Scheduler,
        Settings, Ticket, Trouble, Weights,
    },
    scheduling::Scheduling,
    spec::{InputFormat, OutputFormat, Plan, PlanRoot, Spec},
};
use raft::{Applied, GroupTime, Index, StateMachine, Term};
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub(crate) use self::model::Model;

/// How unfriendly the world is, in parts of a thousand per occasion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) message_lost: u32,
    pub(crate) message_doubled: u32,
    pub(crate) attempt_fails: u32,
    pub(crate) attempt_kills: u32,
    pub(crate) worker_killed: u32,
    pub(crate) worker_paused: u32,
    pub(crate) leader_changes: u32,
    pub(crate) proposal_refused: u32,
    pub(crate) proposal_unknown: u32,
    pub(crate) intermediate_lost: u32,
    pub(crate) output_lost: u32,
    pub(crate) attempt_stuck: u32,
    pub(crate) worker_drained: u32,
    pub(crate) answer_late: u32,
    pub(crate) delay_ms: u64,
}

pub(crate) const CALM: Weather = Weather {
    message_lost: 0,
    message_doubled: 0,
    attempt_fails: 0,
    attempt_kills: 0,
    worker_killed: 0,
    worker_paused: 0,
    leader_changes: 0,
    proposal_refused: 0,
    proposal_unknown: 0,
    intermediate_lost: 0,
    output_lost: 0,
    attempt_stuck: 0,
    worker_drained: 0,
    answer_late: 0,
    delay_ms: 5,
};

pub(crate) const STORM: Weather = Weather {
    message_lost: 60,
    message_doubled: 60,
    attempt_fails: 60,
    attempt_kills: 10,
    worker_killed: 3,
    worker_paused: 3,
    leader_changes: 2,
    proposal_refused: 20,
    proposal_unknown: 20,
    intermediate_lost: 20,
    output_lost: 20,
    attempt_stuck: 10,
    worker_drained: 2,
    answer_late: 50,
    delay_ms: 400,
};

#[derive(Clone, Copy)]
struct Asker {
    worker: usize,
    incarnation: u128,
    attempt: Option<AttemptId>,
}

enum Delivery {
    ToLeader(u64, Event),
    ToWorker(Asker, Reply),
    Commit(u64, ProposalId, Box<Command>),
    /// What the log made of a proposal reaches the leader.
    Applied(u64, ProposalId, Response),
}

pub(crate) struct World {
    rng: StdRng,
    weather: Weather,
    pub(crate) now: u64,
    pub(crate) machine: Machine,
    index: u64,
    epoch: u64,
    scheduler: Scheduler,
    workers: Vec<worker::Worker>,
    pub(crate) workers_come_back: bool,
    queue: BTreeMap<(u64, u64), Delivery>,
    order: u64,
    tickets: BTreeMap<Ticket, Asker>,
    /// Callers that are gone.
    gone: BTreeSet<Ticket>,
    last_ticket: u64,
    last_incarnation: u128,
    plans: BTreeMap<JobId, Arc<Plan>>,
    /// Which jobs there are, and what their results must be.
    pub(crate) models: BTreeMap<JobId, Model>,
    /// The accepted attempt of each task, as the verdicts told it.
    accepted: BTreeMap<(JobId, TaskId), AttemptId>,
    /// What each accepted attempt counted: `COUNT`, and records that it left out.
    counted: BTreeMap<AttemptId, (u64, u64)>,
    /// What attempts wrote.
    contents: BTreeMap<AttemptId, u64>,
    /// Answers of the log that have not reached the leader.
    answers_under_way: u32,
    pub(crate) issued: BTreeSet<AttemptId>,
    /// The attempts that each worker was given, in order.
    pub(crate) given: Vec<(usize, AttemptId)>,
    pub(crate) executions: u32,
    pub(crate) verdicts: Vec<(AttemptId, ReportAnswer)>,
    pub(crate) unknown_apps: u32,
    /// What the shared filesystem says to publications, if it refuses.
    pub(crate) disk_refuses: Option<String>,
    /// What it says to who reads a plan or looks at an output.
    pub(crate) looks_refused: Option<String>,
    /// How long tasks take.
    pub(crate) task_ms: std::ops::Range<u64>,
    /// How much time passes from one step to the next.
    pub(crate) step_ms: u64,
    pub(crate) settings: Settings,
    /// Maps' outputs that are missing or damaged.
    pub(crate) damaged: BTreeSet<AttemptId>,
    /// When the log has so many records the leader changes.
    pub(crate) change_leader_at: Option<u64>,
    /// Whether the leader hears its workers and nobody else.
    isolated: bool,
    /// A worker that fails whatever it runs.
    pub(crate) faulty: Option<usize>,
    /// How long workers are away at most.
    pub(crate) pause_ms: u64,
    /// Backups that the leaders gave out.
    pub(crate) backups_given: u64,
}

pub(crate) fn settings() -> Settings {
    Settings {
        lease_ms: 10_000,
        heartbeat_ms: 500,
        no_workers_grace_ms: Some(60_000),
        jobs_running_max: 3,
        weights: Weights::default(),
    }
}

impl World {
    pub(crate) fn new(seed: u64, weather: Weather, workers: usize) -> Self {
        Self::with_settings(seed, weather, workers, settings())
    }

    pub(crate) fn with_settings(
        seed: u64,
        weather: Weather,
        workers: usize,
        settings: Settings,
    ) -> Self {
        let machine = Machine::new();
        let now = Now { monotonic: Millis(0), unix_ms: 0 };
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            weather,
            now: 0,
            scheduler: Scheduler::new(settings.clone(), 1, 0, &machine, now),
            machine,
            index: 0,
            epoch: 1,
            workers: Vec::new(),
            workers_come_back: true,
            queue: BTreeMap::new(),
            order: 0,
            tickets: BTreeMap::new(),
            gone: BTreeSet::new(),
            last_ticket: 0,
            last_incarnation: 0,
            plans: BTreeMap::new(),
            models: BTreeMap::new(),
            accepted: BTreeMap::new(),
            counted: BTreeMap::new(),
            contents: BTreeMap::new(),
            answers_under_way: 0,
            issued: BTreeSet::new(),
            given: Vec::new(),
            executions: 0,
            verdicts: Vec::new(),
            unknown_apps: 0,
            disk_refuses: None,
            looks_refused: None,
            task_ms: 100..4_000,
            step_ms: 50,
            settings,
            damaged: BTreeSet::new(),
            change_leader_at: None,
            isolated: false,
            faulty: None,
            pause_ms: 30_000,
            backups_given: 0,
        };
        for number in 0..workers {
            let worker = world.process(&format!("worker {number}"));
            world.workers.push(worker);
        }
        world
    }

    fn chance(&mut self, of_thousand: u32) -> bool {
        self.rng.random_range(0..1_000) < of_thousand
    }

    fn time(&self) -> Now {
        Now { monotonic: Millis(self.now), unix_ms: 1_000_000 + self.now }
    }

    fn later(&mut self, delivery: Delivery) {
        let delay = self.rng.random_range(0..=self.weather.delay_ms);
        self.at(self.now + delay, delivery);
    }

    fn at(&mut self, when: u64, delivery: Delivery) {
        self.order += 1;
        self.queue.insert((when, self.order), delivery);
    }

    fn ticket(&mut self, asker: Asker) -> Ticket {
        self.last_ticket += 1;
        self.tickets.insert(Ticket(self.last_ticket), asker);
        Ticket(self.last_ticket)
    }

    /// Submits a job; its effects run at once.
    pub(crate) fn submit(&mut self, number: u128, maps: u32, reduces: u32, app: &str) -> JobId {
        self.submit_as(number, (maps, reduces), app, |_| {})
    }

    /// Submits a job with wishes of its own.
    pub(crate) fn submit_as(
        &mut self,
        number: u128,
        (maps, reduces): (u32, u32),
        app: &str,
        change: impl FnOnce(&mut Spec),
    ) -> JobId {
        let job = JobId(number);
        let mut spec = Spec {
            app: app.into(),
            inputs: vec![format!("{maps}")],
            output: format!("out-{number}"),
            reduces,
            input_format: InputFormat::Text,
            output_format: OutputFormat::Text,
            split_bytes: 0,
            lease_ms: 5_000,
            task_timeout_ms: 60_000,
            max_attempts: 4,
            name: String::new(),
            slow_ms: 0,
            overwrite: false,
            flow: mr_coordinator::flow::Flow::default(),
            scheduling: Scheduling::default(),
            streaming: None,
        };
        change(&mut spec);
        self.models.entry(job).or_default();
        let ticket = self.ticket(Asker { worker: usize::MAX, incarnation: 0, attempt: None });
        let (token, output_key) = (format!("token {number}"), spec.output.clone());
        self.event(Event::Submit { ticket, job, token, spec, output_key });
        job
    }

    pub(crate) fn cancel(&mut self, job: JobId) {
        let ticket = self.ticket(Asker { worker: usize::MAX, incarnation: 0, attempt: None });
        self.event(Event::Cancel { ticket, job });
    }

    pub(crate) fn job(&self, job: JobId) -> Option<&Arc<Job>> {
        self.machine.job(job)
    }

    pub(crate) fn state(&self, job: JobId) -> Option<JobState> {
        self.job(job).map(|job| job.state)
    }

    /// What the leader says that a job waits for.
    pub(crate) fn waiting_for(&self, job: JobId) -> Option<String> {
        self.scheduler.progress(job)?.waiting_for
    }

    /// The accepted attempt at a map.
    pub(crate) fn committed_map(&self, job: JobId, map: u32) -> AttemptId {
        let task = TaskId::map(map);
        let result = self.job(job).and_then(|job| job.result(task)).expect("it is committed");
        AttemptId { job, task, number: result.attempt }
    }

    /// The accepted attempts at reduces.
    pub(crate) fn committed_reduces(&self, job: JobId) -> BTreeSet<AttemptId> {
        let known = self.job(job).expect("the job is there");
        let tasks = (0..known.spec.reduces).map(TaskId::reduce);
        let results = tasks.filter_map(|task| {
            let number = known.result(task)?.attempt;
            Some(AttemptId { job, task, number })
        });
        results.collect()
    }

    /// How many attempts at a job's tasks are under way.
    pub(crate) fn attempts_of(&self, job: JobId) -> usize {
        let running = self.scheduler.progress(job).map_or([0, 0], |progress| progress.running);
        running.iter().sum::<u32>() as usize
    }

    /// The workers that get no more of a job's tasks.
    pub(crate) fn excluded(&self, job: JobId) -> Vec<String> {
        self.scheduler.progress(job).map(|progress| progress.excluded).unwrap_or_default()
    }

    pub(crate) fn all_ended(&self) -> bool {
        self.machine.jobs().all(|job| job.state.terminal())
    }

    /// Lets time pass until a condition holds; false when the deadline comes first.
    pub(crate) fn run(&mut self, deadline: u64, until: impl Fn(&Self) -> bool) -> bool {
        while self.now < deadline {
            if until(self) {
                return true;
            }
            self.now += self.step_ms;
            while let Some(((when, _), _)) = self.queue.first_key_value()
                && *when <= self.now
            {
                let (_, delivery) = self.queue.pop_first().expect("the queue has a first");
                self.deliver(delivery);
                if self.change_leader_at.take_if(|at| *at <= self.index).is_some() {
                    self.change_leader();
                }
            }
            self.event(Event::Tick);
            for worker in 0..self.workers.len() {
                self.live(worker);
            }
            if self.chance(self.weather.leader_changes) {
                self.change_leader();
            }
        }
        until(self)
    }

    /// How many records the log has.
    pub(crate) fn records(&self) -> u64 {
        self.index
    }

    /// Cuts the leader off from the log for a while, but not from its workers.
    pub(crate) fn isolate_leader(&mut self, ms: u64) {
        self.queue.retain(|_, delivery| !matches!(delivery, Delivery::Commit(..)));
        self.isolated = true;
        self.run(self.now + ms, |_| false);
        self.isolated = false;
    }

    /// Has a new leader, and lets the old one, which was stopped meanwhile, go on for a step with
    /// what it still believes.
    pub(crate) fn change_leader_and_wake_the_old_one_later(
        &mut self,
        later: impl FnOnce(&mut Self),
    ) -> Vec<Effect> {
        let now = self.time();
        let blank = Scheduler::new(self.settings.clone(), 0, 0, &Machine::new(), now);
        let mut old = std::mem::replace(&mut self.scheduler, blank);
        self.change_leader();
        later(self);
        let now = self.time();
        let mut effects = old.step(now, Event::Tick);
        for (attempt, _) in self.verdicts.clone() {
            let end = ReportEnd::Success {
                bytes: 1,
                records: 1,
                crc: 1,
                content_hash: 1,
                counters: BTreeMap::new(),
            };
            let (ticket, worker) = (Ticket(u64::MAX), WorkerId(1));
            effects
                .extend(old.step(now, Event::Report { ticket, worker, attempt, end, poll: None }));
        }
        effects
    }

    pub(crate) fn change_leader(&mut self) {
        self.epoch += 1;
        self.index += 1;
        // What the old leader proposed is executed, some of it, or never.
        let cut = self.rng.random_range(0..=self.now + self.weather.delay_ms);
        let old: Vec<(u64, u64)> = self
            .queue
            .iter()
            .filter(|(_, delivery)| matches!(delivery, Delivery::Commit(..)))
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            if let Some(Delivery::Commit(_, _, command)) = self.queue.remove(&key)
                && key.0 <= cut
            {
                self.apply(&command);
            }
        }
        let now = self.time();
        let settings = self.settings.clone();
        self.answers_under_way = 0;
        self.scheduler = Scheduler::new(settings, self.epoch, self.index, &self.machine, now);
    }

    fn event(&mut self, event: Event) {
        let now = self.time();
        for effect in self.scheduler.step(now, event) {
            self.act(effect);
        }
    }

    fn act(&mut self, effect: Effect) {
        let epoch = self.epoch;
        match effect {
            Effect::Propose { proposal, command } => {
                if self.isolated {
                    // Nobody will ever say what became of it.
                } else if self.chance(self.weather.proposal_refused) {
                    self.later(Delivery::ToLeader(epoch, Event::Refused { proposal }));
                } else {
                    self.later(Delivery::Commit(epoch, proposal, command));
                }
            }
            Effect::Reply { ticket, reply } => self.answer(ticket, reply),
            Effect::Plan { job, .. } => {
                let maps: u32 = job.spec.inputs[0].parse().expect("a number of maps");
                let plan = Arc::new(model::plan(maps));
                self.plans.insert(job.id, plan.clone());
                let root = PlanRoot { digest: [1; 32], maps, bytes: plan.bytes() };
                let result =
                    if maps > 1_000 { Err("no such input".to_owned()) } else { Ok((root, plan)) };
                self.later(Delivery::ToLeader(epoch, Event::Planned { job: job.id, result }));
            }
            Effect::LoadPlan { job } => {
                let plan = self.plans[&job.id].clone();
                let result =
                    self.looks_refused.clone().map_or(Ok(plan), |why| Err(Trouble::Passing(why)));
                self.later(Delivery::ToLeader(epoch, Event::PlanLoaded { job: job.id, result }));
            }
            Effect::CheckOutput { job } => {
                let result =
                    self.looks_refused.clone().map_or(Ok(()), |why| Err(Trouble::Passing(why)));
                self.later(Delivery::ToLeader(epoch, Event::OutputChecked { job: job.id, result }));
            }
            Effect::CheckRun { map, .. } => {
                let sound = !self.damaged.contains(&map) && self.chance(500);
                self.later(Delivery::ToLeader(epoch, Event::RunChecked { map, sound }));
            }
            Effect::Publish { job, .. } => {
                assert!(job.complete(), "published before all is committed");
                let outcome = if let Some(why) = self.disk_refuses.clone() {
                    PublishOutcome::Retry(why)
                } else if self.chance(self.weather.output_lost) {
                    let (reduces, all) = (job.spec.reduces, self.chance(500));
                    PublishOutcome::OutputLost((0..if all { reduces } else { 1 }).collect())
                } else if self.chance(self.weather.output_lost) {
                    PublishOutcome::Retry("not now".into())
                } else {
                    PublishOutcome::Done
                };
                self.later(Delivery::ToLeader(epoch, Event::Published { job: job.id, outcome }));
            }
            Effect::Abandon { job } => {
                self.later(Delivery::ToLeader(epoch, Event::Cleaned { job: job.id }));
            }
            Effect::Cleanup { .. } | Effect::Changed { .. } => {}
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::ToLeader(epoch, event) => {
                // Callers find the new leader; the disk's answers die with the old one.
                if let Event::PollDropped { ticket } = event {
                    self.gone.insert(ticket);
                }
                if epoch == self.epoch || epoch == 0 {
                    self.event(event);
                }
            }
            Delivery::Commit(epoch, proposal, command) => {
                let response = self.apply(&command);
                if epoch != self.epoch {
                    return;
                }
                if self.chance(self.weather.answer_late) {
                    self.answers_under_way += 1;
                    self.later(Delivery::Applied(epoch, proposal, response));
                } else if self.chance(self.weather.proposal_unknown) {
                    self.answers_under_way += 1;
                    self.event(Event::Refused { proposal });
                    self.answers_under_way -= 1;
                    self.event(Event::Resync { state: Box::new(self.machine.clone()) });
                } else {
                    self.event(Event::Applied { proposal, response });
                }
            }
            Delivery::Applied(epoch, proposal, response) => {
                if epoch == self.epoch {
                    self.answers_under_way -= 1;
                    self.event(Event::Applied { proposal, response });
                }
            }
            Delivery::ToWorker(asker, reply) => self.hear(asker, reply),
        }
    }

    fn apply(&mut self, command: &Command) -> Response {
        self.index += 1;
        let before = command.job().and_then(|job| self.machine.job(job)).cloned();
        let at = Applied { index: Index(self.index), term: Term(self.epoch), time: GroupTime(0) };
        let response = self.machine.apply(at, &command.encode());
        self.check(command, before.as_deref(), response.verdict);
        response
    }

    fn answer(&mut self, ticket: Ticket, reply: Reply) {
        let asker = self.tickets.remove(&ticket).expect("each ticket is answered once");
        if let Reply::Assigned(given) | Reply::Report { given, .. } = &reply {
            let gone = self.gone.contains(&ticket);
            assert!(given.is_empty() || !gone, "a caller that is gone is given tasks");
            for assignment in given {
                assert!(self.issued.insert(assignment.attempt), "an attempt is named once");
                self.check_assignment(assignment);
                self.given.push((asker.worker, assignment.attempt));
                self.backups_given += u64::from(assignment.backup);
            }
        }
        if let Reply::UnknownApp { .. } = reply {
            self.unknown_apps += 1;
        }
        let lost = self.gone.contains(&ticket) || self.chance(self.weather.message_lost);
        if asker.worker == usize::MAX || lost {
            return;
        }
        self.later(Delivery::ToWorker(asker, reply));
    }
}
