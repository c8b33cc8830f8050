//! What the clients of a group saw: when they asked, when they were answered, and what. From that
//! alone, without any knowledge of what members did, it is judged whether the registers behaved as
//! registers do ([`crate::linearizability`]).
//!
//! A client that has waited for so long as it has patience never hears the answer, and one whose
//! request got lost can't tell that from a lost answer: what became of a write is unknown then. A
//! write that was refused or rejected is none.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
};

use raft::Index;

use crate::{
    client::{PATIENCE_US, Reply},
    invariants::Violation,
    linearizability::{Checker, Finding, Model, OperationId},
    machine::{Answer, CommandId, REGISTERS},
};

/// What a history breaks whose clients saw what can't be.
pub const HISTORY: &str = "history";

/// What a client wants of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Write,
    Read,
}

/// What is known of a request.
#[derive(Debug)]
struct Asked {
    id: OperationId,
    register: u8,
    wish: Wish,
    at_us: u64,
    reply: Option<(u64, Reply)>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Asked(CommandId),
    Answered(CommandId),
}

/// What clients saw that has not been judged yet, and what has come out so far.
pub(crate) struct History {
    /// Nobody wants to know.
    ignored: bool,
    asked: BTreeMap<CommandId, Asked>,
    operations: OperationId,
    /// When requests were made and answered, in order.
    events: VecDeque<(u64, Event)>,
    registers: Vec<Checker<Register>>,
    /// How many operations with an answer were judged.
    pub(crate) judged: u64,
}

impl History {
    pub(crate) fn new(only: Option<&'static str>) -> Self {
        let nothing = Content { index: Index(0), value: Some(None) };
        Self {
            ignored: only.is_some_and(|only| only != HISTORY),
            asked: BTreeMap::new(),
            operations: 0,
            events: VecDeque::new(),
            registers: (0..REGISTERS).map(|_| Checker::new(nothing)).collect(),
            judged: 0,
        }
    }

    /// A client makes a request.
    pub(crate) fn ask(&mut self, at_us: u64, name: CommandId, register: u8, wish: Wish) {
        if self.ignored {
            return;
        }
        self.operations += 1;
        let id = self.operations;
        self.asked.insert(name, Asked { id, register, wish, at_us, reply: None });
        self.events.push_back((at_us, Event::Asked(name)));
    }

    /// A client hears an answer. Only the first counts.
    pub(crate) fn hear(&mut self, at_us: u64, name: CommandId, reply: &Reply) {
        let Some(asked) = self.asked.get_mut(&name) else { return };
        if asked.reply.is_some() || at_us >= asked.at_us + PATIENCE_US {
            return;
        }
        asked.reply = Some((at_us, reply.clone()));
        match reply {
            Reply::Done(_) | Reply::Read(_) => {
                self.events.push_back((at_us, Event::Answered(name)));
            }
            // It was never executed, or came to nothing: as if nobody had asked.
            Reply::Rejected | Reply::Refused { .. } => drop(self.asked.remove(&name)),
            Reply::Unknown => {}
            // No register is asked so.
            Reply::Applied(..)
            | Reply::Found(..)
            | Reply::Configured(..)
            | Reply::Configuration(..) => {}
        }
    }

    /// Judges what happened so long ago that no answer is to come any more.
    pub(crate) fn judge(&mut self, now_us: u64) -> Result<(), Violation> {
        while let Some(&(at_us, event)) = self.events.front()
            && at_us.saturating_add(PATIENCE_US) < now_us
        {
            self.events.pop_front();
            match event {
                Event::Asked(name) => self.begin(name),
                Event::Answered(name) => self.end(name)?,
            }
        }
        Ok(())
    }

    /// What was acknowledged may be lost from now on, as after a recovery from a lost majority: what
    /// clients saw before is judged, and says nothing of what they will see. Of what they have asked
    /// and not heard nothing is known.
    pub(crate) fn begin_anew(&mut self) -> Result<(), Violation> {
        self.judge(u64::MAX)?;
        let unknown = Content { index: Index(0), value: None };
        self.registers.iter_mut().for_each(|register| register.begin_anew(unknown));
        Ok(())
    }

    fn begin(&mut self, name: CommandId) {
        let Some(asked) = self.asked.get(&name) else { return };
        let &Asked { id, register, wish, at_us: begun_us, ref reply } = asked;
        let register = &mut self.registers[usize::from(register)];
        let operation = |ended_us, seen| Operation { name, begun_us, ended_us, seen };
        match (wish, reply) {
            (Wish::Write, &Some((ended_us, Reply::Done(index)))) => {
                register.begin(id, operation(Some(ended_us), Seen::Written(Some(index))));
            }
            (Wish::Read, &Some((ended_us, Reply::Read(answer)))) => {
                register.begin(id, operation(Some(ended_us), Seen::Read(answer)));
            }
            (Wish::Write, None | Some((_, Reply::Unknown))) => {
                register.begin_unanswered(id, operation(None, Seen::Written(None)));
                self.asked.remove(&name);
            }
            // Nobody knows what it would have read.
            (Wish::Read, _) | (Wish::Write, Some(_)) => {
                self.asked.remove(&name);
            }
        }
    }

    fn end(&mut self, name: CommandId) -> Result<(), Violation> {
        let Some(asked) = self.asked.remove(&name) else { return Ok(()) };
        self.judged += 1;
        let register = asked.register;
        self.registers[usize::from(register)].end(asked.id).map_err(|finding| {
            self.ignored = true;
            self.events.clear();
            let what = match finding {
                Finding::NotLinearizable(shown) => {
                    format!("what clients saw of register {register} can't be:\n{shown}")
                }
                Finding::Undecided(shown) => {
                    format!("what clients saw of register {register} was not judged:\n{shown}")
                }
            };
            Violation::new(HISTORY, what)
        })
    }
}

/// A register, as its clients see it: the lowest index up to which the log can have come, and what is
/// in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Content {
    index: Index,
    /// What was written last, if anything was; nobody knows, if it is not here.
    value: Option<Option<CommandId>>,
}

/// What a client did, and what it saw.
#[derive(Clone, Copy, Debug)]
struct Operation {
    name: CommandId,
    begun_us: u64,
    ended_us: Option<u64>,
    seen: Seen,
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    /// A write, and where in the log it was told to be.
    Written(Option<Index>),
    Read(Answer),
}

/// What a register is. The indexes that clients are told are part of it: they rise from one
/// operation to the next, but for reads of one state. A write whose index nobody was told has the next
/// one at the earliest.
struct Register;

impl Model for Register {
    type State = Content;
    type Operation = Operation;
    type Mark = CommandId;

    fn step(state: &Content, operation: &Operation) -> Option<Content> {
        match operation.seen {
            Seen::Written(told) => {
                let index = told.unwrap_or(state.index.next());
                let follows = index > state.index;
                follows.then_some(Content { index, value: Some(Some(operation.name)) })
            }
            Seen::Read(Answer { index, value }) => {
                let fits = index >= state.index && state.value.is_none_or(|it| it == value);
                fits.then_some(Content { index, value: Some(value) })
            }
        }
    }

    fn is_too_late(state: &Content, operation: &Operation) -> bool {
        match operation.seen {
            Seen::Written(told) => told.is_some_and(|index| index <= state.index),
            Seen::Read(answer) => answer.index < state.index,
        }
    }

    fn only_reads(operation: &Operation) -> bool {
        match operation.seen {
            Seen::Written(_) => false,
            Seen::Read(_) => true,
        }
    }

    fn leaves(operation: &Operation) -> Option<CommandId> {
        match operation.seen {
            Seen::Written(_) => Some(operation.name),
            Seen::Read(_) => None,
        }
    }

    fn saw(operation: &Operation) -> impl Iterator<Item = CommandId> {
        let value = match operation.seen {
            Seen::Written(_) => None,
            Seen::Read(answer) => answer.value,
        };
        value.into_iter()
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, value } = self;
        match value {
            Some(value) => write!(f, "{} as of {index}", Written(*value)),
            None => write!(f, "anything"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.ended_us {
            Some(ended_us) => write!(f, "{} to {}", Seconds(self.begun_us), Seconds(ended_us))?,
            None => write!(f, "from {} on", Seconds(self.begun_us))?,
        }
        match self.seen {
            Seen::Written(Some(index)) => write!(f, " {name} writes, at {index}"),
            Seen::Written(None) => write!(f, " {name} may write"),
            Seen::Read(Answer { index, value }) => {
                write!(f, " {name} reads {} as of {index}", Written(value))
            }
        }
    }
}

/// What was written to a register last.
struct Written(Option<CommandId>);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "{name}"),
            None => write!(f, "nothing"),
        }
    }
}

/// A moment, as the trace shows it.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const SECOND_US: u64 = 1_000_000;

    fn name(number: u64) -> CommandId {
        CommandId { client: 1, number }
    }

    fn read(index: u64, number: Option<u64>) -> Reply {
        Reply::Read(Answer { index: Index(index), value: number.map(name) })
    }

    /// Each request is the next of the client, one second after the one before, and is answered at
    /// once or so much later, or never.
    fn judge(requests: &[(Wish, Option<(u64, Reply)>)]) -> Result<u64, Violation> {
        let mut history = History::new(None);
        for (number, (wish, answer)) in (1..).zip(requests) {
            let at_us = number * SECOND_US;
            history.ask(at_us, name(number), 3, *wish);
            if let Some((later_us, reply)) = answer {
                history.hear(at_us + later_us, name(number), reply);
            }
        }
        history.judge(u64::MAX).map(|()| history.judged)
    }

    #[test]
    fn registers_are_registers() {
        let write = (Wish::Write, Some((10, Reply::Done(Index(5)))));
        assert_eq!(judge(&[write.clone(), (Wish::Read, Some((10, read(5, Some(1)))))]), Ok(2));
        assert_eq!(judge(&[write.clone(), (Wish::Read, Some((10, read(9, Some(1)))))]), Ok(2));
        let stale = judge(&[write.clone(), (Wish::Read, Some((10, read(5, None))))]);
        let what = stale.expect_err("it read what was overwritten").what;
        assert_eq!(
            what,
            "what clients saw of register 3 can't be:\n  at first nothing as of 0\n  \
             1.000000 to 1.000010 c1.1 writes, at 5\n  \
             2.000000 to 2.000010 c1.2 reads nothing as of 5"
        );
    }

    /// A lost request, a lost answer and one that comes too late are the same to a client.
    #[test]
    fn what_is_not_heard_is_unknown() {
        let done = Reply::Done(Index(5));
        for answer in [None, Some((2 * SECOND_US, done)), Some((10, Reply::Unknown))] {
            let write = (Wish::Write, answer);
            assert_eq!(judge(&[write.clone(), (Wish::Read, Some((10, read(9, Some(1)))))]), Ok(1));
            assert_eq!(judge(&[write.clone(), (Wish::Read, Some((10, read(9, None))))]), Ok(1));
        }
    }

    #[test]
    fn what_was_never_done_is_never_read() {
        for reply in [Reply::Rejected, Reply::Refused { leader: None }] {
            let write = (Wish::Write, Some((10, reply)));
            assert_eq!(judge(&[write.clone(), (Wish::Read, Some((10, read(9, None))))]), Ok(1));
            assert!(judge(&[write.clone(), (Wish::Read, Some((10, read(9, Some(1)))))]).is_err());
        }
    }

    /// Many writes of which nobody knows, each seen by one of many reads, all at the same time: if an
    /// unknown write were tried at any place, the search would never end.
    #[test]
    fn unknown_writes_happen_just_before_they_are_seen() {
        let mut history = History::new(None);
        for number in 1..=40 {
            history.ask(number, name(number), 0, Wish::Write);
            history.ask(number, name(100 + number), 0, Wish::Read);
        }
        for number in 1..=40 {
            history.hear(1_000, name(100 + number), &read(number, Some(number)));
        }
        assert_eq!(history.judge(u64::MAX), Ok(()));
        assert_eq!(history.judged, 40);
    }

    /// What was acknowledged is lost, or is not; what is written from then on is there.
    #[test]
    fn after_a_loss_a_history_begins_anew() {
        for kept in [1, 2] {
            let mut history = History::new(None);
            let see = |history: &mut History, number, wish, reply| {
                history.ask(number * SECOND_US, name(number), 0, wish);
                history.hear(number * SECOND_US + 10, name(number), &reply);
            };
            see(&mut history, 1, Wish::Write, Reply::Done(Index(5)));
            see(&mut history, 2, Wish::Write, Reply::Done(Index(6)));
            history.ask(3 * SECOND_US, name(3), 0, Wish::Write);
            assert_eq!(history.begin_anew(), Ok(()));
            see(&mut history, 4, Wish::Read, read(5, Some(kept)));
            see(&mut history, 5, Wish::Write, Reply::Done(Index(6)));
            see(&mut history, 6, Wish::Read, read(6, Some(5)));
            assert_eq!(history.judge(u64::MAX), Ok(()));
            see(&mut history, 7, Wish::Read, read(6, Some(kept)));
            assert!(history.judge(u64::MAX).is_err());
        }
    }

    /// Also where the values alone would do, an index must not be that of another entry.
    #[test]
    fn indexes_rise() {
        let written = |index| (Wish::Write, Some((10, Reply::Done(Index(index)))));
        assert_eq!(judge(&[written(5), written(6)]), Ok(2));
        assert!(judge(&[written(5), written(5)]).is_err());
        let before = (Wish::Read, Some((10, read(4, Some(1)))));
        assert!(judge(&[written(5), before.clone()]).is_err());
    }

    /// Two writes never have one index, also where nobody was told that of one of them.
    #[test]
    fn unanswered_writes_have_indexes_of_their_own() {
        let unanswered = (Wish::Write, None);
        let written = (Wish::Write, Some((10, Reply::Done(Index(5)))));
        let reads = |index, number| (Wish::Read, Some((10, read(index, Some(number)))));
        assert_eq!(judge(&[unanswered.clone(), written.clone(), reads(6, 1)]), Ok(2));
        assert!(judge(&[unanswered.clone(), written.clone(), reads(5, 1)]).is_err());
        assert!(
            judge(&[unanswered.clone(), unanswered.clone(), reads(5, 1), reads(5, 2)]).is_err()
        );
        assert!(judge(&[unanswered.clone(), reads(0, 1)]).is_err());
    }

    /// An operation, and the places of its two ends; the end of time if it has no answer.
    type Line = (u64, u64, Operation);

    /// A history of a real register whose answers are true, but for one perhaps.
    fn draw(rng: &mut StdRng) -> Vec<Line> {
        let (mut index, mut value) = (Index(0), None);
        let mut lines = Vec::new();
        for number in 1..=rng.random_range(1..=6) {
            let happens: u64 = 10 * number;
            let (begins, ends) = (
                happens.saturating_sub(rng.random_range(0..25)),
                happens + rng.random_range(0..25),
            );
            // Other registers have entries, too.
            index.0 += rng.random_range(0..2);
            let answered = rng.random_range(0..3) > 0;
            let seen = if rng.random_range(0..2) == 0 {
                index = index.next();
                value = Some(name(number));
                Seen::Written(answered.then_some(index))
            } else {
                Seen::Read(Answer { index, value })
            };
            let answered = answered || matches!(seen, Seen::Read(_));
            let ended_us = answered.then_some(ends);
            let operation = Operation { name: name(number), begun_us: begins, ended_us, seen };
            lines.push((begins, ended_us.unwrap_or(u64::MAX), operation));
        }
        let spoiled = rng.random_range(0..lines.len());
        if let Seen::Written(Some(index)) | Seen::Read(Answer { index, .. }) =
            &mut lines[spoiled].2.seen
        {
            index.0 = (index.0 + rng.random_range(0..3)).saturating_sub(1);
        }
        lines
    }

    /// Whether some order explains it, with indexes that rise: from each index before, an operation
    /// leads to one that it may have.
    fn brute_force(index: u64, value: Option<CommandId>, left: &[Line]) -> bool {
        if left.iter().all(|line| line.1 == u64::MAX) {
            return true;
        }
        (0..left.len()).any(|next| {
            let mut rest = left.to_vec();
            let (begins, _, operation) = rest.remove(next);
            let written = Some(operation.name);
            rest.iter().all(|other| other.1 >= begins)
                && match operation.seen {
                    Seen::Written(None) => {
                        (index + 1..20).any(|index| brute_force(index, written, &rest))
                    }
                    Seen::Written(Some(told)) => {
                        told.0 > index && brute_force(told.0, written, &rest)
                    }
                    Seen::Read(saw) => {
                        saw.index.0 >= index
                            && saw.value == value
                            && brute_force(saw.index.0, value, &rest)
                    }
                }
        })
    }

    fn is_linearizable(lines: &[Line]) -> bool {
        let mut checker = Checker::<Register>::new(Content { index: Index(0), value: Some(None) });
        for at in 0..=100 {
            for (id, &(_, ends, operation)) in (0..).zip(lines).filter(|it| it.1.0 == at) {
                match ends {
                    u64::MAX => checker.begin_unanswered(id, operation),
                    _ => checker.begin(id, operation),
                }
            }
            for (id, _) in (0..).zip(lines).filter(|it| it.1.1 == at) {
                if checker.end(id).is_err() {
                    return false;
                }
            }
        }
        true
    }

    #[test]
    fn every_tiny_history_of_a_register_is_judged_as_by_all_orders() {
        let mut rng = StdRng::seed_from_u64(5);
        let (mut right, mut wrong) = (0, 0);
        for _ in 0..3_000 {
            let lines = draw(&mut rng);
            let linearizable = brute_force(0, None, &lines);
            assert_eq!(is_linearizable(&lines), linearizable, "{lines:?}");
            *(if linearizable { &mut right } else { &mut wrong }) += 1;
        }
        assert!(right > 300 && wrong > 300, "{right} and {wrong} prove little");
    }
}
