//! The combining table: what a map has emitted so far, one entry for each distinct key.
//!
//! What costs time is memory far away, not instructions: most words are a few frequent ones, and
//! each of the others is looked for in a table that no cache holds. So there are three places. Keys
//! that come first are counted in a small table that stays in the core's cache ([`Table::frequent`]).
//! All others wait in lists, one for each share of the hash range, and when a list is full its share
//! of the large table comes into the cache once for all of it. Longer keys, which are rare, are in a
//! table of their own.
//!
//! A key has one of these places for as long as the table lives, and its values are folded in the
//! order in which they came. Which partition it goes to is asked only when the table is drained,
//! once for each distinct key.

mod key;
mod long;
mod share;

use std::ops::Range;

use rand::RngExt;

use crate::{
    failure::Failure,
    fold::{Arena, Fold, FoldError, VALUE_BYTES_MAX},
    partition::Partitioning,
    run::Order,
};

pub(crate) use self::key::ShortKey;
use self::{
    key::order_of_long,
    long::LongKeys,
    share::{Share, Slot},
};

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 8 << 20;

/// How many frequent keys there are at most, as a power of two: they stay in a core's second cache.
const FREQUENT_LOG_MAX: u32 = 14;

/// How many shares there are at most, as a power of two: each stays in that cache while its list is
/// emptied.
const SHARES_LOG_MAX: u32 = 8;

/// How many values are looked at together.
const BATCH: usize = 256;

/// How many values wait for a share at most.
const WAITING_MAX: usize = 8_192;

/// Keys and what became of their values.
pub(crate) struct Table<F: Fold> {
    /// What came last, and was not looked at yet.
    batch: Box<[(ShortKey, F::Held); BATCH]>,
    batched: usize,
    sorting: Sorting,
    /// Each key in the place that its hash says: who comes first has it.
    frequent: Vec<Slot<F::State>>,
    frequent_log: u32,
    /// What waits for each share, and how much may.
    waiting: Vec<Vec<(ShortKey, F::Held)>>,
    waiting_max: usize,
    shares: Vec<Share<F::State>>,
    shares_log: u32,
    long: LongKeys<F::State>,
    arena: Arena,
    arena_bytes: usize,
    fold: F,
    seeds: [u64; 2],
    /// The memory of all but the arena, what draining will need included, in bytes.
    entries_bytes: usize,
}

/// Which pairs of a batch have a key that lies in its place, and which have to be looked for. That
/// cannot be predicted, so no branch depends on it: each kind is listed, and the lists are then done
/// with.
#[derive(Debug)]
struct Sorting {
    /// The pairs that were found, and where.
    hits: Box<[(u32, u32); BATCH]>,
    hit_count: usize,
    misses: Box<[u32; BATCH]>,
    miss_count: usize,
}

impl Default for Sorting {
    fn default() -> Self {
        let (hits, misses) = (Box::new([(0, 0); BATCH]), Box::new([0; BATCH]));
        Self { hits, hit_count: 0, misses, miss_count: 0 }
    }
}

impl Sorting {
    /// Lists at most [`BATCH`] pairs; `look` says where a key belongs, and whether it is there.
    #[inline]
    fn sort_out<H>(&mut self, batch: &[(ShortKey, H)], look: impl Fn(ShortKey) -> (usize, bool)) {
        (self.hit_count, self.miss_count) = (0, 0);
        for ((key, _), pair) in batch.iter().zip(0..) {
            let (place, found) = look(*key);
            self.hits[self.hit_count % BATCH] = (pair, place as u32);
            self.hit_count += usize::from(found);
            self.misses[self.miss_count % BATCH] = pair;
            self.miss_count += usize::from(!found);
        }
    }

    fn hits(&self) -> &[(u32, u32)] {
        &self.hits[..self.hit_count]
    }

    fn misses(&self) -> &[u32] {
        &self.misses[..self.miss_count]
    }
}

/// Takes a key and one of its values.
type TakePair<'t> = &'t mut dyn FnMut(&[u8], &[u8]) -> Result<(), Failure>;

/// An entry on its way out.
pub(crate) struct Listed<S> {
    order: u128,
    pub(crate) partition: u32,
    /// Where a longer key is.
    long: u32,
    state: S,
}

impl<F: Fold> Table<F> {
    /// An empty table for a budget of so many bytes, and the pair that exceeds it.
    pub(crate) fn new(budget: usize) -> Self {
        // An eighth of the budget for each.
        let fit = |bytes: usize| budget / 8 / bytes;
        let log = |count: usize, most: u32| count.checked_ilog2().unwrap_or(0).clamp(1, most);
        let frequent_log = log(fit(size_of::<Slot<F::State>>()), FREQUENT_LOG_MAX);
        let waiting = fit(size_of::<(ShortKey, F::Held)>());
        let shares_log = log(waiting / WAITING_MAX, SHARES_LOG_MAX);
        let waiting_max = (waiting >> shares_log).clamp(1, WAITING_MAX);
        let arena_bytes = budget + KEY_BYTES_MAX + VALUE_BYTES_MAX;
        let mut table = Self {
            batch: Box::new([Default::default(); BATCH]),
            batched: 0,
            sorting: Sorting::default(),
            frequent: Vec::new(),
            frequent_log,
            waiting: Vec::new(),
            waiting_max,
            shares: Vec::new(),
            shares_log,
            long: LongKeys::default(),
            arena: Arena::default(),
            arena_bytes,
            fold: F::default(),
            seeds: rand::rng().random(),
            entries_bytes: 0,
        };
        table.clear();
        table
    }

    /// Takes one more value of a key that lies in `text`; whether memory may have grown, so that
    /// [`Self::used`] is to be asked.
    #[inline]
    pub(crate) fn add(
        &mut self,
        text: &[u8],
        key: Range<usize>,
        input: F::Input<'_>,
    ) -> Result<bool, FoldError> {
        let before = self.arena.used();
        let held = self.fold.hold(input, &mut self.arena)?;
        let grown = self.arena.used() != before;
        let Some(short) = ShortKey::within(text, key.clone()) else {
            return self.add_long(&text[key], held).map(|()| true);
        };
        self.batch[self.batched % BATCH] = (short, held);
        self.batched += 1;
        if self.batched < BATCH { Ok(grown) } else { self.take_batch().map(|()| true) }
    }

    /// Folds values of frequent keys, and lets others wait.
    #[inline(never)]
    fn take_batch(&mut self) -> Result<(), FoldError> {
        let Self { batch, batched, frequent, seeds, fold, arena, .. } = self;
        let shift = u64::BITS - self.frequent_log;
        self.sorting.sort_out(&batch[..*batched], |key| {
            let place = (key.hash(*seeds) >> shift) as usize;
            (place, frequent[place].key == key)
        });
        for &(pair, place) in self.sorting.hits() {
            fold.fold(&mut frequent[place as usize].state, batch[pair as usize].1, arena)?;
        }
        for miss in 0..self.sorting.misses().len() {
            let (key, held) = self.batch[self.sorting.misses()[miss] as usize];
            self.miss(key, held)?;
        }
        self.batched = 0;
        Ok(())
    }

    /// Takes a value of a key that was not among the frequent ones when its batch began.
    #[inline]
    fn miss(&mut self, key: ShortKey, held: F::Held) -> Result<(), FoldError> {
        let hash = key.hash(self.seeds);
        let slot = &mut self.frequent[(hash >> (u64::BITS - self.frequent_log)) as usize];
        if slot.key.is_none() || slot.key == key {
            slot.key = key;
            return self.fold.fold(&mut slot.state, held, &mut self.arena);
        }
        let share = (hash >> (u64::BITS - self.shares_log)) as usize;
        let waiting = &mut self.waiting[share];
        waiting.push((key, held));
        if waiting.len() < self.waiting_max { Ok(()) } else { self.empty(share) }
    }

    /// Folds what waits for a share.
    #[cold]
    #[inline(never)]
    fn empty(&mut self, share: usize) -> Result<(), FoldError> {
        let Self { waiting, shares, fold, arena, seeds, .. } = self;
        let (waiting, share) = (&mut waiting[share], &mut shares[share]);
        let before = share.bytes();
        let hash = |key: ShortKey| key.hash(*seeds);
        let mut sorting = Sorting::default();
        for batch in waiting.chunks(BATCH) {
            sorting.sort_out(batch, |key| share.look(key, hash(key)));
            for &(pair, place) in sorting.hits() {
                fold.fold(share.state_at(place), batch[pair as usize].1, arena)?;
            }
            for &pair in sorting.misses() {
                let (key, held) = batch[pair as usize];
                fold.fold(share.state(key, hash), held, arena)?;
            }
        }
        waiting.clear();
        self.entries_bytes += share.bytes() - before;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn add_long(&mut self, key: &[u8], held: F::Held) -> Result<(), FoldError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(FoldError::KeyTooLong);
        }
        let before = self.long.bytes();
        let state = self.long.state(key, &mut self.arena);
        self.fold.fold(state, held, &mut self.arena)?;
        self.entries_bytes += self.long.bytes() - before;
        Ok(())
    }

    /// How much memory is in use, what draining will need included, in bytes.
    #[inline]
    pub(crate) fn used(&self) -> usize {
        self.arena.used() + self.entries_bytes
    }

    /// Folds what waits; how much memory the keys and values take, in bytes.
    pub(crate) fn settle(&mut self) -> Result<usize, Failure> {
        self.take_batch().map_err(refuse)?;
        (0..self.shares.len()).try_for_each(|share| self.empty(share)).map_err(refuse)?;
        let shares: usize = self.shares.iter().map(Share::len).sum();
        let entries = share::keys(&self.frequent).count() + shares + self.long.entries().len();
        Ok(self.arena.used() + entries * size_of::<Slot<F::State>>())
    }

    /// All entries, by partition, and those of one in this order. Then there is nothing to do but
    /// [`Self::write`] them and [`Self::clear`].
    pub(crate) fn listed(
        &mut self,
        partitioning: &Partitioning,
        partitions: u32,
        order: Order,
    ) -> Result<Vec<Listed<F::State>>, Failure> {
        self.take_batch().map_err(refuse)?;
        let mut listed = Vec::with_capacity(self.entries_max());
        let mut push = |Slot { key, state }: Slot<F::State>| {
            let order = key.order();
            let (bytes, length) = ShortKey::of_order(order);
            let partition = partitioning.of(&bytes[..length], partitions)?;
            listed.push(Listed { order, partition, long: 0, state });
            Ok(())
        };
        share::keys(&self.frequent).try_for_each(&mut push)?;
        for place in 0..self.shares.len() {
            self.empty(place).map_err(refuse)?;
            // Sorted, keys take less memory than in their share, which is let go of.
            self.waiting[place] = Vec::new();
            std::mem::take(&mut self.shares[place]).keys().try_for_each(&mut push)?;
        }
        let long = self.long.entries().iter().zip(0..);
        for (&(key, state), long) in long {
            let key = self.arena.get(key);
            let partition = partitioning.of(key, partitions)?;
            listed.push(Listed { order: order_of_long(key), partition, long, state });
        }
        // Keys are distinct, so stability has nothing to keep.
        match order {
            Order::ByKey => listed.sort_unstable_by(|left, right| {
                let by_order = (left.partition, left.order).cmp(&(right.partition, right.order));
                by_order.then_with(|| self.long_key(left).cmp(self.long_key(right)))
            }),
            Order::None => listed.sort_unstable_by_key(|entry| entry.partition),
        }
        Ok(listed)
    }

    /// Hands out the keys and values of listed entries, those of a key in the order of their
    /// emission.
    pub(crate) fn write(
        &self,
        listed: &[Listed<F::State>],
        mut each: impl FnMut(u32, &[u8], &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        listed.iter().try_for_each(|entry| {
            self.write_entry(entry, &mut |key, value| each(entry.partition, key, value))
        })
    }

    /// Hands out the key of an entry with each of its values.
    #[inline]
    pub(crate) fn write_entry(
        &self,
        entry: &Listed<F::State>,
        each: TakePair<'_>,
    ) -> Result<(), Failure> {
        let (bytes, length) = ShortKey::of_order(entry.order);
        let is_long = entry.order as u8 == u8::MAX;
        let key = if is_long { self.long_key(entry) } else { &bytes[..length] };
        self.fold.values(&entry.state, &self.arena, &mut |value| each(key, value))
    }

    fn long_key(&self, entry: &Listed<F::State>) -> &[u8] {
        self.arena.get(self.long.entries()[entry.long as usize].0)
    }

    /// The most entries that there can be.
    fn entries_max(&self) -> usize {
        let waiting: usize = self.waiting.iter().map(Vec::len).sum();
        let shares: usize = self.shares.iter().map(Share::len).sum();
        self.frequent.len() + waiting + shares + self.long.entries().len()
    }

    /// Forgets everything, and gives the memory of the keys back: what comes next may need it for
    /// more of them, or for longer ones.
    pub(crate) fn clear(&mut self) {
        self.batched = 0;
        self.frequent.clear();
        self.frequent.resize(1 << self.frequent_log, Slot::default());
        let shares = 1 << self.shares_log;
        self.waiting = (0..shares).map(|_| Vec::with_capacity(self.waiting_max)).collect();
        self.shares = (0..shares).map(|_| Share::default()).collect();
        self.long = LongKeys::default();
        self.arena = Arena::with_capacity(self.arena_bytes);
        self.entries_bytes = self.fixed_bytes();
    }

    /// The memory of what is there without any key, in bytes, and of sorting what is frequent or
    /// waits, as if each were a key.
    fn fixed_bytes(&self) -> usize {
        let (slot, sorted) = (size_of::<Slot<F::State>>(), size_of::<Listed<F::State>>());
        let waits = size_of::<(ShortKey, F::Held)>().max(sorted);
        let shares: usize = self.shares.iter().map(Share::bytes).sum();
        let waiting = self.waiting.len() * self.waiting_max;
        self.frequent.len() * (slot + sorted) + waiting * waits + shares
    }
}

fn refuse(error: FoldError) -> Failure {
    Failure::user(error.to_string())
}

/// The first eight bytes of `key` as a number that orders as they do; a shorter key is filled with
/// zeros.
#[inline]
pub(crate) fn prefix(key: &[u8]) -> u64 {
    if let Some(first) = key.first_chunk::<8>() {
        return u64::from_be_bytes(*first);
    }
    // Two overlapping loads, or three single bytes, so that no length needs a loop.
    if let (Some(first), Some(last)) = (key.first_chunk::<4>(), key.last_chunk::<4>()) {
        let high = u64::from(u32::from_be_bytes(*first)) << 32;
        let low = u64::from(u32::from_be_bytes(*last)) << (8 * (8 - key.len()));
        return high | low;
    }
    match key.len() {
        0 => 0,
        length => {
            let byte = |place: usize| u64::from(key[place]) << (8 * (7 - place));
            byte(0) | byte(length / 2) | byte(length - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fold::{Distinct, Sum};

    /// What a table makes of these pairs, written.
    fn folded<'a, F: Fold>(
        budget: usize,
        pairs: impl IntoIterator<Item = (Vec<u8>, F::Input<'a>)>,
    ) -> Vec<(u32, Vec<u8>, Vec<u8>)> {
        let mut table: Table<F> = Table::new(budget);
        for (key, input) in pairs {
            table.add(&key, 0..key.len(), input).unwrap();
        }
        let mut found = Vec::new();
        let listed = table.listed(&Partitioning::Hash, 3, Order::ByKey).unwrap();
        table
            .write(&listed, |partition, key, value| {
                found.push((partition, key.to_vec(), value.to_vec()));
                Ok(())
            })
            .unwrap();
        found
    }

    #[test]
    fn a_prefix_is_the_first_eight_bytes() {
        for length in 0..20 {
            let key: Vec<u8> = (1..=length).map(|byte| byte * 11).collect();
            let mut padded = key.clone();
            padded.resize(key.len().max(8), 0);
            let expected = u64::from_be_bytes(*padded.first_chunk().unwrap());
            assert_eq!(prefix(&key), expected, "{length}");
        }
    }

    #[test]
    fn frequent_rare_and_long_keys_come_out_in_order_and_once() {
        let mut expected: BTreeMap<(u32, Vec<u8>), u64> = BTreeMap::new();
        let mut pairs = Vec::new();
        for number in 0..60_000_u64 {
            // Some keys come all the time, most once in a while, some are long or differ in zeros.
            let key = match number % 7 {
                0 => format!("frequent {}", number % 5).into_bytes(),
                1 => vec![0; (number % 23) as usize],
                2 => format!("a long key, the {:05}th of those", number % 1_000).into_bytes(),
                _ => (number * number % 20_011).to_string().into_bytes(),
            };
            let partition = Partitioning::Hash.of(&key, 3).unwrap();
            *expected.entry((partition, key.clone())).or_default() += number;
            pairs.push((key, number));
        }
        let expected: Vec<_> = expected
            .into_iter()
            .map(|((partition, key), sum)| {
                let mut value = Vec::new();
                crate::fold::put_varint(&mut value, sum);
                (partition, key, value)
            })
            .collect();
        // With a small budget there are few frequent keys, few shares and short lists.
        for budget in [64 << 10, 1 << 20, 256 << 20] {
            assert_eq!(folded::<Sum>(budget, pairs.clone()), expected, "{budget}");
        }
    }

    #[test]
    fn values_keep_the_order_in_which_they_came() {
        let documents: Vec<Vec<u8>> = (0..50_u32).map(|it| it.to_string().into_bytes()).collect();
        let key = |word: usize| (word * word % 4_099).to_string().into_bytes();
        let pairs = documents
            .iter()
            .flat_map(|document| (0..5_000).map(move |word| (key(word), &document[..])));
        let found = folded::<Distinct>(64 << 10, pairs);
        assert!(found.len() > 50 * 1_000);
        for of_key in found.chunk_by(|left, right| left.1 == right.1) {
            assert!(of_key.iter().map(|(_, _, value)| value).eq(&documents));
        }
    }

    #[test]
    fn a_key_beyond_the_limit_is_refused() {
        let mut table: Table<Sum> = Table::new(1 << 20);
        let long = vec![b'a'; KEY_BYTES_MAX + 1];
        assert_eq!(table.add(&long, 0..long.len(), 1), Err(FoldError::KeyTooLong));
        assert!(table.listed(&Partitioning::Hash, 1, Order::ByKey).unwrap().is_empty());
    }
}
