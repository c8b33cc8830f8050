//! Tasks for workers: the long poll, polls that come with a report, tasks that are kept ready.
//!
//! Decides how many tasks a worker gets: of each job no more than its share of what waits, so that
//! all workers get some of a short queue; which job comes first is decided in `order.rs`. A task
//! beyond a worker's free slots is given out only while no other worker waits with a free slot and
//! more tasks wait than there are slots in all, so that no end of a phase waits behind a busy slot.
//! If it has not begun when another worker has nothing to do, it is taken back.
//!
//! Polls are looked through when tasks have become pending, and each when it comes; both cost
//! nothing where no job has anything to give.

use super::{
    Scheduler,
    messages::{Assignment, Effect, Reply, ReportAnswer, Ticket, Wants, Work},
    order::{Claim, Served},
};
use crate::{
    ids::{AttemptId, AttemptNumber, TaskId, TaskKind, WorkerId},
    leases::AttemptEnd,
    limits::{
        POLL_WAIT_MS, POLLS_MAX, PREFETCH_MAX, RUNS_PER_REPLY_MAX, SPLITS_PER_REPLY_MAX,
        SPLITS_PER_TASK_MAX,
    },
};

/// A worker that waits for work.
pub(super) struct Waiting {
    pub(super) worker: WorkerId,
    pub(super) incarnation: u128,
    pub(super) wants: Wants,
    pub(super) since: crate::leases::Millis,
}

/// A job that a worker could be given a task of.
struct Candidate {
    claim: Claim,
    /// How many more tasks of it this worker may get.
    share: usize,
    /// Whether other workers could run its tasks.
    others: bool,
}

/// What fits into one reply yet.
struct Room {
    runs: usize,
    splits: usize,
}

impl Scheduler {
    pub(super) fn poll(
        &mut self,
        ticket: Ticket,
        worker: WorkerId,
        incarnation: u128,
        wants: Wants,
    ) {
        let Some(known) = self.roster.get(worker, incarnation) else {
            self.reply(ticket, Reply::Reregister);
            return;
        };
        let draining = known.draining;
        self.roster.hear(worker, self.now);
        // A worker polls once at a time: an older poll of its hangs on a broken connection.
        if let Some(older) = self.poll_of.get(&worker).copied() {
            self.drop_poll(older);
            self.reply(older, Reply::Idle);
        }
        if draining {
            self.reply(ticket, Reply::Drain);
            return;
        }
        if wants.is_nothing() || self.polls.len() >= POLLS_MAX {
            self.reply(ticket, Reply::Idle);
            return;
        }
        let since = self.now;
        self.free_slots_waiting += u64::from(wants.free_slots);
        self.polls.insert(ticket, Waiting { worker, incarnation, wants, since });
        self.poll_of.insert(worker, ticket);
        self.fresh = Some(ticket);
    }

    /// A poll is answered, or its caller is gone.
    pub(super) fn drop_poll(&mut self, ticket: Ticket) {
        let Some(poll) = self.polls.remove(&ticket) else { return };
        self.free_slots_waiting -= u64::from(poll.wants.free_slots);
        self.poll_of.remove(&poll.worker);
    }

    pub(super) fn expire_polls(&mut self) {
        let now = self.now;
        let over = self.polls.iter().filter(|(_, poll)| now.since(poll.since) >= POLL_WAIT_MS);
        for ticket in over.map(|(ticket, _)| *ticket).collect::<Vec<_>>() {
            self.drop_poll(ticket);
            self.reply(ticket, Reply::Idle);
        }
    }

    /// Gives pending tasks to workers that wait. Nothing is given out while workers that may be
    /// running tasks are still expected back.
    pub(super) fn assign(&mut self) {
        let fresh = self.fresh.take();
        if self.roster.window_open(self.now) || self.polls.is_empty() {
            return;
        }
        let mut offered = false;
        for active in self.jobs.values_mut() {
            offered |= std::mem::take(&mut active.offered);
        }
        if offered {
            for ticket in self.polls.keys().copied().collect::<Vec<_>>() {
                self.feed(ticket);
            }
        } else if let Some(ticket) = fresh {
            self.feed(ticket);
        }
    }

    /// Answers a poll, if there is work for its worker.
    fn feed(&mut self, ticket: Ticket) {
        let Some(poll) = self.polls.get(&ticket) else { return };
        let Some(worker) = self.roster.get(poll.worker, poll.incarnation) else {
            self.drop_poll(ticket);
            self.reply(ticket, Reply::Reregister);
            return;
        };
        if self.quiet(worker.heard) {
            return;
        }
        let (id, wants) = (poll.worker, poll.wants);
        let given = self.take_tasks(id, wants);
        if !given.is_empty() {
            self.drop_poll(ticket);
            self.reply(ticket, Reply::Assigned(given));
        }
    }

    /// Answers a report; a poll that came with it gets what there is.
    pub(super) fn reply_report(&mut self, ticket: Ticket, answer: ReportAnswer) {
        let mut given = Vec::new();
        if let Some((worker, incarnation, wants)) = self.report_polls.remove(&ticket) {
            let known = self.roster.get(worker, incarnation);
            if known.is_some_and(|known| !known.draining) && !self.roster.window_open(self.now) {
                given = self.take_tasks(worker, wants);
            }
        }
        self.reply(ticket, Reply::Report { answer, given });
    }

    /// The jobs that a worker could be given something of.
    fn candidates(&self, worker: WorkerId, served: &mut Served) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        let Some(known) = self.roster.present(worker) else { return candidates };
        for (number, active) in &self.jobs {
            if !active.job.state.runs_tasks() {
                continue;
            }
            let spec = &active.job.spec;
            let queue = served.add(spec, &self.settings.weights, active.leases.len());
            let (waiting, slow) = (active.waiting(), active.backup_fits());
            if waiting == 0 && !slow || !known.record.apps.contains(&spec.app) {
                continue;
            }
            if self.excluded(active, worker) {
                continue;
            }
            let workers = self.roster.with_app(&spec.app).max(1);
            let claim = Claim { priority: spec.scheduling.priority, queue, number: *number };
            let (share, others) = (waiting.div_ceil(workers), workers > 1);
            candidates.push(Candidate { claim, share, others });
        }
        candidates
    }

    /// Takes tasks for a worker: pending ones, then backups for slots that are left, then tasks to
    /// keep ready.
    pub(super) fn take_tasks(&mut self, worker: WorkerId, wants: Wants) -> Vec<Assignment> {
        let mut served = Served::default();
        let mut candidates = self.candidates(worker, &mut served);
        let mut given = Vec::new();
        if candidates.is_empty() {
            return given;
        }
        let slots = self.roster.present(worker).map_or(0, |known| known.record.slots);
        let free_slots = wants.free_slots.min(slots) as usize;
        let mut room = Room { runs: RUNS_PER_REPLY_MAX, splits: SPLITS_PER_REPLY_MAX };
        while given.len() < free_slots {
            let waiting = |candidate: &&mut Candidate| candidate.share > 0;
            let first = candidates
                .iter_mut()
                .filter(waiting)
                .min_by(|one, other| served.compare(&one.claim, &other.claim));
            let Some(first) = first else { break };
            match self.take_one(worker, first, &mut room, false) {
                Some(assignment) => {
                    served.serve(first.claim.queue, 1);
                    given.push(assignment);
                }
                None => first.share = 0,
            }
        }
        self.add_backups(worker, &candidates, free_slots, &mut room, &mut given);
        self.add_ready(worker, wants, &mut candidates, (&mut served, &mut room), &mut given);
        given
    }

    fn add_backups(
        &mut self,
        worker: WorkerId,
        candidates: &[Candidate],
        free_slots: usize,
        room: &mut Room,
        given: &mut Vec<Assignment>,
    ) {
        for candidate in candidates {
            while given.len() < free_slots {
                let number = candidate.claim.number;
                if !self.fits(number, room) {
                    return;
                }
                let Some(active) = self.jobs.get_mut(&number) else { break };
                let Some(task) = active.take_slow(worker) else { break };
                given.push(self.give(number, task, worker, room, (false, true)));
            }
        }
    }

    /// Adds tasks that the worker keeps ready.
    fn add_ready(
        &mut self,
        worker: WorkerId,
        wants: Wants,
        candidates: &mut [Candidate],
        (served, room): (&mut Served, &mut Room),
        given: &mut Vec<Assignment>,
    ) {
        let prefetch = wants.prefetch.min(PREFETCH_MAX) as usize;
        let own = self.poll_of.get(&worker).and_then(|ticket| self.polls.get(ticket));
        let own = own.map_or(0, |poll| u64::from(poll.wants.free_slots));
        if self.free_slots_waiting > own {
            return;
        }
        let slots = self.roster.slots() as usize;
        let most = given.len() + prefetch;
        while given.len() < most {
            let jobs = &self.jobs;
            let plenty = |candidate: &&mut Candidate| {
                candidate.share > 0 && jobs[&candidate.claim.number].waiting() > slots
            };
            let first = candidates
                .iter_mut()
                .filter(plenty)
                .min_by(|one, other| served.compare(&one.claim, &other.claim));
            let Some(first) = first else { break };
            match self.take_one(worker, first, room, true) {
                Some(assignment) => {
                    served.serve(first.claim.queue, 1);
                    given.push(assignment);
                }
                None => first.share = 0,
            }
        }
    }

    /// Whether a task of a job fits into the reply.
    fn fits(&self, number: u64, room: &Room) -> bool {
        let Some(active) = self.jobs.get(&number) else { return false };
        match active.phase() {
            TaskKind::Map => SPLITS_PER_TASK_MAX <= room.splits,
            TaskKind::Reduce => active.job.total(TaskKind::Map) as usize <= room.runs,
        }
    }

    fn take_one(
        &mut self,
        worker: WorkerId,
        candidate: &mut Candidate,
        room: &mut Room,
        queued: bool,
    ) -> Option<Assignment> {
        let (now, number) = (self.now, candidate.claim.number);
        if !self.fits(number, room) {
            return None;
        }
        let task = self.jobs.get_mut(&number)?.take(worker, candidate.others, now)?;
        candidate.share -= 1;
        Some(self.give(number, task, worker, room, (queued, false)))
    }

    /// Begins an attempt.
    fn give(
        &mut self,
        number: u64,
        task: TaskId,
        worker: WorkerId,
        room: &mut Room,
        (queued, backup): (bool, bool),
    ) -> Assignment {
        let now = self.now;
        self.sequence += 1;
        let attempt = AttemptNumber { epoch: self.epoch, sequence: self.sequence };
        let active = self.jobs.get_mut(&number).expect("the job of a candidate is there");
        active.begin(attempt, task, worker, now, (queued, backup));
        let work = match (task.kind, &active.plan) {
            (TaskKind::Map, Some(plan)) => {
                room.splits -= SPLITS_PER_TASK_MAX;
                Work::Map(plan.clone())
            }
            (TaskKind::Map | TaskKind::Reduce, _) => {
                let runs = active.runs();
                room.runs -= runs.len().min(room.runs);
                Work::Reduce(runs)
            }
        };
        let job = active.job.id;
        let attempt = AttemptId { job, task, number: attempt };
        let spec = active.job.spec.clone();
        let record = active.job.task(task);
        let skip = record.map(|task| task.skipped.clone()).unwrap_or_default();
        let failed = record.is_some_and(|task| !task.failed.is_empty() || !skip.is_empty());
        let careful = spec.scheduling.max_skip > 0 && failed;
        self.effects.push(Effect::Changed { job });
        Assignment { attempt, lease_ms: spec.lease_ms, spec, work, skip, careful, backup }
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

    /// Whether a task that a worker keeps ready is better given to another, which has nothing to
    /// do; it is taken back then.
    pub(super) fn withdraw(&mut self, attempt: &AttemptId) -> bool {
        if self.free_slots_waiting == 0 {
            return false;
        }
        let now = self.now;
        let Some(active) = self.jobs.get(self.numbers.get(&attempt.job).unwrap_or(&0)) else {
            return false;
        };
        let Some(lease) = active.leases.live(attempt.number) else { return false };
        let (holder, app) = (lease.worker, &active.job.spec.app);
        // What waits already is given to them without that.
        let takes = |poll: &&Waiting| {
            let worker = self.roster.get(poll.worker, poll.incarnation);
            poll.wants.free_slots > 0
                && poll.worker != holder
                && worker.is_some_and(|w| !self.quiet(w.heard) && w.record.apps.contains(app))
                && !self.excluded(active, poll.worker)
        };
        if !lease.queued || active.waiting() > 0 || self.polls.values().find(takes).is_none() {
            return false;
        }
        let Some(active) = self.active(attempt.job) else { return false };
        active.give_back(attempt.number, AttemptEnd::Withdrawn, now);
        active.avoid(attempt.task, holder, now);
        self.effects.push(Effect::Changed { job: attempt.job });
        true
    }
}
