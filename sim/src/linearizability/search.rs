//! The search: every way in which what has ended so far can have happened.

use std::collections::{BTreeMap, BTreeSet};

use super::{Model, OperationId};

/// An operation that may happen now.
pub(super) struct Open<M: Model> {
    pub(super) operation: M::Operation,
    /// It has an answer, so that it must have happened when that arrives.
    pub(super) answered: bool,
}

/// One way in which it can have happened.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way<S> {
    pub(super) state: S,
    /// Those of the open operations that have happened.
    done: BTreeSet<OperationId>,
    /// The last of them, if it has no answer and nothing has made use of it yet.
    unused: Option<OperationId>,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// There is a way for it.
    Explained,
    /// There is none.
    Stuck,
    /// So many steps were not enough to tell.
    Undecided,
}

/// Keeps: no way has done an operation that is not open.
pub(super) struct Search<M: Model> {
    pub(super) open: BTreeMap<OperationId, Open<M>>,
    ways: BTreeSet<Way<M::State>>,
}

impl<M: Model> Clone for Open<M> {
    fn clone(&self) -> Self {
        Self { operation: self.operation.clone(), answered: self.answered }
    }
}

impl<M: Model> Clone for Search<M> {
    fn clone(&self) -> Self {
        Self { open: self.open.clone(), ways: self.ways.clone() }
    }
}

impl<M: Model> Search<M> {
    pub(super) fn new(state: M::State) -> Self {
        let ways = BTreeSet::from([Way { state, done: BTreeSet::new(), unused: None }]);
        Self { open: BTreeMap::new(), ways }
    }

    /// The states in which the object may be.
    pub(super) fn states(&self) -> BTreeSet<&M::State> {
        self.ways.iter().map(|way| &way.state).collect()
    }

    pub(super) fn begin(&mut self, id: OperationId, open: Open<M>) {
        self.open.insert(id, open);
    }

    /// An answer arrives: its operation has happened by now.
    pub(super) fn end(&mut self, id: OperationId, steps_max: u64) -> Answer {
        let mut ahead: Vec<Way<M::State>> = self.ways.iter().cloned().collect();
        let (mut seen, mut ended) = (BTreeSet::new(), BTreeSet::new());
        let mut steps = 0;
        while let Some(mut way) = ahead.pop() {
            self.read_at_once(&mut way);
            if way.done.contains(&id) {
                ended.insert(Way { unused: None, ..way });
                continue;
            }
            for (&next, open) in self.open.iter().filter(|(next, _)| !way.done.contains(next)) {
                steps += 1;
                // What has no answer may wait until something makes use of it.
                if !self.is_of_use(&way, &open.operation) {
                    continue;
                }
                let Some(state) = M::step(&way.state, &open.operation) else { continue };
                let mut done = way.done.clone();
                done.insert(next);
                let way = Way { state, done, unused: (!open.answered).then_some(next) };
                if !self.is_lost(&way) && seen.insert(way.clone()) {
                    ahead.push(way);
                }
            }
            if steps > steps_max {
                return Answer::Undecided;
            }
        }
        if ended.is_empty() {
            return Answer::Stuck;
        }
        self.ways = ended;
        self.forget(id);
        self.forget_what_all_have_done();
        Answer::Explained
    }

    /// A read that is right as things are may as well happen at once: it takes no other way away.
    fn read_at_once(&self, way: &mut Way<M::State>) {
        for (&id, open) in &self.open {
            if open.answered
                && M::only_reads(&open.operation)
                && !way.done.contains(&id)
                && M::step(&way.state, &open.operation).is_some_and(|state| state == way.state)
            {
                if self.is_of_use(way, &open.operation) {
                    way.unused = None;
                }
                way.done.insert(id);
            }
        }
    }

    /// Whether an operation makes use of the one without an answer that has just happened, if it is
    /// for that to happen next.
    fn is_of_use(&self, way: &Way<M::State>, next: &M::Operation) -> bool {
        let unused = way.unused.and_then(|id| self.open.get(&id));
        unused.is_none_or(|unused| M::makes_use(next, &unused.operation))
    }

    /// Whether an operation that has an answer can't happen any more.
    fn is_lost(&self, way: &Way<M::State>) -> bool {
        self.open.iter().any(|(id, open)| {
            open.answered && !way.done.contains(id) && M::is_too_late(&way.state, &open.operation)
        })
    }

    /// An operation is over, as part of what has happened or as if it had never been.
    pub(super) fn forget(&mut self, id: OperationId) {
        self.open.remove(&id);
        let ways = std::mem::take(&mut self.ways).into_iter();
        self.ways = ways
            .map(|mut way| {
                way.done.remove(&id);
                way
            })
            .collect();
    }

    /// Of operations without an answer those are over that have happened in every way.
    fn forget_what_all_have_done(&mut self) {
        let unanswered = self.open.iter().filter(|(_, open)| !open.answered);
        let over = unanswered.filter(|(id, _)| self.ways.iter().all(|way| way.done.contains(id)));
        let over: Vec<OperationId> = over.map(|(&id, _)| id).collect();
        over.into_iter().for_each(|id| self.forget(id));
    }

    /// Takes out the operations without an answer that have happened in no way, and of which no
    /// open one has seen anything.
    pub(super) fn take_unseen(&mut self) -> Vec<(OperationId, M::Operation)> {
        let unanswered = self.open.iter().filter(|(_, open)| !open.answered);
        let unseen = unanswered.filter(|(id, open)| {
            let happened = self.ways.iter().any(|way| way.done.contains(id));
            !happened && !self.is_seen(&open.operation)
        });
        let unseen: Vec<OperationId> = unseen.map(|(&id, _)| id).collect();
        let taken = unseen.into_iter().filter_map(|id| Some((id, self.open.remove(&id)?)));
        taken.map(|(id, open)| (id, open.operation)).collect()
    }

    /// Whether an open operation has seen something of this one.
    pub(super) fn is_seen(&self, operation: &M::Operation) -> bool {
        let Some(mark) = M::leaves(operation) else { return false };
        self.open.values().any(|open| M::saw(&open.operation).any(|saw| saw == mark))
    }
}
