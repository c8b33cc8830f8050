//! `flotilla up` as people run it: a process in the foreground that tells when it is ready, ends on
//! a signal with all that it started, and goes on with the same data.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flotilla::local::Place;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use support::{FLOTILLA, READY_TIMEOUT, Watchdog, complained, flotilla_in, well};

/// Starts it in a directory, and waits until it says that the cluster is up; what it said.
fn up(dir: &Path, arguments: &[&str]) -> (Child, String) {
    let mut child = Command::new(FLOTILLA)
        .arg("up")
        .args(arguments)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        said += &line;
        said.push('\n');
        if line.contains("Ctrl-C stops it") {
            return (child, said);
        }
    }
    panic!("it ended with {}: {said}", child.wait().unwrap());
}

/// The processes that it started.
fn children(child: &Child) -> Vec<Pid> {
    let (id, mut found) = (child.id(), Vec::new());
    for task in fs::read_dir(format!("/proc/{id}/task")).unwrap().map(Result::unwrap) {
        let children = fs::read_to_string(task.path().join("children")).unwrap();
        let ids = children.split_whitespace().map(|id| Pid::from_raw(id.parse().unwrap()).unwrap());
        found.extend(ids);
    }
    found
}

fn all_end(processes: &[Pid]) {
    let deadline = Instant::now() + READY_TIMEOUT;
    while processes.iter().any(|process| test_kill_process(*process).is_ok()) {
        assert!(Instant::now() < deadline, "some of {processes:?} are left behind");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_cluster_comes_up_stops_whole_and_goes_on_with_the_same_data() {
    let _watchdog = Watchdog::new(3 * READY_TIMEOUT);
    let dir = tempfile::tempdir().unwrap();
    let (place, _claim) = Place::draw().unwrap();
    let ip = place.ip.to_string();
    let (mut child, said) = up(dir.path(), &["--kv", "1", "--workers", "1", "--listen-ip", &ip]);
    assert!(said.contains("1 key/value member, 1 coordinator, 1 worker"), "{said}");
    // Commands find it by the directory that they are called in.
    well(&flotilla_in(dir.path(), &["kv", "put", "greeting", "hello"]));
    well(&flotilla_in(dir.path(), &["status"]));
    let started = children(&child);
    assert!(started.len() >= 3, "{started:?}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    all_end(&started);

    // Nothing has to be said again; a log can come beside what there was.
    let (mut child, said) = up(dir.path(), &["--workers", "0", "--log", "1"]);
    assert!(said.contains(&ip) && said.contains("1 key/value member, 1 log member."), "{said}");
    assert!(said.contains("log append hello"), "{said}");
    assert_eq!(well(&flotilla_in(dir.path(), &["log", "append", "hello"])), "1");
    assert_eq!(well(&flotilla_in(dir.path(), &["log", "tail"])), "hello");
    assert_eq!(well(&flotilla_in(dir.path(), &["kv", "get", "greeting"])), "hello");
    let started = children(&child);
    // Even a kill that it can't see leaves no process behind.
    child.kill().unwrap();
    child.wait().unwrap();
    all_end(&started);
}

#[test]
fn groups_take_part_by_themselves_once_and_what_an_operator_changes_stays() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let dir = tempfile::tempdir().unwrap();
    let (place, _claim) = Place::draw().unwrap();
    let ip = place.ip.to_string();
    let arguments = ["--groups", "2", "--kv", "1", "--workers", "0", "--listen-ip", &ip];
    let (mut child, said) = up(dir.path(), &arguments);
    let parts = "2 groups of 1 key/value member, 1 shard controller member.";
    assert!(said.contains(parts) && said.contains("group 2"), "{said}");
    let run = |arguments: &[&str]| well(&flotilla_in(dir.path(), arguments));
    let status = || -> serde_json::Value {
        serde_json::from_str(&run(&["shardctl", "status", "--json"])).unwrap()
    };
    // What it says can be typed as it is.
    for (line, words) in [
        ("kv put greeting hello", vec!["kv", "put", "greeting", "hello"]),
        ("kv get greeting", vec!["kv", "get", "greeting"]),
        ("shardctl status", vec!["shardctl", "status"]),
        ("shardctl plan leave 2", vec!["shardctl", "plan", "leave", "2"]),
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
        run(&words);
    }
    let first = status();
    assert_eq!((&first["number"], &first["totals"]["shards"]), (&1.into(), &256.into()));
    assert_eq!((&first["complete"], &first["totals"]["keys"]), (&true.into(), &1.into()));
    assert_eq!([0, 1].map(|at| first["groups"][at]["has"].as_u64().unwrap()), [128, 128]);
    run(&["shardctl", "leave", "2"]);
    run(&["shardctl", "wait", "--timeout", "60s"]);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let refused = flotilla_in(dir.path(), &["up", "--groups", "3"]);
    assert_eq!(refused.status.code(), Some(2));
    let complaint = complained(&refused);
    assert!(complaint.contains("--groups 2, which cannot become 3"), "{complaint}");

    // Nothing has to be said again, and nobody joins again.
    let (mut child, said) = up(dir.path(), &["--workers", "0"]);
    assert!(said.contains(parts), "{said}");
    let second = status();
    assert_eq!((&second["number"], &second["groups"][1]["has"]), (&2.into(), &0.into()));
    assert_eq!(run(&["kv", "get", "greeting"]), "hello");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
