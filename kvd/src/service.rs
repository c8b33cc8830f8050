//! The gRPC services: `Kv` on the client port, `Forward` on the peer port.
//!
//! Thin: a call becomes a request with a deadline, and what comes back becomes a reply or a status.

use std::time::Duration;

use proto::{
    kv::{
        AppendReply, AppendRequest, DeleteReply, DeleteRequest, ForwardReply, ForwardRequest,
        GetReply, GetRequest, PutReply, PutRequest, TimeReply, TimeRequest, forward_reply,
        forward_server::{Forward, ForwardServer},
        kv_server::{Kv, KvServer},
        request,
    },
    raft::{Reason, Refusal},
};
use raftd::{
    edge::{self, DEADLINE_MAX, Measure, never},
    forward::HOPS_MAX,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{limits::REQUEST_BYTES_MAX, requests::Requests};

/// The service for the client port. `deadline` is for requests that say none.
pub(crate) fn kv(requests: Requests, deadline: Duration) -> KvServer<impl Kv> {
    KvServer::new(ClientPort { requests, deadline, measures: Measures::new() })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(2 * REQUEST_BYTES_MAX)
}

/// The service for the peer port.
pub(crate) fn forward(requests: Requests) -> ForwardServer<impl Forward> {
    ForwardServer::new(PeerPort { requests })
        .max_decoding_message_size(2 * REQUEST_BYTES_MAX)
        .max_encoding_message_size(2 * REQUEST_BYTES_MAX)
}

struct ClientPort {
    requests: Requests,
    deadline: Duration,
    measures: Measures,
}

/// What is counted of each method.
struct Measures {
    get: Measure,
    put: Measure,
    append: Measure,
    delete: Measure,
    time: Measure,
}

impl Measures {
    fn new() -> Self {
        let measure = |method| Measure::new("kv", method);
        Self {
            get: measure("get"),
            put: measure("put"),
            append: measure("append"),
            delete: measure("delete"),
            time: measure("time"),
        }
    }
}

impl ClientPort {
    async fn answer<R>(
        &self,
        metadata: &MetadataMap,
        kind: request::Kind,
        measure: &Measure,
        pick: impl FnOnce(forward_reply::Kind) -> Option<R>,
    ) -> Result<Response<R>, Status> {
        let deadline = edge::deadline(metadata, self.deadline);
        edge::respond(measure, self.requests.answer(kind, deadline, HOPS_MAX), pick).await
    }
}

#[tonic::async_trait]
impl Kv for ClientPort {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Get(message);
        self.answer(&metadata, kind, &self.measures.get, |kind| match kind {
            forward_reply::Kind::Get(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Put(message);
        self.answer(&metadata, kind, &self.measures.put, |kind| match kind {
            forward_reply::Kind::Put(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Append(message);
        self.answer(&metadata, kind, &self.measures.append, |kind| match kind {
            forward_reply::Kind::Append(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Delete(message);
        self.answer(&metadata, kind, &self.measures.delete, |kind| match kind {
            forward_reply::Kind::Delete(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn time(&self, request: Request<TimeRequest>) -> Result<Response<TimeReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Time(message);
        self.answer(&metadata, kind, &self.measures.time, |kind| match kind {
            forward_reply::Kind::Time(reply) => Some(reply),
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
        let ForwardRequest { request, deadline_ms, hops_left } = request.into_inner();
        let kind = match request.and_then(|request| request.kind) {
            Some(kind) => self.execute(kind, deadline_ms, hops_left).await,
            None => Err(never(Reason::Invalid, "a forwarded request of no known kind")),
        };
        let kind = kind.unwrap_or_else(forward_reply::Kind::Refusal);
        Ok(Response::new(ForwardReply { kind: Some(kind) }))
    }
}

impl PeerPort {
    async fn execute(
        &self,
        kind: request::Kind,
        deadline_ms: u64,
        hops_left: u32,
    ) -> Result<forward_reply::Kind, Refusal> {
        let limit = Duration::from_millis(deadline_ms).min(DEADLINE_MAX);
        let deadline = Instant::now() + limit;
        Ok(self.requests.answer(kind, deadline, hops_left.min(HOPS_MAX)).await?.reply)
    }
}
