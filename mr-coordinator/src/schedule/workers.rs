//! Workers: registration, the long poll, heartbeats, farewell, loss.
//!
//! Decides who is given which task, and what a worker is told about an attempt that it runs. There
//! is one function for a lost worker, whatever showed the loss.

use std::collections::BTreeSet;

use super::{
    Scheduler,
    messages::{AppliedTo, Assignment, Effect, Order, Reply, Ticket, Work},
};
use crate::{
    command::Command,
    ids::{AttemptId, AttemptNumber, JobId, TaskKind, WorkerId},
    job::Verdict,
    leases::{AttemptEnd, Millis},
    limits::{POLL_WAIT_MS, POLLS_MAX, RUNS_PER_REPLY_MAX, SPLITS_PER_REPLY_MAX},
    machine::Response,
};

/// An assignment that the worker's heartbeats do not list so long after it was given out got lost
/// on its way.
const UNSEEN_MS: u64 = 3_000;

/// A worker that missed so many heartbeats is given nothing new: its waiting call may be all that
/// is left of it. Its name is free for another.
const QUIET_HEARTBEATS: u64 = 4;

/// A worker that waits for work.
pub(super) struct Waiting {
    worker: WorkerId,
    incarnation: u128,
    free_slots: u32,
    since: Millis,
}

impl Scheduler {
    pub(super) fn register(
        &mut self,
        ticket: Ticket,
        name: String,
        incarnation: u128,
        slots: u32,
        apps: Vec<String>,
        running: Vec<AttemptId>,
    ) {
        let known = self.roster.find(&name, incarnation).map(|worker| worker.record.clone());
        match known {
            Some(record) if record.slots == slots && record.apps == apps => {
                self.roster.hear(record.id, self.now);
                self.welcome(ticket, record.id, &running);
            }
            None if self.name_in_use(&name) => self.reply(ticket, Reply::NameInUse),
            Some(_) | None => {
                let command = Command::WorkerRegistered { name, incarnation, slots, apps };
                self.propose(command, AppliedTo::Register { ticket, running });
            }
        }
    }

    /// Whether a worker of this name, another process than the one that asks, was heard just now.
    /// Two that live would take the name from each other for ever, and each time the other's tasks
    /// would count as lost. One that was killed is quiet soon.
    fn name_in_use(&self, name: &str) -> bool {
        self.roster.named(name).is_some_and(|worker| !self.quiet(worker.heard))
    }

    fn quiet(&self, heard: Millis) -> bool {
        self.now.since(heard) > QUIET_HEARTBEATS * self.settings.heartbeat_ms
    }

    pub(super) fn registered(&mut self, ticket: Ticket, running: &[AttemptId], is: &Response) {
        let Some(record) = is.worker.clone() else {
            self.reply(ticket, Reply::TooManyWorkers);
            return;
        };
        let id = record.id;
        self.roster.admit(record, self.now);
        // Its attempts first: those of the registration that it replaces pass to it.
        self.welcome(ticket, id, running);
        if let Some(replaced) = is.replaced {
            self.worker_lost(replaced);
        }
    }

    fn welcome(&mut self, ticket: Ticket, worker: WorkerId, running: &[AttemptId]) {
        let orders = running.iter().map(|attempt| self.order(*attempt, worker, None)).collect();
        let (epoch, heartbeat_ms) = (self.epoch, self.settings.heartbeat_ms);
        self.reply(ticket, Reply::Registered { worker, epoch, heartbeat_ms, orders });
    }

    pub(super) fn poll(
        &mut self,
        ticket: Ticket,
        worker: WorkerId,
        incarnation: u128,
        free_slots: u32,
    ) {
        if self.roster.get(worker, incarnation).is_none() {
            self.reply(ticket, Reply::Reregister);
            return;
        }
        self.roster.hear(worker, self.now);
        // A worker polls once at a time: an older poll of its hangs on a broken connection.
        let older = self.polls.iter().find(|(_, waiting)| waiting.worker == worker);
        if let Some(older) = older.map(|(ticket, _)| *ticket) {
            self.polls.remove(&older);
            self.reply(older, Reply::Idle);
        }
        if free_slots == 0 || self.polls.len() >= POLLS_MAX {
            self.reply(ticket, Reply::Idle);
            return;
        }
        let since = self.now;
        self.polls.insert(ticket, Waiting { worker, incarnation, free_slots, since });
    }

    pub(super) fn expire_polls(&mut self) {
        let now = self.now;
        let over = self.polls.iter().filter(|(_, poll)| now.since(poll.since) >= POLL_WAIT_MS);
        for ticket in over.map(|(ticket, _)| *ticket).collect::<Vec<_>>() {
            self.polls.remove(&ticket);
            self.reply(ticket, Reply::Idle);
        }
    }

    /// Gives pending tasks to workers that wait. Nothing is given out while workers that may be
    /// running tasks are still expected back.
    pub(super) fn assign(&mut self) {
        if self.roster.window_open(self.now) || self.polls.is_empty() {
            return;
        }
        let now = self.now;
        if self.jobs.values_mut().all(|active| active.waiting(now) == 0) {
            return;
        }
        for ticket in self.polls.keys().copied().collect::<Vec<_>>() {
            let poll = &self.polls[&ticket];
            let Some(worker) = self.roster.get(poll.worker, poll.incarnation) else {
                self.polls.remove(&ticket);
                self.reply(ticket, Reply::Reregister);
                continue;
            };
            if self.quiet(worker.heard) {
                continue;
            }
            let (id, apps) = (worker.record.id, worker.record.apps.clone());
            let slots = poll.free_slots.min(worker.record.slots) as usize;
            let given = self.take_tasks(id, &apps, slots);
            if !given.is_empty() {
                self.polls.remove(&ticket);
                self.reply(ticket, Reply::Assigned(given));
            }
        }
    }

    /// Takes up to `slots` tasks for a worker, of the oldest jobs first, but of each job no more
    /// than its share, so that all workers get some of a short queue.
    fn take_tasks(&mut self, worker: WorkerId, apps: &[String], slots: usize) -> Vec<Assignment> {
        let (now, epoch) = (self.now, self.epoch);
        let mut given = Vec::new();
        let mut runs_left = RUNS_PER_REPLY_MAX;
        let mut splits_left = SPLITS_PER_REPLY_MAX;
        for active in self.jobs.values_mut() {
            let waiting = active.waiting(now);
            if waiting == 0 || !apps.contains(&active.job.spec.app) {
                continue;
            }
            let workers = self.roster.with_app(&active.job.spec.app).max(1);
            let share = waiting.div_ceil(workers).min(slots - given.len());
            for _ in 0..share {
                let size = match active.phase() {
                    TaskKind::Map => (0, crate::limits::SPLITS_PER_TASK_MAX),
                    TaskKind::Reduce => (active.job.total(TaskKind::Map) as usize, 0),
                };
                if size.0 > runs_left || size.1 > splits_left {
                    return given;
                }
                let Some(task) = active.take(worker, workers > 1, now) else { break };
                (runs_left, splits_left) = (runs_left - size.0, splits_left - size.1);
                self.sequence += 1;
                let number = AttemptNumber { epoch, sequence: self.sequence };
                active.begin(number, task, worker, now);
                let work = match (task.kind, &active.plan) {
                    (TaskKind::Map, Some(plan)) => Work::Map(plan.clone()),
                    (TaskKind::Map | TaskKind::Reduce, _) => Work::Reduce(active.runs()),
                };
                let attempt = AttemptId { job: active.job.id, task, number };
                let (spec, lease_ms) = (active.job.spec.clone(), active.job.spec.lease_ms);
                given.push(Assignment { attempt, lease_ms, spec, work });
                self.effects.push(Effect::Changed { job: active.job.id });
            }
        }
        given
    }

    /// The caller of a poll was gone before its assignments reached it.
    pub(super) fn undelivered(&mut self, attempts: &[AttemptId]) {
        let now = self.now;
        for attempt in attempts {
            let Some(active) = self.active(attempt.job) else { continue };
            active.give_back(attempt.number, AttemptEnd::Abandoned, now);
            self.effects.push(Effect::Changed { job: attempt.job });
        }
    }

    pub(super) fn heartbeat(
        &mut self,
        ticket: Ticket,
        worker: WorkerId,
        incarnation: u128,
        running: &[(AttemptId, u64, u64)],
    ) {
        if self.roster.get(worker, incarnation).is_none() {
            let go_on =
                |(attempt, _, _): &(AttemptId, u64, u64)| Order { attempt: *attempt, stop: None };
            let orders = running.iter().map(go_on).collect();
            self.reply(ticket, Reply::Heartbeat { orders, reregister: true });
            return;
        }
        self.roster.hear(worker, self.now);
        let mut listed = BTreeSet::new();
        let mut orders = Vec::with_capacity(running.len());
        for (attempt, records, bytes) in running {
            listed.insert(attempt.number);
            orders.push(self.order(*attempt, worker, Some((*records, *bytes))));
        }
        self.take_back_unseen(worker, &listed);
        self.reply(ticket, Reply::Heartbeat { orders, reregister: false });
    }

    fn take_back_unseen(&mut self, worker: WorkerId, listed: &BTreeSet<AttemptNumber>) {
        let now = self.now;
        for active in self.jobs.values_mut() {
            let unseen = active.leases.numbers(|lease| {
                lease.worker == worker && !lease.running && now.since(lease.granted) >= UNSEEN_MS
            });
            for number in unseen.into_iter().filter(|number| !listed.contains(number)) {
                // Expired, not abandoned: should the worker run it after all, it may still win.
                active.give_back(number, AttemptEnd::Expired, now);
                self.effects.push(Effect::Changed { job: active.job.id });
            }
        }
    }

    /// What a worker is told about an attempt that it runs; an attempt that goes on is renewed.
    fn order(
        &mut self,
        attempt: AttemptId,
        worker: WorkerId,
        progress: Option<(u64, u64)>,
    ) -> Order {
        let (now, epoch) = (self.now, self.epoch);
        let stop = |reason| Order { attempt, stop: Some(reason) };
        let Some(active) = self.active(attempt.job) else {
            return stop("the job has ended or is unknown");
        };
        let number = attempt.number;
        match active.acceptable(&attempt, epoch) {
            // It was accepted, and its worker has not learned of it yet.
            Err(Verdict::AlreadyAccepted) => return Order { attempt, stop: None },
            Err(verdict) => {
                active.leases.end(number, AttemptEnd::Aborted);
                return stop(match verdict {
                    Verdict::LostRace => "another attempt's result was accepted",
                    Verdict::JobGone => "the job has ended or is unknown",
                    Verdict::Accepted
                    | Verdict::AlreadyAccepted
                    | Verdict::Stale
                    | Verdict::TokenConflict
                    | Verdict::OutputBusy
                    | Verdict::TooMany
                    | Verdict::TooLate
                    | Verdict::Malformed => "the attempt was given up",
                });
            }
            Ok(()) if number.epoch > epoch => return stop("the attempt is not known"),
            Ok(()) => {}
        }
        if active.leases.live(number).is_none() {
            active.adopt(number, attempt.task, worker, now);
            self.effects.push(Effect::Changed { job: attempt.job });
        }
        let Some(active) = self.active(attempt.job) else {
            return stop("the job has ended or is unknown");
        };
        let lease_ms = active.job.spec.lease_ms;
        active.leases.renew(number, worker, now, lease_ms, progress);
        Order { attempt, stop: None }
    }

    pub(super) fn deregister(&mut self, ticket: Ticket, worker: WorkerId, incarnation: u128) {
        if self.roster.get(worker, incarnation).is_some() {
            self.roster.remove(worker);
            let now = self.now;
            for active in self.jobs.values_mut() {
                for number in active.leases.numbers(|lease| lease.worker == worker) {
                    active.give_back(number, AttemptEnd::Abandoned, now);
                    self.effects.push(Effect::Changed { job: active.job.id });
                }
            }
            self.propose(Command::WorkerLeft { worker }, AppliedTo::Nothing);
        }
        self.reply(ticket, Reply::Deregistered);
    }

    /// A worker is lost: what it ran is pending again, and each of its tasks is one step nearer to
    /// being taken for poison.
    pub(super) fn worker_lost(&mut self, worker: WorkerId) {
        let name = self.roster.name(worker);
        let known = self.roster.remove(worker).is_some();
        let mut lost: Vec<(JobId, AttemptNumber)> = Vec::new();
        for active in self.jobs.values() {
            let numbers = active.leases.numbers(|lease| lease.worker == worker);
            lost.extend(numbers.into_iter().map(|number| (active.job.id, number)));
        }
        for (job, number) in lost {
            self.lose(job, number, &name);
        }
        if known {
            self.propose(Command::WorkerLeft { worker }, AppliedTo::Nothing);
        }
    }

    /// An attempt's worker is gone.
    fn lose(&mut self, job: JobId, number: AttemptNumber, worker: &str) {
        let now = self.now;
        let Some(active) = self.active(job) else { return };
        let Some(lease) = active.leases.end(number, AttemptEnd::Expired) else { return };
        let task = lease.task;
        active.avoid(task, lease.worker, now);
        active.offer(task, now, now);
        active.touch();
        let attempt = AttemptId { job, task, number };
        let command = Command::WorkerLost { attempt, worker: worker.to_owned() };
        self.propose(command, AppliedTo::Nothing);
    }

    /// Ends leases that were not renewed. A worker that was not heard since the last renewal is
    /// lost as far as this task is concerned, even where its job's lease is shorter than the
    /// worker's.
    pub(super) fn expire_leases(&mut self) {
        let now = self.now;
        let mut over = Vec::new();
        for active in self.jobs.values() {
            let numbers = active.leases.numbers(|lease| lease.until <= now);
            over.extend(numbers.into_iter().map(|number| (active.job.id, number)));
        }
        for (job, number) in over {
            let Some(active) = self.active(job) else { continue };
            let Some(lease) = active.leases.live(number).cloned() else { continue };
            let heard = self.roster.heard(lease.worker);
            if heard.is_none_or(|heard| heard <= lease.renewed) {
                let name = self.roster.name(lease.worker);
                self.lose(job, number, &name);
            } else if let Some(active) = self.active(job) {
                active.give_back(number, AttemptEnd::Expired, now);
            }
            self.effects.push(Effect::Changed { job });
        }
        self.time_out();
    }
}
