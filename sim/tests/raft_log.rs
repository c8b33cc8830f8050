//! Agreement on the log, as the labs test it.

mod depth;

use depth::{expect, scenario};
use flotilla_sim::{Mix, Violation, World};
use raft::{Index, NodeId};

const SECOND_US: u64 = 1_000_000;

/// The members behind the leader, in a ring.
fn others(leader: NodeId, members: u64) -> Vec<NodeId> {
    (1..members).map(|step| NodeId((leader.0 - 1 + step) % members + 1)).collect()
}

/// Proposes `count` commands to one member, without waiting.
fn propose_many(world: &mut World, to: NodeId, count: usize) -> Result<(), Violation> {
    for _ in 0..count {
        world.propose(to, 8);
    }
    world.run_for(SECOND_US / 10)
}

#[test]
fn basic_agree() {
    scenario("basic_agree", 5, &Mix::calm(), |world| {
        world.expect_leader()?;
        world.run_for(SECOND_US)?;
        expect(world.ghost().committed() == Index(1), "only the leader's no-op is committed")?;
        for index in 2..5 {
            let at = world.one(5)?;
            expect(at == Index(index), format!("agreement at {at}, not {index}"))?;
        }
        Ok(())
    });
}

#[test]
fn fail_agree() {
    scenario("fail_agree", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let follower = others(leader, 3)[0];
        world.disconnect(follower);
        for _ in 0..4 {
            world.one(2)?;
            world.run_for(SECOND_US / 4)?;
        }
        world.connect(follower);
        world.one(3)?;
        world.run_for(SECOND_US)?;
        world.one(3)?;
        Ok(())
    });
}

#[test]
fn fail_no_agree() {
    scenario("fail_no_agree", 5, &Mix::calm(), |world| {
        world.one(5)?;
        let leader = world.expect_leader()?;
        let lost = &others(leader, 5)[..3];
        lost.iter().for_each(|&id| world.disconnect(id));
        let committed = world.ghost().committed();
        let command = world.propose(leader, 0);
        world.run_for(2 * SECOND_US)?;
        expect(world.ghost().index_of(command).is_none(), "no commit without a majority")?;
        expect(world.ghost().committed() == committed, "of anything")?;
        lost.iter().for_each(|&id| world.connect(id));
        let at = world.one(5)?;
        expect(at > committed, "agreement afterwards")
    });
}

#[test]
fn rejoin() {
    scenario("rejoin", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let first = world.expect_leader()?;
        world.disconnect(first);
        propose_many(world, first, 3)?;
        world.one(2)?;
        let second = world.expect_leader()?;
        world.disconnect(second);
        world.connect(first);
        world.one(2)?;
        world.connect(second);
        world.one(3)?;
        expect(world.tally().truncations > 0, "the old leader discards what conflicts")
    });
}

#[test]
fn backup() {
    scenario("backup", 5, &Mix::calm(), |world| {
        world.one(5)?;
        let first = world.expect_leader()?;
        let ring = others(first, 5);
        // The leader and one more get 50 entries that can't be committed.
        ring[1..].iter().for_each(|&id| world.disconnect(id));
        propose_many(world, first, 50)?;
        world.disconnect(first);
        world.disconnect(ring[0]);
        // The other three commit 50.
        ring[1..].iter().for_each(|&id| world.connect(id));
        for _ in 0..50 {
            world.one(3)?;
        }
        // Their leader and one more get 50 that can't be committed either.
        let second = world.expect_leader()?;
        let other = *ring[1..].iter().find(|&&id| id != second).unwrap();
        world.disconnect(other);
        propose_many(world, second, 50)?;
        ring[1..].iter().for_each(|&id| world.disconnect(id));
        // The first leader's side comes back, with one that knows better.
        for id in [first, ring[0], other] {
            world.connect(id);
        }
        for _ in 0..50 {
            world.one(3)?;
        }
        ring.iter().for_each(|&id| world.connect(id));
        world.one(5)?;
        Ok(())
    });
}

#[test]
fn leader_failure() {
    scenario("leader_failure", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let first = world.expect_leader()?;
        world.disconnect(first);
        world.one(2)?;
        let second = world.expect_leader()?;
        world.disconnect(second);
        let commands = (1..=3).map(|id| world.propose(NodeId(id), 0)).collect::<Vec<_>>();
        world.run_for(2 * SECOND_US)?;
        let none = commands.iter().all(|&command| world.ghost().index_of(command).is_none());
        expect(none, "nothing is committed by one of three")?;
        world.connect(first);
        world.connect(second);
        Ok(())
    });
}

#[test]
fn follower_failure() {
    scenario("follower_failure", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let ring = others(leader, 3);
        world.disconnect(ring[0]);
        world.one(2)?;
        world.run_for(SECOND_US)?;
        let last = world.one(2)?;
        expect(world.leader() == Some(leader), "one follower is enough")?;
        world.disconnect(ring[1]);
        let command = world.propose(leader, 0);
        world.run_for(SECOND_US / 100)?;
        let stranded = world.member(leader).standing().last.index;
        expect(stranded == last.next(), format!("appended at {stranded} behind {last}"))?;
        world.run_for(2 * SECOND_US)?;
        expect(world.ghost().index_of(command).is_none(), "none is not")?;
        ring.into_iter().for_each(|id| world.connect(id));
        world.one(3)?;
        Ok(())
    });
}

/// What is proposed at once in one term is committed in it, by all.
#[test]
fn concurrent_starts() {
    scenario("concurrent_starts", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let term = world.member(leader).standing().term;
        let commands: Vec<_> = (0..5).map(|_| world.propose(leader, 8)).collect();
        let all = world.run_until(2 * SECOND_US, |world| {
            let mut indexes = commands.iter().map(|&command| world.ghost().index_of(command));
            indexes.all(|index| index.is_some_and(|index| world.applied(index) == 3))
        })?;
        expect(all, "all five are applied by all three")?;
        let terms = commands.iter().filter_map(|&command| world.ghost().index_of(command));
        let mut terms = terms.filter_map(|index| world.ghost().at(index)).map(|entry| entry.term);
        expect(terms.all(|of| of == term), "in the term in which they were proposed")
    });
}
