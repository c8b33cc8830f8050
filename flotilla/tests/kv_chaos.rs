//! Three members, eight clients, and one member after the other killed with SIGKILL while they work:
//! every acknowledged append is there exactly once and in its client's order, no acknowledged write
//! is lost, and reads never go back. At the end all members are killed at once, and still nothing
//! that was acknowledged is lost.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{Error, KvClient};
use flotilla::local::Instance;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::{Depth, TestCluster, Watchdog, ready};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

const MEMBERS: u16 = 3;
const CLIENTS: usize = 8;

/// How long a killed member stays away.
const AWAY: Duration = Duration::from_secs(1);

/// How long a client tries: longer than any election here.
const DEADLINE: Duration = Duration::from_secs(20);

/// For so long all clients append to one key, before they go on to the next: an append answers with
/// the value from before, so values must stay short.
const APPEND_PERIOD: Duration = Duration::from_millis(500);

/// What is known of a key that one client writes numbers to, each higher than the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    /// The highest number that was acknowledged or read.
    seen: u64,
    /// The highest number that was asked to be written.
    asked: u64,
}

/// What a client asked to be appended.
#[derive(Clone, Debug)]
struct Append {
    key: String,
    token: String,
    acknowledged: bool,
}

/// What all clients know.
#[derive(Default)]
struct Known {
    counters: Mutex<[Counter; CLIENTS]>,
    /// Each key's longest value that was read or told by an append.
    appended: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Known {
    /// What was known before a read must not be gone in it.
    fn read_counter(&self, owner: usize, before: Counter, found: u64) {
        assert!(
            found >= before.seen,
            "a read goes back: counter {owner} was {} and now is {found}",
            before.seen
        );
        let mut counters = self.counters.lock().unwrap();
        assert!(found <= counters[owner].asked, "counter {owner} is {found}, which nobody wrote");
        counters[owner].seen = counters[owner].seen.max(found);
    }

    /// Values only grow at their end: of two, one begins with the other; and what was known before
    /// a read began is in it.
    fn read_appended(&self, key: &str, before: &[u8], found: &[u8]) {
        assert!(found.starts_with(before), "a read of {key} goes back");
        let mut appended = self.appended.lock().unwrap();
        let longest = appended.entry(key.to_owned()).or_default();
        assert!(found.starts_with(longest) || longest.starts_with(found), "two histories of {key}");
        if found.len() > longest.len() {
            *longest = found.to_vec();
        }
    }

    fn appended_before(&self, key: &str) -> Vec<u8> {
        self.appended.lock().unwrap().get(key).cloned().unwrap_or_default()
    }
}

fn counter_key(owner: usize) -> String {
    format!("counter/{owner}")
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

/// One client: asks one request after the other until the end, and remembers its appends.
async fn work(
    me: usize,
    client: KvClient,
    known: Arc<Known>,
    begin: Instant,
    end: Instant,
) -> Vec<Append> {
    let mut rng = StdRng::seed_from_u64(me as u64);
    let mut appends = Vec::new();
    while Instant::now() < end {
        match rng.random_range(0..4) {
            0 => put(me, &client, &known).await,
            1 => get_counter(rng.random_range(0..CLIENTS), &client, &known).await,
            choice => {
                let period = begin.elapsed().as_millis() / APPEND_PERIOD.as_millis();
                let key = format!("appended/{period}");
                if choice == 2 {
                    let token = format!("<{me}.{}>", appends.len());
                    appends.push(append(key, token, &client, &known).await);
                } else {
                    get_appended(&key, &client, &known).await;
                }
            }
        }
    }
    appends
}

async fn put(me: usize, client: &KvClient, known: &Known) {
    let next = {
        let counter = &mut known.counters.lock().unwrap()[me];
        counter.asked += 1;
        counter.asked
    };
    match client.put(counter_key(me), next.to_string()).await {
        Ok(_) => {
            let counter = &mut known.counters.lock().unwrap()[me];
            counter.seen = counter.seen.max(next);
        }
        Err(Error::Unknown(_)) => {}
        Err(Error::Rejected(rejected)) => panic!("client {me} puts: {rejected}"),
    }
}

async fn get_counter(owner: usize, client: &KvClient, known: &Known) {
    let before = known.counters.lock().unwrap()[owner];
    let found = client.get(counter_key(owner)).await.unwrap();
    known.read_counter(owner, before, found.map_or(0, |pair| number(&pair.value)));
}

async fn append(key: String, token: String, client: &KvClient, known: &Known) -> Append {
    let before = known.appended_before(&key);
    let acknowledged = match client.append(key.clone(), token.clone()).await {
        Ok(appended) => {
            if let Some(old_value) = appended.old_value {
                let mut value = old_value.to_vec();
                assert!(value.starts_with(&before), "an append to {key} goes back");
                value.extend_from_slice(token.as_bytes());
                known.read_appended(&key, &before, &value);
            }
            true
        }
        Err(Error::Unknown(_)) => false,
        Err(Error::Rejected(rejected)) => panic!("append: {rejected}"),
    };
    Append { key, token, acknowledged }
}

async fn get_appended(key: &str, client: &KvClient, known: &Known) {
    let before = known.appended_before(key);
    let found = client.get(key.to_owned()).await.unwrap();
    known.read_appended(key, &before, &found.map_or_else(Vec::new, |pair| pair.value.to_vec()));
}

/// The member that leads, as far as anybody says.
async fn leader(test: &TestCluster) -> Option<Instance> {
    for endpoint in test.cluster.description().kv_endpoints() {
        if let Ok(reply) = client::admin::status(&endpoint, Duration::from_millis(500)).await
            && reply.leader != 0
        {
            return Some(Instance::Kvd(u16::try_from(reply.leader).unwrap()));
        }
    }
    None
}

/// Kills all members at once, and starts them again.
async fn kill_all(test: &mut TestCluster) {
    for node in 1..=MEMBERS {
        test.cluster.process(Instance::Kvd(node)).unwrap().signal(rustix::process::Signal::KILL);
    }
    for node in 1..=MEMBERS {
        test.cluster.kill(Instance::Kvd(node)).unwrap();
        test.cluster.restart(Instance::Kvd(node)).unwrap();
    }
    ready(&mut test.cluster).await;
}

/// Kills a member, the leader every other time, and starts it again a second later; now and then all
/// of them, while the clients write.
async fn chaos(test: &mut TestCluster, end: Instant) -> u32 {
    let mut rng = StdRng::seed_from_u64(1);
    let mut kills = 0;
    while Instant::now() + AWAY < end {
        if kills % 4 == 2 {
            kill_all(test).await;
            kills += 1;
            continue;
        }
        let drawn = Instance::Kvd(rng.random_range(1..=MEMBERS));
        let victim = if kills % 2 == 0 { leader(test).await.unwrap_or(drawn) } else { drawn };
        test.cluster.kill(victim).unwrap();
        kills += 1;
        sleep(AWAY).await;
        test.cluster.restart(victim).unwrap();
        // Ready again, so that two are never away at a time and the clients have something to do.
        test.cluster.ready_one(victim, Instant::now() + DEADLINE).await.unwrap();
        sleep_until(end.min(Instant::now() + Duration::from_millis(rng.random_range(0..500))))
            .await;
    }
    kills
}

/// Nothing that was acknowledged is lost, nothing is there twice or in a wrong order.
async fn check(client: &KvClient, known: &Known, appends: &[Vec<Append>]) {
    let counters = *known.counters.lock().unwrap();
    for (owner, counter) in counters.iter().enumerate() {
        let found = client.get(counter_key(owner)).await.unwrap();
        known.read_counter(owner, *counter, found.map_or(0, |pair| number(&pair.value)));
    }
    let mut values = BTreeMap::new();
    for key in appends.iter().flatten().map(|append| &append.key) {
        if !values.contains_key(key) {
            let value = client.get(key.clone()).await.unwrap();
            let value = value.map_or_else(Vec::new, |pair| pair.value.to_vec());
            known.read_appended(key, &known.appended_before(key), &value);
            values.insert(key.clone(), String::from_utf8(value).unwrap());
        }
    }
    for of_client in appends {
        let mut last: BTreeMap<&str, usize> = BTreeMap::new();
        for Append { key, token, acknowledged } in of_client {
            let places: Vec<usize> =
                values[key].match_indices(token).map(|(place, _)| place).collect();
            assert!(places.len() <= 1, "{token} is {} times in {key}", places.len());
            assert!(!acknowledged || places.len() == 1, "{token} is lost from {key}");
            if let Some(place) = places.first() {
                let before = last.insert(key, *place);
                assert!(before < Some(*place), "{token} is out of order in {key}");
            }
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_whichever_members_are_killed() {
    let (length, acknowledged_min) = match Depth::asked() {
        Depth::Quick => (Duration::from_secs(8), 200),
        Depth::Ci => (Duration::from_secs(30), 1_000),
        Depth::Deep => (Duration::from_secs(300), 10_000),
    };
    let _watchdog = Watchdog::new(length + Duration::from_secs(120));
    let mut test = TestCluster::start(MEMBERS, 0, |_| ()).await;
    let known = Arc::new(Known::default());
    let begin = Instant::now();
    let end = begin + length;
    let mut clients = JoinSet::new();
    for me in 0..CLIENTS {
        let client = test.kv(DEADLINE);
        clients.spawn(work(me, client, known.clone(), begin, end));
    }
    let kills = chaos(&mut test, end).await;
    let appends = clients.join_all().await;

    let client = test.kv(DEADLINE);
    check(&client, &known, &appends).await;
    let acknowledged = appends.iter().flatten().filter(|append| append.acknowledged).count();
    let unknown = appends.iter().map(Vec::len).sum::<usize>() - acknowledged;
    eprintln!("{kills} kills, {acknowledged} acknowledged appends, {unknown} of unknown outcome");
    assert!(kills >= 2, "only {kills} kills");
    assert!(acknowledged >= acknowledged_min, "only {acknowledged} appends were acknowledged");

    kill_all(&mut test).await;
    check(&test.kv(DEADLINE), &known, &appends).await;
}
