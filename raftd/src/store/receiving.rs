//! A snapshot on its way here: what of it is missing, and the one durable record that names it.
//!
//! The record is durable before the first chunk is asked for, and keeps what comes: after a cut
//! connection or a restart only the rest is asked for, from whoever has it. A transfer ends when a
//! snapshot is installed that goes as far, and gives way to the next one, which begins with the
//! chunks that both have in common.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use raft::{Digest, GroupTime, Index, NodeId, Position, SnapshotRoot, Term};

use crate::failpoint::{self, Failpoint};
use crate::identity::GroupId;
use crate::membership;
use crate::store::StoreError;
use crate::store::codec::{Decoder, Encoder};
use crate::store::garbage::Pins;
use crate::store::manifest::{Manifest, digest};
use crate::store::reading::Pin;
use crate::store::snapshots::{Paced, Snapshots, Writer, chunk_key};

/// How many ranges of places are asked for at once: what is missing may be scattered, and a
/// request has to be small.
pub const RANGES_MAX: usize = 4096;

/// Where the record lies.
pub(super) const TRANSFER_KEY: &[u8] = b"t";

const TRANSFER_VERSION: u8 = 1;

/// Why a snapshot, or a part of it, was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// What was sent is not what was asked for; all that came before it is kept.
    #[error("{0}")]
    Malformed(String),
    /// The store has failed; the process ends.
    #[error("the snapshot can't be stored")]
    Store(#[from] StoreError),
}

/// The transfer that runs, or that ran when the process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Of which group the snapshot is: of another history nothing must be installed, whoever leads.
    pub group: GroupId,
    /// Who gave it.
    pub from: NodeId,
    /// What is fetched.
    pub root: SnapshotRoot,
}

impl Transfer {
    fn encode(&self) -> Vec<u8> {
        let Self { group, from, root } = self;
        let mut out = Encoder::default();
        out.u8(TRANSFER_VERSION);
        out.bytes(group);
        out.u64(from.0);
        out.u64(root.position.term.0);
        out.u64(root.position.index.0);
        out.u64(root.stamp.0);
        out.bytes(&root.manifest.0);
        out.u64(root.chunks);
        out.u64(root.bytes);
        out.bytes(&membership::encode(&root.membership));
        let checksum = crc32c::crc32c(&out.0);
        out.u32(checksum);
        out.0
    }

    /// None: it is damaged, or of another version; then nothing is lost but what was fetched.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (body, checksum) = value.split_last_chunk()?;
        let mut body = Decoder(body);
        if crc32c::crc32c(body.0) != u32::from_le_bytes(*checksum) || body.u8()? != TRANSFER_VERSION
        {
            return None;
        }
        let (group, from) = (body.array()?, NodeId(body.u64()?));
        let position = Position { term: Term(body.u64()?), index: Index(body.u64()?) };
        let (stamp, manifest) = (GroupTime(body.u64()?), Digest(body.array()?));
        let (chunks, bytes) = (body.u64()?, body.u64()?);
        let membership = membership::decode(body.0)?;
        let root = SnapshotRoot { position, stamp, manifest, chunks, bytes, membership };
        Some(Self { group, from, root })
    }
}

/// A snapshot that is being received. Dropping it loses nothing that has come.
pub struct Receiving {
    paced: Paced,
    root: SnapshotRoot,
    manifest: Manifest,
    /// The places of what is missing, ascending, each chunk once.
    missing: VecDeque<usize>,
    missing_bytes: u64,
    /// How many chunks were here before.
    skipped: usize,
    _pin: Pin,
}

impl std::fmt::Debug for Receiving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let receiving = &mut f.debug_struct("Receiving");
        receiving.field("root", &self.root).field("missing", &self.missing.len()).finish()
    }
}

impl Snapshots {
    /// Begins to receive a snapshot, or goes on: checks its manifest and makes it durable, names it
    /// as the transfer that runs, and finds what is missing.
    ///
    /// # Errors
    /// Malformed: the manifest is not what `root` names, and the transfer before this one runs on.
    /// The machine refuses.
    pub fn begin(
        &self,
        group: GroupId,
        from: NodeId,
        root: &SnapshotRoot,
        encoded: &[u8],
    ) -> Result<Receiving, ReceiveError> {
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
        let pin = Pin::new(self.0.clone(), root.manifest);
        let transfer = Transfer { group, from, root: root.clone() };
        let mut writer = Writer::new(&self.0);
        writer.put_manifest(root.manifest, encoded)?;
        writer.paced.insert(TRANSFER_KEY.to_vec(), transfer.encode())?;
        writer.paced.sync()?;
        self.0.pins_when(Pins::are_settled).begin_transfer(transfer);
        // From here on nothing that the manifest names is removed.
        drop(writer);
        let missing = self.missing(&manifest)?;
        let missing_bytes = missing.iter().map(|&at| u64::from(manifest.chunks[at].1)).sum();
        let distinct: BTreeSet<_> = manifest.chunks.iter().map(|(digest, _)| digest).collect();
        Ok(Receiving {
            paced: Paced::new(self.0.clone()),
            root: root.clone(),
            skipped: distinct.len() - missing.len(),
            manifest,
            missing,
            missing_bytes,
            _pin: pin,
        })
    }

    /// The transfer that runs, or that ran when the process ended; none if that was installed, or
    /// was given up.
    pub fn transfer(&self) -> Option<Transfer> {
        let pins = self.0.pins();
        pins.transfer.clone().filter(|_| !pins.given_up)
    }

    /// Who gives the transfer that runs gives no more. What has come stays.
    pub fn give_up(&self) {
        self.0.pins().given_up = true;
    }

    /// The places in a manifest of the chunks that are not here, ascending, each chunk once.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn missing(&self, manifest: &Manifest) -> Result<VecDeque<usize>, StoreError> {
        let mut seen = BTreeSet::new();
        let mut missing = VecDeque::new();
        for (place, (digest, _)) in manifest.chunks.iter().enumerate() {
            if seen.insert(*digest) && self.0.guard(self.0.chunk(*digest))?.is_none() {
                missing.push_back(place);
            }
        }
        Ok(missing)
    }
}

impl Receiving {
    /// What is to be asked for next, by places in the manifest; nothing, when all is here.
    pub fn wanted(&self) -> Vec<Range<usize>> {
        let mut wanted: Vec<Range<usize>> = Vec::new();
        for &place in &self.missing {
            if let Some(last) = wanted.last_mut().filter(|last| last.end == place) {
                last.end += 1;
            } else if wanted.len() < RANGES_MAX {
                wanted.push(place..place + 1);
            } else {
                break;
            }
        }
        wanted
    }

    /// Takes the next chunk that is missing.
    ///
    /// # Errors
    /// Malformed: it is another, or none is missing. The machine refuses.
    pub fn put(&mut self, chunk: &[u8]) -> Result<(), ReceiveError> {
        let Some(&place) = self.missing.front() else {
            return Err(ReceiveError::Malformed("more chunks came than were asked for".to_owned()));
        };
        let (expected, len) = self.manifest.chunks[place];
        if chunk.len() != len as usize || digest(chunk) != expected {
            let what = format!("chunk {place} does not have the digest of the manifest");
            return Err(ReceiveError::Malformed(what));
        }
        self.paced.insert(chunk_key(expected), chunk.to_vec())?;
        failpoint::reach(Failpoint::SnapshotInstallBetween);
        self.missing.pop_front();
        self.missing_bytes -= u64::from(len);
        Ok(())
    }

    /// What is received.
    pub fn root(&self) -> &SnapshotRoot {
        &self.root
    }

    /// How many different chunks were here before.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// How many bytes of all are here.
    pub fn done_bytes(&self) -> u64 {
        self.root.bytes - self.missing_bytes
    }

    /// Makes the snapshot durable. The log does not name it yet.
    ///
    /// # Errors
    /// The machine refuses.
    ///
    /// # Panics
    /// If something is missing.
    pub fn finish(mut self) -> Result<SnapshotRoot, StoreError> {
        assert!(self.missing.is_empty(), "{} chunks are missing", self.missing.len());
        self.paced.sync()?;
        self.paced.shared.pins().finish(self.root.manifest);
        Ok(self.root)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft::Membership;

    use super::*;

    #[test]
    fn a_damaged_record_is_none() {
        let contact = |id: u64| (NodeId(id), bytes::Bytes::from_static(b"somewhere"));
        let root = SnapshotRoot {
            position: Position { term: Term(3), index: Index(90) },
            stamp: GroupTime(7),
            manifest: Digest([5; 32]),
            chunks: 4,
            bytes: 99,
            membership: Arc::new(Membership::founders([1, 2].map(contact))),
        };
        let transfer = Transfer { group: [4; 32], from: NodeId(2), root };
        let encoded = transfer.encode();
        assert_eq!(Transfer::decode(&encoded), Some(transfer));
        for at in 0..encoded.len() {
            let mut flipped = encoded.clone();
            flipped[at] ^= 1;
            assert_eq!(Transfer::decode(&flipped), None, "byte {at}");
            assert_eq!(Transfer::decode(&encoded[..at]), None, "{at} bytes");
        }
    }
}
