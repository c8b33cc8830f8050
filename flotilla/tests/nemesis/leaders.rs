//! Who led which group in which term, as members tell: never two in one.

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
    /// By the group's place and the term.
    seen: Arc<Mutex<BTreeMap<(usize, u64), u64>>>,
    groups: usize,
    watcher: JoinHandle<()>,
}

impl Leaders {
    /// Of these groups, by the endpoints of their members.
    pub(crate) fn watch(groups: Vec<Vec<String>>) -> Self {
        let seen: Arc<Mutex<BTreeMap<(usize, u64), u64>>> = Arc::default();
        let (found, count) = (seen.clone(), groups.len());
        let of_group =
            |(group, all): (usize, Vec<String>)| all.into_iter().map(move |it| (group, it));
        let members: Vec<_> = groups.into_iter().enumerate().flat_map(of_group).collect();
        let watcher = tokio::spawn(async move {
            loop {
                for (group, endpoint) in &members {
                    if let Ok(status) = client::admin::status(endpoint, LIMIT).await
                        && status.role() == Role::Leader
                    {
                        let mut found = found.lock().unwrap();
                        let leader = *found.entry((*group, status.term)).or_insert(status.node);
                        let term = status.term;
                        assert_eq!(leader, status.node, "two lead group {group} in term {term}");
                    }
                }
                sleep(INTERVAL).await;
            }
        });
        Self { seen, groups: count, watcher }
    }

    /// How often another term had a leader.
    pub(crate) fn changes(&self) -> usize {
        assert!(!self.watcher.is_finished(), "two led in one term");
        self.seen.lock().unwrap().len().saturating_sub(self.groups)
    }
}

impl Drop for Leaders {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}
