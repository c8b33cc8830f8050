//! What the clerks of a key/value store saw: what they wanted, when, and what they were told in the
//! end (K3). From that alone, without any knowledge of what members did, it is judged whether each
//! key behaved as one ([`crate::linearizability`]).
//!
//! Clerks are told versions and revisions, and these are witnesses: of two changes of a key the one
//! with the lower revision was first, a change makes the version one more, and whoever finds two
//! more knows of one that nobody was told of. Whoever finds a value finds the tokens of all that had
//! a part in it, and so which version each made. An operation without an answer may have happened at
//! any time since it was asked for, once, or never. If anybody has read what it wrote, it is put where
//! that was; the others are only counted: where versions have gone on and nobody knows why, so many of
//! them have happened, which must have been asked for by then. That of a counted write nobody checks
//! whether its condition held, is S1's and K1's part. A history is judged when a run is over, since
//! only then it is known what was read.

mod key;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kvd::outcome::Outcome;

use crate::{
    invariants::Violation,
    linearizability::{Checker, Finding, OperationId},
    operation::{Done, Kind, Operation, OperationName, Verdict},
};
use key::{Content, Key, Made, Mark, Recorded, Unread};

/// What a history breaks whose clerks saw what can't be.
pub const KV_HISTORY: &str = "K3";

/// What is known of an operation.
#[derive(Debug)]
struct Asked {
    operation: Operation,
    begun_us: u64,
    /// When it was over, and how.
    ended: Option<(u64, Verdict)>,
}

/// What clerks saw.
#[derive(Debug)]
pub struct KvHistory {
    /// Nobody wants to know.
    ignored: bool,
    asked: BTreeMap<OperationName, Asked>,
    /// How many operations with an answer were judged.
    pub judged: u64,
}

impl KvHistory {
    /// One of which nothing is known yet; it is looked at unless another invariant alone is.
    pub fn new(only: Option<&'static str>) -> Self {
        let ignored = only.is_some_and(|only| only != KV_HISTORY);
        Self { ignored, asked: BTreeMap::new(), judged: 0 }
    }

    /// A clerk wants something from now on.
    pub fn begin(&mut self, now_us: u64, name: OperationName, operation: Operation) {
        if !self.ignored && operation.is_of_one_key() {
            self.asked.insert(name, Asked { operation, begun_us: now_us, ended: None });
        }
    }

    /// What a clerk knows of it in the end.
    pub fn end(&mut self, now_us: u64, name: OperationName, verdict: Verdict) {
        if let Some(asked) = self.asked.get_mut(&name) {
            asked.ended = Some((now_us, verdict));
        }
    }

    /// All keys of which it tells.
    pub(crate) fn keys(&self) -> BTreeSet<Bytes> {
        self.asked.values().map(|asked| asked.operation.key.clone()).collect()
    }

    /// Judges all of it.
    ///
    /// # Errors
    /// `K3`, for what can't be, and for what could not be decided.
    pub fn judge(&mut self) -> Result<(), Violation> {
        let mut keys: BTreeMap<Bytes, Vec<(OperationName, Asked)>> = BTreeMap::new();
        for (name, asked) in std::mem::take(&mut self.asked) {
            keys.entry(asked.operation.key.clone()).or_default().push((name, asked));
        }
        for (key, asked) in keys {
            self.judged += judge_key(asked).map_err(|finding| {
                let key = key.escape_ascii();
                let what = match finding {
                    Finding::NotLinearizable(shown) => {
                        format!("what clerks saw of {key} can't be:\n{shown}")
                    }
                    Finding::Undecided(shown) => {
                        format!("what clerks saw of {key} was not judged:\n{shown}")
                    }
                };
                Violation::new(KV_HISTORY, what)
            })?;
        }
        Ok(())
    }
}

/// Judges what was seen of one key. How many operations had an answer.
fn judge_key(asked: Vec<(OperationName, Asked)>) -> Result<u64, Finding> {
    let mut recorded: Vec<Recorded> =
        asked.into_iter().filter_map(|(name, asked)| record(name, asked)).collect();
    recorded.sort_by_key(|it| (it.begun_us, it.name));
    let mut made: BTreeMap<OperationName, Made> = BTreeMap::new();
    for (name, told) in recorded.iter().flat_map(Recorded::makers) {
        made.entry(name).and_modify(|made| *made = made.and(told)).or_insert(told);
    }
    let (mut recorded, unread): (Vec<Recorded>, Vec<Recorded>) =
        recorded.into_iter().partition(|it| it.seen.is_some() || made.contains_key(&it.name));
    let order = changes_by_revision(&recorded);
    let removals: Vec<Removal> = recorded.iter().chain(&unread).filter_map(Removal::of).collect();
    for it in &mut recorded {
        it.made = made.get(&it.name).copied();
        it.before = it.count_before(&unread);
        it.may_shrink = removals.iter().any(|removal| removal.may_precede(it));
        it.saw = it.marks(&order);
    }
    let mut events: Vec<(u64, bool, OperationId)> = Vec::new();
    for (id, it) in (1..).zip(&recorded) {
        events.push((it.begun_us, false, id));
        events.extend(it.ended_us.map(|ended_us| (ended_us, true, id)));
    }
    // What ends when another begins may have happened after it.
    events.sort_unstable();
    let recorded: BTreeMap<OperationId, Arc<Recorded>> =
        (1..).zip(recorded.into_iter().map(Arc::new)).collect();
    let mut checker: Checker<Key> = Checker::new(Content::default());
    let mut judged = 0;
    for (_, ends, id) in events {
        let operation = &recorded[&id];
        if ends {
            checker.end(id).map_err(|finding| match finding {
                Finding::NotLinearizable(shown) => {
                    Finding::NotLinearizable(format!("{shown}\n  found with {operation}"))
                }
                Finding::Undecided(shown) => Finding::Undecided(shown),
            })?;
            judged += 1;
        } else if operation.ended_us.is_some() {
            checker.begin(id, operation.clone());
        } else {
            checker.begin_unanswered(id, operation.clone());
        }
    }
    Ok(judged)
}

/// An operation, as far as anybody can ever tell that it was there.
fn record(name: OperationName, asked: Asked) -> Option<Recorded> {
    let Asked { operation, begun_us, ended } = asked;
    let (ended_us, seen) = match ended {
        Some((_, Verdict::Never)) => return None,
        Some((ended_us, Verdict::Done(done))) => (Some(ended_us), Some(done)),
        Some((_, Verdict::Unknown)) | None if operation.kind == Kind::Get => return None,
        Some((_, Verdict::Unknown)) | None => (None, None),
    };
    Some(Recorded {
        name,
        begun_us,
        ended_us,
        kind: operation.kind,
        seen,
        made: None,
        before: Unread::default(),
        may_shrink: false,
        saw: Vec::new(),
    })
}

/// Who made which change, where that was told.
fn changes_by_revision(recorded: &[Recorded]) -> BTreeMap<u64, OperationName> {
    recorded.iter().filter_map(|it| Some((it.changed_at()?, it.name))).collect()
}

/// A removal of the key, behind which versions begin anew.
struct Removal {
    begun_us: u64,
    ended_us: Option<u64>,
    revision: Option<u64>,
}

impl Removal {
    fn of(recorded: &Recorded) -> Option<Self> {
        let &Recorded { begun_us, ended_us, .. } = recorded;
        match (&recorded.kind, &recorded.seen) {
            (Kind::Delete, None) => Some(Self { begun_us, ended_us, revision: None }),
            (Kind::Delete, Some(Done::Executed(_, answered))) => match &answered.outcome {
                Outcome::Removed { written, .. } => {
                    Some(Self { begun_us, ended_us, revision: Some(written.revision.0) })
                }
                _ => None,
            },
            (Kind::Delete, Some(Done::Read(..) | Done::Claim(..)))
            | (
                Kind::Get
                | Kind::Put { .. }
                | Kind::Append { .. }
                | Kind::Command(_)
                | Kind::Claim(_),
                _,
            ) => None,
        }
    }

    /// Whether it can have come between another operation and what was before that.
    fn may_precede(&self, other: &Recorded) -> bool {
        let begun = other.ended_us.is_none_or(|ended_us| self.begun_us <= ended_us);
        let open = self.ended_us.is_none_or(|ended_us| ended_us >= other.begun_us);
        let earlier = match (self.revision, other.changed_at()) {
            (Some(revision), Some(changed_at)) => revision < changed_at,
            (None, _) | (_, None) => true,
        };
        begun && open && earlier
    }
}

impl Recorded {
    /// How many of those that nobody was told of, and whose values nobody read, can have come before.
    fn count_before(&self, unread: &[Self]) -> Unread {
        let known_us = self.ended_us.or(self.made.map(|made| made.known_us)).unwrap_or(u64::MAX);
        let begun = unread.iter().filter(|it| it.begun_us <= known_us);
        let (removals, changes): (Vec<&Self>, Vec<&Self>) =
            begun.partition(|it| it.kind == Kind::Delete);
        Unread { changes: changes.len() as u64, removals: removals.len() as u64 }
    }

    /// All that it has seen of others.
    fn marks(&self, order: &BTreeMap<u64, OperationName>) -> Vec<Mark> {
        let before = self.changed_at().and_then(|at| order.range(..at).next_back());
        let found = self.found_at().and_then(|at| order.get_key_value(&at));
        let tokens = [before, found].into_iter().flatten().map(|(_, name)| Mark::Token(*name));
        std::iter::once(Mark::Change).chain(tokens).collect()
    }
}
