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
