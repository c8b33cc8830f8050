//! The third act: a second group takes over half of the shards while they are written to.

use std::path::Path;
use std::time::Duration;

use client::shards::{Change, ShardMap};
use client::{KvClient, Options, ShardClient};
use daemon::Failure;
use shardctl::picture;
use tokio::time::Instant;

use super::load::{Acknowledged, Told, WRITERS, Writers, missing};
use super::report::Story;
use super::{READY_TIMEOUT, binary};
use crate::local::{Cluster, Plan, sharing};
use crate::output::{malformed, refused};
use crate::units;

/// How many groups there are, and how many members each has.
const GROUPS: u16 = 2;
const MEMBERS: u16 = 3;

/// How many shards there are: one row of the picture.
const SHARDS: u32 = 64;

/// How many writes are acknowledged before the second group joins, and how many at least in all.
const WRITES_BEFORE: usize = 500;
const WRITES_MIN: usize = 1_000;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Plays the act in a directory of its own.
pub(super) async fn act(dir: &Path, story: &mut Story) -> Result<(), Failure> {
    story.chapter("A second group takes over half of the keys while they are written to")?;
    let mut plan = Plan::new(binary()?, dir, MEMBERS, 0);
    (plan.groups, plan.controllers) = (GROUPS, 1);
    plan.further.kvd = vec![format!("--shards={SHARDS}")];
    plan.further.shardctl = vec![format!("--shards={SHARDS}")];
    let mut cluster = Cluster::start(&plan)?;
    cluster.ready(READY_TIMEOUT).await?;
    let shards = sharing::controller(cluster.description(), PATIENCE)?;
    join(&shards, &cluster, 1).await?;
    let before = sharing::settled(&shards, PATIENCE).await?;
    story.say(&format!(
        "Two groups of {MEMBERS} kvd and a shard controller. Keys are hashed onto {SHARDS} shards, \
         and group 1 has them all:"
    ))?;
    draw(&before, story)?;

    let controllers = cluster.description().controller_endpoints();
    let options = Options::with_deadline(PATIENCE);
    let client = KvClient::connect_sharded(controllers, options).map_err(malformed)?;
    let joined = write_over_a_join(&client, &shards, &cluster).await?;
    story.say(&format!(
        "Group 2 joined while {WRITERS} clients wrote without a pause. Half of the shards moved in \
         {}:",
        units::duration(joined.took)
    ))?;
    draw(&joined.map, story)?;
    tell(&client, joined, story).await?;
    let stray = cluster.take_ended();
    story.check("no process of the groups ended".to_owned(), stray.is_empty())?;
    cluster.stop().await;
    Ok(())
}

async fn join(shards: &ShardClient, cluster: &Cluster, group: u16) -> Result<(), Failure> {
    let join = Change::Join(vec![sharing::joining(cluster.description(), group)]);
    shards.change(&join, Some(SHARDS)).await.map_err(refused).map(drop)
}

fn draw(map: &ShardMap, story: &Story) -> Result<(), Failure> {
    story.say(&picture::draw(&map.placements, picture::may_have_colours()))
}

/// What came of writing while shards moved.
struct Joined {
    map: ShardMap,
    began: Instant,
    took: Duration,
    acknowledged: Vec<Acknowledged>,
    unknown: u64,
}

async fn write_over_a_join(
    client: &KvClient,
    shards: &ShardClient,
    cluster: &Cluster,
) -> Result<Joined, Failure> {
    let mut writers = Writers::start(client);
    let (mut acknowledged, mut unknown) = (Vec::new(), 0);
    let mut take = |told: Told| match told {
        Told::Acknowledged(write) => {
            acknowledged.push(write);
            Ok(acknowledged.len())
        }
        Told::Unknown => {
            unknown += 1;
            Ok(acknowledged.len())
        }
        Told::Failed(failure) => Err(failure),
    };
    let deadline = Instant::now() + PATIENCE;
    let mut count = 0;
    while count < WRITES_BEFORE {
        count = take(writers.next(deadline).await?)?;
    }
    let began = Instant::now();
    join(shards, cluster, 2).await?;
    let settled = sharing::settled(shards, PATIENCE);
    tokio::pin!(settled);
    let map = loop {
        tokio::select! {
            biased;
            map = &mut settled => break map?,
            news = writers.next(deadline) => count = take(news?)?,
        }
    };
    let took = began.elapsed();
    while count < WRITES_MIN {
        count = take(writers.next(deadline).await?)?;
    }
    writers.stop();
    while let Some(last) = writers.told.recv().await {
        take(last)?;
    }
    Ok(Joined { map, began, took, acknowledged, unknown })
}

/// What is to be checked, and what was measured.
async fn tell(client: &KvClient, joined: Joined, story: &mut Story) -> Result<(), Failure> {
    let Joined { map, began, took, acknowledged, unknown } = joined;
    let total = acknowledged.len() as u64;
    let during = acknowledged.iter().filter(|it| it.at >= began && it.asked <= began + took);
    let longest = during.map(|write| write.at - write.asked).max().unwrap_or_default();
    let has = |group| map.placements.iter().filter(|placement| placement.owner == group).count();
    story.check(
        format!("each group has {} of the {SHARDS} shards", SHARDS / 2),
        has(1) == has(2) && has(1) + has(2) == SHARDS as usize,
    )?;
    story.check(
        format!("none of {} requests failed", units::count(total + unknown)),
        unknown == 0,
    )?;
    let missing = missing(client, acknowledged).await?;
    story.check(
        format!("all {} acknowledged writes are there after the move", units::count(total)),
        missing == 0,
    )?;
    story.duration("move_ms", "to move half of the shards while they were written to", took);
    story.duration("longest_write_ms", "the longest write while they moved", longest);
    story.number("writes_over_moves", total);
    story.number("missing_writes_over_moves", missing);
    Ok(())
}
