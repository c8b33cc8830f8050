//! A member that was away for a while comes back from the log of the leader, which keeps what it lacks
//! and reads it from its disk; one that was away for longer costs the leader no more than its budget.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::time::{Duration, Instant};

use client::KvClient;
use flotilla::local::{Cluster, Instance};
use support::{Depth, READY_TIMEOUT, TestCluster, Watchdog, ready};
use tokio::task::JoinSet;

/// How many clients write at a time.
const CLIENTS: u64 = 64;
const VALUE_BYTES: usize = 1_000;

const MIB: u64 = 1 << 20;

/// A cluster whose members take a snapshot for every MiB of log and keep none of that for each other
/// unless they lack it, and hardly any in memory.
async fn start(retained_bytes_max: u64) -> TestCluster {
    TestCluster::start(3, 0, |plan| {
        let settings = plan.dir.join("kvd.toml");
        let text = format!(
            "[group]\nsnapshot_log_bytes_min = {MIB}\nretained_bytes = 0\n\
             log_window_bytes = 100000\nretained_bytes_max = {retained_bytes_max}\n"
        );
        std::fs::write(&settings, text).unwrap();
        plan.further.kvd = vec![format!("--config={}", settings.display())];
    })
    .await
}

/// What the admin service of a member says.
async fn status(cluster: &Cluster, member: u16) -> proto::admin::StatusReply {
    let endpoints = cluster.description().kv_endpoints();
    let endpoint = &endpoints[usize::from(member) - 1];
    client::admin::status(endpoint, READY_TIMEOUT).await.unwrap()
}

async fn leader(cluster: &Cluster) -> u16 {
    u16::try_from(status(cluster, 1).await.leader).unwrap()
}

/// Overwrites the same few keys, of one shard, so that little of the past is kept and a snapshot is
/// small, until `bytes` were written and the time has passed.
async fn write(client: &KvClient, bytes: u64, time: Duration) {
    let begin = Instant::now();
    let each = bytes / CLIENTS / VALUE_BYTES as u64;
    let mut clients = JoinSet::new();
    for me in 0..CLIENTS {
        let client = client.clone();
        clients.spawn(async move {
            let mut number = 0;
            while number < each || begin.elapsed() < time {
                let value = vec![b'a' + (number % 26) as u8; VALUE_BYTES];
                client.put(format!("{{away}}{me}"), value).await.unwrap();
                number += 1;
            }
        });
    }
    clients.join_all().await;
}

/// Waits until a member has applied all that the leader has.
async fn wait_until_equal(cluster: &Cluster, member: u16, leader: u16) {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let (its, all) = (status(cluster, member).await, status(cluster, leader).await);
        if its.applied_index >= all.commit_index {
            return;
        }
        assert!(Instant::now() < deadline, "member {member} is behind: {its:?}, {all:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const INSTALLED: &str = "flotilla_raft_snapshots_installed_total";
const LOG_READS: &str = "flotilla_raft_log_reads_total";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_comes_back_from_the_log() {
    let time = match Depth::asked() {
        Depth::Quick | Depth::Ci => Duration::ZERO,
        Depth::Deep => Duration::from_secs(20),
    };
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut test = start(1 << 30).await;
    let client = test.kv(READY_TIMEOUT);
    write(&client, 2 * MIB, Duration::ZERO).await;
    let leader = leader(&test.cluster).await;
    let away = leader % 3 + 1;
    test.cluster.kill(Instance::Kvd(away)).unwrap();
    let before = status(&test.cluster, leader).await;
    write(&client, 8 * MIB, time).await;
    let after = status(&test.cluster, leader).await;
    assert!(after.snapshot_index > before.snapshot_index, "there was no snapshot meanwhile");
    test.cluster.restart(Instance::Kvd(away)).unwrap();
    ready(&mut test.cluster).await;
    let back = Instant::now();
    wait_until_equal(&test.cluster, away, leader).await;
    println!(
        "{} entries later it was back within {:?}",
        after.last_index - before.last_index,
        back.elapsed()
    );
    assert_eq!(test.cluster.metric(Instance::Kvd(away), INSTALLED).await, None, "no snapshot");
    let reads = test.cluster.metric(Instance::Kvd(leader), LOG_READS).await.unwrap_or(0.0);
    assert!(reads >= 8.0, "what it lacked was read from the disk: {reads} reads");
    test.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_away_costs_no_more_than_the_budget() {
    let (bytes, time) = match Depth::asked() {
        Depth::Quick | Depth::Ci => (12 * MIB, Duration::ZERO),
        Depth::Deep => (12 * MIB, Duration::from_secs(600)),
    };
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT + time);
    let mut test = start(2 * MIB).await;
    let client = test.kv(READY_TIMEOUT);
    write(&client, MIB, Duration::ZERO).await;
    let leader = leader(&test.cluster).await;
    let away = leader % 3 + 1;
    test.cluster.kill(Instance::Kvd(away)).unwrap();
    let (mut largest, mut written) = (0, 0);
    let begin = Instant::now();
    while written < bytes || begin.elapsed() < time {
        write(&client, MIB, Duration::ZERO).await;
        written += MIB;
        largest = largest.max(status(&test.cluster, leader).await.log_bytes);
    }
    // What makes a snapshot due, with the stagger and what is written while it is taken, and the
    // budget.
    println!("{written} bytes were written, the largest log had {largest}");
    assert!(largest <= (2 + 4) * MIB, "the leader's log has grown to {largest} bytes");
    test.cluster.restart(Instance::Kvd(away)).unwrap();
    ready(&mut test.cluster).await;
    wait_until_equal(&test.cluster, away, leader).await;
    let installed = test.cluster.metric(Instance::Kvd(away), INSTALLED).await;
    assert!(installed >= Some(1.0), "it needs a snapshot: {installed:?}");
    test.cluster.stop().await;
}
