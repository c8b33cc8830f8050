//! What clients asked and were told, and whether it can be.
//!
//! Keys live in generations: when enough was asked of one, the next begins, and the one before is
//! judged once all who asked of it have been told, or have given up. So a run may be as long as it
//! likes, and what a key was told to hold is known over some hundreds of operations. An outcome that
//! nobody knows stays unknown. The judge is the simulator's (`sim::kv_history`), which knows nothing
//! of members.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use sim::kv_history::KvHistory;
use sim::operation::{Operation, OperationName, Verdict};
use tokio::sync::{mpsc, watch};

/// What one client asked of one key.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) name: OperationName,
    pub(crate) operation: Operation,
    pub(crate) begun_us: u64,
    /// When it was over, and how; none: whoever asked was stopped.
    pub(crate) ended: Option<(u64, Verdict)>,
}

/// Judges what was recorded. How many operations with an answer were judged, or what can't be.
pub(crate) fn judge(records: &[Record]) -> Result<u64, String> {
    let mut history = KvHistory::new(None);
    for Record { name, operation, begun_us, ended } in records {
        history.begin(*begun_us, *name, operation.clone());
        if let Some((ended_us, verdict)) = ended {
            history.end(*ended_us, *name, verdict.clone());
        }
    }
    history.judge().map_err(|violation| violation.to_string())?;
    Ok(history.judged)
}

/// Writes what was recorded where it outlives the run, and says where that is.
pub(crate) fn keep(records: &[Record], name: &str) -> PathBuf {
    let mut text = String::new();
    for Record { name, operation, begun_us, ended } in records {
        writeln!(text, "{begun_us} {name} {operation:?} {ended:?}").unwrap();
    }
    let file = format!("nemesis-{}-{name}.history", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(file);
    std::fs::write(&path, text).unwrap();
    path
}

/// So many generations wait to be judged before clients wait for that: what is kept of a run stays
/// bounded, however fast the group is.
const UNJUDGED_MAX: usize = 64;

/// What keys of a generation are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) keys: usize,
    /// So many operations are asked of a generation.
    pub(crate) operations_max: u64,
    /// All keys are in one shard, so that scans and transactions know its revision.
    pub(crate) in_one_shard: bool,
}

/// Few keys that everybody wants.
pub(crate) const HOT: Kind =
    Kind { name: "hot", keys: 5, operations_max: 3_000, in_one_shard: true };

/// More keys, which live longer.
pub(crate) const COLD: Kind =
    Kind { name: "cold", keys: 48, operations_max: 24_000, in_one_shard: false };

/// Keys that are asked for over some time.
pub(crate) struct Generation {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) keys: Vec<Bytes>,
    /// What the versions of the keys were when somebody was last told.
    versions: Vec<AtomicU64>,
    records: Mutex<Vec<Record>>,
    begun: AtomicU64,
    visitors: watch::Sender<usize>,
}

impl Generation {
    fn new(kind: Kind, number: u64) -> Arc<Self> {
        let name = format!("{}-{number}", kind.name);
        let key = |at| match kind.in_one_shard {
            true => format!("{{{name}}}{at}").into(),
            false => format!("{name}/{at}").into(),
        };
        Arc::new(Self {
            kind,
            keys: (0..kind.keys).map(key).collect(),
            name,
            versions: (0..kind.keys).map(|_| AtomicU64::new(0)).collect(),
            records: Mutex::default(),
            begun: AtomicU64::new(0),
            visitors: watch::Sender::new(0),
        })
    }

    /// What all keys begin with, if they are in one shard.
    pub(crate) fn prefix(&self) -> Option<Bytes> {
        self.kind.in_one_shard.then(|| format!("{{{}}}", self.name).into())
    }

    pub(crate) fn version(&self, key: usize) -> u64 {
        self.versions[key].load(Ordering::Relaxed)
    }

    pub(crate) fn saw_version(&self, key: usize, version: u64) {
        self.versions[key].store(version, Ordering::Relaxed);
    }

    fn begin(&self, name: OperationName, operation: Operation, now_us: u64) -> usize {
        let mut records = self.records.lock().unwrap();
        records.push(Record { name, operation, begun_us: now_us, ended: None });
        records.len() - 1
    }

    /// Waits until nobody asks any more.
    pub(crate) async fn left(&self) {
        self.visitors.subscribe().wait_for(|visitors| *visitors == 0).await.unwrap();
    }

    /// All that was recorded, once.
    pub(crate) fn take_records(&self) -> Vec<Record> {
        std::mem::take(&mut self.records.lock().unwrap())
    }
}

/// Somebody who asks of a generation, which is not judged before they have gone.
pub(crate) struct Visit {
    pub(crate) generation: Arc<Generation>,
    begin: Instant,
}

impl Visit {
    /// Of one that may be over for others.
    pub(crate) fn new(generation: Arc<Generation>, begin: Instant) -> Self {
        generation.visitors.send_modify(|visitors| *visitors += 1);
        Self { generation, begin }
    }

    /// Something is asked from now on. The number is for its end.
    pub(crate) fn begin(&self, name: OperationName, operation: Operation) -> usize {
        self.generation.begin(name, operation, self.now_us())
    }

    /// What came of it, as of now.
    pub(crate) fn end(&self, record: usize, verdict: Verdict) {
        let now_us = self.now_us();
        self.generation.records.lock().unwrap()[record].ended = Some((now_us, verdict));
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap()
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.generation.visitors.send_modify(|visitors| *visitors -= 1);
    }
}

/// The generations of one kind, of which one is in use.
pub(crate) struct Generations {
    current: Mutex<(u64, Arc<Generation>)>,
    retired: mpsc::UnboundedSender<Arc<Generation>>,
    /// How many of them are not judged yet.
    unjudged: watch::Sender<usize>,
    begin: Instant,
}

impl Generations {
    /// Those that are over are sent to be judged.
    pub(crate) fn new(
        kind: Kind,
        begin: Instant,
        retired: mpsc::UnboundedSender<Arc<Generation>>,
        unjudged: watch::Sender<usize>,
    ) -> Self {
        Self { current: Mutex::new((1, Generation::new(kind, 1))), retired, unjudged, begin }
    }

    /// Waits until not too many are unjudged.
    pub(crate) async fn room(&self) {
        self.unjudged.subscribe().wait_for(|count| *count < UNJUDGED_MAX).await.unwrap();
    }

    pub(crate) fn visit(&self) -> Visit {
        let mut current = self.current.lock().unwrap();
        if current.1.begun.fetch_add(1, Ordering::Relaxed) >= current.1.kind.operations_max {
            self.retire(&mut current);
        }
        Visit::new(current.1.clone(), self.begin)
    }

    /// The one that is in use is over too.
    pub(crate) fn end(&self) {
        self.retire(&mut self.current.lock().unwrap());
    }

    fn retire(&self, (number, generation): &mut (u64, Arc<Generation>)) {
        *number += 1;
        let next = Generation::new(generation.kind, *number);
        self.unjudged.send_modify(|count| *count += 1);
        // Who judges has gone only after finding something, which is what the run ends with.
        let _ = self.retired.send(std::mem::replace(generation, next));
    }
}
