//! The largest jobs: what they cost the scheduler in time, and the replicated state in bytes.
//!
//! The log answers at once here, so that only the coordinator's pure half is measured. The bounds
//! leave room for slow machines and builds without much optimisation; what was measured is printed.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]
#![allow(clippy::disallowed_types, reason = "time is what is measured")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use mr_coordinator::{
    ids::{AttemptId, JobId, TaskId, TaskKind, WorkerId},
    job::JobState,
    leases::{Heard, Millis},
    machine::Machine,
    schedule::{
        Assignment, Effect, Event, Now, PublishOutcome, Reply, ReportAnswer, ReportEnd, Scheduler,
        Settings, Ticket, Wants, Weights,
    },
    scheduling::Scheduling,
    spec::{InputFormat, OutputFormat, Plan, PlanRoot, Spec, Split},
};
use raft::{Applied, Capture, GroupTime, Index, StateMachine, Term};

/// Each test has the machine to itself.
static ALONE: Mutex<()> = Mutex::new(());

const JOB: JobId = JobId(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);

fn settings() -> Settings {
    Settings {
        lease_ms: 10_000,
        heartbeat_ms: 500,
        no_workers_grace_ms: Some(60_000),
        jobs_running_max: 16,
        weights: Weights::default(),
    }
}

fn spec(reduces: u32) -> Spec {
    Spec {
        app: "empty".into(),
        inputs: vec!["in".into()],
        output: "out".into(),
        reduces,
        input_format: InputFormat::Text,
        output_format: OutputFormat::Text,
        split_bytes: 0,
        lease_ms: 10_000,
        task_timeout_ms: 600_000,
        max_attempts: 4,
        name: String::new(),
        slow_ms: 0,
        overwrite: false,
        flow: mr_coordinator::flow::Flow::default(),
        scheduling: Scheduling::default(),
        streaming: None,
    }
}

/// A coordinator whose log and disk answer at once.
struct Coordinator {
    machine: Machine,
    scheduler: Scheduler,
    epoch: u64,
    log: Vec<(Applied, Bytes)>,
    plan: Arc<Plan>,
    now: u64,
    last_ticket: u64,
    /// What was given out and is not reported.
    open: BTreeMap<WorkerId, Vec<Assignment>>,
    accepted: BTreeSet<TaskId>,
    /// In the pure half.
    busy: Duration,
}

impl Coordinator {
    fn new(maps: u32) -> Self {
        let split = |number: u32| Split {
            path: format!("in/{number:05}.txt"),
            start: 0,
            bytes: 1 + u64::from(number % 97),
            file_bytes: 100,
            ..Split::default()
        };
        let machine = Machine::new();
        let now = Now { monotonic: Millis(0), unix_ms: 0 };
        Self {
            scheduler: Scheduler::new(settings(), 1, 0, &machine, now),
            machine,
            epoch: 1,
            log: Vec::new(),
            plan: Arc::new(Plan {
                maps: (0..maps).map(|number| vec![split(number)]).collect(),
                ..Plan::default()
            }),
            now: 0,
            last_ticket: 0,
            open: BTreeMap::new(),
            accepted: BTreeSet::new(),
            busy: Duration::ZERO,
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// Takes an event and everything that follows; the replies.
    fn event(&mut self, event: Event) -> Vec<Reply> {
        let mut events = vec![event];
        let mut replies = Vec::new();
        while let Some(event) = events.pop() {
            let now = Now { monotonic: Millis(self.now), unix_ms: self.now };
            let began = Instant::now();
            let effects = self.scheduler.step(now, event);
            self.busy += began.elapsed();
            for effect in effects {
                match effect {
                    Effect::Propose { proposal, command } => {
                        let began = Instant::now();
                        let index = Index(self.log.len() as u64 + 1);
                        let (term, time) = (Term(self.epoch), GroupTime(0));
                        let at = Applied { index, term, time };
                        let bytes = command.encode();
                        let response = self.machine.apply(at, &bytes);
                        self.busy += began.elapsed();
                        self.log.push((at, bytes));
                        events.push(Event::Applied { proposal, response });
                    }
                    Effect::Reply { reply, .. } => replies.push(reply),
                    Effect::Plan { job, .. } => {
                        let (maps, bytes) = (self.plan.maps.len() as u32, self.plan.bytes());
                        let root = PlanRoot { digest: [1; 32], maps, bytes };
                        let result = Ok((root, self.plan.clone()));
                        events.push(Event::Planned { job: job.id, result });
                    }
                    Effect::LoadPlan { job } => {
                        let result = Ok(self.plan.clone());
                        events.push(Event::PlanLoaded { job: job.id, result });
                    }
                    Effect::CheckOutput { job } => {
                        events.push(Event::OutputChecked { job: job.id, result: Ok(()) });
                    }
                    Effect::Publish { job, .. } => {
                        let outcome = PublishOutcome::Done;
                        events.push(Event::Published { job: job.id, outcome });
                    }
                    Effect::Abandon { job } => events.push(Event::Cleaned { job: job.id }),
                    Effect::CheckRun { .. } | Effect::Cleanup { .. } | Effect::Changed { .. } => {}
                }
            }
        }
        replies
    }

    fn register(&mut self, number: u128, slots: u32) -> WorkerId {
        let ticket = self.ticket();
        let replies = self.event(Event::Register {
            ticket,
            name: format!("worker {number}"),
            incarnation: number,
            slots,
            apps: vec!["empty".into()],
            running: Vec::new(),
        });
        let registered = replies.iter().find_map(|reply| match reply {
            Reply::Registered { worker, .. } => Some(*worker),
            _ => None,
        });
        registered.expect("the worker is registered")
    }

    fn submit(&mut self, reduces: u32) {
        let (ticket, spec) = (self.ticket(), spec(reduces));
        let (token, output_key) = ("token".into(), "out".into());
        self.event(Event::Submit { ticket, job: JOB, token, spec, output_key });
    }

    fn poll(&mut self, worker: WorkerId, incarnation: u128, wants: Wants) {
        let ticket = self.ticket();
        for reply in self.event(Event::Poll { ticket, worker, incarnation, wants }) {
            if let Reply::Assigned(given) = reply {
                self.open.entry(worker).or_default().extend(given);
            }
        }
    }

    /// Reports the oldest attempt of a worker, and asks for the next task with that.
    fn report(&mut self, worker: WorkerId, incarnation: u128, wants: Wants) {
        let open = self.open.get_mut(&worker).expect("the worker has something");
        let attempt = open.remove(0).attempt;
        let counters = ["RECORDS", "BYTES", "SPILLS", "GROUPS"];
        let end = ReportEnd::Success {
            bytes: 1_000,
            records: 10,
            crc: 7,
            content_hash: 9,
            counters: counters.into_iter().map(|name| (name.to_owned(), 3)).collect(),
        };
        let (ticket, poll) = (self.ticket(), Some((incarnation, wants)));
        for reply in self.event(Event::Report { ticket, worker, attempt, end, poll }) {
            match reply {
                Reply::Report { answer, given } => {
                    assert_eq!(answer, ReportAnswer::Accepted);
                    assert!(self.accepted.insert(attempt.task), "{} twice", attempt.task);
                    self.open.entry(worker).or_default().extend(given);
                }
                // A worker that waited for the next phase.
                Reply::Assigned(given) => {
                    let to = self.open.iter().find(|(_, open)| open.is_empty());
                    let to = *to.expect("somebody waits").0;
                    self.open.entry(to).or_default().extend(given);
                }
                _ => {}
            }
        }
    }

    fn heartbeat(&mut self, worker: WorkerId, incarnation: u128) {
        let open = self.open.get(&worker).into_iter().flatten();
        let heard = Heard { progress: (self.now, self.now), queued: false };
        let running: Vec<(AttemptId, Heard)> = open.map(|open| (open.attempt, heard)).collect();
        let ticket = self.ticket();
        self.event(Event::Heartbeat { ticket, worker, incarnation, running });
    }

    fn ended(&self) -> bool {
        self.machine.job(JOB).is_some_and(|job| job.state == JobState::Succeeded)
    }

    /// Runs everything with these workers; how many tasks there were.
    fn run(&mut self, workers: &[(WorkerId, u128)], until: usize) {
        let wants = Wants { free_slots: 1, prefetch: 0 };
        while self.accepted.len() < until && !self.ended() {
            for (worker, incarnation) in workers {
                if self.accepted.len() >= until {
                    break;
                }
                if self.open.get(worker).is_none_or(Vec::is_empty) {
                    self.poll(*worker, *incarnation, wants);
                }
                if self.open.get(worker).is_some_and(|open| !open.is_empty()) {
                    self.report(*worker, *incarnation, wants);
                }
                // Time passes as with a thousand tasks per second; heartbeats come twice in one.
                self.now += u64::from(self.accepted.len().is_multiple_of(2));
                if self.now.is_multiple_of(100) {
                    self.event(Event::Tick);
                }
                if self.now.is_multiple_of(500) {
                    self.heartbeat(*worker, *incarnation);
                }
            }
        }
    }

    /// A coordinator that reads the log anew, as after a restart; how long that took.
    fn restart(&mut self) -> Duration {
        let began = Instant::now();
        let mut machine = Machine::new();
        for (at, bytes) in &self.log {
            machine.apply(*at, bytes);
        }
        let took = began.elapsed();
        assert_eq!(machine.digest(), self.machine.digest());
        self.machine = machine;
        self.epoch += 1;
        let now = Now { monotonic: Millis(self.now), unix_ms: 0 };
        let applied = self.log.len() as u64;
        self.scheduler = Scheduler::new(settings(), self.epoch, applied, &self.machine, now);
        self.open.clear();
        took
    }
}

#[test]
fn scheduling_ten_thousand_empty_tasks_costs_little() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for count in [2, 1_000] {
        let mut coordinator = Coordinator::new(10_000);
        let workers: Vec<_> =
            (1..=count).map(|number| (coordinator.register(number, 1), number)).collect();
        coordinator.submit(1);
        coordinator.busy = Duration::ZERO;
        coordinator.run(&workers, 10_001);
        assert!(coordinator.ended());
        let each = coordinator.busy / 10_001;
        println!("{count} workers: {:?}, {each:?} per task", coordinator.busy);
        assert!(each < Duration::from_micros(100), "{each:?} per task");
    }
}

/// F48.
#[test]
fn ten_thousand_tasks_survive_three_restarts_and_each_is_committed_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut coordinator = Coordinator::new(9_990);
    coordinator.submit(10);
    for part in 1..=4 {
        let workers: Vec<_> =
            (1..=2).map(|number| (coordinator.register(number, 1), number)).collect();
        coordinator.run(&workers, part * 2_500);
        if part < 4 {
            let took = coordinator.restart();
            println!("replay of {} records: {took:?}", coordinator.log.len());
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
    }
    assert!(coordinator.ended());
    assert_eq!(coordinator.accepted.len(), 10_000);
    let took = coordinator.restart();
    println!("replay of all {} records: {took:?}", coordinator.log.len());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// How much memory the process has, in bytes.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4_096
}

#[test]
fn state_of_the_largest_job_stays_below_twenty_megabytes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut coordinator = Coordinator::new(10_000);
    coordinator.submit(1_000);
    let workers: Vec<_> = (1..=2).map(|number| (coordinator.register(number, 1), number)).collect();
    coordinator.run(&workers, 10_999);
    let job = coordinator.machine.job(JOB).unwrap();
    assert_eq!(job.committed, [job.total(TaskKind::Map), job.total(TaskKind::Reduce) - 1]);
    let chunks: Vec<Bytes> = coordinator.machine.capture().chunks().collect();
    let encoded: usize = chunks.iter().map(Bytes::len).sum();
    // Another copy, built by itself, to see what it takes.
    let before = resident_bytes();
    let mut copy = Machine::new();
    copy.restore(&mut chunks.into_iter()).unwrap();
    let resident = resident_bytes().saturating_sub(before);
    println!("snapshot {encoded} bytes, in memory about {resident} bytes");
    assert_eq!(copy.digest(), coordinator.machine.digest());
    assert!(encoded < 20_000_000, "{encoded}");
    assert!(resident < 20_000_000, "{resident}");
}
