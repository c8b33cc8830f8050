//! The workers of the world: processes that register, poll, send heartbeats, run and report, and
//! that are killed and paused.

use std::collections::BTreeMap;

use mr_coordinator::{
    failure::{Failure, Reason},
    ids::{AttemptId, TaskId, TaskKind, WorkerId},
    schedule::{Event, Reply, ReportEnd, Ticket},
};
use rand::RngExt;

use super::{Asker, Delivery, SETTINGS, World};

pub(super) struct Running {
    attempt: AttemptId,
    ends: u64,
    bytes: u64,
    /// The report, once there is one; sent until there is a verdict.
    report: Option<ReportEnd>,
    next_report: u64,
}

/// A worker's process.
pub(super) struct Worker {
    name: String,
    incarnation: u128,
    id: Option<WorkerId>,
    slots: u32,
    running: Vec<Running>,
    next_heartbeat: u64,
    next_register: u64,
    poll_until: u64,
    paused_until: u64,
}

impl World {
    pub(super) fn process(&mut self, name: &str) -> Worker {
        self.last_incarnation += 1;
        Worker {
            name: name.to_owned(),
            incarnation: self.last_incarnation,
            id: None,
            slots: 1 + self.rng.random_range(0..3),
            running: Vec::new(),
            next_heartbeat: 0,
            next_register: 0,
            poll_until: 0,
            paused_until: 0,
        }
    }

    /// Kills a worker for good, or until the world brings it back.
    pub(crate) fn kill(&mut self, worker: usize) {
        let name = self.workers[worker].name.clone();
        self.workers[worker] = self.process(&name);
        let absence =
            if self.workers_come_back { self.rng.random_range(0..20_000) } else { u64::MAX / 2 };
        self.workers[worker].paused_until = self.now.saturating_add(absence);
    }

    /// Gives a worker the name of another, as a copied configuration does.
    pub(crate) fn name_alike(&mut self, worker: usize, other: usize) {
        self.workers[worker].name = self.workers[other].name.clone();
    }

    /// Stops a worker's process for a while.
    pub(crate) fn pause(&mut self, worker: usize, ms: u64) {
        self.workers[worker].paused_until = self.now + ms;
    }

    /// The task that a worker runs first.
    pub(crate) fn running(&self, worker: usize) -> Option<AttemptId> {
        self.workers[worker].running.first().map(|running| running.attempt)
    }

    /// Whether a worker believes to be registered.
    pub(crate) fn registered(&self, worker: usize) -> bool {
        self.workers[worker].id.is_some()
    }

    /// A step of a worker's life.
    pub(super) fn live(&mut self, place: usize) {
        if self.workers[place].paused_until > self.now {
            return;
        }
        if self.chance(self.weather.worker_killed) {
            self.kill(place);
            return;
        }
        if self.chance(self.weather.worker_paused) {
            let ms = self.rng.random_range(0..30_000);
            self.pause(place, ms);
            return;
        }
        let Some(id) = self.workers[place].id else {
            self.register(place);
            return;
        };
        self.work(place);
        let worker = &self.workers[place];
        let incarnation = worker.incarnation;
        if worker.next_heartbeat <= self.now {
            self.workers[place].next_heartbeat = self.now + SETTINGS.heartbeat_ms;
            let running = self.workers[place].running.iter().map(|r| (r.attempt, r.bytes, r.bytes));
            let running = running.collect();
            self.send(place, None, |ticket| Event::Heartbeat {
                ticket,
                worker: id,
                incarnation,
                running,
            });
        }
        let worker = &self.workers[place];
        let free_slots = worker.slots.saturating_sub(worker.running.len() as u32);
        if free_slots > 0 && worker.poll_until <= self.now {
            self.workers[place].poll_until = self.now + 20_000;
            self.send(place, None, |ticket| Event::Poll {
                ticket,
                worker: id,
                incarnation,
                free_slots,
            });
        }
        self.send_reports(place, id);
    }

    fn register(&mut self, place: usize) {
        if self.workers[place].next_register > self.now {
            return;
        }
        self.workers[place].next_register = self.now + 1_000;
        let worker = &self.workers[place];
        let (name, incarnation, slots) = (worker.name.clone(), worker.incarnation, worker.slots);
        let running: Vec<AttemptId> =
            worker.running.iter().map(|running| running.attempt).collect();
        let apps = vec!["wc".to_owned()];
        self.send(place, None, |ticket| Event::Register {
            ticket,
            name,
            incarnation,
            slots,
            apps,
            running,
        });
    }

    fn work(&mut self, place: usize) {
        let mut killed = false;
        for number in 0..self.workers[place].running.len() {
            let running = &self.workers[place].running[number];
            let (attempt, over) = (running.attempt, running.ends <= self.now);
            if running.report.is_some() {
                continue;
            }
            self.workers[place].running[number].bytes += 1;
            killed |= over && self.chance(self.weather.attempt_kills);
            if over {
                let end = self.end_of(attempt);
                self.workers[place].running[number].report = Some(end);
            }
        }
        if killed {
            self.kill(place);
        }
    }

    fn end_of(&mut self, attempt: AttemptId) -> ReportEnd {
        self.executions += 1;
        let tail = String::new();
        if self.chance(self.weather.attempt_fails) {
            let reason = Reason::Internal { message: "bad luck".into() };
            return ReportEnd::Failure(Failure { reason, stderr_tail: tail });
        }
        if self.chance(self.weather.attempt_fails / 4) {
            return ReportEnd::Abandoned;
        }
        let lost =
            attempt.task.kind == TaskKind::Reduce && self.chance(self.weather.intermediate_lost);
        if lost && let Some(job) = self.machine.job(attempt.job).cloned() {
            let task = TaskId::map(self.rng.random_range(0..job.total(TaskKind::Map).max(1)));
            if let Some(result) = job.result(task) {
                let map = AttemptId { job: attempt.job, task, number: result.attempt };
                let reason = Reason::Intermediate { map, message: "checksum".into() };
                return ReportEnd::Failure(Failure { reason, stderr_tail: tail });
            }
        }
        let counters = BTreeMap::from([("COUNT".to_owned(), self.rng.random_range(1..100))]);
        let same = self.rng.random_range(0..4) > 0;
        ReportEnd::Success {
            bytes: 10,
            records: 1,
            crc: 1,
            content_hash: if same { 7 } else { 8 },
            counters,
        }
    }

    fn send_reports(&mut self, place: usize, id: WorkerId) {
        for number in 0..self.workers[place].running.len() {
            let running = &mut self.workers[place].running[number];
            if running.next_report > self.now {
                continue;
            }
            let Some(end) = running.report.clone() else { continue };
            running.next_report = self.now + 1_000;
            let attempt = running.attempt;
            self.send(place, Some(attempt), |ticket| Event::Report {
                ticket,
                worker: id,
                attempt,
                end,
            });
        }
    }

    fn send(
        &mut self,
        place: usize,
        attempt: Option<AttemptId>,
        event: impl FnOnce(Ticket) -> Event,
    ) {
        let incarnation = self.workers[place].incarnation;
        let asker = Asker { worker: place, incarnation, attempt };
        let ticket = self.ticket(asker);
        let event = event(ticket);
        if self.chance(self.weather.message_lost) {
            return;
        }
        if self.chance(self.weather.message_doubled)
            && let Event::Report { worker, attempt, end, .. } = &event
        {
            let (worker, attempt, end) = (*worker, *attempt, end.clone());
            let ticket = self.ticket(asker);
            self.later(Delivery::ToLeader(0, Event::Report { ticket, worker, attempt, end }));
        }
        self.later(Delivery::ToLeader(0, event));
    }

    pub(super) fn hear(&mut self, asker: Asker, reply: Reply) {
        let now = self.now;
        let worker = &mut self.workers[asker.worker];
        if worker.incarnation != asker.incarnation {
            return;
        }
        match reply {
            Reply::Registered { worker: id, orders, .. } => {
                worker.id = Some(id);
                worker.poll_until = 0;
                for order in orders.iter().filter(|order| order.stop.is_some()) {
                    worker.running.retain(|running| running.attempt != order.attempt);
                }
            }
            Reply::Assigned(assignments) => {
                worker.poll_until = 0;
                for assignment in assignments {
                    let ends = now + self.rng.random_range(self.task_ms.clone());
                    let attempt = assignment.attempt;
                    let running = Running { attempt, ends, bytes: 0, report: None, next_report: 0 };
                    self.workers[asker.worker].running.push(running);
                }
            }
            Reply::Idle => worker.poll_until = 0,
            Reply::Reregister => worker.id = None,
            Reply::Heartbeat { orders, reregister } => {
                if reregister {
                    worker.id = None;
                }
                for order in orders.iter().filter(|order| order.stop.is_some()) {
                    worker.running.retain(|running| running.attempt != order.attempt);
                }
            }
            Reply::Report(answer) => {
                let attempt = asker.attempt.expect("a verdict answers a report");
                worker.running.retain(|running| running.attempt != attempt);
                self.verdicts.push((attempt, answer));
            }
            Reply::Busy
            | Reply::NameInUse
            | Reply::TooManyWorkers
            | Reply::Deregistered
            | Reply::Submitted { .. }
            | Reply::UnknownApp { .. }
            | Reply::Cancelled { .. } => {}
        }
    }
}
