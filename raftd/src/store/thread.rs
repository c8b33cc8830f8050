//! The store's threads: one writes the log, one removes chunks, one watches the database.
//!
//! The writing thread takes everything that waits, makes it durable at once, and answers for the
//! last of it. What can wait (the floor's sync, compaction, repacking) happens between batches or
//! when there is nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft::{Entry, Fetch, Membership, NodeId, Write};
use tokio::sync::oneshot;

use crate::failpoint::{self, Failpoint};
use crate::identity::Group;
use crate::store::StoreError;
use crate::store::engine::{Engine, Written};
use crate::store::file_slots::FileSlots;
use crate::store::floor::HeardPeer;
use crate::store::gathered::Gathered;
use crate::store::pace::{Fatal, Pace};
use crate::store::sled_records::SledRecords;
use crate::store::snapshots::Snapshots;
use crate::store::space::{Reserve, Space};

/// The floor is synced this long after it was written: at most 50 ms, with room for the batch
/// that is being written meanwhile.
const FLOOR_SYNC_AFTER: Duration = Duration::from_millis(30);

/// What can wait waits until nothing was written for this long.
const IDLE_AFTER: Duration = Duration::from_millis(200);

/// How often the room on the disk is looked at while it is written to, or low.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// How often the database is asked whether one of its threads has failed.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Takes entries that were read, and who needs them: a follower, or this member's state machine.
pub(super) type OnRead = Box<dyn Fn(Option<NodeId>, Vec<Entry>) + Send>;

/// What waits for the writing thread. Bounded: writes are merged, peers are few.
#[derive(Default)]
pub(super) struct Inbox {
    gathered: Gathered,
    heard: BTreeMap<NodeId, HeardPeer>,
    /// Who belongs to the group now.
    members: Option<Arc<Membership>>,
    /// At most one of each follower and one of the state machine.
    fetches: Vec<Fetch>,
    births: Vec<(Group, oneshot::Sender<Result<(), StoreError>>)>,
    stop: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.gathered.is_empty()
            && self.heard.is_empty()
            && self.members.is_none()
            && self.fetches.is_empty()
            && self.births.is_empty()
    }
}

/// What the threads and the handle share.
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    low_on_space: AtomicBool,
    stopped: Mutex<bool>,
    stopping: Condvar,
    pub(super) fatal: Arc<Fatal>,
}

impl Shared {
    pub(super) fn new(fatal: Arc<Fatal>) -> Self {
        Self {
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            low_on_space: AtomicBool::new(false),
            stopped: Mutex::new(false),
            stopping: Condvar::new(),
            fatal,
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn submit(&self, write: Write) {
        self.inbox().gathered.add(write);
        self.arrived.notify_one();
    }

    pub(super) fn fetch(&self, fetch: Fetch) {
        self.inbox().fetches.push(fetch);
        self.arrived.notify_one();
    }

    pub(super) fn hear(&self, peer: HeardPeer) {
        self.inbox().heard.insert(peer.node, peer);
        self.arrived.notify_one();
    }

    pub(super) fn follow(&self, members: Arc<Membership>) {
        self.inbox().members = Some(members);
        self.arrived.notify_one();
    }

    pub(super) fn bear(&self, group: Group) -> oneshot::Receiver<Result<(), StoreError>> {
        let (answer, answered) = oneshot::channel();
        self.inbox().births.push((group, answer));
        self.arrived.notify_one();
        answered
    }

    pub(super) fn stop(&self) {
        self.inbox().stop = true;
        self.arrived.notify_one();
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopping.notify_all();
    }

    pub(super) fn space(&self) -> Space {
        if self.low_on_space.load(Ordering::Relaxed) { Space::Low } else { Space::Enough }
    }
}

/// Runs `work` on a thread of that name; what goes wrong there is told.
pub(super) fn spawn(
    name: &str,
    fatal: Arc<Fatal>,
    work: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
) -> Result<JoinHandle<()>, StoreError> {
    let run = move || {
        if let Err(error) = work() {
            fatal.tell(error);
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| StoreError::machine("a thread of the store can't be started", error))
}

/// Asks the databases whether one of their threads has failed, until the store stops: a flush
/// may be waiting for it.
pub(super) fn watch(shared: &Shared, databases: &[Arc<SledRecords>]) -> Result<(), StoreError> {
    let mut stopped = shared.stopped.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        for database in databases {
            database.failure().map_or(Ok(()), Err)?;
            database.check()?;
        }
        stopped = shared
            .stopping
            .wait_timeout(stopped, WATCH_INTERVAL)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    Ok(())
}

/// The writing thread.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) engine: Engine<Arc<SledRecords>, FileSlots>,
    pub(super) snapshots: Snapshots,
    pub(super) reserve: Reserve,
    pub(super) pace: Arc<Pace>,
    pub(super) on_written: Box<dyn Fn(Written) + Send>,
    pub(super) on_read: OnRead,
    /// Who belongs to the group, as far as it was told.
    pub(super) members: Option<Arc<Membership>>,
    /// Keeps other processes out of the directory.
    pub(super) _lock: File,
}

impl Writer {
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        self.write_until_stopped()
    }

    fn write_until_stopped(&mut self) -> Result<(), StoreError> {
        let mut times = Times { wrote: Instant::now(), dirty_since: None, looked: None };
        loop {
            self.look_at_space(&mut times)?;
            let inbox = self.wait(&times);
            let stop = inbox.stop;
            if inbox.is_empty() {
                if stop {
                    return self.engine.sync_floor();
                }
                self.use_idle_time(&mut times)?;
            } else {
                self.work(inbox, &mut times)?;
                if stop {
                    self.shared.inbox().stop = true;
                }
            }
        }
    }

    /// Takes what there is, or waits for it, but no longer than until something else is due.
    fn wait(&self, times: &Times) -> Inbox {
        let due = times.due(&self.engine, self.shared.space());
        let mut inbox = self.shared.inbox();
        while inbox.is_empty() && !inbox.stop {
            inbox = match due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.shared.arrived.wait(inbox).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(wait) => {
                    let waited = self.shared.arrived.wait_timeout(inbox, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        std::mem::take(&mut *inbox)
    }

    fn work(&mut self, inbox: Inbox, times: &mut Times) -> Result<(), StoreError> {
        for (group, answer) in inbox.births {
            let born = match self.engine.bear(group) {
                Err(error @ (StoreError::Machine { .. } | StoreError::Damaged(_))) => {
                    return Err(error);
                }
                born => born,
            };
            // The asker may have gone.
            drop(answer.send(born));
        }
        if !inbox.gathered.is_empty() {
            self.write(inbox.gathered, times)?;
        }
        // The removal of a member is durable now. Before, a crash could leave a log in which it votes,
        // and nothing by which an old copy of it is known.
        self.members = inbox.members.or(self.members.take());
        let members = self.members.as_ref();
        let belongs = |node| members.is_none_or(|members| members.may_belong(node));
        self.engine.forget(belongs)?;
        for peer in inbox.heard.into_values().filter(|peer| belongs(peer.node)) {
            self.engine.hear(peer)?;
        }
        // Here, between two writes, nothing moves under the reader.
        for fetch in inbox.fetches {
            (self.on_read)(fetch.reader, self.engine.read(fetch)?);
        }
        self.sync_floor_when_due(times)?;
        Ok(())
    }

    /// Whether it was due.
    fn sync_floor_when_due(&mut self, times: &mut Times) -> Result<bool, StoreError> {
        let due = times.dirty_since.is_some_and(|since| since.elapsed() >= FLOOR_SYNC_AFTER);
        if due {
            self.engine.sync_floor()?;
            times.dirty_since = None;
        }
        Ok(due)
    }

    fn write(&mut self, gathered: Gathered, times: &mut Times) -> Result<(), StoreError> {
        times.wrote = Instant::now();
        let written = self.engine.write(&gathered)?;
        failpoint::reach(Failpoint::AnswerBefore);
        (self.on_written)(written);
        self.pace.wrote(times.wrote);
        if let Some(snapshot) = gathered.snapshot {
            self.snapshots.installed(&snapshot.root);
        }
        self.engine.sweep()?;
        if self.engine.floor_is_dirty() {
            times.dirty_since.get_or_insert(times.wrote);
        } else {
            times.dirty_since = None;
        }
        Ok(())
    }

    fn use_idle_time(&mut self, times: &mut Times) -> Result<(), StoreError> {
        if !self.sync_floor_when_due(times)?
            && times.tidy_due(&self.engine).is_some_and(|due| due <= Instant::now())
        {
            self.engine.tidy()?;
        }
        Ok(())
    }

    fn look_at_space(&mut self, times: &mut Times) -> Result<(), StoreError> {
        if times.looked.is_some_and(|looked| looked.elapsed() < SPACE_INTERVAL) {
            return Ok(());
        }
        times.looked = Some(Instant::now());
        let low = self.reserve.look()? == Space::Low;
        self.shared.low_on_space.store(low, Ordering::Relaxed);
        Ok(())
    }
}

/// When what happened last.
struct Times {
    wrote: Instant,
    /// Since when the floor waits for a sync.
    dirty_since: Option<Instant>,
    looked: Option<Instant>,
}

impl Times {
    /// When something is due though nobody asks for it.
    fn due(&self, engine: &Engine<Arc<SledRecords>, FileSlots>, space: Space) -> Option<Instant> {
        let sync = self.dirty_since.map(|since| since + FLOOR_SYNC_AFTER);
        let look = match space {
            Space::Enough => None,
            Space::Low => self.looked.map(|looked| looked + SPACE_INTERVAL),
        };
        [sync, look, self.tidy_due(engine)].into_iter().flatten().min()
    }

    fn tidy_due(&self, engine: &Engine<Arc<SledRecords>, FileSlots>) -> Option<Instant> {
        if engine.has_leftovers() {
            return Some(self.wrote);
        }
        engine.is_untidy().then(|| self.wrote + IDLE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use raft::{Entry, GroupTime, Index, Payload, Term, WriteId};

    use super::*;
    use crate::store::directory::{self, ExpectedIdentity};

    /// A crash between the two leaves a log in which the member votes, and must leave what is known of
    /// it, by which an old copy of its directory is refused.
    #[test]
    fn who_is_removed_is_forgotten_behind_the_write_that_removes_it() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().to_owned();
        let expected = ExpectedIdentity { cluster: "harbour".to_owned(), node: NodeId(1) };
        let directory = directory::open(&path, &expected).unwrap();
        let (records, chunks) = (Arc::new(directory.log), Arc::new(directory.snapshots));
        let (mut engine, _) = Engine::open(records, directory.floor, u64::MAX).unwrap();
        engine.bear(Group { id: [7; 32], founders: Vec::new(), former: Vec::new() }).unwrap();
        let away = [3; 16];
        engine
            .hear(HeardPeer { node: NodeId(3), incarnation: away, boot: 1, write_sequence: 9 })
            .unwrap();
        let (pace, fatal) = (Arc::new(Pace::new()), Arc::new(Fatal::new(Box::new(|_| ()))));
        let snapshots = Snapshots::open(chunks, None, pace.clone(), fatal.clone()).unwrap();
        let knows = move || {
            let floor = std::fs::read(path.join("floor")).unwrap();
            floor.windows(away.len()).any(|bytes| bytes == away)
        };
        let known_when_written = Arc::new(Mutex::new(Vec::new()));
        let (known, look) = (known_when_written.clone(), knows.clone());
        let mut writer = Writer {
            shared: Arc::new(Shared::new(fatal)),
            engine,
            snapshots,
            reserve: Reserve::new(temporary.path(), 0),
            pace,
            on_written: Box::new(move |_| known.lock().unwrap().push(look())),
            on_read: Box::new(|_, _| ()),
            members: None,
            _lock: directory.lock,
        };
        let left = [1, 2].map(|id| (NodeId(id), Bytes::new()));
        let left = Arc::new(Membership::from_parts(
            Membership::founders(left).members().clone(),
            NodeId(3),
            false,
        ));
        let entry = Entry {
            index: Index(1),
            term: Term(0),
            stamp: GroupTime(0),
            payload: Payload::Membership(left.clone()),
        };
        let mut inbox = Inbox { members: Some(left), ..Inbox::default() };
        let entries = vec![entry];
        inbox.gathered.add(Write { id: WriteId(1), hard_state: None, entries, snapshot: None });
        let mut times = Times { wrote: Instant::now(), dirty_since: None, looked: None };
        writer.work(inbox, &mut times).unwrap();
        assert_eq!(*known_when_written.lock().unwrap(), [true], "forgotten too early");
        assert!(!knows(), "it is still known");
    }
}
