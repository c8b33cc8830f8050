//! Where a daemon that hosts a group listens, and what it tells others.

use daemon::Failure;
use daemon::addresses::{self, Addresses, check_exposed, host_and_port, resolve};
use raft::NodeId;
use serde::Serialize;

use crate::settings::Settings;

/// The flags of the peer port. They set settings at the top level.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
pub struct PeerFlags {
    /// Listen for peers on this address instead of the client port plus 50
    #[arg(long, value_name = "HOST:PORT")]
    peer_listen: Option<String>,
    /// Tell peers to reach this member at this address
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
}

/// The network settings of such a daemon, as they were given.
#[derive(Clone, Copy, Debug)]
pub struct Network<'a> {
    /// Those that every daemon has.
    pub client: addresses::Network<'a>,
    /// Where peers connect, if not at the client port plus 50.
    pub peer_listen: Option<&'a str>,
    /// What peers are told instead.
    pub peer_advertise: Option<&'a str>,
}

impl Network<'_> {
    /// Derives and checks all addresses. What the list of members says of this member stands in
    /// for what is not set.
    ///
    /// # Errors
    /// Configuration, when an address is malformed or exposed, or contradicts the list of members;
    /// machine, when a host name has no address.
    pub fn addresses(self, group: &Settings) -> Result<Addresses, Failure> {
        let listed = if group.members.is_empty() {
            None
        } else {
            let node = NodeId(group.node);
            group.members("", "")?.into_iter().find(|member| member.node == node)
        };
        let client = listed.as_ref().map(|member| member.client_address.as_str());
        let peer = listed.as_ref().map(|member| member.peer_address.as_str());
        agree("advertise", self.client.advertise, client)?;
        agree("peer_advertise", self.peer_advertise, peer)?;
        let advertise = self.client.advertise.or(client);
        let mut addresses = Addresses::resolve(addresses::Network { advertise, ..self.client })?;
        if let Some(text) = self.peer_listen {
            addresses.peer = resolve("peer_listen", text)?;
            check_exposed(addresses.peer, self.client.insecure)?;
        }
        if let Some(text) = self.peer_advertise.or(peer) {
            host_and_port("peer_advertise", text)?;
            text.clone_into(&mut addresses.advertise_peer);
        }
        Ok(addresses)
    }
}

fn agree(setting: &str, given: Option<&str>, listed: Option<&str>) -> Result<(), Failure> {
    match (given, listed) {
        (Some(given), Some(listed)) if given != listed => Err(Failure::configuration(format!(
            "{setting} is {given}, but group.members says {listed} of this member"
        ))),
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}
