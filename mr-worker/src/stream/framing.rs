//! How records and pairs are told apart on the pipes of a program.
//!
//! Lines are Hadoop Streaming's: `key TAB value LF` in, and out up to the first TAB the key, the
//! rest the value, without a TAB all of it the key. Lines end with a line feed alone. Lengths are
//! for bytes of any kind: `key length u32 LE | key | value length u32 LE | value`, both ways.

use std::io::{self, Read};

use crate::{combine::KEY_BYTES_MAX, failure::Failure, fold::VALUE_BYTES_MAX};

/// How much of a program's output is read at a time.
const READ_BYTES: usize = 256 << 10;

/// How records and pairs are told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// By line feeds.
    #[default]
    Lines,
    /// By their lengths.
    Lengths,
}

/// Takes what a program writes.
pub(super) trait Sink {
    /// A line, without its line feed.
    fn line(&mut self, line: &[u8]) -> Result<(), Failure>;
    /// A pair with lengths.
    fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure>;
    /// What the program counted on standard error.
    fn count(&mut self, counter: &str, count: u64) -> Result<(), Failure>;
    /// The failure of what was taken, where that is told afterwards.
    fn check(&mut self) -> Result<(), Failure>;
}

/// Appends a pair as a program is to read it.
pub(super) fn put(out: &mut Vec<u8>, framing: Framing, key: &[u8], value: &[u8]) {
    match framing {
        Framing::Lines => {
            out.extend_from_slice(key);
            out.push(b'\t');
            out.extend_from_slice(value);
            out.push(b'\n');
        }
        Framing::Lengths => {
            for part in [key, value] {
                let length = u32::try_from(part.len()).expect("records are far below 4 GiB");
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(part);
            }
        }
    }
}

/// Cuts what a program writes into lines or pairs.
#[derive(Debug)]
pub(super) struct Cutter {
    framing: Framing,
    line_bytes_max: usize,
    buffer: Vec<u8>,
    /// How much of the buffer is filled, and how far it was looked at for a line feed.
    filled: usize,
    looked: usize,
}

impl Cutter {
    pub(super) fn new(framing: Framing, line_bytes_max: usize) -> Self {
        Self { framing, line_bytes_max, buffer: vec![0; 2 * READ_BYTES], filled: 0, looked: 0 }
    }

    /// Reads once; how much there was, 0 at the end.
    pub(super) fn read(&mut self, from: &mut impl Read) -> io::Result<usize> {
        if self.buffer.len() - self.filled < READ_BYTES {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let read = from.read(&mut self.buffer[self.filled..])?;
        self.filled += read;
        Ok(read)
    }

    /// Hands on what is whole.
    pub(super) fn cut(&mut self, sink: &mut dyn Sink) -> Result<(), Failure> {
        let taken = match self.framing {
            Framing::Lines => self.lines(sink)?,
            Framing::Lengths => self.pairs(sink)?,
        };
        self.buffer.copy_within(taken..self.filled, 0);
        self.filled -= taken;
        self.looked = self.filled;
        sink.check()
    }

    fn lines(&self, sink: &mut dyn Sink) -> Result<usize, Failure> {
        let (mut begin, mut looked) = (0, self.looked);
        while let Some(feed) = memchr::memchr(b'\n', &self.buffer[looked..self.filled]) {
            let end = looked + feed;
            self.check_line(end - begin)?;
            sink.line(&self.buffer[begin..end])?;
            (begin, looked) = (end + 1, end + 1);
        }
        self.check_line(self.filled - begin)?;
        Ok(begin)
    }

    fn check_line(&self, bytes: usize) -> Result<(), Failure> {
        if bytes <= self.line_bytes_max {
            return Ok(());
        }
        Err(Failure::fatal(format!(
            "the program wrote a line of more than {} bytes (limit line_bytes_max, --line-limit)",
            self.line_bytes_max
        )))
    }

    fn pairs(&self, sink: &mut dyn Sink) -> Result<usize, Failure> {
        let mut rest = &self.buffer[..self.filled];
        while let Some((key, behind)) = part(rest, "key", KEY_BYTES_MAX)?
            && let Some((value, behind)) = part(behind, "value", VALUE_BYTES_MAX)?
        {
            sink.pair(key, value)?;
            rest = behind;
        }
        Ok(self.filled - rest.len())
    }

    /// The program writes no more: a last line needs no line feed, a pair has to be whole.
    pub(super) fn end(&mut self, sink: &mut dyn Sink) -> Result<(), Failure> {
        let left = &self.buffer[..std::mem::take(&mut self.filled)];
        match self.framing {
            _ if left.is_empty() => {}
            Framing::Lines => sink.line(left)?,
            Framing::Lengths => {
                return Err(Failure::user("the program's output ends within a pair"));
            }
        }
        sink.check()
    }
}

/// What stands behind its length, if all of it is there, and what follows.
#[allow(clippy::type_complexity, reason = "it is a pair, if there is one, unless it is too long")]
fn part<'b>(
    bytes: &'b [u8],
    what: &str,
    bytes_max: usize,
) -> Result<Option<(&'b [u8], &'b [u8])>, Failure> {
    let Some((length, behind)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > bytes_max {
        return Err(Failure::user(format!(
            "the program announced a {what} of {length} bytes, more than {bytes_max}; does it \
             write with --framing lengths?"
        )));
    }
    Ok(behind.split_at_checked(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair = (Vec<u8>, Vec<u8>);

    #[derive(Default)]
    struct Kept(Vec<Pair>);

    impl Sink for Kept {
        fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
            self.0.push((line.to_vec(), Vec::new()));
            Ok(())
        }

        fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
            self.0.push((key.to_vec(), value.to_vec()));
            Ok(())
        }

        fn count(&mut self, _: &str, _: u64) -> Result<(), Failure> {
            Ok(())
        }

        fn check(&mut self) -> Result<(), Failure> {
            Ok(())
        }
    }

    /// A pipe that gives so many bytes at a time.
    struct Drip<'b>(&'b [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(self.1).min(into.len());
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn cut(framing: Framing, bytes: &[u8], step: usize) -> Result<Vec<Pair>, Failure> {
        let (mut cutter, mut kept, mut drip) =
            (Cutter::new(framing, 10), Kept::default(), Drip(bytes, step));
        while cutter.read(&mut drip).unwrap() > 0 {
            cutter.cut(&mut kept)?;
        }
        cutter.end(&mut kept)?;
        Ok(kept.0)
    }

    #[test]
    fn lines_and_pairs_are_the_same_however_they_arrive() {
        let pairs: [(&[u8], &[u8]); 3] = [(b"k", b"a\nb"), (b"", b""), (b"\t", b"\xff")];
        let mut framed = Vec::new();
        for (key, value) in pairs {
            put(&mut framed, Framing::Lengths, key, value);
        }
        for step in [1, 2, 3, 7, 1_000] {
            let lines = cut(Framing::Lines, b"a\tb\n\nlast", step).unwrap();
            let lines: Vec<&[u8]> = lines.iter().map(|(line, _)| &line[..]).collect();
            assert_eq!(lines, [&b"a\tb"[..], b"", b"last"]);
            let found = cut(Framing::Lengths, &framed, step).unwrap();
            assert!(found.iter().map(|(key, value)| (&key[..], &value[..])).eq(pairs));
        }
    }

    #[test]
    fn what_is_too_long_or_cut_short_is_refused() {
        for step in [1, 100] {
            let named = |error: Failure, word: &str| error.to_string().contains(word);
            let long = cut(Framing::Lines, b"12345678901\n", step).unwrap_err();
            assert!(named(long, "line_bytes_max"));
            assert_eq!(cut(Framing::Lines, b"1234567890\n", step).unwrap().len(), 1);
            let huge = cut(Framing::Lengths, &[0xff; 8], step).unwrap_err();
            assert!(named(huge, "announced a key"));
            let short = cut(Framing::Lengths, &[1, 0, 0, 0, b'k'], step).unwrap_err();
            assert!(named(short, "within a pair"));
        }
    }
}
