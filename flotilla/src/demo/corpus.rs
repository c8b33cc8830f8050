//! A text to count words in: words of a made-up vocabulary, as often as words are in real texts.
//!
//! The word of rank `r` appears about in proportion to `1 / (r + 2.7)`, Zipf's law with
//! Mandelbrot's shift. The same seed gives the same text, byte for byte.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// How many different words there are, at most.
const WORDS: usize = 30_000;

/// From how many entries a word is drawn: the rarest word has one of them.
const DRAWS: usize = 1 << 19;

/// Mandelbrot's shift, as it fits English.
const SHIFT: f64 = 2.7;

/// How much text is written at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// How long a line may be before it is broken.
const LINE_BYTES: usize = 76;

/// The words of the first ranks, so that the result looks like what it is.
const COMMON: &str = "the of and to a in that it was he for on is with as his they at be this \
    from have or by one had not but what all were when we there can an your which their said if \
    do will each about how up out them then she many some so these would other into has more her \
    two like him see time could no make than first been its who now people my made over did down \
    only way find use may water long little very after words called just where most know sea ship \
    harbour captain sail wind wave storm island sailor fleet anchor mast deck lantern compass";

const ONSETS: [&str; 20] = [
    "b", "br", "c", "cl", "d", "f", "fl", "g", "h", "l", "m", "n", "p", "pr", "r", "s", "st", "t",
    "tr", "v",
];
const VOWELS: [&str; 8] = ["a", "e", "i", "o", "u", "ai", "ea", "ou"];
const CODAS: [&str; 8] = ["", "n", "r", "s", "l", "t", "nd", "m"];

/// Writes `files` files of about `bytes` bytes each into an existing directory and answers with
/// what was written in all.
///
/// # Errors
/// When a file cannot be made or written.
pub fn write(dir: &Path, files: u32, bytes: u64, seed: u64) -> io::Result<u64> {
    let mut writer = Writer::new(seed);
    let mut written = 0;
    for number in 1..=files {
        let mut file = File::create_new(dir.join(format!("volume-{number:02}.txt")))?;
        let mut left = bytes;
        while left > 0 {
            let text = writer.text(left.min(BUFFER_BYTES as u64));
            file.write_all(text)?;
            written += text.len() as u64;
            left = left.saturating_sub(text.len() as u64);
        }
    }
    Ok(written)
}

/// Draws sentences.
struct Writer {
    rng: Rng,
    words: Vec<String>,
    /// Ranks, each as often as its word is likely.
    draws: Vec<u16>,
    buffer: Vec<u8>,
}

impl Writer {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(2).wrapping_add(1));
        let words = vocabulary(&mut rng);
        let draws = ranks(words.len());
        Self { rng, words, draws, buffer: Vec::with_capacity(BUFFER_BYTES + 1024) }
    }

    /// At least `bytes` bytes of text, in whole paragraphs' sentences, ending with a line end.
    fn text(&mut self, bytes: u64) -> &[u8] {
        self.buffer.clear();
        let mut line = 0;
        let mut sentences_left = 0;
        while (self.buffer.len() as u64) < bytes {
            if sentences_left == 0 {
                if line > 0 {
                    self.buffer.extend_from_slice(b"\n\n");
                    line = 0;
                }
                sentences_left = 3 + self.rng.below(6);
            }
            self.sentence(&mut line);
            sentences_left -= 1;
        }
        self.buffer.push(b'\n');
        &self.buffer
    }

    fn sentence(&mut self, line: &mut usize) {
        let length = 4 + self.rng.below(16);
        for position in 0..length {
            let draw = self.rng.below(DRAWS as u64);
            let word = self.words[usize::from(self.draws[draw as usize])].as_bytes();
            if *line + word.len() > LINE_BYTES {
                self.buffer.push(b'\n');
                *line = 0;
            } else if *line > 0 {
                self.buffer.push(b' ');
                *line += 1;
            }
            let start = self.buffer.len();
            self.buffer.extend_from_slice(word);
            if position == 0 {
                self.buffer[start].make_ascii_uppercase();
            }
            *line += word.len() + 1;
            if position + 1 == length {
                self.buffer.push(b'.');
            } else if self.rng.below(9) == 0 {
                self.buffer.push(b',');
            }
        }
    }
}

fn vocabulary(rng: &mut Rng) -> Vec<String> {
    let mut words: Vec<String> = COMMON.split_whitespace().map(str::to_owned).collect();
    let mut pick = |parts: &[&'static str]| parts[rng.below(parts.len() as u64) as usize];
    while words.len() < WORDS {
        let syllables =
            1 + (words.len() * 3 / WORDS).min(2) + usize::from(words.len().is_multiple_of(3));
        let mut word = String::new();
        for _ in 0..syllables {
            word.push_str(pick(&ONSETS));
            word.push_str(pick(&VOWELS));
            word.push_str(pick(&CODAS));
        }
        // A word may come twice: it is then as likely as both ranks together.
        words.push(word);
    }
    words
}

/// Gives every word its share of the draws, at least one while there are any.
fn ranks(words: usize) -> Vec<u16> {
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 words")]
    let weight = |rank: usize| 1.0 / (rank as f64 + SHIFT);
    let total: f64 = (0..words).map(weight).sum();
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 draws")]
    let scale = DRAWS as f64 / total;
    let mut draws = Vec::with_capacity(DRAWS);
    for rank in 0..words {
        #[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "small")]
        let share = ((weight(rank) * scale) as usize).max(1);
        let rank = u16::try_from(rank).expect("there are fewer words than 16 bits count");
        draws.extend(std::iter::repeat_n(rank, share.min(DRAWS - draws.len())));
    }
    // Rounding leaves a few, which go to the most frequent words.
    for rank in (0..=99).cycle().take(DRAWS - draws.len()) {
        draws.push(rank);
    }
    draws
}

const _: () = assert!(WORDS <= u16::MAX as usize && WORDS < DRAWS);

/// Marsaglia's xorshift64*: good enough for words, and as fast as they are written.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is small, so that the bias is.
    fn below(&mut self, bound: u64) -> u64 {
        ((self.next() >> 32) * bound) >> 32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_another() {
        let text = |seed| Writer::new(seed).text(100_000).to_vec();
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn files_have_the_size_that_was_asked_for_and_end_with_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let written = write(dir.path(), 3, 2 * BUFFER_BYTES as u64, 1).unwrap();
        assert!((6..7).contains(&(written / BUFFER_BYTES as u64)), "{written}");
        for number in 1..=3 {
            let text = std::fs::read(dir.path().join(format!("volume-0{number}.txt"))).unwrap();
            assert!(text.ends_with(b".\n"));
        }
    }

    #[test]
    fn words_are_as_unequal_as_in_real_texts() {
        let mut writer = Writer::new(1);
        let text = String::from_utf8(writer.text(4_000_000).to_vec()).unwrap().to_lowercase();
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for word in text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
            *counts.entry(word).or_default() += 1;
        }
        let total: u64 = counts.values().sum();
        let share = counts["the"] * 1_000 / total;
        assert!((25..60).contains(&share), "{share} of 1000 words are \"the\"");
        assert!(counts.len() > WORDS / 2, "{} different words", counts.len());
        assert!(text.lines().all(|line| line.len() <= LINE_BYTES + 2));
    }
}
