//! `sort`: records in the order of their keys' bytes, equal ones as they lie in the inputs.
//!
//! The order holds within each part; with the range partitioner it holds over all of them. Records
//! leave as they came: lines with a line feed, others without anything between them. Key-value lines
//! are written in the job's own format.

use crate::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    args::Arg,
    failure::Failure,
    fold::Keep,
    record::{Record, Records},
};

/// The sort.
#[derive(Debug, Clone, Copy)]
pub struct Sort;

const ARGS: &[Arg] = &[(
    "key_bytes",
    "the key is so many of a record's first bytes; default: the key of a key-value line, else all",
)];

impl App for Sort {
    type Fold = Keep;
    type Mapper = Split;
    type Reducer = Ordered;

    fn name(&self) -> &'static str {
        "sort"
    }

    fn args(&self) -> &'static [Arg] {
        ARGS
    }

    fn mapper(&self, task: &Context) -> Result<Split, Failure> {
        if task.partitions == 0 {
            return Err(Failure::fatal("sort needs at least one reduce"));
        }
        let key_bytes = task.args.parsed("key_bytes", 0)?;
        if key_bytes > 0 && matches!(task.records, Records::KeyValues { .. }) {
            return Err(Failure::fatal("key-value lines have keys already: leave key_bytes out"));
        }
        Ok(Split { key_bytes })
    }

    fn reducer(&self, task: &Context) -> Result<Ordered, Failure> {
        Ok(Ordered { records: task.records })
    }
}

/// Parts records into key and what is behind it.
#[derive(Debug)]
pub struct Split {
    key_bytes: usize,
}

impl Mapper for Split {
    type Fold = Keep;

    #[inline]
    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        let Record { key, value, .. } = record;
        let (key, value) = match self.key_bytes {
            0 if key.is_empty() => (value, &value[..0]),
            0 => (key, value),
            bytes => value.split_at(bytes.min(value.len())),
        };
        out.emit(key, value);
        Ok(())
    }
}

/// Puts records together again.
#[derive(Debug, Clone, Copy)]
pub struct Ordered {
    records: Records,
}

impl Reducer for Ordered {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        while let Some(value) = values.next()? {
            match self.records {
                Records::Lines { .. } => out.write_raw(&[key, value, b"\n"])?,
                Records::KeyValues { .. } => out.write(key, value)?,
                Records::Fixed(_) | Records::Files => out.write_raw(&[key, value])?,
            }
        }
        Ok(())
    }
}
