//! The gRPC services: `Kv` and `Leases` on the client port, `Forward` on the peer port.
//!
//! Thin: a call becomes a request with a deadline, and what comes back becomes a reply or a status.

use std::{sync::Arc, time::Duration};

use daemon::Shutdown;
use futures::stream::BoxStream;
use proto::{
    kv::{
        AppendReply, AppendRequest, CompactReply, CompactRequest, DeleteReply, DeleteRequest,
        ForwardReply, ForwardRequest, GetReply, GetRequest, GrantReply, GrantRequest,
        KeepAliveReply, KeepAliveRequest, PipelineReply, PipelineRequest, PutReply, PutRequest,
        RevokeReply, RevokeRequest, ScanReply, ScanRequest, TimeReply, TimeRequest,
        TimeToLiveReply, TimeToLiveRequest, TxnReply, TxnRequest, WatchReply, WatchRequest,
        forward_reply,
        forward_server::{Forward, ForwardServer},
        kv_server::{Kv, KvServer},
        leases_server::{Leases, LeasesServer},
        request,
    },
    metadata::is_direct,
    raft::Reason,
};
use raftd::{
    edge::{self, Measure, never},
    forward::passed_on,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    desk::Desk,
    limits::REQUEST_BYTES_MAX,
    pipeline::{self, PipelineLimits},
    requests::{Requests, Wanted},
};

/// The service for the client port. After shutdown its streams end when they are drained.
pub(crate) fn kv(desk: Desk, pipeline: PipelineLimits, shutdown: Shutdown) -> KvServer<impl Kv> {
    let calls = Arc::new(Calls::new(desk, pipeline.deadline));
    KvServer::new(ClientPort { calls, pipeline, shutdown })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(2 * REQUEST_BYTES_MAX)
}

/// The leases, for the client port.
pub(crate) fn leases(desk: Desk, deadline: Duration) -> LeasesServer<impl Leases> {
    LeasesServer::new(LeasesPort(Calls::new(desk, deadline)))
}

/// The service for the peer port.
pub(crate) fn forward(requests: Requests) -> ForwardServer<impl Forward> {
    ForwardServer::new(PeerPort { requests })
        .max_decoding_message_size(2 * REQUEST_BYTES_MAX)
        .max_encoding_message_size(2 * REQUEST_BYTES_MAX)
}

struct ClientPort {
    calls: Arc<Calls>,
    pipeline: PipelineLimits,
    shutdown: Shutdown,
}

struct LeasesPort(Calls);

/// How calls are answered.
struct Calls {
    desk: Desk,
    deadline: Duration,
    measures: Measures,
}

/// What is counted of each method.
struct Measures {
    get: Measure,
    put: Measure,
    append: Measure,
    delete: Measure,
    scan: Measure,
    txn: Measure,
    compact: Measure,
    time: Measure,
    grant: Measure,
    keep_alive: Measure,
    revoke: Measure,
    time_to_live: Measure,
}

impl Measures {
    fn new() -> Self {
        let measure = |method| Measure::new("kv", method);
        Self {
            get: measure("get"),
            put: measure("put"),
            append: measure("append"),
            delete: measure("delete"),
            scan: measure("scan"),
            txn: measure("txn"),
            compact: measure("compact"),
            time: measure("time"),
            grant: measure("grant"),
            keep_alive: measure("keep_alive"),
            revoke: measure("revoke"),
            time_to_live: measure("time_to_live"),
        }
    }

    /// Those of the method that a request on a pipeline would have been.
    fn of(&self, kind: &request::Kind) -> &Measure {
        match kind {
            request::Kind::Get(_) => &self.get,
            request::Kind::Put(_) => &self.put,
            request::Kind::Append(_) => &self.append,
            request::Kind::Delete(_) => &self.delete,
            request::Kind::Scan(_) => &self.scan,
            request::Kind::Txn(_) => &self.txn,
            request::Kind::Compact(_) => &self.compact,
            request::Kind::Time(_) => &self.time,
            request::Kind::Grant(_) => &self.grant,
            request::Kind::KeepAlive(_) => &self.keep_alive,
            request::Kind::Revoke(_) => &self.revoke,
            request::Kind::TimeToLive(_) => &self.time_to_live,
        }
    }
}

impl Calls {
    /// `deadline` is for requests that say none.
    fn new(desk: Desk, deadline: Duration) -> Self {
        Self { desk, deadline, measures: Measures::new() }
    }

    async fn answer<R>(
        &self,
        metadata: &MetadataMap,
        kind: request::Kind,
        measure: &Measure,
        pick: impl FnOnce(forward_reply::Kind) -> Option<R>,
    ) -> Result<Response<R>, Status> {
        let deadline = edge::deadline(metadata, self.deadline);
        let wanted = Wanted { kind, deadline, direct: is_direct(metadata) };
        edge::respond(measure, self.desk.serve(wanted), pick).await
    }
}

#[tonic::async_trait]
impl Kv for ClientPort {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Get(message);
        self.calls
            .answer(&metadata, kind, &self.calls.measures.get, |kind| match kind {
                forward_reply::Kind::Get(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Put(message);
        self.calls
            .answer(&metadata, kind, &self.calls.measures.put, |kind| match kind {
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
        self.calls
            .answer(&metadata, kind, &self.calls.measures.append, |kind| match kind {
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
        self.calls
            .answer(&metadata, kind, &self.calls.measures.delete, |kind| match kind {
                forward_reply::Kind::Delete(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Scan(message);
        self.calls
            .answer(&metadata, kind, &self.calls.measures.scan, |kind| match kind {
                forward_reply::Kind::Scan(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Txn(message);
        self.calls
            .answer(&metadata, kind, &self.calls.measures.txn, |kind| match kind {
                forward_reply::Kind::Txn(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn compact(
        &self,
        request: Request<CompactRequest>,
    ) -> Result<Response<CompactReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Compact(message);
        self.calls
            .answer(&metadata, kind, &self.calls.measures.compact, |kind| match kind {
                forward_reply::Kind::Compact(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn time(&self, request: Request<TimeRequest>) -> Result<Response<TimeReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Time(message);
        self.calls
            .answer(&metadata, kind, &self.calls.measures.time, |kind| match kind {
                forward_reply::Kind::Time(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    type WatchStream = BoxStream<'static, Result<WatchReply, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // A watch has no end; its deadline is for the beginning.
        let deadline = Instant::now() + self.calls.deadline;
        let stream = self.calls.desk.watch(request.into_inner(), deadline).await?;
        Ok(Response::new(stream))
    }

    type PipelineStream = BoxStream<'static, Result<PipelineReply, Status>>;

    async fn pipeline(
        &self,
        request: Request<Streaming<PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let calls = self.calls.clone();
        let answer = move |wanted: Wanted<request::Kind>| {
            let calls = calls.clone();
            // Moved about while it is in flight, so it had better be small.
            Box::pin(async move {
                let measure = calls.measures.of(&wanted.kind);
                edge::measured(measure, calls.desk.serve(wanted)).await
            })
        };
        let incoming = request.into_inner();
        let replies = pipeline::replies(incoming, self.pipeline, &self.shutdown, answer);
        Ok(Response::new(Box::pin(replies)))
    }
}

#[tonic::async_trait]
impl Leases for LeasesPort {
    async fn grant(&self, request: Request<GrantRequest>) -> Result<Response<GrantReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Grant(message);
        self.0
            .answer(&metadata, kind, &self.0.measures.grant, |kind| match kind {
                forward_reply::Kind::Grant(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::KeepAlive(message);
        self.0
            .answer(&metadata, kind, &self.0.measures.keep_alive, |kind| match kind {
                forward_reply::Kind::KeepAlive(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn revoke(
        &self,
        request: Request<RevokeRequest>,
    ) -> Result<Response<RevokeReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Revoke(message);
        self.0
            .answer(&metadata, kind, &self.0.measures.revoke, |kind| match kind {
                forward_reply::Kind::Revoke(reply) => Some(reply),
                _ => None,
            })
            .await
    }

    async fn time_to_live(
        &self,
        request: Request<TimeToLiveRequest>,
    ) -> Result<Response<TimeToLiveReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::TimeToLive(message);
        self.0
            .answer(&metadata, kind, &self.0.measures.time_to_live, |kind| match kind {
                forward_reply::Kind::TimeToLive(reply) => Some(reply),
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
        let (deadline, hops_left) = passed_on(deadline_ms, hops_left);
        let replied = match request.and_then(|request| request.kind) {
            Some(kind) => self.requests.answer(&kind, deadline, hops_left).await,
            None => Err(never(Reason::Invalid, "a forwarded request of no known kind")),
        };
        let kind = replied.map_or_else(forward_reply::Kind::Refusal, |replied| replied.reply);
        Ok(Response::new(ForwardReply { kind: Some(kind) }))
    }
}
