//! The command line: what a sweep prints, and that it is the same whichever core ran what.

mod depth;

use std::process::Command;

use depth::{Depth, depth};

use flotilla_sim::{Failure, Faults, Options, Violation};

/// What the command prints, line by line.
fn prints(arguments: &[&str]) -> Vec<String> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_flotilla-sim")).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it prints text").lines().map(str::to_owned).collect()
}

#[test]
fn sweep_prints_every_seed_in_order_with_its_trace() {
    let sweep = ["sweep", "--seeds", "100..112", "--ticks", "100"];
    let first = prints(&sweep);
    assert_eq!(first, prints(&sweep), "a second time it is the same");
    assert_eq!(first.len(), 13, "a line for each seed, and the sum: {first:?}");
    for (seed, line) in (100..112).zip(&first) {
        let alone = prints(&["--seed", &seed.to_string(), "--ticks", "100"]);
        assert!(line.starts_with(&format!("seed {seed} members ")), "{line}");
        assert!(line.contains(" trace "), "{line}");
        assert!(alone.contains(line), "{line} is that of the seed alone: {alone:?}");
    }
}

/// What every change has to pass: a hundred runs of a thousand virtual seconds each, on all cores.
/// At `deep` two thousand short ones come on top.
#[test]
fn no_invariant_is_broken_in_long_runs() {
    let sweeps: &[[&str; 2]] = match depth() {
        Depth::Quick => &[["0..100", "200"]],
        Depth::Ci => &[["0..100", "20000"]],
        Depth::Deep => &[["0..100", "100000"], ["1000..3000", "2000"]],
    };
    for [seeds, ticks] in sweeps {
        let printed = prints(&["sweep", "--seeds", seeds, "--ticks", ticks]);
        let sum = printed.last().map(String::as_str).unwrap_or_default();
        println!("seeds {seeds} for {ticks} ticks: {sum}");
        assert!(sum.contains(" virtual seconds, 0 failures"), "{sum}");
    }
}

#[test]
fn seeds_that_are_no_range_are_refused() {
    for seeds in ["3", "5..5", "7..2", "a..b", "..", "1..-2"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla-sim"));
        let output = command.args(["sweep", "--seeds", seeds]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{seeds}");
    }
}

/// The command that a failure prints runs the same world, however long that was.
#[test]
fn failure_names_the_command_that_shows_it_again() {
    let violation = Violation { invariant: "R1", what: "two lead".to_owned() };
    let failure = |options| {
        let failure = Failure { options, violation: violation.clone(), recent: Vec::new() };
        failure.to_string()
    };
    let usual = failure(Options::new(7, 3));
    assert!(
        usual.ends_with("again: cargo run -p flotilla-sim -- --seed 7 --members 3 --trace"),
        "{usual}"
    );
    let short = failure(Options { chaos_us: 250_000, ..Options::new(7, 3) });
    assert!(short.ends_with("--seed 7 --members 3 --ticks 25 --trace"), "{short}");
    let labs = failure(Options { faults: Faults::Labs, ..Options::new(7, 3) });
    assert!(labs.ends_with("--seed 7 --members 3 --labs --trace"), "{labs}");
    let store = failure(Options { store: true, ..Options::new(7, 3) });
    assert!(store.ends_with("--seed 7 --members 3 --store --trace"), "{store}");
}
