//! How a request to the key/value store reaches a member: on the stream to it, or as a call of its
//! own.
//!
//! Decides which method a request is, and nothing else.

use std::{sync::Arc, time::Duration};

use proto::kv::{forward_reply, kv_client::KvClient, leases_client::LeasesClient, request};
use tokio::time::timeout;
use tonic::{Response, Status, transport::Channel};

use crate::{MESSAGE_BYTES_MAX, calls::request, members::Member, pipeline::Answer};

/// How a client's requests travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// All requests to a member on one stream (`Kv.Pipeline`), which costs least.
    #[default]
    Pipelined,
    /// Every request as a call of its own.
    Unary,
}

impl Transport {
    /// Makes one attempt with a member.
    pub(crate) async fn ask(
        self,
        member: Arc<Member>,
        kind: request::Kind,
        limit: Duration,
    ) -> Answer {
        match self {
            Self::Pipelined => member.pipeline().ask(kind, limit).await,
            Self::Unary => match timeout(limit, unary(member.channel(), kind, limit)).await {
                Ok(answer) => answer,
                Err(_) => Err(member.no_answer()),
            },
        }
    }
}

async fn unary(channel: Channel, kind: request::Kind, limit: Duration) -> Answer {
    use forward_reply::Kind as Reply;
    use request::Kind;
    match kind {
        Kind::Get(it) => answer(kv(channel).get(request(it, limit)).await, Reply::Get),
        Kind::Put(it) => answer(kv(channel).put(request(it, limit)).await, Reply::Put),
        Kind::Append(it) => answer(kv(channel).append(request(it, limit)).await, Reply::Append),
        Kind::Delete(it) => answer(kv(channel).delete(request(it, limit)).await, Reply::Delete),
        Kind::Time(it) => answer(kv(channel).time(request(it, limit)).await, Reply::Time),
        Kind::Scan(it) => answer(kv(channel).scan(request(it, limit)).await, Reply::Scan),
        Kind::Txn(it) => answer(kv(channel).txn(request(it, limit)).await, Reply::Txn),
        Kind::Compact(it) => answer(kv(channel).compact(request(it, limit)).await, Reply::Compact),
        Kind::Grant(it) => answer(leases(channel).grant(request(it, limit)).await, Reply::Grant),
        Kind::KeepAlive(it) => {
            answer(leases(channel).keep_alive(request(it, limit)).await, Reply::KeepAlive)
        }
        Kind::Revoke(it) => answer(leases(channel).revoke(request(it, limit)).await, Reply::Revoke),
        Kind::TimeToLive(it) => {
            answer(leases(channel).time_to_live(request(it, limit)).await, Reply::TimeToLive)
        }
    }
}

fn answer<R>(
    reply: Result<Response<R>, Status>,
    wrap: impl FnOnce(R) -> forward_reply::Kind,
) -> Answer {
    reply.map(|reply| reply.map(wrap))
}

fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

fn leases(channel: Channel) -> LeasesClient<Channel> {
    LeasesClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
