//! What requests make of configurations.

use std::collections::BTreeMap;

use raft::Applied;
use raft::RECOVERY_GAP;
use raft::StateMachine;
use shardctl::ShardMachine;
use shardctl::command::Command;
use shardctl::command::Joining;
use shardctl::command::Request;
use shardctl::ids::MoveNumber;
use shardctl::ids::Number;
use shardctl::ids::ShardId;
use shardctl::limits::HISTORY_MAX;
use shardctl::outcome::Refusal;
use shardctl::target::Target;

use crate::{Log, SHARDS, SOME, check, group, join, joining, leave, move_to};

#[test]
fn leave_join() {
    let mut log = Log::new();
    assert!(log.machine.latest().is_none());
    assert_eq!(log.number(join(&[1])), 1);
    assert_eq!(log.loads(), BTreeMap::from([(1, 10)]));
    assert_eq!(log.number(join(&[2])), 2);
    assert_eq!(log.loads(), BTreeMap::from([(1, 5), (2, 5)]));
    let members = |number| log.machine.rosters()[&group(number)].members.clone();
    assert_eq!((members(1), members(2)), (vec!["kvd-1:7300".into()], vec!["kvd-2:7300".into()]));
    assert_eq!(log.number(leave(&[1])), 3);
    assert_eq!(log.loads(), BTreeMap::from([(2, 10)]));
    assert_eq!(log.number(leave(&[2])), 4);
    assert!(log.latest().owners.iter().all(Option::is_none));
}

#[test]
fn multi_leave_join() {
    let mut log = Log::new();
    assert_eq!(log.number(join(&[1, 2, 3])), 1);
    assert_eq!(log.loads(), BTreeMap::from([(1, 4), (2, 3), (3, 3)]));
    assert_eq!(log.number(leave(&[1, 3])), 2);
    assert_eq!(log.loads(), BTreeMap::from([(2, 10)]));
}

#[test]
fn historical_configurations_stay_as_they_were() {
    let mut log = Log::new();
    let mut known = Vec::new();
    for number in 1..=6 {
        log.number(join(&[number]));
        known.push(log.latest());
    }
    for (number, known) in (1..).map(Number).zip(&known) {
        assert_eq!(log.machine.configuration(number), Some(known));
    }
    assert_eq!(log.machine.configuration(Number(0)).unwrap().owners, vec![None; 10].into());
    assert_eq!(log.machine.configuration(Number(7)), None);
}

#[test]
fn move_shard() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    let first = log.latest();
    // Each shard to the other group, one by one: all of that stays.
    for shard in 0..SHARDS {
        let other = if first.owner(ShardId(shard)) == Some(group(1)) { 2 } else { 1 };
        log.number(move_to(shard, other));
        let target = log.latest();
        assert_eq!(target.number.0, u64::from(shard) + 2);
        assert_eq!(target.owner(ShardId(shard)), Some(group(other)));
        for (pinned, owner) in &*target.pins {
            assert_eq!(target.owner(*pinned), Some(*owner));
        }
    }
    // What is asked for again changes nothing.
    let number = log.latest().number;
    let owner = log.latest().owner(ShardId(0)).unwrap().0.get();
    assert_eq!(log.number(move_to(0, owner)), number.0);
    // Pinned shards stay also when others come, until they are unpinned.
    log.number(join(&[3]));
    assert_eq!(log.loads(), BTreeMap::from([(1, 5), (2, 5), (3, 0)]));
    for shard in 0..SHARDS {
        log.ask(Request::Unpin(ShardId(shard))).unwrap();
    }
    assert_eq!(log.loads(), BTreeMap::from([(1, 4), (2, 3), (3, 3)]));
}

#[test]
fn a_group_that_leaves_takes_its_pins_along() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    log.number(move_to(0, 2));
    log.number(leave(&[2]));
    log.number(join(&[2]));
    assert!(log.latest().pins.is_empty());
}

#[test]
fn minimal_transfer_join() {
    let mut log = Log::new();
    log.number(join(&[1, 2, 3, 4, 5]));
    let before = log.latest();
    log.number(join(&[6, 7]));
    assert_eq!(log.loads().into_values().min(), Some(1));
    for shard in (0..SHARDS).map(ShardId) {
        let (was, is) = (before.owner(shard), log.latest().owner(shard));
        assert!(was == is || [6, 7].map(group).contains(&is.unwrap()), "{shard}: {was:?}, {is:?}");
    }
}

#[test]
fn minimal_transfer_leave() {
    let mut log = Log::new();
    log.number(join(&[1, 2, 3, 4, 5]));
    let before = log.latest();
    log.number(leave(&[2, 4]));
    for shard in (0..SHARDS).map(ShardId) {
        let (was, is) = (before.owner(shard), log.latest().owner(shard));
        assert!(was == is || [2, 4].map(group).contains(&was.unwrap()), "{shard}: {was:?}, {is:?}");
    }
}

#[test]
fn minimal_again() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    let before = log.latest();
    log.number(join(&[3]));
    assert_eq!(log.loads()[&3], 3);
    let moved = |one: &Target, other: &Target| {
        one.owners.iter().zip(&*other.owners).filter(|(one, other)| one != other).count()
    };
    assert!(moved(&before, &log.latest()) <= SHARDS as usize / 3 + 1);
    let before = log.latest();
    log.number(leave(&[3]));
    assert!(moved(&before, &log.latest()) <= SHARDS as usize / 3 + 1);
}

#[test]
fn weights_say_how_much_each_group_has() {
    let mut log = Log::new();
    log.number(join(&[1]));
    let heavy = Joining { weight: 4, ..joining(2) };
    log.number(Request::Join(vec![heavy]));
    assert_eq!(log.loads(), BTreeMap::from([(1, 2), (2, 8)]));
    log.number(Request::Weigh { group: group(2), weight: 1 });
    assert_eq!(log.loads(), BTreeMap::from([(1, 5), (2, 5)]));
    log.number(Request::Weigh { group: group(1), weight: 0 });
    assert_eq!(log.loads(), BTreeMap::from([(1, 0), (2, 10)]));
    let nobody = log.ask(Request::Weigh { group: group(2), weight: 0 });
    assert_eq!(nobody, Err(Refusal::NoWeight));
    assert_eq!(log.ask(leave(&[2])), Err(Refusal::NoWeight));
    assert_eq!(log.ask(join(&[2])).unwrap().number, log.latest().number, "as it is already");
    let otherwise = log.ask(join(&[1]));
    assert_eq!(otherwise, Err(Refusal::Joined { group: group(1), weight: 0 }));
}

#[test]
fn a_plan_is_what_comes_and_changes_nothing() {
    let mut log = Log::new();
    log.number(join(&[1, 2]));
    let before = log.machine.digest();
    let planned = log.machine.plan(SOME, &join(&[3])).unwrap();
    assert_eq!(log.machine.digest(), before);
    log.number(join(&[3]));
    assert_eq!(planned, log.latest());
    assert!(log.machine.plan(SOME, &leave(&[9])).is_err());
}

#[test]
fn a_recovered_controller_gives_no_number_twice() {
    let mut machine = ShardMachine::default();
    let ask = |machine: &mut ShardMachine, request: Request| {
        let command = Command::Request { id: None, shards: SOME, request };
        machine.apply(Applied::default(), &command.encode()).unwrap().number.0
    };
    assert_eq!(ask(&mut machine, join(&[1])), 1);
    machine.recover();
    assert_eq!(ask(&mut machine, join(&[2])), RECOVERY_GAP + 2);
    // The making of shards is under way, and may still be told settled.
    assert_eq!(machine.placements()[0].last, MoveNumber(1));
    assert_eq!(machine.check(), Ok(()));
}

#[test]
fn the_oldest_configurations_are_forgotten() {
    let mut machine = ShardMachine::default();
    let mut ask = |request: Request| {
        let command = Command::Request { id: None, shards: SOME, request };
        machine.apply(Applied::default(), &command.encode()).unwrap();
    };
    ask(join(&[1, 2]));
    for _ in 0..HISTORY_MAX / 2 {
        ask(leave(&[2]));
        ask(join(&[2]));
    }
    let numbers: Vec<_> = machine.history().map(|target| target.number.0).collect();
    assert_eq!(numbers.len(), HISTORY_MAX);
    assert_eq!((numbers[0], *numbers.last().unwrap()), (2, HISTORY_MAX as u64 + 1));
    assert_eq!(machine.configuration(Number(1)), None);
    check(&machine);
}
