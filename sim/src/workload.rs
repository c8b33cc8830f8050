//! What the clerks of a group do by themselves: how many requests of which kind, to which keys.

use bytes::Bytes;
use kvd::{
    command::Condition,
    outcome::{Revision, Version},
    session::SessionLimits,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    application::KvSettings,
    clerk::Known,
    operation::{Kind, Operation, OperationName},
};

/// What the clerks of a world are like, and what they use.
#[derive(Clone, Copy, Debug)]
pub struct KvMix {
    /// The store.
    pub settings: KvSettings,
    /// What they do by themselves.
    pub workload: Workload,
    /// How many requests of one clerk are under way at most.
    pub in_flight_max: usize,
    /// How long a clerk goes on asking for one thing.
    pub deadline_us: u64,
    /// How long it waits for one answer.
    pub attempt_us: u64,
    /// How much longer than its clerk asks for it a request may live.
    pub slack_us: u64,
}

/// What clerks do. The kinds of requests come as often as their weights say.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Which keys they use.
    pub keys: Keys,
    /// Reads.
    pub gets: u32,
    /// Writes without a condition.
    pub puts: u32,
    /// Writes on the condition that the key is as this clerk saw it last.
    pub puts_if: u32,
    /// Appends.
    pub appends: u32,
    /// Removals.
    pub deletes: u32,
    /// How many of 100 operations are about leases, locks and transactions, on keys of their own.
    pub joint: u32,
    /// How long leases live without being kept alive, at most.
    pub ttl_ms_max: u64,
    /// How long clerks wait for a lock at most.
    pub wait_ms_max: u64,
    /// By how much a token is padded at most.
    pub padding_bytes_max: usize,
    /// How long a value may become by appends.
    pub value_bytes_max: u64,
    /// How many requests each clerk makes; none: as many as it can.
    pub operations_max: Option<u64>,
}

/// Which keys a clerk uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// One of its own.
    Own,
    /// So many that all use.
    Shared(u64),
}

impl KvMix {
    /// A store of the usual size, and clerks that do as the client library does by default.
    pub fn calm() -> Self {
        Self {
            settings: KvSettings::default(),
            workload: Workload::mixed(4),
            in_flight_max: 1,
            deadline_us: 10_000_000,
            attempt_us: 1_000_000,
            slack_us: 15_000_000,
        }
    }
}

/// Makes the seed of this mix another one than those of the run and of its faults.
const KV_STREAM: u64 = 0x5eed_c1e4_c1e4;
/// The same of what clerks do with leases, locks and transactions.
const JOINT_STREAM: u64 = 0x5eed_1ea5_e500;
/// In one run of so many, groups replicate a key/value store.
const KV_ONE_IN: u32 = 4;

impl KvMix {
    /// The same clerks, but patient.
    pub(crate) fn calmed(self) -> Self {
        let Self { deadline_us, attempt_us, .. } = Self::calm();
        Self { deadline_us, attempt_us, ..self }
    }

    /// What a seed draws, if it draws a key/value store at all.
    pub(crate) fn draw_some(seed: u64) -> Option<Self> {
        let mut rng = StdRng::seed_from_u64(seed ^ KV_STREAM ^ 1);
        (rng.random_range(0..KV_ONE_IN) == 0).then(|| Self::draw(seed))
    }

    /// What a seed draws. Limits are small enough for a short run to reach them, and requests often
    /// so short-lived that they expire.
    pub(crate) fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ KV_STREAM);
        let mut pick = |choices: &[u64]| choices[rng.random_range(0..choices.len())];
        let usual = SessionLimits::default();
        let several = |drawn: u64, usual: usize| match drawn {
            0 => usual,
            drawn => usize::try_from(drawn).unwrap_or(usual),
        };
        let limits = SessionLimits {
            replies_per_row: several(pick(&[0, 0, 2]), usual.replies_per_row),
            rows: several(pick(&[0, 0, 0, 3]), usual.rows),
            replies: usual.replies,
            body_bytes: pick(&[usual.body_bytes, 1_000, 300]),
        };
        let shards = u32::try_from(pick(&[1, 2, 4, 16])).unwrap_or(1);
        Self {
            settings: KvSettings { shards, limits, ..KvSettings::default() },
            workload: Workload::mixed(pick(&[1, 3, 8])).with_joint(seed),
            in_flight_max: several(pick(&[1, 1, 4, 8]), 1),
            deadline_us: pick(&[500_000, 3_000_000, 10_000_000]),
            attempt_us: pick(&[20_000, 100_000, 1_000_000]),
            slack_us: pick(&[0, 300_000, 15_000_000]),
        }
    }
}

impl Workload {
    /// A bit of everything, on so many keys.
    pub fn mixed(keys: u64) -> Self {
        Self {
            keys: Keys::Shared(keys),
            gets: 40,
            puts: 10,
            puts_if: 20,
            appends: 25,
            deletes: 5,
            joint: 0,
            ttl_ms_max: 1_000,
            wait_ms_max: 1_000,
            padding_bytes_max: 20,
            value_bytes_max: 500,
            operations_max: None,
        }
    }

    /// The same, with leases, locks and transactions in every second run.
    fn with_joint(self, seed: u64) -> Self {
        // From a stream of its own, so that runs without them are as they were.
        let mut rng = StdRng::seed_from_u64(seed ^ JOINT_STREAM);
        let mut pick = |choices: &[u64]| choices[rng.random_range(0..choices.len())];
        let joint = u32::try_from(pick(&[0, 0, 50, 90])).unwrap_or(0);
        let (ttl_ms_max, wait_ms_max) = (pick(&[100, 400, 1_500]), pick(&[50, 500, 2_000]));
        Self { joint, ttl_ms_max, wait_ms_max, ..self }
    }

    /// Half appends, half reads, each clerk of a key of its own: the labs' clerks.
    pub fn labs() -> Self {
        let (keys, gets, appends) = (Keys::Own, 50, 50);
        let (puts, puts_if, deletes, padding_bytes_max) = (0, 0, 0, 0);
        let value_bytes_max = 1 << 20;
        let (joint, ttl_ms_max, wait_ms_max) = (0, 1_000, 1_000);
        Self {
            keys,
            gets,
            puts,
            puts_if,
            appends,
            deletes,
            joint,
            ttl_ms_max,
            wait_ms_max,
            padding_bytes_max,
            value_bytes_max,
            operations_max: None,
        }
    }

    /// The next request of a clerk.
    pub(crate) fn draw(
        &self,
        rng: &mut StdRng,
        name: OperationName,
        known: impl Fn(&Bytes) -> Option<Known>,
    ) -> Operation {
        let key: Bytes = match self.keys {
            Keys::Own => format!("own{}", name.client).into(),
            Keys::Shared(keys) => format!("k{}", rng.random_range(0..keys.max(1))).into(),
        };
        let weights = [self.gets, self.puts, self.puts_if, self.appends, self.deletes];
        let mut drawn = rng.random_range(0..weights.iter().sum::<u32>().max(1));
        let kind = weights.iter().position(|&weight| {
            let taken = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            taken
        });
        let value = name.token(rng.random_range(0..=self.padding_bytes_max));
        let known = known(&key);
        let condition = match (known, rng.random_range(0..4)) {
            (None, _) => Condition::Version(Version(0)),
            (Some(Known { modified, .. }), 0) => Condition::ModRevision(modified),
            (Some(Known { version, .. }), _) => Condition::Version(version),
        };
        let always = Condition::Always;
        let kind = match kind {
            None | Some(0) => Kind::Get,
            Some(1) => Kind::Put { value, condition: always },
            Some(2) => Kind::Put { value, condition },
            // What has become long begins again, most of the time.
            Some(3) if known.is_some_and(|known| known.bytes + 60 > self.value_bytes_max) => {
                match rng.random_range(0..4) {
                    0 => Kind::Append { value, value_bytes_max: self.value_bytes_max },
                    _ => Kind::Put { value, condition: always },
                }
            }
            Some(3) => Kind::Append { value, value_bytes_max: self.value_bytes_max },
            Some(_) => Kind::Delete,
        };
        Operation { key, kind }
    }
}

impl Default for Known {
    fn default() -> Self {
        Self { version: Version(0), modified: Revision(0), bytes: 0 }
    }
}
