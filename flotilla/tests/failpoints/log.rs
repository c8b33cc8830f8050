//! The replicated log: entries are where their clients were told that they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use client::log::{LogEntry, Range};
use client::{Error, LogClient, Options};
use flotilla::local::Instance;
use raftd::failpoint::Failpoint;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::deaths::{BURST, CLIENTS, DEADLINE, MEMBERS, PAUSE, SETTINGS, Victims, Visits, visits};
use super::support::{Depth, TestCluster, Watchdog};

/// Which places, in which order: all that it comes to, or those of which a quick look is made.
fn places(depth: Depth) -> Vec<Failpoint> {
    let of_the_log = |at: &Failpoint| !matches!(visits(*at), Visits::Never | Visits::Leases);
    let all = Failpoint::ALL.iter().copied().filter(of_the_log);
    match depth {
        Depth::Quick => vec![
            Failpoint::LogSyncAfter,
            Failpoint::FloorWriteBetween,
            Failpoint::SnapshotInstallAfter,
            Failpoint::CompactRootAfter,
        ],
        Depth::Ci => all.collect(),
        Depth::Deep => all.collect::<Vec<_>>().repeat(10),
    }
}

#[tokio::test]
async fn a_member_of_the_log_may_die_at_any_named_place() {
    let places = places(Depth::asked());
    let _watchdog = Watchdog::new(DEADLINE + places.len() as u32 * DEADLINE / 2);
    let test = TestCluster::start(0, 0, |plan| {
        let settings = plan.dir.join("raftd.toml");
        std::fs::write(&settings, SETTINGS).unwrap();
        plan.log = MEMBERS;
        plan.further.raftd = vec![format!("--config={}", settings.display())];
    })
    .await;
    let endpoints = test.cluster.description().log_endpoints();
    let options = Options::with_deadline(DEADLINE);
    let client = LogClient::connect(endpoints.clone(), options).unwrap();
    let mut victims = Victims::new(test, endpoints, Instance::Raftd);
    let mut acknowledged = 0;
    for (round, at) in places.into_iter().enumerate() {
        let last = client.status().await.unwrap().last_index;
        client.trim(last + 1).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for me in 0..CLIENTS {
            clients.spawn(append(format!("{round}.{me}"), client.clone(), stop.clone()));
        }
        victims.round(at).await;
        stop.store(true, Ordering::Relaxed);
        let appends = clients.join_all().await.concat();
        acknowledged += appends.iter().filter(|(_, index)| index.is_some()).count();
        check(&client, &victims.endpoints, last + 1, &appends).await;
    }
    victims.finish(acknowledged);
}

/// What a client asked to be appended, and where it is, if that was told.
type Append = (Bytes, Option<u64>);

async fn append(name: String, client: LogClient, stop: Arc<AtomicBool>) -> Vec<Append> {
    let mut appends = Vec::new();
    let mut burst = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let payload = Bytes::from(format!("{name}.{}", appends.len()));
        let index = match client.append(payload.clone()).await {
            Ok(index) => Some(index),
            Err(Error::Unknown(_)) => None,
            Err(Error::Rejected(rejected)) => panic!("{name}: {rejected}"),
        };
        appends.push((payload, index));
        if burst.elapsed() >= BURST {
            sleep(PAUSE).await;
            burst = Instant::now();
        }
    }
    appends
}

/// What was acknowledged is where it was told, nothing is there twice or unasked, each client's
/// is in its order, and all members have the same.
async fn check(client: &LogClient, endpoints: &[String], from: u64, appends: &[Append]) {
    let last = client.status().await.unwrap().last_index;
    let mut all: Vec<Vec<LogEntry>> = Vec::new();
    for endpoint in endpoints {
        let options = Options::with_deadline(DEADLINE);
        let client = LogClient::connect(vec![endpoint.clone()], options).unwrap();
        let range = Range { from_index: from, to_index: Some(last), stale: false };
        let mut tail = client.tail(range);
        let mut entries = Vec::new();
        while let Some(entry) = tail.next().await.unwrap() {
            entries.push(entry);
        }
        all.push(entries);
    }
    assert!(all.iter().all(|entries| *entries == all[0]), "the members differ");
    let mut places = BTreeMap::new();
    for entry in &all[0] {
        let before = places.insert(entry.payload.clone(), entry.index);
        assert_eq!(before, None, "{:?} is there twice", entry.payload);
    }
    let mut before = (Bytes::new(), 0);
    for (payload, index) in appends {
        let client = payload.slice(..payload.iter().rposition(|byte| *byte == b'.').unwrap());
        let place = places.remove(payload);
        assert!(index.is_none() || place == *index, "{payload:?} at {place:?}, not {index:?}");
        if let Some(place) = place {
            assert!(before.0 != client || before.1 < place, "{payload:?} is out of order");
            before = (client, place);
        }
    }
    assert!(places.is_empty(), "nobody asked for {places:?}");
}
