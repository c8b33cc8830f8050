//! Who belongs to a group, as bytes: in entries of the log, on the wire and on the disk.
//!
//! The core knows a member's contact as bytes that mean nothing to it; here they are an incarnation
//! and two addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use proto::raft as pb;
use raft::{Membership, NodeId, Standing};

use crate::identity::{Founder, Incarnation};
use crate::settings::ADDRESS_BYTES_MAX;

/// How many members a membership that comes from outside may have: far more than any group.
const OUTSIDE_MEMBERS_MAX: usize = 256;

/// How a member is found, and known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) incarnation: Incarnation,
    pub(crate) peer_address: String,
    pub(crate) client_address: String,
}

impl Contact {
    pub(crate) fn encode(&self) -> Bytes {
        let contact = pb::Contact {
            incarnation: Bytes::copy_from_slice(&self.incarnation),
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
        };
        contact.encode_to_vec().into()
    }

    /// None: it is no contact.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let contact = pb::Contact::decode(bytes).ok()?;
        let longest = contact.peer_address.len().max(contact.client_address.len());
        (longest <= ADDRESS_BYTES_MAX).then_some(Self {
            incarnation: contact.incarnation.as_ref().try_into().ok()?,
            peer_address: contact.peer_address,
            client_address: contact.client_address,
        })
    }
}

impl From<Founder> for Contact {
    fn from(founder: Founder) -> Self {
        let Founder { node: _, incarnation, peer_address, client_address } = founder;
        Self { incarnation, peer_address, client_address }
    }
}

/// The incarnations of the members.
pub(crate) fn incarnations(membership: &Membership) -> BTreeMap<NodeId, Incarnation> {
    let contacts = membership
        .members()
        .iter()
        .filter_map(|(&node, member)| Some((node, Contact::decode(&member.contact)?.incarnation)));
    contacts.collect()
}

/// The membership that a group was born with.
pub(crate) fn of_founders(founders: &[Founder]) -> Arc<Membership> {
    let contact = |founder: &Founder| Contact::from(founder.clone()).encode();
    let contacts = founders.iter().map(|founder| (founder.node, contact(founder)));
    Arc::new(Membership::founders(contacts))
}

pub(crate) fn to_wire(membership: &Membership) -> pb::Membership {
    let members = membership.members().iter().map(|(node, member)| pb::GroupMember {
        node: node.0,
        standing: standing_to_wire(member.standing).into(),
        contact: member.contact.clone(),
    });
    pb::Membership {
        members: members.collect(),
        last_id: membership.last_id().0,
        lease_reads: membership.lease_reads(),
        recoveries: membership.recoveries(),
    }
}

/// None: it is no membership. The contacts are copied, since they outlive what they came in.
pub(crate) fn from_wire(membership: &pb::Membership) -> Option<Arc<Membership>> {
    let mut members = BTreeMap::new();
    for member in &membership.members {
        let standing = standing_from_wire(member.standing())?;
        let contact = Bytes::copy_from_slice(&member.contact);
        members.insert(NodeId(member.node), raft::Member { standing, contact });
    }
    let distinct = members.len() == membership.members.len();
    let (last_id, lease_reads) = (NodeId(membership.last_id), membership.lease_reads);
    let membership = Membership::from_parts(members, last_id, lease_reads)
        .with_recoveries(membership.recoveries);
    (distinct && membership.members().len() <= OUTSIDE_MEMBERS_MAX).then(|| Arc::new(membership))
}

pub(crate) fn encode(membership: &Membership) -> Bytes {
    to_wire(membership).encode_to_vec().into()
}

/// None: these are no bytes of a membership.
pub(crate) fn decode(bytes: &[u8]) -> Option<Arc<Membership>> {
    from_wire(&pb::Membership::decode(bytes).ok()?)
}

fn standing_to_wire(standing: Standing) -> pb::Standing {
    match standing {
        Standing::Learner => pb::Standing::Learner,
        Standing::Voter => pb::Standing::Voter,
        Standing::Incoming => pb::Standing::Incoming,
        Standing::Outgoing => pb::Standing::Outgoing,
        Standing::Demoted => pb::Standing::Demoted,
    }
}

fn standing_from_wire(standing: pb::Standing) -> Option<Standing> {
    match standing {
        pb::Standing::Unspecified => None,
        pb::Standing::Learner => Some(Standing::Learner),
        pb::Standing::Voter => Some(Standing::Voter),
        pb::Standing::Incoming => Some(Standing::Incoming),
        pb::Standing::Outgoing => Some(Standing::Outgoing),
        pb::Standing::Demoted => Some(Standing::Demoted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(node: u8) -> Contact {
        Contact {
            incarnation: [node; 16],
            peer_address: format!("peer{node}:1"),
            client_address: format!("client{node}:2"),
        }
    }

    #[test]
    fn every_standing_survives_the_bytes() {
        use Standing::{Demoted, Incoming, Learner, Outgoing, Voter};
        let member = |(id, standing): (u8, Standing)| {
            (NodeId(id.into()), raft::Member { standing, contact: contact(id).encode() })
        };
        let members = (1..).zip([Voter, Learner, Incoming, Outgoing, Demoted]).map(member);
        let membership =
            Membership::from_parts(members.collect(), NodeId(9), true).with_recoveries(2);
        let decoded = decode(&encode(&membership)).unwrap();
        assert_eq!(*decoded, membership);
        let third = &decoded.members()[&NodeId(3)].contact;
        assert_eq!(Contact::decode(third), Some(contact(3)));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(decode(b"nonsense"), None);
        assert_eq!(Contact::decode(b"nonsense"), None);
        let far = Contact { peer_address: "a".repeat(ADDRESS_BYTES_MAX + 1), ..contact(1) };
        assert_eq!(Contact::decode(&far.encode()), None);
        let member = |node| pb::GroupMember { node, standing: 2, contact: Bytes::new() };
        let twice = pb::Membership {
            members: vec![member(1), member(1)],
            last_id: 1,
            ..Default::default()
        };
        assert_eq!(from_wire(&twice), None);
        let unknown = pb::GroupMember { standing: 77, ..member(1) };
        assert_eq!(from_wire(&pb::Membership { members: vec![unknown], ..twice.clone() }), None);
        let many = (1..=300).map(member).collect();
        assert_eq!(from_wire(&pb::Membership { members: many, last_id: 300, ..twice }), None);
    }
}
