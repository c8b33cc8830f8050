//! What a host has done away from its task, because it takes long: snapshots that are stored, fetched
//! and restored. Each begins with a call and ends as a [`Job`] that the host task takes in.

use std::time::Duration;

use daemon::Failure;
use raft::{Entry, Frozen, Index, Install, Replay, SnapshotRoot, StateMachine};
use tokio::sync::mpsc;

use crate::failpoint::{self, Failpoint};
use crate::handle::Transferring;
use crate::peer::Fetcher;
use crate::store::{self, Mark, Snapshots};

/// How long to wait after a snapshot that did not arrive.
const FETCH_PAUSE: Duration = Duration::from_secs(1);

/// What a job came to.
pub(crate) enum Job<S> {
    /// A snapshot of this member's state is durable, or could not be stored.
    Captured(Result<SnapshotRoot, Failure>),
    /// A snapshot of a leader's is durable here.
    Fetched(Result<SnapshotRoot, String>),
    /// A machine was made of it.
    Restored(Result<(SnapshotRoot, S), Failure>),
    /// A state that is made once more has come so far.
    Replayed(Result<Replay<S>, Failure>),
    /// It is remembered whether the state is in doubt.
    Marked(Result<bool, Failure>),
}

/// Begins jobs, of each kind one at a time, as the replica asks for them.
pub(crate) struct Jobs<S> {
    fetcher: Fetcher,
    done: mpsc::Sender<Job<S>>,
}

impl<S: StateMachine> Jobs<S> {
    pub(crate) fn new(fetcher: Fetcher, done: mpsc::Sender<Job<S>>) -> Self {
        Self { fetcher, done }
    }

    /// How far the transfer that runs has come.
    pub(crate) fn transfer(&self) -> Option<Transferring> {
        *self.fetcher.progress.borrow()
    }

    /// Encodes and stores a frozen state.
    pub(crate) fn capture(&self, frozen: Frozen<S::Capture>) {
        let snapshots = self.fetcher.snapshots.clone();
        self.block(move || Job::Captured(snapshots.store(frozen).map_err(Failure::from)));
    }

    /// Fetches a snapshot.
    pub(crate) fn fetch(&self, install: Install, commit: Index) {
        let (fetcher, done) = (self.fetcher.clone(), self.done.clone());
        tokio::spawn(async move {
            let fetched = fetcher.fetch(install, commit).await;
            if fetched.is_err() {
                // The leader offers it again with the next heartbeat.
                tokio::time::sleep(FETCH_PAUSE).await;
            }
            // The host has ended when nobody listens.
            let _ = done.send(Job::Fetched(fetched)).await;
        });
    }

    /// Puts a snapshot that was fetched into an empty machine, while the host's own serves on.
    pub(crate) fn restore(&self, root: SnapshotRoot, machine: S) {
        let snapshots = self.fetcher.snapshots.clone();
        self.block(move || {
            failpoint::reach(Failpoint::SnapshotInstallBefore);
            let restored = restored(&snapshots, &root, machine);
            Job::Restored(restored.map(|machine| (root, machine)))
        });
    }

    /// Begins to make a state once more: from the snapshot, if there is one.
    pub(crate) fn begin_replay(&self, mut replay: Replay<S>) {
        let snapshots = self.fetcher.snapshots.clone();
        self.block(move || {
            let Some(root) = &replay.root else { return Job::Replayed(Ok(replay)) };
            let chunks = snapshots.read(root.manifest);
            let state = &mut replay.state;
            let restored = store::take_chunks(chunks, |chunks| state.restore(chunks));
            let restored = restored.map_err(Failure::from).and_then(|restored| {
                let message = "the snapshot that the log builds on is not readable";
                restored.map_err(|error| Failure::damaged(message).because(error))
            });
            Job::Replayed(restored.map(|()| replay))
        });
    }

    /// Goes on with the next entries.
    pub(crate) fn replay(&self, mut replay: Replay<S>, entries: Vec<Entry>) {
        self.block(move || {
            for entry in entries.iter().filter(|entry| entry.index <= replay.upto) {
                drop(replay.state.apply(entry));
            }
            Job::Replayed(Ok(replay))
        });
    }

    /// Remembers for the next start whether the state is in doubt.
    pub(crate) fn mark(&self, mark: Mark, is_doubted: bool) {
        self.block(move || Job::Marked(mark.set(is_doubted).map(|()| is_doubted)));
    }

    /// Gives back the memory of a machine that is of no more use, which takes a while if it is large.
    pub(crate) fn discard<T: Send + 'static>(&self, machine: T) {
        tokio::task::spawn_blocking(move || drop(machine));
    }

    fn block(&self, job: impl FnOnce() -> Job<S> + Send + 'static) {
        let done = self.done.clone();
        tokio::task::spawn_blocking(move || {
            // The host has ended when nobody listens.
            let _ = done.blocking_send(job());
        });
    }
}

/// The machine with the state of a snapshot. A chunk that can't be read is the failure, whatever was
/// made of those before it.
fn restored<S: StateMachine>(
    snapshots: &Snapshots,
    root: &SnapshotRoot,
    mut machine: S,
) -> Result<S, Failure> {
    let chunks = snapshots.read(root.manifest);
    store::take_chunks(chunks, |chunks| machine.restore(chunks))?.map_err(|error| {
        // Its chunks are those that the leader named, so no retry will change it.
        let message = "the leader's snapshot does not decode here: is this member of an older \
                       version? upgrade it";
        Failure::configuration(message).because(error)
    })?;
    Ok(machine)
}
