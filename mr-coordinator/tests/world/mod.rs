//! A world for the scheduler, in virtual time and from one seed: a log, leaders that change,
//! workers that are killed, paused and cut off, a disk that answers late and sometimes badly.

mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mr_coordinator::{
    command::Command,
    ids::{AttemptId, JobId, TaskId, TaskKind},
    job::{Job, JobState, Verdict},
    leases::Millis,
    machine::Machine,
    schedule::{
        Assignment, Effect, Event, Now, ProposalId, PublishOutcome, Reply, ReportAnswer, Scheduler,
        Settings, Ticket, Trouble,
    },
    spec::{InputFormat, OutputFormat, Plan, PlanRoot, Spec, Split},
};
use raft::{Applied, GroupTime, Index, StateMachine, Term};
use rand::{RngExt, SeedableRng, rngs::StdRng};

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
    last_ticket: u64,
    last_incarnation: u128,
    plans: BTreeMap<JobId, Arc<Plan>>,
    /// The accepted attempt of each task, as the verdicts told it.
    accepted: BTreeMap<(JobId, TaskId), AttemptId>,
    /// What each accepted attempt counted.
    counted: BTreeMap<AttemptId, u64>,
    pub(crate) issued: BTreeSet<AttemptId>,
    pub(crate) executions: u32,
    pub(crate) verdicts: Vec<(AttemptId, ReportAnswer)>,
    pub(crate) unknown_apps: u32,
    /// What the shared filesystem says to publications, if it refuses.
    pub(crate) disk_refuses: Option<String>,
    /// What it says to who reads a plan or looks at an output.
    pub(crate) looks_refused: Option<String>,
    /// How long tasks take.
    pub(crate) task_ms: std::ops::Range<u64>,
}

pub(crate) const SETTINGS: Settings = Settings {
    lease_ms: 10_000,
    heartbeat_ms: 500,
    no_workers_grace_ms: Some(60_000),
    jobs_running_max: 3,
};

impl World {
    pub(crate) fn new(seed: u64, weather: Weather, workers: usize) -> Self {
        let machine = Machine::new();
        let now = Now { monotonic: Millis(0), unix_ms: 0 };
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            weather,
            now: 0,
            scheduler: Scheduler::new(SETTINGS, 1, 0, &machine, now),
            machine,
            index: 0,
            epoch: 1,
            workers: Vec::new(),
            workers_come_back: true,
            queue: BTreeMap::new(),
            order: 0,
            tickets: BTreeMap::new(),
            last_ticket: 0,
            last_incarnation: 0,
            plans: BTreeMap::new(),
            accepted: BTreeMap::new(),
            counted: BTreeMap::new(),
            issued: BTreeSet::new(),
            executions: 0,
            verdicts: Vec::new(),
            unknown_apps: 0,
            disk_refuses: None,
            looks_refused: None,
            task_ms: 100..4_000,
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
        let job = JobId(number);
        let spec = Spec {
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
        };
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

    pub(crate) fn all_ended(&self) -> bool {
        self.machine.jobs().all(|job| job.state.terminal())
    }

    /// Lets time pass until a condition holds; false when the deadline comes first.
    pub(crate) fn run(&mut self, deadline: u64, until: impl Fn(&Self) -> bool) -> bool {
        while self.now < deadline {
            if until(self) {
                return true;
            }
            self.now += 50;
            while let Some(((when, _), _)) = self.queue.first_key_value()
                && *when <= self.now
            {
                let (_, delivery) = self.queue.pop_first().expect("the queue has a first");
                self.deliver(delivery);
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
        self.scheduler = Scheduler::new(SETTINGS, self.epoch, self.index, &self.machine, now);
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
                if self.chance(self.weather.proposal_refused) {
                    self.later(Delivery::ToLeader(epoch, Event::Refused { proposal }));
                } else {
                    self.later(Delivery::Commit(epoch, proposal, command));
                }
            }
            Effect::Reply { ticket, reply } => self.answer(ticket, reply),
            Effect::Plan { job, .. } => {
                let maps: u32 = job.spec.inputs[0].parse().expect("a number of maps");
                let split = |number: u32| Split {
                    path: format!("file {number}"),
                    start: 0,
                    bytes: 10,
                    file_bytes: 10,
                    modified_ns: 0,
                };
                let plan =
                    Arc::new(Plan { maps: (0..maps).map(|number| vec![split(number)]).collect() });
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
                let sound = self.chance(500);
                self.later(Delivery::ToLeader(epoch, Event::RunChecked { map, sound }));
            }
            Effect::Publish { job, .. } => {
                assert!(job.complete(), "published before all is committed");
                let outcome = if let Some(why) = self.disk_refuses.clone() {
                    PublishOutcome::Retry(why)
                } else if self.chance(self.weather.output_lost) {
                    PublishOutcome::OutputLost(vec![0])
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
                if epoch == self.epoch || epoch == 0 {
                    self.event(event);
                }
            }
            Delivery::Commit(epoch, proposal, command) => {
                let response = self.apply(&command);
                if epoch != self.epoch {
                    return;
                }
                if self.chance(self.weather.proposal_unknown) {
                    self.event(Event::Refused { proposal });
                    self.event(Event::Resync { state: Box::new(self.machine.clone()) });
                } else {
                    self.event(Event::Applied { proposal, response });
                }
            }
            Delivery::ToWorker(asker, reply) => self.hear(asker, reply),
        }
    }

    fn apply(&mut self, command: &Command) -> mr_coordinator::machine::Response {
        self.index += 1;
        let at = Applied { index: Index(self.index), term: Term(self.epoch), time: GroupTime(0) };
        let response = self.machine.apply(at, &command.encode());
        self.check(command, response.verdict);
        response
    }

    /// The invariants, against a bookkeeping of verdicts alone.
    fn check(&mut self, command: &Command, verdict: Verdict) {
        if let (Command::Committed { attempt, success, .. }, Verdict::Accepted) = (command, verdict)
        {
            assert!(self.issued.contains(attempt), "{attempt} was never given out");
            let place = (attempt.job, attempt.task);
            let old = self.accepted.insert(place, *attempt);
            assert_eq!(old, None, "two accepted attempts of one task");
            self.counted.insert(*attempt, success.counters["COUNT"]);
        }
        let Some(job) = command.job().and_then(|job| self.machine.job(job)).cloned() else {
            return;
        };
        if job.state.terminal() {
            self.check_sums(&job);
            return;
        }
        self.accepted.retain(|(id, task), attempt| {
            let committed = job.result(*task).map(|result| result.attempt);
            *id != job.id || committed == Some(attempt.number)
        });
        self.check_sums(&job);
    }

    fn check_sums(&self, job: &Job) {
        let mine = || self.accepted.iter().filter(|((id, _), _)| *id == job.id);
        let sum: u64 = mine().map(|(_, attempt)| self.counted[attempt]).sum();
        let told = job.counter_sums().get("COUNT").copied().unwrap_or(0);
        assert_eq!(told, sum, "counters are the sum of accepted attempts");
        let maps = mine().filter(|((_, task), _)| task.kind == TaskKind::Map).count();
        assert_eq!(job.committed.iter().sum::<u32>() as usize, mine().count());
        assert_eq!(job.committed[0] as usize, maps);
        if job.state == JobState::Succeeded {
            assert_eq!(job.committed, [job.total(TaskKind::Map), job.total(TaskKind::Reduce)]);
        }
    }

    fn answer(&mut self, ticket: Ticket, reply: Reply) {
        let asker = self.tickets.remove(&ticket).expect("each ticket is answered once");
        if let Reply::Assigned(assignments) = &reply {
            for assignment in assignments {
                assert!(self.issued.insert(assignment.attempt), "an attempt is named once");
                self.check_assignment(assignment);
            }
        }
        if let Reply::UnknownApp { .. } = reply {
            self.unknown_apps += 1;
        }
        if asker.worker == usize::MAX || self.chance(self.weather.message_lost) {
            return;
        }
        self.later(Delivery::ToWorker(asker, reply));
    }

    fn check_assignment(&self, assignment: &Assignment) {
        let job = self.machine.job(assignment.attempt.job).expect("the job is known");
        if let mr_coordinator::schedule::Work::Reduce(runs) = &assignment.work {
            assert_eq!(runs.len(), job.total(TaskKind::Map) as usize, "a reduce gets every run");
        }
    }
}
