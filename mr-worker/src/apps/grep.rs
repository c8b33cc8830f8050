//! `grep`: the lines that hold a pattern, as they are; without a reduce in the order of the inputs,
//! with reduces by document and place.
//!
//! A literal pattern is looked for in whole blocks, a vector instruction at a time, and a line is
//! found only around what matches. A regular expression sees line by line, as bytes.

use memchr::memmem::Finder;
use regex::bytes::Regex;

use crate::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    args::Arg,
    codec::{KeyCodec, Text, Unsigned},
    failure::Failure,
    fold::Keep,
    record::{Block, Record, Records},
};

/// The search.
#[derive(Debug, Clone, Copy)]
pub struct Grep;

const ARGS: &[Arg] = &[
    ("pattern", "what a line must hold"),
    ("regex", "true: the pattern is a regular expression; default false"),
    ("invert", "true: lines that do not hold it; default false"),
];

/// By document and offset, so that matches come out in the order of the inputs' names and lines.
type Place = (Text, Unsigned);

impl App for Grep {
    type Fold = Keep;
    type Mapper = Search;
    type Reducer = Lines;

    fn name(&self) -> &'static str {
        "grep"
    }

    fn args(&self) -> &'static [Arg] {
        ARGS
    }

    fn mapper(&self, task: &Context) -> Result<Search, Failure> {
        let pattern = task.args.required("pattern")?;
        if pattern.is_empty() {
            return Err(Failure::fatal("the argument pattern is empty"));
        }
        let what = if task.args.parsed("regex", false)? {
            let regex = Regex::new(pattern).map_err(|error| {
                Failure::fatal(format!("the argument pattern is no regular expression: {error}"))
            })?;
            What::Regex(regex)
        } else {
            What::Literal(Box::new(Finder::new(pattern).into_owned()))
        };
        let invert = task.args.parsed("invert", false)?;
        Ok(Search { what, invert, is_keyed: task.partitions > 0, key: Vec::new() })
    }

    fn reducer(&self, _: &Context) -> Result<Lines, Failure> {
        Ok(Lines)
    }
}

#[derive(Debug)]
enum What {
    Literal(Box<Finder<'static>>),
    Regex(Regex),
}

/// Emits the lines that match.
#[derive(Debug)]
pub struct Search {
    what: What,
    invert: bool,
    /// Whether matches are sorted afterwards; otherwise their places are nobody's concern.
    is_keyed: bool,
    key: Vec<u8>,
}

impl Search {
    fn emit(&mut self, document: &str, offset: u64, line: &[u8], out: &mut Emitter<'_, Keep>) {
        if self.is_keyed {
            self.key.clear();
            Place::encode((document, offset), &mut self.key);
            out.emit(&self.key, line);
        } else {
            out.write_raw(&[line, b"\n"]);
        }
    }
}

impl Mapper for Search {
    type Fold = Keep;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        let found = match &self.what {
            What::Literal(finder) => finder.find(record.value).is_some(),
            What::Regex(regex) => regex.is_match(record.value),
        };
        if found != self.invert {
            self.emit(record.document, record.offset, record.value, out);
        }
        Ok(())
    }

    fn map_block(&mut self, block: Block<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        let What::Literal(finder) = &self.what else { return self.map_records(block, out) };
        let is_lines = matches!(block.records, Records::Lines { strip_cr: false });
        if self.invert || !is_lines || finder.needle().contains(&b'\n') {
            return self.map_records(block, out);
        }
        let finder = finder.clone();
        let mut from = 0;
        while let Some(found) = finder.find(&block.bytes[from..]) {
            let at = from + found;
            let start =
                memchr::memrchr(b'\n', &block.bytes[from..at]).map_or(from, |feed| from + feed + 1);
            let end = memchr::memchr(b'\n', &block.bytes[at..])
                .map_or(block.bytes.len(), |feed| at + feed);
            self.emit(block.document, block.offset + start as u64, &block.bytes[start..end], out);
            from = (end + 1).min(block.bytes.len());
        }
        Ok(())
    }
}

/// Writes lines as they are.
#[derive(Debug, Clone, Copy)]
pub struct Lines;

impl Reducer for Lines {
    fn reduce(
        &mut self,
        _key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        while let Some(line) = values.next()? {
            out.write_raw(&[line, b"\n"])?;
        }
        Ok(())
    }
}
