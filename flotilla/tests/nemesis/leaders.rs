//! Who led in which term, as members tell: never two in one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::admin::Role;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// How often members are asked, one after the other.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long a member may take to say how it is.
const LIMIT: Duration = Duration::from_millis(300);

/// The leaders that were seen. Whoever looks for them stops when this is dropped.
pub(crate) struct Leaders {
    seen: Arc<Mutex<BTreeMap<u64, u64>>>,
    watcher: JoinHandle<()>,
}

impl Leaders {
    pub(crate) fn watch(endpoints: Vec<String>) -> Self {
        let seen: Arc<Mutex<BTreeMap<u64, u64>>> = Arc::default();
        let found = seen.clone();
        let watcher = tokio::spawn(async move {
            loop {
                for endpoint in &endpoints {
                    if let Ok(status) = client::admin::status(endpoint, LIMIT).await
                        && status.role() == Role::Leader
                    {
                        let mut found = found.lock().unwrap();
                        let leader = *found.entry(status.term).or_insert(status.node);
                        assert_eq!(leader, status.node, "two lead in term {}", status.term);
                    }
                }
                sleep(INTERVAL).await;
            }
        });
        Self { seen, watcher }
    }

    /// How often another term had a leader.
    pub(crate) fn changes(&self) -> usize {
        assert!(!self.watcher.is_finished(), "two led in one term");
        self.seen.lock().unwrap().len().saturating_sub(1)
    }
}

impl Drop for Leaders {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}
