//! `flotilla kv watch`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use client::{Event, Keys, KvClient, Pair, WatchOptions, Watched};
use daemon::{Code, Failure};
use serde_json::{Map, Value, json};

use super::{bytes, scan::Range};
use crate::output::{Output, line, put_bytes, refused, shown};

/// The arguments of `flotilla kv watch`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// The keys [default: those of the range, or all]
    #[arg(conflicts_with_all = ["prefix", "from", "to"])]
    keys: Vec<OsString>,
    #[command(flatten)]
    range: Range,
    /// Begin behind these revisions [default: with what changes now]
    #[arg(long, value_name = "SHARD:REVISION,...", value_delimiter = ',', value_parser = position)]
    after: Vec<(u32, u64)>,
    /// Tell what was there before each change, too
    #[arg(long)]
    previous: bool,
    /// End after so many changes
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
}

/// Prints changes until Ctrl-C. The changes of one revision are atomic: as JSON they are one line.
pub(super) async fn run(
    client: &KvClient,
    arguments: Arguments,
    output: Output,
) -> Result<(), Failure> {
    let Arguments { keys, range, after, previous, count } = arguments;
    let keys: Vec<Keys> = match keys.is_empty() {
        true => vec![range.keys()],
        false => keys.into_iter().map(|key| Keys::One(bytes(key))).collect(),
    };
    let options = WatchOptions { after: BTreeMap::from_iter(after), previous };
    let mut watch = client.watch(keys, options);
    let mut told = 0;
    while count.is_none_or(|count| told < count) {
        let next = watch.next().await.map_err(|rejected| refused(rejected.into()))?;
        match next {
            None => break,
            Some(Watched::Progress) => {}
            Some(Watched::Changed { shard, revision, events }) => {
                told += events.len() as u64;
                tell(shard, revision, &events, output)?;
            }
            Some(Watched::Compacted { shard, revision }) => {
                let message = format!(
                    "the changes up to revision {revision} of shard {shard} are compacted: read \
                     what is there now, and watch from there"
                );
                return Err(Failure::new(Code::NotFound, message));
            }
        }
    }
    Ok(())
}

fn tell(shard: u32, revision: u64, events: &[Event], output: Output) -> Result<(), Failure> {
    if output.is_json() {
        let events: Vec<Value> = events.iter().map(value).collect();
        let changed = json!({ "shard": shard, "revision": revision, "events": events });
        return line(&changed.to_string());
    }
    for event in events {
        let what = match &event.pair {
            Some(pair) => format!("put     {}\t{}", shown(&event.key), shown(&pair.value)),
            None if event.expired => format!("expired {}", shown(&event.key)),
            None => format!("deleted {}", shown(&event.key)),
        };
        let before = event.previous.as_ref();
        let before =
            before.map_or_else(String::new, |pair| format!("\twas {}", shown(&pair.value)));
        line(&format!("{shard}:{revision} {what}{before}"))?;
    }
    Ok(())
}

fn value(event: &Event) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", &event.key);
    let mut put = |name: &str, pair: &Pair| {
        let mut inner = Map::new();
        put_bytes(&mut inner, "value", &pair.value);
        inner.insert("version".to_owned(), pair.version.into());
        inner.insert("create_revision".to_owned(), pair.create_revision.into());
        inner.insert("mod_revision".to_owned(), pair.mod_revision.into());
        object.insert(name.to_owned(), inner.into());
    };
    if let Some(pair) = &event.pair {
        put("pair", pair);
    }
    if let Some(pair) = &event.previous {
        put("previous", pair);
    }
    object.insert("expired".to_owned(), event.expired.into());
    object.into()
}

fn position(text: &str) -> Result<(u32, u64), String> {
    let position = text.split_once(':');
    position
        .and_then(|(shard, revision)| Some((shard.parse().ok()?, revision.parse().ok()?)))
        .ok_or_else(|| "not a shard and a revision, such as 17:1200".to_owned())
}
