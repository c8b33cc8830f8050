//! What a program says on standard error: lines that count, and all others.
//!
//! `reporter:counter:GROUP,COUNTER,NUMBER` adds to the counter `GROUP:COUNTER`, and
//! `reporter:status:TEXT` says that the program is alive, as Hadoop Streaming has it. Everything
//! else, and what only looks like these, is written to this process's standard error up to a limit,
//! and its end is kept for the failure.

use std::{
    collections::VecDeque,
    io::{self, Write},
};

use crate::failure::Failure;

/// How much of the end is kept, in bytes.
const TAIL_BYTES: usize = 64 << 10;

/// How many lines, and bytes of them, a failure tells.
const LAST_LINES: usize = 20;
const LAST_BYTES: usize = 4_096;

/// The longest line that may count; the beginning of a longer one is enough to tell that it does not.
const LINE_BYTES_MAX: usize = 4_096;

/// A line that is more than words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word<'l> {
    /// Adds to a counter.
    Count { counter: &'l str, count: u64 },
    /// The program is alive.
    Status,
}

/// What was said.
pub(super) struct Words {
    /// A line whose end is yet to come.
    line: Vec<u8>,
    tail: VecDeque<u8>,
    /// How much more is written to the log.
    logged_max: u64,
    logged: u64,
}

impl Words {
    pub(super) fn new(logged_max: u64) -> Self {
        Self { line: Vec::new(), tail: VecDeque::new(), logged_max, logged: 0 }
    }

    /// Takes more of it; `each` is told of the lines that count.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(Word<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if self.line.ends_with(b"\n") || self.line.len() > LINE_BYTES_MAX {
                self.end(each)?;
            }
        }
        Ok(())
    }

    /// The line ends here.
    pub(super) fn end(
        &mut self,
        each: &mut dyn FnMut(Word<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let line = std::mem::take(&mut self.line);
        let mut counter = String::new();
        let heard = match word(&line, &mut counter) {
            Some(word) => each(word),
            None => {
                self.keep(&line);
                Ok(())
            }
        };
        self.line = line;
        self.line.clear();
        heard
    }

    fn keep(&mut self, line: &[u8]) {
        self.tail.extend(line);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        if line.is_empty() || self.logged > self.logged_max {
            return;
        }
        self.logged += line.len() as u64;
        let mut log = io::stderr().lock();
        let told = if self.logged > self.logged_max {
            let most = self.logged_max;
            writeln!(log, "(more than {most} bytes on standard error: limit stderr_bytes)")
        } else {
            log.write_all(line)
        };
        // Where standard error is closed nobody wants to know.
        let _ = told;
    }

    /// The end of what was said.
    pub(super) fn tail(&mut self) -> &[u8] {
        self.tail.make_contiguous()
    }

    /// The last lines, for a failure.
    pub(super) fn last(&self) -> String {
        let (front, back) = self.tail.as_slices();
        let text = String::from_utf8_lossy(&[front, back].concat()).into_owned();
        let text = text.trim_end();
        let begin = text.rmatch_indices('\n').nth(LAST_LINES - 1).map_or(0, |(at, _)| at + 1);
        let surplus = text.len().saturating_sub(LAST_BYTES);
        text[text.ceil_char_boundary(begin.max(surplus))..].to_owned()
    }
}

fn word<'l>(line: &[u8], counter: &'l mut String) -> Option<Word<'l>> {
    let line = str::from_utf8(line).ok()?.trim_end_matches(['\n', '\r']);
    let said = line.strip_prefix("reporter:")?;
    if said.starts_with("status:") {
        return Some(Word::Status);
    }
    let mut parts = said.strip_prefix("counter:")?.splitn(3, ',');
    let (group, name, count) = (parts.next()?, parts.next()?, parts.next()?);
    let count = count.trim().parse().ok()?;
    *counter = format!("{group}:{name}");
    Some(Word::Count { counter, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(text: &str, step: usize) -> (Vec<(String, u64)>, usize, String) {
        let (mut counts, mut alive) = (Vec::new(), 0);
        let mut words = Words::new(0);
        let mut each = |word: Word<'_>| {
            match word {
                Word::Count { counter, count } => counts.push((counter.to_owned(), count)),
                Word::Status => alive += 1,
            }
            Ok(())
        };
        for piece in text.as_bytes().chunks(step) {
            words.take(piece, &mut each).unwrap();
        }
        words.end(&mut each).unwrap();
        (counts, alive, words.last())
    }

    #[test]
    fn lines_that_count_do_so_and_all_others_are_words() {
        let text = "reporter:counter:G,bad rows,3\nhello\nreporter:status:half\n\
                    reporter:counter:G,x,-1\nreporter:counter:G,y\nreporter:counter:G,bad rows,2";
        for step in [1, 5, 1_000] {
            let (counts, alive, last) = hear(text, step);
            let name = "G:bad rows".to_owned();
            assert_eq!(counts, [(name.clone(), 3), (name, 2)]);
            assert_eq!(alive, 1);
            assert_eq!(last, "hello\nreporter:counter:G,x,-1\nreporter:counter:G,y");
        }
    }

    #[test]
    fn the_end_is_at_most_twenty_lines() {
        let text: String = (0..100).map(|line| format!("line {line}\n")).collect();
        let (_, _, last) = hear(&text, 7);
        assert_eq!(last.lines().count(), LAST_LINES);
        assert!(last.starts_with("line 80\n") && last.ends_with("line 99"), "{last}");
        let (_, _, last) = hear(&"é".repeat(100_000), 1_000);
        assert!(last.len() <= LAST_BYTES && last.ends_with('é'), "{}", last.len());
    }
}
