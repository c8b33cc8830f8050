//! Snapshots, content-addressed: chunks under their digests, manifests under theirs.
//!
//! A chunk that is there already is never written again, whichever snapshot it came with, so
//! taking a snapshot of a state that changed little writes little, and a broken transfer resumes.
//! A snapshot becomes the member's only when its root enters the log; until then, while somebody
//! reads it, and while it is the installed one, its chunks are kept. All others are removed in the
//! background. Chunks are written a few at a time, in step with how busy the log is.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft::{
    CHUNK_BYTES_MAX, Capture, Digest, Frozen, GroupTime, Membership, Position, SnapshotRoot,
};

use crate::store::StoreError;
use crate::store::garbage::{self, Pins};
use crate::store::manifest::{Manifest, digest};
use crate::store::pace::{Fatal, Pace};
use crate::store::records::{Change, Records};

/// How much is written between two syncs.
const SYNC_BYTES: usize = 256 << 10;

/// A manifest lies in pieces of this size.
pub(super) const PIECE_BYTES: usize = 32 << 10;

/// Why a snapshot was not received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// What was sent is not the snapshot that was asked for; ask again.
    #[error("{0}")]
    Malformed(String),
    /// The store has failed; the process ends.
    #[error("the snapshot can't be stored")]
    Store(#[from] StoreError),
}

/// The snapshots of a member. Clones speak of the same ones; calls block.
#[derive(Clone)]
pub struct Snapshots(Arc<Shared>);

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) records: Arc<dyn Records>,
    pins: Mutex<Pins>,
    /// Told when there may be garbage.
    pub(super) changed: Condvar,
    pub(super) pace: Arc<Pace>,
    fatal: Arc<Fatal>,
}

impl Snapshots {
    pub(super) fn new(
        records: Arc<dyn Records>,
        installed: Option<Digest>,
        pace: Arc<Pace>,
        fatal: Arc<Fatal>,
    ) -> Self {
        let pins = Pins::new(installed);
        Self(Arc::new(Shared {
            records,
            pins: Mutex::new(pins),
            changed: Condvar::new(),
            pace,
            fatal,
        }))
    }

    /// Encodes a frozen state and makes it durable. The log does not name it yet.
    ///
    /// # Errors
    /// The machine refuses.
    ///
    /// # Panics
    /// If a chunk is larger than [`CHUNK_BYTES_MAX`].
    pub fn store<C: Capture>(&self, frozen: Frozen<C>) -> Result<SnapshotRoot, StoreError> {
        let Frozen { position, stamp, membership, capture } = frozen;
        self.store_chunks(position, stamp, membership, capture.chunks())
    }

    /// Makes a snapshot of these chunks durable. The log does not name it yet.
    ///
    /// # Errors
    /// The machine refuses.
    ///
    /// # Panics
    /// If a chunk is larger than [`CHUNK_BYTES_MAX`].
    pub fn store_chunks(
        &self,
        position: Position,
        stamp: GroupTime,
        membership: Arc<Membership>,
        chunks: impl Iterator<Item = Bytes>,
    ) -> Result<SnapshotRoot, StoreError> {
        let mut writer = Writer::new(&self.0);
        let mut manifest = Manifest::default();
        for chunk in chunks {
            assert!(chunk.len() <= CHUNK_BYTES_MAX, "a chunk of {} bytes", chunk.len());
            let digest = writer.put(&chunk)?;
            manifest.chunks.push((digest, chunk.len() as u32));
        }
        let encoded = manifest.encode();
        let name = digest(&encoded);
        writer.finish(name, &encoded)?;
        Ok(SnapshotRoot {
            position,
            stamp,
            manifest: name,
            chunks: manifest.chunks.len() as u64,
            bytes: manifest.bytes(),
            membership,
        })
    }

    /// Makes a snapshot durable that is sent by another member, and gives its chunks.
    ///
    /// # Errors
    /// Malformed: what is sent is not what `root` names. The machine refuses.
    pub fn receive(
        &self,
        root: &SnapshotRoot,
        encoded: &[u8],
        mut chunks: impl Iterator<Item = Bytes>,
    ) -> Result<Vec<Bytes>, ReceiveError> {
        let malformed = |what: &str| Err(ReceiveError::Malformed(what.to_owned()));
        if digest(encoded) != root.manifest {
            return malformed("the manifest does not have the digest that was offered");
        }
        let Some(manifest) = Manifest::decode(encoded) else {
            return malformed("the manifest does not decode");
        };
        if manifest.chunks.len() as u64 != root.chunks || manifest.bytes() != root.bytes {
            return malformed("the manifest lists other chunks than were offered");
        }
        let mut writer = Writer::new(&self.0);
        let mut received = Vec::new();
        for (at, (expected, len)) in manifest.chunks.iter().enumerate() {
            let Some(chunk) = chunks.next() else {
                let count = manifest.chunks.len();
                return malformed(&format!("the transfer broke off at chunk {at} of {count}"));
            };
            if chunk.len() != *len as usize || digest(&chunk) != *expected {
                return malformed(&format!("chunk {at} does not have the digest of the manifest"));
            }
            writer.put(&chunk)?;
            // It may be a slice of a much larger buffer of a connection.
            received.push(Bytes::copy_from_slice(&chunk));
        }
        writer.finish(root.manifest, encoded)?;
        Ok(received)
    }

    /// The encoded manifest of a snapshot; none if it is not here.
    ///
    /// # Errors
    /// Damaged: it is not what its digest says. The machine refuses.
    pub fn manifest(&self, name: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.guard(self.0.manifest(name))
    }

    /// The chunks of a manifest that are not here, each once.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn missing(&self, manifest: &Manifest) -> Result<Vec<Digest>, StoreError> {
        let digests: BTreeSet<Digest> = manifest.chunks.iter().map(|(digest, _)| *digest).collect();
        let mut missing = Vec::new();
        for digest in digests {
            if self.0.guard(self.0.chunk(digest))?.is_none() {
                missing.push(digest);
            }
        }
        Ok(missing)
    }

    /// The chunks of a snapshot in order, each checked against its digest. They stay as long as
    /// the iterator lives.
    pub fn read(&self, name: Digest) -> Reader {
        Reader::new(self.0.clone(), name)
    }

    /// All chunks of a snapshot.
    ///
    /// # Errors
    /// Damaged: one is missing, or is not what its digest says. The machine refuses.
    pub fn load(&self, name: Digest) -> Result<Vec<Bytes>, StoreError> {
        self.read(name).collect()
    }

    /// The log names this snapshot from now on; the one before is not needed any more.
    pub(super) fn installed(&self, name: Digest) {
        self.0.pins().install(name);
        self.0.changed.notify_all();
    }

    /// Removes what nobody needs, whenever there may be something, until `stop`.
    pub(super) fn run(&self) -> Result<(), StoreError> {
        garbage::run(&self.0)
    }

    pub(super) fn stop(&self) {
        self.0.pins().stop = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    pub(super) fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A refusing machine ends the process, whatever the caller does with the error.
    fn guard<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| {
            if let StoreError::Machine { what, source } = error {
                let source = std::io::Error::new(source.kind(), source.to_string());
                self.fatal.tell(StoreError::machine(what.clone(), source));
            }
        })
    }

    /// A chunk, if it is there and what its digest says.
    fn chunk(&self, name: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.records.get(&chunk_key(name))?.filter(|chunk| digest(chunk) == name))
    }

    pub(super) fn manifest(&self, name: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let mut encoded = Vec::new();
        for piece in 0.. {
            match self.records.get(&piece_key(name, piece))? {
                Some(piece) => encoded.extend_from_slice(&piece),
                None => break,
            }
        }
        if encoded.is_empty() {
            return Ok(None);
        }
        if digest(&encoded) != name {
            return Err(StoreError::Damaged(format!(
                "the manifest of snapshot {} is damaged",
                short(name)
            )));
        }
        Ok(Some(encoded))
    }
}

/// Writes chunks and keeps them until it is dropped or the snapshot is finished.
struct Writer<'a> {
    shared: &'a Shared,
    number: u64,
    unsynced: usize,
}

impl<'a> Writer<'a> {
    fn new(shared: &'a Shared) -> Self {
        let number = shared.pins().begin_writing();
        Self { shared, number, unsynced: 0 }
    }

    fn put(&mut self, chunk: &[u8]) -> Result<Digest, StoreError> {
        let name = digest(chunk);
        if self.pin(name, || self.shared.chunk(name))?.is_none() {
            self.insert(chunk_key(name), chunk.to_vec())?;
        }
        Ok(name)
    }

    fn finish(mut self, name: Digest, encoded: &[u8]) -> Result<(), StoreError> {
        self.pin(name, || Ok(()))?;
        for (number, piece) in (0..).zip(encoded.chunks(PIECE_BYTES)) {
            self.insert(piece_key(name, number), piece.to_vec())?;
        }
        self.shared.guard(self.shared.records.sync())?;
        self.shared.pins().finish(self.number, name);
        Ok(())
    }

    /// Keeps a name from being removed, and then looks at what is there.
    fn pin<T>(
        &self,
        name: Digest,
        look: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut pins = self.shared.pins();
        pins.keep(self.number, name);
        let found = look();
        drop(pins);
        self.shared.guard(found)
    }

    fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.unsynced += value.len();
        self.shared.guard(self.shared.records.apply(vec![Change::Put(key, value)]))?;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.shared.guard(self.shared.records.sync())?;
            self.shared.pace.wait();
        }
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.shared.pins().end_writing(self.number);
        self.shared.changed.notify_all();
    }
}

/// The chunks of a snapshot, in order.
pub struct Reader {
    shared: Arc<Shared>,
    name: Digest,
    chunks: std::vec::IntoIter<(Digest, u32)>,
    failed: Option<StoreError>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Reader {
    fn new(shared: Arc<Shared>, name: Digest) -> Self {
        shared.pins().begin_reading(name);
        let (manifest, failed) = match shared.guard(shared.manifest(name)) {
            Ok(encoded) => match encoded.as_deref().and_then(Manifest::decode) {
                Some(manifest) => (manifest, None),
                None => (Manifest::default(), Some(missing(name, "its manifest"))),
            },
            Err(error) => (Manifest::default(), Some(error)),
        };
        Self { shared, name, chunks: manifest.chunks.into_iter(), failed }
    }

    fn chunk(&self, chunk: Digest) -> Result<Bytes, StoreError> {
        match self.shared.guard(self.shared.records.get(&chunk_key(chunk)))? {
            Some(found) if digest(&found) == chunk => Ok(found.into()),
            Some(_) => Err(StoreError::Damaged(format!(
                "chunk {} of snapshot {} is damaged",
                short(chunk),
                short(self.name)
            ))),
            None => Err(missing(self.name, &format!("chunk {}", short(chunk)))),
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let (chunk, _) = self.chunks.next()?;
        let chunk = self.chunk(chunk);
        if chunk.is_err() {
            self.chunks = Vec::new().into_iter();
        }
        Some(chunk)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.pins().end_reading(self.name);
        self.shared.changed.notify_all();
    }
}

/// What a key names.
pub(super) enum Named {
    Chunk(Digest),
    Piece(Digest),
}

impl Named {
    pub(super) fn decode(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        let name = Digest(*rest.first_chunk()?);
        match kind {
            b'c' => Some(Self::Chunk(name)),
            b'm' => Some(Self::Piece(name)),
            _ => None,
        }
    }
}

pub(super) fn chunk_key(name: Digest) -> Vec<u8> {
    [b"c", name.0.as_slice()].concat()
}

pub(super) fn piece_key(name: Digest, piece: u32) -> Vec<u8> {
    [b"m", name.0.as_slice(), &piece.to_be_bytes()].concat()
}

fn missing(name: Digest, what: &str) -> StoreError {
    StoreError::Damaged(format!("{what} of snapshot {} is missing", short(name)))
}

/// Enough of a digest to find it again.
fn short(name: Digest) -> String {
    name.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
