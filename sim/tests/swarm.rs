//! Seeds: each draws its own mix of faults, and all invariants hold after every step.

mod depth;

use depth::{Depth, depth};
use flotilla_sim::{Options, Tally, run};

/// How many seeds each of the three tests runs at this depth.
fn seeds() -> u64 {
    match depth() {
        Depth::Quick => 67,
        Depth::Ci => 200,
        Depth::Deep => 3_334,
    }
}

/// Runs the seeds of this depth.
fn swarm(members: u64) -> Tally {
    let mut total = Tally::default();
    for seed in 0..seeds() {
        let report = run(Options::new(seed, members), None);
        if let Some(failure) = report.failure {
            panic!("{failure}");
        }
        total.add(&report.tally);
    }
    total
}

/// Seeds in which nothing happens prove nothing.
#[track_caller]
fn happened(what: &str, times: u64, least: u64) {
    assert!(times >= least, "{what}: {times} times, and not at least {least}");
}

#[test]
fn groups_of_one() {
    let total = swarm(1);
    happened("commits", total.commits, 2_000);
    happened("snapshots", total.snapshots, 100);
    happened("crashes", total.crashes, 200);
    happened("reads", total.reads, 1_000);
}

#[test]
fn groups_of_three() {
    let total = swarm(3);
    happened("elections", total.elections, 200);
    happened("commits", total.commits, 2_000);
    happened("truncations", total.truncations, 5);
    happened("snapshots", total.snapshots, 100);
    happened("installs", total.installs, 5);
    happened("entries read to apply them", total.reads_to_apply, 100);
    happened("entries read to send them", total.reads_to_send, 20);
    happened("quorums lost", total.quorums_lost, 5);
    happened("crashes", total.crashes, 200);
    happened("pauses", total.pauses, 100);
    happened("partitions", total.partitions, 100);
    happened("clogs", total.clogs, 100);
    happened("bad links", total.degraded, 100);
    happened("deposed leaders", total.deposed, 20);
    happened("syncs that failed", total.disk_errors, 20);
    happened("torn writes", total.torn, 20);
    happened("answers lost", total.answers_lost, 100);
    happened("leaders with a slow disk", total.slow_disks, 10);
    happened("transfers", total.transfers, 8);
    happened("transfers given up", total.transfers_failed, 3);
    happened("changes of members", total.changes, 8);
    happened("groups beside the first", total.groups - seeds(), 5);
    happened("groups stopped", total.groups_stopped, 10);
    happened("messages from another group", total.strangers, 100);
    happened("survivors recovered", total.recoveries, 1);
    happened("damaged disks refused", total.disks_refused, 3);
    happened("damage that was harmless", total.damage_harmless, 30);
    happened("acknowledged writes", total.done, 1_000);
    happened("reads", total.reads, 1_000);
    happened("operations judged", total.judged, 2_000);
    happened("rejected writes", total.rejected, 1);
    happened("unknown writes", total.unknown, 5);
    happened("times told", total.ticks, 20);
    happened("ends of leases proposed", total.expires, 50);
}

#[test]
fn groups_of_five() {
    let total = swarm(5);
    happened("elections", total.elections, 200);
    happened("commits", total.commits, 1_000);
    happened("truncations", total.truncations, 10);
    happened("snapshots", total.snapshots, 100);
    happened("installs", total.installs, 10);
    happened("quorums lost", total.quorums_lost, 5);
    happened("crashes", total.crashes, 200);
    happened("acknowledged writes", total.done, 500);
    happened("reads", total.reads, 500);
    happened("unknown writes", total.unknown, 5);
}
