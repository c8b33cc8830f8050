//! The admin service of every daemon that hosts a group.

use std::time::Duration;

use bytes::Bytes;
use proto::admin as pb;
use proto::admin::admin_server::{Admin, AdminServer};
use raft::{BadChange, ChangeRefused, Index, NodeId, Standing, StateMachine};
use tokio::time::Instant;
use tonic::{Request, Response};

use crate::handle::{
    ChangeRejected, Changed, Handle, MemberStatus, Refused, Role, Status, TransferRefused, Wanted,
};

/// How many changes of members may be asked for at once.
const CHANGES_MAX: usize = 64;

/// How long a change of the members may take, before it is said that its outcome is unknown.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);

/// How long a transfer of the leadership may take. The core gives up much sooner.
const TRANSFER_LIMIT: Duration = Duration::from_secs(10);

/// The admin service, for the client port.
pub fn service<S: StateMachine>(
    handle: Handle<S>,
    daemon: &'static str,
    version: &'static str,
) -> AdminServer<impl Admin> {
    AdminServer::new(Service { handle, daemon, version })
}

struct Service<S: StateMachine> {
    handle: Handle<S>,
    daemon: &'static str,
    version: &'static str,
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
