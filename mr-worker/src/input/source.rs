//! Where bytes come from: a range of a file, or all that a compressed file unpacks to.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
};

use flate2::bufread::MultiGzDecoder;

use super::{Piece, READ_BYTES, Reading};
use crate::failure::Failure;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    #[default]
    None,
    /// As gzip members, one behind the other.
    Gzip,
    /// As zstd frames, one behind the other.
    Zstd,
}

/// What is unpacked before anybody asks how much it was before.
const EXPANSION_FREE_BYTES: u64 = 1 << 20;

/// Bytes in order.
pub(super) struct Source<'p> {
    piece: &'p Piece,
    bytes: Bytes<'p>,
}

enum Bytes<'p> {
    Range { file: &'p File, at: u64, end: u64 },
    Unpacked { stream: Box<dyn Read + 'p>, unpacked: u64, most: u64, times: u32 },
}

impl<'p> Source<'p> {
    /// The bytes from `first` to `last` of a file, or all of one that is compressed.
    pub(super) fn open(
        piece: &'p Piece,
        file: &'p File,
        reading: &Reading,
        first: u64,
        last: u64,
    ) -> Result<Self, Failure> {
        // Advice: that a file system has none changes nothing.
        let _ = rustix::fs::fadvise(file, first, None, rustix::fs::Advice::Sequential);
        let packed = BufReader::with_capacity(READ_BYTES / 4, file);
        let stream: Box<dyn Read + 'p> = match piece.packing {
            Packing::None => {
                return Ok(Self { piece, bytes: Bytes::Range { file, at: first, end: last } });
            }
            // An empty file unpacks to nothing, though no compressor wrote it.
            Packing::Gzip | Packing::Zstd if piece.file_bytes == 0 => Box::new(io::empty()),
            Packing::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Packing::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(packed);
                Box::new(decoder.map_err(|error| Failure::input(&piece.document, &error))?)
            }
        };
        let times = reading.expansion_max;
        let most = piece.file_bytes.saturating_mul(times.into()).max(EXPANSION_FREE_BYTES);
        Ok(Self { piece, bytes: Bytes::Unpacked { stream, unpacked: 0, most, times } })
    }

    /// Fills the buffer as far as there are bytes; how many it took.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        let piece = self.piece;
        match &mut self.bytes {
            Bytes::Range { file, at, end } => {
                let wanted = end.saturating_sub(*at).min(buffer.len() as u64) as usize;
                read_exact(piece, file, &mut buffer[..wanted], *at)?;
                *at += wanted as u64;
                Ok(wanted)
            }
            Bytes::Unpacked { stream, unpacked, most, times } => {
                let mut filled = 0;
                while filled < buffer.len() {
                    match stream.read(&mut buffer[filled..]) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) if error.raw_os_error().is_some() => {
                            return Err(Failure::input(&piece.document, &error));
                        }
                        Err(error) => {
                            return Err(piece.refuse(format!(
                                "it does not unpack beyond byte {}: {error}",
                                *unpacked + filled as u64
                            )));
                        }
                    }
                }
                *unpacked += filled as u64;
                if *unpacked > *most {
                    return Err(piece.refuse(format!(
                        "it unpacks to more than {times} times its size (limit expansion_max)"
                    )));
                }
                Ok(filled)
            }
        }
    }
}

/// Reads from a file that has so many bytes, or became shorter meanwhile.
pub(super) fn read_exact(
    piece: &Piece,
    file: &File,
    buffer: &mut [u8],
    offset: u64,
) -> Result<(), Failure> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => piece.refuse("it became shorter while it was read"),
        _ => Failure::input(&piece.document, &error),
    })
}
