//! Members that have lost their memory are not listened to: a wiped directory, an old copy put
//! back, a directory of somebody else.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use client::{KvClient, Options};
use flotilla::local::{Cluster, Instance};
use support::{
    FLOTILLA, READY_TIMEOUT, TestCluster, Watchdog, contents, copy, flotilla, ready, well,
};
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

/// A group of three, some of whose members crash and one of whom has lost its disk.
struct Rejoin {
    test: TestCluster,
    client: KvClient,
    /// How many appends were acknowledged.
    appended: u64,
}

impl Rejoin {
    async fn start() -> Self {
        let test = TestCluster::start(3, 0, |_| ()).await;
        let place = test.cluster.description().place;
        // Number 4 takes the place of who has lost its disk.
        let all: Vec<String> = (1..=4).map(|node| place.kvd(node).to_string()).collect();
        let client = KvClient::connect(all, Options::with_deadline(READY_TIMEOUT)).unwrap();
        Self { test, client, appended: 0 }
    }

    async fn append(&mut self, count: u64) {
        for _ in 0..count {
            let number = self.appended;
            self.client.append("log", format!("{number};")).await.unwrap();
            self.appended += 1;
        }
    }

    fn kill(&mut self, nodes: &[u16]) {
        for node in nodes {
            self.test.cluster.kill(Instance::Kvd(*node)).unwrap();
        }
    }

    fn start_again(&mut self, nodes: &[u16]) {
        for node in nodes {
            self.test.cluster.restart(Instance::Kvd(*node)).unwrap();
        }
    }

    fn wipe(&self, node: u16) {
        fs::remove_dir_all(data(&self.test.cluster, node)).unwrap();
    }

    /// Who has lost its disk is refused, whoever else is there.
    async fn refused(&mut self, node: u16) {
        let (code, words) = end_of(&mut self.test.cluster, Instance::Kvd(node)).await;
        assert_eq!(code, CONFIGURATION, "{words}");
        assert!(words.contains("has lost its data"), "{words}");
    }

    /// Another member takes its place, under an id of its own.
    fn replace(&mut self, node: u16) {
        let endpoints = self.test.cluster.description().kv_endpoints().join(",");
        let peer = self.test.cluster.join_kvd(4).unwrap().to_string();
        let options = ["--endpoints", &endpoints, "--timeout", "60s"];
        let words = ["members", "replace", &node.to_string(), &peer];
        well(&flotilla(&[words, options].concat()));
    }

    /// Everything that was acknowledged is there once and in order, and nothing else.
    async fn check(&self) {
        let wanted: String = (0..self.appended).map(|number| format!("{number};")).collect();
        let found = self.client.get("log").await.unwrap().map(|pair| pair.value);
        assert_eq!(found, Some(Bytes::from(wanted)));
    }
}

/// The labs' `OneLostOneDown`: the one who is down knows things that the one who forgot had promised.
#[tokio::test]
async fn one_lost_one_down() {
    let _watchdog = Watchdog::new(6 * READY_TIMEOUT);
    let mut rejoin = Rejoin::start().await;
    rejoin.append(10).await;
    rejoin.kill(&[3]);
    rejoin.append(10).await;
    rejoin.kill(&[2]);
    rejoin.wipe(2);
    rejoin.start_again(&[2]);
    rejoin.refused(2).await;
    // One of three is no majority, with or without the one who forgot.
    let alone = rejoin.test.kv(Duration::from_secs(2));
    alone.put("key", "value").await.unwrap_err();
    rejoin.start_again(&[3]);
    rejoin.append(10).await;
    rejoin.check().await;
    rejoin.replace(2);
    // The new one counts: with it the others may lose one again.
    rejoin.kill(&[1]);
    rejoin.append(10).await;
    rejoin.check().await;
}

/// The labs' `RejoinMix1`: one has lost its disk while another one crashes.
#[tokio::test]
async fn rejoin_mix_1() {
    let _watchdog = Watchdog::new(6 * READY_TIMEOUT);
    let mut rejoin = Rejoin::start().await;
    rejoin.append(10).await;
    rejoin.kill(&[1, 2]);
    rejoin.wipe(1);
    rejoin.start_again(&[1, 2]);
    rejoin.refused(1).await;
    rejoin.append(10).await;
    rejoin.replace(1);
    for node in [2, 3, 4] {
        rejoin.kill(&[node]);
        rejoin.append(10).await;
        rejoin.start_again(&[node]);
    }
    rejoin.check().await;
}

/// The labs' `RejoinMix3`: all crash, and one of them has lost its disk.
#[tokio::test]
async fn rejoin_mix_3() {
    let _watchdog = Watchdog::new(6 * READY_TIMEOUT);
    let mut rejoin = Rejoin::start().await;
    rejoin.append(10).await;
    rejoin.kill(&[3]);
    rejoin.append(10).await;
    rejoin.kill(&[1, 2]);
    rejoin.wipe(3);
    rejoin.start_again(&[3]);
    // The one who forgot is alone at first, and must not begin a new life with nothing.
    rejoin.start_again(&[1]);
    rejoin.refused(3).await;
    rejoin.start_again(&[2]);
    rejoin.append(10).await;
    rejoin.replace(3);
    rejoin.kill(&[2]);
    rejoin.append(10).await;
    rejoin.check().await;
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
