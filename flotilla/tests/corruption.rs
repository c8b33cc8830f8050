//! A bit of one member's state changes, as memory does that fails, while clients write: the member
//! finds that, serves nothing from what it has then, and gets the right state back; no request fails.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::KvClient;
use flotilla::local::Instance;
use proto::admin::{Role, StatusReply, Trust};
use raftd::failpoint::VARIABLE;
use support::{READY_TIMEOUT, TestCluster, Watchdog, flotilla, ready, well};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// The member whose state changes.
const VICTIM: u16 = 2;

/// How often it applies something before that, since its start.
const VISITS: u32 = 40;

/// So often states are compared.
const INTERVAL: (&str, &str) = ("FLOTILLA_KVD__GROUP__CHECK_INTERVAL_S", "1");

/// The end of every value; the state changes by turning the end of one into another.
const END: &str = "0";

const LOOK_INTERVAL: Duration = Duration::from_millis(5);

const WRONG: &str = "the state of this member is wrong";
const HANDS_OVER: &str = "handing the leadership over";
const DOUBTFUL: &str = "members hold different states and no majority agrees";
const REPLACED: &str = "the one made once more replaces it";
const SERVES_AGAIN: &str = "it serves again";

struct Corruption {
    test: TestCluster,
    stop: Arc<AtomicBool>,
}

impl Corruption {
    /// Starts members, and the victim among them last, with what changes its state.
    async fn start(members: u16) -> Self {
        let mut test = TestCluster::start(members, 0, |_| ()).await;
        let others = (1..=members).filter(|node| *node != VICTIM);
        for node in others.chain([VICTIM]) {
            let mut environment = vec![(INTERVAL.0.to_owned(), INTERVAL.1.to_owned())];
            if node == VICTIM {
                environment.push((VARIABLE.to_owned(), format!("state.flip=flip@{VISITS}")));
            }
            let instance = Instance::Kvd(node);
            test.cluster.kill(instance).unwrap();
            test.cluster.process(instance).unwrap().set_environment(environment);
            test.cluster.restart(instance).unwrap();
            ready(&mut test.cluster).await;
        }
        Self { test, stop: Arc::default() }
    }

    async fn status(&self, node: u16) -> Option<StatusReply> {
        let endpoint = self.test.cluster.description().place.kvd(node).to_string();
        client::admin::status(&endpoint, Duration::from_secs(2)).await.ok()
    }

    async fn leader(&self) -> u16 {
        let members = self.test.cluster.description().kv;
        loop {
            for node in 1..=members {
                if self.status(node).await.is_some_and(|reply| reply.role() == Role::Leader) {
                    return node;
                }
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Hands the leadership over, if it is elsewhere.
    async fn lead(&self, node: u16) {
        let endpoints = self.test.cluster.description().kv_endpoints().join(",");
        while self.leader().await != node {
            let (endpoints, to) = (endpoints.clone(), node.to_string());
            let transfer = move || {
                well(&flotilla(&["members", "transfer", "--to", &to, "--endpoints", &endpoints]))
            };
            tokio::task::spawn_blocking(transfer).await.unwrap();
        }
    }

    /// Writes a key after the other until it is told to stop; how many it wrote. Each write has to
    /// succeed.
    fn write(&self) -> JoinHandle<usize> {
        let (client, stop) = (self.test.kv(READY_TIMEOUT), self.stop.clone());
        tokio::spawn(async move {
            let mut keys = 0;
            while !stop.load(Ordering::Relaxed) {
                client.put(key(keys), format!("value {keys} {END}")).await.unwrap();
                keys += 1;
            }
            keys
        })
    }

    fn log(&mut self, node: u16) -> String {
        let process = self.test.cluster.process(Instance::Kvd(node)).unwrap();
        fs::read_to_string(process.log()).unwrap()
    }

    /// Waits until a member has said so.
    async fn told(&mut self, node: u16, what: &str) {
        let deadline = Instant::now() + READY_TIMEOUT;
        while !self.log(node).contains(what) {
            assert!(Instant::now() < deadline, "member {node} does not say: {what}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until all members trust their states and these are equal.
    async fn settle(&mut self) {
        let (members, deadline) =
            (self.test.cluster.description().kv, Instant::now() + READY_TIMEOUT);
        loop {
            let mut replies = Vec::new();
            for node in 1..=members {
                replies.extend(self.status(node).await);
            }
            let first = &replies[0];
            let equal = |reply: &StatusReply| {
                reply.trust() == Trust::Sound
                    && reply.applied_index == first.applied_index
                    && reply.state_digest == first.state_digest
            };
            if replies.len() == usize::from(members) && replies.iter().all(equal) {
                break;
            }
            assert!(Instant::now() < deadline, "{replies:?}");
            sleep(LOOK_INTERVAL).await;
        }
        let mark = self.test.dir.path().join(format!("kvd-{VICTIM}")).join("doubted");
        let parent = mark.parent().unwrap().to_owned();
        assert!(parent.is_dir(), "{} is no directory", parent.display());
        while mark.exists() {
            assert!(Instant::now() < deadline, "the mark stays");
            sleep(LOOK_INTERVAL).await;
        }
    }
}

fn key(number: usize) -> String {
    format!("key {number}")
}

/// Reads all keys; each has to be as it was written.
async fn read(client: &KvClient, keys: usize) {
    for number in 0..keys {
        let found = client.get(key(number)).await.unwrap().unwrap();
        assert_eq!(found.value, format!("value {number} {END}"));
    }
}

#[tokio::test]
async fn a_follower_whose_state_changes_is_rebuilt_and_answers_nothing_wrong_meanwhile() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut corruption = Corruption::start(3).await;
    let heir = if corruption.leader().await == VICTIM { 1 } else { corruption.leader().await };
    corruption.lead(heir).await;
    let writing = corruption.write();
    corruption.told(VICTIM, WRONG).await;
    // Whoever asks this member gets what the others have.
    let endpoint = corruption.test.cluster.description().place.kvd(VICTIM).to_string();
    let there =
        KvClient::connect(vec![endpoint], client::Options::with_deadline(READY_TIMEOUT)).unwrap();
    read(&there, VISITS as usize).await;
    corruption.told(VICTIM, SERVES_AGAIN).await;
    corruption.stop.store(true, Ordering::Relaxed);
    let keys = writing.await.unwrap();
    corruption.settle().await;
    read(&there, keys).await;
    assert!(corruption.log(VICTIM).contains("installed a snapshot"));
    for node in [1, 3] {
        let log = corruption.log(node);
        assert!(!log.contains(WRONG) && !log.contains(DOUBTFUL), "member {node} is right: {log}");
    }
    let found = corruption.test.cluster.metric(Instance::Kvd(VICTIM), "flotilla_raft_state_sound");
    assert_eq!(found.await, Some(1.0));
}

#[tokio::test]
async fn a_leader_whose_state_changes_hands_over_and_is_rebuilt() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut corruption = Corruption::start(3).await;
    corruption.lead(VICTIM).await;
    let writing = corruption.write();
    corruption.told(VICTIM, WRONG).await;
    corruption.told(VICTIM, HANDS_OVER).await;
    while corruption.leader().await == VICTIM {
        sleep(LOOK_INTERVAL).await;
    }
    // What is wrong may be in the member's own snapshot, so that its end changes nothing.
    corruption.test.cluster.kill(Instance::Kvd(VICTIM)).unwrap();
    let process = corruption.test.cluster.process(Instance::Kvd(VICTIM)).unwrap();
    process.set_environment(vec![(INTERVAL.0.to_owned(), INTERVAL.1.to_owned())]);
    corruption.test.cluster.restart(Instance::Kvd(VICTIM)).unwrap();
    corruption.told(VICTIM, SERVES_AGAIN).await;
    corruption.stop.store(true, Ordering::Relaxed);
    let keys = writing.await.unwrap();
    corruption.settle().await;
    read(&corruption.test.kv(READY_TIMEOUT), keys).await;
}

#[tokio::test]
async fn of_two_that_differ_the_one_that_is_wrong_takes_what_its_log_says() {
    let _watchdog = Watchdog::new(4 * READY_TIMEOUT);
    let mut corruption = Corruption::start(2).await;
    let writing = corruption.write();
    corruption.told(VICTIM, DOUBTFUL).await;
    corruption.told(VICTIM, REPLACED).await;
    corruption.told(VICTIM, SERVES_AGAIN).await;
    corruption.told(1, SERVES_AGAIN).await;
    corruption.stop.store(true, Ordering::Relaxed);
    let keys = writing.await.unwrap();
    corruption.settle().await;
    read(&corruption.test.kv(READY_TIMEOUT), keys).await;
    assert!(!corruption.log(1).contains(REPLACED), "what is right is kept");
}
