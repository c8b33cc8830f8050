//! What the core reports, as logs and metrics.

use raft::{DropReason, Event};
use tracing::{debug, info, trace, warn};

use crate::handle::{Role, Status};

/// Logs and counts one event.
pub(crate) fn observe(event: &Event) {
    match event {
        Event::Following { term, leader: Some(leader) } => {
            info!(%term, %leader, "following leader");
        }
        Event::Following { term, leader: None } => debug!(%term, "waiting for a leader"),
        Event::PreCampaigning { term } => debug!(%term, "asking whether an election would succeed"),
        Event::Campaigning { term } => {
            metrics::counter!("flotilla_raft_elections_total").increment(1);
            info!(%term, "campaigning");
        }
        Event::Leading { term, last } => info!(%term, %last, "leading"),
        Event::Removed { term } => info!(%term, "stepping down: this member votes no more"),
        Event::Reconfigured { index, membership } => {
            let ids = |voters: Vec<raft::NodeId>| {
                voters.iter().map(raft::NodeId::to_string).collect::<Vec<_>>().join(",")
            };
            let before = ids(membership.voters_before().collect());
            let after = ids(membership.voters_after().collect());
            info!(%index, before, after, "the members have changed");
        }
        Event::Transferring { to } => info!(%to, "handing the leadership over"),
        Event::SlowDisk { ticks } => {
            metrics::counter!("flotilla_raft_slow_disks_total").increment(1);
            warn!(ticks, "the disk does not answer: another member is to lead");
        }
        Event::TransferFailed { to } => {
            warn!(%to, "the leadership stays here: the other did not take it over in time");
        }
        Event::LostQuorum { term } => warn!(%term, "stepping down: no quorum was heard from"),
        Event::Voted { term, candidate } => info!(%term, %candidate, "voted"),
        Event::Truncated { from } => {
            info!(%from, "removed entries that conflict with the leader's");
        }
        Event::Committed { index } => trace!(%index, "committed"),
        Event::Installing { from, root } => {
            info!(%from, index = %root.position.index, bytes = root.bytes, "fetching a snapshot");
        }
        Event::Installed { root, suffix_kept } => {
            metrics::counter!("flotilla_raft_snapshots_installed_total").increment(1);
            info!(index = %root.position.index, suffix_kept, "installed a snapshot");
        }
        Event::Compacted { root, first } => {
            info!(index = %root.position.index, %first, "compacted the log");
        }
        Event::Dropped { from, reason } => dropped(*from, *reason),
    }
}

fn dropped(from: raft::NodeId, reason: DropReason) {
    metrics::counter!("flotilla_raft_messages_refused_total").increment(1);
    match reason {
        DropReason::Stale | DropReason::LeaderAlive => {
            debug!(%from, ?reason, "dropped a message");
        }
        DropReason::Stranger | DropReason::Malformed | DropReason::Contradiction => {
            warn!(%from, ?reason, "dropped a message");
        }
    }
}

/// Sets the gauges.
#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub(crate) fn measure(status: &Status) {
    metrics::gauge!("flotilla_raft_term").set(status.term.0 as f64);
    metrics::gauge!("flotilla_raft_leading").set(f64::from(u8::from(status.role == Role::Leader)));
    metrics::gauge!("flotilla_raft_has_leader").set(f64::from(u8::from(status.leader.is_some())));
    metrics::gauge!("flotilla_raft_commit_index").set(status.commit.0 as f64);
    metrics::gauge!("flotilla_raft_applied_index").set(status.applied.0 as f64);
    metrics::gauge!("flotilla_raft_durable_index").set(status.durable.0 as f64);
    metrics::gauge!("flotilla_raft_log_bytes").set(status.log_bytes as f64);
}
