//! The workers of the world: processes that register, poll, send heartbeats, run and report, and
//! that are killed and paused.

use std::{collections::BTreeMap, sync::Arc};

use mr_coordinator::{
    failure::{Failure, Reason, Record},
    ids::{AttemptId, TaskId, TaskKind, WorkerId},
    leases::Heard,
    schedule::{Assignment, Event, Reply, ReportEnd, Run, Ticket, Wants, Work},
};
use rand::RngExt;

use super::{Asker, Delivery, World, model};

pub(super) struct Running {
    attempt: AttemptId,
    runs: Arc<Vec<Run>>,
    skip: Vec<Record>,
    careful: bool,
    /// Whether it has a slot, and when it will be done.
    begun: bool,
    since: u64,
    ends: u64,
    /// It makes no progress and never ends.
    stuck: bool,
    records: u64,
    /// The report, once there is one; sent until there is a verdict.
    report: Option<ReportEnd>,
    next_report: u64,
}

impl Running {
    /// Records and bytes, as its worker tells them.
    fn progress(&self, now: u64) -> (u64, u64) {
        let size = match self.attempt.task.kind {
            TaskKind::Map => model::bytes(self.attempt.task.number),
            TaskKind::Reduce => 100,
        };
        let (ran, takes) = (now.saturating_sub(self.since), self.ends - self.since);
        let read = if self.stuck || !self.begun { 0 } else { size * ran / takes.max(1) };
        (self.records, read.min(size))
    }
}

/// A worker's process.
pub(super) struct Worker {
    name: String,
    incarnation: u128,
    id: Option<WorkerId>,
    pub(super) slots: u32,
    /// How many tasks it keeps ready.
    pub(super) prefetch: u32,
    /// Whether its reports bring a poll.
    pub(super) polls_with_reports: bool,
    /// How much slower than others it is.
    pub(super) slowness: u64,
    draining: bool,
    running: Vec<Running>,
    next_heartbeat: u64,
    next_register: u64,
    poll_until: u64,
    /// What its poll asks for.
    polled: Wants,
    paused_until: u64,
}

impl Worker {
    fn wants(&self) -> Wants {
        let queued = self.running.iter().filter(|running| !running.begun).count() as u32;
        let busy = self.running.iter().filter(|r| r.begun && r.report.is_none()).count() as u32;
        Wants {
            free_slots: self.slots.saturating_sub(busy + queued),
            prefetch: self.prefetch.saturating_sub(queued),
        }
    }
}

impl World {
    pub(super) fn process(&mut self, name: &str) -> Worker {
        self.last_incarnation += 1;
        Worker {
            name: name.to_owned(),
            incarnation: self.last_incarnation,
            id: None,
            slots: 1 + self.rng.random_range(0..3),
            prefetch: 0,
            polls_with_reports: false,
            slowness: 1,
            draining: false,
            running: Vec::new(),
            next_heartbeat: 0,
            next_register: 0,
            poll_until: 0,
            polled: Wants::default(),
            paused_until: 0,
        }
    }

    /// Changes a worker before it does anything.
    pub(crate) fn set_up(&mut self, worker: usize, (slots, prefetch): (u32, u32), slowness: u64) {
        let worker = &mut self.workers[worker];
        (worker.slots, worker.prefetch, worker.slowness) = (slots, prefetch, slowness);
        worker.polls_with_reports = prefetch > 0;
    }

    /// How many tasks a worker keeps ready.
    pub(crate) fn queued(&self, worker: usize) -> usize {
        self.workers[worker].running.iter().filter(|running| !running.begun).count()
    }

    /// Whether a worker is on its way out, or gone.
    pub(crate) fn leaves(&self, worker: usize) -> bool {
        self.workers[worker].draining || self.workers[worker].id.is_none()
    }

    /// An operator wants a worker to leave.
    pub(crate) fn drain(&mut self, worker: usize) {
        let ticket = self.ticket(Asker { worker: usize::MAX, incarnation: 0, attempt: None });
        let name = self.workers[worker].name.clone();
        self.event(Event::Drain { ticket, name });
    }

    /// Kills a worker for good, or until the world brings it back.
    pub(crate) fn kill(&mut self, worker: usize) {
        let old = &self.workers[worker];
        let (name, slowness) = (old.name.clone(), old.slowness);
        let (slots, prefetch, with) = (old.slots, old.prefetch, old.polls_with_reports);
        self.workers[worker] =
            Worker { slots, prefetch, slowness, polls_with_reports: with, ..self.process(&name) };
        let absence = if self.workers_come_back {
            self.rng.random_range(0..self.pause_ms)
        } else {
            u64::MAX / 2
        };
        self.workers[worker].paused_until = self.now.saturating_add(absence);
    }

    /// Brings back a worker that is gone.
    pub(crate) fn bring_back(&mut self, worker: usize) {
        self.workers[worker].paused_until = self.now;
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
            let ms = self.rng.random_range(0..self.pause_ms);
            self.pause(place, ms);
            return;
        }
        if self.chance(self.weather.worker_drained) {
            self.drain(place);
        }
        let Some(id) = self.workers[place].id else {
            self.register(place);
            return;
        };
        self.work(place);
        if self.workers[place].draining && self.workers[place].running.is_empty() {
            let incarnation = self.workers[place].incarnation;
            self.send(place, None, |ticket| Event::Deregister { ticket, worker: id, incarnation });
            self.kill(place);
            return;
        }
        let (now, heartbeat_ms) = (self.now, self.settings.heartbeat_ms);
        let worker = &mut self.workers[place];
        let incarnation = worker.incarnation;
        if worker.next_heartbeat <= self.now {
            worker.next_heartbeat = self.now + heartbeat_ms;
            let running = worker.running.iter().map(|running| {
                let progress = running.progress(now);
                (running.attempt, Heard { progress, queued: !running.begun })
            });
            let running = running.collect();
            self.send(place, None, |ticket| Event::Heartbeat {
                ticket,
                worker: id,
                incarnation,
                running,
            });
        }
        // Reports first: what they bring is asked for with them.
        self.send_reports(place, id);
        let worker = &mut self.workers[place];
        let wants = worker.wants();
        let more = wants.free_slots > worker.polled.free_slots;
        if !wants.is_nothing() && !worker.draining && (worker.poll_until <= self.now || more) {
            (worker.poll_until, worker.polled) = (self.now + 20_000, wants);
            self.send(place, None, |ticket| Event::Poll { ticket, worker: id, incarnation, wants });
        }
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
            self.begin(place, number);
            let running = &mut self.workers[place].running[number];
            if running.report.is_some() || !running.begun || running.stuck {
                continue;
            }
            running.records += 1;
            let over = running.ends <= self.now;
            killed |= over && self.chance(self.weather.attempt_kills);
            if over {
                let end = self.end_of(place, number);
                self.workers[place].running[number].report = Some(end);
            }
        }
        if killed {
            self.kill(place);
        }
    }

    /// Begins an attempt that waits for a slot, if there is one.
    fn begin(&mut self, place: usize, number: usize) {
        let worker = &self.workers[place];
        let busy = worker.running.iter().filter(|r| r.begun && r.report.is_none()).count() as u32;
        if worker.running[number].begun || busy >= worker.slots {
            return;
        }
        let takes = self.rng.random_range(self.task_ms.clone()) * worker.slowness;
        let stuck = self.chance(self.weather.attempt_stuck);
        let ends = self.now + takes;
        let running = &mut self.workers[place].running[number];
        (running.begun, running.ends, running.stuck) = (true, ends, stuck);
        running.since = self.now;
    }

    /// The first record of an attempt's input that its app cannot take and that is not left out.
    fn bad_record(&self, running: &Running) -> Option<Record> {
        let AttemptId { job, task, .. } = running.attempt;
        let bad = match task.kind {
            TaskKind::Map => &self.models[&job].bad,
            TaskKind::Reduce => return None,
        };
        let mut bad = bad.range((task.number, 0)..(task.number + 1, 0));
        let left_out = |offset: u64| running.skip.iter().any(|record| record.offset == offset);
        let (map, offset) = *bad.find(|(_, offset)| !left_out(*offset))?;
        Some(Record { path: model::path(map), offset })
    }

    fn end_of(&mut self, place: usize, number: usize) -> ReportEnd {
        self.executions += 1;
        let running = &self.workers[place].running[number];
        let (attempt, careful) = (running.attempt, running.careful);
        let content = self.content(&attempt, &running.runs, &running.skip);
        let left_out = running.skip.len() as u64;
        let bad = self.bad_record(running);
        let tail = String::new();
        if let Some(Record { path, offset }) = bad {
            let exact = careful || self.chance(300);
            let reason = if self.chance(500) {
                Reason::User { message: "no number".into(), path, offset, permanent: false, exact }
            } else {
                Reason::Exit { code: None, signal: Some(6), path, offset, exact }
            };
            return ReportEnd::Failure(Failure { reason, stderr_tail: tail });
        }
        if self.faulty == Some(place) || self.chance(self.weather.attempt_fails) {
            let reason = Reason::Internal { message: "bad luck".into() };
            return ReportEnd::Failure(Failure { reason, stderr_tail: tail });
        }
        if self.chance(self.weather.attempt_fails / 4) {
            return ReportEnd::Abandoned;
        }
        let running = &self.workers[place].running[number];
        let damaged = running.runs.iter().find(|run| self.damaged.contains(&run.attempt));
        if let Some(map) = damaged.map(|run| run.attempt) {
            let reason = Reason::Intermediate { map, message: "it is missing".into() };
            return ReportEnd::Failure(Failure { reason, stderr_tail: tail });
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
        let count = self.rng.random_range(1..100);
        let counters =
            BTreeMap::from([("COUNT".to_owned(), count), ("SKIPPED_RECORDS".to_owned(), left_out)]);
        self.contents.insert(attempt, content);
        ReportEnd::Success { bytes: 10, records: 1, crc: 1, content_hash: content, counters }
    }

    fn send_reports(&mut self, place: usize, id: WorkerId) {
        for number in 0..self.workers[place].running.len() {
            let worker = &mut self.workers[place];
            let wants = worker.wants();
            let polls = worker.polls_with_reports && !worker.draining;
            let poll = Some((worker.incarnation, wants)).filter(|_| polls);
            let running = &mut worker.running[number];
            if running.next_report > self.now {
                continue;
            }
            let Some(end) = running.report.clone() else { continue };
            running.next_report = self.now + 1_000;
            let attempt = running.attempt;
            if poll.is_some() {
                // No poll of its own as long as that one may be answered.
                (worker.polled, worker.poll_until) = (wants, self.now + 1_000);
            }
            self.send(place, Some(attempt), |ticket| Event::Report {
                ticket,
                worker: id,
                attempt,
                end,
                poll,
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
            && let Event::Report { worker, attempt, end, poll, .. } = &event
        {
            let (worker, attempt, end, poll) = (*worker, *attempt, end.clone(), *poll);
            let ticket = self.ticket(asker);
            let again = Event::Report { ticket, worker, attempt, end, poll };
            self.later(Delivery::ToLeader(0, again));
        }
        self.later(Delivery::ToLeader(0, event));
        if self.chance(self.weather.message_lost / 2) {
            // What it asked for has been heard by then.
            let when = self.now + self.weather.delay_ms + self.rng.random_range(0..2_000);
            self.at(when, Delivery::ToLeader(0, Event::PollDropped { ticket }));
        }
    }

    pub(super) fn hear(&mut self, asker: Asker, reply: Reply) {
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
            Reply::Assigned(given) => {
                worker.poll_until = 0;
                self.take_in(asker.worker, given);
            }
            Reply::Drain => self.begin_draining(asker.worker),
            Reply::Idle => worker.poll_until = 0,
            Reply::Reregister => worker.id = None,
            Reply::Heartbeat { orders, reregister, drain } => {
                if reregister {
                    worker.id = None;
                }
                for order in orders.iter().filter(|order| order.stop.is_some()) {
                    worker.running.retain(|running| running.attempt != order.attempt);
                }
                if drain {
                    self.begin_draining(asker.worker);
                }
            }
            Reply::Report { answer, given } => {
                let attempt = asker.attempt.expect("a verdict answers a report");
                worker.running.retain(|running| running.attempt != attempt);
                worker.poll_until = 0;
                self.verdicts.push((attempt, answer));
                self.take_in(asker.worker, given);
            }
            Reply::Busy
            | Reply::NameInUse
            | Reply::TooManyWorkers
            | Reply::Deregistered
            | Reply::Submitted { .. }
            | Reply::UnknownApp { .. }
            | Reply::Draining(_)
            | Reply::Cancelled { .. } => {}
        }
    }

    /// Somebody wants the worker to leave: what has not begun is given back.
    fn begin_draining(&mut self, place: usize) {
        let worker = &mut self.workers[place];
        worker.draining = true;
        for running in worker.running.iter_mut().filter(|running| !running.begun) {
            running.begun = true;
            running.report = Some(ReportEnd::Abandoned);
        }
    }

    fn take_in(&mut self, place: usize, given: Vec<Assignment>) {
        let draining = self.workers[place].draining;
        for assignment in given {
            let Assignment { attempt, work, skip, careful, .. } = assignment;
            let runs = match work {
                Work::Map(_) => Arc::default(),
                Work::Reduce(runs) => runs,
            };
            let report = draining.then_some(ReportEnd::Abandoned);
            self.workers[place].running.push(Running {
                attempt,
                runs,
                skip,
                careful,
                begun: draining,
                since: 0,
                ends: 0,
                stuck: false,
                records: 0,
                report,
                next_report: 0,
            });
        }
        for number in 0..self.workers[place].running.len() {
            self.begin(place, number);
        }
    }
}
