//! `top`: the `k` keys with the greatest numbers, of key-value lines such as `wc` leaves: the
//! greatest first, equal ones in the order of their keys.
//!
//! Numbers of a key that occurs on several lines are not added up: it is as good as its best. Each
//! map hands on its own best `k` only, all under one key, so that one reduce sees them all.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    io::Write,
};

use crate::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    args::Arg,
    codec::{Bytes, Descending, KeyCodec, Unsigned},
    failure::Failure,
    fold::Keep,
    record::{Record, parted},
};

/// The selection.
#[derive(Debug, Clone, Copy)]
pub struct Top;

const ARGS: &[Arg] = &[("k", "how many; default 10")];

/// The most that may be asked for: each map holds as many.
const K_MAX: usize = 1_000_000;

/// The greatest number first, then the key.
type Rank = (Descending<Unsigned>, Bytes);

impl App for Top {
    type Fold = Keep;
    type Mapper = Best;
    type Reducer = Best;

    fn name(&self) -> &'static str {
        "top"
    }

    fn args(&self) -> &'static [Arg] {
        ARGS
    }

    fn mapper(&self, task: &Context) -> Result<Best, Failure> {
        Best::new(task)
    }

    fn reducer(&self, task: &Context) -> Result<Best, Failure> {
        Best::new(task)
    }
}

/// The best that were seen.
#[derive(Debug)]
pub struct Best {
    k: usize,
    ranks: BTreeSet<(Reverse<u64>, Vec<u8>)>,
    /// The number of each key in `ranks`: its best.
    numbers: HashMap<Vec<u8>, u64>,
}

impl Best {
    fn new(task: &Context) -> Result<Self, Failure> {
        if task.partitions == 0 {
            return Err(Failure::fatal("top needs a reduce"));
        }
        let k = task.args.parsed("k", 10)?;
        if !(1..=K_MAX).contains(&k) {
            return Err(Failure::fatal(format!("the argument k is {k}, not 1 to {K_MAX}")));
        }
        Ok(Self { k, ranks: BTreeSet::new(), numbers: HashMap::new() })
    }

    fn offer(&mut self, number: u64, key: &[u8]) {
        if self.ranks.len() == self.k
            && let Some((Reverse(least), greatest_key)) = self.ranks.last()
            && (Reverse(number), key) >= (Reverse(*least), &greatest_key[..])
        {
            return;
        }
        match self.numbers.get(key).copied() {
            Some(best) if best >= number => return,
            Some(best) => drop(self.ranks.remove(&(Reverse(best), key.to_vec()))),
            None => {}
        }
        self.numbers.insert(key.to_vec(), number);
        self.ranks.insert((Reverse(number), key.to_vec()));
        if self.ranks.len() > self.k
            && let Some((_, last)) = self.ranks.pop_last()
        {
            self.numbers.remove(&last);
        }
    }
}

impl Mapper for Best {
    type Fold = Keep;

    fn map(&mut self, record: Record<'_>, _: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        // A plain line is parted here, so that both formats will do.
        let (key, value) = match record.key {
            [] => parted(record.value),
            key => (key, record.value),
        };
        let number = str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
        let number = number.ok_or_else(|| {
            Failure::user("the line is not a key, a TAB and a number from 0 to 2^64 - 1")
        })?;
        self.offer(number, key);
        Ok(())
    }

    fn finish(&mut self, out: &mut Emitter<'_, Keep>) -> Result<(), Failure> {
        let mut rank = Vec::new();
        for (number, key) in &self.ranks {
            rank.clear();
            Rank::encode((number.0, key), &mut rank);
            out.emit(b"", &rank);
        }
        Ok(())
    }
}

impl Reducer for Best {
    fn reduce(
        &mut self,
        _key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        while let Some(value) = values.next()? {
            let (Reverse(number), key) = Rank::decode(value)?;
            self.offer(number, &key);
        }
        let mut text = Vec::new();
        for (Reverse(number), key) in &self.ranks {
            text.clear();
            write!(text, "{number}").expect("memory takes what is written to it");
            out.write(key, &text)?;
        }
        Ok(())
    }
}
