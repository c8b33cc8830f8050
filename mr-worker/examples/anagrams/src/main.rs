//! A worker with an app of its own: it finds the words of a text that are anagrams of each other.
//!
//! It is a whole `mr-worker`, with its flags, its slots and the built-in apps:
//!
//! ```sh
//! flotilla up
//! cargo run -p flotilla-example-anagrams -- --coordinator 127.0.0.1:7400 --root flotilla-data/shared
//! flotilla mr submit --app anagrams --input 'books/*.txt' --output anagrams --wait
//! ```

use mr_worker::prelude::*;

/// `letters TAB words`, for each set of letters of which a text makes more than one word.
/// `-D letters=N`: only words of so many letters or more.
struct Anagrams;

impl App for Anagrams {
    // A word that comes again and again leaves a map once.
    type Fold = Distinct;
    type Mapper = Letters;
    type Reducer = Family;

    fn name(&self) -> &'static str {
        "anagrams"
    }

    fn args(&self) -> &'static [Arg] {
        &[("letters", "only words of so many letters or more; 4 if not given")]
    }

    fn mapper(&self, context: &Context) -> Result<Letters, Failure> {
        Ok(Letters { fewest: context.args.parsed("letters", 4)?, key: Vec::new() })
    }

    fn reducer(&self, _: &Context) -> Result<Family, Failure> {
        Ok(Family)
    }
}

/// Emits each word under its letters in order.
struct Letters {
    fewest: usize,
    key: Vec<u8>,
}

impl Mapper for Letters {
    type Fold = Distinct;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Distinct>) -> Result<(), Failure> {
        for_each_word(record.value, |word| {
            if word.is_ascii() && word.len() >= self.fewest {
                let word = word.to_ascii_lowercase();
                self.key.clone_from(&word);
                self.key.sort_unstable();
                out.emit(&self.key, &word);
            }
        });
        Ok(())
    }
}

/// Lists the words that have the same letters. Memory: those of one set of letters.
struct Family;

impl Reducer for Family {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let mut words = Vec::new();
        while let Some(word) = values.next()? {
            words.push(word.to_vec());
        }
        words.sort_unstable();
        words.dedup();
        if words.len() > 1 { out.write(key, &words.join(&b' ')) } else { Ok(()) }
    }
}

mr_worker::main![Anagrams];
