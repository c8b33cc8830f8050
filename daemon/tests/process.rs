//! How a process ends, seen from its parent. The test binary runs itself as the child: [`child`]
//! plays the role that the environment names.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use flotilla_daemon::runtime::{self, Process};
use flotilla_daemon::telemetry::Format;
use flotilla_daemon::{Code, Failure, Shutdown, panic};
use rustix::process::{Pid, Signal, kill_process};

/// The longest life of a child.
const WATCHDOG: Duration = Duration::from_secs(60);

const ROLE: &str = "FLOTILLA_DAEMON_TEST_ROLE";

/// Nothing by itself; in a child process, the daemon under test.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // A child that hangs ends by itself, with a code of nobody, so that no test waits for ever.
    std::thread::spawn(|| {
        std::thread::sleep(WATCHDOG);
        std::process::exit(99);
    });
    let worker_threads = (role == "panic on a worker").then_some(2);
    let log_format = if role == "panic in a thread" { Format::Json } else { Format::Text };
    let log_filter = if role == "panic unlogged" { "off" } else { "info" }.to_owned();
    let process = Process { log_filter, log_format, worker_threads };
    let code = runtime::main("testd", || {
        runtime::run("testd", &process, &process, |shutdown| play(role, shutdown))
    });
    std::process::exit(code as i32);
}

async fn play(role: String, shutdown: Shutdown) -> Result<(), Failure> {
    match role.as_str() {
        "stop" => {
            shutdown.requested().await;
            Ok(())
        }
        // Blocks the only thread of the runtime for good, as a defect would.
        "stuck" => loop {
            std::thread::park();
        },
        "fail" => {
            let cause = std::io::Error::other("no space left");
            Err(Failure::machine("a write failed").because(cause))
        }
        "panic in a task" | "panic on a worker" | "panic unlogged" => {
            tokio::spawn(async { panic!("a task broke") });
            std::future::pending().await
        }
        "panic in a thread" => {
            std::thread::spawn(|| panic!("a thread broke"));
            std::future::pending().await
        }
        "panic at open" => {
            panic::ends_with(Code::Damaged, "the store is damaged", || panic!("a page broke"))
        }
        "panic of a helper at open" => {
            panic::ends_with(Code::Damaged, "the store is damaged", || {
                let helper = std::thread::spawn(|| panic!("a segment broke"));
                helper.join().expect("the process ends before this is told");
                Ok(())
            })
        }
        "panic after open" => {
            panic::ends_with(Code::Damaged, "the store is damaged", || ());
            panic!("an invariant broke")
        }
        "configuration" => Err(Failure::configuration("another cluster's directory")),
        _ => Err(Failure::usage(format!("no such role: {role}"))),
    }
}

fn start(role: &str) -> (Child, Lines<BufReader<ChildStderr>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env_remove("RUST_LOG")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    (child, lines)
}

/// The child ends by itself with this code and says each of the words on stderr.
fn check_ends(role: &str, code: Code, words: &[&str]) {
    let (mut child, lines) = start(role);
    let told: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(code as i32), "{role}: {told:#?}");
    for word in words {
        assert!(told.iter().any(|line| line.contains(word)), "{word:?}: {told:#?}");
    }
}

/// Sends each signal once the child has said the word before it.
fn check_signals(role: &str, signals: &[(&str, Signal)], code: Code) {
    let (mut child, mut lines) = start(role);
    let pid = Pid::from_child(&child);
    for (word, signal) in signals {
        let heard = lines.by_ref().map(Result::unwrap).find(|line| line.contains(word));
        assert!(heard.is_some(), "{role} never says {word:?}");
        kill_process(pid, *signal).unwrap();
    }
    let told: Vec<String> = lines.map(Result::unwrap).collect();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(code as i32), "{role}: {told:#?}");
}

#[test]
fn first_signal_ends_gracefully() {
    for signal in [Signal::TERM, Signal::INT] {
        check_signals("stop", &[("daemon starts", signal)], Code::Done);
    }
}

#[test]
fn second_signal_ends_a_stuck_daemon_at_once() {
    for (second, code) in [(Signal::TERM, Code::Terminated), (Signal::INT, Code::Interrupted)] {
        let signals = [("daemon starts", Signal::INT), ("shutdown requested", second)];
        check_signals("stuck", &signals, code);
    }
}

#[test]
fn failure_ends_with_its_code_and_whole_chain() {
    check_ends("fail", Code::Machine, &["a write failed: no space left", "exit_code=71"]);
    check_ends("configuration", Code::Configuration, &["another cluster's directory"]);
}

#[test]
fn panic_anywhere_ends_the_daemon() {
    check_ends("panic in a task", Code::Panic, &["a task broke", "tests/process.rs"]);
    check_ends("panic on a worker", Code::Panic, &["a task broke", "thread=\"testd\""]);
    check_ends("panic in a thread", Code::Panic, &["\"panic\":\"a thread broke\""]);
    check_ends("panic unlogged", Code::Panic, &["a panic ends the process: a task broke"]);
}

#[test]
fn panic_while_the_store_opens_tells_of_its_data() {
    check_ends("panic at open", Code::Damaged, &["a page broke"]);
    check_ends("panic of a helper at open", Code::Damaged, &["a segment broke"]);
    check_ends("panic after open", Code::Panic, &["an invariant broke"]);
}

#[test]
fn settings_in_force_are_logged_at_start() {
    check_ends("fail", Code::Machine, &["daemon starts", "\\\"log_filter\\\":\\\"info\\\""]);
}
