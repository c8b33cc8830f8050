//! A recovery of the group from the loss of its majority: no revision, version or token that was
//! given out without the survivor is ever given out again.

mod common;

use common::{Driven, chunks, delete, put, put_if};
use kvd::KvMachine;
use kvd::command::{Condition, Operation};
use kvd::outcome::{Outcome, Version, Written};
use raft::{RECOVERY_GAP, StateMachine};

const SHARDS: u32 = 4;

fn written(driven: &mut Driven, operation: Operation<'_>) -> Written {
    match driven.run(None, operation).outcome {
        Outcome::Written(written) | Outcome::Removed { written, .. } => written,
        other => panic!("not written: {other:?}"),
    }
}

fn recover(driven: &mut Driven) {
    driven.pass();
    driven.machine.recover();
}

#[test]
fn what_the_lost_majority_gave_out_is_not_given_out_again() {
    let mut survivor = Driven::new(SHARDS);
    written(&mut survivor, put(b"key", b"1"));
    let mut lost = Driven::around(survivor.machine.clone(), SHARDS);
    let told: Vec<Written> = (0..100).map(|_| written(&mut lost, put(b"key", b"lost"))).collect();
    let fresh = written(&mut lost, put(b"fresh", b"lost"));

    recover(&mut survivor);
    assert_eq!(survivor.get(b"key").unwrap().version, Version(1), "nothing is written");
    // A condition on a version that was told by those who are lost never holds.
    let condition = Condition::Version(told[0].version);
    let refused = survivor.run(None, put_if(b"key", b"2", condition)).outcome;
    assert!(matches!(refused, Outcome::Mismatch(Some(_))), "{refused:?}");
    let again = written(&mut survivor, put(b"key", b"2"));
    assert_eq!(again.version, Version(2 + RECOVERY_GAP));
    assert!(again.revision.0 > RECOVERY_GAP, "{again:?}");
    assert!(told.iter().all(|told| told.version != again.version));
    let next = written(&mut survivor, put(b"key", b"3"));
    assert_eq!((next.version.0, next.revision.0), (again.version.0 + 1, again.revision.0 + 1));
    let fresh_again = written(&mut survivor, put(b"fresh", b"2"));
    assert!(fresh_again.version > fresh.version && fresh_again.revision > fresh.revision);
    assert_eq!(fresh_again.version, Version(1 + RECOVERY_GAP));
    // Within one life of the group a key that comes back begins anew, as always.
    written(&mut survivor, delete(b"fresh"));
    assert_eq!(written(&mut survivor, put(b"fresh", b"3")).version, fresh_again.version);
}

#[test]
fn a_store_without_a_command_is_moved_on_too() {
    let mut survivor = Driven::new(SHARDS);
    recover(&mut survivor);
    recover(&mut survivor);
    let first = written(&mut survivor, put(b"key", b"1"));
    assert_eq!(first.revision.0, 1 + 2 * RECOVERY_GAP);
    assert_eq!(first.version.0, 1 + 2 * RECOVERY_GAP);
}

#[test]
fn a_snapshot_and_the_digest_know_of_recoveries() {
    let mut survivor = Driven::new(SHARDS);
    written(&mut survivor, put(b"key", b"1"));
    let before = survivor.machine.digest();
    recover(&mut survivor);
    assert_ne!(survivor.machine.digest(), before);
    let mut restored = KvMachine::new(1);
    restored.restore(&mut chunks(&survivor.machine).into_iter()).unwrap();
    assert_eq!(restored.digest(), survivor.machine.digest());

    let mut empty = Driven::new(SHARDS);
    recover(&mut empty);
    let mut restored = KvMachine::new(SHARDS);
    restored.restore(&mut chunks(&empty.machine).into_iter()).unwrap();
    assert_eq!(restored.digest(), empty.machine.digest());
    let mut restored = Driven::around(restored, SHARDS);
    assert!(written(&mut restored, put(b"key", b"1")).revision.0 > RECOVERY_GAP);
}
