//! The entries that the log keeps, and where they lie in memory.
//!
//! Decides how entries are grouped into segments, which are what a snapshot's chunks are made of.
//! Every entry has a place: how many bytes were appended before it since the beginning of the log.
//! Entries whose places lie in the same stretch of [`STRETCH_BYTES`] form a segment. So the segments
//! follow from the entries and their places alone; appending touches the last of them, trimming the
//! first, and all others stay as they are, byte for byte. A segment is one allocation for many
//! entries, shared with captures and dropped as a whole.

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;

use crate::codec::{Reader, put_bytes};
use crate::log::digest;
use crate::log::outcome::LogIndex;

/// How many bytes of places form a segment: half a chunk, so that short entries fill about one.
pub(crate) const STRETCH_BYTES: u64 = raft::CHUNK_BYTES_MAX as u64 / 2;

/// What an entry takes beside its payload at most: its length, up to 1 MiB.
pub(crate) const LENGTH_BYTES_MAX: usize = 3;

/// The kept entries.
///
/// Invariants: `first <= next`; the segments hold exactly the entries from `first` up to `next`, in
/// order; `end - start` is the sum of their bytes; the digest is the sum of the segments'.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    /// The first that is kept.
    first: LogIndex,
    /// The one that is appended next.
    next: LogIndex,
    /// The place of `first`.
    start: u64,
    /// The place of `next`.
    end: u64,
    /// By the index of their first entries.
    segments: OrdMap<LogIndex, Segment>,
    digest: u128,
}

/// Some entries in a row, each its length and its payload.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// The place of its first entry.
    start: u64,
    bytes: Arc<Vec<u8>>,
    digest: u128,
}

impl Entries {
    /// A log whose entries before `first`, which took `start` bytes, are gone.
    pub(crate) fn behind(first: LogIndex, start: u64) -> Self {
        let segments = OrdMap::new();
        Self { first, next: first, start, end: start, segments, digest: 0 }
    }

    pub(crate) fn first(&self) -> LogIndex {
        self.first
    }

    pub(crate) fn next(&self) -> LogIndex {
        self.next
    }

    /// How many bytes the entries take.
    pub(crate) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// The places of the first entry and of the next.
    pub(crate) fn places(&self) -> (u64, u64) {
        (self.start, self.end)
    }

    pub(crate) fn digest(&self) -> u128 {
        self.digest
    }

    /// The segments in order.
    pub(crate) fn into_segments(self) -> impl Iterator<Item = Arc<Vec<u8>>> + Send {
        self.segments.into_iter().map(|(_, segment)| segment.bytes)
    }

    /// Appends an entry.
    pub(crate) fn append(&mut self, payload: &[u8]) {
        let (index, end) = (self.next, self.end);
        let last = self.segments.get_max().map(|(at, segment)| (*at, segment.start));
        let at = match last {
            Some((at, start)) if start / STRETCH_BYTES == end / STRETCH_BYTES => at,
            Some(_) | None => {
                let segment = Segment { start: end, bytes: Arc::default(), digest: 0 };
                self.segments.insert(index, segment);
                index
            }
        };
        let segment = self.segments.get_mut(&at).expect("the last segment is there");
        // Copied only while a capture shares it.
        let bytes = Arc::make_mut(&mut segment.bytes);
        let before = bytes.len();
        put_bytes(bytes, payload);
        self.end += (bytes.len() - before) as u64;
        let digest = digest::entry(index.0, payload);
        segment.digest = segment.digest.wrapping_add(digest);
        self.digest = self.digest.wrapping_add(digest);
        self.next = index.next();
    }

    /// Removes the entries below `first`, which lies between the first and the next.
    pub(crate) fn trim(&mut self, first: LogIndex) {
        assert!(first <= self.next, "a trim to {first} beyond the end {}", self.next);
        while self.first < first {
            let (at, segment) = self.segments.get_min().expect("what is kept is in a segment");
            let (at, segment) = (*at, segment.clone());
            assert_eq!(at, self.first, "the first segment begins with the first entry");
            self.segments.remove(&at);
            let behind = self.segments.get_min().map_or(self.next, |(next, _)| *next);
            self.digest = self.digest.wrapping_sub(segment.digest);
            if behind <= first {
                self.start += segment.bytes.len() as u64;
                self.first = behind;
            } else {
                let rest = segment.behind(at, first);
                self.digest = self.digest.wrapping_add(rest.digest);
                self.start = rest.start;
                self.first = first;
                self.segments.insert(first, rest);
            }
        }
    }

    /// Copies entries from `from` on, which is kept or the next: as many as fit, at least one.
    pub(crate) fn read(&self, from: LogIndex, bytes_max: usize) -> Vec<Bytes> {
        let (mut read, mut bytes) = (Vec::new(), 0);
        let segment = self.segments.get_prev(&from).map_or(from, |(at, _)| *at);
        for (at, segment) in self.segments.range(segment..) {
            for (index, payload) in segment.entries(*at).skip_while(|(index, _)| *index < from) {
                bytes += payload.len() + LENGTH_BYTES_MAX;
                if bytes > bytes_max && index > from {
                    return read;
                }
                read.push(Bytes::copy_from_slice(payload));
            }
        }
        read
    }
}

impl Segment {
    fn entries(&self, first: LogIndex) -> impl Iterator<Item = (LogIndex, &[u8])> {
        let mut reader = Reader::new(&self.bytes);
        let payloads = std::iter::from_fn(move || {
            let whole = "a segment holds whole entries";
            (!reader.is_empty()).then(|| reader.bytes("entry").expect(whole))
        });
        (first.0..).map(LogIndex).zip(payloads)
    }

    /// What is left of it, which begins with `at`, behind the entries below `first`.
    fn behind(&self, at: LogIndex, first: LogIndex) -> Self {
        let mut bytes = Vec::new();
        let mut digest: u128 = 0;
        for (index, payload) in self.entries(at).skip_while(|(index, _)| *index < first) {
            put_bytes(&mut bytes, payload);
            digest = digest.wrapping_add(digest::entry(index.0, payload));
        }
        let start = self.start + (self.bytes.len() - bytes.len()) as u64;
        Self { start, bytes: Arc::new(bytes), digest }
    }
}
