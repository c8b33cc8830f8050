//! The cluster that a benchmark starts when it is told no endpoints, and what its members spend, a
//! router with them if there is one.

use std::path::Path;
use std::time::Duration;

use daemon::{Code, Failure};
use tempfile::TempDir;

use crate::local::{Cluster, Instance, Plan};

/// How long the cluster may take to become ready.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The metrics that members are asked for.
const SYNCS: &str = "flotilla_store_syncs_total";
const CPU: &str = "process_cpu_seconds_total";

/// A cluster of our own.
pub(super) struct Own {
    pub(super) cluster: Cluster,
    _dir: Option<TempDir>,
}

/// What the members have spent.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spent {
    /// All of them together.
    pub(super) syncs: Option<f64>,
    /// Each of them, in the order of their numbers.
    pub(super) cpu_seconds_each: Vec<f64>,
}

impl Spent {
    /// All of them together.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.cpu_seconds_each.iter().sum()
    }

    /// What they have spent since then.
    pub(super) fn since(&self, before: &Self) -> Self {
        let each = self.cpu_seconds_each.iter().zip(&before.cpu_seconds_each);
        Self {
            syncs: self.syncs.zip(before.syncs).map(|(after, before)| after - before),
            cpu_seconds_each: each.map(|(after, before)| after - before).collect(),
        }
    }
}

impl Own {
    /// Starts it in `dir`, or in a temporary directory; `members` says of what there are how many.
    pub(super) async fn start(
        dir: Option<&Path>,
        members: impl FnOnce(&mut Plan),
    ) -> Result<Self, Failure> {
        let binary = std::env::current_exe().map_err(|error| {
            Failure::new(Code::Failed, "this binary cannot be found").because(error)
        })?;
        let (dir, temporary) = match dir {
            Some(dir) => (dir.to_owned(), None),
            None => {
                let made = tempfile::Builder::new().prefix("flotilla-bench-").tempdir();
                let temporary = made.map_err(|error| {
                    let message = "no temporary directory can be made";
                    Failure::new(Code::Failed, message).because(error)
                })?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let mut plan = Plan::new(binary, dir, 0, 0);
        members(&mut plan);
        let mut cluster = Cluster::start(&plan)?;
        cluster.ready(READY_TIMEOUT).await?;
        Ok(Self { cluster, _dir: temporary })
    }

    /// None, when a member does not tell.
    pub(super) async fn spent(&mut self) -> Option<Spent> {
        let mut sum = Spent { syncs: Some(0.0), cpu_seconds_each: Vec::new() };
        for instance in self.cluster.instances() {
            if let Instance::Kvd(_) | Instance::Raftd(_) | Instance::Router = instance {
                sum.cpu_seconds_each.push(self.cluster.metric(instance, CPU).await?);
                let syncs = match instance {
                    // It has no store.
                    Instance::Router => Some(0.0),
                    _ => self.cluster.metric(instance, SYNCS).await,
                };
                sum.syncs = sum.syncs.zip(syncs).map(|(sum, syncs)| sum + syncs);
            }
        }
        Some(sum)
    }
}
