//! The replicated state of the coordinator: jobs and registered workers.
//!
//! Decides which records take effect. Everything is kept within limits at apply, so that every
//! member keeps the same. Leaves out what a job's own steps decide (`job.rs`) and how the state is
//! encoded (`snapshot.rs`).

#![deny(clippy::disallowed_types)]

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use imbl::OrdMap;
use raft::{Applied, BadSnapshot, RECOVERY_GAP, StateMachine};

use crate::{
    command::{COMMAND_VERSION, Command},
    ids::{AttemptNumber, JobId, WorkerId},
    job::{Counters, Job, JobState, Step, Verdict},
    limits::{JOBS_ACTIVE_MAX, JOBS_ENDED_MAX, WORKERS_MAX},
    snapshot::{self, Frozen},
    spec::Spec,
};

/// A registered worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRecord {
    /// Its id.
    pub id: WorkerId,
    /// Its name, which no other has.
    pub name: String,
    /// What it drew when its process started.
    pub incarnation: u128,
    /// How many tasks it runs at a time.
    pub slots: u32,
    /// The apps it has.
    pub apps: Vec<String>,
}

/// The state. Copies share their parts, so that a copy costs next to nothing.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// All jobs, by their number: in order of submission.
    pub(crate) jobs: OrdMap<u64, Arc<Job>>,
    /// Registered workers.
    pub(crate) workers: OrdMap<WorkerId, Arc<WorkerRecord>>,
    /// The id of the last registration.
    pub(crate) last_worker: u64,
    /// Where jobs are, by id; follows from `jobs`.
    pub(crate) numbers: OrdMap<JobId, u64>,
    /// Where jobs are, by client token; follows from `jobs`.
    pub(crate) tokens: OrdMap<String, u64>,
    /// The sum of the digests of everything.
    pub(crate) digest: u128,
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Response {
    /// The verdict.
    pub verdict: Verdict,
    /// The job that it was about, as it is now.
    pub job: Option<Arc<Job>>,
    /// The worker that it registered, as it is now.
    pub worker: Option<Arc<WorkerRecord>>,
    /// The registration that this one took the place of.
    pub replaced: Option<WorkerId>,
}

/// A read-only question.
#[derive(Clone, Debug)]
pub enum Query {
    /// Everything.
    State,
    /// One job.
    Job(JobId),
    /// The job of a client token.
    Token(String),
    /// So many jobs, newest first, behind a given one.
    Page {
        /// At most so many.
        limit: usize,
        /// Behind this one.
        behind: Option<JobId>,
    },
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Query::State`].
    State(Box<Machine>),
    /// To [`Query::Job`] and [`Query::Token`].
    Job(Option<Arc<Job>>),
    /// To [`Query::Page`]: the jobs, and whether there are more; `None`: the place is not known.
    Page(Option<(Vec<Arc<Job>>, bool)>),
}

impl Machine {
    /// An empty state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no job and no worker was ever in it.
    #[must_use]
    pub fn untouched(&self) -> bool {
        self.jobs.is_empty() && self.last_worker == 0
    }

    /// A job.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<&Arc<Job>> {
        self.numbers.get(&id).and_then(|number| self.jobs.get(number))
    }

    /// All jobs, in order of submission.
    pub fn jobs(&self) -> impl Iterator<Item = &Arc<Job>> {
        self.jobs.values()
    }

    /// All registered workers.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<WorkerRecord>> {
        self.workers.values()
    }

    /// The job of a client token.
    #[must_use]
    pub fn job_of_token(&self, token: &str) -> Option<&Arc<Job>> {
        self.tokens.get(token).and_then(|number| self.jobs.get(number))
    }

    fn execute(&mut self, at: Applied, command: Command) -> Response {
        match command {
            Command::Submitted { job, token, spec, output_key, unix_ms } => {
                self.submit(at, job, token, spec, output_key, unix_ms)
            }
            Command::Planned { job, plan } => self.step(at, job, |job| job.planned(plan)),
            Command::Committed { attempt, worker, success } => self.step(at, attempt.job, |job| {
                job.commit(attempt.task, attempt.number, worker, &success)
            }),
            Command::Failed { attempt, worker, failure } => self.step(at, attempt.job, |job| {
                job.fail(attempt.task, attempt.number, &worker, &failure)
            }),
            Command::WorkerLost { attempt, worker } => {
                self.step(at, attempt.job, |job| job.lose(attempt.task, attempt.number, &worker))
            }
            Command::Invalidated { attempt, up_to } => self
                .step(at, attempt.job, |job| job.invalidate(attempt.task, attempt.number, up_to)),
            Command::CommitStarted { job } => self.step(at, job, Job::start_commit),
            Command::Failing { job, cause } => self.step(at, job, |job| job.start_failing(&cause)),
            Command::Cancelling { job } => self.step(at, job, Job::start_cancelling),
            Command::Finished { job, unix_ms } => self.finish(at, job, unix_ms),
            Command::WorkerRegistered { name, incarnation, slots, apps } => {
                self.register(name, incarnation, slots, apps)
            }
            Command::WorkerLeft { worker } => self.leave(worker),
        }
    }

    fn submit(
        &mut self,
        at: Applied,
        id: JobId,
        token: String,
        spec: Spec,
        output_key: String,
        unix_ms: u64,
    ) -> Response {
        let known = self.job_of_token(&token).or_else(|| self.job(id));
        if let Some(known) = known.cloned() {
            let same = known.token == token && *known.spec == spec;
            let verdict = if same { Verdict::AlreadyAccepted } else { Verdict::TokenConflict };
            return Response::of_job(verdict, Some(known));
        }
        if spec.scheduling.after.iter().any(|before| self.job(*before).is_none()) {
            return Response::of_job(Verdict::AfterUnknown, None);
        }
        let active = || self.jobs.values().filter(|job| !job.state.terminal());
        if active().count() >= JOBS_ACTIVE_MAX {
            return Response::of_job(Verdict::TooMany, None);
        }
        if let Some(other) = active().find(|job| paths_overlap(&job.output_key, &output_key)) {
            return Response::of_job(Verdict::OutputBusy, Some(other.clone()));
        }
        let job = Job {
            id,
            number: at.index.0,
            token,
            spec_digest: spec.digest(),
            spec: Arc::new(spec),
            output_key,
            state: JobState::Queued,
            plan: None,
            tasks: OrdMap::new(),
            tasks_digest: 0,
            committed: [0, 0],
            bytes_committed: 0,
            retries: [0, 0],
            taken_back: 0,
            counters: Arc::new(Counters::default()),
            reduce_floor: AttemptNumber::default(),
            skipped: 0,
            cause: None,
            submitted_unix_ms: unix_ms,
            ended_unix_ms: 0,
            version: at.index.0,
        };
        let job = Arc::new(job);
        self.put_job(job.clone());
        Response::of_job(Verdict::Accepted, Some(job))
    }

    fn step(&mut self, at: Applied, id: JobId, step: impl FnOnce(&mut Job) -> Step) -> Response {
        let Some(job) = self.job(id) else {
            return Response::of_job(Verdict::JobGone, None);
        };
        let mut job = Job::clone(job);
        match step(&mut job) {
            Ok(verdict) => {
                job.version = at.index.0;
                let job = Arc::new(job);
                self.put_job(job.clone());
                Response::of_job(verdict, Some(job))
            }
            Err(verdict) => Response::of_job(verdict, self.job(id).cloned()),
        }
    }

    fn finish(&mut self, at: Applied, id: JobId, unix_ms: u64) -> Response {
        let response = self.step(at, id, |job| job.finish(unix_ms));
        let ended = self.jobs.values().filter(|job| job.state.terminal());
        let ended: Vec<(u64, JobId)> = ended.map(|job| (job.number, job.id)).collect();
        let surplus = ended.len().saturating_sub(JOBS_ENDED_MAX);
        if surplus > 0 {
            let awaited = self.awaited();
            for (number, _) in ended.iter().filter(|(_, id)| !awaited.contains(id)).take(surplus) {
                self.drop_job(*number);
            }
        }
        response
    }

    /// The jobs that others come after, which are yet to be planned.
    fn awaited(&self) -> BTreeSet<JobId> {
        let queued = self.jobs.values().filter(|job| job.state == JobState::Queued);
        queued.flat_map(|job| job.spec.scheduling.after.iter().copied()).collect()
    }

    fn register(
        &mut self,
        name: String,
        incarnation: u128,
        slots: u32,
        apps: Vec<String>,
    ) -> Response {
        let known = self.workers.values().find(|worker| worker.name == name).cloned();
        let replaced = match known {
            Some(known) if known.incarnation == incarnation => {
                let worker = WorkerRecord { slots, apps, ..WorkerRecord::clone(&known) };
                let worker = Arc::new(worker);
                self.put_worker(worker.clone());
                return Response::of_worker(Verdict::AlreadyAccepted, Some(worker), None);
            }
            Some(known) => {
                self.drop_worker(known.id);
                Some(known.id)
            }
            None if self.workers.len() >= WORKERS_MAX => {
                return Response::of_worker(Verdict::TooMany, None, None);
            }
            None => None,
        };
        self.digest = self.digest.wrapping_sub(snapshot::meta_digest(self));
        self.last_worker += 1;
        self.digest = self.digest.wrapping_add(snapshot::meta_digest(self));
        let id = WorkerId(self.last_worker);
        let worker = Arc::new(WorkerRecord { id, name, incarnation, slots, apps });
        self.put_worker(worker.clone());
        Response::of_worker(Verdict::Accepted, Some(worker), replaced)
    }

    fn leave(&mut self, worker: WorkerId) -> Response {
        let known = self.workers.contains_key(&worker);
        self.drop_worker(worker);
        let verdict = if known { Verdict::Accepted } else { Verdict::Stale };
        Response::of_worker(verdict, None, known.then_some(worker))
    }

    pub(crate) fn put_job(&mut self, job: Arc<Job>) {
        if let Some(old) = self.jobs.get(&job.number) {
            self.digest = self.digest.wrapping_sub(snapshot::job_digest(old));
        }
        self.digest = self.digest.wrapping_add(snapshot::job_digest(&job));
        if !self.jobs.contains_key(&job.number) {
            self.numbers.insert(job.id, job.number);
            self.tokens.insert(job.token.clone(), job.number);
        }
        self.jobs.insert(job.number, job);
    }

    fn drop_job(&mut self, number: u64) {
        if let Some(old) = self.jobs.remove(&number) {
            self.digest = self.digest.wrapping_sub(snapshot::job_digest(&old));
            self.numbers.remove(&old.id);
            self.tokens.remove(&old.token);
        }
    }

    pub(crate) fn put_worker(&mut self, worker: Arc<WorkerRecord>) {
        self.drop_worker(worker.id);
        self.digest = self.digest.wrapping_add(snapshot::worker_digest(&worker));
        self.workers.insert(worker.id, worker);
    }

    fn drop_worker(&mut self, worker: WorkerId) {
        if let Some(old) = self.workers.remove(&worker) {
            self.digest = self.digest.wrapping_sub(snapshot::worker_digest(&old));
        }
    }

    fn page(&self, limit: usize, behind: Option<JobId>) -> Option<(Vec<Arc<Job>>, bool)> {
        let end = match behind {
            Some(id) => *self.numbers.get(&id)?,
            None => u64::MAX,
        };
        let mut jobs = self.jobs.range(..end).rev().map(|(_, job)| job.clone());
        let page: Vec<_> = jobs.by_ref().take(limit).collect();
        Some((page, jobs.next().is_some()))
    }
}

impl StateMachine for Machine {
    type Query = Query;
    type Answer = Answer;
    type Response = Response;
    type Capture = Frozen;

    fn understands(&self, command: &Bytes) -> bool {
        command.first().is_none_or(|&version| version <= COMMAND_VERSION)
    }

    fn apply(&mut self, at: Applied, command: &Bytes) -> Response {
        match Command::decode(command) {
            Ok(command) => self.execute(at, command),
            Err(_) => Response::of_job(Verdict::Malformed, None),
        }
    }

    fn pass(&mut self, _: Applied) {}

    /// Attempts are named by terms, which a recovery moves on by itself, and jobs by random numbers.
    fn recover(&mut self) {
        self.digest = self.digest.wrapping_sub(snapshot::meta_digest(self));
        self.last_worker += RECOVERY_GAP;
        self.digest = self.digest.wrapping_add(snapshot::meta_digest(self));
    }

    fn query(&self, query: Query) -> Answer {
        match query {
            Query::State => Answer::State(Box::new(self.clone())),
            Query::Job(id) => Answer::Job(self.job(id).cloned()),
            Query::Token(token) => Answer::Job(self.job_of_token(&token).cloned()),
            Query::Page { limit, behind } => Answer::Page(self.page(limit, behind)),
        }
    }

    fn capture(&self) -> Frozen {
        Frozen::of(self)
    }

    fn empty(&self) -> Self {
        Self::default()
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        *self = snapshot::restore(chunks).map_err(|bad| BadSnapshot(bad.to_string()))?;
        Ok(())
    }

    fn digest(&self) -> u128 {
        self.digest
    }
}

impl Response {
    fn of_job(verdict: Verdict, job: Option<Arc<Job>>) -> Self {
        Self { verdict, job, worker: None, replaced: None }
    }

    fn of_worker(
        verdict: Verdict,
        worker: Option<Arc<WorkerRecord>>,
        replaced: Option<WorkerId>,
    ) -> Self {
        Self { verdict, job: None, worker, replaced }
    }
}

/// Whether two paths in normal form are the same, or one lies within the other.
#[must_use]
pub fn paths_overlap(one: &str, other: &str) -> bool {
    let within = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    within(one, other) || within(other, one)
}
