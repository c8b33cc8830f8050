//! The simulator itself: what it is worth rests on this.

mod depth;

use std::{cell::RefCell, rc::Rc};

use depth::{expect, scenario};
use flotilla_sim::{Mix, Options, Tally, run};
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
