//! Snapshots of the machine: whole, canonical, stable under small changes, and total over garbage.

mod common;

use std::collections::BTreeSet;

use bytes::Bytes;
use common::{Driven, append, chunks, delete, put, put_under};
use kvd::{
    KvMachine,
    command::{Action, Guard, Operation, Tenure, Token, Txn},
    outcome::Outcome,
};
use proptest::prelude::*;
use raft::{CHUNK_BYTES_MAX, StateMachine};

/// A state with everything in it: short, long and empty values, rows with every kind of reply.
fn varied(keys: u32) -> Driven {
    let mut driven = Driven::new(8);
    for number in 0..keys {
        let key = format!("key-{number:06}");
        let value = vec![number as u8; (number as usize * 37) % 900];
        driven.run(None, put(key.as_bytes(), &value));
    }
    for (number, length) in [(1, 16 * 1024), (2, 16 * 1024 + 1), (3, 32 * 1024 - 1), (4, 1 << 20)] {
        driven.run(None, put(format!("long-{number}").as_bytes(), &vec![number; length]));
        let sequences = u64::from(number) * 10;
        for (at, operation) in [
            append(b"long-2", b"tail"),
            append(b"fresh", b"tail"),
            delete(b"long-3"),
            delete(b"nothing"),
            put(b"plain", b"value"),
            common::put_if(
                b"plain",
                b"value",
                kvd::command::Condition::Version(kvd::outcome::Version(0)),
            ),
            append(b"long-4", &[0; 900_000]),
        ]
        .into_iter()
        .enumerate()
        {
            let id = driven.id(number, sequences + at as u64, sequences - 1);
            driven.run(Some(id), operation);
        }
    }
    leases_and_locks(&mut driven);
    driven.now += 5;
    driven.pass();
    driven
}

/// Leases with keys, locks with some who wait, and kept replies of all of it.
fn leases_and_locks(driven: &mut Driven) {
    let mut sequence = 0;
    let mut run = |driven: &mut Driven, operation: Operation<'_>| {
        sequence += 1;
        driven.run(Some(driven.id(9, sequence, 0)), operation).outcome
    };
    for tag in ["{a}", "{b}", "{c}"] {
        let name = |kind: &str| format!("{tag}{kind}").into_bytes();
        let (key, lock, other) = (name("key"), name("lock"), name("other"));
        let lease = driven.grant(&key, 60_000);
        driven.outcome(put_under(&key, b"attached", lease));
        driven.outcome(put_under(&other, &[9; 20_000], lease));
        run(driven, Operation::Grant { key: &key, ttl_ms: 30_000 });
        for wait_ms in [0, 0, 5_000, 9_000] {
            run(driven, common::acquire(&lock, 10_000, wait_ms));
        }
        let under = Operation::Acquire {
            name: &lock,
            tenure: Tenure::Lease(lease),
            wait_ms: 700,
            owner: b"under a lease",
        };
        run(driven, under);
        let guard = Guard { lock: &lock, token: Token(1) };
        let refused = driven.guarded(guard, put(&key, b"late")).result.expect("executed").outcome;
        assert!(matches!(refused, Outcome::GuardRefused(Some(_))), "{refused:?}");
        let gets = [Action::Get { key: &other }, Action::Delete { key: &other }];
        run(driven, Operation::Txn(Txn { then: gets.into(), ..Txn::default() }));
    }
    assert_eq!((driven.machine.locks(), driven.machine.leases()), (3, 15));
}

fn restored(chunks: &[Bytes]) -> Result<KvMachine, raft::BadSnapshot> {
    let mut machine = KvMachine::new(1);
    machine.restore(&mut chunks.iter().cloned()).map(|()| machine)
}

#[test]
fn what_was_captured_comes_back_whole() {
    let driven = varied(3_000);
    let chunks = chunks(&driven.machine);
    assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_BYTES_MAX));
    let machine = restored(&chunks).unwrap();
    assert_eq!(machine.digest(), driven.machine.digest());
    assert_eq!(common::chunks(&machine), chunks);
    let mut driven = driven;
    let mut second = Driven::around(machine, 8);
    (second.index, second.now) = (driven.index, driven.now);
    for (key, client) in [(&b"long-2"[..], 2), (b"fresh", 1), (b"key-000007", 4)] {
        assert_eq!(second.get(key), driven.get(key));
        for sequence in 9..46 {
            let id = driven.id(client, sequence, 0);
            let ours = driven.apply(Some(id), append(key, b"z"));
            assert_eq!(second.apply(Some(id), append(key, b"z")), ours);
        }
    }
    for machine in [&mut second, &mut driven] {
        machine.now += 61_000;
        machine.expire_due();
        machine.expire_due();
        assert_eq!(machine.machine.leases(), 0, "all are over, those that were granted last, too");
    }
    assert_eq!(second.machine.digest(), driven.machine.digest());
}

#[test]
fn an_unborn_state_comes_back() {
    let machine = restored(&chunks(&KvMachine::new(4))).unwrap();
    assert_eq!(machine.created(), None);
    assert_eq!(machine.digest(), KvMachine::new(9).digest());
}

#[test]
fn equal_states_made_in_different_orders_give_equal_chunks() {
    let mut pages: Vec<Vec<Bytes>> = Vec::new();
    for step in [1_u32, 7] {
        let mut driven = Driven::new(1);
        for number in 0..1_000 {
            let key = (number * step) % 1_000;
            let name = format!("key-{key}");
            driven.run(None, put(name.as_bytes(), b"x"));
            driven.run(None, delete(name.as_bytes()));
        }
        for number in 0..500 {
            driven.run(None, put(format!("key-{number}").as_bytes(), &[7; 300]));
        }
        // How they came about is the change log's to tell.
        driven.run(None, Operation::Compact { shard: 0, revision: None });
        (0..9).for_each(|_| driven.pass());
        pages.push(chunks(&driven.machine));
    }
    assert_eq!(pages[0], pages[1]);
}

#[test]
fn a_capture_is_not_touched_by_what_follows() {
    let mut driven = varied(500);
    let expected = chunks(&driven.machine);
    let capture = driven.machine.capture();
    driven.run(None, put(b"key-000001", b"changed"));
    driven.run(None, delete(b"key-000002"));
    assert_ne!(chunks(&driven.machine), expected);
    assert_eq!(raft::Capture::chunks(capture).collect::<Vec<_>>(), expected);
}

#[test]
fn one_changed_key_changes_few_chunks() {
    let mut driven = varied(20_000);
    let before: BTreeSet<Bytes> = chunks(&driven.machine).into_iter().collect();
    driven.run(None, put(b"key-010000", b"a different length"));
    driven.run(None, put(b"key-010000x", b"a new key"));
    let after = chunks(&driven.machine);
    let new = after.iter().filter(|chunk| !before.contains(*chunk)).count();
    assert!(after.len() > 500, "{} chunks", after.len());
    assert!(new <= 12, "{new} of {} chunks are new", after.len());
}

#[test]
fn an_append_to_a_long_value_leaves_its_other_parts_alone() {
    let mut driven = Driven::new(1);
    let value: Vec<u8> =
        (0..900_000_u32).map(|number| (number.wrapping_mul(number) >> 7) as u8).collect();
    driven.run(None, put(b"long", &value));
    let before: BTreeSet<Bytes> = chunks(&driven.machine).into_iter().collect();
    driven.run(None, append(b"long", b"tail"));
    let after = chunks(&driven.machine);
    let new = after.iter().filter(|chunk| !before.contains(*chunk)).count();
    assert!(after.len() > 25 && new <= 4, "{new} of {} chunks are new", after.len());
}

#[test]
fn a_missing_repeated_or_swapped_chunk_is_an_error() {
    let chunks = chunks(&varied(2_000).machine);
    for at in 0..chunks.len() {
        let mut without = chunks.clone();
        without.remove(at);
        assert!(restored(&without).is_err(), "without chunk {at}");
        let mut twice = chunks.clone();
        twice.insert(at, chunks[at].clone());
        assert!(restored(&twice).is_err(), "chunk {at} twice");
    }
}

/// The encoder looks up after so many changes; those of one revision stay together.
#[test]
fn a_revision_that_begins_late_in_a_step_is_whole() {
    let mut driven = Driven::new(1);
    for number in 0..63 {
        driven.run(None, put(format!("key-{number}").as_bytes(), b"value"));
    }
    let puts = [b"a", b"b", b"c"].map(|key| Action::Put { key, value: b"together", lease: None });
    driven.run(None, Operation::Txn(Txn { then: puts.into(), ..Txn::default() }));
    driven.run(None, put(b"behind", b"value"));
    let again = restored(&chunks(&driven.machine)).unwrap();
    assert_eq!(again.digest(), driven.machine.digest());
    assert_eq!(again.recomputed_digest(), driven.machine.recomputed_digest());
    assert_eq!(again.stored_bytes(), driven.machine.stored_bytes());
}

#[test]
fn a_failed_restore_leaves_the_state_as_it_was() {
    let mut driven = varied(50);
    let digest = driven.machine.digest();
    let other = chunks(&varied(70).machine);
    let cut = &other[..other.len() - 1];
    assert!(driven.machine.restore(&mut cut.iter().cloned()).is_err());
    assert_eq!(driven.machine.digest(), digest);
    assert!(driven.get(b"key-000049").is_some() && driven.get(b"key-000069").is_none());
}

#[test]
fn a_newer_format_is_named() {
    let mut all = chunks(&KvMachine::new(1));
    let mut header = all[0].to_vec();
    header[1] = 9;
    all[0] = header.into();
    let error = restored(&all).unwrap_err().to_string();
    assert!(error.contains("snapshot version 9"), "{error}");
}

proptest! {
    #[test]
    fn any_flipped_byte_is_an_error(chunk in any::<prop::sample::Index>(), byte in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut all = chunks(&varied(60).machine);
        let chunk = chunk.index(all.len());
        let mut damaged = all[chunk].to_vec();
        let byte = byte.index(damaged.len());
        damaged[byte] ^= flip;
        all[chunk] = damaged.into();
        prop_assert!(restored(&all).is_err());
    }

    #[test]
    fn garbage_never_panics(garbage in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let header = chunks(&Driven::new(2).machine)[0].clone();
        let mut all = vec![header];
        all.extend(garbage.into_iter().map(Bytes::from));
        let _ = restored(&all);
    }
}
