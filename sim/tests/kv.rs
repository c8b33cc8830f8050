//! The key/value store as the labs test it: their clerks, their faults, their bounds. What clerks see
//! is judged, and all invariants are looked at after every event.

mod depth;

use depth::{Depth, clerks_scenario, depth, expect};
use flotilla_sim::{
    Keys, KvMix, Mix, Violation, Wish, Workload, World,
    operation::{Done, OperationName, Verdict},
};
use kvd::outcome::Pair;
use raft::{Config, NodeId};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const SECOND_US: u64 = 1_000_000;
/// The labs' `maxraftstate`.
const LOG_BYTES: u64 = 1_000;
/// How many times that a log may have.
const LOG_TIMES_MAX: u64 = 8;
/// The labs' bound on the time of an operation: three in a heartbeat of theirs.
const OPERATION_US_MAX: u64 = 33_300;
/// A clerk that no workload has.
const SCRIPTED: u64 = 100;

/// A generic test of the labs.
#[derive(Clone, Copy, Default)]
struct Case {
    clerks: u64,
    members: u64,
    unreliable: bool,
    crashes: bool,
    partitions: bool,
    snapshots: bool,
    random_keys: bool,
}

/// A snapshot about every 1,000 bytes of log, and hardly any log before it.
fn small(mix: Mix) -> Mix {
    let config = Config {
        snapshot_log_bytes_min: LOG_BYTES,
        retained_bytes: 0,
        retained_bytes_max: 0,
        ..mix.config
    };
    Mix { config, ..mix }
}

fn clerks(mix: Mix, clients: u64, workload: Workload) -> Mix {
    // As the labs' clerks do, who ask again at once.
    Mix { clients, think_us_max: 0, kv: Some(KvMix { workload, ..KvMix::calm() }), ..mix }
}

impl Case {
    fn mix(self) -> Mix {
        let mix = if self.unreliable { Mix::unreliable() } else { Mix::calm() };
        let mix = if self.snapshots { small(mix) } else { mix };
        let workload = match self.random_keys {
            false => Workload::labs(),
            true => Workload { keys: Keys::Shared(self.clerks), puts: 5, ..Workload::labs() },
        };
        clerks(mix, self.clerks, workload)
    }

    fn run(self, name: &str) {
        clerks_scenario(name, self.members, &self.mix(), |world| self.play(world));
    }

    fn play(self, world: &mut World) -> Result<(), Violation> {
        world.expect_leader()?;
        // Another order of events for each seed.
        let mut rng = StdRng::seed_from_u64(world.now_us());
        let seconds = match depth() {
            Depth::Quick => 2,
            Depth::Ci => 3,
            Depth::Deep => 5,
        };
        for _ in 0..3 {
            self.work(world, &mut rng, seconds * SECOND_US)?;
            if self.crashes {
                for id in self.ids() {
                    world.kill(id)?;
                }
                world.run_for(SECOND_US)?;
                for id in self.ids() {
                    world.restart(id)?;
                }
            }
            world.let_clerks_rest();
            let idle = world.run_until(12 * SECOND_US, World::clerks_are_idle)?;
            expect(idle, "clerks wait in vain")?;
            self.check_sizes(world)?;
            if !self.random_keys {
                self.check_values(world)?;
            }
            world.wake_clerks();
        }
        world.let_clerks_rest();
        let operations = world.tally().operations;
        let least = 15 * self.clerks * seconds / 5;
        expect(operations >= least, format!("only {operations} operations were over"))
    }

    fn ids(self) -> impl Iterator<Item = NodeId> {
        (1..=self.members).map(NodeId)
    }

    /// Clerks are at work for a while; the members are parted anew every 1.0 to 1.2 s.
    fn work(self, world: &mut World, rng: &mut StdRng, for_us: u64) -> Result<(), Violation> {
        let until_us = world.now_us() + for_us;
        world.run_for(SECOND_US)?;
        while world.now_us() < until_us {
            if self.partitions {
                let side: Vec<NodeId> =
                    self.ids().filter(|_| rng.random_range(0..2) == 0).collect();
                world.part_off(&side);
            }
            world.run_for(SECOND_US + rng.random_range(0..=200_000))?;
        }
        world.heal();
        Ok(())
    }

    fn check_sizes(self, world: &World) -> Result<(), Violation> {
        for member in world.members() {
            let (log, snapshot) = (member.log_bytes(), member.snapshot_bytes());
            let id = member.id;
            if self.snapshots {
                // A log grows with the state that a snapshot of it would have.
                let due = LOG_BYTES.max(snapshot.unwrap_or(0));
                let bounded = log <= LOG_TIMES_MAX * due;
                expect(bounded, format!("the log of n{id} has {log} bytes, {snapshot:?}"))?;
            } else {
                expect(snapshot.is_none(), format!("n{id} has a snapshot"))?;
            }
        }
        Ok(())
    }

    /// Each clerk's appends are there once and in order, and nobody else's.
    fn check_values(self, world: &mut World) -> Result<(), Violation> {
        for client in 1..=self.clerks {
            let pair = get(world, SCRIPTED, &format!("own{client}"))?;
            let value = pair.map(|pair| pair.value).unwrap_or_default();
            let tokens: Option<Vec<OperationName>> = OperationName::of_value(&value).collect();
            let Some(tokens) = tokens else {
                return expect(false, format!("own{client} holds {value:?}"));
            };
            let own = tokens.iter().all(|name| name.client == client);
            let rises = tokens.is_sorted_by(|one, other| one.number < other.number);
            expect(own && rises, format!("own{client} holds {value:?}"))?;
        }
        Ok(())
    }
}

/// Reads a key.
fn get(world: &mut World, client: u64, key: &str) -> Result<Option<Pair>, Violation> {
    match world.execute(client, key, Wish::Get)? {
        Verdict::Done(Done::Read(_, pair)) => Ok(pair),
        verdict @ (Verdict::Done(Done::Executed(..) | Done::Claim(..))
        | Verdict::Never
        | Verdict::Unknown) => expect(false, format!("reading {key}: {verdict:?}")).map(|()| None),
    }
}

/// Writes a key, which must be done.
fn put(world: &mut World, client: u64, key: &str) -> Result<OperationName, Violation> {
    let name = world.wish(client, key, Wish::Put);
    let over = world.run_until(10 * SECOND_US, |world| world.verdict(name).is_some())?;
    let done = matches!(world.verdict(name), Some(Verdict::Done(_)));
    expect(over && done, format!("{name}: {:?}", world.verdict(name)))?;
    Ok(name)
}

/// What a key holds, as it must be.
fn holds(world: &mut World, client: u64, key: &str, name: OperationName) -> Result<(), Violation> {
    let value = get(world, client, key)?.map(|pair| pair.value);
    expect(value == Some(name.token(0)), format!("{key} holds {value:?}, not {name}"))
}

#[test]
fn basic() {
    Case { clerks: 1, members: 5, ..Case::default() }.run("basic");
}

#[test]
fn concurrent() {
    Case { clerks: 5, members: 5, ..Case::default() }.run("concurrent");
}

#[test]
fn unreliable() {
    Case { clerks: 5, members: 5, unreliable: true, ..Case::default() }.run("unreliable");
}

/// Five clerks append ten times each to one key: all of it is there once, in each clerk's order.
#[test]
fn unreliable_one_key() {
    let appends = Workload { gets: 0, keys: Keys::Shared(1), ..Workload::labs() };
    let workload = Workload { operations_max: Some(10), ..appends };
    let mix = clerks(Mix::unreliable(), 5, workload);
    clerks_scenario("unreliable_one_key", 3, &mix, |world| {
        let over = world.run_until(60 * SECOND_US, |world| world.tally().operations >= 50)?;
        expect(over, "clerks wait in vain")?;
        expect(world.tally().operations_unknown == 0, "clerks gave up")?;
        let value = get(world, SCRIPTED, "k0")?.map(|pair| pair.value).unwrap_or_default();
        let tokens: Vec<OperationName> = OperationName::of_value(&value).flatten().collect();
        for client in 1..=5 {
            let of = tokens.iter().filter(|name| name.client == client);
            let numbers: Vec<u64> = of.map(|name| name.number).collect();
            let all: Vec<u64> = (1..=10).collect();
            expect(numbers == all, format!("c{client} appended {numbers:?}"))?;
        }
        Ok(())
    });
}

/// A thousand appends one after the other.
fn speed_of(name: &str, mix: &Mix) {
    clerks_scenario(name, 3, mix, |world| {
        world.expect_leader()?;
        put(world, SCRIPTED, "x")?;
        let operations = if depth() == Depth::Quick { 300 } else { 1_000 };
        let begun_us = world.now_us();
        for _ in 0..operations {
            let verdict = world.execute(SCRIPTED, "x", Wish::Append)?;
            expect(matches!(verdict, Verdict::Done(_)), format!("{verdict:?}"))?;
        }
        let mean_us = (world.now_us() - begun_us) / operations;
        expect(mean_us <= OPERATION_US_MAX, format!("an operation takes {mean_us} us"))?;
        let pair = get(world, SCRIPTED, "x")?;
        let tokens = pair.map_or(0, |pair| OperationName::of_value(&pair.value).count() as u64);
        expect(tokens == operations + 1, format!("{tokens} are there"))
    });
}

#[test]
fn speed() {
    speed_of("speed", &clerks(Mix::calm(), 0, Workload::labs()));
}

#[test]
fn speed_snapshots() {
    speed_of("speed_snapshots", &small(clerks(Mix::calm(), 0, Workload::labs())));
}

/// The leader is in a minority: the others go on, and what is asked of the minority waits.
#[test]
fn one_partition() {
    const MAJORITYS: u64 = SCRIPTED + 1;
    const WRITER: u64 = SCRIPTED + 2;
    const READER: u64 = SCRIPTED + 3;
    clerks_scenario("one_partition", 5, &clerks(Mix::calm(), 0, Workload::labs()), |world| {
        let leader = world.expect_leader()?;
        put(world, SCRIPTED, "1")?;
        let other = NodeId(leader.0 % 5 + 1);
        let minority = [leader, other];
        let majority: Vec<NodeId> =
            (1..=5).map(NodeId).filter(|id| !minority.contains(id)).collect();
        world.part_off(&minority);
        world.confine(MAJORITYS, &majority);
        world.confine(WRITER, &minority);
        world.confine(READER, &minority);
        let fourteen = put(world, MAJORITYS, "1")?;
        holds(world, MAJORITYS, "1", fourteen)?;
        let written = world.wish(WRITER, "1", Wish::Put);
        let read = world.wish(READER, "1", Wish::Get);
        world.run_for(SECOND_US)?;
        expect(world.verdict(written).is_none(), "a minority writes")?;
        expect(world.verdict(read).is_none(), "a minority reads")?;
        let sixteen = put(world, MAJORITYS, "1")?;
        holds(world, MAJORITYS, "1", sixteen)?;
        world.heal();
        world.confine(WRITER, &[]);
        world.confine(READER, &[]);
        let over = |world: &World| [written, read].iter().all(|it| world.verdict(*it).is_some());
        let over = world.run_until(4 * SECOND_US, over)?;
        expect(over, "what waited for the others is not answered")?;
        let done = |name| matches!(world.verdict(name), Some(Verdict::Done(_)));
        expect(done(written) && done(read), "what waited for the others is not done")?;
        holds(world, MAJORITYS, "1", written)
    });
}

#[test]
fn many_partitions_one_client() {
    let case = Case { clerks: 1, members: 5, partitions: true, ..Case::default() };
    case.run("many_partitions_one_client");
}

#[test]
fn many_partitions_many_clients() {
    let case = Case { clerks: 5, members: 5, partitions: true, ..Case::default() };
    case.run("many_partitions_many_clients");
}

#[test]
fn persist_one_client() {
    Case { clerks: 1, members: 5, crashes: true, ..Case::default() }.run("persist_one_client");
}

#[test]
fn persist_concurrent() {
    Case { clerks: 5, members: 5, crashes: true, ..Case::default() }.run("persist_concurrent");
}

#[test]
fn persist_concurrent_unreliable() {
    let case = Case { clerks: 5, members: 5, crashes: true, unreliable: true, ..Case::default() };
    case.run("persist_concurrent_unreliable");
}

/// Everything at once but snapshots.
const STORMY: Case = Case {
    clerks: 5,
    members: 5,
    unreliable: true,
    crashes: true,
    partitions: true,
    snapshots: false,
    random_keys: false,
};
/// So many clerks of so many keys that only a history can tell what is right.
const CROWDED: Case = Case { clerks: 15, members: 7, random_keys: true, ..STORMY };

#[test]
fn persist_partition() {
    Case { unreliable: false, ..STORMY }.run("persist_partition");
}

#[test]
fn persist_partition_unreliable() {
    STORMY.run("persist_partition_unreliable");
}

#[test]
fn persist_partition_unreliable_linearizable() {
    CROWDED.run("persist_partition_unreliable_linearizable");
}

/// A member that was away while the log that it needs was thrown away, and without which there is
/// no majority then.
#[test]
fn snapshot_rpc() {
    let mix = small(clerks(Mix::calm(), 0, Workload::labs()));
    clerks_scenario("snapshot_rpc", 3, &mix, |world| {
        let [one, two, three] = [1, 2, 3].map(NodeId);
        world.expect_leader()?;
        let first = put(world, SCRIPTED, "a")?;
        world.part_off(&[one, two]);
        world.confine(SCRIPTED, &[one, two]);
        let mut last = first;
        for key in 0..50 {
            last = put(world, SCRIPTED, &key.to_string())?;
        }
        let second = put(world, SCRIPTED, "b")?;
        world.run_for(SECOND_US)?;
        for id in [one, two] {
            let (log, member) = (world.member(id).log_bytes(), world.member(id));
            let due = LOG_BYTES.max(member.snapshot_bytes().unwrap_or(0));
            expect(log <= LOG_TIMES_MAX * due, format!("the log of n{id} has {log} bytes"))?;
        }
        world.part_off(&[one, three]);
        world.confine(SCRIPTED, &[one, three]);
        put(world, SCRIPTED, "c")?;
        expect(world.tally().installs > 0, "nobody needed a snapshot")?;
        for (key, name) in [("a", first), ("b", second), ("49", last)] {
            holds(world, SCRIPTED, key, name)?;
        }
        world.heal();
        world.confine(SCRIPTED, &[]);
        let third = put(world, SCRIPTED, "e")?;
        for (key, name) in [("a", first), ("49", last), ("e", third)] {
            holds(world, SCRIPTED, key, name)?;
        }
        Ok(())
    });
}

/// One key, written again and again: neither log nor snapshot grows.
#[test]
fn snapshot_size() {
    const SNAPSHOT_BYTES_MAX: u64 = 500;
    let mix = small(clerks(Mix::calm(), 0, Workload::labs()));
    clerks_scenario("snapshot_size", 3, &mix, |world| {
        let rounds = if depth() == Depth::Quick { 50 } else { 200 };
        for _ in 0..2 * rounds {
            let name = put(world, SCRIPTED, "x")?;
            holds(world, SCRIPTED, "x", name)?;
        }
        world.run_for(SECOND_US)?;
        for member in world.members() {
            let (log, snapshot) = (member.log_bytes(), member.snapshot_bytes());
            expect(log <= LOG_TIMES_MAX * LOG_BYTES, format!("a log of {log} bytes"))?;
            let small = snapshot.is_some_and(|bytes| bytes <= SNAPSHOT_BYTES_MAX);
            expect(small, format!("a snapshot of {snapshot:?} bytes"))?;
        }
        Ok(())
    });
}

#[test]
fn snapshot_recover() {
    let case = Case { clerks: 1, members: 5, crashes: true, snapshots: true, ..Case::default() };
    case.run("snapshot_recover");
}

#[test]
fn snapshot_recover_many_clients() {
    let case = Case { clerks: 20, members: 5, crashes: true, snapshots: true, ..Case::default() };
    case.run("snapshot_recover_many_clients");
}

#[test]
fn snapshot_unreliable() {
    let case = Case { clerks: 5, members: 5, unreliable: true, snapshots: true, ..Case::default() };
    case.run("snapshot_unreliable");
}

#[test]
fn snapshot_unreliable_recover() {
    Case { partitions: false, snapshots: true, ..STORMY }.run("snapshot_unreliable_recover");
}

#[test]
fn snapshot_unreliable_recover_concurrent_partition() {
    let case = Case { snapshots: true, ..STORMY };
    case.run("snapshot_unreliable_recover_concurrent_partition");
}

#[test]
fn snapshot_unreliable_recover_concurrent_partition_linearizable() {
    let case = Case { snapshots: true, ..CROWDED };
    case.run("snapshot_unreliable_recover_concurrent_partition_linearizable");
}
