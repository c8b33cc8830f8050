//! A snapshot on its way to a new member, while clients write and everything goes wrong: it is
//! brought to its end with hardly a chunk sent twice. Only the new member's own connections to the
//! others, over which it fetches, pass a proxy that breaks them.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use client::{KvClient, Options};
use daemon::ports;
use flotilla::local::Instance;
use proto::admin::{StatusReply, Transfer};
use support::proxy::Proxies;
use support::{Depth, READY_TIMEOUT, TestCluster, Watchdog, flotilla, well};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const MEMBERS: u16 = 3;

/// The member that comes later.
const NEW: u16 = 4;

/// So large that a pair has a chunk of its own, and a key that is written changes no other's.
const VALUE_BYTES: usize = 24 << 10;

/// The largest chunk.
const CHUNK_BYTES_MAX: u64 = 32 << 10;

/// What is kept of the past of the one shard that has all keys.
const PAST_BYTES_MAX: u64 = 256 << 10;

/// One key in so many is written all the time.
const HOT: usize = 20;

/// How many clients write.
const CLIENTS: usize = 2;

/// What breaks a transfer off, or could.
#[derive(Clone, Copy, Debug)]
enum Break {
    /// The new member is killed.
    Kill,
    /// Its connection is cut in the middle of a chunk.
    Cut,
    /// Its connections stay open, and nothing passes until it has noticed.
    Hole,
    /// The leadership is handed over.
    Lead,
}

/// What happens to the transfer, in the first half of it.
const BREAKS: [Break; 10] = [
    Break::Cut,
    Break::Kill,
    Break::Lead,
    Break::Cut,
    Break::Hole,
    Break::Cut,
    Break::Kill,
    Break::Lead,
    Break::Cut,
    Break::Kill,
];

/// How often a transfer to the new member broke off, or went on after a start.
const RESUMES: &str = "flotilla_snapshot_resumes_total";

/// How many keys are written at a time at first.
const LOADED_AT_ONCE: usize = 16;

const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// How long everything may take, after which something hangs.
fn limit() -> Duration {
    if Depth::asked() == Depth::Deep { 20 * READY_TIMEOUT } else { 3 * READY_TIMEOUT }
}

/// How many keys there are.
fn keys() -> usize {
    let bytes = if Depth::asked() == Depth::Deep { 1 << 30 } else { 32 << 20 };
    bytes / VALUE_BYTES
}

/// Another value for every number, since equal chunks are sent once.
fn value(seed: usize) -> Bytes {
    let mut value = format!("{seed} ").repeat(VALUE_BYTES / 2);
    value.truncate(VALUE_BYTES);
    value.into()
}

async fn status(test: &TestCluster, node: u16) -> Option<StatusReply> {
    let endpoint = test.cluster.description().place.kvd(node).to_string();
    client::admin::status(&endpoint, Duration::from_secs(2)).await.ok()
}

/// Waits until the members are as they should be.
async fn wait(
    test: &TestCluster,
    nodes: std::ops::RangeInclusive<u16>,
    what: &str,
    is: impl Fn(&StatusReply) -> bool,
) {
    let deadline = Instant::now() + limit();
    for node in nodes {
        while !status(test, node).await.is_some_and(|reply| is(&reply)) {
            assert!(Instant::now() < deadline, "member {node}: {what}");
            sleep(LOOK_INTERVAL).await;
        }
    }
}

/// Writes all keys once.
async fn load(client: &KvClient) {
    let mut puts = JoinSet::new();
    for key in 0..keys() {
        while puts.len() >= LOADED_AT_ONCE {
            puts.join_next().await.unwrap().unwrap();
        }
        let client = client.clone();
        puts.spawn(async move {
            client.put(format!("{{keys}}{key}"), value(key)).await.unwrap();
        });
    }
    puts.join_all().await;
}

/// What the clients that write are told.
#[derive(Clone)]
struct Orders {
    stop: Arc<AtomicBool>,
    /// Whether a transfer runs.
    transfer: watch::Receiver<bool>,
}

/// How long puts took without a transfer, and with one.
type Took = [Vec<Duration>; 2];

/// Writes the hot keys, one after the other, until it is told to stop.
async fn write(client: KvClient, me: usize, orders: Orders) -> Took {
    let mut took = Took::default();
    for number in me.. {
        if orders.stop.load(Ordering::Relaxed) {
            break;
        }
        let during = usize::from(*orders.transfer.borrow());
        let (key, value) = (number % (keys() / HOT) * HOT, value(keys() + number * CLIENTS + me));
        let begun = Instant::now();
        client.put(format!("{{keys}}{key}"), value).await.unwrap();
        took[during].push(begun.elapsed());
    }
    took
}

fn p99(took: &mut [Duration]) -> Duration {
    took.sort();
    took[took.len() * 99 / 100]
}

/// Starts the new member, which learns its group, and then once more, so that it knows the others by
/// settings of its own: they are reached over the proxies. Where it is reached itself.
async fn join(test: &mut TestCluster, proxies: &mut Proxies) -> SocketAddr {
    let peer = test.cluster.join_kvd(NEW).unwrap();
    wait(test, NEW..=NEW, "knows no group", |it| !it.group.is_empty()).await;
    test.cluster.kill(Instance::Kvd(NEW)).unwrap();
    let (place, data) =
        (test.cluster.description().place, test.cluster.dir().join(Instance::Kvd(NEW).to_string()));
    let mut arguments = vec![
        "kvd".to_owned(),
        format!("--listen={}", place.kvd(NEW)),
        format!("--node={NEW}"),
        format!("--member={NEW}={}", place.kvd(NEW)),
        format!("--data={}", data.display()),
    ];
    for node in 1..=MEMBERS {
        let client = place.kvd(node);
        let way = (client.ip(), client.port() + ports::PEER_OFFSET).into();
        arguments.push(format!("--member={node}={client},{}", proxies.open(way).await));
    }
    let process = test.cluster.process(Instance::Kvd(NEW)).unwrap();
    process.set_arguments(arguments);
    process.start().unwrap();
    peer
}

/// Does all that there is to a transfer to the new member. How many bytes the snapshot has.
async fn interrupt(test: &mut TestCluster, proxies: &Proxies) -> u64 {
    let deadline = Instant::now() + limit();
    for (at, what) in (1..).zip(BREAKS) {
        // In its first half: what is seen late on a busy machine is seen before its end.
        let (done, total) = loop {
            assert!(Instant::now() < deadline, "{at}: there is no transfer for {what:?}");
            sleep(LOOK_INTERVAL).await;
            let Some(reply) = status(test, NEW).await else { continue };
            assert_eq!(reply.snapshot_index, 0, "installed before {at}: {what:?}");
            let Some(Transfer { done_bytes, total_bytes, .. }) = reply.transfer else { continue };
            if done_bytes * 2 * BREAKS.len() as u64 >= total_bytes * at {
                break (done_bytes, total_bytes);
            }
        };
        println!("{what:?} when {done} of {total} bytes had come");
        match what {
            Break::Kill => {
                test.cluster.kill(Instance::Kvd(NEW)).unwrap();
                test.cluster.restart(Instance::Kvd(NEW)).unwrap();
            }
            Break::Cut => proxies.cut().await,
            Break::Hole => {
                let before = test.cluster.metric(Instance::Kvd(NEW), RESUMES).await;
                proxies.swallow();
                while test.cluster.metric(Instance::Kvd(NEW), RESUMES).await <= before {
                    assert!(Instant::now() < deadline, "nobody notices that nothing comes");
                    sleep(LOOK_INTERVAL).await;
                }
                proxies.heal();
            }
            Break::Lead => {
                let endpoints = test.cluster.description().kv_endpoints().join(",");
                let command = move || flotilla(&["members", "transfer", "--endpoints", &endpoints]);
                well(&tokio::task::spawn_blocking(command).await.unwrap());
            }
        }
    }
    status(test, 1).await.unwrap().snapshot_bytes
}

/// Which snapshots the new member has fetched chunks of, by their indexes.
fn fetched(test: &mut TestCluster) -> BTreeSet<u64> {
    let log = test.cluster.process(Instance::Kvd(NEW)).unwrap().log();
    let text = std::fs::read_to_string(log).unwrap();
    let begun = text.lines().filter(|line| line.contains("fetching the chunks that are missing"));
    let index = |line: &str| {
        let (_, rest) = line.split_once("index=")?;
        rest.split_whitespace().next()?.parse().ok()
    };
    begun.inspect(|line| println!("{line}")).map(|line| index(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_reaches_a_new_member_whatever_breaks_it_off() {
    let _watchdog = Watchdog::new(limit());
    let mut test = TestCluster::start(MEMBERS, 0, |plan| {
        let settings = plan.dir.join("kvd.toml");
        let text = "[group]\nsnapshot_log_bytes_min = 1000000\nretained_bytes = 1000\n";
        std::fs::write(&settings, text).unwrap();
        plan.further.kvd = vec![format!("--config={}", settings.display())];
    })
    .await;
    let endpoints = test.cluster.description().kv_endpoints();
    load(&test.kv(READY_TIMEOUT)).await;
    let (transfer, running) = watch::channel(false);
    let orders = Orders { stop: Arc::default(), transfer: running };
    let mut clients = JoinSet::new();
    for me in 0..CLIENTS {
        let options = Options::with_deadline(READY_TIMEOUT);
        let client = KvClient::connect(endpoints.clone(), options).unwrap();
        clients.spawn(write(client, me, orders.clone()));
    }
    let whole = (keys() * VALUE_BYTES) as u64;
    wait(&test, 1..=MEMBERS, "has no snapshot of all", |it| it.snapshot_bytes >= whole).await;

    let mut proxies = Proxies::new();
    let peer = join(&mut test, &mut proxies).await.to_string();
    let all = endpoints.join(",");
    let add = move || flotilla(&["members", "add", "--learner", &peer, "--endpoints", &all]);
    well(&tokio::task::spawn_blocking(add).await.unwrap());
    transfer.send_replace(true);
    let begun = Instant::now();
    let bytes = interrupt(&mut test, &proxies).await;
    wait(&test, NEW..=NEW, "has no snapshot", |it| it.snapshot_index > 0).await;
    println!("a snapshot of {bytes} bytes took {:?}", begun.elapsed());
    transfer.send_replace(false);
    orders.stop.store(true, Ordering::Relaxed);
    let mut took = Took::default();
    for each in clients.join_all().await {
        took.iter_mut().zip(each).for_each(|(all, each)| all.extend(each));
    }
    let [without, with] = took.each_mut().map(|took| (took.len(), p99(took)));
    println!("puts: {without:?} without a transfer, {with:?} with one");
    if Depth::asked() == Depth::Deep {
        assert!(with.1 <= 3 * without.1, "{with:?} with a transfer, {without:?} without");
    }

    let last = status(&test, 1).await.unwrap().last_index;
    wait(&test, 1..=NEW, "has not all", |it| it.applied_index >= last).await;
    let digest = status(&test, 1).await.unwrap().state_digest;
    wait(&test, 1..=NEW, "has another state", |it| it.state_digest == digest).await;

    let mut sent = 0;
    for node in 1..=MEMBERS {
        let name = "flotilla_snapshot_bytes_sent_total";
        sent += test.cluster.metric(Instance::Kvd(node), name).await.unwrap_or(0.0) as u64;
    }
    let manifests = fetched(&mut test).len() as u64;
    // The values that were written meanwhile, and what a shard keeps of those before them.
    let hot = (keys() / HOT) as u64 * CHUNK_BYTES_MAX;
    let differ = (manifests - 1) * (hot + PAST_BYTES_MAX);
    println!("{sent} bytes sent for {manifests} manifests of {bytes} bytes");
    assert!(sent >= whole && sent <= bytes + bytes / 10 + differ, "{differ} may differ");
}
