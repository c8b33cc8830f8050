//! What the records of a log amount to, and whether that is everything that was acknowledged.
//!
//! Records are replayed in the order of their write sequences: entries cut the log before their
//! first index and extend it, a reset replaces it. What is missing then shows in one of five ways:
//! the highest write is below the floor's, the snapshot is older than the floor's, an index is not
//! there, an entry does not follow the term that it was written behind, or the log does not hold
//! the position at which the floor says that it ended. Damage above the floor was never
//! acknowledged and ends the log there; damage at or below it is reported. Pure.

use std::collections::BTreeMap;

use raft::{Entry, Index, Position, Recovered, Term};

use crate::store::StoreError;
use crate::store::floor::ManifestId;
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

/// A record of entries, or an entry whose fragments are all there.
#[derive(Clone, Debug)]
pub(super) struct Appended {
    pub(super) sequence: u64,
    /// The term of the entry before the first.
    pub(super) previous: Term,
    /// Contiguous, at least one.
    pub(super) entries: Vec<Entry>,
    /// How many keys it takes.
    pub(super) keys: u32,
}

impl Appended {
    fn first(&self) -> Index {
        self.entries.first().map_or(Index(0), |entry| entry.index)
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let (first, sequence) = (self.first(), self.sequence);
        (0..self.keys).map(move |fragment| Key { kind: Kind::Entries, first, sequence, fragment })
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
    /// All but the hard state.
    pub(super) recovered: Recovered,
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
    scanned.appended.sort_by_key(|appended| (appended.sequence, appended.first()));
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
    let (recovered, root) = replayed;
    let late = scanned.appended.iter().filter(|appended| appended.sequence > limit);
    let late_roots = scanned.roots.iter().filter(|root| root.sequence > limit);
    let mut garbage: Vec<Key> = late.flat_map(Appended::keys).collect();
    garbage.extend(late_roots.map(|root| root_key(root.sequence)));
    garbage.extend(&scanned.bad);
    let log_sequence = self::highest(&scanned, limit);
    Ok(Replayed { recovered, root, log_sequence, highest, garbage })
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

/// An entry of the log that is being put together.
struct Held<'a> {
    entry: &'a Entry,
    sequence: u64,
    /// The first entry of a record knows the term before it.
    previous: Option<Term>,
}

type Entries<'a> = BTreeMap<Index, Held<'a>>;

fn replay_to(
    scanned: &Scanned,
    limit: u64,
    claims: &Claims,
) -> Result<(Recovered, Option<Root>), StoreError> {
    let root = scanned.roots.iter().rfind(|root| root.sequence <= limit);
    check_reach(highest(scanned, limit), root, claims)?;
    let mut log = play(scanned, limit);
    let first = root.map_or(Index(1), |root| root.first);
    let before = log.remove(&first.previous());
    log = log.split_off(&first);
    let base = match (log.get(&first), root) {
        (Some(held), _) => {
            let term = held.previous.or(before.map(|held| held.entry.term));
            let Some(term) = term else { return Err(missing(first.previous(), first.previous())) };
            Position { term, index: first.previous() }
        }
        (None, Some(root)) if first == root.root.position.index.next() => root.root.position,
        (None, Some(root)) => return Err(missing(first, root.root.position.index)),
        (None, None) => Position::default(),
    };
    check_whole(&log, base)?;
    let end = log.last_key_value().map_or(base.index, |(&index, _)| index);
    if let Some(covered) = root.map(|root| root.root.position.index).filter(|&at| at > end) {
        return Err(missing(end.next(), covered));
    }
    check_last(scanned, &log, base, limit, claims)?;
    let entries: Vec<Entry> = log.into_values().map(|held| held.entry.clone()).collect();
    if let Some(last) = entries.last()
        && last.term > claims.term
    {
        return Err(StoreError::Damaged(format!(
            "the term is lost: the log ends in term {}, but the file floor knows only term {}",
            last.term, claims.term
        )));
    }
    let snapshot = root.map(|root| root.root.clone());
    Ok((Recovered { snapshot, entries, base, ..Recovered::default() }, root.cloned()))
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

fn play(scanned: &Scanned, limit: u64) -> Entries<'_> {
    let mut log = Entries::new();
    let mut roots = scanned.roots.iter().peekable();
    for appended in scanned.appended.iter().filter(|appended| appended.sequence <= limit) {
        while let Some(root) = roots.next_if(|root| root.sequence <= appended.sequence) {
            install(&mut log, root);
        }
        log.split_off(&appended.first());
        for (at, entry) in appended.entries.iter().enumerate() {
            let previous = (at == 0).then_some(appended.previous);
            log.insert(entry.index, Held { entry, sequence: appended.sequence, previous });
        }
    }
    for root in roots.filter(|root| root.sequence <= limit) {
        install(&mut log, root);
    }
    log
}

fn install(log: &mut Entries<'_>, root: &Root) {
    match root.reset {
        Some(_) => log.clear(),
        // Leftovers of entries that were cut off before.
        None => drop(log.split_off(&root.log_end.next())),
    }
}

/// Every index behind `base` is there, and every entry follows the one that it was written behind.
fn check_whole(log: &Entries<'_>, base: Position) -> Result<(), StoreError> {
    let mut last = base;
    for (&index, held) in log {
        if index != last.index.next() {
            return Err(missing(last.index.next(), index.previous()));
        }
        if held.previous.is_some_and(|previous| previous != last.term) {
            return Err(StoreError::Damaged(format!(
                "a write before {} is missing: entry {index} was written behind one of term {}, \
                 but that before it is of term {}",
                held.sequence,
                held.previous.unwrap_or_default(),
                last.term
            )));
        }
        last = held.entry.position();
    }
    Ok(())
}

/// The log holds the position at which it ended at the floor, or a later write says why not.
fn check_last(
    scanned: &Scanned,
    log: &Entries<'_>,
    base: Position,
    limit: u64,
    claims: &Claims,
) -> Result<(), StoreError> {
    let last = claims.last;
    let above = |sequence: u64| sequence > claims.log_sequence && sequence <= limit;
    let cut = scanned
        .appended
        .iter()
        .any(|appended| above(appended.sequence) && appended.first() <= last.index);
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
        log.get(&last.index).map(|held| held.entry.term)
    };
    match found {
        Some(term) if term == last.term => Ok(()),
        Some(term) => Err(StoreError::Damaged(format!(
            "entry {} is missing: there is one of term {term} in its place",
            last
        ))),
        None => {
            let end = log.last_key_value().map_or(base.index, |(&index, _)| index);
            Err(missing(end.next(), last.index))
        }
    }
}

fn missing(from: Index, to: Index) -> StoreError {
    StoreError::Damaged(format!("the entries {from} to {to} are missing from the log"))
}
