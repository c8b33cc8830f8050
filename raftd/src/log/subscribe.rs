//! Streams to subscribers: each reads what this member has applied, wherever it is, and waits for
//! more to be applied.
//!
//! Decides where a stream begins and when it ends. A stream is read only when its connection has
//! room, one message at a time, so a subscriber that is slow holds one message and no more; what it
//! has not read stays in the log, until a Trim goes beyond it and the stream ends with that. A
//! change of leaders does not matter to a stream, since every member applies everything.

use std::sync::Arc;

use daemon::Shutdown;
use futures::stream::{BoxStream, StreamExt, try_unfold};
use proto::log::{Entry, StatusRequest, SubscribeReply, SubscribeRequest, forward_reply, request};
use proto::raft::{Reason, Refusal};
use raft::{GroupTime, Index};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::edge::{self, never, refused};
use crate::forward::HOPS_MAX;
use crate::handle::{Handle, Refused, Status as MemberState};
use crate::log::machine::LogMachine;
use crate::log::outcome::{Header, LogIndex, Query};
use crate::log::requests::Requests;
use crate::log::wire::{self, out_of_range};

/// How much one message carries, unless a single entry is larger.
const MESSAGE_BYTES: usize = 256 << 10;

/// Serves subscribers. Clones share the limit.
#[derive(Clone)]
pub(crate) struct Subscriptions {
    requests: Requests,
    limit: usize,
    places: Arc<Semaphore>,
    shutdown: Shutdown,
}

/// One subscriber.
struct Subscription {
    handle: Handle<LogMachine>,
    applied: watch::Receiver<Index>,
    status: watch::Receiver<MemberState>,
    stale: bool,
    shutdown: Shutdown,
    /// The next entry that is sent.
    next: LogIndex,
    /// The last one.
    last: Option<LogIndex>,
    _place: Place,
}

/// A subscriber's place among the limited ones, counted while it is taken.
struct Place(
    #[expect(dead_code, reason = "is given back when it is dropped")] OwnedSemaphorePermit,
);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("flotilla_log_subscribers").increment(1.0);
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("flotilla_log_subscribers").decrement(1.0);
    }
}

impl Subscriptions {
    pub(crate) fn new(requests: Requests, limit: usize, shutdown: Shutdown) -> Self {
        metrics::describe_gauge!("flotilla_log_subscribers", "streams to subscribers");
        Self { requests, limit, places: Arc::new(Semaphore::new(limit)), shutdown }
    }

    /// Begins a stream. It knows by `deadline` where.
    pub(crate) async fn subscribe(
        &self,
        request: SubscribeRequest,
        deadline: Instant,
    ) -> Result<BoxStream<'static, Result<SubscribeReply, Status>>, Status> {
        let permit = self.places.clone().try_acquire_owned();
        let place = Place::new(permit.map_err(|_| {
            let limit = self.limit;
            let message =
                format!("this member serves subscribers_max subscribers, which is {limit}");
            edge::status(never(Reason::Limit, message))
        })?);
        let SubscribeRequest { from_index, to_index, stale } = request;
        let last = Some(LogIndex(to_index)).filter(|last| last.0 > 0);
        let header = self.begin(stale, deadline).await.map_err(edge::status)?;
        let from = if from_index == 0 { header.first } else { LogIndex(from_index) };
        if last.is_some_and(|last| last.next() < from) {
            let message = format!("to_index is {to_index}, below from_index, which is {from}");
            return Err(edge::status(wire::invalid(message)));
        }
        // What this member has applied may end before what the subscriber has seen elsewhere.
        if from < header.first || (!stale && from > header.last.next()) {
            return Err(out_of_range(from, header));
        }
        let handle = self.requests.handle.clone();
        let subscription = Subscription {
            applied: handle.watch_applied(),
            status: handle.watch_status(),
            handle,
            stale,
            shutdown: self.shutdown.clone(),
            next: from,
            last,
            _place: place,
        };
        let stream = try_unfold(subscription, |mut subscription| async {
            Ok(subscription.read().await?.map(|reply| (reply, subscription)))
        });
        Ok(stream.boxed())
    }

    /// Where the log stands: for the whole group, or on this member.
    async fn begin(&self, stale: bool, deadline: Instant) -> Result<Header, Refusal> {
        let reply = if stale {
            self.requests.status_here().await?
        } else {
            let kind = request::Kind::Status(StatusRequest { stale });
            self.requests.answer(kind, deadline, HOPS_MAX).await?.reply
        };
        match reply {
            forward_reply::Kind::Status(proto::log::StatusReply {
                header: Some(header), ..
            }) => Ok(Header {
                first: LogIndex(header.first_index),
                last: LogIndex(header.last_index),
                bytes: header.bytes,
                time: GroupTime(header.group_time_ms),
            }),
            _ => Err(never(Reason::NotLeader, "the leader answered something else")),
        }
    }
}

impl Subscription {
    /// The next message, when there is something for it; none at the end.
    async fn read(&mut self) -> Result<Option<SubscribeReply>, Status> {
        loop {
            if self.last.is_some_and(|last| self.next > last) {
                return Ok(None);
            }
            // Noted before it is read, so that nothing applied meanwhile is missed.
            self.applied.mark_unchanged();
            let query = Query::Read { from: self.next, bytes_max: MESSAGE_BYTES };
            match self.handle.query_stale(query).await {
                Ok(answer) if answer.header.first > self.next => {
                    return Err(out_of_range(self.next, answer.header));
                }
                Ok(answer) if !answer.entries.is_empty() => {
                    return Ok(Some(self.message(answer.header, answer.entries)));
                }
                // A member that has too much to do applies something soon.
                Ok(_) | Err(Refused::Overloaded { .. }) => {}
                Err(refusal) => return Err(edge::status(refused(&refusal))),
            }
            let stopping = || edge::status(refused(&Refused::Shutdown));
            tokio::select! {
                biased;
                () = self.shutdown.requested() => return Err(stopping()),
                refusal = edge::cut_off(&mut self.status), if !self.stale => {
                    return Err(edge::status(refusal));
                }
                changed = self.applied.changed() => changed.map_err(|_| stopping())?,
            }
        }
    }

    /// At most what was asked for.
    fn message(&mut self, header: Header, payloads: Vec<bytes::Bytes>) -> SubscribeReply {
        let wanted = self.last.map_or(u64::MAX, |last| last.0);
        let indexes = self.next.0..=wanted;
        let entries: Vec<Entry> =
            indexes.zip(payloads).map(|(index, payload)| Entry { index, payload }).collect();
        self.next = LogIndex(self.next.0 + entries.len() as u64);
        SubscribeReply { header: Some(wire::header(header)), entries }
    }
}
