//! Words: maximal runs of Unicode letters in bytes that need not be valid UTF-8.
//!
//! A letter is a character of category L, as Go's `unicode.IsLetter` has it; Rust's
//! `char::is_alphabetic` holds many more. A byte that is not part of a valid character separates,
//! as the U+FFFD that Go reads there would.
//!
//! ASCII is classified 64 bytes at a time, eight to a machine word, without a branch per byte; a
//! piece with any other byte takes the slow way, character by character.

use std::ops::Range;

use unicode_general_category::{GeneralCategory, get_general_category};

/// How many bytes are classified at once.
const CHUNK: usize = 64;

/// How many edges of words are listed before the words are looked at.
const EDGES: usize = 256;

/// How many of them are listed without asking whether there are so many.
const GROUP: usize = 8;

/// Whether `character` is of Unicode category L.
pub fn is_letter(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_alphabetic();
    }
    matches!(
        get_general_category(character),
        GeneralCategory::UppercaseLetter
            | GeneralCategory::LowercaseLetter
            | GeneralCategory::TitlecaseLetter
            | GeneralCategory::ModifierLetter
            | GeneralCategory::OtherLetter
    )
}

/// Calls `each` with every word of `text`, in order.
pub fn for_each_word(text: &[u8], mut each: impl FnMut(&[u8])) {
    for_each_place(text, |word| each(&text[word]));
}

/// Calls `each` with the place of every word of `text`, in order.
#[inline]
pub fn for_each_place(text: &[u8], mut each: impl FnMut(Range<usize>)) {
    let mut edges = Edges { places: [0; EDGES + 2 * CHUNK + GROUP], count: 0, inside: false };
    let mut at = 0;
    while at < text.len() {
        at = edges.find(text, at);
        if at >= text.len() && edges.inside {
            edges.push(text.len());
        }
        for [first, end] in edges.places[..edges.count].as_chunks().0 {
            each(*first..*end);
        }
        edges.keep_open();
    }
}

/// Where words begin and end, alternately. They are listed first: whoever reads the list has no
/// branch that depends on where in a chunk a word is, which nobody can predict.
struct Edges {
    places: [usize; EDGES + 2 * CHUNK + GROUP],
    count: usize,
    /// The last character was a letter.
    inside: bool,
}

impl Edges {
    /// Goes on from `at` until there are many edges, or no text; where it stopped.
    fn find(&mut self, text: &[u8], mut at: usize) -> usize {
        while self.count < EDGES && at < text.len() {
            let Some(chunk) = text[at..].first_chunk::<CHUNK>() else {
                return self.slow(text, at, text.len());
            };
            let Some(letters) = ascii_letters(chunk) else {
                at = self.slow(text, at, at + CHUNK);
                continue;
            };
            self.push_all(at, letters ^ ((letters << 1) | u64::from(self.inside)));
            self.inside = letters >> (CHUNK - 1) == 1;
            at += CHUNK;
        }
        at
    }

    /// Lists the places of the bits that are set, lowest first: so many at a time, that how many
    /// there are is seldom a branch that nobody can predict.
    #[inline]
    fn push_all(&mut self, at: usize, mut bits: u64) {
        let count = bits.count_ones() as usize;
        for group in self.places[self.count..].as_chunks_mut::<GROUP>().0 {
            for place in group {
                *place = at + bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
            }
            if bits == 0 {
                break;
            }
        }
        self.count += count;
    }

    #[inline]
    fn push(&mut self, place: usize) {
        self.places[self.count] = place;
        self.count += 1;
    }

    /// Forgets all words but one that has not ended.
    fn keep_open(&mut self) {
        if self.count % 2 == 1 {
            self.places[0] = self.places[self.count - 1];
        }
        self.count %= 2;
    }

    /// Goes on from `at`, character by character, until at least `until`; where it stopped.
    #[inline(never)]
    fn slow(&mut self, text: &[u8], mut at: usize, until: usize) -> usize {
        while at < until {
            let (letter, length) = decode(&text[at..]);
            if letter != self.inside {
                self.push(at);
            }
            self.inside = letter;
            at += length;
        }
        at
    }
}

/// Whether the first character of `bytes`, which are not empty, is a letter, and its length; a byte
/// that begins no valid character is no letter and one byte long.
fn decode(bytes: &[u8]) -> (bool, usize) {
    let length = match bytes[0] {
        0x00..=0x7f => return (bytes[0].is_ascii_alphabetic(), 1),
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

/// One bit for each byte that is an ASCII letter, the first byte lowest; nothing if any byte is not
/// ASCII.
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

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn words(text: &[u8]) -> Vec<String> {
        let mut words = Vec::new();
        for_each_word(text, |word| words.push(String::from_utf8(word.to_vec()).unwrap()));
        words
    }

    /// The definition, written without any regard for speed.
    fn naive(text: &[u8]) -> Vec<String> {
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
        words
    }

    #[test]
    fn letters_are_category_l_and_nothing_else() {
        for letter in
            ['a', 'Z', 'ª', 'ß', 'ǅ', 'ʰ', 'Ω', 'я', 'א', '中', 'ア', '한', '𝒜', '\u{10ffff}']
        {
            assert_eq!(is_letter(letter), letter != '\u{10ffff}', "{letter:?}");
        }
        // Alphabetic for Rust, yet a mark, a letter number and a symbol.
        for other in ['\u{345}', 'Ⅰ', 'Ⓐ', '\u{903}', '0', '_', '\'', '²', '\u{fffd}', '€'] {
            assert!(!is_letter(other), "{other:?}");
        }
        let letters = (0..=char::MAX as u32).filter_map(char::from_u32).filter(|&c| is_letter(c));
        let mut count = 0;
        for letter in letters {
            assert!(letter.is_alphabetic(), "{letter:?}");
            count += 1;
        }
        assert_eq!(count, LETTERS_OF_UNICODE_16);
    }

    /// The sum of the five L rows of the derived general categories of Unicode 16.
    const LETTERS_OF_UNICODE_16: usize = 141_028;

    #[test]
    fn words_end_at_every_other_character() {
        assert_eq!(words(b"don't stop_2day"), ["don", "t", "stop", "day"]);
        assert_eq!(words("naïve Ⅰ 中文, x".as_bytes()), ["naïve", "中文", "x"]);
        assert_eq!(words(b""), Vec::<String>::new());
    }

    #[test]
    fn a_bad_byte_separates() {
        assert_eq!(words(b"ab\xffcd\xe2\x82ef\xc3"), ["ab", "cd", "ef"]);
        assert_eq!(words(b"x\xed\xa0\x80y\xf5z"), ["x", "y", "z"]);
    }

    #[test]
    fn the_fast_way_finds_what_the_definition_says() {
        let mut rng = StdRng::seed_from_u64(7);
        let pieces: [&[u8]; 9] = [
            b"word",
            b"A",
            b" ",
            b"\n",
            b"'",
            "é".as_bytes(),
            "中".as_bytes(),
            b"\xff",
            b"\xe4\xb8",
        ];
        for _ in 0..2_000 {
            let mut text = Vec::new();
            let ascii_only = rng.random_range(0..3) == 0;
            for _ in 0..rng.random_range(0..120) {
                let choices = if ascii_only { 5 } else { pieces.len() };
                text.extend_from_slice(pieces[rng.random_range(0..choices)]);
            }
            assert_eq!(words(&text), naive(&text), "{text:?}");
        }
        let all: Vec<u8> = (0..=127).cycle().take(1_000).collect();
        assert_eq!(words(&all), naive(&all));
    }
}
