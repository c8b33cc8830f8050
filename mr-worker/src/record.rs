//! Records as mappers see them, and the blocks that they are read in.

/// One record. Bytes are as they are in the file; nobody has checked that they are UTF-8.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The input's path, as the user named it.
    pub document: &'a str,
    /// What the job calls this input among several; empty if it has no name for it.
    pub tag: &'a str,
    /// Where the record begins in its file, or in what was compressed in it.
    pub offset: u64,
    /// What is before the first TAB of a line, in key-value format; else empty.
    pub key: &'a [u8],
    /// A line without its line feed, or what is behind its key; or so many bytes; or a whole file.
    pub value: &'a [u8],
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// A line.
    Lines {
        /// Whether a carriage return at its end is left out.
        strip_cr: bool,
    },
    /// A line, key and value parted by its first TAB; without one, all of it is the key.
    KeyValues {
        /// Whether a carriage return at its end is left out.
        strip_cr: bool,
    },
    /// So many bytes.
    Fixed(u32),
    /// A whole file.
    Files,
}

impl Records {
    /// Plain lines.
    pub const LINES: Self = Self::Lines { strip_cr: false };
}

impl Default for Records {
    fn default() -> Self {
        Self::LINES
    }
}

/// Whole records that lie side by side in one file.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The input's path, as the user named it.
    pub document: &'a str,
    /// What the job calls this input among several.
    pub tag: &'a str,
    /// Where the block begins in its file.
    pub offset: u64,
    /// The records, line feeds included.
    pub bytes: &'a [u8],
    /// What a record is.
    pub records: Records,
}

impl<'a> Block<'a> {
    /// Whether the block as a whole is as good as its records to an app that takes line ends for
    /// nothing but separators.
    #[must_use]
    pub fn is_text(&self) -> bool {
        match self.records {
            Records::Lines { .. } | Records::Files => true,
            Records::KeyValues { .. } | Records::Fixed(_) => false,
        }
    }

    /// How many records it has.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self.records {
            Records::Lines { .. } | Records::KeyValues { .. } => {
                let feeds = memchr::memchr_iter(b'\n', self.bytes).count() as u64;
                feeds + u64::from(self.bytes.last().is_some_and(|&last| last != b'\n'))
            }
            Records::Fixed(width) => (self.bytes.len() / width.max(1) as usize) as u64,
            Records::Files => 1,
        }
    }

    /// Its records.
    pub fn records(self) -> impl Iterator<Item = Record<'a>> {
        let mut at = 0;
        let mut over = false;
        std::iter::from_fn(move || {
            let rest = &self.bytes[at..];
            let offset = self.offset + at as u64;
            let (key, value) = match self.records {
                Records::Lines { strip_cr } => {
                    let (line, length) = line(rest, strip_cr)?;
                    at += length;
                    (&line[..0], line)
                }
                Records::KeyValues { strip_cr } => {
                    let (line, length) = line(rest, strip_cr)?;
                    at += length;
                    parted(line)
                }
                Records::Fixed(width) => {
                    let value = rest.get(..width as usize).filter(|value| !value.is_empty())?;
                    at += value.len();
                    (&value[..0], value)
                }
                Records::Files if over => return None,
                Records::Files => {
                    over = true;
                    (&rest[..0], rest)
                }
            };
            Some(Record { document: self.document, tag: self.tag, offset, key, value })
        })
    }
}

/// The first line without its end, and its length with it.
#[inline]
fn line(bytes: &[u8], strip_cr: bool) -> Option<(&[u8], usize)> {
    if bytes.is_empty() {
        return None;
    }
    let (line, length) = match memchr::memchr(b'\n', bytes) {
        Some(end) => (&bytes[..end], end + 1),
        None => (bytes, bytes.len()),
    };
    let stripped = if strip_cr { line.strip_suffix(b"\r") } else { None };
    Some((stripped.unwrap_or(line), length))
}

/// A line's key and value.
#[must_use]
pub fn parted(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'\t', line) {
        Some(tab) => (&line[..tab], &line[tab + 1..]),
        None => (line, &line[line.len()..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(bytes: &[u8], records: Records) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
        let block = Block { document: "d", tag: "", offset: 10, bytes, records };
        let found: Vec<_> = block
            .records()
            .map(|record| (record.offset, record.key.to_vec(), record.value.to_vec()))
            .collect();
        assert_eq!(found.len() as u64, block.count());
        found
    }

    fn expected(of: &[(u64, &str, &str)]) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
        of.iter()
            .map(|(at, key, value)| (*at, key.as_bytes().into(), value.as_bytes().into()))
            .collect()
    }

    #[test]
    fn lines_keep_all_but_their_line_feed() {
        let lines = expected(&[(10, "", "a\r"), (13, "", ""), (14, "", "b")]);
        assert_eq!(values(b"a\r\n\nb", Records::LINES), lines);
        assert_eq!(values(b"a\r\n\nb\n", Records::LINES), lines);
        assert_eq!(values(b"", Records::LINES), []);
        let stripped = expected(&[(10, "", "a"), (13, "", "b\rc")]);
        assert_eq!(values(b"a\r\nb\rc\r\n", Records::Lines { strip_cr: true }), stripped);
    }

    #[test]
    fn a_line_is_parted_at_its_first_tab() {
        let pairs = expected(&[(10, "k", "v\tw"), (16, "all", ""), (20, "", "v"), (23, "", "")]);
        let records = Records::KeyValues { strip_cr: false };
        assert_eq!(values(b"k\tv\tw\nall\n\tv\n\n", records), pairs);
    }

    #[test]
    fn records_of_one_width_lie_side_by_side() {
        let records = expected(&[(10, "", "abc"), (13, "", "d\ne")]);
        assert_eq!(values(b"abcd\ne", Records::Fixed(3)), records);
        assert_eq!(values(b"", Records::Fixed(3)), []);
        assert_eq!(values(b"", Records::Fixed(0)), []);
    }

    #[test]
    fn a_file_is_one_record_even_if_empty() {
        assert_eq!(values(b"a\nb\n", Records::Files), expected(&[(10, "", "a\nb\n")]));
        assert_eq!(values(b"", Records::Files), expected(&[(10, "", "")]));
    }
}
