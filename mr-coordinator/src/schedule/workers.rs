//! Workers: registration, heartbeats, farewell, loss, and the wish of an operator that one leaves.
//!
//! Decides what a worker is told about an attempt that it runs. There is one function for a lost
//! worker, whatever showed the loss. That a worker is to leave is known to the leader alone: it is
//! told at its next heartbeat or poll and from then on leaves by itself, whoever leads; should the
//! leader change within that half second, the operator has to say it again.

use std::collections::BTreeSet;

use super::{
    Scheduler,
    active::Active,
    messages::{AppliedTo, Effect, Order, Reply, Ticket},
};
use crate::{
    command::Command,
    ids::{AttemptId, AttemptNumber, JobId, WorkerId},
    job::Verdict,
    leases::{AttemptEnd, Heard, Millis},
    machine::Response,
};

/// An assignment that the worker's heartbeats do not list so long after it was given out got lost
/// on its way.
const UNSEEN_MS: u64 = 3_000;

/// A worker that missed so many heartbeats is given nothing new: its waiting call may be all that
/// is left of it. Its name is free for another.
const QUIET_HEARTBEATS: u64 = 4;

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

    pub(super) fn quiet(&self, heard: Millis) -> bool {
        self.now.since(heard) > QUIET_HEARTBEATS * self.settings.heartbeat_ms
    }

    pub(super) fn registered(&mut self, ticket: Ticket, running: &[AttemptId], is: &Response) {
        let Some(record) = is.worker.clone() else {
            self.reply(ticket, Reply::TooManyWorkers);
            return;
        };
        let id = record.id;
        self.roster.admit(record, self.now);
        self.admit_due = true;
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

    pub(super) fn heartbeat(
        &mut self,
        ticket: Ticket,
        worker: WorkerId,
        incarnation: u128,
        running: &[(AttemptId, Heard)],
    ) {
        let Some(drain) = self.roster.get(worker, incarnation).map(|known| known.draining) else {
            let go_on = |(attempt, _): &(AttemptId, Heard)| Order { attempt: *attempt, stop: None };
            let orders = running.iter().map(go_on).collect();
            self.reply(ticket, Reply::Heartbeat { orders, reregister: true, drain: false });
            return;
        };
        self.roster.hear(worker, self.now);
        let mut listed = BTreeSet::new();
        let mut orders = Vec::with_capacity(running.len());
        for (attempt, told) in running {
            listed.insert(attempt.number);
            let order = if told.queued && self.withdraw(attempt) {
                Order { attempt: *attempt, stop: Some("another worker has nothing to do") }
            } else {
                self.order(*attempt, worker, Some(*told))
            };
            orders.push(order);
        }
        self.take_back_unseen(worker, &listed);
        self.reply(ticket, Reply::Heartbeat { orders, reregister: false, drain });
    }

    fn take_back_unseen(&mut self, worker: WorkerId, listed: &BTreeSet<AttemptNumber>) {
        let now = self.now;
        for active in self.jobs.values_mut() {
            let unseen = |number: &AttemptNumber| {
                let lease = active.leases.live(*number);
                lease.is_some_and(|l| !l.running && now.since(l.granted) >= UNSEEN_MS)
            };
            let lost: Vec<AttemptNumber> = active.leases.of_worker(worker).filter(unseen).collect();
            for number in lost.into_iter().filter(|number| !listed.contains(number)) {
                // Expired, not abandoned: should the worker run it after all, it may still win.
                active.give_back(number, AttemptEnd::Expired, now);
                self.effects.push(Effect::Changed { job: active.job.id });
            }
        }
    }

    /// What a worker is told about an attempt that it runs; an attempt that goes on is renewed.
    fn order(&mut self, attempt: AttemptId, worker: WorkerId, told: Option<Heard>) -> Order {
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
                active.close(number, AttemptEnd::Aborted, now);
                return stop(match verdict {
                    Verdict::LostRace => "another attempt's result was accepted",
                    Verdict::JobGone => "the job has ended or is unknown",
                    Verdict::Accepted
                    | Verdict::AlreadyAccepted
                    | Verdict::Stale
                    | Verdict::TokenConflict
                    | Verdict::OutputBusy
                    | Verdict::TooMany
                    | Verdict::AfterUnknown
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
        active.leases.renew(number, worker, now, lease_ms, told);
        Order { attempt, stop: None }
    }

    pub(super) fn deregister(&mut self, ticket: Ticket, worker: WorkerId, incarnation: u128) {
        if self.roster.get(worker, incarnation).is_some() {
            self.roster.remove(worker);
            let now = self.now;
            for active in self.jobs.values_mut() {
                for number in active.leases.of_worker(worker).collect::<Vec<_>>() {
                    active.give_back(number, AttemptEnd::Abandoned, now);
                    self.effects.push(Effect::Changed { job: active.job.id });
                }
            }
            self.propose(Command::WorkerLeft { worker }, AppliedTo::Nothing);
        }
        self.reply(ticket, Reply::Deregistered);
    }

    /// An operator wants a worker to leave.
    pub(super) fn drain(&mut self, ticket: Ticket, name: &str) {
        let id = self.roster.named(name).map(|worker| worker.record.id);
        if let Some(id) = id {
            self.roster.drain(id);
            if let Some(poll) = self.poll_of.get(&id).copied() {
                self.drop_poll(poll);
                self.reply(poll, Reply::Drain);
            }
        }
        let view = id.and_then(|id| self.worker_view(id));
        self.reply(ticket, Reply::Draining(view));
    }

    /// Whether a job gives a worker no more tasks.
    pub(super) fn excluded(&self, active: &Active, worker: WorkerId) -> bool {
        if active.trust.is_whole() {
            return false;
        }
        let app = &active.job.spec.app;
        let able = self.roster.iter().filter(|worker| worker.record.apps.contains(app));
        active.trust.excludes(worker, able.map(|worker| worker.record.id))
    }

    /// A worker is lost: what it ran is pending again, and each of its tasks is one step nearer to
    /// being taken for poison.
    pub(super) fn worker_lost(&mut self, worker: WorkerId) {
        let name = self.roster.name(worker);
        let known = self.roster.remove(worker).is_some();
        let mut lost: Vec<(JobId, AttemptNumber)> = Vec::new();
        for active in self.jobs.values() {
            let numbers = active.leases.of_worker(worker);
            lost.extend(numbers.map(|number| (active.job.id, number)));
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
        let Some(lease) = active.leases.end(number, AttemptEnd::Expired, now) else { return };
        let task = lease.task;
        active.avoid(task, lease.worker, now);
        active.touch();
        let attempt = AttemptId { job, task, number };
        let command = Command::WorkerLost { attempt, worker: worker.to_owned() };
        self.propose(command, AppliedTo::Loss(attempt));
    }

    /// The loss of a worker is in the log, or will not get there: its task is pending again, unless
    /// it was the last that the task may take along.
    pub(super) fn loss_applied(&mut self, attempt: &AttemptId) {
        let now = self.now;
        if let Some(active) = self.active(attempt.job) {
            active.offer(attempt.task, now, now);
        }
    }

    /// Ends leases that were not renewed. A worker that was silent for the second half of a lease is
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
            let Some(lease) = active.leases.live(number).copied() else { continue };
            let heard = self.roster.heard(lease.worker);
            let middle = now.since(lease.renewed) / 2;
            if heard.is_none_or(|heard| now.since(heard) >= middle) {
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
