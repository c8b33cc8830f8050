//! The labs' layer between a service and Raft: a counter that is submitted to a member and answered
//! when that has applied it. Here the counter is a key, to which each submission appends.

mod depth;

use bytes::Bytes;
use depth::{clerks_scenario, expect};
use flotilla_sim::{
    KvMix, Mix, Violation, Wish, World,
    client::Reply,
    machine::CommandId,
    operation::{Kind, Operation, OperationName, Verdict},
};
use kvd::outcome::{Answer, Answered, Outcome, Query};
use raft::{Config, Index, NodeId, StateMachine};

const SECOND_US: u64 = 1_000_000;
/// The labs' `maxraftstate`.
const LOG_BYTES: u64 = 1_000;
const COUNTER: &str = "counter";
/// A clerk beside the hundred.
const CLERK: u64 = 1_000;
const ALL: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

fn mix() -> Mix {
    Mix { kv: Some(KvMix::calm()), ..Mix::calm() }
}

/// Asks a member to count, once.
fn submit(world: &mut World, to: NodeId, what: &'static [u8]) -> CommandId {
    let kind = Kind::Append { value: Bytes::from_static(what), value_bytes_max: 1 << 20 };
    world.submit(to, None, &Operation { key: COUNTER.into(), kind })
}

/// Where a submission was applied, and what the counter was before.
fn counted(world: &World, name: CommandId) -> Option<(Index, u64)> {
    match world.reply_to(name) {
        Some(Reply::Applied(index, response)) => match response.result {
            Ok(Answered { outcome: Outcome::Appended { old, .. }, .. }) => {
                Some((index, old.len() as u64))
            }
            Ok(_) | Err(_) => None,
        },
        Some(_) | None => None,
    }
}

/// Counts, wherever the leader is, until it has said so.
fn count(world: &mut World) -> Result<(Index, u64), Violation> {
    for _ in 0..20 {
        let leader = world.expect_leader()?;
        let name = submit(world, leader, b"+");
        world.run_until(2 * SECOND_US, |world| world.reply_to(name).is_some())?;
        if let Some(counted) = counted(world, name) {
            return Ok(counted);
        }
        world.run_for(SECOND_US / 100)?;
    }
    Err(Violation { invariant: "scenario", what: "nobody counts".to_owned() })
}

/// What a member's counter holds.
fn counter(world: &World, id: NodeId) -> Bytes {
    let store = world.store_of(id);
    match store.map(|store| store.query(Query::Get(COUNTER.into()))) {
        Some(Answer::Pair(_, Some(pair))) => pair.value,
        Some(_) | None => Bytes::new(),
    }
}

/// So many members have counted so far.
fn agree(world: &mut World, members: usize, at: (Index, u64)) -> Result<(), Violation> {
    let (index, before) = at;
    let applied = world.run_until(2 * SECOND_US, |world| world.applied(index) >= members)?;
    expect(applied, format!("not {members} members have applied {index}"))?;
    let equal = ALL.iter().filter(|id| counter(world, **id).len() as u64 > before).count();
    expect(equal >= members, format!("{equal} members have counted beyond {before}"))
}

#[test]
fn basic() {
    clerks_scenario("basic", 3, &mix(), |world| {
        for expected in 0..10 {
            let at = count(world)?;
            expect(at.1 == expected, format!("{} where {expected} was due", at.1))?;
            agree(world, 3, at)?;
        }
        Ok(())
    });
}

#[test]
fn concurrent() {
    clerks_scenario("concurrent", 3, &mix(), |world| {
        let leader = world.expect_leader()?;
        let names: Vec<CommandId> = (0..50).map(|_| submit(world, leader, b"+")).collect();
        let all = |world: &World| names.iter().all(|name| counted(world, *name).is_some());
        expect(world.run_until(2 * SECOND_US, all)?, "not all are counted")?;
        let last = names.iter().filter_map(|name| counted(world, *name)).max();
        let Some(last) = last else { return expect(false, "nothing was counted") };
        agree(world, 3, last)?;
        expect(counter(world, leader).len() == 50, "other than 50")
    });
}

#[test]
fn leader_failure() {
    clerks_scenario("leader_failure", 3, &mix(), |world| {
        count(world)?;
        let leader = world.expect_leader()?;
        world.disconnect(leader);
        let at = count(world)?;
        agree(world, 2, at)?;
        world.connect(leader);
        let at = count(world)?;
        agree(world, 3, at)
    });
}

/// What a leader was asked that can reach nobody is never done, and it says so when it can.
#[test]
fn leader_partition() {
    clerks_scenario("leader_partition", 3, &mix(), |world| {
        count(world)?;
        let leader = world.expect_leader()?;
        world.part_off(&[leader]);
        let names: Vec<CommandId> = (0..100).map(|_| submit(world, leader, b"-")).collect();
        let others: Vec<NodeId> = ALL.into_iter().filter(|id| *id != leader).collect();
        let elsewhere =
            |world: &World| world.leader().is_some_and(|leader| others.contains(&leader));
        let begun_us = world.now_us();
        // Before the tickets of the old leader come to their end.
        let led = world.run_until(SECOND_US, elsewhere)?;
        if led {
            count(world)?;
        }
        let done = names.iter().filter(|name| counted(world, **name).is_some()).count();
        expect(done == 0, format!("a minority has counted {done} times"))?;
        let early_us = (begun_us + SECOND_US).saturating_sub(world.now_us());
        world.run_for(early_us)?;
        world.heal();
        let all = |world: &World| names.iter().all(|name| world.reply_to(*name).is_some());
        expect(world.run_until(SECOND_US, all)?, "some are not answered")?;
        let at = count(world)?;
        agree(world, 3, at)?;
        for id in ALL {
            expect(!counter(world, id).contains(&b'-'), "what a minority was asked is done")?;
        }
        Ok(())
    });
}

fn restart_all(world: &mut World) -> Result<(), Violation> {
    for id in ALL {
        world.kill(id)?;
    }
    world.run_for(SECOND_US)?;
    ALL.into_iter().try_for_each(|id| world.restart(id))
}

/// Counts a hundred times.
fn count_to_a_hundred(world: &mut World) -> Result<(), Violation> {
    for expected in 0..100 {
        let (_, before) = count(world)?;
        expect(before == expected, format!("{before} where {expected} was due"))?;
    }
    Ok(())
}

#[test]
fn restart_replay() {
    clerks_scenario("restart_replay", 3, &mix(), |world| {
        count_to_a_hundred(world)?;
        restart_all(world)?;
        let at = count(world)?;
        expect(at.1 == 100, format!("{} where 100 was due", at.1))?;
        agree(world, 3, at)
    });
}

/// A clerk counts, and has to know of it.
fn clerk_counts(world: &mut World) -> Result<(), Violation> {
    let verdict = world.execute(CLERK, COUNTER, Wish::Append)?;
    expect(matches!(verdict, Verdict::Done(_)), format!("{verdict:?}"))
}

/// Clerks want to count, all at once.
fn clerks_at_once(world: &mut World, clerks: u64) -> Vec<OperationName> {
    (1..=clerks).map(|client| world.wish(client, COUNTER, Wish::Append)).collect()
}

/// All of them know what became of it, within the labs' time.
fn all_know(world: &mut World, names: &[OperationName]) -> Result<(), Violation> {
    let all = |world: &World| names.iter().all(|name| world.verdict(*name).is_some());
    expect(world.run_until(11 * SECOND_US, all)?, "some wait in vain")
}

/// Whoever submits something to members that go down gets to know that it has no answer. They are
/// fewer than the labs' hundred: which of a hundred appends without an answer happened in which order
/// is more than the search of a history decides within its steps.
#[test]
fn shutdown() {
    clerks_scenario("shutdown", 3, &mix(), |world| {
        clerk_counts(world)?;
        let names = clerks_at_once(world, 40);
        world.run_for(world.now_us() % 20_000)?;
        for id in ALL {
            world.kill(id)?;
        }
        all_know(world, &names)?;
        ALL.into_iter().try_for_each(|id| world.restart(id))
    });
}

/// Submissions race with the end of all members, who come back: each is counted once or not at all,
/// as its clerk was told.
#[test]
fn restart_submit() {
    clerks_scenario("restart_submit", 3, &mix(), |world| {
        for _ in 0..100 {
            clerk_counts(world)?;
        }
        restart_all(world)?;
        clerk_counts(world)?;
        let names = clerks_at_once(world, 100);
        world.run_for(world.now_us() % 20_000)?;
        restart_all(world)?;
        all_know(world, &names)?;
        let last = world.one(3)?;
        let counters = ALL.map(|id| counter(world, id));
        let equal = counters.iter().all(|it| *it == counters[0]);
        expect(equal, format!("the counters differ at {last}"))?;
        let there: Vec<OperationName> = OperationName::of_value(&counters[0]).flatten().collect();
        let earlier = there.iter().filter(|name| name.client == CLERK).count();
        expect(earlier == 101, format!("{earlier} where 101 were due"))?;
        for name in names {
            let times = there.iter().filter(|there| **there == name).count();
            let right = match world.verdict(name) {
                Some(Verdict::Done(_)) => times == 1,
                Some(Verdict::Never) => times == 0,
                Some(Verdict::Unknown) | None => times <= 1,
            };
            expect(right, format!("{name} is there {times} times: {:?}", world.verdict(name)))?;
        }
        Ok(())
    });
}

#[test]
fn snapshot() {
    let mix = mix();
    let config = Config {
        snapshot_log_bytes_min: LOG_BYTES,
        retained_bytes: 0,
        retained_bytes_max: 0,
        ..mix.config
    };
    clerks_scenario("snapshot", 3, &Mix { config, ..mix }, |world| {
        count_to_a_hundred(world)?;
        world.run_for(SECOND_US)?;
        for member in world.members() {
            let log = member.log_bytes();
            expect(log <= 2 * LOG_BYTES, format!("the log of n{} has {log} bytes", member.id))?;
            expect(member.snapshot_bytes().is_some(), "there is no snapshot")?;
        }
        restart_all(world)?;
        let at = count(world)?;
        expect(at.1 == 100, format!("{} where 100 was due", at.1))?;
        agree(world, 3, at)
    });
}
