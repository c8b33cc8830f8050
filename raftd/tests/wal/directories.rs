//! Directories in every state that a crash, a mistake or a loss leaves behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use raft::{HardState, Membership, NodeId, Term, Write};
use raftd::store::floor::HEARD_MAX;
use raftd::store::{ExpectedIdentity, StoreError, identity};

use crate::member::{Member, contents, copy, expected};

fn vote(member: &mut Member, term: u64) {
    let hard_state = Some(HardState { term: Term(term), vote: Some(NodeId(1)) });
    let id = member.next_id();
    member.write(Write { id, hard_state, entries: vec![], snapshot: None });
}

fn command(byte: u8, len: usize) -> Bytes {
    vec![byte; len].into()
}

#[test]
fn what_was_written_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/member");
    let mut member = Member::open_born(&path);
    assert_eq!(member.start.state.boot, 1);
    vote(&mut member, 3);
    member.append(&[command(1, 10), command(2, 2_000_000), command(3, 100)]);
    let written = member.append(&[command(4, 10)]);
    member.store.heard(NodeId(2), [2; 16], 5, 77);
    let (model, incarnation) = (member.model.clone(), member.start.state.incarnation);
    drop(member);
    let member = Member::open(&path).unwrap();
    assert!(model.is(&member.start.recovered));
    assert_eq!(member.start.write_sequence, written.write_sequence);
    let state = &member.start.state;
    assert_eq!((state.boot, state.incarnation), (2, incarnation));
    assert_eq!(state.group.as_ref().unwrap().founders.len(), 1);
    assert_eq!((state.heard[0].boot, state.heard[0].write_sequence), (5, 77));
}

#[test]
fn who_was_removed_makes_room_for_what_is_heard_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let member = Member::open_born(directory.path());
    let hear = |node: u8| member.store.heard(NodeId(node.into()), [node; 16], 1, 1);
    // Once all have been replaced, there are as many rows as there is room for.
    let last = HEARD_MAX as u8 + 1;
    (2..=last).for_each(hear);
    let left = [1, u64::from(last)].map(|id| (NodeId(id), Bytes::new()));
    member.store.follow(Arc::new(Membership::founders(left)));
    hear(last + 1);
    drop(member);
    let member = Member::open(directory.path()).unwrap();
    let heard: Vec<u64> = member.start.state.heard.iter().map(|peer| peer.node.0).collect();
    assert_eq!(heard, [last.into(), u64::from(last) + 1]);
}

#[test]
fn another_identity_is_refused_and_nothing_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(Member::open_born(path));
    let before = contents(path);
    let refused = |expected: ExpectedIdentity| {
        let options = raftd::store::StoreOptions {
            free_bytes_min: 0,
            log_window_bytes: 0,
            on_read: Box::new(|_, _| {}),
            on_written: Box::new(|_| {}),
            on_failed: Box::new(|_| {}),
        };
        match raftd::store::Store::open(path, options, &expected) {
            Err(StoreError::Identity(text)) => {
                assert!(text.contains("harbour") || text.contains("member 1"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    };
    refused(ExpectedIdentity { cluster: "elsewhere".to_owned(), ..expected() });
    refused(ExpectedIdentity { node: NodeId(2), ..expected() });
    assert_eq!(contents(path), before);
}

#[test]
fn another_format_is_refused_and_nothing_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(Member::open_born(path));
    let floor = fs::read(path.join("floor")).unwrap();
    for (version, said) in [(floor[8] + 1, "newer"), (floor[8] - 1, "of a build before")] {
        let mut other = floor.clone();
        other[8] = version;
        let (before, rest) = other[..4096].split_at(12);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(before), &rest[4..]);
        other[12..16].copy_from_slice(&checksum.to_le_bytes());
        fs::write(path.join("floor"), other).unwrap();
        let before = contents(path);
        match Member::open(path) {
            Err(StoreError::Identity(text)) => assert!(text.contains(said), "{text}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("format {version} was opened"),
        }
        assert_eq!(contents(path), before);
    }
}

#[test]
fn what_a_crash_leaves_of_a_new_directory_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    drop(Member::open(&whole).unwrap());
    // Not even the floor is whole.
    let path = directory.path().join("torn");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("floor.unfinished"), [1; 100]).unwrap();
    drop(Member::open(&path).unwrap());

    // The floor is whole, the databases are not; `made` is the byte behind the boot counter.
    let mut floor = fs::read(whole.join("floor")).unwrap();
    for slot in floor.chunks_mut(4096) {
        assert_eq!(slot[56], 1, "the floor calls them made");
        slot[56] = 0;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&slot[..12]), &slot[16..]);
        slot[12..16].copy_from_slice(&checksum.to_le_bytes());
    }
    for (number, junk) in
        [None, Some("log/conf"), Some("log/db"), Some("snapshots/snap.0")].iter().enumerate()
    {
        let path = directory.path().join(format!("junk{number}"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("floor"), &floor).unwrap();
        if let Some(junk) = junk {
            fs::create_dir_all(path.join(junk).parent().unwrap()).unwrap();
            fs::write(path.join(junk), b"junk junk junk junk").unwrap();
        }
        let mut member = Member::open_born(&path);
        vote(&mut member, 1);
        member.append(&[command(1, 10)]);
        drop(member);
        assert_eq!(Member::open(&path).unwrap().model.entries.len(), 1);
    }
}

#[test]
fn an_unfinished_page_table_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(Member::open_born(path));
    for database in ["log", "snapshots"] {
        fs::write(path.join(database).join("snap.7FFFFFFFFFFFFFFF.generating"), b"half").unwrap();
    }
    drop(Member::open(path).unwrap());
}

#[test]
fn what_is_lost_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    let mut member = Member::open_born(&whole);
    vote(&mut member, 1);
    member.append(&[command(1, 10)]);
    member.snapshot(vec![command(2, 10_000)]);
    member.append(&[command(3, 10)]);
    drop(member);
    for (lost, expected) in [
        ("floor", "identity, term and vote are lost"),
        ("log", "log is missing"),
        ("log/db", "log is missing"),
        ("snapshots", "snapshots is missing"),
    ] {
        let path = directory.path().join(lost.replace('/', "-"));
        copy(&whole, &path);
        let lost = path.join(lost);
        if lost.is_dir() { fs::remove_dir_all(&lost) } else { fs::remove_file(&lost) }.unwrap();
        damaged(&path, expected);
    }
    let path = directory.path().join("blob");
    copy(&whole, &path);
    fs::write(path.join("log/blobs/12345"), b"a page").unwrap();
    damaged(&path, "blobs holds a file");
}

fn damaged(path: &Path, expected: &str) {
    match Member::open(path) {
        Err(StoreError::Damaged(text)) => assert!(text.contains(expected), "{text}"),
        Err(error) => panic!("{expected}: {error}"),
        Ok(_) => panic!("{expected}: it was opened"),
    }
}

#[test]
fn two_stores_never_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let member = Member::open(directory.path()).unwrap();
    match Member::open(directory.path()) {
        Err(StoreError::Machine { what, .. }) => assert!(what.contains("in use"), "{what}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was opened twice"),
    }
    drop(member);
    Member::open(directory.path()).unwrap();
}

#[test]
fn an_unwritable_place_is_refused_and_nothing_made() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(matches!(Member::open(&file.join("member")), Err(StoreError::Machine { .. })));
    assert!(matches!(Member::open(Path::new("/proc/flotilla")), Err(StoreError::Machine { .. })));
    assert!(identity(directory.path()).unwrap().is_none());
}

#[test]
fn low_space_refuses_growth() {
    let directory = tempfile::tempdir().unwrap();
    let mut member = Member::open_with(directory.path(), u64::MAX).unwrap();
    member.bear();
    vote(&mut member, 1);
    // The disk was looked at before the first write.
    assert!(member.store.is_low_on_space());
    drop(member);
    let mut member = Member::open(directory.path()).unwrap();
    vote(&mut member, 2);
    assert!(!member.store.is_low_on_space());
    assert!(directory.path().join("reserve").exists(), "there is no reserve");
}
