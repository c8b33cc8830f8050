//! A key of a key/value store, as its clerks see it: what is in it, and what each operation does to
//! that.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use kvd::{
    command::Condition,
    outcome::{Answered, Header, Outcome, Pair, Written},
};

use crate::{
    linearizability::Model,
    operation::{Done, Kind, OperationName},
};

/// What is in a key, as far as its clerks can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Content {
    /// The lowest revision up to which the shard can have come.
    revision: u64,
    held: Option<Held>,
    /// How many operations that nobody was told of, and that nobody read, it took to get here.
    taken: Unread,
}

/// Operations that nobody was told of, and whose values nobody read, by their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unread {
    pub(super) changes: u64,
    pub(super) removals: u64,
}

/// A pair, as far as its clerks can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    /// None where it is of an operation that nobody was told of, and nobody ever read it.
    value: Option<Bytes>,
    version: u64,
    /// None where nobody was told.
    created: Option<u64>,
    modified: Option<u64>,
}

/// An operation that happened, or may have.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) name: OperationName,
    pub(super) begun_us: u64,
    pub(super) ended_us: Option<u64>,
    pub(super) kind: Kind,
    /// What its clerk was told; none: nothing.
    pub(super) seen: Option<Done>,
    /// What it made, if somebody has read what it wrote.
    pub(super) made: Option<Made>,
    /// How many others can have come before it that nobody knows of.
    pub(super) before: Unread,
    /// A removal may have come just before it, so that versions do not only rise.
    pub(super) may_shrink: bool,
    pub(super) saw: Vec<Mark>,
}

/// A version of a key, the revision at which the key came into being, and that of the version, where
/// they were told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Made {
    created: Option<u64>,
    version: u64,
    revision: Option<u64>,
    /// When somebody knew of it at the latest.
    pub(super) known_us: u64,
}

impl Made {
    /// All that two have told of the same.
    pub(super) fn and(self, other: Self) -> Self {
        let (created, revision) =
            (self.created.or(other.created), self.revision.or(other.revision));
        Self { created, revision, known_us: self.known_us.min(other.known_us), ..self }
    }
}

/// What operations leave for others to see.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// Another version, whoever made it.
    Change,
    /// The change that this operation made, as it was told.
    Token(OperationName),
}

impl Recorded {
    /// The revision that it made, if it was told one.
    pub(super) fn changed_at(&self) -> Option<u64> {
        self.written().map(|written| written.revision.0)
    }

    fn written(&self) -> Option<Written> {
        match self.seen.as_ref()? {
            Done::Read(..) | Done::Claim(..) => None,
            Done::Executed(_, answered) => match &answered.outcome {
                Outcome::Written(written)
                | Outcome::Appended { written, .. }
                | Outcome::Removed { written, .. } => Some(*written),
                _ => None,
            },
        }
    }

    /// The pair that it found, and whether with its value.
    fn found(&self) -> Option<(&Pair, bool)> {
        match self.seen.as_ref()? {
            Done::Read(_, pair) => Some((pair.as_ref()?, true)),
            Done::Claim(..) => None,
            Done::Executed(_, answered) => match &answered.outcome {
                Outcome::Mismatch(Some(pair)) | Outcome::Removed { pair, .. } => {
                    Some((pair, !answered.body_dropped))
                }
                _ => None,
            },
        }
    }

    /// The version that it came upon, 0 for none, where that follows from what it was told.
    fn version_before(&self) -> Option<u64> {
        if let Some(made) = self.made.filter(|_| self.seen.is_none()) {
            return Some(made.version - 1);
        }
        match self.seen.as_ref()? {
            Done::Read(_, pair) => Some(pair.as_ref().map_or(0, |pair| pair.version.0)),
            Done::Claim(..) => None,
            Done::Executed(_, answered) => match &answered.outcome {
                Outcome::Written(written) | Outcome::Appended { written, .. } => {
                    written.version.0.checked_sub(1)
                }
                Outcome::Mismatch(pair) => Some(pair.as_ref().map_or(0, |pair| pair.version.0)),
                Outcome::Removed { pair, .. } => Some(pair.version.0),
                Outcome::Absent => Some(0),
                _ => None,
            },
        }
    }

    /// When the key came into being that it left, where that was told.
    fn created(&self) -> Option<u64> {
        let found = self.found().map(|(pair, _)| pair.create_revision.0);
        let first = self.written().filter(|written| written.version.0 == 1);
        let made = self.made.and_then(|made| made.created);
        found.or(first.map(|written| written.revision.0)).or(made)
    }

    /// The revision of the change that it found.
    pub(super) fn found_at(&self) -> Option<u64> {
        self.found().map(|(pair, _)| pair.mod_revision.0)
    }

    /// Those that had a part in the value that it found, and what each made: every version adds a
    /// token or begins anew with one.
    pub(super) fn makers(&self) -> Vec<(OperationName, Made)> {
        let (value, version, created, modified) = match (self.found(), &self.seen) {
            (Some((pair, true)), _) => {
                let (created, modified) = (pair.create_revision.0, pair.mod_revision.0);
                (&pair.value, pair.version.0, Some(created), Some(modified))
            }
            (None, Some(Done::Executed(_, answered))) if !answered.body_dropped => {
                match &answered.outcome {
                    Outcome::Appended { written, old } => (old, written.version.0 - 1, None, None),
                    _ => return Vec::new(),
                }
            }
            (Some((_, false)) | None, _) => return Vec::new(),
        };
        let tokens: Vec<Option<OperationName>> = OperationName::of_value(value).collect();
        let versions = (1..=version).rev();
        let made = tokens.into_iter().rev().zip(versions);
        let (last, known_us) = (version, self.ended_us.unwrap_or(u64::MAX));
        made.filter_map(|(name, version)| {
            let revision = match version {
                // Whatever made the key made its first version.
                1 => created,
                _ if version == last => modified,
                _ => None,
            };
            Some((name?, Made { created, version, revision, known_us }))
        })
        .collect()
    }
}

impl Content {
    fn version(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.version)
    }

    /// Its value, as far as it is known; empty where there is none.
    fn value(&self) -> Option<Bytes> {
        match &self.held {
            None => Some(Bytes::new()),
            Some(held) => held.value.clone(),
        }
    }

    /// Whether a pair that was found can't be there any more.
    fn is_past(&self, pair: &Pair) -> bool {
        let held = self.held.as_ref();
        let of_it = held.is_some_and(|held| {
            held.created.is_none_or(|created| created == pair.create_revision.0)
        });
        if of_it {
            let known = held.is_some_and(|held| held.created.is_some());
            known && self.version() > pair.version.0
        } else {
            self.revision >= pair.create_revision.0
        }
    }

    /// Whether a condition may hold.
    fn may_satisfy(&self, condition: Condition) -> bool {
        match (condition, &self.held) {
            (Condition::Always, _) => true,
            (Condition::Version(version), _) => version.0 == self.version(),
            (Condition::ModRevision(revision), None) => revision.0 == 0,
            (Condition::ModRevision(revision), Some(held)) => {
                held.modified.is_none_or(|modified| modified == revision.0)
            }
        }
    }

    /// Whether a condition may fail.
    fn may_fail(&self, condition: Condition) -> bool {
        let unknown = match (condition, &self.held) {
            (Condition::ModRevision(_), Some(held)) => held.modified.is_none(),
            (Condition::Always | Condition::Version(_) | Condition::ModRevision(_), _) => false,
        };
        unknown || !self.may_satisfy(condition)
    }

    /// What is there after a write at this revision; none: nobody was told which.
    fn written(&self, value: Option<Bytes>, revision: Option<u64>) -> Self {
        let created = match &self.held {
            Some(held) => held.created,
            None => revision,
        };
        let held = Held { value, version: self.version() + 1, created, modified: revision };
        let revision = revision.unwrap_or(self.revision + 1);
        Self { revision, held: Some(held), ..self.clone() }
    }

    /// The same, if the write was told what it did.
    fn written_as(&self, value: Option<Bytes>, told: Written) -> Option<Self> {
        let fits = told.revision.0 > self.revision && told.version.0 == self.version() + 1;
        fits.then(|| self.written(value, Some(told.revision.0)))
    }

    /// What is known of what is there, if it is what was found.
    fn find(&self, found: Option<&Pair>, with_value: bool) -> Option<Self> {
        let (held, pair) = match (&self.held, found) {
            (None, None) => return Some(self.clone()),
            (None, Some(_)) | (Some(_), None) => return None,
            (Some(held), Some(pair)) => (held, pair),
        };
        let Pair { value, version, create_revision, mod_revision, lease: _ } = pair;
        let fits = held.version == version.0
            && (!with_value || held.value.as_ref() == Some(value))
            && held.created.is_none_or(|created| created == create_revision.0)
            && held.modified.is_none_or(|modified| modified == mod_revision.0);
        let (created, modified) = (Some(create_revision.0), Some(mod_revision.0));
        let revision = self.revision.max(mod_revision.0);
        let held = Held { created, modified, ..held.clone() };
        fits.then(|| Self { revision, held: Some(held), ..self.clone() })
    }

    /// What is known when the shard was found to have come so far.
    fn come_to(self, revision: u64) -> Option<Self> {
        (revision >= self.revision).then_some(Self { revision, ..self })
    }

    fn removed(&self, revision: u64) -> Self {
        Self { revision, held: None, ..self.clone() }
    }

    /// What is there if so many that nobody knows of have happened that the key has come to this
    /// version: going on from its own, or beginning anew after a removal. At least so many: what
    /// nobody knows may have been more.
    fn bridged(&self, wanted: u64, over_a_removal: bool, before: Unread) -> Option<Self> {
        let (changes, removals) = match (&self.held, over_a_removal) {
            (None, true) => return None,
            (_, false) => (wanted.checked_sub(self.version())?, 0),
            (Some(_), true) => (wanted, 1),
        };
        let taken = Unread {
            changes: self.taken.changes + changes,
            removals: self.taken.removals + removals,
        };
        let enough = taken.changes <= before.changes && taken.removals <= before.removals;
        if changes + removals == 0 || !enough || (wanted == 0 && !over_a_removal) {
            return None;
        }
        let created = self.held.as_ref().and_then(|held| held.created);
        let created = created.filter(|_| !over_a_removal);
        let held = Held { value: None, version: wanted, created, modified: None };
        let held = (wanted > 0).then_some(held);
        Some(Self { revision: self.revision + changes + removals, held, taken })
    }

    fn appended(&self, value: &[u8]) -> Option<Bytes> {
        Some([&self.value()?[..], value].concat().into())
    }
}

/// What a key is.
pub(super) struct Key;

impl Key {
    /// What an operation does if nothing that nobody knows of comes before it.
    fn happen_here(content: &Content, operation: &Recorded) -> Option<Content> {
        match &operation.seen {
            None => Self::happen(content, operation),
            // Of locks nothing is judged here.
            Some(Done::Claim(..)) => None,
            Some(Done::Read(header, found)) => {
                let fits = operation.kind == Kind::Get;
                fits.then(|| content.find(found.as_ref(), true))??.come_to(header.revision.0)
            }
            Some(Done::Executed(header, answered)) => {
                Self::answer(content, &operation.kind, header, answered)
            }
        }
    }

    /// What an operation does of which nobody was told anything.
    fn happen(content: &Content, operation: &Recorded) -> Option<Content> {
        let value = match &operation.kind {
            Kind::Get => return None,
            Kind::Put { value, condition } => {
                content.may_satisfy(*condition).then(|| Some(value.clone()))?
            }
            Kind::Append { value, .. } => content.appended(value),
            Kind::Delete | Kind::Command(_) | Kind::Claim(_) => return None,
        };
        let Made { created, version, revision, .. } = operation.made?;
        if revision.is_some_and(|revision| revision <= content.revision) {
            return None;
        }
        let mut content = content.written(value, revision);
        let held = content.held.as_mut()?;
        let alike = held.created.is_none() || created.is_none() || held.created == created;
        held.created = held.created.or(created);
        (held.version == version && alike).then_some(content)
    }

    /// What an operation does that was answered so.
    fn answer(
        content: &Content,
        kind: &Kind,
        header: &Header,
        answered: &Answered,
    ) -> Option<Content> {
        let with_value = !answered.body_dropped;
        // A kept reply comes with a header of its own time.
        let as_then = |content: Content| match answered.duplicate {
            true => Some(content),
            false => content.come_to(header.revision.0),
        };
        match (kind, &answered.outcome) {
            (Kind::Put { value, condition }, Outcome::Written(told)) => {
                let holds = content.may_satisfy(*condition);
                holds.then(|| content.written_as(Some(value.clone()), *told))?
            }
            (Kind::Put { condition, .. }, Outcome::Mismatch(found)) => {
                let fails = content.may_fail(*condition);
                fails.then(|| content.find(found.as_ref(), with_value))?.and_then(as_then)
            }
            (Kind::Append { value, .. }, Outcome::Appended { written, old }) => {
                let fits = !with_value || content.value().as_ref() == Some(old);
                fits.then(|| content.written_as(content.appended(value), *written))?
            }
            (Kind::Append { value, .. }, Outcome::TooLarge { bytes, .. }) => {
                let whole = content.appended(value);
                let fits = whole.is_none_or(|whole| whole.len() as u64 == *bytes);
                fits.then(|| content.clone()).and_then(as_then)
            }
            (Kind::Delete, Outcome::Removed { written, pair }) => {
                content.find(Some(pair), with_value)?;
                let revision = written.revision.0;
                (revision > content.revision).then(|| content.removed(revision))
            }
            (Kind::Delete, Outcome::Absent) => {
                let absent = content.held.is_none();
                absent.then(|| content.clone()).and_then(as_then)
            }
            // That answers something else.
            (
                Kind::Get
                | Kind::Put { .. }
                | Kind::Append { .. }
                | Kind::Delete
                | Kind::Command(_)
                | Kind::Claim(_),
                _,
            ) => None,
        }
    }
}

impl Model for Key {
    type State = Content;
    type Operation = Arc<Recorded>;
    type Mark = Mark;

    fn step(content: &Content, operation: &Arc<Recorded>) -> Option<Content> {
        let Some(version) = operation.version_before() else {
            // Nobody was told of what it was too long for.
            let any = operation.before.changes > content.taken.changes;
            let here = Self::happen_here(content, operation);
            return here.or_else(|| any.then(|| content.clone()));
        };
        let bridged = |over_a_removal| content.bridged(version, over_a_removal, operation.before);
        let happens = |content: Content| Self::happen_here(&content, operation);
        let mut next = Self::happen_here(content, operation)
            .or_else(|| bridged(false).and_then(happens))
            .or_else(|| bridged(true).and_then(happens))?;
        let may_be_anew = operation.before.removals > content.taken.removals;
        if may_be_anew && let Some(held) = &mut next.held {
            // Unless it was told, since it may have been removed and written so often all the same.
            held.created = operation.created();
        }
        Some(next)
    }

    fn is_too_late(content: &Content, operation: &Arc<Recorded>) -> bool {
        if let Some((pair, _)) = operation.found()
            && content.is_past(pair)
        {
            return true;
        }
        if let Some(written) = operation.written() {
            let surpassed = written.version.0 <= content.version() && written.version.0 > 0;
            return written.revision.0 <= content.revision || (surpassed && !operation.may_shrink);
        }
        match &operation.seen {
            Some(Done::Executed(_, answered)) if answered.duplicate => false,
            Some(Done::Read(header, _) | Done::Executed(header, _)) => {
                header.revision.0 < content.revision
            }
            Some(Done::Claim(..)) | None => false,
        }
    }

    fn only_reads(operation: &Arc<Recorded>) -> bool {
        operation.seen.is_some() && operation.written().is_none()
    }

    fn leaves(operation: &Arc<Recorded>) -> Option<Mark> {
        match &operation.seen {
            None => Some(Mark::Change),
            Some(_) => operation.written().map(|_| Mark::Token(operation.name)),
        }
    }

    fn saw(operation: &Arc<Recorded>) -> impl Iterator<Item = Mark> {
        operation.saw.iter().cloned()
    }

    /// Versions tell everybody of every change.
    fn makes_use(_: &Arc<Recorded>, _: &Arc<Recorded>) -> bool {
        true
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.held {
            None => write!(f, "nothing"),
            Some(Held { value: None, version, .. }) => {
                write!(f, "something, version {version},")
            }
            Some(Held { value: Some(value), version, .. }) => {
                write!(f, "{}, version {version},", value.escape_ascii())
            }
        }?;
        let Unread { changes, removals } = self.taken;
        write!(f, " as of revision {}, after {changes} and {removals} unread", self.revision)
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |us: u64| format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
        match self.ended_us {
            Some(ended_us) => write!(f, "{} to {}", seconds(self.begun_us), seconds(ended_us))?,
            None => write!(f, "from {} on", seconds(self.begun_us))?,
        }
        let Unread { changes, removals } = self.before;
        write!(f, " {} {:?} after {changes} and {removals} unread", self.name, self.kind)?;
        match &self.seen {
            None => write!(f, ", unanswered"),
            Some(Done::Read(header, found)) => {
                write!(f, ": {found:?} as of revision {}", header.revision.0)
            }
            Some(Done::Claim(header, claim)) => {
                write!(f, ": {claim:?} as of revision {}", header.revision.0)
            }
            Some(Done::Executed(header, answered)) => {
                write!(f, ": {answered:?} as of revision {}", header.revision.0)
            }
        }
    }
}
