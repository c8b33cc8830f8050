//! The one owner of what this worker is doing: which slots are free, which attempts run, which are
//! being reported.
//!
//! Every wait is a task of [`Dispatch::tasks`] that ends with an event; the loop takes one event at
//! a time and never waits for anything else, so heartbeats go out whatever users' code and the file
//! system do. Attempts go on while the coordinator is away.
//!
//! Some tasks are kept ready for slots that will be free: a slot then never waits for the
//! coordinator. Tasks are asked for with reports, for the slot that this frees, and with a poll for
//! what is missing beyond that. Answers may cross, so that more tasks come than were wanted; these
//! are kept ready as well, and the coordinator, which is told that they have not begun, takes them
//! back when another worker is idle.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use daemon::{Failure, Readiness, Shutdown};
use proto::mapreduce::{
    Assignment, AttemptId, AttemptOrder, AttemptProgress, HeartbeatReply, HeartbeatRequest,
    PollReply, RegisterReply, Success, Verdict, poll_reply,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    calls::{self, Ending, Identity, REFUSED_PAUSE, Wants},
    ended,
    part::PART_FILE,
    paths::Root,
    session::{Coordinators, Lane},
    slot::{Counts, End, Slot},
};

/// The bounds of what a coordinator may choose as the time between heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_millis(20);
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

/// Until the coordinator says more, how often to look whether there is one.
const HEARTBEAT_FIRST: Duration = Duration::from_secs(1);

/// How long the last reports may take when the grace is over.
const LAST_REPORTS: Duration = Duration::from_secs(3);

/// How many parts may be on their way to the disk while slots go on.
const SYNCS_MAX: usize = 64;

/// What a worker is and may do.
pub(crate) struct Setup {
    pub(crate) identity: Identity,
    pub(crate) root: Arc<Root>,
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) slots: Vec<Slot>,
    /// How many tasks to keep ready.
    pub(crate) ready: u32,
    pub(crate) drain_grace: Duration,
    pub(crate) lost_timeout: Duration,
    pub(crate) readiness: Readiness,
}

/// What this worker is doing.
pub(crate) struct Dispatch {
    identity: Arc<Identity>,
    root: Arc<Root>,
    coordinators: Arc<Coordinators>,
    drain_grace: Duration,
    lost_timeout: Duration,
    readiness: Readiness,
    /// Polls and reports; heartbeats have a connection of their own.
    work: Lane,
    pulse: Lane,
    /// This worker's number, once registered.
    registered: watch::Sender<Option<u64>>,
    attempts: HashMap<AttemptId, Attempt>,
    /// Slots without an attempt. Every other one is in the task of its attempt.
    idle: Vec<Slot>,
    /// How many tasks to keep ready, and those that are.
    ready_max: u32,
    ready: VecDeque<Assignment>,
    /// What reports on their way ask for.
    asked: Wants,
    /// How many parts are on their way to the disk.
    syncing: usize,
    tasks: JoinSet<Event>,
    registering: bool,
    beating: bool,
    /// Polls on their way; the last one counts, the coordinator ends the others.
    polling: Vec<(u64, AbortHandle, Wants)>,
    polls: u64,
    heartbeat: Interval,
    draining: Draining,
}

/// An attempt that the coordinator has not yet judged.
struct Attempt {
    dir: String,
    counts: Arc<Counts>,
    abort: CancellationToken,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It waits for a slot.
    Ready,
    Running,
    /// It is being stopped, to be given back.
    GivenUp,
    Reporting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Draining {
    No,
    /// Attempts may go on until then.
    Grace(Instant),
    /// All are stopped; reports may be tried until then.
    Last(Instant),
    /// Nothing is waited for any more.
    Over,
}

enum Event {
    Registered(Result<RegisterReply, Failure>, Vec<AttemptId>),
    Beaten(Result<HeartbeatReply, Status>, Vec<AttemptId>),
    Polled(u64, Result<PollReply, Status>),
    Ended(AttemptId, Slot, End),
    Synced(AttemptId, Ending),
    Judged(AttemptId, Option<(Verdict, Vec<Assignment>)>, Wants),
    Removed,
}

impl Dispatch {
    /// A worker that has not said anything yet.
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            identity: Arc::new(setup.identity),
            root: setup.root,
            work: setup.coordinators.lane(),
            pulse: setup.coordinators.lane(),
            coordinators: setup.coordinators,
            drain_grace: setup.drain_grace,
            lost_timeout: setup.lost_timeout,
            readiness: setup.readiness,
            registered: watch::Sender::new(None),
            attempts: HashMap::new(),
            idle: setup.slots,
            ready_max: setup.ready,
            ready: VecDeque::new(),
            asked: Wants::default(),
            syncing: 0,
            tasks: JoinSet::new(),
            registering: false,
            beating: false,
            polling: Vec::new(),
            polls: 0,
            heartbeat: heartbeats(HEARTBEAT_FIRST),
            draining: Draining::No,
        }
    }

    /// Works until shutdown, then drains.
    ///
    /// # Errors
    /// Configuration, when the coordinator refuses this worker; machine, when none was heard of for
    /// too long.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Result<(), Failure> {
        self.register();
        while !self.drained() {
            let working = self.draining == Draining::No;
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = shutdown.requested(), if working => self.drain(),
                () = sleep_until(deadline), if !working => self.hurry(deadline),
                _ = self.heartbeat.tick() => self.beat()?,
                Some(done) = self.tasks.join_next() => self.take(done)?,
            }
        }
        let worker = *self.registered.borrow();
        if let Some(worker) = worker {
            calls::deregister(&self.pulse, &self.identity, worker).await;
        }
        Ok(())
    }

    fn take(&mut self, done: Result<Event, JoinError>) -> Result<(), Failure> {
        match done {
            Ok(event) => self.on(event)?,
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                return Err(Failure::new(daemon::Code::Panic, "a task ended").because(error));
            }
        }
        self.poll();
        Ok(())
    }

    fn on(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Registered(reply, asked) => self.on_registered(reply?, &asked),
            Event::Beaten(reply, asked) => self.on_beaten(reply, &asked),
            Event::Polled(poll, reply) => self.on_polled(poll, reply),
            Event::Ended(attempt, slot, end) => self.on_ended(attempt, slot, end),
            Event::Synced(attempt, ending) => {
                self.syncing -= 1;
                self.start_ready();
                self.report(attempt, ending);
            }
            Event::Judged(attempt, judged, asked) => self.on_judged(&attempt, judged, asked),
            Event::Removed => {}
        }
        Ok(())
    }

    // Registration.

    fn register(&mut self) {
        self.registered.send_replace(None);
        self.readiness.not_ready("not registered with a coordinator");
        if self.registering {
            return;
        }
        self.registering = true;
        let running: Vec<AttemptId> = self.attempts.keys().cloned().collect();
        let (lane, identity) = (self.pulse.clone(), Arc::clone(&self.identity));
        let root = Arc::clone(&self.root);
        self.tasks.spawn(async move {
            let reply = calls::register(&lane, &identity, &root, &running).await;
            Event::Registered(reply, running)
        });
    }

    fn on_registered(&mut self, reply: RegisterReply, asked: &[AttemptId]) {
        self.registering = false;
        tracing::info!(worker = reply.worker, epoch = reply.epoch, "registered");
        self.registered.send_replace(Some(reply.worker));
        self.readiness.ready();
        let period = Duration::from_millis(reply.heartbeat_ms);
        self.heartbeat = heartbeats(period.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX));
        self.obey(reply.orders, asked);
    }

    // Heartbeats.

    fn beat(&mut self) -> Result<(), Failure> {
        let silence = self.coordinators.silence();
        if silence > self.lost_timeout {
            let seconds = silence.as_secs();
            return Err(Failure::machine(format!("no coordinator answered for {seconds} s")));
        }
        let worker = *self.registered.borrow();
        let (Some(worker), false) = (worker, self.beating) else { return Ok(()) };
        self.beating = true;
        let asked: Vec<AttemptId> = self.attempts.keys().cloned().collect();
        let running = self.attempts.iter().map(|(id, attempt)| {
            let (records, bytes) = attempt.counts.get();
            let queued = attempt.stage == Stage::Ready;
            AttemptProgress { attempt: Some(id.clone()), records, bytes, queued }
        });
        let request = HeartbeatRequest {
            worker,
            incarnation: self.identity.incarnation.clone().into(),
            running: running.collect(),
        };
        let lane = self.pulse.clone();
        self.tasks.spawn(async move {
            let reply = calls::heartbeat(&lane, request).await;
            if reply.is_err() {
                sleep(REFUSED_PAUSE).await;
            }
            Event::Beaten(reply, asked)
        });
        Ok(())
    }

    fn on_beaten(&mut self, reply: Result<HeartbeatReply, Status>, asked: &[AttemptId]) {
        self.beating = false;
        match reply {
            Ok(reply) if reply.reregister => self.register(),
            Ok(reply) => {
                self.obey(reply.orders, asked);
                if reply.drain {
                    self.drain();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the coordinator refuses a heartbeat");
                self.register();
            }
        }
    }

    /// Orders come in the order of the attempts that were asked about.
    fn obey(&mut self, orders: Vec<AttemptOrder>, asked: &[AttemptId]) {
        for (order, asked) in orders.into_iter().zip(asked) {
            if order.go_on || order.attempt.is_some_and(|named| named != *asked) {
                continue;
            }
            // One that is being reported gets its verdict anyway.
            let stage = self.attempts.get(asked).map(|attempt| attempt.stage);
            match stage {
                None | Some(Stage::Reporting) => {}
                // It has no slot and no directory.
                Some(Stage::Ready) => {
                    tracing::debug!(attempt = %name(asked), reason = order.reason, "taken back");
                    self.attempts.remove(asked);
                    self.ready.retain(|ready| ready.attempt.as_ref() != Some(asked));
                }
                Some(Stage::Running | Stage::GivenUp) => {
                    tracing::info!(attempt = %name(asked), reason = order.reason, "stopping an attempt");
                    self.attempts[asked].abort.cancel();
                }
            }
        }
    }

    // Work.

    /// What is missing and was not asked for with a report.
    fn wants(&self) -> Wants {
        let ready = self.ready.len() as u32;
        Wants {
            free_slots: (self.idle.len() as u32).saturating_sub(self.asked.free_slots),
            ready: self.ready_max.saturating_sub(ready).saturating_sub(self.asked.ready),
        }
    }

    /// Asks for what is missing. A poll that asks for fewer slots is overtaken: the coordinator
    /// answers it at once.
    fn poll(&mut self) {
        let worker = *self.registered.borrow();
        let Some(worker) = worker else { return };
        let wants = self.wants();
        let asked = self.polling.last().map(|(_, _, wants)| wants.free_slots);
        let enough = asked.is_some_and(|asked| asked >= wants.free_slots);
        if enough || wants.is_nothing() || self.draining != Draining::No {
            return;
        }
        let (lane, identity) = (self.work.clone(), Arc::clone(&self.identity));
        self.polls += 1;
        let number = self.polls;
        let abort = self.tasks.spawn(async move {
            let reply = calls::poll(&lane, &identity, worker, wants).await;
            if reply.is_err() {
                sleep(REFUSED_PAUSE).await;
            }
            Event::Polled(number, reply)
        });
        self.polling.push((number, abort, wants));
    }

    fn on_polled(&mut self, number: u64, reply: Result<PollReply, Status>) {
        self.polling.retain(|(poll, _, _)| *poll != number);
        match reply.map(|reply| reply.kind) {
            Ok(Some(poll_reply::Kind::Assignments(work))) => self.take_in(work.assignments),
            Ok(Some(poll_reply::Kind::Idle(_))) => {}
            Ok(Some(poll_reply::Kind::Drain(_))) => self.drain(),
            Ok(Some(poll_reply::Kind::Reregister(_)) | None) => self.register(),
            Err(error) => {
                tracing::warn!(%error, "the coordinator refuses a poll");
                self.register();
            }
        }
    }

    /// Takes in tasks, and starts those for which there are slots.
    fn take_in(&mut self, work: Vec<Assignment>) {
        for assignment in work {
            let Some(id) = assignment.attempt.clone() else {
                tracing::warn!("an assignment without an attempt is ignored");
                continue;
            };
            if self.attempts.contains_key(&id) {
                tracing::warn!(attempt = %name(&id), "an assignment came twice");
                continue;
            }
            let attempt = Attempt {
                dir: assignment.attempt_dir.clone(),
                counts: Arc::default(),
                abort: CancellationToken::new(),
                stage: Stage::Ready,
            };
            self.attempts.insert(id.clone(), attempt);
            if self.draining == Draining::No {
                self.ready.push_back(assignment);
            } else {
                self.report(id, Ending::Abandoned);
            }
        }
        self.start_ready();
    }

    /// Starts what is ready, as far as there are slots.
    fn start_ready(&mut self) {
        while !self.idle.is_empty()
            && self.syncing < SYNCS_MAX
            && let Some(assignment) = self.ready.pop_front()
        {
            let Some(id) = assignment.attempt.clone() else { continue };
            let Some(attempt) = self.attempts.get_mut(&id) else { continue };
            let Some(mut slot) = self.idle.pop() else { return };
            attempt.stage = Stage::Running;
            let (counts, abort) = (Arc::clone(&attempt.counts), attempt.abort.clone());
            tracing::debug!(attempt = %name(&id), "an attempt starts");
            let root = Arc::clone(&self.root);
            self.tasks.spawn(async move {
                let end = slot.run(&assignment, &counts, &abort).await;
                Event::Ended(id, slot, ended::locate(end, root, assignment).await)
            });
        }
    }

    fn on_ended(&mut self, id: AttemptId, slot: Slot, end: End) {
        self.idle.push(slot);
        // The slot goes on before anything else is done about its last attempt.
        self.start_ready();
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        let outcome = match &end {
            End::Success(_) => "success",
            End::Failure(_) => "failure",
            End::Aborted => "aborted",
        };
        metrics::counter!("flotilla_mr_attempts_total", "outcome" => outcome).increment(1);
        match (end, attempt.stage) {
            (End::Success(success), _) if success.file == PART_FILE => self.sync(id, success),
            (End::Success(success), _) => self.report(id, Ending::Success(success)),
            (End::Failure(reason), _) => {
                tracing::warn!(attempt = %name(&id), ?reason, "an attempt failed");
                self.report(id, Ending::Failure(reason));
            }
            (End::Aborted, Stage::GivenUp) => self.report(id, Ending::Abandoned),
            (End::Aborted, Stage::Ready | Stage::Running | Stage::Reporting) => self.forget(&id),
        }
    }

    /// Makes a part durable and reports it then. The slot has gone on: parts that end at about the
    /// same time share a commit of the file system.
    fn sync(&mut self, id: AttemptId, success: Success) {
        let Some(attempt) = self.attempts.get_mut(&id) else { return };
        attempt.stage = Stage::Reporting;
        self.syncing += 1;
        let (root, dir) = (Arc::clone(&self.root), attempt.dir.clone());
        self.tasks.spawn_blocking(move || {
            let synced = ended::sync_part(&root, &dir);
            Event::Synced(id, synced.map_or_else(Ending::Failure, |()| Ending::Success(success)))
        });
    }

    fn report(&mut self, id: AttemptId, ending: Ending) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.stage = Stage::Reporting;
        }
        // No more than what one attempt leaves behind: other reports ask for theirs.
        let wants = self.wants();
        let one = |wanted: u32| if self.draining == Draining::No { wanted.min(1) } else { 0 };
        let wants = Wants { free_slots: one(wants.free_slots), ready: one(wants.ready) };
        self.asked.free_slots += wants.free_slots;
        self.asked.ready += wants.ready;
        let (lane, identity) = (self.work.clone(), Arc::clone(&self.identity));
        let registered = self.registered.subscribe();
        self.tasks.spawn(async move {
            let judged = calls::report(&lane, &identity, registered, &id, &ending, wants).await;
            Event::Judged(id, judged, wants)
        });
    }

    fn on_judged(
        &mut self,
        id: &AttemptId,
        judged: Option<(Verdict, Vec<Assignment>)>,
        asked: Wants,
    ) {
        self.asked.free_slots -= asked.free_slots;
        self.asked.ready -= asked.ready;
        let (verdict, work) = judged.map_or((None, Vec::new()), |(is, work)| (Some(is), work));
        tracing::debug!(attempt = %name(id), ?verdict, "judged");
        match verdict {
            // The directory is the coordinator's now. An unknown verdict may mean that.
            Some(Verdict::Accepted | Verdict::AlreadyAccepted | Verdict::Unspecified) => {
                self.attempts.remove(id);
            }
            Some(Verdict::LostRace | Verdict::Stale | Verdict::JobGone | Verdict::Noted) | None => {
                self.forget(id);
            }
        }
        self.take_in(work);
    }

    /// Drops an attempt and its directory.
    fn forget(&mut self, id: &AttemptId) {
        let Some(attempt) = self.attempts.remove(id) else { return };
        let root = Arc::clone(&self.root);
        self.tasks.spawn_blocking(move || {
            if let Err(error) = root.remove_attempt_dir(&attempt.dir) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "an attempt's directory stays"
                );
            }
            Event::Removed
        });
    }

    // The end.

    /// Somebody wants this worker to stop: the process is told to, or the coordinator says so.
    fn drain(&mut self) {
        if self.draining != Draining::No {
            return;
        }
        tracing::info!(attempts = self.attempts.len(), "draining");
        self.readiness.not_ready("draining");
        self.draining = Draining::Grace(Instant::now() + self.drain_grace);
        for (_, poll, _) in self.polling.drain(..) {
            poll.abort();
        }
        // What has not begun is given back at once.
        for assignment in std::mem::take(&mut self.ready) {
            if let Some(id) = assignment.attempt {
                self.report(id, Ending::Abandoned);
            }
        }
    }

    fn deadline(&self) -> Instant {
        match self.draining {
            Draining::No | Draining::Over => Instant::now(),
            Draining::Grace(deadline) | Draining::Last(deadline) => deadline,
        }
    }

    /// A deadline of draining has come.
    fn hurry(&mut self, deadline: Instant) {
        match self.draining {
            Draining::No | Draining::Over => {}
            Draining::Grace(_) => {
                self.draining = Draining::Last(deadline + LAST_REPORTS);
                for attempt in self.attempts.values_mut() {
                    if attempt.stage == Stage::Running {
                        attempt.stage = Stage::GivenUp;
                        attempt.abort.cancel();
                    }
                }
            }
            Draining::Last(_) => {
                tracing::warn!(attempts = self.attempts.len(), "leaving without verdicts");
                self.draining = Draining::Over;
            }
        }
    }

    /// Whether all that may be waited for has happened: no attempt is open, no directory is being
    /// removed.
    fn drained(&self) -> bool {
        match self.draining {
            Draining::No => false,
            Draining::Over => true,
            Draining::Grace(_) | Draining::Last(_) => {
                let calls = [self.registering, self.beating];
                let calls = calls.into_iter().filter(|&waits| waits).count();
                self.attempts.is_empty() && self.tasks.len() <= calls
            }
        }
    }
}

fn heartbeats(period: Duration) -> Interval {
    let mut heartbeats = interval(period);
    heartbeats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeats
}

/// An attempt's name for people.
fn name(id: &AttemptId) -> String {
    let AttemptId { job, task, epoch, sequence, .. } = id;
    format!("{job} {} {task} {epoch}-{sequence}", id.kind().as_str_name())
}
