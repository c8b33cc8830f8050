//! The admin service of every daemon that hosts a group.

use std::time::Duration;

use bytes::Bytes;
use proto::admin as pb;
use proto::admin::admin_server::{Admin, AdminServer};
use raft::{Index, NodeId, StateMachine};
use tokio::time::Instant;
use tonic::{Request, Response};

use crate::handle::{Handle, MemberStatus, Refused, Role, Status, TransferRefused};

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
}

fn not_transferred(refused: &TransferRefused) -> tonic::Status {
    let message = refused.to_string();
    match refused {
        TransferRefused::Refused(Refused::NotLeader { leader: Some(leader) }) => {
            let (node, address) = (leader.node, &leader.client_address);
            tonic::Status::unavailable(format!("{message}; member {node} at {address} does"))
        }
        TransferRefused::Refused(_) => tonic::Status::unavailable(message),
        TransferRefused::NoSuchMember => tonic::Status::not_found(message),
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
    }
}
