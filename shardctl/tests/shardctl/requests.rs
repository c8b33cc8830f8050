//! Requests that come again, that go too far or that make no sense; snapshots that do.

use std::num::NonZeroU32;

use raft::Applied;
use raft::StateMachine;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use shardctl::ShardMachine;
use shardctl::command::Command;
use shardctl::command::Joining;
use shardctl::command::Request;
use shardctl::ids::Number;
use shardctl::ids::RequestId;
use shardctl::ids::ShardId;
use shardctl::limits::ADDRESS_BYTES_MAX;
use shardctl::limits::GROUPS_MAX;
use shardctl::limits::MEMBERS_MAX;
use shardctl::limits::REQUESTS_KEPT_MAX;
use shardctl::limits::SHARDS_MAX;
use shardctl::limits::WEIGHT_MAX;
use shardctl::outcome::Done;
use shardctl::outcome::Refusal;

use crate::{Log, SHARDS, SOME, check, chunks, group, identity, join, joining, leave, move_to};

#[test]
fn a_request_that_comes_again_makes_no_other_configuration() {
    let mut log = Log::new();
    let done = |number, duplicate| Ok(Done { number: Number(number), duplicate });
    assert_eq!(log.ask_as(1, join(&[1])), done(1, false));
    assert_eq!(log.ask_as(2, join(&[2])), done(2, false));
    assert_eq!(log.ask_as(1, join(&[1])), done(1, true));
    assert_eq!(log.ask_as(3, leave(&[1])), done(3, false));
    // It is late: group 1 has gone again since.
    assert_eq!(log.ask_as(1, join(&[1])), done(1, true));
    assert_eq!(log.latest().number, Number(3));
    // What was refused stays so.
    assert_eq!(log.ask_as(4, leave(&[9])), Err(Refusal::NotJoined(group(9))));
    log.number(join(&[9]));
    assert_eq!(log.ask_as(4, leave(&[9])), Err(Refusal::RefusedBefore));
    assert!(log.latest().weights.contains_key(&group(9)));
}

#[test]
fn the_revision_counts_what_changes_the_state() {
    let mut log = Log::new();
    let before = log.machine.revision();
    log.ask_as(1, join(&[1])).unwrap();
    assert_eq!(log.machine.revision(), before + 1);
    log.ask_as(1, join(&[1])).unwrap();
    log.ask(join(&[1])).unwrap();
    log.ask(leave(&[9])).unwrap_err();
    assert_eq!(log.machine.revision(), before + 1);
    log.ask(join(&[2])).unwrap();
    assert_eq!(log.machine.revision(), before + 2);
    log.machine.recover();
    assert_eq!(log.machine.revision(), before + 2 + raft::RECOVERY_GAP);
}

#[test]
fn the_oldest_requests_are_forgotten() {
    let mut machine = ShardMachine::default();
    let mut ask = |number: usize, request: Request| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let command = Command::Request { id: Some(RequestId(id)), shards: SOME, request };
        machine.apply(Applied::default(), &command.encode())
    };
    ask(0, join(&[1])).unwrap();
    for number in 1..REQUESTS_KEPT_MAX {
        assert!(!ask(number, join(&[1])).unwrap().duplicate);
    }
    assert!(ask(0, join(&[1])).unwrap().duplicate);
    assert!(!ask(REQUESTS_KEPT_MAX, join(&[1])).unwrap().duplicate);
    assert!(!ask(0, join(&[1])).unwrap().duplicate);
    assert!(ask(REQUESTS_KEPT_MAX, join(&[1])).unwrap().duplicate);
}

#[test]
fn what_is_over_a_limit_is_refused_by_name() {
    let mut log = Log::new();
    let over = |limit: usize| (limit as u64 + 1, limit as u64);
    let heavy = Joining { weight: WEIGHT_MAX + 1, ..joining(1) };
    let (found, limit) = over(WEIGHT_MAX as usize);
    let refused = log.ask(Request::Join(vec![heavy]));
    assert_eq!(refused, Err(Refusal::Limit { name: "weight_max", found, limit }));
    let limited = |name, limit: usize| {
        let (found, limit) = over(limit);
        Err(Refusal::Limit { name, found, limit })
    };
    for (members, bytes, refused) in [
        (MEMBERS_MAX + 1, 1, limited("members_max", MEMBERS_MAX)),
        (1, ADDRESS_BYTES_MAX + 1, limited("address_bytes_max", ADDRESS_BYTES_MAX)),
    ] {
        let members = vec!["a".repeat(bytes); members];
        let request = Request::Join(vec![Joining { members: members.clone(), ..joining(20) }]);
        assert_eq!(log.ask(request), refused);
        let (group, identity) = (group(20), identity(20));
        let report = Command::Report { group, identity, index: 1, shards: None, members };
        assert_eq!(log.apply(&report), refused);
    }
    let nowhere = Joining { members: vec![String::new()], ..joining(20) };
    assert!(matches!(log.ask(Request::Join(vec![nowhere])), Err(Refusal::Bad(_))));
    let all: Vec<_> = (1..=GROUPS_MAX as u32 + 1).collect();
    assert_eq!(log.ask(join(&all)), limited("groups_max", GROUPS_MAX));
    log.number(join(&all[..GROUPS_MAX]));
    assert_eq!(log.ask(join(&[all[GROUPS_MAX]])), limited("groups_max", GROUPS_MAX));

    for shards in [SHARDS_MAX + 1, u32::MAX] {
        let mut machine = ShardMachine::default();
        let shards = NonZeroU32::new(shards).unwrap();
        let command = Command::Request { id: None, shards, request: join(&[1]) };
        let refused = machine.apply(Applied::default(), &command.encode());
        let (found, limit) = (shards.get().into(), SHARDS_MAX.into());
        assert_eq!(refused, Err(Refusal::Limit { name: "shards_max", found, limit }));
        check(&machine);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut log = Log::new();
    assert_eq!(log.ask(join(&[])), Err(Refusal::NoGroups));
    assert_eq!(log.ask(join(&[1, 2, 1])), Err(Refusal::Twice(group(1))));
    assert!(log.machine.latest().is_none(), "what is refused fixes nothing");
    log.number(join(&[1]));
    let shards = NonZeroU32::new(SHARDS + 1).unwrap();
    let other = Command::Request { id: None, shards, request: join(&[2]) };
    let fixed = Refusal::OtherShards { created: SHARDS, proposed: 11 };
    assert_eq!(log.apply(&other), Err(fixed));
    let no_shard = Refusal::NoShard { shard: ShardId(SHARDS), last: SHARDS - 1 };
    assert_eq!(log.ask(move_to(SHARDS, 1)), Err(no_shard.clone()));
    assert_eq!(log.ask(Request::Unpin(ShardId(SHARDS))), Err(no_shard));
    for request in
        [leave(&[2]), leave(&[1, 2]), move_to(0, 2), Request::Weigh { group: group(2), weight: 1 }]
    {
        assert_eq!(log.ask(request), Err(Refusal::NotJoined(group(2))));
    }
    assert_eq!(log.latest().number, Number(1));
}

#[test]
fn a_snapshot_that_is_cut_or_changed_is_refused_or_another_state() {
    let mut log = Log::new();
    log.number(join(&[1, 2, 3]));
    log.settle();
    log.ask_as(1, move_to(0, 3)).unwrap();
    log.number(leave(&[1]));
    let all: Vec<u8> = chunks(&log.machine).concat();
    for length in 0..all.len() {
        let cut = bytes::Bytes::copy_from_slice(&all[..length]);
        let mut machine = ShardMachine::default();
        if machine.restore(&mut [cut].into_iter()).is_ok() {
            assert_ne!(machine.digest(), log.machine.digest());
        }
    }
    let mut rng = StdRng::seed_from_u64(3);
    for at in 0..all.len() {
        let mut changed = all.clone();
        changed[at] ^= 1 << rng.random_range(0..8);
        let mut machine = ShardMachine::default();
        if machine.restore(&mut [changed.into()].into_iter()).is_ok() {
            assert_ne!(machine.digest(), log.machine.digest(), "byte {at}");
            assert_eq!(machine.check(), Ok(()), "byte {at}");
        }
    }
}

#[test]
fn a_snapshot_of_a_configuration_without_shards_is_refused() {
    let mut stream = Vec::new();
    // What there is one of: versions, no shards, the next number, the revision; then a configuration 0
    // of nothing.
    for item in [&[1, 1, 1, 0, 1, 0][..], &[2, 0, 0, 0, 0]] {
        raftd::codec::put_bytes(&mut stream, item);
    }
    let refused = ShardMachine::default().restore(&mut [stream.into()].into_iter());
    assert!(refused.is_err_and(|bad| bad.0.contains("without shards")));
}
