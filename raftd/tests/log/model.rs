//! The machine against a naive model: a list of all entries ever appended, and of all requests that
//! were ever executed. A snapshot is taken and restored now and then, and must change nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;
use raft::StateMachine;
use raftd::log::command::RequestId;
use raftd::log::outcome::{LogIndex, Outcome, Refusal};

use crate::driven::{Driven, chunks, restored};

#[derive(Clone, Debug)]
enum Step {
    /// By this client under its next number, or again under one of the last.
    Propose {
        client: u8,
        back: u64,
        lengths: Vec<usize>,
    },
    /// So many entries before the end.
    Trim {
        back: u64,
    },
    Wait {
        ms: u64,
    },
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 0..40_usize, 2 => 200..9_000_usize, 1 => 30_000..70_000_usize];
    let lengths = proptest::collection::vec(length, 1..4);
    prop_oneof![
        12 => (0..4_u8, 0..3_u64, lengths)
            .prop_map(|(client, back, lengths)| Step::Propose { client, back, lengths }),
        2 => (0..60_u64).prop_map(|back| Step::Trim { back }),
        2 => (0..6_000_u64).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::Restore),
    ]
}

/// What is known without any cleverness.
#[derive(Default)]
struct Model {
    /// All entries ever, the first at 0.
    all: Vec<Vec<u8>>,
    first: u64,
    /// Where each executed request's entries went, and until when that is remembered.
    executed: BTreeMap<(u8, u64), (u64, u64)>,
    sequences: BTreeMap<u8, u64>,
}

impl Model {
    fn last(&self) -> u64 {
        self.all.len() as u64
    }
}

fn propose(driven: &mut Driven, model: &mut Model, client: u8, back: u64, lengths: &[usize]) {
    let newest = model.sequences.entry(client).or_default();
    let sequence = if back == 0 { *newest + 1 } else { newest.saturating_sub(back - 1).max(1) };
    *newest = sequence.max(*newest);
    // The last four requests may be asked about again.
    let id = driven.id(client, sequence, newest.saturating_sub(4).min(sequence - 1));
    let marker = driven.index as u8;
    let payloads: Vec<Vec<u8>> = lengths.iter().map(|&length| vec![marker; length]).collect();
    let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
    let result = driven.propose(Some(id), &slices);
    let key = (client, sequence);
    match result {
        Ok(Outcome::Appended { first, count, duplicate: true }) => {
            let known = model.executed.get(&key).map(|(first, _)| *first);
            assert_eq!(Some(first.0), known, "a duplicate of what was not executed");
            assert!(count >= 1);
        }
        Ok(Outcome::Appended { first, count, duplicate: false }) => {
            assert_eq!((first.0, count), (model.last() + 1, lengths.len() as u64));
            let forgotten = |&(_, expires): &(u64, u64)| expires < driven.now;
            assert!(model.executed.get(&key).is_none_or(forgotten), "{id:?} is executed twice");
            model.executed.insert(key, (first.0, id.expires.0));
            model.all.extend(payloads);
        }
        // Its number is old and every later one of its client's was acknowledged.
        Err(Refusal::Acknowledged) => assert!(back > 0),
        other => panic!("{id:?}: {other:?}"),
    }
}

fn run(steps: &[Step]) {
    let (mut driven, mut model) = (Driven::new(), Model { first: 1, ..Model::default() });
    for step in steps {
        match step {
            Step::Propose { client, back, lengths } => {
                propose(&mut driven, &mut model, *client, *back, lengths);
            }
            Step::Trim { back } => {
                let to = (model.last() + 1).saturating_sub(*back);
                assert_eq!(driven.trim(to), Ok(Outcome::Trimmed));
                model.first = model.first.max(to);
            }
            Step::Wait { ms } => {
                driven.now += ms;
                driven.pass();
            }
            Step::Restore => {
                let taken = chunks(&driven.machine);
                let machine = restored(&taken).unwrap();
                assert_eq!(machine.digest(), driven.machine.digest());
                assert_eq!(chunks(&machine), taken, "the encoding is canonical");
                driven.machine = machine;
            }
        }
        let header = driven.status().header;
        assert_eq!((header.first, header.last), (LogIndex(model.first), LogIndex(model.last())));
        let from = usize::try_from(model.first - 1).unwrap();
        let bytes: usize = model.all[from..].iter().map(Vec::len).sum();
        let overhead = header.bytes - bytes as u64;
        let entries = header.last.0 + 1 - header.first.0;
        assert!((entries..=3 * entries).contains(&overhead), "{overhead} for {entries} entries");
    }
    let kept = driven.read(model.first);
    let from = usize::try_from(model.first - 1).unwrap();
    assert!(kept.iter().eq(model.all[from..].iter()), "other entries than were appended");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_does_what_the_model_says(steps in proptest::collection::vec(step(), 1..120)) {
        run(&steps);
    }
}

#[test]
fn an_identity_survives_a_snapshot() {
    let mut driven = Driven::new();
    let id: RequestId = driven.id(9, 5, 4);
    driven.propose(Some(id), &[b"a"]).unwrap();
    driven.machine = restored(&chunks(&driven.machine)).unwrap();
    let again = driven.propose(Some(id), &[b"a"]).unwrap();
    assert_eq!(again, Outcome::Appended { first: LogIndex(1), count: 1, duplicate: true });
}
