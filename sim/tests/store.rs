//! The real store on the members' disks: what of a crash and of damage it survives.

mod depth;

use depth::{Depth, depth};
use flotilla_sim::{
    Mix, Options, Tally, World,
    fault::{Damage, Fault, Rate},
};

const CHAOS_US: u64 = 10_000_000;

fn seeds() -> u64 {
    match depth() {
        Depth::Quick => 12,
        Depth::Ci => 20,
        Depth::Deep => 100,
    }
}

/// Groups of five whose members crash about three times a second, each on the real store.
#[track_caller]
fn crashes(damage: Option<Damage>) -> Tally {
    let mut total = Tally::default();
    for seed in 0..seeds() {
        let drawn = Mix::draw(seed);
        let rate = Rate { fault: Fault::Crash, every_us: 300_000, lasts_us_max: 200_000 };
        let damages = damage.map(|damage| (damage, 300)).into_iter().collect();
        // Small logs and snapshots often, so that much is removed and packed.
        let mix = Mix {
            store: true,
            damages,
            rates: vec![rate],
            config: drawn.config,
            merge_per_mille: drawn.merge_per_mille,
            crash_in_step_per_million: drawn.crash_in_step_per_million,
            clients: 4,
            sync_us_max: 20_000,
            ..Mix::calm()
        };
        let mut world = World::new(Options::new(seed, 5), mix, None);
        if let Err(violation) = world.live(CHAOS_US) {
            panic!("seed {seed}: {violation}");
        }
        total.add(&world.tally());
    }
    assert!(total.commits > 500, "{total:?}");
    total
}

#[test]
fn crashes_between_any_two_operations_lose_nothing() {
    let total = crashes(None);
    assert!(total.crashes > 200, "{total:?}");
    assert_eq!((total.disks_refused, total.damage_harmless), (0, 0));
}

/// The last batches are gone: harmless only if nothing of them counts any more.
#[test]
fn lost_syncs_and_repairs_are_refused_or_harmless() {
    let total = crashes(Some(Damage::TailLost));
    assert!(total.disks_refused > 10, "{total:?}");
}

#[test]
fn fresh_database_is_refused() {
    let total = crashes(Some(Damage::DatabaseEmpty));
    assert!(total.disks_refused > 10, "{total:?}");
    // A log of which nothing was acknowledged yet may be gone: that of a member's first moments.
    assert!(20 * total.damage_harmless < total.disks_refused, "{total:?}");
}

#[test]
fn flipped_record_is_refused_or_harmless() {
    let total = crashes(Some(Damage::RecordFlipped));
    assert!(total.disks_refused > 10, "{total:?}");
}

/// What one slot of the floor has lost, the other one and the log know.
#[test]
fn one_slot_of_the_floor_is_enough() {
    for damage in [Damage::SlotFlipped, Damage::SlotSyncLost] {
        let total = crashes(Some(damage));
        assert!(total.damage_harmless > 50, "{damage:?}: {total:?}");
        assert_eq!(total.disks_refused, 0, "{damage:?}");
    }
}

/// Most members are gone for good, in the middle of everything. One is recovered, by the code of the
/// command, through crashes; the group grows again to what it was, and only what the survivor's log
/// did not have is lost.
#[test]
fn group_goes_on_with_a_survivor_of_a_lost_majority() {
    let mut total = Tally::default();
    for seed in 0..seeds() {
        let drawn = Mix::draw(seed);
        let rate = |fault| Rate { fault, every_us: 2_000_000, lasts_us_max: 2_000_000 };
        let mix = Mix {
            store: true,
            majority_lost: true,
            rates: vec![rate(Fault::Crash), rate(Fault::Partition)],
            config: drawn.config,
            clients: 4,
            // Some disks are behind others, so that a survivor may lack what is committed.
            sync_us_max: 200_000,
            ..Mix::calm()
        };
        let mut world = World::new(Options::new(seed, 3 + 2 * (seed % 2)), mix, None);
        if let Err(violation) = world.live(CHAOS_US) {
            panic!("seed {seed}: {violation}");
        }
        total.add(&world.tally());
    }
    assert_eq!(total.recoveries, seeds(), "{total:?}");
    assert!(total.entries_lost > 0, "somebody was behind: {total:?}");
    assert!(total.changes > 2 * seeds(), "the groups grow again: {total:?}");
}

/// Entries beyond one batch of the database, of which several are written at once by a member that
/// dies: each is there whole or not at all.
#[test]
fn torn_entry_of_several_batches_does_not_count() {
    let mut total = Tally::default();
    for seed in 0..seeds() {
        let rate = Rate { fault: Fault::Crash, every_us: 300_000, lasts_us_max: 20_000 };
        let mix = Mix {
            store: true,
            rates: vec![rate],
            padding_bytes_max: 900_000,
            clients: 5,
            clients_do_not_wait: true,
            read_per_mille: 0,
            think_us_max: 50_000,
            sync_us_max: 200_000,
            config: raft::Config {
                heartbeat_ticks: 1,
                election_ticks_min: 4,
                ..Mix::calm().config
            },
            ..Mix::calm()
        };
        let mut world = World::new(Options::new(seed, 1), mix, None);
        if let Err(violation) = world.live(CHAOS_US / 3) {
            panic!("seed {seed}: {violation}");
        }
        total.add(&world.tally());
    }
    assert!(total.torn > 0, "{total:?}");
}
