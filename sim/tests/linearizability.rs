//! The checker of histories, against histories by hand and against trying every order.

use std::{collections::BTreeSet, fmt};

use flotilla_sim::linearizability::{Checker, Finding, Model};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A register that holds a small number, and changes it for another if it is what was expected.
struct Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Write(u16),
    Read(u16),
    /// Changed one for another.
    Swap(u16, u16),
    /// Expected something, and saw something else.
    Kept(u16, u16),
}

use Operation::{Kept, Read, Swap, Write};

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Model for Cell {
    type State = u16;
    type Operation = Operation;
    type Mark = u16;

    fn step(&state: &u16, &operation: &Operation) -> Option<u16> {
        match operation {
            Write(value) => Some(value),
            Read(value) => (value == state).then_some(state),
            Swap(expected, value) => (expected == state).then_some(value),
            Kept(expected, saw) => (saw == state && saw != expected).then_some(state),
        }
    }

    fn is_too_late(_: &u16, _: &Operation) -> bool {
        false
    }

    fn only_reads(operation: &Operation) -> bool {
        matches!(operation, Read(_) | Kept(..))
    }

    fn leaves(&operation: &Operation) -> Option<u16> {
        match operation {
            Write(value) | Swap(_, value) => Some(value),
            Read(_) | Kept(..) => None,
        }
    }

    fn saw(&operation: &Operation) -> impl Iterator<Item = u16> {
        match operation {
            Write(_) => None,
            Read(saw) | Swap(saw, _) | Kept(_, saw) => Some(saw),
        }
        .into_iter()
    }
}

/// An operation with the places of its two events in the history; the end of time if it has no
/// answer.
type Line<O = Operation> = (usize, usize, O);
const NEVER: usize = usize::MAX;
/// How many places a drawn operation takes at most.
const LONGEST: usize = 10;

/// What the checker finds. Operations of which nothing is known begin and never end.
fn judge<M: Model>(state: M::State, history: &[Line<M::Operation>]) -> Result<(), Finding> {
    let mut checker = Checker::<M>::new(state);
    let ends = history.iter().flat_map(|line| [line.0, line.1]).filter(|&at| at != NEVER).max();
    for at in 0..=ends.unwrap_or(0) {
        for (id, (begins, ends, operation)) in (0..).zip(history) {
            if *begins == at && *ends == NEVER {
                checker.begin_unanswered(id, operation.clone());
            } else if *begins == at {
                checker.begin(id, operation.clone());
            }
        }
        for (id, (_, ends, _)) in (0..).zip(history) {
            if *ends == at {
                checker.end(id)?;
            }
        }
    }
    Ok(())
}

/// Whether some order explains it: one operation after the other is put behind those before, if
/// no other has ended before it begins.
fn brute_force<M: Model>(state: &M::State, left: &[Line<M::Operation>]) -> bool {
    let must = |line: &&Line<M::Operation>| line.1 != NEVER;
    if left.iter().find(must).is_none() {
        return true;
    }
    (0..left.len()).any(|next| {
        let mut rest = left.to_vec();
        let (begins, _, operation) = rest.remove(next);
        rest.iter().all(|other| other.1 >= begins)
            && M::step(state, &operation).is_some_and(|state| brute_force::<M>(&state, &rest))
    })
}

#[track_caller]
fn check(history: &[Line], linearizable: bool) {
    assert_eq!(brute_force::<Cell>(&0, history), linearizable, "by all orders: {history:?}");
    assert_eq!(judge::<Cell>(0, history).is_ok(), linearizable, "by the checker: {history:?}");
}

#[test]
fn one_after_the_other() {
    check(&[(0, 1, Write(1)), (2, 3, Read(1)), (4, 5, Write(2)), (6, 7, Read(2))], true);
    check(&[(0, 1, Write(1)), (2, 3, Read(0))], false);
    check(&[(0, 1, Read(0)), (2, 3, Write(1)), (4, 5, Swap(1, 2)), (6, 7, Kept(1, 2))], true);
    check(&[(0, 1, Read(1)), (2, 3, Write(1))], false);
}

#[test]
fn at_the_same_time() {
    let both = [(0, 3, Write(1)), (1, 2, Write(2))];
    check(&[both[0], both[1], (4, 5, Read(1))], true);
    check(&[both[0], both[1], (4, 5, Read(2))], true);
    check(&[both[0], both[1], (4, 5, Read(2)), (6, 7, Read(1))], false);
    check(&[both[0], both[1], (4, 7, Read(2)), (5, 6, Read(1))], false);
    check(&[(0, 9, Write(1)), (1, 2, Read(0)), (3, 4, Read(1)), (5, 6, Read(1))], true);
    check(&[(0, 9, Write(1)), (1, 2, Read(1)), (3, 4, Read(0))], false);
    // A write that changes nothing now may be needed later.
    check(&[(0, 1, Write(1)), (2, 9, Write(1)), (3, 4, Write(2)), (5, 6, Read(1))], true);
}

/// A write that nobody answered may happen at any time from then on, once, or never.
#[test]
fn without_an_answer() {
    let lost = (0, NEVER, Write(1));
    check(&[lost, (1, 2, Read(0)), (3, 4, Read(1))], true);
    check(&[lost, (1, 2, Read(0)), (3, 4, Read(0))], true);
    check(&[lost, (1, 2, Read(1)), (3, 4, Read(0))], false);
    check(&[lost, (1, 2, Read(1)), (3, 4, Write(2)), (5, 6, Read(1))], false);
    check(&[lost, (1, 2, Write(2)), (3, 4, Read(2)), (5, 6, Read(1))], true);
    check(&[(0, 1, Read(1)), (2, NEVER, Write(1))], false);
    // It was asked for before an answer that has seen it, though after the question.
    check(&[(0, 3, Read(1)), (1, NEVER, Write(1))], true);
    // One that takes another.
    check(&[lost, (1, NEVER, Swap(1, 2)), (2, 3, Read(2))], true);
    check(&[(0, NEVER, Swap(1, 2)), (1, 2, Read(2))], false);
    // Two that leave the same.
    check(&[lost, lost, (1, 2, Read(1)), (3, 4, Write(2)), (5, 6, Read(1))], true);
}

/// A history of a real cell, whose operations happen somewhere between their two ends, and some of
/// whose answers are lost.
fn draw(rng: &mut StdRng, operations: usize, values: u16) -> Vec<Line> {
    let points = 3 * operations;
    let mut drawn: Vec<(usize, usize, usize)> = (0..operations)
        .map(|_| {
            let from = rng.random_range(0..points);
            let mut points: Vec<usize> =
                (0..3).map(|_| from + rng.random_range(0..LONGEST)).collect();
            points.sort_unstable();
            (points[1], points[0], points[2])
        })
        .collect();
    drawn.sort_unstable();
    let mut state = 0;
    let line = |(_, begins, ends)| {
        let (first, second) = (rng.random_range(0..values), rng.random_range(0..values));
        let happens = rng.random_range(0..6) > 0;
        let operation = match rng.random_range(0..4) {
            0 | 1 => Write(first),
            2 => Read(state),
            _ if !happens => Swap(first, second),
            _ if first == state => Swap(first, second),
            _ => Kept(first, state),
        };
        if happens {
            state = Cell::step(&state, &operation).expect("the operation is made for the state");
        }
        let answered = happens && rng.random_range(0..6) > 0;
        (begins, if answered { ends } else { NEVER }, operation)
    };
    let history: Vec<Line> = drawn.into_iter().map(line).collect();
    // Nobody knows what a read without an answer would have seen.
    let known = |line: &Line| line.1 != NEVER || matches!(line.2, Write(_) | Swap(..));
    history.into_iter().filter(known).collect()
}

/// The same with one answer that is another.
fn spoil(rng: &mut StdRng, mut history: Vec<Line>) -> Vec<Line> {
    let place = rng.random_range(0..history.len().max(1));
    if let Some((_, _, Read(saw) | Swap(saw, _) | Kept(_, saw))) = history.get_mut(place) {
        *saw = rng.random_range(0..3);
    }
    history
}

#[test]
fn every_tiny_history_is_judged_as_by_all_orders() {
    let mut rng = StdRng::seed_from_u64(7);
    let (mut right, mut wrong) = (0, 0);
    for _ in 0..5_000 {
        let operations = rng.random_range(1..=6);
        let history = draw(&mut rng, operations, 3);
        check(&history, true);
        let spoiled = spoil(&mut rng, history);
        let linearizable = brute_force::<Cell>(&0, &spoiled);
        check(&spoiled, linearizable);
        *(if linearizable { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 500 && wrong > 500, "{right} and {wrong} prove little");
}

/// Numbers that are given out in order, some of them never.
struct Numbers;

impl Model for Numbers {
    type State = u16;
    type Operation = u16;
    type Mark = u16;

    fn step(&last: &u16, &number: &u16) -> Option<u16> {
        (number > last).then_some(number)
    }

    fn is_too_late(&last: &u16, &number: &u16) -> bool {
        number <= last
    }

    fn only_reads(_: &u16) -> bool {
        false
    }

    fn leaves(_: &u16) -> Option<u16> {
        None
    }

    fn saw(_: &u16) -> impl Iterator<Item = u16> {
        std::iter::empty()
    }
}

/// Where operations may come too late, those ways are given up at once.
#[test]
fn what_comes_too_late_is_judged_as_by_all_orders() {
    let mut rng = StdRng::seed_from_u64(13);
    let (mut right, mut wrong) = (0, 0);
    for _ in 0..5_000 {
        let mut line = |number: u16| {
            let begins = 2 * usize::from(number) + rng.random_range(0..6);
            (begins, begins + rng.random_range(0..6), number + 1)
        };
        let history: Vec<Line<u16>> = (0..6).map(&mut line).collect();
        let linearizable = brute_force::<Numbers>(&0, &history);
        let judged = judge::<Numbers>(0, &history).is_ok();
        assert_eq!(judged, linearizable, "{history:?}");
        *(if linearizable { &mut right } else { &mut wrong }) += 1;
    }
    assert!(right > 500 && wrong > 500, "{right} and {wrong} prove little");
}

/// However long a history is, and however many answers never came.
#[test]
fn long_histories_are_judged() {
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..20 {
        let history = draw(&mut rng, 2_000, 10_000);
        assert_eq!(judge::<Cell>(0, &history), Ok(()), "{history:?}");
    }
}

/// What is told is a part that is wrong on its own, and none of it can be left out.
#[test]
fn a_finding_shows_the_shortest_part() {
    let mut history: Vec<Line> = Vec::new();
    for turn in 0..200_u16 {
        let at = 4 * usize::from(turn);
        history.push((at, at + 1, Write(turn % 3)));
        history.push((at + 2, at + 3, Read(turn % 3)));
    }
    assert_eq!(judge::<Cell>(0, &history), Ok(()));
    history[301].2 = Read(2);
    let found = judge::<Cell>(0, &history).expect_err("it read what was overwritten");
    let Finding::NotLinearizable(shown) = found else { panic!("{found:?}") };
    let lines: BTreeSet<&str> = shown.lines().skip(1).collect();
    assert_eq!(lines, BTreeSet::from(["  Read(2)", "  Write(0)", "  Write(2)"]), "{shown}");
    assert_eq!(shown.lines().count(), 4, "{shown}");
}

/// Too many orders are told as such, and are no pass.
#[test]
fn what_takes_too_long_is_undecided() {
    let mut history: Vec<Line> = (0..40).map(|at| (at, 1_000, Write(at as u16))).collect();
    history.push((100, 101, Read(200)));
    let found = judge::<Cell>(0, &history);
    assert!(matches!(found, Err(Finding::Undecided(_))), "{found:?}");
}

/// Histories of keys, drawn at random from a store that behaves, or not.
mod keys {
    use std::collections::BTreeMap;

    use flotilla_sim::{
        Violation,
        kv_history::KvHistory,
        operation::{Done, Kind, Operation, OperationName, Verdict},
    };
    use kvd::{
        command::Condition,
        outcome::{Answered, Header, Outcome, Pair, Revision, Version, Written},
    };
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    /// What is wrong with a store.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Wrong {
        Nothing,
        /// A read finds what was overwritten before it began.
        StaleRead,
        /// A write is acknowledged and gone.
        LostUpdate,
        /// An append is done once more.
        DoubleAppend,
    }

    /// One key, as simple as can be.
    #[derive(Clone, Debug, Default)]
    struct Store {
        revision: u64,
        pair: Option<Pair>,
    }

    impl Store {
        fn write(&mut self, value: Vec<u8>) -> Written {
            self.revision += 1;
            let (revision, before) = (Revision(self.revision), self.pair.take());
            let version = Version(before.as_ref().map_or(0, |pair| pair.version.0) + 1);
            let create_revision = before.map_or(revision, |pair| pair.create_revision);
            let pair = Pair {
                value: value.into(),
                version,
                create_revision,
                mod_revision: revision,
                lease: None,
            };
            self.pair = Some(pair);
            Written { version, revision }
        }

        fn execute(&mut self, kind: &Kind) -> Done {
            let version = self.pair.as_ref().map_or(Version(0), |pair| pair.version);
            let outcome = match kind {
                Kind::Get => return Done::Read(self.header(), self.pair.clone()),
                Kind::Put { condition: Condition::Version(it), .. } if *it != version => {
                    Outcome::Mismatch(self.pair.clone())
                }
                Kind::Put { value, .. } => Outcome::Written(self.write(value.to_vec())),
                Kind::Append { value, .. } => {
                    let old = self.pair.as_ref().map(|pair| pair.value.clone()).unwrap_or_default();
                    let written = self.write([&old[..], value].concat());
                    Outcome::Appended { written, old }
                }
                Kind::Delete => match self.pair.take() {
                    None => Outcome::Absent,
                    Some(pair) => {
                        self.revision += 1;
                        let revision = Revision(self.revision);
                        Outcome::Removed {
                            written: Written { version: Version(0), revision },
                            pair,
                        }
                    }
                },
                Kind::Command(_) | Kind::Claim(_) => unreachable!("none is drawn"),
            };
            Done::Executed(
                self.header(),
                Answered { outcome, duplicate: false, body_dropped: false },
            )
        }

        fn header(&self) -> Header {
            Header { revision: Revision(self.revision), ..Header::default() }
        }
    }

    /// An operation: when it began, when it was done, when its answer came, and what that was.
    #[derive(Clone, Debug)]
    struct Drawn {
        begun: u64,
        point: u64,
        ended: u64,
        name: OperationName,
        kind: Kind,
        verdict: Option<Verdict>,
    }

    fn draw_kind(rng: &mut StdRng, name: OperationName) -> Kind {
        let value = name.token(0);
        match rng.random_range(0..10) {
            0..3 => Kind::Get,
            3..5 => Kind::Put { value, condition: Condition::Always },
            5..7 => {
                let condition = Condition::Version(Version(rng.random_range(0..4)));
                Kind::Put { value, condition }
            }
            7..9 => Kind::Append { value, value_bytes_max: 1 << 20 },
            _ => Kind::Delete,
        }
    }

    /// So many operations and a read at the end; none if what is to be wrong had no occasion.
    fn draw(rng: &mut StdRng, count: u64, unknown: bool, wrong: Wrong) -> Option<Vec<Drawn>> {
        let mut operations: Vec<Drawn> = (1..=count)
            .map(|client| {
                let begun = 10 * rng.random_range(0..2 * count);
                let ended = begun + 10 * rng.random_range(1..8);
                let point = rng.random_range(begun..=ended);
                let name = OperationName { client, number: 1 };
                let kind = draw_kind(rng, name);
                Drawn { begun, point, ended, name, kind, verdict: None }
            })
            .collect();
        let (begun, name) = (1_000_000, OperationName { client: count + 1, number: 1 });
        let last =
            Drawn { begun, point: begun, ended: begun, name, kind: Kind::Get, verdict: None };
        operations.push(last);
        operations.sort_by_key(|it| (it.point, it.name));
        let mut store = Store::default();
        // When each change was known at the latest, and how the store was before it.
        let mut changes: Vec<(u64, Store)> = Vec::new();
        let mut went_wrong = wrong == Wrong::Nothing;
        for it in &mut operations {
            let lost = unknown && it.begun < 1_000_000 && rng.random_range(0..4) == 0;
            if lost && rng.random_range(0..2) == 0 {
                it.verdict = Some(Verdict::Unknown);
                continue;
            }
            let before = store.clone();
            let mut done = store.execute(&it.kind);
            let changed = store.revision > before.revision;
            if !went_wrong && rng.random_range(0..3) == 0 {
                match wrong {
                    Wrong::StaleRead if it.kind == Kind::Get => {
                        let over = changes.iter().rev().find(|(ended, _)| *ended < it.begun);
                        if let Some((_, stale)) = over {
                            done = Done::Read(stale.header(), stale.pair.clone());
                            went_wrong = true;
                        }
                    }
                    Wrong::LostUpdate if changed => {
                        store = before.clone();
                        went_wrong = true;
                    }
                    Wrong::DoubleAppend if matches!(it.kind, Kind::Append { .. }) => {
                        store.execute(&it.kind);
                        went_wrong = true;
                    }
                    Wrong::Nothing | Wrong::StaleRead | Wrong::LostUpdate | Wrong::DoubleAppend => {
                    }
                }
            }
            if changed {
                changes.push((it.ended, before));
            }
            it.verdict = Some(if lost { Verdict::Unknown } else { Verdict::Done(done) });
        }
        went_wrong.then_some(operations)
    }

    fn judge(operations: &[Drawn]) -> Result<u64, Violation> {
        let mut history = KvHistory::new(None);
        for Drawn { begun, ended, name, kind, verdict, .. } in operations {
            history.begin(*begun, *name, Operation { key: "key".into(), kind: kind.clone() });
            if let Some(verdict) = verdict.clone() {
                history.end(*ended, *name, verdict);
            }
        }
        history.judge().map(|()| history.judged)
    }

    #[test]
    fn what_a_store_does_that_behaves_is_right() {
        for seed in 0..600 {
            let mut rng = StdRng::seed_from_u64(seed);
            let count = rng.random_range(1..60);
            let unknown = seed % 3 > 0;
            let Some(operations) = draw(&mut rng, count, unknown, Wrong::Nothing) else { continue };
            if let Err(violation) = judge(&operations) {
                panic!("seed {seed}: {violation}");
            }
        }
    }

    #[track_caller]
    fn is_found(wrong: Wrong) {
        let mut found = 0;
        for seed in 0..400 {
            let mut rng = StdRng::seed_from_u64(seed);
            let Some(operations) = draw(&mut rng, 40, false, wrong) else { continue };
            assert!(judge(&operations).is_err(), "seed {seed}: {wrong:?} is not found");
            found += 1;
        }
        assert!(found > 300, "{wrong:?} had {found} occasions only");
    }

    #[test]
    fn a_stale_read_is_found() {
        is_found(Wrong::StaleRead);
    }

    #[test]
    fn a_lost_update_is_found() {
        is_found(Wrong::LostUpdate);
    }

    #[test]
    fn a_double_append_is_found() {
        is_found(Wrong::DoubleAppend);
    }

    /// Whether some order explains all answers: the store is asked itself.
    fn explains(store: &Store, left: &[&Drawn]) -> bool {
        if left.is_empty() {
            return true;
        }
        (0..left.len()).any(|next| {
            let mut rest = left.to_vec();
            let it = rest.remove(next);
            let mut store = store.clone();
            let done = store.execute(&it.kind);
            rest.iter().all(|other| other.ended >= it.begun)
                && it.verdict == Some(Verdict::Done(done))
                && explains(&store, &rest)
        })
    }

    /// Small histories in which answers have been changed for those of others, some of which are right
    /// all the same.
    #[test]
    fn the_same_is_found_as_by_trying_every_order() {
        let mut right: BTreeMap<bool, u64> = BTreeMap::new();
        for seed in 0..3_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let Some(mut operations) = draw(&mut rng, 5, false, Wrong::Nothing) else { continue };
            if seed % 2 == 0 {
                let (one, other) = (rng.random_range(0..6), rng.random_range(0..6));
                let verdict = operations[one].verdict.clone();
                operations[one].verdict = operations[other].verdict.clone();
                operations[other].verdict = verdict;
            }
            let all: Vec<&Drawn> = operations.iter().collect();
            let explained = explains(&Store::default(), &all);
            let judged = judge(&operations);
            assert_eq!(judged.is_ok(), explained, "seed {seed}: {judged:?}\n{operations:#?}");
            *right.entry(explained).or_default() += 1;
        }
        assert!(right.values().all(|times| *times > 300), "{right:?}");
    }
}
