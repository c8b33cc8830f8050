//! Shards that move between groups of real processes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use client::shards::{Change, Joining, ShardMap};
use client::{KvClient, Options};
use flotilla::local::{Instance, Plan};
use proto::shard_of;
use raftd::failpoint::{Failpoint, VARIABLE};
use support::groups::{
    DEADLINE, SETTLE_LIMIT, SHARDS, controller, expect_apart, join, settled, start,
};
use support::{TestCluster, Watchdog};
use tokio::time::{Instant, sleep};

const KEYS: usize = 300;

fn kv(test: &TestCluster, group: u16, deadline: Duration) -> KvClient {
    let endpoints = test.cluster.description().group_endpoints(group);
    KvClient::connect(endpoints, Options::with_deadline(deadline)).unwrap()
}

fn key(number: usize) -> String {
    format!("key{number}")
}

fn owner(map: &ShardMap, key: &str) -> u16 {
    let shard = shard_of(key.as_bytes(), SHARDS);
    u16::try_from(map.placements[shard as usize].owner).unwrap()
}

#[tokio::test]
async fn join_basic() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let test = start(2, 3, 1).await;
    let shards = controller(&test);
    let refused = kv(&test, 1, Duration::from_millis(500)).get("early").await;
    assert!(refused.unwrap_err().to_string().contains("has no shards yet"));

    shards.change(&join(&test, &[1]), Some(SHARDS)).await.unwrap();
    let map = settled(&shards).await;
    assert_eq!(expect_apart(&test, &[1], &map).await, BTreeMap::from([(1, 16)]));
    let clients = BTreeMap::from([1, 2].map(|group| (group, kv(&test, group, DEADLINE))));
    for number in 0..KEYS {
        clients[&1].put(key(number), format!("{number}")).await.unwrap();
    }

    shards.change(&join(&test, &[2]), None).await.unwrap();
    let map = settled(&shards).await;
    assert_eq!(expect_apart(&test, &[1, 2], &map).await, BTreeMap::from([(1, 8), (2, 8)]));
    for number in 0..KEYS {
        let key = key(number);
        let found = clients[&owner(&map, &key)].get(key).await.unwrap().unwrap();
        assert_eq!(found.value, format!("{number}"));
    }

    shards.change(&Change::Leave(vec![1]), None).await.unwrap();
    let map = settled(&shards).await;
    assert_eq!(expect_apart(&test, &[1, 2], &map).await, BTreeMap::from([(2, 16)]));
    for number in 0..KEYS {
        let found = clients[&2].get(key(number)).await.unwrap().unwrap();
        assert_eq!(found.value, format!("{number}"));
    }
    test.cluster.stop().await;
}

/// Waits until one of the processes has died at a failpoint, which is told.
async fn dies(test: &mut TestCluster, victim: Instance, at: Failpoint) {
    let until = Instant::now() + SETTLE_LIMIT;
    loop {
        if let Some(ended) = test.cluster.take_ended().into_iter().next() {
            assert_eq!(ended.instance, victim, "{ended}");
            assert!(ended.tail.contains(at.name()), "{ended}");
            return;
        }
        assert!(Instant::now() < until, "{victim} does not die at {}", at.name());
        sleep(Duration::from_millis(10)).await;
    }
}

/// A member of the only two groups, each of which has one, dies at each step of a move, and begins
/// anew. The move goes on, and all that was written is there.
#[tokio::test]
async fn whoever_dies_at_whichever_step_of_a_move_goes_on() {
    // The numbers of those who die are those of their groups.
    let source = [
        (Failpoint::MoveHoldAfter, 1),
        (Failpoint::MoveFreezeAfter, 1),
        (Failpoint::MoveDeleteBefore, 1),
        (Failpoint::MoveDeleteAfter, 1),
    ];
    let destination = [
        (Failpoint::MoveBeginAfter, 1),
        (Failpoint::MoveImportAfter, 1),
        (Failpoint::MoveImportAfter, 3),
        (Failpoint::MoveInstallBefore, 1),
        (Failpoint::MoveInstallAfter, 1),
        (Failpoint::MoveReportAfter, 1),
    ];
    let at_source = source.map(|(at, visit)| (at, visit, true));
    let deaths = at_source.into_iter().chain(destination.map(|(at, visit)| (at, visit, false)));

    let _watchdog = Watchdog::new(6 * SETTLE_LIMIT);
    let mut test = start(2, 1, 1).await;
    let shards = controller(&test);
    shards.change(&join(&test, &[1, 2]), Some(SHARDS)).await.unwrap();
    let map = settled(&shards).await;
    let shard = 0;
    let (mut from, mut to) = if map.placements[0].owner == 1 { (1, 2) } else { (2, 1) };
    let keys: Vec<_> =
        (0..).map(key).filter(|key| shard_of(key.as_bytes(), SHARDS) == shard).take(400).collect();
    for (round, (at, visit, at_source)) in deaths.enumerate() {
        let value = format!("{round}").repeat(500);
        let client = kv(&test, from, DEADLINE);
        for key in &keys {
            client.put(key.clone(), value.clone()).await.unwrap();
        }
        let victim = Instance::Kvd(if at_source { from } else { to });
        test.cluster.kill(victim).unwrap();
        let process = test.cluster.process(victim).unwrap();
        let asked = format!("{}=crash@{visit}", at.name());
        process.set_environment(vec![(VARIABLE.to_owned(), asked)]);
        process.start().unwrap();
        test.cluster.ready_one(victim, Instant::now() + DEADLINE).await.unwrap();
        shards.change(&Change::Move { shard, group: to.into() }, None).await.unwrap();
        dies(&mut test, victim, at).await;
        let process = test.cluster.process(victim).unwrap();
        process.set_environment(Vec::new());
        process.start().unwrap();
        let map = settled(&shards).await;
        assert_eq!(map.placements[0].owner, u32::from(to), "{at:?}");
        expect_apart(&test, &[1, 2], &map).await;
        let client = kv(&test, to, DEADLINE);
        for key in &keys {
            assert_eq!(client.get(key.clone()).await.unwrap().unwrap().value, value, "{at:?}");
        }
        (from, to) = (to, from);
    }
    test.cluster.stop().await;
}

/// The destination of a move serves a shard, and the controller can't be told.
#[tokio::test]
async fn a_shard_is_found_before_the_controller_knows_that_it_has_moved() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let mut test = start(2, 1, 1).await;
    let shards = controller(&test);
    shards.change(&join(&test, &[1]), Some(SHARDS)).await.unwrap();
    settled(&shards).await;
    let client = kv(&test, 1, DEADLINE);
    for number in 0..KEYS {
        client.put(key(number), "before").await.unwrap();
    }
    let destination = Instance::Kvd(2);
    test.cluster.kill(destination).unwrap();
    let process = test.cluster.process(destination).unwrap();
    let asked = format!("{}=crash@1", Failpoint::MoveInstallAfter.name());
    // One shard after the other: a second one might be frozen when the first is installed, and where
    // its source is only the controller can tell who begins anew.
    let one = ("FLOTILLA_KVD__MOVES_MAX".to_owned(), "1".to_owned());
    process.set_environment(vec![(VARIABLE.to_owned(), asked), one]);
    process.start().unwrap();
    test.cluster.ready_one(destination, Instant::now() + DEADLINE).await.unwrap();
    shards.change(&join(&test, &[2]), None).await.unwrap();
    dies(&mut test, destination, Failpoint::MoveInstallAfter).await;
    test.cluster.kill(Instance::Shardctl(1)).unwrap();
    let process = test.cluster.process(destination).unwrap();
    process.set_environment(Vec::new());
    process.start().unwrap();
    test.cluster.ready_one(destination, Instant::now() + DEADLINE).await.unwrap();

    for number in 0..KEYS {
        client.append(key(number), " and after").await.unwrap();
        let found = client.get(key(number)).await.unwrap().unwrap();
        assert_eq!(found.value, "before and after");
    }
    test.cluster.restart(Instance::Shardctl(1)).unwrap();
    let map = settled(&shards).await;
    expect_apart(&test, &[1, 2], &map).await;
    for number in 0..KEYS {
        let found = client.get(key(number)).await.unwrap().unwrap();
        assert_eq!(found.value, "before and after");
    }
    test.cluster.stop().await;
}

/// Without a shard controller nothing changes, and all is served; without a group the others go on,
/// with moves between them, too.
#[tokio::test]
async fn who_is_lost_holds_up_only_what_is_theirs() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let mut test = start(3, 1, 1).await;
    let shards = controller(&test);
    shards.change(&join(&test, &[1, 2, 3]), Some(SHARDS)).await.unwrap();
    let map = settled(&shards).await;

    test.cluster.kill(Instance::Shardctl(1)).unwrap();
    for group in [1, 2, 3] {
        let instance = Instance::Kvd(group);
        test.cluster.kill(instance).unwrap();
        test.cluster.restart(instance).unwrap();
        test.cluster.ready_one(instance, Instant::now() + DEADLINE).await.unwrap();
        let client = kv(&test, group, DEADLINE);
        for key in (0..KEYS).map(key).filter(|key| owner(&map, key) == group) {
            client.put(key, "without a controller").await.unwrap();
        }
    }
    test.cluster.restart(Instance::Shardctl(1)).unwrap();

    test.cluster.kill(Instance::Kvd(2)).unwrap();
    let of = |group| map.placements.iter().find(|it| it.owner == group).unwrap().shard;
    let (lost, well) = (of(2), of(1));
    for shard in [lost, well] {
        shards.change(&Change::Move { shard, group: 3 }, None).await.unwrap();
    }
    // Only its shards are not served, and whoever is asked says whose they are, if there was time to
    // learn that.
    let patience = Duration::from_secs(5);
    let controllers = test.cluster.description().controller_endpoints();
    let options = Options::with_deadline(patience);
    let by_map = KvClient::connect_sharded(controllers, options).unwrap();
    let theirs = (0..KEYS).map(key).find(|key| owner(&map, key) == 2).unwrap();
    for client in [kv(&test, 1, patience), by_map] {
        let refused = client.get(theirs.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("group 2"), "{refused}");
    }
    let mut watch = shards.watch();
    let until = Instant::now() + SETTLE_LIMIT;
    loop {
        let map = tokio::time::timeout_at(until, watch.next()).await.unwrap().unwrap();
        let waits = &map.placements[lost as usize];
        assert_eq!((waits.owner, waits.r#move.is_some()), (2, true));
        if map.placements[well as usize].owner == 3 {
            break;
        }
    }
    test.cluster.restart(Instance::Kvd(2)).unwrap();
    let map = settled(&shards).await;
    assert_eq!(map.placements[lost as usize].owner, 3);
    expect_apart(&test, &[1, 2, 3], &map).await;
    test.cluster.stop().await;
}

/// A group of one member that was alone, in its second life.
fn alone(plan: &mut Plan, group: u32, controllers: &[String]) {
    plan.further.kvd = vec![format!("--shards={SHARDS}"), format!("--shard-group={group}")];
    plan.further.kvd.extend(controllers.iter().map(|at| format!("--controller={at}")));
}

#[tokio::test]
async fn a_store_that_was_alone_is_adopted_with_its_data() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let test = TestCluster::start(1, 0, |plan| {
        plan.controllers = 1;
        plan.further.shardctl = vec![format!("--shards={SHARDS}")];
        plan.further.kvd = vec![format!("--shards={SHARDS}")];
    })
    .await;
    let client = test.kv(DEADLINE);
    for number in 0..KEYS {
        client.put(key(number), format!("{number}")).await.unwrap();
    }
    let shards = controller(&test);
    let controllers = test.cluster.description().controller_endpoints();
    let test = test.restarted(|plan| alone(plan, 1, &controllers)).await;
    let other = TestCluster::start(1, 0, |plan| alone(plan, 2, &controllers)).await;
    let members = |test: &TestCluster| test.cluster.description().kv_endpoints();

    // It has reported what it has, so nobody takes it for empty.
    let until = Instant::now() + SETTLE_LIMIT;
    let adopted = loop {
        match shards.change(&Change::Adopt(1), Some(SHARDS)).await {
            Ok(changed) => break changed,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    };
    assert_eq!(adopted.number, 1);
    let map = settled(&shards).await;
    assert!(map.placements.iter().all(|placement| placement.owner == 1));
    for number in 0..KEYS {
        let found = client.get(key(number)).await.unwrap().unwrap();
        assert_eq!(found.value, format!("{number}"));
    }

    let members = members(&other);
    let joining = Joining { group: 2, weight: None, members: members.clone() };
    shards.change(&Change::Join(vec![joining]), None).await.unwrap();
    let map = settled(&shards).await;
    let to = KvClient::connect(members, Options::with_deadline(DEADLINE)).unwrap();
    for number in 0..KEYS {
        let key = key(number);
        let owner = if owner(&map, &key) == 1 { &client } else { &to };
        assert_eq!(owner.get(key).await.unwrap().unwrap().value, format!("{number}"));
    }
    other.cluster.stop().await;
    test.cluster.stop().await;
}
