//! The admin service of every daemon that hosts a group.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::admin as pb;
use proto::admin::admin_server::{Admin, AdminServer};
use raft::{BadChange, ChangeRefused, Index, NodeId, Standing, StateMachine, Trust};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response};

use crate::backup;
use crate::handle::{
    ChangeRejected, Changed, Handle, MemberStatus, Refused, Role, Status, TransferRefused, Wanted,
};

/// How many changes of members may be asked for at once.
const CHANGES_MAX: usize = 64;

/// How long a change of the members may take, before it is said that its outcome is unknown.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// How long a transfer of the leadership may take. The core gives up much sooner.
const TRANSFER_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take until a state is frozen.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// How many backups a member streams at a time: each keeps the state from which it is made.
const BACKUPS_MAX: usize = 2;

/// How long a part of a backup may take to be taken.
const BACKUP_PART_LIMIT: Duration = Duration::from_secs(60);

/// How many parts of a backup wait for their connection.
const BACKUP_PARTS_WAITING_MAX: usize = 8;

/// The admin service, for the client port.
pub fn service<S: StateMachine>(
    handle: Handle<S>,
    daemon: &'static str,
    version: &'static str,
) -> AdminServer<impl Admin> {
    let backups = Arc::new(Semaphore::new(BACKUPS_MAX));
    AdminServer::new(Service { handle, daemon, version, backups })
}

struct Service<S: StateMachine> {
    handle: Handle<S>,
    daemon: &'static str,
    version: &'static str,
    backups: Arc<Semaphore>,
}

#[tonic::async_trait]
impl<S: StateMachine> Admin for Service<S>
where
    Handle<S>: Send + Sync,
{
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, tonic::Status> {
        let status = self.handle.status();
        Ok(Response::new(to_wire(status, self.daemon, self.version)))
    }

    async fn transfer_leadership(
        &self,
        request: Request<pb::TransferLeadershipRequest>,
    ) -> Result<Response<pb::TransferLeadershipReply>, tonic::Status> {
        let to = Some(request.into_inner().to).filter(|to| *to > 0).map(NodeId);
        match self.handle.transfer(to, Instant::now() + TRANSFER_LIMIT).await {
            Ok(leader) => Ok(Response::new(pb::TransferLeadershipReply { leader: leader.0 })),
            Err(refused) => Err(not_transferred(&refused)),
        }
    }

    async fn change_members(
        &self,
        request: Request<pb::ChangeMembersRequest>,
    ) -> Result<Response<pb::ChangeMembersReply>, tonic::Status> {
        let changes = request.into_inner().changes;
        if changes.len() > CHANGES_MAX {
            let message = format!("{} changes, over the limit of {CHANGES_MAX}", changes.len());
            return Err(tonic::Status::invalid_argument(message));
        }
        let changes = changes.into_iter().map(wanted).collect::<Result<Vec<_>, _>>()?;
        match self.handle.change(&changes, Instant::now() + CHANGE_LIMIT).await {
            Changed::Done(nodes) => {
                let nodes = nodes.iter().map(|node| node.0).collect();
                Ok(Response::new(pb::ChangeMembersReply { nodes }))
            }
            Changed::Rejected(rejected) => Err(not_changed(&rejected)),
            Changed::Unknown => Err(tonic::Status::deadline_exceeded(
                "the members may have changed, or may change yet: look at their list",
            )),
        }
    }

    type BackupStream = ReceiverStream<Result<pb::BackupPart, tonic::Status>>;

    async fn backup(
        &self,
        _: Request<pb::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, tonic::Status> {
        let place = self.backups.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("this member streams backups_max backups, which is {BACKUPS_MAX}");
            tonic::Status::resource_exhausted(message)
        })?;
        let frozen = self.handle.freeze(Instant::now() + FREEZE_LIMIT).await;
        let frozen = frozen.map_err(|refused| not_done(&refused))?;
        let Status { cluster, group, .. } = self.handle.status();
        let head = pb::BackupHead {
            daemon: self.daemon.to_owned(),
            version: self.version.to_owned(),
            cluster,
            group: group.map_or_else(Bytes::new, |group| Bytes::copy_from_slice(&group)),
            index: frozen.position.index.0,
            term: frozen.position.term.0,
            group_time_ms: frozen.stamp.0,
        };
        let (parts, waiting) = mpsc::channel(BACKUP_PARTS_WAITING_MAX);
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            for part in backup::parts(head, frozen) {
                // Whoever asked for it has gone, or takes nothing any more: the state is let go.
                if runtime.block_on(parts.send_timeout(Ok(part), BACKUP_PART_LIMIT)).is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(waiting)))
    }
}

fn wanted(change: pb::MemberChange) -> Result<Wanted, tonic::Status> {
    use pb::member_change::Kind;
    Ok(match change.kind {
        None => return Err(tonic::Status::invalid_argument("a change says nothing")),
        Some(Kind::Add(address)) => Wanted::Add(address),
        Some(Kind::Update(address)) => Wanted::Update(address),
        Some(Kind::Promote(node)) => Wanted::Promote(NodeId(node)),
        Some(Kind::Demote(node)) => Wanted::Demote(NodeId(node)),
        Some(Kind::Remove(node)) => Wanted::Remove(NodeId(node)),
        Some(Kind::LeaseReads(on)) => Wanted::LeaseReads(on),
    })
}

fn not_changed(rejected: &ChangeRejected) -> tonic::Status {
    let message = rejected.to_string();
    match rejected {
        ChangeRejected::Refused(refused) => not_done(refused),
        ChangeRejected::NotMet { .. } => tonic::Status::unavailable(message),
        ChangeRejected::Change(refused) => match refused {
            ChangeRefused::Refused(_) | ChangeRefused::Changing => {
                tonic::Status::unavailable(message)
            }
            ChangeRefused::Behind(_) | ChangeRefused::NoQuorum => {
                tonic::Status::failed_precondition(message)
            }
            ChangeRefused::NoVoter(_) | ChangeRefused::BadChange(BadChange::NoSuchMember(_)) => {
                tonic::Status::not_found(message)
            }
            ChangeRefused::BadChange(BadChange::IdUsed { .. }) => {
                tonic::Status::already_exists(message)
            }
            ChangeRefused::BadChange(_) => tonic::Status::invalid_argument(message),
        },
    }
}

fn not_done(refused: &Refused) -> tonic::Status {
    match refused {
        Refused::NotLeader { leader: Some(leader) } => {
            let (node, address) = (leader.node, &leader.client_address);
            tonic::Status::unavailable(format!("{refused}; member {node} at {address} does"))
        }
        refused => tonic::Status::unavailable(refused.to_string()),
    }
}

fn not_transferred(refused: &TransferRefused) -> tonic::Status {
    let message = refused.to_string();
    match refused {
        TransferRefused::Refused(refused) => not_done(refused),
        TransferRefused::Nobody | TransferRefused::Change(_) => tonic::Status::not_found(message),
        TransferRefused::NotTakenOver => tonic::Status::aborted(message),
    }
}

fn to_wire(status: Status, daemon: &str, version: &str) -> pb::StatusReply {
    let (snapshot_index, snapshot_bytes) =
        status.snapshot.map_or((Index(0), 0), |root| (root.position.index, root.bytes));
    pb::StatusReply {
        version: version.to_owned(),
        cluster: status.cluster,
        group: status.group.map_or_else(Bytes::new, |group| Bytes::copy_from_slice(&group)),
        node: status.node.0,
        role: role(status.role).into(),
        term: status.term.0,
        leader: status.leader.map_or(0, |leader| leader.0),
        last_index: status.last.0,
        durable_index: status.durable.0,
        commit_index: status.commit.0,
        applied_index: status.applied.0,
        first_index: status.first.0,
        log_bytes: status.log_bytes,
        snapshot_index: snapshot_index.0,
        snapshot_bytes,
        state_digest: Bytes::copy_from_slice(&status.state_digest.to_be_bytes()),
        group_time_ms: status.group_time.0,
        members: status.members.into_iter().map(member).collect(),
        daemon: daemon.to_owned(),
        low_on_space: status.low_on_space,
        transfer: status.transfer.map(|transfer| pb::Transfer {
            from: transfer.from.0,
            done_bytes: transfer.done_bytes,
            total_bytes: transfer.total_bytes,
        }),
        lease_reads: status.lease_reads,
        taking_snapshot: status.taking_snapshot,
        trust: trust(status.trust).into(),
    }
}

fn trust(trust: Trust) -> pb::Trust {
    match trust {
        Trust::Sound => pb::Trust::Sound,
        Trust::Unverified => pb::Trust::Unverified,
        Trust::Wrong => pb::Trust::Wrong,
        Trust::Doubtful => pb::Trust::Doubtful,
        Trust::Undecided => pb::Trust::Undecided,
    }
}

fn role(role: Role) -> pb::Role {
    match role {
        Role::Unborn => pb::Role::Unborn,
        Role::Follower => pb::Role::Follower,
        Role::Candidate => pb::Role::Candidate,
        Role::Leader => pb::Role::Leader,
    }
}

fn member(status: MemberStatus) -> pb::Member {
    pb::Member {
        node: status.member.node.0,
        peer_address: status.member.peer_address,
        client_address: status.member.client_address,
        matched_index: status.matched.0,
        active: status.active,
        standing: standing(status.standing).into(),
    }
}

fn standing(standing: Standing) -> pb::Standing {
    match standing {
        Standing::Learner => pb::Standing::Learner,
        Standing::Voter => pb::Standing::Voter,
        Standing::Incoming => pb::Standing::Incoming,
        Standing::Outgoing => pb::Standing::Outgoing,
        Standing::Demoted => pb::Standing::Demoted,
    }
}
