//! Coordinators and workers of jobs, each a process that a test can do anything to.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{JobClient, Options};
use flotilla::local::place::{Claim, beside};
use flotilla::local::process::{Launch, Process};
use flotilla::local::{Instance, Place};
use proto::mapreduce::ListRequest;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::FLOTILLA;
use super::jobs::PATIENCE;

pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// Coordinators and workers, each a process that a test can do anything to.
pub(crate) struct Fleet {
    // Dropped in this order: the processes end before their directory goes.
    pub(crate) coordinators: Vec<Process>,
    pub(crate) workers: Vec<Process>,
    pub(crate) addresses: Vec<String>,
    dir: TempDir,
    _claim: Claim,
}

impl Fleet {
    /// Starts them, each worker with one slot; `further` are flags of the coordinators.
    pub(crate) fn start(coordinators: u16, workers: u16, further: &[&str]) -> Self {
        Self::start_with(coordinators, workers, further, &[])
    }

    /// The same with flags of the workers.
    pub(crate) fn start_with(
        coordinators: u16,
        workers: u16,
        further: &[&str],
        of_workers: &[&str],
    ) -> Self {
        let mut fleet = Self::set_up(coordinators, workers, further, of_workers);
        fleet.start_all();
        fleet
    }

    /// The same, and nothing is started. A flag that is given takes the place of the fleet's own.
    pub(crate) fn set_up(
        coordinators: u16,
        workers: u16,
        further: &[&str],
        of_workers: &[&str],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let (place, claim) = Place::draw().unwrap();
        // The ports of key/value members are free, since there are none.
        let places: Vec<_> = (1..=coordinators).map(|number| place.kvd(number)).collect();
        let addresses: Vec<String> = places.iter().map(ToString::to_string).collect();
        let mut fleet =
            Self { coordinators: Vec::new(), workers: Vec::new(), addresses, dir, _claim: claim };
        for (listen, node) in places.into_iter().zip(1..) {
            let data = fleet.dir.path().join(format!("coordinator-{node}"));
            let mut arguments = vec![
                "mr-coordinator".to_owned(),
                format!("--listen={listen}"),
                format!("--node={node}"),
                format!("--data={}", data.display()),
                format!("--root={}", fleet.root().display()),
                format!("--lease-ms={}", LEASE.as_millis()),
            ];
            let members = fleet.addresses.iter().zip(1..);
            arguments.extend(members.map(|(at, node)| format!("--member={node}={at}")));
            let arguments = with_flags(arguments, further);
            let log = fleet.dir.path().join(format!("coordinator-{node}.log"));
            let [_, admin] = beside(listen);
            let launch = Launch { program: FLOTILLA.into(), arguments, log, admin };
            fleet.coordinators.push(Process::new(Instance::Coordinator, launch));
        }
        for number in 1..=workers {
            let instance = Instance::Worker(number);
            let admin = place.worker_admin(number);
            let arguments = vec![
                "mr-worker".to_owned(),
                format!("--admin={admin}"),
                format!("--coordinator={}", fleet.everybody()),
                format!("--root={}", fleet.root().display()),
                format!("--name={instance}"),
                "--slots=1".to_owned(),
                "--drain-grace-ms=10000".to_owned(),
            ];
            let arguments = with_flags(arguments, of_workers);
            let log = fleet.dir.path().join(format!("{instance}.log"));
            let launch = Launch { program: FLOTILLA.into(), arguments, log, admin };
            fleet.workers.push(Process::new(instance, launch));
        }
        fleet
    }

    /// Starts whatever does not run.
    pub(crate) fn start_all(&mut self) {
        for process in self.coordinators.iter_mut().chain(&mut self.workers) {
            process.start().unwrap();
        }
    }

    /// The directory of everything that the fleet has.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The worker of this name.
    pub(crate) fn worker(&mut self, name: &str) -> &mut Process {
        let named = |worker: &&mut Process| worker.instance().to_string() == name;
        self.workers.iter_mut().find(named).unwrap()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn everybody(&self) -> String {
        self.addresses.join(",")
    }

    pub(crate) fn jobs(&self) -> JobClient {
        let options = Options::with_deadline(PATIENCE);
        JobClient::connect(self.addresses.clone(), options).unwrap()
    }

    /// Waits until so many workers are there.
    pub(crate) async fn ready(&self, workers: usize) {
        let until = Instant::now() + PATIENCE;
        while self.jobs().list_workers().await.unwrap().workers.len() < workers {
            assert!(Instant::now() < until, "not all workers are there");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Which coordinator leads: the one that answers alone.
    pub(crate) async fn leader(&self) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            for (member, address) in self.addresses.iter().enumerate() {
                if self.coordinators[member].pid().is_none() {
                    continue;
                }
                let options = Options::with_deadline(Duration::from_millis(300));
                let alone = JobClient::connect(vec![address.clone()], options).unwrap();
                if alone.list(ListRequest { limit: 1, ..ListRequest::default() }).await.is_ok() {
                    return member;
                }
            }
            assert!(Instant::now() < until, "no coordinator leads");
        }
    }
}

/// Flags, and further ones instead of those of the same name.
fn with_flags(flags: Vec<String>, further: &[&str]) -> Vec<String> {
    let name = |flag: &str| flag.split('=').next().unwrap().to_owned();
    let given: Vec<String> = further.iter().map(|flag| name(flag)).collect();
    let own = flags.into_iter().filter(|flag| !given.contains(&name(flag)));
    own.chain(further.iter().map(|flag| (*flag).to_owned())).collect()
}

/// Sends a signal to a process and its children: a worker and its slots.
pub(crate) fn signal_all(process: &Process, signal: Signal) {
    let pid = process.pid().unwrap();
    for pid in children(pid).into_iter().chain([pid]) {
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    }
}

/// What a process started and what still runs of that.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap();
        all.extend(children.split_whitespace().map(|child| child.parse::<u32>().unwrap()));
    }
    all
}
