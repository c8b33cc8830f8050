//! The host's part in the check of the state: it carries what members say to each other about theirs,
//! has a state made once more beside the live one, and remembers a doubt over a restart.
//!
//! Whether a state is in doubt is decided in `raft`. A replay is a chain of jobs, each of which
//! applies what the store has read of the log, so the live state is not waited for, nor does it wait.

use std::path::Path;
use std::sync::atomic::Ordering;

use daemon::Failure;
use raft::{Audited, Entry, Fetch, Finding, Index, NodeId, Replay, StateMachine, WriteId};
use tracing::{debug, warn};

use crate::events;
use crate::host::Driver;
use crate::peer::Parcel;
use crate::store::Mark;

/// How much of the log is read at a time for a state that is made once more.
const REPLAY_BYTES: u64 = 4 << 20;

/// What the host keeps about the trust in its replica's state.
#[derive(Debug)]
pub(crate) struct Doubt<S> {
    mark: Mark,
    is_marked: bool,
    /// The mark is being set or taken away.
    is_marking: bool,
    /// The last write that was handed to the store, and the last that is durable.
    pub(crate) submitted: WriteId,
    pub(crate) written: WriteId,
    /// The mark is not taken away before this write is durable: it may hold the right snapshot.
    unmark_after: WriteId,
    /// Up to where the state is being made once more.
    upto: Option<Index>,
    /// That state, while the store reads what it is to see next.
    replay: Option<Replay<S>>,
}

impl<S: StateMachine> Doubt<S> {
    /// Looks whether the state was in doubt when the member ended.
    ///
    /// # Errors
    /// Configuration: it was, and nobody would ever settle it, as there are no checks. Machine.
    pub(crate) fn look(directory: &Path, checks: bool) -> Result<Self, Failure> {
        let mark = Mark::new(directory);
        let is_marked = mark.is_set()?;
        if is_marked && !checks {
            return Err(Failure::configuration(
                "the state of this member is in doubt, and group.check_interval_s is 0, so that it \
                 would never be compared: set another interval",
            ));
        }
        let none = WriteId(0);
        Ok(Self {
            mark,
            is_marked,
            is_marking: false,
            submitted: none,
            written: none,
            unmark_after: none,
            upto: None,
            replay: None,
        })
    }

    /// Whether the state was in doubt.
    pub(crate) fn is_marked(&self) -> bool {
        self.is_marked
    }

    /// The mark is as it was wanted.
    pub(crate) fn marked(&mut self, is_marked: bool) {
        (self.is_marked, self.is_marking) = (is_marked, false);
    }
}

impl<S: StateMachine> Driver<S> {
    /// Does what the check asks for.
    pub(crate) fn audit(&mut self, audited: Audited, replay: Option<Replay<S>>) {
        for (to, message) in audited.messages {
            if !self.senders.send(to, Parcel::Audit(message)) {
                debug!(%to, "a message about states was dropped");
            }
        }
        for finding in &audited.findings {
            events::found(finding);
            if matches!(finding, Finding::Sound { .. }) {
                self.doubt.unmark_after = self.doubt.submitted;
            }
        }
        self.peers.doubted.store(!self.replica.trust().serves(), Ordering::Relaxed);
        self.keep_mark();
        if let Some(replay) = replay {
            self.doubt.upto = Some(replay.upto);
            self.jobs.begin_replay(replay);
        }
    }

    /// Has the mark made or taken away, if it is not as it should be.
    pub(crate) fn keep_mark(&mut self) {
        let Doubt { is_marked, is_marking, written, unmark_after, .. } = self.doubt;
        let is_doubted = !self.replica.trust().serves();
        if !is_marking && is_doubted != is_marked && (is_doubted || written >= unmark_after) {
            self.doubt.is_marking = true;
            self.jobs.mark(self.doubt.mark.clone(), is_doubted);
        }
    }

    /// The state that is made once more has come so far; the store reads on.
    pub(crate) fn go_on_with(&mut self, replay: Replay<S>) {
        if self.doubt.upto != Some(replay.upto) {
            return self.jobs.discard(replay);
        }
        let applied = replay.state.applied().index;
        if applied >= replay.upto {
            self.doubt.upto = None;
            let superfluous = self.replica.replayed(replay);
            return self.jobs.discard(superfluous);
        }
        let (from, to) = (applied.next(), replay.upto);
        let reader = Some(self.peers.me.node);
        self.store.fetch(Fetch { reader, from, to, bytes_max: REPLAY_BYTES });
        self.doubt.replay = Some(replay);
    }

    /// The store has read entries: for the replica, or for a state that is made once more.
    pub(crate) fn fetched(&mut self, reader: Option<NodeId>, entries: Vec<Entry>) {
        if reader != Some(self.peers.me.node) {
            return self.replica.fetched(reader, entries);
        }
        let Some(replay) = self.doubt.replay.take() else { return };
        let next = replay.state.applied().index.next();
        if entries.first().is_some_and(|first| first.index == next) {
            return self.jobs.replay(replay, entries);
        }
        // Not durable yet, or covered by a newer snapshot: the check says whether it is still needed.
        warn!(from = %next, "the log for making the state once more is not there");
        self.doubt.upto = None;
        self.replica.replay_failed();
        self.jobs.discard(replay);
    }
}
