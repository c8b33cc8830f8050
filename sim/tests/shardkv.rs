//! The sharded key/value store as the labs test it: groups of three that join and leave, real shard
//! controllers, clerks that keep to old maps. What clerks see is judged as one history, whoever had
//! the shard, and all invariants are looked at after every event.

mod depth;
mod fleet;

use depth::expect;
use fleet::{
    CLERK, Fleet, Held, ONE, SECOND_US, THREE, TWO, arrived, change, check_own, join, keys, kill,
    leader, leave, of_members, owned_by, pin, placed_at, readable, restart, revive, start, stop,
    stored_bytes,
};
use flotilla_sim::{Keys, Violation, Wish, Workload, World, operation::Verdict};

/// The labs' `maxraftstate`.
const LOG_BYTES: u64 = 1_000;
/// How many times that a log may have.
const LOG_TIMES_MAX: u64 = 8;
/// How many groups come and go where there are many.
const MANY: usize = 8;
/// How many do while clerks are at work.
const SOME: usize = 4;

/// Nothing but appends, each clerk to a key of its own.
fn appends() -> Workload {
    Workload { gets: 0, ..Workload::labs() }
}

/// The same with as many reads.
fn slow(workload: Workload) -> Workload {
    Workload { gets: 50, ..workload }
}

/// Reads, appends and writes of keys that all clerks use.
fn everything() -> Workload {
    Workload { keys: Keys::Shared(10), gets: 45, appends: 50, puts: 5, ..Workload::labs() }
}

#[test]
fn static_shards() {
    Fleet::of(2).run("static_shards", |world, held| {
        join(world, &[TWO])?;
        arrived(world)?;
        let keys = keys(1);
        held.put(world, &keys)?;
        held.check(world)?;
        stop(world, ONE)?;
        let readable = readable(world, CLERK + 1, &keys)?;
        expect(readable == 5, format!("{readable} keys can be read"))?;
        start(world, ONE)?;
        held.check(world)?;
        for group in [ONE, TWO] {
            let snapshots = fleet::of_members(world, group, |member| member.snapshot_bytes());
            expect(snapshots.iter().all(Option::is_none), "nobody needs a snapshot")?;
        }
        Ok(())
    });
}

/// Clerks that take one group for the owner of everything are refused what it does not have.
#[test]
fn rejection() {
    Fleet::of(2).run("rejection", |world, held| {
        join(world, &[TWO])?;
        arrived(world)?;
        let keys = keys(1);
        held.put(world, &keys)?;
        world.mislead(CLERK + 1, flotilla_sim::GroupId(ONE.into()));
        let before = world.tally().misrouted;
        let readable = readable(world, CLERK + 1, &keys)?;
        expect(readable == 5, format!("{readable} keys can be read"))?;
        expect(world.tally().misrouted >= before + 5, "the others are refused")?;
        held.check(world)
    });
}

#[test]
fn join_leave() {
    Fleet::of(2).run("join_leave", |world, held| {
        let keys = keys(1);
        held.put(world, &keys)?;
        join(world, &[TWO])?;
        held.append(world, &keys)?;
        held.check(world)?;
        leave(world, &[ONE])?;
        held.append(world, &keys)?;
        arrived(world)?;
        stop(world, ONE)?;
        held.check(world)
    });
}

/// Thirty keys, a snapshot every now and then, and all groups are restarted in the end.
#[test]
fn snapshot() {
    Fleet::of(3).with_snapshots(1_000).run("snapshot", |world, held| {
        let keys = keys(3);
        held.put(world, &keys)?;
        for (group, is_join) in
            [(TWO, true), (THREE, true), (ONE, false), (TWO, false), (ONE, true)]
        {
            change(world, group, is_join)?;
            held.append(world, &keys)?;
            world.run_for(SECOND_US / 5)?;
        }
        arrived(world)?;
        held.check(world)?;
        restart(world, &[ONE, TWO, THREE])?;
        held.check(world)?;
        for group in [ONE, TWO, THREE] {
            let sizes = of_members(world, group, |it| (it.log_bytes(), it.snapshot_bytes()));
            let bounded = |&(log, snapshot): &(u64, Option<u64>)| {
                log <= LOG_TIMES_MAX * LOG_BYTES.max(snapshot.unwrap_or(0))
            };
            expect(sizes.iter().all(bounded), format!("group {group}: {sizes:?}"))?;
        }
        Ok(())
    });
}

/// One member of each group misses several configurations, and then another one does.
#[test]
fn miss_change() {
    Fleet::of(3).with_snapshots(1_000).run("miss_change", |world, held| {
        let (keys, all) = (keys(1), [ONE, TWO, THREE]);
        held.put(world, &keys)?;
        join(world, &[TWO])?;
        for (away, changes) in
            [(1, [(THREE, true), (ONE, false)]), (2, [(ONE, true), (TWO, false)])]
        {
            all.iter().try_for_each(|&group| kill(world, group, away))?;
            for (group, is_join) in changes {
                change(world, group, is_join)?;
                held.append(world, &keys)?;
            }
            arrived(world)?;
            held.check(world)?;
            all.iter().try_for_each(|&group| revive(world, group, away))?;
        }
        held.append(world, &keys)?;
        held.check(world)
    });
}

#[test]
fn concurrent_1() {
    let fleet = Fleet::of(3).with_clerks(10, appends()).with_snapshots(1_000);
    fleet.run("concurrent_1", |world, _| {
        let all = [ONE, TWO, THREE];
        join(world, &[TWO])?;
        world.run_for(SECOND_US)?;
        join(world, &[THREE])?;
        leave(world, &[ONE])?;
        restart(world, &all)?;
        join(world, &[ONE])?;
        leave(world, &[TWO])?;
        world.run_for(SECOND_US)?;
        restart(world, &all)?;
        arrived(world)?;
        check_own(world, 10)
    });
}

/// Groups that shards come from and go to are restarted in the middle.
#[test]
fn concurrent_2() {
    Fleet::of(3).with_clerks(5, slow(appends())).run("concurrent_2", |world, _| {
        join(world, &[THREE, TWO])?;
        world.run_for(SECOND_US / 20)?;
        leave(world, &[ONE])?;
        world.run_for(SECOND_US / 10)?;
        restart(world, &[TWO])?;
        join(world, &[ONE])?;
        leave(world, &[TWO])?;
        world.run_for(SECOND_US / 10)?;
        restart(world, &[THREE, TWO])?;
        join(world, &[TWO])?;
        leave(world, &[ONE, THREE])?;
        world.run_for(SECOND_US)?;
        arrived(world)?;
        check_own(world, 5)
    });
}

#[test]
fn concurrent_3() {
    let fleet = Fleet::of(3).with_clerks(5, appends()).with_snapshots(300);
    fleet.run("concurrent_3", |world, _| {
        for _ in 0..3 {
            join(world, &[TWO, THREE])?;
            let gap_us = u64::from(world.draw(900_000));
            world.run_for(gap_us)?;
            restart(world, &[ONE, TWO, THREE])?;
            leave(world, &[TWO, THREE])?;
            let gap_us = u64::from(world.draw(900_000));
            world.run_for(gap_us)?;
        }
        arrived(world)?;
        check_own(world, 5)
    });
}

/// One after the other: every append is answered before the next change.
#[test]
fn unreliable_1() {
    Fleet::of(3).with_snapshots(300).unreliable().forgetful().run("unreliable_1", |world, held| {
        let keys = keys(1);
        held.put(world, &keys)?;
        for (group, is_join) in
            [(TWO, true), (THREE, true), (ONE, false), (ONE, true), (TWO, false)]
        {
            change(world, group, is_join)?;
            held.append(world, &keys)?;
            held.check(world)?;
        }
        Ok(())
    });
}

#[test]
fn unreliable_2() {
    let fleet = Fleet::of(3).with_clerks(5, appends()).with_snapshots(300).unreliable();
    fleet.run("unreliable_2", |world, _| {
        for (group, is_join) in
            [(TWO, true), (THREE, true), (ONE, false), (ONE, true), (TWO, false)]
        {
            change(world, group, is_join)?;
            world.run_for(SECOND_US / 2)?;
        }
        arrived(world)?;
        check_own(world, 5)
    });
}

#[test]
fn unreliable_3() {
    let fleet = Fleet::of(3).with_clerks(10, everything()).with_snapshots(1_000).unreliable();
    fleet.run("unreliable_3", |world, _| {
        join(world, &[TWO])?;
        world.run_for(SECOND_US / 2)?;
        leave(world, &[ONE])?;
        join(world, &[THREE])?;
        world.run_for(SECOND_US)?;
        join(world, &[ONE])?;
        leave(world, &[TWO, THREE])?;
        world.run_for(SECOND_US)?;
        arrived(world)?;
        let operations = world.tally().operations;
        expect(operations > 100, format!("only {operations} operations were over"))
    });
}

/// What is deleted at the source is gone: everything is stored by one group only.
#[test]
fn challenge_1_delete() {
    Fleet::of(3).with_snapshots(1).run("challenge_1_delete", |world, held| {
        let keys = keys(3);
        held.fill(world, &keys, 1_000)?;
        for _ in 0..2 {
            join(world, &[TWO])?;
            arrived(world)?;
            join(world, &[THREE])?;
            leave(world, &[ONE])?;
            arrived(world)?;
            held.append(world, &keys[..3])?;
            join(world, &[ONE])?;
            leave(world, &[TWO, THREE])?;
            arrived(world)?;
        }
        join(world, &[TWO, THREE])?;
        arrived(world)?;
        // What is kept of the past goes with the next changes.
        (0..3).try_for_each(|_| held.append(world, &keys))?;
        let (mut bytes, mut on_disks) = (0, 0);
        for group in [ONE, TWO, THREE] {
            let disks =
                of_members(world, group, |it| it.log_bytes() + it.snapshot_bytes().unwrap_or(0));
            on_disks += disks.iter().sum::<u64>();
            let stored = of_members(world, group, stored_bytes);
            bytes += stored.iter().sum::<u64>();
        }
        // Three copies of each pair and of the latest change of each shard, with what they count on top.
        let due = 3 * (30 * (1_000 + 250) + 10 * (1_000 + 300));
        expect(bytes <= due, format!("{bytes} bytes are stored, and {due} are due"))?;
        // A log may have as much as the snapshot before it, and that what has gone since.
        expect(on_disks <= 3 * due, format!("{on_disks} bytes are on disks"))?;
        held.check(world)
    });
}

/// A group that is dead holds up nobody's shards but its own, also where it shall leave.
#[test]
fn challenge_2_unaffected() {
    let fleet = Fleet::of(2).with_snapshots(300).unreliable();
    fleet.run("challenge_2_unaffected", |world, held| {
        join(world, &[TWO])?;
        arrived(world)?;
        let keys = keys(1);
        held.put(world, &keys)?;
        let (owned, _) = owned_by(world, TWO, &keys)?;
        stop(world, ONE)?;
        leave(world, &[ONE])?;
        world.run_for(SECOND_US)?;
        for _ in 0..2 {
            held.append(world, &owned)?;
        }
        start(world, ONE)?;
        arrived(world)?;
        held.check(world)
    });
}

/// What comes from a living group is served, although what a dead one has never comes.
#[test]
fn challenge_2_partial() {
    let fleet = Fleet::of(3).with_snapshots(300).unreliable();
    fleet.run("challenge_2_partial", |world, held| {
        join(world, &[TWO, THREE])?;
        arrived(world)?;
        let keys = keys(1);
        held.put(world, &keys)?;
        let (dead, living) = owned_by(world, ONE, &keys)?;
        stop(world, ONE)?;
        leave(world, &[ONE, THREE])?;
        held.append(world, &living)?;
        let come = |world: &World| placed_at(world, TWO, &keys).0 == living;
        world.run_until(10 * SECOND_US, come)?;
        let (mine, _) = placed_at(world, TWO, &keys);
        expect(mine == living, format!("{mine:?} have come of {living:?}"))?;
        let readable = readable(world, CLERK + 1, &dead)?;
        expect(readable == 0, format!("{readable} keys of a dead group can be read"))?;
        start(world, ONE)?;
        arrived(world)?;
        held.check(world)
    });
}

/// The first configuration that anybody asked for is there, and says what it should.
#[test]
fn init_query() {
    Fleet::of(2).run("init_query", |world, _| {
        let Some(target) = world.configuration(Some(1))? else {
            return expect(false, "there is no first configuration");
        };
        let all = target.owners.iter().all(|owner| *owner == Some(fleet::id(ONE)));
        expect(all && target.owners.len() == fleet::SHARDS as usize, format!("{target:?}"))
    });
}

#[test]
fn static_one_group() {
    Fleet::of(1).run("static_one_group", |world, held| {
        held.put(world, &keys(1))?;
        let leader = leader(world, ONE)?;
        kill(world, ONE, leader.0)?;
        held.check(world)?;
        held.append(world, &keys(1))?;
        held.check(world)
    });
}

/// With one of two groups down some keys can be read, and some can't.
#[test]
fn join_basic() {
    Fleet::of(2).run("join_basic", |world, held| {
        let keys = keys(2);
        held.put(world, &keys)?;
        let number = join(world, &[TWO])?;
        expect(number == 2, format!("the configuration behind the first has number {number}"))?;
        arrived(world)?;
        held.check(world)?;
        for (group, client) in [(ONE, CLERK + 1), (TWO, CLERK + 2)] {
            stop(world, group)?;
            let readable = readable(world, client, &keys)?;
            expect(readable == 10, format!("{readable} of 20 keys can be read without {group}"))?;
            start(world, group)?;
        }
        held.append(world, &keys)?;
        held.check(world)
    });
}

/// What moves is not stored twice.
#[test]
fn delete_basic() {
    Fleet::of(2).with_snapshots(10_000).run("delete_basic", |world, held| {
        let keys = keys(6);
        held.fill(world, &keys, 1_000)?;
        let stored = |world: &mut World| -> u64 {
            // Whoever leads has executed everything.
            let most = |group| of_members(world, group, stored_bytes).into_iter().max();
            [ONE, TWO].map(most).into_iter().flatten().sum()
        };
        let before = stored(world);
        join(world, &[TWO])?;
        arrived(world)?;
        held.check(world)?;
        let after = stored(world);
        expect(after <= before + 10_000, format!("{before} bytes have become {after}"))?;
        expect(before > 60_000, format!("there are only {before} bytes"))
    });
}

#[test]
fn join_leave_basic() {
    Fleet::of(2).run("join_leave_basic", |world, held| {
        let keys = keys(2);
        held.put(world, &keys)?;
        join(world, &[TWO])?;
        held.append(world, &keys)?;
        leave(world, &[ONE])?;
        arrived(world)?;
        stop(world, ONE)?;
        held.check(world)?;
        held.append(world, &keys)?;
        start(world, ONE)?;
        join(world, &[ONE])?;
        held.check(world)?;
        arrived(world)?;
        let (mine, others) = placed_at(world, ONE, &keys);
        expect(mine.len() == others.len(), format!("{mine:?} are back, {others:?} are not"))?;
        held.append(world, &keys)?;
        held.check(world)
    });
}

/// Groups come one by one until there are nine, and go again.
fn many_join_leave(world: &mut World, held: &mut Held) -> Result<(), Violation> {
    let keys = keys(1);
    held.put(world, &keys)?;
    let others: Vec<u32> = (TWO..TWO + MANY as u32).collect();
    for &group in &others {
        join(world, &[group])?;
        held.append(world, &keys[..2])?;
    }
    held.check(world)?;
    arrived(world)?;
    for &group in &others {
        let (mine, _) = placed_at(world, group, &keys);
        expect((1..=2).contains(&mine.len()), format!("group {group} has {mine:?}"))?;
    }
    for &group in &others {
        leave(world, &[group])?;
        held.append(world, &keys[..2])?;
    }
    arrived(world)?;
    held.check(world)?;
    let (mine, _) = placed_at(world, ONE, &keys);
    expect(mine == keys, format!("only {mine:?} are back"))
}

#[test]
fn many_join_leave_reliable() {
    Fleet::of(1 + MANY).run("many_join_leave_reliable", many_join_leave);
}

#[test]
fn many_join_leave_unreliable() {
    Fleet::of(1 + MANY).unreliable().run("many_join_leave_unreliable", many_join_leave);
}

#[test]
fn shutdown() {
    Fleet::of(3).with_snapshots(500).run("shutdown", |world, held| {
        let keys = keys(2);
        join(world, &[TWO, THREE])?;
        held.put(world, &keys)?;
        for _ in 0..2 {
            restart(world, &[ONE, TWO, THREE])?;
            held.check(world)?;
            held.append(world, &keys)?;
        }
        held.check(world)
    });
}

/// With two of five groups down what the others have is read at once, also while shards are to move.
#[test]
fn progress_shutdown() {
    Fleet::of(5).run("progress_shutdown", |world, held| {
        let keys = keys(2);
        join(world, &[TWO, THREE, 5, 6])?;
        arrived(world)?;
        held.put(world, &keys)?;
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for group in [ONE, TWO, THREE, 5, 6] {
            let (mine, _) = placed_at(world, group, &keys);
            if group < THREE { &mut down } else { &mut up }.extend(mine);
        }
        stop(world, ONE)?;
        stop(world, TWO)?;
        let count = readable(world, CLERK + 1, &up)?;
        expect(count == up.len(), format!("{count} of {} keys can be read", up.len()))?;
        leave(world, &[6])?;
        let count = readable(world, CLERK + 2, &up)?;
        expect(count == up.len(), format!("{count} of {} keys can be read then", up.len()))?;
        let count = readable(world, CLERK + 3, &down)?;
        expect(count == 0, format!("{count} keys of groups that are down can be read"))?;
        start(world, ONE)?;
        start(world, TWO)?;
        held.check(world)
    });
}

/// While a group comes and goes, what does not move is read all the time.
#[test]
fn progress_join() {
    Fleet::of(3).run("progress_join", |world, held| {
        let keys = keys(1);
        held.put(world, &keys)?;
        join(world, &[TWO])?;
        let staying: Vec<String> = keys[..2].to_vec();
        // What is pinned takes no part in the moves of its group.
        for key in &staying {
            pin(world, fleet::shard_of(key), ONE)?;
        }
        arrived(world)?;
        let until_us = world.now_us() + 4 * SECOND_US;
        let (mut reads, mut joins) = (0_u32, 0_u32);
        let mut asked: Vec<_> =
            staying.iter().map(|key| (key, world.wish(CLERK + 1, key, Wish::Get))).collect();
        let mut is_in = false;
        let mut next_us = world.now_us();
        while world.now_us() < until_us {
            if world.now_us() >= next_us {
                let request = [THREE];
                if is_in {
                    leave(world, &request)?
                } else {
                    join(world, &request)?
                };
                (is_in, joins) = (!is_in, joins + 1);
                next_us = world.now_us() + SECOND_US / 5;
            }
            world.run_for(5_000)?;
            for (key, name) in &mut asked {
                if matches!(world.verdict(*name), Some(Verdict::Done(_))) {
                    (reads, *name) = (reads + 1, world.wish(CLERK + 1, key, Wish::Get));
                }
            }
        }
        expect(reads >= 100, format!("only {reads} reads in 4 s"))?;
        expect(joins >= 8 && world.tally().moves > 15, format!("only {joins} changes"))?;
        arrived(world)?;
        held.check(world)
    });
}

/// Clerks do everything while groups come and go again.
fn while_groups_change(world: &mut World, pause_us: u64) -> Result<(), Violation> {
    for is_join in [true, false] {
        for group in TWO..TWO + SOME as u32 {
            change(world, group, is_join)?;
            world.run_for(pause_us)?;
        }
    }
    arrived(world)?;
    let (operations, moves) = (world.tally().operations, world.tally().moves);
    expect(operations > 20 && moves > 12, format!("only {operations} operations, {moves} moves"))
}

#[test]
fn one_concurrent_clerk_reliable() {
    let fleet = Fleet::of(1 + SOME).with_clerks(1, everything());
    fleet
        .run("one_concurrent_clerk_reliable", |world, _| while_groups_change(world, SECOND_US / 5));
}

#[test]
fn many_concurrent_clerk_reliable() {
    let fleet = Fleet::of(1 + SOME).with_clerks(10, everything());
    fleet.run("many_concurrent_clerk_reliable", |world, _| {
        while_groups_change(world, SECOND_US / 5)
    });
}

#[test]
fn one_concurrent_clerk_unreliable() {
    let fleet = Fleet::of(1 + SOME).with_clerks(1, everything()).unreliable();
    fleet.run("one_concurrent_clerk_unreliable", |world, _| while_groups_change(world, SECOND_US));
}

#[test]
fn many_concurrent_clerk_unreliable() {
    let fleet = Fleet::of(1 + SOME).with_clerks(10, everything()).unreliable();
    fleet.run("many_concurrent_clerk_unreliable", |world, _| while_groups_change(world, SECOND_US));
}
