//! `shardctl query` and `shardctl history`: configurations, as they are and as they followed each
//! other.

use std::collections::BTreeMap;

use client::{
    ShardClient,
    shards::{Configuration, HistoryRequest},
};
use daemon::{
    Failure,
    output::{Output, Table},
};
use serde_json::{Value, json};

use super::refused;

/// How many ranges of shards are shown to people.
const RANGES_SHOWN: usize = 8;

/// The arguments of `shardctl query`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Query {
    /// The configuration [default: the latest]
    number: Option<u64>,
    /// Ask one member for what it knows, without its leader
    #[arg(long)]
    stale: bool,
}

/// The arguments of `shardctl history`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct History {
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value = "20")]
    last: usize,
    /// Ask one member for what it knows, without its leader
    #[arg(long)]
    stale: bool,
}

pub(super) async fn query(
    client: &ShardClient,
    query: &Query,
    output: Output,
) -> Result<(), Failure> {
    let state = client.query(query.number, query.stale).await.map_err(refused)?;
    let configuration = state.configuration.unwrap_or_default();
    let latest = configuration.number == state.latest;
    let mut value = value(&configuration);
    value["latest"] = state.latest.into();
    output.result(&text(&configuration, latest), &value)
}

pub(super) async fn history(
    client: &ShardClient,
    history: &History,
    output: Output,
) -> Result<(), Failure> {
    let History { last, stale } = *history;
    // One more, to tell what the oldest of them moved.
    let (mut found, mut before) = (Vec::new(), 0);
    while found.len() <= last {
        let page = HistoryRequest { before, limit: 0, stale };
        let page = client.history(page).await.map_err(refused)?;
        found.extend(page.configurations);
        before = found.last().map_or(0, |oldest: &Configuration| oldest.number);
        if !page.more || before == 0 {
            break;
        }
    }
    let moved = |at: usize| found.get(at + 1).map(|before| moved(before, &found[at]));
    let mut table = Table::new(["NUMBER", "MOVED", "PINNED", "GROUPS"]);
    let mut values = Vec::new();
    for (at, configuration) in found.iter().enumerate().take(last) {
        table.row([
            configuration.number.to_string(),
            moved(at).map_or_else(|| "-".to_owned(), |moved| moved.to_string()),
            configuration.pins.len().to_string(),
            groups(configuration),
        ]);
        let mut value = value(configuration);
        value["moved"] = moved(at).into();
        values.push(value);
    }
    output.result(&table.text(), &json!({ "configurations": values }))
}

/// How many shards another group shall have.
fn moved(before: &Configuration, now: &Configuration) -> usize {
    let before = before.owners.iter().chain(std::iter::repeat(&0));
    before.zip(&now.owners).filter(|(before, now)| before != now).count()
}

/// The groups that take part, with weights other than 1.
fn groups(configuration: &Configuration) -> String {
    let names = configuration.weights.iter().map(|it| match it.weight {
        1 => it.group.to_string(),
        weight => format!("{} (weight {weight})", it.group),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn text(configuration: &Configuration, latest: bool) -> String {
    let Configuration { number, owners, weights, pins } = configuration;
    let latest = if latest { ", the latest" } else { "" };
    let title = format!("configuration {number}{latest}: {} shards", owners.len());
    if weights.is_empty() {
        return format!("{title}, and no group takes part");
    }
    let mut table = Table::new(["GROUP", "WEIGHT", "COUNT", "SHARDS"]);
    let shares = shares(owners);
    for it in weights {
        let shards = shares.get(&it.group).cloned().unwrap_or_default();
        let (group, weight) = (it.group.to_string(), it.weight.to_string());
        table.row([group, weight, shards.len().to_string(), ranges(shards)]);
    }
    let mut text = format!("{title}\n{}", table.text());
    for pin in pins {
        text.push_str(&format!("\nshard {} is pinned to group {}", pin.shard, pin.group));
    }
    text
}

fn value(configuration: &Configuration) -> Value {
    let Configuration { number, owners, weights, pins } = configuration;
    let weights = weights.iter().map(|it| json!({ "group": it.group, "weight": it.weight }));
    let pins = pins.iter().map(|pin| json!({ "shard": pin.shard, "group": pin.group }));
    json!({
        "number": number,
        "owners": owners.iter().map(|&owner| group_value(owner)).collect::<Vec<_>>(),
        "groups": weights.collect::<Vec<_>>(),
        "pins": pins.collect::<Vec<_>>(),
    })
}

/// The shards of each group.
pub(super) fn shares(owners: &[u32]) -> BTreeMap<u32, Vec<u32>> {
    let mut shares: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (shard, owner) in (0..).zip(owners) {
        shares.entry(*owner).or_default().push(shard);
    }
    shares
}

/// Shards in rising order for people: `0-4, 7`.
pub(super) fn ranges(shards: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for shard in shards {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == shard => *last = shard,
            Some(_) | None => ranges.push((shard, shard)),
        }
    }
    let shown = ranges.iter().take(RANGES_SHOWN).map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    let more = (ranges.len() > RANGES_SHOWN).then(|| "...".to_owned());
    shown.chain(more).collect::<Vec<_>>().join(", ")
}

/// A group for people.
pub(super) fn group_name(group: u32) -> String {
    if group == 0 { "-".to_owned() } else { group.to_string() }
}

/// A group for programs.
pub(super) fn group_value(group: u32) -> Value {
    if group == 0 { Value::Null } else { group.into() }
}

#[cfg(test)]
mod tests {
    use client::shards::{Pin, Weight};

    use super::*;

    #[test]
    fn shards_are_shown_in_ranges() {
        assert_eq!(ranges([]), "");
        assert_eq!(ranges([3]), "3");
        assert_eq!(ranges([0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges((0..40).step_by(2)), "0, 2, 4, 6, 8, 10, 12, 14, ...");
    }

    #[test]
    fn a_configuration_is_shown_by_its_groups() {
        let weight = |group, weight| Weight { group, weight };
        let configuration = Configuration {
            number: 4,
            owners: vec![1, 1, 3, 3, 3],
            weights: vec![weight(1, 1), weight(2, 0), weight(3, 2)],
            pins: vec![Pin { shard: 4, group: 3 }],
        };
        let told = "configuration 4, the latest: 5 shards\n\
                    GROUP  WEIGHT  COUNT  SHARDS\n\
                    1      1       2      0-1\n\
                    2      0       0\n\
                    3      2       3      2-4\n\
                    shard 4 is pinned to group 3";
        assert_eq!(text(&configuration, true), told);
        assert_eq!(groups(&configuration), "1, 2 (weight 0), 3 (weight 2)");
        let first = Configuration { owners: vec![1; 5], ..Configuration::default() };
        assert_eq!(moved(&first, &configuration), 3);
        assert_eq!(moved(&Configuration::default(), &first), 5);
        assert_eq!(value(&Configuration { owners: vec![0], ..first })["owners"], json!([null]));
    }
}
