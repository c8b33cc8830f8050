//! Who groups are, and which are adopted.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use raft::Applied;
use raft::StateMachine;
use shardctl::command::Command;
use shardctl::command::Joining;
use shardctl::command::Request;
use shardctl::ids::MoveNumber;
use shardctl::ids::ShardId;
use shardctl::limits::GROUPS_MAX;
use shardctl::machine::Reported;
use shardctl::outcome::Refusal;
use shardctl::placement::Placement;

use crate::{Log, REPORTED, SHARDS, group, identity, join, joining, report};

#[test]
fn a_group_is_who_it_says() {
    let mut log = Log::new();
    let told = |identity: u8, index: u64, member: &str| Command::Report {
        group: group(20),
        identity: [identity; 32],
        index,
        shards: None,
        members: vec![member.to_owned()],
    };
    let unknown = Joining { members: Vec::new(), ..joining(20) };
    let without = Request::Join(vec![unknown]);
    assert_eq!(log.ask(without.clone()), Err(Refusal::Unknown(group(20))));
    log.apply(&told(6, 9, "a:0")).unwrap();
    // Made anew before anybody needs it.
    log.apply(&told(7, 5, "a:1")).unwrap();
    log.ask(without).unwrap();
    // What it says itself counts more than what is said of it.
    log.number(join(&[20]));
    let roster = |log: &Log| log.machine.rosters()[&group(20)].clone();
    assert_eq!(roster(&log).members, ["a:1"]);
    assert_eq!(log.apply(&told(7, 5, "b:1")), Err(Refusal::Stale));
    assert_eq!(log.apply(&told(8, 6, "b:1")), Err(Refusal::OtherIdentity(group(20))));
    log.apply(&told(7, 6, "b:1")).unwrap();
    assert_eq!(roster(&log).members, ["b:1"]);
    let reported = Reported { identity: [7; 32], index: 6, shards: None };
    assert_eq!(roster(&log).reported, Some(reported));
    let nobody = Command::Report {
        group: group(20),
        identity: [7; 32],
        index: 9,
        shards: None,
        members: Vec::new(),
    };
    assert_eq!(log.apply(&nobody), Err(Refusal::NoMembers(group(20))));
    // A store is made, and what was told before that comes late.
    let made = |index: u64, shards: u32, member: &str| Command::Report {
        group: group(20),
        identity: [7; 32],
        index,
        shards: NonZeroU32::new(shards),
        members: vec![member.to_owned()],
    };
    log.apply(&made(6, 10, "b:1")).unwrap();
    for late in [made(6, 0, "b:1"), made(5, 0, "a:1"), made(5, 10, "a:1"), made(6, 10, "b:1")] {
        assert_eq!(log.apply(&late), Err(Refusal::Stale));
    }
    log.apply(&made(7, 0, "c:1")).unwrap();
    let reported = roster(&log).reported.unwrap();
    assert_eq!((reported.index, reported.shards), (7, NonZeroU32::new(10)));
    // One that has not reported is where it was said to be last.
    log.number(join(&[21]));
    let moved = Joining { members: vec!["c:1".to_owned()], ..joining(21) };
    log.ask(Request::Join(vec![moved])).unwrap();
    assert_eq!(log.machine.rosters()[&group(21)].members, ["c:1"]);
}

#[test]
fn a_group_with_data_is_adopted_at_the_beginning_only() {
    let mut log = Log::new();
    assert_eq!(log.ask(Request::Adopt(group(20))), Err(Refusal::Unknown(group(20))));
    assert_eq!(log.ask(Request::Adopt(group(4))), Err(Refusal::NothingToAdopt(group(4))));
    let tell = |log: &mut Log, shards: u32| {
        let (members, shards) = (vec!["a:1".to_owned()], NonZeroU32::new(shards));
        let (group, identity) = (group(4), identity(4));
        log.apply(&Command::Report { group, identity, index: 1, shards, members }).unwrap();
    };
    tell(&mut log, SHARDS);
    let shards = NonZeroU32::new(SHARDS + 1).unwrap();
    let adopt = Request::Adopt(group(4));
    let refused = log.apply(&Command::Request { id: None, shards, request: adopt });
    let other = Refusal::OtherShards { created: SHARDS, proposed: SHARDS + 1 };
    assert_eq!(refused, Err(other));
    // What changes nothing does not stand in the way.
    assert_eq!(log.number(Request::Unpin(ShardId(0))), 0);
    assert_eq!(log.number(Request::Adopt(group(4))), 1);
    let (owner, since) = (Some(group(4)), MoveNumber(1));
    let there = Placement { owner, since, last: since, ..Placement::default() };
    assert!(log.machine.placements().iter().all(|placement| *placement == there));
    assert_eq!(log.ask(Request::Adopt(group(4))), Err(Refusal::NotEmpty));
    log.number(join(&[5]));
    assert_eq!(log.loads(), BTreeMap::from([(4, 5), (5, 5)]));
}

#[test]
fn a_group_that_nobody_needs_makes_room_for_another() {
    let mut log = Log::new();
    log.number(join(&[7]));
    for number in REPORTED + 1..=GROUPS_MAX as u32 {
        log.machine.apply(Applied::default(), &report(number, 1).encode()).unwrap();
    }
    log.apply(&report(5_000, 1)).unwrap();
    let known = log.machine.rosters();
    assert_eq!(known.len(), GROUPS_MAX);
    assert!(!known.contains_key(&group(1)) && known.contains_key(&group(7)));
    // Who joins with others does not make room for them.
    let second = Joining { members: Vec::new(), ..joining(2) };
    log.ask(Request::Join(vec![second, joining(6_000)])).unwrap();
    let known = log.machine.rosters();
    assert!(known.contains_key(&group(2)) && !known.contains_key(&group(3)));
}
