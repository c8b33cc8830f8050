//! The daemon's life: it listens, starts its replica, serves, and stops in that order backwards.

use std::time::Duration;

use daemon::{
    Failure, Readiness, Shutdown,
    addresses::listen,
    admin::Admin,
    grpc,
    metrics::Metrics,
    runtime::{early, joined, until_stopping},
};
use raftd::{Advertised, Handle, Host, Refused, Role, Status};
use tokio::sync::watch;

use crate::{
    KvMachine,
    config::{Config, NAME},
    outcome::{Answer, Query},
    requests::Requests,
    service,
};

/// The services that the health service speaks for.
const SERVICES: &[&str] = &["flotilla.kv.v1.Kv", "flotilla.admin.v1.Admin"];

/// Runs a member until shutdown. All ports are bound before the store is touched, so that a busy
/// port leaves nothing behind.
///
/// # Errors
/// [`Failure`] says which exit code fits.
pub async fn run(config: &Config, shutdown: Shutdown) -> Result<(), Failure> {
    config.check()?;
    let addresses = config.addresses()?;
    let client_port = listen(addresses.listen)?;
    let peer_port = listen(addresses.peer)?;
    let admin_port = listen(addresses.admin)?;

    let readiness = Readiness::waiting("the store is being opened");
    let admin = Admin::new(readiness.clone(), Metrics::install(NAME)?);
    // The client port drains first; the replica and the admin port end behind it.
    let inner = Shutdown::new();
    let admin = tokio::spawn(admin.serve(admin_port, inner.clone()));

    let advertised =
        Advertised { client: addresses.advertise.clone(), peer: addresses.advertise_peer.clone() };
    let (shards, limits) = (config.shards, config.pair_limits());
    let add_forward = |handle: &Handle<KvMachine>, routes: tonic::service::Routes| {
        routes.add_service(service::forward(Requests::new(handle.clone(), shards, limits)))
    };
    let machine = KvMachine::new(shards);
    let (host, handle) =
        Host::start(&config.group, &advertised, machine, peer_port, add_forward, &inner).await?;

    let requests = Requests::new(handle.clone(), shards, limits);
    let routes = grpc::routes(proto::DESCRIPTORS, SERVICES, &readiness, &shutdown)
        .await?
        .add_service(service::kv(requests, Duration::from_millis(config.deadline_ms)))
        .add_service(raftd::admin::service(handle.clone(), NAME, daemon::version::VERSION));
    let client = grpc::serve(routes, client_port, shutdown.clone());
    let (listen, advertise) = (addresses.listen, addresses.advertise);
    tracing::info!(%listen, advertise, admin = %addresses.admin, "serving keys and values");

    let mut host = std::pin::pin!(host.finished());
    let mut admin = std::pin::pin!(admin);
    let served = tokio::select! {
        biased;
        ended = &mut host => return early(ended, "the replica", &inner),
        ended = &mut admin => return early(joined(ended, "the admin port"), "the admin port", &inner),
        served = client => served,
        wrong = check_shards(&handle, shards) => Err(wrong),
        () = until_stopping(&shutdown, follow(handle.watch_status(), &readiness), &readiness) => Ok(()),
    };
    inner.request();
    let stopped = host.await;
    served.and(stopped).and(joined(admin.await, "the admin port"))
}

/// Ends when the cluster turns out to have been created with another number of shards than this
/// member's setting says: it would place keys wrongly.
async fn check_shards(handle: &Handle<KvMachine>, shards: u32) -> Failure {
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

/// Tells readiness: there is a leader, and this member has once caught up with what was committed.
/// From then on it stays ready until the leader is lost: it passes requests on, so lagging behind
/// for a moment is no reason to send clients away.
async fn follow(mut status: watch::Receiver<Status>, readiness: &Readiness) {
    let mut caught_up = false;
    loop {
        {
            let now = status.borrow_and_update();
            match (now.role, now.leader) {
                (Role::Unborn, _) => {
                    readiness.not_ready("the group is being born: waiting for its other members");
                }
                (Role::Follower | Role::Candidate | Role::Leader, None) => {
                    caught_up = false;
                    readiness.not_ready("the group has no leader, as far as this member knows");
                }
                (Role::Follower | Role::Candidate | Role::Leader, Some(_)) => {
                    caught_up |= now.applied >= now.commit;
                    if caught_up {
                        readiness.ready();
                    } else {
                        readiness.not_ready("catching up with the group");
                    }
                }
            }
        }
        if status.changed().await.is_err() {
            // The host has ended, which is told elsewhere.
            return std::future::pending().await;
        }
    }
}
