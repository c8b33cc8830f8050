//! One job as every member remembers it, and the only steps that it can take (mapreduce.md 6.1,
//! 6.2, 6.4).
//!
//! Decides, at apply, whether a record still makes sense: a duplicate or a late one changes
//! nothing and is told so. Leaves out everything volatile: assignments, leases and progress live
//! with the leader, in `leases.rs` and `schedule.rs`.

#![deny(clippy::disallowed_types)]

mod skips;

use std::{collections::BTreeMap, sync::Arc};

use imbl::OrdMap;

use crate::{
    failure::{Cause, CauseKind, Failure, Record},
    ids::{AttemptId, AttemptNumber, JobId, TaskId, TaskKind, WorkerId},
    limits::{INVALIDATIONS_MAX, JOB_COUNTERS_MAX, LOST_WORKERS_MAX},
    spec::{PlanRoot, Spec},
};

/// Where a job stands. That a queued job is being planned is the leader's own knowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Accepted, without a plan.
    Queued,
    /// A map task is not committed.
    Mapping,
    /// All map tasks are committed.
    Reducing,
    /// All tasks were committed and the outputs are being published: the point of no return. A
    /// task whose output got lost may be run again, but the state never goes back.
    Committing,
    /// The outputs are there. Terminal.
    Succeeded,
    /// It is being given up.
    Failing,
    /// It was given up. Terminal.
    Failed,
    /// It is being cancelled.
    Cancelling,
    /// It was cancelled. Terminal.
    Cancelled,
}

impl JobState {
    /// Whether nothing will ever change again.
    #[must_use]
    pub fn terminal(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Queued
            | Self::Mapping
            | Self::Reducing
            | Self::Committing
            | Self::Failing
            | Self::Cancelling => false,
        }
    }

    /// Whether tasks may run.
    #[must_use]
    pub fn runs_tasks(self) -> bool {
        match self {
            Self::Mapping | Self::Reducing | Self::Committing => true,
            Self::Queued
            | Self::Succeeded
            | Self::Failing
            | Self::Failed
            | Self::Cancelling
            | Self::Cancelled => false,
        }
    }
}

/// What a record came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect.
    Accepted,
    /// It had taken effect before, with the same content.
    AlreadyAccepted,
    /// Another attempt's result is the task's.
    LostRace,
    /// What it speaks of has been given up, or never was.
    Stale,
    /// The job has ended or is unknown.
    JobGone,
    /// The client token belongs to a job with another spec.
    TokenConflict,
    /// Another job that has not ended writes to this output, or above or below it.
    OutputBusy,
    /// There are too many jobs, or too many workers.
    TooMany,
    /// A job that it is to come after is not known.
    AfterUnknown,
    /// The job's outputs are being published or are there.
    TooLate,
    /// The record does not decode.
    Malformed,
}

/// What an accepted attempt left behind: of constant size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Which attempt.
    pub attempt: AttemptNumber,
    /// The worker that ran it.
    pub worker: WorkerId,
    /// The size of its file.
    pub bytes: u64,
    /// The records in it.
    pub records: u64,
    /// A run's footer checksum, a part's checksum.
    pub crc: u32,
    /// A hash of the records that does not depend on their order.
    pub content_hash: u64,
    /// How many input bytes the task has; 0 for a reduce.
    pub input_bytes: u64,
    /// Its counters: place in the job's counter names, value.
    pub counters: Vec<(u16, u64)>,
}

/// One task as every member remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The accepted attempt, if there is one: at most one at any time.
    pub committed: Option<Arc<Manifest>>,
    /// Attempts that failed in a way that counts.
    pub failed: Vec<AttemptNumber>,
    /// Attempts whose workers were lost.
    pub lost: Vec<AttemptNumber>,
    /// Attempts up to this one are not accepted any more.
    pub invalidated: Option<AttemptNumber>,
    /// How often a committed result was invalidated.
    pub invalidations: u32,
    /// The hash of the last invalidated result.
    pub previous_hash: Option<u64>,
    /// Records at which the failures that are counted happened, where that is known exactly.
    pub suspects: Vec<Record>,
    /// Records that are left out of it.
    pub skipped: Vec<Record>,
}

/// The sums of the counters of accepted attempts. Names keep their places for the job's life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The names, in order of first appearance; shared, since they hardly ever change.
    pub names: Arc<Vec<String>>,
    /// The sums, by place.
    pub sums: Vec<u64>,
}

/// A result as its attempt reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Success {
    /// The size of the file.
    pub bytes: u64,
    /// The records in it.
    pub records: u64,
    /// Its checksum, as [`Manifest::crc`].
    pub crc: u32,
    /// Its hash, as [`Manifest::content_hash`].
    pub content_hash: u64,
    /// How many input bytes the task has; 0 for a reduce.
    pub input_bytes: u64,
    /// Its counters.
    pub counters: BTreeMap<String, u64>,
}

/// A job. Copies share their parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its place in the order of submission: the log index of its first record.
    pub number: u64,
    /// The client token that it was submitted with.
    pub token: String,
    /// What it is to do.
    pub spec: Arc<Spec>,
    /// The digest of the spec.
    pub(crate) spec_digest: u128,
    /// Its output relative to the shared root, in normal form: what conflicts are told by.
    pub output_key: String,
    /// Where it stands.
    pub state: JobState,
    /// Its plan, once there is one.
    pub plan: Option<PlanRoot>,
    /// The tasks about which there is something to remember; empty again once the job ended.
    pub(crate) tasks: OrdMap<TaskId, Task>,
    /// The sum of the digests of `tasks`.
    pub(crate) tasks_digest: u128,
    /// Committed maps and reduces.
    pub committed: [u32; 2],
    /// Input bytes of committed maps.
    pub bytes_committed: u64,
    /// Attempts at maps and reduces that came to nothing and left a record.
    pub retries: [u32; 2],
    /// How often a committed result was taken back.
    pub taken_back: u32,
    /// The sums of counters.
    pub counters: Arc<Counters>,
    /// Reduce attempts below this one may have read a map output that was since replaced by a
    /// different one.
    pub reduce_floor: AttemptNumber,
    /// How many records are left out of its tasks.
    pub skipped: u32,
    /// Why it fails or failed.
    pub cause: Option<Arc<Cause>>,
    /// When it was submitted, by the leader's wall clock.
    pub submitted_unix_ms: u64,
    /// When it ended, likewise; 0 while it has not.
    pub ended_unix_ms: u64,
    /// The log index of its last change.
    pub version: u64,
}

/// What a step came to: `Ok` when the job changed.
pub(crate) type Step = Result<Verdict, Verdict>;

impl Job {
    /// How many tasks of a kind there are; 0 maps before there is a plan.
    #[must_use]
    pub fn total(&self, kind: TaskKind) -> u32 {
        match kind {
            TaskKind::Map => self.plan.map_or(0, |plan| plan.maps),
            TaskKind::Reduce => self.spec.reduces,
        }
    }

    /// What is remembered of a task.
    #[must_use]
    pub fn task(&self, task: TaskId) -> Option<&Task> {
        self.tasks.get(&task)
    }

    /// The accepted result of a task.
    #[must_use]
    pub fn result(&self, task: TaskId) -> Option<&Arc<Manifest>> {
        self.tasks.get(&task).and_then(|task| task.committed.as_ref())
    }

    /// Whether all tasks of a kind are committed.
    #[must_use]
    pub fn all_committed(&self, kind: TaskKind) -> bool {
        self.plan.is_some() && self.committed[kind.slot()] == self.total(kind)
    }

    /// Whether every task is committed.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.all_committed(TaskKind::Map) && self.all_committed(TaskKind::Reduce)
    }

    /// The counters by name.
    #[must_use]
    pub fn counter_sums(&self) -> BTreeMap<String, u64> {
        let counters = &self.counters;
        counters.names.iter().cloned().zip(counters.sums.iter().copied()).collect()
    }

    /// What a success of this attempt would come to now.
    ///
    /// # Errors
    /// The verdict that refuses it.
    pub fn acceptable(&self, task: TaskId, attempt: AttemptNumber) -> Result<(), Verdict> {
        if self.state.terminal() {
            return Err(Verdict::JobGone);
        }
        if !self.state.runs_tasks() || task.number >= self.total(task.kind) {
            return Err(Verdict::Stale);
        }
        if task.kind == TaskKind::Reduce && attempt < self.reduce_floor {
            return Err(Verdict::Stale);
        }
        let Some(record) = self.tasks.get(&task) else { return Ok(()) };
        if let Some(committed) = &record.committed {
            let same = committed.attempt == attempt;
            return Err(if same { Verdict::AlreadyAccepted } else { Verdict::LostRace });
        }
        let given_up = record.invalidated.is_some_and(|last| attempt <= last);
        if given_up || record.failed.contains(&attempt) {
            return Err(Verdict::Stale);
        }
        Ok(())
    }

    /// Takes the plan: `Queued` becomes `Mapping`, or `Reducing` when there is nothing to map.
    pub(crate) fn planned(&mut self, plan: PlanRoot) -> Step {
        match self.state {
            JobState::Queued => {
                self.plan = Some(plan);
                self.state = JobState::Mapping;
                self.follow_tasks();
                Ok(Verdict::Accepted)
            }
            JobState::Mapping
            | JobState::Reducing
            | JobState::Committing
            | JobState::Failing
            | JobState::Cancelling => Err(Verdict::Stale),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => Err(Verdict::JobGone),
        }
    }

    /// Accepts an attempt's result: this is the commit.
    pub(crate) fn commit(
        &mut self,
        task: TaskId,
        attempt: AttemptNumber,
        worker: WorkerId,
        success: &Success,
    ) -> Step {
        self.acceptable(task, attempt)?;
        let mut record = self.tasks.get(&task).cloned().unwrap_or_default();
        assert!(record.committed.is_none(), "{task} of {} is committed already", self.id);
        let replaced = record.previous_hash.is_some_and(|hash| hash != success.content_hash);
        let manifest = Manifest {
            attempt,
            worker,
            bytes: success.bytes,
            records: success.records,
            crc: success.crc,
            content_hash: success.content_hash,
            input_bytes: success.input_bytes,
            counters: self.count(&success.counters),
        };
        self.committed[task.kind.slot()] += 1;
        self.bytes_committed += manifest.input_bytes;
        record.committed = Some(Arc::new(manifest));
        self.put_task(task, record);
        let replaced = replaced && !self.spec.scheduling.nondeterministic_ok;
        if task.kind == TaskKind::Map && replaced {
            self.reset_reduces(attempt);
        }
        self.follow_tasks();
        Ok(Verdict::Accepted)
    }

    /// Notes a failure that counts; the task's last one, or a fatal one, fails the job. Once the
    /// outputs are being published failures are only noted: the job rolls forward.
    pub(crate) fn fail(
        &mut self,
        task: TaskId,
        attempt: AttemptNumber,
        worker: &str,
        failure: &Failure,
    ) -> Step {
        self.acceptable(task, attempt)?;
        let mut record = self.tasks.get(&task).cloned().unwrap_or_default();
        if self.skip_record(&mut record, attempt, failure) {
            self.put_task(task, record);
            self.retries[task.kind.slot()] += 1;
            return Ok(Verdict::Accepted);
        }
        let count = record.failed.len() + 1;
        let last = count >= self.spec.max_attempts as usize;
        if !last || self.state != JobState::Committing {
            record.failed.push(attempt);
            self.put_task(task, record);
        }
        self.retries[task.kind.slot()] += 1;
        if self.state != JobState::Committing && (last || failure.fatal()) {
            let summary = failure.summary();
            let mut message = if failure.fatal() {
                format!("{task} failed, and a retry cannot help: {summary}")
            } else {
                format!("{task} failed {count} times: {summary}")
            };
            message += &self.skips_exhausted();
            let cause = Cause::plain(CauseKind::TaskFailed, &message);
            self.give_up(cause, task, attempt, worker, Some(failure.clone()));
        }
        Ok(Verdict::Accepted)
    }

    /// Notes that a worker was lost while it ran an attempt.
    pub(crate) fn lose(&mut self, task: TaskId, attempt: AttemptNumber, worker: &str) -> Step {
        self.acceptable(task, attempt)?;
        let mut record = self.tasks.get(&task).cloned().unwrap_or_default();
        if record.lost.contains(&attempt) {
            return Err(Verdict::AlreadyAccepted);
        }
        if record.lost.len() >= LOST_WORKERS_MAX {
            return Err(Verdict::Stale);
        }
        record.lost.push(attempt);
        let poison = record.lost.len() >= LOST_WORKERS_MAX;
        self.put_task(task, record);
        self.retries[task.kind.slot()] += 1;
        if poison && self.state != JobState::Committing {
            let message = format!("{LOST_WORKERS_MAX} workers were lost while running {task}");
            let cause = Cause::plain(CauseKind::PoisonTask, &message);
            self.give_up(cause, task, attempt, worker, None);
        }
        Ok(Verdict::Accepted)
    }

    /// Takes back a committed result that turned out lost; attempts up to `up_to` are void.
    pub(crate) fn invalidate(
        &mut self,
        task: TaskId,
        attempt: AttemptNumber,
        up_to: AttemptNumber,
    ) -> Step {
        if self.state.terminal() {
            return Err(Verdict::JobGone);
        }
        let record = self.tasks.get(&task).cloned().unwrap_or_default();
        let hash = match &record.committed {
            Some(result) if result.attempt == attempt && self.state.runs_tasks() => {
                result.content_hash
            }
            Some(_) | None => return Err(Verdict::Stale),
        };
        let is_read_on = task.kind != self.spec.last_kind();
        if is_read_on && self.state == JobState::Committing && self.complete() {
            // Nothing will read it any more.
            return Err(Verdict::Stale);
        }
        let mut record = self.take_back(task, record);
        record.invalidated = Some(up_to.max(attempt));
        record.invalidations = record.invalidations.saturating_add(1);
        record.previous_hash = Some(hash);
        let unstable = record.invalidations >= INVALIDATIONS_MAX;
        self.put_task(task, record);
        if unstable && self.state != JobState::Committing {
            let message =
                format!("the committed output of {task} was lost {INVALIDATIONS_MAX} times");
            let cause = Cause::plain(CauseKind::IntermediateUnstable, &message);
            self.give_up(cause, task, attempt, "", None);
        }
        self.follow_tasks();
        Ok(Verdict::Accepted)
    }

    /// Passes the point of no return.
    pub(crate) fn start_commit(&mut self) -> Step {
        match self.state {
            JobState::Reducing if self.complete() => {
                self.state = JobState::Committing;
                Ok(Verdict::Accepted)
            }
            JobState::Committing => Err(Verdict::AlreadyAccepted),
            JobState::Queued
            | JobState::Mapping
            | JobState::Reducing
            | JobState::Failing
            | JobState::Cancelling => Err(Verdict::Stale),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => Err(Verdict::JobGone),
        }
    }

    /// Gives the job up for a reason that no attempt decided.
    pub(crate) fn start_failing(&mut self, cause: &Cause) -> Step {
        match self.state {
            JobState::Queued | JobState::Mapping | JobState::Reducing => {
                self.cause = Some(Arc::new(cause.clone()));
                self.state = JobState::Failing;
                Ok(Verdict::Accepted)
            }
            JobState::Failing => Err(Verdict::AlreadyAccepted),
            JobState::Committing | JobState::Cancelling => Err(Verdict::TooLate),
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => Err(Verdict::JobGone),
        }
    }

    /// Begins to cancel.
    pub(crate) fn start_cancelling(&mut self) -> Step {
        match self.state {
            JobState::Queued | JobState::Mapping | JobState::Reducing => {
                self.state = JobState::Cancelling;
                Ok(Verdict::Accepted)
            }
            JobState::Cancelling | JobState::Cancelled => Err(Verdict::AlreadyAccepted),
            JobState::Committing | JobState::Succeeded => Err(Verdict::TooLate),
            JobState::Failing | JobState::Failed => Err(Verdict::Stale),
        }
    }

    /// Ends. What is remembered of its tasks is dropped; counts and sums stay.
    pub(crate) fn finish(&mut self, ended_unix_ms: u64) -> Step {
        let ended = match self.state {
            JobState::Committing if self.complete() => JobState::Succeeded,
            JobState::Failing => JobState::Failed,
            JobState::Cancelling => JobState::Cancelled,
            JobState::Queued | JobState::Mapping | JobState::Reducing | JobState::Committing => {
                return Err(Verdict::Stale);
            }
            JobState::Succeeded | JobState::Failed | JobState::Cancelled => {
                return Err(Verdict::AlreadyAccepted);
            }
        };
        self.state = ended;
        self.ended_unix_ms = ended_unix_ms;
        self.tasks = OrdMap::new();
        self.tasks_digest = 0;
        Ok(Verdict::Accepted)
    }

    /// Puts a task's record in its place and keeps the digest.
    pub(crate) fn put_task(&mut self, id: TaskId, task: Task) {
        let key = self.number;
        if let Some(old) = self.tasks.get(&id) {
            self.tasks_digest =
                self.tasks_digest.wrapping_sub(crate::snapshot::task_digest(key, id, old));
        }
        self.tasks_digest =
            self.tasks_digest.wrapping_add(crate::snapshot::task_digest(key, id, &task));
        self.tasks.insert(id, task);
    }

    /// Adds an attempt's counters to the sums; names beyond the limit are left out, of all
    /// attempts alike.
    fn count(&mut self, counters: &BTreeMap<String, u64>) -> Vec<(u16, u64)> {
        let all = Arc::make_mut(&mut self.counters);
        let mut counted = Vec::with_capacity(counters.len());
        for (name, value) in counters {
            let known = all.names.iter().position(|known| known == name);
            let place = match known {
                Some(place) => place,
                None if all.names.len() < JOB_COUNTERS_MAX => {
                    Arc::make_mut(&mut all.names).push(name.clone());
                    all.sums.push(0);
                    all.names.len() - 1
                }
                None => continue,
            };
            all.sums[place] = all.sums[place].saturating_add(*value);
            let place = u16::try_from(place).expect("a job has at most 120 counters");
            counted.push((place, *value));
        }
        counted
    }

    /// Takes a task's committed result out of every sum.
    fn take_back(&mut self, task: TaskId, mut record: Task) -> Task {
        let Some(manifest) = record.committed.take() else { return record };
        let all = Arc::make_mut(&mut self.counters);
        for (place, value) in &manifest.counters {
            if let Some(sum) = all.sums.get_mut(usize::from(*place)) {
                *sum = sum.saturating_sub(*value);
            }
        }
        self.committed[task.kind.slot()] -= 1;
        self.bytes_committed -= manifest.input_bytes;
        self.retries[task.kind.slot()] += 1;
        self.taken_back += 1;
        record
    }

    /// A map's new result differs from the one that reduces have read: none of theirs counts.
    fn reset_reduces(&mut self, map_attempt: AttemptNumber) {
        self.reduce_floor = self.reduce_floor.max(map_attempt);
        for partition in 0..self.total(TaskKind::Reduce) {
            let task = TaskId::reduce(partition);
            let Some(record) = self.tasks.get(&task).cloned() else { continue };
            if record.committed.is_some() {
                let record = self.take_back(task, record);
                self.put_task(task, record);
            }
        }
    }

    /// `Mapping` and `Reducing` follow from what is committed.
    fn follow_tasks(&mut self) {
        let mapped = self.all_committed(TaskKind::Map);
        self.state = match self.state {
            JobState::Mapping | JobState::Reducing if mapped => JobState::Reducing,
            JobState::Mapping | JobState::Reducing => JobState::Mapping,
            other @ (JobState::Queued
            | JobState::Committing
            | JobState::Succeeded
            | JobState::Failing
            | JobState::Failed
            | JobState::Cancelling
            | JobState::Cancelled) => other,
        };
    }

    fn give_up(
        &mut self,
        cause: Cause,
        task: TaskId,
        number: AttemptNumber,
        worker: &str,
        failure: Option<Failure>,
    ) {
        let attempt = Some(AttemptId { job: self.id, task, number });
        self.cause = Some(Arc::new(Cause { attempt, worker: worker.to_owned(), failure, ..cause }));
        self.state = JobState::Failing;
    }
}
