//! The shard controller as the labs test it, replicated by three members; H6 and H7 are looked at
//! with every command, and administrators may repeat what they ask for. What one configuration makes
//! of another is tested without a group in `shardctl/tests`.
//!
//! In the second half groups act on it: they are down when they are to join or leave, controllers are
//! cut off in the middle of a change and come back, administrators want different things at the same
//! time. The labs' controller is a client of a store of configurations, and its successor has to find
//! out what it left undone; here it is the leader of a group whose log says that.

mod depth;
mod fleet;

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use depth::{expect, scenario};
use fleet::{Fleet, Held, ONE, SECOND_US, THREE, TWO};
use flotilla_sim::{Keys, Mix, Violation, Workload, World};
use raft::{Config, NodeId};
use shardctl::{
    command::{Joining, Request},
    ids::{GroupId, ShardId},
    outcome::Refusal,
    target::Target,
};

const SHARDS: u32 = 10;
const MEMBERS: u64 = 3;
/// How many administrators there are where there are many.
const ADMINS: u32 = 10;
/// How often a controller is cut off.
const RECOVERIES: u32 = 3;

fn controller(mix: Mix) -> Mix {
    Mix { clients: 0, controller: NonZeroU32::new(SHARDS), ..mix }
}

/// A snapshot every few entries.
fn small(mix: Mix) -> Mix {
    let config = Config {
        snapshot_log_bytes_min: 500,
        retained_bytes: 0,
        retained_bytes_max: 0,
        ..mix.config
    };
    Mix { config, ..mix }
}

fn group(number: u32) -> GroupId {
    GroupId::new(number).expect("groups count from 1")
}

fn join(numbers: &[u32]) -> Request {
    let joining = |&number: &u32| Joining {
        group: group(number),
        weight: 1,
        members: vec![format!("kvd-{number}:7300")],
    };
    Request::Join(numbers.iter().map(joining).collect())
}

fn leave(numbers: &[u32]) -> Request {
    Request::Leave(numbers.iter().copied().map(group).collect())
}

/// Asks for something, which must be done. The number of the configuration behind it.
fn done(world: &mut World, request: &Request) -> Result<u64, Violation> {
    match world.configure(request.clone())? {
        Ok(done) => Ok(done.number.0),
        Err(refusal) => fail(format!("{request:?}: {refusal}")),
    }
}

/// Administrators ask for all of these at the same time, and all must be done.
fn all_done(world: &mut World, requests: impl Iterator<Item = Request>) -> Result<(), Violation> {
    for answer in world.configure_all(requests)? {
        expect(answer.is_ok(), format!("{answer:?}"))?;
    }
    Ok(())
}

fn fail<T>(what: String) -> Result<T, Violation> {
    Err(Violation { invariant: "scenario", what })
}

fn latest(world: &mut World) -> Result<Arc<Target>, Violation> {
    match world.configuration(None)? {
        Some(target) => Ok(target),
        None => fail("there is no configuration".to_owned()),
    }
}

fn loads(target: &Target) -> BTreeMap<u32, usize> {
    let load = |of: &GroupId| target.owners.iter().filter(|owner| **owner == Some(*of)).count();
    target.weights.keys().map(|group| (group.0.get(), load(group))).collect()
}

/// These take part, and none has more shards than it should.
fn expect_balance(world: &mut World, groups: &[u32]) -> Result<(), Violation> {
    let target = latest(world)?;
    let loads = loads(&target);
    expect(loads.keys().eq(groups), format!("{loads:?} instead of {groups:?}"))?;
    let (most, least) = (loads.values().max(), loads.values().min());
    let fair = most.zip(least).is_none_or(|(most, least)| most - least <= 1);
    expect(fair, format!("{loads:?} is out of balance"))
}

#[test]
fn leave_join() {
    scenario("leave_join", MEMBERS, &controller(Mix::calm()), |world| {
        expect(world.configuration(None)?.is_none(), "nobody has asked for anything")?;
        for (request, groups) in [
            (join(&[1]), &[1][..]),
            (join(&[2]), &[1, 2]),
            (leave(&[1]), &[2]),
            (join(&[1]), &[1, 2]),
            (leave(&[2]), &[1]),
            (leave(&[1]), &[]),
        ] {
            done(world, &request)?;
            expect_balance(world, groups)?;
        }
        Ok(())
    });
}

#[test]
fn multi_leave_join() {
    scenario("multi_leave_join", MEMBERS, &controller(Mix::calm()), |world| {
        for (request, groups) in [
            (join(&[1, 2]), &[1, 2][..]),
            (join(&[3]), &[1, 2, 3]),
            (leave(&[1, 3]), &[2]),
            (leave(&[2]), &[]),
        ] {
            done(world, &request)?;
            expect_balance(world, groups)?;
        }
        Ok(())
    });
}

#[test]
fn historical_queries() {
    scenario("historical_queries", MEMBERS, &controller(small(Mix::calm())), |world| {
        let mut known = Vec::new();
        for number in 1..=6 {
            done(world, &join(&[number]))?;
            known.push(latest(world)?);
        }
        for down in (1..=MEMBERS).map(NodeId) {
            world.kill(down)?;
            for target in &known {
                let told = world.configuration(Some(target.number.0))?;
                expect(told.as_ref() == Some(target), format!("{told:?} instead of {target:?}"))?;
            }
            world.restart(down)?;
        }
        Ok(())
    });
}

#[test]
fn move_shard() {
    scenario("move_shard", MEMBERS, &controller(Mix::calm()), |world| {
        done(world, &join(&[1, 2]))?;
        for shard in (0..SHARDS).map(ShardId) {
            let before = latest(world)?;
            let other = if before.owner(shard) == Some(group(1)) { 2 } else { 1 };
            let number = done(world, &Request::Move { shard, group: group(other) })?;
            let target = latest(world)?;
            expect(number == before.number.0 + 1, format!("{number} behind {}", before.number))?;
            for (pinned, owner) in &*target.pins {
                expect(target.owner(*pinned) == Some(*owner), format!("{target:?}"))?;
            }
            expect(target.owner(shard) == Some(group(other)), format!("{target:?}"))?;
        }
        Ok(())
    });
}

#[test]
fn concurrent_leave_join() {
    scenario("concurrent_leave_join", MEMBERS, &controller(Mix::calm()), |world| {
        let staying: Vec<u32> = (1..=ADMINS).collect();
        let both = |number: &u32| [join(&[*number]), join(&[number + ADMINS])];
        all_done(world, staying.iter().flat_map(both))?;
        all_done(world, staying.iter().map(|number| leave(&[number + ADMINS])))?;
        expect_balance(world, &staying)?;
        let number = latest(world)?.number.0;
        expect(number == u64::from(3 * ADMINS), format!("{number} configurations"))
    });
}

#[test]
fn multi_concurrent() {
    scenario("multi_concurrent", MEMBERS, &controller(Mix::calm()), |world| {
        let staying: Vec<u32> = (1..=ADMINS).collect();
        let three = |number: &u32| join(&[*number, number + ADMINS, number + 2 * ADMINS]);
        all_done(world, staying.iter().map(three))?;
        let two = |number: &u32| leave(&[number + ADMINS, number + 2 * ADMINS]);
        all_done(world, staying.iter().map(two))?;
        expect_balance(world, &staying)
    });
}

#[test]
fn minimal_transfer_join() {
    scenario("minimal_transfer_join", MEMBERS, &controller(Mix::calm()), |world| {
        done(world, &join(&[1, 2, 3, 4, 5]))?;
        let before = latest(world)?;
        all_done(world, (6..=10).map(|number| join(&[number])))?;
        expect_balance(world, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])?;
        let after = latest(world)?;
        for (was, is) in before.owners.iter().zip(&*after.owners) {
            let old = is.is_some_and(|is| before.weights.contains_key(&is));
            expect(was == is || !old, format!("{before:?}, {after:?}"))?;
        }
        Ok(())
    });
}

#[test]
fn minimal_transfer_leave() {
    scenario("minimal_transfer_leave", MEMBERS, &controller(Mix::calm()), |world| {
        done(world, &join(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]))?;
        let before = latest(world)?;
        all_done(world, (6..=10).map(|number| leave(&[number])))?;
        expect_balance(world, &[1, 2, 3, 4, 5])?;
        let after = latest(world)?;
        for (was, is) in before.owners.iter().zip(&*after.owners) {
            let stays = was.is_some_and(|was| after.weights.contains_key(&was));
            expect(was == is || !stays, format!("{before:?}, {after:?}"))?;
        }
        Ok(())
    });
}

#[test]
fn minimal_again() {
    scenario("minimal_again", MEMBERS, &controller(Mix::calm()), |world| {
        done(world, &join(&[1, 2]))?;
        for request in [join(&[3]), leave(&[3])] {
            let before = latest(world)?;
            done(world, &request)?;
            let after = latest(world)?;
            let both = before.owners.iter().zip(&*after.owners);
            let moved = both.filter(|(was, is)| was != is).count();
            let few = (1..=SHARDS as usize / 3 + 1).contains(&moved);
            expect(few, format!("{moved} shards move"))?;
        }
        Ok(())
    });
}

#[test]
fn agree_config() {
    scenario("agree_config", MEMBERS, &controller(small(Mix::calm())), |world| {
        all_done(world, (1..=ADMINS).map(|number| join(&[number])))?;
        all_done(world, (1..=ADMINS / 2).map(|number| leave(&[number])))?;
        let before = latest(world)?;
        let leader = world.expect_leader()?;
        world.kill(leader)?;
        let told = latest(world)?;
        expect(told == before, format!("{told:?} instead of {before:?}"))?;
        done(world, &join(&[100]))?;
        world.restart(leader)?;
        world.settle()?;
        let digests: Vec<_> = (1..=MEMBERS)
            .map(|id| world.controller_of(NodeId(id)).map(raft::StateMachine::digest))
            .collect();
        let equal = digests.iter().all(|digest| *digest == digests[0]);
        expect(equal && digests[0].is_some(), format!("{digests:?}"))
    });
}

/// Members crash and are cut off, messages get lost, administrators ask again and twice: each
/// request makes one configuration at most.
#[test]
fn retried_requests_make_one_configuration_each() {
    let mix = controller(small(Mix::labs()));
    scenario("retried_requests_make_one_configuration_each", 5, &mix, |world| {
        let wish = |world: &mut World| {
            let (number, shard) = (1 + world.draw(6), ShardId(world.draw(SHARDS)));
            match world.draw(4) {
                0 => leave(&[number]),
                1 => Request::Move { shard, group: group(number) },
                2 => Request::Unpin(shard),
                _ => join(&[number]),
            }
        };
        for _ in 0..12 {
            let wishes: Vec<_> = (0..4).map(|_| wish(world)).collect();
            for answer in world.configure_all(wishes)? {
                let fine =
                    matches!(answer, Ok(_) | Err(Refusal::NotJoined(_) | Refusal::RefusedBefore));
                expect(fine, format!("{answer:?}"))?;
            }
        }
        Ok(())
    });
}

/// Reads, appends and writes of keys that all clerks use.
fn everything() -> Workload {
    Workload { keys: Keys::Shared(10), gets: 45, appends: 50, puts: 5, ..Workload::labs() }
}

/// The controller's leader is taken off the network, and another one leads in the end.
fn cut_off_leader(world: &mut World) -> Result<NodeId, Violation> {
    let leader = world.expect_leader()?;
    world.disconnect(leader);
    let succeeded = |world: &World| world.leader().is_some_and(|other| other != leader);
    let succeeded = world.run_until(5 * SECOND_US, succeeded)?;
    expect(succeeded, "nobody succeeds the controller's leader")?;
    Ok(leader)
}

/// What shall be is not, for 2 s; and within 5 s of a group's return it is.
fn waits_for(world: &mut World, group: u32) -> Result<(), Violation> {
    let over = world.run_until(2 * SECOND_US, |world| world.moves_are_over().is_ok())?;
    expect(!over, format!("all is over while group {group} is down"))?;
    fleet::start(world, group)?;
    let over = world.run_until(5 * SECOND_US, |world| world.moves_are_over().is_ok())?;
    expect(over, format!("it is not over: {:?}", world.moves_are_over()))
}

/// Who joins or leaves while it is down has done so when it is back.
#[test]
fn join_leave_group_down() {
    Fleet::of(2).run("join_leave_group_down", |world, held| {
        let keys = fleet::keys(1);
        held.put(world, &keys)?;
        fleet::stop(world, TWO)?;
        fleet::join(world, &[TWO])?;
        held.check(world)?;
        waits_for(world, TWO)?;
        held.append(world, &keys)?;
        fleet::stop(world, ONE)?;
        fleet::leave(world, &[ONE])?;
        waits_for(world, ONE)?;
        let (mine, _) = fleet::placed_at(world, TWO, &keys);
        expect(mine == keys, format!("group {TWO} has {mine:?}"))?;
        held.check(world)
    });
}

/// A controller is cut off in the middle of a change that can't go on, and its successor ends it.
fn recover(
    world: &mut World,
    held: &mut Held,
    recoveries: u32,
    returns: bool,
) -> Result<(), Violation> {
    let keys = fleet::keys(1);
    held.put(world, &keys)?;
    for turn in 0..recoveries {
        let is_join = turn % 2 == 0;
        let before = world.configuration(None)?.map_or(0, |target| target.number.0);
        fleet::stop(world, TWO)?;
        let number = fleet::change(world, TWO, is_join)?;
        expect(number == before + 1, format!("configuration {number} behind {before}"))?;
        world.run_for(SECOND_US / 2)?;
        let old = cut_off_leader(world)?;
        fleet::start(world, TWO)?;
        if returns {
            world.run_for(SECOND_US / 5)?;
            world.connect(old);
        }
        fleet::arrived(world)?;
        let (mine, _) = fleet::placed_at(world, TWO, &keys);
        let due = if is_join { 5 } else { 0 };
        expect(mine.len() == due, format!("group {TWO} has {mine:?}, and {due} are due"))?;
        world.connect(old);
        held.append(world, &keys)?;
    }
    held.check(world)
}

#[test]
fn recover_controller() {
    Fleet::of(2).run("recover_controller", |world, held| recover(world, held, 5, false));
}

/// Four administrators want different things, again and again.
fn concurrent_controllers(world: &mut World, held: &mut Held) -> Result<(), Violation> {
    let keys = fleet::keys(1);
    held.put(world, &keys)?;
    let until_us = world.now_us() + 2 * SECOND_US;
    while world.now_us() < until_us {
        let wishes = [join(&[TWO]), join(&[THREE]), leave(&[TWO]), leave(&[THREE])];
        for answer in world.configure_all(wishes)? {
            let fine =
                matches!(answer, Ok(_) | Err(Refusal::NotJoined(_) | Refusal::RefusedBefore));
            expect(fine, format!("{answer:?}"))?;
        }
        held.append(world, &keys[..2])?;
    }
    fleet::arrived(world)?;
    held.check(world)
}

#[test]
fn concurrent_controllers_reliable() {
    Fleet::of(3).run("concurrent_controllers_reliable", concurrent_controllers);
}

#[test]
fn concurrent_controllers_unreliable() {
    Fleet::of(3).unreliable().run("concurrent_controllers_unreliable", concurrent_controllers);
}

/// A controller is cut off when it has just been asked for a change; who succeeds it makes that, and
/// what the old one believes has no effect when it is back.
#[test]
fn partition_controller_join() {
    Fleet::of(3).run("partition_controller_join", |world, held| {
        let keys = fleet::keys(1);
        held.put(world, &keys)?;
        let old = world.expect_leader()?;
        world.disconnect(old);
        // Where it is asked it takes the request on, and can't do anything about it.
        let asked = fleet::join(world, &[TWO])?;
        let number = fleet::join(world, &[THREE])?;
        expect(number == asked + 1, format!("configuration {number} behind {asked}"))?;
        world.connect(old);
        fleet::arrived(world)?;
        let after = world.configuration(None)?.map_or(0, |target| target.number.0);
        expect(after == number, format!("configuration {after} behind {number}"))?;
        for group in [ONE, TWO, THREE] {
            let (mine, _) = fleet::placed_at(world, group, &keys);
            expect((3..=4).contains(&mine.len()), format!("group {group} has {mine:?}"))?;
        }
        held.check(world)
    });
}

#[test]
fn partition_recovery_reliable_no_clerk() {
    Fleet::of(2).run("partition_recovery_reliable_no_clerk", |world, held| {
        recover(world, held, RECOVERIES, true)
    });
}

#[test]
fn partition_recovery_unreliable_no_clerk() {
    Fleet::of(2).unreliable().run("partition_recovery_unreliable_no_clerk", |world, held| {
        recover(world, held, RECOVERIES, true)
    });
}

#[test]
fn partition_recovery_reliable_clerks() {
    let fleet = Fleet::of(2).with_clerks(5, everything());
    fleet.run("partition_recovery_reliable_clerks", |world, held| {
        recover(world, held, RECOVERIES, true)
    });
}

#[test]
fn partition_recovery_unreliable_clerks() {
    let fleet = Fleet::of(2).with_clerks(5, everything()).unreliable();
    fleet.run("partition_recovery_unreliable_clerks", |world, held| {
        recover(world, held, RECOVERIES, true)
    });
}

/// Clerks' own keys are there once and in order, whatever the controller's members do.
#[test]
fn moves_go_on_while_controllers_crash() {
    let appends = Workload { gets: 0, ..Workload::labs() };
    let fleet = Fleet::of(3).with_clerks(4, appends).with_snapshots(500);
    fleet.run("moves_go_on_while_controllers_crash", |world, _| {
        for turn in 0..6_u64 {
            let (group, down) = ([TWO, THREE][turn as usize % 2], NodeId(turn % 3 + 1));
            fleet::change(world, group, !(2..=3).contains(&turn))?;
            world.kill(down)?;
            world.run_for(SECOND_US / 2)?;
            world.restart(down)?;
        }
        fleet::arrived(world)?;
        fleet::check_own(world, 4)
    });
}
