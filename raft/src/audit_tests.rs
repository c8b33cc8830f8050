//! What each member makes of its state, case by case: several audits that talk to each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    AuditMessage, Config, Finding, Index, Membership, NodeId, Trust,
    audit::{Audit, Surroundings},
};

const RIGHT: u128 = 7;
const WRONG: u128 = 8;
const PATIENCE: u32 = 20;

fn config() -> Config {
    Config { check_ticks: 100, election_ticks_min: PATIENCE / 2, ..Config::default() }
}

/// Members that have applied the same entries.
struct Members {
    audits: BTreeMap<NodeId, Audit>,
    membership: Arc<Membership>,
    /// Nothing comes from them or gets to them.
    away: Vec<u64>,
    findings: Vec<(u64, Finding)>,
    /// What they asked for beside reports.
    asked: Vec<(u64, NodeId, AuditMessage)>,
    replays: Vec<(u64, Index)>,
    applied: Index,
}

impl Members {
    fn new(count: u64) -> Self {
        let contacts = (1..=count).map(|id| (NodeId(id), Bytes::new()));
        let audit = |id| (NodeId(id), Audit::new(&config(), NodeId(id), Index(0)));
        Self {
            audits: (1..=count).map(audit).collect(),
            membership: Arc::new(Membership::founders(contacts)),
            away: Vec::new(),
            findings: Vec::new(),
            asked: Vec::new(),
            replays: Vec::new(),
            applied: Index(0),
        }
    }

    fn audit(&mut self, id: u64) -> &mut Audit {
        self.audits.get_mut(&NodeId(id)).unwrap()
    }

    fn trust(&self, id: u64) -> Trust {
        self.audits[&NodeId(id)].trust()
    }

    /// All look behind an entry, and tell each other.
    fn sample(&mut self, index: u64, digests: &[u128]) {
        self.applied = Index(index);
        for (id, digest) in (1..).zip(digests) {
            if !self.away.contains(&id) {
                self.audit(id).sample(Index(index), *digest);
            }
        }
        self.talk();
    }

    fn around<'a>(&self, membership: &'a Membership) -> Surroundings<'a> {
        Surroundings {
            leader: Some(NodeId(1)),
            applied: self.applied,
            snapshot: Index(0),
            membership,
        }
    }

    fn talk(&mut self) {
        let membership = self.membership.clone();
        loop {
            let mut said = Vec::new();
            let around = self.around(&membership);
            for (&id, audit) in &mut self.audits {
                let replay = audit.conclude(&around);
                self.replays.extend(replay.map(|upto| (id.0, upto)));
                let out = audit.take();
                self.findings.extend(out.findings.into_iter().map(|finding| (id.0, finding)));
                said.extend(out.messages.into_iter().map(|(to, message)| (id, to, message)));
            }
            said.retain(|(from, to, _)| ![from.0, to.0].iter().any(|id| self.away.contains(id)));
            if said.is_empty() {
                return;
            }
            for (from, to, message) in said {
                match message {
                    AuditMessage::Report(report) => {
                        let audit = self.audits.get_mut(&to).unwrap();
                        audit.hear(from, report, &membership);
                    }
                    other => self.asked.push((from.0, to, other)),
                }
            }
        }
    }

    /// Whether the leader is to make a place to compare.
    fn tick(&mut self, ticks: u32) -> bool {
        let membership = self.membership.clone();
        let mut checks = false;
        for _ in 0..ticks {
            let around = self.around(&membership);
            for (id, audit) in &mut self.audits {
                checks |= !self.away.contains(&id.0) && audit.tick(&around);
            }
            self.talk();
        }
        checks
    }

    /// A member has made its state once more.
    fn replayed(&mut self, id: u64, index: u64, digest: u128) {
        let audit = self.audit(id);
        if audit.replayed(Index(index), digest) == Some(true) {
            audit.forget_own();
            audit.sample(Index(index), digest);
        }
        self.talk();
    }
}

#[test]
fn equal_states_are_sound_and_then_nobody_says_anything() {
    let mut members = Members::new(3);
    members.sample(5, &[RIGHT; 3]);
    assert!((1..=3).all(|id| members.trust(id) == Trust::Sound));
    assert!(members.findings.is_empty() && members.asked.is_empty());
    let around_membership = members.membership.clone();
    for _ in 0..300 {
        let around = members.around(&around_membership);
        for audit in members.audits.values_mut() {
            assert!(!audit.tick(&around), "a quiet, checked group writes nothing");
            assert!(audit.take().messages.is_empty(), "and says nothing");
        }
    }
}

#[test]
fn what_has_changed_is_checked_once_after_the_interval() {
    let mut members = Members::new(3);
    members.sample(5, &[RIGHT; 3]);
    members.applied = Index(9);
    assert!(!members.tick(99));
    assert!(members.tick(1), "something was applied behind the last place");
    members.sample(10, &[RIGHT; 3]);
    assert!(!members.tick(300));
}

#[test]
fn who_differs_from_a_majority_is_wrong_and_asks_them_in_turns() {
    let mut members = Members::new(3);
    members.sample(5, &[RIGHT, WRONG, RIGHT]);
    assert_eq!([1, 2, 3].map(|id| members.trust(id)), [Trust::Sound, Trust::Wrong, Trust::Sound]);
    let [(2, Finding::Wrong { index, own, majority, agreed })] = members.findings.as_slice() else {
        panic!("{:?}", members.findings)
    };
    assert_eq!((*index, *own, *majority), (Index(5), WRONG, RIGHT));
    assert_eq!(*agreed, [NodeId(1), NodeId(3)]);
    members.tick(1 + PATIENCE);
    let helpers: Vec<u64> = members
        .asked
        .iter()
        .filter(|(_, _, said)| matches!(said, AuditMessage::SnapshotWanted { .. }))
        .map(|(from, to, _)| from * 10 + to.0)
        .collect();
    assert_eq!(helpers, [21, 23]);
    assert!(members.audits[&NodeId(2)].is_helped_by(NodeId(3)));
    assert!(!members.audits[&NodeId(1)].is_helped_by(NodeId(3)));
}

#[test]
fn a_rebuilt_state_serves_only_when_a_majority_agrees_with_it() {
    let mut members = Members::new(3);
    members.sample(5, &[RIGHT, WRONG, RIGHT]);
    members.audit(2).forget_own();
    members.talk();
    assert_eq!(members.trust(2), Trust::Wrong, "nothing was compared yet");
    members.asked.clear();
    members.tick(PATIENCE + 1);
    let wanted = (2, NodeId(1), AuditMessage::CheckWanted);
    assert!(members.asked.contains(&wanted), "{:?}", members.asked);
    // A wrong one again, as if the snapshot were as wrong.
    members.audit(2).sample(Index(5), WRONG);
    members.talk();
    assert_eq!(members.trust(2), Trust::Wrong);
    members.audit(2).forget_own();
    members.audit(2).sample(Index(5), RIGHT);
    members.talk();
    assert_eq!(members.trust(2), Trust::Sound);
    assert_eq!(members.findings.last(), Some(&(2, Finding::Sound { index: Index(5) })));
}

#[test]
fn who_is_wrong_brings_nobody_else_into_doubt() {
    let mut members = Members::new(3);
    members.sample(100, &[RIGHT, RIGHT, WRONG]);
    assert_eq!(members.trust(3), Trust::Wrong);
    // The one that agrees is gone before the wrong one is rebuilt.
    members.away = vec![2];
    members.sample(110, &[RIGHT, RIGHT, WRONG]);
    members.tick(10 * PATIENCE);
    assert_eq!(members.trust(1), Trust::Sound, "it serves, and helps");
    assert!(members.asked.iter().any(|(from, to, _)| (*from, to.0) == (3, 1)));
}

#[test]
fn a_rebuilt_state_is_compared_before_help_is_sought_again() {
    let mut members = Members::new(3);
    members.sample(100, &[RIGHT, RIGHT, WRONG]);
    members.audit(3).forget_own();
    members.asked.clear();
    members.tick(10 * PATIENCE);
    let wants = |members: &Members| {
        let is_want =
            |message: &AuditMessage| matches!(message, AuditMessage::SnapshotWanted { .. });
        members.asked.iter().any(|(from, _, message)| *from == 3 && is_want(message))
    };
    assert!(!wants(&members), "what was fetched is not compared yet");
    members.sample(110, &[RIGHT, RIGHT, WRONG]);
    members.tick(2 * PATIENCE);
    assert!(wants(&members), "it is as wrong as before");
    members.audit(3).forget_own();
    members.sample(120, &[RIGHT; 3]);
    assert_eq!(members.trust(3), Trust::Sound);
}

#[test]
fn a_replay_may_take_longer_than_places_are_remembered() {
    let mut members = Members::new(2);
    members.sample(100, &[RIGHT, WRONG]);
    members.tick(PATIENCE);
    let upto = members.replays[0].1.0;
    for place in 0..200 {
        members.sample(101 + place, &[RIGHT, WRONG]);
    }
    assert_eq!(members.audit(1).replayed(Index(upto), RIGHT), Some(false));
    assert_eq!(members.audit(2).replayed(Index(upto), RIGHT), Some(true));
}

#[test]
fn agreement_about_an_earlier_entry_settles_no_doubt() {
    let mut members = Members::new(3);
    members.sample(5, &[RIGHT, RIGHT, RIGHT]);
    members.sample(9, &[RIGHT, WRONG, RIGHT]);
    assert_eq!(members.trust(2), Trust::Wrong);
    members.audit(2).forget_own();
    members.audit(2).sample(Index(5), RIGHT);
    members.talk();
    assert_eq!(members.trust(2), Trust::Wrong);
    members.audit(2).sample(Index(9), RIGHT);
    members.talk();
    assert_eq!(members.trust(2), Trust::Sound);
}

#[test]
fn two_of_two_that_differ_make_their_states_once_more_and_one_gives_way() {
    let mut members = Members::new(2);
    members.sample(5, &[RIGHT, WRONG]);
    assert_eq!([1, 2].map(|id| members.trust(id)), [Trust::Doubtful; 2]);
    assert_eq!(members.replays, [(1, Index(5)), (2, Index(5))]);
    members.replayed(1, 5, RIGHT);
    assert_eq!([1, 2].map(|id| members.trust(id)), [Trust::Doubtful; 2]);
    members.replayed(2, 5, RIGHT);
    assert_eq!([1, 2].map(|id| members.trust(id)), [Trust::Sound; 2]);
    assert_eq!(members.replays.len(), 2, "once each");
}

#[test]
fn states_that_differ_after_a_replay_wait_for_a_person() {
    let mut members = Members::new(2);
    members.sample(5, &[RIGHT, WRONG]);
    members.replayed(1, 5, RIGHT);
    members.replayed(2, 5, WRONG);
    assert_eq!([1, 2].map(|id| members.trust(id)), [Trust::Undecided; 2]);
    let undecided = |finding: &&(u64, Finding)| matches!(finding.1, Finding::Undecided { .. });
    assert_eq!(members.findings.iter().filter(undecided).count(), 2, "each says so once");
    members.tick(300);
    members.sample(9, &[RIGHT, WRONG]);
    assert_eq!([1, 2].map(|id| members.trust(id)), [Trust::Undecided; 2]);
    assert_eq!(members.replays.len(), 2, "once each");
    // The person removes the second.
    members.membership = Arc::new(Membership::founders([(NodeId(1), Bytes::new())]));
    members.away = vec![2];
    members.sample(12, &[RIGHT]);
    assert_eq!(members.trust(1), Trust::Sound);
}

#[test]
fn three_that_all_differ_do_not_wait_and_two_of_three_wait_for_the_third() {
    let mut members = Members::new(3);
    members.sample(5, &[1, 2, 3]);
    assert_eq!([1, 2, 3].map(|id| members.trust(id)), [Trust::Doubtful; 3]);

    let mut members = Members::new(3);
    members.away = vec![3];
    members.sample(5, &[RIGHT, WRONG, RIGHT]);
    members.tick(PATIENCE - 1);
    assert_eq!([1, 2].map(|id| members.trust(id)), [Trust::Sound; 2], "the third may decide it");
    members.tick(2);
    assert_eq!([1, 2].map(|id| members.trust(id)), [Trust::Doubtful; 2]);
    // It comes, and decides before anything is made once more.
    members.away.clear();
    members.sample(9, &[RIGHT, WRONG, RIGHT]);
    assert_eq!([1, 2, 3].map(|id| members.trust(id)), [Trust::Sound, Trust::Wrong, Trust::Sound]);
    members.replayed(1, 5, RIGHT);
    assert_eq!(members.trust(1), Trust::Sound, "a replay that nobody needs any more");
}

#[test]
fn a_report_that_was_lost_is_told_again() {
    let mut members = Members::new(3);
    members.away = vec![2];
    members.sample(5, &[RIGHT; 3]);
    members.away.clear();
    members.audit(2).sample(Index(5), WRONG);
    members.audit(2).conclude(&Surroundings {
        leader: None,
        applied: Index(5),
        snapshot: Index(0),
        membership: &Membership::founders([(NodeId(2), Bytes::new())]),
    });
    drop(members.audit(2).take());
    members.talk();
    assert_eq!(members.trust(2), Trust::Sound, "it was told nothing");
    members.tick(101);
    assert_eq!(members.trust(2), Trust::Wrong);
}

#[test]
fn a_doubt_outlasts_a_restart_until_a_majority_agrees() {
    let mut members = Members::new(3);
    members.sample(5, &[RIGHT; 3]);
    *members.audit(2) = Audit::new(&config(), NodeId(2), Index(5));
    members.audit(2).distrust();
    members.tick(PATIENCE + 1);
    assert_eq!(members.trust(2), Trust::Unverified);
    let wanted = |(from, to, said): &(u64, NodeId, AuditMessage)| {
        *from == 2 && *to == NodeId(1) && *said == AuditMessage::CheckWanted
    };
    assert!(members.asked.iter().any(wanted), "{:?}", members.asked);
    members.audit(1).ask_check();
    assert!(members.tick(PATIENCE), "the leader makes a place to compare, though nothing changed");
    members.sample(6, &[RIGHT; 3]);
    assert_eq!(members.trust(2), Trust::Sound);
}

#[test]
fn strangers_and_floods_of_reports_are_not_kept() {
    let mut members = Members::new(3);
    let membership = members.membership.clone();
    let report = |index| crate::Report {
        index: Index(index),
        digest: WRONG,
        replayed: false,
        is_answer: true,
    };
    for id in 4..9 {
        members.audit(1).hear(NodeId(id), report(5), &membership);
    }
    for index in 1..10_000 {
        members.audit(1).hear(NodeId(2), report(index), &membership);
    }
    members.audit(1).hear(NodeId(2), report(u64::MAX), &membership);
    assert_eq!(members.audits[&NodeId(1)].places_heard(), (64, 64));
    members.sample(5, &[RIGHT, RIGHT, RIGHT]);
    assert_eq!(members.trust(1), Trust::Sound);
}

#[test]
fn without_checks_nothing_is_asked_told_or_judged() {
    let mut members = Members::new(2);
    for audit in members.audits.values_mut() {
        let config = Config { check_ticks: 0, ..config() };
        *audit = Audit::new(&config, NodeId(1), Index(0));
        assert!(!audit.is_on());
    }
    members.applied = Index(9);
    assert!(!members.tick(1_000));
    members.sample(5, &[RIGHT, WRONG]);
    assert!(members.findings.is_empty() && members.asked.is_empty());
}
