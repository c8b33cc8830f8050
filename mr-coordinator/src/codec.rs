//! How commands, plans and snapshots are laid out as bytes: little-endian numbers, texts with
//! their length before them.
//!
//! Decides the primitives only. Every length is checked against what is there before anything is
//! allocated, so bytes from outside cannot ask for memory.

#![deny(clippy::disallowed_types)]

/// Bytes that do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBytes {
    /// They end too early.
    #[error("the bytes end within {0}")]
    Short(&'static str),
    /// A number stands for none of the known cases.
    #[error("{what} {value} is not known")]
    Tag {
        /// What it should have named.
        what: &'static str,
        /// The number.
        value: u8,
    },
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// Something follows the end.
    #[error("{0} bytes too many")]
    Long(usize),
    /// The parts contradict each other.
    #[error("{0}")]
    Wrong(&'static str),
}

impl BadBytes {
    pub(crate) fn tag(what: &'static str, value: u8) -> Self {
        Self::Tag { what, value }
    }
}

/// Writes.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Writes a number.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Writes a number.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Writes a number.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Writes a number.
    pub fn u128(&mut self, value: u128) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Writes how many of something follow.
    ///
    /// # Panics
    /// Beyond 2^32, which no limit of the coordinator allows.
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("every list is bounded far below 2^32"));
    }

    /// Writes bytes with their length before them.
    pub fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.bytes.extend_from_slice(value);
    }

    /// Writes a text.
    pub fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// Writes whether something is there, and it.
    pub fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                put(self, value);
            }
        }
    }
}

/// Reads.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Begins at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// [`BadBytes::Short`] when there are fewer.
    pub fn raw(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], BadBytes> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(BadBytes::Short(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadBytes> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(BadBytes::Short("a number"))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// When there is none.
    pub fn u8(&mut self) -> Result<u8, BadBytes> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Reads a number.
    ///
    /// # Errors
    /// When the bytes end.
    pub fn u16(&mut self) -> Result<u16, BadBytes> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Reads a number.
    ///
    /// # Errors
    /// When the bytes end.
    pub fn u32(&mut self) -> Result<u32, BadBytes> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads a number.
    ///
    /// # Errors
    /// When the bytes end.
    pub fn u64(&mut self) -> Result<u64, BadBytes> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a number.
    ///
    /// # Errors
    /// When the bytes end.
    pub fn u128(&mut self) -> Result<u128, BadBytes> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// Reads how many of something follow, each at least a byte long.
    ///
    /// # Errors
    /// When that many cannot be there.
    pub fn count(&mut self) -> Result<usize, BadBytes> {
        let count = self.u32()? as usize;
        if count > self.rest.len() { Err(BadBytes::Short("a list")) } else { Ok(count) }
    }

    /// Reads bytes with their length before them.
    ///
    /// # Errors
    /// When they end early.
    pub fn bytes(&mut self) -> Result<&'a [u8], BadBytes> {
        let count = self.count()?;
        self.raw(count, "bytes")
    }

    /// Reads a text.
    ///
    /// # Errors
    /// When it ends early or is not UTF-8.
    pub fn text(&mut self) -> Result<String, BadBytes> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BadBytes::Text)
    }

    /// Reads what [`Encoder::option`] wrote.
    ///
    /// # Errors
    /// When it does not decode.
    pub fn option<T>(
        &mut self,
        take: impl FnOnce(&mut Self) -> Result<T, BadBytes>,
    ) -> Result<Option<T>, BadBytes> {
        match self.u8()? {
            0 => Ok(None),
            1 => take(self).map(Some),
            other => Err(BadBytes::tag("option", other)),
        }
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`BadBytes::Long`] when something is.
    pub fn end(&self) -> Result<(), BadBytes> {
        if self.rest.is_empty() { Ok(()) } else { Err(BadBytes::Long(self.rest.len())) }
    }
}

/// Cuts a text to at most so many bytes, at the boundary of a character.
#[must_use]
pub fn clip(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_beyond_the_bytes_is_refused_before_it_is_allocated() {
        let mut out = Encoder::new();
        out.u32(u32::MAX);
        let bytes = out.finish();
        assert_eq!(Decoder::new(&bytes).bytes(), Err(BadBytes::Short("a list")));
    }

    #[test]
    fn clip_keeps_characters_whole() {
        assert_eq!(clip("aé", 2), "a");
        assert_eq!(clip("aé", 3), "aé");
        assert_eq!(clip("aé", 99), "aé");
    }
}
