//! Sleep for threads that sled has and does not need.
//!
//! It writes its buffers on seven threads, which the whole process shares, and wakes all that have
//! nothing to do for each of them (0.34.7). A member writes a buffer for each batch, so six
//! threads would wake in vain, one after the other: a sixth of members' CPU time at 64 clients. No
//! setting says how many there are. But one that has flushed a database wakes whoever waits for
//! that, and so runs code of ours, which never comes back.
//!
//! Those that are left do all work: sled counts those that wait, four sleepers count against them,
//! and with less than none it starts no more. What they do is to write buffers, to cut files, and
//! to read the heads of segments at open; a burst of cuts, one for each segment, comes before a
//! write that was asked for later. A write may wait for a cut through a lock, so three writes that
//! wait for one that is still in the queue would wait for ever. That needs 8 MiB of writes between
//! a cut and the next flush, by its source; the store flushes long before.

use std::fs;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Once};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

/// What their names begin with, before a number.
const NAME: &str = "sled-io-";

/// How many there are.
const THREADS: usize = 7;

/// How many sleep.
const SLEEPERS: usize = 4;

/// How long they have to name themselves, which each does once it runs.
const NAMED_WITHIN: Duration = Duration::from_secs(5);

/// Puts threads to sleep for good, unless that is done. To be called before the process opens its
/// first database: a large one makes sled start more of them.
pub(super) fn put_to_sleep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = try_to_put_to_sleep() {
            tracing::warn!(%error, "all of sled's threads stay awake: writes cost more CPU time");
        }
    });
}

fn try_to_put_to_sleep() -> io::Result<()> {
    // In memory, and gone when it is dropped.
    let database = sled::Config::new().temporary(true).flush_every_ms(None).open()?;
    database.flush()?;
    let deadline = Instant::now() + NAMED_WITHIN;
    let mut threads = count()?;
    while threads < THREADS && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
        threads = count()?;
    }
    if threads != THREADS {
        return Err(io::Error::other(format!("it has {threads} instead of {THREADS}")));
    }
    let mut asleep = 0;
    while asleep < SLEEPERS {
        let (sleeps, slept) = channel();
        let waker = Waker::from(Arc::new(Sleeper(sleeps)));
        // Ready: it was flushed before anybody waited for it, so nobody is woken.
        if pin!(database.flush_async()).poll(&mut Context::from_waker(&waker))?.is_pending() {
            slept.recv().map_err(io::Error::other)?;
            asleep += 1;
        }
    }
    Ok(())
}

fn count() -> io::Result<usize> {
    let mut count = 0;
    for task in fs::read_dir("/proc/self/task")? {
        // Another thread may have ended meanwhile.
        let name = fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
        count += usize::from(name.starts_with(NAME));
    }
    Ok(count)
}

/// Whoever wakes it falls asleep.
struct Sleeper(Sender<()>);

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        // Whoever waits for it has not gone, or nothing depends on it.
        let _ = self.0.send(());
        drop(self);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// How often each of sled's threads has waited, by its id.
    fn waits() -> BTreeMap<String, u64> {
        let mut waits = BTreeMap::new();
        for task in fs::read_dir("/proc/self/task").unwrap() {
            let task = task.unwrap();
            // It may have ended meanwhile.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            let value = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            if value("Name:").starts_with(NAME) {
                let id = task.file_name().into_string().unwrap();
                waits.insert(id, value("voluntary_ctxt_switches:").parse().unwrap());
            }
        }
        waits
    }

    #[test]
    fn most_threads_of_the_database_sleep() {
        put_to_sleep();
        let directory = tempfile::tempdir().unwrap();
        let database = sled::Config::new().path(directory.path()).flush_every_ms(None);
        let database = database.open().unwrap();
        let before = waits();
        for write in 0..200_u64 {
            database.insert(b"key", &write.to_be_bytes()).unwrap();
            database.flush().unwrap();
        }
        let after = waits();
        assert_eq!(after.len(), THREADS);
        let asleep = after.iter().filter(|(id, waits)| before.get(*id) == Some(*waits)).count();
        assert_eq!(asleep, SLEEPERS, "{before:?}, then {after:?}");
    }
}
