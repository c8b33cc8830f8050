//! A real store in a real directory.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use raft::{Entry, GroupTime, Index, Membership, NodeId, Payload, SnapshotWrite, Write, WriteId};
use raftd::store::{ExpectedIdentity, Start, Store, StoreError, StoreOptions, Written};
use raftd::{Founder, Group};

use crate::child::{self, STARTING};
use crate::model::Model;

/// A deadline that only a hang reaches.
const HANG: Duration = Duration::from_secs(60);

/// Zeros of this length are left out of copies.
const HOLE_BYTES: usize = 64 << 10;

pub(crate) fn expected() -> ExpectedIdentity {
    ExpectedIdentity { cluster: "harbour".to_owned(), node: NodeId(1) }
}

/// An open store, what it began with, and what it was told since.
pub(crate) struct Member {
    pub(crate) store: Store,
    pub(crate) start: Start,
    pub(crate) model: Model,
    written: Receiver<Written>,
}

impl Member {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, 0)
    }

    pub(crate) fn open_with(path: &Path, free_bytes_min: u64) -> Result<Self, StoreError> {
        let (written_out, written) = channel();
        let options = StoreOptions {
            free_bytes_min,
            log_window_bytes: u64::MAX,
            on_read: Box::new(|_, _| {}),
            on_written: Box::new(move |written| {
                // The test may have ended.
                let _ = written_out.send(written);
            }),
            on_failed: Box::new(|error| match child::directory() {
                // What is damaged need not be read, and so found, before the store works.
                Some(_) => child::end(&error),
                None => panic!("the store has failed: {error}"),
            }),
        };
        let starting = STARTING.read().unwrap();
        let (store, start) = Store::open(path, options, &expected())?;
        drop(starting);
        let model = Model::from_recovered(&start.recovered, 0);
        Ok(Self { store, start, model, written })
    }

    /// Opens it and makes the group known.
    pub(crate) fn open_born(path: &Path) -> Self {
        let member = Self::open(path).unwrap();
        member.bear();
        member
    }

    pub(crate) fn bear(&self) {
        let founder = Founder {
            node: NodeId(1),
            incarnation: self.start.state.incarnation,
            peer_address: "127.0.0.1:7350".to_owned(),
            client_address: "127.0.0.1:7300".to_owned(),
        };
        let group = Group { id: [4; 32], founders: vec![founder], former: Vec::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.store.bear(group)).unwrap();
    }

    /// Submits a write and waits until it is durable.
    pub(crate) fn write(&mut self, write: Write) -> Written {
        self.write_all(vec![write])
    }

    /// Submits writes, which the store may merge, and waits until the last is durable.
    pub(crate) fn write_all(&mut self, writes: Vec<Write>) -> Written {
        for write in writes {
            self.model.apply(&write);
            self.store.submit(write);
        }
        let id = WriteId(self.model.writes);
        loop {
            let written = self.written.recv_timeout(HANG).expect("the store answers");
            if written.id == id {
                return written;
            }
        }
    }

    pub(crate) fn append(&mut self, commands: &[Bytes]) -> Written {
        let (last, term) = (self.model.last(), self.model.hard_state.term);
        let entries = (1..).zip(commands).map(|(at, command)| Entry {
            index: Index(last.index.0 + at),
            term,
            stamp: GroupTime(0),
            payload: Payload::Command(command.clone()),
        });
        let entries = entries.collect();
        let write = Write { id: self.next_id(), hard_state: None, entries, snapshot: None };
        self.write(write)
    }

    /// Takes a snapshot of everything and keeps no log.
    pub(crate) fn snapshot(&mut self, chunks: Vec<Bytes>) -> Written {
        let position = self.model.last();
        let snapshots = &self.start.snapshots;
        let root = snapshots
            .store_chunks(position, GroupTime(1), membership(), chunks.into_iter())
            .unwrap();
        let snapshot = SnapshotWrite { root, first: position.index.next(), reset: false };
        let write = Write {
            id: self.next_id(),
            hard_state: None,
            entries: vec![],
            snapshot: Some(snapshot),
        };
        self.write(write)
    }

    pub(crate) fn next_id(&self) -> WriteId {
        WriteId(self.model.writes + 1)
    }
}

/// Who belongs to the group of a snapshot.
pub(crate) fn membership() -> Arc<Membership> {
    let contact = |id: u64| (NodeId(id), Bytes::from(vec![id as u8; 60]));
    Arc::new(Membership::founders([1, 2, 3].map(contact)))
}

/// All files below a directory with what they hold.
pub(crate) fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Copies a directory as it is, as a crash would leave it.
pub(crate) fn copy(from: &Path, to: &Path) {
    Copies::of(from).make(to);
}

/// What a directory holds, to be copied many times: files, and directories without contents.
pub(crate) struct Copies(Vec<(PathBuf, Option<Sparse>)>);

impl Copies {
    pub(crate) fn of(directory: &Path) -> Self {
        let mut copies = Self(Vec::new());
        copies.gather(directory, Path::new(""));
        copies
    }

    fn gather(&mut self, directory: &Path, below: &Path) {
        self.0.push((below.to_owned(), None));
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let below = below.join(path.file_name().unwrap());
            if path.is_dir() {
                self.gather(&path, &below);
            } else {
                let contents = std::fs::read(&path).unwrap();
                self.0.push((below, Some(Sparse::from(contents.as_slice()))));
            }
        }
    }

    pub(crate) fn make(&self, path: &Path) {
        for (below, file) in &self.0 {
            match file {
                Some(contents) => contents.write(&path.join(below)),
                None => std::fs::create_dir_all(path.join(below)).unwrap(),
            }
        }
    }
}

/// What a file holds: long runs of zeros, of which databases have many, take no room.
struct Sparse {
    len: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl From<&[u8]> for Sparse {
    fn from(contents: &[u8]) -> Self {
        let pieces = contents.chunks(HOLE_BYTES).enumerate();
        let pieces = pieces.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
        let pieces = pieces.map(|(at, bytes)| ((at * HOLE_BYTES) as u64, bytes.to_vec()));
        Self { len: contents.len() as u64, pieces: pieces.collect() }
    }
}

impl Sparse {
    fn write(&self, path: &Path) {
        let file = std::fs::File::create_new(path).unwrap();
        file.set_len(self.len).unwrap();
        for (at, bytes) in &self.pieces {
            file.write_all_at(bytes, *at).unwrap();
        }
    }
}

/// Makes a file, as [`Sparse`] has it.
pub(crate) fn write_sparsely(path: &Path, contents: &[u8]) {
    Sparse::from(contents).write(path);
}
