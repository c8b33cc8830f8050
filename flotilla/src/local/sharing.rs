//! The groups of a local cluster that share the shards: how they come to take part.
//!
//! Decides when that is done by itself: only as the first change that there ever is, so what an
//! operator changes later stays. Whether it was done is known to the shard controller alone.

use std::time::Duration;

use client::shards::{Change, Joining, ShardMap};
use client::{Options, ShardClient};
use daemon::{Code, Failure};
use tokio::time::timeout;

use super::Description;
use crate::output::{malformed, refused};

/// A client of the cluster's shard controller, which tries so long.
///
/// # Errors
/// Wrong call, when the cluster has none.
pub fn controller(description: &Description, deadline: Duration) -> Result<ShardClient, Failure> {
    let endpoints = description.controller_endpoints();
    ShardClient::connect(endpoints, Options::with_deadline(deadline)).map_err(malformed)
}

/// A group that takes part, as the controller is told of it.
pub fn joining(description: &Description, group: u16) -> Joining {
    let members = description.group_endpoints(group);
    Joining { group: group.into(), weight: None, members }
}

/// Has all groups take part, unless there ever was a change. Whether it did.
///
/// # Errors
/// What the controller answers; [`Code::Unknown`] means that it may be done.
pub async fn join_once(client: &ShardClient, description: &Description) -> Result<bool, Failure> {
    if client.query(None, false).await.map_err(refused)?.latest > 0 {
        return Ok(false);
    }
    let all = (1..=description.groups).map(|group| joining(description, group)).collect();
    client.change(&Change::Join(all), None).await.map_err(refused)?;
    Ok(true)
}

/// Waits until some group has each shard, wherever it shall go.
///
/// # Errors
/// Failed, when that takes longer than `limit`; what the controller answers.
pub async fn placed(client: &ShardClient, limit: Duration) -> Result<ShardMap, Failure> {
    wait(client, limit, "some shards are still in no group", |map| homeless(map) == 0).await
}

/// Waits until some group has each shard, and none is on its way.
///
/// # Errors
/// As [`placed`].
pub async fn settled(client: &ShardClient, limit: Duration) -> Result<ShardMap, Failure> {
    let rests = |map: &ShardMap| {
        homeless(map) == 0 && map.placements.iter().all(|placement| placement.r#move.is_none())
    };
    wait(client, limit, "some shards are still on their way", rests).await
}

/// How many shards are in no group; without a configuration there is none that could be.
fn homeless(map: &ShardMap) -> usize {
    match map.placements.len() {
        0 => 1,
        _ => map.placements.iter().filter(|placement| placement.owner == 0).count(),
    }
}

async fn wait(
    client: &ShardClient,
    limit: Duration,
    what_is_wrong: &str,
    holds: impl Fn(&ShardMap) -> bool,
) -> Result<ShardMap, Failure> {
    let mut watch = client.watch();
    let waited = async {
        loop {
            let map = watch.next().await.map_err(|rejected| refused(rejected.into()))?;
            if holds(map) {
                return Ok(map.clone());
            }
        }
    };
    let late = |_| Err(Failure::new(Code::Failed, format!("{what_is_wrong} after {limit:?}")));
    timeout(limit, waited).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use client::shards::Placement;

    use super::*;

    #[test]
    fn a_shard_without_a_group_is_homeless_and_so_are_all_that_do_not_exist_yet() {
        let of = |owner| Placement { owner, ..Placement::default() };
        let map = |placements| ShardMap { placements, ..ShardMap::default() };
        assert_eq!(homeless(&map(vec![of(1), of(0), of(2)])), 1);
        assert_eq!(homeless(&map(vec![of(1), of(2)])), 0);
        assert_eq!(homeless(&map(Vec::new())), 1);
    }
}
