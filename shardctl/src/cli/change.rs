//! `shardctl join`, `leave`, `weigh`, `move`, `unpin`, `adopt`, and `plan` with any of them: asks for
//! a configuration, or what would come of one, and tells what moves.

use std::collections::BTreeMap;

use client::{
    ShardClient,
    shards::{self, Changed, Joining},
};
use daemon::{
    Failure,
    output::{Output, Table},
};
use serde_json::{Value, json};

use super::{
    refused,
    show::{group_name, group_value, ranges},
};

/// What is to change.
#[derive(clap::Subcommand, Clone, Debug)]
pub(super) enum Change {
    /// Groups take part, and get their share of the shards
    Join {
        /// A group, and where its members are; without that if it has reported itself
        #[arg(value_name = "GROUP[=HOST:PORT,...]", value_parser = joining, required = true)]
        groups: Vec<Joining>,
        /// How much each shall have beside others [default: 1]
        #[arg(long)]
        weight: Option<u32>,
        /// Change nothing if there ever was a change; for scripts that set a cluster up
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        first: First,
    },
    /// Groups take part no more, and give up what they have
    Leave {
        /// The groups
        #[arg(value_name = "GROUP", value_parser = group(), required = true)]
        groups: Vec<u32>,
    },
    /// Give a group that takes part another weight
    Weigh {
        /// The group
        #[arg(value_parser = group())]
        group: u32,
        /// How much it shall have beside others; 0: only what is pinned to it
        weight: u32,
    },
    /// Give a shard to a group, and pin it there
    Move {
        /// The shard
        shard: u32,
        /// The group
        #[arg(value_parser = group())]
        group: u32,
    },
    /// Let a shard that was moved go where it is best
    Unpin {
        /// The shard
        shard: u32,
    },
    /// Let a group that was alone take part, with all the data that it has; only as the first change
    Adopt {
        /// The group, which must have reported itself
        #[arg(value_parser = group())]
        group: u32,
        #[command(flatten)]
        first: First,
    },
}

/// What only the first change can say.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct First {
    /// How many shards there are, for ever; said with the first change [default: the controller's
    /// setting]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    shards: Option<u32>,
}

fn group() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// `3`, or `3=host:port,host:port`.
fn joining(text: &str) -> Result<Joining, String> {
    let (group, members) = match text.split_once('=') {
        Some((group, members)) => (group, members.split(',').map(str::to_owned).collect()),
        None => (text, Vec::new()),
    };
    let group = group.parse().ok().filter(|group| *group > 0);
    let group = group.ok_or("groups are numbers from 1 on: 3, or 3=HOST:PORT,HOST:PORT")?;
    if members.iter().any(String::is_empty) {
        return Err("a member without an address".to_owned());
    }
    Ok(Joining { group, weight: None, members })
}

impl Change {
    /// Asks for it.
    pub(super) async fn run(self, client: &ShardClient, output: Output) -> Result<(), Failure> {
        if let Self::Join { once: true, .. } = self {
            let number = client.query(None, false).await.map_err(refused)?.latest;
            if number > 0 {
                let text = format!("configuration {number}: groups took part before");
                return output.result(&text, &value(&Changed { number, ..Changed::default() }));
            }
        }
        let (change, shards) = self.asked();
        let changed = client.change(&change, shards).await.map_err(refused)?;
        tell(&changed, "configuration", output)
    }

    /// Asks what would come of it.
    pub(super) async fn plan(self, client: &ShardClient, output: Output) -> Result<(), Failure> {
        let (change, shards) = self.asked();
        let changed = client.plan(&change, shards).await.map_err(refused)?;
        tell(&changed, "it would be configuration", output)
    }

    /// What the client library calls it, and of how many shards.
    fn asked(self) -> (shards::Change, Option<u32>) {
        match self {
            Self::Join { mut groups, weight, once: _, first } => {
                groups.iter_mut().for_each(|joining| joining.weight = weight);
                (shards::Change::Join(groups), first.shards)
            }
            Self::Leave { groups } => (shards::Change::Leave(groups), None),
            Self::Weigh { group, weight } => (shards::Change::Weigh { group, weight }, None),
            Self::Move { shard, group } => (shards::Change::Move { shard, group }, None),
            Self::Unpin { shard } => (shards::Change::Unpin(shard), None),
            Self::Adopt { group, first } => (shards::Change::Adopt(group), first.shards),
        }
    }
}

fn tell(changed: &Changed, what: &str, output: Output) -> Result<(), Failure> {
    output.result(&text(changed, what), &value(changed))
}

fn text(changed: &Changed, what: &str) -> String {
    let Changed { number, duplicate, moves } = changed;
    let many = match (duplicate, moves.len()) {
        (true, _) => return format!("{what} {number}; it was done before this answer"),
        (false, 0) => return format!("{what} {number}: no shard moves"),
        (false, 1) => "1 shard moves".to_owned(),
        (false, many) => format!("{many} shards move"),
    };
    let mut ways: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for moved in moves {
        ways.entry((moved.from, moved.to)).or_default().push(moved.shard);
    }
    let mut table = Table::new(["FROM", "TO", "COUNT", "SHARDS"]);
    for ((from, to), shards) in ways {
        let count = shards.len().to_string();
        table.row([group_name(from), group_name(to), count, ranges(shards)]);
    }
    format!("{what} {number}: {many}\n{}", table.text())
}

fn value(changed: &Changed) -> Value {
    let moves = changed.moves.iter().map(|moved| {
        let (from, to) = (group_value(moved.from), group_value(moved.to));
        json!({ "shard": moved.shard, "from": from, "to": to })
    });
    json!({
        "number": changed.number,
        "duplicate": changed.duplicate,
        "moves": moves.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use client::shards::Reassigned;

    use super::*;

    #[test]
    fn groups_are_named_with_or_without_their_members() {
        let members = vec!["a:1".to_owned(), "b:2".to_owned()];
        assert_eq!(joining("3=a:1,b:2"), Ok(Joining { group: 3, weight: None, members }));
        assert_eq!(joining("3"), Ok(Joining { group: 3, ..Joining::default() }));
        for wrong in ["", "0", "-1", "x", "=a:1", "3=", "3=a:1,", "4294967296"] {
            assert!(joining(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn moves_are_told_by_their_ways() {
        let moved = |shard, from, to| Reassigned { shard, from, to };
        let moves = vec![moved(0, 0, 1), moved(3, 2, 1), moved(4, 2, 1), moved(7, 2, 1)];
        let mut changed = Changed { number: 9, duplicate: false, moves };
        let told = "configuration 9: 4 shards move\n\
                    FROM  TO  COUNT  SHARDS\n\
                    -     1   1      0\n\
                    2     1   3      3-4, 7";
        assert_eq!(text(&changed, "configuration"), told);
        assert_eq!(value(&changed)["moves"][0], json!({ "shard": 0, "from": null, "to": 1 }));
        changed.duplicate = true;
        assert!(text(&changed, "configuration").contains("done before"));
        changed.moves.clear();
        changed.duplicate = false;
        assert_eq!(text(&changed, "configuration"), "configuration 9: no shard moves");
    }
}
