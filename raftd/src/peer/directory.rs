//! Who belongs to the group and how each is reached, as the replicated membership says. Shared by
//! everybody who talks to members; the host task alone changes it.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use raft::{Membership, NodeId};
use tonic::transport::Channel;
use tracing::error;

use super::connect;
use crate::membership::Contact;
use crate::settings::Member;

/// The members, and a connection to each.
///
/// A member is reached where the membership says. As long as that is what was said at the birth of
/// the group, the settings may know better: when all members have moved at once, nobody is left to
/// change the membership.
#[derive(Debug)]
pub(crate) struct Directory {
    known: RwLock<BTreeMap<NodeId, Known>>,
    settings: BTreeMap<NodeId, Member>,
}

#[derive(Clone, Debug)]
struct Known {
    member: Member,
    /// Made when it is first used.
    channel: Channel,
}

impl Directory {
    /// The members that the settings name.
    ///
    /// # Errors
    /// Configuration: an address is none.
    pub(crate) fn new(members: impl Iterator<Item = Member>) -> Result<Self, daemon::Failure> {
        let settings: BTreeMap<NodeId, Member> =
            members.map(|member| (member.node, member)).collect();
        let known = settings.values().cloned().map(|member| {
            let channel = connect(&member.peer_address)?;
            Ok((member.node, Known { member, channel }))
        });
        let known = RwLock::new(known.collect::<Result<_, daemon::Failure>>()?);
        Ok(Self { known, settings })
    }

    /// A member.
    pub(crate) fn member(&self, node: NodeId) -> Option<Member> {
        self.known().get(&node).map(|known| known.member.clone())
    }

    /// A connection to a member's peer port.
    pub(crate) fn channel(&self, node: NodeId) -> Option<Channel> {
        self.known().get(&node).map(|known| known.channel.clone())
    }

    /// All members.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.known().values().map(|known| known.member.clone()).collect()
    }

    /// These are the members now, and those that the group was born with. Which are new here, or
    /// are reached elsewhere.
    pub(crate) fn follow(&self, membership: &Membership, founders: &Membership) -> Vec<NodeId> {
        let mut moved = Vec::new();
        let mut next = BTreeMap::new();
        let known = self.known().clone();
        for (&node, member) in membership.members() {
            // Whoever proposed the membership has checked its contacts.
            let contact_bytes = &member.contact;
            let Some(contact) = Contact::decode(contact_bytes) else {
                error!(%node, "the contact of a member does not decode");
                continue;
            };
            let Contact { peer_address, client_address, .. } = contact;
            let as_born =
                founders.members().get(&node).is_some_and(|it| it.contact == *contact_bytes);
            let set = self.settings.get(&node).filter(|_| as_born).cloned();
            let member = set.unwrap_or(Member { node, peer_address, client_address });
            let same =
                known.get(&node).filter(|old| old.member.peer_address == member.peer_address);
            let channel = match same {
                Some(old) => old.channel.clone(),
                None => match connect(&member.peer_address) {
                    Ok(channel) => {
                        moved.push(node);
                        channel
                    }
                    Err(failure) => {
                        error!(%node, %failure, "the address of a member is none");
                        continue;
                    }
                },
            };
            next.insert(node, Known { member, channel });
        }
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = next;
        moved
    }

    fn known(&self) -> RwLockReadGuard<'_, BTreeMap<NodeId, Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }
}
