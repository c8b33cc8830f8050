//! The gRPC services: `Kv` on the client port, `Forward` on the peer port.
//!
//! Thin: a call becomes a request with a deadline, and what comes back becomes a reply or a status.

use std::time::Duration;

use client::metadata::LEADER;
use metrics::{Counter, Histogram};
use proto::kv::{
    AppendReply, AppendRequest, DeleteReply, DeleteRequest, ForwardReply, ForwardRequest, GetReply,
    GetRequest, PutReply, PutRequest, Reason, Refusal, TimeReply, TimeRequest, forward_reply,
    forward_server::{Forward, ForwardServer},
    kv_server::{Kv, KvServer},
    request,
};
use tokio::time::Instant;
use tonic::{
    Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use crate::{
    config::DEADLINE_MAX,
    limits::REQUEST_BYTES_MAX,
    requests::{HOPS_MAX, Replied, Requests},
    wire,
};

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

struct Measure {
    seconds: Histogram,
    refused: Counter,
}

impl Measures {
    fn new() -> Self {
        metrics::describe_histogram!("flotilla_kv_request_seconds", "how long requests took");
        metrics::describe_counter!(
            "flotilla_kv_requests_refused_total",
            "requests without a reply"
        );
        let measure = |method: &'static str| Measure {
            seconds: metrics::histogram!("flotilla_kv_request_seconds", "method" => method),
            refused: metrics::counter!("flotilla_kv_requests_refused_total", "method" => method),
        };
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
        let began = Instant::now();
        let limit = timeout(metadata).unwrap_or(self.deadline).min(DEADLINE_MAX);
        let answer = self.requests.answer(kind, began + limit, HOPS_MAX).await;
        measure.seconds.record(began.elapsed());
        let Replied { kind, leader } = answer.map_err(|refusal| {
            measure.refused.increment(1);
            wire::status(refusal)
        })?;
        let reply = pick(kind).ok_or_else(|| {
            wire::status(wire::maybe(Reason::NotLeader, "the leader answered something else"))
        })?;
        let mut response = Response::new(reply);
        if let Some(leader) = leader
            && let Ok(address) = leader.client_address.parse::<AsciiMetadataValue>()
        {
            response.metadata_mut().insert(LEADER, address);
        }
        Ok(response)
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
            None => Err(wire::never(Reason::Invalid, "a forwarded request of no known kind")),
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
        Ok(self.requests.answer(kind, deadline, hops_left.min(HOPS_MAX)).await?.kind)
    }
}

/// How long the caller waits, as gRPC's header says it: at most eight digits and a unit.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count.saturating_mul(3600))),
        "M" => Some(Duration::from_secs(count.saturating_mul(60))),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(read("10S"), Some(Duration::from_secs(10)));
        assert_eq!(read("2500m"), Some(Duration::from_millis(2_500)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "10", "-1S", "+1S", "123456789S", "1 S", "10é"] {
            let mut metadata = MetadataMap::new();
            if let Ok(value) = wrong.parse() {
                metadata.insert("grpc-timeout", value);
            }
            assert_eq!(timeout(&metadata), None, "{wrong}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }
}
