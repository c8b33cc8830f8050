//! Changes of the members: one at a time, several at once, and under faults.

mod depth;

use bytes::Bytes;
use depth::{expect, scenario};
use flotilla_sim::fault::{Fault, Rate};
use flotilla_sim::{Mix, Violation, World};
use raft::{Change, NodeId};

const SECOND_US: u64 = 1_000_000;

fn voters(world: &World) -> Vec<u64> {
    world.ghost().membership().voters().map(|voter| voter.0).collect()
}

/// Asks whoever leads for these changes, again and again, until they are committed to their end.
fn change(world: &mut World, changes: &[Change], wanted: &[u64]) -> Result<(), Violation> {
    for _ in 0..40 {
        let leader = world.expect_leader()?;
        world.change(leader, changes.to_vec());
        world.run_for(SECOND_US / 4)?;
        let membership = world.ghost().membership();
        let members: Vec<u64> = membership.members().keys().map(|id| id.0).collect();
        if !membership.is_joint() && members == wanted {
            return Ok(());
        }
    }
    expect(false, format!("{changes:?} does not come to {wanted:?}"))
}

fn add(id: u64) -> Change {
    Change::AddLearner { id: NodeId(id), contact: Bytes::new() }
}

#[test]
fn add_single() {
    scenario("add_single", 3, &Mix::calm(), |world| {
        world.one(3)?;
        world.join(NodeId(4))?;
        change(world, &[add(4)], &[1, 2, 3, 4])?;
        expect(voters(world) == [1, 2, 3], "a new member learns first")?;
        let leader = world.expect_leader()?;
        world.change(leader, vec![Change::Promote(NodeId(4))]);
        world.run_for(SECOND_US)?;
        expect(voters(world) == [1, 2, 3, 4], "it votes when it has caught up")?;
        world.one(4).map(drop)
    });
}

#[test]
fn remove_leader() {
    scenario("remove_leader", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let left: Vec<u64> = (1..=3).filter(|id| *id != leader.0).collect();
        change(world, &[Change::Remove(leader)], &left)?;
        let next = world.expect_leader()?;
        expect(next != leader, "a removed leader leads on")?;
        world.one(2).map(drop)
    });
}

#[test]
fn remove_leader_of_two() {
    scenario("remove_leader_of_two", 2, &Mix::calm(), |world| {
        world.one(2)?;
        let leader = world.expect_leader()?;
        let left = 3 - leader.0;
        change(world, &[Change::Remove(leader)], &[left])?;
        expect(world.expect_leader()? == NodeId(left), "the other leads")?;
        world.one(1).map(drop)
    });
}

#[test]
fn replace_leader_joint() {
    scenario("replace_leader_joint", 3, &Mix::unreliable(), |world| {
        world.one(3)?;
        world.join(NodeId(4))?;
        change(world, &[add(4)], &[1, 2, 3, 4])?;
        let leader = world.expect_leader()?;
        let left: Vec<u64> = (1..=4).filter(|id| *id != leader.0).collect();
        change(world, &[Change::Remove(leader), Change::Promote(NodeId(4))], &left)?;
        expect(voters(world) == left, format!("{:?} vote", voters(world)))?;
        world.one(3).map(drop)
    });
}

/// Members change while these things happen, too.
fn reshaping(mix: &Mix, others: &[Fault]) -> Mix {
    let rate = |fault, every_us| Rate { fault, every_us, lasts_us_max: SECOND_US };
    let mut rates = vec![rate(Fault::Reshape, SECOND_US / 3)];
    rates.extend(others.iter().map(|&fault| rate(fault, 2 * SECOND_US)));
    Mix { rates, clients: 2, ..mix.clone() }
}

/// Members change for a while, and every kind of change was seen to its end.
fn reshape(name: &str, mix: &Mix) {
    scenario(name, 3, mix, |world| {
        world.run_for(20 * SECOND_US)?;
        let tally = world.tally();
        expect(tally.changes > 0 && tally.done > 0, format!("hardly anything happened: {tally:?}"))
    });
}

#[test]
fn conf_change_unreliable() {
    reshape("conf_change_unreliable", &reshaping(&Mix::unreliable(), &[Fault::Transfer]));
}

#[test]
fn conf_change_recover() {
    let faults = [Fault::Crash, Fault::CrashMany];
    reshape("conf_change_recover", &reshaping(&Mix::calm(), &faults));
}

#[test]
fn conf_change_snapshot_partition() {
    let mix = reshaping(&Mix::calm(), &[Fault::Partition, Fault::Crash]);
    let (retained_bytes, retained_bytes_max) = (100, 0);
    let config = raft::Config {
        snapshot_log_bytes_min: 500,
        retained_bytes,
        retained_bytes_max,
        ..mix.config
    };
    reshape("conf_change_snapshot_partition", &Mix { config, ..mix });
}
