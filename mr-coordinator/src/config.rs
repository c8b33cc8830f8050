//! The settings of the coordinator.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use daemon::{
    Failure,
    addresses::{self, Addresses},
    ports, runtime,
    settings::check_range,
};
use raftd::cli::Configuration;
use serde::{Deserialize, Serialize};

use crate::{
    limits::{
        BLOB_BYTES_DEFAULT, JOBS_ACTIVE_MAX, JOBS_RUNNING_MAX, LEASE_MS_DEFAULT, LEASE_MS_MAX,
        LEASE_MS_MIN, LOGS_KEPT_S_DEFAULT, LOGS_KEPT_S_MAX, QUEUE_WEIGHT_MAX, QUEUES_MAX,
    },
    schedule::{self, Weights},
    scheduling::queue_is_good,
};

/// The daemon's name: of its binary, and in the environment (`FLOTILLA_MR_COORDINATOR__...`).
pub(crate) const NAME: &str = "mr-coordinator";

/// How many heartbeats fit into a lease: one that is lost costs nothing.
const HEARTBEATS_PER_LEASE: u64 = 20;
/// The shortest and the longest pause between heartbeats.
const HEARTBEAT_MS: (u64, u64) = (100, 500);

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where clients and workers connect, `host:port`.
    pub listen: String,
    /// What they are told instead, `host:port`.
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
    /// The directory that coordinators and workers share; paths of jobs are below it.
    pub root: PathBuf,
    /// After how much silence a worker counts as lost, in milliseconds.
    pub lease_ms: u64,
    /// How long a started job may be without any worker for it, in milliseconds; 0: for ever.
    pub no_workers_grace_ms: u64,
    /// How many jobs are planned and run at a time.
    pub jobs_running_max: usize,
    /// How long a file may be that a job sends along, in bytes.
    pub blob_bytes_max: u64,
    /// How long the logs of a job's attempts stay when it has ended, in seconds.
    pub logs_kept_s: u64,
    /// What queues get of the slots: name and weight; a queue that is not named has weight 1.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub queues: BTreeMap<String, u32>,
    /// The process.
    pub process: runtime::Process,
    /// The group and this member of it.
    pub group: raftd::Settings,
}

impl Default for Config {
    fn default() -> Self {
        let group = raftd::Settings::default();
        Self {
            listen: format!("127.0.0.1:{}", ports::MR_COORDINATOR),
            advertise: None,
            peer_listen: None,
            peer_advertise: None,
            admin: None,
            insecure: false,
            root: PathBuf::from("."),
            lease_ms: LEASE_MS_DEFAULT,
            no_workers_grace_ms: 60_000,
            jobs_running_max: JOBS_RUNNING_MAX,
            blob_bytes_max: BLOB_BYTES_DEFAULT,
            logs_kept_s: LOGS_KEPT_S_DEFAULT,
            queues: BTreeMap::new(),
            process: runtime::Process::default(),
            group: raftd::Settings { data: PathBuf::from("mr-coordinator-data"), ..group },
        }
    }
}

impl Config {
    /// What the scheduler works by.
    ///
    /// # Errors
    /// Configuration, naming the setting that is out of range.
    pub fn scheduling(&self) -> Result<schedule::Settings, Failure> {
        check_range("lease_ms", self.lease_ms, LEASE_MS_MIN..=LEASE_MS_MAX)?;
        let running = self.jobs_running_max as u64;
        check_range("jobs_running_max", running, 1..=JOBS_ACTIVE_MAX as u64)?;
        let (least, most) = HEARTBEAT_MS;
        Ok(schedule::Settings {
            lease_ms: self.lease_ms,
            heartbeat_ms: (self.lease_ms / HEARTBEATS_PER_LEASE).clamp(least, most),
            no_workers_grace_ms: Some(self.no_workers_grace_ms).filter(|grace| *grace > 0),
            jobs_running_max: self.jobs_running_max,
            weights: self.weights()?,
        })
    }
}

impl Config {
    /// How long logs stay.
    ///
    /// # Errors
    /// Configuration, when the setting is out of range.
    pub(crate) fn logs_kept(&self) -> Result<Duration, Failure> {
        check_range("logs_kept_s", self.logs_kept_s, 1..=LOGS_KEPT_S_MAX)?;
        Ok(Duration::from_secs(self.logs_kept_s))
    }

    fn weights(&self) -> Result<Weights, Failure> {
        let count = self.queues.len();
        if count > QUEUES_MAX {
            let message = format!("queues names {count} queues; at most {QUEUES_MAX}");
            return Err(Failure::configuration(message));
        }
        for (name, weight) in &self.queues {
            if !queue_is_good(name) {
                let message = format!("queues names {name:?}, which no job can ask for");
                return Err(Failure::configuration(message));
            }
            let setting = format!("queues.{name}");
            check_range(&setting, u64::from(*weight), 1..=u64::from(QUEUE_WEIGHT_MAX))?;
        }
        Ok(Weights::new(self.queues.clone()))
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
    fn several_heartbeats_fit_into_every_lease() {
        for lease_ms in [LEASE_MS_MIN, 2_000, LEASE_MS_DEFAULT, LEASE_MS_MAX] {
            let settings = Config { lease_ms, ..Config::default() }.scheduling().unwrap();
            assert!(settings.heartbeat_ms * 5 <= lease_ms, "{settings:?}");
        }
        // A job may ask for the shortest lease whatever the coordinator's is.
        let settings = Config::default().scheduling().unwrap();
        assert!(settings.heartbeat_ms * 2 <= LEASE_MS_MIN);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (config, name) in [
            (Config { lease_ms: 1, ..Config::default() }, "lease_ms is 1"),
            (Config { jobs_running_max: 0, ..Config::default() }, "jobs_running_max is 0"),
            (Config { queues: [("q".to_owned(), 0)].into(), ..Config::default() }, "queues.q is 0"),
            (Config { queues: [(String::new(), 1)].into(), ..Config::default() }, "queues names"),
        ] {
            let refused = config.scheduling().unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
        for logs_kept_s in [0, LOGS_KEPT_S_MAX + 1] {
            let config = Config { logs_kept_s, ..Config::default() };
            let refused = config.logs_kept().unwrap_err().to_string();
            assert!(refused.contains("logs_kept_s is"), "{refused}");
        }
        let forever = Config { no_workers_grace_ms: 0, ..Config::default() };
        assert_eq!(forever.scheduling().unwrap().no_workers_grace_ms, None);
    }
}
