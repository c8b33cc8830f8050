//! The life of a daemon that serves a group with nothing but its services: it listens, starts its
//! replica, serves, and stops in that order backwards.

use daemon::addresses::{Addresses, listen};
use daemon::admin::Admin;
use daemon::metrics::Metrics;
use daemon::runtime::{early, joined, until_stopping};
use daemon::{Failure, Readiness, Shutdown, grpc};
use raft::StateMachine;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::handle::{Handle, Role, Status};
use crate::settings::Settings;
use crate::start::{Advertised, Host};

/// What a daemon serves, and where.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The daemon's name.
    pub name: &'static str,
    /// The services that the health service speaks for.
    pub services: &'static [&'static str],
    /// Where it listens.
    pub addresses: &'a Addresses,
    /// The group and this member of it.
    pub group: &'a Settings,
}

impl Served<'_> {
    /// Runs a member of the group until shutdown. `peers` adds what is served to peers beside Raft,
    /// `clients` what is served to clients beside health, reflection and the admin service, and
    /// `watch` ends with what makes it wrong to go on. All ports are bound before the store is
    /// touched, so that a busy port leaves nothing behind.
    ///
    /// # Errors
    /// [`Failure`] says which exit code fits.
    pub async fn run<S: StateMachine, F: Future<Output = Failure>>(
        self,
        machine: S,
        peers: impl FnOnce(&Handle<S>, Routes) -> Routes,
        clients: impl FnOnce(&Handle<S>, Routes) -> Routes,
        watch: impl FnOnce(Handle<S>) -> F,
        shutdown: Shutdown,
    ) -> Result<(), Failure> {
        let Self { name, services, addresses, group } = self;
        let client_port = listen(addresses.listen)?;
        let peer_port = listen(addresses.peer)?;
        let admin_port = listen(addresses.admin)?;

        let readiness = Readiness::waiting("the store is being opened");
        let admin = Admin::new(readiness.clone(), Metrics::install(name)?);
        // The client port drains first; the replica and the admin port end behind it.
        let inner = Shutdown::new();
        let admin = tokio::spawn(admin.serve(admin_port, inner.clone()));

        let (client, peer) = (addresses.advertise.clone(), addresses.advertise_peer.clone());
        let advertised = Advertised { client, peer };
        let (host, handle) =
            Host::start(group, &advertised, machine, peer_port, peers, &inner).await?;

        let routes = grpc::routes(proto::DESCRIPTORS, services, &readiness, &shutdown)
            .await?
            .add_service(crate::admin::service(handle.clone(), name, daemon::version::VERSION));
        let client = grpc::serve(clients(&handle, routes), client_port, shutdown.clone());
        let (listen, advertise) = (addresses.listen, &addresses.advertise);
        tracing::info!(%listen, advertise, admin = %addresses.admin, "serving clients");

        let mut host = std::pin::pin!(host.finished());
        let mut admin = std::pin::pin!(admin);
        let served = tokio::select! {
            biased;
            ended = &mut host => return early(ended, "the replica", &inner),
            ended = &mut admin => return early(joined(ended, "the admin port"), "the admin port", &inner),
            served = client => served,
            wrong = watch(handle.clone()) => Err(wrong),
            () = until_stopping(&shutdown, follow(handle.watch_status(), &readiness), &readiness) => Ok(()),
        };
        inner.request();
        let stopped = host.await;
        served.and(stopped).and(joined(admin.await, "the admin port"))
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
                    if !now.trust.serves() {
                        readiness.not_ready("the state of this member is in doubt");
                    } else if caught_up {
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
