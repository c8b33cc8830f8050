//! The driver while it leads: the scheduler, those who wait for its answers, and its effects.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use raftd::Outcome;
use tokio::{sync::oneshot, time::Instant};

use super::{Call, Done, Request, Told, Tools, answer, ask_state, tell};
use crate::{
    blobs,
    cleanup::{self, Known},
    command::Command,
    failure::Record,
    ids::{AttemptId, JobId, TaskId},
    job::{Job, Manifest},
    lanes::Lane,
    leases::Millis,
    limits::WATCHERS_MAX,
    logs::{self, Fate},
    machine::Machine,
    output, plan,
    publish::{self, AllSteps, Part, Publication, PublishError},
    schedule::{Effect, Event, Now, ProposalId, PublishOutcome, Reply, Scheduler, Ticket, Trouble},
    streaming::SideFile,
};

/// How long a proposal may take before its outcome counts as unknown.
const PROPOSAL_LIMIT: Duration = Duration::from_secs(10);
/// How many proposals may be under way; what is beyond is refused.
const PROPOSALS_MAX: usize = 4_096;
/// How often the replicated state is compared with what the scheduler knows of it.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);
/// How often the work root is looked through for what is nobody's.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3_600);
/// How often callers that are gone are forgotten, and gauges set.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

struct Watcher {
    after: u64,
    answer: oneshot::Sender<Told>,
}

/// The scheduler and those who wait for it.
pub(super) struct Leading {
    term: u64,
    scheduler: Scheduler,
    last_ticket: u64,
    waiting: BTreeMap<Ticket, oneshot::Sender<Told>>,
    watchers: BTreeMap<JobId, Vec<Watcher>>,
    watchers_count: usize,
    proposals: Arc<tokio::sync::Semaphore>,
    next_resync: Instant,
    next_upkeep: Instant,
    next_sweep: Instant,
    sweep_due: bool,
}

impl Leading {
    pub(super) fn new(tools: &Tools, term: u64, applied: u64, state: &Machine) -> Self {
        let scheduler = Scheduler::new(tools.settings.clone(), term, applied, state, now(tools));
        let mut leading = Self {
            term,
            scheduler,
            last_ticket: 0,
            waiting: BTreeMap::new(),
            watchers: BTreeMap::new(),
            watchers_count: 0,
            proposals: Arc::new(tokio::sync::Semaphore::new(PROPOSALS_MAX)),
            next_resync: Instant::now() + RESYNC_INTERVAL,
            next_upkeep: Instant::now(),
            next_sweep: Instant::now() + SWEEP_INTERVAL,
            sweep_due: false,
        };
        leading.sweep(tools, state);
        leading.event(tools, Event::Tick);
        leading
    }

    pub(super) fn tick(&mut self, tools: &Tools) {
        self.event(tools, Event::Tick);
        let now = Instant::now();
        if now >= self.next_resync {
            self.next_resync = now + RESYNC_INTERVAL;
            ask_state(tools, self.term);
        }
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP_INTERVAL;
            self.sweep_due = true;
        }
        if now >= self.next_upkeep {
            self.next_upkeep = now + UPKEEP_INTERVAL;
            self.upkeep(tools);
        }
    }

    /// Forgets callers that are gone.
    fn upkeep(&mut self, tools: &Tools) {
        let gone = self.waiting.iter().filter(|(_, answer)| answer.is_closed());
        for ticket in gone.map(|(ticket, _)| *ticket).collect::<Vec<_>>() {
            self.waiting.remove(&ticket);
            self.event(tools, Event::PollDropped { ticket });
        }
        for watchers in self.watchers.values_mut() {
            watchers.retain(|watcher| !watcher.answer.is_closed());
        }
        self.watchers.retain(|_, watchers| !watchers.is_empty());
        self.watchers_count = self.watchers.values().map(Vec::len).sum();
        let gauge = |name, value: usize| metrics::gauge!(name).set(value as f64);
        gauge("flotilla_mr_workers", self.scheduler.workers());
        gauge("flotilla_mr_attempts_running", self.scheduler.attempts());
        gauge("flotilla_mr_jobs_active", self.scheduler.active_jobs().count());
    }

    pub(super) fn call(&mut self, tools: &Tools, call: Call) {
        let Call { request, answer: to } = call;
        match request {
            Request::View(jobs) => {
                let progress = jobs.iter().map(|job| self.scheduler.progress(*job)).collect();
                answer(to, Told::View(progress, self.scheduler.workers()));
            }
            Request::Tasks { job, kind, numbers } => {
                let view = self.scheduler.tasks_view(job, kind, numbers).map(Box::new);
                answer(to, Told::Tasks(view));
            }
            Request::Workers => answer(to, Told::Workers(self.scheduler.worker_views())),
            Request::Watch { job, after } => self.watch(job, after, to),
            Request::Submit { job, token, spec, output_key } => {
                self.ask(tools, to, |ticket| Event::Submit {
                    ticket,
                    job,
                    token,
                    spec,
                    output_key,
                });
            }
            Request::Cancel(job) => self.ask(tools, to, |ticket| Event::Cancel { ticket, job }),
            Request::Register { name, incarnation, slots, apps, running } => {
                self.ask(tools, to, |ticket| Event::Register {
                    ticket,
                    name,
                    incarnation,
                    slots,
                    apps,
                    running,
                });
            }
            Request::Poll { worker, incarnation, wants } => {
                self.ask(tools, to, |ticket| Event::Poll { ticket, worker, incarnation, wants });
            }
            Request::Drain(name) => self.ask(tools, to, |ticket| Event::Drain { ticket, name }),
            Request::Heartbeat { worker, incarnation, running } => {
                self.ask(tools, to, |ticket| Event::Heartbeat {
                    ticket,
                    worker,
                    incarnation,
                    running,
                });
            }
            Request::Report { worker, attempt, end, poll } => {
                self.ask(tools, to, |ticket| Event::Report { ticket, worker, attempt, end, poll });
            }
            Request::Deregister { worker, incarnation } => {
                self.ask(tools, to, |ticket| Event::Deregister { ticket, worker, incarnation });
            }
        }
    }

    fn ask(
        &mut self,
        tools: &Tools,
        to: oneshot::Sender<Told>,
        event: impl FnOnce(Ticket) -> Event,
    ) {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.waiting.insert(ticket, to);
        self.event(tools, event(ticket));
    }

    fn watch(&mut self, job: JobId, after: u64, to: oneshot::Sender<Told>) {
        match self.scheduler.version(job) {
            Some(version) if version <= after => {
                if self.watchers_count >= WATCHERS_MAX {
                    answer(to, Told::TooMany("watchers_max"));
                    return;
                }
                self.watchers_count += 1;
                self.watchers.entry(job).or_default().push(Watcher { after, answer: to });
            }
            Some(_) | None => answer(to, Told::Changed),
        }
    }

    /// Feeds the scheduler, and acts on what follows until nothing more does.
    pub(super) fn event(&mut self, tools: &Tools, event: Event) {
        if let Event::Resync { state } = &event
            && std::mem::take(&mut self.sweep_due)
        {
            self.sweep(tools, state);
        }
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.scheduler.step(now(tools), event) {
                events.extend(self.act(tools, effect));
            }
        }
    }

    /// Does what is to be done; an event when that shows at once that it cannot be.
    fn act(&mut self, tools: &Tools, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Propose { proposal, command } => {
                return self.propose(tools, proposal, &command);
            }
            Effect::Reply { ticket, reply } => return self.reply(ticket, reply),
            Effect::Changed { job } => self.changed(job),
            Effect::Plan { job, slots } => self.plan(tools, &job, slots),
            Effect::LoadPlan { job } => self.load_plan(tools, &job),
            Effect::CheckOutput { job } => self.check_output(tools, &job),
            Effect::CheckRun { map, manifest } => self.check_run(tools, map, manifest),
            Effect::Publish { job, epoch } => self.publish(tools, &job, epoch),
            Effect::Abandon { job } => {
                let id = job.id;
                let root = tools.root.clone();
                self.on_lane(tools, &tools.lanes.removals, move || {
                    clean(&root, &job);
                    Event::Cleaned { job: id }
                });
            }
            Effect::Cleanup { job } => {
                tracing::info!(job = %job.id, state = ?job.state, "job ended");
                let root = tools.root.clone();
                if tools.lanes.removals.send(move || clean(&root, &job)).is_err() {
                    tracing::warn!("too much waits to be removed; the next sweep takes it");
                }
            }
        }
        None
    }

    fn propose(&mut self, tools: &Tools, proposal: ProposalId, command: &Command) -> Option<Event> {
        let Ok(permit) = self.proposals.clone().try_acquire_owned() else {
            return Some(Event::Refused { proposal });
        };
        let (handle, done, term) = (tools.handle.clone(), tools.done.clone(), self.term);
        let bytes = command.encode();
        tokio::spawn(async move {
            let outcome = handle.propose(bytes, Instant::now() + PROPOSAL_LIMIT).await;
            drop(permit);
            let event = match outcome {
                Outcome::Done(response) => Event::Applied { proposal, response },
                Outcome::Rejected(refused) => {
                    tracing::debug!(%refused, "a record was refused");
                    Event::Refused { proposal }
                }
                Outcome::Unknown => {
                    tracing::warn!("the outcome of a record is unknown; looking at the state");
                    tell(&done, Done::Unsure { term }).await;
                    Event::Refused { proposal }
                }
            };
            tell(&done, Done::Event { term, event: Box::new(event) }).await;
        });
        None
    }

    fn reply(&mut self, ticket: Ticket, reply: Reply) -> Option<Event> {
        let to = self.waiting.remove(&ticket)?;
        match to.send(Told::Reply(reply)) {
            // The caller was gone: nobody will run these.
            Err(Told::Reply(
                Reply::Assigned(assignments) | Reply::Report { given: assignments, .. },
            )) if !assignments.is_empty() => {
                let attempts = assignments.iter().map(|assignment| assignment.attempt).collect();
                Some(Event::Undelivered { attempts })
            }
            Err(_) | Ok(()) => None,
        }
    }

    fn changed(&mut self, job: JobId) {
        let Some(watchers) = self.watchers.remove(&job) else { return };
        let version = self.scheduler.version(job);
        let mut left = Vec::new();
        for watcher in watchers {
            if version.is_some_and(|version| version <= watcher.after) {
                left.push(watcher);
            } else {
                self.watchers_count = self.watchers_count.saturating_sub(1);
                answer(watcher.answer, Told::Changed);
            }
        }
        if !left.is_empty() {
            self.watchers.insert(job, left);
        }
    }

    /// Runs something on a lane and brings back what it came to.
    fn on_lane(&self, tools: &Tools, lane: &Lane, work: impl FnOnce() -> Event + Send + 'static) {
        let (done, term) = (tools.done.clone(), self.term);
        lane.send_surely(move || {
            let event = Box::new(work());
            if done.blocking_send(Done::Event { term, event }).is_err() {
                tracing::trace!("a result came after the end");
            }
        });
    }

    fn plan(&self, tools: &Tools, job: &Arc<Job>, slots: u32) {
        let (root, job) = (tools.root.clone(), job.clone());
        self.on_lane(tools, &tools.lanes.plans, move || {
            let result = check_late(&root, &job).and_then(|()| {
                let made = plan::make(&root, job.id, &job.spec, slots);
                made.map(|(is, plan)| (is, Arc::new(plan))).map_err(|error| error.to_string())
            });
            Event::Planned { job: job.id, result }
        });
    }

    fn load_plan(&self, tools: &Tools, job: &Arc<Job>) {
        let (root, job) = (tools.root.clone(), job.clone());
        self.on_lane(tools, &tools.lanes.plans, move || {
            let loaded = match job.plan {
                Some(is) => plan::load(&root, job.id, is).map_err(|error| error.trouble()),
                None => Err(Trouble::Final("the job has no plan".to_owned())),
            };
            if let Err(trouble) = &loaded {
                tracing::warn!(job = %job.id, ?trouble, "a plan cannot be read");
            }
            Event::PlanLoaded { job: job.id, result: loaded.map(Arc::new) }
        });
    }

    fn check_output(&self, tools: &Tools, job: &Arc<Job>) {
        let (root, job, can_exchange) = (tools.root.clone(), job.clone(), tools.can_exchange);
        self.on_lane(tools, &tools.lanes.plans, move || {
            let result = output::check(&root, &job.spec, can_exchange).map(drop);
            Event::OutputChecked { job: job.id, result: result.map_err(|error| error.trouble()) }
        });
    }

    fn check_run(&self, tools: &Tools, map: AttemptId, manifest: Arc<Manifest>) {
        let root = tools.root.clone();
        self.on_lane(tools, &tools.lanes.plans, move || {
            let sound = cleanup::run_is_sound(&root, &map, &manifest);
            tracing::warn!(%map, sound, "a reduce could not read the output of a map");
            Event::RunChecked { map, sound }
        });
    }

    fn publish(&self, tools: &Tools, job: &Arc<Job>, epoch: u64) {
        let (root, id) = (tools.root.clone(), job.id);
        let publication = publication(job, epoch);
        self.on_lane(tools, &tools.lanes.publications, move || {
            let published = publish::publish(&root, &publication, &mut AllSteps);
            let outcome = match published {
                Ok(()) => PublishOutcome::Done,
                Err(PublishError::Lost(partitions)) => {
                    tracing::warn!(job = %id, ?partitions, "results are lost and made again");
                    PublishOutcome::OutputLost(partitions)
                }
                Err(
                    error @ (PublishError::Conflict(_)
                    | PublishError::Deposed(_)
                    | PublishError::Io { .. }),
                ) => {
                    tracing::warn!(job = %id, %error, "results cannot be published now");
                    PublishOutcome::Retry(error.to_string())
                }
            };
            Event::Published { job: id, outcome }
        });
    }

    /// Looks for directories that are nobody's.
    fn sweep(&self, tools: &Tools, state: &Machine) {
        let (root, state) = (tools.root.clone(), state.clone());
        let (logs_kept, unix_ms) = (tools.logs_kept, now(tools).unix_ms);
        let sweep = move || {
            let known = |job| match state.job(job) {
                Some(job) if job.state.terminal() => Known::Ended,
                Some(_) => Known::Active,
                None => Known::No,
            };
            match cleanup::sweep(&root, known) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "directories of ended jobs removed"),
                Err(error) => tracing::warn!(%error, "the work root cannot be listed"),
            }
            let active = state.jobs().filter(|job| !job.state.terminal());
            let files =
                active.filter_map(|job| job.spec.streaming.as_ref()).flat_map(|is| &is.files);
            let named = files.map(SideFile::blob).collect();
            match blobs::sweep(&root, &named) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "side files of no job removed"),
                Err(error) => tracing::warn!(%error, "side files cannot be listed"),
            }
            let fate = |job| match state.job(job) {
                Some(job) if job.state.terminal() => {
                    Fate::Ended(Duration::from_millis(unix_ms.saturating_sub(job.ended_unix_ms)))
                }
                Some(_) => Fate::Active,
                None => Fate::Unknown,
            };
            match logs::sweep(&root, logs_kept, fate) {
                Ok(0) => {}
                Ok(jobs) => tracing::info!(jobs, "old logs of attempts removed"),
                Err(error) => tracing::warn!(%error, "logs of attempts cannot be listed"),
            }
        };
        if tools.lanes.removals.send(sweep).is_err() {
            tracing::warn!("too much waits to be removed; sweeping is put off");
        }
    }
}

/// Checks what could not be checked when the job was submitted, since the jobs that it comes after
/// had yet to write its inputs.
fn check_late(root: &crate::root::Root, job: &Job) -> Result<(), String> {
    if job.spec.scheduling.after.is_empty() {
        return Ok(());
    }
    let inputs = plan::inputs(root, &job.spec).map_err(|error| error.to_string())?;
    let apart = output::check_apart(root, &job.spec, &job.output_key, &inputs);
    apart.map_err(|error| error.to_string())
}

/// Removes what an ended job left: its directory, and staging beside its output.
fn clean(root: &crate::root::Root, job: &Job) {
    if let Err(error) = publish::clear_staging(root, &publication(job, 0)) {
        tracing::warn!(job = %job.id, %error, "staging of an ended job stays");
    }
    if let Err(error) = cleanup::remove_job(root, job.id) {
        tracing::warn!(job = %job.id, %error, "the directory of an ended job stays for now");
    }
}

fn publication(job: &Job, epoch: u64) -> Publication {
    let kind = job.spec.last_kind();
    let part = |number| {
        let task = TaskId { kind, number };
        let result = job.result(task)?;
        let source = AttemptId { job: job.id, task, number: result.attempt }.part();
        Some(Part { partition: number, source, bytes: result.bytes, crc: result.crc })
    };
    Publication {
        job: job.id,
        epoch,
        spec: job.spec.as_ref().clone(),
        output_key: job.output_key.clone(),
        parts: (0..job.total(kind)).filter_map(part).collect(),
        counters: job.counter_sums(),
        skipped: skipped_lines(job),
    }
}

/// The records that were left out of a job, for people.
fn skipped_lines(job: &Job) -> Vec<String> {
    let line =
        |(task, record): (TaskId, &Record)| format!("{}:{} {task}", record.path, record.offset);
    job.skipped_records().map(line).collect()
}

fn now(tools: &Tools) -> Now {
    let since = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { monotonic: Millis(since(tools.start.elapsed())), unix_ms: since(unix) }
}
