//! A store of several groups that share the shards, for benchmarks.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use client::handoff::{HandoffClient, ShardPhase};
use client::shards::{Change, ShardMap};
use client::{KvClient, Options, ShardClient};
use daemon::{Code, Failure};
use futures::stream::{StreamExt, iter};
use proto::admin::Role;
use tokio::time::{sleep, timeout};

use super::own::Own;
use crate::local::Instance;
use crate::local::sharing::{self, joining};
use crate::output::malformed;

/// How long a change may take until all shards are where they shall be.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);

/// How long a member may take to say how it is, and how often it is asked.
const STATUS_LIMIT: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How many puts fill the store at a time.
const FILL_AHEAD: usize = 256;

/// How long a client tries.
const DEADLINE: Duration = Duration::from_secs(30);

/// The store, and who says where its shards are.
pub(super) struct Groups {
    pub(super) own: Own,
    pub(super) shards: ShardClient,
}

impl Groups {
    /// Starts so many groups of so many members, of which the first few take part, and waits until
    /// each of those has its shards.
    pub(super) async fn start(
        dir: Option<&Path>,
        groups: u16,
        joined: u16,
        members: u16,
        shards: u32,
    ) -> Result<Self, Failure> {
        let own = Own::start(dir, |plan| {
            (plan.kv, plan.groups, plan.controllers) = (members, groups, 1);
            plan.further.kvd = vec![format!("--shards={shards}")];
        })
        .await?;
        let shards_client = sharing::controller(own.cluster.description(), DEADLINE)?;
        let started = Self { shards: shards_client, own };
        let description = started.own.cluster.description();
        let join = Change::Join((1..=joined).map(|group| joining(description, group)).collect());
        started.shards.change(&join, Some(shards)).await.map_err(failed)?;
        started.settle().await?;
        Ok(started)
    }

    /// Lets a group take part, and waits until it has its shards: how many have moved.
    pub(super) async fn join(&self, group: u16) -> Result<usize, Failure> {
        let join = Change::Join(vec![joining(self.own.cluster.description(), group)]);
        let changed = self.shards.change(&join, None).await.map_err(failed)?;
        self.settle().await?;
        Ok(changed.moves.len())
    }

    /// A client that sends each request to the group that has its shard.
    pub(super) fn kv(&self) -> Result<KvClient, Failure> {
        let controllers = self.own.cluster.description().controller_endpoints();
        let options = Options::with_deadline(DEADLINE);
        KvClient::connect_sharded(controllers, options).map_err(malformed)
    }

    /// Kills the leader of a group as soon as a shard leaves that; who that was.
    pub(super) async fn kill_leader_of(
        &mut self,
        group: u32,
        shard: u32,
    ) -> Result<Instance, Failure> {
        let group = u16::try_from(group).map_err(failed)?;
        let members = self.own.cluster.description().group(group);
        let endpoints = self.own.cluster.description().group_endpoints(group);
        let leaves = async {
            loop {
                for (number, endpoint) in members.clone().zip(&endpoints) {
                    let status = client::admin::status(endpoint, STATUS_LIMIT).await;
                    let leads = status.is_ok_and(|status| status.role() == Role::Leader);
                    if leads && is_leaving(endpoint, shard).await? {
                        return Ok::<_, Failure>(number);
                    }
                }
                sleep(LOOK_INTERVAL).await;
            }
        };
        let number = timeout(SETTLE_LIMIT, leaves).await.map_err(failed)??;
        let leader = Instance::Kvd(number);
        self.own.cluster.kill(leader)?;
        Ok(leader)
    }

    /// Waits until every shard is where it shall be.
    pub(super) async fn settle(&self) -> Result<ShardMap, Failure> {
        sharing::settled(&self.shards, SETTLE_LIMIT).await
    }

    /// Puts all of these, some at a time.
    pub(super) async fn fill(
        kv: &KvClient,
        keys: impl Iterator<Item = String>,
        value: &Bytes,
    ) -> Result<(), Failure> {
        let puts = keys.map(|key| async { kv.put(key, value.clone()).await.map_err(failed) });
        let mut puts = iter(puts).buffer_unordered(FILL_AHEAD);
        while let Some(put) = puts.next().await {
            put?;
        }
        Ok(())
    }
}

async fn is_leaving(endpoint: &str, shard: u32) -> Result<bool, Failure> {
    let client = HandoffClient::connect(&[endpoint.to_owned()], Options::default());
    let standings = client.map_err(malformed)?.inspect().await.map_err(failed)?;
    let standing = standings.shards.get(shard as usize);
    Ok(standing.is_some_and(|standing| standing.phase() == ShardPhase::Leaving))
}

/// Why a benchmark ends.
pub(super) fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::new(Code::Failed, "the benchmark can't go on").because(error)
}
