//! What a member does when its disk refuses: it ends with exit code 71 and says what was refused;
//! nothing that it acknowledged is lost, nothing is executed twice, and a restart helps. When its
//! disk is nearly full it refuses what would grow, and says so.
//!
//! The refusals are made by strace, which lets a system call of a running process fail; the full
//! disk is a small one of its own.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{KvClient, Options};
use flotilla::local::{Cluster, Instance, Plan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use support::disk::Disk;
use support::{Depth, FLOTILLA, READY_TIMEOUT, TestCluster, Watchdog, ready};
use tokio::time::{Instant, sleep, timeout};

const MACHINE: Option<i32> = Some(71);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
const MEMBER: Instance = Instance::Kvd(1);

/// What the disk may refuse, and with which error.
const REFUSALS: [(&str, &str); 6] = [
    ("fdatasync", "error=EIO"),
    ("pwrite64", "error=ENOSPC"),
    ("pwrite64", "error=EIO"),
    ("sync_file_range", "error=EIO"),
    ("fdatasync", "error=ENOSPC"),
    // sled calls the last one only when it closes a file.
    ("fdatasync,fsync", "error=EIO"),
];

/// strace with what happens at the n-th such call of each thread alone, or at all from there on.
fn strace((calls, what): (&str, &str), when: &str) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e"]);
    command.arg(format!("inject={calls}:{what}:when={when}"));
    command
}

/// Whether strace is there and may attach.
fn can_trace(name: &str) -> bool {
    let traced = strace(REFUSALS[0], "1").arg("true").stderr(Stdio::null()).status();
    let can = traced.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: {name} needs strace, and the right to trace");
    }
    can
}

/// Appends `1;`, `2;`, ... to one key until it is told to stop; answers with how many there are.
async fn append_until(stop: Arc<AtomicBool>, client: KvClient) -> u64 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        client.append("log", format!("{number};")).await.unwrap();
    }
    number
}

/// Waits for the member to end by itself: its exit code and its last words.
async fn end_of(cluster: &mut Cluster) -> (Option<i32>, String) {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if let Some(ended) = cluster.take_ended().pop() {
            return (ended.status.code(), ended.tail);
        }
        assert!(Instant::now() < deadline, "the member still runs");
        sleep(LOOK_INTERVAL).await;
    }
}

#[tokio::test]
async fn fsync_error_is_fatal() {
    const NAME: &str = "fsync_error_is_fatal";
    if !can_trace(NAME) {
        return;
    }
    let rounds = match Depth::asked() {
        Depth::Quick => 5,
        Depth::Ci => 15,
        Depth::Deep => 200,
    };
    let _watchdog = Watchdog::new(READY_TIMEOUT * 10);
    let mut test = TestCluster::start(1, 0, |_| ()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let appending = tokio::spawn(append_until(stop.clone(), test.kv(READY_TIMEOUT)));
    let mut rng = StdRng::seed_from_u64(7);
    for round in 0..rounds {
        let refusal = REFUSALS[round % REFUSALS.len()];
        let from = rng.random_range(1..60);
        let when = if rng.random() { format!("{from}") } else { format!("{from}+") };
        let pid = test.cluster.process(MEMBER).unwrap().pid().unwrap();
        let mut strace = strace(refusal, &when).args(["-p", &pid.to_string()]).spawn().unwrap();
        let (code, words) = end_of(&mut test.cluster).await;
        strace.wait().unwrap();
        assert_eq!(code, MACHINE, "round {round}, {refusal:?} at {when}: {words}");
        assert!(words.contains("can't be"), "round {round}, {refusal:?} at {when}: {words}");
        test.cluster.restart(MEMBER).unwrap();
        ready(&mut test.cluster).await;
    }
    stop.store(true, Ordering::Relaxed);
    let appended = appending.await.unwrap();
    let wanted: String = (1..=appended).map(|number| format!("{number};")).collect();
    let found = test.kv(READY_TIMEOUT).get("log").await.unwrap().unwrap();
    assert!(found.value == wanted, "{appended} appends gave {:?}", found.value);
}

/// A kvd under strace. It is killed when this is dropped; strace then ends by itself.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        let strace = self.0.id();
        let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw).unwrap();
            // It may have ended by itself.
            let _ = kill_process(child, Signal::KILL);
        }
        self.0.wait().unwrap();
    }
}

/// Starts a kvd whose n-th such call is refused; answers how it ended, or None once it serves.
async fn start_refused(
    refusal: (&str, &str),
    when: u32,
    data: &Path,
    listen: &str,
) -> Option<(Option<i32>, String)> {
    let log = data.with_extension("log");
    let mut command = strace(refusal, &when.to_string());
    command.arg(FLOTILLA).args(["kvd", "--listen", listen, "--data"]).arg(data);
    command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let mut traced = Traced(command.spawn().unwrap());
    let options = Options::with_deadline(READY_TIMEOUT);
    let client = KvClient::connect(vec![listen.to_owned()], options).unwrap();
    let serves = tokio::spawn(async move { client.get("key").await.map(drop) });
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if let Some(status) = traced.0.try_wait().unwrap() {
            serves.abort();
            return Some((status.code(), fs::read_to_string(&log).unwrap()));
        }
        if serves.is_finished() {
            serves.await.unwrap().unwrap();
            return None;
        }
        assert!(Instant::now() < deadline, "{refusal:?} at {when}: neither ends nor serves");
        sleep(LOOK_INTERVAL).await;
    }
}

/// Starts a member again and again, each time with another of its calls going wrong in the way that
/// is named, and sees how it ends and that the next start serves.
async fn check_starts(name: &str, what: &str, check: impl Fn(Option<i32>, &str)) {
    if !can_trace(name) {
        return;
    }
    let (step, calls) = match Depth::asked() {
        Depth::Quick => (9, &["pwrite64", "fdatasync"][..]),
        Depth::Ci => (3, &["pwrite64", "fdatasync", "fsync", "ftruncate", "mkdir"][..]),
        Depth::Deep => (1, &["pwrite64", "fdatasync", "fsync", "ftruncate", "mkdir"][..]),
    };
    let _watchdog = Watchdog::new(READY_TIMEOUT * 10);
    let mut test = TestCluster::start(1, 0, |_| ()).await;
    test.kv(READY_TIMEOUT).put("key", "value").await.unwrap();
    let ended = test.cluster.terminate(MEMBER).await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended}");
    let listen = test.cluster.description().kv_endpoints().remove(0);
    let (mut ends, mut serial) = (0, 0);
    for &call in calls {
        // A directory of its own is made anew each time; the other holds data.
        for fresh in [true, false] {
            for when in (1..).step_by(step) {
                serial += 1;
                let name = if fresh { format!("fresh-{serial}") } else { "kvd-1".to_owned() };
                let data = test.dir.path().join(name);
                let ended = start_refused((call, what), when, &data, &listen).await;
                let Some((code, words)) = ended else { break };
                let context = format!("{call} at {when}, fresh: {fresh}: {words}");
                check(code, &context);
                ends += 1;
                let again = start_refused(("fsync", "error=EIO"), 1 << 14, &data, &listen).await;
                assert_eq!(again, None, "the start after {context}");
            }
        }
    }
    assert!(ends >= 4, "only {ends} starts ended");
    test.cluster.restart(MEMBER).unwrap();
    ready(&mut test.cluster).await;
    assert_eq!(test.kv(READY_TIMEOUT).get("key").await.unwrap().unwrap().value, "value");
}

#[tokio::test]
async fn a_start_that_is_refused_can_be_repeated() {
    let check = |code, context: &str| assert_eq!(code, MACHINE, "{context}");
    check_starts("a_start_that_is_refused_can_be_repeated", "error=ENOSPC", check).await;
}

#[tokio::test]
async fn a_start_that_is_killed_can_be_repeated() {
    // strace kills itself with the signal that ended what it traced.
    let check = |code: Option<i32>, context: &str| assert_eq!(code, None, "{context}");
    check_starts("a_start_that_is_killed_can_be_repeated", "signal=KILL", check).await;
}

#[tokio::test]
async fn enospc_is_fatal_and_recovers() {
    const NAME: &str = "enospc_is_fatal_and_recovers";
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut disk = None;
    let mount = |plan: &mut Plan| disk = Disk::mount(&plan.dir.join("kvd-1"), 512 << 20);
    let mut test = TestCluster::start(1, 0, mount).await;
    // Taken off before its mount point goes.
    let Some(disk) = disk else {
        eprintln!("skipped: {NAME} needs the right to mount a disk");
        return;
    };
    let client = test.kv(READY_TIMEOUT);
    for number in 0..50 {
        client.put(format!("key-{number}"), vec![7; 10_000]).await.unwrap();
    }
    // Less than free_bytes_min: the first who asks after a second may still be served.
    disk.leave(200 << 20);
    let refused = timeout(READY_TIMEOUT, async {
        loop {
            if let Err(error) = client.put("more", "more").await {
                return error;
            }
        }
    });
    let refused = refused.await.expect("growth is refused while space is low");
    assert!(refused.to_string().contains("free_bytes_min"), "{refused}");
    // Nothing is lost, and what frees space is still served.
    assert_eq!(client.get("key-0").await.unwrap().unwrap().value, vec![7; 10_000]);
    client.delete("key-1").await.unwrap();
    // Room again: served again, without a restart.
    disk.relieve();
    let served = timeout(READY_TIMEOUT, async {
        while client.put("key-0", "small").await.is_err() {
            sleep(LOOK_INTERVAL).await;
        }
    });
    served.await.expect("growth is served when there is space");

    // Somebody else takes all there is, the reserve too: deletes go on until no write succeeds.
    disk.leave(0);
    let deleting = async {
        for number in (2..50).cycle() {
            // Those in flight at the end get no answer, or a refusal.
            drop(timeout(LOOK_INTERVAL, client.delete(format!("key-{number}"))).await);
            if disk.free() > 0 {
                disk.leave(0);
            }
        }
    };
    let (code, words) = tokio::select! {
        ended = end_of(&mut test.cluster) => ended,
        () = deleting => unreachable!("it never ends"),
    };
    assert_eq!(code, MACHINE, "{words}");
    disk.relieve();
    test.cluster.restart(MEMBER).unwrap();
    ready(&mut test.cluster).await;
    assert_eq!(client.get("key-0").await.unwrap().unwrap().value, "small");
    assert_eq!(client.get("key-1").await.unwrap(), None);
}
