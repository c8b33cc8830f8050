//! The gRPC services: `Shards` on the client port, `Forward` on the peer port.
//!
//! Thin: a call becomes a request with a deadline, and what comes back becomes a reply or a status.

use std::time::Duration;

use futures::stream::BoxStream;
use proto::{
    raft::Reason,
    shard::{
        AdoptRequest, ChangeReply, ForwardReply, ForwardRequest, HistoryReply, HistoryRequest,
        JoinRequest, LeaveRequest, MoveRequest, QueryReply, QueryRequest, ReportReply,
        ReportRequest, UnpinRequest, WatchReply, WatchRequest, WeighRequest,
        forward_reply::Kind as Reply,
        forward_server::{Forward, ForwardServer},
        request::Kind,
        shards_server::{Shards, ShardsServer},
    },
};
use raftd::{
    edge::{self, Measure, never},
    forward::{HOPS_MAX, passed_on},
};
use tonic::{Request, Response, Status};

use crate::{
    desk::{Desk, REPLY_BYTES_MAX, REQUEST_BYTES_MAX},
    watch::Watches,
};

/// The service for the client port. `deadline` is for requests that say none.
pub(crate) fn shards(
    desk: Desk,
    watches: Watches,
    deadline: Duration,
) -> ShardsServer<impl Shards> {
    let measure = |method| Measure::new("shards", method);
    ShardsServer::new(ClientPort {
        desk,
        watches,
        deadline,
        change: measure("change"),
        query: measure("query"),
        history: measure("history"),
        report: measure("report"),
    })
    .max_decoding_message_size(REQUEST_BYTES_MAX)
    .max_encoding_message_size(REPLY_BYTES_MAX)
}

/// The service for the peer port.
pub(crate) fn forward(desk: Desk) -> ForwardServer<impl Forward> {
    ForwardServer::new(PeerPort { desk })
        .max_decoding_message_size(2 * REQUEST_BYTES_MAX)
        .max_encoding_message_size(REPLY_BYTES_MAX)
}

struct ClientPort {
    desk: Desk,
    watches: Watches,
    deadline: Duration,
    change: Measure,
    query: Measure,
    history: Measure,
    report: Measure,
}

impl ClientPort {
    async fn answer<T, R>(
        &self,
        request: Request<T>,
        wrap: impl FnOnce(T) -> Kind,
        measure: &Measure,
        pick: impl FnOnce(Reply) -> Option<R>,
    ) -> Result<Response<R>, Status> {
        let deadline = edge::deadline(request.metadata(), self.deadline);
        let kind = wrap(request.into_inner());
        edge::respond(measure, self.desk.answer(kind, deadline, HOPS_MAX), pick).await
    }

    async fn change<T>(
        &self,
        request: Request<T>,
        wrap: impl FnOnce(T) -> Kind,
    ) -> Result<Response<ChangeReply>, Status> {
        self.answer(request, wrap, &self.change, |reply| match reply {
            Reply::Change(reply) => Some(reply),
            _ => None,
        })
        .await
    }
}

#[tonic::async_trait]
impl Shards for ClientPort {
    type WatchStream = BoxStream<'static, Result<WatchReply, Status>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<ChangeReply>, Status> {
        self.change(request, Kind::Join).await
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<ChangeReply>, Status> {
        self.change(request, Kind::Leave).await
    }

    async fn weigh(&self, request: Request<WeighRequest>) -> Result<Response<ChangeReply>, Status> {
        self.change(request, Kind::Weigh).await
    }

    async fn r#move(&self, request: Request<MoveRequest>) -> Result<Response<ChangeReply>, Status> {
        self.change(request, Kind::Move).await
    }

    async fn unpin(&self, request: Request<UnpinRequest>) -> Result<Response<ChangeReply>, Status> {
        self.change(request, Kind::Unpin).await
    }

    async fn adopt(&self, request: Request<AdoptRequest>) -> Result<Response<ChangeReply>, Status> {
        self.change(request, Kind::Adopt).await
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        self.answer(request, Kind::Query, &self.query, |reply| match reply {
            Reply::Query(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryReply>, Status> {
        self.answer(request, Kind::History, &self.history, |reply| match reply {
            Reply::History(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let deadline = edge::deadline(request.metadata(), self.deadline);
        self.watches.watch(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportReply>, Status> {
        self.answer(request, Kind::Report, &self.report, |reply| match reply {
            Reply::Report(reply) => Some(reply),
            _ => None,
        })
        .await
    }
}

struct PeerPort {
    desk: Desk,
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
            Some(kind) => self.desk.answer(kind, deadline, hops_left).await,
            None => Err(never(Reason::Invalid, "a forwarded request of no known kind")),
        };
        let kind = replied.map_or_else(Reply::Refusal, |replied| replied.reply);
        Ok(Response::new(ForwardReply { kind: Some(kind) }))
    }
}
