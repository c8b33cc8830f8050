//! Locks with fencing tokens, and the election of a leader by one.

use std::time::Duration;

use bytes::Bytes;
use proto::{
    kv::RequestId,
    lock::{
        AcquireReply, AcquireRequest, InspectRequest, ReleaseRequest, acquire_reply,
        acquire_request::Lease, forward_reply, forward_request,
    },
};
use tokio::time::Instant;

use crate::{
    Error, KvClient, Outcome,
    calls::idempotent,
    kv::{Guard, check_key, garbled, no_such_lease},
    leases::{KeptAlive, millis},
    router::ATTEMPT_MAX,
};

/// The longest wait under one identity, which keeps its place in the queue: below the servers' five
/// minutes, for which requests live. A longer wait begins anew.
const WAIT_MAX: Duration = Duration::from_secs(200);

/// A client of the lock service of a key/value cluster.
#[derive(Clone, Debug)]
pub struct LockClient {
    kv: KvClient,
}

/// How a lock is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOptions {
    /// How long the lock stays with a holder that is gone.
    pub ttl: Duration,
    /// How long to wait for it; zero: not at all.
    pub wait: Duration,
    /// For people who look at the lock: who holds it.
    pub owner: Bytes,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(10), wait: Duration::from_secs(60), owner: Bytes::new() }
    }
}

/// A lock that is held, and kept. It is given back by [`Held::release`]; if it is merely dropped,
/// it is free when its time is over.
#[derive(Debug)]
pub struct Held {
    locks: LockClient,
    guard: Guard,
    kept: KeptAlive,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The fencing token.
    pub token: u64,
    /// The lease.
    pub lease_id: u64,
    /// How long the lease lives on at least.
    pub remaining: Duration,
    /// What it said of itself.
    pub owner: Bytes,
}

/// How a lock stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState {
    /// Who holds it.
    pub holder: Option<Holder>,
    /// Who waits, in order, as far as they are told: what they said of themselves.
    pub waiters: Vec<Bytes>,
    /// How many wait.
    pub waiting: u32,
}

impl LockClient {
    /// A client that shares connections and identity with `kv`.
    pub fn new(kv: KvClient) -> Self {
        Self { kv }
    }

    /// Takes a lock; none when somebody else holds it for longer than the wait.
    ///
    /// # Errors
    /// [`Error`]; what may have been taken then is free when its time is over.
    pub async fn acquire(
        &self,
        name: impl Into<Bytes>,
        options: &LockOptions,
    ) -> Result<Option<Held>, Error> {
        let name = name.into();
        check_key(&name)?;
        let until = Instant::now() + options.wait;
        loop {
            let began = Instant::now();
            let left = until.saturating_duration_since(began);
            let reply = self.ask(&name, options, left.min(WAIT_MAX)).await.into_result()?;
            match reply.outcome {
                Some(acquire_reply::Outcome::Held(held)) => {
                    let ttl = Duration::from_millis(held.ttl_ms);
                    if let Some(kept) = self.keep(held.lease_id, ttl, began).await? {
                        let guard = Guard { lock: name, token: held.token };
                        return Ok(Some(Held { locks: self.clone(), guard, kept }));
                    }
                }
                Some(acquire_reply::Outcome::Busy(_)) => {}
                Some(acquire_reply::Outcome::NoSuchLease(lease)) => {
                    return Err(no_such_lease(lease).into());
                }
                None => return Err(garbled("an Acquire without an outcome")),
            }
            // The lock was had and lost meanwhile, or the wait was longer than one request.
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// Begins to keep alive what was granted, if it still lives.
    async fn keep(
        &self,
        lease_id: u64,
        ttl: Duration,
        began: Instant,
    ) -> Result<Option<KeptAlive>, Error> {
        if began.elapsed() < ttl / 4 {
            return Ok(Some(KeptAlive::new(self.kv.clone(), lease_id, ttl, began)));
        }
        let since = Instant::now();
        let kept = self.kv.keep_alive(lease_id).await?;
        Ok(kept.map(|ttl| KeptAlive::new(self.kv.clone(), lease_id, ttl, since)))
    }

    /// Who holds a lock, and who waits for it.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn inspect(&self, name: impl Into<Bytes>) -> Result<LockState, Error> {
        let name = name.into();
        check_key(&name)?;
        let inspect = forward_request::Kind::Inspect(InspectRequest { name });
        let pick = |kind| match kind {
            forward_reply::Kind::Inspect(reply) => Some(reply),
            _ => None,
        };
        let reply = idempotent(self.kv.call_lock(self.kv.patience(), inspect, pick).await)?;
        Ok(LockState {
            holder: reply.holder.map(|holder| Holder {
                token: holder.token,
                lease_id: holder.lease_id,
                remaining: Duration::from_millis(holder.remaining_ms),
                owner: holder.owner,
            }),
            waiters: reply.waiters.into_iter().map(|waiter| waiter.owner).collect(),
            waiting: reply.waiting,
        })
    }

    /// Gives a lock back that a lease holds, or a place in its queue. Whether it had either.
    ///
    /// # Errors
    /// As [`KvClient::get`]: nothing is lost by asking again.
    pub async fn release(&self, name: impl Into<Bytes>, lease_id: u64) -> Result<bool, Error> {
        let name = name.into();
        check_key(&name)?;
        let release = forward_request::Kind::Release(ReleaseRequest { name, lease_id });
        let pick = |kind| match kind {
            forward_reply::Kind::Release(reply) => Some(reply),
            _ => None,
        };
        Ok(idempotent(self.kv.call_lock(self.kv.patience(), release, pick).await)?.released)
    }

    async fn ask(
        &self,
        name: &Bytes,
        options: &LockOptions,
        wait: Duration,
    ) -> Outcome<AcquireReply> {
        let acquire = |id: RequestId| {
            forward_request::Kind::Acquire(AcquireRequest {
                name: name.clone(),
                lease: Some(Lease::TtlMs(millis(options.ttl))),
                wait_ms: millis(wait),
                owner: options.owner.clone(),
                id: Some(id),
            })
        };
        let pick = |kind| match kind {
            forward_reply::Kind::Acquire(reply) => Some(reply),
            _ => None,
        };
        // The server waits, too, and each attempt with it.
        let patience = self.kv.patience().waiting(wait, ATTEMPT_MAX);
        let header = |reply: &AcquireReply| reply.header;
        let send = |id: RequestId| self.kv.call_lock(patience, acquire(id), pick);
        self.kv.identified(name, patience, header, send).await
    }
}

impl Held {
    /// The fencing token: larger than that of any holder before.
    pub fn token(&self) -> u64 {
        self.guard.token
    }

    /// The lease under which it is held.
    pub fn lease_id(&self) -> u64 {
        self.kept.lease_id()
    }

    /// What makes a write happen only while this is held.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Whether it may be lost.
    pub fn is_lost(&self) -> bool {
        self.kept.is_lost()
    }

    /// Ends when it may be lost: stop then, whatever is under way.
    pub async fn lost(&self) {
        self.kept.lost().await;
    }

    /// Ends so much before it may be lost.
    pub async fn lost_within(&self, margin: Duration) {
        self.kept.lost_within(margin).await;
    }

    /// Gives it back. Whether it was held until now; false, too, when an attempt gave it back whose
    /// answer was lost.
    ///
    /// # Errors
    /// As [`LockClient::release`]; it is free when its time is over.
    pub async fn release(self) -> Result<bool, Error> {
        self.locks.release(self.guard.lock.clone(), self.kept.lease_id()).await
    }
}

/// The election of a leader among those that campaign under one name: a lock, and a key that says
/// who it is.
#[derive(Clone, Debug)]
pub struct Election {
    locks: LockClient,
    name: Bytes,
}

/// To lead.
#[derive(Debug)]
pub struct Leadership {
    held: Held,
}

impl Election {
    /// The election of this name.
    pub fn new(kv: KvClient, name: impl Into<Bytes>) -> Self {
        Self { locks: LockClient::new(kv), name: name.into() }
    }

    /// Waits until this candidate leads; none when the wait is over. `who` is what others are told.
    ///
    /// # Errors
    /// As [`LockClient::acquire`].
    pub async fn campaign(
        &self,
        who: impl Into<Bytes>,
        ttl: Duration,
        wait: Duration,
    ) -> Result<Option<Leadership>, Error> {
        let options = LockOptions { ttl, wait, owner: who.into() };
        let held = self.locks.acquire(self.name.clone(), &options).await?;
        Ok(held.map(|held| Leadership { held }))
    }

    /// Who leads.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn leader(&self) -> Result<Option<Holder>, Error> {
        Ok(self.locks.inspect(self.name.clone()).await?.holder)
    }
}

impl Leadership {
    /// Which leadership this is: larger than that of any leader before.
    pub fn token(&self) -> u64 {
        self.held.token()
    }

    /// What makes a write happen only while this candidate leads.
    pub fn guard(&self) -> &Guard {
        self.held.guard()
    }

    /// Ends when it may be over: stop then, whatever is under way.
    pub async fn lost(&self) {
        self.held.lost().await;
    }

    /// Gives it up. Whether it lasted until now.
    ///
    /// # Errors
    /// As [`LockClient::release`].
    pub async fn resign(self) -> Result<bool, Error> {
        self.held.release().await
    }
}
