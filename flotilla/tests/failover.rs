//! How long a group can't be written to when its leader is killed; and that a leader which stood
//! still while another one was elected tells nobody what is old, whether it reads by asking its
//! followers or by a lease.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::time::Duration;

use client::admin::{MemberChange, change_members, status};
use client::{KvClient, metadata};
use flotilla::local::Instance;
use proto::admin::Role;
use proto::kv::GetRequest;
use proto::kv::kv_client::KvClient as Stub;
use support::{Depth, READY_TIMEOUT, TestCluster, Watchdog, ready};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

const MEMBERS: u16 = 3;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What a failover may take with default settings.
const MEDIAN_MAX: Duration = Duration::from_secs(1);
const LONGEST_MAX: Duration = Duration::from_secs(2);

/// How much longer it may take beside other tests.
const BESIDE_OTHERS: f64 = 4.0;

/// How much longer it may take in few rounds: followers wait for a time that they draw, so the
/// median of twenty is now and then a tenth over that of many.
const BY_CHANCE: f64 = 1.5;

/// Held by the test that has the machine for itself, as far as this file goes.
static MACHINE: Mutex<()> = Mutex::const_new(());

/// How many are asked at once what a leader knows that stood still.
const READS: usize = 64;

/// The member that says that it leads, in the newest term; not this one.
async fn leader(test: &TestCluster, but: Option<Instance>) -> Instance {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let mut found = None;
        for (node, endpoint) in (1..).zip(test.cluster.description().kv_endpoints()) {
            let node = Instance::Kvd(node);
            if Some(node) != but
                && let Ok(reply) = status(&endpoint, Duration::from_millis(500)).await
                && reply.role() == Role::Leader
            {
                found = found.max(Some((reply.term, node)));
            }
        }
        if let Some((_, node)) = found {
            return node;
        }
        assert!(Instant::now() < deadline, "nobody leads");
        sleep(LOOK_INTERVAL).await;
    }
}

/// From the kill of the leader to the first write that is acknowledged.
async fn failover(test: &mut TestCluster, client: &KvClient) -> Duration {
    let victim = leader(test, None).await;
    // The client knows the leader, as one does that writes all the time.
    client.put("key", "before").await.unwrap();
    let killed = Instant::now();
    test.cluster.kill(victim).unwrap();
    client.put("key", "after").await.unwrap();
    let took = killed.elapsed();
    test.cluster.restart(victim).unwrap();
    ready(&mut test.cluster).await;
    took
}

#[tokio::test]
async fn writes_go_on_soon_after_the_leader_is_killed() {
    let (rounds, slack) = match Depth::asked() {
        Depth::Quick => (5, BESIDE_OTHERS),
        Depth::Ci => (20, BY_CHANCE),
        Depth::Deep => (100, 1.0),
    };
    let _alone = MACHINE.lock().await;
    let _watchdog = Watchdog::new(READY_TIMEOUT * (2 + rounds));
    let mut test = TestCluster::start(MEMBERS, 0, |_| ()).await;
    let client = test.kv(READY_TIMEOUT);
    let mut took = Vec::new();
    for _ in 0..rounds {
        took.push(failover(&mut test, &client).await);
    }
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], *took.last().unwrap());
    eprintln!("{rounds} failovers: median {median:.2?}, longest {longest:.2?} of {took:.2?}");
    assert!(median < MEDIAN_MAX.mul_f64(slack), "the median failover took {median:?}");
    assert!(longest < LONGEST_MAX.mul_f64(slack), "the longest failover took {longest:?}");
}

/// What reads of a member are told that is asked by itself; none: that it can't say.
async fn read(mut stub: Stub<Channel>) -> Option<String> {
    let request = GetRequest { key: "key".into(), ..GetRequest::default() };
    match timeout(READY_TIMEOUT, stub.get(request)).await.unwrap() {
        Ok(reply) => {
            let value = reply.into_inner().pair.unwrap().value;
            Some(String::from_utf8(value.to_vec()).unwrap())
        }
        Err(status) => {
            assert!(metadata::was_never_executed(&status), "{status:?}");
            None
        }
    }
}

/// A leader stands still until another one has acknowledged a write. What it is asked meanwhile, and
/// answers when it goes on, is not what was there before. How many were answered.
async fn round(test: &mut TestCluster, client: &KvClient, number: u32) -> usize {
    let old = leader(test, None).await;
    let Instance::Kvd(node) = old else { unreachable!("only stores are there") };
    let endpoint = test.cluster.description().kv_endpoints()[usize::from(node) - 1].clone();
    client.put("key", format!("old {number}")).await.unwrap();
    let stub = Stub::new(
        Endpoint::from_shared(format!("http://{endpoint}")).unwrap().connect().await.unwrap(),
    );
    // The connection is there, and the leader has just read: a lease, if it has one, is fresh.
    assert_eq!(read(stub.clone()).await, Some(format!("old {number}")));
    test.cluster.pause(old).unwrap();
    leader(test, Some(old)).await;
    client.put("key", format!("new {number}")).await.unwrap();
    // These lie in its socket when it goes on.
    let mut reads: JoinSet<_> = (0..READS).map(|_| read(stub.clone())).collect();
    // Most have been sent by then. Right are only answers of the new value in any case.
    sleep(LOOK_INTERVAL).await;
    test.cluster.resume(old).unwrap();
    reads.spawn(read(stub));
    let told: Vec<_> = reads.join_all().await.into_iter().flatten().collect();
    for value in &told {
        assert_eq!(*value, format!("new {number}"), "a read is stale");
    }
    ready(&mut test.cluster).await;
    told.len()
}

async fn check_no_stale_read(lease_reads: bool) {
    let rounds = match Depth::asked() {
        Depth::Quick => 3,
        Depth::Ci => 10,
        Depth::Deep => 50,
    };
    let _alone = MACHINE.lock().await;
    let _watchdog = Watchdog::new(READY_TIMEOUT * (2 + rounds));
    let mut test = TestCluster::start(MEMBERS, 0, |_| ()).await;
    let client = test.kv(READY_TIMEOUT);
    let endpoints = test.cluster.description().kv_endpoints();
    let Instance::Kvd(first) = leader(&test, None).await else { unreachable!("only stores") };
    let at = &endpoints[usize::from(first) - 1];
    let change = [MemberChange::LeaseReads(lease_reads)];
    change_members(at, &change, READY_TIMEOUT).await.unwrap();
    assert_eq!(status(at, READY_TIMEOUT).await.unwrap().lease_reads, lease_reads);
    let mut answered = 0;
    for number in 0..rounds {
        answered += round(&mut test, &client, number).await;
    }
    eprintln!("lease reads: {lease_reads}; {answered} reads of leaders that stood still answered");
    assert!(answered > 0, "inconclusive: no leader that stood still answered anything");
}

#[tokio::test]
async fn no_stale_read_of_a_leader_that_stood_still_with_read_index() {
    check_no_stale_read(false).await;
}

#[tokio::test]
async fn no_stale_read_of_a_leader_that_stood_still_with_a_lease() {
    check_no_stale_read(true).await;
}
