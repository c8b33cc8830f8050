//! What the store takes of a disk: no file per page, and no more than what it holds.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use raft::{HardState, Term, Write};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::depth::{Depth, depth};
use crate::member::Member;

fn begin(path: &Path) -> Member {
    let mut member = Member::open_born(path);
    let hard_state = Some(HardState { term: Term(1), vote: None });
    let id = member.next_id();
    member.write(Write { id, hard_state, entries: vec![], snapshot: None });
    member
}

fn random(rng: &mut StdRng, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    rng.fill(bytes.as_mut_slice());
    bytes.into()
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path.join("log/db")).unwrap().len()
}

#[test]
fn no_page_gets_a_file_of_its_own() {
    let rounds = if depth() == Depth::Quick { 12 } else { 60 };
    let directory = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut member = begin(directory.path());
    for round in 0..rounds {
        // Records of all sizes, most of them the largest there are.
        member.append(&[random(&mut rng, 1_500_000)]);
        member.append(&[
            random(&mut rng, 32_600),
            random(&mut rng, 32_747),
            random(&mut rng, 40_000),
        ]);
        let some: Vec<_> = (0..100).map(|at| random(&mut rng, at * 30)).collect();
        member.append(&some);
        if round % 6 == 5 {
            let chunks = (0..120).map(|_| random(&mut rng, 32 << 10)).collect();
            member.snapshot(chunks);
        }
        for database in ["log", "snapshots"] {
            let blobs = directory.path().join(database).join("blobs");
            assert_eq!(fs::read_dir(blobs).unwrap().count(), 0, "round {round}, {database}");
        }
    }
    let model = member.model.clone();
    drop(member);
    assert!(model.is(&Member::open(directory.path()).unwrap().start.recovered));
}

#[test]
fn disk_use_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut member = begin(directory.path());
    let mut most = 0;
    for _ in 0..12 {
        for _ in 0..24 {
            let commands: Vec<_> = (0..8).map(|_| random(&mut rng, 100_000)).collect();
            member.append(&commands);
        }
        most = most.max(bytes_of(directory.path()));
        member.snapshot(vec![random(&mut rng, 1_000)]);
    }
    // 230 MB went through it, at most 20 MB of which had to be kept at a time.
    assert!(most < 128 << 20, "the log took {most} bytes");
    let model = member.model.clone();
    drop(member);
    assert!(model.is(&Member::open(directory.path()).unwrap().start.recovered));
}

#[test]
fn space_comes_back_after_a_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut member = begin(directory.path());
    for _ in 0..200 {
        let commands: Vec<_> = (0..8).map(|_| random(&mut rng, 120_000)).collect();
        member.append(&commands);
    }
    let most = bytes_of(directory.path());
    assert!(most > 190_000_000, "190 MB took {most} bytes");
    member.snapshot(vec![random(&mut rng, 1_000)]);
    let mut rounds = 0;
    while bytes_of(directory.path()) > most / 2 {
        // Counted in work, not in time, which would be the machine's. It takes two or three.
        rounds += 1;
        assert!(rounds < 10, "it still takes {} bytes", bytes_of(directory.path()));
        for _ in 0..100 {
            member.append(&[random(&mut rng, 30_000)]);
        }
        member.snapshot(vec![random(&mut rng, 1_000)]);
    }
    let model = member.model.clone();
    drop(member);
    assert!(model.is(&Member::open(directory.path()).unwrap().start.recovered));
}
