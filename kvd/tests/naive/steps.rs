//! What the model and the machine are made to do, drawn at random.

use proptest::{prelude::*, sample::Index};

/// What is done; numbers pick from what there is.
#[derive(Clone, Debug)]
pub enum Verb {
    Put {
        key: u8,
        length: usize,
        condition: u8,
        lease: Option<Index>,
    },
    Append {
        key: u8,
        length: usize,
    },
    Delete {
        key: u8,
    },
    Txn {
        compares: Vec<(u8, u8, u8)>,
        then: Vec<(u8, u8, Option<Index>)>,
        otherwise: Vec<(u8, u8, Option<Index>)>,
    },
    Compact {
        back: Option<u64>,
    },
    Grant {
        ttl_ms: u64,
    },
    KeepAlive {
        leases: Vec<Index>,
    },
    Revoke {
        lease: Index,
    },
    Expire {
        lease: Index,
        renewal: u64,
    },
    Acquire {
        name: u8,
        lease: Option<Index>,
        ttl_ms: u64,
        wait_ms: u64,
    },
    Release {
        name: u8,
        lease: Index,
    },
}

#[derive(Clone, Debug)]
pub enum Step {
    Do {
        tag: usize,
        verb: Verb,
        guard: Option<(u8, bool)>,
        named: bool,
    },
    Repeat(Index),
    Sleep(u64),
    ExpireDue,
    PutBack,
    Recover,
    /// How many revisions back.
    Ask(u64),
    /// Which shard.
    Move(u32),
}

fn lease() -> impl Strategy<Value = Option<Index>> {
    prop_oneof![2 => Just(None), 3 => any::<Index>().prop_map(Some)]
}

fn actions() -> impl Strategy<Value = Vec<(u8, u8, Option<Index>)>> {
    proptest::collection::vec((0_u8..4, 0_u8..4, lease()), 0..5)
}

fn verbs() -> impl Strategy<Value = Verb> {
    let ttl = prop_oneof![Just(100_u64), Just(1_000), Just(20_000)];
    let wait = prop_oneof![2 => Just(0_u64), 3 => Just(500), 3 => Just(30_000)];
    prop_oneof![
        6 => (0_u8..4, 0_usize..40, 0_u8..8, lease()).prop_map(|(key, length, condition, lease)| {
            Verb::Put { key, length, condition, lease }
        }),
        3 => (0_u8..4, 0_usize..40).prop_map(|(key, length)| Verb::Append { key, length }),
        2 => (0_u8..4).prop_map(|key| Verb::Delete { key }),
        5 => (proptest::collection::vec((0_u8..4, 0_u8..5, 0_u8..4), 0..3), actions(), actions())
            .prop_map(|(compares, then, otherwise)| Verb::Txn { compares, then, otherwise }),
        1 => proptest::option::of(0_u64..6).prop_map(|back| Verb::Compact { back }),
        3 => ttl.clone().prop_map(|ttl_ms| Verb::Grant { ttl_ms }),
        2 => proptest::collection::vec(any::<Index>(), 0..3).prop_map(|leases| Verb::KeepAlive { leases }),
        1 => any::<Index>().prop_map(|lease| Verb::Revoke { lease }),
        2 => (any::<Index>(), 0_u64..3).prop_map(|(lease, renewal)| Verb::Expire { lease, renewal }),
        6 => (0_u8..2, lease(), ttl, wait).prop_map(|(name, lease, ttl_ms, wait_ms)| {
            Verb::Acquire { name, lease, ttl_ms, wait_ms }
        }),
        3 => (0_u8..2, any::<Index>()).prop_map(|(name, lease)| Verb::Release { name, lease }),
    ]
}

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guard = prop_oneof![3 => Just(None), 1 => (0_u8..2, any::<bool>()).prop_map(Some)];
    let step = prop_oneof![
        30 => (0_usize..3, verbs(), guard, any::<bool>())
            .prop_map(|(tag, verb, guard, named)| Step::Do { tag, verb, guard, named }),
        4 => any::<Index>().prop_map(Step::Repeat),
        5 => prop_oneof![Just(1_u64), Just(100), Just(600), Just(21_000)].prop_map(Step::Sleep),
        4 => Just(Step::ExpireDue),
        1 => Just(Step::PutBack),
        1 => Just(Step::Recover),
        2 => (0_u64..6).prop_map(Step::Ask),
        6 => (0_u32..3).prop_map(Step::Move),
    ];
    proptest::collection::vec(step, 1..90)
}
