//! A backup of a running cluster is one state, after all that was acknowledged, and a new cluster
//! that is made of it gives out nothing twice.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::{KvClient, LogClient, Options, Pair};
use flotilla::local::Instance;
use flotilla::local::place::beside;
use serde_json::Value;
use support::{FLOTILLA, TestCluster, Watchdog, complained, flotilla, ready, well};

const DEADLINE: Duration = Duration::from_secs(60);
const WRITERS: usize = 4;
/// So many writes of each go before the backup, which has to have them.
const WRITES_BEFORE: u64 = 50;

/// Appends its numbers, one after the other, each time to two keys, until it is told to stop.
async fn write(client: KvClient, me: usize, stop: Arc<AtomicBool>) {
    for number in 0.. {
        client.append(format!("first/{me}"), format!("{number};")).await.unwrap();
        client.append(format!("second/{me}"), format!("{number};")).await.unwrap();
        if number >= WRITES_BEFORE && stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

async fn state(client: &KvClient) -> BTreeMap<String, Pair> {
    let mut state = BTreeMap::new();
    for me in 0..WRITERS {
        for key in [format!("first/{me}"), format!("second/{me}")] {
            let pair = client.get(key.clone()).await.unwrap().unwrap();
            state.insert(key, pair);
        }
    }
    state
}

/// What each pair of keys says is what some moment had: whole numbers from 0 on, and the second
/// key one behind the first at most.
fn check_moment(state: &BTreeMap<String, Pair>) {
    for me in 0..WRITERS {
        let numbers = |key: String| -> Vec<u64> {
            let text = String::from_utf8(state[&key].value.to_vec()).unwrap();
            text.split_terminator(';').map(|number| number.parse().unwrap()).collect()
        };
        let (first, second) = (numbers(format!("first/{me}")), numbers(format!("second/{me}")));
        assert!(first.iter().copied().eq(0..first.len() as u64), "{first:?}");
        assert!(second.iter().copied().eq(0..second.len() as u64), "{second:?}");
        let behind = first.len() - second.len();
        assert!(behind <= 1, "writer {me}: {} and {}", first.len(), second.len());
        assert!(second.len() as u64 >= WRITES_BEFORE, "what was acknowledged before is missing");
    }
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Puts what a backup holds in the place of a member's directory.
async fn restore(test: &mut TestCluster, instance: Instance, file: &Path) -> Value {
    test.cluster.terminate(instance).await.unwrap();
    let data = test.cluster.dir().join(instance.to_string());
    fs::remove_dir_all(&data).unwrap();
    let place = test.cluster.description().place;
    let listen = match instance {
        Instance::Raftd(number) => place.raftd(number),
        Instance::Kvd(number) => place.kvd(number),
        other => panic!("there are no backups of {other}"),
    };
    let [peer, _] = beside(listen);
    let (listen, peer) = (listen.to_string(), peer.to_string());
    let call = ["--json", "restore", text(file), text(&data), "--advertise", &listen];
    let told = well(&flotilla(&[call.as_slice(), &["--peer-advertise", &peer]].concat()));
    test.cluster.restart(instance).unwrap();
    ready(&mut test.cluster).await;
    serde_json::from_str(&told).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn a_backup_taken_under_load_becomes_a_new_cluster() {
    let _watchdog = Watchdog::new(3 * DEADLINE);
    let test = TestCluster::start(3, 0, |_| ()).await;
    let client = test.kv(DEADLINE);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|me| tokio::spawn(write(client.clone(), me, stop.clone()))).collect();
    let enough = format!("{};", WRITES_BEFORE);
    for me in 0..WRITERS {
        let key = format!("second/{me}");
        while !client
            .get(key.clone())
            .await
            .unwrap()
            .is_some_and(|pair| String::from_utf8_lossy(&pair.value).contains(&enough))
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    // Every member makes one, whether it leads or not, and each is of a later state.
    let endpoints = test.cluster.description().kv_endpoints();
    let files: Vec<_> =
        (1..=3).map(|member| test.dir.path().join(format!("{member}.backup"))).collect();
    let (to, from) = (files.clone(), endpoints.clone());
    let indexes = in_background(move || {
        let told = to.iter().zip(&from).map(|(file, endpoint)| {
            let call = ["--json", "backup", text(file), "--endpoints", endpoint];
            let told: Value = serde_json::from_str(&well(&flotilla(&call))).unwrap();
            let looked = well(&flotilla(&["--json", "restore", text(file), "--check"]));
            assert_eq!(told, serde_json::from_str::<Value>(&looked).unwrap());
            assert_eq!((&told["daemon"], &told["cluster"]), (&"kvd".into(), &"flotilla".into()));
            told["index"].as_u64().unwrap()
        });
        told.collect::<Vec<_>>()
    })
    .await;
    assert!(indexes.is_sorted(), "{indexes:?}");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let last = state(&client).await;

    let mut new = TestCluster::start(1, 0, |_| ()).await;
    let told = restore(&mut new, Instance::Kvd(1), &files[2]).await;
    assert_ne!(told["group"], told["restored"]["group"], "it is a group of its own");
    let restored = new.kv(DEADLINE);
    let found = state(&restored).await;
    check_moment(&found);
    for (key, pair) in &found {
        let before = &last[key];
        assert!(before.value.starts_with(&pair.value), "{key} holds what was never there");
        let written = restored.append(key.clone(), "more").await.unwrap().written;
        assert!(written.mod_revision > before.mod_revision, "{key}: a revision comes again");
        assert!(written.version > before.version, "{key}: a version comes again");
    }
    grow(&mut new).await;
}

/// It grows as any group does, and the first member can be lost.
async fn grow(new: &mut TestCluster) {
    let at = new.cluster.description().kv_endpoints().remove(0);
    for node in [2, 3] {
        let (peer, at) = (new.cluster.join_kvd(node).unwrap().to_string(), at.clone());
        in_background(move || {
            let call = ["members", "add", &peer, "--endpoints", &at, "--timeout", "60s"];
            well(&flotilla(&call));
        })
        .await;
    }
    let place = new.cluster.description().place;
    let members = [1, 2, 3].map(|node| place.kvd(node).to_string()).into();
    let client = KvClient::connect(members, Options::with_deadline(DEADLINE)).unwrap();
    let before = client.get("first/0").await.unwrap().unwrap();
    new.cluster.kill(Instance::Kvd(1)).unwrap();
    assert_eq!(client.get("first/0").await.unwrap().unwrap(), before);
}

#[tokio::test]
async fn a_log_is_restored_with_its_indexes() {
    let _watchdog = Watchdog::new(3 * DEADLINE);
    let test = TestCluster::start(0, 0, |plan| plan.log = 1).await;
    let log = |test: &TestCluster| {
        let endpoints = test.cluster.description().log_endpoints();
        LogClient::connect(endpoints, Options::with_deadline(DEADLINE)).unwrap()
    };
    for number in 1..=20 {
        log(&test).append(format!("entry {number}")).await.unwrap();
    }
    log(&test).trim(5).await.unwrap();
    let file = test.dir.path().join("log.backup");
    let endpoint = test.cluster.description().log_endpoints().remove(0);
    well(&flotilla(&["backup", text(&file), "--endpoints", &endpoint]));
    let mut new = TestCluster::start(0, 0, |plan| plan.log = 1).await;
    restore(&mut new, Instance::Raftd(1), &file).await;
    let endpoint = new.cluster.description().log_endpoints().remove(0);
    let tail = well(&flotilla(&["log", "tail", "--indexes", "--endpoints", &endpoint]));
    let wanted: Vec<String> = (5..=20).map(|number| format!("{number} entry {number}")).collect();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words(&tail), words(&wanted.join("\n")));
    assert_eq!(log(&new).append("entry 21").await.unwrap(), 21);
}

#[tokio::test]
async fn what_is_no_backup_or_would_be_overwritten_is_refused() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = TestCluster::start(1, 1, |_| ()).await;
    test.kv(DEADLINE).put("key", "value").await.unwrap();
    let dir = test.dir.path();
    let (file, data) = (dir.join("whole.backup"), dir.join("data"));
    let endpoint = test.cluster.description().kv_endpoints().remove(0);
    well(&flotilla(&["backup", text(&file), "--endpoints", &endpoint]));
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let output = flotilla(arguments);
        let complaint = complained(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {complaint}");
        assert!(complaint.contains(words), "{words:?} is not in: {complaint}");
        assert!(!data.exists() && !dir.join("data.restoring").exists(), "{arguments:?}");
    };
    refused(&["backup", text(&file), "--endpoints", &endpoint], 5, "exists already");
    let elsewhere = dir.join("nowhere/file");
    refused(&["backup", text(&elsewhere), "--endpoints", &endpoint], 1, "can't be written");
    let other = dir.join("other");
    let nobody = ["backup", text(&other), "--endpoints", "127.0.0.1:1", "--timeout", "1s"];
    refused(&nobody, 3, "127.0.0.1:1");
    assert!(!other.exists());

    let whole = fs::read(&file).unwrap();
    let damaged = dir.join("damaged");
    fs::write(&damaged, &whole[..whole.len() - 1]).unwrap();
    refused(&["restore", text(&damaged), text(&data)], 1, "not whole");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    fs::write(&damaged, flipped).unwrap();
    refused(&["restore", text(&damaged), text(&data)], 1, "no backup that can be used");
    fs::write(&damaged, "something else").unwrap();
    refused(&["restore", text(&damaged), text(&data)], 1, "does not begin with");
    refused(&["restore", text(&other), text(&data)], 6, "can't be opened");
    let occupied = test.cluster.dir().join("kvd-1");
    refused(&["restore", text(&file), text(&occupied)], 5, "is not empty");
    refused(&["restore", text(&file), FLOTILLA], 5, "is a file");

    let coordinator = test.cluster.description().coordinator().unwrap();
    let jobs = dir.join("jobs.backup");
    well(&flotilla(&["backup", text(&jobs), "--endpoints", &coordinator]));
    refused(&["restore", text(&jobs), text(&data)], 1, "belongs to its shared root");
}
