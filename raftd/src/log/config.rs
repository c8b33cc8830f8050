//! The settings of raftd.

use daemon::addresses::{self, Addresses};
use daemon::settings::check_range;
use daemon::{Failure, ports, runtime};
use serde::{Deserialize, Serialize};

use crate::cli::Configuration;
use crate::edge::DEADLINE_MAX;
use crate::log::limits::{
    ENTRY_BYTES_MAX, PROPOSE_ENTRIES_MAX, ProposeLimits, QUOTA_BYTES_DEFAULT, SUBSCRIBERS_DEFAULT,
    SUBSCRIBERS_MAX,
};
use crate::network::Network;
use crate::settings::Settings;

/// The daemon's name: of its binary, and in the environment (`FLOTILLA_RAFTD__...`).
pub const NAME: &str = "raftd";

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
    /// How many bytes the log may take before it is trimmed; the leader's setting counts.
    pub quota_bytes: u64,
    /// The longest entry.
    pub entry_bytes_max: usize,
    /// The most entries of one Propose.
    pub propose_entries_max: usize,
    /// How many subscribers this member serves.
    pub subscribers_max: usize,
    /// How long a request may take whose caller says nothing, in milliseconds.
    pub deadline_ms: u64,
    /// The process.
    pub process: runtime::Process,
    /// The group and this member of it.
    pub group: Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: format!("127.0.0.1:{}", ports::RAFTD),
            advertise: None,
            peer_listen: None,
            peer_advertise: None,
            admin: None,
            insecure: false,
            quota_bytes: QUOTA_BYTES_DEFAULT,
            entry_bytes_max: ENTRY_BYTES_MAX,
            propose_entries_max: PROPOSE_ENTRIES_MAX,
            subscribers_max: SUBSCRIBERS_DEFAULT,
            deadline_ms: 10_000,
            process: runtime::Process::default(),
            group: Settings { data: "raftd-data".into(), ..Settings::default() },
        }
    }
}

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Configuration, naming the setting.
    pub fn check(&self) -> Result<(), Failure> {
        check_range("quota_bytes", self.quota_bytes, 1..=u64::MAX)?;
        check_range("entry_bytes_max", self.entry_bytes_max as u64, 1..=ENTRY_BYTES_MAX as u64)?;
        let (entries, most) = (self.propose_entries_max as u64, PROPOSE_ENTRIES_MAX as u64);
        check_range("propose_entries_max", entries, 1..=most)?;
        check_range("subscribers_max", self.subscribers_max as u64, 0..=SUBSCRIBERS_MAX as u64)?;
        let longest = u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
        check_range("deadline_ms", self.deadline_ms, 1..=longest)
    }

    /// The limits on a Propose.
    pub fn propose_limits(&self) -> ProposeLimits {
        let Self { entry_bytes_max, propose_entries_max: entries_max, .. } = *self;
        ProposeLimits { entry_bytes_max, entries_max }
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
        Network { client, peer_listen, peer_advertise }.addresses(&self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_out_of_range_are_refused_by_name() {
        Config::default().check().unwrap();
        let usual = Config::default;
        for (config, name) in [
            (Config { quota_bytes: 0, ..usual() }, "quota_bytes is 0"),
            (Config { entry_bytes_max: 1_048_577, ..usual() }, "entry_bytes_max is 1048577"),
            (Config { propose_entries_max: 0, ..usual() }, "propose_entries_max is 0"),
            (Config { subscribers_max: 65_537, ..usual() }, "subscribers_max is 65537"),
            (Config { deadline_ms: 60_001, ..usual() }, "deadline_ms is 60001"),
        ] {
            let refused = config.check().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }
}
