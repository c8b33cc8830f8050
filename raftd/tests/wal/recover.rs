//! The recovery of a survivor, with a crash between any two operations of its disk: the directory is
//! as before, or the recovery goes on when it is asked for once more.

use raft::{NodeId, Payload, RECOVERY_GAP, Recovered};
use raftd::recovery::{Recovery, recover_store};
use raftd::store::gathered::Gathered;
use raftd::store::{Engine, Floor, StoreError};
use raftd::{Founder, Group};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::memory::{Crash, Disk};
use crate::model::Model;

const BORN_AS: [u8; 32] = [9; 32];

fn open(disk: &Disk) -> Result<(Engine<Disk, Disk>, Recovered), StoreError> {
    Engine::open(disk.clone(), Floor::open(disk.clone())?, u64::MAX)
}

/// A disk of member 1 of three, with some log.
fn survivor() -> (Disk, Model) {
    let founder = |node: u8| Founder {
        node: NodeId(node.into()),
        incarnation: [node; 16],
        peer_address: format!("127.0.0.1:{node}"),
        client_address: String::new(),
    };
    let founders = (1..=3).map(founder).collect();
    let disk = Disk::default();
    Floor::create(disk.clone(), "c", NodeId(1), [1; 16]).unwrap();
    let (mut engine, _) = open(&disk).unwrap();
    engine.bear(Group { id: BORN_AS, founders, former: Vec::new() }).unwrap();
    let (mut model, mut rng) = (Model::default(), StdRng::seed_from_u64(3));
    for _ in 0..20 {
        let (mut gathered, write) = (Gathered::default(), model.next(&mut rng));
        model.apply(&write);
        gathered.add(write);
        engine.write(&gathered).unwrap();
    }
    engine.sync_floor().unwrap();
    (disk, model)
}

fn recover(disk: &Disk) -> Result<Option<Recovery>, daemon::Failure> {
    let (mut engine, recovered) = open(disk)?;
    recover_store(&mut engine, &recovered, [7; 32])
}

/// Whether it is recovered; if so, wholly.
fn check(disk: &Disk, before: &Model, context: &str) -> bool {
    let (engine, found) = open(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let state = engine.state();
    let group = state.group.clone().unwrap();
    assert_eq!(*group.as_born(), BORN_AS, "{context}");
    let is_new = group.id != BORN_AS;
    let Some(Payload::Membership(membership)) =
        found.log.entries().last().map(|it| it.payload.clone())
    else {
        assert!(!is_new || state.recovering == Some(1), "{context}: without its membership");
        return false;
    };
    // The log never has it before the floor has the new identity.
    assert!(is_new, "{context}: the old group would have one voter");
    let entries: Vec<_> = found.log.entries().cloned().collect();
    let (own, rest) = entries.split_last().unwrap();
    assert_eq!(own.position().index, before.last().index.next(), "{context}");
    assert_eq!(
        rest.last().map_or(found.log.base(), raft::Entry::position),
        before.last(),
        "{context}"
    );
    assert!(own.term.0 > before.last().term.0.max(RECOVERY_GAP), "{context}");
    assert!(found.hard_state.term >= own.term, "{context}");
    assert!(membership.voters().eq([NodeId(1)]), "{context}");
    assert_eq!((membership.last_id(), membership.recoveries()), (NodeId(3), 1), "{context}");
    state.recovering.is_none()
}

#[test]
fn a_recovery_may_crash_anywhere() {
    let mut crashes = 0;
    for at in 0.. {
        let mut crashed = false;
        for crash in [Crash::Kill, Crash::PowerCut(0), Crash::PowerCut(1)] {
            for done in [false, true] {
                let context = format!("operation {at}, done {done}, {crash:?}");
                let (disk, before) = survivor();
                disk.crash_after(at, done);
                let ended = recover(&disk);
                crashed |= ended.is_err();
                crashes += usize::from(ended.is_err());
                disk.restart(crash);
                if !check(&disk, &before, &context) {
                    assert!(ended.is_err(), "{context}: it was told that it is recovered");
                    let again = recover(&disk);
                    assert!(matches!(again, Ok(Some(_))), "{context}: {again:?}");
                    assert!(check(&disk, &before, &context), "{context}: not recovered");
                }
                assert!(matches!(recover(&disk), Ok(None)), "{context}: recovered twice");
            }
        }
        if !crashed {
            break;
        }
    }
    assert!(crashes > 60, "only {crashes} crashes");
}
