//! A state machine and what it has seen: the live one of a replica, or one that is made once more
//! beside it. Decides what an entry does to it, and nothing else.

use bytes::Bytes;

use crate::{Applied, BadSnapshot, Entry, Index, Payload, SnapshotRoot, StateMachine};

/// A state machine and the last entry that it has seen.
#[derive(Debug)]
pub struct State<S> {
    pub(crate) machine: S,
    pub(crate) applied: Applied,
    /// How many recoveries of the group the machine has seen.
    pub(crate) recoveries: u64,
    /// The next command is applied with a bit of it changed.
    pub(crate) flips: bool,
}

impl<S: StateMachine> State<S> {
    /// A machine that holds what `root` stands for, or nothing yet in a group that was recovered so
    /// many times when it was founded.
    pub(crate) fn new(machine: S, root: Option<&SnapshotRoot>, founded: u64) -> Self {
        Self {
            machine,
            applied: root.map_or(Applied::default(), Applied::from),
            recoveries: root.map_or(founded, |root| root.membership.recoveries()),
            flips: false,
        }
    }

    /// The last entry that it has seen.
    pub fn applied(&self) -> Applied {
        self.applied
    }

    /// The digest of the state.
    pub fn digest(&self) -> u128 {
        self.machine.digest()
    }

    /// Puts the state of the snapshot into the machine that it is to begin with.
    ///
    /// # Errors
    /// [`BadSnapshot`] when the chunks do not decode.
    pub fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        self.machine.restore(chunks)
    }

    /// Lets the machine see the next entry, which is committed; what it answers to a command.
    ///
    /// # Panics
    /// If the entry is not the next one, or a command of another version.
    pub fn apply(&mut self, entry: &Entry) -> Option<S::Response> {
        assert_eq!(entry.index, self.applied.index.next(), "entries are applied in order");
        assert!(entry.stamp >= self.applied.time, "group time never falls");
        self.applied = Applied { index: entry.index, term: entry.term, time: entry.stamp };
        match &entry.payload {
            Payload::Command(command) => {
                assert!(
                    self.machine.understands(command),
                    "entry {} is a command of another version: run this member with a build that knows it",
                    entry.index
                );
                if std::mem::take(&mut self.flips) {
                    return Some(self.machine.apply(self.applied, &flipped(command)));
                }
                Some(self.machine.apply(self.applied, command))
            }
            Payload::Noop | Payload::Tick => {
                self.machine.pass(self.applied);
                None
            }
            Payload::Membership(membership) => {
                self.machine.pass(self.applied);
                if membership.recoveries() > self.recoveries {
                    self.recoveries = membership.recoveries();
                    self.machine.recover();
                }
                None
            }
        }
    }
}

/// A command as memory gives it back that has failed.
fn flipped(command: &Bytes) -> Bytes {
    let mut bytes = command.to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    bytes.into()
}

impl From<&SnapshotRoot> for Applied {
    fn from(root: &SnapshotRoot) -> Self {
        Self { index: root.position.index, term: root.position.term, time: root.stamp }
    }
}

/// A state to be made once more beside the live one: from `root`, or from nothing, and then from
/// the log up to `upto`.
#[derive(Debug)]
pub struct Replay<S> {
    /// The machine is empty; [`State::restore`] puts what `root` stands for into it.
    pub state: State<S>,
    /// The member's last snapshot.
    pub root: Option<SnapshotRoot>,
    /// The last entry that is to be applied.
    pub upto: Index,
}
