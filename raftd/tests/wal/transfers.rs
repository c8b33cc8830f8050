//! Transfers: what has come stays until it is installed or replaced, and nothing comes twice.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft::{
    GroupTime, HardState, Index, NodeId, Position, SnapshotRoot, SnapshotWrite, Term, Write,
};
use raftd::GroupId;
use raftd::store::{Manifest, RANGES_MAX, Receiving, Snapshots};

use crate::member::{Member, copy, membership};

/// A deadline that only a hang reaches.
const HANG: Duration = Duration::from_secs(60);

const GROUP: GroupId = [4; 32];

/// Who gives.
const GIVER: NodeId = NodeId(2);

fn begin(path: &Path) -> Member {
    let mut member = Member::open_born(path);
    let hard_state = Some(HardState { term: Term(1), vote: None });
    let id = member.next_id();
    member.write(Write { id, hard_state, entries: vec![], snapshot: None });
    member
}

/// Chunks of some 10 KiB.
fn chunks(seed: u32, range: Range<u32>) -> Vec<Bytes> {
    range.map(|at| Bytes::from(format!("chunk {at} of {seed} ").repeat(700))).collect()
}

/// A snapshot as it is offered: its root, its manifest and its chunks.
struct Offered {
    root: SnapshotRoot,
    manifest: Manifest,
    chunks: Vec<Bytes>,
}

/// What another member would offer.
fn offer(index: u64, chunks: Vec<Bytes>) -> Offered {
    let directory = tempfile::tempdir().unwrap();
    let source = begin(directory.path());
    let position = Position { term: Term(1), index: Index(index) };
    let snapshots = &source.start.snapshots;
    let root = snapshots
        .store_chunks(position, GroupTime(index), membership(), chunks.clone().into_iter())
        .unwrap();
    let encoded = snapshots.manifest(root.manifest).unwrap().unwrap();
    Offered { root, manifest: Manifest::decode(&encoded).unwrap(), chunks }
}

fn receive(snapshots: &Snapshots, offered: &Offered) -> Receiving {
    snapshots.begin(GROUP, GIVER, &offered.root, &offered.manifest.encode()).unwrap()
}

/// Sends at most `count` of the chunks that are wanted; which.
fn send(receiving: &mut Receiving, offered: &Offered, count: usize) -> Vec<usize> {
    let sent: Vec<usize> = receiving.wanted().into_iter().flatten().take(count).collect();
    for &place in &sent {
        receiving.put(&offered.chunks[place]).unwrap();
    }
    sent
}

/// The log names a snapshot that was received.
fn install(member: &mut Member, root: SnapshotRoot) {
    let first = root.position.index.next();
    let snapshot = Some(SnapshotWrite { root, first, reset: true });
    let id = member.next_id();
    member.write(Write { id, hard_state: None, entries: vec![], snapshot });
}

/// Waits until nothing is here of a manifest but the chunks at these places.
fn wait_until_left(snapshots: &Snapshots, manifest: &Manifest, left: usize) {
    let deadline = Instant::now() + HANG;
    while manifest.chunks.len() - snapshots.missing(manifest).unwrap().len() > left {
        assert!(Instant::now() < deadline, "what nobody needs is never removed");
        std::thread::yield_now();
    }
    assert_eq!(manifest.chunks.len() - snapshots.missing(manifest).unwrap().len(), left);
}

#[test]
fn chunked_transfer_resumes() {
    // Two chunks stand in the manifest twice.
    let offered = offer(9, [chunks(1, 0..20), chunks(1, 4..6), chunks(1, 20..30)].concat());
    for cut in [1, 3, 7, 29, 30] {
        let directory = tempfile::tempdir().unwrap();
        let member = begin(directory.path());
        let snapshots = &member.start.snapshots;
        let mut sent = Vec::new();
        loop {
            let mut receiving = receive(snapshots, &offered);
            assert_eq!(receiving.skipped(), sent.len());
            if receiving.wanted().is_empty() {
                assert_eq!(receiving.finish().unwrap(), offered.root);
                break;
            }
            sent.extend(send(&mut receiving, &offered, cut));
        }
        let once: Vec<usize> = (0..20).chain(22..32).collect();
        assert_eq!(sent, once, "cut after every {cut}");
        assert_eq!(snapshots.load(offered.root.manifest).unwrap(), offered.chunks);
    }
}

#[test]
fn what_has_come_is_there_after_a_restart_though_garbage_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let offered = offer(9, chunks(1, 0..60));
    let member = begin(directory.path());
    let snapshots = member.start.snapshots.clone();
    // Nobody names this one after the restart.
    let position = Position { term: Term(1), index: Index(1) };
    let stray = snapshots
        .store_chunks(position, GroupTime(1), membership(), chunks(9, 0..5).into_iter())
        .unwrap();
    let stray = Manifest::decode(&snapshots.manifest(stray.manifest).unwrap().unwrap()).unwrap();
    let mut receiving = receive(&snapshots, &offered);
    send(&mut receiving, &offered, 40);
    // As a crash leaves it, what was not synced may be lost: at most 256 KiB.
    let crashed = tempfile::tempdir().unwrap();
    copy(directory.path(), crashed.path());
    drop((receiving, snapshots, member));

    for (path, sent) in [(directory.path(), 40..=40), (crashed.path(), 14..=40)] {
        // The garbage goes in the first of these lives, and what is kept is there in both.
        for _ in 0..2 {
            let member = Member::open(path).unwrap();
            let snapshots = &member.start.snapshots;
            wait_until_left(snapshots, &stray, 0);
            let transfer = snapshots.transfer().unwrap();
            assert_eq!((transfer.from, &transfer.root), (GIVER, &offered.root));
        }
        let member = Member::open(path).unwrap();
        let snapshots = &member.start.snapshots;
        let mut receiving = receive(snapshots, &offered);
        assert!(sent.contains(&receiving.skipped()), "{receiving:?}");
        send(&mut receiving, &offered, 60);
        let root = receiving.finish().unwrap();
        assert_eq!(snapshots.load(root.manifest).unwrap(), offered.chunks);
    }
}

#[test]
fn another_manifest_needs_only_what_differs_and_leaves_nothing_else_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut member = begin(directory.path());
    let snapshots = member.start.snapshots.clone();
    let first = offer(9, chunks(1, 0..40));
    let mut receiving = receive(&snapshots, &first);
    send(&mut receiving, &first, 30);
    drop(receiving);
    // A newer one, which shares 25 of those that have come.
    let second = offer(19, [chunks(2, 0..5), chunks(1, 5..40)].concat());
    let mut receiving = receive(&snapshots, &second);
    assert_eq!(receiving.skipped(), 25);
    assert_eq!(send(&mut receiving, &second, 60), Vec::from_iter((0..5).chain(30..40)));
    install(&mut member, receiving.finish().unwrap());
    wait_until_left(&snapshots, &first.manifest, 35);
    assert_eq!(snapshots.load(second.root.manifest).unwrap(), second.chunks);
    let deadline = Instant::now() + HANG;
    while snapshots.manifest(first.root.manifest).unwrap().is_some()
        || snapshots.transfer().is_some()
    {
        assert!(Instant::now() < deadline, "what was replaced is never removed");
        std::thread::yield_now();
    }
    // What was installed is no transfer any more, after a restart either.
    drop((snapshots, member));
    let member = Member::open(directory.path()).unwrap();
    assert_eq!(member.start.snapshots.transfer(), None);
}

#[test]
fn a_transfer_that_the_log_has_overtaken_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut member = begin(directory.path());
    let snapshots = member.start.snapshots.clone();
    let offered = offer(3, chunks(1, 0..20));
    let mut receiving = receive(&snapshots, &offered);
    send(&mut receiving, &offered, 10);
    drop(receiving);
    // Snapshots of its own that do not go as far leave it alone; the first of them goes.
    let mut manifests = Vec::new();
    for seed in [2, 3, 4] {
        if seed == 4 {
            wait_until_left(&snapshots, &manifests[0], 0);
            assert_eq!(snapshots.transfer().unwrap().root, offered.root);
            wait_until_left(&snapshots, &offered.manifest, 10);
        }
        member.append(&[Bytes::from_static(b"a")]);
        member.snapshot(chunks(seed, 0..5));
        let root = member.model.snapshot.clone().unwrap();
        let encoded = snapshots.manifest(root.manifest).unwrap().unwrap();
        manifests.push(Manifest::decode(&encoded).unwrap());
    }
    wait_until_left(&snapshots, &offered.manifest, 0);
    assert_eq!(snapshots.transfer(), None);
}

#[test]
fn a_manifest_that_is_refused_replaces_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let member = begin(directory.path());
    let snapshots = &member.start.snapshots;
    let (first, second) = (offer(9, chunks(1, 0..20)), offer(19, chunks(2, 0..20)));
    let mut receiving = receive(snapshots, &first);
    send(&mut receiving, &first, 10);
    drop(receiving);
    let wrong = snapshots.begin(GROUP, GIVER, &second.root, &first.manifest.encode());
    assert!(wrong.is_err(), "{wrong:?}");
    assert_eq!(snapshots.transfer().unwrap().root, first.root);
    assert_eq!(receive(snapshots, &first).skipped(), 10);
}

#[test]
fn what_another_member_fetched_stays_when_it_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let mut member = begin(directory.path());
    let snapshots = member.start.snapshots.clone();
    let mut manifests = Vec::new();
    for seed in 1..=4 {
        member.append(&[Bytes::from_static(b"a")]);
        member.snapshot(chunks(seed, 0..20));
        let root = member.model.snapshot.clone().unwrap();
        let encoded = snapshots.manifest(root.manifest).unwrap().unwrap();
        manifests.push(Manifest::decode(&encoded).unwrap());
        if seed == 2 {
            let mut served = snapshots.serve(root.manifest).unwrap().unwrap();
            assert_eq!(served.chunk(7).unwrap(), chunks(2, 7..8)[0]);
        }
    }
    // The third goes when the fourth has come, and the second would have gone before it.
    wait_until_left(&snapshots, &manifests[0], 0);
    wait_until_left(&snapshots, &manifests[2], 0);
    wait_until_left(&snapshots, &manifests[1], 20);
    assert!(snapshots.serve(raft::Digest([0; 32])).unwrap().is_none());
}

#[test]
fn what_is_scattered_is_asked_for_in_several_requests() {
    let directory = tempfile::tempdir().unwrap();
    let member = begin(directory.path());
    let snapshots = &member.start.snapshots;
    let all: Vec<Bytes> =
        (0..3 * RANGES_MAX as u32).map(|at| at.to_be_bytes()[..].to_vec().into()).collect();
    let odd: Vec<Bytes> = all.iter().skip(1).step_by(2).cloned().collect();
    let (odd, all) = (offer(9, odd), offer(19, all));
    let mut receiving = receive(snapshots, &odd);
    send(&mut receiving, &odd, usize::MAX);
    drop(receiving);
    let mut receiving = receive(snapshots, &all);
    let mut requests = 0;
    while !receiving.wanted().is_empty() {
        assert!(receiving.wanted().len() <= RANGES_MAX);
        assert_eq!(
            send(&mut receiving, &all, usize::MAX).len(),
            [RANGES_MAX, RANGES_MAX / 2][requests]
        );
        requests += 1;
    }
    assert_eq!(requests, 2);
    assert_eq!(snapshots.load(receiving.finish().unwrap().manifest).unwrap(), all.chunks);
}
