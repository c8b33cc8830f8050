//! A cluster without work costs next to nothing: neither processor time nor memory nor log lines.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::time::Duration;

use flotilla::local::{Cluster, Instance};
use support::{TestCluster, Watchdog};
use tokio::time::{Instant, sleep};

const MEMBERS: u16 = 3;

/// How long is measured.
const WINDOW: Duration = Duration::from_secs(5);

/// How long a machine that is busy with other tests may keep the members from being idle.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three members together, in hundredths of a core. A release build alone on its machine uses under
/// 2; this is a debug build among other tests.
const CPU_PERCENT_MAX: f64 = 8.0;

/// Of one member. A release build uses under 60 MB.
const RESIDENT_BYTES_MAX: f64 = 90e6;

async fn sum(cluster: &mut Cluster, name: &str) -> f64 {
    let mut sum = 0.0;
    for node in 1..=MEMBERS {
        sum += cluster.metric(Instance::Kvd(node), name).await.unwrap();
    }
    sum
}

fn log_bytes(cluster: &mut Cluster) -> u64 {
    (1..=MEMBERS)
        .map(|node| {
            fs::metadata(cluster.process(Instance::Kvd(node)).unwrap().log()).unwrap().len()
        })
        .sum()
}

#[tokio::test]
async fn a_quiet_cluster_uses_little_of_anything() {
    let _watchdog = Watchdog::new(4 * PATIENCE);
    let mut test = TestCluster::start(MEMBERS, 0, |_| ()).await;
    let cluster = &mut test.cluster;
    let deadline = Instant::now() + PATIENCE;
    // A window in which another test starves the members is measured again.
    loop {
        let (cpu_before, log_before) =
            (sum(cluster, "process_cpu_seconds_total").await, log_bytes(cluster));
        let began = Instant::now();
        sleep(WINDOW).await;
        let cpu = sum(cluster, "process_cpu_seconds_total").await - cpu_before;
        let percent = cpu / began.elapsed().as_secs_f64() * 100.0;
        let logged = log_bytes(cluster) - log_before;
        eprintln!("three idle members use {percent:.2} % of a core and log {logged} bytes");
        if percent <= CPU_PERCENT_MAX && logged == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "idle members use {percent:.1} % of a core");
    }
    for node in 1..=MEMBERS {
        let instance = Instance::Kvd(node);
        let resident = cluster.metric(instance, "process_resident_memory_bytes").await.unwrap();
        eprintln!("{instance} holds {:.1} MB", resident / 1e6);
        assert!(resident <= RESIDENT_BYTES_MAX, "{instance} holds {resident} bytes");
    }
}
