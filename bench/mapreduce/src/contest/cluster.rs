//! A cluster of one coordinator and some workers: the processes that `flotilla up` starts, with
//! ports that were found free, so that a worker can be killed, slowed and watched by its id.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{Settings, inputs::Inputs, process};

/// How long everybody may take to be there.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How often is asked whether they are.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long the processes may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory of a slot unless it is said otherwise: a worker's default.
pub(super) const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;

/// The processes; they end with this value.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    flotilla: &'a Path,
    root: &'a Path,
    scratch: PathBuf,
    coordinator: SocketAddr,
    processes: Vec<Child>,
    jobs: u32,
}

/// How workers are set up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workers {
    pub(super) count: u32,
    pub(super) slots: u32,
    /// The memory of a slot for sorting, combining and merging.
    pub(super) memory_bytes: u64,
    /// After how much silence a worker counts as lost.
    pub(super) lease: Duration,
}

/// A job that has succeeded.
#[derive(Debug)]
pub(super) struct Job {
    /// From the start of the command that submits it to its end.
    pub(super) seconds: f64,
    /// What the coordinator has of it, in milliseconds.
    pub(super) coordinator_ms: u64,
    /// Where its results are.
    pub(super) output: PathBuf,
    /// What became of its tasks.
    pub(super) retries: u64,
}

impl<'a> Cluster<'a> {
    /// Starts a cluster below the root of the inputs, and waits until all workers are at work.
    ///
    /// # Errors
    /// That somebody does not come.
    pub(super) fn start(
        settings: &'a Settings,
        inputs: &'a Inputs,
        workers: Workers,
    ) -> Result<Self> {
        let ports = free_addresses(3 + workers.count as usize)?;
        let mut cluster = Self {
            flotilla: &settings.flotilla,
            root: inputs.root(),
            scratch: inputs.scratch(),
            coordinator: ports[0],
            processes: Vec::new(),
            jobs: 0,
        };
        inputs.forget_clusters()?;
        let data = cluster.scratch.join(format!("coordinator-{}", ports[0].port()));
        let lease = format!("--lease-ms={}", workers.lease.as_millis());
        let mut coordinator = cluster.daemon("mr-coordinator", ports[2]);
        coordinator.args(["--listen", &ports[0].to_string()]);
        coordinator.args(["--peer-listen", &ports[1].to_string(), &lease]);
        coordinator.arg("--data").arg(data);
        cluster.spawn(coordinator)?;
        for admin in &ports[3..] {
            let mut worker = cluster.daemon("mr-worker", *admin);
            worker.args(["--coordinator", &ports[0].to_string()]);
            worker.args(["--slots", &workers.slots.to_string()]);
            worker.args(["--memory-bytes", &workers.memory_bytes.to_string()]);
            cluster.spawn(worker)?;
        }
        cluster.wait_until_ready(workers.count as usize)?;
        Ok(cluster)
    }

    fn daemon(&self, name: &str, admin: SocketAddr) -> Command {
        let mut command = Command::new(self.flotilla);
        // It ends with this process, however that ends.
        command.args(["--leash", &std::process::id().to_string(), name]);
        command.arg("--root").arg(self.root).args(["--admin", &admin.to_string()]);
        command
    }

    fn spawn(&mut self, mut command: Command) -> Result<()> {
        let log = log_name(self.coordinator, self.processes.len());
        let log = File::create(self.scratch.join(log))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn();
        let name = self.flotilla.display();
        self.processes.push(child.with_context(|| format!("{name} cannot be started"))?);
        Ok(())
    }

    fn wait_until_ready(&mut self, count: usize) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            for (number, process) in self.processes.iter_mut().enumerate() {
                let Some(status) = process.try_wait()? else { continue };
                let log = fs::read_to_string(self.scratch.join(log_name(self.coordinator, number)));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                bail!("process {number} of the cluster ended with {status}: {last}");
            }
            let at_work = |value: &Value| {
                let workers = value["workers"].as_array().map(Vec::as_slice).unwrap_or_default();
                workers.iter().filter(|worker| worker["state"] == "at work").count()
            };
            if self.ask(&["workers"]).is_ok_and(|value| at_work(&value) == count) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{count} workers are not at work in time");
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Says a command of `flotilla mr`, and gives its answer.
    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(self.flotilla);
        command.args(["mr", "--json", "--coordinator", &self.coordinator.to_string()]);
        command.args(arguments).stdin(Stdio::null());
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{} {}",
            String::from_utf8_lossy(&output.stdout).trim(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let said = String::from_utf8(output.stdout)?;
        serde_json::from_str(&said).with_context(|| format!("{said:?} is not understood"))
    }

    /// Submits a job, and waits until it has succeeded.
    ///
    /// # Errors
    /// That it has not.
    pub(super) fn job(&mut self, arguments: &[&str]) -> Result<Job> {
        self.jobs += 1;
        let output = format!("job-{}-{}", self.coordinator.port(), self.jobs);
        let output = Inputs::scratch_name(&output);
        let submit = ["submit", "--wait", "--output", &output];
        let began = Instant::now();
        let value = self.ask(&[&submit[..], arguments].concat())?;
        let seconds = began.elapsed().as_secs_f64();
        let number = |value: &Value| value.as_u64().context("a job is not understood");
        let ended = number(&value["ended_unix_ms"])?;
        Ok(Job {
            seconds,
            coordinator_ms: ended.saturating_sub(number(&value["submitted_unix_ms"])?),
            output: self.root.join(output),
            retries: number(&value["maps"]["retries"])? + number(&value["reduces"]["retries"])?,
        })
    }

    /// The id of a worker's process, by its number from 0.
    pub(super) fn worker(&self, number: usize) -> u32 {
        self.processes[1 + number].id()
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        // Slots end with their worker, which ends even if it is stopped.
        let ids: Vec<u32> = self.processes.iter().map(Child::id).collect();
        process::signal_all(&ids, Signal::TERM);
        process::signal_all(&ids, Signal::CONT);
        let deadline = Instant::now() + STOP_TIMEOUT;
        for child in &mut self.processes {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(LOOK_INTERVAL);
            }
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The log of a process by its number: the coordinator's is the first.
fn log_name(coordinator: SocketAddr, number: usize) -> String {
    format!("log-{}-{number}", coordinator.port())
}

/// Addresses of this machine that nobody listens on.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    // All are held until the last one is found, so that none is found twice.
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<_, _>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}
