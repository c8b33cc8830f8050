//! A request that reached this member: what the leader does with it, and how it gets there.
//!
//! Who executes it and what may be tried again is decided in `raftd::forward`.

use std::time::Duration;

use proto::{
    kv::{ForwardRequest, Request, forward_client::ForwardClient, forward_reply, request},
    raft::{Reason, Refusal},
};
use raftd::{
    Handle,
    edge::{Replied, never, refused},
    forward::{self, Stamps},
};
use tokio::time::Instant;
use tonic::{Status, transport::Channel};

use crate::{
    KvMachine,
    limits::{PairLimits, REQUEST_BYTES_MAX},
    outcome::Query,
    wire::{self, Ask},
};

/// Serves requests with the group's replica. Clones share everything.
#[derive(Clone)]
pub(crate) struct Requests {
    handle: Handle<KvMachine>,
    shards: u32,
    limits: PairLimits,
    stamps: Stamps,
}

impl Requests {
    pub(crate) fn new(handle: Handle<KvMachine>, shards: u32, limits: PairLimits) -> Self {
        Self { handle, shards, limits, stamps: Stamps::default() }
    }

    /// Answers a request by `deadline`, passing it on at most `hops_left` times.
    pub(crate) async fn answer(
        &self,
        kind: request::Kind,
        deadline: Instant,
        hops_left: u32,
    ) -> Result<Replied<forward_reply::Kind>, Refusal> {
        let ask = wire::ask(&kind, self.shards, &self.limits)?;
        let asked = Asked { requests: self, ask, kind };
        forward::answer(&self.handle, &asked, deadline, hops_left).await
    }

    async fn query(&self, query: Query, deadline: Instant) -> Result<forward_reply::Kind, Refusal> {
        let answer =
            self.handle.query(query, deadline).await.map_err(|refusal| refused(&refusal))?;
        wire::answer(answer)
            .ok_or_else(|| never(Reason::Invalid, "the answer is to another question"))
    }
}

/// One request.
struct Asked<'a> {
    requests: &'a Requests,
    ask: Ask,
    kind: request::Kind,
}

impl forward::Ask for Asked<'_> {
    type Reply = forward_reply::Kind;

    fn may_repeat(&self) -> bool {
        !wire::is_anonymous_mutation(&self.kind)
    }

    fn is_read(&self) -> bool {
        matches!(self.ask, Ask::Query(_))
    }

    async fn execute(&self, deadline: Instant) -> Result<forward_reply::Kind, Refusal> {
        let Requests { handle, stamps, .. } = self.requests;
        match &self.ask {
            Ask::Query(query) => self.requests.query(query.clone(), deadline).await,
            Ask::Time(query) => {
                stamps.freshen(handle, deadline).await?;
                self.requests.query(query.clone(), deadline).await
            }
            Ask::Command { command, verb } => {
                if verb.grows() {
                    handle.check_space().map_err(|refusal| refused(&refusal))?;
                }
                let what = verb.name();
                let proposed = stamps.propose(handle, command.clone(), deadline, what).await?;
                wire::reply(*verb, proposed)
            }
        }
    }

    async fn send(
        &self,
        leader: Channel,
        left: Duration,
        hops_left: u32,
    ) -> Result<Option<Result<forward_reply::Kind, Refusal>>, Status> {
        let mut message = tonic::Request::new(ForwardRequest {
            request: Some(Request { kind: Some(self.kind.clone()) }),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            hops_left,
        });
        message.set_timeout(left);
        let mut client = ForwardClient::new(leader)
            .max_encoding_message_size(2 * REQUEST_BYTES_MAX)
            .max_decoding_message_size(2 * REQUEST_BYTES_MAX);
        let reply = client.execute(message).await?.into_inner();
        Ok(reply.kind.map(|kind| match kind {
            forward_reply::Kind::Refusal(refusal) => Err(refusal),
            kind => Ok(kind),
        }))
    }
}
