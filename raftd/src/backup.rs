//! Backups: the state of a group as a stream of parts that says when it is whole.
//!
//! Decides what a backup consists of and checks it, on both sides: whoever reads one believes
//! nothing before the end. What the chunks mean is the state machine's business. A restore makes a
//! new group of it (`restoration.rs`).

use std::io::{BufRead, BufReader, Read};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use proto::admin::{BackupEnd, BackupHead, BackupPart, backup_part::Kind};
use raft::{CHUNK_BYTES_MAX, Capture, Frozen};

/// The first line of a file of a backup.
pub const FIRST_LINE: &[u8] = b"flotilla backup 1\n";

/// The longest part: a chunk with what is around it, or a head.
const PART_BYTES_MAX: usize = CHUNK_BYTES_MAX + 4096;

/// Why a backup can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BadBackup {
    /// It is none, or of a newer version.
    #[error("it does not begin with the line \"flotilla backup 1\"")]
    Unknown,
    /// Its bytes make no sense.
    #[error("part {0} of it makes no sense")]
    Malformed(u64),
    /// It ends before its end, or holds something else than what was written.
    #[error("it is not whole: {0}")]
    NotWhole(String),
    /// It can't be read.
    #[error("it can't be read")]
    Unreadable(#[from] std::io::Error),
}

/// Takes the parts of a backup in their order, and says whether they are whole.
#[derive(Debug, Default)]
pub struct Check {
    parts: u64,
    head: Option<BackupHead>,
    hasher: blake3::Hasher,
    chunks: u64,
    bytes: u64,
    ended: bool,
}

impl Check {
    /// Takes the next part.
    ///
    /// # Errors
    /// [`BadBackup`]: it can't follow what was taken before.
    pub fn take(&mut self, part: &BackupPart) -> Result<(), BadBackup> {
        self.parts += 1;
        match &part.kind {
            Some(Kind::Head(head)) if self.parts == 1 => {
                self.hash(&head.encode_to_vec());
                self.head = Some(head.clone());
            }
            Some(Kind::Chunk(chunk)) if self.head.is_some() && !self.ended => {
                self.hash(chunk);
                self.chunks += 1;
                self.bytes += chunk.len() as u64;
            }
            Some(Kind::End(end)) if self.head.is_some() && !self.ended => {
                self.ended = true;
                let found = self.end();
                if found != *end {
                    return Err(BadBackup::NotWhole(format!(
                        "it has {} chunks with {} bytes, and its end tells of {} with {} and \
                         perhaps of another digest",
                        found.chunks, found.bytes, end.chunks, end.bytes
                    )));
                }
            }
            Some(_) | None => return Err(BadBackup::Malformed(self.parts)),
        }
        Ok(())
    }

    /// What it was of and how it ended, if it is whole.
    ///
    /// # Errors
    /// [`BadBackup::NotWhole`].
    pub fn finish(self) -> Result<(BackupHead, BackupEnd), BadBackup> {
        let end = self.end();
        match self.head {
            Some(head) if self.ended => Ok((head, end)),
            _ => Err(BadBackup::NotWhole(format!("it ends after {} chunks", self.chunks))),
        }
    }

    /// The end that belongs to what was taken.
    fn end(&self) -> BackupEnd {
        let digest = Bytes::copy_from_slice(self.hasher.finalize().as_bytes());
        BackupEnd { chunks: self.chunks, bytes: self.bytes, digest }
    }

    fn hash(&mut self, bytes: &[u8]) {
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }
}

/// The parts of a backup of a frozen state, made as they are asked for.
pub(crate) fn parts<C: Capture>(
    head: BackupHead,
    frozen: Frozen<C>,
) -> impl Iterator<Item = BackupPart> + Send {
    let head = std::iter::once(Kind::Head(head));
    let mut kinds = head.chain(frozen.capture.chunks().map(Kind::Chunk));
    let mut check = Some(Check::default());
    std::iter::from_fn(move || {
        let kind = kinds.next();
        let part = match kind {
            Some(kind) => BackupPart { kind: Some(kind) },
            None => BackupPart { kind: Some(Kind::End(check.take()?.end())) },
        };
        if let Some(check) = &mut check {
            check.take(&part).expect("a head comes first, and then chunks");
        }
        Some(part)
    })
}

/// Reads the parts of a file.
#[derive(Debug)]
pub struct Parts<R> {
    from: BufReader<R>,
    part: u64,
}

impl<R: Read> Parts<R> {
    /// Begins with the first line.
    ///
    /// # Errors
    /// [`BadBackup`].
    pub fn new(from: R) -> Result<Self, BadBackup> {
        let mut from = BufReader::with_capacity(256 << 10, from);
        let mut line = vec![0; FIRST_LINE.len()];
        from.read_exact(&mut line).map_err(|_| BadBackup::Unknown)?;
        if line == FIRST_LINE { Ok(Self { from, part: 0 }) } else { Err(BadBackup::Unknown) }
    }

    /// The next part; none at the end of the file.
    ///
    /// # Errors
    /// [`BadBackup`].
    pub fn next_part(&mut self) -> Result<Option<BackupPart>, BadBackup> {
        if self.from.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.part += 1;
        let length = self.length()?;
        let mut part = BytesMut::zeroed(length);
        self.from.read_exact(&mut part).map_err(|error| self.cut(error))?;
        let part = BackupPart::decode(part.freeze());
        part.map(Some).map_err(|_| BadBackup::Malformed(self.part))
    }

    /// As protobuf writes lengths, seven bits a byte, the lowest first.
    fn length(&mut self) -> Result<usize, BadBackup> {
        let mut length = 0;
        for shift in [0, 7, 14] {
            let mut byte = [0];
            self.from.read_exact(&mut byte).map_err(|error| self.cut(error))?;
            length |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 && length <= PART_BYTES_MAX {
                return Ok(length);
            }
        }
        Err(BadBackup::Malformed(self.part))
    }

    fn cut(&self, error: std::io::Error) -> BadBackup {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return BadBackup::NotWhole(format!("it ends within part {}", self.part));
        }
        error.into()
    }
}

/// Reads a whole backup without using it: what it is of, and how it ended.
///
/// # Errors
/// [`BadBackup`].
pub fn check(from: impl Read) -> Result<(BackupHead, BackupEnd), BadBackup> {
    let mut parts = Parts::new(from)?;
    let mut check = Check::default();
    while let Some(part) = parts.next_part()? {
        check.take(&part)?;
    }
    check.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> BackupPart {
        let head = BackupHead { daemon: "kvd".to_owned(), index: 7, ..BackupHead::default() };
        BackupPart { kind: Some(Kind::Head(head)) }
    }

    fn chunk(bytes: &'static [u8]) -> BackupPart {
        BackupPart { kind: Some(Kind::Chunk(Bytes::from_static(bytes))) }
    }

    fn whole() -> Vec<u8> {
        let parts = [head(), chunk(b"one"), chunk(b"another")];
        let mut check = Check::default();
        parts.iter().for_each(|part| check.take(part).unwrap());
        let end = BackupPart { kind: Some(Kind::End(check.end())) };
        let mut file = FIRST_LINE.to_vec();
        for part in parts.iter().chain([&end]) {
            file.extend(part.encode_length_delimited_to_vec());
        }
        file
    }

    #[test]
    fn a_whole_backup_is_whole() {
        let (head, end) = check(&whole()[..]).unwrap();
        assert_eq!((head.index, end.chunks, end.bytes), (7, 2, 10));
    }

    #[test]
    fn a_backup_that_is_cut_anywhere_is_refused() {
        let whole = whole();
        for length in 0..whole.len() {
            assert!(check(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
    }

    #[test]
    fn a_flip_of_any_bit_is_found() {
        let whole = whole();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&flipped[..]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn nothing_may_follow_the_end_or_be_missing_or_come_twice() {
        let mut file = whole();
        file.extend(chunk(b"more").encode_length_delimited_to_vec());
        assert!(matches!(check(&file[..]), Err(BadBackup::Malformed(5))));
        let mut check = Check::default();
        assert!(matches!(check.take(&chunk(b"one")), Err(BadBackup::Malformed(1))));
        let mut check = Check::default();
        check.take(&head()).unwrap();
        assert!(matches!(check.take(&head()), Err(BadBackup::Malformed(2))));
    }
}
