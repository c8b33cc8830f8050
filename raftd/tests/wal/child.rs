//! A store in a process of its own: this test binary, started again.
//!
//! A thread of sled's that panicked poisons it for its process, and a kill needs somebody to kill.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::RwLock;
use std::time::{Duration, Instant};

use raftd::store::StoreError;

use crate::member::Member;

/// Held while a child is started, and shared while a directory is opened here. Until a child runs its
/// program it has copies of this process's descriptors: a lock that was given back here is still
/// held there.
pub(crate) static STARTING: RwLock<()> = RwLock::new(());

const DIRECTORY: &str = "FLOTILLA_WAL_DIRECTORY";

/// What the child prints about what it found, for others to compare.
fn tell(member: &Member) -> String {
    let found = &member.start.recovered;
    let chunks = found.snapshot.as_ref().map(|root| member.start.snapshots.load(root.manifest));
    let chunks = match chunks.transpose() {
        Ok(chunks) => chunks,
        Err(error) => end(&error),
    };
    let state = &member.start.state;
    let told = format!("{found:?} {chunks:?} {:?} {:?}", state.group, state.incarnation);
    blake3::hash(told.as_bytes()).to_string()
}

pub(crate) fn end(error: &StoreError) -> ! {
    println!("{error}");
    std::process::exit(match error {
        StoreError::Identity(_) => 78,
        StoreError::Damaged(_) => 74,
        StoreError::Machine { .. } => 71,
    })
}

/// In a child: opens the directories, one after the other, and tells what it found, up to one that
/// does not open.
#[test]
fn opens_directories() {
    let Some(paths) = std::env::var_os(DIRECTORY) else { return };
    daemon::panic::install();
    for path in std::env::split_paths(&paths) {
        match Member::open(&path) {
            Ok(member) => {
                let told = tell(&member);
                // What its threads find damaged as long as they run is told of this directory.
                drop(member);
                println!("found {told}");
            }
            Err(error) => end(&error),
        }
    }
}

/// In a child: opens the directory, and appends until it is killed; prints what was acknowledged.
#[test]
fn appends_for_ever() {
    let Some(path) = directory() else { return };
    let mut member = match Member::open(&path) {
        Ok(member) => member,
        Err(error) => end(&error),
    };
    member.bear();
    crate::kill::append_for_ever(&mut member);
}

/// In a child: the directory that it is about.
pub(crate) fn directory() -> Option<PathBuf> {
    std::env::var_os(DIRECTORY).map(PathBuf::from)
}

/// A child that runs one test.
pub(crate) fn command(test: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, path)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Starts a child.
pub(crate) fn start(test: &str, path: &Path) -> Child {
    spawn(&mut command(&format!("child::{test}"), path))
}

fn spawn(command: &mut Command) -> Child {
    // It returns when the child runs its program.
    let _starting = STARTING.write().unwrap();
    command.spawn().unwrap()
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
    let mut opened = open_all(std::iter::once(path));
    assert_eq!(opened.len(), 1, "{context}: {opened:?}");
    opened.remove(0)
}

/// Opens directories in a child, one after the other, up to the first that is damaged. At least
/// one.
pub(crate) fn open_all(paths: impl Iterator<Item = impl AsRef<Path>>) -> Vec<Opened> {
    let paths: Vec<_> = paths.map(|path| path.as_ref().to_owned()).collect();
    let context = format!("{} and {} others", paths[0].display(), paths.len() - 1);
    let joined = std::env::join_paths(paths).unwrap();
    let (code, text) = run(&mut command("child::opens_directories", joined.as_ref()), &context);
    let found = text.lines().filter_map(|line| line.split("found ").nth(1));
    let mut opened: Vec<Opened> = found.map(|digest| Opened::Found(digest.to_owned())).collect();
    match code {
        Some(0) => {}
        Some(74) => {
            let noise = |line: &&str| line.contains("found ") || line.starts_with("running ");
            let told: Vec<&str> = text.lines().filter(|line| !noise(line)).collect();
            opened.push(Opened::Damaged(told.join("\n")));
        }
        _ => panic!("{context}: {code:?} after {} were opened: {text}", opened.len()),
    }
    assert!(!opened.is_empty(), "{context}: nothing was told: {text}");
    opened
}

/// Runs a child to its end, and gives its exit code and what it said.
pub(crate) fn run(command: &mut Command, context: &str) -> (Option<i32>, String) {
    let mut child = spawn(command);
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
    (output.status.code(), text(&output))
}

fn text(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}
