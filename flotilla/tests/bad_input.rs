//! What is wrong is refused with a clear message and the right exit code, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use flotilla::local::Place;
use support::{FLOTILLA, TestCluster, Watchdog, complained, flotilla, flotilla_in, said, well};

const PATIENCE: Duration = Duration::from_secs(60);

/// Ended with this code, and said each of the words on stderr.
fn check(output: &Output, code: i32, words: &[&str]) {
    let complaint = complained(output);
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in: {complaint}");
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// A daemon that is called in a wrong way ends by itself.
fn daemon(dir: &Path, arguments: &[&str]) -> Output {
    flotilla_in(dir, arguments)
}

#[test]
fn wrong_calls_of_the_command_line() {
    for (arguments, word) in [
        (&["sink"][..], "sink"),
        (&["kv", "get", "key", "--colour", "blue"], "--colour"),
        (&["kv", "put", "key"], "<VALUE>"),
        (&["kv", "--endpoints", "nowhere", "get", "key"], "nowhere"),
        (&["kv", "--endpoints", "a:b", "get", "key"], "a:b"),
        (&["status", "--endpoints", ":::"], ":::"),
        (&["bench", "kv", "--clients", "0"], "clients"),
        (&["bench", "kv", "--value-bytes", "2MiB"], "value_bytes_max"),
        (&["log", "--endpoints", "nowhere", "status"], "nowhere"),
        (&["log", "append"], "<ENTRY>"),
        (&["log", "tail", "--from", "0"], "--from"),
        (&["up", "--kv", "8"], "at most 7"),
        (&["up", "--log", "8"], "at most 7"),
        (&["up", "--log", "1", "--base-port", "200"], "at least 201"),
        (&["up", "--kv", "0", "--workers", "0"], "no members and no workers"),
        (&["up", "--base-port", "65000"], "base port"),
        (&["mr", "submit", "--app", "wc", "--input", "x"], "--output"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let output = flotilla_in(dir.path(), arguments);
        check(&output, 2, &[word]);
        assert_eq!(said(&output), "", "{arguments:?}");
        assert!(is_empty(dir.path()), "{arguments:?} left something");
    }
}

#[test]
fn help_and_version_are_for_everything() {
    for arguments in [
        &["--help"][..],
        &["kv", "put", "--help"],
        &["log", "--help"],
        &["log", "tail", "--help"],
        &["mr", "submit", "--help"],
        &["up", "--help"],
        &["demo", "--help"],
        &["bench", "kv", "--help"],
        &["kvd", "--help"],
        &["raftd", "--help"],
        &["mr-coordinator", "--help"],
        &["mr-worker", "--help"],
        &["shardctl", "--help"],
        &["shardctl", "plan", "join", "--help"],
        &["shardctl", "serve", "--help"],
    ] {
        assert!(well(&flotilla(arguments)).contains("Usage"), "{arguments:?}");
    }
    for arguments in [&["--version"][..], &["kvd", "--version"], &["mr-worker", "--version"]] {
        assert!(well(&flotilla(arguments)).contains(daemon::version::VERSION), "{arguments:?}");
    }
}

#[test]
fn a_link_with_a_daemons_name_is_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["kvd", "raftd", "mr-coordinator", "mr-worker", "shardctl"] {
        let link = dir.path().join(name);
        std::os::unix::fs::symlink(FLOTILLA, &link).unwrap();
        let output = Command::new(&link).arg("--version").output().unwrap();
        assert_eq!(well(&output), format!("{name} {}", daemon::version::VERSION));
    }
}

#[test]
fn nobody_answers() {
    let (place, _claim) = Place::draw().unwrap();
    let absent = place.kvd(1).to_string();
    let kv = |arguments: &[&str]| {
        flotilla(&[&["kv", "--endpoints", &absent, "--timeout", "500ms"], arguments].concat())
    };
    check(&kv(&["get", "key"]), 3, &[]);
    check(&kv(&["put", "key", "value"]), 3, &[]);
    let log = ["log", "--endpoints", &absent, "--timeout", "500ms"];
    for request in [&["append", "e"][..], &["tail"], &["tail", "-f"], &["trim", "1"], &["status"]] {
        check(&flotilla(&[&log, request].concat()), 3, &[]);
    }
    check(&flotilla(&["status", "--endpoints", &absent]), 3, &[&absent]);
    check(&flotilla(&["mr", "--coordinator", &absent, "--timeout", "500ms", "list"]), 3, &[]);
    let json =
        flotilla(&["kv", "--endpoints", &absent, "--timeout", "500ms", "get", "k", "--json"]);
    let told: serde_json::Value = serde_json::from_str(complained(&json).trim()).unwrap();
    assert_eq!(told["exit_code"], 3);
}

#[test]
fn daemons_refuse_wrong_calls_and_settings() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("settings.toml");
    fs::write(&settings, "colour = \"blue\"\n").unwrap();
    let settings = settings.to_str().unwrap();
    let called = |name: &str, further: &[&str]| {
        let name: Vec<_> = name.split(' ').collect();
        daemon(dir.path(), &[&name, further].concat())
    };
    for name in ["kvd", "raftd", "mr-coordinator", "mr-worker", "shardctl serve"] {
        check(&called(name, &["--colour", "blue"]), 64, &["--colour"]);
        check(&called(name, &["--config", settings]), 78, &["colour"]);
        check(&called(name, &["--config", "absent.toml"]), 71, &["absent.toml"]);
        let program = name.split(' ').next().unwrap();
        let variable = format!("FLOTILLA_{}__COLOUR", program.to_uppercase().replace('-', "_"));
        let output = Command::new(FLOTILLA)
            .args(name.split(' '))
            .current_dir(dir.path())
            .env(&variable, "blue")
            .output()
            .unwrap();
        check(&output, 78, &[&variable]);
    }
    for name in ["kvd", "raftd", "mr-coordinator", "shardctl serve"] {
        check(&called(name, &["--listen", "0.0.0.0:7300"]), 78, &["--insecure"]);
        check(&called(name, &["--listen", "nonsense"]), 78, &["nonsense"]);
        check(&called(name, &["--node", "0"]), 78, &["node"]);
        check(&called(name, &["--member", "2=127.0.0.1:7300"]), 78, &["does not name"]);
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the settings are there: {left:?}");
}

#[test]
fn a_busy_port_and_an_unwritable_directory_are_the_machines_fault() {
    let (place, _claim) = Place::draw().unwrap();
    let listen = place.kvd(1);
    let busy = TcpListener::bind(listen).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listen = listen.to_string();
    check(&daemon(dir.path(), &["kvd", "--listen", &listen, "--data", "data"]), 71, &[&listen]);
    drop(busy);
    // A file where a directory should be; root may write anywhere, so permissions prove nothing.
    fs::write(dir.path().join("file"), "mine").unwrap();
    for data in ["file", "file/data"] {
        let output = daemon(dir.path(), &["kvd", "--listen", &listen, "--data", data]);
        check(&output, 71, &["file"]);
    }
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"mine");
}

#[test]
fn up_starts_nothing_where_something_is_in_the_way() {
    let (place, _claim) = Place::draw().unwrap();
    let busy = place.kvd(2);
    let _listener = TcpListener::bind(busy).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ip = place.ip.to_string();
    let output = flotilla_in(dir.path(), &["up", "--listen-ip", &ip, "--workers", "0"]);
    check(&output, 71, &[&busy.to_string(), "--base-port"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something is left behind");
    fs::write(dir.path().join("file"), "mine").unwrap();
    let output = flotilla_in(dir.path(), &["up", "--dir", "file", "--listen-ip", &ip]);
    check(&output, 71, &["file"]);
    let damaged = dir.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    fs::write(damaged.join("cluster.json"), "{\"format\":99}").unwrap();
    let output = flotilla_in(dir.path(), &["up", "--dir", "damaged", "--listen-ip", &ip]);
    check(&output, 78, &["format 99"]);
}

#[test]
fn a_demo_of_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    check(&flotilla_in(dir.path(), &["demo", "--input", "absent"]), 6, &["absent"]);
    fs::create_dir(dir.path().join("empty")).unwrap();
    check(&flotilla_in(dir.path(), &["demo", "--input", "empty"]), 6, &["empty"]);
}

#[tokio::test]
async fn keys_and_values_have_bounds() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let test = TestCluster::start(1, 0, |_| ()).await;
    let endpoint = test.cluster.description().kv_endpoints().join(",");
    let kv =
        |arguments: &[&str]| flotilla(&[&["kv", "--endpoints", &endpoint], arguments].concat());
    let stdin = |arguments: &[&str], value: &[u8]| {
        let mut child = Command::new(FLOTILLA)
            .args(["kv", "--endpoints", &endpoint])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may be refused before it was read.
        let _ = child.stdin.take().unwrap().write_all(value);
        child.wait_with_output().unwrap()
    };

    let long = "k".repeat(8 * 1024);
    well(&kv(&["put", &long, ""]));
    assert_eq!(kv(&["get", &long]).stdout, b"");
    let too_long = format!("{long}k");
    for request in [&["get", ""][..], &["put", "", "v"], &["append", "", "v"], &["delete", ""]] {
        check(&kv(request), 2, &["key is empty"]);
    }
    for request in [&["get", &too_long][..], &["put", &too_long, "v"], &["delete", &too_long]] {
        check(&kv(request), 2, &["8193 bytes", "8192"]);
    }

    let any = [0, 0xff, b'\n', 0x80, b'\r'].repeat(50_000);
    well(&stdin(&["put", "bytes", "-"], &any));
    assert_eq!(kv(&["get", "bytes"]).stdout, any);
    let longest = vec![b'v'; 1 << 20];
    well(&stdin(&["put", "long", "-"], &longest));
    assert_eq!(kv(&["get", "long"]).stdout.len(), longest.len());
    check(&kv(&["append", "long", "v"]), 1, &["1048577", "1048576"]);
    let too_long = vec![b'v'; (1 << 20) + 1];
    check(&stdin(&["put", "longer", "-"], &too_long), 2, &["1048577 bytes", "1048576"]);
    check(&kv(&["get", "longer"]), 6, &["longer"]);
}

#[tokio::test]
async fn conditions_and_absent_keys_have_their_codes() {
    let _watchdog = Watchdog::new(3 * PATIENCE);
    let test = TestCluster::start(1, 0, |_| ()).await;
    let endpoint = test.cluster.description().kv_endpoints().join(",");
    let kv =
        |arguments: &[&str]| flotilla(&[&["kv", "--endpoints", &endpoint], arguments].concat());
    check(&kv(&["get", "k"]), 6, &["k"]);
    check(&kv(&["delete", "k"]), 6, &["k"]);
    check(&kv(&["put", "k", "v", "--if-version", "1"]), 1, &["does not exist"]);
    assert_eq!(well(&kv(&["put", "k", "v", "--if-version", "0"])), "written, version 1");
    check(&kv(&["put", "k", "w", "--if-version", "0"]), 1, &["has version 1"]);
    assert_eq!(well(&kv(&["put", "k", "w", "--if-version", "1"])), "written, version 2");
    let appended: serde_json::Value =
        serde_json::from_str(&well(&kv(&["append", "k", "x", "--json"]))).unwrap();
    assert_eq!((&appended["old_value"], &appended["version"]), (&"w".into(), &3.into()));
    assert_eq!(well(&kv(&["get", "k"])), "wx");
    let got: serde_json::Value = serde_json::from_str(&well(&kv(&["get", "k", "--json"]))).unwrap();
    assert_eq!((&got["value"], &got["version"]), (&"wx".into(), &3.into()));
    well(&kv(&["delete", "k"]));
    check(&kv(&["get", "k"]), 6, &["k"]);
    let status = flotilla(&["status", "--endpoints", &endpoint, "--json"]);
    let status: serde_json::Value = serde_json::from_str(&well(&status)).unwrap();
    assert_eq!((&status["leader"], &status["members"][0]["lag"]), (&1.into(), &0.into()));
}
