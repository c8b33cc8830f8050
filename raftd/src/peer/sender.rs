//! One task for each peer: says hello, then carries messages to it, and begins again when the
//! connection breaks.

use std::sync::Arc;
use std::time::Duration;

use daemon::Shutdown;
use daemon::addresses::host_and_port;
use proto::raft as pb;
use proto::raft::raft_client::RaftClient;
use raft::{MessageKind, NodeId};
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::{BATCH_BYTES_MAX, Parcel, Peers, founder_from_wire};
use crate::identity::{FORMER_MAX, Founder, Group, GroupId, group_id};
use crate::settings::ADDRESS_BYTES_MAX;
use crate::wire;

/// How many messages may wait for a peer before new ones are dropped.
const QUEUE_MESSAGES_MAX: usize = 512;

/// How many messages one batch carries.
const BATCH_MESSAGES_MAX: usize = 64;

/// How many batches may be between this task and the connection.
const BATCHES_WAITING_MAX: usize = 4;

/// How long the answer to a hello may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before the first new attempt, and the longest one.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// The host's end of the queue to one peer.
#[derive(Debug)]
pub(crate) struct Sender {
    queue: mpsc::Sender<Parcel>,
}

impl Sender {
    /// A queue and its two ends.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Parcel>) {
        let (queue, messages) = mpsc::channel(QUEUE_MESSAGES_MAX);
        (Self { queue }, messages)
    }

    /// Sends something, or drops it. Whether it was taken.
    pub(crate) fn send(&self, parcel: Parcel) -> bool {
        self.queue.try_send(parcel).is_ok()
    }
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the peer is out of reach")]
    Unreachable(#[source] tonic::Status),
    #[error("the peer is not who it should be: {0}")]
    Mistrusted(#[from] super::Refusal),
    #[error("the peer refuses this member: {0}")]
    Refused(String),
    #[error("the peer ended the conversation")]
    Closed,
    #[error("the member is stopping")]
    Stopping,
}

/// Carries messages to `to` until shutdown. When the peer says that this member has lost data,
/// `lost` hears of it.
pub(crate) async fn run(
    peers: Arc<Peers>,
    to: NodeId,
    channel: Channel,
    mut messages: mpsc::Receiver<Parcel>,
    lost: watch::Sender<Option<String>>,
    shutdown: Shutdown,
) {
    let mut backoff = BACKOFF_MIN;
    let mut told = String::new();
    loop {
        let ended = match hello(&peers, Some(to), &channel, &lost).await {
            Ok(_) => {
                backoff = BACKOFF_MIN;
                told.clear();
                info!(peer = %to, "connected to peer");
                converse(&peers, to, &channel, &mut messages, &lost, &shutdown).await
            }
            Err(ended) => ended,
        };
        if matches!(ended, Ended::Stopping) || shutdown.is_requested() {
            return;
        }
        tell(to, &ended, &mut told);
        let pause = rand::rng().random_range(backoff / 2..=backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
        if !discard(&mut messages, pause, &shutdown).await {
            return;
        }
    }
}

/// What the answer to a hello tells.
struct Met {
    founder: Founder,
    /// Which group it belongs to, if it does.
    group: Option<GroupId>,
    /// Whom that was born with.
    born_with: Vec<Founder>,
    /// Which identities it had before.
    former: Vec<GroupId>,
}

/// Asks who the peer is, and whom it was born with.
pub(crate) async fn ask_birth(
    peers: &Peers,
    to: NodeId,
    channel: &Channel,
    lost: &watch::Sender<Option<String>>,
) -> Result<(Founder, Vec<Founder>), String> {
    let met = hello(peers, Some(to), channel, lost).await.map_err(|ended| ended.to_string())?;
    Ok((met.founder, met.born_with))
}

/// Asks whoever is there which group it belongs to, and whom that was born with.
pub(crate) async fn ask_group(
    peers: &Peers,
    channel: &Channel,
    lost: &watch::Sender<Option<String>>,
) -> Result<Group, String> {
    let met = hello(peers, None, channel, lost).await.map_err(|ended| ended.to_string())?;
    let (founders, former) = (met.born_with, met.former);
    match met.group.map(|id| Group { id, founders, former }) {
        Some(group) if *group.as_born() == group_id(&peers.cluster, &group.founders) => Ok(group),
        Some(_) => Err(format!("member {} contradicts itself about its group", met.founder.node)),
        None => Err(format!("member {} belongs to no group yet", met.founder.node)),
    }
}

/// Asks whoever is at an address who it is: a member that is to be added, or has moved.
pub(crate) async fn meet(peers: &Peers, address: &str) -> Result<Founder, String> {
    host_and_port("the address", address).map_err(|failure| failure.to_string())?;
    let channel = super::connect(address).map_err(|failure| failure.to_string())?;
    // A member that is asked to join others does not judge this one.
    let (unheard, _) = watch::channel(None);
    let met = hello(peers, None, &channel, &unheard).await.map_err(|ended| match ended {
        Ended::Unreachable(status) => format!("no answer ({})", status.message()),
        ended => ended.to_string(),
    })?;
    Ok(met.founder)
}

async fn hello(
    peers: &Peers,
    to: Option<NodeId>,
    channel: &Channel,
    lost: &watch::Sender<Option<String>>,
) -> Result<Met, Ended> {
    let mut request = tonic::Request::new(pb::HelloRequest {
        from: Some(peers.identity()),
        to: to.map_or(0, |to| to.0),
        peer_address: peers.me.peer_address.clone(),
        client_address: peers.me.client_address.clone(),
    });
    request.set_timeout(HELLO_TIMEOUT);
    let reply =
        RaftClient::new(channel.clone()).hello(request).await.map_err(Ended::Unreachable)?;
    let reply = reply.into_inner();
    if peers.is_superseded(&reply) {
        let by = reply.from.map_or(0, |from| from.node);
        let text = "this member is of the group before the recovery: wipe its directory and add \
                    it under a new id; or, if the recovery was a mistake and a majority is left, \
                    stop the recovered one instead, and start this one again";
        lost.send_replace(Some(format!("member {by} was recovered without this one: {text}")));
        return Err(Ended::Refused(text.to_owned()));
    }
    // Only a member of this group is believed what it says of this one.
    let claim = peers.admit(reply.from)?;
    refused(claim.node, reply.refused, reply.lost, lost)?;
    if reply.peer_address.len().max(reply.client_address.len()) > ADDRESS_BYTES_MAX {
        return Err(super::Refusal::Malformed.into());
    }
    let founder = Founder {
        node: claim.node,
        incarnation: claim.incarnation,
        peer_address: reply.peer_address,
        client_address: reply.client_address,
    };
    if let Some(to) = to.filter(|to| *to != founder.node) {
        return Err(super::Refusal::Mistaken(founder.node, to.0).into());
    }
    let born_with = reply.born_with.into_iter().map(founder_from_wire).collect::<Option<Vec<_>>>();
    let born_with = born_with.ok_or(super::Refusal::Malformed)?;
    let former = reply.former.iter().map(|id| GroupId::try_from(id.as_ref()));
    let former = former.take(FORMER_MAX).collect::<Result<Vec<_>, _>>();
    let former = former.map_err(|_| super::Refusal::Malformed)?;
    Ok(Met { founder, group: claim.group, born_with, former })
}

async fn converse(
    peers: &Peers,
    to: NodeId,
    channel: &Channel,
    messages: &mut mpsc::Receiver<Parcel>,
    lost: &watch::Sender<Option<String>>,
    shutdown: &Shutdown,
) -> Ended {
    let (batches, waiting) = mpsc::channel(BATCHES_WAITING_MAX);
    let mut client = RaftClient::new(channel.clone())
        .max_encoding_message_size(BATCH_BYTES_MAX)
        .max_decoding_message_size(BATCH_BYTES_MAX);
    let stream = client.send(ReceiverStream::new(waiting));
    tokio::pin!(stream);
    // Two waits at once: for the end of the call, and for the next batch to hand to it.
    let feed = async {
        while let Some(first) = messages.recv().await {
            let batch = gather(peers, to, first, messages);
            if batches.send(batch).await.is_err() {
                return Ended::Closed;
            }
        }
        Ended::Stopping
    };
    tokio::pin!(feed);
    tokio::select! {
        biased;
        () = shutdown.requested() => Ended::Stopping,
        reply = &mut stream => match reply {
            Ok(reply) => {
                let reply = reply.into_inner();
                match refused(to, reply.refused, reply.lost, lost) {
                    Ok(()) => Ended::Closed,
                    Err(ended) => ended,
                }
            }
            Err(status) => Ended::Unreachable(status),
        },
        ended = &mut feed => ended,
    }
}

/// One batch: `first` and what else is waiting.
fn gather(
    peers: &Peers,
    to: NodeId,
    first: Parcel,
    waiting: &mut mpsc::Receiver<Parcel>,
) -> pb::Batch {
    let (mut bytes, mut count) = (0, 0);
    let (mut messages, mut audits) = (Vec::new(), Vec::new());
    let mut next = Some(first);
    while let Some(parcel) = next {
        (bytes, count) = (bytes + size(&parcel), count + 1);
        match parcel {
            Parcel::Message(message) => messages.push(wire::to_wire(message)),
            Parcel::Audit(audit) => audits.push(wire::audit_to_wire(audit)),
        }
        let has_room = count < BATCH_MESSAGES_MAX && bytes < BATCH_BYTES_MAX / 4;
        next = if has_room { waiting.try_recv().ok() } else { None };
    }
    pb::Batch { from: Some(peers.identity()), to: to.0, messages, audits }
}

/// What it weighs, roughly.
fn size(parcel: &Parcel) -> usize {
    let Parcel::Message(message) = parcel else { return 64 };
    match &message.kind {
        MessageKind::AppendRequest { entries, .. } => {
            let bytes: u64 = entries.iter().map(raft::Entry::size).sum();
            usize::try_from(bytes).unwrap_or(usize::MAX)
        }
        MessageKind::VoteRequest { .. }
        | MessageKind::VoteReply { .. }
        | MessageKind::AppendReply { .. }
        | MessageKind::SnapshotOffer(_)
        | MessageKind::TimeoutNow
        | MessageKind::ReadRequest { .. }
        | MessageKind::ReadReply { .. } => 64,
    }
}

fn refused(
    by: NodeId,
    text: String,
    about_data: bool,
    lost: &watch::Sender<Option<String>>,
) -> Result<(), Ended> {
    if text.is_empty() {
        return Ok(());
    }
    if about_data {
        lost.send_replace(Some(format!("member {by} refuses this one: {text}")));
    }
    Err(Ended::Refused(text))
}

/// Drops what is queued for `pause`: it would be old news. False: the member is stopping.
async fn discard(
    messages: &mut mpsc::Receiver<Parcel>,
    pause: Duration,
    shutdown: &Shutdown,
) -> bool {
    let end = tokio::time::sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            biased;
            () = shutdown.requested() => return false,
            () = &mut end => return true,
            message = messages.recv() => if message.is_none() { return false },
        }
    }
}

/// Logs why a conversation ended, once for each reason in a row.
fn tell(peer: NodeId, ended: &Ended, told: &mut String) {
    let reason = ended.to_string();
    if *told == reason {
        return;
    }
    match ended {
        Ended::Unreachable(status) => {
            debug!(%peer, %status, "peer connection failed");
            info!(%peer, "peer is out of reach");
        }
        Ended::Mistrusted(_) | Ended::Refused(_) => {
            warn!(%peer, reason, "no conversation with peer");
        }
        Ended::Closed | Ended::Stopping => debug!(%peer, reason, "peer connection ended"),
    }
    *told = reason;
}
