//! `shardctl wait`: until every shard is where the latest configuration wants it, or until there is
//! a configuration.

use std::time::Duration;

use client::{
    Rejected, ShardClient,
    shards::{ShardMap, ShardWatch},
};
use daemon::{Code, Failure, output::Output, progress::Progress, units};
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::refused;

/// The arguments of `shardctl wait`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// Wait until there is this configuration, or a later one, whatever moves
    #[arg(long)]
    number: Option<u64>,
}

pub(super) async fn run(
    client: &ShardClient,
    arguments: &Arguments,
    limit: Option<Duration>,
    output: Output,
) -> Result<(), Failure> {
    let began = Instant::now();
    let (mut watch, mut shown) = (client.watch(), Shown::default());
    let reached = follow(&mut watch, arguments.number, limit.is_some(), &mut shown);
    let reached = timeout(limit.unwrap_or(Duration::MAX), reached).await;
    shown.progress.finish();
    let Ok(reached) = reached else { return Err(in_vain(watch.map())) };
    let map = reached?;
    let (number, moving, took) = (map.number, moving(&map), units::duration(began.elapsed()));
    let text = format!("configuration {number}: {moving} shards are on their way, after {took}");
    output.result(&text, &json!({ "number": number, "moving": moving }))
}

/// The time is over.
fn in_vain(map: Option<&ShardMap>) -> Failure {
    let Some(map) = map else {
        return Failure::new(Code::Unreachable, "nobody answered in time");
    };
    let (number, moving) = (map.number, moving(map));
    let message = format!(
        "waited in vain: configuration {number} is the latest, and {moving} shards are on their way"
    );
    Failure::new(Code::TimedOut, message)
}

/// The map, when it has come about. Who is `patient` has said for how long, and goes on waiting for a
/// controller that can't answer.
async fn follow(
    watch: &mut ShardWatch,
    number: Option<u64>,
    patient: bool,
    shown: &mut Shown,
) -> Result<ShardMap, Failure> {
    loop {
        let map = match watch.next().await {
            Ok(map) => map,
            Err(Rejected::Unavailable(_)) if patient => continue,
            Err(rejected) => return Err(refused(rejected.into())),
        };
        if is_reached(map, number) {
            return Ok(map.clone());
        }
        shown.draw(map, number);
    }
}

fn is_reached(map: &ShardMap, number: Option<u64>) -> bool {
    match number {
        Some(number) => map.number >= number,
        // A shard that does not move is where it shall be: its move begins with the wish.
        None => moving(map) == 0,
    }
}

/// How many shards are on their way.
fn moving(map: &ShardMap) -> usize {
    map.placements.iter().filter(|placement| placement.r#move.is_some()).count()
}

/// How far it is, for people.
#[derive(Default)]
struct Shown {
    progress: Progress,
    /// The most shards that were on their way.
    most: usize,
}

impl Shown {
    fn draw(&mut self, map: &ShardMap, number: Option<u64>) {
        let moving = moving(map);
        self.most = self.most.max(moving);
        let waits = number.map_or_else(String::new, |number| format!(", waiting for {number}"));
        let text = format!("configuration {}{waits}: {moving} shards on their way", map.number);
        let (done, most) = ((self.most - moving) as u64, self.most as u64);
        self.progress.draw(done, most, &map.number.to_string(), text);
    }
}

#[cfg(test)]
mod tests {
    use client::shards::{Placement, ShardMove};

    use super::*;

    #[test]
    fn it_is_over_when_nothing_moves_or_the_number_is_there() {
        let to = |r#move| Placement { r#move, ..Placement::default() };
        let moving = Some(ShardMove { to: 2, cancelling: true });
        let mut map =
            ShardMap { number: 3, placements: vec![to(None), to(moving)], ..ShardMap::default() };
        assert!(!is_reached(&map, None));
        assert!(is_reached(&map, Some(3)) && !is_reached(&map, Some(4)));
        map.placements[1].r#move = None;
        assert!(is_reached(&map, None));
    }
}
