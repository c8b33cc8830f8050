//! Asking a member how it is, for operators.

use std::time::Duration;

use proto::admin::{StatusReply, StatusRequest, admin_client::AdminClient};
use tokio::time::timeout;

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
    let address = strip_scheme(endpoint);
    let channel =
        dial_channel(address, limit).map_err(|invalid| Rejected::Invalid(invalid.to_string()))?;
    let mut client = AdminClient::new(channel);
    match timeout(limit, client.status(request(StatusRequest {}, limit))).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => {
            let why = format!("{address}: {}", status.message());
            Err(Rejected::Unavailable(why).into())
        }
        Err(_) => {
            let why = format!("{address}: no answer within {} ms", limit.as_millis());
            Err(Rejected::Unavailable(why).into())
        }
    }
}
