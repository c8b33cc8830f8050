//! One byte of what the store has written is changed: it finds everything, or says what is
//! missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use raft::{HardState, NodeId, Term, Write};
use raftd::store::identity;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::child::{self, Opened};
use crate::depth::{Depth, depth};
use crate::member::{Member, copy};

/// How many children run at a time.
const CHILDREN: usize = 2;

/// Makes a directory with a history, as a kill would leave it.
fn with_history(path: &Path) {
    let living = path.with_extension("living");
    let mut rng = StdRng::seed_from_u64(5);
    for life in 0..3 {
        let mut member = Member::open(&living).unwrap();
        member.bear();
        let hard_state = Some(HardState { term: Term(life + 1), vote: Some(NodeId(life + 1)) });
        let id = member.next_id();
        member.write(Write { id, hard_state, entries: vec![], snapshot: None });
        for at in 0..40 {
            let commands: Vec<Bytes> = (0..rng.random_range(1..8))
                .map(|_| vec![rng.random(); rng.random_range(0..600)].into())
                .collect();
            member.append(&commands);
            if at == 20 {
                member.append(&[vec![7; 100_000].into()]);
                let chunks = (0..9).map(|_| vec![rng.random(); rng.random_range(1..9_000)].into());
                member.snapshot(chunks.collect());
            }
        }
        if life == 2 {
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

/// The flips that are tried: file and offset.
fn flips(whole: &Path) -> Vec<(PathBuf, usize)> {
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
    let mut draw = |from: &[(PathBuf, usize)], count: usize| -> Vec<(PathBuf, usize)> {
        (0..count).map(|_| from[rng.random_range(0..from.len())].clone()).collect()
    };
    match depth() {
        Depth::Quick => [draw(&flips, 20), draw(&others, 80)].concat(),
        Depth::Ci => [flips, draw(&others, 500)].concat(),
        Depth::Deep => [flips, others].concat(),
    }
}

#[test]
fn any_flipped_byte_is_found_or_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    with_history(&whole);
    let unflipped = directory.path().join("unflipped");
    copy(&whole, &unflipped);
    let expected = child::open(&unflipped, "unflipped");
    assert!(matches!(expected, Opened::Found(_)), "{expected:?}");
    let flips = flips(&whole);
    let (next, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let run = |worker: usize| {
        let path = directory.path().join(format!("flipped{worker}"));
        while let Some((file, at)) = flips.get(next.fetch_add(1, Ordering::Relaxed)) {
            copy(&whole, &path);
            let mut bytes = fs::read(path.join(file)).unwrap();
            bytes[*at] ^= 1 << (at % 8);
            fs::write(path.join(file), bytes).unwrap();
            let context = format!("{} byte {at}", file.display());
            match child::open(&path, &context) {
                Opened::Damaged(text) => {
                    assert!(!text.trim().is_empty(), "{context}: 74 without a word");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                found => assert_eq!(found, expected, "{context}"),
            }
            fs::remove_dir_all(&path).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..CHILDREN).map(|worker| scope.spawn(move || run(worker))).collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
    let (refused, all) = (refused.into_inner(), flips.len());
    assert!(refused > all / 10 && refused < all, "{refused} of {all} flips were refused");
}

#[test]
fn every_byte_of_the_floor_is_there_twice() {
    let directory = tempfile::tempdir().unwrap();
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
    let opened = |path: &Path, context: &str| match child::open(path, context) {
        Opened::Found(found) => found,
        Opened::Damaged(text) => panic!("{context}: {text}"),
    };
    let unflipped = directory.path().join("unflipped");
    copy(&whole, &unflipped);
    let expected = opened(&unflipped, "unflipped");
    let step = match depth() {
        Depth::Quick => 1_300,
        Depth::Ci => 170,
        Depth::Deep => 1,
    };
    for at in (0..floor.len()).step_by(step) {
        let path = directory.path().join("opened");
        copy(&whole, &path);
        let mut flipped = floor.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(path.join("floor"), flipped).unwrap();
        let context = format!("floor byte {at}");
        assert_eq!(opened(&path, &context), expected, "{context}");
        fs::remove_dir_all(&path).unwrap();
    }
}
