//! A group of a world: its members, its clients and what must hold of them. Groups share the
//! world's time, chance and network, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use raft::{Membership, NodeId, RoleKind};

use crate::{
    Plant,
    application::Service,
    clerk::Clerk,
    client::{Client, Reply},
    fault::Mix,
    history::History,
    invariants::{Ghost, Invariants},
    kv_history::KvHistory,
    machine::{CommandId, Machine},
    member::Member,
    operation::{OperationName, Verdict},
};

/// Names a group of a world; they count from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupId(pub u64);

impl GroupId {
    /// The group that every world begins with.
    pub const FIRST: Self = Self(1);

    /// A member of this group.
    pub fn member(self, node: NodeId) -> MemberId {
        MemberId { group: self, node }
    }
}

/// Names a member among those of all groups. In traces those of the first group have bare names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberId {
    /// Its group.
    pub group: GroupId,
    /// Its name in the group.
    pub node: NodeId,
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            GroupId::FIRST => write!(f, "n{}", self.node),
            GroupId(group) => write!(f, "g{group}.n{}", self.node),
        }
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group {
            GroupId::FIRST => write!(f, "{:?}", self.node),
            GroupId(group) => write!(f, "g{group}.{:?}", self.node),
        }
    }
}

/// A group.
pub(crate) struct Group {
    pub(crate) founders: Arc<Membership>,
    /// Everybody, from 1 on, whether it belongs to the group or not.
    pub(crate) members: BTreeMap<NodeId, Member>,
    /// What it replicates.
    pub(crate) service: Service,
    pub(crate) clients: BTreeMap<u64, Client>,
    /// The clients of the store.
    pub(crate) clerks: BTreeMap<u64, Clerk>,
    pub(crate) invariants: Invariants,
    /// What the clients saw.
    pub(crate) history: History,
    /// What the clerks saw.
    pub(crate) kv_history: KvHistory,
    /// Every lock that a clerk wanted.
    pub(crate) locks: BTreeSet<Bytes>,
    /// What became of the operations that scripts began.
    pub(crate) verdicts: BTreeMap<OperationName, Verdict>,
    /// Nobody starts its members until it is started.
    pub(crate) stopped: bool,
    /// The leader that the nemesis cut off last.
    pub(crate) last_deposed: Option<NodeId>,
    /// What became of the requests that scripts made.
    pub(crate) replies: BTreeMap<CommandId, Reply>,
    operator_number: u64,
    /// The operator is at work on who is lost, and looks again from time to time.
    pub(crate) operator_called: bool,
    /// Elections won in it, and leaders that left because they voted no more.
    pub(crate) leaderships: Leaderships,
}

/// How often leaders came, and how often one went as it should.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leaderships {
    pub(crate) elections: u64,
    pub(crate) leaders_removed: u64,
}

impl Group {
    /// A group none of whose members has been started.
    pub(crate) fn new(
        id: GroupId,
        members: u64,
        mix: &Mix,
        plant: Plant,
        only: Option<&'static str>,
        service: Service,
    ) -> Self {
        let blank = Machine::of(service);
        let ids: BTreeSet<NodeId> = (1..=members).map(NodeId).collect();
        let founders = Membership::founders(ids.iter().map(|&id| (id, Bytes::new())));
        let (founding, last_id) = (founders.members().clone(), founders.last_id());
        let founders = Arc::new(Membership::from_parts(founding, last_id, mix.lease_reads));
        let member = |node| (node, Member::new(id.member(node), plant, blank.clone()));
        Self {
            members: ids.into_iter().map(member).collect(),
            clients: (1..=mix.clients).map(|id| (id, Client::new(NodeId(1)))).collect(),
            clerks: (1..=mix.clients).map(|client| (client, Clerk::new(id, client))).collect(),
            invariants: Invariants::new(id, only, founders.clone(), &blank),
            history: History::new(only),
            kv_history: KvHistory::new(only),
            locks: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            service,
            founders,
            stopped: false,
            last_deposed: None,
            replies: BTreeMap::new(),
            operator_number: 0,
            operator_called: false,
            leaderships: Leaderships::default(),
        }
    }

    /// The number of the next request that a script or the nemesis makes.
    pub(crate) fn next_operation(&mut self) -> u64 {
        self.operator_number += 1;
        self.operator_number
    }

    pub(crate) fn ghost(&self) -> &Ghost {
        self.invariants.ghost()
    }
}

/// The groups of a world.
#[derive(Default)]
pub(crate) struct Groups(BTreeMap<GroupId, Group>);

impl Groups {
    pub(crate) fn insert(&mut self, id: GroupId, group: Group) {
        self.0.insert(id, group);
    }

    /// The name of the group that is founded next.
    pub(crate) fn next_id(&self) -> GroupId {
        self.0.last_key_value().map_or(GroupId::FIRST, |(last, _)| GroupId(last.0 + 1))
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = GroupId> {
        self.0.keys().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.0.iter().map(|(&id, group)| (id, group))
    }

    pub(crate) fn get(&self, id: GroupId) -> &Group {
        &self.0[&id]
    }

    pub(crate) fn get_mut(&mut self, id: GroupId) -> &mut Group {
        self.0.get_mut(&id).expect("only groups that were founded are spoken of")
    }

    /// The members of one group.
    pub(crate) fn members_of(&self, id: GroupId) -> Vec<MemberId> {
        self.get(id).members.keys().map(|&node| id.member(node)).collect()
    }

    /// The members of all groups.
    pub(crate) fn members(&self) -> Vec<MemberId> {
        self.ids().flat_map(|id| self.members_of(id)).collect()
    }

    pub(crate) fn member(&self, id: MemberId) -> &Member {
        &self.get(id.group).members[&id.node]
    }

    pub(crate) fn member_mut(&mut self, id: MemberId) -> &mut Member {
        let members = &mut self.get_mut(id.group).members;
        members.get_mut(&id.node).expect("every id is a member's")
    }

    pub(crate) fn client_mut(&mut self, group: GroupId, client: u64) -> &mut Client {
        self.get_mut(group).clients.get_mut(&client).expect("only clients ask and are answered")
    }

    /// Whether a member is up and leads, as it believes.
    pub(crate) fn leads(&self, id: MemberId) -> bool {
        let member = self.member(id);
        member.is_up() && member.standing().role == RoleKind::Leader
    }
}
