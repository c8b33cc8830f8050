//! The store without its thread, its files and its clock: what happens on the disk, in which
//! order.
//!
//! A term or vote is durable in the floor before the entries of the same write are written, so a
//! log never ends in a term that the floor does not know. How far the log reaches enters the
//! floor after the log's sync and before the acknowledgement. Pure over [`Records`] and
//! [`Slots`], so that a simulator can stop it between any two of their operations.

use raft::{Entry, Fetch, NodeId, Position, Recovered, WriteId};

use crate::failpoint::{self, Failpoint};
use crate::identity::{Group, GroupId};
use crate::store::StoreError;
use crate::store::floor::{Floor, FloorState, HeardPeer, Reach};
use crate::store::gathered::Gathered;
use crate::store::log::Log;
use crate::store::record::Prefix;
use crate::store::records::{Records, Removed};
use crate::store::replay::Claims;
use crate::store::slots::Slots;

/// For how many removed records space is given back at once.
const RECLAIMED_AT_ONCE: usize = 8;

/// What the disk has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The last write that is durable; it stands for all before it.
    pub id: WriteId,
    /// The durable write sequence, which peers are told.
    pub write_sequence: u64,
}

/// The log and the floor of an open store.
#[derive(Debug)]
pub struct Engine<R, S> {
    records: R,
    floor: Floor<S>,
    log: Option<Log>,
    write_sequence: u64,
    /// What was removed whose space the database has not given back.
    unreclaimed: Removed,
}

impl<R: Records, S: Slots> Engine<R, S> {
    /// Finds what is durable, checks it, and counts the boot. Of the log the last `window_bytes` come
    /// as entries.
    ///
    /// # Errors
    /// Damaged: something that was acknowledged is missing.
    pub fn open(
        records: R,
        mut floor: Floor<S>,
        window_bytes: u64,
    ) -> Result<(Self, Recovered), StoreError> {
        let state = floor.state();
        let claims = Claims::from(state);
        let hard_state = state.hard_state;
        let mut highest = state.write_sequence;
        let mut recovered = Recovered::default();
        let mut log = None;
        let mut reach = Reach { log_sequence: 0, last: Position::default(), manifest: None };
        if let Some(group) = &state.group {
            let prefix = Prefix::new(group.as_born());
            let (opened, found) = Log::open(&records, prefix, &claims, window_bytes)?;
            // What was found counts from now on, also what was not synced before the last crash.
            records.sync()?;
            highest = highest.max(found.highest);
            recovered = found.recovered;
            reach = opened.reach();
            log = Some(opened);
        }
        recovered.hard_state = hard_state;
        failpoint::reach(Failpoint::OpenFloorBefore);
        floor.start(highest, reach)?;
        Ok((
            Self { records, floor, log, write_sequence: highest, unreclaimed: Removed::default() },
            recovered,
        ))
    }

    /// What the floor holds.
    pub fn state(&self) -> &FloorState {
        self.floor.state()
    }

    /// The last write sequence.
    pub fn write_sequence(&self) -> u64 {
        self.write_sequence
    }

    /// Durably makes the group known. The log can be written from then on.
    ///
    /// # Errors
    /// As [`Floor::bear`].
    pub fn bear(&mut self, group: Group) -> Result<(), StoreError> {
        let prefix = Prefix::new(group.as_born());
        let is_born = self.log.is_some();
        self.floor.bear(group)?;
        if !is_born {
            let nothing = Claims {
                log_sequence: 0,
                last: Position::default(),
                manifest: None,
                term: self.floor.state().hard_state.term,
            };
            self.log = Some(Log::open(&self.records, prefix, &nothing, 0)?.0);
        }
        Ok(())
    }

    /// As [`Floor::begin_recovery`].
    ///
    /// # Errors
    /// The machine refuses.
    pub fn begin_recovery(&mut self, id: GroupId, recoveries: u64) -> Result<(), StoreError> {
        self.floor.begin_recovery(id, recoveries)
    }

    /// As [`Floor::end_recovery`]; the log is durable.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn end_recovery(&mut self) -> Result<(), StoreError> {
        self.floor.end_recovery()
    }

    /// Remembers what was heard of a peer.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn hear(&mut self, peer: HeardPeer) -> Result<(), StoreError> {
        self.floor.hear(peer)
    }

    /// As [`Floor::forget`].
    ///
    /// # Errors
    /// The machine refuses.
    pub fn forget(&mut self, belongs: impl Fn(NodeId) -> bool) -> Result<(), StoreError> {
        self.floor.forget(belongs)
    }

    /// Makes writes durable. The floor needs a sync soon.
    ///
    /// # Errors
    /// The machine refuses: the process must end, since what is durable is unknown.
    ///
    /// # Panics
    /// If the log changes before the group is born.
    pub fn write(&mut self, gathered: &Gathered) -> Result<Written, StoreError> {
        if let Some(hard_state) = gathered.hard_state {
            self.write_sequence += 1;
            self.floor.promise(hard_state, self.write_sequence)?;
        }
        if gathered.changes_log() {
            let log = self.log.as_mut().expect("the log changes only after the group is born");
            self.write_sequence += 1;
            failpoint::reach(Failpoint::LogAppendBefore);
            let reach = log.write(&self.records, self.write_sequence, gathered)?;
            self.floor.raise(self.write_sequence, reach)?;
            if gathered.snapshot.is_some() {
                // What the snapshot covers is removed from now on, an entry of many fragments step
                // by step. To a floor below that entry the rest of it would look like a torn tail.
                self.floor.settle()?;
            }
        }
        Ok(Written { id: gathered.id, write_sequence: self.write_sequence })
    }

    /// Reads entries of the log, contiguous from `fetch.from` on, at least one; or none if they have
    /// been removed since they were asked for.
    ///
    /// # Errors
    /// Damaged: they are not there.
    pub fn read(&mut self, fetch: Fetch) -> Result<Vec<Entry>, StoreError> {
        self.log.as_mut().map_or(Ok(Vec::new()), |log| log.read(&self.records, fetch))
    }

    /// Whether the floor was written since its last sync.
    pub fn floor_is_dirty(&self) -> bool {
        self.floor.is_dirty()
    }

    /// Makes the floor durable.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn sync_floor(&mut self) -> Result<(), StoreError> {
        self.floor.sync()
    }

    /// Removes some of what counts no more, or gives back some of the space that it took, if there
    /// is any such thing to do.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn sweep(&mut self) -> Result<(), StoreError> {
        if let Some(log) = self.log.as_mut().filter(|log| log.has_leftovers()) {
            self.unreclaimed = self.unreclaimed.and(log.sweep(&self.records)?);
        } else if self.unreclaimed.keys > 0 {
            self.records.reclaim(self.unreclaimed.take(RECLAIMED_AT_ONCE))?;
        }
        Ok(())
    }

    /// Whether [`Engine::sweep`] has something to do.
    pub fn has_leftovers(&self) -> bool {
        self.unreclaimed.keys > 0 || self.log.as_ref().is_some_and(Log::has_leftovers)
    }

    /// Whether there is something to do while nobody writes.
    pub fn is_untidy(&self) -> bool {
        self.has_leftovers()
            || !self.floor.is_settled()
            || self.log.as_ref().is_some_and(Log::is_fragmented)
    }

    /// One step of what there is to do while nobody writes: removing, settling the floor,
    /// repacking; each made durable.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn tidy(&mut self) -> Result<(), StoreError> {
        if self.has_leftovers() {
            self.sweep()?;
            return self.records.sync();
        }
        if !self.floor.is_settled() {
            return self.floor.settle();
        }
        match self.log.as_mut().filter(|log| log.is_fragmented()) {
            Some(log) => {
                self.unreclaimed = self.unreclaimed.and(log.repack(&self.records)?);
                self.records.sync()
            }
            None => Ok(()),
        }
    }
}
