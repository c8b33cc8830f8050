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
    lease_ms: u64,
}

impl Roster {
    /// Waits for the registered workers, one lease at most.
    #[must_use]
    pub fn new(known: impl IntoIterator<Item = WorkerId>, now: Millis, lease_ms: u64) -> Self {
        let awaited = known.into_iter().collect();
        let window_end = now.plus(lease_ms);
        Self { workers: BTreeMap::new(), awaited, window_end, app_heard: BTreeMap::new(), lease_ms }
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

    /// Takes in a registration.
    pub fn admit(&mut self, record: Arc<WorkerRecord>, now: Millis) {
        self.awaited.remove(&record.id);
        let id = record.id;
        self.workers.insert(id, Worker { record, heard: now });
        self.hear(id, now);
    }

    /// Forgets a registration.
    pub fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        self.awaited.remove(&id);
        self.workers.remove(&id)
    }

    /// A worker that registered with this leader and is this very process.
    #[must_use]
    pub fn get(&self, id: WorkerId, incarnation: u128) -> Option<&Worker> {
        self.workers.get(&id).filter(|worker| worker.record.incarnation == incarnation)
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
        self.workers.values().filter(|worker| worker.record.apps.iter().any(|a| a == app)).count()
    }

    /// How many slots all workers have together.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.workers.values().fold(0, |sum, worker| sum.saturating_add(worker.record.slots))
    }

    /// When a worker with this app was last heard, if ever in this term.
    #[must_use]
    pub fn app_heard(&self, app: &str) -> Option<Millis> {
        self.app_heard.get(app).copied()
    }

    /// All apps that workers have, in order.
    #[must_use]
    pub fn apps(&self) -> Vec<String> {
        let apps: BTreeSet<&String> =
            self.workers.values().flat_map(|worker| &worker.record.apps).collect();
        apps.into_iter().cloned().collect()
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
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its task.
    pub task: TaskId,
    /// Who runs it.
    pub worker: WorkerId,
    /// When it was given out, or taken over.
    pub granted: Millis,
    /// When it is over unless it is renewed.
    pub until: Millis,
    /// When it was last renewed.
    pub renewed: Millis,
    /// Whether the worker has confirmed that it runs it.
    pub running: bool,
    /// Records and bytes read, as last heard.
    pub progress: (u64, u64),
    /// When that last grew.
    pub progressed: Millis,
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
}

/// The attempts of one job that this leader knows.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    live: BTreeMap<AttemptNumber, Lease>,
    ended: BTreeMap<AttemptNumber, (TaskId, AttemptEnd)>,
    live_of_task: BTreeMap<TaskId, u32>,
}

impl Leases {
    /// Gives out an attempt, or takes one over that is running.
    pub fn grant(&mut self, number: AttemptNumber, lease: Lease) {
        self.ended.remove(&number);
        let task = lease.task;
        if self.live.insert(number, lease).is_none() {
            *self.live_of_task.entry(task).or_default() += 1;
        }
    }

    /// An attempt under way.
    #[must_use]
    pub fn live(&self, number: AttemptNumber) -> Option<&Lease> {
        self.live.get(&number)
    }

    /// How an attempt at this task ended, if this leader saw it end.
    #[must_use]
    pub fn ended(&self, number: AttemptNumber) -> Option<AttemptEnd> {
        self.ended.get(&number).map(|(_, end)| *end)
    }

    /// Whether this leader gave out, or took over, an attempt with this number at this task.
    #[must_use]
    pub fn knows(&self, number: AttemptNumber, task: TaskId) -> bool {
        let live = self.live.get(&number).map(|lease| lease.task);
        live.or(self.ended.get(&number).map(|(task, _)| *task)) == Some(task)
    }

    /// Renews a lease; progress, where it is told, counts when it grew.
    pub fn renew(
        &mut self,
        number: AttemptNumber,
        worker: WorkerId,
        now: Millis,
        lease_ms: u64,
        progress: Option<(u64, u64)>,
    ) {
        let Some(lease) = self.live.get_mut(&number) else { return };
        lease.worker = worker;
        lease.renewed = now;
        lease.until = now.plus(lease_ms);
        lease.running = true;
        if let Some(progress) = progress
            && progress != lease.progress
        {
            lease.progress = progress;
            lease.progressed = now;
        }
    }

    /// Ends an attempt.
    pub fn end(&mut self, number: AttemptNumber, end: AttemptEnd) -> Option<Lease> {
        let lease = self.live.remove(&number)?;
        let left =
            self.live_of_task.get_mut(&lease.task).expect("a live attempt's task is counted");
        *left -= 1;
        if *left == 0 {
            self.live_of_task.remove(&lease.task);
        }
        self.ended.insert(number, (lease.task, end));
        Some(lease)
    }

    /// Whether an attempt at this task is under way.
    #[must_use]
    pub fn has_live(&self, task: TaskId) -> bool {
        self.live_of_task.contains_key(&task)
    }

    /// How many tasks of a kind have an attempt under way.
    #[must_use]
    pub fn running(&self, kind: TaskKind) -> u32 {
        let tasks = self.live_of_task.keys().filter(|task| task.kind == kind).count();
        u32::try_from(tasks).unwrap_or(u32::MAX)
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// All that is under way.
    pub fn iter(&self) -> impl Iterator<Item = (AttemptNumber, &Lease)> {
        self.live.iter().map(|(number, lease)| (*number, lease))
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
        }
    }
}
