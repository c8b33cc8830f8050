//! A frozen state of some shards, to be read by whoever asked for it, away from the machine.
//!
//! Decides what a page holds, what a shard held at a revision, and which changes came after one.
//! Nothing here is bounded by more than the size of the state and the limits of a page, which is
//! why none of it happens on the task that owns the machine.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound::{self, Excluded};
use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use proto::{PAGE_TOKEN_VERSION, page_token, shard_of};

use crate::{
    changes::ChangeLog,
    limits::{KEY_BYTES_MAX, PAGE_BYTES_MAX, PAGE_PAIRS_MAX},
    outcome::{Header, Key, Pair, Refusal, Revision},
    range::Range,
};

/// Some shards as they were at one applied entry. Cloning shares everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// How many shards there are in all.
    pub(crate) shards: u32,
    /// Those that are shown, by number.
    pub(crate) parts: Vec<Part>,
}

/// One shard of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) header: Header,
    pub(crate) pairs: OrdMap<Key, Arc<Pair>>,
    pub(crate) changes: ChangeLog,
}

/// Which pairs a page is to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// How many pairs at most; 0: as many as a page holds.
    pub limit: usize,
    /// How many bytes of keys and values at most, at most [`crate::limits::PAGE_BYTES_MAX`]; 0: as
    /// many as a page holds. One pair always fits.
    pub bytes_max: usize,
    /// From the last key to the first.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Where the page before ended.
    pub token: Option<Bytes>,
    /// As of this revision; none: as of the view.
    pub revision: Option<Revision>,
}

/// A page of pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The pairs in order.
    pub pairs: Vec<(Key, Pair)>,
    /// Where the next page begins; none: there is no more.
    pub next: Option<Bytes>,
}

/// What happened to a key in one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// What it held before.
    pub previous: Option<Arc<Pair>>,
    /// What it holds since; none: it was removed.
    pub current: Option<Arc<Pair>>,
    /// It was removed since its lease ended.
    pub expired: bool,
}

/// Some changes of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangesPage {
    /// By revision, rising; each with all its changes of the wanted keys, by key.
    pub revisions: Vec<(Revision, Vec<Change>)>,
    /// Up to where nothing is missing: `after` of the next page.
    pub upto: Revision,
    /// Whether there is more behind it in the view.
    pub more: bool,
}

/// Pairs in order, with what they are called.
type Pairs<'a> = Box<dyn Iterator<Item = (&'a Key, &'a Arc<Pair>)> + 'a>;

/// What keys held at an old revision that were changed since.
type Then = BTreeMap<Key, Option<Arc<Pair>>>;

/// From where to where.
type Bounds = (Bound<Bytes>, Bound<Bytes>);

impl View {
    /// Where each shard that is shown stands.
    pub fn headers(&self) -> impl Iterator<Item = Header> {
        self.parts.iter().map(|part| part.header)
    }

    /// How many shards there are in all.
    pub fn shards(&self) -> u32 {
        self.shards
    }

    /// Whether all shards are shown.
    pub(crate) fn is_whole(&self) -> bool {
        self.parts.len() == self.shards as usize
    }

    /// Where a shard stands, if it is shown.
    pub fn header(&self, shard: u32) -> Option<Header> {
        self.part(shard).map(|part| part.header)
    }

    /// Whether the changes of a shard behind a revision are all there.
    ///
    /// # Errors
    /// As [`View::changes`].
    pub fn check(&self, shard: u32, after: Revision) -> Result<(), Refusal> {
        let shards = self.shards;
        self.part(shard).ok_or(Refusal::NoSuchShard { shard, shards })?.check(after)
    }

    /// What a key held after a revision. Of a shard that is not shown it finds nothing.
    ///
    /// # Errors
    /// [`Refusal::Compacted`] or [`Refusal::NotYet`].
    pub fn get_at(&self, key: &[u8], revision: Revision) -> Result<Option<Pair>, Refusal> {
        let Some(part) = self.part(shard_of(key, self.shards)) else { return Ok(None) };
        part.check(revision)?;
        let mut changes = part.changes.after(revision);
        Ok(match changes.find(|(_, change)| change.key[..] == *key) {
            Some((_, change)) => change.previous.as_deref().cloned(),
            None => part.pairs.get(key).map(|pair| Pair::clone(pair)),
        })
    }

    /// A page of the pairs in a range, over all shards that are shown, in the order of the keys.
    ///
    /// # Errors
    /// [`Refusal::BadPageToken`]; with a revision also [`Refusal::ManyShards`] and those of
    /// [`View::get_at`].
    pub fn page(&self, range: &Range, request: &PageRequest) -> Result<Page, Refusal> {
        let Some(bounds) = page_bounds(range, request)? else { return Ok(Page::default()) };
        let limit = within(request.limit, PAGE_PAIRS_MAX);
        let bytes_max = within(request.bytes_max, PAGE_BYTES_MAX);
        let then = self.then(range, request.revision)?;
        let pairs = self.sources(range, &bounds, request.reverse, &then);
        let (mut page, mut bytes) = (Page::default(), 0);
        for (key, pair) in pairs {
            bytes += key.len() + if request.keys_only { 0 } else { pair.value.len() };
            let full = page.pairs.len() == limit || bytes > bytes_max;
            if let Some((last, _)) = page.pairs.last().filter(|_| full) {
                page.next = Some(page_token(last).into());
                return Ok(page);
            }
            let mut pair = Pair::clone(pair);
            if request.keys_only {
                pair.value = Bytes::new();
            }
            page.pairs.push((key.clone(), pair));
        }
        Ok(page)
    }

    /// How many pairs there are in a range.
    ///
    /// # Errors
    /// With a revision those of [`View::page`].
    pub fn count(&self, range: &Range, revision: Option<Revision>) -> Result<u64, Refusal> {
        let then = self.then(range, revision)?;
        let Some(bounds) = range.bounds() else { return Ok(0) };
        if revision.is_none() && *range == Range::all() {
            return Ok(self.parts.iter().map(|part| part.pairs.len() as u64).sum());
        }
        let sources = self.each_source(range, &bounds, false, &then);
        Ok(sources.map(|pairs| pairs.count() as u64).sum())
    }

    /// The changes of a shard behind a revision, of keys in any of these ranges. A page ends with
    /// the revision that makes it as long as `bytes_max`.
    ///
    /// # Errors
    /// [`Refusal::Compacted`], [`Refusal::NotYet`], and [`Refusal::NoSuchShard`] when the shard is
    /// not shown.
    pub fn changes(
        &self,
        shard: u32,
        after: Revision,
        ranges: &[Range],
        bytes_max: usize,
    ) -> Result<ChangesPage, Refusal> {
        let shards = self.shards;
        let part = self.part(shard).ok_or(Refusal::NoSuchShard { shard, shards })?;
        part.check(after)?;
        let (mut page, mut bytes) = (ChangesPage { upto: after, ..ChangesPage::default() }, 0);
        for (revision, change) in part.changes.after(after) {
            if revision > page.upto && bytes >= bytes_max && !page.revisions.is_empty() {
                page.more = true;
                return Ok(page);
            }
            page.upto = revision;
            if !ranges.iter().any(|range| range.contains(&change.key)) {
                continue;
            }
            bytes += change.bytes();
            match page.revisions.last_mut() {
                Some((last, changes)) if *last == revision => changes.push(change.clone()),
                Some(_) | None => page.revisions.push((revision, vec![change.clone()])),
            }
        }
        page.upto = part.header.revision;
        Ok(page)
    }

    fn part(&self, shard: u32) -> Option<&Part> {
        let at = self.parts.binary_search_by_key(&shard, |part| part.header.shard).ok()?;
        self.parts.get(at)
    }

    /// What changed since a revision in a range of one shard.
    fn then(&self, range: &Range, revision: Option<Revision>) -> Result<Option<Then>, Refusal> {
        let Some(revision) = revision else { return Ok(None) };
        let shard = range.shard(self.shards).ok_or(Refusal::ManyShards)?;
        let mut then = Then::new();
        let Some(part) = self.part(shard) else { return Ok(Some(then)) };
        part.check(revision)?;
        let changes = part.changes.after(revision);
        for (_, change) in changes.filter(|(_, change)| range.contains(&change.key)) {
            if !then.contains_key(&change.key) {
                then.insert(change.key.clone(), change.previous.clone());
            }
        }
        Ok(Some(then))
    }

    /// The pairs of all shards in one order.
    fn sources<'a>(
        &'a self,
        range: &Range,
        bounds: &'a Bounds,
        reverse: bool,
        then: &'a Option<Then>,
    ) -> Merged<'a> {
        let sources = self.each_source(range, bounds, reverse, then);
        Merged::new(sources.map(Iterator::peekable).collect(), reverse)
    }

    /// The pairs of each shard, and what they were then, each in its order.
    fn each_source<'a>(
        &'a self,
        range: &Range,
        bounds: &'a Bounds,
        reverse: bool,
        then: &'a Option<Then>,
    ) -> impl Iterator<Item = Pairs<'a>> {
        let only = range.shard(self.shards);
        let parts =
            self.parts.iter().filter(move |part| only.is_none_or(|it| it == part.header.shard));
        let now = parts.map(move |part| {
            let pairs = part.pairs.range::<_, [u8]>(slices(bounds));
            let unchanged = move |(key, _): &(&'a Key, &'a Arc<Pair>)| {
                then.as_ref().is_none_or(|then| !then.contains_key(&key[..]))
            };
            let pairs: Pairs<'a> = if reverse {
                Box::new(pairs.rev().filter(unchanged))
            } else {
                Box::new(pairs.filter(unchanged))
            };
            pairs
        });
        let then = then.iter().map(move |then| {
            let pairs = then.range::<[u8], _>(slices(bounds));
            let there = |(key, pair): (&'a Key, &'a Option<Arc<Pair>>)| Some((key, pair.as_ref()?));
            let pairs: Pairs<'a> = if reverse {
                Box::new(pairs.rev().filter_map(there))
            } else {
                Box::new(pairs.filter_map(there))
            };
            pairs
        });
        now.chain(then)
    }
}

impl Part {
    /// Whether a revision is there and not forgotten.
    fn check(&self, asked: Revision) -> Result<(), Refusal> {
        let Header { shard, revision: now, .. } = self.header;
        let compacted = self.changes.compacted();
        if asked > now {
            Err(Refusal::NotYet { shard, now, asked })
        } else if asked < compacted {
            Err(Refusal::Compacted { shard, compacted })
        } else {
            Ok(())
        }
    }
}

impl Change {
    /// What it counts in a page of changes.
    pub fn bytes(&self) -> usize {
        let value = |pair: &Option<Arc<Pair>>| pair.as_ref().map_or(0, |pair| pair.value.len());
        self.key.len() + value(&self.previous) + value(&self.current)
    }
}

/// Several ordered sources as one. No two have the same key.
struct Merged<'a> {
    sources: Vec<Peekable<Pairs<'a>>>,
    /// The next key of each source that has one, and which source that is.
    heads: BTreeMap<&'a Key, usize>,
    reverse: bool,
}

impl<'a> Merged<'a> {
    fn new(mut sources: Vec<Peekable<Pairs<'a>>>, reverse: bool) -> Self {
        let heads = sources.iter_mut().enumerate();
        let heads = heads.filter_map(|(at, pairs)| Some((pairs.peek()?.0, at))).collect();
        Self { sources, heads, reverse }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a Key, &'a Arc<Pair>);

    fn next(&mut self) -> Option<Self::Item> {
        let (_, at) = if self.reverse { self.heads.pop_last() } else { self.heads.pop_first() }?;
        let source = self.sources.get_mut(at)?;
        let next = source.next();
        if let Some((key, _)) = source.peek() {
            self.heads.insert(key, at);
        }
        next
    }
}

/// The bounds of a page: those of the range, behind where the page before ended.
fn page_bounds(range: &Range, request: &PageRequest) -> Result<Option<Bounds>, Refusal> {
    let Some((start, end)) = range.bounds() else { return Ok(None) };
    let Some(token) = &request.token else { return Ok(Some((start, end))) };
    let last = match token.split_first() {
        Some((&PAGE_TOKEN_VERSION, last)) if (1..=KEY_BYTES_MAX).contains(&last.len()) => last,
        Some(_) | None => return Err(Refusal::BadPageToken),
    };
    if !range.contains(last) {
        return Err(Refusal::BadPageToken);
    }
    let last = Excluded(Bytes::copy_from_slice(last));
    let bounds = if request.reverse { (start, last) } else { (last, end) };
    Ok(Some(bounds).filter(|bounds| !is_empty(bounds)))
}

/// Whether nothing can be within these, which an ordered map does not want to be asked.
fn is_empty((start, end): &Bounds) -> bool {
    match (start, end) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Excluded(start), Bound::Included(end) | Excluded(end)) => {
            start >= end
        }
    }
}

fn slices((start, end): &Bounds) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (start.as_ref().map(|key| &key[..]), end.as_ref().map(|key| &key[..]))
}

fn within(asked: usize, most: usize) -> usize {
    if asked == 0 { most } else { asked.min(most) }
}
