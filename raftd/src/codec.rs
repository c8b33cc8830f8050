//! Reading and writing the integers and byte strings that the commands and snapshots of state
//! machines are made of. Pure.
//!
//! Decides only the representation: LEB128 for numbers, a length before each byte string. Reading
//! is total: whatever the bytes, it ends in a value or in [`Malformed`], and it allocates nothing.

use raft::BadSnapshot;

/// Bytes that are not what they should be; names the part that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for BadSnapshot {
    fn from(malformed: Malformed) -> Self {
        Self(malformed.to_string())
    }
}

/// Appends a number, seven bits a byte, the lowest first.
pub fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a byte string behind its length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is still to be read.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads these bytes from their beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are still to be read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// One byte. `what` names it in the error, here as below.
    ///
    /// # Errors
    /// [`Malformed`], at the end.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, Malformed> {
        let (&byte, rest) = self.rest.split_first().ok_or(Malformed(what))?;
        self.rest = rest;
        Ok(byte)
    }

    /// A number of at most 64 bits.
    ///
    /// # Errors
    /// [`Malformed`], at the end or when it is larger.
    pub fn number(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let mut number = 0_u64;
        for place in 0..10 {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if place == 9 && bits > 1 {
                return Err(Malformed(what));
            }
            number |= bits << (7 * place);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed(what))
    }

    /// A number of at most 32 bits.
    ///
    /// # Errors
    /// [`Malformed`], at the end or when it is larger.
    pub fn number32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        u32::try_from(self.number(what)?).map_err(|_| Malformed(what))
    }

    /// So many bytes.
    ///
    /// # Errors
    /// [`Malformed`], when there are fewer.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed(what))?;
        self.rest = rest;
        Ok(taken)
    }

    /// As many bytes as the array has.
    ///
    /// # Errors
    /// [`Malformed`], when there are fewer.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed(what))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A byte string behind its length.
    ///
    /// # Errors
    /// [`Malformed`], when it is not whole.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let count = usize::try_from(self.number(what)?).map_err(|_| Malformed(what))?;
        self.take(count, what)
    }

    /// All that is still to be read.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_number(&mut out, number);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.number("number"), Ok(number));
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn a_number_over_64_bits_is_refused() {
        let mut too_large = [0xff; 10];
        too_large[9] = 0x02;
        assert_eq!(Reader::new(&too_large).number("number"), Err(Malformed("number")));
        assert_eq!(Reader::new(&[0x80; 11]).number("number"), Err(Malformed("number")));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        let mut out = Vec::new();
        put_number(&mut out, u64::MAX);
        out.push(7);
        assert_eq!(Reader::new(&out).bytes("key"), Err(Malformed("key")));
    }
}
