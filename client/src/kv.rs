//! The client of the key/value store.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use proto::kv::{
    self, AppendReply, AppendRequest, DeleteReply, DeleteRequest, GetReply, GetRequest, PutReply,
    PutRequest, ReplyHeader, RequestId, TimeRequest, append_reply, kv_client, put_reply,
    put_request,
};
use tonic::{Response, Status, transport::Channel};

use crate::{
    Error, InvalidEndpoint, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, Options, Outcome, Rejected, Unknown,
    VALUE_BYTES_MAX,
    calls::{self, Patience, idempotent, request},
    members::Members,
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
    members: Members,
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
        let members = Members::new(&endpoints, &options)?;
        Ok(Self { inner: Arc::new(Inner { members, options, sessions: OnceLock::new() }) })
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
        match put_if(self.put_raw(key.into(), value.into(), None).await)? {
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
        put_if(self.put_raw(key.into(), value.into(), Some(condition)).await)
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
        let reply = self.append_raw(key.into(), value.into()).await.into_result()?;
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
            None => Err(garbled("an Append without an outcome")),
        }
    }

    /// Removes a key; none when it was not there.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been removed.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Option<Removed>, Error> {
        let reply = self.delete_raw(key.into()).await.into_result()?;
        let mod_revision = reply.written.map_or(0, |written| written.mod_revision);
        Ok(reply.removed.map(|pair| Removed { mod_revision, pair: pair.into() }))
    }

    /// Reads a key, with all that the reply says.
    ///
    /// # Errors
    /// As [`KvClient::get`].
    pub async fn get_raw(&self, key: Bytes) -> Result<GetReply, Error> {
        check_key(&key)?;
        let outcome = calls::call(&self.inner.members, self.patience(), |channel, limit| {
            let message = request(GetRequest { key: key.clone() }, limit);
            async move { stub(channel).get(message).await }
        });
        idempotent(outcome.await)
    }

    /// Writes a key, with all that the reply says.
    pub async fn put_raw(
        &self,
        key: Bytes,
        value: Bytes,
        condition: Option<Condition>,
    ) -> Outcome<PutReply> {
        if let Err(rejected) = check_key(&key).and_then(|()| check_value(&value)) {
            return Outcome::Rejected(rejected);
        }
        let condition = condition.map(|condition| match condition {
            Condition::Absent => put_request::Condition::ExpectedVersion(0),
            Condition::Version(version) => put_request::Condition::ExpectedVersion(version),
            Condition::ModRevision(revision) => {
                put_request::Condition::ExpectedModRevision(revision)
            }
        });
        let write = |channel, id, limit| {
            let (key, value) = (key.clone(), value.clone());
            let message = request(PutRequest { key, value, condition, id: Some(id) }, limit);
            async move { stub(channel).put(message).await }
        };
        self.mutate(&key, write, |reply| reply.header).await
    }

    /// Appends to a key's value, with all that the reply says.
    pub async fn append_raw(&self, key: Bytes, value: Bytes) -> Outcome<AppendReply> {
        if let Err(rejected) = check_key(&key).and_then(|()| check_value(&value)) {
            return Outcome::Rejected(rejected);
        }
        let write = |channel, id, limit| {
            let (key, value) = (key.clone(), value.clone());
            let message = request(AppendRequest { key, value, id: Some(id) }, limit);
            async move { stub(channel).append(message).await }
        };
        self.mutate(&key, write, |reply| reply.header).await
    }

    /// Removes a key, with all that the reply says.
    pub async fn delete_raw(&self, key: Bytes) -> Outcome<DeleteReply> {
        if let Err(rejected) = check_key(&key) {
            return Outcome::Rejected(rejected);
        }
        let write = |channel, id, limit| {
            let message = request(DeleteRequest { key: key.clone(), id: Some(id) }, limit);
            async move { stub(channel).delete(message).await }
        };
        self.mutate(&key, write, |reply| reply.header).await
    }

    fn patience(&self) -> Patience {
        Patience::of(&self.inner.options)
    }

    /// Sends a mutation under one identity until it ends.
    async fn mutate<R, Attempt>(
        &self,
        key: &Bytes,
        send: impl Fn(Channel, RequestId, std::time::Duration) -> Attempt,
        header: impl Fn(&R) -> Option<ReplyHeader>,
    ) -> Outcome<R>
    where
        Attempt: Future<Output = Result<Response<R>, Status>>,
    {
        let patience = self.patience();
        let sessions = match self.inner.sessions.get() {
            Some(sessions) => sessions,
            None => match self.learn(key, patience).await {
                Ok(sessions) => sessions,
                Err(rejected) => return Outcome::Rejected(rejected),
            },
        };
        let shard = sessions.shard_of(key);
        let open = loop {
            match sessions.open(shard, patience.deadline).await {
                Ok(open) => break open,
                Err(NotOpened::TimeUnknown) => {
                    if let Err(rejected) = self.learn(key, patience).await {
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
        let outcome = calls::call(&self.inner.members, patience, |channel, limit| {
            send(channel, id.clone(), limit)
        })
        .await;
        if let Outcome::Done(reply) = &outcome
            && let Some(header) = header(reply)
        {
            sessions.learn(header.shard, header.shard_time_ms);
        }
        outcome
    }

    /// Asks for the time of a key's shard, and how many shards there are.
    async fn learn(&self, key: &Bytes, patience: Patience) -> Result<&Sessions, Rejected> {
        let outcome = calls::call(&self.inner.members, patience, |channel, limit| {
            let message = request(TimeRequest { key: key.clone() }, limit);
            async move { stub(channel).time(message).await }
        });
        let header = match outcome.await {
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

fn stub(channel: Channel) -> kv_client::KvClient<Channel> {
    kv_client::KvClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn put_if(outcome: Outcome<PutReply>) -> Result<PutIf, Error> {
    match outcome.into_result()?.outcome {
        Some(put_reply::Outcome::Written(written)) => Ok(PutIf::Written(written.into())),
        Some(put_reply::Outcome::Mismatch(mismatch)) => {
            Ok(PutIf::Mismatch(mismatch.current.map(Pair::from)))
        }
        None => Err(garbled("a Put without an outcome")),
    }
}

/// A reply that makes no sense: what it answers was executed or not.
fn garbled(what: &str) -> Error {
    Unknown { reason: format!("the server answered {what}") }.into()
}

fn check_key(key: &Bytes) -> Result<(), Rejected> {
    match key.len() {
        0 => Err(Rejected::Invalid("the key is empty".to_owned())),
        bytes if bytes > KEY_BYTES_MAX => Err(Rejected::Invalid(format!(
            "the key has {bytes} bytes; the limit key_bytes_max is {KEY_BYTES_MAX}"
        ))),
        _ => Ok(()),
    }
}

fn check_value(value: &Bytes) -> Result<(), Rejected> {
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
        let kv::Pair { value, version, create_revision, mod_revision } = pair;
        Self { value, version, create_revision, mod_revision }
    }
}

impl From<kv::Written> for Written {
    fn from(written: kv::Written) -> Self {
        Self { version: written.version, mod_revision: written.mod_revision }
    }
}
