//! Bugs that are planted in the core's sources, each in a build of its own: the simulator must find
//! every one of them. A build takes a while, so that some do at `ci`, those of moves among them, and all
//! are for `deep`.

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
    let list = succeeds(&["--check"]);
    let all: Vec<&str> = list.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    let chosen = match depth() {
        Depth::Quick => return println!("skipped: planted bugs are built at the depth `ci`"),
        Depth::Ci => vec![
            "acknowledged_before_durable",
            "kv_installed_without_rows",
            "kv_old_move_accepted",
            "old_term_committed",
        ],
        Depth::Deep => all,
    };
    let only: Vec<&str> = chosen.iter().flat_map(|name| ["--only", name]).collect();
    let table = succeeds(&only);
    println!("{table}");
    for name in chosen {
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
