//! Members of a group, in this process.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use daemon::{Failure, Shutdown};
use raftd::{Advertised, Handle, Host, Outcome, Settings};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::machine::Counter;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Directories and addresses.
pub(crate) struct Group {
    settings: Settings,
    peers: Vec<SocketAddr>,
    directories: Vec<TempDir>,
}

pub(crate) struct Member {
    /// Its number in the group, from 0.
    pub(crate) place: usize,
    pub(crate) handle: Handle<Counter>,
    host: Host,
    shutdown: Shutdown,
}

impl Group {
    pub(crate) async fn new(members: usize, settings: Settings) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..members {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let peers = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let directories = listeners.iter().map(|_| tempfile::tempdir().unwrap()).collect();
        Self { settings, peers, directories }
    }

    pub(crate) async fn start(&self, place: usize, machine: Counter) -> Member {
        let peer = self.peers[place].to_string();
        // Nobody listens for clients.
        let client = "127.0.0.1:1".to_owned();
        let members = (1..).zip(&self.peers).map(|(id, peer)| format!("{id}={client},{peer}"));
        let settings = Settings {
            node: place as u64 + 1,
            data: self.directories[place].path().join("data"),
            members: members.collect(),
            free_bytes_min: 0,
            ..self.settings.clone()
        };
        let advertised = Advertised { client, peer };
        let listener = TcpListener::bind(self.peers[place]).await.unwrap();
        let shutdown = Shutdown::new();
        let started =
            Host::start(&settings, &advertised, machine, listener, |_, routes| routes, &shutdown);
        let (host, handle) = started.await.unwrap();
        Member { place, handle, host, shutdown }
    }

    /// Starts all of a group of three.
    pub(crate) async fn start_all(&self) -> [Member; 3] {
        let [one, two, three] = [0, 1, 2].map(|place| self.start(place, Counter::default()));
        let (one, two, three) = futures::join!(one, two, three);
        [one, two, three]
    }
}

impl Member {
    pub(crate) async fn stop(self) {
        self.shutdown.request();
        self.finished().await.unwrap();
    }

    pub(crate) async fn finished(self) -> Result<(), Failure> {
        self.host.finished().await
    }
}

/// Proposes a command of so many bytes.
pub(crate) async fn propose(leader: &Member, bytes: usize) {
    let command = Bytes::from(vec![7; bytes]);
    let outcome = leader.handle.propose(command, Instant::now() + PATIENCE).await;
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
