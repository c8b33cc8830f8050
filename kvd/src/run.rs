//! The daemon's life: what it serves, and when it must not go on.

use std::{sync::OnceLock, time::Duration};

use client::{Options, ShardClient};
use daemon::{Failure, Shutdown};
use raftd::{Handle, Refused, Served, cli::Configuration};
use tonic::service::Routes;

use crate::{
    KvMachine,
    brakes::Brakes,
    config::{Config, NAME},
    desk::Desk,
    expiry, giver, locks,
    mover::{self, Grouped},
    outcome::{Answer, Query},
    requests::{Gate, Requests},
    routing::{Routing, Tally},
    service,
    watch::Places,
};

/// The services that the health service speaks for.
const SERVICES: &[&str] = &[
    "flotilla.kv.v1.Kv",
    "flotilla.kv.v1.Leases",
    "flotilla.lock.v1.Lock",
    "flotilla.admin.v1.Admin",
];

/// How long the shard controller has to answer.
const CONTROLLER_DEADLINE: Duration = Duration::from_secs(3);

/// Runs a member until shutdown, as [`Served::run`].
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    config.check()?;
    let addresses = &config.addresses()?;
    let (shards, terms) = (config.shards, config.terms());
    let deadline = Duration::from_millis(config.deadline_ms);
    let grouped = grouped(config)?;
    let gate = Gate::new(grouped.is_none());
    let brakes = grouped.as_ref().map_or_else(Brakes::default, |it| it.brakes.clone());
    let routing =
        grouped.as_ref().map(|it| Routing::new(it.group, it.map.clone(), it.tally.clone()));
    let shared = OnceLock::new();
    let requests = |handle: &Handle<KvMachine>| {
        let requests = || {
            let (gate, brakes) = (gate.clone(), brakes.clone());
            Requests::new(handle.clone(), terms, gate, brakes, routing.clone())
        };
        shared.get_or_init(requests).clone()
    };
    let peers = |handle: &Handle<KvMachine>, routes: Routes| {
        let requests = requests(handle);
        routes.add_service(service::forward(requests.clone())).add_service(locks::forward(requests))
    };
    let (pipeline, stopping) = (config.pipeline_limits(), shutdown.clone());
    let clients = |handle: &Handle<KvMachine>, routes: Routes| {
        let requests = requests(handle);
        let places = Places::new(config.watchers_max as usize);
        let desk = Desk::member(requests, places, stopping.clone());
        let giver = grouped.clone().map(|grouped| giver::service(handle.clone(), grouped));
        let routes = match giver {
            Some(giver) => routes.add_service(giver),
            None => routes,
        };
        routes
            .add_service(service::kv(desk.clone(), pipeline, stopping))
            .add_service(service::leases(desk.clone(), deadline))
            .add_service(locks::lock(desk, deadline))
    };
    let (moves, opened) = (grouped.clone(), gate.clone());
    let watch = |handle: Handle<KvMachine>| async move {
        let moves = async {
            match moves {
                Some(grouped) => mover::run(handle.clone(), grouped).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            failure = check_shards(handle.clone(), shards, opened) => failure,
            never = expiry::run(handle.clone(), shards) => match never {},
            never = moves => match never {},
        }
    };
    Served { name: NAME, services: SERVICES, addresses, group: &config.group }
        .run(KvMachine::new(shards), peers, clients, watch, shutdown)
        .await
}

/// What a member of one of many groups needs to know, as its settings say.
fn grouped(config: &Config) -> Result<Option<Grouped>, Failure> {
    let Some(group) = config.shard_group else { return Ok(None) };
    let options = Options::with_deadline(CONTROLLER_DEADLINE);
    let controller = ShardClient::connect(config.controllers.clone(), options)
        .map_err(|error| Failure::configuration("controllers is refused").because(error))?;
    Ok(Some(Grouped {
        group,
        shards: config.shards,
        map: controller.follow(),
        controller,
        brakes: Brakes::default(),
        tally: Tally::new(config.shards),
        moves_max: config.moves_max as usize,
        bytes_per_second: config.move_bytes_per_second,
    }))
}

/// Opens the gate once there are shards. Ends when the cluster turns out to have been created with
/// another number of them than this member's setting says: it would place keys wrongly.
async fn check_shards(handle: Handle<KvMachine>, shards: u32, gate: Gate) -> Failure {
    let mut status = handle.watch_status();
    loop {
        let before = status.borrow_and_update().applied;
        match handle.query_stale(Query::Created).await {
            Ok(Answer::Created(Some(created))) if created != shards => {
                return Failure::configuration(format!(
                    "shards is {shards}, but this cluster was created with {created}"
                ));
            }
            Ok(Answer::Created(Some(_))) => {
                gate.open();
                return std::future::pending().await;
            }
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
