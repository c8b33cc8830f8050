//! The birth of a group: how its initial members agree on who they are, once and for ever.
//!
//! A member is born when it has heard from all initial members, each unborn or born with this very
//! set; before that it neither votes nor asks for votes. So two groups can't be born from one set,
//! and a member whose directory was emptied later finds that the set names another incarnation.
//! Pure: `host.rs` asks around, the store remembers.

use std::collections::{BTreeMap, BTreeSet};

use raft::NodeId;

use crate::identity::Founder;

#[derive(Debug)]
pub(crate) struct Birth {
    awaited: BTreeSet<NodeId>,
    heard: BTreeMap<NodeId, Peer>,
}

#[derive(Debug)]
struct Peer {
    founder: Founder,
    born_with: Vec<Founder>,
}

impl Birth {
    /// The birth of a group of `members`, as `me` sees it.
    pub(crate) fn new(me: Founder, members: impl Iterator<Item = NodeId>) -> Self {
        let myself = Peer { founder: me, born_with: Vec::new() };
        Self { awaited: members.collect(), heard: [(myself.founder.node, myself)].into() }
    }

    /// A member answered: who it is, and whom it was born with, if it was. Some: all have been
    /// heard, and these are the founders.
    pub(crate) fn hear(
        &mut self,
        founder: Founder,
        born_with: Vec<Founder>,
    ) -> Option<Vec<Founder>> {
        if self.awaited.contains(&founder.node) {
            self.heard.insert(founder.node, Peer { founder, born_with });
        }
        self.founders()
    }

    /// The founders, if all are heard and agree.
    pub(crate) fn founders(&self) -> Option<Vec<Founder>> {
        if self.heard.len() < self.awaited.len() {
            return None;
        }
        let founders: Vec<Founder> = self.heard.values().map(|peer| peer.founder.clone()).collect();
        let agree = self
            .heard
            .values()
            .all(|peer| peer.born_with.is_empty() || names(&peer.born_with) == names(&founders));
        agree.then_some(founders)
    }

    /// Members that were born with others than those that are awaited, and with whom. They never
    /// will be born again, so the settings of somebody are wrong.
    pub(crate) fn disagreeing(&self) -> Vec<(NodeId, Vec<u64>)> {
        let ids = |peer: &Peer| peer.born_with.iter().map(|founder| founder.node.0).collect();
        let born = self.heard.iter().filter(|(_, peer)| !peer.born_with.is_empty());
        let differs = |peer: &Peer| {
            let born_with: BTreeSet<NodeId> =
                peer.born_with.iter().map(|founder| founder.node).collect();
            born_with != self.awaited
        };
        born.filter(|(_, peer)| differs(peer)).map(|(node, peer)| (*node, ids(peer))).collect()
    }

    /// Who has not been heard yet.
    pub(crate) fn missing(&self) -> Vec<NodeId> {
        self.awaited.iter().copied().filter(|node| !self.heard.contains_key(node)).collect()
    }
}

/// What a set of founders is compared by: addresses may change.
fn names(founders: &[Founder]) -> BTreeMap<NodeId, [u8; 16]> {
    founders.iter().map(|founder| (founder.node, founder.incarnation)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founder(node: u64, incarnation: u8) -> Founder {
        Founder {
            node: NodeId(node),
            incarnation: [incarnation; 16],
            peer_address: format!("{node}"),
            client_address: String::new(),
        }
    }

    fn three() -> Birth {
        Birth::new(founder(1, 1), (1..=3).map(NodeId))
    }

    #[test]
    fn a_member_that_is_alone_is_born_at_once() {
        let alone = Birth::new(founder(1, 1), [NodeId(1)].into_iter());
        assert_eq!(alone.founders(), Some(vec![founder(1, 1)]));
    }

    #[test]
    fn all_must_be_heard() {
        let mut birth = three();
        assert_eq!(birth.hear(founder(3, 3), vec![]), None);
        assert_eq!(birth.missing(), [NodeId(2)]);
        let all: Vec<_> = [1, 2, 3].map(|id| founder(id, id as u8)).into();
        assert_eq!(birth.hear(founder(2, 2), vec![]), Some(all.clone()));
        assert_eq!(birth.hear(founder(2, 2), all.clone()), Some(all));
    }

    #[test]
    fn nobody_joins_a_group_that_was_born_with_another() {
        let mut birth = three();
        birth.hear(founder(3, 3), vec![]);
        let with_another_me = vec![founder(1, 9), founder(2, 2), founder(3, 3)];
        assert_eq!(birth.hear(founder(2, 2), with_another_me), None);
    }

    #[test]
    fn a_member_of_another_set_is_named() {
        let mut birth = three();
        assert_eq!(birth.hear(founder(2, 2), vec![founder(1, 1), founder(2, 2)]), None);
        assert_eq!(birth.disagreeing(), [(NodeId(2), vec![1, 2])]);
    }

    #[test]
    fn the_latest_word_of_an_unborn_member_counts() {
        let mut birth = three();
        birth.hear(founder(2, 2), vec![]);
        birth.hear(founder(2, 8), vec![]);
        let founders = birth.hear(founder(3, 3), vec![]).unwrap();
        assert_eq!(founders[1], founder(2, 8));
    }
}
