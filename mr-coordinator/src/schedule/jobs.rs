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
    order::{Claim, Served},
};
use crate::{
    command::Command,
    failure::{Cause, CauseKind},
    ids::{AttemptId, JobId, TaskId},
    job::JobState,
    limits::PRIORITY_MAX,
    spec::{Plan, PlanRoot, Spec},
    streaming::nobody_runs,
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

    /// Takes the next step of every job that may have one to take.
    pub(super) fn advance(&mut self) {
        for number in std::mem::take(&mut self.due) {
            let Some(active) = self.jobs.get(&number) else { continue };
            if active.step != Step::Idle || self.now < active.not_before {
                continue;
            }
            match active.job.state {
                JobState::Queued => self.admit_due = true,
                JobState::Mapping | JobState::Reducing => self.advance_tasks(number),
                JobState::Committing => self.advance_commit(number),
                JobState::Failing | JobState::Cancelling => self.advance_end(number),
                JobState::Succeeded | JobState::Failed | JobState::Cancelled => {}
            }
        }
        if std::mem::take(&mut self.admit_due) {
            self.admit();
        }
    }

    /// Plans queued jobs, as many as may be, in the order of `order.rs`.
    fn admit(&mut self) {
        let mut served = Served::default();
        let mut started = [0; PRIORITY_MAX as usize + 1];
        let mut claims = Vec::new();
        for number in self.jobs.keys().copied().collect::<Vec<_>>() {
            let Some(active) = self.jobs.get(&number) else { continue };
            let spec = &active.job.spec;
            let priority = spec.scheduling.priority;
            let has = usize::from(active.started());
            let queue = served.add(spec, &self.settings.weights, has);
            started[usize::from(priority)] += has;
            if !active.started() && self.now >= active.not_before && self.may_start(number) {
                claims.push(Claim { priority, queue, number });
            }
        }
        let slots = self.roster.slots();
        while !self.roster.is_empty()
            && let Some(first) = (0..claims.len())
                .min_by(|one, other| served.compare(&claims[*one], &claims[*other]))
        {
            let claim = claims.swap_remove(first);
            let priority = usize::from(claim.priority);
            if started[priority..].iter().sum::<usize>() >= self.settings.jobs_running_max {
                break;
            }
            started[priority] += 1;
            served.serve(claim.queue, 1);
            self.begin(claim.number, Step::Planning, |job| Effect::Plan { job, slots });
        }
    }

    /// Whether all jobs that a queued one comes after have succeeded; it fails when one did not.
    fn may_start(&mut self, number: u64) -> bool {
        let Some(active) = self.jobs.get(&number) else { return false };
        let mut waits = None;
        let mut broken = active.dependency_gone.map(|before| (before, "is not known any more"));
        for before in &active.job.spec.scheduling.after {
            match self.ended.get(before) {
                Some(JobState::Succeeded) => {}
                Some(JobState::Failed) => broken = Some((*before, "failed")),
                Some(JobState::Cancelled) => broken = Some((*before, "was cancelled")),
                Some(
                    JobState::Queued
                    | JobState::Mapping
                    | JobState::Reducing
                    | JobState::Committing
                    | JobState::Failing
                    | JobState::Cancelling,
                )
                | None => waits = Some(*before),
            }
        }
        let id = active.job.id;
        if let Some((before, why)) = broken {
            let message = format!("job {before}, which this one comes after, {why}");
            self.fail_job(id, CauseKind::Dependency, &message);
            return false;
        }
        let waiting_for = waits.map(|before| format!("job {before}, which it comes after"));
        let waits = waiting_for.is_some();
        let Some(active) = self.jobs.get_mut(&number) else { return false };
        if active.waiting_for != waiting_for {
            active.waiting_for = waiting_for;
            active.touch();
            self.effects.push(Effect::Changed { job: id });
        }
        !waits
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
        let (id, spec) = (active.job.id, &active.job.spec);
        if active.job.complete() {
            self.begin(number, Step::CheckingOutput, |job| Effect::CheckOutput { job });
            return;
        }
        let app = &spec.app;
        let grace = self.settings.no_workers_grace_ms;
        if let Some(grace) = grace.filter(|_| !spec.scheduling.wait_for_workers) {
            let heard = self.roster.app_heard(app);
            let since = heard.map_or(active.needed_since, |heard| heard.max(active.needed_since));
            if self.now.since(since) >= grace && self.now.since(self.since) >= grace {
                let message = if self.roster.is_empty() {
                    format!("no worker was heard from for {grace} ms")
                } else {
                    nobody_runs(app, &self.roster.apps())
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
                active.learn_plan(parts);
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
                active.learn_plan(plan);
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
                let kind = active.job.spec.last_kind();
                let lost: Vec<AttemptId> = partitions
                    .into_iter()
                    .map(|number| TaskId { kind, number })
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
