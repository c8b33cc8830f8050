//! Commands and what they cost: time, processor time and memory of all processes that come of them.
//!
//! Processor time is what the kernel adds up for children that were waited for, in ticks of 10 ms.
//! This process adopts what its children leave behind (a virtual machine of Java outlives the
//! Python that started it), so that nobody's time is lost and nobody disturbs who comes next.
//! Memory is looked at again and again; of one process the kernel keeps the peak.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid,
};

/// How often memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long a command may take: several times what the slowest peer needs.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1_800);

/// How long what a command leaves behind may go on.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of what a command complained of is told.
const LAST_WORDS_BYTES: usize = 2_000;

/// The most memory that was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peak {
    /// Of the greatest process.
    pub(super) greatest_bytes: u64,
    /// Of all at once. What they share is counted for each.
    pub(super) sum_bytes: u64,
}

/// What a command cost.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// From its start to its end.
    pub(super) seconds: f64,
    /// Of all its processes.
    pub(super) cpu_seconds: f64,
    pub(super) memory: Peak,
    /// What it said.
    pub(super) said: String,
}

/// Has this process adopt what its children leave behind.
///
/// # Errors
/// What the kernel says.
pub(super) fn adopt() -> Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Runs a command to its end, and waits for what it leaves behind; what it says and complains of
/// goes through files in `scratch`.
///
/// # Errors
/// That it cannot be started, fails, or takes too long.
pub(super) fn run(command: &mut Command, scratch: &Path) -> Result<Measured> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (said, complained) = (scratch.join("said"), scratch.join("complained"));
    command.stdin(Stdio::null()).stdout(File::create(&said)?).stderr(File::create(&complained)?);
    let cpu_before = waited_cpu_seconds()?;
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
    let watch = Watch::start(&[child.id()], Some(COMMAND_TIMEOUT));
    let status = child.wait()?;
    let seconds = began.elapsed().as_secs_f64();
    let (memory, family) = watch.finish();
    wait_for_orphans(&family)?;
    if !status.success() {
        let mut words = fs::read(&complained)?;
        words.extend(fs::read(&said)?);
        let words = String::from_utf8_lossy(&words[words.len().saturating_sub(LAST_WORDS_BYTES)..])
            .into_owned();
        bail!("{name} ended with {status}: {}", words.trim());
    }
    let cpu_seconds = waited_cpu_seconds()? - cpu_before;
    Ok(Measured { seconds, cpu_seconds, memory, said: fs::read_to_string(&said)? })
}

/// Waits until none of these processes is there.
fn wait_for_orphans(family: &BTreeSet<u32>) -> Result<()> {
    let deadline = Instant::now() + ORPHANS_TIMEOUT;
    loop {
        for id in family.iter().filter_map(|&id| pid(id)) {
            // Whoever is not ours, or is gone, is nothing to wait for.
            let _ = waitpid(Some(id), WaitOptions::NOHANG);
        }
        if !family.iter().any(|id| Path::new(&format!("/proc/{id}")).exists()) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "processes are left behind that do not end");
        thread::sleep(LOOK_INTERVAL);
    }
}

/// Watches the memory of processes and of all that come of them.
#[derive(Debug)]
pub(super) struct Watch {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<(Peak, BTreeSet<u32>)>,
}

impl Watch {
    /// Begins. After `limit` all are killed.
    pub(super) fn start(parents: &[u32], limit: Option<Duration>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let deadline = limit.map(|limit| Instant::now() + limit);
        // Who was seen once is looked for again: when its parent ends, it is nobody's child here.
        let mut known: BTreeSet<u32> = parents.iter().copied().collect();
        let thread = thread::spawn(move || {
            let mut peak = Peak::default();
            while !seen.load(Ordering::Relaxed) {
                known = known.iter().flat_map(|&id| family(id)).collect();
                let memory: Vec<(u64, u64)> =
                    known.iter().filter_map(|&id| memory_of(id)).collect();
                let greatest = memory.iter().map(|it| it.1).max().unwrap_or_default();
                peak.greatest_bytes = peak.greatest_bytes.max(greatest);
                peak.sum_bytes = peak.sum_bytes.max(memory.iter().map(|it| it.0).sum());
                if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                    signal_all(&known, Signal::KILL);
                }
                thread::sleep(LOOK_INTERVAL);
            }
            (peak, known)
        });
        Self { ended, thread }
    }

    /// The most memory that was seen, and whose.
    pub(super) fn finish(self) -> (Peak, BTreeSet<u32>) {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().expect("looking does not panic")
    }
}

/// A process and all that come of it, in an order in which parents come first.
pub(super) fn family(parent: u32) -> Vec<u32> {
    let mut found = vec![parent];
    let mut next = 0;
    while let Some(&id) = found.get(next) {
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{id}/task")) else { continue };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
    }
    found
}

/// Sends a signal to processes; those that have ended do not mind.
pub(super) fn signal_all<'a>(ids: impl IntoIterator<Item = &'a u32>, signal: Signal) {
    for id in ids.into_iter().filter_map(|&id| pid(id)) {
        let _ = kill_process(id, signal);
    }
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// Resident memory now and at its peak, in bytes; none when the process has ended.
fn memory_of(id: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let field = |name: &str| {
        let text = status.lines().find_map(|line| line.strip_prefix(name))?;
        text.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// Processor time of the children that were waited for, and of theirs.
fn waited_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Behind the name, which may hold anything, cutime is the 14th and cstime the 15th.
    let fields = stat.rsplit_once(')').context("/proc/self/stat is not understood")?.1;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(13).take(2).filter_map(|it| it.parse().ok()).collect();
    ensure!(ticks.len() == 2, "/proc/self/stat is not understood");
    Ok(ticks.iter().sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_charged_with_what_its_children_do() {
        adopt().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let work = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let mut command = Command::new("sh");
        // The second one is left behind.
        command.args(["-c", &format!("sh -c '{work}'; sh -c '{work}' & echo done")]);
        let measured = run(&mut command, scratch.path()).unwrap();
        assert_eq!(measured.said, "done\n");
        assert!(measured.cpu_seconds > 0.02 && measured.memory.sum_bytes > 0, "{measured:?}");
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), scratch.path());
        assert!(failed.unwrap_err().to_string().contains("why"));
    }
}
