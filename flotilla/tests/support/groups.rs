//! Stores of several groups that share their shards.

use std::collections::BTreeMap;
use std::time::Duration;

use client::handoff::{HandoffClient, ShardPhase};
use client::shards::{Change, Joining, ShardMap};
use client::{Options, ShardClient};
use tokio::time::{Instant, sleep};

use super::TestCluster;

pub(crate) const SHARDS: u32 = 16;

/// How long a client tries: longer than any election.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How long a change may take.
pub(crate) const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// Some groups, none of which takes part yet.
pub(crate) async fn start(groups: u16, members: u16, controllers: u16) -> TestCluster {
    TestCluster::start(members, 0, |plan| {
        plan.groups = groups;
        plan.controllers = controllers;
        plan.further.shardctl = vec![format!("--shards={SHARDS}")];
        plan.further.kvd = vec![format!("--shards={SHARDS}")];
    })
    .await
}

pub(crate) fn controller(test: &TestCluster) -> ShardClient {
    let endpoints = test.cluster.description().controller_endpoints();
    ShardClient::connect(endpoints, Options::with_deadline(DEADLINE)).unwrap()
}

/// That these groups take part.
pub(crate) fn join(test: &TestCluster, groups: &[u16]) -> Change {
    let joining = |&group: &u16| Joining {
        group: group.into(),
        weight: None,
        members: test.cluster.description().group_endpoints(group),
    };
    Change::Join(groups.iter().map(joining).collect())
}

/// Waits until no shard is on its way, and each is where it shall be.
pub(crate) async fn settled(shards: &ShardClient) -> ShardMap {
    let until = Instant::now() + SETTLE_LIMIT;
    let mut watch = shards.watch();
    loop {
        let map = tokio::time::timeout_at(until, watch.next()).await;
        let Ok(map) = map else { panic!("not settled: {:?}", watch.map()) };
        let map = map.unwrap();
        let moving = map.placements.iter().any(|it| it.r#move.is_some() || it.owner == 0);
        if !moving && !map.placements.is_empty() {
            return map.clone();
        }
    }
}

/// How many shards each group has, which must be as many as there are; and of no shard is anything
/// left in another group.
pub(crate) async fn expect_apart(
    test: &TestCluster,
    groups: &[u16],
    map: &ShardMap,
) -> BTreeMap<u32, usize> {
    let mut loads = BTreeMap::new();
    let until = Instant::now() + SETTLE_LIMIT;
    for &group in groups {
        for member in test.cluster.description().group_endpoints(group) {
            let client = HandoffClient::connect(&[member], Options::default()).unwrap();
            loop {
                let shards = client.inspect().await.unwrap().shards;
                let wrong = (0..).zip(&shards).find(|(shard, standing)| {
                    let owned = map.placements[*shard as usize].owner == u32::from(group);
                    let serving = standing.phase() == ShardPhase::Serving;
                    let absent = standing.phase() == ShardPhase::Absent && standing.bytes == 0;
                    if owned { !serving } else { !absent }
                });
                let Some(wrong) = wrong else { break };
                assert!(Instant::now() < until, "group {group} has {wrong:?}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    for placement in &map.placements {
        *loads.entry(placement.owner).or_default() += 1;
    }
    loads
}
