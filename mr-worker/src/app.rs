//! What an app is: a mapper, a fold that combines, a reducer.
//!
//! Apps are chosen by name at run time and compiled by type: an [`App`] becomes a [`Program`], whose
//! two calls are the only dynamic ones, so that a mapper's emit is inlined into its loop.

use std::ops::Range;

use crate::{
    args::{Arg, Args},
    collect::Collector,
    combine::prefix,
    cursor::Cursor,
    failure::Failure,
    fold::Fold,
    map::{self, MapTask},
    outcome::{Counters, Outcome, Progress},
    part::Part,
    partition::Partitioner,
    record::{Block, Record, Records},
    reduce::{self, ReduceTask, Tally},
};

/// A MapReduce program, as its author writes it.
pub trait App: Send + Sync + 'static {
    /// How the values of a key become fewer within a map; [`crate::fold::Keep`]: not at all.
    type Fold: Fold;
    /// What reads records.
    type Mapper: Mapper<Fold = Self::Fold>;
    /// What reads groups.
    type Reducer: Reducer;

    /// The name by which jobs ask for it.
    fn name(&self) -> &'static str;

    /// The arguments that it takes; a job with others is refused.
    fn args(&self) -> &'static [Arg] {
        &[]
    }

    /// A mapper for one task.
    ///
    /// # Errors
    /// When the job's arguments will not do.
    fn mapper(&self, task: &Context) -> Result<Self::Mapper, Failure>;

    /// A reducer for one task.
    ///
    /// # Errors
    /// When the job's arguments will not do.
    fn reducer(&self, task: &Context) -> Result<Self::Reducer, Failure>;

    /// Its own way of spreading keys over the reduces, if it has one.
    ///
    /// # Errors
    /// When the job's arguments will not do.
    fn partitioner(&self, _task: &Context) -> Result<Option<Box<dyn Partitioner>>, Failure> {
        Ok(None)
    }
}

/// What a task is told about itself.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The job's id.
    pub job: String,
    /// The task's number among the maps, or its partition.
    pub task: u32,
    /// How many reduce partitions there are; 0: the maps' results are the job's.
    pub partitions: u32,
    /// What a record of the inputs is.
    pub records: Records,
    /// The job's arguments.
    pub args: Args,
}

/// Turns records into pairs. One mapper serves one task.
pub trait Mapper: Send {
    /// How its values are combined.
    type Fold: Fold;

    /// Maps one record.
    ///
    /// # Errors
    /// [`Failure::user`] to be tried again, [`Failure::fatal`] if that is of no use.
    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Self::Fold>)
    -> Result<(), Failure>;

    /// Maps a block of whole records; an app for which a block is as good as its records
    /// ([`Block::is_text`]) saves a call for each.
    ///
    /// # Errors
    /// As [`Mapper::map`].
    fn map_block(
        &mut self,
        block: Block<'_>,
        out: &mut Emitter<'_, Self::Fold>,
    ) -> Result<(), Failure> {
        self.map_records(block, out)
    }

    /// Maps a block record by record.
    ///
    /// # Errors
    /// As [`Mapper::map`].
    fn map_records(
        &mut self,
        block: Block<'_>,
        out: &mut Emitter<'_, Self::Fold>,
    ) -> Result<(), Failure> {
        for record in block.records() {
            out.at_record(record.offset);
            self.map(record, out)?;
        }
        Ok(())
    }

    /// Is called when all records were mapped.
    ///
    /// # Errors
    /// As [`Mapper::map`].
    fn finish(&mut self, _out: &mut Emitter<'_, Self::Fold>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Turns the values of one key into results. One reducer serves one task.
pub trait Reducer: Send {
    /// Reduces one group. Values that it leaves are skipped.
    ///
    /// # Errors
    /// [`Failure::user`] to be tried again, [`Failure::fatal`] if that is of no use.
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure>;

    /// Is called when all groups were reduced.
    ///
    /// # Errors
    /// As [`Reducer::reduce`].
    fn finish(&mut self, _out: &mut Output<'_>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Takes what a mapper emits.
pub struct Emitter<'t, F: Fold> {
    pub(crate) collector: &'t mut Collector<F>,
    pub(crate) counters: &'t mut Counters,
    /// Where the record, or the block, begins that is being mapped, for the message if that fails.
    pub(crate) position: u64,
    /// Whether it is the record.
    pub(crate) exact: bool,
}

impl<F: Fold> Emitter<'_, F> {
    /// Emits a pair. If it cannot be kept, the map fails at the end of the block.
    #[inline]
    pub fn emit(&mut self, key: &[u8], input: F::Input<'_>) {
        self.collector.add(key, input);
    }

    /// Emits a pair whose key lies in `text`: faster than [`Self::emit`] where text follows it.
    #[inline]
    pub fn emit_part(&mut self, text: &[u8], key: Range<usize>, input: F::Input<'_>) {
        self.collector.add_part(text, key, input);
    }

    /// Writes a result as these pieces, whatever the job's format, in a job without reduces; in
    /// any other the map fails at the end of the block.
    #[inline]
    pub fn write_raw(&mut self, pieces: &[&[u8]]) {
        self.collector.write_raw(pieces);
    }

    /// Counts something of the app's own.
    ///
    /// # Errors
    /// When there are too many counters, or the name is too long.
    pub fn count(&mut self, counter: &str, count: u64) -> Result<(), Failure> {
        self.counters.count(counter, count)
    }

    /// The record that begins there is being mapped.
    #[inline]
    pub(crate) fn at_record(&mut self, offset: u64) {
        self.position = offset;
        self.exact = true;
    }
}

/// The values of one key: by map task, and in the order of emission within one. A cursor, so that a
/// group may be larger than memory.
pub struct Values<'m> {
    cursor: &'m mut Cursor,
    key: &'m [u8],
    prefix: u64,
    taken: bool,
    tally: &'m mut Tally,
    progress: &'m mut Progress,
}

impl<'m> Values<'m> {
    /// The values of the key at which `cursor` stands.
    pub(crate) fn new(
        cursor: &'m mut Cursor,
        key: &'m [u8],
        tally: &'m mut Tally,
        progress: &'m mut Progress,
    ) -> Self {
        Self { cursor, key, prefix: prefix(key), taken: false, tally, progress }
    }

    /// The next value, if there is one.
    ///
    /// # Errors
    /// When a map's result turns out lost, which is no fault of the app's: hand it on.
    #[allow(clippy::should_implement_trait, reason = "it lends, which an iterator cannot")]
    #[inline]
    pub fn next(&mut self) -> Result<Option<&[u8]>, Failure> {
        if self.taken {
            self.cursor.advance()?;
            self.taken = false;
        }
        let value = self.cursor.value_of(self.key, self.prefix);
        if let Some(value) = value {
            self.taken = true;
            let records = self.cursor.records();
            self.tally.records += records;
            self.progress.advance(records, (self.key.len() + value.len()) as u64);
        }
        Ok(value)
    }
}

/// Takes what a reducer writes.
pub struct Output<'p> {
    pub(crate) part: &'p mut Part,
    pub(crate) counters: &'p mut Counters,
}

impl Output<'_> {
    /// Writes a result in the job's format.
    ///
    /// # Errors
    /// When the file cannot be written.
    #[inline]
    pub fn write(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.part.write(key, value)
    }

    /// Writes a result as these pieces, whatever the job's format.
    ///
    /// # Errors
    /// When the file cannot be written.
    #[inline]
    pub fn write_raw(&mut self, pieces: &[&[u8]]) -> Result<(), Failure> {
        self.part.write_raw(pieces)
    }

    /// Counts something of the app's own.
    ///
    /// # Errors
    /// When there are too many counters, or the name is too long.
    pub fn count(&mut self, counter: &str, count: u64) -> Result<(), Failure> {
        self.counters.count(counter, count)
    }
}

/// An app as the engine sees it.
pub trait Program: Send + Sync {
    /// The name by which jobs ask for it.
    fn name(&self) -> &'static str;
    /// The arguments that it takes.
    fn args(&self) -> &'static [Arg];
    /// Runs a map task.
    ///
    /// # Errors
    /// Why it failed.
    fn map(&self, task: MapTask, progress: &mut Progress) -> Result<Outcome, Failure>;
    /// Runs a reduce task.
    ///
    /// # Errors
    /// Why it failed.
    fn reduce(&self, task: &ReduceTask, progress: &mut Progress) -> Result<Outcome, Failure>;
}

impl<A: App> Program for A {
    fn name(&self) -> &'static str {
        App::name(self)
    }

    fn args(&self) -> &'static [Arg] {
        App::args(self)
    }

    fn map(&self, task: MapTask, progress: &mut Progress) -> Result<Outcome, Failure> {
        task.context.args.check(App::name(self), App::args(self))?;
        map::run(self, task, progress)
    }

    fn reduce(&self, task: &ReduceTask, progress: &mut Progress) -> Result<Outcome, Failure> {
        task.context.args.check(App::name(self), App::args(self))?;
        reduce::run(self, task, progress)
    }
}
