//! The shard controller as a replicated state machine: the configurations, where shards are, who the
//! groups' members are, and which requests were executed.
//!
//! Decides what a request makes of the latest configuration, and when it is refused. What a
//! configuration asks of placements is `placement.rs`, whom it gives which shard `rebalance.rs`.
//! Pure: no clock, no randomness, no IO; the same commands give the same state on every member.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU32,
    sync::Arc,
};

use bytes::Bytes;
use raft::{Applied, BadSnapshot, RECOVERY_GAP, StateMachine};

use crate::{
    command::{Command, Joining, Request, Step, check_version},
    ids::{GroupId, Identity, MoveNumber, Number, ShardId},
    limits::{
        ADDRESS_BYTES_MAX, GROUPS_MAX, HISTORY_MAX, MEMBERS_MAX, NUMBER_MAX, SHARDS_MAX, WEIGHT_MAX,
    },
    outcome::{Done, Refusal},
    placement::{Placement, Stale},
    requests::{Kept, Requests},
    snapshot::{self, Frozen},
    target::{Change, Target},
};

/// The version of the machine's semantics, part of its snapshots.
pub const MACHINE_VERSION: u32 = 1;

/// The state of the controller. Copies share the configurations. What holds of it is
/// [`ShardMachine::check`].
#[derive(Clone, Debug)]
pub struct ShardMachine {
    /// The configurations that are kept, the latest last; empty only before the first change.
    pub(crate) history: VecDeque<Arc<Target>>,
    /// The number of the next.
    pub(crate) next: Number,
    /// Where each shard is, by number.
    pub(crate) placements: Vec<Placement>,
    /// What is known of each group.
    pub(crate) rosters: BTreeMap<GroupId, Roster>,
    /// What was executed.
    pub(crate) requests: Requests,
    /// How often any of that has changed.
    pub(crate) revision: u64,
    /// The sum of the configurations' digests.
    history_digest: u128,
    /// The digest of everything but the revision.
    parts_digest: u128,
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
    /// How many shards its store was made with; none, if there is nothing in it.
    pub shards: Option<NonZeroU32>,
}

impl Default for ShardMachine {
    fn default() -> Self {
        let (history, placements, rosters) = Default::default();
        Self::of(history, Number(1), placements, rosters, Requests::default(), 0)
    }
}

impl ShardMachine {
    /// The state of these parts.
    pub(crate) fn of(
        history: VecDeque<Arc<Target>>,
        next: Number,
        placements: Vec<Placement>,
        rosters: BTreeMap<GroupId, Roster>,
        requests: Requests,
        revision: u64,
    ) -> Self {
        let digests = history.iter().map(|target| snapshot::target_digest(target));
        let history_digest = digests.fold(0, u128::wrapping_add);
        let parts_digest = 0;
        let mut made = Self {
            history,
            next,
            placements,
            rosters,
            requests,
            revision,
            history_digest,
            parts_digest,
        };
        made.parts_digest = snapshot::digest(&made, history_digest);
        made
    }

    /// The latest configuration; none before the first change.
    pub fn latest(&self) -> Option<&Arc<Target>> {
        self.history.back()
    }

    /// The latest configuration, or the one before the first, of so many shards.
    pub fn latest_or_empty(&self, shards: u32) -> Arc<Target> {
        self.latest().cloned().unwrap_or_else(|| Arc::new(Target::empty(shards)))
    }

    /// A configuration of the history; none: it is not kept any more, or does not exist yet.
    pub fn configuration(&self, number: Number) -> Option<&Arc<Target>> {
        let at = self.history.binary_search_by_key(&number, |target| target.number).ok()?;
        self.history.get(at)
    }

    /// The configurations that are kept, the oldest first.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Arc<Target>> {
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

    /// Counts the changes of the state: of two states of one controller the one with the higher
    /// revision is the later one.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The configuration that a request would come to, which is the latest if it changes nothing.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn plan(&self, shards: NonZeroU32, request: &Request) -> Result<Arc<Target>, Refusal> {
        Ok(self.planned(shards, request)?.latest_or_empty(shards.get()))
    }

    /// What always holds.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), &'static str> {
        let holds = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        holds((1..=NUMBER_MAX).contains(&self.next.0), "the next number cannot be")?;
        holds(self.revision <= NUMBER_MAX, "the revision cannot be")?;
        holds(self.rosters.len() <= GROUPS_MAX, "there are too many groups")?;
        let bearable = self.rosters.values().all(|roster| check_members(&roster.members).is_ok());
        holds(bearable, "a group has too many members")?;
        let Some(latest) = self.latest() else {
            return holds(self.placements.is_empty(), "shards without a configuration");
        };
        let numbers: Vec<_> = self.history.iter().map(|target| target.number).collect();
        holds(numbers.is_sorted_by(|one, other| one < other), "configurations are out of order")?;
        holds(latest.number < self.next, "a configuration of the future")?;
        holds(!latest.owners.is_empty(), "a configuration without shards")?;
        holds(self.history.len() <= HISTORY_MAX, "there are too many configurations")?;
        for target in &self.history {
            holds(target.shards() == latest.shards(), "configurations of other shards")?;
            target.check()?;
        }
        holds(self.placements.len() == latest.owners.len(), "placements of other shards")?;
        for (shard, placement) in (0..).map(ShardId).zip(&self.placements) {
            placement.check(latest.owner(shard))?;
        }
        let known = self.needed().iter().all(|group| self.rosters.contains_key(group));
        holds(known, "nobody knows where a group is")
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
                let (kept, refusal) = match self.planned(shards, &request) {
                    Ok(planned) => {
                        *self = planned;
                        (Kept::Done(self.number()), None)
                    }
                    Err(refusal) => (Kept::Refused, Some(refusal)),
                };
                if let Some(id) = id {
                    self.requests.keep(id, kept);
                }
                refusal.map_or(Ok(()), Err)?;
            }
            Command::Report { group, identity, index, shards, members } => {
                self.report(group, Reported { identity, index, shards }, members)?;
            }
            Command::Settled(step) => self.step(step, Placement::settle)?,
            Command::Cancelled(step) => self.step(step, Placement::cancel)?,
            Command::Aborted(step) => self.step(step, Placement::abort)?,
        }
        Ok(Done { number: self.number(), duplicate: false })
    }

    /// What a request comes to: all of it or nothing, since one of many groups may be refused for the
    /// last.
    fn planned(&self, shards: NonZeroU32, request: &Request) -> Result<Self, Refusal> {
        let mut planned = self.clone();
        planned.request(shards.get(), request)?;
        Ok(planned)
    }

    /// Makes the next configuration, if it is another than the latest.
    fn request(&mut self, shards: u32, request: &Request) -> Result<(), Refusal> {
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
            let mut needed = self.needed();
            needed.extend(change.weights.keys());
            for joining in groups {
                self.meet(joining, &needed)?;
            }
        }
        let Some(target) = latest.changed(&change, self.next) else { return Ok(()) };
        if !target.weights.is_empty() && target.weights.values().all(|&weight| weight == 0) {
            return Err(Refusal::NoWeight);
        }
        if self.history.is_empty() {
            self.placements = vec![Placement::default(); latest.owners.len()];
            self.publish(latest);
        }
        if let Request::Adopt(group) = request {
            let (owner, since) = (Some(*group), MoveNumber(1));
            let placement = Placement { owner, since, last: since, ..Placement::default() };
            self.placements.fill(placement);
        }
        let floor = self.floor();
        for (shard, placement) in (0..).map(ShardId).zip(&mut self.placements) {
            placement.follow(shard, &target, floor);
        }
        self.next = Number(target.number.0 + 1);
        self.publish(Arc::new(target));
        Ok(())
    }

    /// Moves up to this number may have been begun before a recovery, by a state that was lost.
    fn floor(&self) -> MoveNumber {
        MoveNumber(self.next.0 / RECOVERY_GAP * RECOVERY_GAP)
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
        let joined = |group: GroupId| match latest.weights.contains_key(&group) {
            true => Ok(group),
            false => Err(Refusal::NotJoined(group)),
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
                    match latest.weights.get(&group) {
                        Some(&now) if now != weight => {
                            return Err(Refusal::Joined { group, weight: now });
                        }
                        Some(_) | None => change.weights.insert(group, weight),
                    };
                }
            }
            Request::Leave(groups) => {
                distinct(groups.iter().copied())?;
                change.leaving = groups.iter().map(|&it| joined(it)).collect::<Result<_, _>>()?;
            }
            &Request::Weigh { group, weight } => {
                limit("weight_max", weight.into(), WEIGHT_MAX.into())?;
                change.weights.insert(joined(group)?, weight);
            }
            &Request::Move { shard, group } => {
                change.pins.insert(there(shard)?, Some(joined(group)?));
            }
            &Request::Unpin(shard) => {
                change.pins.insert(there(shard)?, None);
            }
            &Request::Adopt(group) => {
                self.check_adoption(group, latest.shards())?;
                change.weights.insert(group, 1);
            }
        }
        Ok(change)
    }

    /// Whether a group may be adopted by a controller of so many shards.
    fn check_adoption(&self, group: GroupId, shards: u32) -> Result<(), Refusal> {
        if !self.history.is_empty() {
            return Err(Refusal::NotEmpty);
        }
        let reported = self.rosters.get(&group).and_then(|roster| roster.reported);
        let created = reported.ok_or(Refusal::Unknown(group))?.shards;
        match created.ok_or(Refusal::NothingToAdopt(group))?.get() {
            created if created == shards => Ok(()),
            created => Err(Refusal::OtherShards { created, proposed: shards }),
        }
    }

    /// Takes in what is said of a group that joins, as long as it has said nothing itself.
    fn meet(&mut self, joining: &Joining, needed: &BTreeSet<GroupId>) -> Result<(), Refusal> {
        let Joining { group, members, .. } = joining;
        check_members(members)?;
        match self.rosters.get_mut(group) {
            Some(Roster { reported: None, members: known }) if !members.is_empty() => {
                known.clone_from(members);
            }
            Some(_) => {}
            None if members.is_empty() => return Err(Refusal::Unknown(*group)),
            None => {
                self.make_room(needed)?;
                let roster = Roster { reported: None, members: members.clone() };
                self.rosters.insert(*group, roster);
            }
        }
        Ok(())
    }

    /// Takes in what a group says of itself. Its identity is pinned once it has to do with a shard.
    fn report(
        &mut self,
        group: GroupId,
        mut told: Reported,
        members: Vec<String>,
    ) -> Result<(), Refusal> {
        check_members(&members)?;
        if members.is_empty() {
            return Err(Refusal::NoMembers(group));
        }
        match self.rosters.get(&group).map(|roster| roster.reported) {
            Some(Some(known)) if known.identity == told.identity => {
                // A store is made once, whatever its members do.
                let made = known.shards.is_none() && told.shards.is_some();
                if told.index < known.index || told.index == known.index && !made {
                    return Err(Refusal::Stale);
                }
                told.shards = known.shards.or(told.shards);
            }
            Some(Some(_)) if self.needed().contains(&group) => {
                return Err(Refusal::OtherIdentity(group));
            }
            Some(_) => {}
            None => {
                let needed = self.needed();
                self.make_room(&needed)?;
            }
        }
        self.rosters.insert(group, Roster { reported: Some(told), members });
        Ok(())
    }

    /// The groups that take part, have a shard, or get one.
    fn needed(&self) -> BTreeSet<GroupId> {
        let placed = self.placements.iter();
        let placed = placed.flat_map(|it| it.owner.into_iter().chain(it.moving.map(|it| it.to)));
        let take_part = self.latest().into_iter().flat_map(|target| target.weights.keys());
        placed.chain(take_part.copied()).collect()
    }

    /// Makes room for one more group: one that nobody needs is forgotten, until it reports again.
    fn make_room(&mut self, needed: &BTreeSet<GroupId>) -> Result<(), Refusal> {
        if self.rosters.len() < GROUPS_MAX {
            return Ok(());
        }
        match self.rosters.keys().find(|group| !needed.contains(group)).copied() {
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
        Step { group, identity, shard, number }: Step,
        step: impl FnOnce(&mut Placement, GroupId, MoveNumber) -> Result<(), Stale>,
    ) -> Result<(), Refusal> {
        let Some(target) = self.latest().cloned() else { return Err(Refusal::Stale) };
        let reported = self.rosters.get(&group).and_then(|roster| roster.reported);
        if reported.ok_or(Refusal::Unknown(group))?.identity != identity {
            return Err(Refusal::OtherIdentity(group));
        }
        let (last, floor) = (target.shards() - 1, self.floor());
        let placement = self.placements.get_mut(shard.0 as usize);
        let placement = placement.ok_or(Refusal::NoShard { shard, last })?;
        step(placement, group, number)?;
        placement.follow(shard, &target, floor);
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
        let digest = snapshot::digest(self, self.history_digest);
        self.revision += u64::from(digest != self.parts_digest);
        self.parts_digest = digest;
        done
    }

    fn pass(&mut self, _: Applied) {}

    /// Configurations were published, and groups have acted on placements, that are not in the state:
    /// no number is given twice. A move that is under way keeps its own, since it may be told settled.
    fn recover(&mut self) {
        self.next.0 += RECOVERY_GAP;
        self.revision += RECOVERY_GAP;
        self.placements.iter_mut().for_each(|placement| placement.recovered_at = placement.last);
        self.parts_digest = snapshot::digest(self, self.history_digest);
    }

    /// All of it, which shares the configurations.
    fn query(&self, (): ()) -> Box<Self> {
        Box::new(self.clone())
    }

    fn capture(&self) -> Frozen {
        Frozen::of(self)
    }

    fn empty(&self) -> Self {
        Self::default()
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        *self = snapshot::restore(chunks)?;
        Ok(())
    }

    fn digest(&self) -> u128 {
        self.parts_digest.wrapping_add(self.revision.into())
    }
}
