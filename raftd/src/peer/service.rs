//! The peer port's side of the conversation.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use daemon::Shutdown;
use futures::{Stream, StreamExt};
use proto::raft as pb;
use proto::raft::raft_server::{Raft, RaftServer};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::giver::Giver;
use super::{BATCH_BYTES_MAX, Incoming, Peers, Refusal, founder_to_wire};
use crate::store::Snapshots;
use crate::wire;

/// The service for the peer port. What comes in goes to `inbox`.
pub(crate) fn service(
    peers: Arc<Peers>,
    inbox: mpsc::Sender<Incoming>,
    snapshots: Snapshots,
    shutdown: Shutdown,
) -> RaftServer<impl Raft> {
    RaftServer::new(Service { peers, inbox, giver: Giver::new(snapshots), shutdown })
        .max_decoding_message_size(BATCH_BYTES_MAX)
        .max_encoding_message_size(BATCH_BYTES_MAX)
}

struct Service {
    peers: Arc<Peers>,
    inbox: mpsc::Sender<Incoming>,
    giver: Giver,
    shutdown: Shutdown,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<pb::Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl Raft for Service {
    async fn hello(
        &self,
        request: Request<pb::HelloRequest>,
    ) -> Result<Response<pb::HelloReply>, Status> {
        let request = request.into_inner();
        // Who does not say whom it takes this member for wants to know just that.
        let to = if request.to == 0 { self.peers.me.node.0 } else { request.to };
        let admitted = self.check(request.from, to);
        let (refused, lost) = match &admitted {
            Ok(from) => {
                self.peers.called(*from, request.peer_address);
                (String::new(), false)
            }
            Err(refusal) => (refusal.to_string(), refusal.is_about_data()),
        };
        let group = self.peers.group();
        let founders = group.iter().flat_map(|group| &group.founders);
        let former = group.iter().flat_map(|group| &group.former);
        Ok(Response::new(pb::HelloReply {
            from: Some(self.peers.identity()),
            peer_address: self.peers.me.peer_address.clone(),
            client_address: self.peers.me.client_address.clone(),
            born_with: founders.map(founder_to_wire).collect(),
            refused,
            lost,
            former: former.map(|id| bytes::Bytes::copy_from_slice(id)).collect(),
        }))
    }

    async fn send(
        &self,
        request: Request<Streaming<pb::Batch>>,
    ) -> Result<Response<pb::SendReply>, Status> {
        let mut batches = request.into_inner();
        loop {
            let batch = tokio::select! {
                biased;
                () = self.shutdown.requested() => break,
                batch = batches.message() => batch?,
            };
            let Some(batch) = batch else { break };
            match self.check(batch.from, batch.to) {
                Ok(from) => {
                    let messages = batch
                        .messages
                        .into_iter()
                        .map(wire::from_wire)
                        .collect::<Result<Vec<_>, _>>();
                    let messages =
                        messages.map_err(|error| Status::invalid_argument(error.to_string()))?;
                    let audits = batch.audits.into_iter().map(wire::audit_from_wire);
                    let audits = audits.filter_map(Result::transpose).collect::<Result<_, _>>();
                    let audits =
                        audits.map_err(|error| Status::invalid_argument(error.to_string()))?;
                    if self.inbox.send(Incoming { from, messages, audits }).await.is_err() {
                        break;
                    }
                }
                Err(refusal) => {
                    warn!(%refusal, "refused a peer");
                    let lost = refusal.is_about_data();
                    return Ok(Response::new(pb::SendReply { refused: refusal.to_string(), lost }));
                }
            }
        }
        Ok(Response::new(pb::SendReply::default()))
    }

    type FetchStream = Chunks;

    async fn fetch(
        &self,
        request: Request<pb::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let mut request = request.into_inner();
        let admitted = self.peers.admit(request.from.take());
        let claim = admitted.map_err(|refusal| Status::permission_denied(refusal.to_string()))?;
        if claim.group.is_none() {
            return Err(Status::permission_denied("who fetches a snapshot belongs to the group"));
        }
        // A transfer that runs ends as well when the doubt begins.
        let trusted = |peers: &Peers| match peers.doubted.load(Ordering::Relaxed) {
            true => Err(Status::unavailable("the state of this member is in doubt")),
            false => Ok(()),
        };
        trusted(&self.peers)?;
        let peers = self.peers.clone();
        let chunks = self.giver.give(claim.node, &request)?;
        let chunks = chunks.map(move |chunk| trusted(&peers).and(chunk));
        Ok(Response::new(Box::pin(chunks)))
    }
}

impl Service {
    fn check(&self, from: Option<pb::Identity>, to: u64) -> Result<raft::NodeId, Refusal> {
        let claim = self.peers.admit(from)?;
        if to == self.peers.me.node.0 {
            Ok(claim.node)
        } else {
            Err(Refusal::Mistaken(self.peers.me.node, to))
        }
    }
}
