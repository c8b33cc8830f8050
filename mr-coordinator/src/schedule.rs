//! What the leading coordinator does next: a function of the replicated state, its own volatile
//! knowledge, one event and the time.
//!
//! Decides assignment, re-execution, what is proposed to the log and what callers are answered.
//! Every effect that changes a job is a proposal first; what the log made of it comes back as
//! [`Event::Applied`] with the job as it is then. A step costs what it changes, not what there is:
//! everything that looks at all jobs, workers or attempts happens ten times a second at most.

#![deny(clippy::disallowed_types)]

mod active;
mod assign;
mod backups;
mod exclusion;
mod jobs;
mod messages;
mod order;
mod past;
mod pending;
mod reports;
mod view;
mod workers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use self::messages::{
    AppliedTo, Assignment, Effect, Event, Now, Order, ProposalId, PublishOutcome, Reply,
    ReportAnswer, ReportEnd, Run, Settings, Ticket, Trouble, Wants, Work,
};
use self::{active::Active, assign::Waiting, past::Past};
pub use self::{
    order::Weights,
    view::{AttemptStanding, AttemptView, TasksView, WorkerView},
};
use crate::{
    command::Command,
    ids::{JobId, TaskKind, WorkerId},
    job::{Job, JobState},
    leases::{Millis, Roster},
    machine::{Machine, Response},
};

/// When this much passes between two steps the leader itself stood still: a paused process or a
/// blocked machine. Steps come at least every tick of the driver, a tenth of a second.
const STALL_MS: u64 = 2_000;

/// The leader's scheduler. Built when leadership is won, dropped when it is lost.
pub struct Scheduler {
    settings: Settings,
    /// The leader's term: the epoch of every attempt that it gives out.
    epoch: u64,
    sequence: u32,
    now: Millis,
    unix_ms: u64,
    since: Millis,
    /// Versions that callers see begin here, above all that earlier leaders told.
    version_floor: u64,
    roster: Roster,
    jobs: BTreeMap<u64, Active>,
    numbers: BTreeMap<JobId, u64>,
    /// Jobs that may have a step to take.
    due: BTreeSet<u64>,
    /// Whether a queued job may have to be admitted.
    admit_due: bool,
    /// Ended jobs, as far as they are remembered: what others come after.
    ended: BTreeMap<JobId, JobState>,
    /// The last of them, with what their attempts did.
    past: Past,
    polls: BTreeMap<Ticket, Waiting>,
    poll_of: BTreeMap<WorkerId, Ticket>,
    /// Slots of all polls that wait.
    free_slots_waiting: u64,
    /// The poll that came in this step.
    fresh: Option<Ticket>,
    /// Polls that came with reports which are not answered yet.
    report_polls: BTreeMap<Ticket, (WorkerId, u128, Wants)>,
    proposals: BTreeMap<ProposalId, AppliedTo>,
    last_proposal: u64,
    effects: Vec<Effect>,
}

/// What only the leader knows of a job that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tasks with an attempt under way: maps, reduces.
    pub running: [u32; 2],
    /// Attempts that came to nothing without leaving a record.
    pub retries: [u32; 2],
    /// Whether its inputs are being listed and split.
    pub planning: bool,
    /// What kept its last step from being taken, if something did.
    pub waiting_for: Option<String>,
    /// Backups given out: maps, reduces.
    pub backups: [u32; 2],
    /// The names of workers that get no more of its tasks.
    pub excluded: Vec<String>,
    /// Grows with every change that a caller can see.
    pub version: u64,
}

impl Scheduler {
    /// Takes over from the replicated state. `epoch` is the term, `applied` the index that the
    /// state reflects.
    #[must_use]
    pub fn new(settings: Settings, epoch: u64, applied: u64, state: &Machine, now: Now) -> Self {
        let workers = state.workers().map(|worker| worker.id);
        let roster = Roster::new(workers, now.monotonic, settings.lease_ms);
        let mut scheduler = Self {
            settings,
            epoch,
            sequence: 0,
            now: now.monotonic,
            unix_ms: now.unix_ms,
            since: now.monotonic,
            version_floor: visible_version(applied),
            roster,
            jobs: BTreeMap::new(),
            numbers: BTreeMap::new(),
            due: BTreeSet::new(),
            admit_due: true,
            ended: BTreeMap::new(),
            past: Past::default(),
            polls: BTreeMap::new(),
            poll_of: BTreeMap::new(),
            free_slots_waiting: 0,
            fresh: None,
            report_polls: BTreeMap::new(),
            proposals: BTreeMap::new(),
            last_proposal: 0,
            effects: Vec::new(),
        };
        scheduler.resync(state);
        scheduler
    }

    /// Takes one event and answers with what is to be done, in order.
    #[must_use]
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.pass_time(now);
        match event {
            Event::Tick => self.tick(),
            Event::Submit { ticket, job, token, spec, output_key } => {
                self.submit(ticket, job, token, spec, output_key);
            }
            Event::Cancel { ticket, job } => {
                self.propose(Command::Cancelling { job }, AppliedTo::Cancel(ticket));
            }
            Event::Register { ticket, name, incarnation, slots, apps, running } => {
                self.register(ticket, name, incarnation, slots, apps, running);
            }
            Event::Poll { ticket, worker, incarnation, wants } => {
                self.poll(ticket, worker, incarnation, wants);
            }
            Event::PollDropped { ticket } => {
                self.drop_poll(ticket);
                self.report_polls.remove(&ticket);
            }
            Event::Drain { ticket, name } => self.drain(ticket, &name),
            Event::Undelivered { attempts } => self.undelivered(&attempts),
            Event::Heartbeat { ticket, worker, incarnation, running } => {
                self.heartbeat(ticket, worker, incarnation, &running);
            }
            Event::Report { ticket, worker, attempt, end, poll } => {
                self.report(ticket, worker, attempt, end, poll);
            }
            Event::Deregister { ticket, worker, incarnation } => {
                self.deregister(ticket, worker, incarnation);
            }
            Event::Applied { proposal, response } => self.applied(proposal, &response),
            Event::Refused { proposal } => self.refused(proposal),
            Event::Resync { state } => self.resync(&state),
            Event::Planned { job, result } => self.plan_made(job, result),
            Event::PlanLoaded { job, result } => self.plan_loaded(job, result),
            Event::OutputChecked { job, result } => self.output_checked(job, result),
            Event::RunChecked { map, sound } => self.run_checked(map, sound),
            Event::Published { job, outcome } => self.published(job, outcome),
            Event::Cleaned { job } => self.cleaned(job),
        }
        self.advance();
        self.assign();
        std::mem::take(&mut self.effects)
    }

    /// What only the leader knows of a job; `None` when it has ended or is unknown.
    #[must_use]
    pub fn progress(&self, job: JobId) -> Option<Progress> {
        let active = self.jobs.get(self.numbers.get(&job)?)?;
        Some(Progress {
            running: [
                active.leases.running(TaskKind::Map),
                active.leases.running(TaskKind::Reduce),
            ],
            retries: active.unrecorded_retries,
            planning: active.planning(),
            backups: active.pace.backups,
            excluded: self.excluded_workers(active),
            waiting_for: active.waiting_for.clone(),
            version: active.version,
        })
    }

    fn excluded_workers(&self, active: &Active) -> Vec<String> {
        if active.trust.is_whole() {
            return Vec::new();
        }
        let excluded = self.roster.iter().filter(|w| self.excluded(active, w.record.id));
        excluded.map(|worker| worker.record.name.clone()).collect()
    }

    /// The version of a job as callers see it; `None` when it has ended or is unknown.
    #[must_use]
    pub fn version(&self, job: JobId) -> Option<u64> {
        Some(self.jobs.get(self.numbers.get(&job)?)?.version)
    }

    /// How many workers were heard from lately.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.roster.len()
    }

    /// How many attempts are under way.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.jobs.values().map(|active| active.leases.len()).sum()
    }

    /// Ids of jobs that have not ended.
    pub fn active_jobs(&self) -> impl Iterator<Item = JobId> {
        self.numbers.keys().copied()
    }

    fn pass_time(&mut self, now: Now) {
        let gap = now.monotonic.since(self.now);
        if gap >= STALL_MS {
            self.roster.shift(gap);
            for active in self.jobs.values_mut() {
                active.shift(gap);
            }
        }
        self.now = self.now.max(now.monotonic);
        self.unix_ms = now.unix_ms;
    }

    fn tick(&mut self) {
        for lost in self.roster.close_window(self.now) {
            self.propose(Command::WorkerLeft { worker: lost }, AppliedTo::Nothing);
        }
        for silent in self.roster.silent(self.now) {
            self.worker_lost(silent);
        }
        self.expire_leases();
        self.expire_polls();
        let now = self.now;
        for (number, active) in &mut self.jobs {
            active.offered |= active.pending.ripen(now);
            active.offered |= active.look_for_slow(now);
            // Tasks are kept from a worker for a while, and a worker from a job.
            active.offered |= active.waiting() > 0;
            self.due.insert(*number);
        }
        self.admit_due = true;
    }

    fn propose(&mut self, command: Command, to: AppliedTo) {
        self.last_proposal += 1;
        let proposal = ProposalId(self.last_proposal);
        self.proposals.insert(proposal, to);
        self.effects.push(Effect::Propose { proposal, command: Box::new(command) });
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) {
        self.effects.push(Effect::Reply { ticket, reply });
    }

    /// A job that is about to change; it is looked at again at the end of the step.
    fn active(&mut self, job: JobId) -> Option<&mut Active> {
        let number = *self.numbers.get(&job)?;
        self.due.insert(number);
        self.jobs.get_mut(&number)
    }

    /// Takes in what the log made of a proposal.
    fn applied(&mut self, proposal: ProposalId, response: &Response) {
        let Some(to) = self.proposals.remove(&proposal) else { return };
        if let Some(job) = &response.job {
            self.observe(job);
        }
        match to {
            AppliedTo::Nothing => {}
            AppliedTo::Submit(ticket) => {
                let (verdict, job) = (response.verdict, response.job.clone());
                self.reply(ticket, Reply::Submitted { verdict, job });
            }
            AppliedTo::Cancel(ticket) => {
                let (verdict, job) = (response.verdict, response.job.clone());
                self.reply(ticket, Reply::Cancelled { verdict, job });
            }
            AppliedTo::Register { ticket, running } => self.registered(ticket, &running, response),
            AppliedTo::Success { ticket, attempt } => {
                let now = self.now;
                if let Some(active) = self.active(attempt.job) {
                    active.settle(attempt.task, now);
                }
                self.reply_report(ticket, ReportAnswer::of(response.verdict));
            }
            AppliedTo::Failure { ticket, attempt } => {
                self.failure_applied(&attempt);
                if let Some(ticket) = ticket {
                    self.reply_report(ticket, ReportAnswer::Noted);
                }
            }
            AppliedTo::Loss(attempt) => self.loss_applied(&attempt),
            AppliedTo::Invalidation { map, reduces } => self.invalidation_over(&map, &reduces),
            AppliedTo::Step(job) => self.step_done(job),
        }
    }

    /// The proposal was not executed; callers try again.
    fn refused(&mut self, proposal: ProposalId) {
        let Some(to) = self.proposals.remove(&proposal) else { return };
        match to {
            AppliedTo::Nothing => {}
            AppliedTo::Submit(ticket)
            | AppliedTo::Cancel(ticket)
            | AppliedTo::Register { ticket, .. } => self.reply(ticket, Reply::Busy),
            AppliedTo::Success { ticket, .. } => self.reply_busy(ticket),
            AppliedTo::Failure { ticket, attempt } => match ticket {
                Some(ticket) => self.reply_busy(ticket),
                None => self.failure_applied(&attempt),
            },
            AppliedTo::Loss(attempt) => self.loss_applied(&attempt),
            AppliedTo::Invalidation { map, reduces } => self.invalidation_over(&map, &reduces),
            AppliedTo::Step(job) => self.step_refused(job),
        }
    }

    /// A report is to be sent again, and with it the poll that it brought.
    fn reply_busy(&mut self, ticket: Ticket) {
        self.report_polls.remove(&ticket);
        self.reply(ticket, Reply::Busy);
    }

    /// Takes in the whole replicated state: what became of a proposal was not learned.
    fn resync(&mut self, state: &Machine) {
        let now = self.now;
        self.ended.clear();
        for job in state.jobs() {
            self.observe(job);
            let gone = |before: &&JobId| state.job(**before).is_none();
            let gone = job.spec.scheduling.after.iter().find(gone).copied();
            if let Some(active) = self.active(job.id) {
                active.settle_all(now);
                active.dependency_gone = gone;
            }
        }
    }

    /// Takes in a job as the log has it. Older states than the one known are ignored.
    fn observe(&mut self, job: &Arc<Job>) {
        self.due.insert(job.number);
        self.admit_due = true;
        if job.state.terminal() {
            self.ended.insert(job.id, job.state);
            self.forget(job);
            return;
        }
        // Answers of the log overtake each other: an earlier state does not bring a job back.
        if self.ended.contains_key(&job.id) {
            return;
        }
        let (now, floor) = (self.now, self.version_floor);
        match self.jobs.get_mut(&job.number) {
            Some(active) => active.observe(job, now),
            None => {
                self.numbers.insert(job.id, job.number);
                self.jobs.insert(job.number, Active::new(job, now, floor));
            }
        }
        self.effects.push(Effect::Changed { job: job.id });
    }

    fn forget(&mut self, job: &Arc<Job>) {
        self.numbers.remove(&job.id);
        if let Some(active) = self.jobs.remove(&job.number) {
            self.past.keep(active, self.now);
            self.effects.push(Effect::Changed { job: job.id });
            self.effects.push(Effect::Cleanup { job: job.clone() });
        }
    }
}

/// The version that callers see of a job whose last record has this index. The room between two
/// of them is for changes that leave no record.
#[must_use]
pub fn visible_version(index: u64) -> u64 {
    index << VERSION_BITS
}

/// How many bits of a visible version count changes that leave no record.
const VERSION_BITS: u32 = 20;
