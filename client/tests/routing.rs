//! The key/value client where several groups share the shards: against a controller that tells what
//! its test says, and groups that refuse what they do not have.

#![allow(clippy::unwrap_used)]

mod fake;

use std::{collections::BTreeMap, time::Duration};

use fake::{Act, Fake, SHARDS, controller::Controller};
use flotilla_client::{
    Error, Keys, KvClient, Options, Rejected, Router, ScanOptions, ShardClient, Transport, Watch,
    WatchOptions, Watched,
};
use proto::{
    kv::{GetRequest, request},
    raft::{Executed, Reason},
};
use tokio::{task::JoinHandle, time::Instant};

/// Everything holds whichever way requests travel.
const TRANSPORTS: [Transport; 2] = [Transport::Pipelined, Transport::Unary];

fn options(transport: Transport) -> Options {
    Options {
        deadline: Duration::from_secs(10),
        attempt: Duration::from_millis(300),
        connect: Duration::from_millis(500),
        transport,
    }
}

/// Two groups of one member each.
struct Groups {
    controller: Controller,
    one: Fake,
    two: Fake,
    members: BTreeMap<u32, Vec<String>>,
    servers: Vec<JoinHandle<()>>,
}

impl Groups {
    /// Group 1 has all shards.
    async fn serve() -> Self {
        let one = Fake { group: 1, ..Fake::default() };
        let two = one.of_group(2);
        one.state().owners = Some(vec![1; SHARDS as usize]);
        let (mut members, mut servers) = (BTreeMap::new(), Vec::new());
        for fake in [&one, &two] {
            let (address, server) = fake.serve().await;
            members.insert(fake.group, vec![address]);
            servers.push(server);
        }
        let controller = Controller::serve().await;
        let groups = Self { controller, one, two, members, servers };
        groups.tell();
        groups
    }

    fn client(&self, options: Options) -> KvClient {
        KvClient::connect_sharded(vec![self.controller.address.clone()], options).unwrap()
    }

    /// Moves the shard of a key, and tells nobody.
    fn give(&self, key: &str, group: u32) {
        let shard = proto::shard_of(key.as_bytes(), SHARDS) as usize;
        self.one.state().owners.as_mut().unwrap()[shard] = group;
        self.one.happened.notify_waiters();
    }

    fn tell(&self) {
        let owners = self.one.state().owners.clone().unwrap();
        self.controller.tell(&owners, &self.members);
    }

    /// Waits until so many more requests have come, whatever they were answered.
    async fn asked(&self, more: u32) {
        let all = || self.served().iter().sum::<u32>();
        let until = all() + more;
        self.one.until(|| all() >= until).await;
    }

    fn served(&self) -> [u32; 2] {
        [&self.one, &self.two].map(|fake| *fake.served.lock().unwrap())
    }
}

#[tokio::test]
async fn each_request_goes_to_the_group_that_has_its_shard() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        for key in ["a", "b", "c", "d", "e", "f"] {
            groups.give(key, 1 + u32::from(key > "c"));
        }
        groups.tell();
        let client = groups.client(options(transport));
        for key in ["a", "b", "c", "d", "e", "f"] {
            client.put(key, key).await.unwrap();
            assert_eq!(client.get(key).await.unwrap().unwrap().value, key);
        }
        let state = groups.one.state();
        assert_eq!((state.wrong_groups, state.passed_on, state.executions.len()), (0, 0, 6));
        drop(state);
        assert!(groups.served().iter().all(|served| *served > 0));
    }
}

#[tokio::test]
async fn nobody_notices_that_a_shard_moves() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        let client = groups.client(options(transport));
        client.append("k", "0;").await.unwrap();
        let writer = {
            let client = client.clone();
            tokio::spawn(async move {
                for number in 1..=300 {
                    client.append("k", format!("{number};")).await.unwrap();
                }
            })
        };
        // The map is late, each time.
        for group in [2, 1, 2] {
            groups.give("k", group);
            // The last request is answered before the writer has ended.
            let noticed = || {
                let state = groups.one.state();
                state.wrong_groups > 0 || state.executions.len() == 301
            };
            groups.one.until(noticed).await;
            groups.tell();
            groups.one.state().wrong_groups = 0;
        }
        writer.await.unwrap();
        let expected: String = (0..=300).map(|number| format!("{number};")).collect();
        assert_eq!(client.get("k").await.unwrap().unwrap().value, expected);
        let state = groups.one.state();
        assert_eq!(state.executions.len(), 301);
        assert!(state.executions.values().all(|&times| times == 1));
    }
}

#[tokio::test]
async fn what_may_have_been_executed_before_the_move_is_not_executed_again_behind_it() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        let client = groups.client(options(transport));
        groups.one.plan([Act::ExecuteThenHang]);
        let call = {
            let client = client.clone();
            tokio::spawn(async move { client.append("k", "once").await })
        };
        while groups.one.state().executions.is_empty() {
            tokio::task::yield_now().await;
        }
        groups.give("k", 2);
        groups.tell();
        call.await.unwrap().unwrap();
        assert_eq!(client.get("k").await.unwrap().unwrap().value, "once");
        assert_eq!(groups.one.state().executions.len(), 1);
    }
}

#[tokio::test]
async fn a_map_that_is_late_for_good_does_not_keep_a_request_from_its_shard() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        let client = groups.client(options(transport));
        client.put("k", "1").await.unwrap();
        groups.give("k", 2);
        // Nobody tells: those who are asked pass it on.
        client.put("k", "2").await.unwrap();
        let state = groups.one.state();
        assert!(state.wrong_groups > 0 && state.passed_on > 0);
        assert!(state.executions.values().all(|&times| times == 1));
    }
}

#[tokio::test]
async fn the_group_that_is_named_is_asked_next() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        let client = groups.client(options(transport));
        client.put("k", "1").await.unwrap();
        groups.give("k", 2);
        groups.one.state().named = [(1, 2)].into();
        client.put("k", "2").await.unwrap();
        let state = groups.one.state();
        assert_eq!((state.wrong_groups, state.passed_on), (1, 0));
    }
}

#[tokio::test]
async fn groups_that_name_each_other_are_not_asked_in_turn_without_end() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        groups.give("k", 3);
        groups.one.state().named = [(1, 2), (2, 1)].into();
        let controllers = vec![groups.controller.address.clone()];
        let shards = ShardClient::connect(controllers, options(transport)).unwrap();
        let router = Router::direct(shards.follow(), options(transport));
        let get = request::Kind::Get(GetRequest { key: "k".into(), ..GetRequest::default() });
        let deadline = Instant::now() + Duration::from_millis(300);
        let refused = router.ask(&get, deadline).await.unwrap_err();
        assert_eq!((refused.reason(), refused.executed()), (Reason::WrongGroup, Executed::Never));
        assert!(Instant::now() >= deadline);
        let asked = groups.one.state().wrong_groups;
        assert!((4..=24).contains(&asked), "{asked} attempts in 300 ms");
    }
}

#[tokio::test]
async fn a_group_that_does_not_answer_is_named() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        groups.give("k", 2);
        groups.tell();
        groups.servers[1].abort();
        let options = Options { deadline: Duration::from_millis(500), ..options(transport) };
        let refused = groups.client(options).put("k", "v").await.unwrap_err();
        assert!(refused.to_string().contains("group 2: "), "{refused}");
    }
}

#[tokio::test]
async fn a_client_that_knows_no_controller_has_its_requests_passed_on() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        groups.give("k", 2);
        let client = KvClient::connect(groups.members[&1].clone(), options(transport)).unwrap();
        client.put("k", "v").await.unwrap();
        let state = groups.one.state();
        assert!(state.wrong_groups == 0 && state.passed_on > 0);
    }
}

#[tokio::test]
async fn members_that_have_moved_are_found_by_the_map() {
    for transport in TRANSPORTS {
        let mut groups = Groups::serve().await;
        let client = groups.client(options(transport));
        client.put("k", "1").await.unwrap();
        for server in groups.servers.drain(..) {
            server.abort();
            assert!(server.await.is_err());
        }
        let (address, _) = groups.one.serve().await;
        groups.members.insert(1, vec![address]);
        groups.tell();
        client.put("k", "2").await.unwrap();
        assert_eq!(groups.one.state().executions.len(), 2);
    }
}

#[tokio::test]
async fn without_a_map_a_request_waits_and_was_never_executed() {
    let controller = Controller::serve().await;
    let options = Options { deadline: Duration::from_millis(200), ..options(Transport::Pipelined) };
    let controllers = vec![controller.address.clone()];
    let client = KvClient::connect_sharded(controllers, options).unwrap();
    let refused = client.put("k", "v").await;
    let Err(Error::Rejected(Rejected::Unavailable(why))) = refused else { panic!("{refused:?}") };
    assert!(why.contains("no shard controller has answered"), "{why}");
    // Nobody has made the shards yet.
    controller.tell(&[0; SHARDS as usize], &BTreeMap::new());
    let told = async {
        loop {
            if let Err(Error::Rejected(Rejected::Unavailable(why))) = client.get("k").await
                && why.contains("no group has the shard")
            {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
}

async fn scanned(client: &KvClient) -> Vec<String> {
    let mut scan = client.scan(Keys::all(), ScanOptions::default());
    let mut found = Vec::new();
    while let Some(page) = scan.next().await.unwrap() {
        found.extend(page.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()));
    }
    found
}

#[tokio::test]
async fn a_page_waits_for_a_shard_that_is_on_its_way() {
    for transport in TRANSPORTS {
        let groups = Groups::serve().await;
        let client = groups.client(options(transport));
        let keys: Vec<String> = (0..1_500).map(|number| format!("key{number:04}")).collect();
        for key in &keys {
            groups.one.state().values.insert(key.clone().into(), ("v".into(), 1));
        }
        for key in keys.iter().take(4) {
            groups.give(key, 2);
        }
        groups.tell();
        assert_eq!(scanned(&client).await, keys);
        assert_eq!(client.count(Keys::all()).await.unwrap(), 1_500);
        // Nobody serves it, then the group of which the map does not know yet, then it does.
        groups.give("key0007", 0);
        let scans = {
            let client = client.clone();
            tokio::spawn(async move { (scanned(&client).await, client.count(Keys::all()).await) })
        };
        groups.asked(6).await;
        assert!(!scans.is_finished());
        groups.give("key0007", 2);
        groups.asked(2).await;
        groups.tell();
        let (found, count) = scans.await.unwrap();
        assert_eq!((found, count.unwrap()), (keys, 1_500));
    }
}

/// Hears how far each key has come, nothing twice and nothing not at all, until all are at `last`.
async fn follow(mut watch: Watch, keys: Vec<String>, last: u32) {
    let mut told: BTreeMap<String, u32> = keys.into_iter().map(|key| (key, 0)).collect();
    while told.values().any(|told| *told < last) {
        let Some(Watched::Changed { events, .. }) = watch.next().await.unwrap() else { continue };
        for event in events {
            let key = String::from_utf8(event.key.to_vec()).unwrap();
            let value = event.pair.unwrap().value;
            let told = told.get_mut(&key).unwrap();
            *told += 1;
            assert_eq!(value, told.to_string(), "{key}");
        }
    }
}

#[tokio::test]
async fn a_watch_hears_each_shard_of_the_group_that_has_it() {
    const LAST: u32 = 200;
    for tells_late in [false, true] {
        let groups = Groups::serve().await;
        groups.one.state().tells_late = tells_late;
        let client = groups.client(options(Transport::Pipelined));
        let keys: Vec<String> = (0..20).map(|number| format!("w{number}")).collect();
        let mut watch = client.watch(vec![Keys::all()], WatchOptions::default());
        watch.begin().await.unwrap();
        assert_eq!(watch.position().len(), SHARDS as usize);
        let follower = tokio::spawn(follow(watch, keys.clone(), LAST));
        let writer = {
            let (client, keys) = (client.clone(), keys.clone());
            tokio::spawn(async move {
                for number in 1..=LAST {
                    for key in &keys {
                        client.put(key.clone(), number.to_string()).await.unwrap();
                    }
                }
            })
        };
        // More often than there may be streams of a group, and the map is late.
        for round in 0..12 {
            for (at, key) in keys.iter().enumerate().filter(|(at, _)| at % 3 == round % 3) {
                groups.give(key, 1 + u32::try_from((at + round) % 2).unwrap());
            }
            // The writer goes on, with the map that it has, then with the new one.
            groups.asked(5).await;
            groups.tell();
            groups.asked(40).await;
        }
        writer.await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), follower).await.unwrap().unwrap();
    }
}
