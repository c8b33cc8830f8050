//! The members of the group as this one meets them: who they are, and the connections to them.
//!
//! ```text
//!   host task --queue--> sender (one per peer) ==Raft.Send==> service --inbox--> host task
//! ```
//!
//! Queues are bounded and drop: Raft repairs what is lost. Snapshots have a connection of their
//! own, so that a heartbeat never waits behind one.

mod directory;
mod fetcher;
mod giver;
mod sender;
mod senders;
mod service;
#[cfg(test)]
mod transfer_tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::raft as pb;
use raft::{AuditMessage, Membership, Message, NodeId};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use crate::identity::{Acquaintances, Claim, Founder, Group, GroupId, Incarnation, Mistrust};
use crate::membership;
use crate::settings::ADDRESS_BYTES_MAX;

pub(crate) use directory::Directory;
pub(crate) use fetcher::Fetcher;
pub(crate) use sender::{Sender, ask_birth, ask_group, meet, run as run_sender};
pub(crate) use senders::Senders;
pub(crate) use service::service;

/// The largest batch of messages on the wire; an append of the largest entry fits, whatever the
/// limits of the core.
pub(crate) const BATCH_BYTES_MAX: usize = 8 << 20;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a silent connection lives before it is asked for a sign of life, and after.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// How long a member must have been without a leader to believe that its group was recovered without
/// it: longer than elections take. A restart of all members may take longer; then the person who
/// recovered one by mistake has to stop it first.
const LEADERLESS_MIN: Duration = Duration::from_secs(5);

/// Messages of one peer, as they came in.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) from: NodeId,
    pub(crate) messages: Vec<Message>,
    pub(crate) audits: Vec<AuditMessage>,
}

/// Something for a peer.
#[derive(Debug)]
pub(crate) enum Parcel {
    Message(Message),
    Audit(AuditMessage),
}

/// What is known of this member and the others. Shared by the tasks of this module and the host;
/// every lock is held for a few comparisons.
#[derive(Debug)]
pub(crate) struct Peers {
    pub(crate) cluster: String,
    pub(crate) me: Founder,
    pub(crate) boot: u64,
    pub(crate) nonce: u64,
    /// The write sequence that this boot began with.
    pub(crate) boot_write_sequence: u64,
    /// The highest durable write sequence.
    pub(crate) write_sequence: AtomicU64,
    /// This member's state is in doubt: it gives no snapshots.
    pub(crate) doubted: AtomicBool,
    /// Since when this member knows of no leader; none: it knows one.
    leaderless: Mutex<Option<Instant>>,
    trust: Mutex<Trust>,
    /// Peers that have started anew, for the store to remember.
    news: mpsc::UnboundedSender<News>,
}

/// A peer has started anew, as this member has just learned. There is one for each start of a
/// peer, so an unbounded queue of them stays short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) boot: u64,
    pub(crate) write_sequence: u64,
}

#[derive(Debug)]
struct Trust {
    known: Acquaintances,
    /// Where those who said hello are reached: a leader may be newer than this member's log.
    callers: BTreeMap<NodeId, String>,
    group: Option<Group>,
}

impl Peers {
    pub(crate) fn new(
        cluster: String,
        me: Founder,
        boot: u64,
        nonce: u64,
        boot_write_sequence: u64,
        known: Acquaintances,
        news: mpsc::UnboundedSender<News>,
    ) -> Self {
        let trust = Mutex::new(Trust { known, callers: BTreeMap::new(), group: None });
        let write_sequence = AtomicU64::new(boot_write_sequence);
        let leaderless = Mutex::new(Some(Instant::now()));
        Self {
            cluster,
            me,
            boot,
            nonce,
            boot_write_sequence,
            write_sequence,
            doubted: AtomicBool::new(false),
            leaderless,
            trust,
            news,
        }
    }

    /// The group was born.
    pub(crate) fn bear(&self, group: Group) {
        let mut trust = self.trust();
        trust.known.bear(&group);
        trust.group = Some(group);
    }

    /// Whether this member knows of a leader now.
    pub(crate) fn led(&self, is_led: bool) {
        let mut since = self.leaderless.lock().expect("nothing panics while it holds this lock");
        *since = if is_led { None } else { since.or_else(|| Some(Instant::now())) };
    }

    /// Whether the group of who answered so was recovered from the one that this member belongs to,
    /// and that is no more: as long as it has leaders its majority is not lost, whatever the person
    /// thought who recovered the other.
    fn is_superseded(&self, answer: &pb::HelloReply) -> bool {
        let group = self.trust().group.as_ref().map(|group| group.id);
        let is_former = group.is_some_and(|id| answer.former.iter().any(|it| it[..] == id[..]));
        let since = *self.leaderless.lock().expect("nothing panics while it holds this lock");
        is_former && since.is_some_and(|since| since.elapsed() >= LEADERLESS_MIN)
    }

    /// What this member says of itself.
    pub(crate) fn identity(&self) -> pb::Identity {
        let group = self.trust().group.as_ref().map(|group| group.id);
        pb::Identity {
            version: proto::PEER_PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            group: group.map_or_else(Bytes::new, |group| Bytes::copy_from_slice(&group)),
            node: self.me.node.0,
            incarnation: Bytes::copy_from_slice(&self.me.incarnation),
            boot: self.boot,
            nonce: self.nonce,
            write_sequence: self.write_sequence.load(Ordering::Relaxed),
            boot_write_sequence: self.boot_write_sequence,
        }
    }

    /// Whether a peer is who it says it is.
    pub(crate) fn admit(&self, identity: Option<pb::Identity>) -> Result<Claim, Refusal> {
        let claim = identity.and_then(claim).ok_or(Refusal::Malformed)?;
        if let Some(heard) = self.trust().known.check(&claim)? {
            // The receiver is gone only when the host has stopped; then nothing matters any more.
            let _ = self.news.send(News {
                node: claim.node,
                incarnation: claim.incarnation,
                boot: heard.boot,
                write_sequence: heard.write_sequence,
            });
        }
        Ok(claim)
    }

    /// These are the members now.
    pub(crate) fn follow(&self, membership: &Membership) {
        self.trust().known.follow(membership::incarnations(membership));
    }

    /// These are the members, for certain.
    pub(crate) fn pin(&self, membership: &Membership) {
        let incarnations = membership::incarnations(membership);
        self.trust().known.pin(incarnations, membership.last_id());
    }

    /// Whether it is one of the members, for certain, with the very incarnation.
    pub(crate) fn is_member(&self, founder: &Founder) -> bool {
        self.trust().known.is_member(founder.node, founder.incarnation)
    }

    /// Somebody who was admitted says where it is reached.
    fn called(&self, node: NodeId, address: String) {
        if address.len() <= ADDRESS_BYTES_MAX {
            self.trust().callers.insert(node, address);
        }
    }

    /// Where somebody who said hello is reached.
    pub(crate) fn caller(&self, node: NodeId) -> Option<String> {
        self.trust().callers.get(&node).cloned()
    }

    fn group(&self) -> Option<Group> {
        self.trust().group.clone()
    }

    fn trust(&self) -> MutexGuard<'_, Trust> {
        self.trust.lock().expect("nothing panics while it holds this lock")
    }
}

/// Why a peer is not listened to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it does not say who it is")]
    Malformed,
    #[error("it takes this member, {0}, for member {1}: check --member")]
    Mistaken(NodeId, u64),
    #[error(transparent)]
    Mistrust(#[from] Mistrust),
}

impl Refusal {
    /// Whether it speaks of the peer's own data.
    pub(crate) fn is_about_data(&self) -> bool {
        matches!(self, Self::Mistrust(mistrust) if mistrust.is_about_data())
    }
}

/// A connection to a peer port, made when it is first used.
pub(crate) fn connect(address: &str) -> Result<Channel, daemon::Failure> {
    Ok(endpoint(address)?
        .initial_stream_window_size(daemon::grpc::CONNECTION_WINDOW_BYTES)
        .initial_connection_window_size(daemon::grpc::CONNECTION_WINDOW_BYTES)
        .connect_lazy())
}

fn endpoint(address: &str) -> Result<Endpoint, daemon::Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
        daemon::Failure::configuration(format!("\"{address}\" is no address of a member"))
            .because(error)
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

fn claim(identity: pb::Identity) -> Option<Claim> {
    let group = match identity.group.len() {
        0 => None,
        _ => Some(GroupId::try_from(identity.group.as_ref()).ok()?),
    };
    Some(Claim {
        version: identity.version,
        cluster: identity.cluster,
        group,
        node: NodeId(identity.node),
        incarnation: identity.incarnation.as_ref().try_into().ok()?,
        boot: identity.boot,
        nonce: identity.nonce,
        write_sequence: identity.write_sequence,
        boot_write_sequence: identity.boot_write_sequence,
    })
}

fn founder_to_wire(founder: &Founder) -> pb::InitialMember {
    pb::InitialMember {
        node: founder.node.0,
        incarnation: Bytes::copy_from_slice(&founder.incarnation),
        peer_address: founder.peer_address.clone(),
        client_address: founder.client_address.clone(),
    }
}

fn founder_from_wire(member: pb::InitialMember) -> Option<Founder> {
    if member.peer_address.len().max(member.client_address.len()) > ADDRESS_BYTES_MAX {
        return None;
    }
    Some(Founder {
        node: NodeId(member.node),
        incarnation: member.incarnation.as_ref().try_into().ok()?,
        peer_address: member.peer_address,
        client_address: member.client_address,
    })
}
