//! The router's life: it listens, hears where the shards are, serves, and stops in that order backwards.

use std::sync::Arc;

use client::{Options, Router, ShardClient, router::ToldMap, shards::ShardMap};
use daemon::{
    Failure, Readiness, Shutdown,
    addresses::listen,
    admin::Admin,
    grpc,
    metrics::Metrics,
    runtime::{early, joined, until_stopping},
};

use super::{Config, config::NAME};
use crate::{desk::Desk, locks, service, watch::Places};

/// The services that the health service speaks for.
const SERVICES: &[&str] = &["flotilla.kv.v1.Kv", "flotilla.kv.v1.Leases", "flotilla.lock.v1.Lock"];

/// Runs a router until shutdown.
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub(crate) async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    config.check()?;
    let addresses = config.addresses()?;
    let client_port = listen(addresses.listen)?;
    let admin_port = listen(addresses.admin)?;
    let readiness = Readiness::waiting("no shard controller has answered yet");
    let admin = Admin::new(readiness.clone(), Metrics::install(NAME)?);
    // The client port drains first; the admin port ends behind it.
    let inner = Shutdown::new();
    let admin = tokio::spawn(admin.serve(admin_port, inner.clone()));

    let controller = ShardClient::connect(config.controllers.clone(), Options::default());
    let controller =
        controller.map_err(|wrong| Failure::configuration("controllers").because(wrong))?;
    let told = controller.follow();
    let router = Arc::new(Router::direct(told.clone(), Options::default()));
    let places = Places::new(config.watchers_max as usize);
    let desk = Desk::router(router, places, shutdown.clone());
    let routes = grpc::routes(proto::DESCRIPTORS, SERVICES, &readiness, &shutdown)
        .await?
        .add_service(service::kv(desk.clone(), config.pipeline_limits(), shutdown.clone()))
        .add_service(service::leases(desk.clone(), config.deadline()))
        .add_service(locks::lock(desk, config.deadline()));
    let client = grpc::serve(routes, client_port, shutdown.clone());
    let (listen, advertise) = (addresses.listen, &addresses.advertise);
    tracing::info!(%listen, advertise, admin = %addresses.admin, "serving clients");

    let mut admin = std::pin::pin!(admin);
    let served = tokio::select! {
        biased;
        ended = &mut admin => {
            return early(joined(ended, "the admin port"), "the admin port", &inner);
        }
        served = client => served,
        () = until_stopping(&shutdown, follow(told, &readiness), &readiness) => Ok(()),
    };
    inner.request();
    served.and(joined(admin.await, "the admin port"))
}

/// Tells readiness: it is known where the shards are. From then on it stays ready, since without its
/// controller all is served as it was.
async fn follow(mut told: ToldMap, readiness: &Readiness) {
    if told.wait_for(Option::is_some).await.is_ok() {
        readiness.not_ready("no shard has been given to a group yet");
        let placed = |map: &ShardMap| map.placements.iter().any(|it| it.owner > 0);
        if told.wait_for(|map| map.as_deref().is_some_and(placed)).await.is_ok() {
            readiness.ready();
        }
    }
    std::future::pending::<()>().await;
}
