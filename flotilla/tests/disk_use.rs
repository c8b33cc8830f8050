//! What a member takes of its disk depends on what it holds, not on what it was ever given.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use client::KvClient;
use flotilla::local::Instance;
use support::{Depth, READY_TIMEOUT, TestCluster, Watchdog};
use tokio::task::JoinSet;
use tokio::time::timeout;

const MEMBERS: u16 = 3;
const CLIENTS: u64 = 16;
const MIB: u64 = 1 << 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What a member may take: ten segments of 8 MiB for each of its two databases.
const MEMBER_BYTES_MAX: u64 = 160 * MIB;

/// A cluster that takes a snapshot for every MiB of log, as small as its state is.
async fn start() -> TestCluster {
    TestCluster::start(MEMBERS, 0, |plan| {
        let settings = plan.dir.join("kvd.toml");
        let text = format!(
            "[group]\nsnapshot_log_bytes_min = {MIB}\nretained_bytes = 0\n\
             retained_bytes_max = {MIB}\nlog_window_bytes = {MIB}\n"
        );
        fs::write(&settings, text).unwrap();
        plan.further.kvd = vec![format!("--config={}", settings.display())];
    })
    .await
}

/// The blocks that a directory takes.
fn bytes_of(path: &Path) -> u64 {
    // sled renames and removes files meanwhile, but no directories.
    let each = fs::read_dir(path).unwrap().flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_of(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    each.sum()
}

/// What the largest member takes.
fn largest(test: &TestCluster) -> u64 {
    let dir = |node| test.cluster.dir().join(Instance::Kvd(node).to_string());
    let of = |node| bytes_of(&dir(node));
    (1..=MEMBERS).map(of).max().unwrap()
}

/// Lets clients work side by side until `bytes` went in, and looks at the disks all the while.
async fn check<F>(bytes: u64, work: impl Fn(KvClient, u64, u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let _watchdog = Watchdog::new(8 * READY_TIMEOUT);
    let test = start().await;
    let client = test.kv(READY_TIMEOUT);
    let mut clients: JoinSet<()> =
        (0..CLIENTS).map(|me| work(client.clone(), me, bytes / CLIENTS)).collect();
    let mut most = 0;
    while !clients.is_empty() {
        if let Ok(Some(ended)) = timeout(LOOK_INTERVAL, clients.join_next()).await {
            ended.unwrap();
        }
        most = most.max(largest(&test));
    }
    println!("{bytes} bytes went in; the largest member took {most}");
    assert!(most <= MEMBER_BYTES_MAX, "a member took {most} bytes of its disk");
}

fn bytes() -> u64 {
    match Depth::asked() {
        Depth::Quick => 192 * MIB,
        Depth::Ci => 384 * MIB,
        Depth::Deep => 2_048 * MIB,
    }
}

/// The labs' `DiskUse`: the same keys are written over and over.
#[tokio::test]
async fn disk_use_bounded() {
    check(bytes(), |client, me, bytes| async move {
        let value = vec![7; 16 << 10];
        for round in 0..bytes / value.len() as u64 {
            client.put(format!("{{disk}}{me}-{}", round % 4), value.clone()).await.unwrap();
        }
    })
    .await;
}

/// The labs' `AppendUse`: keys grow and go. An append answers with the value that was there, so
/// answers that stayed would come to many times what went in.
#[tokio::test]
async fn append_use_bounded() {
    const ROUND: u64 = 16;
    check(bytes() / 4, |client, me, bytes| async move {
        let part = vec![7; 2 << 10];
        for round in 0..bytes / part.len() as u64 {
            let key = format!("{{disk}}{me}-{}", round / ROUND);
            let old = client.append(key.clone(), part.clone()).await.unwrap();
            let len = old.old_value.map(|value| value.len() as u64);
            assert_eq!(len, Some(round % ROUND * part.len() as u64));
            if round % ROUND == ROUND - 1 {
                client.delete(key).await.unwrap();
            }
        }
    })
    .await;
}
