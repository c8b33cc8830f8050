//! The daemon's life: what it serves.

use daemon::{Failure, Shutdown};
use raftd::{Handle, Served, cli::Configuration};
use tonic::service::Routes;

use crate::{
    ShardMachine,
    config::{Config, NAME},
    desk::Desk,
    service,
    watch::Watches,
};

/// The services that the health service speaks for.
const SERVICES: &[&str] = &["flotilla.shard.v1.Shards", "flotilla.admin.v1.Admin"];

/// Runs a member until shutdown, as [`Served::run`].
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    let shards = config.check()?;
    let addresses = &config.addresses()?;
    let desk = |handle: &Handle<ShardMachine>| Desk::new(handle.clone(), shards);
    let peers = |handle: &Handle<ShardMachine>, routes: Routes| {
        routes.add_service(service::forward(desk(handle)))
    };
    let closing = shutdown.clone();
    let clients = |handle: &Handle<ShardMachine>, routes: Routes| {
        let desk = desk(handle);
        let watches = Watches::new(desk.clone(), config.watchers_max as usize, closing);
        routes.add_service(service::shards(desk, watches, config.deadline()))
    };
    let watch = |_| std::future::pending();
    Served { name: NAME, services: SERVICES, addresses, group: &config.group }
        .run(ShardMachine::default(), peers, clients, watch, shutdown)
        .await
}
