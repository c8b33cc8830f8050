//! `indexer`: which documents hold each word, as the labs have it: their number, and their paths as
//! the user named them, in byte order.
//!
//! A document that was split counts once all the same, since the reduce drops repetitions.

use std::{io::Write, mem};

use crate::{
    app::{App, Context, Emitter, Mapper, Output, Reducer, Values},
    failure::Failure,
    fold::Distinct,
    record::{Block, Record},
    words::for_each_place,
};

/// The inverted index.
#[derive(Debug, Clone, Copy)]
pub struct Indexer;

impl App for Indexer {
    type Fold = Distinct;
    type Mapper = Mentions;
    type Reducer = Index;

    fn name(&self) -> &'static str {
        "indexer"
    }

    fn mapper(&self, _: &Context) -> Result<Mentions, Failure> {
        Ok(Mentions)
    }

    fn reducer(&self, _: &Context) -> Result<Index, Failure> {
        Ok(Index::default())
    }
}

/// Emits the document for each word; repetitions fold away at once.
#[derive(Debug, Clone, Copy)]
pub struct Mentions;

impl Mapper for Mentions {
    type Fold = Distinct;

    fn map(&mut self, record: Record<'_>, out: &mut Emitter<'_, Distinct>) -> Result<(), Failure> {
        for_each_place(record.value, |word| {
            out.emit_part(record.value, word, record.document.as_bytes());
        });
        Ok(())
    }

    // A line feed is no letter, so the words of a block are those of its lines.
    fn map_block(
        &mut self,
        block: Block<'_>,
        out: &mut Emitter<'_, Distinct>,
    ) -> Result<(), Failure> {
        if !block.is_text() {
            return self.map_records(block, out);
        }
        for_each_place(block.bytes, |word| {
            out.emit_part(block.bytes, word, block.document.as_bytes());
        });
        Ok(())
    }
}

/// Lists the documents of a word. Memory: the paths of one word's documents.
#[derive(Debug, Default)]
pub struct Index {
    text: Vec<u8>,
}

impl Reducer for Index {
    fn reduce(
        &mut self,
        key: &[u8],
        values: &mut Values<'_>,
        out: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let mut documents: Vec<Vec<u8>> = Vec::new();
        while let Some(document) = values.next()? {
            documents.push(document.to_vec());
        }
        documents.sort_unstable();
        documents.dedup();
        let mut text = mem::take(&mut self.text);
        text.clear();
        write!(text, "{} ", documents.len()).expect("memory takes what is written to it");
        for (place, document) in documents.iter().enumerate() {
            if place > 0 {
                text.push(b',');
            }
            text.extend_from_slice(document);
        }
        out.write(key, &text)?;
        self.text = text;
        Ok(())
    }
}
