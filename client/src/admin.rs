//! What operators ask of a member: how it is, and to hand its leadership over.

use std::time::Duration;

use proto::admin::{
    BackupPart, BackupRequest, ChangeMembersRequest, StatusReply, StatusRequest,
    TransferLeadershipRequest, admin_client::AdminClient, member_change::Kind,
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::{
    Error, Rejected, Unknown,
    calls::request,
    members::{dial_channel, strip_scheme},
};

/// The state of the member whose client port is at `endpoint` (`host:port`), as it sees itself.
/// There are no retries: that a member does not answer is what its operator wants to know.
///
/// # Errors
/// [`Rejected::Invalid`] for a malformed endpoint, [`Rejected::Unavailable`] when it does not
/// answer within `limit`.
pub async fn status(endpoint: &str, limit: Duration) -> Result<StatusReply, Error> {
    let mut client = dial(endpoint, limit)?;
    let answer = timeout(limit, client.status(request(StatusRequest {}, limit))).await;
    let address = strip_scheme(endpoint);
    match answer {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => {
            let why = format!("{address}: {}", status.message());
            Err(Rejected::Unavailable(why).into())
        }
        Err(_) => Err(no_answer(address, limit).into()),
    }
}

/// Asks the leader at `endpoint` to hand its leadership over to the member `to`, or to the one that
/// has most of the log. Who leads now.
///
/// # Errors
/// [`Rejected::NotFound`]: there is no such member. [`Rejected::Unavailable`]: the member at
/// `endpoint` does not lead, or the other did not take over in time, or there was no answer;
/// whoever leads then, nothing is lost by asking again.
pub async fn transfer(endpoint: &str, to: Option<u64>, limit: Duration) -> Result<u64, Error> {
    let mut client = dial(endpoint, limit)?;
    let asked = request(TransferLeadershipRequest { to: to.unwrap_or(0) }, limit);
    match timeout(limit, client.transfer_leadership(asked)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner().leader),
        Ok(Err(status)) => Err(Rejected::from_status(&status).into()),
        Err(_) => Err(no_answer(strip_scheme(endpoint), limit).into()),
    }
}

/// What is to change of one member of a group, or of a setting of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// The member that answers at this peer address comes, as a learner; one that belongs to the
    /// group already stays what it is, and is reached there now.
    Add(String),
    /// The member that answers at this peer address has moved there.
    Update(String),
    /// A learner votes.
    Promote(u64),
    /// A voter becomes a learner.
    Demote(u64),
    /// A member goes.
    Remove(u64),
    /// Leaders may answer reads by a lease, or no more.
    LeaseReads(bool),
}

/// Asks the leader at `endpoint` to change the members of its group, all at once. Whom the
/// changes were about.
///
/// # Errors
/// [`Rejected`]: nothing was changed. [`Rejected::Unavailable`]: ask again, soon: this member does
/// not lead, another change is under way, or a new member does not answer. [`Rejected::Refused`]:
/// a learner has not caught up, or too few voters answer.
/// [`Error::Unknown`]: it may be done, or be done yet.
pub async fn change_members(
    endpoint: &str,
    changes: &[MemberChange],
    limit: Duration,
) -> Result<Vec<u64>, Error> {
    let mut client = dial(endpoint, limit)?;
    let changes = changes.iter().map(to_wire).collect();
    let asked = request(ChangeMembersRequest { changes }, limit);
    match timeout(limit, client.change_members(asked)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner().nodes),
        Ok(Err(status)) if may_have_run(&status) => {
            Err(Unknown { reason: status.message().to_owned() }.into())
        }
        Ok(Err(status)) => Err(Rejected::from_status(&status).into()),
        Err(_) => {
            let reason = no_answer(strip_scheme(endpoint), limit).to_string();
            Err(Unknown { reason }.into())
        }
    }
}

/// Asks the member at `endpoint` for a backup, which takes as long as it takes; `limit` is for the
/// beginning and for each part.
///
/// # Errors
/// [`Rejected`]: there is none of this member now.
pub async fn backup(endpoint: &str, limit: Duration) -> Result<Backup, Error> {
    let mut client = dial(endpoint, limit)?;
    match timeout(limit, client.backup(BackupRequest {})).await {
        Ok(Ok(reply)) => {
            let address = strip_scheme(endpoint).to_owned();
            Ok(Backup { address, parts: reply.into_inner(), limit })
        }
        Ok(Err(status)) => Err(said(strip_scheme(endpoint), &status).into()),
        Err(_) => Err(no_answer(strip_scheme(endpoint), limit).into()),
    }
}

/// A backup that is being sent.
#[derive(Debug)]
pub struct Backup {
    address: String,
    parts: Streaming<BackupPart>,
    limit: Duration,
}

impl Backup {
    /// The next part; none behind the last one.
    ///
    /// # Errors
    /// [`Rejected`]: it breaks off, and what has come is of no use.
    pub async fn next(&mut self) -> Result<Option<BackupPart>, Error> {
        match timeout(self.limit, self.parts.message()).await {
            Ok(Ok(part)) => Ok(part),
            Ok(Err(status)) => Err(said(&self.address, &status).into()),
            Err(_) => Err(no_answer(&self.address, self.limit).into()),
        }
    }
}

/// What the service itself answers with says that nothing was changed. All else came from the way,
/// which a source tells.
fn may_have_run(status: &Status) -> bool {
    let said = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Unavailable
            | Code::Unimplemented
    );
    !said || std::error::Error::source(status).is_some()
}

fn to_wire(change: &MemberChange) -> proto::admin::MemberChange {
    let kind = match change {
        MemberChange::Add(address) => Kind::Add(address.clone()),
        MemberChange::Update(address) => Kind::Update(address.clone()),
        MemberChange::Promote(node) => Kind::Promote(*node),
        MemberChange::Demote(node) => Kind::Demote(*node),
        MemberChange::Remove(node) => Kind::Remove(*node),
        MemberChange::LeaseReads(on) => Kind::LeaseReads(*on),
    };
    proto::admin::MemberChange { kind: Some(kind) }
}

fn dial(endpoint: &str, limit: Duration) -> Result<AdminClient<Channel>, Error> {
    let channel = dial_channel(strip_scheme(endpoint), limit)
        .map_err(|invalid| Rejected::Invalid(invalid.to_string()))?;
    Ok(AdminClient::new(channel))
}

/// What a member said, and which it was.
fn said(address: &str, status: &Status) -> Rejected {
    let message = format!("{address}: {}", status.message());
    Rejected::from_status(&Status::new(status.code(), message))
}

fn no_answer(address: &str, limit: Duration) -> Rejected {
    Rejected::Unavailable(format!("{address}: no answer within {} ms", limit.as_millis()))
}
