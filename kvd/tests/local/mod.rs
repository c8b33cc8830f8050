//! A cluster of real members in this process: each with its ports, its directory and its end.

#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::{
    net::TcpListener,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use client::{KvClient, Options, admin};
use daemon::{Failure, Shutdown};
use kvd::Config;
use proto::admin::{Role, StatusReply};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};

/// How long a cluster may take for anything that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub configs: Vec<Config>,
    pub running: Vec<Option<Running>>,
    _directory: TempDir,
}

pub struct Running {
    pub shutdown: Shutdown,
    pub task: JoinHandle<Result<(), Failure>>,
}

impl Cluster {
    /// Members that are not started yet.
    pub fn of(members: u64) -> Self {
        // A process has one recorder, and these members start at the same moment.
        static METRICS: Once = Once::new();
        METRICS.call_once(|| drop(daemon::metrics::Metrics::install("kvd").unwrap()));
        let directory = tempfile::tempdir().unwrap();
        let network = free_network();
        let address = |node: u64| format!("{network}.{node}:7300");
        let list: Vec<String> =
            (1..=members).map(|node| format!("{node}={}", address(node))).collect();
        let configs: Vec<Config> = (1..=members)
            .map(|node| {
                let mut config = Config { listen: address(node), ..Config::default() };
                config.shards = 16;
                config.group.node = node;
                config.group.members.clone_from(&list);
                config.group.free_bytes_min = 0;
                config.group.data = directory.path().join(node.to_string());
                config
            })
            .collect();
        let running = configs.iter().map(|_| None).collect();
        Self { configs, running, _directory: directory }
    }

    pub async fn started(members: u64) -> Self {
        let mut cluster = Self::of(members);
        for at in 0..cluster.configs.len() {
            cluster.start(at);
        }
        cluster.leader().await;
        cluster
    }

    pub fn start(&mut self, at: usize) {
        let (config, shutdown) = (self.configs[at].clone(), Shutdown::new());
        let part = shutdown.clone();
        let task = tokio::spawn(async move { kvd::run(&config, part).await });
        self.running[at] = Some(Running { shutdown, task });
    }

    pub async fn stop(&mut self, at: usize) -> Result<(), Failure> {
        let running = self.running[at].take().unwrap();
        running.shutdown.request();
        running.task.await.unwrap()
    }

    pub fn endpoint(&self, at: usize) -> String {
        self.configs[at].listen.clone()
    }

    pub fn client(&self, at: &[usize]) -> KvClient {
        let endpoints = at.iter().map(|&at| self.endpoint(at)).collect();
        KvClient::connect(endpoints, Options::with_deadline(PATIENCE)).unwrap()
    }

    pub fn everyone(&self) -> KvClient {
        let all: Vec<usize> = (0..self.configs.len()).collect();
        self.client(&all)
    }

    pub async fn status(&self, at: usize) -> Option<StatusReply> {
        admin::status(&self.endpoint(at), Duration::from_millis(500)).await.ok()
    }

    /// The place of the leader that all running members agree on.
    pub async fn leader(&self) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut leaders = Vec::new();
            for at in (0..self.running.len()).filter(|&at| self.running[at].is_some()) {
                leaders.push(self.status(at).await.map_or(0, |status| status.leader));
            }
            let first = leaders[0];
            if first != 0 && leaders.iter().all(|&leader| leader == first) {
                let at = usize::try_from(first).unwrap() - 1;
                if self.status(at).await.is_some_and(|status| status.role() == Role::Leader) {
                    return at;
                }
            }
            assert!(Instant::now() < until, "no leader: {leaders:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A loopback network whose addresses nobody listens at: members need ports that are known before
/// they start.
fn free_network() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(31) + NEXT.fetch_add(1, Ordering::Relaxed);
        let network = format!("127.{}.{}", 100 + number / 250 % 100, 1 + number % 250);
        if TcpListener::bind(format!("{network}.1:7300")).is_ok() {
            return network;
        }
    }
}
