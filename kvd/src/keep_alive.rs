//! KeepAlives wait for each other for a tick, and go to the log together: one command a shard,
//! however many leases it has.
//!
//! Decides nothing about leases. A KeepAlive that is lost is asked again by whoever needs it.

use std::{collections::BTreeMap, time::Duration};

use proto::{
    kv::KeepAliveReply,
    raft::{Reason, Refusal},
};
use raftd::{
    Handle,
    edge::{maybe, never},
    forward::Stamps,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    KvMachine,
    command::{Command, LeaseId, Operation},
    limits::KEEP_ALIVE_LEASES_MAX,
    outcome::Outcome,
    wire::{self, invalid},
};

/// How long KeepAlives wait for others.
const GATHER: Duration = Duration::from_millis(20);

/// How many may wait; beyond that they are refused.
const WAITING_MAX: usize = 16 * 1024;

type Answer = Result<KeepAliveReply, Refusal>;

/// Takes KeepAlives. Clones share everything; the task behind them ends with the last one.
#[derive(Clone, Debug)]
pub(crate) struct KeepAlives {
    queue: mpsc::Sender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    lease: LeaseId,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

impl KeepAlives {
    /// Starts the task that gathers them; must be called on a runtime.
    pub(crate) fn new(handle: Handle<KvMachine>, stamps: Stamps, shards: u32) -> Self {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(gather(waiting, Proposer { handle, stamps, shards }));
        Self { queue }
    }

    /// Lets a lease begin anew.
    pub(crate) async fn keep_alive(&self, lease: LeaseId, deadline: Instant) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.queue.try_send(Waiting { lease, deadline, answer }).is_err() {
            let message = format!("keep_alives_waiting_max, which is {WAITING_MAX}, are waiting");
            return Err(never(Reason::Limit, message));
        }
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(maybe(Reason::Shutdown, "the member is stopping")),
            Err(_) => Err(maybe(Reason::Deadline, "the KeepAlive was not confirmed in time")),
        }
    }
}

/// Proposes what has gathered, while more gathers.
async fn gather(mut waiting: mpsc::Receiver<Waiting>, proposer: Proposer) {
    while let Some(first) = waiting.recv().await {
        sleep(GATHER).await;
        let mut shards: BTreeMap<u32, Vec<Waiting>> = BTreeMap::new();
        let mut next = Some(first);
        while let Some(one) = next {
            shards.entry(one.lease.shard()).or_default().push(one);
            next = waiting.try_recv().ok();
        }
        for mut shard in shards.into_values() {
            while !shard.is_empty() {
                let rest = shard.split_off(shard.len().min(KEEP_ALIVE_LEASES_MAX));
                tokio::spawn(proposer.clone().propose(std::mem::replace(&mut shard, rest)));
            }
        }
    }
}

#[derive(Clone)]
struct Proposer {
    handle: Handle<KvMachine>,
    stamps: Stamps,
    shards: u32,
}

impl Proposer {
    /// Proposes the KeepAlives of one shard, and tells each what came of it.
    async fn propose(self, waiting: Vec<Waiting>) {
        let leases = waiting.iter().map(|one| one.lease).collect();
        let operation = Operation::KeepAlive { leases };
        let command = Command::new(self.shards, operation).encode();
        let deadline = waiting.iter().map(|one| one.deadline).max();
        let deadline = deadline.unwrap_or_else(Instant::now);
        let proposed = self.stamps.propose(&self.handle, command, deadline, "the KeepAlive").await;
        let told = proposed.and_then(|response| {
            let answered = response.result.map_err(|refusal| wire::refused(&refusal))?;
            match answered.outcome {
                Outcome::KeptAlive(kept) => Ok((response.header, BTreeMap::from_iter(kept))),
                _ => Err(invalid("the answer is to another command".to_owned())),
            }
        });
        for Waiting { lease, answer, .. } in waiting {
            let reply = match &told {
                Ok((header, kept)) => {
                    let ttl_ms = kept.get(&lease).copied().flatten();
                    Ok(wire::reply::kept_alive(*header, lease, ttl_ms))
                }
                Err(refusal) => Err(refusal.clone()),
            };
            // Who asked may have gone.
            let _ = answer.send(reply);
        }
    }
}
