//! Lines, within a limit on their length.
//!
//! A block is as many whole lines as were read at once. Only where it is longer than the limit are
//! its lines looked at one by one.

use std::fs::File;

use super::{
    Each, LongLines, Piece, READ_BYTES, Reading, Taken,
    source::{Packing, Source, read_exact},
};
use crate::failure::Failure;

/// Hands the lines that begin in a piece, which ends at `end`, to `each`.
pub(super) fn read(
    piece: &Piece,
    file: &File,
    reading: &Reading,
    end: u64,
    each: Each<'_>,
) -> Result<Taken, Failure> {
    let (first, last) = match piece.packing {
        Packing::None => {
            let start = |at| line_start(piece, file, reading, at);
            (start(piece.start)?, start(end)?)
        }
        Packing::Gzip | Packing::Zstd => (0, piece.file_bytes),
    };
    let mut lines = Lines {
        piece,
        reading,
        each,
        buffer: vec![0; READ_BYTES],
        kept: 0,
        at: first,
        discarding: false,
        long_lines: 0,
    };
    if last > first {
        let mut source = Source::open(piece, file, reading, first, last)?;
        while lines.read(&mut source)? {}
    }
    Ok(Taken { bytes: last.saturating_sub(first), long_lines: lines.long_lines })
}

struct Lines<'l> {
    piece: &'l Piece,
    reading: &'l Reading,
    each: Each<'l>,
    buffer: Vec<u8>,
    /// How many bytes at the beginning of the buffer are of a line whose end was not yet read.
    kept: usize,
    /// Where the buffer begins.
    at: u64,
    /// Whether what is read belongs to a line that is beyond the limit already.
    discarding: bool,
    long_lines: u64,
}

impl Lines<'_> {
    /// Reads on and hands out the lines that have ended; false at the end.
    fn read(&mut self, source: &mut Source<'_>) -> Result<bool, Failure> {
        if self.kept == self.buffer.len() {
            // No more than the limit asks for, and the line feed behind it.
            let longest = self.reading.line_bytes_max + READ_BYTES;
            self.buffer.resize((2 * self.kept).min(longest), 0);
        }
        let read = source.fill(&mut self.buffer[self.kept..])?;
        let filled = self.kept + read;
        let is_over = filled < self.buffer.len();
        let new = &self.buffer[self.kept..filled];
        let whole = match memchr::memrchr(b'\n', new) {
            Some(found) => self.kept + found + 1,
            None => 0,
        };
        let whole = if is_over { filled } else { whole };
        self.hand_out(whole)?;
        self.buffer.copy_within(whole..filled, 0);
        self.kept = filled - whole;
        self.at += whole as u64;
        if self.kept > self.reading.line_bytes_max && !is_over {
            self.give_up_line()?;
        }
        Ok(!is_over)
    }

    /// Hands out the first `whole` bytes, which end with a line.
    fn hand_out(&mut self, whole: usize) -> Result<(), Failure> {
        let mut from = 0;
        if self.discarding && whole > 0 {
            from = memchr::memchr(b'\n', &self.buffer[..whole]).map_or(whole, |found| found + 1);
            self.discarding = false;
        }
        if whole - from <= self.reading.line_bytes_max {
            return self.emit(from, whole);
        }
        let mut good = from;
        let mut line = from;
        while line < whole {
            let rest = &self.buffer[line..whole];
            let (length, next) = match memchr::memchr(b'\n', rest) {
                Some(length) => (length, line + length + 1),
                None => (rest.len(), whole),
            };
            if length > self.reading.line_bytes_max {
                self.emit(good, line)?;
                self.long_line(line)?;
                good = next;
            }
            line = next;
        }
        self.emit(good, whole)
    }

    fn emit(&mut self, from: usize, to: usize) -> Result<(), Failure> {
        if from == to {
            return Ok(());
        }
        let offset = self.at + from as u64;
        (self.each)(self.piece.block(offset, &self.buffer[from..to], self.reading.records))
    }

    /// The line that begins there is beyond the limit.
    fn long_line(&mut self, from: usize) -> Result<(), Failure> {
        self.long_lines += 1;
        match self.reading.long_lines {
            LongLines::Fail => Err(self.piece.refuse(format!(
                "the line at byte {} is longer than {} bytes (limit line_bytes_max)",
                self.at + from as u64,
                self.reading.line_bytes_max
            ))),
            LongLines::Skip => Ok(()),
            LongLines::Cut => self.emit(from, from + self.reading.line_bytes_max),
        }
    }

    /// What is kept is too long for a line, whatever follows.
    fn give_up_line(&mut self) -> Result<(), Failure> {
        if !self.discarding {
            self.long_line(0)?;
        }
        self.discarding = true;
        self.at += self.kept as u64;
        self.kept = 0;
        Ok(())
    }
}

/// The first offset at or behind `from` at which a line begins, or the end of the file.
fn line_start(piece: &Piece, file: &File, reading: &Reading, from: u64) -> Result<u64, Failure> {
    const SCAN_BYTES: usize = 16 << 10;
    if from == 0 {
        return Ok(0);
    }
    let mut buffer = vec![0; SCAN_BYTES];
    let mut at = from - 1;
    while at < piece.file_bytes {
        let wanted = (piece.file_bytes - at).min(SCAN_BYTES as u64) as usize;
        read_exact(piece, file, &mut buffer[..wanted], at)?;
        if let Some(found) = memchr::memchr(b'\n', &buffer[..wanted]) {
            return Ok(at + found as u64 + 1);
        }
        at += wanted as u64;
        let fails = reading.long_lines == LongLines::Fail;
        if fails && at - from > reading.line_bytes_max as u64 {
            return Err(piece.refuse(format!(
                "the line at or before byte {from} is longer than {} bytes (limit line_bytes_max)",
                reading.line_bytes_max
            )));
        }
    }
    Ok(piece.file_bytes)
}
