//! One job that has not ended, with everything that only the leader knows of it.
//!
//! Decides which of its tasks may be given out, to whom and when. The replicated part is the job
//! as last observed; tasks are pending when they are neither committed nor under way.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    VERSION_BITS,
    backups::Pace,
    exclusion::Trust,
    messages::{Run, Trouble},
    pending::Pending,
    visible_version,
};
use crate::{
    failure::Failure,
    ids::{AttemptId, AttemptNumber, JobId, TaskId, TaskKind, WorkerId},
    job::{Job, JobState, Verdict},
    leases::{AttemptEnd, Lease, Leases, Millis},
    spec::Plan,
};

/// How long a failed task is kept from the worker that failed it while there are others.
const AVOID_MS: u64 = 2_000;
/// The pauses before the retries of a task, by counted failures.
const RETRY_AFTER_MS: [u64; 3] = [0, 1_000, 5_000];
/// The pause before a task is run again once the outputs are being published.
const RETRY_COMMITTING_MS: u64 = 5_000;

/// The first pause before a step that did not work is tried again; it doubles.
const STEP_PAUSE_MS: u64 = 500;
/// The longest.
const STEP_PAUSE_MS_MAX: u64 = 30_000;

/// How long a filesystem that refuses is asked again before the job fails: an outage of a server,
/// not for ever.
const STEP_PATIENCE_MS: u64 = 300_000;

/// Of how many failures the reasons are kept with the leader: enough to see what goes wrong, and
/// 8 MiB at most.
const FAILURES_KEPT_MAX: usize = 1_000;

/// What a job waits for, besides its tasks: one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Idle,
    Planning,
    Loading,
    CheckingOutput,
    Publishing,
    Cleaning,
    Proposed,
}

/// A reduce attempt that reported a map's output lost, while that is being looked into.
#[derive(Clone, Debug)]
pub(super) struct Suspicion {
    pub(super) reduce: AttemptId,
    pub(super) worker: WorkerId,
    pub(super) failure: Failure,
}

pub(super) struct Active {
    pub(super) job: Arc<Job>,
    pub(super) plan: Option<Arc<Plan>>,
    pub(super) step: Step,
    /// The next step waits until then.
    pub(super) not_before: Millis,
    /// How often the step was tried in vain.
    pub(super) tries: u32,
    /// Since when.
    tried_since: Millis,
    /// Why, as last seen.
    pub(super) waiting_for: Option<String>,
    pub(super) leases: Leases,
    pub(super) pending: Pending,
    /// Whether a task has become pending since polls were last looked through.
    pub(super) offered: bool,
    /// How fast its attempts are.
    pub(super) pace: Pace,
    /// On which workers its attempts fail.
    pub(super) trust: Trust,
    /// A job that it comes after and that is not there any more.
    pub(super) dependency_gone: Option<JobId>,
    /// Why attempts failed, as far as this leader was told.
    pub(super) failures: BTreeMap<AttemptNumber, Failure>,
    avoid: BTreeMap<TaskId, (WorkerId, Millis)>,
    /// How many reduce attempts said that a map attempt's output is lost.
    pub(super) accusations: BTreeMap<AttemptNumber, u32>,
    pub(super) suspicions: BTreeMap<AttemptId, Vec<Suspicion>>,
    /// Map outputs that are being taken back: no reduce is given out that would need them.
    pub(super) invalidating: u32,
    pub(super) runs: Option<Arc<Vec<Run>>>,
    /// Since when it is being given up.
    pub(super) ending_since: Option<Millis>,
    /// Since when this leader knows that it needs workers.
    pub(super) needed_since: Millis,
    pub(super) unrecorded_retries: [u32; 2],
    pub(super) version: u64,
}

impl Active {
    pub(super) fn new(job: &Arc<Job>, now: Millis, version_floor: u64) -> Self {
        let mut active = Self {
            job: job.clone(),
            plan: None,
            step: Step::Idle,
            not_before: now,
            tries: 0,
            tried_since: now,
            waiting_for: None,
            leases: Leases::default(),
            pending: Pending::default(),
            offered: false,
            pace: Pace::default(),
            trust: Trust::default(),
            dependency_gone: None,
            failures: BTreeMap::new(),
            avoid: BTreeMap::new(),
            accusations: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            invalidating: 0,
            runs: None,
            ending_since: None,
            needed_since: now,
            unrecorded_retries: [0, 0],
            version: version_floor.max(visible_version(job.version)),
        };
        active.enter(now);
        active
    }

    /// Takes in a newer state of the job.
    pub(super) fn observe(&mut self, job: &Arc<Job>, now: Millis) {
        if job.version <= self.job.version {
            return;
        }
        let old = std::mem::replace(&mut self.job, job.clone());
        if old.state == JobState::Queued {
            self.needed_since = now;
        }
        self.version = (self.version + 1).max(visible_version(job.version));
        let (committed, before) = (job.committed, old.committed);
        if committed[0] != before[0] || job.retries[0] != old.retries[0] {
            self.runs = None;
        }
        // Counts of committed tasks would not tell: another commit may lie between.
        let taken_back = job.taken_back != old.taken_back;
        let mapped = job.all_committed(TaskKind::Map) && !old.all_committed(TaskKind::Map);
        if job.state != old.state || taken_back || mapped {
            self.enter(now);
        }
    }

    /// Ends what is under way or waits at a task that has a result.
    pub(super) fn settle(&mut self, task: TaskId, now: Millis) {
        let Some(result) = self.job.result(task).cloned() else { return };
        self.pending.withdraw(task);
        for number in self.leases.of_task(task).to_vec() {
            let accepted = result.attempt == number;
            let end = if accepted { AttemptEnd::Accepted } else { AttemptEnd::LostRace };
            let Some(lease) = self.leases.end(number, end, now) else { continue };
            if accepted {
                self.pace.finished(&lease, now);
                self.trust.succeeded(lease.worker, now);
            } else {
                self.unrecorded_retries[task.kind.slot()] += 1;
            }
        }
    }

    /// As [`Active::settle`], for every task that has a result.
    pub(super) fn settle_all(&mut self, now: Millis) {
        let settled = self.leases.iter().filter(|(_, lease)| self.job.result(lease.task).is_some());
        for task in settled.map(|(_, lease)| lease.task).collect::<Vec<_>>() {
            self.settle(task, now);
        }
    }

    /// Enters the job's state: its pending tasks are offered, or none any more.
    fn enter(&mut self, now: Millis) {
        match self.job.state {
            JobState::Mapping | JobState::Reducing | JobState::Committing => self.refill(now),
            JobState::Failing | JobState::Cancelling => {
                self.pending.clear();
                self.ending_since.get_or_insert(now);
            }
            JobState::Queued | JobState::Succeeded | JobState::Failed | JobState::Cancelled => {}
        }
    }

    pub(super) fn planning(&self) -> bool {
        self.step == Step::Planning
    }

    /// The step did not work now: it is tried again, after a pause that doubles.
    pub(super) fn try_later(&mut self, why: String, now: Millis) {
        if self.tries == 0 {
            self.tried_since = now;
        }
        let pause = STEP_PAUSE_MS << self.tries.min(6);
        self.tries = self.tries.saturating_add(1);
        self.not_before = now.plus(pause.min(STEP_PAUSE_MS_MAX));
        self.waiting_for = Some(why);
        self.touch();
    }

    /// Why the job fails of this trouble; `None` when the step is tried again.
    pub(super) fn given_up(&mut self, trouble: Trouble, now: Millis) -> Option<String> {
        match trouble {
            // Roll-forward only: the trouble may pass, the decision cannot be taken back.
            Trouble::Passing(why) | Trouble::Final(why)
                if self.job.state == JobState::Committing =>
            {
                self.try_later(why, now);
                None
            }
            Trouble::Passing(why)
                if self.tries == 0 || now.since(self.tried_since) < STEP_PATIENCE_MS =>
            {
                self.try_later(why, now);
                None
            }
            Trouble::Passing(why) | Trouble::Final(why) => Some(why),
        }
    }

    /// The step worked.
    pub(super) fn step_worked(&mut self) {
        self.tries = 0;
        self.waiting_for = None;
    }

    /// Whether it has left the queue, as far as this leader is concerned.
    pub(super) fn started(&self) -> bool {
        self.job.state != JobState::Queued || self.step != Step::Idle
    }

    /// Which kind of task can be given out now.
    pub(super) fn phase(&self) -> TaskKind {
        if self.job.all_committed(TaskKind::Map) { TaskKind::Reduce } else { TaskKind::Map }
    }

    fn refill(&mut self, now: Millis) {
        let kind = self.phase();
        for number in 0..self.job.total(kind) {
            self.offer(TaskId { kind, number }, now, now);
        }
    }

    /// Takes in the plan.
    pub(super) fn learn_plan(&mut self, plan: Arc<Plan>) {
        self.pending.learn(&plan);
        self.plan = Some(plan);
        self.offered = true;
    }

    /// Makes a task pending from `at` on, unless it is committed or under way.
    pub(super) fn offer(&mut self, task: TaskId, at: Millis, now: Millis) {
        let settled = self.job.result(task).is_some() || self.leases.has_live(task);
        if settled || !self.job.state.runs_tasks() {
            return;
        }
        self.pending.offer(task, at, now);
        self.offered = true;
    }

    /// When a task that failed may run again.
    pub(super) fn retry_at(&self, task: TaskId, now: Millis) -> Millis {
        if self.job.state == JobState::Committing {
            return now.plus(RETRY_COMMITTING_MS);
        }
        let failures = self.job.task(task).map_or(0, |task| task.failed.len());
        let place = failures.saturating_sub(1).min(RETRY_AFTER_MS.len() - 1);
        now.plus(RETRY_AFTER_MS[place])
    }

    /// Prefers other workers for a task for a while.
    pub(super) fn avoid(&mut self, task: TaskId, worker: WorkerId, from: Millis) {
        self.avoid.insert(task, (worker, from.plus(AVOID_MS)));
    }

    /// The worker that a task is kept from, if there is one.
    pub(super) fn avoided(&self, task: TaskId) -> Option<WorkerId> {
        self.avoid.get(&task).map(|(worker, _)| *worker)
    }

    /// How many tasks wait to be given out now.
    pub(super) fn waiting(&self) -> usize {
        if !self.job.state.runs_tasks() {
            return 0;
        }
        match self.phase() {
            TaskKind::Map if self.plan.is_none() => 0,
            TaskKind::Reduce if self.invalidating > 0 => 0,
            kind @ (TaskKind::Map | TaskKind::Reduce) => self.pending.ready(kind),
        }
    }

    /// Takes a pending task for a worker; `others`: whether another worker could run it.
    pub(super) fn take(&mut self, worker: WorkerId, others: bool, now: Millis) -> Option<TaskId> {
        let kind = self.phase();
        let (avoid, job) = (&self.avoid, &self.job);
        let avoided = |task: &TaskId| {
            let avoid = avoid.get(task);
            others && avoid.is_some_and(|(whom, until)| *whom == worker && now < *until)
        };
        self.pending.take(kind, |task| !avoided(&task) && job.result(task).is_none())
    }

    /// Begins an attempt. `queued`: it waits in the worker for a slot; `backup`: it is the second
    /// one at its task.
    pub(super) fn begin(
        &mut self,
        number: AttemptNumber,
        task: TaskId,
        to: WorkerId,
        now: Millis,
        (queued, backup): (bool, bool),
    ) {
        self.avoid.remove(&task);
        let lease = Lease { queued, backup, whole: true, ..self.lease(task, to, now) };
        self.leases.grant(number, lease);
        self.touch();
    }

    /// Takes over an attempt that a worker says it is running.
    pub(super) fn adopt(&mut self, number: AttemptNumber, task: TaskId, by: WorkerId, now: Millis) {
        self.pending.withdraw(task);
        let lease = Lease { running: true, ..self.lease(task, by, now) };
        self.leases.grant(number, lease);
        self.touch();
    }

    fn lease(&self, task: TaskId, worker: WorkerId, now: Millis) -> Lease {
        Lease {
            task,
            worker,
            granted: now,
            begun: now,
            whole: false,
            until: now.plus(self.job.spec.lease_ms),
            renewed: now,
            running: false,
            queued: false,
            backup: false,
            progress: (0, 0),
            progressed: now,
        }
    }

    /// Ends an attempt that leaves no record, and offers its task again.
    pub(super) fn give_back(&mut self, number: AttemptNumber, end: AttemptEnd, now: Millis) {
        let Some(lease) = self.leases.end(number, end, now) else { return };
        // One that never began was no attempt, as far as people are concerned.
        let begun = end != AttemptEnd::Withdrawn;
        self.unrecorded_retries[lease.task.kind.slot()] += u32::from(begun);
        self.offer(lease.task, now, now);
        self.touch();
    }

    /// Ends an attempt that will not be accepted. Its task is offered again, unless it has a result
    /// or another attempt.
    pub(super) fn close(&mut self, number: AttemptNumber, end: AttemptEnd, now: Millis) {
        let Some(lease) = self.leases.end(number, end, now) else { return };
        let at = self.retry_at(lease.task, now);
        self.offer(lease.task, at, now);
        self.touch();
    }

    /// The committed runs of all maps, in order; empty until all are committed.
    pub(super) fn runs(&mut self) -> Arc<Vec<Run>> {
        if let Some(runs) = &self.runs {
            return runs.clone();
        }
        let maps = (0..self.job.total(TaskKind::Map)).map(TaskId::map);
        let runs = maps.filter_map(|task| {
            let result = self.job.result(task)?;
            let attempt = AttemptId { job: self.job.id, task, number: result.attempt };
            Some(Run { attempt, bytes: result.bytes, footer_crc: result.crc })
        });
        let runs: Arc<Vec<Run>> = Arc::new(runs.collect());
        self.runs = Some(runs.clone());
        runs
    }

    /// Whether a result of this attempt could still be accepted, by all that the leader knows.
    pub(super) fn acceptable(&self, attempt: &AttemptId, epoch: u64) -> Result<(), Verdict> {
        self.job.acceptable(attempt.task, attempt.number)?;
        let number = attempt.number;
        if number.epoch == epoch && !self.leases.knows(number, attempt.task) {
            return Err(Verdict::Stale);
        }
        match self.leases.ended(number) {
            Some(
                AttemptEnd::Failed
                | AttemptEnd::Aborted
                | AttemptEnd::Abandoned
                | AttemptEnd::Withdrawn,
            ) => Err(Verdict::Stale),
            Some(AttemptEnd::Accepted | AttemptEnd::LostRace | AttemptEnd::Expired) | None => {
                Ok(())
            }
        }
    }

    /// Keeps why an attempt failed, for people.
    pub(super) fn note_failure(&mut self, number: AttemptNumber, failure: &Failure) {
        self.failures.insert(number, failure.clone());
        while self.failures.len() > FAILURES_KEPT_MAX {
            self.failures.pop_first();
        }
    }

    /// Something that leaves no record changed.
    pub(super) fn touch(&mut self) {
        // Stays below the version that the next record brings.
        let room = (1 << VERSION_BITS) - 1;
        if self.version & room < room {
            self.version += 1;
        }
    }

    pub(super) fn shift(&mut self, gap_ms: u64) {
        self.leases.shift(gap_ms);
        self.needed_since = self.needed_since.plus(gap_ms);
        self.tried_since = self.tried_since.plus(gap_ms);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use raft::{Applied, GroupTime, Index, StateMachine, Term};

    use super::*;
    use crate::{
        command::Command,
        job::Success,
        machine::Machine,
        scheduling::Scheduling,
        spec::{InputFormat, OutputFormat, PlanRoot, Spec},
    };

    fn spec() -> Spec {
        Spec {
            app: "wc".into(),
            inputs: vec!["in".into()],
            output: "out".into(),
            reduces: 1,
            input_format: InputFormat::Text,
            output_format: OutputFormat::Text,
            split_bytes: 0,
            lease_ms: 1_000,
            task_timeout_ms: 1_000,
            max_attempts: 4,
            name: String::new(),
            slow_ms: 0,
            overwrite: false,
            flow: crate::flow::Flow::default(),
            scheduling: Scheduling::default(),
            streaming: None,
        }
    }

    #[test]
    fn result_taken_back_between_two_observations_is_seen_behind_another_commit() {
        let job = JobId(1);
        let mut machine = Machine::new();
        let mut index = 0;
        let mut apply = |command: &Command| -> Arc<Job> {
            index += 1;
            let at = Applied { index: Index(index), term: Term(1), time: GroupTime(0) };
            let response = machine.apply(at, &command.encode());
            assert_eq!(response.verdict, Verdict::Accepted, "{command:?}");
            response.job.unwrap()
        };
        let attempt = |map| {
            let number = AttemptNumber { epoch: 1, sequence: map + 1 };
            AttemptId { job, task: TaskId::map(map), number }
        };
        let committed = |map| {
            let (bytes, content_hash, counters) = (1, 1, BTreeMap::new());
            let success =
                Success { bytes, records: 1, crc: 1, content_hash, input_bytes: 1, counters };
            Command::Committed { attempt: attempt(map), worker: WorkerId(1), success }
        };
        let (token, output_key) = ("t".to_owned(), "out".to_owned());
        apply(&Command::Submitted { job, token, spec: spec(), output_key, unix_ms: 1 });
        let plan = PlanRoot { digest: [1; 32], maps: 3, bytes: 3 };
        apply(&Command::Planned { job, plan });
        let first = apply(&committed(0));
        let now = Millis(0);
        let mut active = Active::new(&first, now, 0);
        active.learn_plan(Arc::new(Plan { maps: vec![Vec::new(); 3], ..Plan::default() }));
        while active.take(WorkerId(1), false, now).is_some() {}
        let (lost, up_to) = (attempt(0), attempt(0).number);
        apply(&Command::Invalidated { attempt: lost, up_to });
        let second = apply(&committed(1));
        assert_eq!(second.committed, first.committed, "counts do not show it");
        active.observe(&second, now);
        let offered = std::iter::from_fn(|| active.take(WorkerId(1), false, now));
        assert!(offered.collect::<Vec<_>>().contains(&TaskId::map(0)));
    }
}
