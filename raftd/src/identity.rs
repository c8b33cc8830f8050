//! Who is who in a group: whether what a peer says of itself can be true.
//!
//! A member whose disk was wiped, or put back to an older state, has forgotten promises: votes and
//! acknowledgements that others built on. It must not take part, however well it means. Its
//! incarnation tells a wiped disk, and the durable write sequence that others heard from it tells
//! an older copy. Pure: `peer/` asks, the store remembers.

use std::collections::BTreeMap;

use raft::NodeId;

/// A random number that a member draws when its directory is made.
pub type Incarnation = [u8; 16];

/// The identity of a group, made at its birth: a digest of its cluster's name and of who was born
/// with it. A recovery from the loss of its majority draws another.
pub type GroupId = [u8; 32];

/// How many former identities of a group are remembered. Beyond that the oldest but the first go:
/// their members are refused all the same, with fewer words.
pub(crate) const FORMER_MAX: usize = 8;

/// A group that is born.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its identity.
    pub id: GroupId,
    /// Whom it was born with.
    pub founders: Vec<Founder>,
    /// The identities that it had before it was recovered, that of its birth first.
    pub former: Vec<GroupId>,
}

impl Group {
    /// The identity that it was born with.
    pub fn as_born(&self) -> &GroupId {
        self.former.first().unwrap_or(&self.id)
    }

    /// It has another identity from now on.
    pub(crate) fn recover(&mut self, id: GroupId) {
        self.former.push(std::mem::replace(&mut self.id, id));
        if self.former.len() > FORMER_MAX {
            self.former.remove(1);
        }
    }
}

/// One of the members that a group was born with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// Its id.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where peers reached it at the birth.
    pub peer_address: String,
    /// Where clients reached it at the birth.
    pub client_address: String,
}

/// The identity of a group that `founders`, in order of their ids, were born with.
pub(crate) fn group_id(cluster: &str, founders: &[Founder]) -> GroupId {
    let mut hasher = blake3::Hasher::new_derive_key("flotilla group identity v1");
    hasher.update(&(cluster.len() as u64).to_le_bytes());
    hasher.update(cluster.as_bytes());
    for founder in founders {
        hasher.update(&founder.node.0.to_le_bytes());
        hasher.update(&founder.incarnation);
    }
    *hasher.finalize().as_bytes()
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) version: u32,
    pub(crate) cluster: String,
    pub(crate) group: Option<GroupId>,
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
    pub(crate) boot: u64,
    pub(crate) nonce: u64,
    pub(crate) write_sequence: u64,
    pub(crate) boot_write_sequence: u64,
}

/// What was last heard of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// None: not heard at all.
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) boot: u64,
    /// None: heard before this process started, so it can't be compared.
    pub(crate) nonce: Option<u64>,
    pub(crate) write_sequence: u64,
}

/// Why a peer is refused. Each says what a person should do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Mistrust {
    #[error("it speaks version {0} of the peer protocol, newer than {1}: upgrade this member")]
    Version(u32, u32),
    #[error("it belongs to the cluster \"{0}\", not to \"{1}\": check --cluster and --member")]
    Cluster(String, String),
    #[error("it belongs to another group of this name: its data directory is of another cluster")]
    Group,
    #[error(
        "member {0} is of the group before the recovery: wipe its directory and add it under a new \
         id"
    )]
    Former(NodeId),
    #[error("{0} is no member of this group")]
    Stranger(NodeId),
    #[error(
        "member {0} has lost its data (its incarnation is not the one that the group knows): \
         remove it and add it again under a new id"
    )]
    Wiped(NodeId),
    #[error(
        "member {0} was removed from the group: stop it; to come back it needs an empty directory \
         and a new id"
    )]
    Removed(NodeId),
    #[error("member {0} is being added with another incarnation: see whether that ends")]
    Pending(NodeId),
    #[error("member {0} is an older process (boot {1} after {2}): stop it")]
    OlderBoot(NodeId, u64, u64),
    #[error("two processes claim to be member {0}: stop the copy")]
    Twin(NodeId),
    #[error(
        "member {0} has lost data (its log ended at write {1} when it started, but {2} was heard \
         from it): an old copy of its directory was put back; remove it and add it again"
    )]
    RolledBack(NodeId, u64, u64),
}

impl Mistrust {
    /// Whether it speaks of what the peer has lost, which no retry and no setting brings back.
    pub(crate) fn is_about_data(&self) -> bool {
        match self {
            Self::Wiped(_)
            | Self::Removed(_)
            | Self::OlderBoot(..)
            | Self::Twin(_)
            | Self::RolledBack(..) => true,
            Self::Version(..) | Self::Cluster(..) | Self::Group | Self::Stranger(_) => false,
            // Who is of another group concludes that for itself.
            Self::Former(_) | Self::Pending(_) => false,
        }
    }
}

/// How many others are remembered, newcomers that may never become members among them.
const HEARD_MAX: usize = 256;

/// What this member knows of the others.
#[derive(Debug)]
pub(crate) struct Acquaintances {
    cluster: String,
    group: Option<GroupId>,
    /// The identities that the group had before it was recovered.
    former: Vec<GroupId>,
    /// The members, for certain, and the highest id that one ever had.
    members: BTreeMap<NodeId, Incarnation>,
    last_id: NodeId,
    /// The members as they rule, which may be undone.
    ruling: BTreeMap<NodeId, Incarnation>,
    heard: BTreeMap<NodeId, Heard>,
    /// It does not know yet whom it is to join.
    welcomes_strangers: bool,
}

impl Acquaintances {
    /// A member that is not born yet and knows whom it waits for.
    pub(crate) fn unborn(cluster: &str, members: impl Iterator<Item = NodeId>) -> Self {
        let heard = members.map(|node| (node, Heard::default())).collect();
        let (cluster, last_id) = (cluster.to_owned(), NodeId(0));
        let (members, ruling) = (BTreeMap::new(), BTreeMap::new());
        Self {
            cluster,
            group: None,
            former: Vec::new(),
            members,
            last_id,
            ruling,
            heard,
            welcomes_strangers: false,
        }
    }

    /// This member is to join a group that it does not know: anybody of the cluster may speak.
    pub(crate) fn welcome_strangers(&mut self) {
        self.welcomes_strangers = true;
    }

    /// The group is born.
    pub(crate) fn bear(&mut self, group: &Group) {
        self.group = Some(group.id);
        self.former.clone_from(&group.former);
        let members = group.founders.iter().map(|founder| (founder.node, founder.incarnation));
        self.pin(members.collect(), NodeId(0));
    }

    /// These are the members, for certain.
    pub(crate) fn pin(&mut self, members: BTreeMap<NodeId, Incarnation>, last_id: NodeId) {
        let highest = members.last_key_value().map_or(NodeId(0), |(&node, _)| node);
        self.last_id = self.last_id.max(last_id).max(highest);
        // Who was removed is refused whatever was heard of it, and makes room for others.
        self.heard.retain(|node, _| *node > self.last_id || members.contains_key(node));
        self.members = members;
    }

    /// These are the members now; it may be undone, so it must not drive anybody out for good.
    pub(crate) fn follow(&mut self, ruling: BTreeMap<NodeId, Incarnation>) {
        self.ruling = ruling;
    }

    /// Whether it is one of the members, for certain.
    pub(crate) fn is_member(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.members.get(&node) == Some(&incarnation)
    }

    /// Whether a member of a born group may speak. One with a higher id than any is new, and this
    /// member's log is behind.
    fn check_membership(&self, node: NodeId, incarnation: Incarnation) -> Result<(), Mistrust> {
        match (self.members.get(&node), self.ruling.get(&node)) {
            (Some(pinned), _) if *pinned != incarnation => Err(Mistrust::Wiped(node)),
            (_, Some(pinned)) if *pinned != incarnation => Err(Mistrust::Pending(node)),
            (None, None) if node <= self.last_id => Err(Mistrust::Removed(node)),
            (Some(_) | None, Some(_) | None) => Ok(()),
        }
    }

    /// What was heard of a peer before this process started.
    pub(crate) fn recall(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        boot: u64,
        write_sequence: u64,
    ) {
        let incarnation = Some(incarnation);
        self.heard.insert(node, Heard { incarnation, boot, nonce: None, write_sequence });
    }

    /// Whether a peer is what it claims to be. Some: it is, and has started anew, which the store
    /// has to remember.
    pub(crate) fn check(&mut self, claim: &Claim) -> Result<Option<Heard>, Mistrust> {
        let node = claim.node;
        let heard = self.heard.get(&node).copied();
        let welcome = self.group.is_some() || self.welcomes_strangers;
        if heard.is_none() && (!welcome || self.heard.len() >= HEARD_MAX) {
            return Err(Mistrust::Stranger(node));
        }
        let mut known = heard.unwrap_or_default();
        if claim.version > proto::PEER_PROTOCOL_VERSION {
            return Err(Mistrust::Version(claim.version, proto::PEER_PROTOCOL_VERSION));
        }
        if claim.cluster != self.cluster {
            return Err(Mistrust::Cluster(claim.cluster.clone(), self.cluster.clone()));
        }
        // Of a member of another group nothing can be said: it has an incarnation of its own there.
        if let (Some(claimed), Some(group)) = (claim.group, self.group)
            && claimed != group
        {
            let is_former = self.former.contains(&claimed);
            return Err(if is_former { Mistrust::Former(node) } else { Mistrust::Group });
        }
        if self.group.is_some() {
            self.check_membership(node, claim.incarnation)?;
        }
        if known.incarnation.is_some_and(|old| old != claim.incarnation) {
            // Of two lives the one that belongs to the group counts; before either does, nothing
            // was promised, and it may still begin anew.
            known = Heard::default();
        }
        if claim.boot < known.boot {
            return Err(Mistrust::OlderBoot(node, claim.boot, known.boot));
        }
        let news = claim.boot > known.boot;
        if news && claim.boot_write_sequence < known.write_sequence {
            return Err(Mistrust::RolledBack(
                node,
                claim.boot_write_sequence,
                known.write_sequence,
            ));
        }
        if !news && known.nonce.is_some_and(|nonce| nonce != claim.nonce) {
            return Err(Mistrust::Twin(node));
        }
        let heard = Heard {
            incarnation: Some(claim.incarnation),
            boot: claim.boot,
            nonce: Some(claim.nonce),
            write_sequence: known.write_sequence.max(claim.write_sequence),
        };
        self.heard.insert(node, heard);
        Ok(news.then_some(heard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(boot: u64, nonce: u64, boot_write_sequence: u64, write_sequence: u64) -> Claim {
        Claim {
            version: proto::PEER_PROTOCOL_VERSION,
            cluster: "c".to_owned(),
            group: None,
            node: NodeId(2),
            incarnation: [2; 16],
            boot,
            nonce,
            write_sequence,
            boot_write_sequence,
        }
    }

    fn born() -> Acquaintances {
        let mut known = Acquaintances::unborn("c", [NodeId(1), NodeId(2)].into_iter());
        let founders = [1, 2].map(|id| Founder {
            node: NodeId(id),
            incarnation: [id as u8; 16],
            peer_address: String::new(),
            client_address: String::new(),
        });
        let id = group_id("c", &founders);
        known.bear(&Group { id, founders: founders.to_vec(), former: Vec::new() });
        known
    }

    #[test]
    fn wiped_node_must_not_vote() {
        let wiped = Claim { incarnation: [7; 16], ..claim(1, 1, 0, 0) };
        assert_eq!(born().check(&wiped), Err(Mistrust::Wiped(NodeId(2))));
    }

    #[test]
    fn an_older_copy_is_refused_by_who_heard_more() {
        let mut known = born();
        assert!(known.check(&claim(1, 5, 0, 0)).unwrap().is_some());
        assert!(known.check(&claim(1, 5, 0, 90)).unwrap().is_none());
        let copy = known.check(&claim(2, 6, 40, 40));
        assert_eq!(copy, Err(Mistrust::RolledBack(NodeId(2), 40, 90)));
        assert!(known.check(&claim(2, 6, 90, 91)).unwrap().is_some());
        assert!(known.check(&claim(3, 7, 90, 90)).is_err());
        assert!(known.check(&claim(3, 7, 91, 91)).is_ok());
    }

    #[test]
    fn twins_and_older_processes_are_refused() {
        let mut known = born();
        known.check(&claim(3, 5, 0, 0)).unwrap();
        assert_eq!(known.check(&claim(3, 6, 0, 0)), Err(Mistrust::Twin(NodeId(2))));
        assert_eq!(known.check(&claim(2, 6, 0, 0)), Err(Mistrust::OlderBoot(NodeId(2), 2, 3)));
    }

    #[test]
    fn what_was_heard_before_a_restart_still_counts() {
        let mut known = born();
        known.recall(NodeId(2), [2; 16], 3, 50);
        assert!(known.check(&claim(3, 8, 10, 60)).unwrap().is_none());
        assert!(known.check(&claim(4, 9, 55, 55)).is_err());
    }

    #[test]
    fn strangers_and_other_clusters_are_refused() {
        let mut known = born();
        let stranger = Claim { node: NodeId(9), ..claim(1, 1, 0, 0) };
        let mut unborn = Acquaintances::unborn("c", [NodeId(2)].into_iter());
        assert_eq!(unborn.check(&stranger), Err(Mistrust::Stranger(NodeId(9))));
        let other = Claim { cluster: "d".to_owned(), ..claim(1, 1, 0, 0) };
        assert!(matches!(known.check(&other), Err(Mistrust::Cluster(..))));
        let group = Claim { group: Some([0; 32]), ..claim(1, 1, 0, 0) };
        assert_eq!(known.check(&group), Err(Mistrust::Group));
        let elsewhere = Claim { incarnation: [7; 16], ..group };
        assert_eq!(known.check(&elsewhere), Err(Mistrust::Group));
        let newer = Claim { version: proto::PEER_PROTOCOL_VERSION + 1, ..claim(1, 1, 0, 0) };
        assert!(matches!(known.check(&newer), Err(Mistrust::Version(..))));
    }

    #[test]
    fn a_recovered_group_listens_to_nobody_of_its_former_ones() {
        let mut known = born();
        let born_as = known.group.unwrap();
        let mut group = Group { id: born_as, founders: Vec::new(), former: Vec::new() };
        for recovery in 1..=2 * FORMER_MAX as u8 {
            group.recover([recovery; 32]);
            assert_eq!(*group.as_born(), born_as);
        }
        assert_eq!(group.former.len(), FORMER_MAX);
        known.bear(&group);
        let of = |group| Claim { group: Some(group), ..claim(1, 1, 0, 0) };
        for former in group.former {
            assert_eq!(known.check(&of(former)), Err(Mistrust::Former(NodeId(2))));
        }
        assert_eq!(known.check(&of([1; 32])), Err(Mistrust::Group));
        // One that has a directory of its own in the new group is another matter.
        known.pin([(NodeId(2), [2; 16])].into(), NodeId(2));
        assert!(known.check(&of(group.id)).is_ok());
    }

    #[test]
    fn who_was_removed_is_told_and_who_is_new_is_heard() {
        let mut known = born();
        let new = Claim { node: NodeId(3), incarnation: [3; 16], ..claim(1, 1, 0, 0) };
        assert!(known.check(&new).is_ok());
        // It begins anew before it is a member, and no more after.
        let anew = Claim { incarnation: [4; 16], ..new.clone() };
        assert!(known.check(&anew).is_ok());
        known.follow([(NodeId(1), [1; 16]), (NodeId(2), [2; 16]), (NodeId(3), [4; 16])].into());
        assert_eq!(known.check(&new), Err(Mistrust::Pending(NodeId(3))));
        assert!(!Mistrust::Pending(NodeId(3)).is_about_data());
        known.pin([(NodeId(1), [1; 16]), (NodeId(3), [4; 16])].into(), NodeId(3));
        assert_eq!(known.check(&new), Err(Mistrust::Wiped(NodeId(3))));
        // One that others met before it began anew is the member now, whatever was heard before.
        let mut others = born();
        others.recall(NodeId(3), [3; 16], 7, 90);
        others.pin([(NodeId(1), [1; 16]), (NodeId(3), [4; 16])].into(), NodeId(3));
        assert!(others.check(&anew).is_ok());
        // Its removal may be undone yet: it rules still.
        assert!(known.check(&claim(1, 1, 0, 0)).is_ok());
        known.follow([(NodeId(1), [1; 16]), (NodeId(3), [4; 16])].into());
        assert_eq!(known.check(&claim(1, 1, 0, 0)), Err(Mistrust::Removed(NodeId(2))));
    }
}
