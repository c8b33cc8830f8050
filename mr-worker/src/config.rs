//! The settings of a worker.

use std::{num::NonZero, path::PathBuf, thread, time::Duration};

use daemon::{Failure, ports, settings::check_range};
use serde::{Deserialize, Serialize};

use crate::{
    collect::{MEMORY_BYTES_MAX, MEMORY_BYTES_MIN},
    session::is_address,
};

/// The most slots of one worker.
pub const SLOTS_MAX: u32 = 1_024;

/// The most tasks that are kept ready for one slot: a worker lists all in its heartbeats.
pub const PREFETCH_MAX: u32 = 3;

/// The longest log of an attempt that can be set, in bytes: no more than one reads.
pub const LOG_BYTES_MAX: u64 = 1 << 30;

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// The most coordinators that can be named: beyond any sensible group.
pub const COORDINATORS_MAX: usize = 16;

/// What a worker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// About the process itself.
    pub process: daemon::runtime::Process,
    /// Where coordinators are: `host:port`, several with commas.
    pub coordinator: String,
    /// The directory that coordinator and workers share.
    pub root: PathBuf,
    /// A name that no other worker has; by default host name and admin port.
    pub name: String,
    /// How many tasks run at a time; 0: as many as there are processors.
    pub slots: u32,
    /// How many tasks are kept ready for each slot, so that it need not wait for the next one.
    pub prefetch: u32,
    /// The memory of one slot for sorting, combining and merging, in bytes.
    pub memory_bytes: u64,
    /// How long tasks may go on after the wish to stop, in milliseconds.
    pub drain_grace_ms: u64,
    /// After how long without any coordinator to give up, in milliseconds.
    pub coordinator_lost_timeout_ms: u64,
    /// Whether it has the apps by which the labs test a MapReduce.
    pub lab_apps: bool,
    /// Whether it runs programs that jobs bring or name. They can do whatever this worker's user can.
    pub allow_exec: bool,
    /// How much of what an attempt says on standard error its log keeps, in bytes; 0: nothing.
    pub log_bytes_max: u64,
    /// Where to serve metrics and health over HTTP.
    pub admin: String,
    /// Whether to accept an admin address that other machines can reach.
    pub insecure: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            process: daemon::runtime::Process::default(),
            coordinator: format!("127.0.0.1:{}", ports::MR_COORDINATOR),
            root: PathBuf::from("."),
            name: String::new(),
            slots: 0,
            prefetch: 1,
            memory_bytes: 256 << 20,
            drain_grace_ms: 30_000,
            coordinator_lost_timeout_ms: 600_000,
            lab_apps: false,
            allow_exec: false,
            log_bytes_max: 8 << 20,
            admin: format!("127.0.0.1:{}", ports::MR_WORKER_ADMIN),
            insecure: false,
        }
    }
}

impl Config {
    /// The addresses of the coordinators.
    ///
    /// # Errors
    /// Configuration, when there is none or one is malformed.
    pub(crate) fn coordinators(&self) -> Result<Vec<String>, Failure> {
        let addresses: Vec<String> =
            self.coordinator.split(',').map(|address| address.trim().to_owned()).collect();
        if addresses.len() > COORDINATORS_MAX {
            return Err(Failure::configuration(format!(
                "coordinator names {} addresses, more than {COORDINATORS_MAX}",
                addresses.len()
            )));
        }
        match addresses.iter().find(|address| !is_address(address)) {
            None => Ok(addresses),
            Some(bad) => Err(Failure::configuration(format!(
                "coordinator names {bad:?}, but must be host:port, such as 127.0.0.1:7400"
            ))),
        }
    }

    /// How many slots there are.
    ///
    /// # Errors
    /// Configuration, beyond the limit.
    pub(crate) fn slot_count(&self) -> Result<u32, Failure> {
        match self.slots {
            0 => Ok(thread::available_parallelism().map_or(1, NonZero::get) as u32),
            1..=SLOTS_MAX => Ok(self.slots),
            slots => Err(Failure::configuration(format!(
                "slots is {slots}, but must be 0 to {SLOTS_MAX}"
            ))),
        }
    }

    /// How many tasks are kept ready for all slots together.
    ///
    /// # Errors
    /// Configuration, beyond the limit.
    pub(crate) fn ready_count(&self) -> Result<u32, Failure> {
        if self.prefetch > PREFETCH_MAX {
            return Err(Failure::configuration(format!(
                "prefetch is {}, but must be 0 to {PREFETCH_MAX}",
                self.prefetch
            )));
        }
        Ok(self.prefetch * self.slot_count()?)
    }

    /// The memory of a map's table.
    ///
    /// # Errors
    /// Configuration, outside the limits.
    pub(crate) fn table_bytes(&self) -> Result<usize, Failure> {
        let bytes = usize::try_from(self.memory_bytes).ok();
        bytes.filter(|bytes| (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(bytes)).ok_or_else(
            || {
                Failure::configuration(format!(
                    "memory_bytes is {}, but must be {MEMORY_BYTES_MIN} to {MEMORY_BYTES_MAX}",
                    self.memory_bytes
                ))
            },
        )
    }

    /// The longest log of an attempt, in bytes.
    ///
    /// # Errors
    /// Configuration, beyond the limit.
    pub(crate) fn log_bytes(&self) -> Result<u64, Failure> {
        check_range("log_bytes_max", self.log_bytes_max, 0..=LOG_BYTES_MAX)?;
        Ok(self.log_bytes_max)
    }

    /// The worker's name, given where it serves its admin port.
    ///
    /// # Errors
    /// Configuration, when it is too long.
    pub(crate) fn worker_name(&self, admin_port: u16) -> Result<String, Failure> {
        if self.name.len() > NAME_BYTES_MAX {
            return Err(Failure::configuration(format!(
                "name has {} bytes, more than {NAME_BYTES_MAX}",
                self.name.len()
            )));
        }
        if !self.name.is_empty() {
            return Ok(self.name.clone());
        }
        let system = rustix::system::uname();
        Ok(format!("{}:{admin_port}", system.nodename().to_string_lossy()))
    }

    pub(crate) fn drain_grace(&self) -> Duration {
        Duration::from_millis(self.drain_grace_ms)
    }

    pub(crate) fn coordinator_lost_timeout(&self) -> Duration {
        Duration::from_millis(self.coordinator_lost_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_coordinators_are_separated_by_commas() {
        let config = Config { coordinator: "a:1, b:2".to_owned(), ..Config::default() };
        assert_eq!(config.coordinators().unwrap(), ["a:1", "b:2"]);
        for bad in ["", "a", "a:1,", "a:1,,b:2", "http://a:1"] {
            let config = Config { coordinator: bad.to_owned(), ..Config::default() };
            assert!(config.coordinators().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.slot_count().is_err()
                || config.ready_count().is_err()
                || config.table_bytes().is_err()
                || config.log_bytes().is_err()
                || config.worker_name(1).is_err()
        };
        assert!(!refused(|_| {}));
        assert!(refused(|config| config.slots = SLOTS_MAX + 1));
        assert!(refused(|config| config.prefetch = PREFETCH_MAX + 1));
        assert!(refused(|config| config.memory_bytes = 1));
        assert!(refused(|config| config.memory_bytes = u64::MAX));
        assert!(refused(|config| config.log_bytes_max = LOG_BYTES_MAX + 1));
        assert!(refused(|config| config.name = "n".repeat(NAME_BYTES_MAX + 1)));
    }
}
