//! What a request is about, and how it travels: what whoever sends one on has to know of it.
//!
//! Decides in which shard a request is executed, as far as it names one, whether it may be sent again
//! once nobody knows what became of it, and which method it is.

use std::{sync::Arc, time::Duration};

use proto::{
    kv::{
        KeyRange, TxnRequest, forward_reply, key_range, kv_client::KvClient,
        leases_client::LeasesClient, operation, request,
    },
    lock::{self, acquire_request::Lease, lock_client::LockClient},
    metadata::DIRECT,
    shard_of, shard_of_lease, shard_of_prefix,
};
use tokio::time::timeout;
use tonic::{Request, Response, Status, metadata::AsciiMetadataValue, transport::Channel};

use crate::{MESSAGE_BYTES_MAX, Transport, calls::request, members::Member, pipeline::Answer};

/// What a request is about, as far as that says in which shard it is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A key, or a lock's name.
    Key(&'a [u8]),
    /// All keys with this prefix, which holds a whole tag.
    Prefix(&'a [u8]),
    /// A shard, by its number.
    Shard(u32),
    /// Keys that may be in any shard, or nothing.
    Any,
}

impl Place<'_> {
    /// The shard, if there is one alone.
    pub fn shard(self, shards: u32) -> Option<u32> {
        match self {
            Self::Key(key) => Some(shard_of(key, shards)),
            Self::Prefix(prefix) => shard_of_prefix(prefix, shards),
            Self::Shard(shard) => Some(shard),
            Self::Any => (shards == 1).then_some(0),
        }
    }

    /// Whether it is one shard, however many there are.
    pub fn is_one(self) -> bool {
        self.shard(2).is_some()
    }

    /// Where the keys of a range are.
    pub fn of_range(range: Option<&KeyRange>) -> Place<'_> {
        match range.and_then(|range| range.kind.as_ref()) {
            Some(key_range::Kind::Key(key)) => Place::Key(key),
            Some(key_range::Kind::Prefix(prefix)) => Place::Prefix(prefix),
            Some(key_range::Kind::Interval(_)) | None => Place::Any,
        }
    }
}

/// How an attempt is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// How long it may take.
    pub(crate) limit: Duration,
    /// The member shall not pass the request on to another group.
    pub(crate) direct: bool,
}

/// A request that can be sent to whichever group it concerns.
pub(crate) trait Routed: Clone + Send + Sync {
    /// What it is answered with.
    type Reply: Send;

    /// What it is about.
    fn place(&self) -> Place<'_>;

    /// Whether it may be sent again after an attempt of unknown fate: it changes nothing, or the
    /// same however often, or has a name under which to ask again.
    fn may_repeat(&self) -> bool;

    /// How long it may wait for something before it is answered.
    fn wait(&self) -> Duration;

    /// Makes one attempt with a member.
    fn send(
        self,
        transport: Transport,
        member: Arc<Member>,
        attempt: Attempt,
    ) -> impl Future<Output = Result<Response<Self::Reply>, Status>> + Send;
}

impl Routed for request::Kind {
    type Reply = forward_reply::Kind;

    fn place(&self) -> Place<'_> {
        place(self)
    }

    fn may_repeat(&self) -> bool {
        may_repeat(self)
    }

    fn wait(&self) -> Duration {
        Duration::ZERO
    }

    async fn send(self, transport: Transport, member: Arc<Member>, attempt: Attempt) -> Answer {
        match transport {
            Transport::Pipelined => member.pipeline().ask(self, attempt).await,
            Transport::Unary => {
                let sent = timeout(attempt.limit, unary(member.channel(), self, attempt));
                sent.await.unwrap_or_else(|_| Err(member.no_answer()))
            }
        }
    }
}

impl Routed for lock::forward_request::Kind {
    type Reply = lock::forward_reply::Kind;

    fn place(&self) -> Place<'_> {
        place_of_lock(self)
    }

    fn may_repeat(&self) -> bool {
        may_repeat_lock(self)
    }

    fn wait(&self) -> Duration {
        match self {
            Self::Acquire(acquire) => Duration::from_millis(acquire.wait_ms),
            Self::KeepAlive(_) | Self::Release(_) | Self::Inspect(_) => Duration::ZERO,
        }
    }

    async fn send(
        self,
        _: Transport,
        member: Arc<Member>,
        attempt: Attempt,
    ) -> Result<Response<Self::Reply>, Status> {
        let sent = timeout(attempt.limit, unary_lock(member.channel(), self, attempt));
        sent.await.unwrap_or_else(|_| Err(member.no_answer()))
    }
}

/// What a request to the store is about.
pub fn place(kind: &request::Kind) -> Place<'_> {
    use request::Kind;
    match kind {
        Kind::Get(get) => Place::Key(&get.key),
        Kind::Put(put) => Place::Key(&put.key),
        Kind::Append(append) => Place::Key(&append.key),
        Kind::Delete(delete) => Place::Key(&delete.key),
        Kind::Time(time) => Place::Key(&time.key),
        Kind::Scan(scan) => match scan.shards.first() {
            Some(shard) => Place::Shard(*shard),
            None => Place::of_range(scan.range.as_ref()),
        },
        Kind::Txn(txn) => place_of_txn(txn),
        Kind::Compact(compact) => Place::Shard(compact.shard),
        Kind::Grant(grant) => Place::Key(&grant.key),
        Kind::KeepAlive(keep) => Place::Shard(shard_of_lease(keep.lease_id)),
        Kind::Revoke(revoke) => Place::Shard(shard_of_lease(revoke.lease_id)),
        Kind::TimeToLive(asked) => Place::Shard(shard_of_lease(asked.lease_id)),
    }
}

/// What a request about a lock is about.
pub fn place_of_lock(kind: &lock::forward_request::Kind) -> Place<'_> {
    use lock::forward_request::Kind;
    match kind {
        Kind::Acquire(acquire) => Place::Key(&acquire.name),
        Kind::KeepAlive(keep) => Place::Shard(shard_of_lease(keep.lease_id)),
        Kind::Release(release) => Place::Key(&release.name),
        Kind::Inspect(inspect) => Place::Key(&inspect.name),
    }
}

/// The first key that a transaction names: the others are in the same shard, or it is refused there.
fn place_of_txn(txn: &TxnRequest) -> Place<'_> {
    let compared = txn.compares.iter().map(|compare| &compare.key);
    let changed = txn.then.iter().chain(&txn.otherwise).filter_map(|operation| {
        Some(match operation.kind.as_ref()? {
            operation::Kind::Get(get) => &get.key,
            operation::Kind::Put(put) => &put.key,
            operation::Kind::Append(append) => &append.key,
            operation::Kind::Delete(delete) => &delete.key,
        })
    });
    compared.chain(changed).next().map_or(Place::Any, |key| Place::Key(key))
}

/// Whether losing the answer to this request does not lose what its outcome was: it changes nothing,
/// or always the same, or has a name under which to ask again.
pub fn may_repeat(kind: &request::Kind) -> bool {
    use request::Kind;
    match kind {
        Kind::Put(put) => put.id.is_some(),
        Kind::Append(append) => append.id.is_some(),
        Kind::Delete(delete) => delete.id.is_some(),
        Kind::Txn(txn) => txn.id.is_some() || reads_only(txn),
        Kind::Grant(grant) => grant.id.is_some(),
        Kind::Get(_)
        | Kind::Scan(_)
        | Kind::Time(_)
        | Kind::Compact(_)
        | Kind::KeepAlive(_)
        | Kind::Revoke(_)
        | Kind::TimeToLive(_) => true,
    }
}

fn reads_only(txn: &TxnRequest) -> bool {
    let mut operations = txn.then.iter().chain(&txn.otherwise);
    let reads = operations.all(|it| matches!(it.kind, Some(operation::Kind::Get(_)) | None));
    txn.guard.is_none() && reads
}

/// The same of a request about a lock.
pub fn may_repeat_lock(kind: &lock::forward_request::Kind) -> bool {
    use lock::forward_request::Kind;
    match kind {
        // Under a lease that lives already it is the same lock, however often it is asked for.
        Kind::Acquire(acquire) => {
            acquire.id.is_some() || !matches!(acquire.lease, Some(Lease::TtlMs(_)))
        }
        Kind::KeepAlive(_) | Kind::Release(_) | Kind::Inspect(_) => true,
    }
}

async fn unary(channel: Channel, kind: request::Kind, attempt: Attempt) -> Answer {
    use forward_reply::Kind as Reply;
    use request::Kind;
    match kind {
        Kind::Get(it) => answer(kv(channel).get(call(it, attempt)).await, Reply::Get),
        Kind::Put(it) => answer(kv(channel).put(call(it, attempt)).await, Reply::Put),
        Kind::Append(it) => answer(kv(channel).append(call(it, attempt)).await, Reply::Append),
        Kind::Delete(it) => answer(kv(channel).delete(call(it, attempt)).await, Reply::Delete),
        Kind::Time(it) => answer(kv(channel).time(call(it, attempt)).await, Reply::Time),
        Kind::Scan(it) => answer(kv(channel).scan(call(it, attempt)).await, Reply::Scan),
        Kind::Txn(it) => answer(kv(channel).txn(call(it, attempt)).await, Reply::Txn),
        Kind::Compact(it) => answer(kv(channel).compact(call(it, attempt)).await, Reply::Compact),
        Kind::Grant(it) => answer(leases(channel).grant(call(it, attempt)).await, Reply::Grant),
        Kind::KeepAlive(it) => {
            answer(leases(channel).keep_alive(call(it, attempt)).await, Reply::KeepAlive)
        }
        Kind::Revoke(it) => answer(leases(channel).revoke(call(it, attempt)).await, Reply::Revoke),
        Kind::TimeToLive(it) => {
            answer(leases(channel).time_to_live(call(it, attempt)).await, Reply::TimeToLive)
        }
    }
}

async fn unary_lock(
    channel: Channel,
    kind: lock::forward_request::Kind,
    attempt: Attempt,
) -> Result<Response<lock::forward_reply::Kind>, Status> {
    use lock::{forward_reply::Kind as Reply, forward_request::Kind};
    let mut stub = LockClient::new(channel);
    match kind {
        Kind::Acquire(it) => answer(stub.acquire(call(it, attempt)).await, Reply::Acquire),
        Kind::KeepAlive(it) => answer(stub.keep_alive(call(it, attempt)).await, Reply::KeepAlive),
        Kind::Release(it) => answer(stub.release(call(it, attempt)).await, Reply::Release),
        Kind::Inspect(it) => answer(stub.inspect(call(it, attempt)).await, Reply::Inspect),
    }
}

/// The message of a call.
pub(crate) fn call<T>(message: T, Attempt { limit, direct }: Attempt) -> Request<T> {
    let mut request = request(message, limit);
    if direct {
        request.metadata_mut().insert(DIRECT, AsciiMetadataValue::from_static("true"));
    }
    request
}

fn answer<R, K>(
    reply: Result<Response<R>, Status>,
    wrap: impl FnOnce(R) -> K,
) -> Result<Response<K>, Status> {
    reply.map(|reply| reply.map(wrap))
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn leases(channel: Channel) -> LeasesClient<Channel> {
    LeasesClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
