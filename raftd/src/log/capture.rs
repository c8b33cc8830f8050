//! A frozen log and its canonical encoding.
//!
//! Decides where a snapshot is cut into chunks: at the segments of the entries, one longer than a
//! chunk also at fixed distances from its beginning; and behind rows of the exactly-once table whose
//! clients' hashes say so. So an append changes the last chunks of entries, a trim the first, and
//! what is between stays.
//!
//! The chunks, in order: a header; the segments; the rows in client order; an end with the digest.
//! The inverse is `restore.rs`.

use std::iter::{Peekable, once};

use bytes::Bytes;
use raft::{CHUNK_BYTES_MAX, Capture};
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::put_number;
use crate::log::command::ClientId;
use crate::log::limits::REPLIES_PER_CLIENT_MAX;
use crate::log::machine::{LogMachine, MACHINE_VERSION};
use crate::log::sessions::Row;

/// The version of the snapshot's encoding.
pub(crate) const SNAPSHOT_VERSION: u8 = 1;

/// The kinds of chunks.
pub(crate) mod kind {
    pub(crate) const HEADER: u8 = b'L';
    /// The beginning of a segment.
    pub(crate) const SEGMENT: u8 = 1;
    /// More of it.
    pub(crate) const PART: u8 = 2;
    pub(crate) const ROWS: u8 = 3;
    pub(crate) const END: u8 = 4;
}

/// How much of a segment one chunk holds, behind its kind.
pub(crate) const PART_BYTES: usize = CHUNK_BYTES_MAX - 1;

/// A chunk ends behind one row in so many.
const ROWS_PER_CHUNK: u64 = 64;

/// The longest number of the encoding.
const NUMBER_BYTES_MAX: usize = 10;

/// What a row takes at most beside its replies, and what a reply takes.
const ROW_BYTES_MAX: usize = 16 + 3 * NUMBER_BYTES_MAX;
const REPLY_BYTES_MAX: usize = 3 * NUMBER_BYTES_MAX;

const _: () =
    assert!(1 + ROW_BYTES_MAX + REPLIES_PER_CLIENT_MAX * REPLY_BYTES_MAX <= CHUNK_BYTES_MAX);

/// A frozen log.
#[derive(Debug)]
pub struct LogCapture {
    machine: LogMachine,
    digest: u128,
}

impl LogCapture {
    pub(crate) fn new(machine: LogMachine, digest: u128) -> Self {
        Self { machine, digest }
    }

    fn header(&self) -> Bytes {
        let mut out = vec![kind::HEADER, SNAPSHOT_VERSION];
        put_number(&mut out, u64::from(MACHINE_VERSION));
        put_number(&mut out, self.machine.entries.first().0);
        put_number(&mut out, self.machine.entries.places().0);
        put_number(&mut out, self.machine.time.0);
        Bytes::from(out)
    }

    fn end(&self) -> Bytes {
        let mut out = vec![kind::END];
        out.extend_from_slice(&self.digest.to_le_bytes());
        Bytes::from(out)
    }
}

impl Capture for LogCapture {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        let (header, end) = (self.header(), self.end());
        let LogMachine { entries, sessions, .. } = self.machine;
        let segments = entries.into_segments().flat_map(|segment| parts(&segment));
        let rows = Rows { rows: sessions.rows().clone().into_iter().peekable() };
        once(header).chain(segments).chain(rows).chain(once(end))
    }
}

fn parts(segment: &[u8]) -> Vec<Bytes> {
    let chunk = |(number, part): (usize, &[u8])| {
        let kind = if number == 0 { kind::SEGMENT } else { kind::PART };
        Bytes::from([&[kind], part].concat())
    };
    segment.chunks(PART_BYTES).enumerate().map(chunk).collect()
}

/// The chunks of rows.
struct Rows<I: Iterator> {
    rows: Peekable<I>,
}

impl<I: Iterator<Item = (ClientId, Row)>> Iterator for Rows<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut chunk = vec![kind::ROWS];
        let fits = |(_, row): &(ClientId, Row), taken: usize| {
            taken + ROW_BYTES_MAX + row.replies().len() * REPLY_BYTES_MAX <= CHUNK_BYTES_MAX
        };
        while let Some((client, row)) = self.rows.next_if(|row| fits(row, chunk.len())) {
            put_row(&mut chunk, &client, &row);
            if xxh3_64(&client.0).is_multiple_of(ROWS_PER_CHUNK) {
                break;
            }
        }
        (chunk.len() > 1).then(|| Bytes::from(chunk))
    }
}

fn put_row(out: &mut Vec<u8>, client: &ClientId, row: &Row) {
    out.extend_from_slice(&client.0);
    put_number(out, row.acknowledged);
    put_number(out, row.latest.0);
    put_number(out, row.replies().len() as u64);
    for kept in row.replies() {
        put_number(out, kept.sequence);
        put_number(out, kept.first.0);
        put_number(out, kept.count);
    }
}
