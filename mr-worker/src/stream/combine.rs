//! A combining program: it reads a map's finished run, sorted as a reduce would read it, partition
//! after partition, and what it writes is collected and sorted again.
//!
//! So it may write other keys than it read, in any order, and it runs once for each map; a reduce
//! sees the same groups whether there is one or not.

use std::{fs, path::PathBuf};

use super::{Attempt, framing::Sink};
use crate::{
    collect::{Collector, Layout},
    failure::Failure,
    fold::Keep,
    map::{MapTask, RUN_FILE},
    merge::{Merge, Origin, Share, discard},
    outcome::{COMBINE_INPUT_RECORDS, COMBINE_OUTPUT_RECORDS, Counters, Outcome},
    partition::Partitioning,
    record::parted,
    run::{Codec, Run},
};

/// The run as the map left it.
const UNCOMBINED_FILE: &str = "uncombined.run";

/// What is to be combined, and how.
pub(super) struct Combining {
    argv: Vec<String>,
    dir: PathBuf,
    partitions: u32,
    partitioning: Partitioning,
    codec: Codec,
    memory_bytes: usize,
}

impl Combining {
    pub(super) fn new(argv: &[String], task: &MapTask) -> Self {
        Self {
            argv: argv.to_vec(),
            dir: task.dir.clone(),
            partitions: task.context.partitions,
            partitioning: task.partitioning.clone(),
            codec: task.codec,
            memory_bytes: task.memory_bytes,
        }
    }

    /// Puts the combined run in the place of the map's.
    pub(super) fn run(self, attempt: &Attempt, outcome: &mut Outcome) -> Result<(), Failure> {
        if outcome.records == 0 {
            return Ok(());
        }
        let (path, before) = (self.dir.join(RUN_FILE), self.dir.join(UNCOMBINED_FILE));
        fs::rename(&path, &before).map_err(|error| Failure::io(&path, &error))?;
        let origin = || Origin::Own(before.clone());
        let run = Run::open(&before, None).map_err(|error| origin().failure(&error))?;
        // Spills of the map are gone by now, so their names are free.
        let mut combined = Combined {
            collector: Collector::new(Layout {
                dir: self.dir,
                partitions: self.partitions,
                partitioning: self.partitioning,
                codec: self.codec,
                memory_bytes: self.memory_bytes,
                maps: 0,
            }),
            counters: Counters::default(),
        };
        let mut child = attempt.start(&self.argv, None)?;
        for partition in 0..self.partitions {
            let partition = run.partition(partition).map_err(|error| origin().failure(&error))?;
            let share = Share { partition, origin: origin() };
            let mut merge = Merge::new(vec![share], self.memory_bytes)?;
            while let Some((key, value)) = merge.top() {
                child.pair(key, value, &mut combined)?;
                merge.advance()?;
            }
        }
        child.finish(&mut combined)?;
        let (summary, _) = combined.collector.finish(&path)?;
        discard(&before)?;
        outcome.counters.extend(combined.counters);
        outcome.counters.replace(COMBINE_INPUT_RECORDS, outcome.records);
        outcome.counters.replace(COMBINE_OUTPUT_RECORDS, summary.records);
        *outcome = Outcome {
            bytes: summary.bytes,
            records: summary.records,
            crc: summary.footer_crc,
            content_hash: summary.content_hash,
            ..outcome.clone()
        };
        Ok(())
    }
}

/// Where what a combining program writes goes.
struct Combined {
    collector: Collector<Keep>,
    counters: Counters,
}

impl Sink for Combined {
    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        let (key, value) = parted(line);
        self.collector.add(key, value);
        Ok(())
    }

    fn pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.collector.add(key, value);
        Ok(())
    }

    fn count(&mut self, counter: &str, count: u64) -> Result<(), Failure> {
        self.counters.count(counter, count)
    }

    fn check(&mut self) -> Result<(), Failure> {
        self.collector.check()
    }
}
