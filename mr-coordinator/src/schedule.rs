//! What the leading coordinator does next: a function of the replicated state, its own volatile
//! knowledge, one event and the time.
//!
//! Decides assignment, re-execution, what is proposed to the log and what callers are answered.
//! Every effect that changes a job is a proposal first; what the log made of it comes back as
//! [`Event::Applied`] with the job as it is then. Jobs are served in order of submission, several
//! at a time. Deliberately absent: speculative copies of slow attempts, priorities and fair shares.

#![deny(clippy::disallowed_types)]

mod active;
mod jobs;
mod messages;
mod reports;
mod workers;

use std::{collections::BTreeMap, sync::Arc};

pub use self::messages::{
    AppliedTo, Assignment, Effect, Event, Now, Order, ProposalId, PublishOutcome, Reply,
    ReportAnswer, ReportEnd, Run, Settings, Ticket, Trouble, Work,
};
use self::{active::Active, workers::Waiting};
use crate::{
    command::Command,
    ids::{JobId, TaskKind},
    job::Job,
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
    polls: BTreeMap<Ticket, Waiting>,
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
            polls: BTreeMap::new(),
            proposals: BTreeMap::new(),
            last_proposal: 0,
            effects: Vec::new(),
        };
        for job in state.jobs() {
            scheduler.observe(job);
        }
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
            Event::Poll { ticket, worker, incarnation, free_slots } => {
                self.poll(ticket, worker, incarnation, free_slots);
            }
            Event::PollDropped { ticket } => drop(self.polls.remove(&ticket)),
            Event::Undelivered { attempts } => self.undelivered(&attempts),
            Event::Heartbeat { ticket, worker, incarnation, running } => {
                self.heartbeat(ticket, worker, incarnation, &running);
            }
            Event::Report { ticket, worker, attempt, end } => {
                self.report(ticket, worker, attempt, end);
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
            waiting_for: active.waiting_for.clone(),
            version: active.version,
        })
    }

    /// How many workers were heard from lately.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.roster.len()
    }

    /// How many attempts are under way.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.jobs.values().map(|active| active.leases.iter().count()).sum()
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

    fn active(&mut self, job: JobId) -> Option<&mut Active> {
        self.jobs.get_mut(self.numbers.get(&job)?)
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
            AppliedTo::Success { ticket } => {
                self.reply(ticket, Reply::Report(ReportAnswer::of(response.verdict)));
            }
            AppliedTo::Failure { ticket, attempt } => {
                self.failure_applied(&attempt);
                if let Some(ticket) = ticket {
                    self.reply(ticket, Reply::Report(ReportAnswer::Noted));
                }
            }
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
            | AppliedTo::Register { ticket, .. }
            | AppliedTo::Success { ticket } => self.reply(ticket, Reply::Busy),
            AppliedTo::Failure { ticket, attempt } => match ticket {
                Some(ticket) => self.reply(ticket, Reply::Busy),
                None => self.failure_applied(&attempt),
            },
            AppliedTo::Invalidation { map, reduces } => self.invalidation_over(&map, &reduces),
            AppliedTo::Step(job) => self.step_refused(job),
        }
    }

    /// Takes in the whole replicated state: what became of a proposal was not learned.
    fn resync(&mut self, state: &Machine) {
        for job in state.jobs() {
            self.observe(job);
        }
    }

    /// Takes in a job as the log has it. Older states than the one known are ignored.
    fn observe(&mut self, job: &Arc<Job>) {
        if job.state.terminal() {
            self.forget(job);
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
        if self.jobs.remove(&job.number).is_some() {
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
