//! The network: which links are cut, and when what is sent arrives, if at all.
//!
//! A link keeps the order of its messages, as a stream does, except for those that the fault mix
//! makes late; it knows nothing of what they say.

use std::collections::{BTreeMap, BTreeSet};

use raft::{Entry, Message, MessageKind, NodeId};
use rand::{RngExt, rngs::StdRng};

use crate::fault::Mix;

/// A directed link.
pub type Link = (NodeId, NodeId);

/// What a message is, to a network that treats them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Reply,
}

/// What a message takes on the wire beside its entries.
const MESSAGE_BYTES: u64 = 64;

/// What a message takes on the wire.
pub(crate) fn bytes_of(message: &Message) -> u64 {
    let entries = match &message.kind {
        MessageKind::AppendRequest { entries, .. } => entries.iter().map(Entry::size).sum(),
        MessageKind::VoteRequest { .. }
        | MessageKind::VoteReply { .. }
        | MessageKind::AppendReply { .. }
        | MessageKind::SnapshotOffer(_)
        | MessageKind::TimeoutNow => 0,
    };
    MESSAGE_BYTES + entries
}

/// What a script withholds: the first message on a link that it picks.
pub type Pick = fn(&Message) -> bool;

/// The state of all links.
#[derive(Debug, Default)]
pub(crate) struct Network {
    cut: BTreeSet<Link>,
    /// Members that scripts have taken off the network altogether.
    unplugged: BTreeSet<NodeId>,
    /// When the last message on a link arrives, so that later ones do not overtake it; while a link
    /// is clogged, also until when it is.
    busy_until: BTreeMap<Link, u64>,
    withholding: BTreeMap<Link, Pick>,
    withheld: Vec<(Link, Message)>,
}

impl Network {
    pub(crate) fn cut(&mut self, links: impl IntoIterator<Item = Link>) {
        self.cut.extend(links);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// What is sent on these links arrives at `until_us` at the earliest.
    pub(crate) fn clog(&mut self, links: impl IntoIterator<Item = Link>, until_us: u64) {
        for link in links {
            let busy_until = self.busy_until.entry(link).or_default();
            *busy_until = (*busy_until).max(until_us);
        }
    }

    /// What is sent from now on is not held back any more.
    pub(crate) fn unclog(&mut self) {
        self.busy_until.clear();
    }

    /// Withholds the next message on a link that `pick` picks.
    pub(crate) fn withhold(&mut self, link: Link, pick: Pick) {
        self.withholding.insert(link, pick);
    }

    /// Whether a message is to be withheld. If so it is.
    pub(crate) fn withholds(&mut self, link: Link, message: &Message) -> bool {
        let picked = self.withholding.get(&link).is_some_and(|pick| pick(message));
        if picked {
            self.withholding.remove(&link);
            self.withheld.push((link, message.clone()));
        }
        picked
    }

    /// What is withheld on a link.
    pub(crate) fn withheld(&self, link: Link) -> usize {
        self.withheld.iter().filter(|(held_on, _)| *held_on == link).count()
    }

    /// Gives out what was withheld on a link.
    pub(crate) fn release(&mut self, link: Link) -> Vec<Message> {
        let released = self.withheld.extract_if(.., |(held_on, _)| *held_on == link);
        released.map(|(_, message)| message).collect()
    }

    pub(crate) fn unplug(&mut self, node: NodeId) {
        self.unplugged.insert(node);
    }

    pub(crate) fn plug_in(&mut self, node: NodeId) {
        self.unplugged.remove(&node);
    }

    pub(crate) fn plug_in_all(&mut self) {
        self.unplugged.clear();
    }

    pub(crate) fn is_plugged_in(&self, node: NodeId) -> bool {
        !self.unplugged.contains(&node)
    }

    pub(crate) fn is_open(&self, link: Link) -> bool {
        !self.cut.contains(&link) && self.is_plugged_in(link.0) && self.is_plugged_in(link.1)
    }

    /// When a message that is sent now arrives: never, once, or more often.
    pub(crate) fn arrivals(
        &mut self,
        now: u64,
        link: Link,
        kind: Kind,
        rng: &mut StdRng,
        mix: &Mix,
    ) -> Vec<u64> {
        if mix.chance(rng, mix.loss_per_mille) {
            return Vec::new();
        }
        let copies = 1 + usize::from(mix.chance(rng, mix.duplicate_per_mille));
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let delay = rng.random_range(mix.delay_us_min..=mix.delay_us_max);
            let may_be_late = kind == Kind::Reply || !mix.reorder_replies_only;
            if may_be_late && mix.chance(rng, mix.reorder_per_mille) {
                let late_us_max = rng.random_range(mix.reorder_us_min..=mix.reorder_us_max);
                let late_us = rng.random_range(mix.reorder_us_min..=late_us_max);
                arrivals.push(now + delay + late_us);
            } else {
                let busy_until = self.busy_until.entry(link).or_default();
                *busy_until = (*busy_until).max(now + delay);
                arrivals.push(*busy_until);
            }
        }
        arrivals
    }
}
