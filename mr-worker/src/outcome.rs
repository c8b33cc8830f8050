//! What a task amounts to: its result in a few numbers, its counters, and its progress on the way.

use std::collections::BTreeMap;

/// The counters of an attempt by name. Only those of accepted attempts are added up.
pub type Counters = BTreeMap<&'static str, u64>;

/// Bytes of the inputs that belong to the map.
pub const MAP_INPUT_BYTES: &str = "MAP_INPUT_BYTES";
/// Lines, in text format.
pub const MAP_INPUT_LINES: &str = "MAP_INPUT_LINES";
/// Pairs that the mapper emitted.
pub const MAP_OUTPUT_RECORDS: &str = "MAP_OUTPUT_RECORDS";
/// Records that the map wrote.
pub const COMBINE_OUTPUT_RECORDS: &str = "COMBINE_OUTPUT_RECORDS";
/// Records that the reduce read.
pub const REDUCE_INPUT_RECORDS: &str = "REDUCE_INPUT_RECORDS";
/// Distinct keys that the reduce read.
pub const REDUCE_INPUT_GROUPS: &str = "REDUCE_INPUT_GROUPS";
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
    report: Box<dyn FnMut(u64, u64) + Send>,
}

/// How many steps go by without a report, at most.
const SILENT_MAX: u32 = 4_096;

impl Progress {
    /// Tells `report` the totals of records and bytes, now and then.
    pub fn new(report: impl FnMut(u64, u64) + Send + 'static) -> Self {
        Self { records: 0, bytes: 0, silent: 0, report: Box::new(report) }
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
        (self.report)(self.records, self.bytes);
    }
}
