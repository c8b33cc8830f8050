//! The settings of kvd.

use std::time::Duration;

use daemon::{
    Failure,
    addresses::{self, Addresses},
    ports, runtime,
    settings::check_range,
};
use proto::SHARDS_DEFAULT;
use raftd::{cli::Configuration, edge::DEADLINE_MAX};
use serde::{Deserialize, Serialize};

use crate::limits::{KEY_BYTES_MAX, PairLimits, SHARDS_MAX, VALUE_BYTES_MAX};
use crate::pipeline::PipelineLimits;
use crate::wire::request::Terms;

/// The daemon's name: of its binary, and in the environment (`FLOTILLA_KVD__...`).
pub const NAME: &str = "kvd";

/// The most that a member may be told to take in of one stream: more than this is memory that a
/// single client could fill.
pub(crate) const PIPELINE_REQUESTS_LIMIT: u64 = 1 << 16;
pub(crate) const PIPELINE_BYTES_LIMIT: u64 = 1 << 30;

/// The most shards that a group may be told to take in at a time.
const MOVES_LIMIT: u64 = 8;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients connect, `host:port`.
    pub listen: String,
    /// What clients are told instead, `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Where peers connect; the port of `listen` plus 50 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_listen: Option<String>,
    /// What peers are told instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_advertise: Option<String>,
    /// Where metrics and health are served; the port of `listen` plus 1000 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
    /// Whether addresses other than loopback are accepted without TLS.
    pub insecure: bool,
    /// How many shards a new cluster gets; must be equal on all members, for ever.
    pub shards: u32,
    /// The group's number among those that a shard controller knows; absent: it stands alone, and
    /// has all shards. Must be equal on all members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard_group: Option<u32>,
    /// The client addresses, `host:port`, of the shard controller's members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<String>,
    /// How many shards this group takes in at a time from each of the others.
    pub moves_max: u32,
    /// How many bytes of them it takes in each second; 0: as many as come.
    pub move_bytes_per_second: u64,
    /// The longest key.
    pub key_bytes_max: usize,
    /// The longest value.
    pub value_bytes_max: usize,
    /// How many bytes the group may store: keys, values, what can be read of the past, and what
    /// each of them costs beside its bytes. What would grow beyond is refused.
    pub stored_bytes_max: u64,
    /// How many streams of changes this member serves.
    pub watchers_max: u32,
    /// How long a request may take whose caller says nothing, in milliseconds.
    pub deadline_ms: u64,
    /// How many requests of one pipeline may be in flight before no more of it is read.
    pub pipeline_requests_max: usize,
    /// How many bytes of them.
    pub pipeline_bytes_max: usize,
    /// The process.
    pub process: runtime::Process,
    /// The group and this member of it.
    pub group: raftd::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: format!("127.0.0.1:{}", ports::KVD),
            advertise: None,
            peer_listen: None,
            peer_advertise: None,
            admin: None,
            insecure: false,
            shards: SHARDS_DEFAULT,
            shard_group: None,
            controllers: Vec::new(),
            moves_max: 2,
            move_bytes_per_second: 32 << 20,
            key_bytes_max: KEY_BYTES_MAX,
            value_bytes_max: VALUE_BYTES_MAX,
            stored_bytes_max: 4 << 30,
            watchers_max: 10_000,
            deadline_ms: 10_000,
            pipeline_requests_max: 1_024,
            pipeline_bytes_max: 8 << 20,
            process: runtime::Process::default(),
            group: raftd::Settings::default(),
        }
    }
}

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Configuration, naming the setting.
    pub fn check(&self) -> Result<(), Failure> {
        check_range("shards", self.shards.into(), 1..=SHARDS_MAX.into())?;
        check_range("shard_group", self.shard_group.unwrap_or(1).into(), 1..=u32::MAX.into())?;
        check_range("moves_max", self.moves_max.into(), 1..=MOVES_LIMIT)?;
        check_range("move_bytes_per_second", self.move_bytes_per_second, 0..=1 << 40)?;
        if self.shard_group.is_some() == self.controllers.is_empty() {
            return Err(Failure::configuration(
                "shard_group and controllers go together: one of many groups has a number \
                 (--shard-group) and knows the shard controller (--controller), a group that \
                 stands alone neither",
            ));
        }
        check_range("key_bytes_max", self.key_bytes_max as u64, 1..=KEY_BYTES_MAX as u64)?;
        check_range("value_bytes_max", self.value_bytes_max as u64, 1..=VALUE_BYTES_MAX as u64)?;
        check_range("stored_bytes_max", self.stored_bytes_max, 1 << 20..=1 << 40)?;
        check_range("watchers_max", self.watchers_max.into(), 1..=1_000_000)?;
        let longest = u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
        check_range("deadline_ms", self.deadline_ms, 1..=longest)?;
        let (requests, bytes) = (self.pipeline_requests_max, self.pipeline_bytes_max);
        check_range("pipeline_requests_max", requests as u64, 1..=PIPELINE_REQUESTS_LIMIT)?;
        check_range("pipeline_bytes_max", bytes as u64, 1..=PIPELINE_BYTES_LIMIT)
    }

    /// How much of one pipeline may be in flight.
    pub(crate) fn pipeline_limits(&self) -> PipelineLimits {
        PipelineLimits {
            requests_max: self.pipeline_requests_max,
            bytes_max: self.pipeline_bytes_max,
            deadline: Duration::from_millis(self.deadline_ms),
        }
    }

    /// What is said here about requests.
    pub(crate) fn terms(&self) -> Terms {
        let Self { shards, key_bytes_max, value_bytes_max, stored_bytes_max, .. } = *self;
        let limits = PairLimits { key_bytes_max, value_bytes_max };
        Terms { shards, limits, stored_bytes_max }
    }
}

impl Configuration for Config {
    const NAME: &'static str = NAME;

    fn process(&self) -> &runtime::Process {
        &self.process
    }

    fn addresses(&self) -> Result<Addresses, Failure> {
        let client = addresses::Network {
            listen: &self.listen,
            advertise: self.advertise.as_deref(),
            admin: self.admin.as_deref(),
            insecure: self.insecure,
        };
        let peer_listen = self.peer_listen.as_deref();
        let peer_advertise = self.peer_advertise.as_deref();
        raftd::Network { client, peer_listen, peer_advertise }.addresses(&self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_told_its_addresses_by_the_list_of_members() {
        let mut config = Config { listen: "0.0.0.0:7300".to_owned(), ..Config::default() };
        config.insecure = true;
        assert!(config.addresses().unwrap_err().to_string().contains("advertise"));
        config.group.members = vec!["1=kv1:7300,kv1:9".to_owned(), "2=kv2:7300".to_owned()];
        let addresses = config.addresses().unwrap();
        assert_eq!((&*addresses.advertise, &*addresses.advertise_peer), ("kv1:7300", "kv1:9"));
        config.advertise = Some("other:1".to_owned());
        let refused = config.addresses().unwrap_err().to_string();
        assert!(refused.contains("group.members says kv1:7300"), "{refused}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        Config::default().check().unwrap();
        for (config, name) in [
            (Config { shards: 0, ..Config::default() }, "shards is 0"),
            (Config { shards: SHARDS_MAX + 1, ..Config::default() }, "shards is 16385"),
            (Config { shard_group: Some(0), ..Config::default() }, "shard_group is 0"),
            (Config { shard_group: Some(1), ..Config::default() }, "go together"),
            (Config { controllers: vec!["a:1".to_owned()], ..Config::default() }, "go together"),
            (Config { moves_max: 0, ..Config::default() }, "moves_max is 0"),
            (Config { key_bytes_max: 8193, ..Config::default() }, "key_bytes_max is 8193"),
            (Config { value_bytes_max: 0, ..Config::default() }, "value_bytes_max is 0"),
            (Config { deadline_ms: 60_001, ..Config::default() }, "deadline_ms is 60001"),
            (
                Config { pipeline_requests_max: 0, ..Config::default() },
                "pipeline_requests_max is 0",
            ),
            (Config { pipeline_bytes_max: 0, ..Config::default() }, "pipeline_bytes_max is 0"),
        ] {
            let refused = config.check().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }

    #[test]
    fn an_exposed_peer_port_needs_the_operators_word() {
        let peer_listen = Some("0.0.0.0:7350".to_owned());
        let config = Config { peer_listen, ..Config::default() };
        assert!(config.addresses().is_err());
        assert!(Config { insecure: true, ..config }.addresses().is_ok());
    }
}
