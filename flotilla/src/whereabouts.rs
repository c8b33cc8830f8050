//! Where commands find a cluster that they were not told: in the environment, else in the directory
//! of a running `flotilla up`, else at the standard ports.

use std::path::{Path, PathBuf};

use daemon::{Failure, ports};

use crate::local::Description;

/// Where `flotilla up` keeps a cluster unless it is told otherwise.
pub(crate) const DIR_DEFAULT: &str = "flotilla-data";

/// Where to find the key/value store.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Endpoints {
    /// Where members are, some or all [default: the running `flotilla up`, or 127.0.0.1:7300]
    #[arg(
        long,
        env = "FLOTILLA_ENDPOINTS",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        global = true
    )]
    endpoints: Vec<String>,
}

impl Endpoints {
    /// Whether the user said where.
    pub(crate) fn given(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// The members of the key/value store.
    pub(crate) fn resolve(&self) -> Result<Vec<String>, Failure> {
        if self.given() {
            return Ok(self.endpoints.iter().map(|text| text.trim().to_owned()).collect());
        }
        let running = running()?.map(|description| description.kv_endpoints());
        Ok(running
            .filter(|endpoints| !endpoints.is_empty())
            .unwrap_or_else(|| vec![format!("127.0.0.1:{}", ports::KVD)]))
    }
}

/// Where to find the log.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LogEndpoints {
    /// Where members of the log are, some or all [default: the running `flotilla up`, or
    /// 127.0.0.1:7100]
    #[arg(
        long,
        env = "FLOTILLA_LOG_ENDPOINTS",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        global = true
    )]
    endpoints: Vec<String>,
}

impl LogEndpoints {
    /// Whether the user said where.
    pub(crate) fn given(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// The members of the log.
    pub(crate) fn resolve(&self) -> Result<Vec<String>, Failure> {
        if self.given() {
            return Ok(self.endpoints.iter().map(|text| text.trim().to_owned()).collect());
        }
        let running = running()?.map(|description| description.log_endpoints());
        Ok(running
            .filter(|endpoints| !endpoints.is_empty())
            .unwrap_or_else(|| vec![format!("127.0.0.1:{}", ports::RAFTD)]))
    }
}

/// Where to find the coordinator.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Coordinator {
    /// Where coordinators are [default: the running `flotilla up`, or 127.0.0.1:7400]
    #[arg(
        long,
        alias = "endpoints",
        env = "FLOTILLA_COORDINATOR",
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        global = true
    )]
    coordinator: Vec<String>,
}

impl Coordinator {
    /// The members of the coordinator's group.
    pub(crate) fn resolve(&self) -> Result<Vec<String>, Failure> {
        if !self.coordinator.is_empty() {
            return Ok(self.coordinator.iter().map(|text| text.trim().to_owned()).collect());
        }
        let running = running()?.and_then(|description| description.coordinator());
        Ok(vec![running.unwrap_or_else(|| format!("127.0.0.1:{}", ports::MR_COORDINATOR))])
    }
}

/// Where the shard controller of the running `flotilla up` is, if there is one.
pub(crate) fn controllers() -> Result<Vec<String>, Failure> {
    Ok(running()?.map_or_else(Vec::new, |description| description.controller_endpoints()))
}

/// The cluster of the `flotilla up` that runs in the usual directory.
pub(crate) fn running() -> Result<Option<Description>, Failure> {
    Description::of_running(Path::new(DIR_DEFAULT))
}

/// The shared root of MapReduce: the given one, else that of the running `flotilla up`, else the
/// working directory.
pub(crate) fn root(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(root) = given {
        return Ok(root.to_owned());
    }
    Ok(running()?.map_or_else(|| PathBuf::from("."), |description| description.root))
}
