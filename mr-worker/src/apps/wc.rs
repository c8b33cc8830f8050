//! `wc`: how often each word occurs, as the labs have it. Counts are added up in the map, so the
//! reduce adds where the labs' counts values.

use std::io::Write;

use crate::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    codec::number,
    failure::Failure,
    fold::Count,
    record::{Block, Record},
    words::for_each_place,
};

/// The word count.
#[derive(Debug, Clone, Copy)]
pub struct WordCount;

impl App for WordCount {
    type Fold = Count;
    type Mapper = Words;
    type Reducer = Total;

    fn name(&self) -> &'static str {
        "wc"
    }

    fn mapper(&self, _: &Context) -> Result<Words, Failure> {
        Ok(Words)
    }

    fn reducer(&self, _: &Context) -> Result<Total, Failure> {
        Ok(Total::default())
    }
}

/// Emits 1 for each word.
#[derive(Debug, Clone, Copy)]
pub struct Words;

impl Mapper for Words {
    type Fold = Count;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Count>) -> Result<(), Failure> {
        for_each_place(record.value, |word| out.emit_part(record.value, word, ()));
        Ok(())
    }

    // A line feed is no letter, so the words of a block are those of its lines.
    fn map_block(&mut self, block: Block<'_>, out: &mut Emitter<'_, Count>) -> Result<(), Failure> {
        if !block.is_text() {
            return self.map_records(block, out);
        }
        for_each_place(block.bytes, |word| out.emit_part(block.bytes, word, ()));
        Ok(())
    }
}

/// Adds up the counts of a word.
#[derive(Debug, Default)]
pub struct Total {
    text: Vec<u8>,
}

impl Reducer for Total {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let mut total = 0_u64;
        while let Some(value) = values.next()? {
            let sum = total.checked_add(number(value)?);
            total = sum.ok_or_else(|| Failure::user("a count exceeds 64 bits"))?;
        }
        self.text.clear();
        write!(self.text, "{total}").expect("memory takes what is written to it");
        out.write(key, &self.text)
    }
}
