//! A reduce task: one partition of every map's run in, one part of the output out.

use std::{
    fs::File,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    app::{App, Output, Reducer, Values},
    failure::Failure,
    merge::{FAN_IN_MAX, Merge, Origin, discard, drain, write_run},
    outcome::{
        Counters, OUTPUT_BYTES, Outcome, Progress, REDUCE_INPUT_GROUPS, REDUCE_INPUT_RECORDS,
        REDUCE_OUTPUT_RECORDS,
    },
    panics,
    run::{PartitionReader, Run, RunError, record_hash},
};

/// The name of a reduce's output in its directory.
pub const PART_FILE: &str = "part";

/// How much output is gathered before it is written.
const BUFFER_BYTES: usize = 256 << 10;

/// A committed run of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRun {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The checksum of its footer.
    pub footer_crc: u32,
}

/// How a result becomes a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartFormat {
    /// Key, TAB, value, LF.
    Text,
    /// Key, space, value, LF, as the labs have it.
    Lab,
}

/// A reduce task.
#[derive(Debug, Clone)]
pub struct ReduceTask {
    /// Which partition.
    pub partition: u32,
    /// The runs, in the order of their map tasks.
    pub runs: Vec<InputRun>,
    /// How results are written.
    pub format: PartFormat,
    /// The attempt's directory; it exists.
    pub dir: PathBuf,
    /// How often a run that is missing or too short is looked for again, since a network file
    /// system may show late what another machine wrote.
    pub patience: Patience,
}

/// How long to wait for what another machine has written: with pauses that double.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The first pause.
    pub first: Duration,
    /// How many pauses there are.
    pub pauses: u32,
}

impl Default for Patience {
    /// Seven pauses, 6.3 s together: more than the 3 s for which NFS caches a directory at least.
    fn default() -> Self {
        Self { first: Duration::from_millis(50), pauses: 7 }
    }
}

/// Runs a reduce task.
pub(crate) fn run<A: App>(
    app: &A,
    task: &ReduceTask,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let mut merge = open(task)?;
    let mut reducer = app.reducer();
    let mut part = Part::create(&task.dir, task.format)?;
    let (mut groups, mut records) = (0, 0);
    let mut key = Vec::new();
    while let Some((next, _)) = merge.top() {
        key.clear();
        key.extend_from_slice(next);
        groups += 1;
        reduce_group(&mut reducer, &key, &mut merge, &mut part, &mut records, progress)?;
    }
    progress.tell();
    let mut outcome = part.finish()?;
    outcome.counters.extend([(REDUCE_INPUT_GROUPS, groups), (REDUCE_INPUT_RECORDS, records)]);
    Ok(outcome)
}

/// Lets the app reduce one group, and skips what it leaves.
fn reduce_group<R: Reducer>(
    reducer: &mut R,
    key: &[u8],
    merge: &mut Merge,
    part: &mut Part,
    records: &mut u64,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut values = Values { merge, key, taken: false, count: records, progress };
    let mut out = Output { part };
    let reduced = catch_unwind(AssertUnwindSafe(|| reducer.reduce(key, &mut values, &mut out)));
    let result = reduced.unwrap_or_else(|panic| Err(Failure::user(panics::message(&*panic))));
    result.map_err(|failure| match failure {
        Failure::User { message, path, offset } => {
            let message = format!("{message} (key {:?})", String::from_utf8_lossy(shown(key)));
            Failure::User { message, path, offset }
        }
        other => other,
    })?;
    while values.next()?.is_some() {}
    Ok(())
}

/// As much of a key as a message needs.
fn shown(key: &[u8]) -> &[u8] {
    const SHOWN_BYTES: usize = 100;
    &key[..key.len().min(SHOWN_BYTES)]
}

/// Opens the partition of every run, in as many passes as the fan-in asks for.
fn open(task: &ReduceTask) -> Result<Merge, Failure> {
    let mut passes = 0;
    let mut sources: Vec<(Origin, u32)> =
        (0..task.runs.len()).map(|input| (Origin::Input(input), task.partition)).collect();
    while sources.len() > FAN_IN_MAX {
        let mut merged = Vec::with_capacity(sources.len().div_ceil(FAN_IN_MAX));
        for group in sources.chunks(FAN_IN_MAX) {
            passes += 1;
            let path = task.dir.join(format!("merge-{passes}.run"));
            let merge = Merge::new(open_group(task, group)?)?;
            let mut apart = |_: &mut Vec<u8>, _: &[u8]| Ok(false);
            write_run(&path, 1, |writer| drain(merge, 0, writer, &path, &mut apart))?;
            discard_own(group)?;
            merged.push((Origin::Own(path), 0));
        }
        sources = merged;
    }
    let merge = Merge::new(open_group(task, &sources)?)?;
    // The readers keep the files open; their names are no longer needed.
    discard_own(&sources)?;
    Ok(merge)
}

fn discard_own(sources: &[(Origin, u32)]) -> Result<(), Failure> {
    for (origin, _) in sources {
        match origin {
            Origin::Own(path) => discard(path)?,
            Origin::Input(_) => {}
        }
    }
    Ok(())
}

fn open_group(
    task: &ReduceTask,
    group: &[(Origin, u32)],
) -> Result<Vec<(PartitionReader, Origin)>, Failure> {
    let mut readers = Vec::with_capacity(group.len());
    for (origin, partition) in group {
        let run = match origin {
            Origin::Input(input) => open_patiently(&task.runs[*input], task.patience),
            Origin::Own(path) => Run::open(path, None),
        };
        let reader = run.and_then(|run| run.partition(*partition));
        readers.push((reader.map_err(|error| origin.failure(&error))?, origin.clone()));
    }
    Ok(readers)
}

/// Opens a run that may not be visible here yet.
fn open_patiently(run: &InputRun, patience: Patience) -> Result<Run, RunError> {
    let mut pause = patience.first;
    for _ in 0..patience.pauses {
        match Run::open(&run.path, Some((run.bytes, run.footer_crc))) {
            Err(error) if may_come(&error) => thread::sleep(pause),
            settled => return settled,
        }
        pause *= 2;
    }
    Run::open(&run.path, Some((run.bytes, run.footer_crc)))
}

fn may_come(error: &RunError) -> bool {
    match error {
        RunError::Io(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
        }
        RunError::Length { found, expected } => found < expected,
        RunError::Damaged(_) | RunError::Newer(_) => false,
    }
}

/// The part of the output that a reduce writes.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    separator: u8,
    buffer: Vec<u8>,
    crc: u32,
    bytes: u64,
    records: u64,
    content_hash: u64,
}

impl Part {
    fn create(dir: &Path, format: PartFormat) -> Result<Self, Failure> {
        let path = dir.join(PART_FILE);
        let file = File::create_new(&path).map_err(|error| Failure::io(&path, &error))?;
        let separator = match format {
            PartFormat::Text => b'\t',
            PartFormat::Lab => b' ',
        };
        let buffer = Vec::with_capacity(BUFFER_BYTES + BUFFER_BYTES / 4);
        Ok(Self { path, file, separator, buffer, crc: 0, bytes: 0, records: 0, content_hash: 0 })
    }

    pub(crate) fn write(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.buffer.extend_from_slice(key);
        self.buffer.push(self.separator);
        self.buffer.extend_from_slice(value);
        self.buffer.push(b'\n');
        self.records += 1;
        self.content_hash = self.content_hash.wrapping_add(record_hash(key, value));
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
        self.bytes += self.buffer.len() as u64;
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written.map_err(|error| Failure::io(&self.path, &error))
    }

    /// Makes the part durable: file and directory.
    fn finish(mut self) -> Result<Outcome, Failure> {
        self.flush()?;
        let failed = |error| Failure::io(&self.path, &error);
        self.file.sync_all().map_err(failed)?;
        let dir = self.path.parent().expect("a part lies in its attempt's directory");
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
        Ok(Outcome {
            file: PART_FILE,
            bytes: self.bytes,
            records: self.records,
            crc: self.crc,
            content_hash: self.content_hash,
            counters: Counters::from([
                (REDUCE_OUTPUT_RECORDS, self.records),
                (OUTPUT_BYTES, self.bytes),
            ]),
        })
    }
}
