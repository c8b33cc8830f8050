//! A cluster of processes, each member at an address of its own cluster's.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use client::{KvClient, Options, Transport};
use tonic::transport::{Channel, Endpoint};

use super::etcd::StatusRequest;
use super::etcd::maintenance_client::MaintenanceClient;
use super::process::{Process, Spent};
use super::{Store, System, other};

/// How long a cluster may take until it answers.
const READY: Duration = Duration::from_secs(120);

/// How large etcd's data may become; its default is too little for the fill and the measurements.
const ETCD_QUOTA_BYTES: &str = "8589934592";

/// Which cluster to start.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whether it is etcd or kvd.
    pub system: System,
    /// The binary.
    pub binary: PathBuf,
    /// Where its members keep their data.
    pub dir: PathBuf,
    /// Tells the clusters of one run apart.
    pub number: u8,
    /// How many members it has.
    pub members: u16,
    /// How many shards kvd has.
    pub shards: u32,
}

/// What a member of kvd says of its snapshots.
#[derive(Clone, Copy, Debug)]
pub struct Snapshots {
    /// The index of its last one.
    pub index: u64,
    /// Whether it is taking one.
    pub taking: bool,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    members: Vec<Process>,
}

impl Cluster {
    /// Starts it, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn start(plan: Plan) -> io::Result<Self> {
        let mut cluster = Self { plan, members: Vec::new() };
        cluster.resume().await?;
        Ok(cluster)
    }

    /// Starts the members on the data that they have; how long it took until the cluster answered
    /// a linearizable read.
    ///
    /// # Errors
    /// When it does not.
    pub async fn resume(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        for member in 1..=self.plan.members {
            let mut command = self.command(member);
            let log = self.plan.dir.join(format!("{member}.log"));
            let process = Process::start(&mut command, &log).map_err(|error| {
                let binary = self.plan.binary.display();
                io::Error::new(error.kind(), format!("{binary} cannot be started: {error}"))
            })?;
            self.members.push(process);
        }
        while self.probe().await.is_err() {
            if began.elapsed() > READY {
                let dir = self.plan.dir.display();
                return Err(io::Error::other(format!("the cluster in {dir} does not answer")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(began.elapsed())
    }

    /// Stops all members.
    ///
    /// # Errors
    /// When one can't be stopped.
    pub fn stop(&mut self) -> io::Result<()> {
        self.members.drain(..).try_for_each(Process::stop)
    }

    /// What the members have spent together.
    ///
    /// # Errors
    /// When one has ended.
    pub fn spent(&self) -> io::Result<Spent> {
        let mut sum = Spent::default();
        for member in &self.members {
            let Spent { cpu, memory_bytes } = member.spent()?;
            sum.cpu += cpu;
            sum.memory_bytes = sum.memory_bytes.max(memory_bytes);
        }
        Ok(sum)
    }

    /// What each member of kvd says of its snapshots.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn snapshots(&self) -> io::Result<Vec<Snapshots>> {
        let mut members = Vec::new();
        for member in 1..=self.plan.members {
            let status = client::admin::status(&self.address(member, 7_300), READY).await;
            let status = status.map_err(other)?;
            let (index, taking) = (status.snapshot_index, status.taking_snapshot);
            members.push(Snapshots { index, taking });
        }
        Ok(members)
    }

    /// A connection of its own for clients.
    ///
    /// # Errors
    /// When there is no leader.
    pub async fn connect(&self, system: System) -> io::Result<Store> {
        match system {
            System::Etcd => Ok(Store::etcd(dial(&self.leader().await?)?)),
            System::Unary => self.client(Transport::Unary),
            System::Pipelined => self.client(Transport::Pipelined),
        }
    }

    fn client(&self, transport: Transport) -> io::Result<Store> {
        let endpoints = (1..=self.plan.members).map(|member| self.address(member, 7_300)).collect();
        let options = Options { transport, ..Options::default() };
        Ok(Store::Flotilla(KvClient::connect(endpoints, options).map_err(other)?))
    }

    /// Where etcd's leader is.
    async fn leader(&self) -> io::Result<String> {
        for member in 1..=self.plan.members {
            let address = self.address(member, 2_400);
            let status = MaintenanceClient::new(dial(&address)?).status(StatusRequest {}).await;
            let status = status.map_err(other)?.into_inner();
            if status.leader != 0 && status.header.is_some_and(|it| it.member_id == status.leader) {
                return Ok(address);
            }
        }
        Err(io::Error::other("no member says that it leads"))
    }

    /// Asks it something.
    async fn probe(&self) -> io::Result<()> {
        let store = self.connect(self.plan.system).await?;
        if store.get("probe".into()).await { Ok(()) } else { Err(io::Error::other("no answer")) }
    }

    /// An address of this process's and of this cluster.
    fn address(&self, member: u16, base: u16) -> String {
        let process = std::process::id();
        let (high, low) = (64 + (process >> 8) % 128, process % 256);
        format!("127.{high}.{low}.{}:{}", u16::from(self.plan.number) + 1, base + member)
    }

    fn command(&self, member: u16) -> Command {
        let mut command = Command::new(&self.plan.binary);
        let data = self.plan.dir.join(member.to_string());
        match self.plan.system {
            System::Etcd => self.etcd(&mut command, member, &data),
            System::Unary | System::Pipelined => self.kvd(&mut command, member, &data),
        }
        command
    }

    fn etcd(&self, command: &mut Command, member: u16, data: &Path) {
        let peer = |member| format!("http://{}", self.address(member, 2_500));
        let client = format!("http://{}", self.address(member, 2_400));
        let all: Vec<String> =
            (1..=self.plan.members).map(|member| format!("m{member}={}", peer(member))).collect();
        command.args(["--name", &format!("m{member}"), "--data-dir"]).arg(data);
        command.args(["--listen-peer-urls", &peer(member)]);
        command.args(["--initial-advertise-peer-urls", &peer(member)]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"]);
        command.args(["--quota-backend-bytes", ETCD_QUOTA_BYTES]);
        command.args(["--logger", "zap", "--log-level", "warn"]);
    }

    fn kvd(&self, command: &mut Command, member: u16, data: &Path) {
        command.args(["--node", &member.to_string()]).arg("--data").arg(data);
        command.args(["--listen", &self.address(member, 7_300)]);
        command.args(["--shards", &self.plan.shards.to_string()]);
        for member in 1..=self.plan.members {
            command.arg(format!("--member={member}={}", self.address(member, 7_300)));
        }
    }
}

fn dial(address: &str) -> io::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(other)?;
    // As the client of kvd has it.
    let endpoint = endpoint.tcp_nodelay(true).buffer_size(8 * 1024);
    let window = 8 * 1024 * 1024;
    let endpoint = endpoint.initial_stream_window_size(window);
    Ok(endpoint.initial_connection_window_size(window).connect_lazy())
}
