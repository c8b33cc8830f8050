//! The network: which links are cut, and when what is sent arrives, if at all.
//!
//! A link keeps the order of its messages, as a stream does, except for those that the fault mix
//! makes late or sends again; it knows nothing of what they say. Links are directed, and each may
//! be another: slower, worse, cut, clogged. What a link loses it loses without a word, as a black
//! hole does; that somebody is down is told at once where [`Mix::down_refuses`].

use std::collections::{BTreeMap, BTreeSet};

use raft::{Entry, Message, MessageKind};
use rand::{RngExt, rngs::StdRng};

use crate::{fault::Mix, group::MemberId};

/// A directed link.
pub type Link = (MemberId, MemberId);

/// What a message is, to a network that treats them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Reply,
}

/// What is to be sent, as far as the network cares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parcel {
    pub(crate) link: Link,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
}

/// What a message takes on the wire beside its entries.
pub(crate) const MESSAGE_BYTES: u64 = 64;

/// How long what was sent may wait for a narrow link; what comes on top is lost.
const QUEUE_US_MAX: u64 = 1_000_000;

/// What a message takes on the wire.
pub(crate) fn bytes_of(message: &Message) -> u64 {
    let entries = match &message.kind {
        MessageKind::AppendRequest { entries, .. } => entries.iter().map(Entry::size).sum(),
        MessageKind::VoteRequest { .. }
        | MessageKind::VoteReply { .. }
        | MessageKind::AppendReply { .. }
        | MessageKind::SnapshotOffer(_)
        | MessageKind::TimeoutNow
        | MessageKind::ReadRequest { .. }
        | MessageKind::ReadReply { .. } => 0,
    };
    MESSAGE_BYTES + entries
}

/// What a script withholds: the first message on a link that it picks.
pub type Pick = fn(&Message) -> bool;

/// How a link differs from what the mix says of all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quality {
    /// How many times longer a message takes.
    pub(crate) slower: u64,
    /// How many of 1,000 messages get lost on top.
    pub(crate) loss_per_mille: u32,
}

/// A link that is bad for a while.
#[derive(Clone, Copy, Debug)]
struct Degraded {
    until_us: u64,
    quality: Quality,
}

/// The state of all links.
#[derive(Debug, Default)]
pub(crate) struct Network {
    cut: BTreeSet<Link>,
    /// Members that scripts have taken off the network altogether.
    unplugged: BTreeSet<MemberId>,
    /// When the last message on a link arrives, so that later ones do not overtake it; while a link
    /// is clogged, also until when it is.
    busy_until: BTreeMap<Link, u64>,
    /// Until when a narrow link is occupied by what was sent before.
    occupied_until: BTreeMap<Link, u64>,
    /// Links that are unlike the others.
    uneven: BTreeMap<Link, Quality>,
    degraded: BTreeMap<Link, Degraded>,
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

    /// These links are worse until then.
    pub(crate) fn degrade(
        &mut self,
        links: impl IntoIterator<Item = Link>,
        until_us: u64,
        quality: Quality,
    ) {
        self.degraded.extend(links.into_iter().map(|link| (link, Degraded { until_us, quality })));
    }

    /// A link is unlike the others, as long as the network is not repaired.
    pub(crate) fn make_uneven(&mut self, link: Link, quality: Quality) {
        self.uneven.insert(link, quality);
    }

    /// What is sent from now on is not held back any more, and all links are as good as another.
    pub(crate) fn repair(&mut self) {
        self.heal();
        self.unplugged.clear();
        self.busy_until.clear();
        self.occupied_until.clear();
        self.degraded.clear();
        self.uneven.clear();
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

    pub(crate) fn unplug(&mut self, id: MemberId) {
        self.unplugged.insert(id);
    }

    pub(crate) fn plug_in(&mut self, id: MemberId) {
        self.unplugged.remove(&id);
    }

    pub(crate) fn is_plugged_in(&self, id: MemberId) -> bool {
        !self.unplugged.contains(&id)
    }

    pub(crate) fn is_open(&self, link: Link) -> bool {
        !self.cut.contains(&link) && self.is_plugged_in(link.0) && self.is_plugged_in(link.1)
    }

    /// When what is sent now arrives: never, once, or more often.
    pub(crate) fn arrivals(
        &mut self,
        now: u64,
        parcel: Parcel,
        rng: &mut StdRng,
        mix: &Mix,
    ) -> Vec<u64> {
        let Parcel { link, kind, .. } = parcel;
        let loss_per_mille = match kind {
            Kind::Request => mix.loss_per_mille,
            Kind::Reply => mix.reply_loss_per_mille,
        };
        let Quality { slower, loss_per_mille: on_top } = self.quality(now, link);
        if mix.chance(rng, loss_per_mille) || mix.chance(rng, on_top) {
            return Vec::new();
        }
        let Some(departs) = self.depart(now, parcel, mix) else { return Vec::new() };
        let may_be_late = kind == Kind::Reply || !mix.reorder_replies_only;
        let delay = slower * rng.random_range(mix.delay_us_min..=mix.delay_us_max);
        let mut arrivals = vec![if may_be_late && mix.chance(rng, mix.reorder_per_mille) {
            let late_us_max = rng.random_range(mix.reorder_us_min..=mix.reorder_us_max);
            departs + delay + rng.random_range(mix.reorder_us_min..=late_us_max)
        } else {
            let busy_until = self.busy_until.entry(link).or_default();
            *busy_until = (*busy_until).max(departs + delay);
            *busy_until
        }];
        if mix.chance(rng, mix.duplicate_per_mille) {
            arrivals.push(arrivals[0] + rng.random_range(0..=mix.replay_us_max));
        }
        arrivals
    }

    /// How a link is at the moment.
    fn quality(&self, now: u64, link: Link) -> Quality {
        let as_all = Quality { slower: 1, loss_per_mille: 0 };
        let uneven = self.uneven.get(&link).copied().unwrap_or(as_all);
        let degraded = self.degraded.get(&link).filter(|degraded| now < degraded.until_us);
        let degraded = degraded.map_or(as_all, |degraded| degraded.quality);
        Quality {
            slower: uneven.slower * degraded.slower,
            loss_per_mille: uneven.loss_per_mille + degraded.loss_per_mille,
        }
    }

    /// When a message has left: behind all that was sent before, where links are narrow; never, if
    /// too much is before it.
    fn depart(&mut self, now: u64, parcel: Parcel, mix: &Mix) -> Option<u64> {
        let Some(bytes_per_ms) = mix.link_bytes_per_ms else { return Some(now) };
        let occupied_until = self.occupied_until.entry(parcel.link).or_default();
        let begins = now.max(*occupied_until);
        if begins - now > QUEUE_US_MAX {
            return None;
        }
        *occupied_until = begins + parcel.bytes * 1_000 / bytes_per_ms;
        Some(*occupied_until)
    }
}
