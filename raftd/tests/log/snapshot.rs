//! Snapshots of the log: whole, canonical, stable under appends and trims, and total over garbage.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use raft::{CHUNK_BYTES_MAX, StateMachine};
use raftd::log::LogMachine;

use crate::driven::{Driven, chunks, restored};

/// Short, long and empty entries, and clients with and without kept replies.
fn varied(entries: u64) -> Driven {
    let mut driven = Driven::new();
    for number in 0..entries {
        let length = match number % 97 {
            0 => 0,
            1 => 40_000,
            2 => 16_384,
            other => other * 5,
        };
        let payload = vec![number as u8; usize::try_from(length).unwrap()];
        let id = (number % 3 == 0).then(|| driven.id((number % 251) as u8, number + 1, number / 2));
        driven.propose(id, &[&payload]).unwrap();
    }
    driven
}

#[test]
fn what_was_captured_comes_back_whole() {
    let driven = varied(2_000);
    let taken = chunks(&driven.machine);
    assert!(taken.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_BYTES_MAX));
    let machine = restored(&taken).unwrap();
    assert_eq!(machine.digest(), driven.machine.digest());
    assert_eq!(chunks(&machine), taken);
    assert_eq!(machine.session_rows(), driven.machine.session_rows());
    let empty = restored(&chunks(&LogMachine::default())).unwrap();
    assert_eq!(empty.digest(), LogMachine::default().digest());
}

#[test]
fn a_capture_stands_still_while_the_machine_goes_on() {
    use raft::Capture;
    let mut driven = varied(500);
    let wanted = chunks(&driven.machine);
    let capture = driven.machine.capture();
    driven.propose(None, &[b"later"]).unwrap();
    driven.trim(400).unwrap();
    assert!(capture.chunks().eq(wanted));
}

/// How many chunks the second state has that the first has not.
fn new_chunks(before: &[Bytes], after: &[Bytes]) -> usize {
    let known: BTreeSet<&Bytes> = before.iter().collect();
    after.iter().filter(|chunk| !known.contains(chunk)).count()
}

#[test]
fn appends_and_trims_change_few_chunks() {
    let mut driven = varied(3_000);
    let before = chunks(&driven.machine);
    assert!(before.len() > 80, "only {} chunks", before.len());
    for _ in 0..10 {
        driven.propose(None, &[b"a short one"]).unwrap();
    }
    let appended = chunks(&driven.machine);
    let new = new_chunks(&before, &appended);
    assert!(new <= 5, "{new} new chunks after appends");
    driven.trim(1_500).unwrap();
    let trimmed = chunks(&driven.machine);
    assert!(trimmed.len() < appended.len() * 2 / 3);
    let new = new_chunks(&appended, &trimmed);
    assert!(new <= 6, "{new} new chunks after a trim");
}

#[test]
fn the_digest_follows_every_part_of_the_state() {
    let mut driven = varied(100);
    let mut seen = BTreeSet::from([driven.machine.digest()]);
    let mut is_new = |driven: &Driven| seen.insert(driven.machine.digest());
    driven.propose(None, &[b""]).unwrap();
    assert!(is_new(&driven), "an entry");
    driven.trim(50).unwrap();
    assert!(is_new(&driven), "a trim");
    driven.now += 1;
    driven.pass();
    assert!(is_new(&driven), "the time");
    let id = driven.id(255, 1, 0);
    driven.propose(Some(id), &[b"x"]).unwrap();
    assert!(is_new(&driven), "a reply");
    let next = driven.id(255, 3, 2);
    assert!(driven.propose(Some(next), &[]).is_err());
    assert!(!is_new(&driven), "what is refused for its size touches nothing");
}

#[test]
fn damaged_snapshots_are_refused_whole() {
    let driven = varied(400);
    let taken = chunks(&driven.machine);
    let check = |chunks: &[Bytes], what: &str| {
        let mut machine = varied(3).machine;
        let before = machine.digest();
        assert!(machine.restore(&mut chunks.iter().cloned()).is_err(), "{what}");
        assert_eq!(machine.digest(), before, "{what} left something");
    };
    check(&[], "nothing");
    for missing in 0..taken.len() {
        let mut cut = taken.clone();
        cut.remove(missing);
        check(&cut, &format!("without chunk {missing}"));
        let mut twice = taken.clone();
        twice.insert(missing, taken[missing].clone());
        check(&twice, &format!("with chunk {missing} twice"));
    }
    let mut swapped = taken.clone();
    swapped.swap(1, 2);
    check(&swapped, "out of order");
    let mut newer = taken.clone();
    newer[0] = Bytes::from([&[taken[0][0], 2], &taken[0][2..]].concat());
    check(&newer, "of a newer version");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_changed_byte_is_noticed(chunk in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), change in 1..=255_u8) {
        let mut taken = chunks(&varied(60).machine);
        let chunk = chunk.index(taken.len());
        let mut bytes = taken[chunk].to_vec();
        let byte = byte.index(bytes.len());
        bytes[byte] ^= change;
        taken[chunk] = Bytes::from(bytes);
        prop_assert!(restored(&taken).is_err());
    }

    #[test]
    fn garbage_is_refused(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let chunks: Vec<Bytes> = chunks.into_iter().map(Bytes::from).collect();
        prop_assert!(restored(&chunks).is_err());
    }
}
