//! Snapshots, content-addressed: chunks under their digests, manifests under theirs.
//!
//! A chunk that is there already is never written again, whichever snapshot it came with, so
//! taking a snapshot of a state that changed little writes little, and a broken transfer resumes.
//! A snapshot becomes the member's only when its root enters the log; until then, while somebody
//! reads it, and while it is the installed one, its chunks are kept. All others are removed in the
//! background. Chunks are written a few at a time, in step with how busy the log is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft::{CHUNK_BYTES_MAX, Capture, Digest, GroupTime, Position, SnapshotRoot};

use crate::store::StoreError;
use crate::store::manifest::{Manifest, digest};
use crate::store::pace::{Fatal, Pace};
use crate::store::records::{Change, Records};

/// How much is written between two syncs.
const SYNC_BYTES: usize = 256 << 10;

/// How many chunks are removed between two syncs.
const REMOVALS_MAX: usize = 64;

/// How many finished snapshots are kept that have not been installed: one that was taken and one
/// that was fetched, and those before them in case they are about to be installed.
const FINISHED_MAX: usize = 4;

/// A manifest lies in pieces of this size.
const PIECE_BYTES: usize = 32 << 10;

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

struct Shared {
    records: Arc<dyn Records>,
    pins: Mutex<Pins>,
    /// Told when there may be garbage.
    changed: Condvar,
    pace: Arc<Pace>,
    fatal: Arc<Fatal>,
}

/// What has to stay.
#[derive(Default)]
struct Pins {
    installed: Option<Digest>,
    /// Snapshots that are whole, in the order in which they were finished.
    finished: VecDeque<Digest>,
    /// Snapshots that are being read, and how often.
    reading: BTreeMap<Digest, usize>,
    /// The chunks of snapshots that are being written.
    writing: BTreeMap<u64, BTreeSet<Digest>>,
    next_writer: u64,
    /// Changes with every change of the first three.
    epoch: u64,
    garbage: bool,
    stop: bool,
}

impl Snapshots {
    pub(super) fn new(
        records: Arc<dyn Records>,
        installed: Option<Digest>,
        pace: Arc<Pace>,
        fatal: Arc<Fatal>,
    ) -> Self {
        let pins = Pins { installed, garbage: true, ..Pins::default() };
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
    pub fn store<C: Capture>(
        &self,
        position: Position,
        stamp: GroupTime,
        capture: C,
    ) -> Result<SnapshotRoot, StoreError> {
        self.store_chunks(position, stamp, capture.chunks())
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
        })
    }

    /// Makes a snapshot durable that is sent by another member, and gives its chunks.
    ///
    /// # Errors
    /// Malformed: what is sent is not what `root` names. The machine refuses.
    pub fn receive(
        &self,
        root: SnapshotRoot,
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
        let mut pins = self.0.pins();
        if let Some(at) = pins.finished.iter().position(|finished| *finished == name) {
            pins.finished.drain(..=at);
        }
        pins.installed = Some(name);
        self.0.news(&mut pins);
    }

    /// Removes what nobody needs, whenever there may be something, until `stop`.
    pub(super) fn run(&self) -> Result<(), StoreError> {
        loop {
            let mut pins = self.0.pins();
            while !pins.garbage && !pins.stop {
                pins = self.0.changed.wait(pins).unwrap_or_else(PoisonError::into_inner);
            }
            if pins.stop {
                return Ok(());
            }
            pins.garbage = false;
            drop(pins);
            self.0.collect()?;
        }
    }

    pub(super) fn stop(&self) {
        self.0.pins().stop = true;
        self.0.changed.notify_all();
    }

    /// Removes everything that nobody needs.
    ///
    /// # Errors
    /// The machine refuses.
    #[cfg(test)]
    pub(super) fn collect(&self) -> Result<(), StoreError> {
        self.0.collect()
    }
}

impl Shared {
    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self, pins: &mut Pins) {
        pins.epoch += 1;
        pins.garbage = true;
        self.changed.notify_all();
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

    fn manifest(&self, name: Digest) -> Result<Option<Vec<u8>>, StoreError> {
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

    /// The names of all snapshots that have to stay, with the chunks that they list.
    fn named(&self, pins: &Pins) -> Result<(BTreeSet<Digest>, BTreeSet<Digest>), StoreError> {
        let names: BTreeSet<Digest> =
            pins.installed.iter().chain(&pins.finished).chain(pins.reading.keys()).copied().collect();
        let mut chunks = BTreeSet::new();
        for name in &names {
            let encoded = self.manifest(*name)?;
            let manifest = encoded.as_deref().and_then(Manifest::decode).unwrap_or_default();
            chunks.extend(manifest.chunks.iter().map(|(digest, _)| *digest));
        }
        Ok((names, chunks))
    }

    /// Removes what nobody needs, a few at a time.
    fn collect(&self) -> Result<(), StoreError> {
        let mut from = Vec::new();
        let mut known: Option<(u64, BTreeSet<Digest>, BTreeSet<Digest>)> = None;
        loop {
            let pins = self.pins();
            if pins.stop {
                return Ok(());
            }
            let (names, chunks) = match &known {
                Some((epoch, names, chunks)) if *epoch == pins.epoch => (names, chunks),
                Some(_) | None => {
                    let (names, chunks) = self.named(&pins)?;
                    let (_, names, chunks) = known.insert((pins.epoch, names, chunks));
                    (&*names, &*chunks)
                }
            };
            let mut garbage = Vec::new();
            let mut next = None;
            self.records.scan(&from, &mut |key, _| {
                let stays = match Named::decode(key) {
                    Some(Named::Chunk(name)) => {
                        chunks.contains(&name)
                            || pins.writing.values().any(|writing| writing.contains(&name))
                    }
                    Some(Named::Piece(name)) => {
                        names.contains(&name)
                            || pins.writing.values().any(|writing| writing.contains(&name))
                    }
                    None => false,
                };
                if stays {
                    return ControlFlow::Continue(());
                }
                if garbage.len() == REMOVALS_MAX {
                    next = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                garbage.push(key.to_vec());
                ControlFlow::Continue(())
            })?;
            let removed = garbage.len();
            for key in garbage {
                self.records.apply(vec![Change::Remove(key)])?;
            }
            drop(pins);
            self.records.sync()?;
            if removed > 0 {
                self.pace.wait();
                self.records.reclaim(removed)?;
                self.pace.wait();
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
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
        let mut pins = shared.pins();
        let number = pins.next_writer;
        pins.next_writer += 1;
        pins.writing.insert(number, BTreeSet::new());
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
        let mut pins = self.shared.pins();
        pins.finished.retain(|finished| *finished != name);
        pins.finished.push_back(name);
        if pins.finished.len() > FINISHED_MAX {
            pins.finished.pop_front();
        }
        // The writer's own pins fall when it is dropped, which counts as news.
        Ok(())
    }

    /// Keeps a name from being removed, and then looks at what is there.
    fn pin<T>(
        &self,
        name: Digest,
        look: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut pins = self.shared.pins();
        pins.writing.entry(self.number).or_default().insert(name);
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
        let mut pins = self.shared.pins();
        pins.writing.remove(&self.number);
        self.shared.news(&mut pins);
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
        {
            let mut pins = shared.pins();
            *pins.reading.entry(name).or_insert(0) += 1;
            pins.epoch += 1;
        }
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
        let mut pins = self.shared.pins();
        if let Some(readers) = pins.reading.get_mut(&self.name) {
            *readers -= 1;
            if *readers == 0 {
                pins.reading.remove(&self.name);
                // What was read may have been all that kept it.
                let needed = pins.installed == Some(self.name) || pins.finished.contains(&self.name);
                if !needed {
                    self.shared.news(&mut pins);
                }
            }
        }
    }
}

/// What a key names.
enum Named {
    Chunk(Digest),
    Piece(Digest),
}

impl Named {
    fn decode(key: &[u8]) -> Option<Self> {
        let (kind, rest) = key.split_first()?;
        let name = Digest(*rest.first_chunk()?);
        match kind {
            b'c' => Some(Self::Chunk(name)),
            b'm' => Some(Self::Piece(name)),
            _ => None,
        }
    }
}

fn chunk_key(name: Digest) -> Vec<u8> {
    [b"c", name.0.as_slice()].concat()
}

fn piece_key(name: Digest, piece: u32) -> Vec<u8> {
    [b"m", name.0.as_slice(), &piece.to_be_bytes()].concat()
}

fn missing(name: Digest, what: &str) -> StoreError {
    StoreError::Damaged(format!("{what} of snapshot {} is missing", short(name)))
}

/// Enough of a digest to find it again.
fn short(name: Digest) -> String {
    name.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
