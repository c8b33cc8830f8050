//! A whole local cluster, and the directory that it lives in.
//!
//! The directory holds a description of the cluster (`cluster.json`), a lock that its owner holds,
//! the members' data, their logs, and the shared root of MapReduce unless that lies elsewhere.
//! A second start in the same directory goes on with the same data, so what the data depends on
//! (addresses, number of members) is read from the description and cannot be changed by it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use daemon::{Code, Failure, ports};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::http;
use super::place::{self, Claim, Place};
use super::plan::{Further, Plan};
use super::process::{Ended, Instance, Launch, Process};

/// The version of `cluster.json`.
const FORMAT: u32 = 2;

/// The name of the description in the directory.
const DESCRIPTION: &str = "cluster.json";

/// The longest description that is read.
const DESCRIPTION_BYTES_MAX: u64 = 64 * 1024;

/// How often a condition is looked at while it is waited for.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long processes may take to stop before they are killed.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a directory says about the cluster in it: enough to reach it and to start it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    format: u32,
    /// Where it listens.
    pub place: Place,
    /// How many key/value members it has, or with groups how many in each.
    pub kv: u16,
    /// How many groups of them share the shards; 0: one group that stands alone.
    #[serde(default)]
    pub groups: u16,
    /// How many members its log has.
    #[serde(default)]
    pub log: u16,
    /// How many members its shard controller has.
    #[serde(default)]
    pub controllers: u16,
    /// How many workers it was last started with.
    pub workers: u16,
    /// The shared root of MapReduce, absolute.
    pub root: PathBuf,
}

impl Description {
    /// What the directory says, if it is a cluster's.
    ///
    /// # Errors
    /// Configuration, when the description is damaged or of a newer version; machine, when it
    /// cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(DESCRIPTION);
        let refuse = |error: io::Error| {
            Failure::machine(format!("{} cannot be read", path.display())).because(error)
        };
        let bytes = match File::open(&path) {
            Ok(file) => {
                let mut bytes = Vec::new();
                let mut limited = io::Read::take(file, DESCRIPTION_BYTES_MAX);
                io::Read::read_to_end(&mut limited, &mut bytes).map_err(refuse)?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(error)),
        };
        let damaged = || Failure::configuration(format!("{} is no description", path.display()));
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| damaged().because(error))?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => Err(Failure::configuration(format!(
                "{} has format {format}, but this version knows only {FORMAT}",
                path.display()
            ))),
            Some(_) | None => {
                serde_json::from_value(value).map(Some).map_err(|error| damaged().because(error))
            }
        }
    }

    /// What the directory says, if a cluster is running in it now.
    ///
    /// # Errors
    /// As [`Description::read`].
    pub fn of_running(dir: &Path) -> Result<Option<Self>, Failure> {
        let running = File::open(dir.join("lock"))
            .is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)));
        if running { Self::read(dir) } else { Ok(None) }
    }

    /// Where clients reach the key/value members, of all groups.
    pub fn kv_endpoints(&self) -> Vec<String> {
        (1..=self.kvds()).map(|number| self.place.kvd(number).to_string()).collect()
    }

    /// Where clients reach the members of a group, counted from 1.
    pub fn group_endpoints(&self, group: u16) -> Vec<String> {
        self.group(group).map(|number| self.place.kvd(number).to_string()).collect()
    }

    /// The key/value members of a group, counted from 1, by the numbers of their processes.
    pub fn group(&self, group: u16) -> RangeInclusive<u16> {
        let before = (group - 1) * self.kv;
        before + 1..=before + self.kv
    }

    /// How many key/value members there are in all groups.
    fn kvds(&self) -> u16 {
        self.kv * self.groups.max(1)
    }

    /// Where clients reach the members of the log.
    pub fn log_endpoints(&self) -> Vec<String> {
        (1..=self.log).map(|number| self.place.raftd(number).to_string()).collect()
    }

    /// Where clients reach the members of the shard controller.
    pub fn controller_endpoints(&self) -> Vec<String> {
        (1..=self.controllers).map(|number| self.place.shardctl(number).to_string()).collect()
    }

    /// Where clients reach the coordinator, if there is one.
    pub fn coordinator(&self) -> Option<String> {
        (self.workers > 0).then(|| self.place.coordinator().to_string())
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(DESCRIPTION);
        let new = dir.join("cluster.json.new");
        let mut file = File::create(&new)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    }
}

/// A local cluster. Dropping it kills all its processes; [`Cluster::stop`] asks them first.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    description: Description,
    processes: BTreeMap<Instance, Process>,
    /// Held for as long as the cluster lives.
    _lock: File,
    _claim: Option<Claim>,
}

impl Cluster {
    /// Prepares the directory and starts all processes; whether they are ready is another
    /// question, [`Cluster::ready`].
    ///
    /// # Errors
    /// Wrong call, when the plan has no sense or contradicts the directory; machine, when the
    /// directory, an address or a process is not to be had. A directory that was made for this is
    /// gone then.
    pub fn start(plan: &Plan) -> Result<Self, Failure> {
        plan.check()?;
        let is_new = !plan.dir.exists();
        Self::start_in_directory(plan).inspect_err(|_| {
            if is_new {
                // What matters is told already; what is left is a few empty directories.
                let _ = std::fs::remove_dir_all(&plan.dir);
            }
        })
    }

    fn start_in_directory(plan: &Plan) -> Result<Self, Failure> {
        let refuse = |error: io::Error| {
            Failure::machine(format!("the directory {} cannot be used", plan.dir.display()))
                .because(error)
        };
        std::fs::create_dir_all(plan.dir.join("logs")).map_err(refuse)?;
        let dir = plan.dir.canonicalize().map_err(refuse)?;
        let lock = lock(&dir)?;
        let (description, claim) = describe(plan, &dir)?;
        let processes = processes(plan, &dir, &description);
        let program = plan.program.clone();
        let mut cluster = Self { program, dir, description, processes, _lock: lock, _claim: claim };
        Place::check_free(&cluster.addresses())?;
        if plan.workers > 0 {
            std::fs::create_dir_all(&cluster.description.root).map_err(|error| {
                let root = cluster.description.root.display();
                Failure::machine(format!("the shared root {root} cannot be made")).because(error)
            })?;
        }
        cluster.description.write(&cluster.dir).map_err(refuse)?;
        cluster.processes.values_mut().try_for_each(Process::start)?;
        Ok(cluster)
    }

    /// What the cluster is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Its directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All its processes.
    pub fn instances(&self) -> Vec<Instance> {
        self.processes.keys().copied().collect()
    }

    /// One of its processes.
    ///
    /// # Errors
    /// Failed, when there is no such process.
    pub fn process(&mut self, instance: Instance) -> Result<&mut Process, Failure> {
        self.processes
            .get_mut(&instance)
            .ok_or_else(|| Failure::new(Code::Failed, format!("the cluster has no {instance}")))
    }

    /// Kills a process with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// As [`Cluster::process`].
    pub fn kill(&mut self, instance: Instance) -> Result<(), Failure> {
        self.process(instance)?.kill();
        Ok(())
    }

    /// Starts a process that does not run, with the data that it had.
    ///
    /// # Errors
    /// As [`Process::start`] and [`Cluster::process`].
    pub fn restart(&mut self, instance: Instance) -> Result<(), Failure> {
        self.process(instance)?.start()
    }

    /// Starts a further key/value member, which waits until it is added to the group, with
    /// `flotilla members add` and the address that this gives.
    ///
    /// # Errors
    /// As [`Process::start`]; wrong call, when there is such a member already.
    pub fn join_kvd(&mut self, number: u16) -> Result<SocketAddr, Failure> {
        let (instance, place) = (Instance::Kvd(number), self.description.place);
        let listen = place.kvd(number);
        let known: Vec<_> = (1..=self.description.kv).map(|node| place.kvd(node)).collect();
        let mut arguments = vec![
            "kvd".to_owned(),
            format!("--listen={listen}"),
            format!("--node={number}"),
            format!("--data={}", self.dir.join(instance.to_string()).display()),
        ];
        arguments
            .extend(known.into_iter().map(|client| format!("--join={}", place::beside(client)[0])));
        self.add(instance, listen, arguments)?;
        Ok(place::beside(listen)[0])
    }

    /// Starts a router to the groups; gives where it listens.
    ///
    /// # Errors
    /// As [`Process::start`]; wrong call, when there is one already.
    pub fn add_router(&mut self) -> Result<SocketAddr, Failure> {
        let listen = self.description.place.router();
        let mut arguments =
            vec!["kvd".to_owned(), "route".to_owned(), format!("--listen={listen}")];
        let controllers = self.description.controller_endpoints();
        arguments.extend(controllers.iter().map(|at| format!("--controller={at}")));
        self.add(Instance::Router, listen, arguments)?;
        Ok(listen)
    }

    /// Starts a further process.
    fn add(
        &mut self,
        instance: Instance,
        listen: SocketAddr,
        arguments: Vec<String>,
    ) -> Result<(), Failure> {
        let Entry::Vacant(free) = self.processes.entry(instance) else {
            return Err(Failure::new(Code::WrongCall, format!("there is a {instance} already")));
        };
        let log = self.dir.join("logs").join(format!("{instance}.log"));
        let [_, admin] = place::beside(listen);
        let launch = Launch { program: self.program.clone(), arguments, log, admin };
        free.insert(Process::new(instance, launch)).start()
    }

    /// Stops a process from running (SIGSTOP) without ending it.
    ///
    /// # Errors
    /// As [`Cluster::process`].
    pub fn pause(&mut self, instance: Instance) -> Result<(), Failure> {
        self.process(instance)?.signal(Signal::STOP);
        Ok(())
    }

    /// Lets a paused process run again.
    ///
    /// # Errors
    /// As [`Cluster::process`].
    pub fn resume(&mut self, instance: Instance) -> Result<(), Failure> {
        self.process(instance)?.signal(Signal::CONT);
        Ok(())
    }

    /// Asks a process to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// As [`Cluster::process`]; failed, when it has not ended in time and was killed.
    pub async fn terminate(&mut self, instance: Instance) -> Result<Ended, Failure> {
        let process = self.process(instance)?;
        process.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(ended) = process.take_end() {
                return Ok(ended);
            }
            if Instant::now() >= deadline {
                process.kill();
                let message = format!("{instance} did not end within {STOP_TIMEOUT:?}");
                return Err(Failure::new(Code::Failed, message));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Processes that ended though nobody asked them to; each is told once.
    pub fn take_ended(&mut self) -> Vec<Ended> {
        self.processes.values_mut().filter_map(Process::take_end).collect()
    }

    /// Waits until every process that was started says that it is ready.
    ///
    /// # Errors
    /// Failed, when a process ends meanwhile or is not ready in time, with its last words.
    pub async fn ready(&mut self, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        for instance in self.instances() {
            self.ready_one(instance, deadline).await?;
        }
        Ok(())
    }

    /// Waits until one process says that it is ready.
    ///
    /// # Errors
    /// As [`Cluster::ready`].
    pub async fn ready_one(
        &mut self,
        instance: Instance,
        deadline: Instant,
    ) -> Result<(), Failure> {
        loop {
            if let Some(ended) = self.take_ended().into_iter().next() {
                return Err(Failure::new(Code::Failed, ended.to_string()));
            }
            let process = self.process(instance)?;
            if process.pid().is_none() {
                return Ok(());
            }
            let answer = match http::get(process.admin(), "/readyz").await {
                Ok((200, _)) => return Ok(()),
                Ok((_, reason)) => reason.trim().to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                let log = process.log().display();
                let message = format!("{instance} is not ready in time: {answer} (its log: {log})");
                return Err(Failure::new(Code::Failed, message));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// The value of a metric of one process; none, when it has no such metric or gives no answer.
    pub async fn metric(&mut self, instance: Instance, name: &str) -> Option<f64> {
        let admin = self.process(instance).ok()?.admin();
        let (status, text) = http::get(admin, "/metrics").await.ok()?;
        if status == 200 { http::metric(&text, name) } else { None }
    }

    /// Asks all processes to end, users of others first, and kills what does not.
    pub async fn stop(mut self) {
        let workers = |instance: &Instance| matches!(instance, Instance::Worker(_));
        let (first, then): (Vec<_>, Vec<_>) = self.instances().into_iter().partition(workers);
        for wave in [first, then] {
            for instance in &wave {
                if let Some(process) = self.processes.get(instance) {
                    process.signal(Signal::CONT);
                    process.signal(Signal::TERM);
                }
            }
            let deadline = Instant::now() + STOP_TIMEOUT;
            let running = |cluster: &mut Self| {
                cluster.take_ended();
                wave.iter().any(|instance| {
                    cluster.processes.get(instance).is_some_and(|process| process.pid().is_some())
                })
            };
            while running(&mut self) && Instant::now() < deadline {
                sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// Every address that the cluster listens on.
    fn addresses(&self) -> Vec<SocketAddr> {
        let place = self.description.place;
        let mut servers: Vec<_> =
            (1..=self.description.kvds()).map(|node| place.kvd(node)).collect();
        servers.extend((1..=self.description.log).map(|node| place.raftd(node)));
        servers.extend((1..=self.description.controllers).map(|node| place.shardctl(node)));
        if self.description.workers > 0 {
            servers.push(place.coordinator());
        }
        let mut all: Vec<_> = servers
            .into_iter()
            .flat_map(|client| {
                let [peer, admin] = place::beside(client);
                [client, peer, admin]
            })
            .collect();
        all.extend((1..=self.description.workers).map(|number| place.worker_admin(number)));
        all
    }
}

/// Takes the directory for this process.
fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("lock");
    let refuse = |error: io::Error| {
        Failure::machine(format!("{} cannot be locked", path.display())).because(error)
    };
    let file = File::options().create(true).append(true).open(&path).map_err(refuse)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::new(
            Code::Exists,
            format!("a cluster is running in {} already", dir.display()),
        )),
        Err(TryLockError::Error(error)) => Err(refuse(error)),
    }
}

/// What the cluster is: what the directory says, as far as that binds, else what is planned.
fn describe(plan: &Plan, dir: &Path) -> Result<(Description, Option<Claim>), Failure> {
    let before = Description::read(dir)?;
    if let Some(before) = &before {
        let refuse = |what: &str, was: String, wish: String| {
            let message = format!(
                "the cluster in {} has {what} {was}, which cannot become {wish}: \
                 leave that away, or take another directory",
                dir.display()
            );
            Err(Failure::new(Code::WrongCall, message))
        };
        if before.kv != plan.kv {
            return refuse("--kv", before.kv.to_string(), plan.kv.to_string());
        }
        // What was not there has no data to be lost.
        for (what, was, wish) in [
            ("--groups", before.groups, plan.groups),
            ("--log", before.log, plan.log),
            ("--controllers", before.controllers, plan.controllers),
        ] {
            if was != wish && (was > 0 || what == "--groups" && before.kv > 0) {
                return refuse(what, was.to_string(), wish.to_string());
            }
        }
        if let Some(place) = plan.place.filter(|place| *place != before.place) {
            let text = |place: Place| format!("{}:{}", place.ip, place.base_port);
            return refuse("its first member at", text(before.place), text(place));
        }
    }
    let (place, claim) = match (&before, plan.place) {
        (Some(before), _) => (before.place, None),
        (None, Some(place)) => (place, None),
        (None, None) => Place::draw().map(|(place, claim)| (place, Some(claim)))?,
    };
    let root = match (&plan.root, before) {
        (Some(root), _) => std::path::absolute(root).map_err(|error| {
            Failure::machine(format!("{} is no path", root.display())).because(error)
        })?,
        (None, Some(before)) => before.root,
        (None, None) => dir.join("shared"),
    };
    let Plan { kv, groups, log, controllers, workers, .. } = *plan;
    let description =
        Description { format: FORMAT, place, kv, groups, log, controllers, workers, root };
    Ok((description, claim))
}

/// The members of a group, with where they listen.
type Members = Vec<(Instance, SocketAddr)>;

/// The Raft groups that there are: what each runs, with which further arguments, and its members.
fn groups(
    plan: &Plan,
    description: &Description,
) -> Vec<(&'static [&'static str], Vec<String>, Members)> {
    let place = description.place;
    let Further { kvd, raftd, shardctl, .. } = &plan.further;
    let mut groups: Vec<(&[&str], _, _)> = Vec::new();
    for group in 1..=plan.groups.max(1) {
        let mut further = Vec::new();
        if plan.groups > 0 {
            let controllers = description.controller_endpoints();
            further.push(format!("--shard-group={group}"));
            further.extend(controllers.iter().map(|at| format!("--controller={at}")));
        }
        further.extend(kvd.iter().cloned());
        let members = description.group(group);
        let members = members.map(|number| (Instance::Kvd(number), place.kvd(number)));
        groups.push((&["kvd"], further, members.collect()));
    }
    let raftds = (1..=plan.log).map(|number| (Instance::Raftd(number), place.raftd(number)));
    groups.push((&["raftd"], raftd.clone(), raftds.collect()));
    let shardctls = 1..=plan.controllers;
    let shardctls = shardctls.map(|number| (Instance::Shardctl(number), place.shardctl(number)));
    groups.push((&["shardctl", "serve"], shardctl.clone(), shardctls.collect()));
    groups
}

fn processes(plan: &Plan, dir: &Path, description: &Description) -> BTreeMap<Instance, Process> {
    let place = description.place;
    let root = description.root.display().to_string();
    let mut all = BTreeMap::new();
    let mut add = |instance: Instance, admin: SocketAddr, arguments: Vec<String>| {
        let log = dir.join("logs").join(format!("{instance}.log"));
        let launch = Launch { program: plan.program.clone(), arguments, log, admin };
        all.insert(instance, Process::new(instance, launch));
    };
    let data = |instance: Instance| dir.join(instance.to_string()).display().to_string();
    let admin =
        |client: SocketAddr| SocketAddr::new(client.ip(), client.port() + ports::ADMIN_OFFSET);
    let insecure = plan.insecure.then_some("--insecure");
    for (name, further, members) in groups(plan, description) {
        let numbered = || (1..).zip(&members);
        for (node, (instance, listen)) in numbered() {
            let mut arguments: Vec<_> = name.iter().map(|&name| name.to_owned()).collect();
            arguments.extend([
                format!("--listen={listen}"),
                format!("--node={node}"),
                format!("--data={}", data(*instance)),
            ]);
            arguments.extend(numbered().map(|(node, (_, at))| format!("--member={node}={at}")));
            arguments.extend(insecure.map(str::to_owned));
            arguments.extend(further.iter().cloned());
            add(*instance, admin(*listen), arguments);
        }
    }
    if plan.workers > 0 {
        let (instance, listen) = (Instance::Coordinator, place.coordinator());
        let mut arguments = vec!["mr-coordinator".to_owned()];
        arguments.extend([
            format!("--listen={listen}"),
            format!("--data={}", data(instance)),
            format!("--root={root}"),
        ]);
        arguments.extend(insecure.map(str::to_owned));
        arguments.extend(plan.further.coordinator.iter().cloned());
        add(instance, admin(listen), arguments);
    }
    for number in 1..=plan.workers {
        let (instance, listen) = (Instance::Worker(number), place.worker_admin(number));
        let mut arguments = vec!["mr-worker".to_owned()];
        arguments.extend([
            format!("--admin={listen}"),
            format!("--coordinator={}", place.coordinator()),
            format!("--root={root}"),
            format!("--name={instance}"),
        ]);
        arguments.extend(plan.slots.map(|slots| format!("--slots={slots}")));
        arguments.extend(insecure.map(str::to_owned));
        arguments.extend(plan.further.worker.iter().cloned());
        add(instance, listen, arguments);
    }
    all
}
