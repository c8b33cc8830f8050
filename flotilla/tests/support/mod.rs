//! What the end-to-end tests share: the binary, clusters of it, depths, and a watchdog.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

pub(crate) mod clock;
pub(crate) mod disk;
pub(crate) mod fleet;
pub(crate) mod gates;
pub(crate) mod groups;
pub(crate) mod jobs;
pub(crate) mod proxy;
pub(crate) mod relay;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use client::{JobClient, KvClient, Options};
use flotilla::local::{Cluster, Plan};
use tempfile::TempDir;

/// The binary under test.
pub(crate) const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// How long a cluster may take to become ready, on a machine that is busy with other tests.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How thorough a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// Everything together in a few minutes.
    Quick,
    /// What a change has to pass.
    Ci,
    /// What is run by hand.
    Deep,
}

impl Depth {
    /// What the environment asks for.
    pub(crate) fn asked() -> Self {
        match std::env::var("FLOTILLA_TEST_DEPTH").as_deref() {
            Ok("ci") => Self::Ci,
            Ok("deep") => Self::Deep,
            Ok("" | "quick") | Err(_) => Self::Quick,
            Ok(other) => panic!("FLOTILLA_TEST_DEPTH is {other}, not quick, ci or deep"),
        }
    }
}

/// Ends the process when a test takes too long, since `cargo test` never would; with it, its
/// clusters end.
pub(crate) struct Watchdog(Sender<()>);

impl Watchdog {
    /// Barks after this time, unless it is dropped before.
    pub(crate) fn new(limit: Duration) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("a test took longer than {limit:?}");
                std::process::exit(99);
            }
        });
        Self(sender)
    }
}

/// A cluster in a directory that is removed with it.
pub(crate) struct TestCluster {
    // Dropped in this order: the processes end before their directory goes.
    pub(crate) cluster: Cluster,
    pub(crate) dir: TempDir,
}

impl TestCluster {
    /// Starts what is planned, in a temporary directory, and waits until it is ready.
    pub(crate) async fn start(kv: u16, workers: u16, change: impl FnOnce(&mut Plan)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = Plan::new(FLOTILLA, dir.path(), kv, workers);
        change(&mut plan);
        let mut cluster = Cluster::start(&plan).unwrap_or_else(|failure| panic!("{failure}"));
        ready(&mut cluster).await;
        Self { cluster, dir }
    }

    /// Stops it, and starts it again with the same data and other arguments.
    pub(crate) async fn restarted(self, change: impl FnOnce(&mut Plan)) -> Self {
        let Self { cluster, dir } = self;
        let before = cluster.description().clone();
        cluster.stop().await;
        let mut plan = Plan::new(FLOTILLA, dir.path(), before.kv, before.workers);
        (plan.groups, plan.log) = (before.groups, before.log);
        plan.controllers = before.controllers;
        change(&mut plan);
        let mut cluster = Cluster::start(&plan).unwrap_or_else(|failure| panic!("{failure}"));
        ready(&mut cluster).await;
        Self { cluster, dir }
    }

    pub(crate) fn kv(&self, deadline: Duration) -> KvClient {
        let endpoints = self.cluster.description().kv_endpoints();
        KvClient::connect(endpoints, Options::with_deadline(deadline)).unwrap()
    }

    pub(crate) fn jobs(&self) -> JobClient {
        let endpoints = self.cluster.description().coordinator().into_iter().collect();
        JobClient::connect(endpoints, Options::with_deadline(Duration::from_secs(30))).unwrap()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.cluster.description().root
    }
}

/// Waits until a cluster is ready.
pub(crate) async fn ready(cluster: &mut Cluster) {
    cluster.ready(READY_TIMEOUT).await.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Runs the binary in a directory of its own, where it finds no cluster by itself.
pub(crate) fn flotilla(arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    flotilla_in(dir.path(), arguments)
}

/// Runs the binary in a directory.
pub(crate) fn flotilla_in(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(FLOTILLA)
        .args(arguments)
        .current_dir(dir)
        .env_remove("FLOTILLA_ENDPOINTS")
        .env_remove("FLOTILLA_LOG_ENDPOINTS")
        .env_remove("FLOTILLA_COORDINATOR")
        .env_remove("FLOTILLA_SHARD_ENDPOINTS")
        .env_remove("FLOTILLA_ROOT")
        .output()
        .unwrap()
}

/// What a command said on stdout, without the last line end.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap().trim_end().to_owned()
}

/// What a command complained about.
pub(crate) fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The command ended well; what it said.
pub(crate) fn well(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, complained(output));
    said(output)
}

/// Copies a directory, as `cp -a` does.
pub(crate) fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// Every file below a directory and what is in it.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(contents(&entry.path()));
        } else {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// A folder beside the workspace, where test data may be that is not part of it.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    Some(workspace.parent()?.join("shared/data")).filter(|data| data.is_dir())
}
