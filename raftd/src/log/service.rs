//! The gRPC services: `Log` on the client port, `Forward` on the peer port.
//!
//! Thin: a call becomes a request with a deadline, and what comes back becomes a reply or a status.

use std::time::Duration;

use futures::stream::BoxStream;
use proto::log::{
    ForwardReply, ForwardRequest, ProposeReply, ProposeRequest, StatusReply, StatusRequest,
    SubscribeReply, SubscribeRequest, TimeReply, TimeRequest, TrimReply, TrimRequest,
    forward_reply,
    forward_server::{Forward, ForwardServer},
    log_server::{Log, LogServer},
    request,
};
use proto::raft::Reason;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::edge::{self, Measure, Replied, never};
use crate::forward::{HOPS_MAX, passed_on};
use crate::log::requests::{MESSAGE_BYTES_MAX, Requests};
use crate::log::subscribe::Subscriptions;

/// The service for the client port. `deadline` is for requests that say none.
pub(crate) fn log(
    requests: Requests,
    subscriptions: Subscriptions,
    deadline: Duration,
) -> LogServer<impl Log> {
    let measure = |method| Measure::new("log", method);
    LogServer::new(ClientPort {
        requests,
        subscriptions,
        deadline,
        propose: measure("propose"),
        trim: measure("trim"),
        status: measure("status"),
        time: measure("time"),
    })
    .max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The service for the peer port.
pub(crate) fn forward(requests: Requests) -> ForwardServer<impl Forward> {
    ForwardServer::new(PeerPort { requests }).max_decoding_message_size(2 * MESSAGE_BYTES_MAX)
}

struct ClientPort {
    requests: Requests,
    subscriptions: Subscriptions,
    deadline: Duration,
    propose: Measure,
    trim: Measure,
    status: Measure,
    time: Measure,
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
impl Log for ClientPort {
    type SubscribeStream = BoxStream<'static, Result<SubscribeReply, Status>>;

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Propose(message);
        self.answer(&metadata, kind, &self.propose, |kind| match kind {
            forward_reply::Kind::Propose(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let deadline = edge::deadline(request.metadata(), self.deadline);
        self.subscriptions.subscribe(request.into_inner(), deadline).await.map(Response::new)
    }

    async fn trim(&self, request: Request<TrimRequest>) -> Result<Response<TrimReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Trim(message);
        self.answer(&metadata, kind, &self.trim, |kind| match kind {
            forward_reply::Kind::Trim(reply) => Some(reply),
            _ => None,
        })
        .await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let pick = |kind| match kind {
            forward_reply::Kind::Status(reply) => Some(reply),
            _ => None,
        };
        if message.stale {
            let here = async {
                let reply = self.requests.status_here().await?;
                Ok(Replied { reply, leader: None })
            };
            return edge::respond(&self.status, here, pick).await;
        }
        self.answer(&metadata, request::Kind::Status(message), &self.status, pick).await
    }

    async fn time(&self, request: Request<TimeRequest>) -> Result<Response<TimeReply>, Status> {
        let (metadata, _, message) = request.into_parts();
        let kind = request::Kind::Time(message);
        self.answer(&metadata, kind, &self.time, |kind| match kind {
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
        let (deadline, hops_left) = passed_on(deadline_ms, hops_left);
        let replied = match request.and_then(|request| request.kind) {
            Some(kind) => self.requests.answer(kind, deadline, hops_left).await,
            None => Err(never(Reason::Invalid, "a forwarded request of no known kind")),
        };
        let kind = replied.map_or_else(forward_reply::Kind::Refusal, |replied| replied.reply);
        Ok(Response::new(ForwardReply { kind: Some(kind) }))
    }
}
