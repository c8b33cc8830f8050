//! Members that have lost their memory are not listened to: a wiped directory, an old copy put
//! back, a directory of somebody else.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flotilla::local::{Cluster, Instance};
use support::{FLOTILLA, READY_TIMEOUT, TestCluster, Watchdog, ready};
use tokio::time::{Instant, sleep};

const CONFIGURATION: Option<i32> = Some(78);

/// The directory of a member of the cluster.
fn data(cluster: &Cluster, node: u16) -> PathBuf {
    cluster.dir().join(format!("kvd-{node}"))
}

/// Waits for a member that ends by itself: its exit code and its last words.
async fn end_of(cluster: &mut Cluster, instance: Instance) -> (Option<i32>, String) {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let ended = cluster.take_ended();
        if let Some(ended) = ended.into_iter().find(|ended| ended.instance == instance) {
            return (ended.status.code(), ended.tail);
        }
        assert!(Instant::now() < deadline, "{instance} still runs");
        sleep(Duration::from_millis(20)).await;
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Every file below a directory and what is in it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(contents(&entry.path()));
        } else {
            found.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

#[tokio::test]
async fn wiped_node_must_not_vote() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut test = TestCluster::start(3, 0, |_| ()).await;
    let client = test.kv(Duration::from_secs(20));
    client.put("key", "value").await.unwrap();
    let wiped = Instance::Kvd(2);
    test.cluster.kill(wiped).unwrap();
    fs::remove_dir_all(data(&test.cluster, 2)).unwrap();
    test.cluster.restart(wiped).unwrap();
    let (code, words) = end_of(&mut test.cluster, wiped).await;
    assert_eq!(code, CONFIGURATION, "{words}");
    assert!(words.contains("has lost its data"), "{words}");
    // The other two go on without it.
    client.put("key", "another").await.unwrap();
    assert_eq!(client.get("key").await.unwrap().unwrap().value, "another");
}

#[tokio::test]
async fn an_old_copy_is_refused_by_who_heard_more() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut test = TestCluster::start(3, 0, |_| ()).await;
    let client = test.kv(Duration::from_secs(20));
    let old = Instance::Kvd(3);
    test.cluster.kill(old).unwrap();
    let backup = test.dir.path().join("backup");
    copy(&data(&test.cluster, 3), &backup);
    test.cluster.restart(old).unwrap();
    ready(&mut test.cluster).await;
    for round in 0..50 {
        client.put("key", format!("{round}")).await.unwrap();
    }
    test.cluster.kill(old).unwrap();
    fs::remove_dir_all(data(&test.cluster, 3)).unwrap();
    copy(&backup, &data(&test.cluster, 3));
    test.cluster.restart(old).unwrap();
    let (code, words) = end_of(&mut test.cluster, old).await;
    assert_eq!(code, CONFIGURATION, "{words}");
    assert!(words.contains("refuses this one"), "{words}");
}

#[tokio::test]
async fn a_directory_of_somebody_else_is_refused_untouched() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut test = TestCluster::start(1, 0, |_| ()).await;
    test.kv(Duration::from_secs(20)).put("key", "value").await.unwrap();
    let ended = test.cluster.terminate(Instance::Kvd(1)).await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended}");
    let dir = data(&test.cluster, 1);
    let before = contents(&dir);
    // The cluster's own address is free again.
    let listen = &test.cluster.description().kv_endpoints()[0];
    for stranger in [["--cluster", "another"], ["--node", "2"]] {
        let output = Command::new(FLOTILLA)
            .args(["kvd", "--listen", listen, "--data"])
            .arg(&dir)
            .args(stranger)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), CONFIGURATION, "{complaint}");
        assert!(complaint.contains("belongs to"), "{complaint}");
        assert!(contents(&dir) == before, "{stranger:?} changed the directory");
    }
}
