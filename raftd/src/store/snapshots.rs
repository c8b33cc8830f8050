//! Snapshots, content-addressed: chunks under their digests, manifests under theirs.
//!
//! A chunk that is there already is never written again, whichever snapshot it came with, so
//! taking a snapshot of a state that changed little writes little, and a broken transfer goes on.
//! A snapshot becomes the member's only when its root enters the log; until then, while somebody
//! reads it or it is being fetched (`reading.rs`, `receiving.rs`), and while it is the installed
//! one, its chunks are kept. All others are removed in the background (`garbage.rs`). Chunks are
//! written a few at a time, in step with how busy the log is.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft::{
    CHUNK_BYTES_MAX, Capture, Digest, Frozen, GroupTime, Membership, Position, SnapshotRoot,
};

use crate::failpoint::{self, Failpoint};
use crate::store::StoreError;
use crate::store::garbage::{self, Pins};
use crate::store::manifest::{Manifest, digest};
use crate::store::pace::{Fatal, Pace};
use crate::store::receiving::{TRANSFER_KEY, Transfer};
use crate::store::records::{Change, Records};

/// How much is written between two syncs.
pub(super) const SYNC_BYTES: usize = 256 << 10;

/// A manifest lies in pieces of this size.
pub(super) const PIECE_BYTES: usize = 32 << 10;

/// The snapshots of a member. Clones speak of the same ones; calls block.
#[derive(Clone)]
pub struct Snapshots(pub(super) Arc<Shared>);

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    pub(super) records: Arc<dyn Records>,
    pins: Mutex<Pins>,
    /// Told when there may be garbage, and when some has gone.
    pub(super) changed: Condvar,
    pub(super) pace: Arc<Pace>,
    fatal: Arc<Fatal>,
}

impl Snapshots {
    /// The snapshots in a database, of which the log names `installed`.
    ///
    /// # Errors
    /// The machine refuses.
    pub(super) fn open(
        records: Arc<dyn Records>,
        installed: Option<&SnapshotRoot>,
        pace: Arc<Pace>,
        fatal: Arc<Fatal>,
    ) -> Result<Self, StoreError> {
        let record = records.get(TRANSFER_KEY)?;
        let pins = Mutex::new(Pins::new(installed.map(|root| root.manifest)));
        let shared = Shared { records, pins, changed: Condvar::new(), pace, fatal };
        let transfer = record.as_deref().and_then(Transfer::decode).filter(|transfer| {
            // The record of a transfer that is over stays until the next one begins.
            installed.is_none_or(|root| root.position.index < transfer.root.position.index)
                && matches!(shared.manifest(transfer.root.manifest), Ok(Some(_)))
        });
        shared.pins().transfer = transfer;
        Ok(Self(Arc::new(shared)))
    }

    /// Encodes a frozen state and makes it durable. The log does not name it yet. What earlier ones
    /// left behind is removed first, so that it can't pile up where snapshots follow fast.
    ///
    /// # Errors
    /// The machine refuses.
    ///
    /// # Panics
    /// If a chunk is larger than [`CHUNK_BYTES_MAX`].
    pub fn store<C: Capture>(&self, frozen: Frozen<C>) -> Result<SnapshotRoot, StoreError> {
        let Frozen { position, stamp, membership, capture } = frozen;
        drop(self.0.pins_when(Pins::are_clean));
        failpoint::reach(Failpoint::SnapshotCreateBefore);
        let chunks =
            capture.chunks().inspect(|_| failpoint::reach(Failpoint::SnapshotCreateBetween));
        let root = self.store_chunks(position, stamp, membership, chunks)?;
        failpoint::reach(Failpoint::SnapshotCreateAfter);
        Ok(root)
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
        writer.put_manifest(name, &encoded)?;
        writer.finish(name)?;
        Ok(SnapshotRoot {
            position,
            stamp,
            manifest: name,
            chunks: manifest.chunks.len() as u64,
            bytes: manifest.bytes(),
            membership,
        })
    }

    /// The encoded manifest of a snapshot; none if it is not here.
    ///
    /// # Errors
    /// Damaged: it is not what its digest says. The machine refuses.
    pub fn manifest(&self, name: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.guard(self.0.manifest(name))
    }

    /// The log names this snapshot from now on; the one before is not needed any more.
    pub(super) fn installed(&self, root: &SnapshotRoot) {
        self.0.pins().install(root);
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

    /// The pins, once they are so.
    pub(super) fn pins_when(&self, are_so: impl Fn(&Pins) -> bool) -> MutexGuard<'_, Pins> {
        let waited = self.changed.wait_while(self.pins(), |pins| !are_so(pins));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// A refusing machine ends the process, whatever the caller does with the error.
    pub(super) fn guard<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| {
            if let StoreError::Machine { what, source } = error {
                let source = std::io::Error::new(source.kind(), source.to_string());
                self.fatal.tell(StoreError::machine(what.clone(), source));
            }
        })
    }

    /// A chunk, if it is there and what its digest says.
    pub(super) fn chunk(&self, name: Digest) -> Result<Option<Vec<u8>>, StoreError> {
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

/// Writes a little at a time.
pub(super) struct Paced {
    pub(super) shared: Arc<Shared>,
    unsynced: usize,
}

impl Paced {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, unsynced: 0 }
    }

    pub(super) fn insert(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.unsynced += value.len();
        self.shared.guard(self.shared.records.apply(vec![Change::Put(key, value)]))?;
        if self.unsynced >= SYNC_BYTES {
            self.sync()?;
            self.shared.pace.wait();
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        self.unsynced = 0;
        self.shared.guard(self.shared.records.sync())
    }
}

/// Writes chunks and keeps them until it is dropped or the snapshot is finished.
pub(super) struct Writer {
    pub(super) paced: Paced,
    number: u64,
}

impl Writer {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        let number = shared.pins().begin_writing();
        Self { paced: Paced::new(shared.clone()), number }
    }

    fn put(&mut self, chunk: &[u8]) -> Result<Digest, StoreError> {
        let name = digest(chunk);
        if self.pin(name, |shared| shared.chunk(name))?.is_none() {
            self.paced.insert(chunk_key(name), chunk.to_vec())?;
        }
        Ok(name)
    }

    pub(super) fn put_manifest(&mut self, name: Digest, encoded: &[u8]) -> Result<(), StoreError> {
        self.pin(name, |_| Ok(()))?;
        for (number, piece) in (0..).zip(encoded.chunks(PIECE_BYTES)) {
            self.paced.insert(piece_key(name, number), piece.to_vec())?;
        }
        Ok(())
    }

    fn finish(mut self, name: Digest) -> Result<(), StoreError> {
        self.paced.sync()?;
        let mut pins = self.paced.shared.pins();
        pins.finish(name);
        pins.release(self.number);
        drop(pins);
        Ok(())
    }

    /// Keeps a name from being removed, and then looks at what is there.
    fn pin<T>(
        &self,
        name: Digest,
        look: impl FnOnce(&Shared) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let shared = &self.paced.shared;
        shared.pins_when(|pins| pins.is_settled(&name)).keep(self.number, name);
        shared.guard(look(shared))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.paced.shared.pins().end_writing(self.number);
        self.paced.shared.changed.notify_all();
    }
}

/// What a key names.
pub(super) enum Named {
    Chunk(Digest),
    Piece(Digest),
    /// The record of the transfer that runs.
    Transfer,
}

impl Named {
    /// Of what it is the content, or a part.
    pub(super) fn name(&self) -> Option<Digest> {
        match self {
            Self::Chunk(name) | Self::Piece(name) => Some(*name),
            Self::Transfer => None,
        }
    }

    pub(super) fn decode(key: &[u8]) -> Option<Self> {
        if key == TRANSFER_KEY {
            return Some(Self::Transfer);
        }
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

pub(super) fn missing(name: Digest, what: &str) -> StoreError {
    StoreError::Damaged(format!("{what} of snapshot {} is missing", short(name)))
}

/// Enough of a digest to find it again.
pub(super) fn short(name: Digest) -> String {
    name.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
