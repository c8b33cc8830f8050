//! Bugs that are planted in the core's sources, each in a build of its own: the simulator must find
//! every one of them. That takes a build for each, so it is for `deep`; that their patches fit is looked
//! at always.

mod depth;

use std::process::{Command, Output};

use depth::{Depth, depth};

/// How many bugs there are at least.
const BUGS_MIN: usize = 16;

fn mutants(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla-sim"));
    command.arg("mutants").args(arguments).output().expect("it runs")
}

#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    let output = mutants(arguments);
    let stdout = String::from_utf8(output.stdout).expect("it prints text");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}:\n{stdout}\n{stderr}");
    stdout
}

/// Every patch fits the sources as they are now, and says what it does.
#[test]
fn patches_fit() {
    let list = succeeds(&["--check"]);
    assert!(list.lines().count() >= BUGS_MIN, "{list}");
    assert!(list.lines().all(|line| line.contains(": ")), "{list}");
}

#[test]
fn planted_bugs_are_found() {
    if depth() != Depth::Deep {
        return println!("skipped: planted bugs are built at the depth `deep`");
    }
    let (list, table) = (succeeds(&["--check"]), succeeds(&[]));
    println!("{table}");
    for name in list.lines().filter_map(|line| Some(line.split_once(": ")?.0)) {
        let row = table.lines().find(|line| line.starts_with(&format!("| {name} | ")));
        assert!(row.is_some_and(|row| !row.contains("NOTHING")), "{name}:\n{table}");
    }
}

#[test]
fn unknown_bugs_are_refused() {
    let output = mutants(&["--only", "no_such_bug"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("there is no sim/bugs/no_such_bug.patch"), "{stderr}");
}
