//! How a host comes to life: the store is opened, the peer port is served, the group is born, and
//! then the replica is driven.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use daemon::{Failure, Shutdown};
use raft::{GroupTime, Index, NodeId, Replica, StateMachine, Term};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::birth::Birth;
use crate::handle::{Handle, MemberStatus, Outcome, REQUESTS_MAX, Refused, Request, Role, Status};
use crate::host::{Driver, Inputs, Waiting, lost, store_failure};
use crate::identity::{Acquaintances, Founder, GroupId, group_id};
use crate::peer::{self, News, Peers, Sender};
use crate::settings::{Member, Settings};
use crate::store::{self, Opened, Signals};

/// How many batches of peers may wait for the host task; behind them the connection waits.
const INBOX_MAX: usize = 256;

/// How many jobs (snapshots being stored or fetched) may wait for the host task.
const JOBS_MAX: usize = 8;

/// How long opening the store may take before it is told, again and again.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// How often members that have not been heard from are asked again while a group is born.
const BIRTH_INTERVAL: Duration = Duration::from_millis(100);

/// Where a member is reached, as it tells others.
#[derive(Clone, Debug)]
pub struct Advertised {
    /// By clients, `host:port`.
    pub client: String,
    /// By its peers, `host:port`.
    pub peer: String,
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    task: JoinHandle<Result<(), Failure>>,
    server: JoinHandle<Result<(), Failure>>,
}

impl Host {
    /// Opens the store in `settings.data`, serves the peer port on `listener` with the routes that
    /// `services` adds, and starts the task that owns the replica of `machine`.
    ///
    /// # Errors
    /// Configuration, when settings are wrong or the directory is another member's; damaged, when
    /// data is missing or damaged; machine, when the machine refuses.
    pub async fn start<S: StateMachine>(
        settings: &Settings,
        advertised: &Advertised,
        machine: S,
        listener: TcpListener,
        services: impl FnOnce(&Handle<S>, Routes) -> Routes,
        shutdown: &Shutdown,
    ) -> Result<(Self, Handle<S>), Failure> {
        let members = settings.members(&advertised.client, &advertised.peer)?;
        let members: Arc<BTreeMap<NodeId, Member>> =
            Arc::new(members.into_iter().map(|member| (member.node, member)).collect());
        let core = settings.core()?;
        let others = members.values().filter(|member| member.node.0 != settings.node);
        let channels = Arc::new(peer::channels(others)?);
        // All that can be wrong with the settings is known by now, and nothing was made.
        let (opened, signals, machine) = open(settings, machine).await?;
        let (peers, news) = acquaint(settings, advertised, &members, &opened);

        let (requests, requests_in) = mpsc::channel(REQUESTS_MAX);
        let (inbox, inbox_in) = mpsc::channel(INBOX_MAX);
        let (jobs, jobs_in) = mpsc::channel(JOBS_MAX);
        let (lost, lost_in) = watch::channel(None);
        let (status, status_in) = watch::channel(unborn(settings, &members));
        let (applied, applied_in) = watch::channel(Index(0));
        let node = NodeId(settings.node);
        let (all, others) = (members.clone(), channels.clone());
        let handle = Handle::new(requests, status_in, applied_in, all, others, node);
        // They outlive the replica, which hands over when it is to stop.
        let connections = Shutdown::new();
        let (snapshots, closing) = (opened.snapshots.clone(), connections.clone());
        let raft = peer::service(peers.clone(), inbox, snapshots, closing.clone());
        let routes = services(&handle, Routes::new(raft));
        let server = tokio::spawn(daemon::grpc::serve(routes, listener, closing));

        let inputs = Inputs {
            requests: requests_in,
            inbox: inbox_in,
            jobs: jobs_in,
            lost: lost_in,
            news,
            written: signals.written,
            store_failed: signals.failed,
        };
        let life = Life {
            core,
            tick: settings.tick(),
            members,
            machine,
            opened,
            peers,
            channels,
            lost,
            status,
            applied,
            jobs,
            shutdown: shutdown.clone(),
            connections: connections.clone(),
        };
        let task = tokio::spawn(async move {
            let ended = life.run(inputs).await;
            connections.request();
            ended
        });
        Ok((Self { task, server }, handle))
    }

    /// Ends after shutdown, or with the failure that stopped the host.
    ///
    /// # Errors
    /// The failure.
    pub async fn finished(self) -> Result<(), Failure> {
        let Self { task, server } = self;
        let ended = |joined: Result<Result<(), Failure>, tokio::task::JoinError>| {
            joined.unwrap_or_else(|error| {
                Err(Failure::new(daemon::Code::Panic, "a task of the host panicked").because(error))
            })
        };
        // Whichever fails first tells; after shutdown both end.
        tokio::pin!(task, server);
        tokio::select! {
            biased;
            task_ended = &mut task => { ended(task_ended)?; ended(server.await) }
            server_ended = &mut server => { ended(server_ended)?; ended(task.await) }
        }
    }
}

/// What the host task needs for its whole life: first the birth of the group, then driving it.
struct Life<S: StateMachine> {
    core: raft::Config,
    tick: Duration,
    members: Arc<BTreeMap<NodeId, Member>>,
    machine: S,
    opened: Opened,
    peers: Arc<Peers>,
    channels: Arc<BTreeMap<NodeId, Channel>>,
    lost: watch::Sender<Option<String>>,
    status: watch::Sender<Status>,
    applied: watch::Sender<Index>,
    jobs: mpsc::Sender<crate::host::Job>,
    shutdown: Shutdown,
    connections: Shutdown,
}

impl<S: StateMachine> Life<S> {
    async fn run(mut self, mut inputs: Inputs<S>) -> Result<(), Failure> {
        let Some((group, founders)) = self.be_born(&mut inputs).await? else { return Ok(()) };
        self.peers.bear(group, founders);
        self.status.send_modify(|status| {
            status.group = Some(group);
            status.role = Role::Follower;
        });
        let mut senders = BTreeMap::new();
        for (&to, channel) in self.channels.iter() {
            let (sender, messages) = Sender::new();
            senders.insert(to, sender);
            let (peers, channel) = (self.peers.clone(), channel.clone());
            let (lost, closing) = (self.lost.clone(), self.connections.clone());
            tokio::spawn(peer::run_sender(peers, to, channel, messages, lost, closing));
        }
        let voters: BTreeSet<NodeId> = self.members.keys().copied().collect();
        let recovered = std::mem::take(&mut self.opened.recovered);
        let seed = rand::random();
        let replica = Replica::new(
            self.core,
            self.peers.me.node,
            voters,
            recovered,
            self.machine,
            seed,
            raft::Instant(0),
        );
        let driver = Driver {
            replica,
            store: self.opened.store,
            snapshots: self.opened.snapshots,
            peers: self.peers,
            senders,
            members: self.members,
            status: self.status,
            applied: self.applied,
            jobs: self.jobs,
            started: std::time::Instant::now(),
            tick: self.tick,
            waiting: Waiting::default(),
        };
        driver.run(inputs, self.shutdown).await
    }

    /// Who the group was born with; waits for the birth, if it has not been born. None: the member
    /// is stopping.
    async fn be_born(
        &mut self,
        inputs: &mut Inputs<S>,
    ) -> Result<Option<(GroupId, Vec<Founder>)>, Failure> {
        if let Some(born) = self.opened.born.take() {
            self.check_founders(&born.1)?;
            return Ok(Some(born));
        }
        let mut birth = Birth::new(self.peers.me.clone(), self.members.keys().copied());
        let mut interval = tokio::time::interval(BIRTH_INTERVAL);
        let (peers, channels, lost_out) = (&self.peers, &self.channels, &self.lost);
        info!(members = self.members.len(), "the group is being born");
        let (mut missing, mut disagreeing) = (Vec::new(), Vec::new());
        loop {
            if let Some(founders) = birth.founders() {
                let group = group_id(&self.peers.cluster, &founders);
                tokio::select! {
                    biased;
                    failure = &mut inputs.store_failed => return Err(store_failure(failure)),
                    born = self.opened.store.bear(group, founders.clone()) => born?,
                }
                info!("the group is born");
                return Ok(Some((group, founders)));
            }
            if missing != birth.missing() {
                missing = birth.missing();
                let names: Vec<String> = missing.iter().map(NodeId::to_string).collect();
                info!(missing = names.join(","), "waiting for members");
            }
            if disagreeing != birth.disagreeing() {
                disagreeing = birth.disagreeing();
                for (peer, born_with) in &disagreeing {
                    warn!(%peer, ?born_with, "a member was born with others: check group.members");
                }
            }
            tokio::select! {
                biased;
                () = self.shutdown.requested() => return Ok(None),
                failure = &mut inputs.store_failed => return Err(store_failure(failure)),
                Some(request) = inputs.requests.recv() => refuse_unborn(request),
                Some(_) = inputs.inbox.recv() => {}
                failure = lost(&mut inputs.lost) => return Err(failure),
                _ = interval.tick() => ask_around(peers, channels, lost_out, &mut birth).await,
            }
        }
    }

    /// The settings name the same members that the group was born with.
    fn check_founders(&self, founders: &[Founder]) -> Result<(), Failure> {
        let born: Vec<u64> = founders.iter().map(|founder| founder.node.0).collect();
        let set: Vec<u64> = self.members.keys().map(|node| node.0).collect();
        if born == set {
            return Ok(());
        }
        Err(Failure::configuration(format!(
            "group.members names the members {set:?}, but the group was born with {born:?}"
        )))
    }
}

/// Asks every other member who it is.
async fn ask_around(
    peers: &Peers,
    channels: &BTreeMap<NodeId, Channel>,
    lost: &watch::Sender<Option<String>>,
    birth: &mut Birth,
) {
    let asked = channels.iter().map(|(&to, channel)| peer::ask_birth(peers, to, channel, lost));
    for answer in futures::future::join_all(asked).await {
        match answer {
            Ok((founder, born_with)) => drop(birth.hear(founder, born_with)),
            Err(reason) => tracing::debug!(reason, "a member was not heard"),
        }
    }
}

/// Opens the store and puts its last snapshot into the machine, on a thread of its own: both may
/// take long, and meanwhile the daemon tells that it is not ready.
async fn open<S: StateMachine>(
    settings: &Settings,
    mut machine: S,
) -> Result<(Opened, Signals, S), Failure> {
    let settings = settings.clone();
    let data = settings.data.display().to_string();
    let opening = tokio::task::spawn_blocking(move || {
        let (opened, signals) = store::open(&settings)?;
        restore(&mut machine, &opened)?;
        Ok((opened, signals, machine))
    });
    tokio::pin!(opening);
    loop {
        match tokio::time::timeout(OPEN_PATIENCE, &mut opening).await {
            Ok(Ok(opened)) => return opened,
            Ok(Err(error)) => {
                let message = "the thread that opened the store panicked";
                return Err(Failure::new(daemon::Code::Panic, message).because(error));
            }
            Err(_) => warn!(data, "the store is still being opened"),
        }
    }
}

/// Puts the state of the last snapshot into the machine.
fn restore<S: StateMachine>(machine: &mut S, opened: &Opened) -> Result<(), Failure> {
    let Some(root) = opened.recovered.snapshot else { return Ok(()) };
    let chunks = opened.snapshots.load(root.manifest)?;
    machine.restore(&mut chunks.into_iter()).map_err(|error| {
        Failure::damaged("the snapshot that the log builds on is not readable").because(error)
    })
}

/// What this member is and knows of the others, and what it learns of them.
fn acquaint(
    settings: &Settings,
    advertised: &Advertised,
    members: &BTreeMap<NodeId, Member>,
    opened: &Opened,
) -> (Arc<Peers>, mpsc::UnboundedReceiver<News>) {
    let mut known = Acquaintances::unborn(&settings.cluster, members.keys().copied());
    for heard in &opened.heard {
        known.recall(heard.node, heard.boot, heard.write_sequence);
    }
    let me = Founder {
        node: NodeId(settings.node),
        incarnation: opened.incarnation,
        peer_address: advertised.peer.clone(),
        client_address: advertised.client.clone(),
    };
    let (news, news_in) = mpsc::unbounded_channel();
    let cluster = settings.cluster.clone();
    let nonce = rand::random();
    let peers = Peers::new(cluster, me, opened.boot, nonce, opened.write_sequence, known, news);
    (Arc::new(peers), news_in)
}

/// How a member stands before its group is born.
fn unborn(settings: &Settings, members: &BTreeMap<NodeId, Member>) -> Status {
    let members = members.values().map(|member| MemberStatus {
        member: member.clone(),
        matched: Index(0),
        active: false,
    });
    Status {
        cluster: settings.cluster.clone(),
        group: None,
        node: NodeId(settings.node),
        role: Role::Unborn,
        term: Term(0),
        leader: None,
        first: Index(1),
        last: Index(0),
        durable: Index(0),
        commit: Index(0),
        applied: Index(0),
        group_time: GroupTime(0),
        log_bytes: 0,
        snapshot: None,
        state_digest: 0,
        low_on_space: false,
        members: members.collect(),
    }
}

fn refuse_unborn<S: StateMachine>(request: Request<S>) {
    // The asker may have gone.
    match request {
        Request::Propose { answer, .. } => drop(answer.send(Outcome::Rejected(Refused::Unborn))),
        Request::Tick { answer, .. } => drop(answer.send(Outcome::Rejected(Refused::Unborn))),
        Request::Query { answer, .. } | Request::QueryStale { answer, .. } => {
            drop(answer.send(Err(Refused::Unborn)));
        }
        Request::Transfer { answer, .. } => drop(answer.send(Err(Refused::Unborn.into()))),
    }
}
