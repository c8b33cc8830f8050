//! The simulator itself: what it is worth rests on this.

mod depth;

use std::{cell::RefCell, rc::Rc};

use depth::{expect, scenario};
use flotilla_sim::{Fullness, Mix, Options, Tally, World, run};
use raft::NodeId;

const SECOND_US: u64 = 1_000_000;

/// The whole trace of a run, and its hash.
fn trace(seed: u64) -> (String, String) {
    let lines = Rc::new(RefCell::new(String::new()));
    let heard = Rc::clone(&lines);
    let listener = Box::new(move |line: &str| {
        let mut lines = heard.borrow_mut();
        lines.push_str(line);
        lines.push('\n');
    });
    let report = run(Options { chaos_us: 3_000_000, ..Options::new(seed, 3) }, Some(listener));
    if let Some(failure) = report.failure {
        panic!("{failure}");
    }
    let text = lines.borrow().clone();
    (text, report.trace_hash)
}

/// R24: a seed that is run twice does the same, byte for byte.
#[test]
fn same_seed_same_trace() {
    for seed in 0..20 {
        let (first, first_hash) = trace(seed);
        let (second, second_hash) = trace(seed);
        assert!(first.lines().count() > 10, "seed {seed}: something happens");
        assert_eq!(first, second, "seed {seed}");
        assert_eq!(first_hash, second_hash, "seed {seed}");
    }
}

#[test]
fn another_seed_another_trace() {
    let (_, first) = trace(1);
    let (_, second) = trace(2);
    assert_ne!(first, second);
}

/// What is sent to a member that is off the network does not arrive, nor does what it sends.
#[test]
fn disconnect() {
    scenario("disconnect", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let away = NodeId(leader.0 % 3 + 1);
        world.disconnect(away);
        let before = world.member(away).standing().last;
        world.one(2)?;
        world.run_for(SECOND_US)?;
        expect(world.member(away).standing().last == before, "nothing reaches it")?;
        world.disconnect(leader);
        world.run_for(SECOND_US)?;
        expect(world.leader().is_none(), "nobody hears it")?;
        world.connect(away);
        world.connect(leader);
        world.one(3)?;
        Ok(())
    });
}

/// A quiet leader sends a heartbeat to each of two followers twenty times a second, and each is
/// answered.
#[test]
fn counts() {
    scenario("counts", 3, &Mix::calm(), |world| {
        world.one(3)?;
        world.run_for(SECOND_US)?;
        let before = world.tally();
        world.run_for(SECOND_US)?;
        let requests = world.tally().requests - before.requests;
        let sent = world.tally().sent - before.sent;
        expect((36..=42).contains(&requests), format!("{requests} requests"))?;
        expect(sent.abs_diff(2 * requests) <= 2, format!("{sent} messages"))
    });
}

/// A command is counted with all its bytes, once for each message that carries it.
#[test]
fn bytes() {
    scenario("bytes", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let before = world.tally().bytes;
        world.propose(leader, 100_000);
        world.run_for(SECOND_US / 10)?;
        let bytes = world.tally().bytes - before;
        expect((200_000..205_000).contains(&bytes), format!("{bytes} bytes"))
    });
}

/// One message in ten is lost, and not one more.
#[test]
fn unreliable_some_fail() {
    scenario("unreliable_some_fail", 3, &Mix::unreliable(), |world| {
        world.run_for(30 * SECOND_US)?;
        let Tally { sent, messages, .. } = world.tally();
        let lost = sent - messages;
        let in_ten = (sent / 15..sent / 7).contains(&lost);
        expect(in_ten, format!("{lost} of {sent} messages are lost"))
    });
}

/// A member that does not answer holds up nobody who does not need it.
#[test]
fn delayed_calls_do_not_block() {
    scenario("delayed_calls_do_not_block", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        world.stop(NodeId(leader.0 % 3 + 1));
        for _ in 0..20 {
            let command = world.propose(leader, 8);
            let done =
                world.run_until(SECOND_US / 10, |world| world.reply_to(command).is_some())?;
            expect(done, "the others agree at once")?;
        }
        world.go_on(NodeId(leader.0 % 3 + 1));
        world.one(3)?;
        Ok(())
    });
}

/// A client whose request died with the member that had it gives up, and asks another.
#[test]
fn kill_unsticks_call() {
    let mix = Mix { clients: 1, read_per_mille: 0, ..Mix::calm() };
    scenario("kill_unsticks_call", 3, &mix, |world| {
        let busy = world.run_until(5 * SECOND_US, |world| world.tally().done >= 10)?;
        expect(busy, "the client gets something done")?;
        let leader = world.expect_leader()?;
        world.kill(leader)?;
        let done = world.tally().done;
        let goes_on = world.run_until(10 * SECOND_US, |world| world.tally().done >= done + 10)?;
        expect(goes_on, "and goes on with another leader")?;
        world.restart(leader)
    });
}

/// A link that is cut in one direction carries the other: a follower that can't answer still gets
/// what the leader sends, and one that is not heard by the leader does not depose it.
#[test]
fn asymmetric_cut() {
    scenario("asymmetric_cut", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let mute = NodeId(leader.0 % 3 + 1);
        let before = world.member(mute).standing().last;
        world.cut(mute, leader);
        for _ in 0..3 {
            world.one(2)?;
        }
        world.run_for(SECOND_US)?;
        expect(world.member(mute).standing().last > before, "it hears the leader")?;
        expect(world.leader() == Some(leader), "which goes on with the other")?;
        world.heal();
        world.one(3)?;
        Ok(())
    });
}

/// What is sent over a narrow link takes its time, and so does what is sent behind it.
#[test]
fn narrow_links() {
    let mix = Mix { link_bytes_per_ms: Some(200), ..Mix::calm() };
    scenario("narrow_links", 3, &mix, |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let begun_us = world.now_us();
        let command = world.propose(leader, 20_000);
        let done = world.run_until(SECOND_US, |world| world.reply_to(command).is_some())?;
        let took_us = world.now_us() - begun_us;
        expect(done && took_us >= 100_000, format!("20,000 bytes took {took_us} us"))
    });
}

/// A member that is down either says so at once or not at all.
#[test]
fn down_refuses_or_is_silent() {
    for down_refuses in [true, false] {
        let mix = Mix { clients: 1, down_refuses, ..Mix::calm() };
        scenario("down_refuses_or_is_silent", 1, &mix, |world| {
            let busy = world.run_until(5 * SECOND_US, |world| world.tally().done >= 10)?;
            expect(busy, "the client gets something done")?;
            world.kill(NodeId(1))?;
            world.run_for(SECOND_US / 10)?;
            let before = world.tally().refused;
            world.run_for(SECOND_US)?;
            let refused = world.tally().refused - before;
            expect((refused > 10) == down_refuses, format!("{refused} requests are refused"))?;
            expect((refused == 0) != down_refuses, format!("{refused} requests are refused"))
        });
    }
}

/// A write is done although the client never hears of it.
#[test]
fn lost_answers_are_told_from_lost_requests() {
    let mix = Mix { clients: 1, read_per_mille: 0, ..Mix::calm() };
    scenario("lost_answers_are_told_from_lost_requests", 3, &mix, |world| {
        let busy = world.run_until(5 * SECOND_US, |world| world.tally().done >= 10)?;
        expect(busy, "the client gets something done")?;
        (1..=3).map(NodeId).for_each(|id| world.cut_answers(id, 1));
        world.run_for(SECOND_US / 10)?;
        let (before, commits) = (world.tally(), world.ghost().committed());
        // A client that hears nothing asks anybody, the leader among them.
        let lost = |world: &World| world.tally().answers_lost - before.answers_lost;
        let done = |world: &World| world.tally().done - before.done;
        let told = world.run_until(60 * SECOND_US, |world| lost(world) >= 5 && done(world) >= 1)?;
        let (lost, done) = (lost(world), done(world));
        expect(told, format!("{lost} answers are lost, {done} writes done"))?;
        expect(world.ghost().committed() > commits, "what was asked for is committed")
    });
}

/// The clock of a member goes at its own rate.
#[test]
fn clock_rates() {
    scenario("clock_rates", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        for (faster, slower, least, most) in [(2, 1, 72, 84), (1, 2, 18, 22), (1, 1, 36, 42)] {
            world.set_clock(leader, faster, slower);
            world.run_for(SECOND_US)?;
            let before = world.tally().requests;
            world.run_for(SECOND_US)?;
            let requests = world.tally().requests - before;
            let heartbeats = format!("{requests} heartbeats at {faster}/{slower}");
            expect((least..=most).contains(&requests), heartbeats)?;
        }
        expect(world.leader() == Some(leader), "nobody minds")
    });
}

/// A member whose disk is full ends, again and again, until there is room.
#[test]
fn full_disk_ends_the_member_until_there_is_room() {
    scenario("full_disk_ends_the_member_until_there_is_room", 3, &Mix::calm(), |world| {
        world.one(3)?;
        let leader = world.expect_leader()?;
        let full = NodeId(leader.0 % 3 + 1);
        world.fill_disk(full, Fullness::Full);
        world.one(2)?;
        let ends = world.run_until(10 * SECOND_US, |world| world.tally().disk_errors >= 3)?;
        expect(ends, "it can't write, ends, and starts again")?;
        world.fill_disk(full, Fullness::Roomy);
        world.one(3)?;
        Ok(())
    });
}

/// A crash in the middle of a write leaves a part of it, and what is left is never more than was
/// written.
#[test]
fn crash_tears_the_next_write() {
    let mix = Mix { torn_per_mille: 1_000, sync_us_max: 50_000, ..Mix::calm() };
    scenario("crash_tears_the_next_write", 3, &mix, |world| {
        for _ in 0..20 {
            let leader = world.expect_leader()?;
            for _ in 0..10 {
                world.propose(leader, 8);
            }
            world.run_for(SECOND_US / 200)?;
            world.kill(leader)?;
            world.restart(leader)?;
        }
        expect(world.tally().torn >= 5, format!("{} writes are torn", world.tally().torn))?;
        world.one(3)?;
        Ok(())
    });
}
