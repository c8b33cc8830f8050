//! Which member leads is for people to choose, and a leader that is stopped hands over first.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client::Options;
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

/// What a client has appended, and the longest it ever waited.
struct Appended {
    numbers: Vec<u64>,
    longest: Duration,
}

/// Appends its numbers to a key of its own, one after the other, until it is told to stop.
async fn append(client: client::KvClient, key: String, stop: Arc<AtomicBool>) -> Appended {
    let mut appended = Appended { numbers: Vec::new(), longest: Duration::ZERO };
    while !stop.load(Ordering::Relaxed) {
        let number = appended.numbers.len() as u64;
        let begun = Instant::now();
        client.append(key.clone(), format!("{number};")).await.unwrap();
        appended.longest = appended.longest.max(begun.elapsed());
        appended.numbers.push(number);
    }
    appended
}

/// Runs `flotilla members`.
fn members(endpoints: &str, arguments: &[&str]) -> String {
    let timeout = ["--endpoints", endpoints, "--timeout", "60s"];
    well(&flotilla(&[&["members"], arguments, timeout.as_slice()].concat()))
}

fn voters(endpoints: &str) -> Vec<u64> {
    let output = flotilla(&["--json", "members", "list", "--endpoints", endpoints]);
    let list: Value = serde_json::from_str(&well(&output)).unwrap();
    let voters = list["members"].as_array().unwrap().iter();
    voters.filter(|it| it["part"] == "voter").map(|it| it["node"].as_u64().unwrap()).collect()
}

/// Grows from one to three to five, replaces the leader, and shrinks to three, while clients append.
fn change_all(cluster: &mut Cluster, rest: &str) -> Vec<u64> {
    let mut peers = Vec::new();
    for number in 2..=5 {
        let peer = cluster.join_kvd(number).unwrap().to_string();
        peers.push(peer.clone());
        let said = members(rest, &["add", &peer]);
        assert_eq!(said, format!("member {number} belongs to the group, as a voter"));
        // Whoever does not know whether that was done asks once more.
        let again = members(rest, &["add", &peer]);
        assert_eq!(again, format!("{said}; it was there already"));
    }
    // Nobody is replaced by one who votes already, least of all by itself.
    for peer in &peers[..2] {
        let refused = flotilla(&["members", "replace", "2", peer, "--endpoints", rest]);
        assert_eq!(refused.status.code(), Some(5), "{}", complained(&refused));
    }
    assert_eq!(voters(rest), [1, 2, 3, 4, 5]);
    let twice = flotilla(&["members", "remove", "9", "--endpoints", rest]);
    assert_eq!(twice.status.code(), Some(6), "{}", complained(&twice));

    let old = leader(cluster);
    let peer = cluster.join_kvd(6).unwrap().to_string();
    let said = members(rest, &["replace", &old.to_string(), &peer]);
    assert_eq!(said, format!("member 6 has taken the place of member {old}"));
    let again = members(rest, &["replace", &old.to_string(), &peer]);
    assert_eq!(again, format!("{said}; it had already"));
    let now = voters(rest);
    assert!(now.len() == 5 && now.contains(&6) && !now.contains(&old), "{now:?} without {old}");
    let gone: Vec<u64> = now.iter().copied().filter(|node| *node != 6).take(2).collect();
    members(rest, &["remove", &gone[0].to_string(), &gone[1].to_string()]);
    let left = voters(rest);
    assert!(left.len() == 3 && gone.iter().all(|node| !left.contains(node)), "{left:?}");
    [&[old], gone.as_slice()].concat()
}

#[tokio::test]
async fn a_group_grows_and_shrinks_while_it_is_written_to() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut test = TestCluster::start(1, 0, |_| ()).await;
    let place = test.cluster.description().place;
    let all: Vec<String> = (1..=6).map(|node| place.kvd(node).to_string()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|number| {
            let options = Options::with_deadline(READY_TIMEOUT);
            let client = client::KvClient::connect(all.clone(), options).unwrap();
            tokio::spawn(append(client, format!("log{number}"), stop.clone()))
        })
        .collect();
    let endpoints = all.join(",");
    let mut test = tokio::task::spawn_blocking(move || {
        let removed = change_all(&mut test.cluster, &endpoints);
        // Who was removed ends by itself, with the code that says not to start it again.
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut ended = Vec::new();
        while ended.len() < removed.len() && Instant::now() < deadline {
            ended.extend(test.cluster.take_ended());
            std::thread::sleep(Duration::from_millis(20));
        }
        for end in &ended {
            assert_eq!(end.status.code(), Some(78), "{end}");
            assert!(end.tail.contains("was removed from"), "{end}");
        }
        assert_eq!(ended.len(), removed.len(), "{removed:?}");
        test
    })
    .await
    .unwrap();
    stop.store(true, Ordering::Relaxed);
    let mut appended = Vec::new();
    for client in clients {
        appended.push(client.await.unwrap());
    }
    // What is there is there after a start of those that are left, too.
    let left: Vec<_> = test
        .cluster
        .instances()
        .into_iter()
        .filter(|instance| test.cluster.process(*instance).unwrap().pid().is_some())
        .collect();
    assert_eq!(left.len(), 3);
    for instance in &left {
        test.cluster.kill(*instance).unwrap();
    }
    for instance in &left {
        test.cluster.restart(*instance).unwrap();
    }
    let options = Options::with_deadline(READY_TIMEOUT);
    let client = client::KvClient::connect(all.clone(), options).unwrap();
    let longest = appended.iter().map(|appended| appended.longest).max().unwrap();
    let total: usize = appended.iter().map(|appended| appended.numbers.len()).sum();
    println!("{total} appends, the longest took {longest:?}");
    for (number, appended) in appended.iter().enumerate() {
        let wanted: String = appended.numbers.iter().map(|number| format!("{number};")).collect();
        let found = client.get(format!("log{number}")).await.unwrap().unwrap();
        assert!(found.value == wanted, "client {number}: {} appends", appended.numbers.len());
        assert!(appended.numbers.len() > 10, "client {number} appended hardly anything");
    }
    assert!(longest < Duration::from_secs(10), "an append took {longest:?}");
}

#[tokio::test]
async fn lease_reads_are_turned_on_and_off() {
    let _watchdog = Watchdog::new(2 * READY_TIMEOUT);
    let test = TestCluster::start(3, 0, |_| ()).await;
    let endpoints = test.cluster.description().kv_endpoints().join(",");
    let call = |words: &[&str]| flotilla(&[words, &["--endpoints", &endpoints]].concat());
    let listed = || {
        let list: Value =
            serde_json::from_str(&well(&call(&["--json", "members", "list"]))).unwrap();
        list["lease_reads"].as_bool()
    };
    assert_eq!(listed(), Some(false));
    for (word, on) in [("on", true), ("off", false)] {
        let said = well(&call(&["members", "lease-reads", word]));
        assert_eq!(said.trim_end(), format!("lease reads are {word}"));
        assert_eq!(listed(), Some(on));
    }
    assert_eq!(call(&["members", "lease-reads", "maybe"]).status.code(), Some(2));
}

/// `flotilla members` as it ends, with what it complained about.
fn ends(endpoints: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let timeout = ["--endpoints", endpoints, "--timeout", "3s"];
    let output = flotilla(&[&["members"], arguments, timeout.as_slice()].concat());
    (output.status.code(), complained(&output))
}

#[tokio::test]
async fn an_interrupted_add_goes_on_and_a_voter_may_learn_again() {
    let _watchdog = Watchdog::new(3 * READY_TIMEOUT);
    let mut test = TestCluster::start(1, 0, |_| ()).await;
    let place = test.cluster.description().place;
    let rest = &[place.kvd(1), place.kvd(2)].map(|it| it.to_string()).join(",");
    let peer = &test.cluster.join_kvd(2).unwrap().to_string();
    // As far as an `add` comes that is interrupted.
    let learner = "member 2 belongs to the group, as a learner";
    assert_eq!(members(rest, &["add", "--learner", peer]), learner);
    let again = members(rest, &["add", "--learner", peer]);
    assert_eq!(again, format!("{learner}; it was there already"));
    let voter = "member 2 belongs to the group, as a voter; it was there already, as a learner";
    assert_eq!(members(rest, &["add", peer]), voter);
    assert_eq!(voters(rest), [1, 2]);
    assert_eq!(ends(rest, &["add", "--learner", peer]).0, Some(5));

    assert_eq!(members(rest, &["demote", "2"]), "member 2 is a learner");
    assert_eq!(voters(rest), [1]);
    assert_eq!(ends(rest, &["demote", "2"]).0, Some(2));
    assert_eq!(ends(rest, &["demote", "9"]).0, Some(6));
    // It is no part of the majority any more.
    test.cluster.kill(Instance::Kvd(2)).unwrap();
    test.kv(READY_TIMEOUT).put("key", "value").await.unwrap();
    test.cluster.restart(Instance::Kvd(2)).unwrap();
    assert_eq!(members(rest, &["promote", "2"]), "member 2 votes");
    assert_eq!(voters(rest), [1, 2]);
}

#[tokio::test]
async fn each_way_to_fail_has_its_exit_code() {
    let _watchdog = Watchdog::new(2 * READY_TIMEOUT);
    let mut test = TestCluster::start(1, 0, |plan| plan.log = 1).await;
    let description = test.cluster.description().clone();
    let [kv, log] =
        [description.kv_endpoints(), description.log_endpoints()].map(|it| it.join(","));
    let (code, why) = ends(&format!("{kv},{log}"), &["remove", "2"]);
    assert!(code == Some(2) && why.contains("several groups"), "{code:?}: {why}");
    let nobody = description.place.kvd(9).to_string();
    let (code, why) = ends(&nobody, &["remove", "2"]);
    assert!(code == Some(3) && why.contains("no member answers"), "{code:?}: {why}");
    let (code, why) = ends(&kv, &["add", &nobody]);
    assert!(code == Some(3) && why.contains("no answer"), "{code:?}: {why}");
    let (code, why) = ends(&kv, &["replace", "7", &test.cluster.join_kvd(2).unwrap().to_string()]);
    assert!(code == Some(6) && why.contains("neither member 7"), "{code:?}: {why}");
    assert_eq!(voters(&kv), [1], "nobody was added");
}

#[tokio::test]
async fn a_member_moves_to_another_address() {
    let _watchdog = Watchdog::new(3 * READY_TIMEOUT);
    let mut test = TestCluster::start(3, 0, |_| ()).await;
    let place = test.cluster.description().place;
    let all = test.cluster.description().kv_endpoints().join(",");
    let moves = 3;
    let instance = Instance::Kvd(moves);
    test.cluster.terminate(instance).await.unwrap();
    let client = test.kv(READY_TIMEOUT);
    client.put("key", "value").await.unwrap();
    let (old, new) = (place.kvd(moves), place.kvd(moves + 4));
    let data = test.cluster.dir().join(instance.to_string()).display().to_string();
    let process = test.cluster.process(instance).unwrap();
    let admin = process.admin();
    process.set_arguments(vec![
        "kvd".to_owned(),
        format!("--listen={new}"),
        format!("--admin={admin}"),
        format!("--node={moves}"),
        format!("--data={data}"),
    ]);
    process.start().unwrap();
    let peer = format!("{}:{}", new.ip(), new.port() + 50);
    let said = members(&all, &["update", &peer]);
    assert_eq!(said, format!("the group knows that a member is reached at {peer}"));
    let list = well(&flotilla(&["--json", "members", "list", "--endpoints", &all]));
    let list: Value = serde_json::from_str(&list).unwrap();
    let moved = &list["members"][usize::from(moves) - 1];
    assert_eq!((&moved["peer_address"], &moved["part"]), (&peer.into(), &"voter".into()));
    assert_eq!(moved["client_address"], new.to_string());
    // It is needed for the majority now, and found by the others where it is.
    test.cluster.kill(Instance::Kvd(1)).unwrap();
    let endpoints = vec![place.kvd(2).to_string(), new.to_string()];
    let rest = client::KvClient::connect(endpoints, Options::with_deadline(READY_TIMEOUT)).unwrap();
    rest.put("key", "moved").await.unwrap();
    assert_eq!(rest.get("key").await.unwrap().unwrap().value, "moved");
    let (code, why) = ends(&place.kvd(2).to_string(), &["update", &old.to_string()]);
    assert_eq!(code, Some(3), "{why}");
}
