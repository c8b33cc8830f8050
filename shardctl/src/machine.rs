//! The shard controller as a replicated state machine: the configurations, where shards are, who the
//! groups' members are, and which requests were executed.
//!
//! Decides what a request makes of the latest configuration, and when it is refused. What a
//! configuration asks of placements is `placement.rs`, whom it gives which shard `rebalance.rs`.
//! Pure: no clock, no randomness, no IO; the same commands give the same state on every member.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use raft::{Applied, BadSnapshot, RECOVERY_GAP, StateMachine};

use crate::{
    command::{BadCommand, Command, Joining, Request, Step, check_version},
    ids::{GroupId, Identity, Number, RequestId, ShardId},
    limits::{
        ADDRESS_BYTES_MAX, GROUPS_MAX, HISTORY_MAX, MEMBERS_MAX, REQUESTS_KEPT_MAX, SHARDS_MAX,
        WEIGHT_MAX,
    },
    placement::{Placement, Stale},
    snapshot::{self, Frozen},
    target::{Change, Target},
};

/// The version of the machine's semantics, part of its snapshots.
pub const MACHINE_VERSION: u32 = 1;

/// The state of the controller. Copies share the configurations.
///
/// Invariants: `history` is ascending by number, and empty only before the first request;
/// there is a placement for each shard; each group that takes part, owns a shard or gets one has a
/// roster.
#[derive(Clone, Debug)]
pub struct ShardMachine {
    /// How many shards this member's settings ask for; counts only before the first request.
    pub(crate) wanted: u32,
    /// The configurations that are kept, the latest last.
    pub(crate) history: VecDeque<Arc<Target>>,
    /// The number of the next.
    pub(crate) next: Number,
    /// Where each shard is, by number.
    pub(crate) placements: Vec<Placement>,
    /// What is known of each group.
    pub(crate) rosters: BTreeMap<GroupId, Roster>,
    /// What was executed.
    pub(crate) requests: Requests,
    /// The sum of the configurations' digests.
    history_digest: u128,
    /// The digest of everything.
    digest: u128,
}

/// Who a group is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// What it has told.
    pub reported: Option<Reported>,
    /// The client addresses of its members: as it told, or before that as it was said when it joined.
    pub members: Vec<String>,
}

/// What stands behind a group's own report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Which Raft group it is.
    pub identity: Identity,
    /// The index of the entry of its log that says who its members are.
    pub index: u64,
}

/// Requests that were executed, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    order: VecDeque<RequestId>,
    kept: BTreeMap<RequestId, Kept>,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// This configuration was the latest then.
    Done(Number),
    /// It was refused.
    Refused,
}

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The latest configuration behind it.
    pub number: Number,
    /// It was executed before, by the same request.
    pub duplicate: bool,
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It makes no sense.
    #[error(transparent)]
    Bad(#[from] BadCommand),
    /// The same request was refused when it came first.
    #[error("this request was refused when it came first; ask again under another id")]
    RefusedBefore,
    /// It is about another number of shards.
    #[error("there are {created} shards, not {proposed}: the number is fixed by the first request")]
    OtherShards {
        /// How many there are.
        created: u32,
        /// How many the proposer has.
        proposed: u32,
    },
    /// A limit would be passed; names it.
    #[error("{found} is over the limit {name} of {limit}")]
    Limit {
        /// Its name.
        name: &'static str,
        /// How much was asked for.
        found: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// There is no such shard.
    #[error("there is no shard {shard}, only 0 to {last}")]
    NoShard {
        /// Which was asked for.
        shard: ShardId,
        /// The last.
        last: u32,
    },
    /// Nothing is asked for.
    #[error("no group is named")]
    NoGroups,
    /// The group is named twice.
    #[error("group {0} is named twice")]
    Twice(GroupId),
    /// The group does not take part.
    #[error("group {0} has not joined")]
    NotJoined(GroupId),
    /// It takes part already, otherwise.
    #[error("group {group} has joined, with weight {weight}: `shardctl weigh` changes that")]
    Joined {
        /// Which.
        group: GroupId,
        /// Its weight.
        weight: u32,
    },
    /// Nobody has said where it is.
    #[error("group {0} has not reported yet: start it, or give the addresses of its members")]
    Unknown(GroupId),
    /// The groups that would take part have no weight.
    #[error("the groups that take part would all have weight 0")]
    NoWeight,
    /// The group can't be adopted, since others take part or have taken part.
    #[error("a group is adopted only by a controller that has no configuration yet")]
    NotEmpty,
    /// The report is of another Raft group.
    #[error("group {0} is known with another identity: was it made anew, or recovered?")]
    OtherIdentity(GroupId),
    /// The report is older than what is known, or of no move that there is.
    #[error("this is no longer so")]
    Stale,
}

impl From<Stale> for Refusal {
    fn from(Stale: Stale) -> Self {
        Self::Stale
    }
}

impl ShardMachine {
    /// A controller without a configuration. `shards` (from 1 to [`SHARDS_MAX`], else brought into
    /// that range) counts until the first request fixes the number.
    pub fn new(shards: u32) -> Self {
        let (history, placements, rosters) = Default::default();
        let requests = Requests::default();
        Self::restored(shards, history, Number(1), placements, rosters, requests)
    }

    /// The state of these parts.
    pub(crate) fn restored(
        wanted: u32,
        history: VecDeque<Arc<Target>>,
        next: Number,
        placements: Vec<Placement>,
        rosters: BTreeMap<GroupId, Roster>,
        requests: Requests,
    ) -> Self {
        let wanted = wanted.clamp(1, SHARDS_MAX);
        let digests = history.iter().map(|target| snapshot::target_digest(target));
        let history_digest = digests.fold(0, u128::wrapping_add);
        let digest = 0;
        let mut made =
            Self { wanted, history, next, placements, rosters, requests, history_digest, digest };
        made.digest = snapshot::digest(&made, history_digest);
        made
    }

    /// The latest configuration; none before the first request.
    pub fn latest(&self) -> Option<&Arc<Target>> {
        self.history.back()
    }

    /// A configuration of the history; none: it is not kept any more, or does not exist yet.
    pub fn configuration(&self, number: Number) -> Option<&Arc<Target>> {
        let at = self.history.binary_search_by_key(&number, |target| target.number).ok()?;
        self.history.get(at)
    }

    /// The configurations that are kept, the oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.history.iter()
    }

    /// Where each shard is, by number.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// What is known of each group.
    pub fn rosters(&self) -> &BTreeMap<GroupId, Roster> {
        &self.rosters
    }

    /// What a request would come to: the state behind it. The configuration is the latest of that.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn plan(&self, shards: u32, request: &Request) -> Result<Self, Refusal> {
        let mut planned = self.clone();
        planned.request(shards, request)?;
        Ok(planned)
    }

    fn number(&self) -> Number {
        self.latest().map_or(Number(0), |target| target.number)
    }

    fn execute(&mut self, command: Command) -> Result<Done, Refusal> {
        match command {
            Command::Request { id, shards, request } => {
                match id.and_then(|id| self.requests.kept(id)) {
                    Some(Kept::Done(number)) => return Ok(Done { number, duplicate: true }),
                    Some(Kept::Refused) => return Err(Refusal::RefusedBefore),
                    None => {}
                }
                // All of it or nothing: a request of many groups may be refused for the last.
                let planned = self.plan(shards, &request).map(|planned| *self = planned);
                if let Some(id) = id {
                    let done = Kept::Done(self.number());
                    self.requests.keep(id, if planned.is_ok() { done } else { Kept::Refused });
                }
                planned?;
            }
            Command::Report { group, identity, index, members } => {
                self.report(group, Reported { identity, index }, members)?;
            }
            Command::Settled(Step { group, shard, number }) => {
                self.step(shard, |placement| placement.settle(group, number))?;
            }
            Command::Cancelled(Step { group, shard, number }) => {
                self.step(shard, |placement| placement.cancel(group, number))?;
            }
        }
        Ok(Done { number: self.number(), duplicate: false })
    }

    /// Makes the next configuration, if it is another than the latest.
    fn request(&mut self, shards: u32, request: &Request) -> Result<(), Refusal> {
        let shards = shards.max(1);
        limit("shards_max", u64::from(shards), SHARDS_MAX.into())?;
        let latest = match self.latest() {
            None => Arc::new(Target::empty(shards)),
            Some(latest) if latest.shards() == shards => latest.clone(),
            Some(latest) => {
                let created = latest.shards();
                return Err(Refusal::OtherShards { created, proposed: shards });
            }
        };
        let change = self.change(&latest, request)?;
        if let Request::Join(groups) = request {
            for joining in groups {
                self.meet(joining)?;
            }
        }
        if self.history.is_empty() {
            self.placements = vec![Placement::default(); latest.owners.len()];
            self.publish(latest.clone());
        }
        let Some(target) = latest.changed(&change, self.next) else { return Ok(()) };
        if !target.weights.is_empty() && target.weights.values().all(|&weight| weight == 0) {
            return Err(Refusal::NoWeight);
        }
        if let Request::Adopt(group) = request {
            let owner = Some(*group);
            self.placements.fill(Placement { owner, since: target.number, moving: None });
        }
        for (shard, placement) in (0..).map(ShardId).zip(&mut self.placements) {
            placement.follow(shard, &target);
        }
        self.next = Number(target.number.0 + 1);
        self.publish(Arc::new(target));
        Ok(())
    }

    fn publish(&mut self, target: Arc<Target>) {
        let digest = snapshot::target_digest(&target);
        self.history_digest = self.history_digest.wrapping_add(digest);
        self.history.push_back(target);
        if self.history.len() > HISTORY_MAX
            && let Some(oldest) = self.history.pop_front()
        {
            let digest = snapshot::target_digest(&oldest);
            self.history_digest = self.history_digest.wrapping_sub(digest);
        }
    }

    /// What a request asks of the latest configuration.
    fn change(&self, latest: &Target, request: &Request) -> Result<Change, Refusal> {
        let joined = |group: GroupId| match latest.weights.get(&group) {
            Some(&weight) => Ok(weight),
            None => Err(Refusal::NotJoined(group)),
        };
        let there = |shard: ShardId| match latest.shards() {
            shards if shard.0 < shards => Ok(shard),
            shards => Err(Refusal::NoShard { shard, last: shards - 1 }),
        };
        let mut change = Change::default();
        match request {
            Request::Join(groups) => {
                distinct(groups.iter().map(|joining| joining.group))?;
                for &Joining { group, weight, .. } in groups {
                    limit("weight_max", weight.into(), WEIGHT_MAX.into())?;
                    if let Ok(weight_now) = joined(group)
                        && weight_now != weight
                    {
                        return Err(Refusal::Joined { group, weight: weight_now });
                    }
                    change.weights.insert(group, weight);
                }
            }
            Request::Leave(groups) => {
                distinct(groups.iter().copied())?;
                for &group in groups {
                    joined(group)?;
                }
                change.leaving.clone_from(groups);
            }
            &Request::Weigh { group, weight } => {
                joined(group)?;
                limit("weight_max", weight.into(), WEIGHT_MAX.into())?;
                change.weights.insert(group, weight);
            }
            &Request::Move { shard, group } => {
                joined(group)?;
                change.pins.insert(there(shard)?, Some(group));
            }
            &Request::Unpin(shard) => {
                change.pins.insert(there(shard)?, None);
            }
            &Request::Adopt(group) => {
                if !self.history.is_empty() {
                    return Err(Refusal::NotEmpty);
                }
                if !self.rosters.contains_key(&group) {
                    return Err(Refusal::Unknown(group));
                }
                change.weights.insert(group, 1);
            }
        }
        Ok(change)
    }

    /// Takes in what is said of a group that joins, if it has not said more itself.
    fn meet(&mut self, joining: &Joining) -> Result<(), Refusal> {
        let Joining { group, members, .. } = joining;
        check_members(members)?;
        match self.rosters.get_mut(group) {
            Some(Roster { reported: None, members: known }) if !members.is_empty() => {
                known.clone_from(members);
            }
            Some(_) => {}
            None if members.is_empty() => return Err(Refusal::Unknown(*group)),
            None => {
                self.make_room()?;
                let roster = Roster { reported: None, members: members.clone() };
                self.rosters.insert(*group, roster);
            }
        }
        Ok(())
    }

    fn report(
        &mut self,
        group: GroupId,
        told: Reported,
        members: Vec<String>,
    ) -> Result<(), Refusal> {
        check_members(&members)?;
        match self.rosters.get(&group).map(|roster| roster.reported) {
            Some(Some(known)) if known.identity != told.identity => {
                return Err(Refusal::OtherIdentity(group));
            }
            Some(Some(known)) if known.index >= told.index => return Err(Refusal::Stale),
            Some(_) => {}
            None => self.make_room()?,
        }
        self.rosters.insert(group, Roster { reported: Some(told), members });
        Ok(())
    }

    /// Makes room for one more group: one that has nothing to do with any shard is forgotten, until
    /// it reports again.
    fn make_room(&mut self) -> Result<(), Refusal> {
        if self.rosters.len() < GROUPS_MAX {
            return Ok(());
        }
        let placed = self.placements.iter();
        let mut needed: BTreeSet<GroupId> = placed
            .flat_map(|it| it.owner.into_iter().chain(it.moving.map(|moving| moving.to)))
            .collect();
        needed.extend(self.latest().iter().flat_map(|target| target.weights.keys()));
        let spare = self.rosters.keys().find(|group| !needed.contains(group)).copied();
        match spare {
            Some(group) => {
                self.rosters.remove(&group);
                Ok(())
            }
            None => limit("groups_max", GROUPS_MAX as u64 + 1, GROUPS_MAX as u64),
        }
    }

    /// Takes in what has become of a shard's move, and begins the next.
    fn step(
        &mut self,
        shard: ShardId,
        step: impl FnOnce(&mut Placement) -> Result<(), Stale>,
    ) -> Result<(), Refusal> {
        let Some(target) = self.latest().cloned() else { return Err(Refusal::Stale) };
        let last = target.shards() - 1;
        let placement = self.placements.get_mut(shard.0 as usize);
        let placement = placement.ok_or(Refusal::NoShard { shard, last })?;
        step(placement)?;
        placement.follow(shard, &target);
        Ok(())
    }
}

fn limit(name: &'static str, found: u64, limit: u64) -> Result<(), Refusal> {
    if found <= limit { Ok(()) } else { Err(Refusal::Limit { name, found, limit }) }
}

fn distinct(groups: impl ExactSizeIterator<Item = GroupId>) -> Result<(), Refusal> {
    if groups.len() == 0 {
        return Err(Refusal::NoGroups);
    }
    limit("groups_max", groups.len() as u64, GROUPS_MAX as u64)?;
    let mut seen = BTreeSet::new();
    for group in groups {
        if !seen.insert(group) {
            return Err(Refusal::Twice(group));
        }
    }
    Ok(())
}

fn check_members(members: &[String]) -> Result<(), Refusal> {
    limit("members_max", members.len() as u64, MEMBERS_MAX as u64)?;
    members.iter().try_for_each(|address| {
        limit("address_bytes_max", address.len() as u64, ADDRESS_BYTES_MAX as u64)
    })
}

impl Requests {
    fn kept(&self, id: RequestId) -> Option<Kept> {
        self.kept.get(&id).copied()
    }

    pub(crate) fn keep(&mut self, id: RequestId, kept: Kept) {
        self.order.push_back(id);
        self.kept.insert(id, kept);
        if self.order.len() > REQUESTS_KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.kept.remove(&oldest);
        }
    }

    /// All of them, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RequestId, Kept)> {
        self.order.iter().map(|id| (*id, self.kept[id]))
    }
}

impl StateMachine for ShardMachine {
    type Query = ();
    type Answer = Box<Self>;
    type Response = Result<Done, Refusal>;
    type Capture = Frozen;

    fn understands(&self, command: &Bytes) -> bool {
        check_version(command).is_ok()
    }

    fn apply(&mut self, _: Applied, command: &Bytes) -> Self::Response {
        let done = self.execute(Command::decode(command)?);
        self.digest = snapshot::digest(self, self.history_digest);
        done
    }

    fn pass(&mut self, _: Applied) {}

    /// Configurations were published, and groups have acted on them, that are not in the state.
    fn recover(&mut self) {
        self.next.0 += RECOVERY_GAP;
        self.digest = snapshot::digest(self, self.history_digest);
    }

    /// All of it, which shares the configurations.
    fn query(&self, (): ()) -> Box<Self> {
        Box::new(self.clone())
    }

    fn capture(&self) -> Frozen {
        Frozen::of(self)
    }

    fn empty(&self) -> Self {
        Self::new(self.wanted)
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        *self = snapshot::restore(chunks, self.wanted)?;
        Ok(())
    }

    fn digest(&self) -> u128 {
        self.digest
    }
}
