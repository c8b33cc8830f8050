//! Who belongs to a group and who decides in it (section 6; Ongaro's thesis, chapter 4).
//!
//! Decides which changes make sense and what comes of them. When a change is proposed, who has
//! caught up and when the next half begins is the leader's business (`leader.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::{Index, NodeId, message::NUMBER_MAX};

/// The members of a group, as an entry of the log or a snapshot has them.
///
/// A change of voters goes through two entries. The first is *joint* (C-old,new of section 6):
/// elections and commits then need a majority of the voters before and one of the voters after.
/// The second, which the leader appends when the first is committed, leaves only the latter.
///
/// Keeps: ids are at least 1 and never used twice; somebody votes, before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<NodeId, Member>,
    /// The highest id that a member ever had.
    last_id: NodeId,
    /// How often the group was recovered from the loss of its majority.
    recoveries: u64,
    /// Whether the leader may answer reads by a lease.
    lease_reads: bool,
}

/// What a group knows of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What part it has.
    pub standing: Standing,
    /// How it is found and known again. Means nothing to the core.
    pub contact: Bytes,
}

/// What part a member has in the decisions of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It gets everything and decides nothing.
    Learner,
    /// It votes, before and after a change that is under way.
    Voter,
    /// It votes after the change.
    Incoming,
    /// It votes before the change, and is no member after it.
    Outgoing,
    /// It votes before the change, and is a learner after it.
    Demoted,
}

/// A change of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new member, which does not vote.
    AddLearner {
        /// Its id, above all that were ever used.
        id: NodeId,
        /// How it is found.
        contact: Bytes,
    },
    /// A learner becomes a voter.
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    /// A member is none any more.
    Remove(NodeId),
    /// A member is found elsewhere.
    Update {
        /// Which.
        id: NodeId,
        /// How it is found from now on.
        contact: Bytes,
    },
    /// Leaders may answer reads by a lease, or no more. The only change that is of no member.
    LeaseReads(bool),
}

/// Why a change makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChange {
    /// There is nothing to change.
    #[error("no change is asked for")]
    Empty,
    /// It is not clear which comes first.
    #[error("member {0} is changed twice at once")]
    Twice(NodeId),
    /// It is not clear which comes first.
    #[error("lease reads are changed twice at once")]
    LeaseReadsTwice,
    /// The id is, or was, another member's.
    #[error("the id {id} was used before: ids are never used twice, the next free one is {next}")]
    IdUsed {
        /// The id.
        id: NodeId,
        /// The least that may be used.
        next: NodeId,
    },
    /// The id is out of range.
    #[error("the id {0} is too large")]
    IdTooLarge(NodeId),
    /// Who is no member can't be changed.
    #[error("{0} is no member of the group")]
    NoSuchMember(NodeId),
    /// Only a learner becomes a voter.
    #[error("member {0} votes already")]
    Votes(NodeId),
    /// Only a voter becomes a learner.
    #[error("member {0} is a learner already")]
    Learns(NodeId),
    /// Nobody would decide.
    #[error("no voter would be left")]
    NoVoterLeft,
    /// The group is full.
    #[error("the group would have more than {0} members (members_max)")]
    TooManyMembers(usize),
}

impl Member {
    fn votes_before(&self) -> bool {
        match self.standing {
            Standing::Voter | Standing::Outgoing | Standing::Demoted => true,
            Standing::Learner | Standing::Incoming => false,
        }
    }

    fn votes_after(&self) -> bool {
        match self.standing {
            Standing::Voter | Standing::Incoming => true,
            Standing::Learner | Standing::Outgoing | Standing::Demoted => false,
        }
    }
}

impl Membership {
    /// The founders of a group, who all vote.
    pub fn founders(contacts: impl IntoIterator<Item = (NodeId, Bytes)>) -> Self {
        let member = |contact| Member { standing: Standing::Voter, contact };
        let members: BTreeMap<NodeId, Member> =
            contacts.into_iter().map(|(id, contact)| (id, member(contact))).collect();
        let last_id = members.last_key_value().map_or(NodeId(0), |(&id, _)| id);
        Self { members, last_id, recoveries: 0, lease_reads: false }
    }

    /// A membership as it was stored or sent.
    pub fn from_parts(
        members: BTreeMap<NodeId, Member>,
        last_id: NodeId,
        lease_reads: bool,
    ) -> Self {
        Self { members, last_id, recoveries: 0, lease_reads }
    }

    /// The same of a group that was recovered so often.
    #[must_use]
    pub fn with_recoveries(self, recoveries: u64) -> Self {
        Self { recoveries, ..self }
    }

    /// What comes of it when its majority is lost for ever and `survivor` goes on alone; none if
    /// that is no member. No majority has agreed to it, so it must begin another group: one whose
    /// members never listen to those of this one.
    pub fn recovered(&self, survivor: NodeId) -> Option<Self> {
        let Member { contact, .. } = self.members.get(&survivor)?.clone();
        let member = Member { standing: Standing::Voter, contact };
        let members = [(survivor, member)].into();
        Some(Self { members, recoveries: self.recoveries + 1, ..*self })
    }

    /// How often the group was recovered.
    pub fn recoveries(&self) -> u64 {
        self.recoveries
    }

    /// Everybody, learners too.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// The highest id that a member ever had.
    pub fn last_id(&self) -> NodeId {
        self.last_id
    }

    /// Whether it is a member or, as far as this tells, may become one: ids are never used twice.
    pub fn may_belong(&self, id: NodeId) -> bool {
        id > self.last_id || self.members.contains_key(&id)
    }

    /// Whether the leader may answer reads by a lease.
    pub fn lease_reads(&self) -> bool {
        self.lease_reads
    }

    /// Whether nobody else votes.
    pub(crate) fn is_only_voter(&self, id: NodeId) -> bool {
        self.voters().all(|voter| voter == id)
    }

    /// Whether a change of voters is under way.
    pub fn is_joint(&self) -> bool {
        self.members.values().any(|member| member.votes_before() != member.votes_after())
    }

    /// Whether `id` votes, before or after a change that is under way.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(|member| member.votes_before() || member.votes_after())
    }

    /// Whether `id` will vote when a change that is under way is over.
    pub fn stays_voter(&self, id: NodeId) -> bool {
        self.members.get(&id).is_some_and(Member::votes_after)
    }

    /// Who votes, before or after a change that is under way.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> {
        let votes = |member: &Member| member.votes_before() || member.votes_after();
        self.members.iter().filter(move |(_, member)| votes(member)).map(|(&id, _)| id)
    }

    /// Who voted before a change that is under way; while there is none, who votes.
    pub fn voters_before(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|(_, member)| member.votes_before()).map(|(&id, _)| id)
    }

    /// Who will vote after a change that is under way; while there is none, who votes.
    pub fn voters_after(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().filter(|(_, member)| member.votes_after()).map(|(&id, _)| id)
    }

    /// What it counts for in byte budgets.
    pub(crate) fn size(&self) -> u64 {
        self.members.values().map(|member| 16 + member.contact.len() as u64).sum()
    }

    /// Whether it can be one at all, wherever it came from: somebody votes, on both sides of a
    /// change, and ids are possible.
    pub(crate) fn is_well_formed(&self) -> bool {
        let possible = |id: &NodeId| (1..=NUMBER_MAX).contains(&id.0) && *id <= self.last_id;
        self.last_id.0 <= NUMBER_MAX
            && self.members.keys().all(possible)
            && self.voters_before().next().is_some()
            && self.voters_after().next().is_some()
    }

    /// What comes of `changes`, all at once: joint, if any voter comes or goes. Of a membership that
    /// is not joint itself.
    pub(crate) fn changed(
        &self,
        changes: &[Change],
        members_max: usize,
    ) -> Result<Self, BadChange> {
        assert!(!self.is_joint(), "one change after the other");
        if changes.is_empty() {
            return Err(BadChange::Empty);
        }
        let mut next = self.clone();
        let mut changed = BTreeSet::new();
        for change in changes {
            let id = change.id();
            if !changed.insert(id) {
                return Err(id.map_or(BadChange::LeaseReadsTwice, BadChange::Twice));
            }
            next.change(change)?;
        }
        if next.voters_after().next().is_none() {
            return Err(BadChange::NoVoterLeft);
        }
        if next.members.len() > members_max {
            return Err(BadChange::TooManyMembers(members_max));
        }
        Ok(next)
    }

    fn change(&mut self, change: &Change) -> Result<(), BadChange> {
        if let Change::LeaseReads(on) = *change {
            self.lease_reads = on;
        }
        let Some(id) = change.id() else { return Ok(()) };
        if let Change::AddLearner { contact, .. } = change {
            if id <= self.last_id {
                return Err(BadChange::IdUsed { id, next: NodeId(self.last_id.0 + 1) });
            }
            if id.0 > NUMBER_MAX {
                return Err(BadChange::IdTooLarge(id));
            }
            let member = Member { standing: Standing::Learner, contact: contact.clone() };
            self.members.insert(id, member);
            self.last_id = id;
            return Ok(());
        }
        let member = self.members.get_mut(&id).ok_or(BadChange::NoSuchMember(id))?;
        let votes = member.votes_before();
        match change {
            Change::AddLearner { .. } | Change::LeaseReads(_) => {}
            Change::Update { contact, .. } => member.contact = contact.clone(),
            Change::Promote(_) if votes => return Err(BadChange::Votes(id)),
            Change::Promote(_) => member.standing = Standing::Incoming,
            Change::Demote(_) if votes => member.standing = Standing::Demoted,
            Change::Demote(_) => return Err(BadChange::Learns(id)),
            Change::Remove(_) if votes => member.standing = Standing::Outgoing,
            Change::Remove(_) => drop(self.members.remove(&id)),
        }
        Ok(())
    }

    /// What a joint membership becomes when the change is over (C-new of section 6).
    pub(crate) fn settled(&self) -> Self {
        let mut settled = self.clone();
        settled.members.retain(|_, member| {
            member.standing = match member.standing {
                Standing::Voter | Standing::Incoming => Standing::Voter,
                Standing::Learner | Standing::Demoted => Standing::Learner,
                Standing::Outgoing => return false,
            };
            true
        });
        settled
    }
}

impl Change {
    /// Whom it changes, if it is about a member.
    pub fn id(&self) -> Option<NodeId> {
        match self {
            Self::AddLearner { id, .. } | Self::Update { id, .. } => Some(*id),
            Self::Promote(id) | Self::Demote(id) | Self::Remove(id) => Some(*id),
            Self::LeaseReads(_) => None,
        }
    }
}

/// The memberships of a log. The latest rules from the moment it is appended, committed or not
/// (section 6), and is undone when its entry is truncated.
#[derive(Debug)]
pub(crate) struct Memberships {
    /// The latest that can't be undone.
    base: (Index, Arc<Membership>),
    /// Those behind it; indexes ascend.
    later: Vec<(Index, Arc<Membership>)>,
}

impl Memberships {
    pub(crate) fn new(index: Index, membership: Arc<Membership>) -> Self {
        Self { base: (index, membership), later: Vec::new() }
    }

    fn latest(&self) -> &(Index, Arc<Membership>) {
        self.later.last().unwrap_or(&self.base)
    }

    /// The one that rules.
    pub(crate) fn current(&self) -> &Arc<Membership> {
        &self.latest().1
    }

    /// Where it stands in the log, or an index at or behind that where it ruled.
    pub(crate) fn index(&self) -> Index {
        self.latest().0
    }

    fn all(&self) -> impl DoubleEndedIterator<Item = &(Index, Arc<Membership>)> {
        std::iter::once(&self.base).chain(&self.later)
    }

    /// Those that may rule: the one that does, and those that may come back as long as it is not known
    /// to be committed.
    fn possible(&self, commit: Index) -> impl Iterator<Item = &Membership> {
        let committed = self.all().rev().position(|(at, _)| *at <= commit);
        let count = committed.map_or(usize::MAX, |place| place + 1);
        self.all().rev().take(count).map(|(_, membership)| &**membership)
    }

    /// Whether `id` may be needed as a leader: it votes in a membership that may rule (thesis,
    /// section 4.2.2).
    pub(crate) fn may_need(&self, id: NodeId, commit: Index) -> bool {
        self.possible(commit).any(|membership| membership.is_voter(id))
    }

    /// Whether the leader may answer reads by a lease, for certain.
    pub(crate) fn lease_reads(&self, commit: Index) -> bool {
        self.possible(commit).all(Membership::lease_reads)
    }

    /// The one that ruled when the log ended at `index`; none if that is too long ago.
    pub(crate) fn at(&self, index: Index) -> Option<&Arc<Membership>> {
        self.all().rev().find(|(at, _)| *at <= index).map(|(_, membership)| membership)
    }

    pub(crate) fn append(&mut self, index: Index, membership: Arc<Membership>) {
        assert!(index > self.index(), "memberships stand in the order of the log");
        self.later.push((index, membership));
    }

    /// The log ends before `from` now. Whether another one rules than before.
    pub(crate) fn truncate(&mut self, from: Index) -> bool {
        let before = self.later.len();
        self.later.retain(|(index, _)| *index < from);
        self.later.len() < before
    }

    /// Nobody asks for those before `index` any more.
    pub(crate) fn compact(&mut self, index: Index) {
        let gone = self.later.iter().take_while(|(at, _)| *at <= index).count();
        if let Some(base) = self.later.drain(..gone).next_back() {
            self.base = base;
        }
    }
}
