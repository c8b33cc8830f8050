//! Scans, transactions, watches, leases and locks on real processes, through the client and the
//! command line, while leaders die and stand still.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use client::{
    Condition, Election, Error, Guard, HeldLock, KeptAlive, Keys, KvClient, LockClient,
    LockOptions, Options, PutIf, PutOptions, Rejected, Scan, ScanOptions, Txn, Watch, WatchOptions,
    Watched,
};
use flotilla::local::Instance;
use serde_json::Value;
use support::{TestCluster, Watchdog, complained, flotilla, said, well};

const DEADLINE: Duration = Duration::from_secs(60);

async fn start() -> TestCluster {
    TestCluster::start(3, 0, |_| ()).await
}

/// The member that leads, once one does that a live member knows of.
async fn leader(test: &TestCluster) -> Instance {
    let deadline = Instant::now() + DEADLINE;
    loop {
        for endpoint in test.cluster.description().kv_endpoints() {
            if let Ok(reply) = client::admin::status(&endpoint, Duration::from_millis(500)).await
                && reply.leader != 0
            {
                return Instance::Kvd(u16::try_from(reply.leader).unwrap());
            }
        }
        assert!(Instant::now() < deadline, "nobody leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn all(mut scan: Scan) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    while let Some(page) = scan.next().await.unwrap() {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        pairs.extend(page.iter().map(|(key, pair)| (text(key), text(&pair.value))));
    }
    pairs
}

#[tokio::test]
async fn scans_are_ordered_over_all_shards_and_pages() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = start().await;
    let client = test.kv(DEADLINE);
    let mut expected = BTreeMap::new();
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..2_500 {
        let (key, value) = (format!("book/{number:05}"), format!("{number}"));
        expected.insert(key.clone(), value.clone());
        let client = client.clone();
        writes.spawn(async move { client.put(key, value).await.unwrap() });
    }
    writes.join_all().await;
    client.put("bookend", "other").await.unwrap();
    let expected: Vec<(String, String)> = expected.into_iter().collect();
    let books = || Keys::Prefix("book/".into());
    assert_eq!(all(client.scan(books(), ScanOptions::default())).await, expected);
    let reverse = ScanOptions { reverse: true, ..ScanOptions::default() };
    let backwards: Vec<_> = expected.iter().rev().cloned().collect();
    assert_eq!(all(client.scan(books(), reverse)).await, backwards);
    let some = ScanOptions { limit: Some(1_700), ..ScanOptions::default() };
    assert_eq!(all(client.scan(books(), some)).await, expected[..1_700]);
    let between = Keys::Interval("book/00010".into(), "book/00013".into());
    assert_eq!(all(client.scan(between.clone(), ScanOptions::default())).await, expected[10..13]);
    assert_eq!(client.count(Keys::all()).await.unwrap(), 2_501);
    assert_eq!(client.count(between).await.unwrap(), 3);
    let keys_only = ScanOptions { keys_only: true, limit: Some(1), ..ScanOptions::default() };
    assert_eq!(all(client.scan(books(), keys_only)).await, [("book/00000".into(), String::new())]);
    let revision = ScanOptions { revision: Some(1), ..ScanOptions::default() };
    let refused = client.scan(books(), revision).next().await.unwrap_err();
    assert!(refused.to_string().contains("more than one"), "{refused}");
}

#[tokio::test]
async fn the_past_is_there_until_it_is_compacted() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = start().await;
    let client = test.kv(DEADLINE);
    let first = client.put("{t}/a", "one").await.unwrap().mod_revision;
    client.put("{t}/b", "b").await.unwrap();
    let second = client.put("{t}/a", "two").await.unwrap().mod_revision;
    client.delete("{t}/a").await.unwrap();
    let at = async |revision| {
        let pair = client.get_at("{t}/a", revision).await?;
        Ok::<_, Error>(pair.map(|pair| String::from_utf8(pair.value.to_vec()).unwrap()))
    };
    assert_eq!(at(first).await.unwrap().as_deref(), Some("one"));
    assert_eq!(at(second).await.unwrap().as_deref(), Some("two"));
    assert_eq!(at(second + 1).await.unwrap(), None);
    let future = at(second + 9).await.unwrap_err();
    assert!(matches!(future, Error::Rejected(Rejected::OutOfRange { .. })), "{future}");
    let then = ScanOptions { revision: Some(second), ..ScanOptions::default() };
    let both = [("{t}/a".to_owned(), "two".to_owned()), ("{t}/b".to_owned(), "b".to_owned())];
    assert_eq!(all(client.scan(Keys::Prefix("{t}/".into()), then)).await, both);
    let shard = proto::shard_of(b"{t}/a", client.shards().await.unwrap());
    assert_eq!(client.compact(shard, Some(second)).await.unwrap(), second);
    let gone = at(first).await.unwrap_err();
    assert!(gone.to_string().contains("compacted"), "{gone}");
    assert_eq!(at(second).await.unwrap().as_deref(), Some("two"));
    assert_eq!(client.get_stale("{t}/b").await.unwrap().unwrap().value, "b");
}

#[tokio::test]
async fn a_transaction_is_done_whole_or_not_at_all() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = start().await;
    let client = test.kv(DEADLINE);
    client.put("{t}/stock", "3").await.unwrap();
    let sale = |version| {
        Txn::new()
            .when_version("{t}/stock", version)
            .put("{t}/stock", "2")
            .append("{t}/sold", "x")
            .otherwise(|other| other.get("{t}/stock"))
    };
    let done = client.txn(sale(1)).await.unwrap();
    assert!(done.succeeded && done.replies.as_ref().unwrap().len() == 2, "{done:?}");
    let stock = client.get("{t}/stock").await.unwrap().unwrap();
    let sold = client.get("{t}/sold").await.unwrap().unwrap();
    assert_eq!(stock.mod_revision, sold.mod_revision, "one revision for all of it");
    assert_eq!(done.mod_revision, Some(stock.mod_revision));
    let late = client.txn(sale(1)).await.unwrap();
    assert!(!late.succeeded && late.mod_revision.is_none(), "{late:?}");
    assert_eq!(client.get("{t}/sold").await.unwrap().unwrap().value, "x");
    let read = client.txn(Txn::new().get("{t}/stock").get("{t}/none")).await.unwrap();
    assert!(read.succeeded && read.mod_revision.is_none());
    let apart = client.txn(Txn::new().put("{t}/x", "1").put("{u}/x", "1")).await.unwrap_err();
    assert!(apart.to_string().contains("different shards"), "{apart}");
    let twice = client.txn(Txn::new().put("{t}/x", "1").delete("{t}/x")).await.unwrap_err();
    assert!(twice.to_string().contains("change the key"), "{twice}");
    assert_eq!(client.get("{t}/x").await.unwrap(), None);
}

/// Reads changes until the key has this value.
async fn until(watch: &mut Watch, key: &str, value: &str) -> Vec<(u64, String, String)> {
    let mut seen = Vec::new();
    loop {
        let Watched::Changed { revision, events, .. } = watch.next().await.unwrap().unwrap() else {
            continue;
        };
        for event in events {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let now = event.pair.map_or_else(|| "-".to_owned(), |pair| text(&pair.value));
            seen.push((revision, text(&event.key), now));
        }
        if seen.last().is_some_and(|(_, at, now)| at == key && now == value) {
            return seen;
        }
    }
}

/// Writes numbers to a few keys, and to one that nobody watches.
async fn write(client: &KvClient, numbers: std::ops::Range<u32>) {
    for number in numbers {
        client.put(format!("{{w}}/{}", number % 7), format!("{number}")).await.unwrap();
        client.put("{v}/other", "").await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_tells_everything_once_though_its_member_and_the_leader_die() {
    let _watchdog = Watchdog::new(3 * DEADLINE);
    let mut test = start().await;
    let client = test.kv(DEADLINE);
    // Of a cluster to which nothing was ever written.
    let mut watch = client.watch(vec![Keys::Prefix("{w}/".into())], WatchOptions::default());
    watch.begin().await.unwrap();
    write(&client, 0..100).await;
    let mut told = until(&mut watch, "{w}/1", "99").await;
    // Each in turn, so that the member that the stream is on and the leader are among them; what is
    // written while one is dead is told by others.
    for (round, node) in [1, 2, 3].into_iter().enumerate() {
        test.cluster.kill(Instance::Kvd(node)).unwrap();
        let first = 100 * (round as u32 + 1);
        write(&client, first..first + 100).await;
        let last = first + 99;
        told.extend(until(&mut watch, &format!("{{w}}/{}", last % 7), &last.to_string()).await);
        test.cluster.restart(Instance::Kvd(node)).unwrap();
        support::ready(&mut test.cluster).await;
    }
    let numbers: Vec<String> = told.iter().map(|(_, _, value)| value.clone()).collect();
    let expected: Vec<String> = (0..400).map(|number| number.to_string()).collect();
    assert_eq!(numbers, expected, "each change once, in order, and nothing else");
    assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0), "revisions rise");
}

#[tokio::test]
async fn a_watch_that_begins_where_a_scan_was_misses_nothing() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = start().await;
    let client = test.kv(DEADLINE);
    client.put("before", "1").await.unwrap();
    let options = ScanOptions { position: true, ..ScanOptions::default() };
    let mut scan = client.scan(Keys::all(), options);
    let page = scan.next().await.unwrap().unwrap();
    assert_eq!(page.len(), 1);
    // Into shards that nothing had changed yet.
    for number in 0..20 {
        client.put(format!("after/{number}"), "2").await.unwrap();
    }
    let options = WatchOptions { after: scan.position().unwrap().clone(), previous: false };
    let mut watch = client.watch(vec![Keys::all()], options);
    let mut keys = std::collections::BTreeSet::new();
    while keys.len() < 20 {
        if let Watched::Changed { events, .. } = watch.next().await.unwrap().unwrap() {
            keys.extend(events.into_iter().map(|event| event.key));
        }
    }
    assert!(keys.iter().all(|key| key.starts_with(b"after/")), "{keys:?}");
}

#[tokio::test]
async fn a_watch_goes_on_from_a_revision_and_says_when_it_can_not() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = start().await;
    let client = test.kv(DEADLINE);
    let shard = proto::shard_of(
        b"{w}/a",
        client.get_raw("{w}/a".into()).await.unwrap().header.unwrap().shards,
    );
    let first = client.put("{w}/a", "1").await.unwrap().mod_revision;
    let txn = Txn::new().put("{w}/a", "2").put("{w}/b", "2").delete("{w}/none");
    client.txn(txn).await.unwrap();
    client.delete("{w}/a").await.unwrap();
    let options = WatchOptions { after: [(shard, first)].into(), previous: true };
    let mut watch = client.watch(vec![Keys::Prefix("{w}/".into())], options.clone());
    let Watched::Changed { events, revision, .. } = watch.next().await.unwrap().unwrap() else {
        panic!("the transaction comes first")
    };
    let keys: Vec<&[u8]> = events.iter().map(|event| &event.key[..]).collect();
    assert_eq!((keys, revision), (vec![b"{w}/a".as_slice(), b"{w}/b"], first + 1), "atomic");
    assert_eq!(events[0].previous.as_ref().unwrap().value, "1");
    assert_eq!(events[1].previous, None);
    let Watched::Changed { events, .. } = watch.next().await.unwrap().unwrap() else {
        panic!("then the removal")
    };
    assert_eq!((&events[0].pair, events[0].expired), (&None, false));
    assert_eq!(watch.position()[&shard], first + 2);

    client.compact(shard, None).await.unwrap();
    let mut late = client.watch(vec![Keys::Prefix("{w}/".into())], options);
    let compacted = late.next().await.unwrap().unwrap();
    assert_eq!(compacted, Watched::Compacted { shard, revision: first + 2 });
    assert_eq!(late.next().await.unwrap(), None);
    client.put("{w}/a", "3").await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), Some(Watched::Changed { .. })), "it goes on");
}

#[tokio::test]
async fn a_lease_ends_with_its_keys_and_never_early() {
    let _watchdog = Watchdog::new(3 * DEADLINE);
    let mut test = start().await;
    let client = test.kv(DEADLINE);
    let ttl = Duration::from_secs(3);
    let granted = client.grant("{l}/key", ttl).await.unwrap();
    let leased = PutOptions { lease_id: Some(granted.lease_id), ..PutOptions::default() };
    client.put_with("{l}/key", "value", leased.clone()).await.unwrap();
    let elsewhere = client.put_with("{m}/key", "value", leased.clone()).await.unwrap_err();
    assert!(elsewhere.to_string().contains("different shards"), "{elsewhere}");
    let mut watch = client.watch(vec![Keys::One("{l}/key".into())], WatchOptions::default());
    watch.begin().await.unwrap();
    // A change of leaders only lengthens it.
    let kept = Instant::now();
    assert_eq!(client.keep_alive(granted.lease_id).await.unwrap(), Some(ttl));
    let state = client.time_to_live(granted.lease_id, true).await.unwrap().unwrap();
    assert_eq!(state.keys, ["{l}/key"]);
    let dead = leader(&test).await;
    test.cluster.kill(dead).unwrap();
    let Some(Watched::Changed { events, .. }) = watch.next().await.unwrap() else {
        panic!("nothing but its end happens to the key")
    };
    let lived = kept.elapsed();
    assert!(events[0].expired && events[0].pair.is_none(), "{events:?}");
    assert!(lived >= ttl, "it ended after {lived:?}");
    assert!(lived < ttl + Duration::from_secs(10), "it ended after {lived:?}");
    assert_eq!(client.keep_alive(granted.lease_id).await.unwrap(), None);
    let gone = client.put_with("{l}/key", "value", leased).await.unwrap_err();
    assert!(gone.to_string().contains("has ended"), "{gone}");
    test.cluster.restart(dead).unwrap();
    support::ready(&mut test.cluster).await;

    let short = client.grant("{l}/key", Duration::from_secs(2)).await.unwrap();
    let leased = PutOptions { lease_id: Some(short.lease_id), ..PutOptions::default() };
    client.put_with("{l}/key", "value", leased).await.unwrap();
    let since = tokio::time::Instant::now();
    let kept = KeptAlive::new(client.clone(), short.lease_id, short.ttl, since);
    let begin = Instant::now();
    while begin.elapsed() < 2 * short.ttl {
        assert!(client.get("{l}/key").await.unwrap().is_some() && !kept.is_lost());
    }
    drop(kept);
    assert!(client.revoke(short.lease_id).await.unwrap());
    assert_eq!(client.get("{l}/key").await.unwrap(), None);
    assert!(!client.revoke(short.lease_id).await.unwrap());
}

fn options(wait: Duration, owner: &str) -> LockOptions {
    let owner = Bytes::copy_from_slice(owner.as_bytes());
    LockOptions { ttl: Duration::from_secs(5), wait, owner }
}

#[tokio::test]
async fn a_lock_goes_to_those_who_wait_in_the_order_of_their_arrival() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = start().await;
    let locks = LockClient::new(test.kv(DEADLINE));
    let held = locks.acquire("lock", &options(DEADLINE, "first")).await.unwrap().unwrap();
    let busy = locks.acquire("lock", &options(Duration::ZERO, "try")).await.unwrap();
    assert!(busy.is_none());
    let begin = Instant::now();
    let wait = Duration::from_millis(700);
    assert!(locks.acquire("lock", &options(wait, "brief")).await.unwrap().is_none());
    assert!(begin.elapsed() >= wait, "it waited {:?}", begin.elapsed());
    let mut waiting = Vec::new();
    for number in 0..5_u32 {
        let locks = locks.clone();
        let name = format!("waiter {number}");
        waiting.push(tokio::spawn(async move {
            locks.acquire("lock", &options(DEADLINE, &name)).await.unwrap().unwrap()
        }));
        let deadline = Instant::now() + DEADLINE;
        while locks_waiting(&test).await <= number {
            assert!(Instant::now() < deadline, "waiter {number} never arrived");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut token = held.token();
    assert!(held.release().await.unwrap());
    for (number, waiter) in waiting.into_iter().enumerate() {
        let held: HeldLock = waiter.await.unwrap();
        let state = LockClient::new(test.kv(DEADLINE)).inspect("lock").await.unwrap();
        assert_eq!(state.holder.unwrap().owner, format!("waiter {number}"));
        assert!(held.token() > token, "tokens rise");
        token = held.token();
        assert!(held.release().await.unwrap());
    }
}

async fn locks_waiting(test: &TestCluster) -> u32 {
    LockClient::new(test.kv(DEADLINE)).inspect("lock").await.unwrap().waiting
}

#[tokio::test]
async fn a_holder_that_was_away_for_too_long_writes_nothing_any_more() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = start().await;
    let kv = test.kv(DEADLINE);
    let locks = LockClient::new(kv.clone());
    let brief = LockOptions { ttl: Duration::from_secs(1), ..options(DEADLINE, "first") };
    let first = locks.acquire("{job}", &brief).await.unwrap().unwrap();
    let late = first.guard().clone();
    let guarded =
        |guard: &Guard| PutOptions { guard: Some(guard.clone()), ..PutOptions::default() };
    kv.put_with("{job}/state", "first", guarded(&late)).await.unwrap();
    // The process stands still, and nobody keeps the lock.
    drop(first);
    let second = locks.acquire("{job}", &options(DEADLINE, "second")).await.unwrap().unwrap();
    kv.put_with("{job}/state", "second", guarded(second.guard())).await.unwrap();
    let refused = kv.put_with("{job}/state", "late", guarded(&late)).await.unwrap_err();
    assert!(refused.to_string().contains("is held with token"), "{refused}");
    let txn = Txn::new().put("{job}/state", "late").guarded(&late);
    assert!(kv.txn(txn).await.is_err());
    let append = kv.append_guarded("{job}/state", " late", &late).await.unwrap_err();
    assert!(append.to_string().contains("is held with token"), "{append}");
    let delete = kv.delete_guarded("{job}/state", &late).await.unwrap_err();
    assert!(delete.to_string().contains("is held with token"), "{delete}");
    kv.append_guarded("{job}/done", "", second.guard()).await.unwrap();
    assert!(kv.delete_guarded("{job}/done", second.guard()).await.unwrap().is_some());
    assert_eq!(kv.get("{job}/state").await.unwrap().unwrap().value, "second");
    assert!(second.token() > late.token);
    second.release().await.unwrap();
    let nobody = kv.put_with("{job}/state", "late", guarded(&late)).await.unwrap_err();
    assert!(nobody.to_string().contains("is not held"), "{nobody}");
}

#[tokio::test]
async fn an_election_has_one_winner_at_a_time() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let mut test = start().await;
    let election = Election::new(test.kv(DEADLINE), "primary");
    let ttl = Duration::from_secs(5);
    let first = election.campaign("one", ttl, DEADLINE).await.unwrap().unwrap();
    assert!(election.campaign("two", ttl, Duration::ZERO).await.unwrap().is_none());
    assert_eq!(election.leader().await.unwrap().unwrap().owner, "one");
    let second = tokio::spawn({
        let election = election.clone();
        async move { election.campaign("two", ttl, DEADLINE).await.unwrap().unwrap() }
    });
    // It is kept through the death of the leader that grants and renews.
    let dead = leader(&test).await;
    test.cluster.kill(dead).unwrap();
    test.cluster.restart(dead).unwrap();
    support::ready(&mut test.cluster).await;
    assert_eq!(election.leader().await.unwrap().unwrap().owner, "one");
    let token = first.token();
    assert!(first.resign().await.unwrap());
    let second = second.await.unwrap();
    assert!(second.token() > token);
}

#[tokio::test]
async fn the_command_line_has_all_of_it() {
    let _watchdog = Watchdog::new(3 * DEADLINE);
    let test = start().await;
    let endpoints = test.cluster.description().kv_endpoints().join(",");
    let commands = move || {
        commands(&endpoints);
        lock_commands(&endpoints);
    };
    tokio::task::spawn_blocking(commands).await.unwrap();
}

fn commands(endpoints: &str) {
    let kv = |call: &[&str]| flotilla(&[&["kv", "--endpoints", endpoints], call].concat());
    let json = |call: &[&str]| -> Value {
        let call = [&["--json", "kv", "--endpoints", endpoints], call].concat();
        serde_json::from_str(&well(&flotilla(&call))).unwrap()
    };
    let first = json(&["put", "{a}/x", "one"])["mod_revision"].as_u64().unwrap();
    well(&kv(&["put", "{a}/x", "two", "--if-rev", &first.to_string()]));
    let late = kv(&["put", "{a}/x", "three", "--if-rev", &first.to_string()]);
    assert_eq!(late.status.code(), Some(1), "{}", complained(&late));
    assert_eq!(well(&kv(&["get", "{a}/x", "--rev", &first.to_string()])), "one");
    well(&kv(&["put", "{a}/y", "other"]));
    assert_eq!(well(&kv(&["scan", "--prefix", "{a}/"])), "{a}/x\ttwo\n{a}/y\tother");
    assert_eq!(
        well(&kv(&["scan", "--prefix", "{a}/", "--reverse", "--keys-only", "--limit", "1"])),
        "{a}/y"
    );
    assert_eq!(well(&kv(&["scan", "--count"])), "2");
    let txn = [
        "txn",
        "--if",
        "version {a}/x = 2",
        "--then",
        "put {a}/x 'two words'",
        "--then",
        "delete {a}/y",
        "--else",
        "get {a}/x",
    ];
    assert_eq!(json(&txn)["succeeded"], true);
    assert_eq!(json(&txn)["succeeded"], false);
    assert_eq!(well(&kv(&["get", "{a}/x"])), "two words");
    let no = kv(&["txn", "--if", "absent {a}/x", "--then", "put {a}/x 1"]);
    assert_eq!(no.status.code(), Some(1), "{}", complained(&no));
    let wrong = kv(&["txn", "--then", "sink {a}/x"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", complained(&wrong));

    let shard = proto::shard_of(b"{a}", proto::SHARDS_DEFAULT);
    let after = format!("{shard}:{first}");
    let told =
        well(&kv(&["watch", "--prefix", "{a}/", "--after", &after, "--count", "4", "--previous"]));
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    assert!(lines[0].ends_with("put     {a}/x\ttwo\twas one"), "{told}");
    assert!(lines[3].ends_with("deleted {a}/y\twas other"), "{told}");
    well(&kv(&["compact"]));
    let gone = kv(&["watch", "{a}/x", "--after", &after]);
    assert_eq!(gone.status.code(), Some(6), "{}", complained(&gone));

    let lease = well(&kv(&["lease", "grant", "{a}", "30s"]));
    well(&kv(&["put", "{a}/leased", "1", "--lease", &lease]));
    let shown = json(&["lease", "show", &lease]);
    assert_eq!(shown["keys"][0], "{a}/leased");
    well(&kv(&["lease", "keep-alive", &lease, "--once"]));
    well(&kv(&["lease", "revoke", &lease]));
    assert_eq!(kv(&["get", "{a}/leased"]).status.code(), Some(6));
    assert_eq!(kv(&["lease", "show", &lease]).status.code(), Some(6));
}

/// `flotilla lock`, and what it guards.
fn lock_commands(endpoints: &str) {
    let kv = |call: &[&str]| flotilla(&[&["kv", "--endpoints", endpoints], call].concat());
    let lock =
        |call: &[&str]| flotilla(&[&["lock", "--endpoints", endpoints, "{a}"], call].concat());
    let script = "echo $FLOTILLA_LOCK_TOKEN; exit 7";
    let ran = lock(&["--", "sh", "-c", script]);
    assert_eq!(ran.status.code(), Some(7), "{}", complained(&ran));
    let token: u64 = said(&ran).parse().unwrap();
    let nested = format!(
        "{} lock --endpoints {endpoints} '{{a}}' --try -- true; echo $?",
        support::FLOTILLA
    );
    assert_eq!(said(&lock(&["--", "sh", "-c", &nested])), "125");
    let guarded = format!(
        "{} kv --endpoints {endpoints} put '{{a}}/state' 1 --guard '{{a}}' $FLOTILLA_LOCK_TOKEN",
        support::FLOTILLA
    );
    well(&lock(&["--", "sh", "-c", &guarded]));
    let changes: [&[&str]; 4] = [
        &["put", "{a}/state", "2"],
        &["append", "{a}/state", "2"],
        &["delete", "{a}/state"],
        &["txn", "--then", "delete {a}/state"],
    ];
    for change in changes {
        let late = kv(&[change, &["--guard", "{a}", &token.to_string()]].concat());
        assert_eq!(late.status.code(), Some(1), "{}", complained(&late));
    }
    assert_eq!(said(&kv(&["get", "{a}/state"])), "1");
    assert_eq!(said(&lock(&["--show"])), "nobody holds the lock \"{a}\"");
    assert_eq!(lock(&["--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(lock(&["--", "/nowhere/at/all"]).status.code(), Some(125));
    let nobody = ["lock", "--endpoints", "127.0.0.1:1", "{a}", "--timeout", "200ms", "--", "true"];
    let begun = Instant::now();
    assert_eq!(flotilla(&nobody).status.code(), Some(125));
    assert!(begun.elapsed() < DEADLINE / 2, "--timeout bounds how long nobody is reached");
    assert_eq!(lock(&[]).status.code(), Some(2));
}

#[tokio::test]
async fn limits_are_named_and_change_nothing() {
    let _watchdog = Watchdog::new(2 * DEADLINE);
    let test = TestCluster::start(1, 0, |plan| {
        plan.further.kvd = vec!["--config".to_owned(), {
            let settings = plan.dir.join("kvd.toml");
            std::fs::write(&settings, "stored_bytes_max = 1500000\nwatchers_max = 1\n").unwrap();
            settings.display().to_string()
        }];
    })
    .await;
    let client = test.kv(DEADLINE);
    let is = |error: Error, words: &str| assert!(error.to_string().contains(words), "{error}");
    let many = (0..129).fold(Txn::new(), |txn, number| txn.put(format!("{{t}}/{number}"), ""));
    is(client.txn(many).await.unwrap_err(), "txn_operations_max");
    let misplaced = Txn::new().put("a", "").otherwise(|other| other.when_exists("a").get("a"));
    is(client.txn(misplaced).await.unwrap_err(), "operations only");
    is(client.grant("key", Duration::from_millis(99)).await.unwrap_err(), "lease_ttl_ms");
    is(client.grant("key", Duration::from_secs(86_401)).await.unwrap_err(), "lease_ttl_ms");
    let locks = LockClient::new(client.clone());
    let owner = Bytes::from(vec![0; 1_025]);
    let long = LockOptions { owner, ..LockOptions::default() };
    is(locks.acquire("lock", &long).await.unwrap_err(), "lock_owner_bytes_max");
    let mut watch = client.watch(vec![Keys::all()], WatchOptions::default());
    watch.begin().await.unwrap();
    let impatient = KvClient::connect(
        test.cluster.description().kv_endpoints(),
        Options::with_deadline(Duration::from_secs(1)),
    )
    .unwrap();
    let full = impatient.watch(vec![Keys::all()], WatchOptions::default()).begin().await;
    assert!(full.unwrap_err().to_string().contains("watchers_max"));

    client.put("big", vec![b'x'; 900_000]).await.unwrap();
    let quota = client.put("bigger", vec![b'x'; 1_000_000]).await.unwrap_err();
    is(quota, "stored_bytes_max");
    assert_eq!(client.get("bigger").await.unwrap(), None);
    let smaller = client.put_if("big", "x", Condition::Version(1)).await.unwrap();
    assert!(matches!(smaller, PutIf::Written(_)), "what shrinks is done");
    client.delete("big").await.unwrap();
    for shard in 0..client.shards().await.unwrap() {
        client.compact(shard, None).await.unwrap();
    }
    client.put("bigger", vec![b'x'; 1_000_000]).await.unwrap();
}
