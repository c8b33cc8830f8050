//! A request that reached this member: what the leader does with it, and how it gets there.
//!
//! Who executes it and what may be tried again is decided in `forward.rs`.

use std::time::Duration;

use proto::log::forward_client::ForwardClient;
use proto::log::{ForwardRequest, Request, StatusReply, TimeReply, forward_reply, request};
use proto::raft::Refusal;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::edge::{Replied, refused};
use crate::forward::{self, Stamps};
use crate::handle::Handle;
use crate::log::limits::{PROPOSE_BYTES_MAX, ProposeLimits};
use crate::log::machine::LogMachine;
use crate::log::outcome::{Header, Query};
use crate::log::wire::{self, Ask};

/// The longest message on either port: more than a Propose may have, so that one that is too long
/// is refused by the name of its limit.
pub(crate) const MESSAGE_BYTES_MAX: usize = 2 * PROPOSE_BYTES_MAX;

/// Serves requests with the group's replica. Clones share everything.
#[derive(Clone)]
pub(crate) struct Requests {
    pub(crate) handle: Handle<LogMachine>,
    limits: ProposeLimits,
    quota_bytes: u64,
    stamps: Stamps,
}

impl Requests {
    pub(crate) fn new(handle: Handle<LogMachine>, limits: ProposeLimits, quota_bytes: u64) -> Self {
        Self { handle, limits, quota_bytes, stamps: Stamps::default() }
    }

    /// Answers a request by `deadline`, passing it on at most `hops_left` times.
    pub(crate) async fn answer(
        &self,
        kind: request::Kind,
        deadline: Instant,
        hops_left: u32,
    ) -> Result<Replied<forward_reply::Kind>, Refusal> {
        let ask = wire::ask(&kind, &self.limits, self.quota_bytes)?;
        let asked = Asked { requests: self, ask, kind };
        forward::answer(&self.handle, &asked, deadline, hops_left).await
    }

    /// Where the log stands, as this member has applied it.
    pub(crate) async fn status_here(&self) -> Result<forward_reply::Kind, Refusal> {
        let answer = self.handle.query_stale(Query::Status).await;
        Ok(self.status(answer.map_err(|refusal| refused(&refusal))?.header))
    }

    async fn header(&self, deadline: Instant) -> Result<Header, Refusal> {
        let answer = self.handle.query(Query::Status, deadline).await;
        Ok(answer.map_err(|refusal| refused(&refusal))?.header)
    }

    fn status(&self, header: Header) -> forward_reply::Kind {
        let (header, quota_bytes) = (Some(wire::header(header)), self.quota_bytes);
        forward_reply::Kind::Status(StatusReply { header, quota_bytes })
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
        !wire::is_anonymous_append(&self.kind)
    }

    fn is_read(&self) -> bool {
        matches!(self.ask, Ask::Status)
    }

    async fn execute(&self, deadline: Instant) -> Result<forward_reply::Kind, Refusal> {
        let Requests { handle, stamps, .. } = self.requests;
        match &self.ask {
            Ask::Status => Ok(self.requests.status(self.requests.header(deadline).await?)),
            Ask::Time => {
                stamps.freshen(handle, deadline).await?;
                let header = Some(wire::header(self.requests.header(deadline).await?));
                Ok(forward_reply::Kind::Time(TimeReply { header }))
            }
            Ask::Command { command, verb } => {
                if verb.grows() {
                    handle.check_space().map_err(|refusal| refused(&refusal))?;
                }
                let what = verb.name();
                wire::reply(stamps.propose(handle, command.clone(), deadline, what).await?)
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
        let mut client =
            ForwardClient::new(leader).max_encoding_message_size(2 * MESSAGE_BYTES_MAX);
        let reply = client.execute(message).await?.into_inner();
        Ok(reply.kind.map(|kind| match kind {
            forward_reply::Kind::Refusal(refusal) => Err(refusal),
            kind => Ok(kind),
        }))
    }
}
