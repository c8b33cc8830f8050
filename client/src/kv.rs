//! The client of the key/value store.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use proto::{
    kv::{
        self, AppendReply, AppendRequest, DeleteReply, DeleteRequest, GetReply, GetRequest,
        GuardRefused, NoSuchLease, PutReply, PutRequest, ReplyHeader, RequestId, TimeReply,
        TimeRequest, append_reply, forward_reply, kv_client::KvClient as KvStub, put_reply,
        put_request, request,
    },
    lock,
};
use tonic::transport::Channel;

use crate::{
    Error, InvalidEndpoint, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, Options, Outcome, Rejected,
    ShardClient, Unknown, VALUE_BYTES_MAX,
    calls::{Ended, Patience, idempotent},
    router::Router,
    sessions::{Identity, NotOpened, Sessions},
};

/// A client of one key/value cluster. Clones share connections and identity; a clone may serve
/// thousands of requests at once.
///
/// Mutations are executed exactly once whatever is lost on the way, for as long as the deadline
/// lets the client try; when it passes without an answer, the outcome is [`Unknown`].
#[derive(Clone, Debug)]
pub struct KvClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    router: Arc<Router>,
    options: Options,
    /// Known as soon as a member told how many shards there are.
    sessions: OnceLock<Sessions>,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The value.
    pub value: Bytes,
    /// How often the key was written since it was last absent.
    pub version: u64,
    /// The shard's revision at which the key came into being.
    pub create_revision: u64,
    /// The shard's revision of the last write.
    pub mod_revision: u64,
    /// The lease that it goes with.
    pub lease_id: Option<u64>,
}

/// Lets a mutation happen only while a lock is held, by whoever was given this token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The lock's name. Lock and keys are in one shard, which a common `{tag}` makes sure of.
    pub lock: Bytes,
    /// The fencing token.
    pub token: u64,
}

/// What is wanted of a Put beside its key and its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Only while this holds.
    pub condition: Option<Condition>,
    /// Let the pair go with this lease, and with no other.
    pub lease_id: Option<u64>,
    /// Only while a lock is held.
    pub guard: Option<Guard>,
}

/// What a mutation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The key's version now.
    pub version: u64,
    /// The shard's revision of this mutation.
    pub mod_revision: u64,
}

/// When a Put is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// While the key does not exist.
    Absent,
    /// While the key has this version.
    Version(u64),
    /// While the key was last written at this revision.
    ModRevision(u64),
}

/// The answer to a conditional Put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutIf {
    /// The condition held, and the value is written.
    Written(Written),
    /// It did not; this is what is there.
    Mismatch(Option<Pair>),
}

/// The answer to an Append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where the key stands now.
    pub written: Written,
    /// The value from before, empty for an absent key; none when it was executed at an earlier
    /// attempt and the server has dropped the value since, to save space.
    pub old_value: Option<Bytes>,
}

/// The answer to a Delete of a key that was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The shard's revision of the removal.
    pub mod_revision: u64,
    /// What was there; its value is empty when the server has dropped it (see [`Appended`]).
    pub pair: Pair,
}

impl KvClient {
    /// A client of the cluster whose members are, or are among, `endpoints` (`host:port` of their
    /// client ports). Connections are made when they are needed, so nothing has to run yet; must
    /// be called on a runtime.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    #[expect(clippy::needless_pass_by_value, reason = "callers have just made the list")]
    pub fn connect(endpoints: Vec<String>, options: Options) -> Result<Self, InvalidEndpoint> {
        Ok(Self::with_router(Router::one(&endpoints, options.clone())?, options))
    }

    /// A client of the cluster whose shards are shared by groups as the shard controller says whose
    /// members are, or are among, `controllers` (`host:port` of their client ports). Each request
    /// goes to the group that has its shard, and where shards move nobody notices. Whoever knows no
    /// controller uses [`KvClient::connect`] with the members of any of the groups, which pass on
    /// what is not theirs. Must be called on a runtime.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    pub fn connect_sharded(
        controllers: Vec<String>,
        options: Options,
    ) -> Result<Self, InvalidEndpoint> {
        let told = ShardClient::connect(controllers, options.clone())?.follow();
        Ok(Self::with_router(Router::relayed(told, options.clone()), options))
    }

    fn with_router(router: Router, options: Options) -> Self {
        let router = Arc::new(router);
        Self { inner: Arc::new(Inner { router, options, sessions: OnceLock::new() }) }
    }

    /// Reads a key. Linearizable.
    ///
    /// # Errors
    /// [`Rejected`], since a read changes nothing.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Pair>, Error> {
        Ok(self.get_raw(key.into()).await?.pair.map(Pair::from))
    }

    /// Writes a key.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been written.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Written, Error> {
        let reply = self.put_raw(key.into(), value.into(), PutOptions::default()).await;
        match put_if(reply)? {
            PutIf::Written(written) => Ok(written),
            PutIf::Mismatch(_) => Err(garbled("a mismatch without a condition")),
        }
    }

    /// Writes a key on a condition.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been written. That the condition does not hold is no
    /// error.
    pub async fn put_if(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        condition: Condition,
    ) -> Result<PutIf, Error> {
        let options = PutOptions { condition: Some(condition), ..PutOptions::default() };
        self.put_with(key, value, options).await
    }

    /// Writes a key in a certain way.
    ///
    /// # Errors
    /// As [`KvClient::put_if`]; [`Rejected::Refused`] when the lock that guards it is not held any
    /// more, or the lease has ended.
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<PutIf, Error> {
        put_if(self.put_raw(key.into(), value.into(), options).await)
    }

    /// Appends to a key's value and answers with the value from before.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been appended; [`Rejected::Limit`] when the value would
    /// grow too long.
    pub async fn append(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Appended, Error> {
        appended(self.append_raw(key.into(), value.into(), None).await)
    }

    /// Appends to a key's value while a lock is held.
    ///
    /// # Errors
    /// As [`KvClient::append`]; [`Rejected::Refused`] when the lock is not held with that token.
    pub async fn append_guarded(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        guard: &Guard,
    ) -> Result<Appended, Error> {
        appended(self.append_raw(key.into(), value.into(), Some(guard)).await)
    }

    /// Removes a key; none when it was not there.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been removed.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Option<Removed>, Error> {
        removed(self.delete_raw(key.into(), None).await)
    }

    /// Removes a key while a lock is held; none when it was not there.
    ///
    /// # Errors
    /// As [`KvClient::delete`]; [`Rejected::Refused`] when the lock is not held with that token.
    pub async fn delete_guarded(
        &self,
        key: impl Into<Bytes>,
        guard: &Guard,
    ) -> Result<Option<Removed>, Error> {
        removed(self.delete_raw(key.into(), Some(guard)).await)
    }

    /// Reads a key, with all that the reply says.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn get_raw(&self, key: Bytes) -> Result<GetReply, Error> {
        check_key(&key)?;
        let get = request::Kind::Get(GetRequest { key, ..GetRequest::default() });
        let pick = |kind| match kind {
            forward_reply::Kind::Get(reply) => Some(reply),
            _ => None,
        };
        idempotent(self.call(self.patience(), get, pick).await)
    }

    /// Writes a key, with all that the reply says.
    pub async fn put_raw(
        &self,
        key: Bytes,
        value: Bytes,
        options: PutOptions,
    ) -> Outcome<PutReply> {
        if let Err(rejected) = check_key(&key).and_then(|()| check_value(&value)) {
            return Outcome::Rejected(rejected);
        }
        let condition = options.condition.map(|condition| match condition {
            Condition::Absent => put_request::Condition::ExpectedVersion(0),
            Condition::Version(version) => put_request::Condition::ExpectedVersion(version),
            Condition::ModRevision(revision) => {
                put_request::Condition::ExpectedModRevision(revision)
            }
        });
        let put = |id| {
            let (key, value, id) = (key.clone(), value.clone(), Some(id));
            let lease_id = options.lease_id.unwrap_or(0);
            let guard = options.guard.as_ref().map(Guard::to_wire);
            request::Kind::Put(PutRequest { key, value, condition, id, lease_id, guard })
        };
        let pick = |kind| match kind {
            forward_reply::Kind::Put(reply) => Some(reply),
            _ => None,
        };
        self.mutate(&key, put, pick, |reply| reply.header).await
    }

    /// Appends to a key's value, with all that the reply says.
    pub async fn append_raw(
        &self,
        key: Bytes,
        value: Bytes,
        guard: Option<&Guard>,
    ) -> Outcome<AppendReply> {
        if let Err(rejected) = check_key(&key).and_then(|()| check_value(&value)) {
            return Outcome::Rejected(rejected);
        }
        let append = |id| {
            let (key, value, id) = (key.clone(), value.clone(), Some(id));
            let guard = guard.map(Guard::to_wire);
            request::Kind::Append(AppendRequest { key, value, id, guard })
        };
        let pick = |kind| match kind {
            forward_reply::Kind::Append(reply) => Some(reply),
            _ => None,
        };
        self.mutate(&key, append, pick, |reply| reply.header).await
    }

    /// Removes a key, with all that the reply says.
    pub async fn delete_raw(&self, key: Bytes, guard: Option<&Guard>) -> Outcome<DeleteReply> {
        if let Err(rejected) = check_key(&key) {
            return Outcome::Rejected(rejected);
        }
        let delete = |id| {
            let (key, id) = (key.clone(), Some(id));
            let guard = guard.map(Guard::to_wire);
            request::Kind::Delete(DeleteRequest { key, id, guard })
        };
        let pick = |kind| match kind {
            forward_reply::Kind::Delete(reply) => Some(reply),
            _ => None,
        };
        self.mutate(&key, delete, pick, |reply| reply.header).await
    }

    /// Sends a request until it ends. `pick` takes the reply out of those that there are.
    pub(crate) async fn call<R>(
        &self,
        patience: Patience,
        kind: request::Kind,
        pick: impl FnOnce(forward_reply::Kind) -> Option<R>,
    ) -> Outcome<R> {
        picked(self.inner.router.call_kv(&kind, patience).await, pick)
    }

    /// The same for a request about a lock.
    pub(crate) async fn call_lock<R>(
        &self,
        patience: Patience,
        kind: lock::forward_request::Kind,
        pick: impl FnOnce(lock::forward_reply::Kind) -> Option<R>,
    ) -> Outcome<R> {
        picked(self.inner.router.call(&kind, patience).await, pick)
    }

    pub(crate) fn router(&self) -> &Arc<Router> {
        &self.inner.router
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience::of(&self.inner.options)
    }

    /// Sends a mutation under one identity until it ends.
    pub(crate) async fn mutate<R>(
        &self,
        key: &Bytes,
        build: impl FnOnce(RequestId) -> request::Kind,
        pick: impl FnOnce(forward_reply::Kind) -> Option<R>,
        header: impl Fn(&R) -> Option<ReplyHeader>,
    ) -> Outcome<R> {
        let patience = self.patience();
        let send = |id: RequestId| self.call(patience, build(id), pick);
        self.identified(key, patience, header, send).await
    }

    /// Gives a request of a key's shard an identity, under which `send` sends it until it ends.
    pub(crate) async fn identified<R, Sent: Future<Output = Outcome<R>>>(
        &self,
        key: &Bytes,
        patience: Patience,
        header: impl Fn(&R) -> Option<ReplyHeader>,
        send: impl FnOnce(RequestId) -> Sent,
    ) -> Outcome<R> {
        let sessions = match self.inner.sessions.get() {
            Some(sessions) => sessions,
            None => match self.learn(key).await {
                Ok(sessions) => sessions,
                Err(rejected) => return Outcome::Rejected(rejected),
            },
        };
        let shard = sessions.shard_of(key);
        let open = loop {
            match sessions.open(shard, patience.deadline).await {
                Ok(open) => break open,
                Err(NotOpened::TimeUnknown) => {
                    if let Err(rejected) = self.learn(key).await {
                        return Outcome::Rejected(rejected);
                    }
                }
                Err(NotOpened::Full) => {
                    let why = format!("too many requests to shard {shard} are open");
                    return Outcome::Rejected(Rejected::Limit(why));
                }
            }
        };
        let Identity { client, sequence, acknowledged, expires_ms } = open.id.clone();
        let shards = sessions.count();
        let id = RequestId { client, sequence, acknowledged, expires_ms, shards };
        let outcome = send(id).await;
        if let Outcome::Done(reply) = &outcome
            && let Some(header) = header(reply)
        {
            sessions.learn(header.shard, header.shard_time_ms);
        }
        outcome
    }

    /// Asks for the time of a key's shard, and how many shards there are. However long the request
    /// itself may wait for something, this is tried for as long as any call.
    async fn learn(&self, key: &Bytes) -> Result<&Sessions, Rejected> {
        let time = request::Kind::Time(TimeRequest { key: key.clone() });
        let pick = |kind| match kind {
            forward_reply::Kind::Time(reply) => Some(reply),
            _ => None,
        };
        let outcome: Outcome<TimeReply> = self.call(self.patience(), time, pick).await;
        let header = match outcome {
            Outcome::Done(reply) => reply.header.unwrap_or_default(),
            Outcome::Rejected(rejected) => return Err(rejected),
            Outcome::Unknown(unknown) => return Err(Rejected::Unavailable(unknown.reason)),
        };
        let sessions = self.inner.sessions.get_or_init(|| Sessions::new(header.shards));
        if header.shard != sessions.shard_of(key) {
            let why = format!("the number of shards changed to {}: connect anew", header.shards);
            return Err(Rejected::Refused(why));
        }
        sessions.learn(header.shard, header.shard_time_ms);
        Ok(sessions)
    }
}

/// The reply out of those that there are.
fn picked<K, R>(ended: Result<K, Ended>, pick: impl FnOnce(K) -> Option<R>) -> Outcome<R> {
    match ended.map(pick) {
        Ok(Some(reply)) => Outcome::Done(reply),
        Ok(None) => {
            Outcome::Unknown(Unknown { reason: "the server answered something else".to_owned() })
        }
        Err(ended) => ended.outcome(),
    }
}

fn put_if(outcome: Outcome<PutReply>) -> Result<PutIf, Error> {
    match outcome.into_result()?.outcome {
        Some(put_reply::Outcome::Written(written)) => Ok(PutIf::Written(written.into())),
        Some(put_reply::Outcome::Mismatch(mismatch)) => {
            Ok(PutIf::Mismatch(mismatch.current.map(Pair::from)))
        }
        Some(put_reply::Outcome::GuardRefused(refused)) => Err(guard_refused(refused).into()),
        Some(put_reply::Outcome::NoSuchLease(lease)) => Err(no_such_lease(lease).into()),
        None => Err(garbled("a Put without an outcome")),
    }
}

fn appended(outcome: Outcome<AppendReply>) -> Result<Appended, Error> {
    let reply = outcome.into_result()?;
    let dropped = reply.header.is_some_and(|header| header.body_dropped);
    match reply.outcome {
        Some(append_reply::Outcome::Appended(appended)) => Ok(Appended {
            written: appended.written.unwrap_or_default().into(),
            old_value: (!dropped).then_some(appended.old_value),
        }),
        Some(append_reply::Outcome::TooLarge(too_large)) => Err(Rejected::Limit(format!(
            "the value would have {} bytes; the limit value_bytes_max is {}",
            too_large.bytes, too_large.limit
        ))
        .into()),
        Some(append_reply::Outcome::GuardRefused(refused)) => Err(guard_refused(refused).into()),
        None => Err(garbled("an Append without an outcome")),
    }
}

fn removed(outcome: Outcome<DeleteReply>) -> Result<Option<Removed>, Error> {
    let reply = outcome.into_result()?;
    if let Some(refused) = reply.guard_refused {
        return Err(guard_refused(refused).into());
    }
    let mod_revision = reply.written.map_or(0, |written| written.mod_revision);
    Ok(reply.removed.map(|pair| Removed { mod_revision, pair: pair.into() }))
}

impl Guard {
    pub(crate) fn to_wire(&self) -> kv::Guard {
        kv::Guard { lock: self.lock.clone(), token: self.token }
    }
}

/// That a guard did not let a mutation happen.
pub(crate) fn guard_refused(refused: GuardRefused) -> Rejected {
    let why = match refused.token {
        0 => "the lock of the guard is not held".to_owned(),
        token => format!("the lock of the guard is held with token {token}"),
    };
    Rejected::Refused(why)
}

/// That a lease is none.
pub(crate) fn no_such_lease(lease: NoSuchLease) -> Rejected {
    Rejected::Refused(format!("lease {} has ended, or never was", lease.lease_id))
}

/// For calls that are streams of their own.
pub(crate) fn stub(channel: Channel) -> KvStub<Channel> {
    KvStub::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// A reply that makes no sense: what it answers was executed or not.
pub(crate) fn garbled(what: &str) -> Error {
    Unknown { reason: format!("the server answered {what}") }.into()
}

pub(crate) fn check_key(key: &Bytes) -> Result<(), Rejected> {
    match key.len() {
        0 => Err(Rejected::Invalid("the key is empty".to_owned())),
        bytes if bytes > KEY_BYTES_MAX => Err(Rejected::Invalid(format!(
            "the key has {bytes} bytes; the limit key_bytes_max is {KEY_BYTES_MAX}"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn check_value(value: &Bytes) -> Result<(), Rejected> {
    let bytes = value.len();
    if bytes <= VALUE_BYTES_MAX {
        return Ok(());
    }
    let limit = VALUE_BYTES_MAX;
    Err(Rejected::Invalid(format!(
        "the value has {bytes} bytes; the limit value_bytes_max is {limit}"
    )))
}

impl From<kv::Pair> for Pair {
    fn from(pair: kv::Pair) -> Self {
        let kv::Pair { value, version, create_revision, mod_revision, lease_id } = pair;
        let lease_id = Some(lease_id).filter(|lease| *lease > 0);
        Self { value, version, create_revision, mod_revision, lease_id }
    }
}

impl From<kv::Written> for Written {
    fn from(written: kv::Written) -> Self {
        Self { version: written.version, mod_revision: written.mod_revision }
    }
}
