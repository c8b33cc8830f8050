//! The daemon's life: what it serves.

use std::time::Duration;

use daemon::{Failure, Shutdown};
use tonic::service::Routes;

use crate::cli::Configuration;
use crate::handle::Handle;
use crate::log::config::{Config, NAME};
use crate::log::machine::LogMachine;
use crate::log::requests::Requests;
use crate::log::service;
use crate::log::subscribe::Subscriptions;
use crate::serve::Served;

/// The services that the health service speaks for.
const SERVICES: &[&str] = &["flotilla.log.v1.Log", "flotilla.admin.v1.Admin"];

/// Runs a member until shutdown, as [`Served::run`].
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    config.check()?;
    let addresses = &config.addresses()?;
    let requests = |handle: &Handle<LogMachine>| {
        Requests::new(handle.clone(), config.propose_limits(), config.quota_bytes)
    };
    let peers = |handle: &Handle<LogMachine>, routes: Routes| {
        routes.add_service(service::forward(requests(handle)))
    };
    let deadline = Duration::from_millis(config.deadline_ms);
    let closing = shutdown.clone();
    let clients = |handle: &Handle<LogMachine>, routes: Routes| {
        let requests = requests(handle);
        let subscriptions = Subscriptions::new(requests.clone(), config.subscribers_max, closing);
        routes.add_service(service::log(requests, subscriptions, deadline))
    };
    let watch = |_| std::future::pending();
    Served { name: NAME, services: SERVICES, addresses, group: &config.group }
        .run(LogMachine::default(), peers, clients, watch, shutdown)
        .await
}
