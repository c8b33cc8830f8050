//! The daemon's life: what it serves, and when it must not go on.

use std::time::Duration;

use daemon::{Failure, Shutdown};
use raftd::{Handle, Refused, Served, cli::Configuration};
use tonic::service::Routes;

use crate::{
    KvMachine,
    config::{Config, NAME},
    outcome::{Answer, Query},
    requests::Requests,
    service,
};

/// The services that the health service speaks for.
const SERVICES: &[&str] = &["flotilla.kv.v1.Kv", "flotilla.admin.v1.Admin"];

/// Runs a member until shutdown, as [`Served::run`].
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    config.check()?;
    let addresses = &config.addresses()?;
    let (shards, limits) = (config.shards, config.pair_limits());
    let deadline = Duration::from_millis(config.deadline_ms);
    let requests = |handle: &Handle<KvMachine>| Requests::new(handle.clone(), shards, limits);
    let peers = |handle: &Handle<KvMachine>, routes: Routes| {
        routes.add_service(service::forward(requests(handle)))
    };
    let clients = |handle: &Handle<KvMachine>, routes: Routes| {
        routes.add_service(service::kv(requests(handle), deadline))
    };
    let watch = |handle| check_shards(handle, shards);
    Served { name: NAME, services: SERVICES, addresses, group: &config.group }
        .run(KvMachine::new(shards), peers, clients, watch, shutdown)
        .await
}

/// Ends when the cluster turns out to have been created with another number of shards than this
/// member's setting says: it would place keys wrongly.
async fn check_shards(handle: Handle<KvMachine>, shards: u32) -> Failure {
    let mut status = handle.watch_status();
    loop {
        match handle.query_stale(Query::Created).await {
            Ok(Answer::Created(Some(created))) if created != shards => {
                return Failure::configuration(format!(
                    "shards is {shards}, but this cluster was created with {created}"
                ));
            }
            Ok(Answer::Created(Some(_))) => return std::future::pending().await,
            Ok(Answer::Created(None) | Answer::Pair(..) | Answer::Time(_))
            | Err(
                Refused::NotLeader { .. }
                | Refused::Overtaken
                | Refused::Transferring
                | Refused::Overloaded { .. }
                | Refused::TooLarge { .. }
                | Refused::LowSpace
                | Refused::Deadline
                | Refused::Shutdown
                | Refused::Unborn,
            ) => {}
        }
        let before = status.borrow_and_update().applied;
        if status.wait_for(|status| status.applied != before).await.is_err() {
            return std::future::pending().await;
        }
    }
}
