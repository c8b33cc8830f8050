//! The labs' members that lose their disks: who has forgotten its promises takes no part any more,
//! and another takes its place under a name of its own. That others know it is `raftd`'s part
//! (`identity.rs`); here it is the disk that never opens.

mod depth;

use depth::{expect, scenario};
use flotilla_sim::{Mix, Violation, World};
use raft::NodeId;

const SECOND_US: u64 = 1_000_000;
const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);
const THREE: NodeId = NodeId(3);

/// Members on the real store.
fn mix() -> Mix {
    Mix { store: true, ..Mix::calm() }
}

/// Waits until the operator has had another member take the place of one.
fn replaced(world: &mut World, lost: NodeId) -> Result<(), Violation> {
    for _ in 0..40 {
        world.run_for(SECOND_US / 4)?;
        let membership = world.ghost().membership();
        let others = membership.voters().filter(|voter| *voter != lost).count();
        if !membership.is_joint() && !membership.members().contains_key(&lost) && others == 3 {
            return Ok(());
        }
    }
    expect(false, format!("nobody takes the place of n{lost}"))
}

/// Nothing gets committed for a while.
fn stands_still(world: &mut World) -> Result<(), Violation> {
    let before = world.ghost().committed();
    let command = world.propose(ONE, 0);
    world.run_for(3 * SECOND_US)?;
    expect(world.ghost().committed() == before, "a minority commits")?;
    expect(world.ghost().index_of(command).is_none(), "a minority commits")
}

#[test]
fn wiped_node_must_not_vote() {
    scenario("wiped_node_must_not_vote", 3, &mix(), |world| {
        world.one(3)?;
        world.kill(THREE)?;
        world.one(2)?;
        world.wipe(TWO)?;
        world.restart(TWO)?;
        // With a vote of the one who forgot, the one who is behind could lead.
        world.kill(ONE)?;
        world.restart(THREE)?;
        let before = world.ghost().committed();
        world.run_for(3 * SECOND_US)?;
        expect(world.leader().is_none(), "a leader by the vote of one who forgot")?;
        expect(world.ghost().committed() == before, "a minority commits")?;
        world.restart(ONE)?;
        replaced(world, TWO)?;
        world.one(3).map(drop)
    });
}

#[test]
fn one_lost_one_down() {
    scenario("one_lost_one_down", 3, &mix(), |world| {
        world.one(3)?;
        world.kill(THREE)?;
        world.one(2)?;
        world.wipe(TWO)?;
        world.restart(TWO)?;
        stands_still(world)?;
        world.restart(THREE)?;
        world.one(2)?;
        replaced(world, TWO)?;
        world.one(3)?;
        world.kill(ONE)?;
        world.one(2).map(drop)
    });
}

#[test]
fn rejoin_mix_1() {
    scenario("rejoin_mix_1", 3, &mix(), |world| {
        world.one(3)?;
        world.wipe(ONE)?;
        world.kill(TWO)?;
        world.restart(ONE)?;
        world.restart(TWO)?;
        world.one(2)?;
        replaced(world, ONE)?;
        for id in [TWO, THREE] {
            world.kill(id)?;
            world.one(2)?;
            world.restart(id)?;
            world.one(3)?;
        }
        Ok(())
    });
}

#[test]
fn rejoin_mix_3() {
    scenario("rejoin_mix_3", 3, &mix(), |world| {
        world.one(3)?;
        world.kill(THREE)?;
        world.one(2)?;
        world.kill(ONE)?;
        world.kill(TWO)?;
        world.wipe(THREE)?;
        world.restart(THREE)?;
        world.restart(ONE)?;
        stands_still(world)?;
        world.restart(TWO)?;
        world.one(2)?;
        replaced(world, THREE)?;
        world.kill(TWO)?;
        world.one(2).map(drop)
    });
}
