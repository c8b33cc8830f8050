//! The queues to all other members, as the membership comes and goes. Owned by the host task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::Shutdown;
use raft::{Membership, NodeId};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::{Directory, Parcel, Peers, Sender, connect, run_sender};

/// How long there is still a queue to a member that was removed: it is to hear of it.
const FAREWELL: Duration = Duration::from_secs(10);

pub(crate) struct Senders {
    peers: Arc<Peers>,
    directory: Arc<Directory>,
    /// Whom the group was born with.
    founders: Arc<Membership>,
    lost: watch::Sender<Option<String>>,
    closing: Shutdown,
    queues: BTreeMap<NodeId, Sender>,
    /// Who was removed, and when.
    leaving: BTreeMap<NodeId, Instant>,
}

impl Senders {
    pub(crate) fn new(
        peers: Arc<Peers>,
        directory: Arc<Directory>,
        founders: Arc<Membership>,
        lost: watch::Sender<Option<String>>,
        closing: Shutdown,
    ) -> Self {
        let (queues, leaving) = (BTreeMap::new(), BTreeMap::new());
        Self { peers, directory, founders, lost, closing, queues, leaving }
    }

    /// Sends something, or drops it. Whether it was taken.
    pub(crate) fn send(&mut self, to: NodeId, parcel: Parcel) -> bool {
        if !self.queues.contains_key(&to)
            && let Some(channel) = self.peers.caller(to).and_then(|at| connect(&at).ok())
        {
            self.converse(to, channel);
        }
        self.queues.get(&to).is_some_and(|queue| queue.send(parcel))
    }

    /// These are the members now.
    pub(crate) fn follow(&mut self, membership: &Membership) {
        for to in self.directory.follow(membership, &self.founders) {
            self.queues.remove(&to);
        }
        let me = self.peers.me.node;
        for &to in membership.members().keys().filter(|&&to| to != me) {
            if !self.queues.contains_key(&to)
                && let Some(channel) = self.directory.channel(to)
            {
                self.converse(to, channel);
            }
        }
        let now = Instant::now();
        let is_member = |node: &NodeId| membership.members().contains_key(node);
        self.leaving.retain(|node, _| !is_member(node));
        for &node in self.queues.keys().filter(|node| !is_member(node)) {
            self.leaving.entry(node).or_insert(now);
        }
    }

    /// Who was removed long ago need not be sent anything more.
    pub(crate) fn part(&mut self) {
        let gone = self.leaving.extract_if(.., |_, since| since.elapsed() >= FAREWELL);
        for (node, _) in gone {
            self.queues.remove(&node);
        }
    }

    /// Begins a conversation; it ends with its queue.
    fn converse(&mut self, to: NodeId, channel: Channel) {
        let (sender, messages) = Sender::new();
        self.queues.insert(to, sender);
        let (peers, lost, closing) = (self.peers.clone(), self.lost.clone(), self.closing.clone());
        tokio::spawn(run_sender(peers, to, channel, messages, lost, closing));
    }
}
