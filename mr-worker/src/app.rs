//! What an app is: a mapper, a fold that combines, a reducer.
//!
//! Apps are chosen by name at run time and compiled by type: an [`App`] becomes a [`Program`], whose
//! two calls are the only dynamic ones, so that a mapper's emit is inlined into its loop. Options,
//! own partitioners, setup and typed codecs have their places here and come when an app needs them.

use crate::{
    failure::Failure,
    fold::Fold,
    map::{self, MapTask},
    merge::Merge,
    outcome::{Outcome, Progress},
    reduce::{self, Part, ReduceTask},
    spill::Collector,
};

/// A MapReduce program, as its author writes it.
pub trait App: Send + Sync + 'static {
    /// The name by which jobs ask for it.
    const NAME: &'static str;
    /// How the values of a key become fewer within a map.
    type Fold: Fold;
    /// What reads records.
    type Mapper: Mapper<Fold = Self::Fold>;
    /// What reads groups.
    type Reducer: Reducer;

    /// A mapper for one task.
    fn mapper(&self) -> Self::Mapper;
    /// A reducer for one task.
    fn reducer(&self) -> Self::Reducer;
}

/// Turns records into pairs. One mapper serves one task.
pub trait Mapper: Send {
    /// How its values are combined.
    type Fold: Fold;

    /// Maps one record.
    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Self::Fold>)
    -> Result<(), Failure>;

    /// Maps a block of whole records; an app for which a block is as good as its records saves a
    /// call for each.
    fn map_block(
        &mut self,
        block: Block<'_>,
        out: &mut Emitter<'_, Self::Fold>,
    ) -> Result<(), Failure> {
        for record in block.records() {
            out.position = record.offset;
            self.map(record, out)?;
        }
        Ok(())
    }
}

/// Turns the values of one key into results. One reducer serves one task.
pub trait Reducer: Send {
    /// Reduces one group. Values that it leaves are skipped.
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure>;
}

/// One record. Bytes are as they are in the file; nobody has checked that they are UTF-8.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// The input's path, as the user named it.
    pub document: &'a str,
    /// Where the record begins in its file.
    pub offset: u64,
    /// A line without its line feed, or the whole file.
    pub value: &'a [u8],
}

/// Whole records that lie side by side in one file.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The input's path, as the user named it.
    pub document: &'a str,
    /// Where the block begins in its file.
    pub offset: u64,
    /// The records, line feeds included.
    pub bytes: &'a [u8],
    /// Whether its records are lines; otherwise it is one record.
    pub lines: bool,
}

impl<'a> Block<'a> {
    /// Its records.
    pub fn records(self) -> impl Iterator<Item = Record<'a>> {
        let mut at = 0;
        let mut done = false;
        std::iter::from_fn(move || {
            if done || (self.lines && at == self.bytes.len()) {
                return None;
            }
            let rest = &self.bytes[at..];
            let end = self.lines.then(|| memchr::memchr(b'\n', rest)).flatten();
            let record = Record {
                document: self.document,
                offset: self.offset + at as u64,
                value: &rest[..end.unwrap_or(rest.len())],
            };
            match end {
                Some(end) => at += end + 1,
                None => done = true,
            }
            Some(record)
        })
    }
}

/// Takes what a mapper emits.
pub struct Emitter<'t, F: Fold> {
    pub(crate) collector: &'t mut Collector<F>,
    /// Where the record that is being mapped begins, for the message if that fails.
    pub(crate) position: u64,
}

impl<F: Fold> Emitter<'_, F> {
    /// Emits a pair. If it cannot be kept, the map fails at the end of the block.
    #[inline]
    pub fn emit(&mut self, key: &[u8], input: F::Input<'_>) {
        self.collector.add(key, input);
    }
}

/// The values of one key: by map task, and in the order of emission within one. A cursor, so that a
/// group may be larger than memory.
pub struct Values<'m> {
    pub(crate) merge: &'m mut Merge,
    pub(crate) key: &'m [u8],
    pub(crate) taken: bool,
    pub(crate) count: &'m mut u64,
    pub(crate) progress: &'m mut Progress,
}

impl Values<'_> {
    /// The next value, if there is one.
    #[allow(clippy::should_implement_trait, reason = "it lends, which an iterator cannot")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        if self.taken {
            self.merge.advance()?;
            self.taken = false;
        }
        match self.merge.top() {
            Some((key, value)) if key == self.key => {
                self.taken = true;
                *self.count += 1;
                self.progress.advance(1, (key.len() + value.len()) as u64);
                Ok(Some(value))
            }
            Some(_) | None => Ok(None),
        }
    }
}

/// Takes what a reducer writes.
pub struct Output<'p> {
    pub(crate) part: &'p mut Part,
}

impl Output<'_> {
    /// Writes a result.
    pub fn write(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.part.write(key, value)
    }
}

/// An app as the engine sees it.
pub trait Program: Send + Sync {
    /// The name by which jobs ask for it.
    fn name(&self) -> &'static str;
    /// Runs a map task.
    fn map(&self, task: &MapTask, progress: &mut Progress) -> Result<Outcome, Failure>;
    /// Runs a reduce task.
    fn reduce(&self, task: &ReduceTask, progress: &mut Progress) -> Result<Outcome, Failure>;
}

impl<A: App> Program for A {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn map(&self, task: &MapTask, progress: &mut Progress) -> Result<Outcome, Failure> {
        map::run(self, task, progress)
    }

    fn reduce(&self, task: &ReduceTask, progress: &mut Progress) -> Result<Outcome, Failure> {
        reduce::run(self, task, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(bytes: &[u8], lines: bool) -> Vec<(u64, Vec<u8>)> {
        let block = Block { document: "d", offset: 10, bytes, lines };
        block.records().map(|record| (record.offset, record.value.to_vec())).collect()
    }

    #[test]
    fn lines_keep_all_but_their_line_feed() {
        let expected = [(10, b"a\r".to_vec()), (13, b"".to_vec()), (14, b"b".to_vec())];
        assert_eq!(values(b"a\r\n\nb", true), expected);
        assert_eq!(values(b"a\r\n\nb\n", true), expected);
        assert_eq!(values(b"", true), []);
    }

    #[test]
    fn a_file_is_one_record_even_if_empty() {
        assert_eq!(values(b"a\nb\n", false), [(10, b"a\nb\n".to_vec())]);
        assert_eq!(values(b"", false), [(10, b"".to_vec())]);
    }
}
