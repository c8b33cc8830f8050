//! A whole job in this process, task after task: what a cluster computes, without one.
//!
//! It plans as the coordinator does, one map for each piece of an input, and leaves the parts in the
//! directories of their attempts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    app::Program,
    failure::Failure,
    input::{Piece, Records, modified_ns},
    map::MapTask,
    outcome::{Outcome, Progress},
    reduce::{InputRun, PartFormat, Patience, ReduceTask},
};

/// A job to run here.
pub struct LocalJob<'a> {
    /// The app.
    pub program: &'a dyn Program,
    /// Documents, as the user names them, and their files.
    pub inputs: Vec<(String, PathBuf)>,
    /// What a record is.
    pub records: Records,
    /// The largest piece, in bytes, for lines.
    pub split_bytes: u64,
    /// How many reduce partitions.
    pub partitions: u32,
    /// How results are written.
    pub format: PartFormat,
    /// The memory of a map, in bytes.
    pub memory_bytes: usize,
    /// An existing directory for everything that the job writes.
    pub dir: &'a Path,
}

/// What a job left.
#[derive(Debug)]
pub struct LocalResult {
    /// The parts, by partition.
    pub parts: Vec<PathBuf>,
    /// The maps' outcomes.
    pub maps: Vec<Outcome>,
    /// The reduces' outcomes.
    pub reduces: Vec<Outcome>,
    /// The sums of all counters.
    pub counters: BTreeMap<&'static str, u64>,
}

impl LocalJob<'_> {
    /// Runs it.
    pub fn run(&self) -> Result<LocalResult, Failure> {
        let mut maps = Vec::new();
        let mut runs = Vec::new();
        for (number, piece) in self.plan()?.into_iter().enumerate() {
            let task = MapTask {
                pieces: vec![piece],
                records: self.records,
                partitions: self.partitions,
                dir: self.attempt_dir(&format!("m-{number}"))?,
                memory_bytes: self.memory_bytes,
            };
            let outcome = self.program.map(&task, &mut Progress::new(|_, _| {}))?;
            runs.push(InputRun {
                path: task.dir.join(outcome.file),
                bytes: outcome.bytes,
                footer_crc: outcome.crc,
            });
            maps.push(outcome);
        }
        let mut reduces = Vec::new();
        let mut parts = Vec::new();
        for partition in 0..self.partitions {
            let task = ReduceTask {
                partition,
                runs: runs.clone(),
                format: self.format,
                dir: self.attempt_dir(&format!("r-{partition}"))?,
                patience: Patience::default(),
            };
            let outcome = self.program.reduce(&task, &mut Progress::new(|_, _| {}))?;
            parts.push(task.dir.join(outcome.file));
            reduces.push(outcome);
        }
        let mut counters = BTreeMap::new();
        for (name, count) in maps.iter().chain(&reduces).flat_map(|outcome| &outcome.counters) {
            *counters.entry(*name).or_default() += count;
        }
        Ok(LocalResult { parts, maps, reduces, counters })
    }

    fn plan(&self) -> Result<Vec<Piece>, Failure> {
        let mut pieces = Vec::new();
        for (document, path) in &self.inputs {
            let metadata = fs::metadata(path).map_err(|error| Failure::input(document, &error))?;
            let (size, modified_ns) = (metadata.len(), modified_ns(&metadata));
            let piece_bytes = match self.records {
                Records::Lines => self.split_bytes.max(1),
                Records::Files => size.max(1),
            };
            let mut start = 0;
            loop {
                let bytes = piece_bytes.min(size - start);
                let (document, path) = (document.clone(), path.clone());
                pieces.push(Piece { document, path, start, bytes, file_bytes: size, modified_ns });
                start += bytes;
                if start >= size {
                    break;
                }
            }
        }
        Ok(pieces)
    }

    fn attempt_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).map_err(|error| Failure::io(&dir, &error))?;
        Ok(dir)
    }
}
