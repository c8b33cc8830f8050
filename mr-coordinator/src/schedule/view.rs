//! What the leader shows of workers and of a job's attempts.
//!
//! Decides nothing: it only collects.

use std::{collections::BTreeMap, sync::Arc};

use super::Scheduler;
use crate::{
    failure::Failure,
    ids::{AttemptId, AttemptNumber, JobId, TaskId, TaskKind, WorkerId},
    job::Job,
    leases::{AttemptEnd, Lease, Millis},
};

/// A worker as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its id.
    pub id: WorkerId,
    /// Its name.
    pub name: String,
    /// How many tasks it runs at a time.
    pub slots: u32,
    /// The apps it has.
    pub apps: Vec<String>,
    /// What it runs or keeps ready.
    pub attempts: Vec<AttemptId>,
    /// How long ago it was heard.
    pub heard_ms_ago: u64,
    /// Whether it was told to leave.
    pub draining: bool,
    /// How many jobs give it no more tasks.
    pub excluded_from: u32,
}

/// How an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptStanding {
    /// It waits in its worker for a slot.
    Queued,
    /// It is under way.
    Running,
    /// It ended.
    Ended(AttemptEnd),
}

/// An attempt as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptView {
    /// Its task.
    pub task: TaskId,
    /// Which attempt.
    pub number: AttemptNumber,
    /// How it stands.
    pub standing: AttemptStanding,
    /// Its worker's name, or number.
    pub worker: String,
    /// How long ago it began.
    pub age_ms: u64,
    /// For how long it ran.
    pub duration_ms: u64,
    /// Records and bytes read.
    pub progress: (u64, u64),
    /// Whether it is a backup.
    pub backup: bool,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// Everything that only the leader knows of a job's tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TasksView {
    /// The attempts, by task and number.
    pub attempts: BTreeMap<(TaskId, AttemptNumber), AttemptView>,
    /// The input bytes of maps, once the plan is known.
    pub sizes: Vec<u64>,
    /// The names of present workers.
    pub workers: BTreeMap<WorkerId, String>,
    /// A job that has ended, as it was before: its last record has no tasks any more.
    pub before_end: Option<Arc<Job>>,
}

impl Scheduler {
    /// A worker.
    #[must_use]
    pub fn worker_view(&self, id: WorkerId) -> Option<WorkerView> {
        let worker = self.roster.present(id)?;
        let mut attempts = Vec::new();
        let mut excluded_from = 0;
        for active in self.jobs.values() {
            excluded_from += u32::from(self.excluded(active, id));
            for number in active.leases.of_worker(id) {
                let Some(lease) = active.leases.live(number) else { continue };
                attempts.push(AttemptId { job: active.job.id, task: lease.task, number });
            }
        }
        Some(WorkerView {
            id,
            name: worker.record.name.clone(),
            slots: worker.record.slots,
            apps: worker.record.apps.clone(),
            attempts,
            heard_ms_ago: self.now.since(worker.heard),
            draining: worker.draining,
            excluded_from,
        })
    }

    /// All workers that this leader heard, by name.
    #[must_use]
    pub fn worker_views(&self) -> Vec<WorkerView> {
        let ids = self.roster.iter().map(|worker| worker.record.id);
        let mut views: Vec<_> = ids.filter_map(|id| self.worker_view(id)).collect();
        views.sort_by(|one, other| one.name.cmp(&other.name));
        views
    }

    /// What only the leader knows of some tasks of a job, from the first to the last of `numbers`;
    /// `None` when the job is unknown, or ended some time ago.
    #[must_use]
    pub fn tasks_view(&self, job: JobId, kind: TaskKind, numbers: (u32, u32)) -> Option<TasksView> {
        let running = self.numbers.get(&job).and_then(|number| self.jobs.get(number));
        let active = running.or_else(|| self.past.job(job))?;
        let mut view = TasksView { sizes: active.pending.sizes().to_vec(), ..TasksView::default() };
        view.before_end = running.is_none().then(|| active.job.clone());
        for worker in self.roster.iter() {
            view.workers.insert(worker.record.id, worker.record.name.clone());
        }
        let live = active.leases.iter().map(|(number, lease)| {
            let standing =
                if lease.queued { AttemptStanding::Queued } else { AttemptStanding::Running };
            (number, lease, standing, self.now)
        });
        let ended = active.leases.iter_ended().map(|(number, ended)| {
            (number, &ended.lease, AttemptStanding::Ended(ended.end), ended.at)
        });
        let wanted =
            |task: TaskId| task.kind == kind && (numbers.0..=numbers.1).contains(&task.number);
        for (number, lease, standing, until) in live.chain(ended) {
            if !wanted(lease.task) {
                continue;
            }
            let failure = active.failures.get(&number).cloned();
            let shown = self.attempt_view(number, lease, standing, until, failure);
            view.attempts.insert((lease.task, number), shown);
        }
        Some(view)
    }

    fn attempt_view(
        &self,
        number: AttemptNumber,
        lease: &Lease,
        standing: AttemptStanding,
        until: Millis,
        failure: Option<Failure>,
    ) -> AttemptView {
        AttemptView {
            task: lease.task,
            number,
            standing,
            worker: self.roster.name(lease.worker),
            age_ms: self.now.since(lease.begun),
            duration_ms: until.since(lease.begun),
            progress: lease.progress,
            backup: lease.backup,
            failure,
        }
    }
}
