//! A store in a process of its own: this test binary, started again.
//!
//! A thread of sled's that panicked poisons it for its process, and a kill needs somebody to kill.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use raftd::store::StoreError;

use crate::member::Member;

const DIRECTORY: &str = "FLOTILLA_WAL_DIRECTORY";

/// What the child prints about what it found, for others to compare.
fn tell(member: &Member) -> String {
    let found = &member.start.recovered;
    let chunks = found.snapshot.map(|root| member.start.snapshots.load(root.manifest));
    let chunks = match chunks.transpose() {
        Ok(chunks) => chunks,
        Err(error) => end(&error),
    };
    let state = &member.start.state;
    let told = format!("{found:?} {chunks:?} {:?} {:?}", state.group, state.incarnation);
    blake3::hash(told.as_bytes()).to_string()
}

fn end(error: &StoreError) -> ! {
    println!("{error}");
    std::process::exit(match error {
        StoreError::Identity(_) => 78,
        StoreError::Damaged(_) => 74,
        StoreError::Machine { .. } => 71,
    })
}

/// In a child: opens the directory, tells what it found, and ends.
#[test]
fn opens_a_directory() {
    let Some(path) = std::env::var_os(DIRECTORY) else { return };
    daemon::panic::install();
    match Member::open(Path::new(&path)) {
        Ok(member) => println!("found {}", tell(&member)),
        Err(error) => end(&error),
    }
}

/// In a child: opens the directory, and appends until it is killed; prints what was acknowledged.
#[test]
fn appends_for_ever() {
    let Some(path) = std::env::var_os(DIRECTORY) else { return };
    let mut member = match Member::open(Path::new(&path)) {
        Ok(member) => member,
        Err(error) => end(&error),
    };
    member.bear();
    crate::kill::append_for_ever(&mut member);
}

/// Starts a child.
pub(crate) fn start(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("child::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, path)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// How an attempt to open a directory ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// With this digest of everything that it found.
    Found(String),
    /// With exit code 74, and what it says is missing.
    Damaged(String),
}

/// Opens a directory in a child.
pub(crate) fn open(path: &Path, context: &str) -> Opened {
    let mut child = start("opens_a_directory", path);
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{context}: it hangs: {}", text(&output));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let text = text(&output);
    match code(output.status) {
        Some(0) => {
            let found = text.lines().find_map(|line| line.split("found ").nth(1));
            Opened::Found(found.unwrap_or_else(|| panic!("{context}: {text}")).to_owned())
        }
        Some(74) => Opened::Damaged(text),
        _ => panic!("{context}: {}: {text}", output.status),
    }
}

fn code(status: ExitStatus) -> Option<i32> {
    status.code()
}

fn text(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}
