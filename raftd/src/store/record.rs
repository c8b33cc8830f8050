//! How the log lies in a database: records of several entries, entries in several fragments, and
//! the roots of snapshots.
//!
//! A record is never changed: a write sequence is part of its key, so what a newer write replaces
//! stays until it is removed, and a half-written newer one destroys nothing. Every record carries
//! a checksum, the group, its write sequence, and the term of the entry before its first, by which
//! a missing record shows: (index, term) names one history (Raft, section 5.3).

use bytes::Bytes;
use raft::{Digest, Entry, GroupTime, Index, Payload, Position, SnapshotRoot, Term};

use crate::identity::GroupId;
use crate::membership;
use crate::store::codec::{Decoder, Encoder};

/// The largest payload of a record. Records of more end up in files that the database never syncs.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 10;

/// What a record has beside its payload.
pub const HEADER_BYTES: usize = 52;

/// What an entry takes in a payload beside its command.
pub const ENTRY_HEADER_BYTES: usize = 21;

const _: () = assert!(HEADER_BYTES <= 64);

/// The most entries that a record holds.
pub const ENTRIES_MAX: usize = PAYLOAD_BYTES_MAX / ENTRY_HEADER_BYTES;

/// The format of records; all of a directory have that of its floor.
const RECORD_VERSION: u8 = 3;
const KEY_BYTES: usize = 8 + 1 + 8 + 8 + 4;
const CHECKSUM_OFFSET: usize = 4;

/// The beginning of all keys of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix(u64);

impl Prefix {
    /// The prefix of a group.
    pub fn new(group: &GroupId) -> Self {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&group[..8]);
        Self(u64::from_be_bytes(prefix))
    }
}

/// Where a record lies. The order of the encoded keys is that of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What lies there.
    pub kind: Kind,
    /// Its first index; 0 for a root.
    pub first: Index,
    /// The write that it belongs to.
    pub sequence: u64,
    /// Which fragment of an entry it is; 0 for all else.
    pub fragment: u32,
}

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The root of a snapshot.
    Root,
    /// Entries, or a fragment of one.
    Entries,
}

impl Key {
    /// The bytes of the key.
    pub fn encode(&self, prefix: Prefix) -> Vec<u8> {
        let mut key = Vec::with_capacity(KEY_BYTES);
        key.extend_from_slice(&prefix.0.to_be_bytes());
        key.push(match self.kind {
            Kind::Root => 1,
            Kind::Entries => 2,
        });
        key.extend_from_slice(&self.first.0.to_be_bytes());
        key.extend_from_slice(&self.sequence.to_be_bytes());
        key.extend_from_slice(&self.fragment.to_be_bytes());
        key
    }

    /// None: this is no key of the group.
    pub fn decode(key: &[u8], prefix: Prefix) -> Option<Self> {
        let key: &[u8; KEY_BYTES] = key.try_into().ok()?;
        let number = |at: usize| key.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        let kind = match key[8] {
            1 => Kind::Root,
            2 => Kind::Entries,
            _ => return None,
        };
        let fragment = u32::from_be_bytes(key[25..].try_into().ok()?);
        (number(0)? == prefix.0).then_some(Self {
            kind,
            first: Index(number(9)?),
            sequence: number(17)?,
            fragment,
        })
    }
}

/// The root of a snapshot, as the log keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The write that installed it.
    pub sequence: u64,
    /// The snapshot.
    pub root: SnapshotRoot,
    /// The first index that the log keeps.
    pub first: Index,
    /// Some: the whole log was replaced and goes on behind this position.
    pub reset: Option<Position>,
    /// Where the log ended when the root was written: what lies behind it is older than the root,
    /// unless it is of the same or a later write.
    pub log_end: Index,
}

/// A record as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Entries, contiguous from the key's first index on.
    Entries {
        /// The term of the entry before the first.
        previous: Term,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// A part of an entry that is larger than a record.
    Fragment {
        /// The term of the entry before this one.
        previous: Term,
        /// How many fragments the entry has.
        fragments: u32,
        /// How long the encoded entry is.
        length: u32,
        /// The part.
        part: Bytes,
    },
    /// The root of a snapshot.
    Root(Root),
}

/// The last index of a record, from its key and the count in its header alone.
pub fn last_index(key: &Key, value: &[u8]) -> Option<Index> {
    let mut header = Decoder(value.get(32..)?);
    let (count, fragments) = (header.u32()?, header.u32()?);
    match (fragments, count) {
        (1.., _) => Some(key.first),
        (0, 1..) => key.first.0.checked_add(u64::from(count) - 1).map(Index),
        (0, 0) => None,
    }
}

/// Puts entries, which follow each other and fit, into records, and larger ones into fragments.
/// `emit` takes each key and value in order.
pub fn encode_entries(
    prefix: Prefix,
    sequence: u64,
    mut previous: Term,
    entries: &[Entry],
    mut emit: impl FnMut(Key, Vec<u8>),
) {
    let mut rest = entries;
    while let Some(first) = rest.first() {
        let key = Key { kind: Kind::Entries, first: first.index, sequence, fragment: 0 };
        let mut bytes = 0;
        let fitting = rest.iter().take_while(|entry| {
            bytes += encoded_len(entry);
            bytes <= PAYLOAD_BYTES_MAX
        });
        let count = fitting.count();
        let (taken, left) = rest.split_at(count.max(1));
        if count == 0 {
            encode_fragments(prefix, key, previous, first, &mut emit);
        } else {
            let bytes = taken.iter().map(encoded_len).sum();
            let header = Header { previous, count: count as u32, fragments: 0, length: bytes };
            let mut value = header.begin(prefix, &key, bytes);
            for entry in taken {
                encode_entry(entry, &mut value);
            }
            emit(key, finish(value));
        }
        previous = taken.last().map_or(previous, |entry| entry.term);
        rest = left;
    }
}

fn encode_fragments(
    prefix: Prefix,
    key: Key,
    previous: Term,
    entry: &Entry,
    emit: &mut impl FnMut(Key, Vec<u8>),
) {
    let mut encoded = Encoder::default();
    encode_entry(entry, &mut encoded);
    let length = encoded.0.len();
    let fragments = length.div_ceil(PAYLOAD_BYTES_MAX) as u32;
    assert!(fragments <= u32::from(u16::MAX), "an entry of {length} bytes is beyond all limits");
    for (fragment, part) in (0..).zip(encoded.0.chunks(PAYLOAD_BYTES_MAX)) {
        let key = Key { fragment, ..key };
        let header = Header { previous, count: 1, fragments, length };
        let mut value = header.begin(prefix, &key, part.len());
        value.bytes(part);
        emit(key, finish(value));
    }
}

/// The key and value of a root.
pub fn encode_root(prefix: Prefix, root: &Root) -> (Key, Vec<u8>) {
    let key = Key { kind: Kind::Root, first: Index(0), sequence: root.sequence, fragment: 0 };
    let header = Header { previous: Term(0), count: 0, fragments: 0, length: 0 };
    let mut out = header.begin(prefix, &key, 128);
    out.u64(root.root.position.term.0);
    out.u64(root.root.position.index.0);
    out.u64(root.root.stamp.0);
    out.bytes(&root.root.manifest.0);
    out.u64(root.root.chunks);
    out.u64(root.root.bytes);
    out.u64(root.first.0);
    out.u64(root.log_end.0);
    out.u8(u8::from(root.reset.is_some()));
    let reset = root.reset.unwrap_or_default();
    out.u64(reset.term.0);
    out.u64(reset.index.0);
    let membership = membership::encode(&root.root.membership);
    out.u32(membership.len() as u32);
    out.bytes(&membership);
    (key, finish(out))
}

/// None: the record fails its checksum, or is not what its key says.
pub fn decode(prefix: Prefix, key: &Key, value: &[u8]) -> Option<Record> {
    let mut body = Decoder(value);
    let (version, kind) = (body.u8()?, body.u8()?);
    let fragment = body.array()?;
    let stored = body.u32()?;
    let owned = body.u64()? == prefix.0 && body.u64()? == key.sequence;
    let previous = Term(body.u64()?);
    let (count, fragments, length) = (body.u32()?, body.u32()?, body.u32()?);
    let first = body.u64()?;
    let placed = first == key.first.0 && u32::from(u16::from_le_bytes(fragment)) == key.fragment;
    if version != RECORD_VERSION || !owned || !placed || stored != checksum(value) {
        return None;
    }
    match (key.kind, kind, fragments) {
        (Kind::Root, 1, _) => decode_root(key, &mut body).map(Record::Root),
        (Kind::Entries, 2, 0) => {
            let entries = (0..u64::from(count))
                .map(|offset| decode_entry(Index(first + offset), &mut body))
                .collect::<Option<Vec<_>>>()?;
            (!entries.is_empty() && body.0.is_empty())
                .then_some(Record::Entries { previous, entries })
        }
        (Kind::Entries, 2, _) if key.fragment < fragments => {
            let part = Bytes::copy_from_slice(body.0);
            Some(Record::Fragment { previous, fragments, length, part })
        }
        _ => None,
    }
}

/// The entry at `index` that fragments make up.
pub fn decode_whole(index: Index, encoded: &[u8]) -> Option<Entry> {
    let mut body = Decoder(encoded);
    let entry = decode_entry(index, &mut body)?;
    body.0.is_empty().then_some(entry)
}

fn decode_root(key: &Key, body: &mut Decoder<'_>) -> Option<Root> {
    let position = |body: &mut Decoder<'_>| {
        Some(Position { term: Term(body.u64()?), index: Index(body.u64()?) })
    };
    let (at, stamp) = (position(body)?, GroupTime(body.u64()?));
    let (manifest, chunks, bytes) = (Digest(body.array()?), body.u64()?, body.u64()?);
    let (first, log_end) = (Index(body.u64()?), Index(body.u64()?));
    let is_reset = body.u8()? != 0;
    let reset = Some(position(body)?).filter(|_| is_reset);
    let len = body.u32()? as usize;
    let membership = membership::decode(body.bytes(len)?)?;
    let root = SnapshotRoot { position: at, stamp, manifest, chunks, bytes, membership };
    Some(Root { sequence: key.sequence, root, first, reset, log_end })
}

struct Header {
    previous: Term,
    count: u32,
    fragments: u32,
    length: usize,
}

impl Header {
    fn begin(&self, prefix: Prefix, key: &Key, payload: usize) -> Encoder {
        let mut out = Encoder(Vec::with_capacity(HEADER_BYTES + payload));
        out.u8(RECORD_VERSION);
        out.u8(match key.kind {
            Kind::Root => 1,
            Kind::Entries => 2,
        });
        out.bytes(&(key.fragment as u16).to_le_bytes());
        out.u32(0);
        out.u64(prefix.0);
        out.u64(key.sequence);
        out.u64(self.previous.0);
        out.u32(self.count);
        out.u32(self.fragments);
        out.u32(self.length as u32);
        out.u64(key.first.0);
        out
    }
}

fn finish(value: Encoder) -> Vec<u8> {
    let mut value = value.0;
    let checksum = checksum(&value);
    value[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
    value
}

fn checksum(value: &[u8]) -> u32 {
    let (before, rest) = value.split_at(CHECKSUM_OFFSET);
    crc32c::crc32c_append(crc32c::crc32c(before), rest.get(4..).unwrap_or_default())
}

/// How many bytes an entry takes in a payload.
pub fn encoded_len(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        Payload::Noop | Payload::Tick => 0,
        Payload::Command(command) => command.len(),
        Payload::Membership(membership) => membership::encode(membership).len(),
    };
    ENTRY_HEADER_BYTES + payload
}

fn encode_entry(entry: &Entry, out: &mut Encoder) {
    let (kind, payload) = match &entry.payload {
        Payload::Noop => (1, Bytes::new()),
        Payload::Tick => (2, Bytes::new()),
        Payload::Command(command) => (3, command.clone()),
        Payload::Membership(membership) => (4, membership::encode(membership)),
    };
    out.u8(kind);
    out.u64(entry.term.0);
    out.u64(entry.stamp.0);
    out.u32(payload.len() as u32);
    out.bytes(&payload);
}

fn decode_entry(index: Index, body: &mut Decoder<'_>) -> Option<Entry> {
    let kind = body.u8()?;
    let (term, stamp) = (Term(body.u64()?), GroupTime(body.u64()?));
    let len = body.u32()? as usize;
    let payload = body.bytes(len)?;
    let payload = match (kind, len) {
        (1, 0) => Payload::Noop,
        (2, 0) => Payload::Tick,
        (3, _) => Payload::Command(Bytes::copy_from_slice(payload)),
        (4, _) => Payload::Membership(membership::decode(payload)?),
        _ => return None,
    };
    Some(Entry { index, term, stamp, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: Prefix = Prefix(7);

    fn entry(index: u64, len: usize) -> Entry {
        Entry {
            index: Index(index),
            term: Term(3),
            stamp: GroupTime(index),
            payload: Payload::Command(vec![index as u8; len].into()),
        }
    }

    fn records(entries: &[Entry]) -> Vec<(Key, Vec<u8>)> {
        let mut records = Vec::new();
        encode_entries(PREFIX, 9, Term(2), entries, |key, value| records.push((key, value)));
        records
    }

    #[test]
    fn entries_come_back_in_as_few_records_as_they_fit() {
        let entries: Vec<_> = (5..133).map(|index| entry(index, 256)).collect();
        let records = records(&entries);
        assert_eq!(records.len(), 2);
        let mut found = Vec::new();
        for (key, value) in &records {
            assert!(value.len() <= PAYLOAD_BYTES_MAX + HEADER_BYTES);
            let Some(Record::Entries { previous, entries }) = decode(PREFIX, key, value) else {
                panic!("{key:?} does not decode");
            };
            assert_eq!(previous, Term(if found.is_empty() { 2 } else { 3 }));
            assert_eq!(last_index(key, value), Some(entries[entries.len() - 1].index));
            found.extend(entries);
        }
        assert_eq!(found, entries);
    }

    #[test]
    fn a_large_entry_comes_back_from_its_fragments() {
        let large = entry(5, 100_000);
        let records = records(std::slice::from_ref(&large));
        assert_eq!(records.len(), 4);
        let mut whole = Vec::new();
        for (key, value) in &records {
            match decode(PREFIX, key, value) {
                Some(Record::Fragment { part, fragments: 4, .. }) => whole.extend_from_slice(&part),
                other => panic!("{other:?}"),
            }
            assert_eq!(last_index(key, value), Some(Index(5)));
        }
        assert_eq!(decode_whole(Index(5), &whole), Some(large));
    }

    #[test]
    fn bit_flip_detected() {
        let (key, value) = records(&[entry(5, 40)]).remove(0);
        for at in 0..value.len() {
            for bit in 0..8 {
                let mut flipped = value.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(decode(PREFIX, &key, &flipped), None, "byte {at}, bit {bit}");
            }
        }
        let moved = Key { sequence: 10, ..key };
        assert_eq!(decode(PREFIX, &moved, &value), None);
        assert_eq!(decode(Prefix(8), &key, &value), None);
    }

    #[test]
    fn keys_keep_their_order() {
        let keys: Vec<Key> = [(1, 1, 0), (1, 2, 0), (1, 2, 1), (2, 1, 0), (256, 0, 0)]
            .map(|(first, sequence, fragment)| Key {
                kind: Kind::Entries,
                first: Index(first),
                sequence,
                fragment,
            })
            .into();
        let encoded: Vec<_> = keys.iter().map(|key| key.encode(PREFIX)).collect();
        assert!(encoded.is_sorted());
        for (key, encoded) in keys.iter().zip(&encoded) {
            assert_eq!(Key::decode(encoded, PREFIX), Some(*key));
        }
    }
}
