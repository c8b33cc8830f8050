//! What makes requests exactly-once: replies that are kept, forgotten in time, and part of
//! snapshots.

mod depth;

use bytes::Bytes;
use depth::{clerks_scenario, expect};
use flotilla_sim::{
    KvMix, Mix, Violation, World,
    application::KvSettings,
    client::Reply,
    operation::{Kind, Operation},
};
use kvd::{
    command::{ClientId, RequestId},
    outcome::{Answer, Outcome, Query, Refusal, Response, ShardTime},
};
use raft::{Config, NodeId, StateMachine};

const SECOND_US: u64 = 1_000_000;
const KEY: &str = "key";
const ALL: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// One shard, so that every entry moves its time.
fn mix() -> Mix {
    let settings = KvSettings { shards: 1, ..KvSettings::default() };
    Mix { kv: Some(KvMix { settings, ..KvMix::calm() }), ..Mix::calm() }
}

fn append() -> Operation {
    let kind = Kind::Append { value: Bytes::from_static(b"x"), value_bytes_max: 1 << 20 };
    Operation { key: KEY.into(), kind }
}

/// The shard's time, as a member knows it.
fn time(world: &World, id: NodeId) -> Result<ShardTime, Violation> {
    match world.store_of(id).map(|store| store.query(Query::Time(KEY.into()))) {
        Some(Answer::Time(header)) => Ok(header.time),
        answer => Err(Violation { invariant: "scenario", what: format!("the time is {answer:?}") }),
    }
}

/// The identity of a client's request that lives for so long.
fn identity(world: &mut World, sequence: u64, life_ms: u64) -> Result<RequestId, Violation> {
    let leader = world.expect_leader()?;
    let expires = ShardTime(time(world, leader)?.0 + life_ms);
    let client = ClientId([7; 16]);
    Ok(RequestId { client, sequence, acknowledged: sequence - 1, expires })
}

/// Asks whoever leads until it answers.
fn ask(world: &mut World, id: RequestId, operation: &Operation) -> Result<Response, Violation> {
    for _ in 0..20 {
        let leader = world.expect_leader()?;
        let name = world.submit(leader, Some(id), operation);
        world.run_until(2 * SECOND_US, |world| world.reply_to(name).is_some())?;
        if let Some(Reply::Applied(_, response)) = world.reply_to(name) {
            return Ok(response);
        }
        world.run_for(SECOND_US / 100)?;
    }
    Err(Violation { invariant: "scenario", what: "nobody answers".to_owned() })
}

/// What a request did, and whether that was told before.
fn done(response: Response) -> Result<(Outcome, bool), Violation> {
    match response.result {
        Ok(answered) => Ok((answered.outcome, answered.duplicate)),
        Err(refusal) => {
            Err(Violation { invariant: "scenario", what: format!("refused: {refusal}") })
        }
    }
}

fn restart_all(world: &mut World) -> Result<(), Violation> {
    ALL.into_iter().try_for_each(|id| world.kill(id))?;
    ALL.into_iter().try_for_each(|id| world.restart(id))
}

/// However often it is asked, of whatever leader, whatever was restarted.
#[test]
fn duplicate_same_reply() {
    clerks_scenario("duplicate_same_reply", 3, &mix(), |world| {
        let operations = [
            append(),
            append(),
            Operation { key: KEY.into(), kind: Kind::Delete },
            Operation { key: KEY.into(), kind: Kind::Delete },
        ];
        for (sequence, operation) in (1..).zip(&operations) {
            let id = identity(world, sequence, 60_000)?;
            let first = done(ask(world, id, operation)?)?;
            expect(!first.1, format!("{first:?} before it was asked for"))?;
            let again = done(ask(world, id, operation)?)?;
            expect(again == (first.0.clone(), true), format!("{again:?}, not {first:?}"))?;
            let leader = world.expect_leader()?;
            world.kill(leader)?;
            let again = done(ask(world, id, operation)?)?;
            expect(again == (first.0.clone(), true), format!("{again:?}, not {first:?}"))?;
            world.restart(leader)?;
            restart_all(world)?;
            let again = done(ask(world, id, operation)?)?;
            expect(again == (first.0.clone(), true), format!("{again:?}, not {first:?}"))?;
        }
        // The last one acknowledged those before.
        let id = identity(world, 1, 60_000)?;
        let refused = ask(world, id, &operations[0])?.result;
        expect(refused == Err(Refusal::Acknowledged), format!("{refused:?}"))
    });
}

/// All members forget a client at the same entry, and none executes what has expired.
#[test]
fn expiry_is_replicated() {
    clerks_scenario("expiry_is_replicated", 3, &mix(), |world| {
        let id = identity(world, 1, 2_000)?;
        let first = done(ask(world, id, &append())?)?;
        expect(!first.1, "it was there before")?;
        // Entries carry the time on.
        for _ in 0..40 {
            world.one(3)?;
            world.run_for(SECOND_US / 10)?;
        }
        for member in ALL {
            let now = time(world, member)?;
            expect(now > id.expires, format!("it is {now:?} only"))?;
            let rows = world.store_of(member).map(|store| store.session_rows());
            expect(rows == Some(0), format!("n{member} has {rows:?} rows"))?;
        }
        for _ in 0..2 {
            let refused = ask(world, id, &append())?.result;
            let expired = matches!(refused, Err(Refusal::Expired { .. }));
            expect(expired, format!("{refused:?}"))?;
            restart_all(world)?;
        }
        let next = identity(world, 2, 60_000)?;
        let second = done(ask(world, next, &append())?)?;
        let once = matches!(&second.0, Outcome::Appended { old, .. } if &old[..] == b"x");
        expect(once, format!("{second:?}"))
    });
}

/// A leader that can't reach anybody, or that dies, leaves it open what became of a request. Whoever
/// asks again under the same identity learns it, and it is done once.
#[test]
fn resume_after_unknown() {
    clerks_scenario("resume_after_unknown", 3, &mix(), |world| {
        for sequence in 1..=6 {
            let id = identity(world, sequence, 60_000)?;
            let leader = world.expect_leader()?;
            match sequence % 3 {
                // Nobody else hears of it.
                0 => {
                    world.disconnect(leader);
                    let name = world.submit(leader, Some(id), &append());
                    world.run_until(3 * SECOND_US, |world| world.reply_to(name).is_some())?;
                    let reply = world.reply_to(name);
                    let open = matches!(reply, Some(Reply::Unknown | Reply::Refused { .. }));
                    expect(open, format!("{reply:?}"))?;
                    world.connect(leader);
                }
                // Some may hear of it.
                1 => {
                    world.submit(leader, Some(id), &append());
                    world.run_for(world.now_us() % 20_000)?;
                    world.kill(leader)?;
                    world.run_for(SECOND_US)?;
                    world.restart(leader)?;
                }
                // All have done it, but nobody is told.
                _ => {
                    world.submit(leader, Some(id), &append());
                    world.run_for(SECOND_US / 10)?;
                    restart_all(world)?;
                }
            }
            let (outcome, duplicate) = done(ask(world, id, &append())?)?;
            let once = matches!(&outcome, Outcome::Appended { old, .. } if old.len() as u64 == sequence - 1);
            expect(once, format!("{outcome:?} for the {sequence}th"))?;
            expect(duplicate || sequence % 3 != 2, "what all have done is done again")?;
        }
        Ok(())
    });
}

/// Members that know of a request only by a snapshot answer as those that have executed it.
#[test]
fn table_in_snapshot() {
    let mix = mix();
    let config = Config {
        snapshot_log_bytes_min: 500,
        retained_bytes: 0,
        retained_bytes_max: 0,
        ..mix.config
    };
    clerks_scenario("table_in_snapshot", 3, &Mix { config, ..mix }, |world| {
        let leader = world.expect_leader()?;
        // One comes to know it from another's snapshot, the others from their own.
        let away = NodeId(leader.0 % 3 + 1);
        world.disconnect(away);
        let id = identity(world, 1, 120_000)?;
        let first = done(ask(world, id, &append())?)?;
        let asked_at = world.ghost().committed();
        for _ in 0..30 {
            world.one(2)?;
        }
        world.connect(away);
        world.one(3)?;
        world.run_for(SECOND_US)?;
        expect(world.tally().installs > 0, "nobody needed a snapshot")?;
        for member in ALL {
            let covered = world.member(member).standing().snapshot;
            expect(covered > asked_at, format!("n{member} has a snapshot up to {covered}"))?;
        }
        for leader in ALL {
            restart_all(world)?;
            // Only this one and another are there to answer.
            let led = world.expect_leader()?;
            if led != leader {
                world.kill(led)?;
            }
            let again = done(ask(world, id, &append())?)?;
            expect(again == (first.0.clone(), true), format!("{again:?}, not {first:?}"))?;
            world.restart(led)?;
        }
        Ok(())
    });
}
