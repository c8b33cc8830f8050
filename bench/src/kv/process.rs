//! A member's process, and what it costs.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// What a process, or several, have spent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Processor time.
    pub cpu: Duration,
    /// Resident memory now, in bytes; of several the largest.
    pub memory_bytes: u64,
}

/// One process; it ends with this value.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
}

impl Process {
    /// Starts it; what it says goes to a file.
    pub(super) fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let errors = log.try_clone()?;
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn()?;
        Ok(Self { child })
    }

    pub(super) fn spent(&self) -> io::Result<Spent> {
        let id = self.child.id();
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let broken = || io::Error::other(format!("what /proc says of {id} is not understood"));
        // Behind the name, which may hold anything: state is the first, utime the 12th.
        let fields = stat.rsplit_once(')').ok_or_else(broken)?.1;
        let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let (Some(Ok(user)), Some(Ok(system))) = (times.next(), times.next()) else {
            return Err(broken());
        };
        let ticks_per_second = rustix::param::clock_ticks_per_second();
        let cpu = Duration::from_micros((user + system) * 1_000_000 / ticks_per_second);
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|it| it.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(Spent { cpu, memory_bytes: kilobytes.ok_or_else(broken)? << 10 })
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn stop(mut self) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        self.child.wait().map(drop)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(id.ok_or_else(|| io::Error::other("a process without an id"))?, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
