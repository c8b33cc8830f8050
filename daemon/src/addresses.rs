//! Where a daemon listens and where others reach it.
//!
//! Listening and advertising are two settings, since behind a container's or a cloud's network
//! they differ. Without TLS, an address that other machines can reach needs the operator's word.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use tokio::net::{TcpListener, TcpSocket};

use crate::exit::Failure;
use crate::ports;

/// How many connections may wait to be accepted.
pub const BACKLOG: u32 = 1024;

/// The longest host name: one that fits with its port into the 255 bytes in which members remember
/// each other's addresses.
const HOST_BYTES_MAX: usize = 249;

/// The network settings of a daemon that serves clients, as they were given.
#[derive(Clone, Copy, Debug)]
pub struct Network<'a> {
    /// Where clients connect: `host:port`.
    pub listen: &'a str,
    /// What others are told instead.
    pub advertise: Option<&'a str>,
    /// The admin address, if not the port plus 1000.
    pub admin: Option<&'a str>,
    /// Whether addresses other than loopback are accepted without TLS.
    pub insecure: bool,
}

/// All addresses of one daemon, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Where to listen for clients.
    pub listen: SocketAddr,
    /// Where to listen for peers.
    pub peer: SocketAddr,
    /// Where to serve the admin port.
    pub admin: SocketAddr,
    /// What clients are told: `host:port`.
    pub advertise: String,
    /// What peers are told: `host:port`.
    pub advertise_peer: String,
}

impl Addresses {
    /// Derives and checks all addresses.
    ///
    /// # Errors
    /// Configuration, when an address is malformed, has no port left for peers or admin, is
    /// exposed without `insecure`, or listens everywhere without saying where that is; machine,
    /// when a host name has no address.
    pub fn resolve(network: Network<'_>) -> Result<Self, Failure> {
        let listen = resolve("listen", network.listen)?;
        let peer = beside(listen, ports::PEER_OFFSET, "peer")?;
        let admin = match network.admin {
            Some(text) => resolve("admin", text)?,
            None => beside(listen, ports::ADMIN_OFFSET, "admin")?,
        };
        check_exposed(listen, network.insecure)?;
        check_exposed(admin, network.insecure)?;
        let advertise = match network.advertise {
            Some(text) => text.to_owned(),
            None if listen.ip().is_unspecified() => {
                return Err(Failure::configuration(format!(
                    "listen is {listen}, which nobody can connect to: \
                     set advertise to the host:port at which others reach this daemon"
                )));
            }
            None => listen.to_string(),
        };
        let (host, port) = host_and_port("advertise", &advertise)?;
        let peer_port = ports::above(port, ports::PEER_OFFSET)
            .ok_or_else(|| no_port("advertise", &advertise, "peer"))?;
        let advertise_peer = format!("{host}:{peer_port}");
        Ok(Self { listen, peer, admin, advertise, advertise_peer })
    }
}

/// The address that `text` (`host:port`, the value of `setting`) names. A host name is looked up,
/// which blocks: daemons do this before they serve.
///
/// # Errors
/// Configuration, when the text is malformed; machine, when the name has no address.
pub fn resolve(setting: &str, text: &str) -> Result<SocketAddr, Failure> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = host_and_port(setting, text)?;
    let unknown = || Failure::machine(format!("{setting}: the host {host} has no address"));
    let mut found = (host, port).to_socket_addrs().map_err(|error| unknown().because(error))?;
    found.next().ok_or_else(unknown)
}

/// Refuses an address that other machines can reach, unless the operator said `insecure`.
///
/// # Errors
/// Configuration, saying what to do.
pub fn check_exposed(address: SocketAddr, insecure: bool) -> Result<(), Failure> {
    if insecure || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Failure::configuration(format!(
        "{address} can be reached from other machines, and connections are not encrypted: \
         listen on 127.0.0.1, or accept this with --insecure (setting insecure = true)"
    )))
}

/// Listens on `address`. A port that a just stopped daemon used can be taken again at once.
///
/// # Errors
/// Machine, naming the address, when the port is busy or the machine refuses.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let open = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|error: io::Error| {
        let message = if error.kind() == io::ErrorKind::AddrInUse {
            format!("{address} is in use: stop what listens there, or choose another address")
        } else {
            format!("cannot listen on {address}")
        };
        Failure::machine(message).because(error)
    })
}

/// `address` as something to connect to: what listens everywhere is also on loopback.
pub fn dialable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn beside(mut address: SocketAddr, offset: u16, purpose: &str) -> Result<SocketAddr, Failure> {
    let port = ports::above(address.port(), offset)
        .ok_or_else(|| no_port("listen", &address.to_string(), purpose))?;
    address.set_port(port);
    Ok(address)
}

fn no_port(setting: &str, address: &str, purpose: &str) -> Failure {
    Failure::configuration(format!(
        "{setting} is {address}, which leaves no number for the {purpose} port: take a lower port"
    ))
}

/// Host and port of `text`, the value of `setting`; an IPv6 host keeps its brackets.
///
/// # Errors
/// Configuration, when the text is malformed or too long.
pub fn host_and_port<'a>(setting: &str, text: &'a str) -> Result<(&'a str, u16), Failure> {
    let refuse = || {
        Failure::configuration(format!(
            "{setting} is {text:?}, but must be host:port, such as 127.0.0.1:7300"
        ))
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let legal = host.len() <= HOST_BYTES_MAX
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
        && (bracketed || !host.contains([':', '[', ']']));
    if host.is_empty() || !legal {
        return Err(refuse());
    }
    Ok((host, port.parse().map_err(|_| refuse())?))
}
