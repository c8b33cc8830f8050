//! Crashes and restarts, as the labs test them.

mod depth;

use depth::{Depth, depth, expect, scenario};
use flotilla_sim::{Mix, World};
use raft::NodeId;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const SECOND_US: u64 = 1_000_000;

fn up(world: &World) -> usize {
    world.members().filter(|member| member.is_up()).count()
}

#[test]
fn persist_1() {
    scenario("persist_1", 3, &Mix::calm(), |world| {
        world.one(3)?;
        for id in (1..=3).map(NodeId) {
            world.kill(id)?;
        }
        for id in (1..=3).map(NodeId) {
            world.restart(id)?;
        }
        world.one(3)?;

        let leader = world.expect_leader()?;
        world.kill(leader)?;
        world.restart(leader)?;
        world.one(3)?;

        let leader = world.expect_leader()?;
        world.kill(leader)?;
        world.one(2)?;
        world.restart(leader)?;
        world.one(3)?;

        let leader = world.expect_leader()?;
        let follower = (1..=3).map(NodeId).find(|&id| id != leader).unwrap();
        world.kill(follower)?;
        world.one(2)?;
        world.restart(follower)?;
        world.one(3)?;
        Ok(())
    });
}

#[test]
fn persist_2() {
    scenario("persist_2", 5, &Mix::calm(), |world| {
        for _ in 0..5 {
            world.one(5)?;
            let leader = world.expect_leader()?;
            let at = |step: u64| NodeId((leader.0 + step) % 5 + 1);
            world.kill(at(1))?;
            world.kill(at(2))?;
            world.one(3)?;
            for step in [0, 3, 4] {
                world.kill(at(step))?;
            }
            world.restart(at(1))?;
            world.restart(at(2))?;
            world.run_for(SECOND_US)?;
            for step in [3, 4, 0] {
                world.restart(at(step))?;
            }
        }
        world.one(5)?;
        Ok(())
    });
}

#[test]
fn persist_3() {
    scenario("persist_3", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let [a, b] = [1, 2].map(|step| NodeId((leader.0 - 1 + step) % 3 + 1));
        world.disconnect(b);
        world.one(2)?;
        world.kill(leader)?;
        world.kill(a)?;
        world.connect(b);
        world.restart(leader)?;
        world.one(2)?;
        world.restart(a)?;
        world.one(3)?;
        Ok(())
    });
}

/// How often figure 8 turns round: a thousand times, as in the labs, where there is time for it.
fn figure_8_rounds() -> u64 {
    match depth() {
        Depth::Quick => 200,
        Depth::Ci | Depth::Deep => 1_000,
    }
}

/// The leader dies again and again, often before its entries are anywhere else.
#[test]
fn figure_8() {
    scenario("figure_8", 5, &Mix::calm(), |world| {
        world.one(1)?;
        for round in 0..figure_8_rounds() {
            let leader = world.leader();
            if let Some(leader) = leader {
                world.propose(leader, 8);
            }
            let pause_us = if round % 10 == 0 { round * 7_919 % 500 } else { round * 31 % 13 };
            world.run_for(1_000 * pause_us)?;
            if let Some(leader) = leader {
                world.kill(leader)?;
            }
            if up(world) < 3 {
                let restarted = NodeId(round % 5 + 1);
                world.restart(restarted)?;
            }
        }
        for id in (1..=5).map(NodeId) {
            world.restart(id)?;
        }
        world.one(5)?;
        Ok(())
    });
}

/// The same with leaders that are cut off, and messages that are lost and come late.
#[test]
fn figure_8_unreliable() {
    scenario("figure_8_unreliable", 5, &Mix::unreliable(), |world| {
        world.one(1)?;
        let mut cut = std::collections::BTreeSet::new();
        for round in 0..figure_8_rounds() {
            if round == figure_8_rounds() / 5 {
                world.change_mix(Mix::reordering());
            }
            let leader = world.leader();
            if let Some(leader) = leader {
                world.propose(leader, 8);
            }
            let pause_us = if round % 10 == 0 { round * 7_919 % 500 } else { round * 31 % 13 };
            world.run_for(1_000 * pause_us)?;
            if let Some(leader) = leader.filter(|_| round % 2 == 0) {
                world.disconnect(leader);
                cut.insert(leader);
            }
            if cut.len() > 2 {
                let connected = NodeId(round % 5 + 1);
                world.connect(connected);
                cut.remove(&connected);
            }
        }
        for id in (1..=5).map(NodeId) {
            world.connect(id);
        }
        world.one(5)?;
        Ok(())
    });
}

#[test]
fn unreliable_agree() {
    scenario("unreliable_agree", 5, &Mix::unreliable(), |world| {
        for _ in 1..50 {
            let leader = world.expect_leader()?;
            for _ in 0..4 {
                world.propose(leader, 8);
            }
            world.one(1)?;
        }
        world.change_mix(Mix::calm());
        world.one(5)?;
        Ok(())
    });
}

/// Members are cut off, killed, started and put back at random, while clients go on. That no write
/// is lost that a client saw acknowledged is R12 and R6.
fn churn(name: &str, mix: Mix) {
    let mix = Mix { clients: 3, read_per_mille: 0, ..mix };
    scenario(name, 5, &mix, |world| {
        world.expect_leader()?;
        // Another order of events for each seed.
        let mut rng = StdRng::seed_from_u64(world.now_us());
        for _ in 0..20 {
            let mut any = || NodeId(rng.random_range(1..=5));
            let (cut, started, killed) = (any(), any(), any());
            if rng.random_range(0..100) < 20 {
                world.disconnect(cut);
            }
            if rng.random_range(0..100) < 50 {
                world.restart(started)?;
                world.connect(started);
            }
            if rng.random_range(0..100) < 20 {
                world.kill(killed)?;
            }
            world.run_for(700_000)?;
        }
        for id in (1..=5).map(NodeId) {
            world.restart(id)?;
            world.connect(id);
        }
        world.one(5)?;
        expect(world.tally().done > 0, "clients get something done")
    });
}

#[test]
fn reliable_churn() {
    churn("reliable_churn", Mix::calm());
}

#[test]
fn unreliable_churn() {
    churn("unreliable_churn", Mix::unreliable());
}
