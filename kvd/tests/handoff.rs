//! A shard that comes damaged: whatever happens to a piece on its way, the destination refuses it or
//! finds in the end that the shard is not the one that was sent, and serves nothing of it.

mod common;

use bytes::Bytes;
use common::{Driven, chunks, put};
use kvd::{
    KvMachine, MachineLimits,
    command::{Action, ClientId, Command, Condition, LeaseId, Operation, RequestId, Tenure, Txn},
    custody::{MoveNumber, Phase},
    handoff::{Part, Piece},
    outcome::{Answer, Outcome, Query, Refusal, Revision, Scope, ShardTime},
    range::Range,
    step::{Deed, Frozen, Stepped},
};
use raft::StateMachine;

const MOVE: MoveNumber = MoveNumber(1);

/// A group with a shard that has some of everything, frozen; and what it said of it.
fn source() -> (Driven, Frozen) {
    let mut source = Driven::new(1);
    let lease = source.grant(b"granted", 60_000);
    for number in 0..20_u64 {
        let (key, value) = (format!("key-{}", number % 7), format!("value-{number}"));
        let (key, value) = (key.as_bytes(), value.as_bytes());
        let (condition, with) = (Condition::Always, (number % 3 == 0).then_some(lease));
        let expires = ShardTime(source.now + 1_000);
        let id =
            RequestId { client: ClientId([1; 16]), sequence: number + 1, acknowledged: 3, expires };
        source.run(
            Some(id).filter(|_| number > 2),
            Operation::Put { key, value, condition, lease: with },
        );
        if number == 10 {
            source.outcome(Operation::Compact { shard: 0, revision: None });
            assert!(matches!(source.step(0, MOVE, Deed::Hold), Ok(Stepped::Held(_))));
        }
    }
    source.outcome(Operation::Delete { key: b"key-3" });
    source.outcome(Operation::Append { key: b"key-4", value: b"more" });
    for owner in [b"one", b"two"] {
        let tenure = Tenure::Own { ttl_ms: 60_000 };
        let acquire = Operation::Acquire { name: b"lock", tenure, wait_ms: 60_000, owner };
        assert!(matches!(source.outcome(acquire), Outcome::Held { .. } | Outcome::Queued { .. }));
    }
    match source.step(0, MOVE, Deed::Freeze) {
        Ok(Stepped::Frozen(frozen)) => (source, frozen),
        other => panic!("not frozen: {other:?}"),
    }
}

/// A group that is to take it in.
fn destination(source: &mut Driven) -> Driven {
    let limits = MachineLimits { discarded_per_step: 2, ..MachineLimits::default() };
    let mut destination = Driven::around(KvMachine::with_limits(1, limits), 1);
    let Ok(Stepped::Held(base)) = source.step(0, MOVE, Deed::Hold) else { panic!("not held") };
    let begun = destination.step(0, MOVE, Deed::Begin { base });
    assert!(matches!(begun, Ok(Stepped::Position(_))), "{begun:?}");
    destination
}

/// All of it, in pieces.
fn pieces(source: &Driven, destination: &Driven) -> Vec<Piece> {
    let wanted = destination.contents(0).wanted().expect("it is coming");
    let mut handoff = source.contents(0).handoff(wanted, 60).expect("it is leaving");
    std::iter::from_fn(|| handoff.next_piece()).collect()
}

/// Takes in pieces as long as they are believed, and serves the shard if it can.
fn take_in(destination: &mut Driven, pieces: &[Piece], frozen: Frozen) -> Result<Stepped, Refusal> {
    for Piece { at, records } in pieces {
        destination.step(0, MOVE, Deed::Import { at: *at, records })?;
    }
    destination.step(0, MOVE, Deed::Install { frozen })
}

/// It serves nothing, and what came goes.
fn check_discarded(mut destination: Driven) {
    assert_eq!(destination.contents(0).custody().phase, Phase::Discarding);
    loop {
        // What is half gone can be told in a snapshot, too.
        let mut machine = destination.machine.empty();
        machine.restore(&mut chunks(&destination.machine).into_iter()).expect("its own snapshot");
        assert_eq!(machine.digest(), destination.machine.digest());
        if destination.step(0, MOVE, Deed::Discard) == Ok(Stepped::Left(false)) {
            break;
        }
    }
    let machine = &destination.machine;
    assert_eq!(destination.contents(0).custody().phase, Phase::Absent);
    assert_eq!((machine.stored_bytes(), machine.session_rows(), machine.leases()), (0, 0, 0));
    assert_eq!(machine.digest(), machine.recomputed_digest());
}

#[test]
fn a_shard_comes_as_it_was_sent() {
    let (mut source, frozen) = source();
    let mut destination = destination(&mut source);
    let pieces = pieces(&source, &destination);
    assert!(pieces.len() > 5, "{} pieces", pieces.len());
    assert_eq!(take_in(&mut destination, &pieces, frozen), Ok(Stepped::Done));
    for driven in [&source, &destination] {
        assert_eq!(driven.machine.digest(), driven.machine.recomputed_digest());
    }
    assert_eq!(source.machine.stored_bytes(), destination.machine.stored_bytes());
}

/// Also of a shard in which nothing is but its counters.
#[test]
fn who_has_all_of_a_shard_is_told_nothing_more() {
    let mut empty = Driven::new(1);
    assert_eq!(empty.outcome(Operation::Delete { key: b"key" }), Outcome::Absent);
    assert!(matches!(empty.step(0, MOVE, Deed::Hold), Ok(Stepped::Held(_))));
    assert!(matches!(empty.step(0, MOVE, Deed::Freeze), Ok(Stepped::Frozen(_))));
    for mut source in [source().0, empty] {
        let mut destination = destination(&mut source);
        for Piece { at, records } in pieces(&source, &destination) {
            let deed = Deed::Import { at, records: &records };
            assert!(matches!(destination.step(0, MOVE, deed), Ok(Stepped::Position(_))));
        }
        assert_eq!(pieces(&source, &destination), []);
    }
}

/// A member of the source that does not know yet that the shard is frozen has other rows.
#[test]
fn what_is_told_last_is_not_told_by_a_member_that_is_behind() {
    let mut ahead = Driven::new(1);
    ahead.outcome(put(b"key", b"value"));
    assert!(matches!(ahead.step(0, MOVE, Deed::Hold), Ok(Stepped::Held(_))));
    let mut destination = destination(&mut ahead);
    let behind = ahead.contents(0);
    let id = ahead.id(1, 1, 0);
    ahead.run(Some(id), put(b"key", b"other"));
    assert!(matches!(ahead.step(0, MOVE, Deed::Freeze), Ok(Stepped::Frozen(_))));
    for Piece { at, records } in pieces(&ahead, &destination) {
        let deed = Deed::Import { at, records: &records };
        assert!(matches!(destination.step(0, MOVE, deed), Ok(Stepped::Position(_))));
    }
    let wanted = destination.contents(0).wanted().expect("it is coming");
    assert_eq!(wanted.position.part, Part::Rows);
    let told = behind.handoff(wanted, 40).map(drop);
    assert!(matches!(told, Err(Refusal::NoSuchStep { .. })), "{told:?}");
}

/// What is no longer held can't be frozen, also where nothing of it was forgotten yet: the copy begins
/// anew.
#[test]
fn a_copy_of_what_is_no_longer_held_begins_anew() {
    let limits = MachineLimits { held_changes_bytes: 100, ..MachineLimits::default() };
    let mut source = Driven::around(KvMachine::with_limits(1, limits), 1);
    source.outcome(put(b"key", &[0; 2_000]));
    let mut destination = destination(&mut source);
    source.outcome(put(b"key", b"short"));
    let refused = source.step(0, MOVE, Deed::Freeze);
    assert!(matches!(refused, Err(Refusal::NoSuchStep { .. })), "{refused:?}");
    let wanted = destination.contents(0).wanted().expect("it is coming");
    let told = source.contents(0).handoff(wanted, 60).map(drop);
    assert!(matches!(told, Err(Refusal::Compacted { .. })), "{told:?}");
    assert_eq!(destination.step(0, MOVE, Deed::Restart), Ok(Stepped::Left(false)));
    let Ok(Stepped::Held(base)) = source.step(0, MOVE, Deed::Hold) else { panic!("not held") };
    assert!(destination.step(0, MOVE, Deed::Begin { base }).is_ok());
    let Ok(Stepped::Frozen(frozen)) = source.step(0, MOVE, Deed::Freeze) else {
        panic!("not frozen")
    };
    let pieces = pieces(&source, &destination);
    assert_eq!(take_in(&mut destination, &pieces, frozen), Ok(Stepped::Done));
}

#[test]
fn no_flipped_bit_is_served() {
    let (mut source, frozen) = source();
    let fresh = destination(&mut source);
    let sent = pieces(&source, &fresh);
    let (mut refused, mut differed) = (0, 0);
    for (at, piece) in sent.iter().enumerate() {
        for bit in 0..piece.records.len() * 8 {
            let mut destination = destination(&mut source);
            let mut damaged = piece.records.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut pieces = sent.clone();
            pieces[at].records = damaged.into();
            match take_in(&mut destination, &pieces, frozen) {
                Err(Refusal::BadHandoff { .. }) => refused += 1,
                Err(Refusal::HandoffDiffers { .. }) => differed += 1,
                other => panic!("bit {bit} of piece {at} {piece:?}: {other:?}"),
            }
            check_discarded(destination);
        }
    }
    assert!(refused > 1_000 && differed > 1_000, "{refused} refused, {differed} differed");
}

#[test]
fn no_missing_doubled_or_exchanged_piece_is_served() {
    let (mut source, frozen) = source();
    let fresh = destination(&mut source);
    let sent = pieces(&source, &fresh);
    for at in 0..sent.len() {
        let mut missing = sent.clone();
        missing.remove(at);
        // One that comes twice is taken in once.
        let mut doubled = sent.clone();
        doubled.insert(at, sent[at].clone());
        let mut taking = destination(&mut source);
        assert_eq!(take_in(&mut taking, &doubled, frozen), Ok(Stepped::Done));
        let mut taking = destination(&mut source);
        let taken = take_in(&mut taking, &missing, frozen);
        assert!(matches!(taken, Err(Refusal::HandoffDiffers { .. })), "{taken:?}");
        check_discarded(taking);
    }
}

#[test]
fn a_half_taken_shard_survives_a_snapshot() {
    let (mut source, frozen) = source();
    let fresh = destination(&mut source);
    let sent = pieces(&source, &fresh);
    let mut destination = destination(&mut source);
    for piece in &sent {
        let mut machine = destination.machine.empty();
        machine.restore(&mut chunks(&destination.machine).into_iter()).expect("its own snapshot");
        assert_eq!(machine.digest(), destination.machine.digest());
        assert_eq!(chunks(&machine), chunks(&destination.machine));
        destination.machine = machine;
        // Who goes on by what is there asks for the same.
        assert_eq!(pieces(&source, &destination).first(), Some(piece));
        let deed = Deed::Import { at: piece.at, records: &piece.records };
        assert!(matches!(destination.step(0, MOVE, deed), Ok(Stepped::Position(_))));
    }
    assert_eq!(take_in(&mut destination, &[], frozen), Ok(Stepped::Done));
}

/// What is asked of a shard, in every way.
fn questions(lease: LeaseId) -> Vec<Query> {
    let key = || Bytes::from_static(b"key-1");
    let then = vec![Action::Get { key: b"key-1" }];
    let txn = Command::new(1, Operation::Txn(Txn { then, ..Txn::default() }));
    vec![
        Query::Get(key()),
        Query::Time(key()),
        Query::Lock(key()),
        Query::Claim { name: key(), lease },
        Query::Lease { lease, attached: true },
        Query::Txn(txn.encode()),
        Query::View(Scope::Shard(0)),
        Query::View(Scope::Ranges(vec![Range::Key(key())])),
        Query::View(Scope::Ranges(vec![Range::all()])),
    ]
}

fn check_unserved(driven: &mut Driven, lease: LeaseId) {
    let before = driven.contents(0);
    for query in questions(lease) {
        let refusal = match driven.machine.query(query.clone()) {
            Answer::Refused(refusal) => refusal,
            Answer::Txn(response) => response.result.expect_err("it is not served"),
            other => panic!("{query:?} is answered: {other:?}"),
        };
        assert_eq!(refusal, Refusal::NotServed { shard: 0 });
    }
    let all = driven.view();
    assert_eq!(all.header(0), None, "the others are shown");
    let (client, expires) = (ClientId([9; 16]), ShardTime(driven.now));
    let id = RequestId { client, sequence: 1, acknowledged: 0, expires };
    let (condition, lease) = (Condition::Always, None);
    let put = Operation::Put { key: b"key-1", value: b"", condition, lease };
    assert_eq!(driven.refused(id, put), Refusal::NotServed { shard: 0 });
    // Nor is it kept that it was refused, nor anything forgotten meanwhile.
    driven.now += 10_000_000;
    driven.pass();
    assert_eq!(driven.expire_due(), 0);
    assert_eq!(driven.contents(0), before);
}

#[test]
fn a_shard_that_is_not_served_answers_nothing_and_stays_as_it_is() {
    let (mut source, frozen) = source();
    let lease = LeaseId::of(Revision(1), 0).expect("it fits");
    let mut destination = destination(&mut source);
    let sent = pieces(&source, &destination);
    check_unserved(&mut source, lease);
    check_unserved(&mut destination, lease);
    assert_eq!(take_in(&mut destination, &sent, frozen), Ok(Stepped::Done));
    for query in questions(lease) {
        let answer = destination.machine.query(query);
        assert!(!matches!(answer, Answer::Refused(_)), "{answer:?}");
    }
    while source.step(0, MOVE, Deed::Delete) != Ok(Stepped::Left(false)) {
        drop(source.step(0, MOVE, Deed::Discard));
    }
    check_unserved(&mut source, lease);
}

#[test]
fn a_late_step_of_an_older_move_leaves_the_present_one_alone() {
    let mut source = Driven::new(1);
    source.grant(b"granted", 60_000);
    let late = MoveNumber(1);
    let present = MoveNumber(2);
    // Nobody holds its changes yet, so nobody can have copied it.
    assert!(matches!(source.step(0, present, Deed::Freeze), Err(Refusal::NoSuchStep { .. })));
    assert!(matches!(source.step(0, present, Deed::Hold), Ok(Stepped::Held(_))));
    assert!(matches!(source.step(0, late, Deed::Hold), Err(Refusal::NoSuchStep { .. })));
    assert!(matches!(source.step(0, late, Deed::Freeze), Err(Refusal::NoSuchStep { .. })));
    assert_eq!(source.step(0, late, Deed::Cancel), Ok(Stepped::Done));
    let leaving = Phase::Serving { leaving: Some(present) };
    assert_eq!(source.contents(0).custody().phase, leaving);
    assert!(matches!(source.step(0, present, Deed::Freeze), Ok(Stepped::Frozen(_))));
}
