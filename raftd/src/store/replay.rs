//! What the records of a log amount to, and whether that is everything that was acknowledged.
//!
//! Records are replayed in the order of their write sequences: entries cut the log before their
//! first index and extend it, a reset replaces it. What is missing then shows in one of five ways:
//! the highest write is below the floor's, the snapshot is older than the floor's, an index is not
//! there, an entry does not follow the term that it was written behind, or the log does not hold
//! the position at which the floor says that it ended. Damage above the floor was never
//! acknowledged and ends the log there; damage at or below it is reported. Pure.

use raft::{Entry, Index, Position, Term};

use crate::store::StoreError;
use crate::store::floor::{FloorState, ManifestId};
use crate::store::record::{Key, Kind, Root};

/// What the floor says about the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claims {
    /// The last durable write to the log.
    pub(super) log_sequence: u64,
    /// Where the log ended behind it.
    pub(super) last: Position,
    /// The snapshot that it built on.
    pub(super) manifest: Option<ManifestId>,
    /// The member's term.
    pub(super) term: Term,
}

impl From<&FloorState> for Claims {
    fn from(state: &FloorState) -> Self {
        let FloorState { log_sequence, last, manifest, hard_state, .. } = *state;
        Self { log_sequence, last, manifest, term: hard_state.term }
    }
}

/// A record of entries, or an entry whose fragments are all there: all but the entries themselves.
#[derive(Clone, Debug)]
pub(super) struct Appended {
    pub(super) sequence: u64,
    /// The term of the entry before the first.
    previous: Term,
    first: Index,
    last: Index,
    /// Where each term begins, ascending; the first at `first`.
    terms: Vec<Position>,
    /// How many keys it takes.
    keys: u32,
}

impl Appended {
    /// None: there are no entries.
    pub(super) fn new(sequence: u64, previous: Term, entries: &[Entry], keys: u32) -> Option<Self> {
        let (first, last) = (entries.first()?.index, entries.last()?.index);
        let mut terms: Vec<Position> = Vec::new();
        for entry in entries {
            if terms.last().is_none_or(|begun| begun.term != entry.term) {
                terms.push(entry.position());
            }
        }
        Some(Self { sequence, previous, first, last, terms, keys })
    }

    fn keys(&self) -> impl Iterator<Item = Key> + use<> {
        let (first, sequence) = (self.first, self.sequence);
        (0..self.keys).map(move |fragment| Key { kind: Kind::Entries, first, sequence, fragment })
    }

    /// The term of an entry that it holds.
    fn term_at(&self, index: Index) -> Term {
        let begun = self.terms.partition_point(|begin| begin.index <= index);
        begun.checked_sub(1).map_or(self.previous, |at| self.terms[at].term)
    }
}

/// Everything that was found of a log.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) appended: Vec<Appended>,
    pub(super) roots: Vec<Root>,
    /// What fails its checksum, and the fragments of what is not whole.
    pub(super) bad: Vec<Key>,
}

/// What a log amounts to.
#[derive(Debug)]
pub(super) struct Replayed {
    /// The position just before the log.
    pub(super) base: Position,
    /// The log, piece by piece.
    pub(super) pieces: Vec<Piece>,
    /// The root of the last snapshot.
    pub(super) root: Option<Root>,
    /// The highest write that counts.
    pub(super) log_sequence: u64,
    /// The highest write that was seen at all.
    pub(super) highest: u64,
    /// What has to be removed, since it must never count.
    pub(super) garbage: Vec<Key>,
}

/// Replays what was found and checks it against the floor.
pub(super) fn replay(mut scanned: Scanned, claims: &Claims) -> Result<Replayed, StoreError> {
    scanned.appended.sort_by_key(|appended| (appended.sequence, appended.first));
    scanned.roots.sort_by_key(|root| root.sequence);
    let highest = highest(&scanned, u64::MAX)
        .max(scanned.bad.iter().map(|key| key.sequence).max().unwrap_or(0));
    // Above the floor the log ends before the first write that is not whole.
    let torn = scanned.bad.iter().map(|key| key.sequence).filter(|&at| at > claims.log_sequence);
    let mut limit = torn.min().map_or(highest, |torn| torn - 1);
    let replayed = loop {
        match replay_to(&scanned, limit, claims) {
            // A write above the floor has lost a part; the log ends before it.
            Err(_) if limit > claims.log_sequence => {
                limit = self::highest(&scanned, limit - 1).max(claims.log_sequence);
            }
            result => break result?,
        }
    };
    let (base, pieces, root) = replayed;
    let pieces = pieces.iter().map(Held::piece).collect();
    let late = scanned.appended.iter().filter(|appended| appended.sequence > limit);
    let late_roots = scanned.roots.iter().filter(|root| root.sequence > limit);
    let mut garbage: Vec<Key> = late.flat_map(Appended::keys).collect();
    garbage.extend(late_roots.map(|root| root_key(root.sequence)));
    garbage.extend(&scanned.bad);
    let log_sequence = self::highest(&scanned, limit);
    Ok(Replayed { base, pieces, root: root.cloned(), log_sequence, highest, garbage })
}

/// The key of a root.
pub(super) fn root_key(sequence: u64) -> Key {
    Key { kind: Kind::Root, first: Index(0), sequence, fragment: 0 }
}

fn highest(scanned: &Scanned, limit: u64) -> u64 {
    let appended = scanned.appended.iter().map(|appended| appended.sequence);
    let roots = scanned.roots.iter().map(|root| root.sequence);
    appended.chain(roots).filter(|&sequence| sequence <= limit).max().unwrap_or(0)
}

/// A part of the log: some entries of one record.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where they lie.
    pub(super) keys: Vec<Key>,
    /// The first of them that counts.
    pub(super) first: Index,
    /// The last of them that counts.
    pub(super) last: Index,
}

/// A part of the log that is being put together.
#[derive(Clone, Copy)]
struct Held<'a> {
    record: &'a Appended,
    first: Index,
    last: Index,
}

impl Held<'_> {
    /// The term of the entry before the first, as the record knows it.
    fn previous(&self) -> Term {
        if self.first == self.record.first {
            self.record.previous
        } else {
            self.record.term_at(self.first.previous())
        }
    }

    fn end(&self) -> Position {
        Position { term: self.record.term_at(self.last), index: self.last }
    }

    fn piece(&self) -> Piece {
        Piece { keys: self.record.keys().collect(), first: self.first, last: self.last }
    }
}

/// A log that is being put together, in the order of its indexes.
type Log<'a> = Vec<Held<'a>>;

fn replay_to<'a>(
    scanned: &'a Scanned,
    limit: u64,
    claims: &Claims,
) -> Result<(Position, Log<'a>, Option<&'a Root>), StoreError> {
    let root = scanned.roots.iter().rfind(|root| root.sequence <= limit);
    check_reach(highest(scanned, limit), root, claims)?;
    let mut log = play(scanned, limit);
    let first = root.map_or(Index(1), |root| root.first);
    log.retain(|held| held.last >= first);
    if let Some(held) = log.first_mut() {
        held.first = held.first.max(first);
    }
    let base = match (log.first().filter(|held| held.first == first), root) {
        (Some(held), _) => Position { term: held.previous(), index: first.previous() },
        (None, Some(root)) if first == root.root.position.index.next() => root.root.position,
        (None, Some(root)) => return Err(missing(first, root.root.position.index)),
        (None, None) => Position::default(),
    };
    check_whole(&log, base)?;
    let end = log.last().map_or(base, Held::end);
    if let Some(covered) = root.map(|root| root.root.position.index).filter(|&at| at > end.index) {
        return Err(missing(end.index.next(), covered));
    }
    check_last(scanned, &log, base, limit, claims)?;
    if !log.is_empty() && end.term > claims.term {
        return Err(StoreError::Damaged(format!(
            "the term is lost: the log ends in term {}, but the file floor knows only term {}",
            end.term, claims.term
        )));
    }
    Ok((base, log, root))
}

fn check_reach(highest: u64, root: Option<&Root>, claims: &Claims) -> Result<(), StoreError> {
    if let Some(id) = claims.manifest {
        let found = root.is_some_and(|root| {
            root.sequence > id.sequence
                || (root.sequence == id.sequence && root.root.manifest == id.digest)
        });
        if !found {
            return Err(StoreError::Damaged(format!(
                "the snapshot that write {} installed is missing from the log",
                id.sequence
            )));
        }
    }
    if highest < claims.log_sequence {
        return Err(StoreError::Damaged(format!(
            "the writes {} to {} are missing from the log, which ended at {}",
            highest + 1,
            claims.log_sequence,
            claims.last
        )));
    }
    Ok(())
}

fn play(scanned: &Scanned, limit: u64) -> Log<'_> {
    let mut log = Log::new();
    let mut roots = scanned.roots.iter().peekable();
    for record in scanned.appended.iter().filter(|appended| appended.sequence <= limit) {
        while let Some(root) = roots.next_if(|root| root.sequence <= record.sequence) {
            install(&mut log, root);
        }
        cut(&mut log, record.first);
        log.push(Held { record, first: record.first, last: record.last });
    }
    for root in roots.filter(|root| root.sequence <= limit) {
        install(&mut log, root);
    }
    log
}

/// The log ends just before `from`.
fn cut(log: &mut Log<'_>, from: Index) {
    while log.pop_if(|held| held.first >= from).is_some() {}
    if let Some(held) = log.last_mut() {
        held.last = held.last.min(from.previous());
    }
}

fn install(log: &mut Log<'_>, root: &Root) {
    match root.reset {
        Some(_) => log.clear(),
        // Leftovers of entries that were cut off before.
        None => cut(log, root.log_end.next()),
    }
}

/// Every index behind `base` is there, and every entry follows the one that it was written behind.
fn check_whole(log: &Log<'_>, base: Position) -> Result<(), StoreError> {
    let mut last = base;
    for held in log {
        if held.first != last.index.next() {
            return Err(missing(last.index.next(), held.first.previous()));
        }
        if held.previous() != last.term {
            return Err(StoreError::Damaged(format!(
                "a write before {} is missing: entry {} was written behind one of term {}, \
                 but that before it is of term {}",
                held.record.sequence,
                held.first,
                held.previous(),
                last.term
            )));
        }
        last = held.end();
    }
    Ok(())
}

/// The log holds the position at which it ended at the floor, or a later write says why not.
fn check_last(
    scanned: &Scanned,
    log: &Log<'_>,
    base: Position,
    limit: u64,
    claims: &Claims,
) -> Result<(), StoreError> {
    let last = claims.last;
    let above = |sequence: u64| sequence > claims.log_sequence && sequence <= limit;
    let cut = scanned
        .appended
        .iter()
        .any(|appended| above(appended.sequence) && appended.first <= last.index);
    let removed =
        scanned.roots.iter().filter(|root| above(root.sequence)).any(|root| {
            root.reset.is_some() || root.first > last.index || root.log_end < last.index
        });
    if last.index == Index(0) || cut || removed {
        return Ok(());
    }
    let found = if base.index == last.index {
        Some(base.term)
    } else {
        let at = log.partition_point(|held| held.last < last.index);
        log.get(at)
            .filter(|held| held.first <= last.index)
            .map(|held| held.record.term_at(last.index))
    };
    match found {
        Some(term) if term == last.term => Ok(()),
        Some(term) => Err(StoreError::Damaged(format!(
            "entry {} is missing: there is one of term {term} in its place",
            last
        ))),
        None => {
            let end = log.last().map_or(base, Held::end);
            Err(missing(end.index.next(), last.index))
        }
    }
}

pub(super) fn missing(from: Index, to: Index) -> StoreError {
    StoreError::Damaged(format!("the entries {from} to {to} are missing from the log"))
}
