//! What a task amounts to: its result in a few numbers, its counters, and its progress on the way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::failure::Failure;

/// How many counters an attempt may have.
pub const COUNTERS_MAX: usize = 64;

/// The longest name of a counter, in bytes.
pub const COUNTER_NAME_BYTES_MAX: usize = 64;

/// The counters of an attempt by name. Only those of accepted attempts are added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    counts: BTreeMap<String, u64>,
}

impl Counters {
    /// Adds to one of the engine's own.
    pub(crate) fn add(&mut self, name: &'static str, count: u64) {
        let sum = self.counts.entry(name.to_owned()).or_default();
        *sum = sum.saturating_add(count);
    }

    /// Puts another count in the place of one of the engine's own.
    pub(crate) fn replace(&mut self, name: &'static str, count: u64) {
        self.counts.insert(name.to_owned(), count);
    }

    /// Adds to one of an app's.
    ///
    /// # Errors
    /// The app's, when there are too many or the name is empty or too long.
    pub(crate) fn count(&mut self, name: &str, count: u64) -> Result<(), Failure> {
        if let Some(sum) = self.counts.get_mut(name) {
            *sum = sum.saturating_add(count);
            return Ok(());
        }
        if name.is_empty() || name.len() > COUNTER_NAME_BYTES_MAX {
            return Err(Failure::fatal(format!(
                "a counter's name has {} bytes, not 1 to {COUNTER_NAME_BYTES_MAX}",
                name.len()
            )));
        }
        if self.counts.len() + OWN_COUNTERS_MAX >= COUNTERS_MAX {
            let most = COUNTERS_MAX - OWN_COUNTERS_MAX;
            return Err(Failure::fatal(format!("the app has more than {most} counters")));
        }
        self.counts.insert(name.to_owned(), count);
        Ok(())
    }

    /// Adds all of others.
    pub(crate) fn extend(&mut self, others: Counters) {
        for (name, count) in others.counts {
            let sum = self.counts.entry(name).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    /// Adds what another attempt counted.
    pub fn merge(&mut self, other: &Self) {
        self.extend(other.clone());
    }

    /// One of them; 0 if there is none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(name, count)| (name.as_str(), *count))
    }
}

/// How many counters the engine itself may add to an attempt's.
const OWN_COUNTERS_MAX: usize = 16;

/// Bytes of the inputs that belong to the map.
pub const MAP_INPUT_BYTES: &str = "MAP_INPUT_BYTES";
/// Lines, in text format.
pub const MAP_INPUT_LINES: &str = "MAP_INPUT_LINES";
/// Pairs that the mapper emitted.
pub const MAP_OUTPUT_RECORDS: &str = "MAP_OUTPUT_RECORDS";
/// Records that a combining program read.
pub const COMBINE_INPUT_RECORDS: &str = "COMBINE_INPUT_RECORDS";
/// Records that the map wrote.
pub const COMBINE_OUTPUT_RECORDS: &str = "COMBINE_OUTPUT_RECORDS";
/// Records that the reduce read.
pub const REDUCE_INPUT_RECORDS: &str = "REDUCE_INPUT_RECORDS";
/// Distinct keys that the reduce read.
pub const REDUCE_INPUT_GROUPS: &str = "REDUCE_INPUT_GROUPS";
/// Results of a map, in a job without reduces.
pub const MAP_OUTPUT_RESULTS: &str = "MAP_OUTPUT_RESULTS";
/// Records that were left out because attempts had failed on them.
pub const SKIPPED_RECORDS: &str = "SKIPPED_RECORDS";
/// Lines beyond the limit that were left out or cut off, as the job asked for.
pub const LONG_LINES: &str = "LONG_LINES";
/// Runs that a map wrote because its memory was full.
pub const SPILLED_RUNS: &str = "SPILLED_RUNS";
/// Results that the reducer wrote.
pub const REDUCE_OUTPUT_RECORDS: &str = "REDUCE_OUTPUT_RECORDS";
/// Bytes that the reducer wrote.
pub const OUTPUT_BYTES: &str = "OUTPUT_BYTES";

/// What a successful attempt left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its file, in its directory.
    pub file: &'static str,
    /// The file's length.
    pub bytes: u64,
    /// The records in it.
    pub records: u64,
    /// CRC-32C: of a run's footer, of the whole of a part.
    pub crc: u32,
    /// The sum of the hashes of the records.
    pub content_hash: u64,
    /// What was counted.
    pub counters: Counters,
}

/// Tells how far an attempt has come, no more often than every few thousand records.
pub struct Progress {
    records: u64,
    bytes: u64,
    /// Calls of `advance` since the last report.
    silent: u32,
    voice: Arc<Mutex<Voice>>,
}

/// What is told, and to whom.
struct Voice {
    records: u64,
    bytes: u64,
    /// Signs of life beside the input. Each is told as a byte: what is looked for is a change.
    signs: u64,
    report: Box<dyn FnMut(u64, u64) + Send>,
}

impl Voice {
    fn tell(&mut self) {
        (self.report)(self.records, self.bytes + self.signs);
    }
}

/// Tells that an attempt lives while it reads no input.
#[derive(Clone)]
pub(crate) struct Pulse(Arc<Mutex<Voice>>);

impl Pulse {
    /// A sign of life.
    pub(crate) fn beat(&self) {
        let mut voice = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        voice.signs += 1;
        voice.tell();
    }
}

/// How many steps go by without a report, at most.
const SILENT_MAX: u32 = 4_096;

impl Progress {
    /// Tells `report` the totals of records and bytes, now and then.
    pub fn new(report: impl FnMut(u64, u64) + Send + 'static) -> Self {
        let voice = Voice { records: 0, bytes: 0, signs: 0, report: Box::new(report) };
        Self { records: 0, bytes: 0, silent: 0, voice: Arc::new(Mutex::new(voice)) }
    }

    /// What tells that the attempt lives.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse(Arc::clone(&self.voice))
    }

    /// Counts single records.
    #[inline]
    pub(crate) fn advance(&mut self, records: u64, bytes: u64) {
        self.records += records;
        self.bytes += bytes;
        self.silent += 1;
        if self.silent >= SILENT_MAX {
            self.tell();
        }
    }

    /// Reports now.
    pub(crate) fn tell(&mut self) {
        self.silent = 0;
        let mut voice = self.voice.lock().unwrap_or_else(PoisonError::into_inner);
        (voice.records, voice.bytes) = (self.records, self.bytes);
        voice.tell();
    }
}
