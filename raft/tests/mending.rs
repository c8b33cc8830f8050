//! Whole groups of replicas of which one holds a wrong state: it finds that, serves nothing from it,
//! and gets the right one; and what is decided about snapshots, tickets and reads meanwhile.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flotilla_raft::{
    Applied, AuditMessage, BadSnapshot, Capture, Config, Digest, Entry, Envelope, Finding, Index,
    Instant, Membership, Message, NodeId, Outcome, Payload, Position, ReadId, Recovered, Refused,
    Replay, Replica, Report, RoleKind, SnapshotRoot, StateMachine, Term, TicketId, Trust,
};

/// Remembers the commands that it saw.
#[derive(Clone, Debug, Default)]
struct Journal(Vec<Bytes>);

impl Capture for Journal {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        self.0.into_iter()
    }
}

impl StateMachine for Journal {
    type Query = ();
    type Answer = Vec<Bytes>;
    type Response = usize;
    type Capture = Self;

    fn understands(&self, _: &Bytes) -> bool {
        true
    }

    fn apply(&mut self, _: Applied, command: &Bytes) -> usize {
        self.0.push(command.clone());
        self.0.len()
    }

    fn pass(&mut self, _: Applied) {}

    fn recover(&mut self) {}

    fn query(&self, (): ()) -> Vec<Bytes> {
        self.0.clone()
    }

    fn capture(&self) -> Self {
        self.clone()
    }

    fn empty(&self) -> Self {
        Self::default()
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        self.0 = chunks.collect();
        Ok(())
    }

    fn digest(&self) -> u128 {
        let places = (1_u128..).zip(&self.0);
        places
            .map(|(at, command)| command.iter().map(|&byte| at * u128::from(byte)).sum::<u128>())
            .sum()
    }
}

const TICK_US: u64 = 10_000;
const LATER: u64 = 3_600_000_000;

struct Member {
    replica: Replica<Journal>,
    log: BTreeMap<Index, Entry>,
    root: Option<SnapshotRoot>,
    findings: Vec<Finding>,
    outcomes: Vec<(TicketId, Outcome<usize>)>,
    answers: Vec<(ReadId, Result<Vec<Bytes>, Refused>)>,
    replay: Option<Replay<Journal>>,
}

/// Members whose disks and network do everything at once.
struct Group {
    members: BTreeMap<NodeId, Member>,
    snapshots: BTreeMap<Digest, Vec<Bytes>>,
    now: Instant,
    asked: u64,
    /// Who is out of reach.
    away: BTreeSet<NodeId>,
    /// Replays wait until they are wanted.
    replays_wait: bool,
}

fn config() -> Config {
    Config {
        tick_us: TICK_US,
        heartbeat_ticks: 2,
        election_ticks_min: 10,
        check_ticks: 50,
        snapshot_log_bytes_min: 2_000,
        retained_bytes: 0,
        retained_bytes_max: 0,
        log_window_bytes: 300,
        ..Config::default()
    }
}

impl Group {
    fn new(count: u64) -> Self {
        let ids = || (1..=count).map(NodeId);
        let founders = Arc::new(Membership::founders(ids().map(|id| (id, Bytes::new()))));
        let member = |id: NodeId| {
            let (recovered, machine) = (Recovered::default(), Journal::default());
            let founders = founders.clone();
            let now = Instant(0);
            let replica = Replica::new(config(), id, founders, recovered, machine, id.0, now);
            let (log, findings) = (BTreeMap::new(), Vec::new());
            let (outcomes, answers) = (Vec::new(), Vec::new());
            (id, Member { replica, log, root: None, findings, outcomes, answers, replay: None })
        };
        let mut group = Self {
            members: ids().map(member).collect(),
            snapshots: BTreeMap::new(),
            now: Instant(0),
            asked: 0,
            away: BTreeSet::new(),
            replays_wait: false,
        };
        group.tick_until(|group| group.leader().is_some());
        group
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&NodeId(id)).unwrap()
    }

    fn trust(&self, id: u64) -> Trust {
        self.members[&NodeId(id)].replica.trust()
    }

    fn leader(&self) -> Option<u64> {
        let leads = |member: &&Member| member.replica.node().role() == RoleKind::Leader;
        let mut members = self.members.iter().filter(|(id, _)| !self.away.contains(id));
        members.find(|(_, member)| leads(member)).map(|(id, _)| id.0)
    }

    fn tick(&mut self) {
        self.now.0 += TICK_US;
        for member in self.members.values_mut() {
            member.replica.tick(self.now);
        }
        self.act();
    }

    fn tick_until(&mut self, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if is_so(self) {
                return;
            }
            self.tick();
        }
        panic!("it never comes to that");
    }

    /// Lets everybody do what there is to do, until nobody has anything.
    fn act(&mut self) {
        loop {
            let mut sent = Vec::new();
            let mut audits = Vec::new();
            let mut busy = false;
            for (&id, member) in &mut self.members {
                let (messages, told, did) = member.act(&mut self.snapshots, self.replays_wait);
                sent.extend(messages.into_iter().map(|Envelope { to, message }| (id, to, message)));
                audits.extend(told.into_iter().map(|(to, message)| (id, to, message)));
                busy |= did;
            }
            busy |= !sent.is_empty() || !audits.is_empty();
            let cut =
                |from: &NodeId, to: &NodeId| self.away.contains(from) || self.away.contains(to);
            for (from, to, message) in sent.into_iter().filter(|(from, to, _)| !cut(from, to)) {
                let message: Message = message;
                self.members.get_mut(&to).unwrap().replica.step(self.now, from, message);
            }
            for (from, to, message) in audits.into_iter().filter(|(from, to, _)| !cut(from, to)) {
                self.members.get_mut(&to).unwrap().replica.hear(from, message);
            }
            if !busy {
                return;
            }
        }
    }

    /// Writes at the leader.
    fn write(&mut self, command: &str) -> Result<TicketId, Refused> {
        self.asked += 1;
        let (ticket, now) = (TicketId(self.asked), self.now);
        let payload = Payload::Command(Bytes::copy_from_slice(command.as_bytes()));
        let leader = self.leader().unwrap();
        let deadline = Instant(now.0 + LATER);
        self.member(leader).replica.propose(now, ticket, payload, deadline)?;
        self.act();
        Ok(ticket)
    }

    fn write_many(&mut self, count: usize) {
        for number in 0..count {
            self.write(&format!("command {number}")).unwrap();
        }
    }

    /// The state of a member changes, and is found out.
    fn corrupt(&mut self, id: u64) {
        self.member(id).replica.flip();
        self.write("flipped").unwrap();
        self.spread();
        let digests: BTreeSet<u128> =
            self.members.values().map(|it| it.replica.machine().digest()).collect();
        assert_eq!(digests.len(), 2, "the state has changed");
        self.tick_until(|group| !group.trust(id).serves());
    }

    /// Followers learn with a heartbeat what is committed.
    fn spread(&mut self) {
        for _ in 0..5 {
            self.tick();
        }
    }

    fn assert_equal(&mut self) {
        self.spread();
        for member in self.members.values() {
            assert_eq!(member.replica.trust(), Trust::Sound);
            let first = self.members.values().next().unwrap();
            assert_eq!(member.replica.machine().0, first.replica.machine().0);
            assert_eq!(member.replica.applied(), first.replica.applied());
        }
    }
}

type Said = (Vec<Envelope>, Vec<(NodeId, AuditMessage)>, bool);

impl Member {
    /// Does what the replica asks for; what is to be sent, and whether there was anything.
    fn act(&mut self, snapshots: &mut BTreeMap<Digest, Vec<Bytes>>, replays_wait: bool) -> Said {
        let output = self.replica.take_output();
        let mut did = output.again;
        self.findings.extend(output.audited.findings);
        self.outcomes.extend(output.outcomes);
        self.answers.extend(output.answers);
        if let Some(write) = output.write {
            did = true;
            if let Some(first) = write.entries.first() {
                drop(self.log.split_off(&first.index));
            }
            self.log.extend(write.entries.into_iter().map(|entry| (entry.index, entry)));
            self.root = write.snapshot.map(|it| it.root).or(self.root.take());
            self.replica.written(write.id);
        }
        for fetch in output.fetches {
            did = true;
            let found = self.log.range(fetch.from..=fetch.to).map(|(_, entry)| entry.clone());
            self.replica.fetched(fetch.reader, found.collect());
        }
        if let Some(frozen) = output.capture {
            did = true;
            let chunks: Vec<Bytes> = frozen.capture.chunks().collect();
            let mut manifest = Digest::default();
            let digest = Journal(chunks.clone()).digest();
            manifest.0[..16].copy_from_slice(&digest.to_le_bytes());
            let root = SnapshotRoot {
                position: frozen.position,
                stamp: frozen.stamp,
                manifest,
                chunks: chunks.len() as u64,
                bytes: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
                membership: frozen.membership,
            };
            snapshots.insert(manifest, chunks);
            self.replica.captured(Some(root));
        }
        if let Some(install) = output.install {
            did = true;
            let mut machine = Journal(snapshots[&install.root.manifest].clone());
            self.replica.installed(install.root, &mut machine);
        }
        self.replay = output.replay.or(self.replay.take());
        if !replays_wait && let Some(mut replay) = self.replay.take() {
            did = true;
            if let Some(root) = &replay.root {
                let chunks = &snapshots[&root.manifest];
                replay.state.restore(&mut chunks.iter().cloned()).unwrap();
            }
            let applied = replay.state.applied().index;
            let behind = self.log.values().filter(|entry| entry.index > applied);
            for entry in behind.take_while(|entry| entry.index <= replay.upto) {
                replay.state.apply(entry);
            }
            self.replica.replayed(replay);
        }
        (output.messages, output.audited.messages, did)
    }
}

#[test]
fn a_follower_with_a_wrong_state_is_rebuilt_whether_anybody_has_a_snapshot_or_not() {
    for writes in [5, 100] {
        let mut group = Group::new(3);
        group.write_many(writes);
        let victim = if group.leader() == Some(1) { 2 } else { 1 };
        group.corrupt(victim);
        assert_eq!(group.trust(victim), Trust::Wrong);
        group.write_many(3);
        group.tick_until(|group| group.trust(victim).serves());
        group.assert_equal();
        assert!(matches!(group.member(victim).findings[0], Finding::Wrong { .. }));
        let snapshot = group.member(victim).root.clone().unwrap();
        assert_eq!(group.member(victim).replica.node().snapshot(), Some(&snapshot));
        group.write_many(100);
        group.assert_equal();
    }
}

#[test]
fn a_wrong_leader_answers_nothing_and_hands_over() {
    let mut group = Group::new(3);
    group.write_many(5);
    let leader = group.leader().unwrap();
    group.replays_wait = true;
    group.away = group.members.keys().copied().filter(|id| id.0 != leader).collect();
    // Written and read while nobody answers, and answered when the others tell what they have.
    let now = group.now;
    group.member(leader).replica.flip();
    let ticket = group.write("flipped").unwrap();
    group.member(leader).replica.query(now, ReadId(1), ()).unwrap();
    group.away.clear();
    group.tick_until(|group| group.trust(leader) == Trust::Wrong);
    let member = group.member(leader);
    assert_eq!(member.replica.query(now, ReadId(2), ()), Err(Refused::Doubted));
    assert_eq!(member.replica.freeze(now, ReadId(3)), Err(Refused::Doubted));
    assert_eq!(member.replica.query_stale(()), Err(Refused::Doubted));
    let payload = Payload::Command(Bytes::from_static(b"no"));
    let refused = member.replica.propose(now, TicketId(99), payload, Instant(LATER));
    assert_eq!(refused, Err(Refused::Doubted));
    let done = |(id, outcome): &&(TicketId, Outcome<usize>)| {
        *id == ticket && !matches!(outcome, Outcome::Rejected)
    };
    assert_eq!(member.outcomes.iter().filter(done).count(), 1, "it ends once");
    group.tick_until(|group| group.leader().is_some_and(|id| id != leader));
    group.tick_until(|group| group.trust(leader).serves());
    group.assert_equal();
}

#[test]
fn a_ticket_that_is_applied_in_doubt_ends_unknown() {
    let mut group = Group::new(2);
    group.write_many(3);
    for _ in 0..60 {
        group.tick();
    }
    let (leader, now) = (group.leader().unwrap(), group.now);
    group.replays_wait = true;
    let member = group.member(leader);
    // It is appended before the doubt, and applied behind it.
    let payload = Payload::Command(Bytes::from_static(b"late"));
    member.replica.propose(now, TicketId(99), payload, Instant(LATER)).unwrap();
    let index = member.replica.applied().index;
    let report = Report { index, digest: 1, replayed: false, is_answer: true };
    member.replica.hear(NodeId(3 - leader), AuditMessage::Report(report));
    group.act();
    assert_eq!(group.trust(leader), Trust::Doubtful);
    assert!(group.member(leader).outcomes.contains(&(TicketId(99), Outcome::Unknown)));
}

#[test]
fn of_two_that_differ_the_one_that_its_log_contradicts_takes_what_that_says() {
    for writes in [3, 70] {
        let mut group = Group::new(2);
        group.write_many(writes);
        let leader = group.leader().unwrap();
        let follower = 3 - leader;
        group.replays_wait = true;
        group.corrupt(follower);
        assert_eq!(group.trust(leader), Trust::Doubtful);
        assert_eq!(group.write("refused"), Err(Refused::Doubted));
        group.replays_wait = false;
        group.tick_until(|group| group.trust(leader).serves() && group.trust(follower).serves());
        group.assert_equal();
        let changed = |finding: &Finding| matches!(finding, Finding::Replayed { before, after, .. } if before != after);
        assert!(group.member(follower).findings.iter().any(changed));
        assert!(!group.member(leader).findings.iter().any(changed));
        group.write("taken").unwrap();
        group.assert_equal();
    }
}

#[test]
fn a_state_in_doubt_gives_and_takes_no_snapshot() {
    let mut group = Group::new(2);
    group.write_many(3);
    let leader = group.leader().unwrap();
    group.replays_wait = true;
    group.corrupt(3 - leader);
    assert_eq!(group.trust(leader), Trust::Doubtful);
    let roots =
        |group: &Group| -> Vec<_> { group.members.values().map(|it| it.root.clone()).collect() };
    let before = roots(&group);
    let wanted = AuditMessage::SnapshotWanted { from: Index(0) };
    group.member(leader).replica.hear(NodeId(3 - leader), wanted);
    for _ in 0..200 {
        group.tick();
    }
    assert_eq!(roots(&group), before);
}

#[test]
fn a_snapshot_of_another_history_rebuilds_nothing() {
    let mut group = Group::new(3);
    group.write_many(5);
    let victim = if group.leader() == Some(1) { 2 } else { 1 };
    let helper = group.leader().unwrap();
    group.corrupt(victim);
    let applied = group.members[&NodeId(helper)].replica.applied();
    let root = SnapshotRoot {
        position: Position { term: Term(applied.term.0 + 1), index: applied.index },
        stamp: applied.time,
        manifest: Digest::default(),
        chunks: 0,
        bytes: 0,
        membership: group.members[&NodeId(helper)].replica.node().membership().clone(),
    };
    let offer = AuditMessage::SnapshotOffer(root);
    let member = group.member(victim);
    member.replica.hear(NodeId(helper), offer);
    assert!(member.replica.take_output().install.is_none());
}

#[test]
fn a_leader_of_a_quiet_group_checks_what_was_written_and_then_writes_nothing() {
    let mut group = Group::new(3);
    group.write_many(3);
    let last = |group: &Group| group.members[&NodeId(1)].replica.status().last.index;
    let written = last(&group);
    for _ in 0..300 {
        group.tick();
    }
    assert_eq!(last(&group), written.next(), "one entry to compare behind");
}
