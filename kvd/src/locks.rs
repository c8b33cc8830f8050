//! The gRPC services of locks: `Lock` on the client port, `Forward` on the peer port.

use std::time::Duration;

use proto::{
    lock::{
        AcquireReply, AcquireRequest, ForwardReply, ForwardRequest, InspectReply, InspectRequest,
        KeepAliveReply, KeepAliveRequest, ReleaseReply, ReleaseRequest, forward_reply,
        forward_request,
        forward_server::{Forward, ForwardServer},
        lock_server::{Lock, LockServer},
    },
    metadata::is_direct,
    raft::Reason,
};
use raftd::{
    edge::{self, Measure, never},
    forward::passed_on,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    desk::Desk,
    requests::{Requests, Wanted},
};

/// The service for the client port. `deadline` is for requests that say none.
pub(crate) fn lock(desk: Desk, deadline: Duration) -> LockServer<impl Lock> {
    LockServer::new(ClientPort { desk, deadline, measures: Measures::new() })
}

/// The service for the peer port.
pub(crate) fn forward(requests: Requests) -> ForwardServer<impl Forward> {
    ForwardServer::new(PeerPort { requests })
}

struct ClientPort {
    desk: Desk,
    deadline: Duration,
    measures: Measures,
}

/// What is counted of each method.
struct Measures {
    acquire: Measure,
    keep_alive: Measure,
    release: Measure,
    inspect: Measure,
}

impl Measures {
    fn new() -> Self {
        let measure = |method| Measure::new("lock", method);
        Self {
            acquire: measure("acquire"),
            keep_alive: measure("keep_alive"),
            release: measure("release"),
            inspect: measure("inspect"),
        }
    }
}

impl ClientPort {
    async fn answer<R>(
        &self,
        metadata: &MetadataMap,
        kind: forward_request::Kind,
        measure: &Measure,
        pick: impl FnOnce(forward_reply::Kind) -> Option<R>,
    ) -> Result<Response<R>, Status> {
        let deadline = edge::deadline(metadata, self.deadline);
        let wanted = Wanted { kind, deadline, direct: is_direct(metadata) };
        edge::respond(measure, self.desk.serve_lock(wanted), pick).await
    }
}

#[tonic::async_trait]
impl Lock for ClientPort {
    async fn acquire(
        &self,
        request: Request<AcquireRequest>,
    ) -> Result<Response<AcquireReply>, Status> {
        let (metadata, _, mut message) = request.into_parts();
        // Who says nothing waits as long as it asks for.
        let limit = self.deadline + Duration::from_millis(message.wait_ms);
        let deadline = edge::deadline(&metadata, limit);
        if message.id.is_none() {
            // Nobody can ask again for a place in the queue that has no name.
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            message.wait_ms = message.wait_ms.min(u64::try_from(left).unwrap_or(u64::MAX));
        }
        let kind = forward_request::Kind::Acquire(message);
        let wanted = Wanted { kind, deadline, direct: is_direct(&metadata) };
        let answer = self.desk.serve_lock(wanted);
        edge::respond(&self.measures.acquire, answer, |kind| match kind {
            forward_reply::Kind::Acquire(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = forward_request::Kind::KeepAlive(message);
        self.answer(&metadata, kind, &self.measures.keep_alive, |kind| match kind {
            forward_reply::Kind::KeepAlive(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = forward_request::Kind::Release(message);
        self.answer(&metadata, kind, &self.measures.release, |kind| match kind {
            forward_reply::Kind::Release(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn inspect(
        &self,
        request: Request<InspectRequest>,
    ) -> Result<Response<InspectReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = forward_request::Kind::Inspect(message);
        self.answer(&metadata, kind, &self.measures.inspect, |kind| match kind {
            forward_reply::Kind::Inspect(reply) => Some(reply),
            _ => None,
        })
        .await
    }
}

struct PeerPort {
    requests: Requests,
}

#[tonic::async_trait]
impl Forward for PeerPort {
    async fn execute(
        &self,
        request: Request<ForwardRequest>,
    ) -> Result<Response<ForwardReply>, Status> {
        let ForwardRequest { kind, deadline_ms, hops_left } = request.into_inner();
        let (deadline, hops_left) = passed_on(deadline_ms, hops_left);
        let replied = match kind {
            Some(kind) => self.requests.answer_lock(&kind, deadline, hops_left).await,
            None => Err(never(Reason::Invalid, "a forwarded request of no known kind")),
        };
        let kind = replied.map_or_else(forward_reply::Kind::Refusal, |replied| replied.reply);
        Ok(Response::new(ForwardReply { kind: Some(kind) }))
    }
}
