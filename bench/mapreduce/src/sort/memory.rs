//! Sorts in memory: all records are in their buckets before the first is written.

use std::sync::Mutex;

use anyhow::Result;

use super::{
    bucket::{self, Bucket},
    split::{Split, prefix},
    write_parts,
};
use crate::{
    input::{Buffer, Input},
    output::Output,
    records::RECORD_BYTES,
    threads,
};

pub(super) fn sort(input: &Input, split: &Split, output: &Output, parts: usize) -> Result<()> {
    let of_threads = threads::run(|_| distribute(input, split))?;
    let mut buckets: Vec<Vec<Bucket>> = (0..split.buckets()).map(|_| Vec::new()).collect();
    for thread in of_threads {
        thread.into_iter().zip(&mut buckets).for_each(|(bucket, all)| all.push(bucket));
    }
    // Each part is taken by one thread, which also gives its memory back.
    let mut of_parts = Vec::new();
    for part in (0..parts).rev() {
        of_parts.push(Mutex::new(buckets.split_off(split.buckets() * part / parts)));
    }
    of_parts.reverse();
    write_parts(output, parts, |part, out| {
        let mut entries = Vec::new();
        let buckets = std::mem::take(&mut *of_parts[part].lock().expect("no thread panics"));
        for bucket in buckets {
            bucket::write(&bucket, &mut entries, out)?;
        }
        Ok(())
    })
}

fn distribute(input: &Input, split: &Split) -> Result<Vec<Bucket>> {
    let mut buckets: Vec<Bucket> = (0..split.buckets()).map(|_| Bucket::default()).collect();
    let mut buffer = Buffer::default();
    while let Some(block) = input.next(&mut buffer)? {
        for record in block.lines().as_chunks::<RECORD_BYTES>().0 {
            buckets[split.bucket_of(prefix(record))].push(record);
        }
    }
    Ok(buckets)
}
