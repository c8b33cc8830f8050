//! The task that owns the scheduler while this member leads.
//!
//! Decides nothing about jobs: it feeds the scheduler with calls, time and results, and acts on
//! its effects. Leadership won: the replicated state is read, linearizably, and a scheduler is
//! built from it. Leadership lost: the scheduler and everything that waits for it is dropped;
//! callers then ask the new leader.

mod leading;

use std::{sync::Arc, time::Duration};

use daemon::{Failure, Shutdown};
use raftd::{GroupId, Handle, Role, Status};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, Interval, MissedTickBehavior, interval},
};

use self::leading::Leading;
use crate::{
    ids::{AttemptId, JobId, TaskKind, WorkerId},
    lanes::Lanes,
    leases::Heard,
    machine::{Answer, Machine, Query},
    root::{NotOurs, Root},
    schedule::{Event, Progress, Reply, ReportEnd, Settings, TasksView, Wants, WorkerView},
    spec::Spec,
};

/// How many calls may wait for the task; more are refused.
pub const CALLS_MAX: usize = 4_096;
/// How many results may wait for it; those who bring them wait.
const RESULTS_MAX: usize = 4_096;
/// How often time passes for the scheduler.
const TICK: Duration = Duration::from_millis(100);
/// How long a question to the replicated state may take.
const QUERY_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait before the state is asked for again.
const QUERY_PAUSE: Duration = Duration::from_millis(100);

/// What a call wants.
#[derive(Debug)]
pub enum Request {
    /// Submit a job.
    Submit {
        /// Its id, if it is new.
        job: JobId,
        /// What makes it idempotent.
        token: String,
        /// What it is to do.
        spec: Spec,
        /// Its output in normal form.
        output_key: String,
    },
    /// Cancel a job.
    Cancel(JobId),
    /// Make a worker known.
    Register {
        /// Its name.
        name: String,
        /// Its process.
        incarnation: u128,
        /// Its slots.
        slots: u32,
        /// Its apps.
        apps: Vec<String>,
        /// What it runs.
        running: Vec<AttemptId>,
    },
    /// Wait for work.
    Poll {
        /// The worker.
        worker: WorkerId,
        /// Its process.
        incarnation: u128,
        /// How many tasks it asks for.
        wants: Wants,
    },
    /// Renew leases.
    Heartbeat {
        /// The worker.
        worker: WorkerId,
        /// Its process.
        incarnation: u128,
        /// What it has, and how far that has come.
        running: Vec<(AttemptId, Heard)>,
    },
    /// Report the end of an attempt.
    Report {
        /// The worker.
        worker: WorkerId,
        /// The attempt.
        attempt: AttemptId,
        /// How it ended.
        end: ReportEnd,
        /// A poll that comes with it, and the worker's process.
        poll: Option<(u128, Wants)>,
    },
    /// Tell a worker to leave.
    Drain(String),
    /// Say goodbye.
    Deregister {
        /// The worker.
        worker: WorkerId,
        /// Its process.
        incarnation: u128,
    },
    /// Tell what only the leader knows of some jobs.
    View(Vec<JobId>),
    /// Tell what only the leader knows of a job's tasks.
    Tasks {
        /// The job.
        job: JobId,
        /// Maps or reduces.
        kind: TaskKind,
        /// The first and the last of them.
        numbers: (u32, u32),
    },
    /// Tell of all workers.
    Workers,
    /// Wait until a job's version exceeds this.
    Watch {
        /// The job.
        job: JobId,
        /// The version.
        after: u64,
    },
}

/// What a call is answered.
#[derive(Debug)]
pub enum Told {
    /// By the scheduler.
    Reply(Reply),
    /// To [`Request::View`]: the jobs' progress, and how many workers there are.
    View(Vec<Option<Progress>>, usize),
    /// To [`Request::Tasks`]; nothing when the job has ended or is unknown.
    Tasks(Option<Box<TasksView>>),
    /// To [`Request::Workers`].
    Workers(Vec<WorkerView>),
    /// To [`Request::Watch`]: it does, or the job has ended or is unknown.
    Changed,
    /// This member does not lead.
    NotLeader,
    /// Too many calls wait already; the limit's name.
    TooMany(&'static str),
}

/// A call.
#[derive(Debug)]
pub struct Call {
    /// What it wants.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Told>,
}

/// What comes back to the task from work that it started.
pub(crate) enum Done {
    /// The replicated state, for a term.
    State { term: u64, state: Option<Box<Machine>> },
    /// Whether the shared root is the one that this state speaks of.
    Claimed { term: u64, state: Box<Machine>, claimed: Result<(), NotOurs> },
    /// Something for the scheduler of a term.
    Event { term: u64, event: Box<Event> },
    /// The outcome of a proposal is not known: the state has to be looked at.
    Unsure { term: u64 },
}

/// What the task works with.
pub(crate) struct Tools {
    pub(crate) handle: Handle<Machine>,
    pub(crate) root: Arc<Root>,
    pub(crate) lanes: Lanes,
    pub(crate) settings: Settings,
    pub(crate) can_exchange: bool,
    pub(crate) logs_kept: Duration,
    pub(crate) done: mpsc::Sender<Done>,
    pub(crate) start: Instant,
}

/// The task.
pub struct Driver {
    tools: Tools,
    calls: mpsc::Receiver<Call>,
    done: mpsc::Receiver<Done>,
    status: watch::Receiver<Status>,
    ticks: Interval,
    /// The term in which this member leads.
    term: Option<u64>,
    leading: Option<Leading>,
    ready: watch::Sender<bool>,
}

impl Driver {
    /// The task and where its calls go. The last part tells whether this member leads and has
    /// taken over.
    #[must_use]
    pub fn new(
        handle: Handle<Machine>,
        root: Arc<Root>,
        lanes: Lanes,
        settings: Settings,
        can_exchange: bool,
        logs_kept: Duration,
    ) -> (Self, mpsc::Sender<Call>, watch::Receiver<bool>) {
        let (calls, calls_in) = mpsc::channel(CALLS_MAX);
        let (done, done_in) = mpsc::channel(RESULTS_MAX);
        let (ready, ready_in) = watch::channel(false);
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let status = handle.watch_status();
        let start = Instant::now();
        let tools = Tools { handle, root, lanes, settings, can_exchange, logs_kept, done, start };
        let driver = Self {
            tools,
            calls: calls_in,
            done: done_in,
            status,
            ticks,
            term: None,
            leading: None,
            ready,
        };
        (driver, calls, ready_in)
    }

    /// Works until shutdown.
    ///
    /// # Errors
    /// Configuration, when this member is to lead and its shared root is not the group's; machine,
    /// when the root cannot be read.
    pub async fn run(mut self, shutdown: Shutdown) -> Result<(), Failure> {
        self.follow_status();
        loop {
            tokio::select! {
                biased;
                () = shutdown.requested() => break,
                Some(done) = self.done.recv() => self.take(done)?,
                Some(call) = self.calls.recv() => self.call(call),
                changed = self.status.changed() => match changed {
                    Ok(()) => self.follow_status(),
                    Err(_) => break,
                },
                _ = self.ticks.tick() => self.tick(),
            }
        }
        self.ready.send_replace(false);
        Ok(())
    }

    fn follow_status(&mut self) {
        let term = {
            let status = self.status.borrow_and_update();
            match status.role {
                Role::Leader => Some(status.term.0),
                Role::Unborn | Role::Follower | Role::Candidate => None,
            }
        };
        if term == self.term {
            return;
        }
        self.term = term;
        if self.leading.take().is_some() {
            tracing::info!("no longer leading");
        }
        self.ready.send_replace(false);
        if let Some(term) = term {
            ask_state(&self.tools, term);
        }
    }

    fn take(&mut self, done: Done) -> Result<(), Failure> {
        match done {
            Done::State { term, .. }
            | Done::Claimed { term, .. }
            | Done::Event { term, .. }
            | Done::Unsure { term }
                if self.term != Some(term) => {}
            Done::State { term, state: None } => {
                if self.leading.is_none() {
                    ask_state_later(&self.tools, term);
                }
            }
            Done::State { term, state: Some(state) } => match &mut self.leading {
                Some(leading) => leading.event(&self.tools, Event::Resync { state }),
                None => self.claim_root(term, state),
            },
            Done::Claimed { term, state, claimed } => {
                claimed.map_err(|not_ours| match not_ours {
                    NotOurs::Empty { .. } | NotOurs::Foreign { .. } => {
                        Failure::configuration(not_ours.to_string())
                    }
                    NotOurs::Io { .. } => Failure::machine(not_ours.to_string()),
                })?;
                self.take_over(term, &state);
            }
            Done::Event { event, .. } => {
                if let Some(leading) = &mut self.leading {
                    leading.event(&self.tools, *event);
                }
            }
            Done::Unsure { term } => ask_state(&self.tools, term),
        }
        Ok(())
    }

    /// Looks whether the shared root is the group's before anything is done by its state: to an
    /// empty directory every job would be lost, to another group's its jobs would be strangers.
    fn claim_root(&self, term: u64, state: Box<Machine>) {
        let group = self.status.borrow().group;
        let group = group.expect("a member that leads is of a group");
        let (root, done) = (self.tools.root.clone(), self.tools.done.clone());
        self.tools.lanes.claims.send_surely(move || {
            let claimed = root.claim(&token(&group), state.untouched());
            if done.blocking_send(Done::Claimed { term, state, claimed }).is_err() {
                tracing::trace!("a result came after the end");
            }
        });
    }

    fn take_over(&mut self, term: u64, state: &Machine) {
        let applied = {
            let status = self.status.borrow();
            status.last.0.max(status.applied.0)
        };
        let jobs = state.jobs().filter(|job| !job.state.terminal()).count();
        tracing::info!(term, jobs, workers = state.workers().count(), "leading the jobs");
        self.leading = Some(Leading::new(&self.tools, term, applied, state));
        self.ready.send_replace(true);
    }

    fn call(&mut self, call: Call) {
        match &mut self.leading {
            Some(leading) => leading.call(&self.tools, call),
            None => answer(call.answer, Told::NotLeader),
        }
    }

    fn tick(&mut self) {
        if let Some(leading) = &mut self.leading {
            leading.tick(&self.tools);
        }
    }
}

/// What names a group in its shared root.
pub(crate) fn token(group: &GroupId) -> String {
    blake3::Hash::from_bytes(*group).to_hex().to_string()
}

/// Answers a caller that may be gone, which is its own business.
pub(crate) fn answer(to: oneshot::Sender<Told>, told: Told) {
    if to.send(told).is_err() {
        tracing::trace!("a caller was gone before its answer");
    }
}

/// Asks for the replicated state as it is now.
pub(crate) fn ask_state(tools: &Tools, term: u64) {
    let (handle, done) = (tools.handle.clone(), tools.done.clone());
    tokio::spawn(async move {
        let state = match handle.query(Query::State, Instant::now() + QUERY_LIMIT).await {
            Ok(Answer::State(state)) => Some(state),
            Ok(Answer::Job(_) | Answer::Page(_)) => None,
            Err(refused) => {
                tracing::debug!(%refused, "the state cannot be read now");
                None
            }
        };
        tell(&done, Done::State { term, state }).await;
    });
}

fn ask_state_later(tools: &Tools, term: u64) {
    let (done, handle) = (tools.done.clone(), tools.handle.clone());
    tokio::spawn(async move {
        tokio::time::sleep(QUERY_PAUSE).await;
        if handle.status().term.0 == term {
            tell(&done, Done::Unsure { term }).await;
        }
    });
}

/// Hands a result to the task, which is gone only when the daemon stops.
pub(crate) async fn tell(done: &mpsc::Sender<Done>, result: Done) {
    if done.send(result).await.is_err() {
        tracing::trace!("a result came after the end");
    }
}
