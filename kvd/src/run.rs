//! The daemon's life: what it serves, and when it must not go on.

use std::{sync::OnceLock, time::Duration};

use daemon::{Failure, Shutdown};
use raftd::{Handle, Refused, Served, cli::Configuration};
use tonic::service::Routes;

use crate::{
    KvMachine,
    config::{Config, NAME},
    expiry, locks,
    outcome::{Answer, Query},
    requests::Requests,
    service,
    watch::Watches,
};

/// The services that the health service speaks for.
const SERVICES: &[&str] = &[
    "flotilla.kv.v1.Kv",
    "flotilla.kv.v1.Leases",
    "flotilla.lock.v1.Lock",
    "flotilla.admin.v1.Admin",
];

/// Runs a member until shutdown, as [`Served::run`].
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    config.check()?;
    let addresses = &config.addresses()?;
    let (shards, terms) = (config.shards, config.terms());
    let deadline = Duration::from_millis(config.deadline_ms);
    let shared = OnceLock::new();
    let requests = |handle: &Handle<KvMachine>| {
        shared.get_or_init(|| Requests::new(handle.clone(), terms)).clone()
    };
    let peers = |handle: &Handle<KvMachine>, routes: Routes| {
        let requests = requests(handle);
        routes.add_service(service::forward(requests.clone())).add_service(locks::forward(requests))
    };
    let (pipeline, stopping) = (config.pipeline_limits(), shutdown.clone());
    let clients = |handle: &Handle<KvMachine>, routes: Routes| {
        let requests = requests(handle);
        let watches =
            Watches::new(requests.clone(), config.watchers_max as usize, stopping.clone());
        routes
            .add_service(service::kv(requests.clone(), watches, pipeline, stopping))
            .add_service(service::leases(requests.clone(), deadline))
            .add_service(locks::lock(requests, deadline))
    };
    let watch = |handle: Handle<KvMachine>| async move {
        tokio::select! {
            failure = check_shards(handle.clone(), shards) => failure,
            never = expiry::run(handle, shards) => match never {},
        }
    };
    Served { name: NAME, services: SERVICES, addresses, group: &config.group }
        .run(KvMachine::new(shards), peers, clients, watch, shutdown)
        .await
}

/// Ends when the cluster turns out to have been created with another number of shards than this
/// member's setting says: it would place keys wrongly.
async fn check_shards(handle: Handle<KvMachine>, shards: u32) -> Failure {
    let mut status = handle.watch_status();
    loop {
        let before = status.borrow_and_update().applied;
        match handle.query_stale(Query::Created).await {
            Ok(Answer::Created(Some(created))) if created != shards => {
                return Failure::configuration(format!(
                    "shards is {shards}, but this cluster was created with {created}"
                ));
            }
            Ok(Answer::Created(Some(_))) => return std::future::pending().await,
            Ok(_)
            | Err(
                Refused::NotLeader { .. }
                | Refused::Overtaken
                | Refused::Transferring
                | Refused::Doubted
                | Refused::Overloaded { .. }
                | Refused::TooLarge { .. }
                | Refused::LowSpace
                | Refused::Deadline
                | Refused::Shutdown
                | Refused::Unborn,
            ) => {}
        }
        if status.wait_for(|status| status.applied != before).await.is_err() {
            return std::future::pending().await;
        }
    }
}
