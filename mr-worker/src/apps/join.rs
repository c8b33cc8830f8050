//! `join`: lines of two inputs that have the same key, put together.
//!
//! The inputs are told apart by their tags (`--input left=...`). A key's left lines reach the reduce
//! before its right ones, since the side is part of what is sorted; so the reduce holds the left
//! lines of one key and lets the right ones pass, however many they are.

use crate::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    args::{Arg, Args},
    codec::{Bytes, KeyCodec, Unsigned},
    failure::Failure,
    fold::Keep,
    partition::{Partitioner, hash},
    record::Record,
};

/// The join.
#[derive(Debug, Clone, Copy)]
pub struct Join;

const ARGS: &[Arg] = &[
    ("left", "the tag of the left input; every other is right"),
    ("on", "the number of the field that is the key, from 1; default 1"),
    ("right_on", "the same for right lines, if it is another"),
    ("separator", "what parts fields: one character; default TAB"),
    ("kind", "inner, left, right or full: which lines without a partner stay; default inner"),
];

/// The most that the left lines of one key may take, in bytes; the right ones have no limit.
const LEFT_BYTES_MAX: usize = 32 << 20;

/// A key and the side of the line.
type Side = (Bytes, Unsigned);

const LEFT: u64 = 0;
const RIGHT: u64 = 1;

impl App for Join {
    type Fold = Keep;
    type Mapper = Sides;
    type Reducer = Pairs;

    fn name(&self) -> &'static str {
        "join"
    }

    fn args(&self) -> &'static [Arg] {
        ARGS
    }

    fn mapper(&self, task: &Context) -> Result<Sides, Failure> {
        if task.partitions == 0 {
            return Err(Failure::fatal("join needs at least one reduce"));
        }
        let left = task.args.required("left")?.to_owned();
        let on = task.args.parsed("on", 1)?;
        let on = [on, task.args.parsed("right_on", on)?];
        if on.contains(&0) {
            return Err(Failure::fatal("the arguments on and right_on count from 1"));
        }
        let separator = separator(&task.args)?;
        Ok(Sides { left, on, separator, key: Vec::new(), rest: Vec::new() })
    }

    fn reducer(&self, task: &Context) -> Result<Pairs, Failure> {
        let (keep_left, keep_right) = match task.args.get("kind").unwrap_or("inner") {
            "inner" => (false, false),
            "left" => (true, false),
            "right" => (false, true),
            "full" => (true, true),
            other => {
                return Err(Failure::fatal(format!(
                    "the argument kind is {other:?}, not inner, left, right or full"
                )));
            }
        };
        let separator = separator(&task.args)?;
        Ok(Pairs { keep_left, keep_right, separator, key: None, lefts: Vec::new(), left_bytes: 0 })
    }

    fn partitioner(&self, _: &Context) -> Result<Option<Box<dyn Partitioner>>, Failure> {
        Ok(Some(Box::new(ByKey)))
    }
}

fn separator(args: &Args) -> Result<u8, Failure> {
    match args.get("separator").map(str::as_bytes) {
        None => Ok(b'\t'),
        Some([separator]) if *separator != b'\n' => Ok(*separator),
        Some(_) => Err(Failure::fatal("the argument separator is not one ASCII character")),
    }
}

/// Keeps both sides of a key together.
struct ByKey;

impl Partitioner for ByKey {
    fn partition(&self, key: &[u8], partitions: u32) -> u32 {
        let both_sides = key.len().saturating_sub(size_of::<u64>());
        hash(&key[..both_sides]) % partitions
    }
}

/// Parts lines into key and rest.
#[derive(Debug)]
pub struct Sides {
    left: String,
    /// The number of the key's field, from 1, by side.
    on: [usize; 2],
    separator: u8,
    key: Vec<u8>,
    rest: Vec<u8>,
}

impl Mapper for Sides {
    type Fold = Keep;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        if record.tag.is_empty() {
            return Err(Failure::fatal("join needs inputs with tags, such as left=people.tsv"));
        }
        let side = if record.tag == self.left { LEFT } else { RIGHT };
        let on = self.on[side as usize];
        let mut key = None;
        self.rest.clear();
        for (number, field) in (1..).zip(record.value.split(|byte| *byte == self.separator)) {
            if number == on {
                key = Some(field);
                continue;
            }
            let is_first = number == 1 || (number == 2 && on == 1);
            if !is_first {
                self.rest.push(self.separator);
            }
            self.rest.extend_from_slice(field);
        }
        let key = key.ok_or_else(|| Failure::user(format!("the line has no field {on}")))?;
        self.key.clear();
        Side::encode((key, side), &mut self.key);
        out.emit(&self.key, &self.rest);
        Ok(())
    }
}

/// Puts lines together. Memory: the left lines of one key.
#[derive(Debug)]
pub struct Pairs {
    keep_left: bool,
    keep_right: bool,
    separator: u8,
    /// The key of `lefts`, which no right line had yet.
    key: Option<Vec<u8>>,
    lefts: Vec<Vec<u8>>,
    left_bytes: usize,
}

impl Pairs {
    fn write(
        &self,
        key: &[u8],
        left: Option<&[u8]>,
        right: Option<&[u8]>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let separator = [self.separator];
        let (left, right) = (left.unwrap_or_default(), right.unwrap_or_default());
        out.write_raw(&[key, &separator, left, &separator, right, b"\n"])
    }

    /// The left lines of a key that no right line had.
    fn let_go(&mut self, out: &mut Output<'_>) -> Result<(), Failure> {
        if let Some(key) = self.key.take().filter(|_| self.keep_left) {
            for left in &self.lefts {
                self.write(&key, Some(left), None, out)?;
            }
        }
        self.lefts.clear();
        self.left_bytes = 0;
        Ok(())
    }
}

impl Reducer for Pairs {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let (key, side) = Side::decode(key)?;
        if side == LEFT {
            self.let_go(out)?;
            while let Some(left) = values.next()? {
                self.left_bytes += left.len() + size_of::<Vec<u8>>();
                if self.left_bytes > LEFT_BYTES_MAX {
                    return Err(Failure::fatal(format!(
                        "the left lines of one key take more than {LEFT_BYTES_MAX} bytes: make the \
                         other input the left one"
                    )));
                }
                self.lefts.push(left.to_vec());
            }
            self.key = Some(key);
            return Ok(());
        }
        if self.key.as_ref() != Some(&key) {
            self.let_go(out)?;
        }
        while let Some(right) = values.next()? {
            if self.lefts.is_empty() && self.keep_right {
                self.write(&key, None, Some(right), out)?;
            }
            for left in &self.lefts {
                self.write(&key, Some(left), Some(right), out)?;
            }
        }
        // These had their partners.
        self.key = None;
        self.let_go(out)
    }

    fn finish(&mut self, out: &mut Output<'_>) -> Result<(), Failure> {
        self.let_go(out)
    }
}
