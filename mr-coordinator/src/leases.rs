//! Who is alive and who holds what: the part of scheduling that lives only with the leader.
//!
//! Decides when a worker counts as lost, when an attempt's lease is over and when an attempt makes
//! no progress, all by the leader's own monotonic clock: workers are told durations, never times.
//! Leaves out what follows from it (`schedule.rs`).

#![deny(clippy::disallowed_types)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    ids::{AttemptNumber, TaskId, TaskKind, WorkerId},
    machine::WorkerRecord,
};

/// The leader's monotonic clock, in milliseconds from any fixed beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// So much later.
    #[must_use]
    pub fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How long ago `earlier` was; 0 when it is ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A worker that registered with this leader.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its registration.
    pub record: Arc<WorkerRecord>,
    /// When it was last heard.
    pub heard: Millis,
    /// Whether it was told to finish what it runs and to leave.
    pub draining: bool,
}

/// The workers.
#[derive(Clone, Debug)]
pub struct Roster {
    workers: BTreeMap<WorkerId, Worker>,
    /// Registrations from before this leader's term that have not been renewed with it.
    awaited: BTreeSet<WorkerId>,
    /// Until when they are waited for, at most.
    window_end: Millis,
    /// When a worker with an app was last heard.
    app_heard: BTreeMap<String, Millis>,
    /// How many workers have an app.
    with_app: BTreeMap<String, usize>,
    /// How many slots all workers have together.
    slots: u32,
    lease_ms: u64,
}

impl Roster {
    /// Waits for the registered workers, one lease at most.
    #[must_use]
    pub fn new(known: impl IntoIterator<Item = WorkerId>, now: Millis, lease_ms: u64) -> Self {
        let awaited = known.into_iter().collect();
        let window_end = now.plus(lease_ms);
        Self {
            workers: BTreeMap::new(),
            awaited,
            window_end,
            app_heard: BTreeMap::new(),
            with_app: BTreeMap::new(),
            slots: 0,
            lease_ms,
        }
    }

    /// Whether workers that may be running attempts are still waited for.
    #[must_use]
    pub fn window_open(&self, now: Millis) -> bool {
        !self.awaited.is_empty() && now < self.window_end
    }

    /// Ends the wait; the workers that did not come back.
    pub fn close_window(&mut self, now: Millis) -> Vec<WorkerId> {
        if self.window_open(now) {
            return Vec::new();
        }
        std::mem::take(&mut self.awaited).into_iter().collect()
    }

    /// Takes in a registration. A process that drains goes on draining.
    pub fn admit(&mut self, record: Arc<WorkerRecord>, now: Millis) {
        let id = record.id;
        let draining = self.remove(id).is_some_and(|known| known.draining);
        for app in &record.apps {
            *self.with_app.entry(app.clone()).or_default() += 1;
        }
        self.slots = self.slots.saturating_add(record.slots);
        self.workers.insert(id, Worker { record, heard: now, draining });
        self.hear(id, now);
    }

    /// Forgets a registration.
    pub fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        self.awaited.remove(&id);
        let worker = self.workers.remove(&id)?;
        for app in &worker.record.apps {
            let count = self.with_app.get_mut(app).expect("the apps of workers are counted");
            *count -= 1;
            if *count == 0 {
                self.with_app.remove(app);
            }
        }
        self.slots = self.workers.values().fold(0, |sum, w| sum.saturating_add(w.record.slots));
        Some(worker)
    }

    /// Notes that a worker is to finish what it runs and to leave.
    pub fn drain(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.draining = true;
        }
    }

    /// All workers, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// A worker that registered with this leader and is this very process.
    #[must_use]
    pub fn get(&self, id: WorkerId, incarnation: u128) -> Option<&Worker> {
        self.workers.get(&id).filter(|worker| worker.record.incarnation == incarnation)
    }

    /// A worker that registered with this leader.
    #[must_use]
    pub fn present(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(&id)
    }

    /// A worker by its name and process.
    #[must_use]
    pub fn find(&self, name: &str, incarnation: u128) -> Option<&Worker> {
        self.workers
            .values()
            .find(|worker| worker.record.name == name && worker.record.incarnation == incarnation)
    }

    /// The worker of a name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Worker> {
        self.workers.values().find(|worker| worker.record.name == name)
    }

    /// A worker's name, or its number when it is not known.
    #[must_use]
    pub fn name(&self, id: WorkerId) -> String {
        match self.workers.get(&id) {
            Some(worker) => worker.record.name.clone(),
            None => format!("worker {id}"),
        }
    }

    /// When a worker was last heard.
    #[must_use]
    pub fn heard(&self, id: WorkerId) -> Option<Millis> {
        self.workers.get(&id).map(|worker| worker.heard)
    }

    /// Notes a sign of life.
    pub fn hear(&mut self, id: WorkerId, now: Millis) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.heard = now;
        for app in &worker.record.apps {
            match self.app_heard.get_mut(app) {
                Some(heard) => *heard = now,
                None => drop(self.app_heard.insert(app.clone(), now)),
            }
        }
    }

    /// Workers that were not heard for a lease.
    #[must_use]
    pub fn silent(&self, now: Millis) -> Vec<WorkerId> {
        let silent = self.workers.iter().filter(|(_, w)| now.since(w.heard) >= self.lease_ms);
        silent.map(|(id, _)| *id).collect()
    }

    /// How many workers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// How many workers have an app.
    #[must_use]
    pub fn with_app(&self, app: &str) -> usize {
        self.with_app.get(app).copied().unwrap_or(0)
    }

    /// How many slots all workers have together.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// When a worker with this app was last heard, if ever in this term.
    #[must_use]
    pub fn app_heard(&self, app: &str) -> Option<Millis> {
        self.app_heard.get(app).copied()
    }

    /// All apps that workers have, in order.
    #[must_use]
    pub fn apps(&self) -> Vec<String> {
        self.with_app.keys().cloned().collect()
    }

    /// The leader itself stood still for so long: nobody's silence in it counts.
    pub fn shift(&mut self, gap_ms: u64) {
        self.window_end = self.window_end.plus(gap_ms);
        for worker in self.workers.values_mut() {
            worker.heard = worker.heard.plus(gap_ms);
        }
        for heard in self.app_heard.values_mut() {
            *heard = heard.plus(gap_ms);
        }
    }
}

/// An attempt that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Its task.
    pub task: TaskId,
    /// Who runs it.
    pub worker: WorkerId,
    /// When it was given out, or taken over.
    pub granted: Millis,
    /// When it began to run, as far as this leader knows.
    pub begun: Millis,
    /// Whether this leader saw it begin, so that its duration is known.
    pub whole: bool,
    /// When it is over unless it is renewed.
    pub until: Millis,
    /// When it was last renewed.
    pub renewed: Millis,
    /// Whether the worker has confirmed that it has it.
    pub running: bool,
    /// Whether it waits in the worker until a slot is free.
    pub queued: bool,
    /// Whether it is a second attempt at a slow one's task.
    pub backup: bool,
    /// Records and bytes read, as last heard.
    pub progress: (u64, u64),
    /// When that last grew.
    pub progressed: Millis,
}

impl Lease {
    /// Whether a slot was freed for it since its worker was last heard of it.
    #[must_use]
    pub fn may_have_begun(&self) -> bool {
        self.begun > self.renewed
    }
}

/// How far a worker says that an attempt has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Records and bytes read.
    pub progress: (u64, u64),
    /// Whether it has not begun.
    pub queued: bool,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// Its result is the task's.
    Accepted,
    /// Another's is.
    LostRace,
    /// It failed.
    Failed,
    /// Its lease ran out; it may still report, and still be accepted.
    Expired,
    /// Its worker was told to stop it.
    Aborted,
    /// Its worker gave it back.
    Abandoned,
    /// It was taken back before it began, for a worker that has nothing to do.
    Withdrawn,
}

/// An attempt that this leader saw end.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How it ended.
    pub end: AttemptEnd,
    /// What it was.
    pub lease: Lease,
    /// When it ended.
    pub at: Millis,
}

/// The attempts of one job that this leader knows.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    live: BTreeMap<AttemptNumber, Lease>,
    ended: BTreeMap<AttemptNumber, Ended>,
    /// Where the live ones are, by task: one, or two when one is a backup.
    of_task: BTreeMap<TaskId, Vec<AttemptNumber>>,
    /// Where they are, by worker.
    of_worker: BTreeMap<WorkerId, BTreeSet<AttemptNumber>>,
    /// Tasks of each kind with a live attempt.
    tasks: [u32; 2],
    /// Live backups.
    backups: u32,
    /// Live attempts of each kind that wait in their workers.
    queued: [u32; 2],
}

impl Leases {
    /// Gives out an attempt, or takes one over that is running.
    pub fn grant(&mut self, number: AttemptNumber, lease: Lease) {
        assert!(!self.live.contains_key(&number), "attempt {number} is under way already");
        self.ended.remove(&number);
        let of_task = self.of_task.entry(lease.task).or_default();
        self.tasks[lease.task.kind.slot()] += u32::from(of_task.is_empty());
        of_task.push(number);
        self.of_worker.entry(lease.worker).or_default().insert(number);
        self.backups += u32::from(lease.backup);
        self.queued[lease.task.kind.slot()] += u32::from(lease.queued);
        self.live.insert(number, lease);
    }

    /// An attempt under way.
    #[must_use]
    pub fn live(&self, number: AttemptNumber) -> Option<&Lease> {
        self.live.get(&number)
    }

    /// How an attempt at this task ended, if this leader saw it end.
    #[must_use]
    pub fn ended(&self, number: AttemptNumber) -> Option<AttemptEnd> {
        self.ended.get(&number).map(|ended| ended.end)
    }

    /// Whether this leader gave out, or took over, an attempt with this number at this task.
    #[must_use]
    pub fn knows(&self, number: AttemptNumber, task: TaskId) -> bool {
        let live = self.live.get(&number).map(|lease| lease.task);
        live.or(self.ended.get(&number).map(|ended| ended.lease.task)) == Some(task)
    }

    /// Renews a lease; progress, where it is told, counts when it grew. An attempt that waits for
    /// a slot is not expected to make any.
    pub fn renew(
        &mut self,
        number: AttemptNumber,
        worker: WorkerId,
        now: Millis,
        lease_ms: u64,
        told: Option<Heard>,
    ) {
        let Some(lease) = self.live.get_mut(&number) else { return };
        if lease.worker != worker {
            let old = std::mem::replace(&mut lease.worker, worker);
            remove_from(&mut self.of_worker, old, number);
            self.of_worker.entry(worker).or_default().insert(number);
        }
        let presumed = lease.may_have_begun();
        lease.renewed = now;
        lease.until = now.plus(lease_ms);
        lease.running = true;
        let Some(told) = told else { return };
        if lease.queued || told.queued {
            lease.progressed = now;
            if told.queued || !presumed {
                lease.begun = now;
            }
            let queued = &mut self.queued[lease.task.kind.slot()];
            *queued = *queued + u32::from(told.queued) - u32::from(lease.queued);
            lease.queued = told.queued;
        }
        if told.progress != lease.progress {
            lease.progress = told.progress;
            lease.progressed = now;
        }
    }

    /// A slot of its worker was freed, so it begins now, unless the worker says that it has not.
    pub fn presume_begun(&mut self, number: AttemptNumber, now: Millis) {
        if let Some(lease) = self.live.get_mut(&number) {
            lease.begun = now;
        }
    }

    /// Ends an attempt.
    pub fn end(&mut self, number: AttemptNumber, end: AttemptEnd, at: Millis) -> Option<Lease> {
        let lease = self.live.remove(&number)?;
        let of_task =
            self.of_task.get_mut(&lease.task).expect("a live attempt is known by its task");
        of_task.retain(|other| *other != number);
        if of_task.is_empty() {
            self.of_task.remove(&lease.task);
            self.tasks[lease.task.kind.slot()] -= 1;
        }
        remove_from(&mut self.of_worker, lease.worker, number);
        self.backups -= u32::from(lease.backup);
        self.queued[lease.task.kind.slot()] -= u32::from(lease.queued);
        self.ended.insert(number, Ended { end, lease, at });
        Some(lease)
    }

    /// The attempts at a task that are under way.
    #[must_use]
    pub fn of_task(&self, task: TaskId) -> &[AttemptNumber] {
        self.of_task.get(&task).map_or(&[], Vec::as_slice)
    }

    /// The attempts that a worker has.
    pub fn of_worker(&self, worker: WorkerId) -> impl Iterator<Item = AttemptNumber> {
        self.of_worker.get(&worker).into_iter().flatten().copied()
    }

    /// Whether an attempt at this task is under way.
    #[must_use]
    pub fn has_live(&self, task: TaskId) -> bool {
        self.of_task.contains_key(&task)
    }

    /// How many tasks of a kind have an attempt that has begun.
    #[must_use]
    pub fn running(&self, kind: TaskKind) -> u32 {
        self.tasks[kind.slot()].saturating_sub(self.queued[kind.slot()])
    }

    /// How many attempts are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// How many of them are backups.
    #[must_use]
    pub fn backups(&self) -> u32 {
        self.backups
    }

    /// All that is under way.
    pub fn iter(&self) -> impl Iterator<Item = (AttemptNumber, &Lease)> {
        self.live.iter().map(|(number, lease)| (*number, lease))
    }

    /// All that this leader saw end.
    pub fn iter_ended(&self) -> impl Iterator<Item = (AttemptNumber, &Ended)> {
        self.ended.iter().map(|(number, ended)| (*number, ended))
    }

    /// The attempts that fulfil a condition.
    #[must_use]
    pub fn numbers(&self, condition: impl Fn(&Lease) -> bool) -> Vec<AttemptNumber> {
        self.iter().filter(|(_, lease)| condition(lease)).map(|(number, _)| number).collect()
    }

    /// The leader itself stood still for so long.
    pub fn shift(&mut self, gap_ms: u64) {
        for lease in self.live.values_mut() {
            lease.until = lease.until.plus(gap_ms);
            lease.progressed = lease.progressed.plus(gap_ms);
            lease.begun = lease.begun.plus(gap_ms);
        }
    }
}

fn remove_from(
    of_worker: &mut BTreeMap<WorkerId, BTreeSet<AttemptNumber>>,
    worker: WorkerId,
    number: AttemptNumber,
) {
    if let Some(numbers) = of_worker.get_mut(&worker) {
        numbers.remove(&number);
        if numbers.is_empty() {
            of_worker.remove(&worker);
        }
    }
}
