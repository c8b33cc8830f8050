//! Collects what a mapper emits within a budget of memory: in the combining table while that makes
//! it less, else in the sort buffer, and in sorted runs of the attempt's directory when memory is
//! full, which are merged at the end.
//!
//! Which of the two is used follows from what is seen: a table half of whose pairs are new keys
//! only costs time, and a sorted run half of whose pairs fold together costs a file. The final run
//! has the same records, whichever was used and however often memory was full, since merging folds
//! what the table would have folded. A table that was never full leaves them unsorted, if reduces
//! can be expected to have room for a table of their own: they collect what they get in the same way.
//!
//! Table and buffer have given their memory back before runs are merged, so what merging needs is
//! there however full they were.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use crate::{
    combine::Table,
    cursor::{Cursor, Folding, Listing},
    failure::Failure,
    fold::{Fold, FoldError},
    merge::{Joined, Merge, Origin, Share, discard, drain, fitting, write_run},
    part::Part,
    partition::Partitioning,
    run::{Codec, Order, Run, RunError, RunSummary},
    sort::SortBuffer,
};

/// The least budget, in bytes: less would spill for every block.
pub(crate) const MEMORY_BYTES_MIN: usize = 64 << 10;

/// The largest budget, in bytes: table and buffer address their memory with 32 bits.
pub(crate) const MEMORY_BYTES_MAX: usize = 2 << 30;

/// What a map has emitted, and where that is.
pub(crate) struct Collector<F: Fold> {
    sink: Sink<F>,
    fold: F,
    layout: Layout,
    spills: Vec<PathBuf>,
    /// How many spill files were ever created, for their names.
    created: u64,
    emitted: u64,
    /// How many of them the sink has not seen: they were spilled.
    emitted_before: u64,
    failure: Option<Failure>,
}

/// Where and how a map writes.
pub(crate) struct Layout {
    /// The attempt's directory; it exists.
    pub(crate) dir: PathBuf,
    /// How many reduce partitions there are.
    pub(crate) partitions: u32,
    /// Which of them gets a key.
    pub(crate) partitioning: Partitioning,
    /// How runs are compressed.
    pub(crate) codec: Codec,
    /// How much memory there is, in bytes.
    pub(crate) memory_bytes: usize,
    /// How many maps there are, each taken to be like this one; 0: that is not known, or runs have to
    /// be sorted.
    pub(crate) maps: u32,
}

enum Sink<F: Fold> {
    Table(Box<Table<F>>),
    Buffer(SortBuffer),
    /// The output itself, in a job without reduces.
    Part(Box<Part>),
    /// Nothing any more: runs are being merged.
    Closed,
}

impl<F: Fold> Collector<F> {
    /// A collector for a job with reduces.
    pub(crate) fn new(mut layout: Layout) -> Self {
        layout.memory_bytes = layout.memory_bytes.clamp(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX);
        let sink = match F::COMBINES {
            true => Sink::Table(Box::new(Table::new(layout.memory_bytes))),
            false => Sink::Buffer(SortBuffer::new(layout.memory_bytes)),
        };
        Self::with(sink, layout)
    }

    /// A collector for a job without reduces: what is emitted is written as it comes.
    pub(crate) fn direct(part: Part, layout: Layout) -> Self {
        Self::with(Sink::Part(Box::new(part)), layout)
    }

    fn with(sink: Sink<F>, layout: Layout) -> Self {
        Self {
            sink,
            fold: F::default(),
            layout,
            spills: Vec::new(),
            created: 0,
            emitted: 0,
            emitted_before: 0,
            failure: None,
        }
    }

    /// Takes a pair; a failure is kept for [`Self::check`].
    #[inline]
    pub(crate) fn add(&mut self, key: &[u8], input: F::Input<'_>) {
        self.add_part(key, 0..key.len(), input);
    }

    /// Takes a pair whose key lies in `text`; a failure is kept for [`Self::check`].
    #[inline(always)]
    pub(crate) fn add_part(&mut self, text: &[u8], key: Range<usize>, input: F::Input<'_>) {
        self.emitted += 1;
        if let Sink::Table(table) = &mut self.sink {
            match table.add(text, key, input) {
                Ok(false) => {}
                Ok(true) if table.used() <= self.layout.memory_bytes => {}
                Ok(true) => self.look(Ok(())),
                Err(error) => self.look(Err(error)),
            }
            return;
        }
        self.add_elsewhere(&text[key], input);
    }

    #[inline(never)]
    fn add_elsewhere(&mut self, key: &[u8], input: F::Input<'_>) {
        let added = match &mut self.sink {
            Sink::Buffer(buffer) => {
                let layout = &self.layout;
                let added = match layout.partitioning.sorted_by(key, layout.partitions) {
                    Ok(partition) => buffer.add(partition, key, &self.fold, input),
                    Err(failure) => return self.fail(failure),
                };
                if added.is_ok() && buffer.used() <= layout.memory_bytes {
                    return;
                }
                added
            }
            Sink::Part(part) => {
                if let Err(failure) = part.write_folded(&self.fold, key, input) {
                    self.fail(failure);
                }
                return;
            }
            Sink::Table(_) | Sink::Closed => return,
        };
        self.look(added);
    }

    /// Writes a result as it is, in a job without reduces.
    #[inline]
    pub(crate) fn write_raw(&mut self, pieces: &[&[u8]]) {
        self.emitted += 1;
        let written = match &mut self.sink {
            Sink::Part(part) => part.write_raw(pieces),
            Sink::Table(_) | Sink::Buffer(_) | Sink::Closed => {
                Err(Failure::fatal("a map of a job with reduces wrote a result"))
            }
        };
        if let Err(failure) = written {
            self.fail(failure);
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

    /// Whether there are reduces.
    pub(crate) fn is_direct(&self) -> bool {
        matches!(self.sink, Sink::Part(_))
    }

    /// The output of a job without reduces.
    pub(crate) fn into_part(self) -> Result<Box<Part>, Failure> {
        match self.sink {
            Sink::Part(part) => Ok(part),
            Sink::Table(_) | Sink::Buffer(_) | Sink::Closed => {
                Err(Failure::Internal("a map with reduces has no part".to_owned()))
            }
        }
    }

    /// Writes everything as one run at `path`; how many runs had to be merged for it.
    pub(crate) fn finish(mut self, path: &Path) -> Result<(RunSummary, u64), Failure> {
        self.check()?;
        if self.spills.is_empty() {
            let order = self.order()?;
            return self.write_sink(path, order).map(|(summary, _)| (summary, 0));
        }
        if self.emitted > self.emitted_before {
            self.spill()?;
        }
        self.sink = Sink::Closed;
        let spills = self.spills.len() as u64;
        self.merge_spills(path).map(|summary| (summary, spills))
    }

    #[cold]
    #[inline(never)]
    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// Memory is full, or a pair could not be taken.
    #[cold]
    #[inline(never)]
    fn look(&mut self, added: Result<(), FoldError>) {
        let done = match added {
            Err(error) => Err(Failure::user(error.to_string())),
            Ok(()) => self.spill(),
        };
        if let Err(failure) = done {
            self.fail(failure);
        }
    }

    /// Writes what is in memory to a run, and takes the sink that would have made it shorter.
    fn spill(&mut self) -> Result<(), Failure> {
        let path = self.spill_path();
        let (summary, pairs) = self.write_sink(&path, Order::ByKey)?;
        self.spills.push(path);
        self.emitted_before = self.emitted;
        let memory_bytes = self.layout.memory_bytes;
        match &mut self.sink {
            Sink::Table(table) if is_in_vain(summary.records, pairs) => {
                // The table's memory first, then the buffer's.
                table.clear();
                self.sink = Sink::Buffer(SortBuffer::new(memory_bytes));
            }
            Sink::Buffer(_) if F::COMBINES && !is_in_vain(summary.records, pairs) => {
                self.sink = Sink::Table(Box::new(Table::new(memory_bytes)));
            }
            Sink::Table(table) => table.clear(),
            Sink::Buffer(buffer) => buffer.clear(),
            Sink::Part(_) | Sink::Closed => {}
        }
        Ok(())
    }

    fn spill_path(&mut self) -> PathBuf {
        self.created += 1;
        self.layout.dir.join(format!("spill-{}.run", self.created))
    }

    /// In which order what is in memory is to be written. If a table of a reduce has room for what all
    /// maps leave it, every key is sorted once there, and not by each map that has it.
    fn order(&mut self) -> Result<Order, Failure> {
        let Layout { maps, partitions, memory_bytes, .. } = self.layout;
        let Sink::Table(table) = &mut self.sink else { return Ok(Order::ByKey) };
        let share = table.settle()? as u64 * u64::from(maps) / u64::from(partitions);
        let fits = maps > 0 && share <= reduce_bytes(memory_bytes) as u64;
        Ok(if fits { Order::None } else { Order::ByKey })
    }

    /// Writes what is in memory to a run; how many pairs it was.
    fn write_sink(&mut self, path: &Path, order: Order) -> Result<(RunSummary, u64), Failure> {
        let pairs = self.emitted - self.emitted_before;
        let Layout { partitions, codec, partitioning, .. } = &self.layout;
        let summary = match &mut self.sink {
            Sink::Table(table) => {
                let listed = table.listed(partitioning, *partitions, order)?;
                write_run(path, *partitions, *codec, order, |writer| {
                    table.write(&listed, |partition, key, value| {
                        let pushed = writer.push(partition, key, value);
                        pushed.map_err(|error| Failure::io(path, &error))
                    })
                })?
            }
            Sink::Buffer(buffer) => {
                let fold = &self.fold;
                write_run(path, *partitions, *codec, Order::ByKey, |writer| {
                    let mut join = |before: &mut Vec<u8>, value: &[u8]| fold.join(before, value);
                    let mut to = Joined::new(writer, path, F::COMBINES.then_some(&mut join));
                    let mut partition = 0;
                    buffer.drain(|sorted_by, key, value| {
                        partition = partitioning.of_sorted(key, *partitions, sorted_by, partition);
                        to.push(partition, key, value)
                    })?;
                    to.finish()
                })?
            }
            Sink::Part(_) | Sink::Closed => {
                return Err(nothing());
            }
        };
        Ok((summary, pairs))
    }

    /// Everything by key: for a reduce, which has one partition.
    pub(crate) fn into_cursor(mut self) -> Result<Cursor, Failure> {
        self.check()?;
        if self.spills.is_empty() {
            return match self.sink {
                Sink::Table(table) => Ok(Cursor::Folded(Box::new(Listing::new(*table)?))),
                Sink::Buffer(_) | Sink::Part(_) | Sink::Closed => Err(nothing()),
            };
        }
        if self.emitted > self.emitted_before {
            self.spill()?;
        }
        self.sink = Sink::Closed;
        self.merge_until_fitting()?;
        let shares = self.spills.iter().map(|spill| share(&open(spill)?, spill, 0));
        let merge = Merge::new(shares.collect::<Result<_, _>>()?, self.layout.memory_bytes)?;
        // The readers keep the files open; their names are no longer needed.
        self.spills.iter().try_for_each(|spill| discard(spill))?;
        Ok(Cursor::Folded(Box::new(Folding::<F>::new(merge, true)?)))
    }

    /// Merges all spills to one run.
    fn merge_spills(mut self, path: &Path) -> Result<RunSummary, Failure> {
        self.merge_until_fitting()?;
        self.merge(&self.spills, path)
    }

    /// Merges spills in passes, as long as memory is too short for all at once.
    fn merge_until_fitting(&mut self) -> Result<(), Failure> {
        loop {
            let fits = self.fitting_spills()?;
            if fits >= self.spills.len() {
                return Ok(());
            }
            let mut merged = Vec::new();
            for group in std::mem::take(&mut self.spills).chunks(fits) {
                let into = self.spill_path();
                self.merge(group, &into)?;
                merged.push(into);
            }
            self.spills = merged;
        }
    }

    /// How many spills can be merged at once, whichever they are.
    fn fitting_spills(&self) -> Result<usize, Failure> {
        let mut needs = Vec::with_capacity(self.spills.len());
        for spill in &self.spills {
            let mut most = (0, false);
            let run = open(spill)?;
            for partition in 0..self.layout.partitions {
                let (bytes, file) = share(&run, spill, partition)?.needs();
                most = (most.0.max(bytes), most.1 | file);
            }
            needs.push(most);
        }
        // The neediest stand for all, so that every group of neighbours fits.
        needs.sort_unstable_by(|left, right| right.cmp(left));
        Ok(fitting(needs.into_iter(), self.layout.memory_bytes))
    }

    fn merge(&self, spills: &[PathBuf], path: &Path) -> Result<RunSummary, Failure> {
        let runs = spills.iter().map(|spill| open(spill)).collect::<Result<Vec<_>, _>>()?;
        let Layout { partitions, codec, memory_bytes, .. } = self.layout;
        let mut join = |before: &mut Vec<u8>, value: &[u8]| self.fold.join(before, value);
        let summary = write_run(path, partitions, codec, Order::ByKey, |writer| {
            let mut to = Joined::new(writer, path, F::COMBINES.then_some(&mut join));
            for partition in 0..partitions {
                let shares =
                    runs.iter().zip(spills).map(|(run, spill)| share(run, spill, partition));
                let shares = shares.collect::<Result<Vec<_>, _>>()?;
                drain(&mut Merge::new(shares, memory_bytes)?, partition, &mut to)?;
            }
            to.finish()
        })?;
        spills.iter().try_for_each(|spill| discard(spill))?;
        Ok(summary)
    }
}

/// How much of a task's memory a reduce's table may use: a key's values are listed beside it.
pub(crate) fn reduce_bytes(memory_bytes: usize) -> usize {
    memory_bytes / 2
}

fn nothing() -> Failure {
    Failure::Internal("there is nothing to write a run of".to_owned())
}

/// Whether folding is not worth its cost: more than half of what came in went out.
fn is_in_vain(out: u64, pairs: u64) -> bool {
    out.saturating_mul(2) > pairs
}

fn open(spill: &Path) -> Result<Run, Failure> {
    Run::open(spill, None).map_err(|error| own(spill).failure(&error))
}

fn share(run: &Run, spill: &Path, partition: u32) -> Result<Share, Failure> {
    let origin = own(spill);
    let partition = run.partition(partition).map_err(|error: RunError| origin.failure(&error))?;
    Ok(Share { partition, origin })
}

fn own(spill: &Path) -> Origin {
    Origin::Own(spill.to_owned())
}
