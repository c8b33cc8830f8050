//! Generated records of 100 bytes that are lines of text as well, as in TeraSort's ASCII form: a
//! random key of 10 bytes, the number of the record, random filling, and a line feed.
//!
//! Filling is random so that nobody gains by compressing it.

use std::io::{self, Write};

use crate::random::Random;

/// How long a record is, its line feed included.
pub const RECORD_BYTES: usize = 100;

/// How many bytes of it are its key.
pub const KEY_BYTES: usize = 10;

/// The digits of a record's number.
const NUMBER_BYTES: usize = 20;

/// Bytes of keys are printable and no space, so that nobody trims or quotes them away.
const KEY_FIRST: u8 = b'!';
const KEY_CHOICES: u64 = 94;

/// Writes the records from number `first` on, of the stream number `stream` of `seed`.
///
/// # Errors
/// What `out` says.
pub fn write(
    seed: u64,
    stream: u64,
    first: u64,
    count: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut random = Random::new(seed, stream);
    let mut record = [b' '; RECORD_BYTES];
    record[RECORD_BYTES - 1] = b'\n';
    for number in first..first + count {
        fill(&mut record, number, &mut random);
        out.write_all(&record)?;
    }
    Ok(())
}

/// Everything but the spaces around the number and the line feed.
fn fill(record: &mut [u8; RECORD_BYTES], number: u64, random: &mut Random) {
    let (mut high, mut low) = (random.draw(), random.draw());
    let (key, rest) = record.split_at_mut(KEY_BYTES);
    let (left, right) = key.split_at_mut(KEY_BYTES / 2);
    for (left, right) in left.iter_mut().zip(right) {
        *left = KEY_FIRST + digit(&mut high);
        *right = KEY_FIRST + digit(&mut low);
    }
    let mut left = number;
    for byte in rest[1..=NUMBER_BYTES].iter_mut().rev() {
        *byte = b'0' + (left % 10) as u8;
        left /= 10;
    }
    let filling = NUMBER_BYTES + 2..RECORD_BYTES - KEY_BYTES - 1;
    for bytes in rest[filling].chunks_mut(8) {
        let drawn = random.draw().to_le_bytes();
        for (byte, drawn) in bytes.iter_mut().zip(drawn) {
            *byte = b'0' + (drawn & 0x3f);
        }
    }
}

/// The next byte of a key out of a number that is taken as a fraction of 2^64.
#[inline]
fn digit(fraction: &mut u64) -> u8 {
    let scaled = u128::from(*fraction) * u128::from(KEY_CHOICES);
    *fraction = scaled as u64;
    (scaled >> 64) as u8
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn records(seed: u64, stream: u64) -> Vec<u8> {
        let mut out = Vec::new();
        write(seed, stream, 1_000, 2_000, &mut out).unwrap();
        out
    }

    #[test]
    fn the_same_seed_gives_the_same_records() {
        assert_eq!(records(1, 0), records(1, 0));
        assert_ne!(records(1, 0), records(1, 1));
        assert_ne!(records(1, 0), records(2, 0));
    }

    #[test]
    fn records_are_lines_that_carry_their_number() {
        let records = records(3, 0);
        let lines: Vec<&str> = str::from_utf8(&records).unwrap().lines().collect();
        assert_eq!(lines.len(), 2_000);
        let mut keys = HashSet::new();
        let mut used = HashSet::new();
        for (line, number) in lines.iter().zip(1_000_u64..) {
            assert_eq!(line.len(), RECORD_BYTES - 1);
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
            let text = &line[KEY_BYTES + 1..KEY_BYTES + 1 + NUMBER_BYTES];
            assert_eq!(text.parse::<u64>().unwrap(), number);
            keys.insert(&line[..KEY_BYTES]);
            used.extend(line[..KEY_BYTES].bytes());
        }
        assert_eq!((keys.len(), used.len() as u64), (2_000, KEY_CHOICES));
        assert!(used.iter().all(|byte| byte.is_ascii_graphic()));
    }
}
