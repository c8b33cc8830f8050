//! Merges sorted runs: by key, then by the place of the run, then as they were written, so that the
//! order of values never depends on what ran when.
//!
//! A tree of losers with the prefix of each reader's key beside it: going on costs one comparison
//! for each level, most of them of two numbers. How many runs are merged at once follows from the
//! memory that there is ([`groups`]); what is left over is merged first, in passes of neighbours,
//! which keeps the order.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    combine::prefix,
    failure::Failure,
    run::{BLOCK_BYTES, Codec, Order, Partition, PartitionReader, RunError, RunSummary, RunWriter},
};

/// How many files a merge keeps open: far below what a process may have.
const FILES_MAX: usize = 256;

/// How much a reader takes from its file at a time, if memory allows: a few blocks, so that many
/// readers still read in long strides.
pub(crate) const AHEAD_BYTES_MAX: usize = 1 << 20;

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

/// A partition that is to be merged.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) partition: Partition,
    pub(crate) origin: Origin,
}

/// How many of the first of these shares can be merged at once within `budget` bytes of memory: at
/// least two, if there are two, whatever they need.
pub(crate) fn fitting(memory: impl Iterator<Item = (usize, bool)>, budget: usize) -> usize {
    let (mut used, mut files, mut count) = (0_usize, 0, 0);
    for (bytes, keeps_file) in memory {
        used = used.saturating_add(bytes);
        files += usize::from(keeps_file);
        if count >= 2 && (used > budget || files > FILES_MAX) {
            break;
        }
        count += 1;
    }
    count
}

impl Share {
    /// What merging it needs: memory, and whether its file stays open.
    pub(crate) fn needs(&self) -> (usize, bool) {
        (self.partition.memory(BLOCK_BYTES), self.partition.bytes() > BLOCK_BYTES as u64)
    }
}

/// A merge in progress, positioned at its least record.
#[derive(Debug)]
pub(crate) struct Merge {
    sources: Vec<Source>,
    /// The tree: at 0 the winner, at every other place the loser of that match. Matches are
    /// numbered as in a heap whose leaves are the sources.
    tree: Vec<u32>,
}

#[derive(Debug)]
struct Source {
    /// The prefix of the reader's key.
    prefix: u64,
    ended: bool,
    reader: PartitionReader,
    origin: Origin,
}

impl Source {
    #[inline]
    fn advance(&mut self) -> Result<(), Failure> {
        match self.reader.advance() {
            Ok(true) => self.prefix = prefix(self.reader.key()),
            // Behind every key there is.
            Ok(false) => (self.prefix, self.ended) = (u64::MAX, true),
            Err(error) => return Err(self.origin.failure(&error)),
        }
        Ok(())
    }
}

impl Merge {
    /// Begins to merge shares, whose order breaks ties, reading ahead as far as `budget` bytes
    /// allow.
    pub(crate) fn new(shares: Vec<Share>, budget: usize) -> Result<Self, Failure> {
        let least: usize = shares.iter().map(|share| share.needs().0).sum();
        let spare = budget.saturating_sub(least) / shares.len().max(1);
        let ahead = (BLOCK_BYTES + spare).min(AHEAD_BYTES_MAX);
        let mut sources = Vec::with_capacity(shares.len());
        for Share { partition, origin } in shares {
            let reader = partition.read(ahead);
            let mut source = Source { prefix: 0, ended: false, reader, origin };
            source.advance()?;
            if !source.ended {
                sources.push(source);
            }
        }
        let mut merge = Self { tree: vec![u32::MAX; sources.len()], sources };
        for source in 0..merge.sources.len() {
            merge.enter(source as u32);
        }
        Ok(merge)
    }

    /// The least record, if any is left.
    #[inline]
    pub(crate) fn top(&self) -> Option<(&[u8], &[u8])> {
        let winner = self.winner().filter(|winner| !winner.ended)?;
        Some((winner.reader.key(), winner.reader.value()))
    }

    /// The value of the least record, if its key is this one, whose prefix is known.
    #[inline]
    pub(crate) fn value_of(&self, key: &[u8], key_prefix: u64) -> Option<&[u8]> {
        let winner = self.winner()?;
        let same = winner.prefix == key_prefix && !winner.ended && winner.reader.key() == key;
        same.then(|| winner.reader.value())
    }

    /// Goes to the next record.
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<(), Failure> {
        let Some(&winner) = self.tree.first() else { return Ok(()) };
        self.sources[winner as usize].advance()?;
        self.replay(winner);
        Ok(())
    }

    #[inline]
    fn winner(&self) -> Option<&Source> {
        self.sources.get(*self.tree.first()? as usize)
    }

    /// Plays the matches of a source up to the root; each match's loser stays behind.
    #[inline]
    fn replay(&mut self, source: u32) {
        let mut winner = source;
        let mut place = (self.sources.len() + source as usize) / 2;
        while place > 0 {
            let other = self.tree[place];
            if self.precedes(other, winner) {
                self.tree[place] = winner;
                winner = other;
            }
            place /= 2;
        }
        self.tree[0] = winner;
    }

    /// Lets a source enter whose rivals may not all be there yet: the first to come to a match
    /// waits there.
    fn enter(&mut self, source: u32) {
        let mut winner = source;
        let mut place = (self.sources.len() + source as usize) / 2;
        while place > 0 {
            let other = self.tree[place];
            if other == u32::MAX {
                self.tree[place] = winner;
                return;
            }
            if self.precedes(other, winner) {
                self.tree[place] = winner;
                winner = other;
            }
            place /= 2;
        }
        self.tree[0] = winner;
    }

    #[inline]
    fn precedes(&self, left: u32, right: u32) -> bool {
        let (one, other) = (&self.sources[left as usize], &self.sources[right as usize]);
        if one.prefix != other.prefix {
            return one.prefix < other.prefix;
        }
        if one.ended || other.ended {
            return !one.ended;
        }
        match one.reader.key().cmp(other.reader.key()) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => left < right,
            std::cmp::Ordering::Greater => false,
        }
    }
}

/// Joins a written value to the one before it if they fold into one; see
/// [`crate::fold::Fold::join`].
pub(crate) type Join<'j> = &'j mut dyn FnMut(&mut Vec<u8>, &[u8]) -> Result<bool, Failure>;

/// Joins neighbours of one key on their way to a run.
pub(crate) struct Joined<'w> {
    writer: &'w mut RunWriter,
    path: &'w Path,
    join: Option<Join<'w>>,
    partition: u32,
    key: Vec<u8>,
    value: Vec<u8>,
    waiting: bool,
}

impl<'w> Joined<'w> {
    /// Joins as `join` says, or nothing; `path` is the writer's.
    pub(crate) fn new(writer: &'w mut RunWriter, path: &'w Path, join: Option<Join<'w>>) -> Self {
        let (key, value) = (Vec::new(), Vec::new());
        Self { writer, path, join, partition: 0, key, value, waiting: false }
    }

    /// Takes the next record.
    #[inline]
    pub(crate) fn push(&mut self, partition: u32, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let Some(join) = &mut self.join else {
            let pushed = self.writer.push(partition, key, value);
            return pushed.map_err(|error| Failure::io(self.path, &error));
        };
        if self.waiting {
            let same = self.key == key && self.partition == partition;
            if same && join(&mut self.value, value)? {
                return Ok(());
            }
            self.release()?;
        }
        self.partition = partition;
        replace(&mut self.key, key);
        replace(&mut self.value, value);
        self.waiting = true;
        Ok(())
    }

    /// Lets go of the last record.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        if self.waiting { self.release() } else { Ok(()) }
    }

    fn release(&mut self) -> Result<(), Failure> {
        let pushed = self.writer.push(self.partition, &self.key, &self.value);
        pushed.map_err(|error| Failure::io(self.path, &error))
    }
}

/// Hands on what `merge` yields, as records of `partition`.
pub(crate) fn drain(merge: &mut Merge, partition: u32, to: &mut Joined<'_>) -> Result<(), Failure> {
    while let Some((key, value)) = merge.top() {
        to.push(partition, key, value)?;
        merge.advance()?;
    }
    Ok(())
}

/// Puts `bytes` in the place of what is in the buffer.
pub(crate) fn replace(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
}

/// Creates a run, lets `fill` write it, and finishes it.
pub(crate) fn write_run(
    path: &Path,
    partitions: u32,
    codec: Codec,
    order: Order,
    fill: impl FnOnce(&mut RunWriter) -> Result<(), Failure>,
) -> Result<RunSummary, Failure> {
    let failed = |error| Failure::io(path, &error);
    let mut writer = RunWriter::create(path, partitions, codec, order).map_err(failed)?;
    fill(&mut writer)?;
    writer.finish().map_err(failed)
}

/// Removes a file of the attempt that is no longer needed.
pub(crate) fn discard(path: &Path) -> Result<(), Failure> {
    fs::remove_file(path).map_err(|error| Failure::io(path, &error))
}
