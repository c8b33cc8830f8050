//! Two of three members are lost for ever: the third is recovered, serves what it held, refuses the
//! old ones, and grows again. And a recovery that crashes anywhere goes on when it is asked again.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use client::{KvClient, Options};
use flotilla::local::Instance;
use raftd::failpoint::{Failpoint, VARIABLE};
use serde_json::Value;
use support::{
    Depth, FLOTILLA, TestCluster, Watchdog, complained, contents, copy, flotilla, ready, said, well,
};
use tokio::time::{Instant, sleep};

const DEADLINE: Duration = Duration::from_secs(60);
const CONFIGURATION: Option<i32> = Some(78);
const ABORTED: Option<i32> = Some(6);

/// How far revisions and versions move on.
const GAP: u64 = 1 << 32;

fn data(test: &TestCluster, node: u16) -> PathBuf {
    test.cluster.dir().join(format!("kvd-{node}"))
}

/// `flotilla members recover`, with failpoints.
fn recover(dirs: &[&Path], further: &[&str], failpoints: &str) -> Output {
    let mut command = Command::new(FLOTILLA);
    command.args(["--json", "members", "recover"]).args(further).env(VARIABLE, failpoints);
    for dir in dirs {
        command.arg("--dir").arg(dir);
    }
    command.output().unwrap()
}

/// What it tells of one directory.
fn look(dir: &Path) -> Value {
    let told: Value = serde_json::from_str(&well(&recover(&[dir], &["--dry-run"], ""))).unwrap();
    told["survivors"][0].clone()
}

fn endpoints(test: &TestCluster, nodes: &[u16]) -> Vec<String> {
    nodes.iter().map(|node| test.cluster.description().place.kvd(*node).to_string()).collect()
}

fn connect(test: &TestCluster, nodes: &[u16]) -> KvClient {
    KvClient::connect(endpoints(test, nodes), Options::with_deadline(DEADLINE)).unwrap()
}

/// Waits for a member that ends because it is of the group before the recovery.
async fn ends_refused(test: &mut TestCluster, node: u16) {
    let deadline = Instant::now() + DEADLINE;
    let ended = loop {
        if let Some(ended) = test.cluster.take_ended().into_iter().next() {
            break ended;
        }
        assert!(Instant::now() < deadline, "member {node} still runs");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(ended.instance, Instance::Kvd(node));
    assert_eq!(ended.status.code(), CONFIGURATION, "{ended}");
    assert!(ended.tail.contains("is of the group before the recovery"), "{ended}");
}

#[tokio::test]
async fn a_survivor_of_a_lost_majority_goes_on() {
    let _watchdog = Watchdog::new(4 * DEADLINE);
    let mut test = TestCluster::start(3, 0, |_| ()).await;
    let client = connect(&test, &[1, 2, 3]);
    for number in 0..200 {
        client.put(format!("key/{number}"), format!("{number}")).await.unwrap();
    }
    let survivor = data(&test, 3);
    let running = recover(&[&survivor], &["--yes"], "");
    assert_eq!(running.status.code(), Some(1));
    assert!(complained(&running).contains("in use by another process"), "{}", complained(&running));
    // The third goes with all that was acknowledged, since it answers a read only when it has that;
    // what follows the others have alone.
    assert!(connect(&test, &[3]).get("key/199").await.unwrap().is_some());
    test.cluster.terminate(Instance::Kvd(3)).await.unwrap();
    let lost = client.put("key/0", "lost").await.unwrap();
    client.put("lost", "lost").await.unwrap();
    for node in [1, 2] {
        test.cluster.kill(Instance::Kvd(node)).unwrap();
    }
    let old = test.dir.path().join("old");
    copy(&data(&test, 1), &old);

    check_looks(&test, &survivor);
    for node in [1, 2] {
        fs::remove_dir_all(data(&test, node)).unwrap();
    }
    let before = look(&survivor);
    let done: Value = serde_json::from_str(&well(&recover(&[&survivor], &["--yes"], ""))).unwrap();
    assert_eq!((&done["recovered"], &done["next_id"]), (&true.into(), &4.into()));
    assert_ne!(done["group"], before["group"]);
    let again: Value = serde_json::from_str(&well(&recover(&[&survivor], &["--yes"], ""))).unwrap();
    assert_eq!(again["recovered"], false);

    test.cluster.restart(Instance::Kvd(3)).unwrap();
    ready(&mut test.cluster).await;
    let client = connect(&test, &[3]);
    for number in 0..200 {
        let pair = client.get(format!("key/{number}")).await.unwrap().unwrap();
        assert_eq!(pair.value, number.to_string());
    }
    assert_eq!(client.get("lost").await.unwrap(), None);
    let written = client.put("key/0", "again").await.unwrap();
    assert!(written.mod_revision > lost.mod_revision.max(GAP), "{written:?} after {lost:?}");
    assert!(written.version > lost.version, "{written:?} after {lost:?}");

    // One of the old members comes back.
    copy(&old, &data(&test, 1));
    test.cluster.restart(Instance::Kvd(1)).unwrap();
    ends_refused(&mut test, 1).await;
    let mut test = grow(test).await;
    fail_over(&mut test).await;
}

/// Looking changes nothing, compares, and refuses what is none of its business.
fn check_looks(test: &TestCluster, survivor: &Path) {
    let (first, before) = (data(test, 1), contents(survivor));
    let told = recover(&[survivor, &first], &[], "");
    let told: Value = serde_json::from_str(&well(&told)).unwrap();
    assert_eq!(told["best"], first.display().to_string(), "{told}");
    let (held, had) = (&told["survivors"][0], &told["survivors"][1]);
    assert!(held["last"]["index"].as_u64() < had["last"]["index"].as_u64(), "{told}");
    assert_eq!((&held["node"], &held["cluster"]), (&3.into(), &"flotilla".into()));
    assert_eq!((&held["alone"], &held["unfinished"]), (&false.into(), &false.into()));
    assert_eq!(held["members"].as_array().unwrap().len(), 3);
    let dir = survivor.display().to_string();
    let text = well(&flotilla(&["members", "recover", "--dir", &dir]));
    for words in ["ends at entry", "is lost", "become committed", "Nothing was changed", "this one"]
    {
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
    assert!(contents(survivor) == before, "looking has changed the directory");
    let several = recover(&[survivor, &first], &["--yes"], "");
    assert_eq!(several.status.code(), Some(2), "{}", complained(&several));
    let nobodys = recover(&[test.dir.path()], &["--yes"], "");
    assert_eq!(nobodys.status.code(), Some(6), "{}", said(&nobodys));
    assert!(complained(&nobodys).contains("no directory of a member"), "{}", complained(&nobodys));
    let damaged = test.dir.path().join("damaged");
    copy(survivor, &damaged);
    fs::remove_file(damaged.join("floor")).unwrap();
    let refused = recover(&[&damaged], &["--yes"], "");
    assert_eq!(refused.status.code(), Some(1), "{}", complained(&refused));
    assert!(complained(&refused).contains("is damaged"), "{}", complained(&refused));
    let nowhere = recover(&[Path::new("/nowhere")], &[], "");
    assert_eq!(nowhere.status.code(), Some(6), "{}", complained(&nowhere));
    let unknown = recover(&[survivor], &["--yes"], "recover.never=crash");
    assert_eq!(unknown.status.code(), CONFIGURATION, "{}", complained(&unknown));
    assert!(contents(survivor) == before, "a refusal has changed the directory");
}

/// Two new members join.
async fn grow(mut test: TestCluster) -> TestCluster {
    for node in [4, 5] {
        let peer = test.cluster.join_kvd(node).unwrap().to_string();
        let at = endpoints(&test, &[3]).remove(0);
        tokio::task::spawn_blocking(move || {
            let call = ["members", "add", &peer, "--endpoints", &at, "--timeout", "60s"];
            well(&flotilla(&call));
        })
        .await
        .unwrap();
    }
    ready(&mut test.cluster).await;
    test
}

/// The survivor fails. The new members go on, and listen to no old one, who is not told by them.
async fn fail_over(test: &mut TestCluster) {
    let client = connect(test, &[3, 4, 5]);
    client.put("grown", "1").await.unwrap();
    test.cluster.kill(Instance::Kvd(3)).unwrap();
    test.cluster.restart(Instance::Kvd(1)).unwrap();
    let written = client.put("grown", "2").await.unwrap();
    assert!(written.mod_revision > GAP);
    assert_eq!(client.get("key/7").await.unwrap().unwrap().value, "7");
    let groups: Vec<_> = [1, 4].map(|node| endpoints(test, &[node]).remove(0)).into();
    let limit = Duration::from_secs(10);
    let old = loop {
        // It may still be starting.
        if let Ok(old) = client::admin::status(&groups[0], limit).await {
            break old;
        }
        assert!(test.cluster.take_ended().is_empty(), "nobody is there to refuse it");
        sleep(Duration::from_millis(20)).await;
    };
    let new = client::admin::status(&groups[1], limit).await.unwrap();
    assert_eq!(old.leader, 0, "an old member leads or follows");
    assert!(new.leader == 4 || new.leader == 5, "{}", new.leader);
    assert_ne!(old.group, new.group);
    test.cluster.restart(Instance::Kvd(3)).unwrap();
    ends_refused(test, 1).await;
    ready(&mut test.cluster).await;
    assert_eq!(connect(test, &[3]).get("grown").await.unwrap().unwrap().value, "2");
}

/// Who recovers a member while the others are well has lost that one, and no other.
#[tokio::test]
async fn a_recovery_by_mistake_ends_nobody() {
    let _watchdog = Watchdog::new(3 * DEADLINE);
    let mut test = TestCluster::start(3, 0, |_| ()).await;
    test.cluster.terminate(Instance::Kvd(3)).await.unwrap();
    well(&recover(&[&data(&test, 3)], &["--yes"], ""));
    test.cluster.restart(Instance::Kvd(3)).unwrap();
    ready(&mut test.cluster).await;
    let logs: Vec<PathBuf> = [1, 2]
        .map(|node| test.cluster.process(Instance::Kvd(node)).unwrap().log().to_owned())
        .into();
    let deadline = Instant::now() + DEADLINE;
    let told = |log: &PathBuf| fs::read_to_string(log).unwrap().contains("no conversation");
    while !logs.iter().all(told) {
        assert!(Instant::now() < deadline, "they never met");
        sleep(Duration::from_millis(20)).await;
    }
    connect(&test, &[1, 2]).put("key", "old").await.unwrap();
    connect(&test, &[3]).put("key", "new").await.unwrap();
    assert_eq!(connect(&test, &[1, 2]).get("key").await.unwrap().unwrap().value, "old");
    assert!(test.cluster.take_ended().is_empty(), "somebody has ended");
}

/// At which places a recovery is made to crash.
fn places() -> Vec<Failpoint> {
    let quick = [
        Failpoint::RecoverIdentityBefore,
        Failpoint::RecoverEntryBefore,
        Failpoint::RecoverEndBefore,
        Failpoint::RecoverEndAfter,
        Failpoint::FloorWriteBetween,
    ];
    let most_often = [Failpoint::FloorWriteBefore, Failpoint::FloorSyncBefore];
    // At one nothing dies.
    let all = Failpoint::ALL.iter().copied().filter(|at| *at != Failpoint::StateFlip);
    match Depth::asked() {
        Depth::Quick => quick.to_vec(),
        Depth::Ci => all.filter(|at| !most_often.contains(at)).collect(),
        Depth::Deep => all.collect(),
    }
}

#[tokio::test]
async fn a_recovery_that_crashes_goes_on() {
    let _watchdog = Watchdog::new(5 * DEADLINE);
    let mut test = TestCluster::start(3, 0, |_| ()).await;
    for number in 0..20 {
        test.kv(DEADLINE).put(format!("key/{number}"), "value").await.unwrap();
    }
    for node in 1..=3 {
        test.cluster.kill(Instance::Kvd(node)).unwrap();
    }
    let survivor = data(&test, 2);
    let before = look(&survivor);
    let (mut crashes, mut unfinished) = (0, 0);
    for at in places() {
        for visit in 1.. {
            let dir = test.dir.path().join("copy");
            copy(&survivor, &dir);
            let failpoint = format!("{}=crash@{visit}", at.name());
            let ended = recover(&[&dir], &["--yes"], &failpoint);
            let crashed = ended.status.signal() == ABORTED;
            assert!(crashed || ended.status.success(), "{failpoint}: {}", complained(&ended));
            crashes += usize::from(crashed);
            unfinished += usize::from(finish(&test, &dir, &before, &failpoint));
            fs::remove_dir_all(&dir).unwrap();
            if !crashed {
                break;
            }
        }
    }
    eprintln!("{crashes} crashes, {unfinished} recoveries went on");
    assert!(crashes >= 8 && unfinished >= 3, "{crashes} crashes, {unfinished} unfinished");
}

/// Whatever the crash left: it is as before, or no daemon starts with it; and the same command ends
/// well. Whether it was half done.
fn finish(test: &TestCluster, dir: &Path, before: &Value, context: &str) -> bool {
    let left = look(dir);
    let unfinished = left["unfinished"] == true;
    let is_new = left["group"] != before["group"];
    assert_eq!(is_new, unfinished || left["alone"] == true, "{context}: {left}");
    if unfinished {
        let listen = &endpoints(test, &[2])[0];
        let daemon = ["kvd", "--node", "2", "--listen", listen, "--data"];
        let output = Command::new(FLOTILLA).args(daemon).arg(dir).output().unwrap();
        assert_eq!(output.status.code(), CONFIGURATION, "{context}: {}", complained(&output));
        assert!(complained(&output).contains("is not finished"), "{}", complained(&output));
    }
    let again = recover(&[dir], &["--yes"], "");
    let again: Value = serde_json::from_str(&well(&again)).unwrap();
    let was_done = left["alone"] == true && !unfinished;
    assert_eq!(again["recovered"], !was_done, "{context}: {again}");
    let end = look(dir);
    assert_eq!((&end["alone"], &end["unfinished"]), (&true.into(), &false.into()), "{context}");
    assert!(!is_new || end["group"] == left["group"], "{context}: one identity is drawn");
    let index = |it: &Value| it["last"]["index"].as_u64().unwrap();
    assert_eq!(index(&end), index(before) + 1, "{context}: one entry is appended");
    unfinished
}
