//! Elections, as the labs test them.

mod depth;

use depth::{expect, scenario};
use flotilla_sim::Mix;
use raft::{NodeId, RoleKind};

const SECOND_US: u64 = 1_000_000;

#[test]
fn initial_election() {
    scenario("initial_election", 3, &Mix::calm(), |world| {
        let leader = world.expect_leader()?;
        let followed = world.run_until(SECOND_US / 2, |world| {
            world.members().all(|member| member.standing().leader == Some(leader))
        })?;
        expect(followed, "all follow the leader")?;
        let term = world.member(leader).standing().term;
        world.run_for(2 * SECOND_US)?;
        expect(world.leader() == Some(leader), "it still leads")?;
        expect(world.members().all(|member| member.standing().term == term), "in its term")
    });
}

#[test]
fn re_election() {
    scenario("re_election", 3, &Mix::calm(), |world| {
        let first = world.expect_leader()?;
        world.disconnect(first);
        let second = world.expect_leader()?;
        // An old leader that comes back does not disturb the new one.
        world.connect(first);
        world.run_for(SECOND_US)?;
        expect(world.leader() == Some(second), "the new leader stays")?;

        let other = (1..=3).map(NodeId).find(|&id| id != second).unwrap();
        world.disconnect(second);
        world.disconnect(other);
        world.run_for(2 * SECOND_US)?;
        expect(world.leader().is_none(), "nobody leads without a quorum")?;

        world.connect(other);
        world.expect_leader()?;
        world.connect(second);
        world.expect_leader()?;
        Ok(())
    });
}

#[test]
fn many_elections() {
    scenario("many_elections", 7, &Mix::calm(), |world| {
        world.expect_leader()?;
        for round in 1..10 {
            let victims = [round % 7 + 1, (round * 3) % 7 + 1, (round * 5) % 7 + 1].map(NodeId);
            victims.into_iter().for_each(|id| world.disconnect(id));
            world.expect_leader()?;
            world.run_for(SECOND_US)?;
            victims.into_iter().for_each(|id| world.connect(id));
        }
        world.expect_leader()?;
        Ok(())
    });
}

/// A member that was cut off and comes back does not depose a healthy leader: pre-vote keeps its
/// term from growing.
#[test]
fn rejoin_does_not_disrupt() {
    scenario("rejoin_does_not_disrupt", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let term = world.member(leader).standing().term;
        let follower = (1..=3).map(NodeId).find(|&id| id != leader).unwrap();
        world.disconnect(follower);
        world.run_for(5 * SECOND_US)?;
        world.connect(follower);
        world.run_for(2 * SECOND_US)?;
        expect(world.leader() == Some(leader), "the leader stays")?;
        expect(world.members().all(|member| member.standing().term == term), "in its term")
    });
}

/// A leader that reaches nobody gives up its office by itself.
#[test]
fn check_quorum_steps_down() {
    scenario("check_quorum_steps_down", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        world.disconnect(leader);
        world.run_for(SECOND_US)?;
        let role = world.member(leader).standing().role;
        expect(role != RoleKind::Leader, "it leads no more")?;
        expect(world.tally().quorums_lost > 0, "because it lost its quorum")?;
        world.connect(leader);
        Ok(())
    });
}

/// Who has missed what was committed is not elected, and does not even begin an election.
#[test]
fn pre_vote_blocks_stale_candidate() {
    scenario("pre_vote_blocks_stale_candidate", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let [stale, other] = [1, 2].map(|step| NodeId((leader.0 - 1 + step) % 3 + 1));
        world.disconnect(stale);
        let committed = world.one(2)?;
        world.disconnect(leader);
        world.connect(stale);
        let term = world.member(stale).standing().term;
        let led = world.run_until(5 * SECOND_US, |world| {
            let standing = world.member(stale).standing();
            // It may learn of a later term, but must not raise it.
            standing.leader.is_some_and(|now| now != leader) && standing.term > term
        })?;
        expect(led && world.leader() == Some(other), "the one that has it all leads")?;
        world.run_until(SECOND_US, |world| world.member(stale).standing().applied >= committed)?;
        let applied = world.member(stale).standing().applied;
        expect(applied >= committed, "and brings the other what it lacks")?;
        world.connect(leader);
        world.one(3)?;
        Ok(())
    });
}
