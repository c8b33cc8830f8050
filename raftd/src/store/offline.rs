//! The directory of a member that does not run: looking at it, and changing it by hand.
//!
//! Looking changes nothing: sled writes when it opens a database, so it gets a copy of the log.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use raft::Recovered;

use crate::store::directory::{self, ExpectedIdentity, LOG, identity};
use crate::store::engine::Engine;
use crate::store::file_slots::FileSlots;
use crate::store::floor::FloorState;
use crate::store::log::Log;
use crate::store::record::Prefix;
use crate::store::replay::Claims;
use crate::store::sled_records::SledRecords;
use crate::store::{StoreError, believing_nothing};

/// What the floor and the log in a directory amount to. `scratch` is an empty directory that has
/// room for a copy of the log; who calls removes it.
///
/// # Errors
/// Identity: it is no directory of a member of a group. Damaged: something that was acknowledged is
/// missing. Machine: it is in use, or can't be copied.
pub(crate) fn look(path: &Path, scratch: &Path) -> Result<(FloorState, Recovered), StoreError> {
    // Looked at before the lock is taken: who is given another path is told so.
    born(path)?;
    let _lock = directory::lock(path)?;
    let (state, prefix) = born(path)?;
    let copy = scratch.join(LOG);
    copy_all(&path.join(LOG), &copy)?;
    let mut recovered = believing_nothing(path, || {
        let records = SledRecords::open(&copy)?;
        let (_, found) = Log::open(&records, prefix, &Claims::from(&state), 0)?;
        Ok(found.recovered)
    })?;
    recovered.hard_state = state.hard_state;
    Ok((state, recovered))
}

/// An open directory, whose log can be written without a host.
#[derive(Debug)]
pub(crate) struct Offline {
    pub(crate) engine: Engine<Arc<SledRecords>, FileSlots>,
    pub(crate) recovered: Recovered,
    _lock: File,
}

impl Offline {
    /// Opens the directory of a member of a group.
    ///
    /// # Errors
    /// As [`look`].
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let (state, _) = born(path)?;
        let expected = ExpectedIdentity { cluster: state.cluster, node: state.node };
        believing_nothing(path, || {
            let directory = directory::open(path, &expected)?;
            let (engine, recovered) = Engine::open(Arc::new(directory.log), directory.floor, 0)?;
            Ok(Self { engine, recovered, _lock: directory.lock })
        })
    }
}

/// Whether a directory is of a member of a group.
pub(crate) fn holds_member(path: &Path) -> Result<bool, StoreError> {
    Ok(identity(path)?.is_some_and(|state| state.group.is_some()))
}

/// A daemon must not go on with a directory that is half of one group and half of another.
pub(super) fn check_finished(path: &Path) -> Result<(), StoreError> {
    match identity(path)? {
        Some(state) if state.recovering.is_some() => {
            let path = path.display();
            Err(StoreError::Identity(format!(
                "a recovery of {path} was begun and is not finished: run `flotilla members recover \
                 --dir {path} --yes` once more"
            )))
        }
        Some(_) | None => Ok(()),
    }
}

/// What the floor of a member of a group says, and what the keys of its log begin with.
fn born(path: &Path) -> Result<(FloorState, Prefix), StoreError> {
    let refuse = |what: &str| StoreError::Identity(format!("{} {what}", path.display()));
    let state = identity(path)?.ok_or_else(|| refuse("is no directory of a member"))?;
    match &state.group {
        Some(group) => {
            let prefix = Prefix::new(group.as_born());
            Ok((state, prefix))
        }
        None => Err(refuse("is of a member that belongs to no group yet: it holds nothing")),
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<(), StoreError> {
    let refused = |error| {
        let what = format!("{} can't be copied to {}", from.display(), to.display());
        StoreError::machine(what, error)
    };
    fs::create_dir(to).map_err(refused)?;
    for entry in fs::read_dir(from).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(refused)?.is_dir() {
            copy_all(&from, &to)?;
        } else {
            fs::copy(&from, &to).map_err(refused)?;
        }
    }
    Ok(())
}
