//! `flotilla kv scan` and `flotilla kv compact`.

use std::ffi::OsString;

use bytes::Bytes;
use client::{Keys, KvClient, ScanOptions};
use daemon::Failure;
use serde_json::{Map, Value, json};

use super::{bytes, describe};
use crate::output::{Output, line, put_bytes, raw, refused, shown};

/// Which keys a command is about.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Range {
    /// The keys that begin with this
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["from", "to"])]
    prefix: Option<OsString>,
    /// The keys from this one on
    #[arg(long, value_name = "KEY")]
    from: Option<OsString>,
    /// The keys before this one
    #[arg(long, value_name = "KEY")]
    to: Option<OsString>,
}

impl Range {
    /// All keys, if nothing else is said.
    pub(super) fn keys(self) -> Keys {
        match self {
            Self { prefix: Some(prefix), .. } => Keys::Prefix(bytes(prefix)),
            Self { prefix: None, from: None, to: None } => Keys::all(),
            Self { prefix: None, from, to } => {
                let bound = |key: Option<OsString>| key.map_or_else(Bytes::new, bytes);
                Keys::Interval(bound(from), bound(to))
            }
        }
    }
}

/// The arguments of `flotilla kv scan`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    range: Range,
    /// At most so many pairs
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Print the keys alone, each on a line
    #[arg(long)]
    keys_only: bool,
    /// Print how many there are
    #[arg(long, conflicts_with_all = ["limit", "keys_only", "reverse", "rev", "stale"])]
    count: bool,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// As it was after this revision, for keys of one shard
    #[arg(long, value_name = "REVISION")]
    rev: Option<u64>,
    /// From whatever the member that is asked knows, however old
    #[arg(long)]
    stale: bool,
}

/// Prints pairs as they come: each page is one state of the store.
pub(super) async fn run(
    client: &KvClient,
    arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    let Arguments { range, limit, keys_only, count, reverse, rev, stale } = arguments;
    if count {
        let count = client.count(range.keys()).await.map_err(refused)?;
        return output.result(&count.to_string(), &json!({ "count": count }));
    }
    let options = ScanOptions { limit, keys_only, reverse, revision: rev, stale, position: false };
    let mut scan = client.scan(range.keys(), options);
    while let Some(page) = scan.next().await.map_err(refused)? {
        for (key, pair) in page {
            match (output.is_json(), keys_only) {
                (true, false) => line(&describe(&key, &pair).to_string())?,
                (true, true) => {
                    let mut object = Map::new();
                    put_bytes(&mut object, "key", &key);
                    line(&Value::from(object).to_string())?;
                }
                (false, true) => raw(&[&key[..], b"\n"].concat())?,
                (false, false) => line(&format!("{}\t{}", shown(&key), shown(&pair.value)))?,
            }
        }
    }
    Ok(())
}

/// Forgets the changes of one shard, or of all.
pub(super) async fn compact(
    client: &KvClient,
    shard: Option<u32>,
    rev: Option<u64>,
    output: Output,
) -> Result<(), Failure> {
    if let Some(shard) = shard {
        let upto = client.compact(shard, rev).await.map_err(refused)?;
        let text = format!("shard {shard}: forgotten up to revision {upto}");
        return output.result(&text, &json!({ "shard": shard, "compacted_revision": upto }));
    }
    let shards = client.shards().await.map_err(refused)?;
    for shard in 0..shards {
        client.compact(shard, None).await.map_err(refused)?;
    }
    output.result(&format!("all changes of {shards} shards"), &json!({ "shards": shards }))
}
