//! One process of a local cluster: started, watched, signalled, and never left behind.
//!
//! A child ends with its parent. The kernel sends the death signal when the *thread* that started
//! the child ends, so one thread that lives as long as this process starts them all; the child asks
//! for the signal itself, told by [`LEASH`] to do so, because doing it between fork and exec would
//! need unsafe code. A child is in a process group of its own, so that Ctrl-C reaches the parent
//! alone and the children are stopped in order.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use daemon::Failure;
use rustix::process::{Pid, Signal, kill_process};

/// The first argument of a process that ends with its parent, whose id is the second.
pub const LEASH: &str = "--leash";

/// How much of the end of a log is shown, in bytes and in lines.
const TAIL_BYTES: u64 = 8 * 1024;
const TAIL_LINES: usize = 12;

/// Names a process of a cluster. Numbers count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Instance {
    /// A member of the key/value group; the number is its node id.
    Kvd(u16),
    /// A member of the log's group; the number is its node id.
    Raftd(u16),
    /// A member of the shard controller's group; the number is its node id.
    Shardctl(u16),
    /// A router to the groups of key/value members.
    Router,
    /// The MapReduce coordinator.
    Coordinator,
    /// A MapReduce worker.
    Worker(u16),
}

impl fmt::Display for Instance {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvd(number) => write!(out, "kvd-{number}"),
            Self::Raftd(number) => write!(out, "raftd-{number}"),
            Self::Shardctl(number) => write!(out, "shardctl-{number}"),
            Self::Router => write!(out, "kvd-route"),
            Self::Coordinator => write!(out, "mr-coordinator"),
            Self::Worker(number) => write!(out, "mr-worker-{number}"),
        }
    }
}

/// How a process is started, and where it is watched.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The binary.
    pub program: PathBuf,
    /// Its arguments, beginning with the daemon's name.
    pub arguments: Vec<String>,
    /// Where its output goes, appended.
    pub log: PathBuf,
    /// Its admin port.
    pub admin: SocketAddr,
}

/// A process that ended though nobody asked it to.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which.
    pub instance: Instance,
    /// How.
    pub status: ExitStatus,
    /// The last lines that it logged.
    pub tail: String,
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(out, "{} ended with exit code {code}", self.instance)?,
            // A signal comes from outside, so there are no last words about it.
            (None, Some(signal)) => {
                return write!(out, "{} was ended by signal {signal}", self.instance);
            }
            (None, None) => write!(out, "{} ended", self.instance)?,
        }
        if self.tail.is_empty() {
            return write!(out, "; it logged nothing");
        }
        write!(out, "; its last words:")?;
        self.tail.lines().try_for_each(|line| write!(out, "\n    {line}"))
    }
}

/// A process that may run or not. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    instance: Instance,
    launch: Launch,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Process {
    /// A process that does not run yet.
    pub fn new(instance: Instance, launch: Launch) -> Self {
        Self { instance, launch, environment: Vec::new(), child: None }
    }

    /// Which one this is.
    pub fn instance(&self) -> Instance {
        self.instance
    }

    /// Where it serves its admin port.
    pub fn admin(&self) -> SocketAddr {
        self.launch.admin
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.launch.log
    }

    /// The process id, while it was started and its end was not seen.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What its environment has beside this process's own, from its next start on.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// What it is started with instead, from its next start on.
    pub fn set_arguments(&mut self, arguments: Vec<String>) {
        self.launch.arguments = arguments;
    }

    /// Starts it, unless it runs.
    ///
    /// # Errors
    /// Machine, when there is no such binary, no place for the log, or no process to be had.
    pub fn start(&mut self) -> Result<(), Failure> {
        if self.child.is_some() {
            return Ok(());
        }
        let refuse = |error: io::Error| {
            Failure::machine(format!("{} cannot be started", self.instance)).because(error)
        };
        let log =
            OpenOptions::new().create(true).append(true).open(&self.launch.log).map_err(refuse)?;
        let mut command = Command::new(&self.launch.program);
        command
            .args([LEASH, &std::process::id().to_string()])
            .args(&self.launch.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(refuse)?)
            .stderr(log)
            .process_group(0);
        self.child = Some(spawn(command).map_err(refuse)?);
        Ok(())
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It may have ended meanwhile: then its end is seen by whoever asks next.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it ended already; waiting then tells at once.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it has ended since it was started; this forgets the process.
    pub fn take_end(&mut self) -> Option<Ended> {
        let child = self.child.as_mut()?;
        let status = child.try_wait().ok().flatten()?;
        self.child = None;
        Some(Ended { instance: self.instance, status, tail: tail(&self.launch.log) })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a process does first when its parent started it with [`LEASH`]: from now on it is killed
/// when the parent ends. False: the parent has ended already.
///
/// # Errors
/// When the kernel refuses.
pub fn leash(parent: &str) -> io::Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = rustix::process::getppid().map(Pid::as_raw_nonzero);
    Ok(now.is_some_and(|now| now.to_string() == parent))
}

/// The last lines of a log, as far as they can be read.
pub fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(its log cannot be read: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// A process to start, and where to say how that went.
struct Order {
    command: Command,
    reply: SyncSender<io::Result<Child>>,
}

fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = sync_channel(1);
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || obey(&inbox))
            .expect("a process that starts others gets one thread");
        orders
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let (reply, answer) = sync_channel(1);
    spawner.send(Order { command, reply }).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

/// Never ends, since the sender is never dropped.
fn obey(inbox: &Receiver<Order>) {
    for mut order in inbox {
        // The asker waits, so the answer finds it.
        let _ = order.reply.send(order.command.spawn());
    }
}
