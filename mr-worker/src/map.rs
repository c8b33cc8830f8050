//! A map task: pieces of inputs in, one run out, or, in a job without reduces, one part.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use crate::{
    app::{App, Context, Emitter, Mapper},
    collect::{Collector, Layout},
    failure::{Failure, Place},
    fold::Fold,
    input::{Piece, Reading},
    outcome::{
        COMBINE_OUTPUT_RECORDS, Counters, LONG_LINES, MAP_INPUT_BYTES, MAP_INPUT_LINES,
        MAP_OUTPUT_RECORDS, MAP_OUTPUT_RESULTS, Outcome, Progress, SKIPPED_RECORDS, SPILLED_RUNS,
    },
    panics,
    part::{Part, PartStyle},
    partition::Partitioning,
    record::{Block, Records},
    run::Codec,
};

/// The name of a map's run.
pub const RUN_FILE: &str = "data.run";

/// Where a careful map says which record it is at: the piece as u32, the offset as u64, both
/// little-endian. Who finds its process dead reads it there.
pub const POSITION_FILE: &str = "position";

/// A map task.
pub struct MapTask {
    /// What the app is told.
    pub context: Context,
    /// What to read, in order.
    pub pieces: Vec<Piece>,
    /// How to read it.
    pub reading: Reading,
    /// How keys are spread over the reduces.
    pub partitioning: Partitioning,
    /// How runs are compressed.
    pub codec: Codec,
    /// How results are written, in a job without reduces.
    pub style: PartStyle,
    /// The attempt's directory; it exists.
    pub dir: PathBuf,
    /// How much memory table and buffer may use, in bytes.
    pub memory_bytes: usize,
    /// How many maps the job has; 0: that is not known, and runs are sorted.
    pub maps: u32,
    /// Whether records are mapped one by one, and which are left out.
    pub care: Option<Care>,
}

/// What a map does after attempts at it have failed, where that may cost records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Care {
    /// The records that are left out, by document and offset.
    pub skip: BTreeSet<(String, u64)>,
}

/// Runs a map task.
pub(crate) fn run<A: App>(
    app: &A,
    mut task: MapTask,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let mut mapper = app.mapper(&task.context)?;
    let mut collector = collector(app, &mut task)?;
    let mut counters = Counters::default();
    let mut care = task.care.as_ref().map(|care| Watch::new(care, &task.dir)).transpose()?;
    for (number, piece) in task.pieces.iter().enumerate() {
        let mut each = |block: Block<'_>| {
            let records = block.count();
            let is_line =
                matches!(block.records, Records::Lines { .. } | Records::KeyValues { .. });
            if is_line {
                counters.add(MAP_INPUT_LINES, records);
            }
            let exact = block.records == Records::Files;
            let mut out = Emitter {
                collector: &mut collector,
                counters: &mut counters,
                position: block.offset,
                exact,
            };
            let mapped = catch_unwind(AssertUnwindSafe(|| match &mut care {
                None => mapper.map_block(block, &mut out),
                Some(watch) => watch.map_block(&mut mapper, number as u32, block, &mut out),
            }));
            let mapped =
                mapped.unwrap_or_else(|panic| Err(Failure::user(panics::message(&*panic))));
            let Emitter { position: offset, exact, .. } = out;
            let place = || Place { document: block.document.to_owned(), offset, exact };
            mapped.and_then(|()| collector.check()).map_err(|failure| failure.at(place))?;
            progress.advance(records, block.bytes.len() as u64);
            progress.tell();
            Ok(())
        };
        let read = piece.blocks(&task.reading, &mut each)?;
        counters.add(MAP_INPUT_BYTES, read.bytes);
        if read.long_lines > 0 {
            counters.add(LONG_LINES, read.long_lines);
        }
    }
    finish_mapper(&mut mapper, &mut collector, &mut counters)?;
    if let Some(watch) = care {
        counters.add(SKIPPED_RECORDS, watch.skipped);
    }
    finish(collector, counters, &task.dir)
}

fn collector<A: App>(app: &A, task: &mut MapTask) -> Result<Collector<A::Fold>, Failure> {
    let asked = std::mem::take(&mut task.partitioning);
    let partitioning = match asked {
        // What the job asks for goes before what the app does without a wish.
        Partitioning::Hash => {
            let own = app.partitioner(&task.context)?;
            own.map_or(Partitioning::Hash, |own| Partitioning::Own(own.into()))
        }
        asked @ (Partitioning::Prefix(_) | Partitioning::Range(_) | Partitioning::Own(_)) => asked,
    };
    let layout = Layout {
        dir: task.dir.clone(),
        partitions: task.context.partitions,
        partitioning,
        codec: task.codec,
        memory_bytes: task.memory_bytes,
        maps: task.maps,
    };
    if task.context.partitions > 0 {
        return Ok(Collector::new(layout));
    }
    if A::Fold::COMBINES {
        let message = "this app combines values for its reduce: it needs at least one reduce";
        return Err(Failure::fatal(message));
    }
    Ok(Collector::direct(Part::create(&task.dir, task.style)?, layout))
}

fn finish_mapper<M: Mapper>(
    mapper: &mut M,
    collector: &mut Collector<M::Fold>,
    counters: &mut Counters,
) -> Result<(), Failure> {
    let mut out = Emitter { collector, counters, position: 0, exact: false };
    let finished = catch_unwind(AssertUnwindSafe(|| mapper.finish(&mut out)));
    finished.unwrap_or_else(|panic| Err(Failure::user(panics::message(&*panic))))?;
    collector.check()
}

fn finish<F: Fold>(
    collector: Collector<F>,
    mut counters: Counters,
    dir: &Path,
) -> Result<Outcome, Failure> {
    counters.add(MAP_OUTPUT_RECORDS, collector.emitted());
    if collector.is_direct() {
        let mut outcome = collector.into_part()?.finish(MAP_OUTPUT_RESULTS)?;
        outcome.counters.extend(counters);
        return Ok(outcome);
    }
    let (run, spills) = collector.finish(&dir.join(RUN_FILE))?;
    counters.add(COMBINE_OUTPUT_RECORDS, run.records);
    if spills > 0 {
        counters.add(SPILLED_RUNS, spills);
    }
    Ok(Outcome {
        file: RUN_FILE,
        bytes: run.bytes,
        records: run.records,
        crc: run.footer_crc,
        content_hash: run.content_hash,
        counters,
    })
}

/// A careful map: it says which record it is at before it maps it, and leaves some out.
struct Watch<'t> {
    care: &'t Care,
    position: File,
    path: PathBuf,
    skipped: u64,
}

impl<'t> Watch<'t> {
    fn new(care: &'t Care, dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(POSITION_FILE);
        let position = File::create_new(&path).map_err(|error| Failure::io(&path, &error))?;
        Ok(Self { care, position, path, skipped: 0 })
    }

    fn map_block<M: Mapper>(
        &mut self,
        mapper: &mut M,
        piece: u32,
        block: Block<'_>,
        out: &mut Emitter<'_, M::Fold>,
    ) -> Result<(), Failure> {
        for record in block.records() {
            out.at_record(record.offset);
            if self.care.skip.contains(&(record.document.to_owned(), record.offset)) {
                self.skipped += 1;
                continue;
            }
            let mut position = [0; 12];
            position[..4].copy_from_slice(&piece.to_le_bytes());
            position[4..].copy_from_slice(&record.offset.to_le_bytes());
            let written = self.position.write_all_at(&position, 0);
            written.map_err(|error| Failure::io(&self.path, &error))?;
            mapper.map(record, out)?;
        }
        Ok(())
    }
}
