//! Where words begin and end: maximal runs of Unicode letters in bytes that need not be valid
//! UTF-8, as Flotilla's own `wc` has them.
//!
//! A letter is a character of category L. A byte that is not part of a valid character separates.
//! ASCII is classified 64 bytes at a time; what is found are the edges of words, alternately where
//! one begins and where it ends, as a list: whoever reads that has no branch that depends on where
//! in the 64 bytes a word is. Pieces with any other byte are taken character by character.

use unicode_general_category::{GeneralCategory, get_general_category};

use crate::input::PADDING;

/// How many bytes are classified at once.
const CHUNK: usize = 64;

/// How many edges are written without asking whether there are so many.
const GROUP: usize = 8;

/// The edges of the words of a text, as they are found.
#[derive(Debug)]
pub(crate) struct Edges {
    /// Twice the capacity of what is asked for, so that a chunk fits in whatever it holds.
    places: Vec<u32>,
    count: usize,
    wanted: usize,
}

/// How far a text has been looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    at: usize,
    /// 1 if the last character was a letter.
    inside: u64,
}

impl Edges {
    /// Room for at least `words` words, and for all of the chunk that fills it.
    pub(crate) fn new(words: usize) -> Self {
        let wanted = 2 * words;
        // One edge may have been left over, and a piece that is taken slowly may be a little longer.
        Self { places: vec![0; wanted + 2 * CHUNK + 2 * GROUP], count: 0, wanted }
    }

    /// The most words that are found at a time.
    pub(crate) fn words_max(&self) -> usize {
        self.places.len() / 2
    }

    /// Finds the next words of `padded`, whose last [`PADDING`] bytes are no letters; false when
    /// there are no more.
    pub(crate) fn find(&mut self, padded: &[u8], cursor: &mut Cursor) -> bool {
        // A word that has begun already keeps its first edge.
        if !self.count.is_multiple_of(2) {
            self.places[0] = self.places[self.count - 1];
        }
        self.count %= 2;
        let length = padded.len() - PADDING;
        while self.count < self.wanted && cursor.at < length {
            let chunk: &[u8; CHUNK] =
                padded[cursor.at..].first_chunk().expect("there is padding behind the text");
            match ascii_letters(chunk) {
                Some(letters) => {
                    let edges = letters ^ ((letters << 1) | cursor.inside);
                    cursor.inside = letters >> (CHUNK - 1);
                    self.push_all(cursor.at, edges);
                    cursor.at += CHUNK;
                }
                None => self.slow(padded, cursor),
            }
        }
        if cursor.at >= length && !self.count.is_multiple_of(2) {
            self.push(length);
        }
        self.count > 1
    }

    /// Where the words that were found begin and end.
    #[inline]
    pub(crate) fn words(&self) -> &[[u32; 2]] {
        self.places[..self.count].as_chunks().0
    }

    #[inline]
    fn push_all(&mut self, at: usize, mut edges: u64) {
        let count = edges.count_ones() as usize;
        let mut group = self.count;
        while edges != 0 {
            let places: &mut [u32; GROUP] =
                self.places[group..].first_chunk_mut().expect("a chunk fits in");
            for place in places {
                *place = at as u32 + edges.trailing_zeros();
                edges &= edges.wrapping_sub(1);
            }
            group += GROUP;
        }
        self.count += count;
    }

    fn push(&mut self, place: usize) {
        self.places[self.count] = place as u32;
        self.count += 1;
    }

    /// Takes a chunk character by character.
    #[cold]
    #[inline(never)]
    fn slow(&mut self, padded: &[u8], cursor: &mut Cursor) {
        let until = cursor.at + CHUNK;
        while cursor.at < until.min(padded.len()) {
            let (letter, length) = decode(&padded[cursor.at..]);
            if letter != (cursor.inside == 1) {
                self.push(cursor.at);
            }
            cursor.inside = u64::from(letter);
            cursor.at += length;
        }
    }
}

/// One bit for each byte that is an ASCII letter, the first byte lowest; nothing if any byte is not
/// ASCII. Eight bytes at a time in a machine word: the compiler makes better vectors of it than
/// vectors written by hand (205 ms for 1 GiB in two threads, against 275 ms with SSE2).
#[inline]
fn ascii_letters(chunk: &[u8; CHUNK]) -> Option<u64> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES << 7;
    let mut letters = 0;
    let mut seen = 0;
    for (place, bytes) in chunk.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*bytes);
        seen |= word;
        // In ASCII no sum carries into the next byte: 0x7f + 0x1f is below 0x100.
        let lower = (word & !HIGH) | (ONES * 0x20);
        let from_a = lower + ONES * u64::from(0x80 - b'a');
        let past_z = lower + ONES * u64::from(0x80 - b'z' - 1);
        let found = (from_a & !past_z & HIGH) >> 7;
        // The product moves bit 0 of byte i to bit 56 + i.
        letters |= (found.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * place);
    }
    (seen & HIGH == 0).then_some(letters)
}

/// Whether `character` is of Unicode category L.
fn is_letter(character: char) -> bool {
    matches!(
        get_general_category(character),
        GeneralCategory::UppercaseLetter
            | GeneralCategory::LowercaseLetter
            | GeneralCategory::TitlecaseLetter
            | GeneralCategory::ModifierLetter
            | GeneralCategory::OtherLetter
    )
}

/// Whether the first character of `bytes`, which are not empty, is a letter, and its length; a byte
/// that begins no valid character is no letter and one byte long.
fn decode(bytes: &[u8]) -> (bool, usize) {
    let length = match bytes[0] {
        byte @ 0x00..=0x7f => return (byte.is_ascii_alphabetic(), 1),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return (false, 1),
    };
    let character =
        bytes.get(..length).and_then(|bytes| str::from_utf8(bytes).ok()?.chars().next());
    match character {
        Some(character) => (is_letter(character), length),
        None => (false, 1),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::random::Random;

    fn words(text: &[u8], at_a_time: usize) -> Vec<Vec<u8>> {
        let mut padded = text.to_vec();
        padded.resize(text.len() + PADDING, 0);
        let mut edges = Edges::new(at_a_time);
        let mut cursor = Cursor::default();
        let mut words = Vec::new();
        while edges.find(&padded, &mut cursor) {
            let found = edges.words().iter();
            words.extend(found.map(|&[begin, end]| text[begin as usize..end as usize].to_vec()));
        }
        words
    }

    /// The definition, written without any regard for speed.
    pub(crate) fn naive(text: &[u8]) -> Vec<Vec<u8>> {
        let mut words = vec![String::new()];
        for piece in text.utf8_chunks() {
            for character in piece.valid().chars() {
                match is_letter(character) {
                    true => words.last_mut().unwrap().push(character),
                    false => words.push(String::new()),
                }
            }
            if !piece.invalid().is_empty() {
                words.push(String::new());
            }
        }
        words.retain(|word| !word.is_empty());
        words.into_iter().map(String::into_bytes).collect()
    }

    #[test]
    fn a_bad_byte_separates_and_a_mark_is_no_letter() {
        let expected: [&[u8]; 5] = [b"ab", b"cd", "naïve".as_bytes(), "中文".as_bytes(), b"x"];
        let text = "ab\u{345}cd Ⅰ naïve² 中文_x".as_bytes();
        assert_eq!(words(text, 10), expected);
        assert_eq!(words(b"ab\xffcd\xe2\x82ef\xc3", 1), [b"ab", b"cd", b"ef"]);
    }

    #[test]
    fn the_fast_way_finds_what_the_definition_says() {
        let mut random = Random::new(7, 0);
        let pieces: [&[u8]; 10] = [
            b"word",
            b"A",
            b"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
            b" ",
            b"\n",
            b"'",
            "é".as_bytes(),
            "中".as_bytes(),
            b"\xff",
            b"\xe4\xb8",
        ];
        for _ in 0..3_000 {
            let mut text = Vec::new();
            let choices = if random.below(3) == 0 { 6 } else { pieces.len() as u64 };
            for _ in 0..random.below(120) {
                text.extend_from_slice(pieces[random.below(choices) as usize]);
            }
            let at_a_time = 1 + random.below(40) as usize;
            assert_eq!(words(&text, at_a_time), naive(&text), "{text:?}");
        }
        let all: Vec<u8> = (0..=127).cycle().take(1_000).collect();
        assert_eq!(words(&all, 3), naive(&all));
    }
}
