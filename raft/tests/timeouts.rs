//! Election timeouts are drawn anew each time, between their least and twice that (section 5.2).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_raft::{Config, Event, Instant, Membership, Node, NodeId, Recovered};

/// How many ticks a member that hears nobody waits as a follower before it campaigns, and then as a
/// candidate before it campaigns again.
fn ticks_between_campaigns(seed: u64) -> [u32; 2] {
    let config = Config::default();
    let founders = (1..=3).map(|id| (NodeId(id), Bytes::new()));
    let founders = Arc::new(Membership::founders(founders));
    let mut node = Node::new(config, NodeId(1), founders, Recovered::default(), seed, Instant(0));
    let mut begun = (1..=10_000).filter(|&tick| {
        node.tick(Instant(u64::from(tick) * config.tick_us));
        let events = node.take_effects().events;
        events.iter().any(|event| matches!(event, Event::PreCampaigning { .. }))
    });
    let first = begun.next().expect("it campaigns some time");
    let second = begun.next().expect("it campaigns again");
    [first, second - first]
}

#[test]
fn election_timeouts_are_spread_over_their_range() {
    let least = Config::default().election_ticks_min;
    let drawn: Vec<[u32; 2]> = (0..500).map(ticks_between_campaigns).collect();
    for role in [0, 1] {
        let drawn: BTreeSet<u32> = drawn.iter().map(|ticks| ticks[role]).collect();
        assert!(drawn.iter().all(|ticks| (least..2 * least).contains(ticks)), "{drawn:?}");
        // Of 30 values each is expected in 500 draws; a few may be missing.
        assert!(drawn.len() >= 25, "{drawn:?}");
    }
}

#[test]
fn election_timeouts_of_two_members_rarely_coincide() {
    let same = (0..500).filter(|&pair| {
        ticks_between_campaigns(2 * pair)[0] == ticks_between_campaigns(2 * pair + 1)[0]
    });
    // One in thirty is expected, 17 of 500.
    let same = same.count();
    assert!(same < 50, "{same} of 500 pairs");
}

#[test]
fn election_timeouts_are_decided_by_the_seed() {
    assert!((0..20).all(|seed| ticks_between_campaigns(seed) == ticks_between_campaigns(seed)));
}
