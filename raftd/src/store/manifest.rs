//! The list of a snapshot's chunks: their digests and lengths, in order.
//!
//! Its own digest names the snapshot, so a manifest and every chunk prove themselves, whoever
//! they come from.

use raft::{CHUNK_BYTES_MAX, Digest};

use crate::store::codec::{Decoder, Encoder};

const MANIFEST_VERSION: u8 = 1;
const HEADER_BYTES: usize = 17;
const CHUNK_ENTRY_BYTES: usize = 36;

/// The chunks of a snapshot, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Each chunk's digest and length.
    pub chunks: Vec<(Digest, u32)>,
}

impl Manifest {
    /// How many bytes the chunks hold.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// How many bytes the encoded manifest of so many chunks has; none: too many.
    pub fn encoded_bytes(chunks: u64) -> Option<u64> {
        chunks.checked_mul(CHUNK_ENTRY_BYTES as u64)?.checked_add(HEADER_BYTES as u64)
    }

    /// The bytes whose digest names the snapshot.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Encoder(Vec::with_capacity(HEADER_BYTES + self.chunks.len() * CHUNK_ENTRY_BYTES));
        out.u8(MANIFEST_VERSION);
        out.u64(self.chunks.len() as u64);
        out.u64(self.bytes());
        for (digest, len) in &self.chunks {
            out.bytes(&digest.0);
            out.u32(*len);
        }
        out.0
    }

    /// None: these bytes are no manifest.
    pub fn decode(encoded: &[u8]) -> Option<Self> {
        let mut body = Decoder(encoded);
        let version = body.u8()?;
        let (count, bytes) = (body.u64()?, body.u64()?);
        let expected = usize::try_from(count).ok()?.checked_mul(CHUNK_ENTRY_BYTES)?;
        if version != MANIFEST_VERSION || body.0.len() != expected {
            return None;
        }
        let mut chunks = Vec::with_capacity(expected / CHUNK_ENTRY_BYTES);
        while let (Some(digest), Some(len)) = (body.array(), body.u32()) {
            chunks.push((Digest(digest), len));
        }
        let manifest = Self { chunks };
        let fits = manifest.chunks.iter().all(|(_, len)| *len as usize <= CHUNK_BYTES_MAX);
        (fits && manifest.bytes() == bytes).then_some(manifest)
    }
}

/// The digest of a chunk or an encoded manifest.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_manifest_decodes() {
        let manifest = Manifest { chunks: vec![(Digest([1; 32]), 10), (Digest([2; 32]), 0)] };
        let encoded = manifest.encode();
        assert_eq!(Manifest::decode(&encoded), Some(manifest));
        for len in 0..encoded.len() {
            assert_eq!(Manifest::decode(&encoded[..len]), None);
        }
        let large = Manifest { chunks: vec![(Digest([1; 32]), 40_000)] };
        assert_eq!(Manifest::decode(&large.encode()), None);
        let mut endless = encoded;
        endless[1..9].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Manifest::decode(&endless), None);
    }
}
