//! Merges sorted runs: by key, then by the place of the run, then as they were written, so that the
//! order of values never depends on what ran when.
//!
//! A binary heap of places with the prefix of each reader's key cached; memory is one block for each
//! reader. More runs than [`FAN_IN_MAX`] are merged in passes of neighbours, which keeps the order.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    combine,
    failure::Failure,
    run::{PartitionReader, RunError, RunSummary, RunWriter},
};

/// How many runs are merged at once: each costs a descriptor and a block of memory.
pub(crate) const FAN_IN_MAX: usize = 256;

/// Where a reader's data comes from, for the failure if it is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The committed run at this place of the task.
    Input(usize),
    /// A file of this attempt.
    Own(PathBuf),
}

impl Origin {
    /// What it means that this run cannot be read.
    pub(crate) fn failure(&self, error: &RunError) -> Failure {
        match self {
            Self::Input(input) => Failure::Lost { input: *input, message: error.to_string() },
            Self::Own(path) => Failure::Io { path: path.clone(), message: error.to_string() },
        }
    }
}

/// A merge in progress, positioned at its least record.
#[derive(Debug)]
pub(crate) struct Merge {
    sources: Vec<Source>,
    /// Places in `sources` that have a record; the least comes first.
    heap: Vec<usize>,
}

#[derive(Debug)]
struct Source {
    reader: PartitionReader,
    origin: Origin,
    prefix: u64,
}

impl Source {
    fn advance(&mut self) -> Result<bool, Failure> {
        let more = self.reader.advance().map_err(|error| self.origin.failure(&error))?;
        if more {
            self.prefix = combine::prefix(self.reader.key());
        }
        Ok(more)
    }
}

impl Merge {
    /// Begins to merge readers, whose order breaks ties.
    pub(crate) fn new(readers: Vec<(PartitionReader, Origin)>) -> Result<Self, Failure> {
        let mut merge = Self { sources: Vec::with_capacity(readers.len()), heap: Vec::new() };
        for (reader, origin) in readers {
            let mut source = Source { reader, origin, prefix: 0 };
            if source.advance()? {
                merge.heap.push(merge.sources.len());
                merge.sources.push(source);
            }
        }
        for place in (0..merge.heap.len() / 2).rev() {
            merge.sift_down(place);
        }
        Ok(merge)
    }

    /// The least record, if any is left.
    #[inline]
    pub(crate) fn top(&self) -> Option<(&[u8], &[u8])> {
        let reader = &self.sources[*self.heap.first()?].reader;
        Some((reader.key(), reader.value()))
    }

    /// Goes to the next record.
    pub(crate) fn advance(&mut self) -> Result<(), Failure> {
        let Some(&first) = self.heap.first() else { return Ok(()) };
        if !self.sources[first].advance()? {
            self.heap.swap_remove(0);
        }
        self.sift_down(0);
        Ok(())
    }

    fn order(&self, left: usize, right: usize) -> Ordering {
        let key = |place: usize| (self.sources[place].prefix, self.sources[place].reader.key());
        combine::compare(key(left), key(right)).then(left.cmp(&right))
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            let Some(&left_source) = self.heap.get(left) else { return };
            let mut least = left;
            if let Some(&right_source) = self.heap.get(left + 1)
                && self.order(right_source, left_source).is_lt()
            {
                least = left + 1;
            }
            if self.order(self.heap[place], self.heap[least]).is_le() {
                return;
            }
            self.heap.swap(place, least);
            place = least;
        }
    }
}

/// Joins a written value to the one before it if they fold into one; see
/// [`crate::fold::Fold::join`].
pub(crate) type Join<'j> = &'j mut dyn FnMut(&mut Vec<u8>, &[u8]) -> Result<bool, Failure>;

/// Writes what `merge` yields as `partition` of `writer`, neighbours of one key joined.
pub(crate) fn drain(
    mut merge: Merge,
    partition: u32,
    writer: &mut RunWriter,
    path: &Path,
    join: Join<'_>,
) -> Result<(), Failure> {
    let mut pending: Option<(Vec<u8>, Vec<u8>)> = None;
    while let Some((key, value)) = merge.top() {
        match &mut pending {
            Some((last, before)) => {
                if last != key || !join(before, value)? {
                    let pushed = writer.push(partition, last, before);
                    pushed.map_err(|error| Failure::io(path, &error))?;
                    replace(last, key);
                    replace(before, value);
                }
            }
            None => pending = Some((key.to_vec(), value.to_vec())),
        }
        merge.advance()?;
    }
    if let Some((key, value)) = pending {
        writer.push(partition, &key, &value).map_err(|error| Failure::io(path, &error))?;
    }
    Ok(())
}

fn replace(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

/// Creates a run, lets `fill` write it, and finishes it.
pub(crate) fn write_run(
    path: &Path,
    partitions: u32,
    fill: impl FnOnce(&mut RunWriter) -> Result<(), Failure>,
) -> Result<RunSummary, Failure> {
    let failed = |error| Failure::io(path, &error);
    let mut writer = RunWriter::create(path, partitions).map_err(failed)?;
    fill(&mut writer)?;
    writer.finish().map_err(failed)
}

/// Removes a file of the attempt that is no longer needed.
pub(crate) fn discard(path: &Path) -> Result<(), Failure> {
    fs::remove_file(path).map_err(|error| Failure::io(path, &error))
}
