//! The key/value store of one member, as the labs test it. What memory it takes is measured on
//! processes.

mod depth;

use depth::{clerks_scenario, expect};
use flotilla_sim::{
    Keys, KvMix, Mix, Violation, Wish, Workload, World,
    operation::{Done, OperationName, Verdict},
};
use kvd::{
    command::Condition,
    outcome::{Outcome, Pair, Version},
};

const SECOND_US: u64 = 1_000_000;
/// A clerk that no workload has.
const SCRIPTED: u64 = 100;

fn clerks(mix: Mix, clients: u64, workload: Workload) -> Mix {
    Mix { clients, think_us_max: 0, kv: Some(KvMix { workload, ..KvMix::calm() }), ..mix }
}

fn quiet() -> Mix {
    clerks(Mix::calm(), 0, Workload::labs())
}

/// What a request of a script's clerk did, which it must have done.
fn outcome(world: &mut World, key: &str, wish: Wish) -> Result<Outcome, Violation> {
    match world.execute(SCRIPTED, key, wish)? {
        Verdict::Done(Done::Executed(_, answered)) => Ok(answered.outcome),
        verdict @ (Verdict::Done(Done::Read(..) | Done::Claim(..))
        | Verdict::Never
        | Verdict::Unknown) => {
            let what = format!("{wish:?} of {key}: {verdict:?}");
            Err(Violation { invariant: "scenario", what })
        }
    }
}

fn get(world: &mut World, key: &str) -> Result<Option<Pair>, Violation> {
    match world.execute(SCRIPTED, key, Wish::Get)? {
        Verdict::Done(Done::Read(_, pair)) => Ok(pair),
        verdict @ (Verdict::Done(Done::Executed(..) | Done::Claim(..))
        | Verdict::Never
        | Verdict::Unknown) => {
            Err(Violation { invariant: "scenario", what: format!("get {key}: {verdict:?}") })
        }
    }
}

/// The version that a write made; none if its condition did not hold.
fn version(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Written(written) | Outcome::Appended { written, .. } => Some(written.version.0),
        _ => None,
    }
}

#[test]
fn basic() {
    clerks_scenario("basic", 1, &quiet(), |world| {
        expect(get(world, "a")?.is_none(), "there is something")?;
        expect(outcome(world, "a", Wish::Delete)? == Outcome::Absent, "something is removed")?;
        for expected in 1..=10 {
            let wish = if expected % 2 == 0 { Wish::Append } else { Wish::Put };
            let made = version(&outcome(world, "a", wish)?);
            expect(made == Some(expected), format!("version {made:?}, not {expected}"))?;
            let found = get(world, "a")?.map(|pair| pair.version);
            expect(found == Some(Version(expected)), format!("{found:?} is found"))?;
        }
        let removed = outcome(world, "a", Wish::Delete)?;
        expect(matches!(removed, Outcome::Removed { .. }), format!("{removed:?}"))?;
        expect(get(world, "a")?.is_none(), "it is still there")?;
        expect(version(&outcome(world, "a", Wish::Append)?) == Some(1), "it does not begin anew")
    });
}

/// Clerks do a bit of everything for a while.
fn busy(name: &str, mix: Mix) {
    let mix = clerks(mix, 5, Workload::mixed(3));
    clerks_scenario(name, 1, &mix, |world| {
        world.run_for(3 * SECOND_US)?;
        world.let_clerks_rest();
        expect(world.run_until(12 * SECOND_US, World::clerks_are_idle)?, "clerks wait in vain")?;
        let operations = world.tally().operations;
        expect(operations > 20, format!("only {operations} operations were over"))
    });
}

#[test]
fn concurrent() {
    busy("concurrent", Mix::calm());
}

#[test]
fn unreliable() {
    busy("unreliable", Mix::unreliable());
}

#[test]
fn unreliable_one_key() {
    let appends = Workload { gets: 0, keys: Keys::Shared(1), ..Workload::labs() };
    let mix = clerks(Mix::unreliable(), 5, Workload { operations_max: Some(10), ..appends });
    clerks_scenario("unreliable_one_key", 1, &mix, |world| {
        let over = world.run_until(60 * SECOND_US, |world| world.tally().operations >= 50)?;
        expect(over, "clerks wait in vain")?;
        let value = get(world, "k0")?.map(|pair| pair.value).unwrap_or_default();
        let tokens: Vec<OperationName> = OperationName::of_value(&value).flatten().collect();
        for client in 1..=5 {
            let of = tokens.iter().filter(|name| name.client == client);
            let numbers: Vec<u64> = of.map(|name| name.number).collect();
            expect(numbers == (1..=10).collect::<Vec<u64>>(), format!("c{client}: {numbers:?}"))?;
        }
        Ok(())
    });
}

/// A write on a condition is done while that holds, and says what is there where it does not.
#[test]
fn put_versions() {
    let at = |version| Wish::PutIf(Condition::Version(Version(version)));
    clerks_scenario("put_versions", 1, &quiet(), |world| {
        expect(version(&outcome(world, "k", at(0))?) == Some(1), "a new key has version 1")?;
        expect(version(&outcome(world, "k", at(1))?) == Some(2), "the next one 2")?;
        for stale in [0, 1, 3] {
            let there = get(world, "k")?;
            let found = outcome(world, "k", at(stale))?;
            expect(found == Outcome::Mismatch(there), format!("{stale}: {found:?}"))?;
        }
        let found = outcome(world, "absent", at(1))?;
        expect(found == Outcome::Mismatch(None), format!("{found:?}"))?;
        expect(get(world, "absent")?.is_none(), "it is there all the same")
    });
}

/// Ten clerks read a version and write on the condition that it still is: of each round one wins.
#[test]
fn put_concurrent() {
    const CLERKS: u64 = 10;
    clerks_scenario("put_concurrent", 1, &quiet(), |world| {
        let mut written = 0;
        for _ in 0..20 {
            let known = Version(written);
            let names: Vec<OperationName> = (1..=CLERKS)
                .map(|client| world.wish(client, "k", Wish::PutIf(Condition::Version(known))))
                .collect();
            let over = |world: &World| names.iter().all(|name| world.verdict(*name).is_some());
            expect(world.run_until(12 * SECOND_US, over)?, "clerks wait in vain")?;
            let won = names.iter().filter(|name| match world.verdict(**name) {
                Some(Verdict::Done(Done::Executed(_, answered))) => {
                    matches!(answered.outcome, Outcome::Written(_))
                }
                Some(_) | None => false,
            });
            expect(won.count() == 1, "other than one wins")?;
            written += 1;
        }
        let found = get(world, "k")?.map(|pair| pair.version);
        expect(found == Some(Version(written)), format!("{found:?} after {written} writes"))
    });
}

/// Where the labs' clerks must live with "maybe", an identity resolves it: whatever gets lost, each
/// of a hundred writes is done once, and its clerk knows.
#[test]
fn maybe_resolved() {
    clerks_scenario(
        "maybe_resolved",
        1,
        &clerks(Mix::unreliable(), 0, Workload::labs()),
        |world| {
            for expected in 0..100 {
                let wish = Wish::PutIf(Condition::Version(Version(expected)));
                let made = version(&outcome(world, "k", wish)?);
                expect(made == Some(expected + 1), format!("{made:?} after {expected}"))?;
            }
            let duplicates = world.tally().duplicates;
            expect(duplicates > 0, "nothing came twice")
        },
    );
}
