//! What `shardctl status` knows, put together: of each shard and each group what the controller says
//! and what the groups say.
//!
//! Decides which group's word on a shard counts, and what is added up. A function of what was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use client::{
    handoff::{ShardPhase, ShardStanding},
    shards::{Configuration, Group, Placement, State},
};

use super::survey::{Standings, Told};
use crate::cli::show::shares;

/// Revisions that lie so far apart were not counted up: a recovery goes on 2^32 further.
const RECOVERY_JUMP: u64 = 1 << 32;

/// All that is shown.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    pub(super) state: &'a State,
    pub(super) shards: Vec<ShardRow<'a>>,
    pub(super) groups: Vec<GroupRow<'a>>,
    /// Of all groups that told.
    pub(super) totals: Numbers,
    /// Whether all that have anything did.
    pub(super) complete: bool,
}

/// How much there is, and what is done to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) keys: u64,
    pub(super) bytes: u64,
    /// None: it was looked at once only.
    pub(super) requests_per_second: Option<f64>,
    /// The same.
    pub(super) changes_per_second: Option<f64>,
}

/// What is shown of a shard.
#[derive(Clone, Debug)]
pub(super) struct ShardRow<'a> {
    pub(super) placement: &'a Placement,
    pub(super) phase: Phase,
    pub(super) pinned: bool,
    /// How it stands in each group where there is anything of it.
    pub(super) standings: Vec<(u32, &'a ShardStanding)>,
    /// What the group says that has it.
    pub(super) had: Option<Had>,
}

/// What a group says of a shard that it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Had {
    pub(super) group: u32,
    pub(super) revision: u64,
    pub(super) numbers: Numbers,
}

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody has it, nor shall.
    Nowhere,
    /// Its owner has it.
    Resting,
    /// It is made by this group.
    Making(u32),
    /// It moves to this group.
    Moving(u32),
    /// Its move to this group shall end, or what was begun of making it there.
    Cancelling(u32),
}

/// What is shown of a group.
#[derive(Clone, Debug)]
pub(super) struct GroupRow<'a> {
    pub(super) group: &'a Group,
    /// None: it does not take part.
    pub(super) weight: Option<u32>,
    pub(super) has: usize,
    pub(super) shall_have: usize,
    /// Why it tells nothing, or how much it has.
    pub(super) told: Result<Numbers, &'a str>,
    pub(super) members: Vec<MemberRow<'a>>,
}

/// What is shown of a member.
#[derive(Clone, Debug)]
pub(super) struct MemberRow<'a> {
    pub(super) address: &'a str,
    /// Why it tells nothing, or how it is.
    pub(super) told: Result<MemberState, &'a str>,
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemberState {
    pub(super) node: u64,
    pub(super) leads: bool,
    pub(super) applied_index: u64,
    /// How many entries it has not applied that the leader knows to be committed; none: nobody leads.
    pub(super) lag: Option<u64>,
}

impl Phase {
    pub(super) fn of(placement: &Placement) -> Self {
        match (placement.r#move, placement.owner) {
            (None, 0) => Self::Nowhere,
            (None, _) => Self::Resting,
            (Some(moving), _) if moving.cancelling => Self::Cancelling(moving.to),
            (Some(moving), 0) => Self::Making(moving.to),
            (Some(moving), _) => Self::Moving(moving.to),
        }
    }

    pub(super) fn is_moving(self) -> bool {
        match self {
            Self::Nowhere | Self::Resting => false,
            Self::Making(_) | Self::Moving(_) | Self::Cancelling(_) => true,
        }
    }
}

impl GroupRow<'_> {
    /// Where its leader is.
    pub(super) fn leader(&self) -> Option<&str> {
        let leads = |member: &&MemberRow<'_>| member.told.is_ok_and(|told| told.leads);
        self.members.iter().find(leads).map(|member| member.address)
    }

    /// The lag of who lags most.
    pub(super) fn lag(&self) -> Option<u64> {
        self.members.iter().filter_map(|member| member.told.ok()?.lag).max()
    }
}

impl<'a> View<'a> {
    /// Of what was told now, and what was told `before`, if it was, for what happens in between.
    pub(super) fn of(
        state: &'a State,
        told: &'a BTreeMap<u32, Told>,
        before: Option<&Look>,
    ) -> Self {
        let shards = shard_rows(state, told, before);
        let groups = group_rows(state, told, &shards, before.is_some());
        let totals = sum(groups.iter().filter_map(|group| group.told.ok()), before.is_some());
        let complete = groups.iter().all(|group| group.told.is_ok() || group.has == 0);
        Self { state, shards, groups, totals, complete }
    }

    /// How many shards are on their way.
    pub(super) fn moving(&self) -> usize {
        self.shards.iter().filter(|row| row.phase.is_moving()).count()
    }

    /// How many shards are pinned.
    pub(super) fn pinned(&self) -> usize {
        self.shards.iter().filter(|row| row.pinned).count()
    }
}

/// What goes up with requests and changes, at a time, for the next view.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    /// The revision of each shard.
    revisions: BTreeMap<u32, (u64, Instant)>,
    /// How many requests about each shard each member of each group has answered.
    requests: BTreeMap<u32, BTreeMap<String, (Vec<u64>, Instant)>>,
}

impl Look {
    pub(super) fn of(told: &BTreeMap<u32, Told>) -> Self {
        let (mut look, believed) = (Self::default(), believed(told));
        for shard in 0..shards_told(&believed) {
            if let Some((group, standing)) = had(&standings(shard, &believed)) {
                look.revisions.insert(shard, (standing.revision, believed[&group].at));
            }
        }
        for (group, told) in told {
            for (address, member) in told.answering() {
                let Ok(standings) = &member.standings else { continue };
                let requests = standings.shards.iter().map(|standing| standing.requests).collect();
                let of_group = look.requests.entry(*group).or_default();
                of_group.insert(address.to_owned(), (requests, standings.at));
            }
        }
        look
    }

    /// How many changes a shard had each second until it had this revision.
    fn changes_per_second(&self, shard: u32, revision: u64, at: Instant) -> Option<f64> {
        let (before, began) = self.revisions.get(&shard)?;
        let changes = revision.checked_sub(*before).filter(|changes| *changes < RECOVERY_JUMP)?;
        per_second(changes, *began, at)
    }

    /// How many requests about a shard were answered each second by those who tell so now and did
    /// before. A member that has started anew counts from the next look.
    fn requests_per_second(&self, shard: u32, told: &BTreeMap<u32, Told>) -> Option<f64> {
        let rates = told.iter().flat_map(|(group, told)| {
            told.answering().filter_map(|(address, member)| {
                let standings = member.standings.as_ref().ok()?;
                let now = standings.shards.get(shard as usize)?.requests;
                let (before, began) = self.requests.get(group)?.get(address)?;
                let requests = now.checked_sub(*before.get(shard as usize)?)?;
                per_second(requests, *began, standings.at)
            })
        });
        rates.reduce(|sum, rate| sum + rate)
    }
}

fn per_second(count: u64, began: Instant, at: Instant) -> Option<f64> {
    let seconds = at.checked_duration_since(began)?.as_secs_f64();
    (seconds > 0.0).then(|| count as f64 / seconds)
}

/// How the shards stand in each group that tells.
type Believed<'a> = BTreeMap<u32, &'a Standings>;

fn believed(told: &BTreeMap<u32, Told>) -> Believed<'_> {
    told.iter().filter_map(|(group, told)| Some((*group, told.standings().ok()?))).collect()
}

/// How many shards any group tells of.
fn shards_told(believed: &Believed<'_>) -> u32 {
    let counts = believed.values().map(|standings| standings.shards.len());
    counts.max().and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

/// How a shard stands in each group where there is anything of it.
fn standings<'a>(shard: u32, believed: &Believed<'a>) -> Vec<(u32, &'a ShardStanding)> {
    let all = believed
        .iter()
        .filter_map(|(group, standings)| Some((*group, standings.shards.get(shard as usize)?)));
    all.filter(|(_, standing)| match standing.phase() {
        ShardPhase::Unspecified | ShardPhase::Absent => false,
        ShardPhase::Serving
        | ShardPhase::Leaving
        | ShardPhase::Frozen
        | ShardPhase::Incoming
        | ShardPhase::Discarding => true,
    })
    .collect()
}

/// The group that has a shard, and how it stands there: who serves it, else who froze it; of two,
/// since groups are not asked at one moment, the one by the later move.
fn had<'a>(standings: &[(u32, &'a ShardStanding)]) -> Option<(u32, &'a ShardStanding)> {
    let rank = |standing: &ShardStanding| match standing.phase() {
        ShardPhase::Serving | ShardPhase::Leaving => Some(1),
        ShardPhase::Frozen => Some(0),
        ShardPhase::Unspecified
        | ShardPhase::Absent
        | ShardPhase::Incoming
        | ShardPhase::Discarding => None,
    };
    let ranked = standings.iter().filter_map(|(group, it)| Some((rank(it)?, *group, *it)));
    let best = ranked.max_by_key(|(rank, _, standing)| (*rank, standing.settled));
    best.map(|(_, group, standing)| (group, standing))
}

fn shard_rows<'a>(
    state: &'a State,
    told: &'a BTreeMap<u32, Told>,
    before: Option<&Look>,
) -> Vec<ShardRow<'a>> {
    let pins = state.configuration.iter().flat_map(|configuration| &configuration.pins);
    let pins: BTreeSet<u32> = pins.map(|pin| pin.shard).collect();
    let believed = believed(told);
    let row = |placement: &'a Placement| {
        let standings = standings(placement.shard, &believed);
        let had = had(&standings).map(|(group, standing)| {
            let ShardStanding { keys, bytes, revision, .. } = *standing;
            let at = believed[&group].at;
            let numbers = Numbers {
                keys,
                bytes,
                requests_per_second: before
                    .and_then(|before| before.requests_per_second(placement.shard, told)),
                changes_per_second: before
                    .and_then(|before| before.changes_per_second(placement.shard, revision, at)),
            };
            Had { group, revision, numbers }
        });
        let (phase, pinned) = (Phase::of(placement), pins.contains(&placement.shard));
        ShardRow { placement, phase, pinned, standings, had }
    };
    state.placements.iter().map(row).collect()
}

fn group_rows<'a>(
    state: &'a State,
    told: &'a BTreeMap<u32, Told>,
    shards: &[ShardRow<'_>],
    rates: bool,
) -> Vec<GroupRow<'a>> {
    let nothing = Configuration::default();
    let configuration = state.configuration.as_ref().unwrap_or(&nothing);
    let owners: Vec<u32> = state.placements.iter().map(|placement| placement.owner).collect();
    let (now, then) = (shares(&owners), shares(&configuration.owners));
    let row = |group: &'a Group| {
        let number = group.group;
        let weight = configuration.weights.iter().find(|weight| weight.group == number);
        let answer = told.get(&number);
        let numbers = || {
            let had = shards.iter().filter_map(|row| row.had).filter(|had| had.group == number);
            sum(had.map(|had| had.numbers), rates)
        };
        GroupRow {
            group,
            weight: weight.map(|weight| weight.weight),
            has: now.get(&number).map_or(0, Vec::len),
            shall_have: then.get(&number).map_or(0, Vec::len),
            told: match answer.map(Told::standings) {
                Some(Ok(_)) => Ok(numbers()),
                Some(Err(why)) => Err(why),
                None => Err("it was not asked"),
            },
            members: answer.map(member_rows).unwrap_or_default(),
        }
    };
    state.groups.iter().map(row).collect()
}

fn member_rows(told: &Told) -> Vec<MemberRow<'_>> {
    let leader = told.leader();
    let rows = told.members.iter().map(|(address, member)| {
        let state = member.as_ref().map(|member| MemberState {
            node: member.status.node,
            leads: leader.is_some_and(|(at, _)| at == address),
            applied_index: member.status.applied_index,
            lag: leader
                .map(|(_, led)| led.commit_index.saturating_sub(member.status.applied_index)),
        });
        MemberRow { address, told: state.map_err(String::as_str) }
    });
    rows.collect()
}

/// All together.
fn sum(all: impl Iterator<Item = Numbers>, rates: bool) -> Numbers {
    let rate = rates.then_some(0.0);
    let none =
        Numbers { requests_per_second: rate, changes_per_second: rate, ..Numbers::default() };
    let add = |sum: Option<f64>, one: Option<f64>| sum.map(|sum| sum + one.unwrap_or(0.0));
    all.fold(none, |sum, one| Numbers {
        keys: sum.keys + one.keys,
        bytes: sum.bytes + one.bytes,
        requests_per_second: add(sum.requests_per_second, one.requests_per_second),
        changes_per_second: add(sum.changes_per_second, one.changes_per_second),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use client::shards::{Pin, ShardMove, Weight};
    use proto::admin::{Role, StatusReply};

    use super::{super::survey::Member, *};

    fn placement(shard: u32, owner: u32, moving: Option<(u32, bool)>) -> Placement {
        let r#move = moving.map(|(to, cancelling)| ShardMove { to, cancelling });
        Placement { shard, owner, since: 1, last: 2, r#move, recovered_at: 0 }
    }

    /// Six shards of three groups, of which one takes no part and one has only begun.
    pub(in super::super) fn state() -> State {
        let group = |group| Group { group, members: vec![format!("{group}:1")], reported: None };
        State {
            revision: 9,
            latest: 4,
            configuration: Some(Configuration {
                number: 4,
                owners: vec![1, 1, 2, 2, 2, 2],
                weights: vec![Weight { group: 1, weight: 1 }, Weight { group: 2, weight: 2 }],
                pins: vec![Pin { shard: 5, group: 2 }],
            }),
            placements: vec![
                placement(0, 1, None),
                placement(1, 1, None),
                placement(2, 1, Some((2, false))),
                placement(3, 2, Some((1, true))),
                placement(4, 0, Some((2, false))),
                placement(5, 2, None),
            ],
            groups: vec![group(1), group(2), group(3)],
        }
    }

    fn standing(phase: ShardPhase, settled: u64, keys: u64, revision: u64) -> ShardStanding {
        let (phase, bytes) = (phase.into(), 100 * keys);
        ShardStanding { phase, settled, keys, bytes, revision, ..ShardStanding::default() }
    }

    fn member(
        role: Role,
        applied_index: u64,
        at: Instant,
        shards: Vec<ShardStanding>,
    ) -> Result<Member, String> {
        let (node, commit_index) = (1, 10);
        let role = role.into();
        let status =
            StatusReply { node, role, applied_index, commit_index, ..StatusReply::default() };
        Ok(Member { status, standings: Ok(Standings { at, shards }) })
    }

    /// Group 1 with a member that is away and one that lags; group 2 is dead, group 3 has nothing.
    /// So many changes more were made than at first, and to each of them a read came.
    pub(in super::super) fn told(at: Instant, more: u64) -> BTreeMap<u32, Told> {
        use ShardPhase::{Absent, Frozen, Incoming, Leaving, Serving};
        let dead = |address: &str| (address.to_owned(), Err(format!("{address}: gone")));
        let alive = |address: &str, member| (address.to_owned(), member);
        let absent = standing(Absent, 0, 0, 0);
        let shards = [
            standing(Serving, 1, 4, 40 + more),
            standing(Frozen, 1, 2, 20),
            standing(Leaving, 1, 3, 30 + 2 * more),
            standing(Incoming, 1, 1, 5),
            absent,
            absent,
        ];
        // One has answered changes, the other one reads.
        let answered = |requests: u64| {
            let with = |standing| ShardStanding { requests, ..standing };
            shards.map(with).to_vec()
        };
        let members = [
            alive("1:1", member(Role::Leader, 10, at, answered(1_000 + 2 * more))),
            alive("1:2", member(Role::Follower, 7, at, answered(more))),
            dead("1:3"),
        ];
        let one = Told { members: members.into() };
        let two = Told { members: [dead("2:1")].into() };
        let members = [alive("3:1", member(Role::Leader, 10, at, vec![absent; 6]))].into();
        [(1, one), (2, two), (3, Told { members })].into()
    }

    #[test]
    fn keys_are_counted_once_where_the_shard_is_had() {
        let (state, told) = (state(), told(Instant::now(), 0));
        let view = View::of(&state, &told, None);
        let keys = |group: usize| view.groups[group].told.map(|numbers| numbers.keys);
        // What is copied to it is not its own yet.
        assert_eq!([keys(0), keys(1), keys(2)], [Ok(9), Err("no member answers"), Ok(0)]);
        assert_eq!((view.totals.keys, view.totals.bytes, view.complete), (9, 900, false));
        let Numbers { requests_per_second, changes_per_second, .. } = view.totals;
        assert_eq!((requests_per_second, changes_per_second), (None, None));
        assert_eq!((view.moving(), view.pinned()), (3, 1));
        assert_eq!(view.shards[3].had, None, "its owner is dead");
        assert_eq!(view.shards[3].standings.len(), 1);
    }

    #[test]
    fn a_group_without_shards_is_missed_by_nobody() {
        let (mut state, told) = (state(), told(Instant::now(), 0));
        for placement in &mut state.placements {
            placement.owner = 1;
        }
        assert!(View::of(&state, &told, None).complete);
    }

    #[test]
    fn members_are_told_by_who_leads_and_who_lags() {
        let (state, told) = (state(), told(Instant::now(), 0));
        let view = View::of(&state, &told, None);
        let one = &view.groups[0];
        assert_eq!((one.leader(), one.lag()), (Some("1:1"), Some(3)));
        assert_eq!(one.members[2].told, Err("1:3: gone"));
        assert_eq!((view.groups[1].leader(), view.groups[1].lag()), (None, None));
    }

    #[test]
    fn changes_are_counted_between_two_looks() {
        let (state, began) = (state(), Instant::now());
        let (first, second) = (told(began, 0), told(began + Duration::from_secs(2), 10));
        let view = View::of(&state, &second, Some(&Look::of(&first)));
        let rate = |shard: usize| view.shards[shard].had.unwrap().numbers.changes_per_second;
        assert_eq!([rate(0), rate(1), rate(2)], [Some(5.0), Some(0.0), Some(10.0)]);
        assert_eq!(view.totals.changes_per_second, Some(15.0));
        // A recovery is no change, nor is what goes back.
        let jumped = told(began + Duration::from_secs(2), RECOVERY_JUMP);
        let view = View::of(&state, &jumped, Some(&Look::of(&first)));
        assert_eq!(view.shards[0].had.unwrap().numbers.changes_per_second, None);
        let view = View::of(&state, &first, Some(&Look::of(&second)));
        assert_eq!(view.shards[0].had.unwrap().numbers.changes_per_second, None);
    }

    #[test]
    fn requests_are_counted_whichever_member_has_answered_them() {
        let (state, began) = (state(), Instant::now());
        let (first, mut second) = (told(began, 4), told(began + Duration::from_secs(2), 10));
        let rate = |second: &BTreeMap<u32, Told>| {
            let view = View::of(&state, second, Some(&Look::of(&first)));
            let shard = view.shards[0].had.unwrap().numbers.requests_per_second;
            (shard, view.totals.requests_per_second)
        };
        assert_eq!(rate(&second), (Some(9.0), Some(27.0)));
        // One has started anew.
        let members = &mut second.get_mut(&1).unwrap().members;
        let member = members.get_mut("1:2").and_then(|it| it.as_mut().ok()).unwrap();
        for standing in &mut member.standings.as_mut().unwrap().shards {
            standing.requests = 0;
        }
        assert_eq!(rate(&second), (Some(6.0), Some(18.0)));
    }

    #[test]
    fn of_two_groups_that_seem_to_serve_a_shard_the_later_one_has_it() {
        use ShardPhase::{Discarding, Frozen, Incoming, Serving};
        let at = |phase, settled| standing(phase, settled, 1, 1);
        let had = |one: ShardStanding, other: ShardStanding| {
            had(&[(1, &one), (2, &other)]).map(|(group, _)| group)
        };
        assert_eq!(had(at(Serving, 7), at(Serving, 8)), Some(2));
        assert_eq!(had(at(Serving, 8), at(Discarding, 9)), Some(1));
        assert_eq!(had(at(Frozen, 7), at(Serving, 8)), Some(2));
        assert_eq!(had(at(Frozen, 7), at(Incoming, 7)), Some(1));
        assert_eq!(had(at(Incoming, 7), at(Discarding, 7)), None);
    }
}
