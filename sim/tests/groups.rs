//! Several groups in one world: they share its time and its network, and nothing else.

mod depth;

use depth::{expect, scenario};
use flotilla_sim::{GroupId, Mix, Violation, World};
use raft::NodeId;

const SECOND_US: u64 = 1_000_000;

/// A second group of three beside the first; the script goes on to speak of it.
fn found_another(world: &mut World) -> Result<GroupId, Violation> {
    let another = world.found(3)?;
    world.speak_of(another);
    Ok(another)
}

/// Where two groups have members of the same names and a third of what one sends comes to the
/// other, neither notices anything but the loss.
#[test]
fn groups_do_not_hear_each_other() {
    let mix = Mix { misdirected_per_mille: 600, ..Mix::calm() };
    scenario("groups_do_not_hear_each_other", 3, &mix, |world| {
        let another = found_another(world)?;
        for _ in 0..20 {
            for group in [GroupId::FIRST, another] {
                world.speak_of(group);
                world.one(3)?;
            }
        }
        let tally = world.tally();
        let misdirected = tally.strangers * 5 > tally.sent;
        expect(misdirected, format!("{} of {} are refused", tally.strangers, tally.sent))?;
        // The terms of one say nothing to the other.
        world.disconnect(NodeId(1));
        world.run_for(3 * SECOND_US)?;
        world.connect(NodeId(1));
        world.one(3).map(drop)
    });
}

/// Commands and memberships of one group are not those of the other.
#[test]
fn groups_have_logs_of_their_own() {
    scenario("groups_have_logs_of_their_own", 3, &Mix::calm(), |world| {
        for _ in 0..5 {
            world.one(3)?;
        }
        let first = world.ghost().committed();
        found_another(world)?;
        expect(world.ghost().committed().0 == 0, "the new group has an empty log")?;
        world.one(3)?;
        expect(world.ghost().committed() < first, "and one of its own")?;
        world.join(NodeId(4))?;
        expect(world.members().count() == 4, "it has a fourth member")?;
        world.speak_of(GroupId::FIRST);
        expect(world.members().count() == 3, "and the first group has not")
    });
}

#[test]
fn a_group_is_created_at_run_time() {
    let mix = Mix { clients: 2, ..Mix::calm() };
    scenario("a_group_is_created_at_run_time", 3, &mix, |world| {
        world.one(3)?;
        expect(world.groups() == [GroupId::FIRST], "there is one group")?;
        let (leader, term) = (world.leader(), world.member(NodeId(1)).standing().term);
        let another = found_another(world)?;
        expect(world.groups() == [GroupId::FIRST, another], "there are two")?;
        world.one(3)?;
        // Its own clients find it.
        let before = world.ghost().committed();
        world.run_until(5 * SECOND_US, |world| world.ghost().committed().0 > before.0 + 20)?;
        expect(world.ghost().committed().0 > before.0 + 20, "its clients write to it")?;
        world.speak_of(GroupId::FIRST);
        let same = world.leader() == leader && world.member(NodeId(1)).standing().term == term;
        expect(same, "the first did not notice")
    });
}

#[test]
fn a_stopped_group_starts_again() {
    scenario("a_stopped_group_starts_again", 3, &Mix::calm(), |world| {
        let another = found_another(world)?;
        let written = world.one(3)?;
        world.stop_all()?;
        world.restart(NodeId(1))?;
        expect(world.members().all(|member| !member.is_up()), "nobody starts one of its members")?;
        world.speak_of(GroupId::FIRST);
        world.one(3)?;
        world.run_for(2 * SECOND_US)?;
        world.one(3)?;
        world.speak_of(another);
        expect(world.leader().is_none(), "it stands still meanwhile")?;
        world.start_all()?;
        let next = world.one(3)?;
        expect(next > written, "it goes on where it was")
    });
}

/// What is cut, dead or slow in one group is none of another's business.
#[test]
fn groups_fail_alone() {
    let mix = Mix { clients: 1, ..Mix::calm() };
    scenario("groups_fail_alone", 3, &mix, |world| {
        found_another(world)?;
        let leader = world.expect_leader()?;
        world.kill(NodeId(leader.0 % 3 + 1))?;
        world.disconnect(leader);
        world.run_for(SECOND_US)?;
        let stuck = world.ghost().committed();
        world.speak_of(GroupId::FIRST);
        let before = world.ghost().committed();
        world.run_for(2 * SECOND_US)?;
        expect(world.ghost().committed().0 > before.0 + 20, "the first goes on")?;
        world.speak_of(GroupId(2));
        expect(world.ghost().committed() == stuck, "the other can't")
    });
}
