//! Groups and shard controllers that do not belong together: whatever a person has mixed up, nothing is
//! given away or deleted, and it is told.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::time::Duration;

use client::handoff::{HandoffClient, ShardPhase};
use client::{KvClient, Options};
use flotilla::local::Instance;
use futures::future::join_all;
use proto::kv::HandoffRequest;
use support::groups::{
    DEADLINE, SETTLE_LIMIT, SHARDS, controller, expect_apart, join, settled, start,
};
use support::{TestCluster, Watchdog, flotilla, well};
use tokio::time::{Instant, sleep};

const KEYS: usize = 200;

fn sharded(test: &TestCluster) -> KvClient {
    let controllers = test.cluster.description().controller_endpoints();
    KvClient::connect_sharded(controllers, Options::with_deadline(DEADLINE)).unwrap()
}

async fn fill(client: &KvClient) {
    for number in 0..KEYS {
        client.put(format!("key{number}"), format!("{number}")).await.unwrap();
    }
}

async fn expect_all(client: &KvClient) {
    for number in 0..KEYS {
        let found = client.get(format!("key{number}")).await.unwrap();
        assert_eq!(found.unwrap().value, format!("{number}"));
    }
}

/// Starts the one member of a group anew, as if a person had said that it is of this group.
async fn restart_as(test: &mut TestCluster, member: u16, group: u16, controllers: &[String]) {
    let instance = Instance::Kvd(member);
    let listen = test.cluster.description().place.kvd(member);
    let data = test.cluster.dir().join(instance.to_string());
    let mut arguments = vec![
        "kvd".to_owned(),
        format!("--listen={listen}"),
        "--node=1".to_owned(),
        format!("--data={}", data.display()),
        format!("--member=1={listen}"),
        format!("--shards={SHARDS}"),
        format!("--shard-group={group}"),
    ];
    arguments.extend(controllers.iter().map(|at| format!("--controller={at}")));
    test.cluster.kill(instance).unwrap();
    test.cluster.process(instance).unwrap().set_arguments(arguments);
    test.cluster.restart(instance).unwrap();
    test.cluster.ready_one(instance, Instant::now() + DEADLINE).await.unwrap();
}

/// Waits until a member tells a person so.
async fn tells(test: &mut TestCluster, member: u16, words: &str) {
    let log = test.cluster.process(Instance::Kvd(member)).unwrap().log().to_owned();
    let until = Instant::now() + SETTLE_LIMIT;
    while !std::fs::read_to_string(&log).unwrap().contains(words) {
        assert!(Instant::now() < until, "kvd-{member} does not say: {words}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all members of a group have applied the same.
async fn all_alike(members: &[String]) {
    let until = Instant::now() + SETTLE_LIMIT;
    loop {
        let asked = members.iter().map(|at| client::admin::status(at, DEADLINE));
        let told = join_all(asked).await.into_iter().map(|status| status.unwrap().applied_index);
        let told: Vec<u64> = told.collect();
        if told.iter().all(|index| *index == told[0]) {
            return;
        }
        assert!(Instant::now() < until, "applied: {told:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_controller_that_is_not_their_own_takes_nothing_from_groups() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let mut test = start(2, 1, 1).await;
    let shards = controller(&test);
    shards.change(&join(&test, &[1, 2]), Some(SHARDS)).await.unwrap();
    let map = settled(&shards).await;
    fill(&sharded(&test)).await;

    // All shards are group 2's there, also those that group 1 has.
    let wrong = start(0, 0, 1).await;
    let controllers = wrong.cluster.description().controller_endpoints();
    restart_as(&mut test, 1, 1, &controllers).await;
    restart_as(&mut test, 2, 2, &controllers).await;
    controller(&wrong).change(&join(&test, &[2]), Some(SHARDS)).await.unwrap();
    tells(&mut test, 1, "this group does not have a shard that it serves").await;

    // The mistake is noticed. What group 2 has made of shards that it never had is left there, empty
    // (docs/decisions.md, "Put off"); nobody asks it for them.
    let controllers = test.cluster.description().controller_endpoints();
    restart_as(&mut test, 1, 1, &controllers).await;
    restart_as(&mut test, 2, 2, &controllers).await;
    assert_eq!(settled(&shards).await.placements, map.placements);
    expect_all(&sharded(&test)).await;
    test.cluster.stop().await;
    wrong.cluster.stop().await;
}

#[tokio::test]
async fn of_two_groups_with_one_number_the_second_takes_part_in_nothing() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let mut test = start(3, 1, 1).await;
    let shards = controller(&test);
    shards.change(&join(&test, &[1]), Some(SHARDS)).await.unwrap();
    settled(&shards).await;
    fill(&sharded(&test)).await;

    let controllers = test.cluster.description().controller_endpoints();
    restart_as(&mut test, 2, 1, &controllers).await;
    tells(&mut test, 2, "knows another Raft group by this number").await;
    shards.change(&join(&test, &[3]), None).await.unwrap();
    let map = settled(&shards).await;
    expect_apart(&test, &[1, 3], &map).await;
    let second = test.cluster.description().group_endpoints(2);
    let inspected = HandoffClient::connect(&second, Options::default()).unwrap().inspect().await;
    let is_absent = |it: &client::handoff::ShardStanding| it.phase() == ShardPhase::Absent;
    assert!(inspected.unwrap().shards.iter().all(is_absent));
    expect_all(&sharded(&test)).await;
    test.cluster.stop().await;
}

#[tokio::test]
async fn a_group_that_was_recovered_serves_what_it_has_and_moves_nothing() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let mut test = start(2, 3, 1).await;
    let shards = controller(&test);
    shards.change(&join(&test, &[1]), Some(SHARDS)).await.unwrap();
    settled(&shards).await;
    let client = sharded(&test);
    fill(&client).await;
    all_alike(&test.cluster.description().group_endpoints(1)).await;

    for member in test.cluster.description().group(1) {
        test.cluster.kill(Instance::Kvd(member)).unwrap();
    }
    let survivor = test.cluster.dir().join("kvd-1");
    well(&flotilla(&["members", "recover", "--yes", "--dir", survivor.to_str().unwrap()]));
    test.cluster.restart(Instance::Kvd(1)).unwrap();
    tells(&mut test, 1, "knows another Raft group by this number").await;
    expect_all(&client).await;

    // It is asked to give shards away, and says why it does not.
    shards.change(&join(&test, &[2]), None).await.unwrap();
    let told = shards.query(None, false).await.unwrap();
    let leaving = told.placements.iter().find(|placement| placement.r#move.is_some()).unwrap();
    let handoff = HandoffRequest { shards: SHARDS, shard: leaving.shard, number: leaving.last };
    let endpoint = test.cluster.description().group_endpoints(1).remove(0);
    let source = HandoffClient::connect(&[endpoint], Options::with_deadline(DEADLINE)).unwrap();
    let until = Instant::now() + SETTLE_LIMIT;
    loop {
        let refused = source.hold(handoff).await.unwrap_err().to_string();
        if refused.contains("means another Raft group by number 1") {
            break;
        }
        // It may not have heard of the move yet.
        assert!(refused.contains("was not told") && Instant::now() < until, "{refused}");
    }
    let standings = source.inspect().await.unwrap().shards;
    assert!(standings.iter().all(|standing| standing.phase() == ShardPhase::Serving));
    expect_all(&client).await;
    test.cluster.stop().await;
}
