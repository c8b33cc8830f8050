//! Judges the history of one object, event by event, and shows what is wrong with it in as few
//! operations as it takes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Model, OperationId,
    search::{Answer, Open, Search},
};

/// How many steps a search for one answer may take.
const STEPS_MAX: u64 = 1_000_000;
/// How many events a stretch has: a finding is told from the last two.
const STRETCH_EVENTS: usize = 300;

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It can't have happened one operation after the other. These few operations show it.
    NotLinearizable(String),
    /// Nobody knows: the search was given up. These operations were open.
    Undecided(String),
}

/// Something that was seen of an operation.
struct Event<M: Model> {
    id: OperationId,
    what: What<M>,
}

enum What<M: Model> {
    Begins(Open<M>),
    Ends,
}

/// Judges one object.
pub struct Checker<M: Model> {
    search: Search<M>,
    /// Operations without an answer of which nobody has seen anything.
    unseen: BTreeMap<(M::Mark, OperationId), M::Operation>,
    /// The search as it was before `recent`.
    before: Search<M>,
    recent: Vec<Event<M>>,
    /// The search as it was in the middle of `recent`, and where that is.
    between: (usize, Search<M>),
}

impl<M: Model> Checker<M> {
    /// An object in this state.
    pub fn new(state: M::State) -> Self {
        let search = Search::new(state);
        Self {
            unseen: BTreeMap::new(),
            before: search.clone(),
            recent: Vec::new(),
            between: (0, search.clone()),
            search,
        }
    }

    /// An operation begins whose answer, which comes later, is known already.
    pub fn begin(&mut self, id: OperationId, operation: M::Operation) {
        self.wake(&operation);
        self.open(id, Open { operation, answered: true });
    }

    /// An operation begins that never has an answer.
    pub fn begin_unanswered(&mut self, id: OperationId, operation: M::Operation) {
        if self.search.is_seen(&operation) {
            self.wake(&operation);
            self.open(id, Open { operation, answered: false });
        } else if let Some(mark) = M::leaves(&operation) {
            self.unseen.insert((mark, id), operation);
        }
    }

    /// The answer of an operation arrives.
    ///
    /// # Errors
    /// What is wrong with the history up to here. What is told of it afterwards means nothing.
    pub fn end(&mut self, id: OperationId) -> Result<(), Finding> {
        self.recent.push(Event { id, what: What::Ends });
        match self.search.end(id, STEPS_MAX) {
            Answer::Explained => {}
            Answer::Stuck => return Err(Finding::NotLinearizable(self.shortest())),
            Answer::Undecided => {
                let open = self.search.open.values().map(|open| &open.operation);
                return Err(Finding::Undecided(tell::<M>(&self.search, open)));
            }
        }
        for (id, operation) in self.search.take_unseen() {
            if let Some(mark) = M::leaves(&operation) {
                self.unseen.insert((mark, id), operation);
            }
        }
        if self.recent.len() - self.between.0 >= STRETCH_EVENTS {
            self.recent.drain(..self.between.0);
            let between = (self.recent.len(), self.search.clone());
            self.before = std::mem::replace(&mut self.between, between).1;
        }
        Ok(())
    }

    /// Whatever has happened is gone, and the object is in this state. Operations without an answer
    /// may still happen.
    pub fn begin_anew(&mut self, state: M::State) {
        let unseen = std::mem::take(&mut self.unseen);
        *self = Self { unseen, ..Self::new(state) };
    }

    /// What an operation has seen may have happened, if it had begun, and so may what it takes for
    /// that.
    fn wake(&mut self, operation: &M::Operation) {
        let mut marks: Vec<M::Mark> = M::saw(operation).collect();
        while let Some(mark) = marks.pop() {
            let of_mark = (mark.clone(), 0)..=(mark, OperationId::MAX);
            let woken: Vec<_> = self.unseen.extract_if(of_mark, |_, _| true).collect();
            for ((_, id), operation) in woken {
                marks.extend(M::saw(&operation));
                self.open(id, Open { operation, answered: false });
            }
        }
    }

    fn open(&mut self, id: OperationId, open: Open<M>) {
        self.search.begin(id, open.clone());
        self.recent.push(Event { id, what: What::Begins(open) });
    }

    /// What was found, in as few operations as it takes: one after the other is left out that is
    /// not needed. What others have seen stays, or they would be wrong for another reason.
    fn shortest(&self) -> String {
        let mut operations: BTreeMap<OperationId, M::Operation> = BTreeMap::new();
        for (&id, open) in &self.before.open {
            operations.insert(id, open.operation.clone());
        }
        for event in &self.recent {
            if let What::Begins(open) = &event.what {
                operations.insert(event.id, open.operation.clone());
            }
        }
        let mut left_out = BTreeSet::new();
        loop {
            let before = left_out.len();
            for id in operations.keys().copied().collect::<Vec<_>>() {
                left_out.insert(id);
                let operation = operations.remove(&id);
                let Some(operation) = operation else { continue };
                let mark = M::leaves(&operation);
                let seen = operations.values().flat_map(M::saw).any(|saw| Some(saw) == mark);
                let alone = operations.values().all(|other| M::leaves(other) != mark);
                if (seen && alone) || !self.is_stuck_without(&left_out) {
                    left_out.remove(&id);
                    operations.insert(id, operation);
                }
            }
            if left_out.len() == before {
                return tell::<M>(&self.before, operations.values());
            }
        }
    }

    fn is_stuck_without(&self, left_out: &BTreeSet<OperationId>) -> bool {
        let mut search = self.before.clone();
        left_out.iter().for_each(|&id| search.forget(id));
        for event in self.recent.iter().filter(|event| !left_out.contains(&event.id)) {
            match &event.what {
                What::Begins(open) => search.begin(event.id, open.clone()),
                What::Ends => match search.end(event.id, STEPS_MAX) {
                    Answer::Explained => {}
                    Answer::Stuck => return true,
                    Answer::Undecided => return false,
                },
            }
        }
        false
    }
}

/// One line for how the object was at first, and one for each operation.
fn tell<'a, M: Model>(
    first: &Search<M>,
    operations: impl Iterator<Item = &'a M::Operation>,
) -> String
where
    M::Operation: 'a,
{
    let states: Vec<String> = first.states().iter().map(|state| state.to_string()).collect();
    let first = format!("  at first {}", states.join(" or "));
    let operations = operations.map(|operation| format!("  {operation}"));
    std::iter::once(first).chain(operations).collect::<Vec<_>>().join("\n")
}
