//! Restoring a backup: the directory of a member that is the only voter of a new group.
//!
//! The group has an identity of its own, so nobody of the group that the backup is of is ever
//! listened to, and its state begins where what was given out after the backup can't be given out
//! again ([`StateMachine::recover`]). It grows as any group does, by members that join it: so one
//! directory is made by a restore, never several that would have to agree.
//!
//! The directory is made under another name and gets its own when all is durable. A crash before
//! that leaves nothing that a daemon would start with.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use daemon::{Code, Failure};
use proto::admin::{BackupEnd, BackupHead, backup_part::Kind};
use raft::{
    Frozen, GroupTime, HardState, Index, NodeId, Position, SnapshotRoot, SnapshotWrite,
    StateMachine, Term, Write, WriteId,
};
use tokio::sync::{mpsc, watch};

use crate::backup::{self, BadBackup, Parts};
use crate::identity::{Founder, Group, GroupId, group_id};
use crate::membership;
use crate::store::{ExpectedIdentity, Store, StoreOptions, Written};

/// The log of the new group goes on behind an entry that only the snapshot has.
const BEGINNING: Position = Position { term: Term(1), index: Index(1) };

/// What is restored, and as what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file of the backup.
    pub file: PathBuf,
    /// The directory that is to be made; one that exists must be empty.
    pub data: PathBuf,
    /// The cluster's name; none: that of the backup.
    pub cluster: Option<String>,
    /// The member's id.
    pub node: NodeId,
    /// How often this backup has been restored, this time included: each time the state is moved on
    /// further, so that no two restores give out the same.
    pub generation: u64,
    /// Where clients will reach it, `host:port`.
    pub client_address: String,
    /// Where its peers will reach it, `host:port`.
    pub peer_address: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup was of.
    pub head: BackupHead,
    /// How large it was.
    pub end: BackupEnd,
    /// The cluster's name.
    pub cluster: String,
    /// The new group.
    pub group: GroupId,
}

/// Checks a backup without using it.
///
/// # Errors
/// Not found: there is no such file. Failed: it is no whole backup.
pub fn look(file: &Path) -> Result<(BackupHead, BackupEnd), Failure> {
    backup::check(open(file)?).map_err(|bad| refused(file, bad))
}

/// Makes the directory. `machine` is an empty one of the daemon that the backup is of; it comes back
/// with the state.
///
/// # Errors
/// As [`look`]; exists: the directory is not empty. Machine: the machine refuses.
pub async fn restore<S: StateMachine>(plan: &Plan, machine: S) -> Result<(Restored, S), Failure> {
    check_free(&plan.data)?;
    let (head, end) = look(&plan.file)?;
    let machine = read(&plan.file, machine, plan.generation)?;
    let unfinished = beside(&plan.data);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(|error| not("removed", &unfinished, error))?;
    }
    let cluster = plan.cluster.clone().unwrap_or_else(|| head.cluster.clone());
    let group = make(&unfinished, plan, &cluster, &head, &machine).await?;
    if plan.data.exists() {
        fs::remove_dir(&plan.data).map_err(|error| not("replaced", &plan.data, error))?;
    }
    fs::rename(&unfinished, &plan.data).map_err(|error| not("made", &plan.data, error))?;
    let parent = unfinished.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|error| not("synced", parent, error))?;
    Ok((Restored { head, end, cluster, group }, machine))
}

/// Makes the directory under another name: all of it is durable when this ends.
async fn make<S: StateMachine>(
    path: &Path,
    plan: &Plan,
    cluster: &str,
    head: &BackupHead,
    machine: &S,
) -> Result<GroupId, Failure> {
    let (written_out, mut written) = watch::channel(Written::default());
    let (failed_out, mut failed) = mpsc::unbounded_channel();
    let options = StoreOptions {
        free_bytes_min: 0,
        log_window_bytes: 0,
        // Nobody asks for entries, and nobody listens only when this has ended.
        on_read: Box::new(|_, _| {}),
        on_written: Box::new(move |written| {
            written_out.send_replace(written);
        }),
        on_failed: Box::new(move |error| drop(failed_out.send(Failure::from(error)))),
    };
    let expected = ExpectedIdentity { cluster: cluster.to_owned(), node: plan.node };
    let (store, start) = Store::open(path, options, &expected)?;
    let founder = Founder {
        node: plan.node,
        incarnation: start.state.incarnation,
        peer_address: plan.peer_address.clone(),
        client_address: plan.client_address.clone(),
    };
    let founders = vec![founder];
    let id = group_id(cluster, &founders);
    let frozen = Frozen {
        position: BEGINNING,
        stamp: GroupTime(head.group_time_ms),
        membership: membership::of_founders(&founders),
        capture: machine.capture(),
    };
    store.bear(Group { id, founders, former: Vec::new() }).await?;
    let root = start.snapshots.store(frozen)?;
    let last = WriteId(1);
    store.submit(first_write(last, root));
    let durable = written.wait_for(|written| written.id >= last);
    tokio::select! {
        biased;
        Some(failure) = failed.recv() => Err(failure),
        durable = durable => {
            durable.map_err(|_| Failure::machine("the store's thread has ended"))?;
            Ok(id)
        }
    }
}

/// The log is empty and goes on behind the snapshot.
fn first_write(id: WriteId, root: SnapshotRoot) -> Write {
    let first = root.position.index.next();
    Write {
        id,
        hard_state: Some(HardState { term: BEGINNING.term, vote: None }),
        entries: Vec::new(),
        snapshot: Some(SnapshotWrite { root, first, reset: true }),
    }
}

/// The state of the backup, moved on so that it gives out nothing twice.
fn read<S: StateMachine>(file: &Path, mut machine: S, generation: u64) -> Result<S, Failure> {
    let mut parts = Parts::new(open(file)?).map_err(|bad| refused(file, bad))?;
    let mut wrong = None;
    let restored = machine.restore(&mut std::iter::from_fn(|| {
        next_chunk(&mut parts).unwrap_or_else(|bad| {
            wrong = Some(bad);
            None
        })
    }));
    if let Some(bad) = wrong {
        return Err(refused(file, bad));
    }
    restored.map_err(|error| {
        let message = format!(
            "the state in {} does not decode: is it of a newer version than this command?",
            file.display()
        );
        Failure::new(Code::Failed, message).because(error)
    })?;
    for _ in 0..generation {
        machine.recover();
    }
    Ok(machine)
}

fn next_chunk(parts: &mut Parts<File>) -> Result<Option<Bytes>, BadBackup> {
    while let Some(part) = parts.next_part()? {
        if let Some(Kind::Chunk(chunk)) = part.kind {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

/// Nothing that is there is ever overwritten.
fn check_free(data: &Path) -> Result<(), Failure> {
    let exists = |what: &str| {
        let message = format!("{} {what}: name another directory", data.display());
        Failure::new(Code::Exists, message)
    };
    match fs::read_dir(data) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(exists("is not empty")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(exists("is a file")),
        Err(error) => Err(not("read", data, error)),
    }
}

/// Where the directory is made: beside it, so that it only has to be renamed.
fn beside(data: &Path) -> PathBuf {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    data.with_file_name(name)
}

fn open(file: &Path) -> Result<File, Failure> {
    File::open(file).map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Failed,
        };
        Failure::new(code, format!("{} can't be opened", file.display())).because(error)
    })
}

fn refused(file: &Path, bad: BadBackup) -> Failure {
    Failure::new(Code::Failed, format!("{} is no backup that can be used", file.display()))
        .because(bad)
}

fn not(what: &str, path: &Path, error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("{} can't be {what}", path.display())).because(error)
}
