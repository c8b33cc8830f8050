//! Generated text: words drawn by Zipf's law from a vocabulary of random words.
//!
//! The word of rank r occurs with a frequency that falls as r to the power of -[`EXPONENT`], and is
//! the longer the rarer it is, about as in English: tokens have five letters on average, distinct
//! words eight. Between words are spaces, commas, full stops, apostrophes, hyphens and numbers. A
//! line in ten thousand holds [`RARE`], for a search that finds little.

use std::{
    collections::HashSet,
    io::{self, Write},
};

use crate::random::Random;

/// How many distinct words there are unless it is said otherwise.
pub const VOCABULARY_DEFAULT: u32 = 1_000_000;

/// A word that is not of the vocabulary, in few lines.
pub const RARE: &str = "Flotilla";

/// How many lines there are for each that holds [`RARE`].
const LINES_PER_RARE: u64 = 10_000;

/// How steeply frequency falls with rank.
const EXPONENT: f64 = 1.0;

/// The longest word of the vocabulary.
const WORD_BYTES_MAX: usize = 20;

/// How often the letters from a to z occur in a thousand of English text.
const LETTERS: [u16; 26] = [
    82, 15, 28, 43, 127, 22, 20, 61, 70, 2, 8, 40, 24, 67, 75, 19, 1, 60, 63, 91, 28, 10, 24, 2,
    20, 1,
];

/// The stream of chance that words come from; the others are those of the files.
const WORDS: u64 = u64::MAX;

/// The words, and how to draw one.
#[derive(Debug)]
pub struct Vocabulary {
    words: Vec<Word>,
    chances: Chances,
}

/// Bytes of a word and how many count: one place in memory for each word that is drawn.
#[derive(Clone, Copy, Debug)]
struct Word {
    bytes: [u8; WORD_BYTES_MAX],
    length: u8,
}

impl Vocabulary {
    /// So many distinct words; the first is the most frequent.
    pub fn new(size: u32, seed: u64) -> Self {
        let size = size.max(1) as usize;
        let mut random = Random::new(seed, WORDS);
        let mut seen = HashSet::with_capacity(size);
        let mut words = Vec::with_capacity(size);
        let mut letters = Vec::new();
        for (letter, &times) in (b'a'..=b'z').zip(&LETTERS) {
            letters.resize(letters.len() + usize::from(times), letter);
        }
        while words.len() < size {
            let word = word(words.len() + 1, &letters, &mut random);
            if seen.insert(word.text().to_vec()) {
                words.push(word);
            }
        }
        let weights = (1..=size).map(|rank| (rank as f64).powf(-EXPONENT)).collect();
        Self { words, chances: Chances::new(weights) }
    }

    /// Writes exactly `bytes` bytes of lines, of the stream number `stream` of `seed`.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write(&self, seed: u64, stream: u64, bytes: u64, out: &mut dyn Write) -> io::Result<()> {
        let mut random = Random::new(seed, stream);
        let mut line = Vec::new();
        let mut left = bytes;
        while left > 0 {
            line.clear();
            self.line(&mut random, &mut line);
            if line.len() as u64 >= left {
                line.truncate(left as usize - 1);
                line.push(b'\n');
            }
            out.write_all(&line)?;
            left -= line.len() as u64;
        }
        Ok(())
    }

    /// A line of 8 to 16 words.
    fn line(&self, random: &mut Random, line: &mut Vec<u8>) {
        let words = 8 + random.below(9);
        for _ in 0..words {
            // The high bits choose the word, the low ones what follows it.
            let drawn = random.draw();
            line.extend_from_slice(self.words[self.chances.pick(drawn)].text());
            match drawn & 0xff {
                0..20 => line.extend_from_slice(b", "),
                20..32 => line.extend_from_slice(b". "),
                32..36 => line.push(b'-'),
                36..39 => line.push(b'\''),
                39..43 => write!(line, " {} ", random.below(2_000)).expect("memory takes it"),
                _ => line.push(b' '),
            }
        }
        if random.below(LINES_PER_RARE) == 0 {
            line.extend_from_slice(RARE.as_bytes());
        }
        line.push(b'\n');
    }
}

impl Word {
    #[inline]
    fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// A random word, of a length that suits its rank; one in ten begins with a capital.
fn word(rank: usize, letters: &[u8], random: &mut Random) -> Word {
    let mean = 1.8 + 0.32 * (rank as f64).log2();
    // The sum of three uniform numbers is nearly enough a normal one, of variance 1/4.
    let spread = random.fraction() + random.fraction() + random.fraction() - 1.5;
    let length = (mean + spread * mean * 0.7).round().clamp(1.0, WORD_BYTES_MAX as f64) as usize;
    let mut bytes = [0; WORD_BYTES_MAX];
    for byte in &mut bytes[..length] {
        *byte = letters[random.below(letters.len() as u64) as usize];
    }
    if random.below(10) == 0 {
        bytes[0].make_ascii_uppercase();
    }
    Word { bytes, length: length as u8 }
}

/// A weighted choice in constant time: Walker's alias method, in the form of Vose (1991).
#[derive(Debug)]
struct Chances {
    /// For each place: below which of 2^32 it is chosen itself, and who is chosen otherwise.
    places: Vec<(u32, u32)>,
}

impl Chances {
    fn new(weights: Vec<f64>) -> Self {
        let total: f64 = weights.iter().sum();
        let mean = total / weights.len() as f64;
        let mut scaled: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let mut places = vec![(u32::MAX, 0); scaled.len()];
        let (mut poor, mut rich): (Vec<usize>, Vec<usize>) =
            (0..scaled.len()).partition(|&place| scaled[place] < 1.0);
        while let (Some(taker), Some(&giver)) = (poor.pop(), rich.last()) {
            places[taker] = ((scaled[taker] * f64::from(u32::MAX)) as u32, giver as u32);
            scaled[giver] -= 1.0 - scaled[taker];
            if scaled[giver] < 1.0 {
                poor.extend(rich.pop());
            }
        }
        Self { places }
    }

    /// The choice that 56 high bits of `drawn` make.
    #[inline]
    fn pick(&self, drawn: u64) -> usize {
        let scaled = u128::from(drawn) * self.places.len() as u128;
        let place = (scaled >> 64) as usize;
        let (below, other) = self.places[place];
        // What the choice of the place has left over of the bits is as random as they were.
        let rest = (scaled >> 32) as u32;
        if rest <= below { place } else { other as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, stream: u64, bytes: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Vocabulary::new(5_000, seed).write(seed, stream, bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        assert_eq!(text(1, 0, 100_000), text(1, 0, 100_000));
        assert_ne!(text(1, 0, 100_000), text(1, 1, 100_000));
        assert_ne!(text(1, 0, 100_000), text(2, 0, 100_000));
    }

    #[test]
    fn text_has_the_size_that_was_asked_for_and_ends_with_a_line() {
        for bytes in [0, 1, 2, 50, 99_999] {
            let text = text(3, 0, bytes);
            assert_eq!(text.len() as u64, bytes);
            assert!(text.last().is_none_or(|&last| last == b'\n') && text.is_ascii());
        }
    }

    #[test]
    fn frequency_falls_with_rank() {
        let vocabulary = Vocabulary::new(1_000, 4);
        let mut random = Random::new(4, 0);
        let mut times = vec![0_u64; 1_000];
        for _ in 0..1_000_000 {
            times[vocabulary.chances.pick(random.draw())] += 1;
        }
        // The first of a thousand has one part in 7.49, by the harmonic number.
        for (rank, expected) in [(1, 133_600.0), (10, 13_360.0), (100, 1_336.0)] {
            let found = times[rank - 1] as f64;
            assert!((found / expected - 1.0).abs() < 0.1, "{rank}: {found}");
        }
        let words: HashSet<&[u8]> = vocabulary.words.iter().map(Word::text).collect();
        assert_eq!(words.len(), 1_000);
    }

    #[test]
    fn words_and_lines_are_about_as_long_as_in_english() {
        let text = text(5, 0, 1_000_000);
        let words: Vec<&[u8]> =
            text.split(|byte| !byte.is_ascii_alphabetic()).filter(|it| !it.is_empty()).collect();
        let letters: usize = words.iter().map(|word| word.len()).sum();
        let lines = text.iter().filter(|&&byte| byte == b'\n').count();
        let (length, width) = (letters as f64 / words.len() as f64, words.len() / lines);
        assert!((3.5..6.5).contains(&length) && (10..=15).contains(&width), "{length} {width}");
    }
}
