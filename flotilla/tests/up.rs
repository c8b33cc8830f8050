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
use support::{FLOTILLA, READY_TIMEOUT, Watchdog, flotilla_in, well};

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
