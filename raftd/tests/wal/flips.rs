//! One byte of what the store has written is changed: it finds everything, or says what is
//! missing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use raft::{HardState, NodeId, Term, Write};
use raftd::store::identity;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::child::{self, Opened};
use crate::depth::{Depth, depth};
use crate::member::{Copies, Member, copy};

/// How many children run at a time.
const CHILDREN: usize = 2;
/// How many copies a child opens, if it lives.
const BATCH_FLIPS: usize = 20;

/// A file of the store, and the byte of it that is changed.
type Flip = (PathBuf, usize);

/// Makes a directory with a history, as a kill would leave it.
fn with_history(path: &Path) {
    let living = path.with_extension("living");
    let mut rng = StdRng::seed_from_u64(5);
    for life in 0..2 {
        let mut member = Member::open(&living).unwrap();
        member.bear();
        let hard_state = Some(HardState { term: Term(life + 1), vote: Some(NodeId(life + 1)) });
        let id = member.next_id();
        member.write(Write { id, hard_state, entries: vec![], snapshot: None });
        for at in 0..6 {
            let commands: Vec<Bytes> = (0..rng.random_range(1..6))
                .map(|_| vec![rng.random(); rng.random_range(0..300)].into())
                .collect();
            member.append(&commands);
            if at == 3 {
                let fragmented = if life == 1 { 33_000 } else { 400 };
                member.append(&[vec![7; fragmented].into()]);
                let chunks = (0..4).map(|_| vec![rng.random(); rng.random_range(1..1_000)].into());
                member.snapshot(chunks.collect());
            }
        }
        if life == 1 {
            copy(&living, path);
        }
    }
    fs::remove_dir_all(&living).unwrap();
}

/// Up to where a file has been written: behind it, all bytes are the same.
fn written(bytes: &[u8]) -> usize {
    let filler = bytes.last();
    bytes.iter().rposition(|byte| Some(byte) != filler).map_or(bytes.len(), |at| at + 1)
}

/// The flips of sled's files that are tried.
fn flips(whole: &Path) -> Vec<Flip> {
    let mut flips = Vec::new();
    let mut others = Vec::new();
    for database in ["log", "snapshots"] {
        let conf = Path::new(database).join("conf");
        let len = fs::read(whole.join(&conf)).unwrap().len();
        flips.extend((0..len).map(|at| (conf.clone(), at)));
        for entry in fs::read_dir(whole.join(database)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name == "db" || name.starts_with("snap.") {
                let file = Path::new(database).join(name);
                let tip = written(&fs::read(&path).unwrap());
                others.extend((0..tip).map(|at| (file.clone(), at)));
            }
        }
    }
    let mut rng = StdRng::seed_from_u64(9);
    let mut draw = |from: &[Flip], count: usize| -> Vec<Flip> {
        (0..count).map(|_| from[rng.random_range(0..from.len())].clone()).collect()
    };
    match depth() {
        Depth::Quick => [draw(&flips, 20), draw(&others, 80)].concat(),
        Depth::Ci => [flips, draw(&others, 500)].concat(),
        Depth::Deep => [flips, others].concat(),
    }
}

/// A copy of the store with a flipped byte.
fn make_flipped(copies: &Copies, path: &Path, (file, at): &Flip) {
    copies.make(path);
    let file = fs::File::options().read(true).write(true).open(path.join(file)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, *at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << (at % 8)], *at as u64).unwrap();
}

/// Opens a copy with each of `flips` in children, and gives `check` what came of it.
fn open_flipped(whole: &Path, flips: &[Flip], check: impl Fn(&Flip, Opened) + Sync) {
    let copies = Copies::of(whole);
    let batches: Vec<&[Flip]> = flips.chunks(BATCH_FLIPS).collect();
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
            let directory = tempfile::tempdir_in(fast()).unwrap();
            let paths: Vec<PathBuf> =
                (0..batch.len()).map(|at| directory.path().join(at.to_string())).collect();
            for (path, flip) in paths.iter().zip(*batch) {
                make_flipped(&copies, path, flip);
            }
            let mut left = batch.iter().zip(&paths);
            while left.len() > 0 {
                for opened in child::open_all(left.clone().map(|(_, path)| path)) {
                    let (flip, path) = left.next().expect("what was opened was to be opened");
                    check(flip, opened);
                    fs::remove_dir_all(path).unwrap();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CHILDREN).map(|_| scope.spawn(run)).collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

/// Where copies are made: what they show does not depend on a disk, and memory is faster.
fn fast() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if tempfile::tempdir_in(memory).is_ok() { memory.into() } else { std::env::temp_dir() }
}

#[test]
fn any_flipped_byte_is_found_or_harmless() {
    let directory = tempfile::tempdir_in(fast()).unwrap();
    let whole = directory.path().join("whole");
    with_history(&whole);
    let unflipped = directory.path().join("unflipped");
    copy(&whole, &unflipped);
    let expected = child::open(&unflipped, "unflipped");
    assert!(matches!(expected, Opened::Found(_)), "{expected:?}");
    let flips = flips(&whole);
    println!("{} flips", flips.len());
    let refused = AtomicUsize::new(0);
    open_flipped(&whole, &flips, |flip, opened| match opened {
        Opened::Damaged(text) => {
            assert!(!text.trim().is_empty(), "{flip:?}: 74 without a word");
            refused.fetch_add(1, Ordering::Relaxed);
        }
        found => assert_eq!(found, expected, "{flip:?}"),
    });
    let (refused, all) = (refused.into_inner(), flips.len());
    println!("{refused} of {all} flips were refused, the others found everything");
    assert!(refused > all / 10 && refused < all, "{refused} of {all} flips were refused");
}

#[test]
fn every_byte_of_the_floor_is_there_twice() {
    let directory = tempfile::tempdir_in(fast()).unwrap();
    let whole = directory.path().join("whole");
    with_history(&whole);
    let before = identity(&whole).unwrap().unwrap();
    let floor = fs::read(whole.join("floor")).unwrap();
    let path = directory.path().join("flipped");
    fs::create_dir(&path).unwrap();
    for at in 0..floor.len() {
        let mut flipped = floor.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(path.join("floor"), flipped).unwrap();
        let found = identity(&path).unwrap().unwrap();
        assert_eq!(found.hard_state, before.hard_state, "byte {at}");
        assert_eq!(found.group, before.group, "byte {at}");
        assert_eq!((found.boot, found.made), (before.boot, before.made), "byte {at}");
    }
    let unflipped = directory.path().join("unflipped");
    copy(&whole, &unflipped);
    let expected = child::open(&unflipped, "unflipped");
    assert!(matches!(expected, Opened::Found(_)), "{expected:?}");
    // Each was read above; a whole start takes a process.
    let step = match depth() {
        Depth::Quick => 100,
        Depth::Ci => 5,
        Depth::Deep => 1,
    };
    let flips: Vec<Flip> = (0..floor.len()).step_by(step).map(|at| ("floor".into(), at)).collect();
    open_flipped(&whole, &flips, |flip, opened| assert_eq!(opened, expected, "{flip:?}"));
}
