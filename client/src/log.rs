//! The client of the stand-alone log.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::log::{
    Header, ProposeReply, ProposeRequest, RequestId, StatusRequest, SubscribeReply,
    SubscribeRequest, TimeRequest, TrimRequest, log_client,
};
use tokio::time::sleep;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    Error, InvalidEndpoint, MESSAGE_BYTES_MAX, Options, Outcome, Rejected,
    calls::{self, Patience, idempotent, request},
    members::Members,
    sessions::{Identity, NotOpened, Open, Sessions},
};

/// The longest entry, in bytes.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

/// The most entries that are appended at a time.
pub const APPEND_ENTRIES_MAX: usize = 1_024;

/// The most bytes that are appended at a time.
pub const APPEND_BYTES_MAX: usize = 2 << 20;

/// The log is one shard to the table of identities.
const LOG: u32 = 0;

/// How long to wait before a stream that broke before it brought anything is asked for again; twice
/// as long after each further time, up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A client of one log. Clones share connections and identity; a clone may serve hundreds of
/// requests at once.
///
/// Appends are executed exactly once whatever is lost on the way, for as long as the deadline lets
/// the client try; when it passes without an answer, the outcome is [`crate::Unknown`].
#[derive(Clone, Debug)]
pub struct LogClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    members: Arc<Members>,
    options: Options,
    sessions: Sessions,
}

/// Where entries went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The index of the first.
    pub first_index: u64,
    /// The index of the last.
    pub last_index: u64,
}

/// What the log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStatus {
    /// The first index that is kept; one above the last when none is.
    pub first_index: u64,
    /// The last index; 0 before the first entry.
    pub last_index: u64,
    /// How many bytes the kept entries take.
    pub bytes: u64,
    /// How many they may take.
    pub quota_bytes: u64,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub index: u64,
    /// What was appended.
    pub payload: Bytes,
}

/// Which entries to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first; 0: the first that is kept.
    pub from_index: u64,
    /// The last; none: go on with what is appended later.
    pub to_index: Option<u64>,
    /// Begin with what the asked member has applied, without asking the leader.
    pub stale: bool,
}

/// Entries in order, each index one above that before it. Goes on at another member when one is
/// lost.
#[derive(Debug)]
pub struct Tail {
    inner: Arc<Inner>,
    range: Range,
    stream: Option<Streaming<SubscribeReply>>,
    ready: VecDeque<LogEntry>,
    pause: Duration,
}

impl LogClient {
    /// A client of the log whose members are, or are among, `endpoints` (`host:port` of their
    /// client ports). Connections are made when they are needed, so nothing has to run yet; must
    /// be called on a runtime.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    #[expect(clippy::needless_pass_by_value, reason = "callers have just made the list")]
    pub fn connect(endpoints: Vec<String>, options: Options) -> Result<Self, InvalidEndpoint> {
        let members = Arc::new(Members::new(&endpoints, &options)?);
        Ok(Self { inner: Arc::new(Inner { members, options, sessions: Sessions::new(1) }) })
    }

    /// Appends an entry; answers with its index.
    ///
    /// # Errors
    /// [`Error`] says whether it may have been appended; [`Rejected::Refused`] when the quota is
    /// reached.
    pub async fn append(&self, payload: impl Into<Bytes>) -> Result<u64, Error> {
        Ok(self.append_all(vec![payload.into()]).await?.first_index)
    }

    /// Appends entries in a row, all or none of them.
    ///
    /// # Errors
    /// As [`LogClient::append`].
    pub async fn append_all(&self, payloads: Vec<Bytes>) -> Result<Appended, Error> {
        let reply = self.propose_raw(payloads).await.into_result()?;
        let last_index = (reply.first_index + reply.count).saturating_sub(1);
        Ok(Appended { first_index: reply.first_index, last_index })
    }

    /// Appends entries, with all that the reply says.
    pub async fn propose_raw(&self, payloads: Vec<Bytes>) -> Outcome<ProposeReply> {
        if let Err(rejected) = check(&payloads) {
            return Outcome::Rejected(rejected);
        }
        let patience = self.inner.patience();
        let open = match self.inner.open(patience).await {
            Ok(open) => open,
            Err(rejected) => return Outcome::Rejected(rejected),
        };
        let Identity { client, sequence, acknowledged, expires_ms } = open.id.clone();
        let id = Some(RequestId { client, sequence, acknowledged, expires_ms });
        let message = ProposeRequest { payloads, id };
        let outcome = calls::call(&self.inner.members, patience, |channel, limit| {
            let message = request(message.clone(), limit);
            async move { stub(channel).propose(message).await }
        })
        .await;
        if let Outcome::Done(ProposeReply { header: Some(header), .. }) = &outcome {
            self.inner.sessions.learn(LOG, header.group_time_ms);
        }
        outcome
    }

    /// Removes all entries below an index; answers with the first that is kept.
    ///
    /// # Errors
    /// [`Rejected::OutOfRange`], when the log ends before that.
    pub async fn trim(&self, first_index: u64) -> Result<u64, Error> {
        let outcome = calls::call(&self.inner.members, self.inner.patience(), |channel, limit| {
            let message = request(TrimRequest { first_index }, limit);
            async move { stub(channel).trim(message).await }
        });
        Ok(idempotent(outcome.await)?.header.unwrap_or_default().first_index)
    }

    /// What the log has. Linearizable.
    ///
    /// # Errors
    /// [`Rejected`], since a read changes nothing.
    pub async fn status(&self) -> Result<LogStatus, Error> {
        let outcome = calls::call(&self.inner.members, self.inner.patience(), |channel, limit| {
            let message = request(StatusRequest { stale: false }, limit);
            async move { stub(channel).status(message).await }
        });
        let reply = idempotent(outcome.await)?;
        let Header { first_index, last_index, bytes, .. } = reply.header.unwrap_or_default();
        Ok(LogStatus { first_index, last_index, bytes, quota_bytes: reply.quota_bytes })
    }

    /// Reads entries.
    pub fn tail(&self, range: Range) -> Tail {
        let ready = VecDeque::new();
        Tail { inner: Arc::clone(&self.inner), range, stream: None, ready, pause: PAUSE_MIN }
    }
}

impl Inner {
    fn patience(&self) -> Patience {
        Patience::of(&self.options)
    }

    /// Gives an append its number, and asks for the time first if it is not known.
    async fn open(&self, patience: Patience) -> Result<Open<'_>, Rejected> {
        loop {
            match self.sessions.open(LOG, patience.deadline).await {
                Ok(open) => return Ok(open),
                Err(NotOpened::Full) => {
                    return Err(Rejected::Limit("too many appends are open".to_owned()));
                }
                Err(NotOpened::TimeUnknown) => {
                    let outcome = calls::call(&self.members, patience, |channel, limit| {
                        let message = request(TimeRequest {}, limit);
                        async move { stub(channel).time(message).await }
                    });
                    match outcome.await {
                        Outcome::Done(reply) => {
                            let time_ms = reply.header.unwrap_or_default().group_time_ms;
                            self.sessions.learn(LOG, time_ms);
                        }
                        Outcome::Rejected(rejected) => return Err(rejected),
                        Outcome::Unknown(unknown) => {
                            return Err(Rejected::Unavailable(unknown.reason));
                        }
                    }
                }
            }
        }
    }
}

impl Tail {
    /// The next entry, however long it takes for there to be one; none behind the last that was
    /// asked for. Nothing is lost when the call is dropped.
    ///
    /// # Errors
    /// [`Rejected::OutOfRange`], when the next entry is gone or was never there, with what the log
    /// has; [`Rejected::Unavailable`], when no member serves the log within the deadline of the
    /// client's options. Whatever it is, the next call tries again.
    pub async fn next(&mut self) -> Result<Option<LogEntry>, Rejected> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                self.range.from_index = entry.index + 1;
                return Ok(Some(entry));
            }
            if self.range.to_index.is_some_and(|to| to == 0 || self.range.from_index > to) {
                return Ok(None);
            }
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let stream = subscribe(&self.inner, self.range).await?;
                    self.stream.insert(stream)
                }
            };
            match stream.message().await {
                Ok(Some(reply)) => self.take(reply),
                Ok(None) if self.range.to_index.is_some() => return Ok(None),
                Ok(None) => self.lost(&Status::unavailable("the stream ended")).await?,
                Err(status) => self.lost(&status).await?,
            }
        }
    }

    /// Takes in what is new: what was there before is not told twice.
    fn take(&mut self, reply: SubscribeReply) {
        self.pause = PAUSE_MIN;
        let from = self.range.from_index;
        let entries = reply.entries.into_iter().filter(|entry| entry.index >= from);
        self.ready.extend(entries.map(|entry| {
            // Not more than the entry is kept of what came with it.
            let payload = Bytes::copy_from_slice(&entry.payload);
            LogEntry { index: entry.index, payload }
        }));
    }

    /// A stream has ended before its time: what is out of range stays so, all else may be had from
    /// another member.
    async fn lost(&mut self, status: &Status) -> Result<(), Rejected> {
        self.stream = None;
        if status.code() == Code::OutOfRange {
            return Err(Rejected::from_status(status));
        }
        tracing::debug!(code = ?status.code(), "a stream of entries is lost");
        sleep(self.pause).await;
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        Ok(())
    }
}

async fn subscribe(inner: &Inner, range: Range) -> Result<Streaming<SubscribeReply>, Rejected> {
    let Range { from_index, to_index, stale } = range;
    let message = SubscribeRequest { from_index, to_index: to_index.unwrap_or(0), stale };
    let outcome = calls::call(&inner.members, inner.patience(), |channel, limit| {
        let message = request(message, limit);
        async move { stub(channel).subscribe(message).await }
    });
    match outcome.await {
        Outcome::Done(stream) => Ok(stream),
        Outcome::Rejected(rejected) => Err(rejected),
        Outcome::Unknown(unknown) => Err(Rejected::Unavailable(unknown.reason)),
    }
}

fn stub(channel: Channel) -> log_client::LogClient<Channel> {
    log_client::LogClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The published limits; a server's settings may be stricter.
fn check(payloads: &[Bytes]) -> Result<(), Rejected> {
    let refuse = |message: String| Err(Rejected::Invalid(message));
    let entries = payloads.len();
    if !(1..=APPEND_ENTRIES_MAX).contains(&entries) {
        return refuse(format!(
            "{entries} entries; the limit propose_entries_max is {APPEND_ENTRIES_MAX}"
        ));
    }
    if let Some(long) = payloads.iter().find(|payload| payload.len() > ENTRY_BYTES_MAX) {
        let bytes = long.len();
        return refuse(format!(
            "an entry has {bytes} bytes; the limit entry_bytes_max is {ENTRY_BYTES_MAX}"
        ));
    }
    let bytes: usize = payloads.iter().map(Bytes::len).sum();
    if bytes > APPEND_BYTES_MAX {
        return refuse(format!(
            "the entries have {bytes} bytes together; the limit propose_bytes_max is \
             {APPEND_BYTES_MAX}"
        ));
    }
    Ok(())
}
