//! `shardctl status` on real groups: keys, bytes, requests, changes, leaders; one that says nothing is
//! named, and holds up nobody.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use client::shards::Change;
use client::{KvClient, Options};
use flotilla::local::{Instance, sharing};
use proto::shard_of;
use serde_json::Value;
use support::{FLOTILLA, TestCluster, Watchdog, flotilla, well};
use tokio::task::spawn_blocking;

const SHARDS: u32 = 16;
const KEYS: u64 = 60;
const GROUPS: u16 = 2;
const MEMBERS: u16 = 3;

/// How long a client tries: longer than any election.
const DEADLINE: Duration = Duration::from_secs(30);

/// Two groups that share the shards, and a client of both.
async fn start() -> (TestCluster, KvClient) {
    let test = TestCluster::start(MEMBERS, 0, |plan| {
        (plan.groups, plan.controllers) = (GROUPS, 1);
        plan.further.shardctl = vec![format!("--shards={SHARDS}")];
        plan.further.kvd = vec![format!("--shards={SHARDS}")];
    })
    .await;
    let description = test.cluster.description();
    let shards = sharing::controller(description, DEADLINE).unwrap();
    assert!(sharing::join_once(&shards, description).await.unwrap());
    sharing::settled(&shards, DEADLINE).await.unwrap();
    assert!(!sharing::join_once(&shards, description).await.unwrap(), "it was done");
    let options = Options::with_deadline(DEADLINE);
    let client = KvClient::connect_sharded(description.controller_endpoints(), options).unwrap();
    (test, client)
}

async fn status(test: &TestCluster, arguments: &[&str]) -> String {
    let all = test.cluster.description().controller_endpoints().join(",");
    let call = [&["shardctl", "--endpoints", &all, "status"], arguments].concat();
    let call: Vec<String> = call.into_iter().map(str::to_owned).collect();
    let called =
        spawn_blocking(move || flotilla(&call.iter().map(String::as_str).collect::<Vec<_>>()));
    well(&called.await.unwrap())
}

async fn values(test: &TestCluster, arguments: &[&str]) -> Value {
    let told = status(test, &[arguments, &["--json"]].concat()).await;
    serde_json::from_str(&told).unwrap()
}

fn each<'a>(values: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    values[name].as_array().unwrap().iter()
}

fn sum<'a>(values: impl Iterator<Item = &'a Value>, name: &str) -> u64 {
    values.map(|value| value[name].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_tell_what_they_have_and_who_is_silent_is_named() {
    let _watchdog = Watchdog::new(Duration::from_secs(240));
    let (mut test, client) = start().await;
    for number in 0..KEYS {
        client.put(format!("key{number}"), "a value").await.unwrap();
    }
    check_numbers(&values(&test, &[]).await);
    check_rates(&test, &client).await;

    // One member: it is named, and its group tells all that it has.
    test.cluster.kill(Instance::Kvd(2)).unwrap();
    let told = values(&test, &[]).await;
    let silent: Vec<&Value> =
        each(&told["groups"][0], "members").filter(|member| !member["error"].is_null()).collect();
    let address = &test.cluster.description().kv_endpoints()[1];
    assert!(silent.len() == 1 && silent[0]["address"] == **address, "{silent:?}");
    assert_eq!((&told["complete"], &told["totals"]["keys"]), (&true.into(), &KEYS.into()));
    assert!(status(&test, &[]).await.contains(&format!("{address} silent")));

    // A whole group, which does not even refuse connections.
    let of_one = told["groups"][0]["keys"].clone();
    for number in test.cluster.description().group(2) {
        test.cluster.pause(Instance::Kvd(number)).unwrap();
    }
    let began = Instant::now();
    let told = values(&test, &["--group-timeout", "500ms"]).await;
    assert!(began.elapsed() < DEADLINE, "it was waited for {:?}", began.elapsed());
    assert_eq!((&told["complete"], &told["groups"][0]["keys"]), (&false.into(), &of_one));
    assert_eq!((&told["groups"][1]["keys"], &told["totals"]["keys"]), (&Value::Null, &of_one));
    assert_eq!(told["groups"][1]["error"], "no member answers");
    assert!(each(&told["groups"][1], "members").all(|member| !member["error"].is_null()));
    for shard in each(&told, "shards") {
        assert_eq!(shard["keys"].is_null(), shard["owner"] == 2, "{shard}");
    }
    let text = status(&test, &["--group-timeout", "500ms"]).await;
    assert!(text.contains("group 2 does not tell its keys and bytes: no member answers"), "{text}");
    assert!(text.contains("the numbers of all are without theirs"), "{text}");
    for number in test.cluster.description().group(2) {
        test.cluster.resume(Instance::Kvd(number)).unwrap();
    }
    test.cluster.stop().await;
}

/// Two groups that are well, with so many keys.
fn check_numbers(told: &Value) {
    assert_eq!((&told["complete"], &told["totals"]["keys"]), (&true.into(), &KEYS.into()));
    assert_eq!(sum(each(told, "groups"), "keys"), KEYS);
    assert_eq!(sum(each(told, "shards"), "keys"), KEYS);
    assert_eq!(sum(each(told, "groups"), "bytes"), told["totals"]["bytes"].as_u64().unwrap());
    assert!(told["totals"]["bytes"].as_u64().unwrap() > 7 * KEYS, "{}", told["totals"]);
    for (number, shard) in each(told, "shards").enumerate() {
        let keys = (0..KEYS).map(|key| shard_of(format!("key{key}").as_bytes(), SHARDS));
        let keys = keys.filter(|shard| *shard as usize == number).count();
        assert_eq!((&shard["keys"], &shard["phase"]), (&keys.into(), &"resting".into()));
        assert_eq!(shard["had_by"], shard["owner"]);
        let standings = shard["groups"].as_array().unwrap();
        assert_eq!((standings.len(), &standings[0]["phase"]), (1, &"serving".into()));
        assert_eq!(shard["changes_per_second"], Value::Null, "it was looked at once");
    }
    for group in each(told, "groups") {
        assert_eq!(group["has"], SHARDS / 2);
        let members = group["members"].as_array().unwrap();
        let leaders: Vec<_> = members.iter().filter(|member| member["leads"] == true).collect();
        assert_eq!((members.len(), leaders.len()), (MEMBERS.into(), 1), "{group}");
        assert_eq!(group["leader"], leaders[0]["address"]);
        assert!(group["lag"].is_u64(), "{group}");
    }
}

/// Requests are counted where they are answered, changes where they are made.
async fn check_rates(test: &TestCluster, client: &KvClient) {
    let (written, read) = ("key0", "key1");
    let at = |key: &str| shard_of(key.as_bytes(), SHARDS) as usize;
    assert_ne!(at(written), at(read));
    let (writing, reading) = (client.clone(), client.clone());
    let writer = tokio::spawn(async move {
        loop {
            writing.put(written, "another value").await.unwrap();
        }
    });
    let reader = tokio::spawn(async move {
        loop {
            reading.get(read).await.unwrap();
        }
    });
    let told = values(test, &["--rates"]).await;
    let watched = watched(test).await;
    writer.abort();
    reader.abort();
    for (number, shard) in each(&told, "shards").enumerate() {
        let [changes, requests] = ["changes_per_second", "requests_per_second"];
        let [changes, requests] = [changes, requests].map(|rate| shard[rate].as_f64().unwrap());
        let is_busy = number == at(written) || number == at(read);
        assert_eq!(changes > 0.0, number == at(written), "shard {number}: {changes} changes");
        assert_eq!(requests > 0.0, is_busy, "shard {number}: {requests} requests a second");
    }
    for totals in [&told["totals"], &watched["totals"]] {
        assert!(totals["changes_per_second"].as_f64().unwrap() > 0.0, "{totals}");
        assert!(totals["requests_per_second"].as_f64().unwrap() > 0.0, "{totals}");
    }
}

/// What is told at the second look of a watch; the first tells no changes.
async fn watched(test: &TestCluster) -> Value {
    let all = test.cluster.description().controller_endpoints().join(",");
    let call = move || {
        let mut watch = Command::new(FLOTILLA)
            .args(["shardctl", "--endpoints", &all, "--json", "status"])
            .args(["--watch", "--interval", "500ms"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let looks: Vec<Value> =
            lines.take(2).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        watch.kill().unwrap();
        watch.wait().unwrap();
        looks
    };
    let looks: [Value; 2] = spawn_blocking(call).await.unwrap().try_into().unwrap();
    assert_eq!(looks[0]["totals"]["changes_per_second"], Value::Null);
    let [_, second] = looks;
    second
}

#[tokio::test]
async fn a_change_that_is_made_once_is_made_once() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = TestCluster::start(0, 0, |plan| plan.controllers = 1).await;
    let shards = sharing::controller(test.cluster.description(), DEADLINE).unwrap();
    let at = &test.cluster.description().controller_endpoints()[0];
    let join = |groups: &[&str]| {
        let call = [&["shardctl", "--endpoints", at, "join", "--once"], groups].concat();
        well(&flotilla(&call))
    };
    let said = join(&["1=127.0.0.1:7301", "2=127.0.0.1:7302"]);
    assert!(said.starts_with("configuration 1: 256 shards move"), "{said}");
    shards.change(&Change::Leave(vec![2]), None).await.unwrap();
    let said = join(&["1=127.0.0.1:7301", "2=127.0.0.1:7302"]);
    assert_eq!(said, "configuration 2: groups took part before");
    assert_eq!(shards.query(None, false).await.unwrap().latest, 2);
    test.cluster.stop().await;
}
