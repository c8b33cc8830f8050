//! The key/value store: appends are there once, leased keys go, locks have one holder at a time,
//! and a watch tells all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client::{
    Error, Keys, KvClient, LockClient, LockOptions, PutOptions, ScanOptions, Watch, WatchOptions,
    Watched,
};
use flotilla::local::Instance;
use raftd::failpoint::Failpoint;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::deaths::{BURST, CLIENTS, DEADLINE, MEMBERS, PAUSE, SETTINGS, Victims, Visits, visits};
use super::support::{Depth, TestCluster, Watchdog};

/// How long what is leased lives when nobody keeps it alive.
const TTL: Duration = Duration::from_millis(300);

/// So many appends of each client go to one key.
const APPENDS_PER_KEY: usize = 50;

/// So many events of the watch, and it has the changes before them forgotten.
const EVENTS_KEPT: usize = 200;

/// Which places, in which order: those that have to do with the state of the store, or all that it
/// comes to.
fn places(depth: Depth) -> Vec<Failpoint> {
    let all = Failpoint::ALL.iter().copied().filter(|at| !matches!(visits(*at), Visits::Never));
    match depth {
        Depth::Quick => vec![Failpoint::ApplyAfter, Failpoint::ExpireProposeBefore],
        Depth::Ci => vec![
            Failpoint::ApplyBefore,
            Failpoint::ApplyAfter,
            Failpoint::ExpireProposeBefore,
            Failpoint::ExpireProposeAfter,
            Failpoint::SnapshotCreateBetween,
            Failpoint::SnapshotCreateAfter,
            Failpoint::SnapshotInstallBefore,
            Failpoint::SnapshotInstallAfter,
        ],
        Depth::Deep => all.collect::<Vec<_>>().repeat(5),
    }
}

#[tokio::test]
async fn a_member_of_the_store_may_die_at_any_named_place() {
    let places = places(Depth::asked());
    let _watchdog = Watchdog::new(DEADLINE + places.len() as u32 * DEADLINE / 2);
    let test = TestCluster::start(MEMBERS, 0, |plan| {
        let settings = plan.dir.join("kvd.toml");
        // All changes have one log, so that the watch may be as late as a dead member makes it.
        std::fs::write(&settings, format!("shards = 1\n{SETTINGS}")).unwrap();
        plan.further.kvd = vec![format!("--config={}", settings.display())];
    })
    .await;
    let client = test.kv(DEADLINE);
    let endpoints = test.cluster.description().kv_endpoints();
    let mut victims = Victims::new(test, endpoints, Instance::Kvd);
    let mut acknowledged = 0;
    for (round, at) in places.into_iter().enumerate() {
        let keys = Names::of(round);
        let mut watch = client.watch(vec![keys.all()], WatchOptions::default());
        watch.begin().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for me in 0..CLIENTS {
            clients.spawn(write(keys.clone(), me, client.clone(), stop.clone()));
        }
        let watcher = tokio::spawn(follow(keys.clone(), watch, client.clone()));
        victims.round(at).await;
        stop.store(true, Ordering::Relaxed);
        let done = clients.join_all().await;
        acknowledged += done.iter().map(Done::acknowledged).sum::<usize>();
        leased_keys_go(&keys, &client).await;
        client.put(keys.end(), "").await.unwrap();
        let told = watcher.await.unwrap();
        check(&keys, &client, &done, &told).await;
        members_agree(&victims).await;
    }
    victims.finish(acknowledged);
}

/// The keys of one round, which share a shard.
#[derive(Clone)]
struct Names(String);

impl Names {
    fn of(round: usize) -> Self {
        Self(format!("{{{round}}}"))
    }

    fn all(&self) -> Keys {
        Keys::Prefix(format!("{}/", self.0).into())
    }

    /// Where the clients append what has this number; values stay short.
    fn appended(&self, number: usize) -> String {
        format!("{}/appended/{:06}", self.0, number / APPENDS_PER_KEY)
    }

    fn appends(&self) -> String {
        format!("{}/appended/", self.0)
    }

    fn guarded(&self) -> String {
        format!("{}/guarded", self.0)
    }

    fn leased(&self) -> String {
        format!("{}/leased/", self.0)
    }

    fn end(&self) -> String {
        format!("{}/end", self.0)
    }

    fn lock(&self) -> String {
        self.0.clone()
    }
}

/// What one client did.
#[derive(Default)]
struct Done {
    /// What it appended, in order, and the version of the key that came of it, if that was told.
    appended: Vec<(String, Option<u64>)>,
    /// The keys that it wrote for sure, under a lease.
    leased: Vec<String>,
    /// The tokens under which it wrote for sure.
    tokens: Vec<u64>,
}

impl Done {
    fn acknowledged(&self) -> usize {
        let appended = self.appended.iter().filter(|(_, version)| version.is_some()).count();
        appended + self.leased.len() + self.tokens.len()
    }
}

async fn write(keys: Names, me: usize, client: KvClient, stop: Arc<AtomicBool>) -> Done {
    let mut done = Done::default();
    let mut burst = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = done.appended.len();
        let word = format!("{me}.{number} ");
        let version = match client.append(keys.appended(number), word.clone()).await {
            Ok(appended) => Some(appended.written.version),
            Err(Error::Unknown(_)) => None,
            Err(Error::Rejected(rejected)) => panic!("append: {rejected}"),
        };
        done.appended.push((word, version));
        if number % 8 == 0 {
            let key = format!("{}{me}.{number}", keys.leased());
            if lease(&keys, &client, &key).await.is_ok() {
                done.leased.push(key);
            }
        }
        if number % 16 == 1
            && let Some(token) = write_guarded(&keys, &client).await
        {
            done.tokens.push(token);
        }
        if burst.elapsed() >= BURST {
            sleep(PAUSE).await;
            burst = Instant::now();
        }
    }
    done
}

/// Writes a key that nobody keeps alive; it may be over before it is written.
async fn lease(keys: &Names, client: &KvClient, key: &str) -> Result<(), Error> {
    let lease_id = Some(client.grant(keys.lock(), TTL).await?.lease_id);
    let options = PutOptions { lease_id, ..PutOptions::default() };
    client.put_with(key.to_owned(), "", options).await.map(|_| ())
}

/// Appends its token while it holds the lock; none: it could not, or may have.
async fn write_guarded(keys: &Names, client: &KvClient) -> Option<u64> {
    let locks = LockClient::new(client.clone());
    let options = LockOptions { wait: DEADLINE, ..LockOptions::default() };
    let held = locks.acquire(keys.lock(), &options).await.ok()??;
    let token = held.token();
    let word = format!("{token} ");
    let written = client.append_guarded(keys.guarded(), word, held.guard()).await;
    let _ = held.release().await;
    written.is_ok().then_some(token)
}

/// What a watch told.
#[derive(Default)]
struct Told {
    /// The last version of each key that is appended to.
    versions: BTreeMap<Bytes, u64>,
    /// How often each leased key was written, and how often it expired.
    leased: BTreeMap<Bytes, (u32, u32)>,
}

/// Takes in all that is told until the round's end, and has forgotten what is told already.
async fn follow(keys: Names, mut watch: Watch, client: KvClient) -> Told {
    let mut told = Told::default();
    let mut kept = 0;
    let mut last = 0;
    loop {
        let (shard, revision, events) = match watch.next().await.unwrap() {
            Some(Watched::Changed { shard, revision, events }) => (shard, revision, events),
            Some(Watched::Progress) => continue,
            over @ (Some(Watched::Compacted { .. }) | None) => {
                panic!("the watch is over: {over:?}")
            }
        };
        assert!(revision > last, "revision {revision} comes after {last}");
        last = revision;
        for event in events {
            if event.key == keys.end() {
                return told;
            }
            if event.key.starts_with(keys.appends().as_bytes()) {
                let version = event.pair.unwrap().version;
                let before = told.versions.insert(event.key, version).unwrap_or(0);
                assert_eq!(version, before + 1, "each change is told");
            } else if event.key.starts_with(keys.leased().as_bytes()) {
                let (written, expired) = told.leased.entry(event.key).or_default();
                *written += u32::from(event.pair.is_some());
                *expired += u32::from(event.expired);
            }
        }
        kept += 1;
        if kept == EVENTS_KEPT {
            kept = 0;
            // One that is not confirmed changes nothing here.
            let _ = client.compact(shard, Some(revision)).await;
        }
    }
}

async fn leased_keys_go(keys: &Names, client: &KvClient) {
    let deadline = Instant::now() + DEADLINE;
    let leased = || Keys::Prefix(keys.leased().into());
    while client.count(leased()).await.unwrap() > 0 {
        assert!(Instant::now() < deadline, "leased keys are there for ever");
        sleep(TTL / 4).await;
    }
}

async fn check(keys: &Names, client: &KvClient, done: &[Done], told: &Told) {
    let mut scan = client.scan(Keys::Prefix(keys.appends().into()), ScanOptions::default());
    let mut places = BTreeMap::new();
    let mut versions = BTreeMap::new();
    while let Some(page) = scan.next().await.unwrap() {
        for (key, pair) in page {
            for (place, word) in words(&pair.value).into_iter().enumerate() {
                let before = places.insert(word.clone(), place as u64 + 1);
                assert_eq!(before, None, "{word} is there twice");
            }
            versions.insert(key, pair.version);
        }
    }
    assert_eq!(told.versions, versions, "the watch was told another end");
    let mut told_of = 0;
    for client in done {
        let mut last = 0;
        for (number, (word, version)) in client.appended.iter().enumerate() {
            if number % APPENDS_PER_KEY == 0 {
                last = 0;
            }
            let place = places.remove(word);
            assert!(version.is_none() || place == *version, "{word} at {place:?}, not {version:?}");
            assert!(place.is_none_or(|place| place > last), "{word} is out of order");
            last = place.unwrap_or(last);
        }
        for key in &client.leased {
            assert_eq!(told.leased.get(key.as_bytes()), Some(&(1, 1)), "{key}");
        }
        told_of += client.leased.len();
    }
    assert!(places.is_empty(), "nobody asked for {places:?}");
    assert!(told.leased.values().all(|(written, expired)| written == expired));
    assert!(told_of > 0, "nothing was leased");

    let guarded = client.get(keys.guarded()).await.unwrap();
    let guarded = guarded.map_or_else(Vec::new, |pair| words(&pair.value));
    let tokens: Vec<u64> = guarded.iter().map(|word| word.trim().parse().unwrap()).collect();
    assert!(tokens.is_sorted_by(|one, other| one < other), "tokens rise: {tokens:?}");
    for token in done.iter().flat_map(|client| &client.tokens) {
        assert!(tokens.contains(token), "what was written under {token} is gone");
    }
}

fn words(value: &[u8]) -> Vec<String> {
    std::str::from_utf8(value).unwrap().split_inclusive(' ').map(str::to_owned).collect()
}

/// All members come to the same state.
async fn members_agree(victims: &Victims) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut states = Vec::new();
        for node in 1..=MEMBERS {
            let status =
                timeout_at(deadline, victims.status(node)).await.expect("a member is silent");
            states.extend(status.map(|status| (status.applied_index, status.state_digest)));
        }
        if states.len() == usize::from(MEMBERS) && states.iter().all(|state| state.0 == states[0].0)
        {
            assert!(states.iter().all(|state| state.1 == states[0].1), "{states:?}");
            return;
        }
        assert!(Instant::now() < deadline, "the members do not come to the same entry");
        sleep(Duration::from_millis(20)).await;
    }
}
