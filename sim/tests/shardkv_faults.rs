//! Shards that move in the middle of everything: members crash, stand still and are cut off, members
//! and whole groups come and go, messages are lost and come again late, maps are old, sources forget
//! what copies need; clerks use leases, locks and transactions, too. What the labs do not ask for.

mod depth;
mod fleet;

use depth::expect;
use fleet::{Fleet, ONE, SECOND_US, THREE, TWO, arrived, joining, leaving};
use flotilla_sim::{
    Mix, Violation, Workload, World,
    fault::{Fault, Rate},
};
use shardctl::{command::Request, ids::ShardId, outcome::Refusal};

/// Faults of all kinds, each every so often.
fn faults(every_us: u64) -> Vec<Rate> {
    let rate = |(fault, lasts_us_max)| Rate { fault, every_us, lasts_us_max };
    let kinds = [
        (Fault::Crash, 1_400_000),
        (Fault::CrashMany, 700_000),
        (Fault::Pause, 1_400_000),
        (Fault::Partition, 1_400_000),
        (Fault::Clog, 700_000),
        (Fault::Transfer, 1),
        (Fault::StopGroup, 700_000),
        (Fault::Reshape, 1),
    ];
    kinds.into_iter().map(rate).collect()
}

/// Requests, transactions, leases and locks, on keys of all shards.
fn joint() -> Workload {
    Workload { joint: 50, ..Workload::mixed(10) }
}

/// Whatever an administrator may want.
fn wish(world: &mut World) -> Request {
    let (group, shard) = (ONE + world.draw(3), ShardId(world.draw(fleet::SHARDS)));
    match world.draw(5) {
        0 | 1 => joining(&[group]),
        2 => leaving(&[group]),
        3 => Request::Move { shard, group: fleet::id(group) },
        _ => Request::Unpin(shard),
    }
}

/// Administrators want one thing after the other, whether what they wanted before is done or not.
fn wishes(world: &mut World, count: u32, pause_us: u32) -> Result<(), Violation> {
    for _ in 0..count {
        let wish = wish(world);
        let answer = world.configure(wish)?;
        let fine = matches!(answer, Ok(_) | Err(Refusal::NotJoined(_) | Refusal::RefusedBefore));
        expect(fine, format!("{answer:?}"))?;
        let pause_us = world.draw(pause_us);
        world.run_for(pause_us.into())?;
    }
    Ok(())
}

/// All shards were made, at least.
fn enough(world: &World) -> Result<(), Violation> {
    let moves = world.tally().moves;
    expect(moves >= fleet::SHARDS.into(), format!("only {moves} moves"))
}

/// Nobody fails; only wishes change faster than they come true.
#[test]
fn wishes_change_before_they_come_true() {
    let fleet = Fleet::of(3).with_clerks(4, joint()).forgetful();
    fleet.run("wishes_change_before_they_come_true", |world, _| {
        fleet::join(world, &[TWO, THREE])?;
        wishes(world, 40, 300_000)?;
        arrived(world)?;
        enough(world)
    });
}

#[test]
fn shards_move_while_everything_fails() {
    let fleet = Fleet::of(3).with_clerks(4, joint()).with_snapshots(1_000).unreliable();
    let fleet = fleet.forgetful().with_mix(|mix| Mix { rates: faults(3_000_000), ..mix });
    fleet.run("shards_move_while_everything_fails", |world, _| {
        fleet::join(world, &[TWO, THREE])?;
        wishes(world, 20, 800_000)?;
        enough(world)
    });
}

/// The same on the real store, with clerks that only read and append, which is judged as a history of
/// each key.
#[test]
fn appends_survive_moves_and_faults() {
    let workload = Workload { gets: 40, appends: 60, ..Workload::mixed(10) };
    let fleet = Fleet::of(3).with_clerks(5, workload).with_snapshots(300).unreliable();
    let fleet = fleet.with_mix(|mix| Mix { rates: faults(4_000_000), store: true, ..mix });
    fleet.run("appends_survive_moves_and_faults", |world, _| {
        fleet::join(world, &[TWO, THREE])?;
        wishes(world, 20, 800_000)?;
        enough(world)?;
        world.run_for(SECOND_US)
    });
}
