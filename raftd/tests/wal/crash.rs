//! Crashes between any two operations of the disk, and damage of what it holds.

use raft::{Fetch, Index, NodeId, Recovered};
use raftd::store::gathered::Gathered;
use raftd::store::slots::{BLOCK_BYTES, Slot};
use raftd::store::{Engine, Floor, StoreError};
use raftd::{Founder, Group};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::depth::{Depth, depth};
use crate::memory::{Crash, Disk};
use crate::model::Model;

fn group() -> Group {
    let founder = Founder {
        node: NodeId(1),
        incarnation: [1; 16],
        peer_address: "127.0.0.1:7350".to_owned(),
        client_address: "127.0.0.1:7300".to_owned(),
    };
    Group { id: [9; 32], founders: vec![founder], former: Vec::new() }
}

/// A disk whose group is born.
fn born() -> Disk {
    let disk = Disk::default();
    Floor::create(disk.clone(), "c", NodeId(1), [1; 16]).unwrap();
    let (mut engine, _) = open(&disk).unwrap();
    engine.bear(group()).unwrap();
    disk
}

fn open(disk: &Disk) -> Result<(Engine<Disk, Disk>, Recovered), StoreError> {
    Engine::open(disk.clone(), Floor::open(disk.clone())?, u64::MAX)
}

/// Opens a disk on which nothing that was promised may be missing.
fn open_whole(disk: &Disk, context: &str) -> (Engine<Disk, Disk>, Recovered) {
    match open(disk) {
        Ok(opened) => opened,
        Err(error) => panic!("{context}: {error}"),
    }
}

/// Writes until the disk crashes, or `writes` times.
struct Run {
    promised: Model,
    /// What was being written when the disk crashed.
    unanswered: Option<Gathered>,
    rng: StdRng,
}

impl Run {
    fn new(seed: u64, promised: Model) -> Self {
        Self { promised, unanswered: None, rng: StdRng::seed_from_u64(seed) }
    }

    fn go(&mut self, engine: &mut Engine<Disk, Disk>, writes: usize) -> Result<(), StoreError> {
        for _ in 0..writes {
            // Now and then several writes wait and are merged.
            let (mut gathered, mut then) = (Gathered::default(), self.promised.clone());
            for _ in 0..self.rng.random_range(0..8_usize).saturating_sub(4).max(1) {
                let write = then.next(&mut self.rng);
                then.apply(&write);
                gathered.add(write);
            }
            self.unanswered = Some(gathered.clone());
            assert_eq!(engine.write(&gathered)?.id, gathered.id);
            self.promised.apply_gathered(&gathered);
            assert_eq!(self.promised, then, "merged writes amount to something else");
            self.unanswered = None;
            match self.rng.random_range(0..8) {
                0 => engine.sync_floor()?,
                1 | 2 => engine.sweep()?,
                3 => (0..3).try_for_each(|_| engine.tidy())?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The disk holds everything that was promised, and perhaps a part of what was being written.
    fn check(&self, found: &Recovered, context: &str) {
        let may_be = match &self.unanswered {
            Some(gathered) => self.promised.between(gathered),
            None => vec![self.promised.clone()],
        };
        assert!(
            may_be.iter().any(|model| model.is(found)),
            "{context}: found {:?} base {} last {:?}, promised {:?} base {} last {}",
            found.hard_state,
            found.log.base(),
            found.log.last(),
            self.promised.hard_state,
            self.promised.base,
            self.promised.last()
        );
    }
}

#[test]
fn crash_at_every_op() {
    let (seeds, cuts) = match depth() {
        Depth::Quick => (2, 1),
        Depth::Ci => (8, 2),
        Depth::Deep => (40, 4),
    };
    let mut crashes = 0;
    for seed in 0..seeds {
        for at in 0.. {
            let mut crashed = false;
            for crash in (0..cuts).map(Crash::PowerCut).chain([Crash::Kill]) {
                for done in [false, true] {
                    crashed |= crash_at(seed, at, done, crash);
                    crashes += 1;
                }
            }
            if !crashed {
                break;
            }
        }
    }
    assert!(crashes > 500, "only {crashes} crashes");
}

/// Whatever lies on the disk beside them, the entries that count are read, as many as were asked for.
#[test]
fn entries_are_read_back() {
    for seed in 0..40 {
        let disk = born();
        let (mut engine, _) = open(&disk).unwrap();
        let mut run = Run::new(seed, Model::default());
        let mut rng = StdRng::seed_from_u64(seed);
        let mut ended = 1;
        for _ in 0..60 {
            run.go(&mut engine, 1).unwrap();
            let (base, last) = (run.promised.base.index.0, run.promised.last().index.0);
            let from = rng.random_range(base.saturating_sub(2).max(1)..=last + 1);
            let to = rng.random_range(from..=last.max(from) + 2);
            // Half of the reads go on where the last one ended.
            let from = if rng.random_bool(0.5) { ended.clamp(1, last + 1) } else { from };
            let bytes_max = [1, 500, 20_000, u64::MAX][rng.random_range(0..4)];
            let (from, to) = (Index(from), Index(to.max(from)));
            let read = engine.read(Fetch { reader: None, from, to, bytes_max }).unwrap();
            ended = read.last().map_or(from.0, |entry| entry.index.0 + 1);
            let mut bytes = 0;
            let entries = run.promised.entries.iter();
            let wanted = entries.filter(|it| from.0 > base && (from..=to).contains(&it.index));
            let wanted = wanted.take_while(|entry| {
                bytes += entry.size();
                bytes == entry.size() || bytes <= bytes_max
            });
            assert!(read.iter().eq(wanted), "seed {seed}: {from}..{to} of {base}..{last}");
        }
    }
}

/// Opened with a small window, a log is the same as with all of it in memory: the terms, the size,
/// the end, and the changes of members.
#[test]
fn a_window_holds_the_end_of_the_log() {
    for seed in 0..20 {
        let (disk, promised) = with_history(seed);
        let (_, found) =
            Engine::open(disk.clone(), Floor::open(disk.clone()).unwrap(), 1_000).unwrap();
        assert_eq!(found.log.base(), promised.base, "seed {seed}");
        assert_eq!(found.log.last(), promised.last(), "seed {seed}");
        let held = found.log.entries().len();
        let tail = &promised.entries[promised.entries.len() - held..];
        assert!(found.log.entries().eq(tail), "seed {seed}");
        assert!(held == promised.entries.len() || held > 0, "seed {seed}: the last one is held");
    }
}

/// One life that ends at the operation `at`, and the lives after it. False: it ended before.
fn crash_at(seed: u64, at: usize, done: bool, crash: Crash) -> bool {
    let context = format!("seed {seed}, operation {at}, done {done}, {crash:?}");
    let disk = born();
    disk.crash_after(at, done);
    let mut run = Run::new(seed, Model::default());
    // The boot may crash too.
    let crashed = match open(&disk) {
        Ok((mut engine, _)) => run.go(&mut engine, 25).is_err(),
        Err(StoreError::Machine { .. }) => true,
        Err(error) => panic!("{context}: {error}"),
    };
    disk.restart(crash);
    // A crash while it starts again must change nothing either.
    disk.crash_after(at % 7, done);
    if let Err(error @ (StoreError::Damaged(_) | StoreError::Identity(_))) = open(&disk) {
        panic!("{context}, while starting: {error}");
    }
    disk.restart(crash);
    let (mut engine, found) = open_whole(&disk, &context);
    run.check(&found, &context);
    let mut next = Run::new(seed + 1_000, Model::from_recovered(&found, 0));
    next.go(&mut engine, 6).unwrap();
    disk.restart(Crash::PowerCut(seed));
    let (_, found) = open_whole(&disk, &context);
    next.check(&found, &format!("{context}, afterwards"));
    crashed
}

#[test]
fn floors_are_made_whole_or_not_at_all() {
    for at in 0..8 {
        for crash in [Crash::Kill, Crash::PowerCut(1), Crash::PowerCut(2)] {
            let disk = born();
            disk.crash_after(at, true);
            let floor = Floor::open(disk.clone())
                .and_then(|floor| Engine::open(disk.clone(), floor, u64::MAX));
            drop(floor);
            disk.restart(crash);
            open_whole(&disk, &format!("operation {at}, {crash:?}"));
        }
    }
}

/// A member with a history of truncations, snapshots and repacking, and what it has promised.
fn with_history(seed: u64) -> (Disk, Model) {
    let disk = born();
    let (mut engine, _) = open(&disk).unwrap();
    let mut run = Run::new(seed, Model::default());
    run.go(&mut engine, 60).unwrap();
    disk.restart(Crash::Kill);
    (disk, run.promised)
}

/// Either everything that was promised is found, or the store says that it is not.
fn whole_or_damaged(disk: &Disk, promised: &Model, context: &str) -> bool {
    match open(disk) {
        Ok((_, found)) => {
            assert!(promised.is(&found), "{context}: opened without what was promised");
            true
        }
        Err(StoreError::Damaged(_)) => false,
        Err(error) => panic!("{context}: {error}"),
    }
}

#[test]
fn never_below_the_floor() {
    let seeds = if depth() == Depth::Quick { 6 } else { 60 };
    let mut refused = 0;
    for seed in 0..seeds {
        let (disk, promised) = with_history(seed);
        let keys = disk.keys();
        for (at, key) in keys.keys().enumerate() {
            // The database forgets one record, or it and all behind it.
            let mut lost = keys.clone();
            lost.remove(key);
            let context = format!("seed {seed}, without record {at}");
            refused += usize::from(!whole_or_damaged(&disk.with_keys(lost), &promised, &context));
            let mut cut = keys.clone();
            cut.split_off(key);
            let context = format!("seed {seed}, without records from {at} on");
            refused += usize::from(!whole_or_damaged(&disk.with_keys(cut), &promised, &context));
        }
        let nothing = disk.with_keys(Default::default());
        let context = format!("seed {seed}, an empty database");
        let whole = whole_or_damaged(&nothing, &promised, &context);
        assert!(!whole || promised.entries.is_empty());
    }
    assert!(refused > 100, "only {refused} losses were found");
}

#[test]
fn what_was_removed_does_not_come_back() {
    for seed in 0..20 {
        let (disk, promised) = with_history(seed);
        for (key, value) in disk.removed() {
            let mut keys = disk.keys();
            keys.insert(key, value);
            whole_or_damaged(&disk.with_keys(keys), &promised, &format!("seed {seed}"));
        }
        // All of it at once, as if no removal had reached the disk.
        let mut keys = disk.removed();
        keys.extend(disk.keys());
        whole_or_damaged(&disk.with_keys(keys), &promised, &format!("seed {seed}, all"));
    }
}

#[test]
fn bit_flip_detected() {
    let step = if depth() == Depth::Quick { 97 } else { 13 };
    let mut refused = 0;
    for seed in 0..4 {
        let (disk, promised) = with_history(seed);
        let keys = disk.keys();
        for (number, (key, value)) in keys.iter().enumerate() {
            for at in (number % step..value.len().min(400)).step_by(step) {
                let mut flipped = keys.clone();
                flipped.get_mut(key).unwrap()[at] ^= 1 << (at % 8);
                let context = format!("seed {seed}, record {number}, byte {at}");
                let whole = whole_or_damaged(&disk.with_keys(flipped), &promised, &context);
                refused += usize::from(!whole);
            }
        }
    }
    assert!(refused > 20, "only {refused} flips were refused");
}

#[test]
fn a_flip_in_the_floor_costs_nothing() {
    let (disk, promised) = with_history(3);
    for slot in [Slot::First, Slot::Second] {
        for at in 0..BLOCK_BYTES {
            let damaged = disk.with_keys(disk.keys());
            damaged.flip(slot, at);
            let (_, found) = open_whole(&damaged, &format!("{slot:?}, byte {at}"));
            assert!(promised.is(&found), "{slot:?}, byte {at}");
        }
    }
    let lost = disk.with_keys(disk.keys());
    lost.flip(Slot::First, 30);
    lost.flip(Slot::Second, 30);
    assert!(matches!(open(&lost), Err(StoreError::Damaged(_))));
}

#[test]
fn torn_tail_truncated() {
    for seed in 0..30 {
        let (disk, promised) = with_history(seed);
        let (mut engine, _) = open(&disk).unwrap();
        let before = disk.keys();
        let mut run = Run::new(seed, promised.clone());
        // A write whose records are there, but whose acknowledgement never came.
        let write = loop {
            let write = promised.next(&mut run.rng);
            if write.hard_state.is_none() && write.snapshot.is_none() {
                break write;
            }
        };
        let floor = disk.with_keys(before.clone());
        let mut gathered = Gathered::default();
        gathered.add(write);
        engine.write(&gathered).unwrap();
        disk.restart(Crash::Kill);
        let added: Vec<_> =
            disk.keys().into_iter().filter(|(key, _)| !before.contains_key(key)).collect();
        for (key, value) in &added {
            // The floor is that of before, and one of the new records is torn.
            let mut keys = disk.keys();
            keys.insert(key.clone(), value[..value.len() - 1].to_vec());
            let torn = floor.with_keys(keys);
            let (_, found) = open_whole(&torn, &format!("seed {seed}"));
            assert!(promised.is(&found), "seed {seed}: a torn write counts");
            // What was torn is gone for good.
            let keys = torn.keys();
            assert!(added.iter().all(|(key, _)| !keys.contains_key(key)), "seed {seed}");
        }
    }
}

#[test]
fn small_records_are_repacked() {
    let disk = born();
    let (mut engine, _) = open(&disk).unwrap();
    let mut run = Run::new(1, Model::default());
    let mut small = 0;
    while small < 400 {
        let write = run.promised.next(&mut run.rng);
        let bytes: u64 = write.entries.iter().map(raft::Entry::size).sum();
        let cuts =
            write.entries.first().is_some_and(|first| first.index <= run.promised.last().index);
        if write.snapshot.is_some() || write.entries.is_empty() || cuts || bytes > 3_000 {
            continue;
        }
        let mut gathered = Gathered::default();
        gathered.add(write.clone());
        engine.write(&gathered).unwrap();
        run.promised.apply(&write);
        small += 1;
    }
    let before = disk.keys().len();
    let mut steps = 0;
    while engine.is_untidy() {
        engine.tidy().unwrap();
        steps += 1;
        assert!(steps < 1_000, "it is never tidy");
    }
    let after = disk.keys().len();
    assert!(after < before / 8, "{before} records became {after}");
    disk.restart(Crash::PowerCut(1));
    let (_, found) = open_whole(&disk, "repacked");
    run.check(&found, "repacked");
}

#[test]
fn a_vote_is_in_both_slots_when_it_is_answered() {
    for seed in 0..20 {
        let disk = born();
        let (mut engine, _) = open(&disk).unwrap();
        let mut run = Run::new(seed, Model::default());
        while run.promised.hard_state.term.0 < 3 {
            run.go(&mut engine, 1).unwrap();
        }
        for slot in [Slot::First, Slot::Second] {
            let damaged = disk.with_keys(disk.keys());
            damaged.flip(slot, 40);
            let floor = Floor::open(damaged).unwrap();
            assert_eq!(floor.state().hard_state, run.promised.hard_state, "{slot:?} is lost");
        }
    }
}

#[test]
fn what_was_cut_off_stays_cut_off_when_what_cut_it_is_removed() {
    let disk = born();
    let (mut engine, _) = open(&disk).unwrap();
    let mut model = Model::default();
    let mut write = |engine: &mut Engine<Disk, Disk>, write: raft::Write| {
        let mut gathered = Gathered::default();
        gathered.add(write);
        engine.write(&gathered).unwrap();
        model.apply_gathered(&gathered);
    };
    write(&mut engine, appended(1, 1, 1..=20));
    write(&mut engine, appended(2, 2, 15..=16));
    write(&mut engine, compacted(3, 2, 16));
    engine.sweep().unwrap();
    disk.restart(Crash::Kill);
    assert_eq!(disk.keys().len(), 2, "the first record and the root are left");
    // Whichever slot the floor is read from, entries 17 to 20 stay away.
    for slot in [None, Some(Slot::First), Some(Slot::Second)] {
        let damaged = disk.with_keys(disk.keys());
        if let Some(slot) = slot {
            damaged.flip(slot, 40);
        }
        let (_, found) = open_whole(&damaged, &format!("without {slot:?}"));
        let count = found.log.entries().len();
        assert!(count == 0, "without {slot:?}: {count} entries");
    }
}

/// What a snapshot covers is removed step by step. What such a step leaves of an entry of many
/// fragments is not what a write leaves that was never finished, whatever the floor knew last.
#[test]
fn entry_that_is_half_removed_is_no_torn_tail() {
    for seed in 0..40 {
        let disk = born();
        let (mut engine, _) = open(&disk).unwrap();
        let mut large = raft::Write { hard_state: None, ..appended(2, 1, 3..=3) };
        large.entries[0].payload = raft::Payload::Command(vec![7; 2_500_000].into());
        for write in [appended(1, 1, 1..=2), large, compacted(3, 1, 3)] {
            let mut gathered = Gathered::default();
            gathered.add(write);
            engine.write(&gathered).unwrap();
        }
        engine.sweep().unwrap();
        disk.restart(Crash::PowerCut(seed));
        let (_, found) = open_whole(&disk, &format!("seed {seed}"));
        assert_eq!(found.snapshot.unwrap().position.index, Index(3), "seed {seed}");
    }
}

fn appended(id: u64, term: u64, indexes: std::ops::RangeInclusive<u64>) -> raft::Write {
    let entries = indexes.map(|index| raft::Entry {
        index: raft::Index(index),
        term: raft::Term(term),
        stamp: raft::GroupTime(0),
        payload: raft::Payload::Noop,
    });
    let hard_state = Some(raft::HardState { term: raft::Term(term), vote: None });
    let entries = entries.collect();
    raft::Write { id: raft::WriteId(id), hard_state, entries, snapshot: None }
}

/// A snapshot of everything up to `index`, which keeps no log.
fn compacted(id: u64, term: u64, index: u64) -> raft::Write {
    let position = raft::Position { term: raft::Term(term), index: raft::Index(index) };
    let root = raft::SnapshotRoot {
        membership: crate::member::membership(),
        position,
        stamp: raft::GroupTime(0),
        manifest: raft::Digest([3; 32]),
        chunks: 0,
        bytes: 0,
    };
    let snapshot = raft::SnapshotWrite { root, first: position.index.next(), reset: false };
    raft::Write {
        id: raft::WriteId(id),
        hard_state: None,
        entries: vec![],
        snapshot: Some(snapshot),
    }
}
