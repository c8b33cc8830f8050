//! The data directory: whose it is, who uses it, and how it comes to be.
//!
//! Identity is read before anything is opened or made, so a wrong directory stays as it is. Every
//! step of making one is durable before the next begins: the floor first, under another name until
//! it is whole; then the databases, which the floor calls made only when they are durable. So a
//! crash leaves a directory that is either made further or made anew, and a floor without a
//! database that it calls made is a loss.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use raft::NodeId;
use rustix::fs::{FlockOperation, flock};

use crate::store::StoreError;
use crate::store::file_slots::FileSlots;
use crate::store::floor::{self, Floor, FloorState};
use crate::store::sled_records::SledRecords;

const FLOOR: &str = "floor";
const FLOOR_UNFINISHED: &str = "floor.unfinished";
pub(super) const LOG: &str = "log";
const SNAPSHOTS: &str = "snapshots";

/// Whose directory it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedIdentity {
    /// The name of the cluster.
    pub cluster: String,
    /// The member.
    pub node: NodeId,
}

/// An open directory, which no other process uses.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) floor: Floor<FileSlots>,
    pub(super) log: SledRecords,
    pub(super) snapshots: SledRecords,
    /// Holds the lock as long as it is open.
    pub(super) lock: File,
}

/// Whose directory it is; none if it is not there or nobody's yet. Changes nothing.
///
/// # Errors
/// Identity: it was written by a newer version. Damaged: it does not say any more.
pub fn identity(path: &Path) -> Result<Option<FloorState>, StoreError> {
    let floor = path.join(FLOOR);
    if exists(&floor)? {
        let slots = FileSlots::open_read_only(&floor)?;
        return floor::peek(&slots).map(Some);
    }
    for database in [LOG, SNAPSHOTS] {
        if exists(&path.join(database))? {
            return Err(StoreError::Damaged(format!(
                "the member's identity, term and vote are lost: {} is missing",
                floor.display()
            )));
        }
    }
    Ok(None)
}

/// Opens a directory, which is made if it is not there.
pub(super) fn open(path: &Path, expected: &ExpectedIdentity) -> Result<Directory, StoreError> {
    check(path, expected)?;
    make(path)?;
    let lock = lock(path)?;
    // It may have been made in between.
    check(path, expected)?;
    let mut floor = open_floor(path, expected)?;
    let (log, snapshots) = (path.join(LOG), path.join(SNAPSHOTS));
    if floor.state().made {
        for database in [&log, &snapshots] {
            if !exists(&database.join("db"))? {
                return Err(StoreError::Damaged(format!(
                    "{} is missing, which holds everything up to write {}",
                    database.display(),
                    floor.state().write_sequence
                )));
            }
        }
        let (log, snapshots) = (SledRecords::open(&log)?, SledRecords::open(&snapshots)?);
        return Ok(Directory { floor, log, snapshots, lock });
    }
    for database in [&log, &snapshots] {
        if exists(database)? {
            fs::remove_dir_all(database).map_err(|error| refused("removed", database, error))?;
        }
    }
    let (log, snapshots) = (SledRecords::open(&log)?, SledRecords::open(&snapshots)?);
    floor.made()?;
    Ok(Directory { floor, log, snapshots, lock })
}

fn check(path: &Path, expected: &ExpectedIdentity) -> Result<(), StoreError> {
    let Some(found) = identity(path)? else { return Ok(()) };
    if found.cluster != expected.cluster {
        return Err(StoreError::Identity(format!(
            "{} belongs to the cluster \"{}\", not to \"{}\"",
            path.display(),
            found.cluster,
            expected.cluster
        )));
    }
    if found.node != expected.node {
        return Err(StoreError::Identity(format!(
            "{} belongs to member {}, not to member {}",
            path.display(),
            found.node,
            expected.node
        )));
    }
    Ok(())
}

/// Makes the directory and those above it durable.
fn make(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(refused("created", path, error))
        }
        Ok(()) | Err(_) => sync_directory(&parent_of(path)),
    }
}

/// No other process uses the directory while the file is open.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let directory = File::open(path).map_err(|error| refused("opened", path, error))?;
    flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
        let what = format!("{} is in use by another process: stop that first", path.display());
        StoreError::machine(what, error)
    })?;
    Ok(directory)
}

fn open_floor(path: &Path, expected: &ExpectedIdentity) -> Result<Floor<FileSlots>, StoreError> {
    let file = path.join(FLOOR);
    if !exists(&file)? {
        let unfinished = path.join(FLOOR_UNFINISHED);
        let slots = FileSlots::create(&unfinished)?;
        Floor::create(slots, &expected.cluster, expected.node, rand::random())?;
        fs::rename(&unfinished, &file).map_err(|error| refused("renamed", &unfinished, error))?;
        sync_directory(path)?;
        sync_directory(&parent_of(path))?;
    }
    Floor::open(FileSlots::open(&file)?)
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| refused("synced", path, error))
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) | None => PathBuf::from("."),
    }
}

fn exists(path: &Path) -> Result<bool, StoreError> {
    path.try_exists().map_err(|error| refused("looked for", path, error))
}

fn refused(what: &str, path: &Path, error: io::Error) -> StoreError {
    StoreError::machine(format!("{} can't be {what}", path.display()), error)
}
