//! The examples of the client library, and one in another language: they do what they say.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

// As those who use the library know it.
extern crate client as flotilla_client;

mod support;

#[expect(dead_code, reason = "its main is for people")]
#[path = "../../client/examples/follow.rs"]
mod follow;
#[expect(dead_code, reason = "its main is for people")]
#[path = "../../client/examples/lock.rs"]
mod lock;
#[expect(dead_code, reason = "its main is for people")]
#[path = "../../client/examples/transfer.rs"]
mod transfer;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::{TestCluster, Watchdog, flotilla, well};
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_library() {
    let _watchdog = Watchdog::new(4 * DEADLINE);
    let test = TestCluster::start(3, 0, |_| {}).await;
    let client = test.kv(DEADLINE);

    let mut follower = follow::Follower::new(&client, "{bank}/").await.unwrap();
    client.put("{bank}/anna", "100").await.unwrap();
    let mut transfers = JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        transfers.spawn(async move { transfer::transfer(&client, 7).await.unwrap() });
    }
    let mut left = transfers.join_all().await;
    left.sort_unstable();
    assert_eq!(left, (0..10).map(|done| 30 + 7 * done).collect::<Vec<i64>>());
    while follower.copy.get(&b"{bank}/ben"[..]).is_none_or(|value| value != "70") {
        follower.next(&client).await.unwrap();
    }
    assert_eq!(follower.copy[&b"{bank}/anna"[..]], "30");
    assert!(transfer::careful(&client).await.starts_with("written: "));
    // What it needs is compacted, and it begins anew.
    let mut behind = follow::Follower::new(&client, "").await.unwrap();
    client.put("{bank}/anna", "31").await.unwrap();
    for shard in 0..client.shards().await.unwrap() {
        client.compact(shard, None).await.unwrap();
    }
    while behind.copy[&b"{bank}/anna"[..]] != "31" {
        behind.next(&client).await.unwrap();
    }

    let mut runs = JoinSet::new();
    for _ in 0..5 {
        let client = client.clone();
        runs.spawn(async move { lock::number_the_next_run(&client).await.unwrap() });
    }
    let mut runs = runs.join_all().await;
    runs.sort_unstable();
    assert_eq!(runs, (1..=5).map(Some).collect::<Vec<_>>());
}

/// From the .proto files that `flotilla proto` writes, by each member.
#[tokio::test]
async fn python() {
    let asked = std::env::var("FLOTILLA_PYTHON").ok();
    let python = asked.as_deref().unwrap_or("python3");
    let has_grpc = Command::new(python).args(["-c", "import grpc_tools.protoc"]).output();
    if asked.is_none() && !has_grpc.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: python3 has no grpcio-tools (client/examples/python)");
        return;
    }
    let _watchdog = Watchdog::new(4 * DEADLINE);
    let test = TestCluster::start(3, 0, |_| {}).await;
    let protos = test.dir.path().join("protos");
    let protos = protos.to_str().unwrap();
    well(&flotilla(&["proto", protos]));
    let example =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/examples/python/example.py");
    for endpoint in test.cluster.description().kv_endpoints() {
        let mut command = Command::new(python);
        let output = command.arg(&example).args([protos, &endpoint]).output().unwrap();
        let expected = [
            "put: version 1",
            "put once more: ahoy is there",
            "get: ahoy, world",
            "txn: succeeded True",
            "scan: {python}/key, {python}/two",
            "late write refused: True",
            "pipeline: 100 replies",
            "error: INVALID_ARGUMENT executed never",
            "watch: {python}/key, {python}/key, {python}/two, {python}/key",
        ];
        assert_eq!(well(&output), expected.join("\n"));
    }
}
