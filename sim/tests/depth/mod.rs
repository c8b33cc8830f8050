//! How many seeds a test runs, and what it says when one fails.

#![allow(dead_code, reason = "each test file uses a part of this")]

use flotilla_sim::{Mix, Options, Violation, World, trace::Listener};

/// How thorough the tests are: `FLOTILLA_TEST_DEPTH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What `cargo test` does.
    Quick,
    /// What continuous integration does.
    Ci,
    /// What is run by hand before an issue is resolved.
    Deep,
}

/// The depth that the environment asks for.
pub(crate) fn depth() -> Depth {
    match std::env::var("FLOTILLA_TEST_DEPTH").as_deref() {
        Err(_) | Ok("quick") => Depth::Quick,
        Ok("ci") => Depth::Ci,
        Ok("deep") => Depth::Deep,
        Ok(other) => panic!("FLOTILLA_TEST_DEPTH is quick, ci or deep, not {other:?}"),
    }
}

/// Runs a scripted scenario from several seeds, and from then on until the group is at rest.
///
/// `FLOTILLA_TEST_SEED=n` runs one seed only and prints its trace.
pub(crate) fn scenario(
    name: &str,
    members: u64,
    mix: &Mix,
    script: impl Fn(&mut World) -> Result<(), Violation>,
) {
    let count = match depth() {
        Depth::Quick => 10,
        Depth::Ci => 20,
        Depth::Deep => 100,
    };
    scenario_from(name, members, mix, count, script);
}

/// The same for scenarios with clerks, who are busy: fewer seeds do at the quick depth.
pub(crate) fn clerks_scenario(
    name: &str,
    members: u64,
    mix: &Mix,
    script: impl Fn(&mut World) -> Result<(), Violation>,
) {
    let count = match depth() {
        Depth::Quick => 3,
        Depth::Ci => 20,
        Depth::Deep => 100,
    };
    scenario_from(name, members, mix, count, script);
}

fn scenario_from(
    name: &str,
    members: u64,
    mix: &Mix,
    count: u64,
    script: impl Fn(&mut World) -> Result<(), Violation>,
) {
    let chosen = std::env::var("FLOTILLA_TEST_SEED").ok();
    let chosen: Option<u64> = chosen.map(|seed| seed.parse().expect("a seed is a number"));
    for seed in chosen.map_or(0..count, |seed| seed..seed + 1) {
        let listener: Option<Listener> =
            if chosen.is_some() { Some(Box::new(|line| println!("{line}"))) } else { None };
        let mut world = World::new(Options::new(seed, members), mix.clone(), listener);
        if let Err(violation) = script(&mut world).and_then(|()| world.settle()) {
            let recent: Vec<&str> = world.trace().recent().collect();
            panic!(
                "{name}, seed {seed}: {violation}\n{}\nagain: FLOTILLA_TEST_SEED={seed} cargo test \
                 -p flotilla-sim {name} -- --nocapture",
                recent.join("\n")
            );
        }
    }
}

/// What a scenario expects.
pub(crate) fn expect(holds: bool, what: impl Into<String>) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { invariant: "scenario", what: what.into() }) }
}
