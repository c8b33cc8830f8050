//! Whoever asks whomever: requests reach the group that has their shard, while shards move.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use client::shards::{Change, ShardMap};
use client::{
    Error, Keys, KvClient, LockClient, LockOptions, Options, Rejected, ScanOptions, ShardClient,
    Transport, Txn, WatchOptions, Watched,
};
use flotilla::local::Instance;
use proto::kv::{PutRequest, kv_client::KvClient as Stub};
use proto::metadata::{self, DIRECT};
use proto::shard_of;
use support::groups::{self, DEADLINE, SETTLE_LIMIT, SHARDS, controller, settled};
use support::{TestCluster, Watchdog, flotilla, well};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Request;

/// Some groups, of which the first has all shards.
async fn start(groups: u16, members: u16) -> (TestCluster, ShardClient) {
    let test = groups::start(groups, members, 1).await;
    let shards = controller(&test);
    join(&test, &shards, 1).await;
    (test, shards)
}

async fn join(test: &TestCluster, shards: &ShardClient, group: u16) -> ShardMap {
    shards.change(&groups::join(test, &[group]), Some(SHARDS)).await.unwrap();
    settled(shards).await
}

fn options(transport: Transport) -> Options {
    Options { transport, ..Options::with_deadline(DEADLINE) }
}

/// Where a router listens, which is ready.
async fn router(test: &mut TestCluster) -> String {
    let address = test.cluster.add_router().unwrap().to_string();
    test.cluster.ready_one(Instance::Router, Instant::now() + DEADLINE).await.unwrap();
    address
}

/// Clients of each kind: one that knows the controller, of each group one that knows only it, and one
/// that knows a router.
fn clients(test: &TestCluster, groups: u16, router: &str) -> BTreeMap<String, KvClient> {
    let description = test.cluster.description();
    let mut clients = BTreeMap::new();
    for transport in [Transport::Pipelined, Transport::Unary] {
        let controllers = description.controller_endpoints();
        let client = KvClient::connect_sharded(controllers, options(transport)).unwrap();
        clients.insert(format!("sharded {transport:?}"), client);
        let whom = (1..=groups)
            .map(|group| (format!("group {group}"), description.group_endpoints(group)));
        let router = ("router".to_owned(), vec![router.to_owned()]);
        for (name, endpoints) in whom.chain([router]) {
            let client = KvClient::connect(endpoints, options(transport)).unwrap();
            clients.insert(format!("{name} {transport:?}"), client);
        }
    }
    clients
}

fn owner(map: &ShardMap, key: &str) -> u32 {
    map.placements[shard_of(key.as_bytes(), SHARDS) as usize].owner
}

#[tokio::test]
async fn whoever_is_asked_answers() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let (mut test, shards) = start(2, 1).await;
    let map = join(&test, &shards, 2).await;
    let router = router(&mut test).await;
    let clients = clients(&test, 2, &router);
    for (number, (name, client)) in clients.iter().enumerate() {
        for at in 0..20 {
            let key = format!("{{{number}.{at}}}");
            assert_eq!(client.put(key.clone(), name.clone()).await.unwrap().version, 1, "{name}");
            for other in clients.values() {
                assert_eq!(other.get(key.clone()).await.unwrap().unwrap().value, *name);
            }
            let txn = Txn::new()
                .when_version(key.clone(), 1)
                .append(key.clone(), "!")
                .get(format!("{key}x"));
            assert!(client.txn(txn).await.unwrap().succeeded);
        }
        // Leases and locks are where their shards are.
        let locks = LockClient::new(client.clone());
        for at in 0..8 {
            let (name, options) = (format!("{{{number}.{at}}}lock"), LockOptions::default());
            let held = locks.acquire(name.clone(), &options).await.unwrap().unwrap();
            assert_eq!(locks.inspect(name).await.unwrap().holder.unwrap().token, held.token());
            assert!(client.keep_alive(held.lease_id()).await.unwrap().is_some());
            assert!(held.release().await.unwrap());
        }
    }
    // A transaction has one shard, whoever is asked.
    let shard = |key: &String| shard_of(key.as_bytes(), SHARDS);
    let mut others = (0..).map(|number| format!("other{number}"));
    let other = others.find(|key| shard(key) != shard(&"one".to_owned())).unwrap();
    for client in clients.values() {
        let refused = client.txn(Txn::new().put("one", "1").put(other.clone(), "1")).await;
        let Err(Error::Rejected(Rejected::Invalid(why))) = refused else { panic!("{refused:?}") };
        assert!(why.contains("in different shards"), "{why}");
    }
    // Who wants to be told is told.
    let keys = (0..).map(|number| format!("key{number}"));
    let key = keys.into_iter().find(|key| owner(&map, key) == 2).unwrap();
    let address = test.cluster.description().group_endpoints(1).remove(0);
    let mut stub = Stub::connect(format!("http://{address}")).await.unwrap();
    let put = PutRequest { key: key.into(), ..PutRequest::default() };
    let mut direct = Request::new(put.clone());
    direct.metadata_mut().insert(DIRECT, "true".parse().unwrap());
    let refused = stub.put(direct).await.unwrap_err();
    assert!(metadata::is_wrong_group(&refused) && metadata::was_never_executed(&refused));
    assert_eq!(metadata::number(refused.metadata(), metadata::GROUP), Some(2));
    let other = test.cluster.description().group_endpoints(2).remove(0);
    assert_eq!(metadata::leader(refused.metadata()), Some(&*other));
    stub.put(Request::new(put)).await.unwrap();
    well(&flotilla(&["kv", "put", "key", "value", "--endpoints", &router]));
    well(&flotilla(&["kvd", "route", "--listen", &router, "health"]));
    let ended = test.cluster.terminate(Instance::Router).await.unwrap();
    assert!(ended.status.success(), "{ended}");
    test.cluster.stop().await;
}

#[tokio::test]
async fn nobody_notices_that_shards_move() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let (mut test, shards) = start(2, 3).await;
    let router = router(&mut test).await;
    let clients = clients(&test, 2, &router);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writers: Vec<_> = clients
        .into_iter()
        .map(|(name, client)| {
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut written = 0_u64;
                while !*stopped.borrow() {
                    for key in 0..8 {
                        let key = format!("{name} {key}");
                        let appended = client.append(key, format!("{written};")).await;
                        let old = appended.unwrap().old_value.unwrap();
                        let expected: String = (0..written).map(|it| format!("{it};")).collect();
                        assert_eq!(old, expected, "{name}");
                    }
                    written += 1;
                }
                (name, written)
            })
        })
        .collect();
    let waiting = {
        // Somebody waits for a lock all the time.
        let endpoints = test.cluster.description().group_endpoints(1);
        let locks = LockClient::new(
            KvClient::connect(endpoints, Options::with_deadline(DEADLINE)).unwrap(),
        );
        let held = locks.acquire("lock", &LockOptions::default()).await.unwrap().unwrap();
        let waits = tokio::spawn(async move {
            locks.acquire("lock", &LockOptions::default()).await.unwrap().unwrap().token()
        });
        (held, waits)
    };
    join(&test, &shards, 2).await;
    shards.change(&Change::Leave(vec![1]), None).await.unwrap();
    settled(&shards).await;
    let (held, waits) = waiting;
    let token = held.token();
    assert!(!held.is_lost() && held.release().await.unwrap());
    assert!(waits.await.unwrap() > token);
    let map = join(&test, &shards, 1).await;
    assert!([1, 2].iter().all(|group| map.placements.iter().any(|it| it.owner == *group)));
    stop.send_replace(true);
    for writer in writers {
        let (name, written) = writer.await.unwrap();
        assert!(written > 0, "{name}");
    }
    test.cluster.stop().await;
}

/// All keys that a scan tells, in its order.
async fn scanned(client: &KvClient, keys: Keys, options: ScanOptions) -> Vec<String> {
    let mut scan = client.scan(keys, options);
    let mut found = Vec::new();
    while let Some(page) = scan.next().await.unwrap() {
        found.extend(page.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()));
    }
    found
}

#[tokio::test]
async fn pages_and_counts_are_of_all_groups_while_shards_move() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let (mut test, shards) = start(3, 1).await;
    join(&test, &shards, 2).await;
    let router = router(&mut test).await;
    let clients = clients(&test, 3, &router);
    let sharded = &clients["sharded Pipelined"];
    let keys: Vec<String> = (0..2_500).map(|number| format!("key{number:04}")).collect();
    let puts = keys.iter().map(|key| sharded.put(key.clone(), vec![7; 300]));
    for put in futures::future::join_all(puts).await {
        put.unwrap();
    }
    let some = Keys::Prefix("key1".into());
    for (name, client) in &clients {
        let all = |options| scanned(client, Keys::all(), options);
        assert_eq!(all(ScanOptions::default()).await, keys, "{name}");
        let reverse = ScanOptions { reverse: true, keys_only: true, ..ScanOptions::default() };
        assert!(all(reverse).await.iter().eq(keys.iter().rev()), "{name}");
        let limit = ScanOptions { limit: Some(7), ..ScanOptions::default() };
        assert_eq!(all(limit).await, keys[..7], "{name}");
        assert_eq!(client.count(Keys::all()).await.unwrap(), 2_500, "{name}");
        assert_eq!(client.count(some.clone()).await.unwrap(), 1_000, "{name}");
        let interval = Keys::Interval("key0100".into(), "key0110".into());
        assert_eq!(scanned(client, interval, ScanOptions::default()).await, keys[100..110]);
        // A revision is one shard's.
        let past = ScanOptions { revision: Some(1), ..ScanOptions::default() };
        let refused = client.scan(Keys::all(), past).next().await.unwrap_err();
        assert!(refused.to_string().contains("one shard's"), "{refused}");
    }
    let (stop, stopped) = watch::channel(false);
    let scanners: Vec<JoinHandle<u32>> = clients
        .into_iter()
        .map(|(name, client)| {
            let (stopped, keys, some) = (stopped.clone(), keys.clone(), some.clone());
            tokio::spawn(async move {
                let mut scans = 0;
                while !*stopped.borrow() || scans == 0 {
                    let found = scanned(&client, Keys::all(), ScanOptions::default()).await;
                    assert_eq!(found, keys, "{name}");
                    assert_eq!(client.count(some.clone()).await.unwrap(), 1_000, "{name}");
                    scans += 1;
                }
                scans
            })
        })
        .collect();
    join(&test, &shards, 3).await;
    shards.change(&Change::Leave(vec![1]), None).await.unwrap();
    settled(&shards).await;
    join(&test, &shards, 1).await;
    stop.send_replace(true);
    for scanner in scanners {
        assert!(scanner.await.unwrap() > 0);
    }
    test.cluster.stop().await;
}

/// Hears of each key how far it has come, nothing twice and nothing not at all, until all have come to
/// `last`, once that is known.
async fn followed(
    name: String,
    mut watch: client::Watch,
    keys: BTreeSet<String>,
    last: watch::Receiver<Option<u64>>,
) {
    let mut told: BTreeMap<String, u64> = keys.iter().map(|key| (key.clone(), 0)).collect();
    let mut revisions = BTreeMap::new();
    while last.borrow().is_none_or(|last| told.values().any(|told| *told < last)) {
        let watched = watch.next().await.unwrap();
        let Some(Watched::Changed { shard, revision, events }) = watched else {
            assert_eq!(watched, Some(Watched::Progress), "{name}");
            continue;
        };
        assert!(revisions.insert(shard, revision).is_none_or(|before| before < revision), "{name}");
        for event in events {
            let key = String::from_utf8(event.key.to_vec()).unwrap();
            let value =
                |pair: &client::Pair| std::str::from_utf8(&pair.value).unwrap().parse().unwrap();
            let (now, before) =
                (event.pair.as_ref().map(value), event.previous.as_ref().map(value));
            let expected: u64 = told[&key] + 1;
            assert_eq!(now, Some(expected), "{name}: {key}");
            assert_eq!(before.unwrap_or(0), expected - 1, "{name}: {key}");
            told.insert(key, expected);
        }
    }
}

#[tokio::test]
async fn a_watch_goes_on_where_its_shards_are() {
    let _watchdog = Watchdog::new(4 * SETTLE_LIMIT);
    let (mut test, shards) = start(2, 1).await;
    let router = router(&mut test).await;
    let clients = clients(&test, 2, &router);
    let keys: BTreeSet<String> = (0..40).map(|number| format!("w{number}")).collect();
    let one = BTreeSet::from(["w7".to_owned()]);
    let (tell_last, last) = watch::channel(None);
    let mut watchers = Vec::new();
    for (name, client) in &clients {
        for (keys, range) in [(&keys, Keys::Prefix("w".into())), (&one, Keys::One("w7".into()))] {
            let options = WatchOptions { previous: true, ..WatchOptions::default() };
            let mut watch = client.watch(vec![range], options);
            watch.begin().await.unwrap();
            let followed = followed(name.clone(), watch, keys.clone(), last.clone());
            watchers.push(tokio::spawn(followed));
        }
    }
    let (stop, stopped) = watch::channel(false);
    let writer = {
        let (client, keys) = (clients["router Pipelined"].clone(), keys.clone());
        let stopped = stopped.clone();
        tokio::spawn(async move {
            let mut number = 0;
            while !*stopped.borrow() {
                number += 1;
                let puts = keys.iter().map(|key| client.put(key.clone(), number.to_string()));
                for put in futures::future::join_all(puts).await {
                    put.unwrap();
                }
            }
            number
        })
    };
    for _ in 0..2 {
        join(&test, &shards, 2).await;
        shards.change(&Change::Leave(vec![1]), None).await.unwrap();
        settled(&shards).await;
        join(&test, &shards, 1).await;
        shards.change(&Change::Leave(vec![2]), None).await.unwrap();
        settled(&shards).await;
    }
    stop.send_replace(true);
    tell_last.send_replace(Some(writer.await.unwrap()));
    for watcher in watchers {
        watcher.await.unwrap();
    }
    test.cluster.stop().await;
}
