//! The settings of the controller.

use std::{num::NonZeroU32, time::Duration};

use daemon::{
    Failure,
    addresses::{self, Addresses},
    ports, runtime,
    settings::check_range,
};
use proto::SHARDS_DEFAULT;
use raftd::{cli::Configuration, edge::DEADLINE_MAX};
use serde::{Deserialize, Serialize};

use crate::{limits::SHARDS_MAX, watch::WATCHERS_LIMIT};

/// The daemon's name: of its binary, and in the environment (`FLOTILLA_SHARDCTL__...`).
pub const NAME: &str = "shardctl";

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
    /// How many shards there are, if the first request does not say; the leader's setting counts,
    /// and none does once there is a configuration.
    pub shards: u32,
    /// How many streams of changes this member serves.
    pub watchers_max: u32,
    /// How long a request may take whose caller says nothing, in milliseconds.
    pub deadline_ms: u64,
    /// The process.
    pub process: runtime::Process,
    /// The group and this member of it.
    pub group: raftd::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: format!("127.0.0.1:{}", ports::SHARDCTL),
            advertise: None,
            peer_listen: None,
            peer_advertise: None,
            admin: None,
            insecure: false,
            shards: SHARDS_DEFAULT,
            watchers_max: 10_000,
            deadline_ms: 10_000,
            process: runtime::Process::default(),
            group: raftd::Settings { data: "shardctl-data".into(), ..raftd::Settings::default() },
        }
    }
}

impl Config {
    /// Checks what the types cannot; how many shards there are, if nobody says.
    ///
    /// # Errors
    /// Configuration, naming the setting.
    pub fn check(&self) -> Result<NonZeroU32, Failure> {
        check_range("shards", self.shards.into(), 1..=SHARDS_MAX.into())?;
        check_range("watchers_max", self.watchers_max.into(), 0..=WATCHERS_LIMIT)?;
        let longest = u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
        check_range("deadline_ms", self.deadline_ms, 1..=longest)?;
        Ok(NonZeroU32::new(self.shards).expect("it is in its range"))
    }

    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
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
    fn settings_out_of_range_are_named() {
        assert_eq!(Config::default().check().unwrap().get(), SHARDS_DEFAULT);
        let usual = Config::default;
        for (config, name) in [
            (Config { shards: 0, ..usual() }, "shards is 0"),
            (Config { shards: SHARDS_MAX + 1, ..usual() }, "shards is 16385"),
            (Config { watchers_max: 1_000_001, ..usual() }, "watchers_max is 1000001"),
            (Config { deadline_ms: 60_001, ..usual() }, "deadline_ms is 60001"),
        ] {
            let refused = config.check().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }
}
