//! What the core reports, as logs and metrics.

use raft::{DropReason, Event, Finding, NodeId};
use tracing::{debug, error, info, trace, warn};

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
            let before = ids(&membership.voters_before().collect::<Vec<_>>());
            let after = ids(&membership.voters_after().collect::<Vec<_>>());
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

/// Logs and counts what the check of the state has found.
pub(crate) fn found(finding: &Finding) {
    let kind = match finding {
        Finding::Wrong { index, own, majority, agreed } => {
            let (own, majority) = (hexadecimal(*own), hexadecimal(*majority));
            error!(
                %index, own, majority, agreed = ids(agreed),
                "the state of this member is wrong: it serves nothing until it is rebuilt"
            );
            "wrong"
        }
        Finding::Doubtful { index, digests } => {
            error!(
                %index, digests = told(digests),
                "members hold different states and no majority agrees: making this one's once more \
                 from its last snapshot and its log; it serves nothing until that is settled"
            );
            "doubtful"
        }
        Finding::Replayed { index, before, after } => {
            let (before, after) = (hexadecimal(*before), hexadecimal(*after));
            if before == after {
                info!(%index, digest = after, "made once more, the state is what it was");
            } else {
                error!(%index, before, after, "the state was wrong: the one made once more replaces it");
            }
            "replayed"
        }
        Finding::Undecided { index, digests } => {
            error!(
                %index, digests = told(digests),
                "members hold different states after all were made once more: a person has to \
                 decide, see docs/operations.md; until then this member serves nothing"
            );
            "undecided"
        }
        Finding::Sound { index } => {
            info!(%index, "a majority agrees with the state of this member: it serves again");
            "sound"
        }
    };
    metrics::counter!("flotilla_raft_state_findings_total", "finding" => kind).increment(1);
}

fn hexadecimal(digest: u128) -> String {
    format!("{digest:032x}")
}

fn ids(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",")
}

fn told(digests: &[(NodeId, u128)]) -> String {
    let told = digests.iter().map(|(node, digest)| format!("{node}: {digest:032x}"));
    told.collect::<Vec<_>>().join(", ")
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
    let sound = f64::from(u8::from(status.trust.serves()));
    metrics::gauge!("flotilla_raft_state_sound").set(sound);
}
