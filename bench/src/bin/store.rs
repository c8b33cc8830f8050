//! How fast the store of a member is: durable batches a second, what a compaction takes, and what
//! is left on the disk and in memory.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml --bin store [DIRECTORY]`: the directory
//! says which disk is measured; by default the one of temporary files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_bench::cpu;
use raft::{
    Entry, GroupTime, HardState, Index, NodeId, Payload, Position, SnapshotWrite, Term, Write,
    WriteId,
};
use raftd::store::{ExpectedIdentity, Start, Store, StoreError, StoreOptions, Written};
use raftd::{Founder, Group};

/// The payload of every entry.
const ENTRY_BYTES: usize = 256;

/// How many entries are written at once; `flotilla bench log` has 1, 64 and 1,024 in flight.
const BATCHES: [u64; 5] = [1, 16, 64, 128, 1_024];

/// How many entries the compaction begins with, and how many of them it removes.
const ENTRIES: u64 = 1_000_000;
const REMOVED: u64 = 900_000;

/// How long each batch size is measured.
const MEASURED: Duration = Duration::from_secs(5);

struct Member {
    store: Store,
    start: Start,
    written: Receiver<Written>,
    last: u64,
    id: u64,
}

impl Member {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let (written_out, written) = channel();
        let options = StoreOptions {
            log_window_bytes: 0,
            on_read: Box::new(|_, _| {}),
            free_bytes_min: 0,
            on_written: Box::new(move |written| {
                // Nobody listens only when the measurement is over.
                let _ = written_out.send(written);
            }),
            on_failed: Box::new(|error| {
                eprintln!("store: {error}");
                std::process::exit(71);
            }),
        };
        let expected = ExpectedIdentity { cluster: "bench".to_owned(), node: NodeId(1) };
        let (store, start) = Store::open(path, options, &expected)?;
        let last = start.recovered.log.last().index.0;
        Ok(Self { store, start, written, last, id: 0 })
    }

    fn born(path: &Path) -> Result<Self, StoreError> {
        let mut member = Self::open(path)?;
        let founder = Founder {
            node: NodeId(1),
            incarnation: member.start.state.incarnation,
            peer_address: String::new(),
            client_address: String::new(),
        };
        let group = Group { id: [1; 32], founders: vec![founder], former: Vec::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(|error| StoreError::machine("no runtime", error))?;
        let born = runtime.block_on(member.store.bear(group));
        born.map_err(|failure| StoreError::Damaged(failure.chain()))?;
        let hard_state = Some(HardState { term: Term(1), vote: None });
        member.write(hard_state, Vec::new(), None);
        Ok(member)
    }

    fn write(
        &mut self,
        hard_state: Option<HardState>,
        entries: Vec<Entry>,
        snapshot: Option<SnapshotWrite>,
    ) {
        self.id += 1;
        let id = WriteId(self.id);
        self.store.submit(Write { id, hard_state, entries, snapshot });
        while self.written.recv().is_ok_and(|written| written.id != id) {}
    }

    fn append(&mut self, count: u64) {
        let command = Bytes::from_static(&[7; ENTRY_BYTES]);
        let entries = (1..=count).map(|at| Entry {
            index: Index(self.last + at),
            term: Term(1),
            stamp: GroupTime(0),
            payload: Payload::Command(command.clone()),
        });
        let entries = entries.collect();
        self.write(None, entries, None);
        self.last += count;
    }
}

fn main() -> Result<(), StoreError> {
    let machine = |error| StoreError::machine("no temporary directory", error);
    let directory = match std::env::args_os().nth(1).map(PathBuf::from) {
        Some(directory) => tempfile::tempdir_in(directory),
        None => tempfile::tempdir(),
    };
    let directory = directory.map_err(machine)?;
    println!("one member, {ENTRY_BYTES}-byte entries, each batch durable before the next\n");
    println!(
        "| entries a batch | batches/s | entries/s | CPU us an entry | disk bytes an entry byte |"
    );
    println!("|---:|---:|---:|---:|---:|");
    for count in BATCHES {
        let path = directory.path().join(count.to_string());
        measure_appends(&mut Member::born(&path)?, &path, count);
    }
    println!();
    measure_compaction(&directory.path().join("compaction"))
}

fn measure_appends(member: &mut Member, path: &Path, count: u64) {
    let (began, cpu) = (Instant::now(), cpu::time());
    let mut batches = 0;
    while began.elapsed() < MEASURED {
        member.append(count);
        batches += 1;
    }
    let (took, cpu) = (began.elapsed().as_secs_f64(), (cpu::time() - cpu).as_secs_f64());
    let entries = (batches * count) as f64;
    println!(
        "| {count} | {:.0} | {:.0} | {:.2} | {:.2} |",
        batches as f64 / took,
        entries / took,
        cpu * 1e6 / entries,
        log_bytes(path) as f64 / (entries * ENTRY_BYTES as f64)
    );
}

fn measure_compaction(path: &Path) -> Result<(), StoreError> {
    let mut member = Member::born(path)?;
    let began = Instant::now();
    while member.last < ENTRIES {
        member.append(128);
    }
    let report = |what: &str| {
        println!(
            "{:>6.2} s  {what}: log {} MB on disk, {} MB of memory",
            began.elapsed().as_secs_f64(),
            log_bytes(path) >> 20,
            memory_bytes() >> 20
        );
    };
    report("1M entries appended");
    let position = Position { term: Term(1), index: Index(REMOVED) };
    let chunks = (0..8).map(|_| Bytes::from_static(&[1; 32 << 10]));
    let root =
        member.start.snapshots.store_chunks(position, GroupTime(0), Arc::default(), chunks)?;
    let first = position.index.next();
    let compaction = Instant::now();
    member.write(None, Vec::new(), Some(SnapshotWrite { root, first, reset: false }));
    let mut slowest = Duration::ZERO;
    let mut appended = 0;
    for at in 0..2_000 {
        let append = Instant::now();
        member.append(16);
        slowest = slowest.max(append.elapsed());
        appended += 16;
        if at % 250 == 0 {
            report("appending in batches of 16 while 900,000 are removed");
        }
    }
    println!(
        "compaction began {:.2} s ago, {appended} entries were appended meanwhile, the slowest \
         batch took {:.1} ms",
        compaction.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3
    );
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(1));
        report("idle");
    }
    let last = member.last;
    drop(member);
    let opening = Instant::now();
    let member = Member::open(path)?;
    assert_eq!(member.last, last, "everything is found again");
    println!("opened again in {:.2} s", opening.elapsed().as_secs_f64());
    report("opened again");
    Ok(())
}

fn log_bytes(path: &Path) -> u64 {
    std::fs::metadata(path.join("log/db")).map_or(0, |file| file.len())
}

fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    kilobytes.unwrap_or(0) << 10
}
