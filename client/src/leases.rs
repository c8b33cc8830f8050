//! Leases: what is attached to one goes when nobody keeps it alive.

use std::time::Duration;

use bytes::Bytes;
use proto::kv::{
    GrantReply, GrantRequest, KeepAliveRequest, RevokeRequest, TimeToLiveRequest, forward_reply,
    keep_alive_reply, request, time_to_live_reply,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};

use crate::{
    Error, KvClient,
    calls::{Patience, idempotent},
    kv::{check_key, garbled},
};

/// So many times a lease is kept alive in the time that it would live without.
const KEEP_ALIVES_PER_TTL: u32 = 3;

/// How a lease stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// How long it lives on at least.
    pub remaining: Duration,
    /// How long it lives from a KeepAlive on.
    pub ttl: Duration,
    /// The keys that are attached to it, if they were asked for.
    pub keys: Vec<Bytes>,
    /// The locks that it holds or waits for, if keys were asked for.
    pub locks: Vec<Bytes>,
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its name; it contains its shard.
    pub lease_id: u64,
    /// How long it lives without being kept alive.
    pub ttl: Duration,
}

impl KvClient {
    /// Makes a lease in the shard of a key: what is attached to it must be in the same shard, which
    /// a common `{tag}` makes sure of.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been made; one that nobody knows of ends by itself.
    pub async fn grant(&self, key: impl Into<Bytes>, ttl: Duration) -> Result<Granted, Error> {
        let key = key.into();
        check_key(&key)?;
        let ttl_ms = millis(ttl);
        let build =
            |id| request::Kind::Grant(GrantRequest { key: key.clone(), ttl_ms, id: Some(id) });
        let pick = |kind| match kind {
            forward_reply::Kind::Grant(reply) => Some(reply),
            _ => None,
        };
        let granted = self.mutate(&key, build, pick, |reply: &GrantReply| reply.header);
        let reply = granted.await.into_result()?;
        Ok(Granted { lease_id: reply.lease_id, ttl: Duration::from_millis(reply.ttl_ms) })
    }

    /// Lets a lease begin anew; how long it lives from now on, or none: it has ended, or never was.
    ///
    /// # Errors
    /// As [`KvClient::get`]: nothing is lost by asking again.
    pub async fn keep_alive(&self, lease_id: u64) -> Result<Option<Duration>, Error> {
        self.keep_alive_within(lease_id, self.patience()).await
    }

    async fn keep_alive_within(
        &self,
        lease_id: u64,
        patience: Patience,
    ) -> Result<Option<Duration>, Error> {
        let keep = request::Kind::KeepAlive(KeepAliveRequest { lease_id });
        let pick = |kind| match kind {
            forward_reply::Kind::KeepAlive(reply) => Some(reply),
            _ => None,
        };
        let reply = idempotent(self.call(patience, keep, pick).await)?;
        match reply.outcome {
            Some(keep_alive_reply::Outcome::TtlMs(ms)) => Ok(Some(Duration::from_millis(ms))),
            Some(keep_alive_reply::Outcome::NoSuchLease(_)) => Ok(None),
            None => Err(garbled("a KeepAlive without an outcome")),
        }
    }

    /// Ends a lease: the keys that are attached to it are removed, and its locks released. Whether
    /// there was such a lease; false, too, when an attempt ended it whose answer was lost.
    ///
    /// # Errors
    /// As [`KvClient::get`]: nothing is lost by asking again.
    pub async fn revoke(&self, lease_id: u64) -> Result<bool, Error> {
        let revoke = request::Kind::Revoke(RevokeRequest { lease_id });
        let pick = |kind| match kind {
            forward_reply::Kind::Revoke(reply) => Some(reply),
            _ => None,
        };
        Ok(idempotent(self.call(self.patience(), revoke, pick).await)?.ended)
    }

    /// How a lease stands; none: it has ended, or never was.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn time_to_live(
        &self,
        lease_id: u64,
        keys: bool,
    ) -> Result<Option<LeaseState>, Error> {
        let asked = request::Kind::TimeToLive(TimeToLiveRequest { lease_id, keys });
        let pick = |kind| match kind {
            forward_reply::Kind::TimeToLive(reply) => Some(reply),
            _ => None,
        };
        let reply = idempotent(self.call(self.patience(), asked, pick).await)?;
        match reply.outcome {
            Some(time_to_live_reply::Outcome::State(state)) => Ok(Some(LeaseState {
                remaining: Duration::from_millis(state.remaining_ms),
                ttl: Duration::from_millis(state.ttl_ms),
                keys: state.keys,
                locks: state.locks,
            })),
            Some(time_to_live_reply::Outcome::NoSuchLease(_)) => Ok(None),
            None => Err(garbled("a TimeToLive without an outcome")),
        }
    }
}

/// Keeps a lease alive until it is dropped, and tells when it may be lost. By then nothing that
/// depends on it must go on: what the client knows is older than what the servers know, so it gives
/// up first. Time is that of the process: a machine that is suspended has to look after it goes on,
/// and what it writes late is refused by a guard.
#[derive(Debug)]
pub struct KeptAlive {
    lease_id: u64,
    known: watch::Receiver<Known>,
    task: JoinHandle<()>,
}

/// What is known of a lease.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// It lives until then at least.
    ends: Instant,
    /// It has ended, or nobody could be asked in time.
    is_lost: bool,
}

impl KeptAlive {
    /// Keeps a lease alive that was granted, or kept alive last, by a request that was sent at
    /// `since`. Must be called on a runtime.
    pub fn new(client: KvClient, lease_id: u64, ttl: Duration, since: Instant) -> Self {
        let (told, known) = watch::channel(Known { ends: since + ttl, is_lost: false });
        let task = tokio::spawn(async move {
            keep(&client, lease_id, ttl, since, &told).await;
            told.send_modify(|known| known.is_lost = true);
        });
        Self { lease_id, known, task }
    }

    /// Which lease it is.
    pub fn lease_id(&self) -> u64 {
        self.lease_id
    }

    /// Whether it may have ended.
    pub fn is_lost(&self) -> bool {
        let known = *self.known.borrow();
        known.is_lost || Instant::now() >= known.ends
    }

    /// Ends when it may have ended.
    pub async fn lost(&self) {
        self.lost_within(Duration::ZERO).await;
    }

    /// Ends so much before it may have ended.
    pub async fn lost_within(&self, margin: Duration) {
        let mut known = self.known.clone();
        loop {
            let now = *known.borrow_and_update();
            if now.is_lost {
                return;
            }
            let until = now.ends.checked_sub(margin).unwrap_or(now.ends);
            match timeout_at(until, known.changed()).await {
                Ok(Ok(())) => {}
                // The task is gone, or the time is over.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }
}

impl Drop for KeptAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps it alive until it has ended, or may have.
async fn keep(
    client: &KvClient,
    lease_id: u64,
    mut ttl: Duration,
    since: Instant,
    told: &watch::Sender<Known>,
) {
    // It lives for its time from when a KeepAlive was executed, which is not before it was sent.
    let (mut ends, mut next) = (since + ttl, since + ttl / KEEP_ALIVES_PER_TTL);
    loop {
        sleep_until(next.min(ends)).await;
        let sent = Instant::now();
        if sent >= ends {
            return;
        }
        // One member that says nothing must not cost the lease.
        let patience = client.patience().until(ends, ttl / (2 * KEEP_ALIVES_PER_TTL));
        match client.keep_alive_within(lease_id, patience).await {
            Ok(Some(longer)) => {
                ttl = longer;
                (ends, next) = (sent + ttl, sent + ttl / KEEP_ALIVES_PER_TTL);
                told.send_modify(|known| known.ends = ends);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(lease_id, %error, "a lease was not kept alive");
                next = Instant::now() + ttl / (2 * KEEP_ALIVES_PER_TTL);
            }
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
