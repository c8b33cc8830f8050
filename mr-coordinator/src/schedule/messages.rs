//! What goes into the scheduler and what comes out of it.
//!
//! Decides nothing. Callers are known by tickets that the driver draws; proposals by ids that the
//! scheduler draws.

use std::{collections::BTreeMap, sync::Arc};

use super::{order::Weights, view::WorkerView};
use crate::{
    command::Command,
    failure::{Failure, Record},
    ids::{AttemptId, JobId, TaskId, WorkerId},
    job::{Job, Manifest, Verdict},
    leases::{Heard, Millis},
    machine::{Machine, Response},
    spec::{Plan, PlanRoot, Spec},
};

/// A caller that waits for a [`Reply`]; drawn by the driver, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A proposal; drawn by the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProposalId(pub u64);

/// The time.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// What everything is decided by.
    pub monotonic: Millis,
    /// What people are told.
    pub unix_ms: u64,
}

/// What an operator may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// After how much silence a worker counts as lost, and how long a new leader waits for known
    /// workers.
    pub lease_ms: u64,
    /// How often workers send heartbeats.
    pub heartbeat_ms: u64,
    /// How long a started job may be without any worker for it; `None`: for ever.
    pub no_workers_grace_ms: Option<u64>,
    /// How many jobs are planned and run at a time.
    pub jobs_running_max: usize,
    /// What queues get of the slots.
    pub weights: Weights,
}

/// How many tasks a worker asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// To start at once.
    pub free_slots: u32,
    /// To keep ready for slots that will be free.
    pub prefetch: u32,
}

impl Wants {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self.free_slots == 0 && self.prefetch == 0
    }
}

/// How an attempt ended, as its worker reports it.
#[derive(Clone, Debug)]
pub enum ReportEnd {
    /// It wrote its result.
    Success {
        /// The size of its file.
        bytes: u64,
        /// The records in it.
        records: u64,
        /// Its checksum.
        crc: u32,
        /// The hash of its records.
        content_hash: u64,
        /// Its counters.
        counters: BTreeMap<String, u64>,
    },
    /// It failed.
    Failure(Failure),
    /// It was given back.
    Abandoned,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Time passed; at least ten times a second.
    Tick,
    /// A user submits a job; everything that can be checked beside the log was.
    Submit {
        /// Who asks.
        ticket: Ticket,
        /// The id that the job gets if it is new.
        job: JobId,
        /// What makes it idempotent.
        token: String,
        /// What it is to do.
        spec: Spec,
        /// Its output in normal form.
        output_key: String,
    },
    /// A user cancels a job.
    Cancel {
        /// Who asks.
        ticket: Ticket,
        /// Which.
        job: JobId,
    },
    /// A worker makes itself known.
    Register {
        /// Who asks.
        ticket: Ticket,
        /// Its name.
        name: String,
        /// Its process.
        incarnation: u128,
        /// Its slots.
        slots: u32,
        /// Its apps.
        apps: Vec<String>,
        /// What it is running.
        running: Vec<AttemptId>,
    },
    /// A worker asks for work.
    Poll {
        /// Who asks.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
        /// Its process.
        incarnation: u128,
        /// How many tasks it asks for.
        wants: Wants,
    },
    /// A caller that waited for work is gone.
    PollDropped {
        /// Which.
        ticket: Ticket,
    },
    /// Assignments could not be handed over: the caller was gone.
    Undelivered {
        /// Which.
        attempts: Vec<AttemptId>,
    },
    /// A worker renews its leases.
    Heartbeat {
        /// Who asks.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
        /// Its process.
        incarnation: u128,
        /// What it has, and how far that has come.
        running: Vec<(AttemptId, Heard)>,
    },
    /// A worker reports the end of an attempt.
    Report {
        /// Who asks.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
        /// The attempt.
        attempt: AttemptId,
        /// How it ended.
        end: ReportEnd,
        /// A poll that comes with it, and the worker's process.
        poll: Option<(u128, Wants)>,
    },
    /// An operator tells a worker to finish and to leave.
    Drain {
        /// Who asks.
        ticket: Ticket,
        /// The worker's name.
        name: String,
    },
    /// A worker leaves.
    Deregister {
        /// Who asks.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
        /// Its process.
        incarnation: u128,
    },
    /// A proposal was executed.
    Applied {
        /// Which.
        proposal: ProposalId,
        /// What it came to.
        response: Response,
    },
    /// A proposal was not executed, or nobody knows whether it was.
    Refused {
        /// Which.
        proposal: ProposalId,
    },
    /// The replicated state as it is.
    Resync {
        /// The state.
        state: Box<Machine>,
    },
    /// [`Effect::Plan`] is done.
    Planned {
        /// Which job.
        job: JobId,
        /// The plan, whose file is durable; or why there is none.
        result: Result<(PlanRoot, Arc<Plan>), String>,
    },
    /// [`Effect::LoadPlan`] is done.
    PlanLoaded {
        /// Which job.
        job: JobId,
        /// The plan, or why it cannot be had.
        result: Result<Arc<Plan>, Trouble>,
    },
    /// [`Effect::CheckOutput`] is done.
    OutputChecked {
        /// Which job.
        job: JobId,
        /// Whether the output can go where it should.
        result: Result<(), Trouble>,
    },
    /// [`Effect::CheckRun`] is done.
    RunChecked {
        /// Which map attempt.
        map: AttemptId,
        /// Whether its file looks as it was committed.
        sound: bool,
    },
    /// [`Effect::Publish`] is done.
    Published {
        /// Which job.
        job: JobId,
        /// What it came to.
        outcome: PublishOutcome,
    },
    /// [`Effect::Abandon`] is done.
    Cleaned {
        /// Which job.
        job: JobId,
    },
}

/// Why a look at the shared filesystem did not show what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The filesystem refused, which may pass.
    Passing(String),
    /// It will not be otherwise the next time.
    Final(String),
}

/// What publishing came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// All outputs are where they should be, durably.
    Done,
    /// These partitions' results are neither here nor there.
    OutputLost(Vec<u32>),
    /// It did not work now; to be tried again.
    Retry(String),
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Propose to the log; answered by [`Event::Applied`] or [`Event::Refused`].
    Propose {
        /// The proposal.
        proposal: ProposalId,
        /// The record.
        command: Box<Command>,
    },
    /// Answer a caller.
    Reply {
        /// Who asked.
        ticket: Ticket,
        /// The answer.
        reply: Reply,
    },
    /// List and split a job's inputs and write the plan file.
    Plan {
        /// The job.
        job: Arc<Job>,
        /// How many slots there are now: what splits are sized by.
        slots: u32,
    },
    /// Read a job's plan file.
    LoadPlan {
        /// The job.
        job: Arc<Job>,
    },
    /// Look whether the output can go where it should.
    CheckOutput {
        /// The job.
        job: Arc<Job>,
    },
    /// Look whether a map's committed file is as it was committed.
    CheckRun {
        /// The attempt.
        map: AttemptId,
        /// What was committed.
        manifest: Arc<Manifest>,
    },
    /// Publish a job's outputs.
    Publish {
        /// The job, all of whose reduces are committed.
        job: Arc<Job>,
        /// The leader's term.
        epoch: u64,
    },
    /// Remove the directory of a job that is being given up; answered by [`Event::Cleaned`].
    Abandon {
        /// The job.
        job: Arc<Job>,
    },
    /// Remove what is left of the directory of a job that has ended.
    Cleanup {
        /// The job.
        job: Arc<Job>,
    },
    /// Something that callers can see of a job changed.
    Changed {
        /// The job.
        job: JobId,
    },
}

/// What to tell a worker about an attempt of its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The attempt.
    pub attempt: AttemptId,
    /// Why it is to stop; `None`: it goes on.
    pub stop: Option<&'static str>,
}

/// A task for a worker.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The attempt.
    pub attempt: AttemptId,
    /// How long it may be without a heartbeat.
    pub lease_ms: u64,
    /// What the job is to do.
    pub spec: Arc<Spec>,
    /// What to read.
    pub work: Work,
    /// Records to leave out.
    pub skip: Vec<Record>,
    /// Whether the worker is to keep track of each record.
    pub careful: bool,
    /// Whether it is a second attempt at a slow one's task.
    pub backup: bool,
}

/// What a task reads.
#[derive(Clone, Debug)]
pub enum Work {
    /// The pieces of this map task in the plan.
    Map(Arc<Plan>),
    /// The committed run of every map task, in order.
    Reduce(Arc<Vec<Run>>),
}

/// The committed output of a map task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The accepted attempt.
    pub attempt: AttemptId,
    /// The size of its file.
    pub bytes: u64,
    /// The checksum of its footer.
    pub footer_crc: u32,
}

/// What a worker is told about a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportAnswer {
    /// Its result is the task's.
    Accepted,
    /// It was before.
    AlreadyAccepted,
    /// Another's is.
    LostRace,
    /// It had been given up.
    Stale,
    /// The job has ended or is unknown.
    JobGone,
    /// The failure is noted.
    Noted,
}

impl ReportAnswer {
    pub(super) fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accepted => Self::Accepted,
            Verdict::AlreadyAccepted => Self::AlreadyAccepted,
            Verdict::LostRace => Self::LostRace,
            Verdict::JobGone => Self::JobGone,
            Verdict::Stale
            | Verdict::TokenConflict
            | Verdict::OutputBusy
            | Verdict::TooMany
            | Verdict::AfterUnknown
            | Verdict::TooLate
            | Verdict::Malformed => Self::Stale,
        }
    }
}

/// An answer to a caller.
#[derive(Debug)]
pub enum Reply {
    /// To a submission.
    Submitted {
        /// What it came to.
        verdict: Verdict,
        /// The job, or the one that is in the way.
        job: Option<Arc<Job>>,
    },
    /// To a submission: workers are there, and none has the app.
    UnknownApp {
        /// What they have.
        known: Vec<String>,
    },
    /// To a cancellation.
    Cancelled {
        /// What it came to.
        verdict: Verdict,
        /// The job as it is.
        job: Option<Arc<Job>>,
    },
    /// To a registration.
    Registered {
        /// The worker's id.
        worker: WorkerId,
        /// The leader's term.
        epoch: u64,
        /// How often to send heartbeats.
        heartbeat_ms: u64,
        /// What becomes of its attempts.
        orders: Vec<Order>,
    },
    /// To a registration: another worker of that name was heard just now.
    NameInUse,
    /// To a registration: there are too many workers.
    TooManyWorkers,
    /// To a poll.
    Assigned(Vec<Assignment>),
    /// To a poll: nothing to do.
    Idle,
    /// To a poll: register again.
    Reregister,
    /// To a poll: finish what runs and leave.
    Drain,
    /// To a heartbeat.
    Heartbeat {
        /// What becomes of its attempts.
        orders: Vec<Order>,
        /// Whether it has to register again.
        reregister: bool,
        /// Whether it is to finish what it runs and to leave.
        drain: bool,
    },
    /// To a report.
    Report {
        /// What was decided.
        answer: ReportAnswer,
        /// What the poll that came with it got.
        given: Vec<Assignment>,
    },
    /// To an operator: the worker as it is, if there is one of that name.
    Draining(Option<WorkerView>),
    /// To a farewell.
    Deregistered,
    /// To anything: not now, try again.
    Busy,
}

/// What waits for a proposal.
#[derive(Debug)]
pub enum AppliedTo {
    /// Nobody.
    Nothing,
    /// A submission.
    Submit(Ticket),
    /// A cancellation.
    Cancel(Ticket),
    /// A registration.
    Register {
        /// Who asks.
        ticket: Ticket,
        /// What it is running.
        running: Vec<AttemptId>,
    },
    /// A report of success.
    Success {
        /// Who asks.
        ticket: Ticket,
        /// The attempt.
        attempt: AttemptId,
    },
    /// A failure, reported or found.
    Failure {
        /// Who asks, if a report did.
        ticket: Option<Ticket>,
        /// The attempt.
        attempt: AttemptId,
    },
    /// The loss of an attempt's worker.
    Loss(AttemptId),
    /// The invalidation of a map's output.
    Invalidation {
        /// The map attempt.
        map: AttemptId,
        /// The reduces that wait for it.
        reduces: Vec<TaskId>,
    },
    /// The next step of a job.
    Step(JobId),
}
