//! The daemon's life: it listens, opens the shared root, starts its replica, serves, and stops in
//! that order backwards.

use std::sync::Arc;

use daemon::{
    Failure, Readiness, Shutdown,
    addresses::listen,
    admin::Admin,
    grpc,
    metrics::Metrics,
    runtime::{early, joined, until_stopping},
};
use raftd::{Advertised, Handle, Host, Role, Status, cli::Configuration};
use tokio::sync::{Semaphore, watch};

use crate::{
    config::{Config, NAME},
    driver::Driver,
    lanes::Lanes,
    limits::UPLOADS_MAX,
    machine::Machine,
    page::{self, Shown},
    root::Root,
    service::{self, Desk},
};

/// The services that the health service speaks for.
const SERVICES: &[&str] =
    &["flotilla.mapreduce.v1.Jobs", "flotilla.mapreduce.v1.Workers", "flotilla.admin.v1.Admin"];

/// Runs a member until shutdown. All ports are bound and the shared root is opened before the
/// store is touched, so that a busy port or a wrong root leaves nothing behind.
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    let scheduling = config.scheduling()?;
    let logs_kept = config.logs_kept()?;
    let addresses = config.addresses()?;
    config.group.check(&addresses.advertise, &addresses.advertise_peer)?;
    let client_port = listen(addresses.listen)?;
    let peer_port = listen(addresses.peer)?;
    let admin_port = listen(addresses.admin)?;
    let (root, can_exchange) = open_root(config)?;
    let lanes = Lanes::start()?;

    let readiness = Readiness::waiting("the store is being opened");
    let mut admin = Admin::new(readiness.clone(), Metrics::install(NAME)?);
    let shown = Shown::default();
    admin.routes = page::routes(shown.clone());
    // The client port drains first; the replica and the admin port end behind it.
    let inner = Shutdown::new();
    let admin = tokio::spawn(admin.serve(admin_port, inner.clone()));

    let advertised =
        Advertised { client: addresses.advertise.clone(), peer: addresses.advertise_peer.clone() };
    let no_services = |_: &Handle<Machine>, routes| routes;
    let machine = Machine::new();
    let (host, handle) =
        Host::start(&config.group, &advertised, machine, peer_port, no_services, &inner).await?;

    let (driver, calls, leading) = Driver::new(
        handle.clone(),
        root.clone(),
        lanes.clone(),
        scheduling,
        can_exchange,
        logs_kept,
    );
    // Polls hang for seconds: they end with the driver, at once, so that the port can drain.
    let driver = tokio::spawn(driver.run(shutdown.clone()));
    let uploads = Arc::new(Semaphore::new(UPLOADS_MAX));
    let blob_bytes_max = config.blob_bytes_max;
    let desk =
        Desk { handle: handle.clone(), calls, lanes, root, can_exchange, uploads, blob_bytes_max };
    shown.begin(service::JobsService::new(desk.clone()));
    let routes = grpc::routes(proto::DESCRIPTORS, SERVICES, &readiness, &shutdown)
        .await?
        .add_service(service::jobs(desk.clone()))
        .add_service(service::workers(desk))
        .add_service(raftd::admin::service(handle.clone(), NAME, daemon::version::VERSION));
    let client = grpc::serve(routes, client_port, shutdown.clone());
    let (listen, advertise) = (addresses.listen, addresses.advertise);
    tracing::info!(%listen, advertise, admin = %addresses.admin, "serving jobs and workers");

    // The driver ends by itself only for a reason that ends the daemon.
    let driven = async { joined(driver.await, "the driver") };
    let served = async { tokio::try_join!(client, driven).map(|((), ())| ()) };
    let mut host = std::pin::pin!(host.finished());
    let mut admin = std::pin::pin!(admin);
    let served = tokio::select! {
        biased;
        ended = &mut host => return early(ended, "the replica", &inner),
        ended = &mut admin => return early(joined(ended, "the admin port"), "the admin port", &inner),
        served = served => served,
        () = until_stopping(&shutdown, follow(handle.watch_status(), leading, &readiness), &readiness) => Ok(()),
    };
    inner.request();
    let stopped = host.await;
    served.and(stopped).and(joined(admin.await, "the admin port"))
}

/// Opens the shared root and looks what its file system can do.
fn open_root(config: &Config) -> Result<(Arc<Root>, bool), Failure> {
    let shown = config.root.display();
    let root = Root::open(&config.root).map_err(|error| {
        let message = format!("the shared root {shown} must be a directory that can be written");
        match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                Failure::configuration(message).because(error)
            }
            _ => Failure::machine(message).because(error),
        }
    })?;
    let can_exchange = root.can_exchange().map_err(|error| {
        Failure::machine(format!("the shared root {shown} cannot be written")).because(error)
    })?;
    if !can_exchange {
        tracing::info!("the shared filesystem cannot exchange directories; overwrite is refused");
    }
    Ok((Arc::new(root), can_exchange))
}

/// Tells readiness: there is a leader, and if it is this member it has taken over.
async fn follow(
    mut status: watch::Receiver<Status>,
    mut leading: watch::Receiver<bool>,
    readiness: &Readiness,
) {
    loop {
        let (role, leader) = {
            let now = status.borrow_and_update();
            (now.role, now.leader)
        };
        match (role, leader, *leading.borrow_and_update()) {
            (Role::Unborn, ..) => {
                readiness.not_ready("the group is being born: waiting for its other members");
            }
            (Role::Leader, _, false) => readiness.not_ready("taking over the jobs"),
            (Role::Leader, _, true) | (Role::Follower | Role::Candidate, Some(_), _) => {
                readiness.ready();
            }
            (Role::Follower | Role::Candidate, None, _) => {
                readiness.not_ready("the group has no leader, as far as this member knows");
            }
        }
        let changed = tokio::select! {
            biased;
            changed = status.changed() => changed,
            changed = leading.changed() => changed,
        };
        if changed.is_err() {
            // The host or the driver has ended, which is told elsewhere.
            return std::future::pending().await;
        }
    }
}
