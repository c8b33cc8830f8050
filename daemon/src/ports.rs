//! Where Flotilla's daemons listen unless they are told otherwise.
//!
//! A daemon has up to three ports that follow from one number: clients, peers (plus 50) and the
//! admin port (plus 1000). A second instance on one address takes the next number, at most 50.

/// The port of the stand-alone replicated log.
pub const RAFTD: u16 = 7100;
/// The port of the shard controller.
pub const SHARDCTL: u16 = 7200;
/// The port of the key/value daemon.
pub const KVD: u16 = 7300;
/// The port of the MapReduce coordinator.
pub const MR_COORDINATOR: u16 = 7400;
/// The port of `kvd route`.
pub const KVD_ROUTE: u16 = 7600;
/// The admin port of a MapReduce worker, which has no other.
pub const MR_WORKER_ADMIN: u16 = 8500;

/// What is added to a daemon's port for its peer port.
pub const PEER_OFFSET: u16 = 50;
/// What is added to a daemon's port for its admin port.
pub const ADMIN_OFFSET: u16 = 1000;
/// How many instances of a daemon fit on one address before their ports meet the peer ports.
pub const INSTANCES_MAX: u16 = 50;

const _: () = assert!(INSTANCES_MAX <= PEER_OFFSET);
const _: () = assert!(KVD + PEER_OFFSET + INSTANCES_MAX <= MR_COORDINATOR);

/// The port that lies `offset` above `port`, or `None` beyond the last port.
/// Port 0 stays 0, since the system picks each of them.
pub fn above(port: u16, offset: u16) -> Option<u16> {
    if port == 0 { Some(0) } else { port.checked_add(offset) }
}
