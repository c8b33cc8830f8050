//! The store: what a member has promised, on its disk.
//!
//! Three things lie in a data directory. The floor, a small file of our own, says who the member
//! is, its term and vote, and up to where its log was durable. The databases `log` and `snapshots`
//! hold the rest; they are checked against the floor whenever they are opened, because they repair
//! themselves silently. What is missing ends the process with a text that says so, never with a
//! shorter log. What is damaged is not repaired here: the member is removed and added again.

mod codec;
mod directory;
mod engine;
mod entries;
mod error;
pub mod file_slots;
pub mod floor;
mod garbage;
pub mod gathered;
mod log;
mod manifest;
mod mark;
pub(crate) mod offline;
mod pace;
mod reading;
mod receiving;
pub mod record;
pub mod records;
mod replay;
mod sled_records;
pub mod slots;
mod snapshots;
mod space;
mod thread;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use daemon::{Code, Failure};
use raft::{Entry, Fetch, Membership, NodeId, Recovered, Write};
use tokio::sync::{mpsc, oneshot, watch};

pub use directory::{ExpectedIdentity, identity};
pub use engine::{Engine, Written};
pub use error::StoreError;
pub use floor::{Floor, FloorState, HeardPeer};
pub use manifest::Manifest;
pub(crate) use mark::Mark;
pub(crate) use reading::take_chunks;
pub use reading::{Reader, Served};
pub use receiving::{RANGES_MAX, ReceiveError, Receiving, Transfer};
pub use snapshots::Snapshots;

use crate::identity::{Group, Incarnation};
use crate::settings::Settings;
use crate::store::sled_records::SledRecords;

/// What a store needs to know and whom it tells.
pub struct StoreOptions {
    /// Requests that grow the store are to be refused while less than this is free.
    pub free_bytes_min: u64,
    /// How much of the log comes as entries when the store is opened: its end, as the core has it in
    /// memory.
    pub log_window_bytes: u64,
    /// Called on the store's thread with entries that were read, and who needs them.
    pub on_read: Box<dyn Fn(Option<NodeId>, Vec<Entry>) + Send>,
    /// Called on the store's thread with the last durable write.
    pub on_written: Box<dyn Fn(Written) + Send>,
    /// Called once, on some thread, if the store fails. The process must end then.
    pub on_failed: Box<dyn FnOnce(StoreError) + Send>,
}

impl std::fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let options = &mut f.debug_struct("StoreOptions");
        options.field("free_bytes_min", &self.free_bytes_min).finish_non_exhaustive()
    }
}

/// What was found when a store was opened.
#[derive(Debug)]
pub struct Start {
    /// What the core begins with.
    pub recovered: Recovered,
    /// What the floor holds; its boot is this one.
    pub state: FloorState,
    /// The last write sequence.
    pub write_sequence: u64,
    /// The member's snapshots.
    pub snapshots: Snapshots,
}

/// A handle to the store of a member. When it is dropped, everything submitted is made durable
/// and the threads end.
pub struct Store {
    shared: Arc<thread::Shared>,
    snapshots: Snapshots,
    threads: Vec<JoinHandle<()>>,
    databases: [Arc<SledRecords>; 2],
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a directory, which is made if it is not there, and starts its threads.
    ///
    /// # Errors
    /// Identity: it belongs to somebody else or a newer version; nothing was changed. Damaged:
    /// something that was acknowledged is missing. The machine refuses.
    pub fn open(
        path: &Path,
        options: StoreOptions,
        expected: &ExpectedIdentity,
    ) -> Result<(Self, Start), StoreError> {
        offline::check_finished(path)?;
        let opening = || {
            let directory = directory::open(path, expected)?;
            // A recovery may have begun before the directory was locked here.
            offline::check_finished(path)?;
            let records = Arc::new(directory.log);
            let (engine, recovered) =
                Engine::open(records.clone(), directory.floor, options.log_window_bytes)?;
            Ok((records, directory.snapshots, directory.lock, engine, recovered))
        };
        let (records, chunks, lock, engine, recovered) = believing_nothing(path, opening)?;
        let StoreOptions { free_bytes_min, on_read, on_written, on_failed, .. } = options;
        let (fatal, pace) = (Arc::new(pace::Fatal::new(on_failed)), Arc::new(pace::Pace::new()));
        let chunks = Arc::new(chunks);
        let installed = recovered.snapshot.as_ref();
        let snapshots = Snapshots::open(chunks.clone(), installed, pace.clone(), fatal.clone())?;
        let (state, write_sequence) = (engine.state().clone(), engine.write_sequence());
        let shared = Arc::new(thread::Shared::new(fatal.clone()));
        let writer = thread::Writer {
            shared: shared.clone(),
            engine,
            snapshots: snapshots.clone(),
            reserve: space::Reserve::new(path, free_bytes_min),
            pace,
            on_written,
            on_read,
            members: None,
            _lock: lock,
        };
        let start = Start { recovered, state, write_sequence, snapshots: snapshots.clone() };
        let databases = [records, chunks];
        // Its drop ends the threads, also if one of them can't be started.
        let mut store = Self {
            shared: shared.clone(),
            snapshots: snapshots.clone(),
            threads: vec![],
            databases,
        };
        let databases = store.databases.clone();
        store.threads = vec![
            thread::spawn("store", fatal.clone(), move || writer.run())?,
            thread::spawn("store-chunks", fatal.clone(), move || snapshots.run())?,
            thread::spawn("store-watch", fatal, move || thread::watch(&shared, &databases))?,
        ];
        Ok((store, start))
    }

    /// Hands over a write; `on_written` answers when it is durable. Never blocks.
    pub fn submit(&self, write: Write) {
        self.shared.submit(write);
    }

    /// Asks for entries of the log; `on_read` gives them. Never blocks.
    pub fn fetch(&self, fetch: Fetch) {
        self.shared.fetch(fetch);
    }

    /// Whether there was too little room to grow, when it was last looked.
    pub fn is_low_on_space(&self) -> bool {
        self.shared.space() == space::Space::Low
    }

    /// Durably makes the group and its founders known.
    ///
    /// # Errors
    /// Configuration: the addresses are too long together, or the member was born with others.
    /// Machine: the store has failed.
    pub async fn bear(&self, group: Group) -> Result<(), Failure> {
        match self.shared.bear(group).await {
            Ok(born) => Ok(born?),
            Err(_) => Err(Failure::machine("the store has failed")),
        }
    }

    /// Remembers what was heard of a peer; durably, soon, if its boot is a new one.
    pub fn heard(&self, node: NodeId, incarnation: Incarnation, boot: u64, write_sequence: u64) {
        self.shared.hear(HeardPeer { node, incarnation, boot, write_sequence });
    }

    /// These are the members, for certain; what was heard of those removed is forgotten.
    pub fn follow(&self, members: Arc<Membership>) {
        self.shared.follow(members);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.stop();
        self.snapshots.stop();
        for thread in self.threads.drain(..) {
            // After a failure a thread may wait for the database for ever.
            if !self.shared.fatal.is_told() {
                // A panic has been told already.
                drop(thread.join());
            }
        }
        // After a failure nothing may touch the disk again, as sled would when it is dropped: it
        // panics when it is refused.
        if self.shared.fatal.is_told() {
            std::mem::forget(self.databases.clone());
        }
    }
}

/// Reads a database, which panics on damaged data.
fn believing_nothing<T>(
    path: &Path,
    reading: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let damaged = format!("{} is damaged: its database panics when it is read", path.display());
    let read = daemon::panic::ends_with(Code::Damaged, damaged.clone(), || {
        catch_unwind(AssertUnwindSafe(reading))
    });
    read.unwrap_or(Err(StoreError::Damaged(damaged)))
}

/// An open store, as the host needs it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) recovered: Recovered,
    pub(crate) incarnation: Incarnation,
    pub(crate) boot: u64,
    pub(crate) write_sequence: u64,
    pub(crate) born: Option<Group>,
    pub(crate) heard: Vec<HeardPeer>,
}

/// What an open store tells the host.
#[derive(Debug)]
pub(crate) struct Signals {
    /// What the disk has answered last.
    pub(crate) written: watch::Receiver<Written>,
    /// Entries that it has read, and who needs them. No more than were asked for.
    pub(crate) read: mpsc::UnboundedReceiver<(Option<NodeId>, Vec<Entry>)>,
    /// Why the store has failed, once it has.
    pub(crate) failed: oneshot::Receiver<Failure>,
}

/// Opens the store of a member.
pub(crate) fn open(settings: &Settings) -> Result<(Opened, Signals), Failure> {
    let (written_out, written) = watch::channel(Written::default());
    let (read_out, read) = mpsc::unbounded_channel();
    let (failed_out, failed) = oneshot::channel();
    let options = StoreOptions {
        free_bytes_min: settings.free_bytes_min,
        log_window_bytes: settings.log_window_bytes,
        // Nobody listens only when the host has ended.
        on_read: Box::new(move |reader, entries| drop(read_out.send((reader, entries)))),
        on_written: Box::new(move |written| {
            written_out.send_replace(written);
        }),
        // Nobody listens only when the host has ended.
        on_failed: Box::new(move |error| drop(failed_out.send(error.into()))),
    };
    let (cluster, node) = (settings.cluster.clone(), NodeId(settings.node));
    let expected = ExpectedIdentity { cluster, node };
    let (store, start) = Store::open(&settings.data, options, &expected)?;
    let Start { recovered, state, write_sequence, snapshots } = start;
    let opened = Opened {
        store,
        snapshots,
        recovered,
        incarnation: state.incarnation,
        boot: state.boot,
        write_sequence,
        born: state.group,
        heard: state.heard,
    };
    Ok((opened, Signals { written, read, failed }))
}
