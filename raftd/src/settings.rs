//! What an operator says about a group and this member of it: the table `group` of every daemon
//! that hosts one.

use std::path::PathBuf;
use std::time::Duration;

use daemon::Failure;
use daemon::addresses::host_and_port;
use daemon::settings::check_range;
use raft::NodeId;
use serde::{Deserialize, Serialize};

use crate::handle::COMMAND_BYTES_MAX;

/// How many members a group may have.
pub const MEMBERS_MAX: usize = 7;

/// The longest address, in bytes, that fits where members are remembered.
pub const ADDRESS_BYTES_MAX: usize = 255;

/// The longest name of a cluster, in bytes.
pub const CLUSTER_BYTES_MAX: usize = 63;

/// The peer port is the client port plus this, unless it is said otherwise.
const PEER_PORT_OFFSET: u16 = 50;

/// The longest tick: who waits longer than that for a sign of life has no use for a group.
const TICK_MS_MAX: u64 = 60_000;

/// The most requests and bytes that may wait: what a queue can count.
const REQUESTS_LIMIT: u64 = 1 << 20;
const BYTES_LIMIT: u64 = 1 << 40;

/// The most ticks of a timeout.
const TICKS_MAX: u64 = 100_000;

/// The longest time between two checks of the state, a day.
const CHECK_INTERVAL_S_MAX: u64 = 86_400;

/// The table `group` of a daemon's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The cluster's name; members of different clusters refuse each other.
    pub cluster: String,
    /// This member's id, at least 1.
    pub node: u64,
    /// The directory of this member; no other process may use it.
    pub data: PathBuf,
    /// All members, this one too: `ID=HOST:PORT`, where clients reach it, or
    /// `ID=HOST:PORT,HOST:PORT` with where its peers do. Empty: this member is alone.
    pub members: Vec<String>,
    /// Peer addresses of members of a group that this one is to join; it waits there until a person
    /// adds it. Only before it belongs to a group.
    pub join: Vec<String>,
    /// How long a tick is, in milliseconds.
    pub tick_ms: u64,
    /// A leader speaks at least this often.
    pub heartbeat_ticks: u32,
    /// A follower waits this long, and up to twice as long, before it campaigns.
    pub election_ticks_min: u32,
    /// A leader whose disk does not answer for so long hands the leadership over.
    pub slow_disk_ticks: u32,
    /// A snapshot is due after this much log, or the size of the last one if that is more.
    pub snapshot_log_bytes_min: u64,
    /// How much log before a snapshot is kept for followers that are a little behind.
    pub retained_bytes: u64,
    /// How much of it a leader keeps for members that lack it; or as much as the last snapshot is
    /// large, which they would need instead, if that is more.
    pub retained_bytes_max: u64,
    /// How long a new leader keeps that for a member that has not answered it.
    pub unheard_ticks_max: u32,
    /// How much of the log stays in memory, beside what is not committed.
    pub log_window_bytes: u64,
    /// How much a leader appends beyond what is committed, and beyond what its own disk has
    /// answered for, before it refuses proposals.
    pub uncommitted_bytes_max: u64,
    /// How much may be on its way to a follower.
    pub inflight_bytes_max: u64,
    /// How many requests may wait for a member to look at them.
    pub requests_max: u64,
    /// How many bytes of commands may wait so.
    pub requests_bytes_max: u64,
    /// How long a leader lets pass between two checks that all members hold the same state, if
    /// something has changed meanwhile, in seconds; 0: there are none.
    pub check_interval_s: u64,
    /// Writes that grow the store are refused while less than this is free on its disk.
    pub free_bytes_min: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let core = raft::Config::default();
        Self {
            cluster: "flotilla".to_owned(),
            node: 1,
            data: PathBuf::from("data"),
            members: Vec::new(),
            join: Vec::new(),
            tick_ms: core.tick_us / 1_000,
            heartbeat_ticks: core.heartbeat_ticks,
            election_ticks_min: core.election_ticks_min,
            slow_disk_ticks: core.slow_disk_ticks,
            snapshot_log_bytes_min: core.snapshot_log_bytes_min,
            retained_bytes: core.retained_bytes,
            retained_bytes_max: core.retained_bytes_max,
            unheard_ticks_max: core.unheard_ticks_max,
            log_window_bytes: core.log_window_bytes,
            uncommitted_bytes_max: core.uncommitted_bytes_max,
            inflight_bytes_max: core.inflight_bytes_max,
            requests_max: 16_384,
            requests_bytes_max: 64 << 20,
            check_interval_s: 10,
            free_bytes_min: 256 << 20,
        }
    }
}

/// The flags of the table `group`.
#[derive(clap::Args, Clone, Debug, Default, Serialize)]
pub struct Flags {
    #[command(flatten)]
    #[serde(rename = "group")]
    settings: GroupFlags,
}

#[derive(clap::Args, Clone, Debug, Default, Serialize)]
struct GroupFlags {
    /// The name of the cluster, which must be equal on all members
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The id of this member, at least 1
    #[arg(long, value_name = "ID")]
    node: Option<u64>,
    /// The directory of this member's data
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A member of the group, this one too; say it once for each. PEER is where its peers reach it,
    /// if that is not CLIENT's port plus 50
    #[arg(long = "member", value_name = "ID=CLIENT[,PEER]")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<String>,
    /// The peer address of a member of a group that this one is to join; say it once for each of
    /// several. It waits until `flotilla members add` adds it
    #[arg(long, value_name = "PEER", conflicts_with = "members")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    join: Vec<String>,
}

/// A member of a group and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub node: NodeId,
    /// Where its peers reach it, `host:port`.
    pub peer_address: String,
    /// Where clients reach it, `host:port`.
    pub client_address: String,
}

impl Settings {
    /// The members of the group, in order of their ids. A member that is alone is reached at
    /// `advertise` and `advertise_peer`.
    ///
    /// # Errors
    /// Configuration, naming the setting and what is wrong with it.
    pub fn members(&self, advertise: &str, advertise_peer: &str) -> Result<Vec<Member>, Failure> {
        if self.node == 0 {
            return Err(Failure::configuration("group.node is 0, but must be at least 1"));
        }
        if self.cluster.is_empty() || self.cluster.len() > CLUSTER_BYTES_MAX {
            return Err(Failure::configuration(format!(
                "group.cluster must be a name of 1 to {CLUSTER_BYTES_MAX} bytes"
            )));
        }
        let mut members =
            self.members.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            members.push(Member {
                node: NodeId(self.node),
                peer_address: advertise_peer.to_owned(),
                client_address: advertise.to_owned(),
            });
        }
        for address in &self.join {
            host_and_port("group.join", address)?;
        }
        if !self.join.is_empty() && !self.members.is_empty() {
            return Err(Failure::configuration(
                "group.members makes a new group and group.join joins another: give one of them",
            ));
        }
        members.sort_by_key(|member| member.node);
        self.check_members(&members)?;
        Ok(members)
    }

    fn check_members(&self, members: &[Member]) -> Result<(), Failure> {
        if members.len() > MEMBERS_MAX {
            return Err(Failure::configuration(format!(
                "group.members names {} members, but a group has at most {MEMBERS_MAX}",
                members.len()
            )));
        }
        if let Some(twice) = members.windows(2).find(|pair| pair[0].node == pair[1].node) {
            return Err(Failure::configuration(format!(
                "group.members names member {} twice",
                twice[0].node
            )));
        }
        if members.iter().all(|member| member.node.0 != self.node) {
            return Err(Failure::configuration(format!(
                "group.members does not name this member, {}: give --member {}=HOST:PORT, or \
                 another --node",
                self.node, self.node
            )));
        }
        Ok(())
    }

    /// Checks all that can be checked before anything is touched.
    ///
    /// # Errors
    /// Configuration, naming the setting and what is wrong with it.
    pub fn check(&self, advertise: &str, advertise_peer: &str) -> Result<(), Failure> {
        self.members(advertise, advertise_peer)?;
        self.core().map(drop)
    }

    /// The settings of the core.
    ///
    /// # Errors
    /// Configuration, when they do not fit together.
    pub fn core(&self) -> Result<raft::Config, Failure> {
        check_range("group.tick_ms", self.tick_ms, 1..=TICK_MS_MAX)?;
        for (setting, ticks) in [
            ("group.heartbeat_ticks", self.heartbeat_ticks),
            ("group.election_ticks_min", self.election_ticks_min),
            ("group.slow_disk_ticks", self.slow_disk_ticks),
            ("group.unheard_ticks_max", self.unheard_ticks_max),
        ] {
            check_range(setting, ticks.into(), 1..=TICKS_MAX)?;
        }
        // More would not fit any memory, and less would refuse the largest command for ever.
        let one = COMMAND_BYTES_MAX as u64;
        check_range("group.requests_max", self.requests_max, 1..=REQUESTS_LIMIT)?;
        check_range("group.requests_bytes_max", self.requests_bytes_max, one..=BYTES_LIMIT)?;
        check_range("group.check_interval_s", self.check_interval_s, 0..=CHECK_INTERVAL_S_MAX)?;
        // At least one, unless there are to be none; at most what a day has of the shortest.
        let check_ticks = (self.check_interval_s * 1_000).div_ceil(self.tick_ms);
        let config = raft::Config {
            check_ticks: u32::try_from(check_ticks).unwrap_or(u32::MAX),
            tick_us: self.tick_ms.saturating_mul(1_000),
            heartbeat_ticks: self.heartbeat_ticks,
            election_ticks_min: self.election_ticks_min,
            slow_disk_ticks: self.slow_disk_ticks,
            snapshot_log_bytes_min: self.snapshot_log_bytes_min,
            retained_bytes: self.retained_bytes,
            retained_bytes_max: self.retained_bytes_max,
            unheard_ticks_max: self.unheard_ticks_max,
            log_window_bytes: self.log_window_bytes,
            uncommitted_bytes_max: self.uncommitted_bytes_max,
            inflight_bytes_max: self.inflight_bytes_max,
            ..raft::Config::default()
        };
        config
            .check()
            .map(|()| config)
            .map_err(|problem| Failure::configuration(format!("table group: {problem}")))
    }

    /// How long a tick is.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.tick_ms)
    }
}

fn parse(text: &str) -> Result<Member, Failure> {
    let wrong = |problem: &str| {
        Failure::configuration(format!(
            "group.members: \"{text}\" {problem}; a member is ID=HOST:PORT or \
             ID=HOST:PORT,PEERHOST:PORT"
        ))
    };
    let (id, addresses) = text.split_once('=').ok_or_else(|| wrong("has no \"=\""))?;
    let node = match id.trim().parse() {
        Ok(id) if (1..=i64::MAX as u64).contains(&id) => NodeId(id),
        Ok(_) | Err(_) => return Err(wrong("has no id of at least 1")),
    };
    let (client, peer) = match addresses.split_once(',') {
        Some((client, peer)) => (client.trim(), Some(peer.trim())),
        None => (addresses.trim(), None),
    };
    let parts = |address| host_and_port("group.members", address).ok().filter(|parts| parts.1 > 0);
    let (host, port) = parts(client).ok_or_else(|| wrong("has no address with a port"))?;
    let peer_address = match peer {
        Some(peer) if parts(peer).is_some() => peer.to_owned(),
        Some(_) => return Err(wrong("has no peer address with a port")),
        None => {
            let port = port
                .checked_add(PEER_PORT_OFFSET)
                .ok_or_else(|| wrong("leaves no port for peers"))?;
            format!("{host}:{port}")
        }
    };
    Ok(Member { node, peer_address, client_address: client.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(texts: &[&str]) -> Result<Vec<Member>, Failure> {
        let members = texts.iter().map(|&text| text.to_owned()).collect();
        Settings { members, ..Settings::default() }.members("a:1", "a:51")
    }

    #[test]
    fn members_are_read_and_ordered() {
        let found = members(&["2=b:7300", "1=a:7300,p:9"]).unwrap();
        assert_eq!(found[0].peer_address, "p:9");
        assert_eq!(found[1].peer_address, "b:7350");
        assert_eq!(found[1].client_address, "b:7300");
        assert_eq!(members(&[]).unwrap()[0].peer_address, "a:51");
    }

    #[test]
    fn wrong_members_are_refused_with_what_is_wrong() {
        for (texts, expected) in [
            (&["1=a"][..], "no address with a port"),
            (&["a:7300"], "has no \"=\""),
            (&["0=a:7300"], "no id of at least 1"),
            (&["1=a:65530"], "leaves no port"),
            (&["1=bad host:7300"], "no address with a port"),
            (&["1=a:7300,p q:1"], "no peer address"),
            (&["1=a:7300", "1=b:7300"], "names member 1 twice"),
            (&["2=b:7300"], "does not name this member"),
        ] {
            let failure = members(texts).unwrap_err();
            assert!(failure.to_string().contains(expected), "{failure}");
        }
    }

    #[test]
    fn numbers_that_no_clock_can_count_are_refused() {
        let usual = Settings::default;
        for (settings, expected) in [
            (Settings { heartbeat_ticks: 1 << 31, ..usual() }, "group.heartbeat_ticks is"),
            (Settings { election_ticks_min: 1 << 31, ..usual() }, "group.election_ticks_min is"),
            (Settings { tick_ms: u64::MAX, ..usual() }, "group.tick_ms is"),
            (Settings { tick_ms: 0, ..usual() }, "group.tick_ms is 0"),
            (Settings { requests_max: 0, ..usual() }, "group.requests_max is 0"),
            (Settings { requests_bytes_max: 1, ..usual() }, "group.requests_bytes_max is 1"),
            (Settings { inflight_bytes_max: 0, ..usual() }, "the window to a follower"),
            (Settings { uncommitted_bytes_max: 0, ..usual() }, "must be allowed to take"),
        ] {
            let failure = settings.core().unwrap_err();
            assert!(failure.to_string().contains(expected), "{failure}");
        }
    }
}
