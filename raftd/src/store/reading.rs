//! Reading snapshots: for this member's own machine, and for another member that fetches one.
//!
//! What is read stays as long as somebody reads it. What another member fetches stays a while
//! longer, because a transfer that breaks off goes on, and the newer snapshot that was installed
//! meanwhile may share little with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::Digest;

use crate::store::StoreError;
use crate::store::manifest::{Manifest, digest};
use crate::store::snapshots::{SYNC_BYTES, Shared, Snapshots, chunk_key, missing, short};

/// How long a snapshot stays after the last member that fetched it has broken off, or has ended:
/// time enough for that member to start again.
pub(super) const SERVED_GRACE: Duration = Duration::from_secs(120);

/// Keeps a snapshot.
pub(super) struct Pin {
    shared: Arc<Shared>,
    name: Digest,
    /// How much longer it stays.
    grace: Option<Duration>,
}

impl Pin {
    pub(super) fn new(shared: Arc<Shared>, name: Digest) -> Self {
        shared.pins().begin_reading(name);
        Self { shared, name, grace: None }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let until = self.grace.map(|grace| Instant::now() + grace);
        self.shared.pins().end_reading(self.name, until);
        self.shared.changed.notify_all();
    }
}

/// The chunks of a snapshot, in order.
pub struct Reader {
    pin: Pin,
    chunks: std::vec::IntoIter<(Digest, u32)>,
    failed: Option<StoreError>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("name", &self.pin.name).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, name: Digest) -> Self {
        let pin = Pin::new(shared, name);
        let (manifest, failed) = match pin.shared.guard(pin.shared.manifest(name)) {
            Ok(encoded) => match encoded.as_deref().and_then(Manifest::decode) {
                Some(manifest) => (manifest, None),
                None => (Manifest::default(), Some(missing(name, "its manifest"))),
            },
            Err(error) => (Manifest::default(), Some(error)),
        };
        Self { pin, chunks: manifest.chunks.into_iter(), failed }
    }
}

impl Iterator for Reader {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let (chunk, _) = self.chunks.next()?;
        let chunk = self.pin.chunk(chunk);
        if chunk.is_err() {
            self.chunks = Vec::new().into_iter();
        }
        Some(chunk)
    }
}

impl Pin {
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

/// A snapshot that another member fetches.
pub struct Served {
    pin: Pin,
    manifest: Manifest,
    /// Bytes read since appends were given way to.
    read: usize,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("name", &self.pin.name).finish_non_exhaustive()
    }
}

impl Served {
    /// What it consists of.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The chunk at a place of the manifest. Gives way to appends, as writing chunks does.
    ///
    /// # Errors
    /// Damaged: it is missing, or is not what its digest says. The machine refuses.
    ///
    /// # Panics
    /// If the manifest names fewer chunks.
    pub fn chunk(&mut self, place: usize) -> Result<Bytes, StoreError> {
        if self.read >= SYNC_BYTES {
            self.read = 0;
            self.pin.shared.pace.wait();
        }
        let chunk = self.pin.chunk(self.manifest.chunks[place].0)?;
        self.read += chunk.len();
        Ok(chunk)
    }
}

impl Snapshots {
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

    /// A snapshot for another member; none if it is not here.
    ///
    /// # Errors
    /// Damaged: its manifest is not what its digest says. The machine refuses.
    pub fn serve(&self, name: Digest) -> Result<Option<Served>, StoreError> {
        let mut pin = Pin::new(self.0.clone(), name);
        let Some(encoded) = self.manifest(name)? else { return Ok(None) };
        let manifest = Manifest::decode(&encoded).ok_or_else(|| missing(name, "its manifest"))?;
        pin.grace = Some(SERVED_GRACE);
        Ok(Some(Served { pin, manifest, read: 0 }))
    }
}

/// Hands over the chunks up to the first that can't be read; whatever was made of those, that one
/// is the result then.
///
/// # Errors
/// The first chunk that can't be read.
pub(crate) fn take_chunks<T>(
    chunks: impl Iterator<Item = Result<Bytes, StoreError>>,
    take: impl FnOnce(&mut dyn Iterator<Item = Bytes>) -> T,
) -> Result<T, StoreError> {
    let mut failed = None;
    let taken = take(&mut chunks.map_while(|chunk| chunk.map_err(|e| failed = Some(e)).ok()));
    match failed {
        Some(error) => Err(error),
        None => Ok(taken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_that_cannot_be_read_is_the_result_whatever_was_made_of_the_others() {
        let damaged = || Err(StoreError::Damaged("a chunk".to_owned()));
        let taken = take_chunks([Ok(Bytes::new()), Ok(Bytes::new())].into_iter(), |it| it.count());
        assert_eq!(taken.unwrap(), 2);
        let chunks = [Ok(Bytes::new()), damaged(), Ok(Bytes::new())];
        let taken = take_chunks(chunks.into_iter(), |it| assert_eq!(it.count(), 1));
        let failure = daemon::Failure::from(taken.unwrap_err());
        assert_eq!(failure.code(), daemon::Code::Damaged);
    }
}
