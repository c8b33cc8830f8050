//! The way of a job from queue to end: planning, the checks before the point of no return,
//! publishing, giving up.
//!
//! Decides when each step is taken, one at a time per job. What a step needs of the disk is an
//! effect whose result comes back as an event; what it changes is a record.

use std::sync::Arc;

use super::{
    Scheduler,
    active::Step,
    messages::{AppliedTo, Effect, PublishOutcome, Reply, Ticket, Trouble},
};
use crate::{
    command::Command,
    failure::{Cause, CauseKind},
    ids::{AttemptId, JobId, TaskId},
    job::JobState,
    spec::{Plan, PlanRoot, Spec},
};

/// How long a job that is given up waits until its attempts have been told.
const ABORT_WAIT_MS: u64 = 2_000;
/// The pause before a step whose record was refused is tried again.
const REFUSED_PAUSE_MS: u64 = 200;

impl Scheduler {
    pub(super) fn submit(
        &mut self,
        ticket: Ticket,
        job: JobId,
        token: String,
        spec: Spec,
        output_key: String,
    ) {
        let idle = self.roster.is_empty() || self.roster.window_open(self.now);
        if !idle && self.roster.with_app(&spec.app) == 0 {
            let known = self.roster.apps();
            self.reply(ticket, Reply::UnknownApp { known });
            return;
        }
        let unix_ms = self.unix_ms;
        let command = Command::Submitted { job, token, spec, output_key, unix_ms };
        self.propose(command, AppliedTo::Submit(ticket));
    }

    /// Takes the next step of every job that can take one.
    pub(super) fn advance(&mut self) {
        let mut running = self.jobs.values().filter(|active| active.started()).count();
        for number in self.jobs.keys().copied().collect::<Vec<_>>() {
            let Some(active) = self.jobs.get(&number) else { continue };
            if active.step != Step::Idle || self.now < active.not_before {
                continue;
            }
            match active.job.state {
                JobState::Queued => {
                    let admitted = running < self.settings.jobs_running_max;
                    if admitted && !self.roster.is_empty() {
                        running += 1;
                        let slots = self.roster.slots();
                        self.begin(number, Step::Planning, |job| Effect::Plan { job, slots });
                    }
                }
                JobState::Mapping | JobState::Reducing => self.advance_tasks(number),
                JobState::Committing => self.advance_commit(number),
                JobState::Failing | JobState::Cancelling => self.advance_end(number),
                JobState::Succeeded | JobState::Failed | JobState::Cancelled => {}
            }
        }
    }

    /// Takes a step that the disk answers.
    fn begin(
        &mut self,
        number: u64,
        step: Step,
        effect: impl FnOnce(Arc<crate::job::Job>) -> Effect,
    ) {
        let Some(active) = self.jobs.get_mut(&number) else { return };
        active.step = step;
        active.touch();
        let (job, id) = (active.job.clone(), active.job.id);
        self.effects.push(effect(job));
        self.effects.push(Effect::Changed { job: id });
    }

    fn propose_step(&mut self, job: JobId, command: Command) {
        if let Some(active) = self.active(job) {
            active.step = Step::Proposed;
            self.propose(command, AppliedTo::Step(job));
        }
    }

    fn fail_job(&mut self, job: JobId, kind: CauseKind, message: &str) {
        let cause = Cause::plain(kind, message);
        self.propose_step(job, Command::Failing { job, cause });
    }

    fn advance_tasks(&mut self, number: u64) {
        let Some(active) = self.jobs.get(&number) else { return };
        let (id, app) = (active.job.id, active.job.spec.app.clone());
        if active.job.complete() {
            self.begin(number, Step::CheckingOutput, |job| Effect::CheckOutput { job });
            return;
        }
        if let Some(grace) = self.settings.no_workers_grace_ms {
            let heard = self.roster.app_heard(&app);
            let since = heard.map_or(active.needed_since, |heard| heard.max(active.needed_since));
            if self.now.since(since) >= grace && self.now.since(self.since) >= grace {
                let message = if self.roster.is_empty() {
                    format!("no worker was heard from for {grace} ms")
                } else {
                    let known = self.roster.apps().join(", ");
                    format!("no worker has the app `{app}`; they have: {known}")
                };
                self.fail_job(id, CauseKind::NoWorkers, &message);
                return;
            }
        }
        if active.plan.is_none() {
            self.begin(number, Step::Loading, |job| Effect::LoadPlan { job });
        }
    }

    fn advance_commit(&mut self, number: u64) {
        let Some(active) = self.jobs.get(&number) else { return };
        let epoch = self.epoch;
        if active.job.complete() {
            self.begin(number, Step::Publishing, |job| Effect::Publish { job, epoch });
        } else if active.plan.is_none() {
            self.begin(number, Step::Loading, |job| Effect::LoadPlan { job });
        }
    }

    fn advance_end(&mut self, number: u64) {
        let Some(active) = self.jobs.get(&number) else { return };
        let waited = active.ending_since.map_or(0, |since| self.now.since(since));
        if active.leases.is_empty() || waited >= ABORT_WAIT_MS {
            self.begin(number, Step::Cleaning, |job| Effect::Abandon { job });
        }
    }

    pub(super) fn plan_made(&mut self, job: JobId, result: Result<(PlanRoot, Arc<Plan>), String>) {
        let Some(active) = self.active(job) else { return };
        active.step = Step::Idle;
        if active.job.state != JobState::Queued {
            return;
        }
        match result {
            Ok((plan, parts)) => {
                active.plan = Some(parts);
                self.propose_step(job, Command::Planned { job, plan });
            }
            Err(problem) => self.fail_job(job, CauseKind::Planning, &problem),
        }
    }

    pub(super) fn plan_loaded(&mut self, job: JobId, result: Result<Arc<Plan>, Trouble>) {
        let Some(active) = self.active(job) else { return };
        active.step = Step::Idle;
        match result {
            Ok(plan) => {
                active.plan = Some(plan);
                active.step_worked();
            }
            Err(trouble) => self.in_trouble(job, CauseKind::Planning, trouble),
        }
    }

    pub(super) fn output_checked(&mut self, job: JobId, result: Result<(), Trouble>) {
        let Some(active) = self.active(job) else { return };
        active.step = Step::Idle;
        if active.job.state != JobState::Reducing {
            return;
        }
        match result {
            Ok(()) => {
                active.step_worked();
                self.propose_step(job, Command::CommitStarted { job });
            }
            Err(trouble) => self.in_trouble(job, CauseKind::OutputConflict, trouble),
        }
    }

    /// A step met trouble: it is tried again, or the job fails of it.
    fn in_trouble(&mut self, job: JobId, kind: CauseKind, trouble: Trouble) {
        let now = self.now;
        let Some(active) = self.active(job) else { return };
        match active.given_up(trouble, now) {
            Some(problem) => self.fail_job(job, kind, &problem),
            None => self.effects.push(Effect::Changed { job }),
        }
    }

    pub(super) fn published(&mut self, job: JobId, outcome: PublishOutcome) {
        let (now, unix_ms, up_to) = (self.now, self.unix_ms, self.last_attempt());
        let Some(active) = self.active(job) else { return };
        active.step = Step::Idle;
        match outcome {
            PublishOutcome::Done => {
                active.step_worked();
                self.propose_step(job, Command::Finished { job, unix_ms });
            }
            PublishOutcome::OutputLost(partitions) => {
                active.step_worked();
                let lost: Vec<AttemptId> = partitions
                    .into_iter()
                    .map(TaskId::reduce)
                    .filter_map(|task| {
                        let number = active.job.result(task)?.attempt;
                        Some(AttemptId { job, task, number })
                    })
                    .collect();
                for attempt in lost {
                    self.propose_step(job, Command::Invalidated { attempt, up_to });
                }
            }
            PublishOutcome::Retry(why) => {
                active.try_later(why, now);
                self.effects.push(Effect::Changed { job });
            }
        }
    }

    pub(super) fn cleaned(&mut self, job: JobId) {
        let unix_ms = self.unix_ms;
        let Some(active) = self.active(job) else { return };
        active.step = Step::Idle;
        self.propose_step(job, Command::Finished { job, unix_ms });
    }

    /// The record of a job's step is in the log, and the job was observed.
    pub(super) fn step_done(&mut self, job: JobId) {
        if let Some(active) = self.active(job) {
            active.step = Step::Idle;
        }
    }

    /// It is not; the step is taken again, from its beginning.
    pub(super) fn step_refused(&mut self, job: JobId) {
        let now = self.now;
        if let Some(active) = self.active(job) {
            active.step = Step::Idle;
            active.not_before = now.plus(REFUSED_PAUSE_MS);
        }
    }
}
