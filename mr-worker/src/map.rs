//! A map task: pieces of inputs in, one run out.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use crate::{
    app::{App, Block, Emitter, Mapper},
    failure::Failure,
    input::{Piece, Records},
    outcome::{
        COMBINE_OUTPUT_RECORDS, Counters, MAP_INPUT_BYTES, MAP_INPUT_LINES, MAP_OUTPUT_RECORDS,
        Outcome, Progress,
    },
    panics,
    spill::Collector,
};

/// The name of a map's run.
pub const RUN_FILE: &str = "data.run";

/// A map task.
#[derive(Debug, Clone)]
pub struct MapTask {
    /// What to read, in order.
    pub pieces: Vec<Piece>,
    /// What a record is.
    pub records: Records,
    /// How many reduce partitions there are.
    pub partitions: u32,
    /// The attempt's directory; it exists.
    pub dir: PathBuf,
    /// How much memory the combining table may use, in bytes.
    pub memory_bytes: usize,
}

/// Runs a map task.
pub(crate) fn run<A: App>(
    app: &A,
    task: &MapTask,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let mut mapper = app.mapper();
    let mut collector: Collector<A::Fold> =
        Collector::new(task.dir.clone(), task.partitions, task.memory_bytes);
    let (mut bytes, mut lines) = (0, 0);
    for piece in &task.pieces {
        let mut each = |block: Block<'_>| {
            let records = count(block);
            lines += records;
            map_block(&mut mapper, block, collector.emitter(block.offset))?;
            collector.check().map_err(|failure| failure.at(block.document, block.offset))?;
            progress.advance(records, block.bytes.len() as u64);
            progress.tell();
            Ok(())
        };
        bytes += piece.blocks(task.records, &mut each)?;
    }
    let mut counters = Counters::from([(MAP_INPUT_BYTES, bytes)]);
    if task.records == Records::Lines {
        counters.insert(MAP_INPUT_LINES, lines);
    }
    counters.insert(MAP_OUTPUT_RECORDS, collector.emitted());
    let run = collector.finish(&task.dir.join(RUN_FILE))?;
    counters.insert(COMBINE_OUTPUT_RECORDS, run.records);
    Ok(Outcome {
        file: RUN_FILE,
        bytes: run.bytes,
        records: run.records,
        crc: run.footer_crc,
        content_hash: run.content_hash,
        counters,
    })
}

/// Lets the app map a block; a panic is the app's failure.
fn map_block<M: Mapper>(
    mapper: &mut M,
    block: Block<'_>,
    mut out: Emitter<'_, M::Fold>,
) -> Result<(), Failure> {
    let mapped = catch_unwind(AssertUnwindSafe(|| mapper.map_block(block, &mut out)));
    let result = mapped.unwrap_or_else(|panic| Err(Failure::user(panics::message(&*panic))));
    result.map_err(|failure| failure.at(block.document, out.position))
}

fn count(block: Block<'_>) -> u64 {
    if !block.lines {
        return 1;
    }
    let feeds = memchr::memchr_iter(b'\n', block.bytes).count() as u64;
    feeds + u64::from(block.bytes.last().is_some_and(|&last| last != b'\n'))
}
