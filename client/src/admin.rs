//! What operators ask of a member: how it is, and to hand its leadership over.

use std::time::Duration;

use proto::admin::{
    StatusReply, StatusRequest, TransferLeadershipRequest, admin_client::AdminClient,
};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::{
    Error, Rejected,
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

fn dial(endpoint: &str, limit: Duration) -> Result<AdminClient<Channel>, Error> {
    let channel = dial_channel(strip_scheme(endpoint), limit)
        .map_err(|invalid| Rejected::Invalid(invalid.to_string()))?;
    Ok(AdminClient::new(channel))
}

fn no_answer(address: &str, limit: Duration) -> Rejected {
    Rejected::Unavailable(format!("{address}: no answer within {} ms", limit.as_millis()))
}
