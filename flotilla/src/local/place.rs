//! Where the processes of a local cluster listen.
//!
//! Peers and restarts need fixed ports, and clusters that run beside each other must not meet. So a
//! cluster that nobody has to find by its address draws a loopback address of its own and has the
//! standard ports there; one that people talk to is placed by them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use daemon::{Code, Failure, ports};
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// The most members of a group of a local cluster: what a group takes.
pub const MEMBERS_MAX: u16 = 7;

/// The most workers of a local cluster: their ports follow each other.
pub const WORKERS_MAX: u16 = ports::INSTANCES_MAX;

/// The highest base port: workers' admin ports lie farthest above it.
pub const BASE_PORT_MAX: u16 = u16::MAX - WORKER_OFFSET - WORKERS_MAX;

/// How far the first log member's port lies below the first key/value member's.
const LOG_OFFSET: u16 = ports::KVD - ports::RAFTD;

/// How far the first controller's port lies below the first key/value member's.
const CONTROLLER_OFFSET: u16 = ports::KVD - ports::SHARDCTL;

/// The lowest base port of a cluster with a log.
pub const LOG_BASE_PORT_MIN: u16 = LOG_OFFSET + 1;

/// How far the router's port lies above the first key/value member's.
const ROUTER_OFFSET: u16 = ports::KVD_ROUTE - ports::KVD;

/// How far the coordinator's port lies above the first key/value member's.
const COORDINATOR_OFFSET: u16 = ports::MR_COORDINATOR - ports::KVD;

/// How far the first worker's admin port lies above the first key/value member's port.
const WORKER_OFFSET: u16 = ports::MR_WORKER_ADMIN - ports::KVD;

/// How many loopback addresses are tried before the machine is believed to have none.
const DRAWS_MAX: u32 = 64;

/// An address, and the port that all ports of a cluster are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Every process listens here.
    pub ip: IpAddr,
    /// The port of the first key/value member.
    pub base_port: u16,
}

/// Keeps a drawn address from being drawn again, by a listener below the base port.
#[derive(Debug)]
pub struct Claim {
    _listener: TcpListener,
}

impl Default for Place {
    fn default() -> Self {
        Self { ip: Ipv4Addr::LOCALHOST.into(), base_port: ports::KVD }
    }
}

impl Place {
    /// A loopback address of one's own, for as long as the claim lives.
    ///
    /// # Errors
    /// Machine, when no loopback address can be listened on.
    pub fn draw() -> Result<(Self, Claim), Failure> {
        let mut rng = rand::rng();
        let mut refused = None;
        for _ in 0..DRAWS_MAX {
            // 127.0.0.0/16 is left to people and their services.
            let ip = Ipv4Addr::new(
                127,
                rng.random_range(1..=254),
                rng.random_range(0..=254),
                rng.random_range(1..=254),
            );
            let place = Self { ip: ip.into(), base_port: ports::KVD };
            let claim = TcpListener::bind((place.ip, place.base_port - 1))
                .and_then(|listener| place.try_all().map(|()| Claim { _listener: listener }));
            match claim {
                Ok(claim) => return Ok((place, claim)),
                Err(error) => refused = Some(error),
            }
        }
        let failure = Failure::machine("no loopback address is free for a cluster");
        Err(match refused {
            Some(error) => failure.because(error),
            None => failure,
        })
    }

    /// The client address of a key/value member, counted from 1.
    pub fn kvd(self, number: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.base_port + number - 1)
    }

    /// The client address of a member of the log, counted from 1. The base port is at least
    /// [`LOG_BASE_PORT_MIN`].
    pub fn raftd(self, number: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.base_port - LOG_OFFSET + number - 1)
    }

    /// The client address of a member of the shard controller, counted from 1. The base port is at
    /// least [`LOG_BASE_PORT_MIN`].
    pub fn shardctl(self, number: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.base_port - CONTROLLER_OFFSET + number - 1)
    }

    /// The client address of the router.
    pub fn router(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.base_port + ROUTER_OFFSET)
    }

    /// The client address of the coordinator.
    pub fn coordinator(self) -> SocketAddr {
        SocketAddr::new(self.ip, self.base_port + COORDINATOR_OFFSET)
    }

    /// The admin address of a worker, counted from 1.
    pub fn worker_admin(self, number: u16) -> SocketAddr {
        SocketAddr::new(self.ip, self.base_port + WORKER_OFFSET + number - 1)
    }

    /// Refuses a place that has no room for all ports, that nobody can connect to, or that is open
    /// to other machines without the word of who starts it.
    ///
    /// # Errors
    /// Wrong call, saying what fits.
    pub fn check(self, insecure: bool) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(Code::WrongCall, message));
        let Self { ip, base_port } = self;
        if !(1..=BASE_PORT_MAX).contains(&base_port) {
            return refuse(format!(
                "the base port is {base_port}, but must be 1 to {BASE_PORT_MAX}"
            ));
        }
        if ip.is_unspecified() {
            return refuse(format!(
                "{ip} is no address to connect to: --listen-ip must be the address at which \
                 others reach this machine, or 127.0.0.1"
            ));
        }
        if !insecure && !ip.to_canonical().is_loopback() {
            return refuse(format!(
                "{ip} can be reached from other machines, and connections are not encrypted: \
                 accept that with --insecure, or listen on 127.0.0.1"
            ));
        }
        Ok(())
    }

    /// Refuses a place where one of these addresses is taken, so that nothing is started then.
    ///
    /// # Errors
    /// Machine, naming the address.
    pub fn check_free(addresses: &[SocketAddr]) -> Result<(), Failure> {
        for address in addresses {
            TcpListener::bind(address).map_err(|error| {
                Failure::machine(format!(
                    "{address} cannot be listened on; is another cluster running? \
                     --base-port or --listen-ip gives this one a place of its own"
                ))
                .because(error)
            })?;
        }
        Ok(())
    }

    /// Listens, one after the other, on the first port of each kind.
    fn try_all(self) -> std::io::Result<()> {
        let [kvd, raftd, shardctl] = [self.kvd(1), self.raftd(1), self.shardctl(1)];
        for address in [kvd, raftd, shardctl, self.coordinator(), self.worker_admin(1)] {
            TcpListener::bind(address)?;
        }
        Ok(())
    }
}

/// The peer and the admin address that belong to a client address.
pub fn beside(client: SocketAddr) -> [SocketAddr; 2] {
    [ports::PEER_OFFSET, ports::ADMIN_OFFSET]
        .map(|offset| SocketAddr::new(client.ip(), client.port() + offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_places_are_loopback_and_apart() {
        let (one, _one) = Place::draw().unwrap();
        let (other, _other) = Place::draw().unwrap();
        assert!(one.ip.is_loopback() && other.ip.is_loopback());
        assert_ne!(one.ip, other.ip);
    }

    #[test]
    fn a_claimed_address_cannot_be_claimed_again() {
        let (place, claim) = Place::draw().unwrap();
        let again = || TcpListener::bind((place.ip, place.base_port - 1));
        assert!(again().is_err());
        drop(claim);
        assert!(again().is_ok());
    }

    #[test]
    fn standard_ports_are_those_of_the_daemons() {
        let place = Place::default();
        assert_eq!(place.kvd(1).port(), ports::KVD);
        assert_eq!(place.raftd(1).port(), ports::RAFTD);
        assert_eq!(place.shardctl(1).port(), ports::SHARDCTL);
        assert_eq!(place.router().port(), ports::KVD_ROUTE);
        assert_eq!(place.coordinator().port(), ports::MR_COORDINATOR);
        assert_eq!(place.worker_admin(2).port(), ports::MR_WORKER_ADMIN + 1);
        assert_eq!(beside(place.kvd(2)).map(|address| address.port()), [7351, 8301]);
    }

    #[test]
    fn a_busy_address_is_named() {
        let (place, _claim) = Place::draw().unwrap();
        let busy = place.kvd(1);
        let _listener = TcpListener::bind(busy).unwrap();
        let failure = Place::check_free(&[place.kvd(2), busy]).unwrap_err();
        assert_eq!(failure.code(), Code::Machine);
        assert!(failure.to_string().contains(&busy.to_string()), "{failure}");
    }

    #[test]
    fn every_port_of_the_highest_base_fits() {
        let place = Place { base_port: BASE_PORT_MAX, ..Place::default() };
        place.check(false).unwrap();
        assert!(place.worker_admin(WORKERS_MAX).port() > BASE_PORT_MAX);
        assert!(Place { base_port: BASE_PORT_MAX + 1, ..place }.check(false).is_err());
        assert!(Place { base_port: 0, ..place }.check(false).is_err());
    }

    #[test]
    fn only_an_address_of_ones_own_is_taken_unasked() {
        let at = |ip: &str| Place { ip: ip.parse().unwrap(), ..Place::default() };
        for everywhere in ["0.0.0.0", "::"] {
            assert!(at(everywhere).check(true).unwrap_err().to_string().contains("--listen-ip"));
        }
        assert!(at("10.1.2.3").check(false).unwrap_err().to_string().contains("--insecure"));
        assert!(at("10.1.2.3").check(true).is_ok());
        assert!(at("::1").check(false).is_ok());
    }
}
