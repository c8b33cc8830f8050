//! Collects what a mapper emits within a budget of memory: in the table while it fits, else in
//! sorted runs of the attempt's directory, which are merged at the end.
//!
//! The final run is the same, byte for byte, however often the table was spilled, since merging
//! folds what the table would have folded.

use std::path::{Path, PathBuf};

use crate::{
    app::Emitter,
    combine::Table,
    failure::Failure,
    fold::{Fold, FoldError},
    merge::{FAN_IN_MAX, Merge, Origin, discard, drain, write_run},
    run::{Run, RunSummary, RunWriter},
};

/// The least budget, in bytes: less would spill for every block.
pub(crate) const MEMORY_BYTES_MIN: usize = 64 << 10;

/// The largest budget, in bytes: the table addresses its memory with 32 bits.
pub(crate) const MEMORY_BYTES_MAX: usize = 2 << 30;

/// What a map has emitted, and where that is.
pub(crate) struct Collector<F: Fold> {
    table: Table<F>,
    fold: F,
    budget: usize,
    partitions: u32,
    dir: PathBuf,
    spills: Vec<PathBuf>,
    /// How many spill files were ever created, for their names.
    created: u64,
    emitted: u64,
    failure: Option<Failure>,
}

impl<F: Fold> Collector<F> {
    /// A collector that writes into `dir` and uses `budget` bytes of memory, brought within the
    /// limits.
    pub(crate) fn new(dir: PathBuf, partitions: u32, budget: usize) -> Self {
        Self {
            table: Table::new(),
            fold: F::default(),
            budget: budget.clamp(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
            partitions,
            dir,
            spills: Vec::new(),
            created: 0,
            emitted: 0,
            failure: None,
        }
    }

    /// An emitter for a block that begins at `position`.
    pub(crate) fn emitter(&mut self, position: u64) -> Emitter<'_, F> {
        Emitter { collector: self, position }
    }

    /// Takes a pair; a failure is kept for [`Self::check`].
    #[inline]
    pub(crate) fn add(&mut self, key: &[u8], input: F::Input<'_>) {
        self.emitted += 1;
        let added = self.table.add(key, input);
        if added.is_err() || self.table.used() > self.budget {
            self.overflow(added);
        }
    }

    /// The failure of an earlier pair, if there was one.
    pub(crate) fn check(&mut self) -> Result<(), Failure> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// How many pairs were emitted.
    pub(crate) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// Writes everything as one run at `path`.
    pub(crate) fn finish(mut self, path: &Path) -> Result<RunSummary, Failure> {
        self.check()?;
        if self.spills.is_empty() {
            return write_run(path, self.partitions, |writer| self.drain_table(writer, path));
        }
        if !self.table.is_empty() {
            self.spill()?;
        }
        drop(std::mem::replace(&mut self.table, Table::new()));
        while self.spills.len() > FAN_IN_MAX {
            self.merge_pass()?;
        }
        let spills = std::mem::take(&mut self.spills);
        let summary = self.merge_spills(&spills, path)?;
        spills.iter().try_for_each(|spill| discard(spill))?;
        Ok(summary)
    }

    #[cold]
    #[inline(never)]
    fn overflow(&mut self, added: Result<(), FoldError>) {
        let done = match added {
            Ok(()) => self.spill(),
            Err(error) => Err(Failure::user(error.to_string())),
        };
        if let Err(failure) = done {
            self.failure.get_or_insert(failure);
            self.table.clear();
        }
    }

    fn spill(&mut self) -> Result<(), Failure> {
        let path = self.spill_path();
        write_run(&path, self.partitions, |writer| self.drain_table(writer, &path))?;
        self.spills.push(path);
        self.table.clear();
        Ok(())
    }

    fn spill_path(&mut self) -> PathBuf {
        self.created += 1;
        self.dir.join(format!("spill-{}.run", self.created))
    }

    fn drain_table(&self, writer: &mut RunWriter, path: &Path) -> Result<(), Failure> {
        for entry in &self.table.sorted(self.partitions) {
            let key = self.table.key(entry);
            let mut push = |value: &[u8]| {
                writer.push(entry.partition, key, value).map_err(|error| Failure::io(path, &error))
            };
            self.table.values(entry, &mut push)?;
        }
        Ok(())
    }

    /// Merges neighbours, as many at a time as may be.
    fn merge_pass(&mut self) -> Result<(), Failure> {
        for group in std::mem::take(&mut self.spills).chunks(FAN_IN_MAX) {
            let path = self.spill_path();
            self.merge_spills(group, &path)?;
            group.iter().try_for_each(|spill| discard(spill))?;
            self.spills.push(path);
        }
        Ok(())
    }

    fn merge_spills(&self, spills: &[PathBuf], path: &Path) -> Result<RunSummary, Failure> {
        let mut runs = Vec::with_capacity(spills.len());
        for spill in spills {
            let origin = Origin::Own(spill.clone());
            let run = Run::open(spill, None).map_err(|error| origin.failure(&error))?;
            runs.push((run, origin));
        }
        let mut join = |before: &mut Vec<u8>, value: &[u8]| self.fold.join(before, value);
        write_run(path, self.partitions, |writer| {
            for partition in 0..self.partitions {
                let mut readers = Vec::with_capacity(runs.len());
                for (run, origin) in &runs {
                    let reader = run.partition(partition);
                    readers.push((reader.map_err(|error| origin.failure(&error))?, origin.clone()));
                }
                drain(Merge::new(readers)?, partition, writer, path, &mut join)?;
            }
            Ok(())
        })
    }
}
