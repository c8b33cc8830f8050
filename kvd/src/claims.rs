//! Callers that wait for a lock: each is answered as soon as this member has applied what gives the
//! lock to its lease, or what ends its wait.
//!
//! Decides nothing about locks: the log does. One task looks after all of them, and looks once at
//! each lock when something was applied, not once for each caller.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use proto::raft::{Reason, Refusal};
use raftd::{
    Handle, Refused,
    edge::{self, maybe},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};

use crate::{
    KvMachine,
    command::LeaseId,
    outcome::{Answer, Claim, Header, Query},
};

/// How many callers may wait on one member.
const WAITING_MAX: usize = 64 * 1024;

/// How long applied entries gather between two looks.
const GATHER: Duration = Duration::from_millis(1);

/// How often callers are looked at whose lock has not changed hands: their waits may be over.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

type Told = Result<(Header, Claim), Refusal>;

/// Takes callers. Clones share everything; the task behind them ends with the last one.
#[derive(Clone, Debug)]
pub(crate) struct Claims {
    queue: mpsc::Sender<(Bytes, Waiting)>,
}

#[derive(Debug)]
struct Waiting {
    lease: LeaseId,
    answer: oneshot::Sender<Told>,
}

/// Who waits for one lock, and who held it at the last look.
#[derive(Debug, Default)]
struct Lock {
    holder: Option<LeaseId>,
    waiting: Vec<Waiting>,
}

impl Claims {
    /// Starts the task; must be called on a runtime.
    pub(crate) fn new(handle: Handle<KvMachine>) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(look_after(waiting, handle));
        Self { queue }
    }

    /// Waits until the lease has the lock, or waits for it no more.
    pub(crate) async fn wait(&self, name: Bytes, lease: LeaseId, deadline: Instant) -> Told {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send((name, Waiting { lease, answer })).is_err() {
            let message = format!("lock_callers_max, which is {WAITING_MAX}, are waiting here");
            // The request is in the queue by now.
            return Err(maybe(Reason::Limit, message));
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => Err(maybe(Reason::Shutdown, "the member is stopping")),
            Err(_) => Err(maybe(
                Reason::Deadline,
                "the lock was not had in time; the request may be waiting yet",
            )),
        }
    }
}

/// Everybody who waits, by lock.
struct Callers {
    handle: Handle<KvMachine>,
    locks: BTreeMap<Bytes, Lock>,
}

async fn look_after(mut queue: mpsc::Receiver<(Bytes, Waiting)>, handle: Handle<KvMachine>) {
    let mut applied = handle.watch_applied();
    let mut clock = interval(LOOK_INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut callers = Callers { handle, locks: BTreeMap::new() };
    let mut cut_off = callers.cut_off();
    loop {
        let waits = !callers.locks.is_empty();
        tokio::select! {
            biased;
            came = queue.recv() => match came {
                Some((name, waiting)) => callers.take(name, waiting).await,
                None => return,
            },
            refusal = &mut cut_off, if waits => {
                callers.turn_away(&refusal);
                cut_off = callers.cut_off();
            }
            _ = clock.tick(), if waits => callers.look(true).await,
            changed = applied.changed(), if waits => {
                if changed.is_err() {
                    return;
                }
                sleep(GATHER).await;
                applied.mark_unchanged();
                callers.look(false).await;
            }
        }
    }
}

impl Callers {
    /// Ends when this member has known no leader for too long: the lock may be granted elsewhere.
    fn cut_off(&self) -> BoxFuture<'static, Refusal> {
        let mut status = self.handle.watch_status();
        Box::pin(async move { edge::cut_off(&mut status).await })
    }

    /// Somebody has come.
    async fn take(&mut self, name: Bytes, waiting: Waiting) {
        let callers: usize = self.locks.values().map(|lock| lock.waiting.len()).sum();
        if callers >= WAITING_MAX {
            let message = format!("lock_callers_max, which is {WAITING_MAX}, are waiting here");
            // Who asked may have gone.
            drop(waiting.answer.send(Err(maybe(Reason::Limit, message))));
            return;
        }
        let lock = self.locks.entry(name.clone()).or_default();
        lock.waiting.push(waiting);
        // Looked at although nobody else got it meanwhile.
        lock.holder = None;
        self.look_at(&name, false).await;
    }

    /// Nobody can be answered here: their requests go on waiting elsewhere.
    fn turn_away(&mut self, refusal: &Refusal) {
        for waiting in std::mem::take(&mut self.locks).into_values().flat_map(|lock| lock.waiting) {
            let refusal = maybe(refusal.reason(), refusal.message.clone());
            // Who asked may have gone.
            drop(waiting.answer.send(Err(refusal)));
        }
    }

    /// Looks at each lock; at all who wait for it, or only if it has changed hands.
    async fn look(&mut self, all: bool) {
        let names: Vec<Bytes> = self.locks.keys().cloned().collect();
        for name in names {
            self.look_at(&name, all).await;
        }
    }

    async fn look_at(&mut self, name: &Bytes, all: bool) {
        let Some(lock) = self.locks.get_mut(name) else { return };
        lock.waiting.retain(|waiting| !waiting.answer.is_closed());
        match self.handle.query_stale(Query::Lock(name.clone())).await {
            Ok(Answer::Lock(_, state)) => {
                let holder = state.holder.map(|holder| holder.lease);
                if all || holder.is_none() || holder != lock.holder {
                    lock.holder = holder;
                    lock.answer(&self.handle, name).await;
                }
            }
            Ok(Answer::Refused(_)) => lock.answer(&self.handle, name).await,
            // A member that has too much to do is asked again.
            Ok(_) | Err(_) => {}
        }
        if lock.waiting.is_empty() {
            self.locks.remove(name);
        }
    }
}

impl Lock {
    /// Answers those whose wait is over.
    async fn answer(&mut self, handle: &Handle<KvMachine>, name: &Bytes) {
        let mut waiting = Vec::with_capacity(self.waiting.len());
        for one in self.waiting.drain(..) {
            let query = Query::Claim { name: name.clone(), lease: one.lease };
            match handle.query_stale(query).await {
                Ok(Answer::Claim(_, Claim::Waiting)) | Err(Refused::Overloaded { .. }) => {
                    waiting.push(one);
                }
                // Who asked may have gone, here and below.
                Ok(Answer::Claim(header, claim)) => drop(one.answer.send(Ok((header, claim)))),
                // Whoever asks again under its name goes on waiting where the shard is now.
                Ok(Answer::Refused(refusal)) => {
                    let refusal = maybe(Reason::WrongGroup, refusal.to_string());
                    drop(one.answer.send(Err(refusal)));
                }
                Ok(_) => {}
                Err(refusal) => {
                    let refusal = maybe(Reason::Shutdown, refusal.to_string());
                    drop(one.answer.send(Err(refusal)));
                }
            }
        }
        self.waiting = waiting;
    }
}
