//! The fault mix of a run, drawn from its seed.
//!
//! Swarm testing: each run switches a random part of the faults on and draws their rates, so that
//! over many seeds every combination is met, also those in which one fault alone goes wild because
//! nothing else stops the group from getting that far.

use std::num::NonZeroU32;

use raft::Config;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{TICK_US, workload::KvMix};

/// One of the faults that the nemesis brings about, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// One member dies and is started again.
    Crash,
    /// Several do, perhaps all.
    CrashMany,
    /// One is stopped for a while and goes on as if nothing had happened.
    Pause,
    /// Links are cut, in one direction or both.
    Partition,
    /// Links hold back what is sent on them, and deliver it all in the end.
    Clog,
    /// Links are slow, or lose half of what is sent on them.
    Degrade,
    /// A disk has no room for anything that grows.
    FullDisk,
    /// The leader is asked to hand over to somebody.
    Transfer,
    /// The leader is asked to change the members.
    Reshape,
    /// All members of a group are stopped, and are started again together.
    StopGroup,
}

/// What may break on a disk that no store survives for certain: it has to refuse to open, or to be
/// whole all the same. Only the real store meets it, at a crash; all else is then as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Damage {
    /// The last batches of the database are gone: their syncs were lost, or it took the first of
    /// them for a torn tail when it repaired itself.
    TailLost,
    /// The database has become a new one.
    DatabaseEmpty,
    /// A bit of a key or a value of the database.
    RecordFlipped,
    /// A bit of one of the floor's two slots.
    SlotFlipped,
    /// The last sync of the floor was lost.
    SlotSyncLost,
}

/// A fault that happens every so often and lasts for so long; both are means or maxima of a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Which.
    pub fault: Fault,
    /// The mean time between two.
    pub every_us: u64,
    /// The longest that one lasts.
    pub lasts_us_max: u64,
}

/// Everything that makes one run different from another, besides the dice.
#[derive(Clone, Debug)]
pub struct Mix {
    /// The members' settings.
    pub config: Config,
    /// How many clients there are.
    pub clients: u64,
    /// How long a client thinks at most between two requests.
    pub think_us_max: u64,
    /// Whether they go on asking before they are answered.
    pub clients_do_not_wait: bool,
    /// How many of 1,000 requests are reads.
    pub read_per_mille: u32,
    /// How many of 1,000 reads are asked of any member, whether it leads or not.
    pub read_anywhere_per_mille: u32,
    /// How much a command is padded at most.
    pub padding_bytes_max: usize,
    /// The shortest delay of a message.
    pub delay_us_min: u64,
    /// The longest delay of one that is not late.
    pub delay_us_max: u64,
    /// How many of 1,000 requests get lost.
    pub loss_per_mille: u32,
    /// How many of 1,000 replies get lost: what was asked for is done, and the asker never knows.
    pub reply_loss_per_mille: u32,
    /// How many arrive twice.
    pub duplicate_per_mille: u32,
    /// By how much later the second time may be.
    pub replay_us_max: u64,
    /// How many are late and may be overtaken.
    pub reorder_per_mille: u32,
    /// By how much they are late at least.
    pub reorder_us_min: u64,
    /// By how much they are late at most; most are much less so.
    pub reorder_us_max: u64,
    /// Whether only replies are late, as in the labs.
    pub reorder_replies_only: bool,
    /// What a link carries in a millisecond; none if it takes everything at once.
    pub link_bytes_per_ms: Option<u64>,
    /// How many times slower than another a link may be; each draws its own.
    pub link_slower_max: u64,
    /// How many of 1,000 messages a link may lose on top; each draws its own.
    pub link_loss_per_mille_max: u32,
    /// Whether a member that is down refuses who asks it, as a machine does whose process has
    /// ended; else it says nothing, as one without power.
    pub down_refuses: bool,
    /// The longest that a sync takes.
    pub sync_us_max: u64,
    /// How many of 1,000 syncs stall.
    pub stall_per_mille: u32,
    /// The longest that a sync takes that stalls.
    pub stall_us_max: u64,
    /// How many of 1,000 syncs cover all that is pending instead of one write.
    pub merge_per_mille: u32,
    /// How many of 1,000 syncs, and reads of entries, fail, which ends the process.
    pub disk_error_per_mille: u32,
    /// How many of 1,000 crashes leave a part of the write that was next.
    pub torn_per_mille: u32,
    /// How long a member gathers inputs at most before it takes them in.
    pub batch_us_max: u64,
    /// How many inputs it takes in at once at most.
    pub batch_inputs_max: usize,
    /// Whether the leader may answer reads by a lease.
    pub lease_reads: bool,
    /// What the two below are counted in.
    pub clock_unit: u64,
    /// How many units slower than it should be a member's clock may tick.
    pub slow_clock_max: u64,
    /// How many units faster.
    pub fast_clock_max: u64,
    /// The longest that storing or transferring a snapshot takes.
    pub snapshot_us_max: u64,
    /// How many of 1,000 snapshots can't be stored or transferred.
    pub snapshot_failure_per_mille: u32,
    /// How many of 1,000,000 steps of a member end in its death, before all effects are done.
    pub crash_in_step_per_million: u32,
    /// How many of 1,000 faults pick the leader.
    pub leader_per_mille: u32,
    /// How many of 1,000 new leaders die or are cut off at once, alone or with one other.
    pub depose_per_mille: u32,
    /// How many members each further group has, beside the first.
    pub further_groups: Vec<u64>,
    /// When the last of them is founded; the others are there from the beginning.
    pub last_founded_us: u64,
    /// How many of 1,000 messages come to a member of another group, as they do when an address
    /// has changed hands.
    pub misdirected_per_mille: u32,
    /// The faults that happen.
    pub rates: Vec<Rate>,
    /// Whether members have the real store, instead of a model of it.
    pub store: bool,
    /// What breaks for good in how many of 1,000 crashes of members that their group can do without.
    pub damages: Vec<(Damage, u32)>,
    /// Whether half way most members are lost for good, and one that is left is recovered.
    pub majority_lost: bool,
    /// The key/value store that groups replicate instead of registers, and what its clerks do.
    pub kv: Option<KvMix>,
    /// The first group is the controller of so many shards, which all others have between them if
    /// they replicate a key/value store.
    pub controller: Option<NonZeroU32>,
    /// How long a member that has shards waits at most before it looks again what is to be done.
    pub tend_us_max: u64,
    /// How old the map of shards may be to which it keeps, if the controller can be asked.
    pub map_us_max: u64,
}

/// Those that any run may have.
const FAULTS: [Fault; 9] = [
    Fault::Crash,
    Fault::CrashMany,
    Fault::Pause,
    Fault::Partition,
    Fault::Clog,
    Fault::Degrade,
    Fault::FullDisk,
    Fault::Transfer,
    Fault::Reshape,
];

/// All that may break.
const DAMAGES: [Damage; 5] = [
    Damage::TailLost,
    Damage::DatabaseEmpty,
    Damage::RecordFlipped,
    Damage::SlotFlipped,
    Damage::SlotSyncLost,
];

/// Makes the seed of the mix another one than that of the run.
const MIX_STREAM: u64 = 0x5eed_0fa1_7a11;

/// In one run of so many there are several groups.
const SEVERAL_GROUPS_ONE_IN: u32 = 8;
/// When the last group is founded at the latest.
const LAST_FOUNDED_US_MAX: u64 = 8_000_000;

/// Until a member is up again that died in a step, or by its disk.
pub(crate) const DOWN_US_MAX: u64 = 1_000_000;

impl Mix {
    /// A network and disks as they should be: what scripts begin with, and how every run ends.
    pub fn calm() -> Self {
        Self {
            config: Config {
                tick_us: TICK_US,
                heartbeat_ticks: 5,
                election_ticks_min: 30,
                check_ticks: 0,
                ..Config::default()
            },
            clients: 0,
            think_us_max: 20_000,
            clients_do_not_wait: false,
            read_per_mille: 300,
            read_anywhere_per_mille: 0,
            padding_bytes_max: 64,
            delay_us_min: 200,
            delay_us_max: 5_000,
            loss_per_mille: 0,
            reply_loss_per_mille: 0,
            duplicate_per_mille: 0,
            replay_us_max: 0,
            reorder_per_mille: 0,
            reorder_us_min: 0,
            reorder_us_max: 0,
            reorder_replies_only: false,
            link_bytes_per_ms: None,
            link_slower_max: 1,
            link_loss_per_mille_max: 0,
            down_refuses: false,
            sync_us_max: 2_000,
            stall_per_mille: 0,
            stall_us_max: 0,
            merge_per_mille: 1_000,
            disk_error_per_mille: 0,
            torn_per_mille: 0,
            batch_us_max: 0,
            batch_inputs_max: 1_000,
            lease_reads: false,
            clock_unit: 1,
            slow_clock_max: 1,
            fast_clock_max: 1,
            snapshot_us_max: 20_000,
            snapshot_failure_per_mille: 0,
            crash_in_step_per_million: 0,
            leader_per_mille: 0,
            depose_per_mille: 0,
            further_groups: Vec::new(),
            last_founded_us: 0,
            misdirected_per_mille: 0,
            rates: Vec::new(),
            store: false,
            damages: Vec::new(),
            majority_lost: false,
            kv: None,
            controller: None,
            tend_us_max: 20_000,
            map_us_max: 100_000,
        }
    }

    /// Whether shards move between the groups.
    pub(crate) fn is_sharded(&self) -> bool {
        self.controller.is_some() && self.kv.is_some()
    }

    /// A network as the labs' unreliable one: delayed by up to 26 ms, one message in ten is lost.
    pub fn unreliable() -> Self {
        Self {
            delay_us_min: 0,
            delay_us_max: 26_000,
            loss_per_mille: 100,
            reply_loss_per_mille: 100,
            ..Self::calm()
        }
    }

    /// The same with the labs' long reordering: two replies of three come 0.2 to 2.2 s late.
    pub fn reordering() -> Self {
        Self {
            reorder_per_mille: 667,
            reorder_us_min: 200_000,
            reorder_us_max: 2_200_000,
            reorder_replies_only: true,
            ..Self::unreliable()
        }
    }

    /// The labs' unreliable churn: three clients, and every 0.7 s one member in five is cut off and
    /// one in five dies. What the speed of the simulator is measured with.
    pub fn labs() -> Self {
        let rate = |fault| Rate { fault, every_us: 3_500_000, lasts_us_max: 1_400_000 };
        let rates = vec![rate(Fault::Crash), rate(Fault::Partition)];
        Self { clients: 3, read_per_mille: 0, rates, ..Self::unreliable() }
    }

    /// The mix of a seed.
    pub fn draw(seed: u64) -> Self {
        // Another stream than the one that the run itself draws from.
        let mut rng = StdRng::seed_from_u64(seed ^ MIX_STREAM);
        let rng = &mut rng;
        let mut mix = Self { config: draw_config(rng), ..Self::calm() };
        mix.clients = rng.random_range(1..=6);
        mix.think_us_max = pick(rng, &[2_000, 20_000, 200_000]);
        mix.clients_do_not_wait = rng.random_range(0..2) == 0;
        mix.read_per_mille = pick(rng, &[0, 200, 500, 900]);
        mix.read_anywhere_per_mille = pick(rng, &[0, 500, 1_000]);
        mix.padding_bytes_max = pick(rng, &[0, 64, 600]);
        mix.leader_per_mille = pick(rng, &[0, 300, 800]);
        mix.depose_per_mille = pick(rng, &[0, 0, 300, 900]);
        mix.slow_clock_max = pick(rng, &[1, 1, 2, 6]);
        mix.fast_clock_max = pick(rng, &[1, 1, 2]);
        mix.lease_reads = rng.random_range(0..2) == 0;
        if mix.lease_reads {
            // Two clocks differ by as much as a lease allows, and not more.
            (mix.clock_unit, mix.slow_clock_max, mix.fast_clock_max) = (100, 105, 105);
        }
        mix.batch_us_max = pick(rng, &[0, 500, 20_000]);
        mix.batch_inputs_max = pick(rng, &[1, 4, 1_000]);
        let rare = Rarity(pick(rng, &[2, 2, 3, 5]));
        mix.draw_network(rng, rare);
        mix.draw_disk(rng, rare);
        if rare.on(rng) {
            mix.crash_in_step_per_million = pick(rng, &[20, 200, 2_000]);
        }
        for fault in FAULTS {
            if rare.on(rng) {
                let every_us =
                    pick(rng, &[100_000, 300_000, 1_000_000, 3_000_000, 3_000_000, 10_000_000]);
                let lasts_us_max = pick(rng, &[50_000, 500_000, 3_000_000, 5_000_000]);
                mix.rates.push(Rate { fault, every_us, lasts_us_max });
            }
        }
        mix.draw_groups(rng);
        mix.draw_store(rng, rare);
        mix.kv = KvMix::draw_some(seed);
        mix
    }

    /// A world mostly has one group. Where it has more, one is founded while others are at work,
    /// and whole groups stop.
    fn draw_groups(&mut self, rng: &mut StdRng) {
        if rng.random_range(0..SEVERAL_GROUPS_ONE_IN) > 0 {
            return;
        }
        let further = rng.random_range(1..=2);
        self.further_groups = (0..further).map(|_| pick(rng, &[1, 3, 3, 5])).collect();
        self.last_founded_us = rng.random_range(1..=LAST_FOUNDED_US_MAX);
        self.misdirected_per_mille = pick(rng, &[0, 10, 200]);
        let (fault, every_us) = (Fault::StopGroup, pick(rng, &[2_000_000, 10_000_000]));
        self.rates.push(Rate { fault, every_us, lasts_us_max: 3_000_000 });
    }

    fn draw_store(&mut self, rng: &mut StdRng, rare: Rarity) {
        self.store = rng.random_range(0..2) == 0;
        if !self.store {
            return;
        }
        if rng.random_range(0..8) == 0 {
            self.draw_large_commands(rng);
        }
        // Who changes the members at random does not care whether a majority of them is left.
        if self.rates.iter().any(|rate| rate.fault == Fault::Reshape) {
            return;
        }
        if rare.on(rng) {
            let rates = DAMAGES.map(|damage| (damage, pick(rng, &[0, 5, 50, 200])));
            self.damages.extend(rates.into_iter().filter(|(_, per_mille)| *per_mille > 0));
        } else {
            self.majority_lost = rng.random_range(0..3) == 0;
        }
    }

    /// Commands beyond what one record of the store holds, or one batch; but seldom, since every byte
    /// of them costs time.
    fn draw_large_commands(&mut self, rng: &mut StdRng) {
        (self.padding_bytes_max, self.think_us_max) =
            pick(rng, &[(40_000, 300_000), (1_500_000, 10_000_000)]);
        self.clients = self.clients.min(3);
        self.link_bytes_per_ms = None;
        self.config.append_bytes_max = 4 << 20;
        self.config.inflight_bytes_max = 8 << 20;
        self.config.uncommitted_bytes_max = 8 << 20;
        assert_eq!(self.config.check(), Ok(()), "drawn settings fit together");
    }

    fn draw_network(&mut self, rng: &mut StdRng, rare: Rarity) {
        self.delay_us_max = pick(rng, &[500, 500, 5_000, 5_000, 20_000, 100_000, 200_000]);
        if rare.on(rng) {
            self.loss_per_mille = rng.random_range(1..=300);
        }
        if rare.on(rng) {
            self.reply_loss_per_mille = rng.random_range(1..=300);
        }
        if rare.on(rng) {
            self.duplicate_per_mille = rng.random_range(1..=500);
            self.replay_us_max = pick(rng, &[0, 20_000, 500_000, 5_000_000]);
        }
        if rare.on(rng) {
            self.reorder_per_mille = rng.random_range(1..=660);
            self.reorder_us_max = pick(rng, &[10_000, 200_000, 2_000_000]);
            self.reorder_replies_only = rare.on(rng);
        }
        if rare.on(rng) {
            self.link_slower_max = pick(rng, &[2, 10]);
            self.link_loss_per_mille_max = pick(rng, &[0, 100, 500]);
        }
        self.link_bytes_per_ms = pick(rng, &[None, None, Some(1_000), Some(20)]);
        self.down_refuses = rare.on(rng);
    }

    fn draw_disk(&mut self, rng: &mut StdRng, rare: Rarity) {
        if rare.on(rng) {
            self.sync_us_max = pick(rng, &[10_000, 50_000, 300_000, 1_000_000]);
        }
        if rare.on(rng) {
            self.stall_per_mille = rng.random_range(1..=50);
            self.stall_us_max = pick(rng, &[2_000_000, 5_000_000]);
        }
        self.merge_per_mille = pick(rng, &[0, 500, 1_000]);
        if rare.on(rng) {
            self.disk_error_per_mille = pick(rng, &[1, 1, 10, 100]);
        }
        self.torn_per_mille = pick(rng, &[0, 800, 1_000]);
        self.snapshot_us_max = pick(rng, &[1_000, 20_000, 500_000]);
        if rare.on(rng) {
            self.snapshot_failure_per_mille = rng.random_range(1..=500);
        }
    }

    /// Whether something happens that happens `per_mille` times in 1,000. The dice are rolled only
    /// when both answers are possible.
    pub(crate) fn chance(&self, rng: &mut StdRng, per_mille: u32) -> bool {
        per_mille > 0 && rng.random_range(0..1_000) < per_mille
    }

    /// What clerks are like, where scripts have some without saying so.
    pub(crate) fn kv_or_calm(&self) -> KvMix {
        self.kv.unwrap_or_else(KvMix::calm)
    }

    /// This mix without its faults, with which a run has to come to rest.
    pub(crate) fn calmed(&self) -> Self {
        let Self { config, clients, store, kv, controller, .. } = *self;
        let kv = kv.map(KvMix::calmed);
        Self { config, clients, store, kv, controller, ..Self::calm() }
    }
}

/// One in so many faults happens in a run: where all do, hardly anything else does.
#[derive(Clone, Copy, Debug)]
struct Rarity(u32);

impl Rarity {
    fn on(self, rng: &mut StdRng) -> bool {
        rng.random_range(0..self.0) == 0
    }
}

fn pick<T: Copy>(rng: &mut StdRng, choices: &[T]) -> T {
    choices[rng.random_range(0..choices.len())]
}

/// Small limits, so that a short run reaches them.
fn draw_config(rng: &mut StdRng) -> Config {
    let heartbeat_ticks = rng.random_range(1..=6);
    let config = Config {
        tick_us: TICK_US,
        heartbeat_ticks,
        election_ticks_min: heartbeat_ticks * rng.random_range(3..=8),
        clock_drift_percent_max: 10,
        append_bytes_max: pick(rng, &[1, 200, 2_000, 1 << 20]),
        inflight_messages_max: rng.random_range(1..=8),
        inflight_bytes_max: pick(rng, &[1, 500, 1 << 20]),
        uncommitted_bytes_max: pick(rng, &[300, 5_000, 1 << 20]),
        read_rounds_max: rng.random_range(1..=4),
        read_questions_max: rng.random_range(1..=4),
        reads_waiting_max: pick(rng, &[1, 4, 1_000]),
        snapshot_log_bytes_min: pick(rng, &[300, 2_000, 10_000, 200_000]),
        members_max: 9,
        retained_bytes: pick(rng, &[0, 200, 3_000]),
        retained_bytes_max: pick(rng, &[0, 1_000, 20_000]),
        log_window_bytes: pick(rng, &[0, 300, 5_000, 1 << 20]),
        apply_bytes_max: pick(rng, &[1, 300, 1 << 20]),
        unheard_ticks_max: 300,
        slow_disk_ticks: pick(rng, &[2, 20, 1_000]),
        check_ticks: 0,
    };
    assert_eq!(config.check(), Ok(()), "drawn settings fit together");
    config
}
