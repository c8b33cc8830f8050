//! The settings of a router.

use std::time::Duration;

use daemon::{
    Failure,
    addresses::{self, Addresses},
    ports, runtime,
    settings::check_range,
};
use raftd::edge::DEADLINE_MAX;
use serde::{Deserialize, Serialize};

use crate::{
    config::{PIPELINE_BYTES_LIMIT, PIPELINE_REQUESTS_LIMIT},
    pipeline::PipelineLimits,
};

/// The router's name in the environment (`FLOTILLA_KVD_ROUTE__...`) and in what it says of itself.
pub(crate) const NAME: &str = "kvd-route";

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Where clients connect, `host:port`.
    pub(crate) listen: String,
    /// What clients are told instead, `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advertise: Option<String>,
    /// Where metrics and health are served; the port of `listen` plus 1000 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<String>,
    /// Whether addresses other than loopback are accepted without TLS.
    pub(crate) insecure: bool,
    /// The client addresses, `host:port`, of the shard controller's members.
    pub(crate) controllers: Vec<String>,
    /// How many streams of changes this router serves.
    pub(crate) watchers_max: u32,
    /// How long a request may take whose caller says nothing, in milliseconds.
    pub(crate) deadline_ms: u64,
    /// How many requests of one pipeline may be in flight before no more of it is read.
    pub(crate) pipeline_requests_max: usize,
    /// How many bytes of them.
    pub(crate) pipeline_bytes_max: usize,
    /// The process.
    pub(crate) process: runtime::Process,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: format!("127.0.0.1:{}", ports::KVD_ROUTE),
            advertise: None,
            admin: None,
            insecure: false,
            controllers: vec![format!("127.0.0.1:{}", ports::SHARDCTL)],
            watchers_max: 10_000,
            deadline_ms: 10_000,
            pipeline_requests_max: 1_024,
            pipeline_bytes_max: 8 << 20,
            process: runtime::Process::default(),
        }
    }
}

impl Config {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Configuration, naming the setting.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        check_range("watchers_max", self.watchers_max.into(), 1..=1_000_000)?;
        let longest = u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
        check_range("deadline_ms", self.deadline_ms, 1..=longest)?;
        let (requests, bytes) = (self.pipeline_requests_max, self.pipeline_bytes_max);
        check_range("pipeline_requests_max", requests as u64, 1..=PIPELINE_REQUESTS_LIMIT)?;
        check_range("pipeline_bytes_max", bytes as u64, 1..=PIPELINE_BYTES_LIMIT)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As [`Addresses::resolve`].
    pub(crate) fn addresses(&self) -> Result<Addresses, Failure> {
        Addresses::resolve(addresses::Network {
            listen: &self.listen,
            advertise: self.advertise.as_deref(),
            admin: self.admin.as_deref(),
            insecure: self.insecure,
        })
    }

    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    /// How much of one pipeline may be in flight.
    pub(crate) fn pipeline_limits(&self) -> PipelineLimits {
        PipelineLimits {
            requests_max: self.pipeline_requests_max,
            bytes_max: self.pipeline_bytes_max,
            deadline: self.deadline(),
        }
    }
}
