//! What the kernel sees of a put on a single node: between its arrival and its answer lies an
//! fdatasync of sled's file that began after the entry was written to it; and sled put nothing into
//! a file of its own, which it would never sync.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flotilla::local::Instance;
use rustix::process::{Pid, Signal, kill_process};
use support::{TestCluster, Watchdog};
use tokio::time::{Instant, sleep};

/// How long strace may take to attach, and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What stands in the value, to be found in the buffers of system calls.
const MARK: &str = "a-value-that-nobody-else-writes";

/// How often it is tried: one put might be lucky.
const PUTS: usize = 10;

/// Watches all threads of a process.
struct Strace {
    child: Child,
    trace: PathBuf,
}

impl Strace {
    /// None: strace is absent or may not attach here.
    async fn attach(pid: u32, trace: &Path) -> Option<Self> {
        let calls = "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,\
                     pwritev,fdatasync,fsync,sync_file_range";
        let child = Command::new("strace")
            .args(["-f", "-y", "-ttt", "-s", "65536", "-e", calls, "-o"])
            .arg(trace)
            .args(["-p", &pid.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut strace = Self { child, trace: trace.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        // The daemon's clock ticks, so something is traced as soon as strace is attached.
        while fs::metadata(trace).map_or(0, |trace| trace.len()) == 0 {
            if strace.child.try_wait().unwrap().is_some() || Instant::now() >= deadline {
                return None;
            }
            sleep(Duration::from_millis(10)).await;
        }
        Some(strace)
    }

    /// Detaches, and answers with what was seen.
    fn detach(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.child.wait().unwrap();
        fs::read_to_string(&self.trace).unwrap()
    }
}

/// One system call: where in the trace it began and ended, and what it was.
#[derive(Debug)]
struct Call<'a> {
    name: &'a str,
    /// The file, as strace names descriptors: `5</path/to/file>` or `9<socket:[123]>`.
    file: &'a str,
    text: &'a str,
    began: usize,
    ended: usize,
}

/// The calls of a trace, those that another thread's interrupted in it put together again.
fn calls(trace: &str) -> Vec<Call<'_>> {
    let mut calls: Vec<Call<'_>> = Vec::new();
    let mut open: Vec<(&str, usize)> = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let mut words = line.splitn(3, ' ').filter(|word| !word.is_empty());
        let (Some(thread), Some(rest)) = (words.next(), words.last()) else { continue };
        let rest = rest.trim_start();
        // The time may be set off by more than one space.
        let rest = rest
            .split_once(' ')
            .filter(|(time, _)| time.parse::<f64>().is_ok())
            .map_or(rest, |(_, rest)| rest);
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let name = resumed.split(' ').next().unwrap_or_default();
            let mine =
                |(other, call): &(&str, usize)| *other == thread && calls[*call].name == name;
            if let Some(place) = open.iter().position(mine) {
                let (_, call) = open.remove(place);
                calls[call].ended = number;
                // What a read found stands where it ends.
                if resumed.contains(MARK) {
                    calls[call].text = line;
                }
            }
            continue;
        }
        let Some((name, arguments)) = rest.split_once('(') else { continue };
        let file = arguments.split_once('<').map_or("", |(_, file)| file);
        let file = file.split_once('>').map_or("", |(file, _)| file);
        let unfinished = rest.ends_with("<unfinished ...>");
        if unfinished {
            open.push((thread, calls.len()));
        }
        let ended = if unfinished { usize::MAX } else { number };
        calls.push(Call { name, file, text: line, began: number, ended });
    }
    calls
}

fn is_read(call: &Call<'_>) -> bool {
    matches!(call.name, "read" | "readv" | "recvfrom" | "recvmsg")
}

fn is_write(call: &Call<'_>) -> bool {
    matches!(call.name, "write" | "writev" | "sendto" | "sendmsg" | "pwrite64" | "pwritev")
}

fn is_sleds(call: &Call<'_>) -> bool {
    call.file.ends_with("/db")
}

/// Checks every put that the trace shows, and answers with how many there are or what is wrong.
fn check(trace: &str) -> Result<usize, String> {
    let calls = calls(trace);
    let marked = |call: &&Call<'_>| call.text.contains(MARK);
    let mut puts = 0;
    for arrival in calls.iter().filter(|call| is_read(call)).filter(marked) {
        let answer = calls
            .iter()
            .find(|call| {
                is_write(call)
                    && call.file == arrival.file
                    && call.began > arrival.ended
                    && !is_ping(call)
            })
            .ok_or_else(|| format!("no answer to {}", arrival.text))?;
        let between = |call: &&Call<'_>| call.began > arrival.began && call.began < answer.began;
        let written = calls
            .iter()
            .filter(between)
            .filter(|call| is_write(call) && is_sleds(call))
            .rfind(marked)
            .ok_or_else(|| format!("answered before it was written: {}", arrival.text))?;
        let synced = calls.iter().filter(between).any(|call| {
            call.name == "fdatasync"
                && is_sleds(call)
                && call.began > written.ended
                && call.ended < answer.began
        });
        if !synced {
            return Err(format!("answered before it was synced: {}", arrival.text));
        }
        puts += 1;
    }
    Ok(puts)
}

/// Settings and pings of HTTP/2, which say nothing about the put: their frames have these lengths
/// and types, and no headers.
fn is_ping(call: &Call<'_>) -> bool {
    let frame = call.text.split_once('"').map_or("", |(_, frame)| frame);
    ["\\0\\0\\10\\6", "\\0\\0\\0\\4\\1", "\\0\\0\\4\\10"].iter().any(|kind| frame.starts_with(kind))
        && !call.text.contains("\\1\\4")
}

#[tokio::test]
async fn a_put_is_answered_only_after_its_entry_is_synced() {
    const NAME: &str = "a_put_is_answered_only_after_its_entry_is_synced";
    let _watchdog = Watchdog::new(4 * PATIENCE);
    let mut test = TestCluster::start(1, 0, |_| ()).await;
    let client = test.kv(PATIENCE);
    // The connection is made and the time learnt before anything is traced.
    client.put("warm", "up").await.unwrap();
    let pid = test.cluster.process(Instance::Kvd(1)).unwrap().pid().unwrap();
    let trace = test.dir.path().join("trace");
    let Some(strace) = Strace::attach(pid, &trace).await else {
        eprintln!("skipped: {NAME} needs strace, and the right to attach it");
        return;
    };
    for number in 0..PUTS {
        client.put(format!("key-{number}"), format!("{MARK}-{number}")).await.unwrap();
    }
    let seen = strace.detach();
    let puts = check(&seen).unwrap_or_else(|problem| panic!("{problem}"));
    assert!(puts >= PUTS, "only {puts} puts are seen in the trace");

    let databases: Vec<PathBuf> = find_blobs(&test.dir.path().join("kvd-1"));
    assert!(!databases.is_empty(), "no database is found");
    for blobs in databases {
        assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0, "{} holds a file", blobs.display());
    }
}

/// The folders in which sled would put pages that it never syncs.
fn find_blobs(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name() == "blobs" {
                found.push(path);
            } else {
                found.extend(find_blobs(&path));
            }
        }
    }
    found
}

#[test]
fn the_check_sees_an_answer_before_the_sync() {
    let read = format!("10 1.0 read(9<socket:[7]>, \"..{MARK}\", 99) = 40");
    let write = format!("11 1.1 pwrite64(5</d/log/db>, \"{MARK}\", 40, 0) = 40");
    let sync = "11 1.2 fdatasync(6</d/log/db>) = 0".to_owned();
    let answer = "10 1.3 write(9<socket:[7]>, \"done\", 4) = 4".to_owned();
    let lines =
        |lines: &[&String]| lines.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("\n");
    assert_eq!(check(&lines(&[&read, &write, &sync, &answer])), Ok(1));
    let fails = |wrong: &[&String]| check(&lines(wrong)).is_err();
    assert!(fails(&[&read, &write, &answer, &sync]));
    assert!(fails(&[&read, &sync, &write, &answer]));
    assert!(fails(&[&read, &answer, &write, &sync]));
    let began = "11 1.2 fdatasync(6</d/log/db> <unfinished ...>".to_owned();
    let ended = "11 1.4 <... fdatasync resumed>) = 0".to_owned();
    assert_eq!(check(&lines(&[&read, &write, &began, &ended, &answer])), Ok(1));
    assert!(fails(&[&read, &write, &began, &answer, &ended]));
    assert!(fails(&[&read, &began, &write, &ended, &answer]));
}
