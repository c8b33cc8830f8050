//! Where shards are, and their moves.

use raft::{RECOVERY_GAP, StateMachine};
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use shardctl::command::Command;
use shardctl::command::Request;
use shardctl::command::Step;
use shardctl::ids::GroupId;
use shardctl::ids::MoveNumber;
use shardctl::ids::ShardId;
use shardctl::outcome::Refusal;
use shardctl::placement::Move;
use shardctl::placement::Placement;

use crate::{Log, REPORTED, SHARDS, group, join, leave, move_to, step};

#[test]
fn shards_are_made_move_and_settle_one_move_at_a_time() {
    let mut log = Log::new();
    log.number(join(&[1]));
    let made = Some(Move { to: group(1), cancelling: false });
    let empty = Placement { last: MoveNumber(1), moving: made, ..Placement::default() };
    assert_eq!(log.placement(3), empty);
    log.settle();
    log.number(join(&[2]));
    let gone = (0..SHARDS).find(|shard| log.placement(*shard).moving.is_some()).unwrap();
    // Another wish while it moves: nothing begins, its owner shall end the move.
    log.number(join(&[3]));
    log.number(move_to(gone, 3));
    let placement = log.placement(gone);
    assert_eq!(placement.moving, Some(Move { to: group(2), cancelling: true }));
    assert_eq!((placement.since, placement.last), (MoveNumber(1), MoveNumber(2)));
    // Reports that speak of something else change nothing.
    for stale in [step(2, gone, 1), step(2, gone, 3), step(1, gone, 2), step(3, gone, 2)] {
        assert_eq!(log.apply(&Command::Settled(stale)), Err(Refusal::Stale));
    }
    for stale in [step(2, gone, 2), step(1, gone, 1), step(1, gone, 3)] {
        assert_eq!(log.apply(&Command::Cancelled(stale)), Err(Refusal::Stale));
    }
    for stale in [step(1, gone, 2), step(2, gone, 1)] {
        assert_eq!(log.apply(&Command::Aborted(stale)), Err(Refusal::Stale));
    }
    // Nor do those of another Raft group that speaks as this one, or of one that never reported.
    let other = Step { identity: [99; 32], ..step(1, gone, 2) };
    let refused = log.apply(&Command::Cancelled(other));
    assert_eq!(refused, Err(Refusal::OtherIdentity(group(1))));
    let refused = log.apply(&Command::Settled(step(REPORTED + 1, gone, 2)));
    assert_eq!(refused, Err(Refusal::Unknown(group(REPORTED + 1))));
    // It ends: the next begins.
    log.apply(&Command::Cancelled(step(1, gone, 2))).unwrap();
    let placement = log.placement(gone);
    assert_eq!(placement.moving, Some(Move { to: group(3), cancelling: false }));
    assert_eq!((placement.since, placement.last), (MoveNumber(1), MoveNumber(3)));
    assert_eq!(log.apply(&Command::Settled(step(2, gone, 2))), Err(Refusal::Stale), "it was ended");
    log.apply(&Command::Settled(step(3, gone, 3))).unwrap();
    log.apply(&Command::Settled(step(3, gone, 3))).unwrap();
    let (owner, since) = (Some(group(3)), MoveNumber(3));
    assert_eq!(
        log.placement(gone),
        Placement { owner, since, last: since, ..Placement::default() }
    );
    let refused = log.apply(&Command::Settled(step(3, SHARDS, 3)));
    assert_eq!(refused, Err(Refusal::NoShard { shard: ShardId(SHARDS), last: SHARDS - 1 }));
}

#[test]
fn a_move_that_is_given_up_begins_again_under_another_number() {
    let mut log = Log::new();
    log.number(join(&[1]));
    log.settle();
    log.number(move_to(0, 1));
    log.number(join(&[2]));
    log.number(move_to(0, 2));
    log.apply(&Command::Aborted(step(2, 0, 2))).unwrap();
    let placement = log.placement(0);
    assert_eq!(placement.moving, Some(Move { to: group(2), cancelling: false }));
    assert_eq!(placement.last, MoveNumber(3));
    assert_eq!(log.apply(&Command::Settled(step(2, 0, 2))), Err(Refusal::Stale));
}

#[test]
fn a_shard_that_was_never_made_is_made_elsewhere_when_its_group_promises_not_to() {
    let mut log = Log::new();
    log.number(join(&[1]));
    log.number(join(&[2]));
    log.number(leave(&[1]));
    assert_eq!(log.placement(0).moving, Some(Move { to: group(1), cancelling: true }));
    assert_eq!(log.apply(&Command::Cancelled(step(2, 0, 1))), Err(Refusal::Stale));
    log.apply(&Command::Cancelled(step(1, 0, 1))).unwrap();
    assert_eq!(log.placement(0).moving, Some(Move { to: group(2), cancelling: false }));
    // It was faster.
    log.apply(&Command::Settled(step(1, 1, 1))).unwrap();
    let placement = log.placement(1);
    assert_eq!((placement.owner, placement.last), (Some(group(1)), MoveNumber(2)));
    assert_eq!(placement.moving, Some(Move { to: group(2), cancelling: false }));
}

#[test]
fn a_move_that_was_not_ended_in_time_is_followed_by_the_next() {
    let mut log = Log::new();
    log.number(join(&[1]));
    log.settle();
    log.number(move_to(0, 1));
    log.number(join(&[2]));
    log.number(move_to(0, 2));
    log.number(move_to(0, 1));
    assert!(log.placement(0).moving.unwrap().cancelling);
    log.apply(&Command::Settled(step(2, 0, 2))).unwrap();
    let there = Placement {
        owner: Some(group(2)),
        since: MoveNumber(2),
        last: MoveNumber(3),
        moving: Some(Move { to: group(1), cancelling: false }),
        ..Placement::default()
    };
    assert_eq!(log.placement(0), there);
}

#[test]
fn what_nobody_shall_have_stays_where_it_is() {
    let mut log = Log::new();
    log.number(join(&[1]));
    log.settle();
    log.number(leave(&[1]));
    for shard in 0..SHARDS {
        let (owner, since) = (Some(group(1)), MoveNumber(1));
        assert_eq!(
            log.placement(shard),
            Placement { owner, since, last: since, ..Placement::default() }
        );
    }
    log.number(join(&[2]));
    assert!(log.placement(0).moving.is_some_and(|moving| moving.to == group(2)));
}

#[test]
fn whatever_comes_invariants_hold_and_all_moves_end_where_they_shall() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut log = Log::new();
        for _ in 0..300 {
            let one = rng.random_range(1..=5);
            let command = match rng.random_range(0..10) {
                0 => join(&[one]),
                1 => leave(&[one]),
                2 => move_to(rng.random_range(0..SHARDS), one),
                3 => Request::Unpin(ShardId(rng.random_range(0..SHARDS))),
                4 => Request::Weigh { group: group(one), weight: rng.random_range(0..3) },
                _ => {
                    let moving = (0..SHARDS).filter(|at| log.placement(*at).moving.is_some());
                    let moving: Vec<u32> = moving.collect();
                    let Some(&shard) = moving.choose(&mut rng) else { continue };
                    let Placement { owner, last, moving, .. } = log.placement(shard);
                    let moving = moving.unwrap();
                    let step = |group: GroupId| step(group.0.get(), shard, last.0);
                    let (command, fits) = match rng.random_range(0..4) {
                        0 => {
                            let ends = owner.unwrap_or(moving.to);
                            (Command::Cancelled(step(ends)), moving.cancelling)
                        }
                        1 => (Command::Aborted(step(moving.to)), true),
                        _ => (Command::Settled(step(moving.to)), true),
                    };
                    assert_eq!(log.apply(&command).is_ok(), fits);
                    continue;
                }
            };
            // It may be refused.
            let _ = log.ask(command);
        }
        if log.machine.latest().is_none_or(|target| target.weights.is_empty()) {
            log.number(join(&[1]));
        }
        log.settle();
        let latest = log.latest();
        for (shard, placement) in (0..).map(ShardId).zip(log.machine.placements()) {
            assert_eq!(placement.owner, latest.owner(shard), "seed {seed}, shard {shard}");
        }
    }
}

#[test]
fn a_recovery_keeps_the_numbers_of_moves_under_way() {
    let mut log = Log::new();
    log.number(join(&[1]));
    log.settle();
    log.number(move_to(0, 1));
    log.number(join(&[2]));
    log.number(move_to(0, 2));
    log.machine.recover();
    let under_way = log.placement(0);
    assert_eq!((under_way.last, under_way.recovered_at), (MoveNumber(2), MoveNumber(2)));
    log.apply(&Command::Settled(step(2, 0, 2))).unwrap();
    log.number(move_to(0, 1));
    // What was begun and lost had a number below this one.
    let next = log.placement(0);
    assert_eq!((next.since, next.last), (MoveNumber(2), MoveNumber(RECOVERY_GAP + 1)));
    assert_eq!(next.recovered_at, MoveNumber(2));
    log.machine.check().unwrap();
}
