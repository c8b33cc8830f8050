//! Which member leads is for people to choose, and a leader that is stopped hands over first.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flotilla::local::{Cluster, Instance};
use serde_json::Value;
use support::{READY_TIMEOUT, TestCluster, Watchdog, complained, flotilla, well};

/// The member that leads, as the members say.
fn leader(cluster: &Cluster) -> u64 {
    let endpoints = cluster.description().kv_endpoints().join(",");
    let output = flotilla(&["status", "--json", "--endpoints", &endpoints]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status["leader"].as_u64().expect("a member leads")
}

#[tokio::test]
async fn the_leadership_goes_where_it_is_sent_and_no_request_fails() {
    let _watchdog = Watchdog::new(2 * READY_TIMEOUT);
    let test = TestCluster::start(3, 0, |_| ()).await;
    let client = test.kv(READY_TIMEOUT);
    client.put("key", "value").await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let appending = {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                client.append("log", format!("{number};")).await.unwrap();
            }
            (client, number)
        })
    };
    let endpoints = test.cluster.description().kv_endpoints().join(",");
    // Commands are processes, and appending goes on beside them.
    let (before, after) = tokio::task::spawn_blocking(move || {
        let cluster = &test.cluster;
        let before = leader(cluster);
        for to in [1, 2, 3, 2] {
            let to = to.to_string();
            let call = ["members", "transfer", "--to", &to, "--endpoints", &endpoints];
            assert!(well(&flotilla(&call)).starts_with(&format!("member {to} leads")));
            assert_eq!(leader(cluster).to_string(), to);
        }
        // To whoever has most of the log.
        let any = well(&flotilla(&["--json", "members", "transfer", "--endpoints", &endpoints]));
        let any: Value = serde_json::from_str(&any).unwrap();
        assert_eq!(any["before"], 2);
        assert_ne!(any["leader"], 2);
        let refused = flotilla(&["members", "transfer", "--to", "9", "--endpoints", &endpoints]);
        assert_eq!(refused.status.code(), Some(6), "{}", complained(&refused));
        stop.store(true, Ordering::Relaxed);
        (before, (leader(cluster), test))
    })
    .await
    .unwrap();
    assert!((1..=3).contains(&before) && (1..=3).contains(&after.0));
    let (client, number) = appending.await.unwrap();
    let wanted: String = (1..=number).map(|number| format!("{number};")).collect();
    assert_eq!(client.get("log").await.unwrap().unwrap().value, wanted);
}

#[tokio::test]
async fn a_leader_that_is_stopped_hands_over_first() {
    let _watchdog = Watchdog::new(2 * READY_TIMEOUT);
    let mut test = TestCluster::start(3, 0, |_| ()).await;
    let client = test.kv(Duration::from_secs(20));
    client.put("key", "value").await.unwrap();
    let leader = u16::try_from(leader(&test.cluster)).unwrap();
    let ended = test.cluster.terminate(Instance::Kvd(leader)).await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended}");
    assert!(ended.tail.contains("handing the leadership over"), "{ended}");
    // It ended only when it followed another, so nobody has to wait for an election.
    assert!(ended.tail.contains("following leader"), "{ended}");
    assert_eq!(client.get("key").await.unwrap().unwrap().value, "value");
}
