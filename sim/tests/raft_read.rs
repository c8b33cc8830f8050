//! Linearizable reads in a group that is torn apart.

mod depth;

use depth::{expect, scenario};
use flotilla_sim::{Mix, Violation, World, client::Reply, machine::Answer};
use raft::{AppendResult, Index, MessageKind, NodeId};

const SECOND_US: u64 = 1_000_000;

/// A leader that is cut off answers no read, and gives up its reads when it notices.
#[test]
fn read_in_minority_blocks() {
    scenario("read_in_minority_blocks", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let read = world.query(leader);
        world.run_until(SECOND_US, |world| world.reply_to(read).is_some())?;
        let answered = matches!(world.reply_to(read), Some(Reply::Read(_)));
        expect(answered, "a leader with a quorum answers")?;

        world.disconnect(leader);
        let read = world.query(leader);
        world.one(2)?;
        world.run_for(2 * SECOND_US)?;
        let refused = matches!(world.reply_to(read), Some(Reply::Refused { .. }));
        expect(refused, "one that has lost it does not")?;
        world.connect(leader);
        Ok(())
    });
}

/// Takes whoever else leads off the network, until `id` does.
fn make_leader(world: &mut World, id: NodeId) -> Result<(), Violation> {
    for _ in 0..100 {
        let leader = world.expect_leader()?;
        if leader == id {
            return Ok(());
        }
        world.disconnect(leader);
        world.run_until(SECOND_US, |world| world.leader().is_some_and(|now| now != leader))?;
        world.connect(leader);
        world.run_for(SECOND_US / 2)?;
    }
    expect(false, format!("n{id} leads in the end"))
}

/// A leader sends an append, loses its office, and is elected again. The append arrives only then:
/// its round is one of the earlier term, and must not confirm a round of the new one, in which the
/// follower may have left for another leader since it answered.
#[test]
fn late_append_of_an_earlier_term_confirms_nothing() {
    let name = "late_append_of_an_earlier_term_confirms_nothing";
    scenario(name, 3, &Mix::calm(), |world| {
        world.one(3)?;
        let old = world.expect_leader()?;
        let [late, other] = [1, 2].map(|step| NodeId((old.0 - 1 + step) % 3 + 1));
        // The leader sends many rounds, and one append of them is on its way for long.
        world.run_for(10 * SECOND_US)?;
        world.withhold(old, late, |message| {
            matches!(message.kind, MessageKind::AppendRequest { round, .. } if round > 100)
        });
        world.run_for(SECOND_US)?;
        expect(world.withheld(old, late) == 1, "an append is on its way")?;
        world.disconnect(old);
        world.one(2)?;
        world.connect(old);
        make_leader(world, old)?;
        world.one(3)?;

        // It arrives, and the answer to it is on its way while another is elected.
        world.withhold(late, old, |message| {
            let MessageKind::AppendReply { result, .. } = message.kind else { return false };
            result == AppendResult::Matched(Index(0))
        });
        world.release(old, late);
        world.run_for(SECOND_US / 100)?;
        expect(world.withheld(late, old) == 1, "the answer is on its way")?;
        world.stop(old);
        world.disconnect(old);
        let newer = world.run_until(5 * SECOND_US, |world| {
            world.leader().is_some_and(|leader| leader == late || leader == other)
        })?;
        expect(newer, "another is elected")?;
        world.one(2)?;

        // The old leader goes on and is asked; then the answer arrives. R19 judges.
        world.go_on(old);
        let read = world.query(old);
        world.run_for(1)?;
        world.connect(old);
        world.release(late, old);
        world.run_for(2 * SECOND_US)?;
        let refused = matches!(world.reply_to(read), Some(Reply::Refused { .. }));
        expect(refused, format!("the read is refused: {:?}", world.reply_to(read)))
    });
}

/// A leader that was replaced behind its back does not answer from what it has; the new one does.
#[test]
fn read_index_safe() {
    scenario("read_index_safe", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let old = world.expect_leader()?;
        // It stands still while another is elected, and notices nothing until it goes on.
        world.stop(old);
        world.disconnect(old);
        let written = world.one(2)?;
        world.go_on(old);
        let stale = world.query(old);
        world.connect(old);
        let new = world.expect_leader()?;
        expect(new != old, "another leads")?;
        let fresh = world.query(new);
        let answered = world.run_until(SECOND_US, |world| world.reply_to(fresh).is_some())?;
        expect(answered, "the new leader answers")?;
        let Some(Reply::Read(Answer { index, .. })) = world.reply_to(fresh) else {
            return expect(false, format!("a read: {:?}", world.reply_to(fresh)));
        };
        expect(index >= written, format!("{index} is not before {written}"))?;
        world.run_for(SECOND_US)?;
        let refused = matches!(world.reply_to(stale), Some(Reply::Refused { .. }));
        expect(refused, format!("the old one refuses: {:?}", world.reply_to(stale)))
    });
}

/// A leader with a lease answers at once. One that stood still while another was elected has none any
/// more, whatever it heard before.
#[test]
fn lease_expires_on_pause() {
    let mix = Mix { lease_reads: true, ..Mix::calm() };
    scenario("lease_expires_on_pause", 3, &mix, |world| {
        world.one(3)?;
        let old = world.expect_leader()?;
        world.run_for(SECOND_US / 5)?;
        let sent = world.tally().reads_at_once;
        let read = world.query(old);
        world.run_until(SECOND_US, |world| world.reply_to(read).is_some())?;
        expect(world.tally().reads_at_once == sent + 1, "it answers by its lease")?;
        world.stop(old);
        world.disconnect(old);
        world.one(2)?;
        world.go_on(old);
        let stale = world.query(old);
        world.run_for(SECOND_US / 100)?;
        expect(world.reply_to(stale).is_none(), "its lease is over")?;
        world.connect(old);
        world.run_for(2 * SECOND_US)?;
        let refused = matches!(world.reply_to(stale), Some(Reply::Refused { .. }));
        expect(refused, format!("it refuses in the end: {:?}", world.reply_to(stale)))
    });
}

/// A voter that starts anew does not elect another while the leader that it heard just before reads by
/// its lease.
#[test]
fn restarted_voter_keeps_to_its_leader() {
    let mix = Mix { lease_reads: true, ..Mix::calm() };
    scenario("restarted_voter_keeps_to_its_leader", 3, &mix, |world| {
        world.one(3)?;
        let old = world.expect_leader()?;
        let [voter, other] = [1, 2].map(|step| NodeId((old.0 - 1 + step) % 3 + 1));
        world.run_for(SECOND_US)?;
        // One member hears no leader, and asks the voter, which does.
        world.cut(old, other);
        world.cut(other, old);
        world.withhold(other, voter, |message| {
            matches!(message.kind, MessageKind::VoteRequest { .. })
        });
        let asks = world.run_until(5 * SECOND_US, |world| world.withheld(other, voter) == 1)?;
        expect(asks, "it asks for an election")?;
        world.disconnect(old);
        world.kill(voter)?;
        world.restart(voter)?;
        world.release(other, voter);
        world.run_for(SECOND_US / 20)?;
        // Were it elected, this would be committed. R19 judges what the old leader reads.
        world.propose(other, 0);
        world.run_for(SECOND_US / 20)?;
        let read = world.query(old);
        world.run_for(1)?;
        let answered = matches!(world.reply_to(read), Some(Reply::Read(_)));
        expect(answered, format!("by its lease: {:?}", world.reply_to(read)))?;
        world.connect(old);
        Ok(())
    });
}

/// However many reads come to a follower at once, they cost its leader one round.
#[test]
fn reads_of_a_follower_share_one_question() {
    scenario("reads_of_a_follower_share_one_question", 3, &Mix::calm(), |world| {
        let written = world.one(3)?;
        let leader = world.expect_leader()?;
        let follower = NodeId(leader.0 % 3 + 1);
        let reads: Vec<_> = (0..100).map(|_| world.query(follower)).collect();
        // Their question is on its way before the next heartbeat, and long before the next election.
        let sent = world.tally().sent;
        let answered = |world: &World| reads.iter().all(|&read| world.reply_to(read).is_some());
        world.run_until(SECOND_US, answered)?;
        for &read in &reads {
            let fresh = matches!(world.reply_to(read), Some(Reply::Read(answer)) if answer.index >= written);
            expect(fresh, format!("a fresh read: {:?}", world.reply_to(read)))?;
        }
        let sent = world.tally().sent - sent;
        expect(sent <= 20, format!("{sent} messages for 100 reads"))
    });
}

/// A new leader holds all that is committed but does not know how far that goes until an entry of
/// its own term is committed: until then it answers no read.
#[test]
fn new_leader_waits_for_own_term() {
    scenario("new_leader_waits_for_own_term", 3, &Mix::calm(), |world| {
        let written = world.one(3)?;
        let old = world.expect_leader()?;
        world.kill(old)?;
        let new = world.expect_leader()?;
        // Its first entry reaches nobody.
        world.disconnect(new);
        let read = world.query(new);
        world.run_for(SECOND_US / 20)?;
        expect(world.reply_to(read).is_none(), "it waits")?;
        world.connect(new);
        let ended = world.run_until(2 * SECOND_US, |world| world.reply_to(read).is_some())?;
        expect(ended, "the read ends")?;
        let own = match world.reply_to(read) {
            Some(Reply::Read(answer)) => answer.index > written,
            // Its followers had elected another before it came back.
            Some(Reply::Refused { .. }) => true,
            other => return expect(false, format!("a read or a refusal: {other:?}")),
        };
        expect(own, "it has seen an entry of the new term")?;
        world.restart(old)
    });
}
