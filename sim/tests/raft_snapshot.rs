//! Snapshots: a member that was away gets one instead of the log that is gone.

mod depth;

use depth::{expect, scenario};
use flotilla_sim::{Mix, Violation, World};
use raft::{
    Config, Entry, GroupTime, HardState, Index, Instant, Membership, Message, MessageKind, Node,
    NodeId, Payload, Position, Recovered, SnapshotRoot, Term,
};

const SECOND_US: u64 = 1_000_000;
/// Enough entries for the log to be compacted.
const ENTRIES: usize = 25;

/// A snapshot every ten entries or so, and hardly any log before it.
fn small(mix: Mix) -> Mix {
    let (retained_bytes, retained_bytes_max) = (100, 0);
    let config =
        Config { snapshot_log_bytes_min: 500, retained_bytes, retained_bytes_max, ..mix.config };
    Mix { config, ..mix }
}

/// The labs' snapshot scenarios: in each round one member is away, every third time the leader,
/// and the others go on until they have thrown away the log that it needs.
fn rounds(world: &mut World, crash: bool) -> Result<(), Violation> {
    world.one(3)?;
    for round in 0..9 {
        let leader = world.expect_leader()?;
        let step = if round % 3 == 2 { 0 } else { 1 + round % 2 };
        let victim = NodeId((leader.0 - 1 + step) % 3 + 1);
        if crash {
            world.kill(victim)?;
        } else {
            world.disconnect(victim);
        }
        world.one(2)?;
        for _ in 0..ENTRIES {
            let leader = world.expect_leader()?;
            world.propose(leader, 8);
            world.run_for(SECOND_US / 100)?;
        }
        world.one(2)?;
        if crash {
            world.restart(victim)?;
        } else {
            world.connect(victim);
        }
        world.one(3)?;
    }
    let installs = world.tally().installs;
    expect(installs >= 5, format!("a member that was away needs a snapshot: {installs} installs"))
}

#[test]
fn install() {
    scenario("install", 3, &small(Mix::calm()), |world| rounds(world, false));
}

#[test]
fn install_unreliable() {
    scenario("install_unreliable", 3, &small(Mix::unreliable()), |world| rounds(world, false));
}

#[test]
fn install_crash() {
    scenario("install_crash", 3, &small(Mix::calm()), |world| rounds(world, true));
}

#[test]
fn install_unreliable_crash() {
    scenario("install_unreliable_crash", 3, &small(Mix::unreliable()), |world| rounds(world, true));
}

#[test]
fn all_crash() {
    scenario("all_crash", 3, &small(Mix::unreliable()), |world| {
        let mut last = world.one(3)?;
        for _ in 0..5 {
            for _ in 0..ENTRIES {
                last = world.one(2)?;
            }
            for id in (1..=3).map(NodeId) {
                world.kill(id)?;
            }
            for id in (1..=3).map(NodeId) {
                world.restart(id)?;
            }
            let next = world.one(3)?;
            expect(next > last, format!("{next} after {last}: nothing committed is lost"))?;
        }
        expect(world.tally().snapshots > 0, "snapshots are taken")
    });
}

/// A leader that is cut off fills its log with what is never committed, further than the snapshot
/// reaches that the others take meanwhile. When it comes back that snapshot replaces all of it, in
/// memory and on the disk, and a start from that disk finds nothing of it. Seeds rarely get there.
#[test]
fn discard_divergent_suffix() {
    let mix = small(Mix::calm());
    let mix = Mix { config: Config { retained_bytes: 0, ..mix.config }, ..mix };
    scenario("discard_divergent_suffix", 3, &mix, |world| {
        world.one(3)?;
        let old = world.expect_leader()?;
        world.disconnect(old);
        for _ in 0..4 * ENTRIES {
            world.propose(old, 8);
        }
        let mut last = Index(0);
        for _ in 0..ENTRIES {
            last = world.one(2)?;
        }
        // The snapshot that this makes due is stored.
        world.run_for(SECOND_US / 10)?;
        let suffix = world.member(old).standing().last.index;
        expect(suffix > last, format!("it ends at {suffix}, the others at {last}"))?;
        world.connect(old);
        world.run_until(SECOND_US, |world| world.tally().installs > 0)?;
        expect(world.tally().suffixes_kept == 0, "nothing of it is kept")?;
        world.run_for(SECOND_US)?;
        expect(world.member(old).standing().last.index == last, "it has what the others have")?;
        world.kill(old)?;
        world.restart(old)?;
        expect(world.member(old).standing().last.index == last, "and on its disk, too")?;
        world.one(3)?;
        expect(world.tally().installs > 0, "all that by a snapshot")
    });
}

/// As long as all keep up, the log stays small and nobody needs a snapshot of another.
#[test]
fn basic() {
    scenario("basic", 3, &small(Mix::calm()), |world| {
        for round in 0..30 {
            for _ in 0..5 + round * 7 % 10 {
                world.one(3)?;
            }
            // A snapshot that has just become due is stored.
            world.run_for(SECOND_US / 10)?;
            for member in world.members() {
                let bytes = member.replica().map_or(0, |replica| replica.status().log_bytes);
                expect(bytes < 2_000, format!("the log of n{} has {bytes} bytes", member.id))?;
            }
        }
        expect(world.tally().snapshots > 0, "snapshots are taken")?;
        expect(world.tally().installs == 0, "nobody needs another's")
    });
}

/// A snapshot is not forgotten when a member that started from it writes something else and dies.
#[test]
fn init() {
    scenario("init", 3, &small(Mix::unreliable()), |world| {
        let mut last = Index(0);
        for _ in 0..ENTRIES {
            last = world.one(3)?;
        }
        expect(world.tally().snapshots > 0, "snapshots are taken")?;
        for _ in 0..2 {
            for id in (1..=3).map(NodeId) {
                world.kill(id)?;
            }
            for id in (1..=3).map(NodeId) {
                world.restart(id)?;
                let snapshot = world.member(id).standing().snapshot;
                expect(snapshot > Index(0), format!("n{id} starts from a snapshot"))?;
            }
            let next = world.one(3)?;
            expect(next > last, format!("{next} after {last}: nothing committed is lost"))?;
            last = next;
        }
        Ok(())
    });
}

/// In one step a member cuts its log, gets new entries, and installs a snapshot that covers just
/// those. Nothing of them is left to be written, and yet the disk must learn of the cut: else the
/// old entries behind it would come back with the next start.
#[test]
fn install_over_a_conflict_in_one_step() {
    let entry = |index, term| Entry {
        index: Index(index),
        term: Term(term),
        stamp: GroupTime(0),
        payload: Payload::Tick,
    };
    let hard_state = HardState { term: Term(2), vote: None };
    let mut recovered = Recovered { hard_state, ..Recovered::default() };
    (1..=12).for_each(|index| recovered.push(entry(index, 1), u64::MAX));
    let (leader, now) = (NodeId(2), Instant(0));
    let founders = Membership::founders((1..=3).map(|id| (NodeId(id), bytes::Bytes::new())));
    let founders = std::sync::Arc::new(founders);
    let membership = founders.clone();
    let mut node = Node::new(Config::default(), NodeId(1), founders, recovered, 0, now);
    let kind = MessageKind::AppendRequest {
        previous: Position { term: Term(1), index: Index(7) },
        commit: Index(7),
        round: 1,
        entries: vec![entry(8, 2), entry(9, 2)],
    };
    node.step(now, leader, Message { term: Term(2), kind });
    let position = Position { term: Term(2), index: Index(9) };
    let stamp = GroupTime(0);
    let manifest = raft::Digest::default();
    let root = SnapshotRoot { position, stamp, manifest, chunks: 1, bytes: 1, membership };
    assert!(node.installed(root));

    let write = node.take_effects().write.expect("a snapshot is to be written");
    let snapshot = write.snapshot.expect("it is in the write");
    assert_eq!(write.entries, [], "the snapshot covers them");
    assert_eq!(snapshot.first, Index(10), "the log goes on behind the snapshot");
    assert!(snapshot.reset, "entries 10 to 12 of term 1 are not kept on the disk");
}
