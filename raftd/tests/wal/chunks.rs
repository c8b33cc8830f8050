//! Snapshots: written once, read as they were written, kept as long as somebody needs them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::{Digest, GroupTime, HardState, Index, NodeId, Position, SnapshotRoot, Term, Write};
use raftd::store::{Manifest, ReceiveError};

use crate::member::Member;

fn begin(path: &std::path::Path) -> Member {
    let mut member = Member::open_born(path);
    let hard_state = Some(HardState { term: Term(1), vote: None });
    let id = member.next_id();
    member.write(Write { id, hard_state, entries: vec![], snapshot: None });
    member
}

fn chunks(seed: u32, count: u32) -> Vec<Bytes> {
    (0..count).map(|at| Bytes::from(format!("chunk {at} of {seed} ").repeat(900))).collect()
}

fn manifest(member: &Member, root: &SnapshotRoot) -> Manifest {
    let encoded = member.start.snapshots.manifest(root.manifest).unwrap().unwrap();
    Manifest::decode(&encoded).unwrap()
}

#[test]
fn a_snapshot_survives_a_restart_and_the_one_before_goes() {
    let directory = tempfile::tempdir().unwrap();
    let mut member = begin(directory.path());
    member.append(&[Bytes::from_static(b"a")]);
    member.snapshot(chunks(1, 90));
    let first = member.model.snapshot.clone().unwrap();
    let old = manifest(&member, &first);
    member.append(&[Bytes::from_static(b"b")]);
    // Half of it is the same.
    let second: Vec<_> = chunks(1, 40).into_iter().chain(chunks(2, 50)).collect();
    member.snapshot(second.clone());
    let deadline = Instant::now() + Duration::from_secs(30);
    while member.start.snapshots.missing(&old).unwrap().len() < 50 {
        assert!(Instant::now() < deadline, "the old snapshot is never removed");
        std::thread::yield_now();
    }
    assert_eq!(member.start.snapshots.missing(&old).unwrap().len(), 50);
    while member.start.snapshots.manifest(first.manifest).unwrap().is_some() {
        assert!(Instant::now() < deadline, "the old manifest is never removed");
        std::thread::yield_now();
    }
    let root = member.model.snapshot.clone().unwrap();
    drop(member);
    let member = Member::open(directory.path()).unwrap();
    assert_eq!(member.start.recovered.snapshot, Some(root.clone()));
    assert_eq!(member.start.snapshots.load(root.manifest).unwrap(), second);
}

#[test]
fn what_is_read_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mut member = begin(directory.path());
    member.append(&[Bytes::from_static(b"a")]);
    member.snapshot(chunks(1, 30));
    let old = member.model.snapshot.clone().unwrap();
    let mut reader = member.start.snapshots.read(old.manifest);
    assert_eq!(reader.next().unwrap().unwrap(), chunks(1, 30)[0]);
    for seed in 2..5 {
        member.append(&[Bytes::from_static(b"b")]);
        member.snapshot(chunks(seed, 30));
    }
    // The second has nobody who reads it and goes; the first stays as long as the reader lives.
    let rest: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(rest, chunks(1, 30)[1..]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while member.start.snapshots.manifest(old.manifest).unwrap().is_some() {
        assert!(Instant::now() < deadline, "what nobody reads is never removed");
        std::thread::yield_now();
    }
    assert!(member.start.snapshots.load(old.manifest).is_err());
}

#[test]
fn only_what_was_offered_is_received() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (begin(source.path()), begin(target.path()));
    let position = Position { term: Term(1), index: Index(9) };
    let offered = source
        .start
        .snapshots
        .store_chunks(
            position,
            GroupTime(1),
            crate::member::membership(),
            chunks(1, 20).into_iter(),
        )
        .unwrap();
    let encoded = source.start.snapshots.manifest(offered.manifest).unwrap().unwrap();
    let snapshots = &target.start.snapshots;
    let malformed = |root: &SnapshotRoot, encoded: &[u8]| {
        let begun = snapshots.begin([4; 32], NodeId(2), root, encoded);
        assert!(matches!(begun, Err(ReceiveError::Malformed(_))), "{begun:?}");
    };
    malformed(&offered, &encoded[..encoded.len() - 1]);
    malformed(&SnapshotRoot { manifest: Digest([0; 32]), ..offered.clone() }, &encoded);
    malformed(&SnapshotRoot { bytes: 1, ..offered.clone() }, &encoded);
    assert_eq!(snapshots.transfer(), None);
    let mut receiving = snapshots.begin([4; 32], NodeId(2), &offered, &encoded).unwrap();
    for (at, chunk) in chunks(1, 20).iter().enumerate() {
        let wrong = receiving.put(&chunks(2, 20)[at]);
        assert!(matches!(wrong, Err(ReceiveError::Malformed(_))), "{wrong:?}");
        assert_eq!(receiving.wanted().first(), Some(&(at..20)));
        receiving.put(chunk).unwrap();
    }
    assert!(matches!(receiving.put(&chunks(1, 1)[0]), Err(ReceiveError::Malformed(_))));
    assert_eq!(receiving.finish().unwrap(), offered);
    assert_eq!(snapshots.load(offered.manifest).unwrap(), chunks(1, 20));
}
