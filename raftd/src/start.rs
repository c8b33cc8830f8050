//! How a host comes to life: the store is opened, the peer port is served, the group is born, and
//! then the replica is driven.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use daemon::{Failure, Shutdown};
use raft::{GroupTime, Index, NodeId, Replica, Standing, StateMachine, Term, Trust};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::audit::Doubt;
use crate::birth::Birth;
use crate::clock;
use crate::handle::{Handle, MemberStatus, Outcome, Refused, Request, Role, Status};
use crate::host::{Driver, Inputs, Waiting, lost, store_failure};
use crate::identity::{Acquaintances, Founder, Group, group_id};
use crate::jobs::{Job, Jobs};
use crate::membership;
use crate::peer::{self, Directory, Fetcher, News, Peers, Senders};
use crate::settings::{Member, Settings};
use crate::store::{self, Opened, Signals};

/// How many batches of peers may wait for the host task; behind them the connection waits.
const INBOX_MAX: usize = 256;

/// How many jobs (snapshots that were stored, fetched or restored) may wait for the host task.
const JOBS_MAX: usize = 8;

/// How long opening the store may take before it is told, again and again.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);

/// How many different reasons why a group is not known yet are told.
const JOIN_REASONS_MAX: usize = 16;

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
        let join = settings.join.iter().map(|address| peer::connect(address));
        let join = join.collect::<Result<Vec<_>, _>>()?;
        let core = settings.core()?;
        let directory = Arc::new(Directory::new(members.iter().cloned())?);
        let doubt = Doubt::look(&settings.data, core.check_ticks > 0)?;
        // All that can be wrong with the settings is known by now, and nothing was made.
        let (opened, signals, machine) = open(settings, machine).await?;
        let (peers, news) = acquaint(settings, advertised, &members, &opened);
        peers.doubted.store(doubt.is_marked(), Ordering::Relaxed);

        let (requests, requests_in) = mpsc::channel(settings.requests_max as usize);
        let room = Arc::new(Semaphore::new(settings.requests_bytes_max as usize));
        let (inbox, inbox_in) = mpsc::channel(INBOX_MAX);
        let (jobs, jobs_in) = mpsc::channel(JOBS_MAX);
        let (lost, lost_in) = watch::channel(None);
        let (status, status_in) = watch::channel(unborn(settings, &members));
        let (applied, applied_in) = watch::channel(Index(0));
        let node = NodeId(settings.node);
        let (found, known) = (directory.clone(), peers.clone());
        let handle = Handle::new(requests, room, status_in, applied_in, found, known, node);
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
            read: signals.read,
            store_failed: signals.failed,
        };
        let life = Life {
            core,
            tick: settings.tick(),
            join,
            machine,
            opened,
            peers,
            directory,
            lost,
            status,
            applied,
            jobs,
            shutdown: shutdown.clone(),
            connections: connections.clone(),
            doubt,
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
    /// Connections to members of a group that this one is to join.
    join: Vec<Channel>,
    machine: S,
    opened: Opened,
    peers: Arc<Peers>,
    directory: Arc<Directory>,
    lost: watch::Sender<Option<String>>,
    status: watch::Sender<Status>,
    applied: watch::Sender<Index>,
    jobs: mpsc::Sender<Job<S>>,
    shutdown: Shutdown,
    connections: Shutdown,
    doubt: Doubt<S>,
}

impl<S: StateMachine> Life<S> {
    async fn run(mut self, mut inputs: Inputs<S>) -> Result<(), Failure> {
        let Some(group) = self.be_born(&mut inputs).await? else { return Ok(()) };
        let as_born = membership::of_founders(&group.founders);
        self.status.send_modify(|status| {
            status.group = Some(group.id);
            status.role = Role::Follower;
        });
        self.peers.bear(group);
        let recovered = std::mem::take(&mut self.opened.recovered);
        let seed = rand::random();
        let mut replica = Replica::new(
            self.core,
            self.peers.me.node,
            as_born.clone(),
            recovered,
            self.machine,
            seed,
            clock::now(),
        );
        if self.doubt.is_marked() {
            replica.distrust();
        }
        let fetcher = Fetcher {
            snapshots: self.opened.snapshots,
            peers: self.peers.clone(),
            directory: self.directory.clone(),
            progress: watch::Sender::new(None),
        };
        let driver = Driver {
            replica,
            store: self.opened.store,
            jobs: Jobs::new(fetcher, self.jobs),
            senders: Senders::new(
                self.peers.clone(),
                self.directory.clone(),
                as_born,
                self.lost,
                self.connections,
            ),
            peers: self.peers,
            directory: self.directory,
            status: self.status,
            applied: self.applied,
            tick: self.tick,
            waiting: Waiting::default(),
            again: false,
            removed: None,
            doubt: self.doubt,
        };
        driver.run(inputs, self.shutdown).await
    }

    /// Who the group was born with; waits for the birth, if it has not been born. None: the member
    /// is stopping.
    async fn be_born(&mut self, inputs: &mut Inputs<S>) -> Result<Option<Group>, Failure> {
        let members = self.directory.members();
        if let Some(born) = self.opened.born.take() {
            tell_other_founders(&born.founders, &members);
            return Ok(Some(born));
        }
        if !self.join.is_empty() {
            return self.learn_group(inputs).await;
        }
        let awaited = members.iter().map(|member| member.node);
        let mut birth = Birth::new(self.peers.me.clone(), awaited);
        let mut interval = tokio::time::interval(BIRTH_INTERVAL);
        let others = members.iter().map(|member| member.node);
        let others: Vec<_> = others.filter(|node| *node != self.peers.me.node).collect();
        let channel = |node: &NodeId| Some((*node, self.directory.channel(*node)?));
        let channels: Vec<_> = others.iter().filter_map(channel).collect();
        let (peers, lost_out) = (&self.peers, &self.lost);
        info!(members = members.len(), "the group is being born");
        let (mut missing, mut disagreeing) = (Vec::new(), Vec::new());
        loop {
            if let Some(founders) = birth.founders() {
                let id = group_id(&self.peers.cluster, &founders);
                let group = Group { id, founders, former: Vec::new() };
                tokio::select! {
                    biased;
                    failure = &mut inputs.store_failed => return Err(store_failure(failure)),
                    born = self.opened.store.bear(group.clone()) => born?,
                }
                info!("the group is born");
                return Ok(Some(group));
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
                _ = interval.tick() => ask_around(peers, &channels, lost_out, &mut birth).await,
            }
        }
    }

    /// Learns from its members which group this one is to join; waits for one that answers. None:
    /// the member is stopping.
    async fn learn_group(&mut self, inputs: &mut Inputs<S>) -> Result<Option<Group>, Failure> {
        let mut interval = tokio::time::interval(BIRTH_INTERVAL);
        let mut told = BTreeSet::new();
        info!(members = self.join.len(), "asking members of the group that is to be joined");
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.requested() => return Ok(None),
                failure = &mut inputs.store_failed => return Err(store_failure(failure)),
                Some(request) = inputs.requests.recv() => refuse_unborn(request),
                Some(_) = inputs.inbox.recv() => {}
                failure = lost(&mut inputs.lost) => return Err(failure),
                _ = interval.tick() => {}
            }
            let asked = self.join.iter().map(|to| peer::ask_group(&self.peers, to, &self.lost));
            for answer in futures::future::join_all(asked).await {
                match answer {
                    Ok(group) => {
                        self.opened.store.bear(group.clone()).await?;
                        info!("the group is known; a person adds this member to it");
                        return Ok(Some(group));
                    }
                    Err(reason) => {
                        if told.len() < JOIN_REASONS_MAX && told.insert(reason.clone()) {
                            info!(reason, "a member does not tell which group it belongs to");
                        }
                    }
                }
            }
        }
    }
}

/// The settings name members only for the birth. Who named others may expect that they count.
fn tell_other_founders(founders: &[Founder], members: &[Member]) {
    let born: Vec<u64> = founders.iter().map(|founder| founder.node.0).collect();
    let set: Vec<u64> = members.iter().map(|member| member.node.0).collect();
    if members.len() > 1 && born != set {
        warn!(
            ?set,
            ?born,
            "group.members names others than the group was born with; it counts only before the \
             birth: see `flotilla members list`"
        );
    }
}

/// Asks every other member who it is.
async fn ask_around(
    peers: &Peers,
    channels: &[(NodeId, Channel)],
    lost: &watch::Sender<Option<String>>,
    birth: &mut Birth,
) {
    let asked = channels.iter().map(|(to, channel)| peer::ask_birth(peers, *to, channel, lost));
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
    let Some(root) = &opened.recovered.snapshot else { return Ok(()) };
    let chunks = opened.snapshots.read(root.manifest);
    store::take_chunks(chunks, |chunks| machine.restore(chunks))?.map_err(|error| {
        Failure::damaged("the snapshot that the log builds on is not readable").because(error)
    })
}

/// What this member is and knows of the others, and what it learns of them.
fn acquaint(
    settings: &Settings,
    advertised: &Advertised,
    members: &[Member],
    opened: &Opened,
) -> (Arc<Peers>, mpsc::UnboundedReceiver<News>) {
    let awaited = members.iter().map(|member| member.node);
    let mut known = Acquaintances::unborn(&settings.cluster, awaited);
    if !settings.join.is_empty() {
        known.welcome_strangers();
    }
    for heard in &opened.heard {
        known.recall(heard.node, heard.incarnation, heard.boot, heard.write_sequence);
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
pub(crate) fn unborn(settings: &Settings, members: &[Member]) -> Status {
    let members = members.iter().map(|member| MemberStatus {
        member: member.clone(),
        standing: Standing::Voter,
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
        trust: Trust::Sound,
        low_on_space: false,
        transfer: None,
        taking_snapshot: false,
        lease_reads: false,
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
        Request::Freeze { answer } => drop(answer.send(Err(Refused::Unborn))),
        Request::Transfer { answer, .. } => drop(answer.send(Err(Refused::Unborn.into()))),
        Request::Change { answer, .. } => drop(answer.send(Outcome::Rejected(Refused::Unborn))),
    }
}
