//! A replica: what becomes of proposals and reads, and when a snapshot is due.
//!
//! Every test drives one replica alone; what the other members would say is written out.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_raft::{
    AppendResult, Applied, BadSnapshot, Capture, Config, Digest, Entry, GroupTime, HardState,
    Index, Instant, Log, Membership, Message, MessageKind, NodeId, Outcome, Output, Payload,
    Position, ReadId, Recovered, Refused, Replica, RoleKind, SnapshotRoot, StateMachine, Term,
    TicketId,
};

/// Remembers the commands that it was given.
#[derive(Debug, Default)]
struct Journal {
    commands: Vec<Bytes>,
    /// Entries without a command.
    passed: u64,
    recovered: u64,
}

struct JournalCapture(Vec<Bytes>);

impl Capture for JournalCapture {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        self.0.into_iter()
    }
}

impl StateMachine for Journal {
    type Query = ();
    type Answer = Vec<Bytes>;
    type Response = usize;
    type Capture = JournalCapture;

    fn understands(&self, _: &Bytes) -> bool {
        true
    }

    fn apply(&mut self, _at: Applied, command: &Bytes) -> usize {
        self.commands.push(command.clone());
        self.commands.len()
    }

    fn pass(&mut self, _at: Applied) {
        self.passed += 1;
    }

    fn recover(&mut self) {
        self.recovered += 1;
    }

    fn query(&self, (): ()) -> Vec<Bytes> {
        self.commands.clone()
    }

    fn capture(&self) -> JournalCapture {
        JournalCapture(self.commands.clone())
    }

    fn empty(&self) -> Self {
        Self::default()
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        let commands: Vec<Bytes> = chunks.collect();
        if commands.iter().any(|command| command.is_empty()) {
            return Err(BadSnapshot("an empty command".to_owned()));
        }
        self.commands = commands;
        Ok(())
    }

    fn digest(&self) -> u128 {
        self.commands.len() as u128
    }
}

/// A replica, its clock, a disk that answers at once, and what came out of it.
struct Driver {
    replica: Replica<Journal>,
    now: Instant,
    outcomes: Vec<(TicketId, Outcome<usize>)>,
    answers: Vec<(ReadId, Result<Vec<Bytes>, Refused>)>,
    captures: Vec<Position>,
    states: Vec<(ReadId, Result<Position, Refused>)>,
    wanted: Vec<SnapshotRoot>,
    sent: Vec<MessageKind>,
}

const TICK: u64 = 10_000;

fn config() -> Config {
    Config { tick_us: TICK, heartbeat_ticks: 5, election_ticks_min: 10, ..Config::default() }
}

impl Driver {
    fn new(config: Config, id: u64, voters: impl IntoIterator<Item = u64>) -> Self {
        let founders = founders(voters);
        let recovered = Recovered::default();
        let machine = Journal::default();
        let replica =
            Replica::new(config, NodeId(id), founders, recovered, machine, id, Instant(0));
        Self {
            replica,
            now: Instant(0),
            outcomes: Vec::new(),
            answers: Vec::new(),
            captures: Vec::new(),
            states: Vec::new(),
            wanted: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// The only member of its group; it leads.
    fn alone(config: Config, id: u64) -> Self {
        let mut driver = Self::new(config, id, [id]);
        driver.tick();
        assert_eq!(driver.replica.status().role, RoleKind::Leader);
        driver
    }

    /// Member 1 of three; it leads term 1, and nobody has its first entry yet.
    fn leader_of_three() -> Self {
        let mut driver = Self::new(config(), 1, [1, 2, 3]);
        while driver.replica.status().role == RoleKind::Follower {
            driver.tick();
        }
        driver.hear(2, 1, MessageKind::VoteReply { pre_vote: true, granted: true });
        driver.hear(2, 1, MessageKind::VoteReply { pre_vote: false, granted: true });
        let status = driver.replica.status();
        assert_eq!((status.role, status.term), (RoleKind::Leader, Term(1)));
        driver
    }

    /// Hands over the machine of a snapshot. Whether it was taken.
    fn install<const N: usize>(
        &mut self,
        root: &SnapshotRoot,
        commands: [&'static str; N],
    ) -> bool {
        let mut machine = self.replica.machine().empty();
        machine.restore(&mut commands.into_iter().map(Bytes::from)).expect("it decodes");
        self.replica.installed(root.clone(), &mut machine)
    }

    fn tick(&mut self) {
        self.now.0 += TICK;
        self.replica.tick(self.now);
        self.act();
    }

    fn hear(&mut self, from: u64, term: u64, kind: MessageKind) {
        self.replica.step(self.now, NodeId(from), Message { term: Term(term), kind });
        self.act();
    }

    /// Does what the replica asks for until it asks for nothing that leads on.
    fn act(&mut self) {
        loop {
            let Output { messages, write, outcomes, answers, states, capture, install, .. } =
                self.replica.take_output();
            let states = states.into_iter();
            self.states.extend(states.map(|(id, state)| (id, state.map(|state| state.position))));
            self.sent.extend(messages.into_iter().map(|envelope| envelope.message.kind));
            self.outcomes.extend(outcomes);
            self.answers.extend(answers);
            self.captures.extend(capture.map(|frozen| frozen.position));
            self.wanted.extend(install.map(|install| install.root));
            match write {
                Some(write) => self.replica.written(write.id),
                None => return,
            }
        }
    }

    fn propose(&mut self, ticket: u64, command: &'static str, deadline: u64) {
        let payload = Payload::Command(Bytes::from_static(command.as_bytes()));
        self.try_propose(ticket, payload, deadline).expect("a leader takes a proposal");
    }

    fn try_propose(&mut self, ticket: u64, payload: Payload, ms: u64) -> Result<(), Refused> {
        let deadline = Instant(self.now.0 + 1_000 * ms);
        let result = self.replica.propose(self.now, TicketId(ticket), payload, deadline);
        self.act();
        result
    }

    fn ended(&mut self) -> Vec<(TicketId, Outcome<usize>)> {
        std::mem::take(&mut self.outcomes)
    }
}

fn at(index: u64, term: u64) -> Position {
    Position { term: Term(term), index: Index(index) }
}

fn entry(index: u64, term: u64, command: &'static str) -> Entry {
    Entry {
        index: Index(index),
        term: Term(term),
        stamp: GroupTime(1_000),
        payload: Payload::Command(Bytes::from_static(command.as_bytes())),
    }
}

fn append(previous: Position, commit: u64, entries: Vec<Entry>) -> MessageKind {
    MessageKind::AppendRequest { previous, commit: Index(commit), round: 1, entries }
}

fn founders(ids: impl IntoIterator<Item = u64>) -> Arc<Membership> {
    Arc::new(Membership::founders(ids.into_iter().map(|id| (NodeId(id), Bytes::new()))))
}

fn root(position: Position, bytes: u64, founders: Arc<Membership>) -> SnapshotRoot {
    let (stamp, manifest) = (GroupTime(1_000), Digest::default());
    SnapshotRoot { position, stamp, manifest, chunks: 1, bytes, membership: founders }
}

/// Long enough not to matter.
const LATER: u64 = 60_000;

#[test]
fn applied_proposal_ends_done_with_its_response() {
    let mut driver = Driver::alone(config(), 1);
    driver.propose(7, "a", LATER);
    driver.propose(8, "b", LATER);
    driver.try_propose(9, Payload::Tick, LATER).expect("a leader takes a tick");
    assert_eq!(
        driver.ended(),
        [
            (TicketId(7), Outcome::Done(Some(1))),
            (TicketId(8), Outcome::Done(Some(2))),
            (TicketId(9), Outcome::Done(None)),
        ]
    );
    // The first entry of the term and the tick carry no command.
    assert_eq!(driver.replica.machine().passed, 2);
}

#[test]
fn proposal_to_a_follower_is_refused_before_it_is_appended() {
    let mut driver = Driver::new(config(), 1, [1, 2, 3]);
    let refused = driver.try_propose(7, Payload::Noop, LATER);
    assert_eq!(refused, Err(Refused::NotLeader));
    assert_eq!(driver.replica.status().last, Position::default());
    driver.now.0 += 1_000 * LATER;
    driver.tick();
    assert_eq!(driver.ended(), [], "what was refused has no outcome");
}

#[test]
fn another_entry_applied_at_its_index_ends_it_rejected() {
    let mut driver = Driver::leader_of_three();
    driver.propose(7, "a", LATER);

    // It is replaced, but by nothing that is committed: it may come back.
    driver.hear(2, 2, append(at(1, 1), 1, vec![entry(2, 2, "x")]));
    assert_eq!(driver.ended(), []);

    driver.hear(2, 2, append(at(2, 2), 2, vec![]));
    assert_eq!(driver.ended(), [(TicketId(7), Outcome::Rejected)]);
    assert_eq!(driver.replica.machine().commands, ["x"]);
}

#[test]
fn truncated_entry_that_comes_back_ends_it_done() {
    let mut driver = Driver::leader_of_three();
    driver.propose(7, "a", LATER);
    let mine = driver.replica.node().log(Index(2)).next().cloned().expect("it was appended");

    driver.hear(2, 2, append(at(1, 1), 1, vec![entry(2, 2, "x")]));
    assert_eq!(driver.replica.status().last, at(2, 2), "it was truncated");
    assert_eq!(driver.ended(), [], "truncation leaves the ticket open");

    // Member 3 had it all the time, and was elected with it.
    driver.hear(3, 3, append(at(1, 1), 3, vec![mine, entry(3, 3, "y")]));
    assert_eq!(driver.ended(), [(TicketId(7), Outcome::Done(Some(1)))]);
    assert_eq!(driver.replica.machine().commands, ["a", "y"]);
}

#[test]
fn two_tickets_of_one_index_end_by_what_is_applied_there() {
    let mut driver = Driver::leader_of_three();
    driver.propose(7, "a", LATER);
    // Replaced, and then leader again, with another entry at the same index.
    driver.hear(2, 2, append(at(0, 0), 0, vec![entry(1, 2, "x")]));
    while driver.replica.status().role == RoleKind::Follower {
        driver.tick();
    }
    driver.hear(2, 3, MessageKind::VoteReply { pre_vote: true, granted: true });
    driver.hear(2, 3, MessageKind::VoteReply { pre_vote: false, granted: true });
    assert_eq!(driver.replica.status().last, at(2, 3), "the first entry of term 3 is at index 2");
    driver.propose(8, "b", LATER);
    driver.propose(9, "c", LATER);
    driver.hear(
        3,
        3,
        MessageKind::AppendReply { round: 1, result: AppendResult::Matched(Index(3)) },
    );
    assert_eq!(
        driver.ended(),
        [(TicketId(7), Outcome::Rejected), (TicketId(8), Outcome::Done(Some(2)))]
    );
}

#[test]
fn deadline_ends_it_unknown_once() {
    let mut driver = Driver::leader_of_three();
    driver.propose(7, "a", 50);
    driver.propose(8, "b", LATER);
    for _ in 0..4 {
        driver.tick();
    }
    assert_eq!(driver.ended(), [], "its time is not over");
    driver.tick();
    assert_eq!(driver.ended(), [(TicketId(7), Outcome::Unknown)]);

    // It is applied after all; that is no second outcome.
    let result = AppendResult::Matched(Index(3));
    driver.hear(2, 1, MessageKind::AppendReply { round: 1, result });
    assert_eq!(driver.replica.machine().commands, ["a", "b"]);
    assert_eq!(driver.ended(), [(TicketId(8), Outcome::Done(Some(2)))]);
}

#[test]
fn install_over_its_index_ends_it_unknown() {
    let mut driver = Driver::leader_of_three();
    driver.propose(7, "a", LATER);
    driver.propose(8, "b", LATER);
    driver.propose(9, "c", LATER);
    let offered = root(at(3, 2), 100, founders(1..=3));
    driver.hear(2, 2, MessageKind::SnapshotOffer(offered.clone()));
    assert_eq!(driver.wanted, std::slice::from_ref(&offered));

    assert!(driver.install(&offered, ["x", "y"]));
    driver.act();
    assert_eq!(
        driver.ended(),
        [(TicketId(7), Outcome::Unknown), (TicketId(8), Outcome::Unknown)],
        "what lies behind the snapshot is open"
    );
    assert_eq!(driver.replica.applied().index, Index(3));

    driver.hear(2, 2, append(at(3, 2), 4, vec![entry(4, 2, "z")]));
    assert_eq!(driver.ended(), [(TicketId(9), Outcome::Rejected)]);
    assert_eq!(driver.replica.machine().commands, ["x", "y", "z"]);
    driver.now.0 += 1_000 * LATER;
    driver.tick();
    assert_eq!(driver.ended(), [], "a ticket ends once");
}

#[test]
fn snapshot_that_was_offered_earlier_is_as_good() {
    let mut driver = Driver::new(config(), 1, [1, 2, 3]);
    let offered = root(at(9, 2), 100, founders(1..=3));
    driver.hear(2, 2, MessageKind::SnapshotOffer(offered.clone()));
    // The host goes on with what it began before a restart.
    let earlier = root(at(2, 1), 50, founders(1..=3));
    assert!(driver.install(&earlier, ["a", "b"]));
    driver.act();
    assert_eq!(driver.replica.applied().index, Index(2));
    driver.hear(2, 2, append(at(2, 1), 3, vec![entry(3, 2, "c")]));
    assert_eq!(driver.replica.machine().commands, ["a", "b", "c"]);
    // Unless the leader's log reaches back so far, it offers again.
    driver.hear(2, 2, MessageKind::SnapshotOffer(offered.clone()));
    assert_eq!(driver.wanted, [offered.clone(), offered]);
}

#[test]
fn overtaken_snapshot_does_not_take_the_place_of_the_state() {
    let mut driver = Driver::new(config(), 1, [1, 2, 3]);
    let offered = root(at(1, 1), 100, founders(1..=3));
    driver.hear(2, 1, MessageKind::SnapshotOffer(offered.clone()));
    driver.hear(2, 1, append(at(0, 0), 2, vec![entry(1, 1, "a"), entry(2, 1, "b")]));
    assert!(!driver.install(&offered, ["a"]));
    driver.act();
    assert_eq!(driver.replica.machine().commands, ["a", "b"]);
}

#[test]
fn query_is_answered_from_a_state_that_has_seen_what_was_acknowledged() {
    let mut driver = Driver::alone(config(), 1);
    driver.propose(7, "a", LATER);
    driver.replica.query(driver.now, ReadId(1), ()).expect("a leader takes a read");
    driver.act();
    assert_eq!(driver.answers, [(ReadId(1), Ok(vec![Bytes::from_static(b"a")]))]);
}

#[test]
fn query_is_refused_at_stepping_down() {
    let mut driver = Driver::leader_of_three();
    driver.replica.query(driver.now, ReadId(1), ()).expect("a leader takes a read");
    driver.act();
    assert_eq!(driver.answers, [], "nobody has confirmed it");
    driver.hear(2, 2, append(at(0, 0), 0, vec![]));
    assert_eq!(driver.answers, [(ReadId(1), Err(Refused::NotLeader))]);
}

#[test]
fn frozen_state_has_seen_what_was_acknowledged_and_is_no_snapshot() {
    let mut driver = Driver::alone(config(), 1);
    driver.propose(7, "a", LATER);
    driver.replica.freeze(driver.now, ReadId(1)).expect("a leader freezes its state");
    driver.act();
    assert_eq!(driver.states, [(ReadId(1), Ok(driver.replica.status().last))]);
    assert_eq!(driver.captures, [], "nothing is to be stored");
}

#[test]
fn frozen_state_is_refused_at_stepping_down() {
    let mut driver = Driver::leader_of_three();
    driver.replica.freeze(driver.now, ReadId(1)).expect("a leader freezes its state");
    driver.act();
    assert_eq!(driver.states, [], "nobody has confirmed that it leads");
    driver.hear(2, 2, append(at(0, 0), 0, vec![]));
    assert_eq!(driver.states, [(ReadId(1), Err(Refused::NotLeader))]);
    assert_eq!(driver.answers, []);
}

/// A follower is asked and asks its leader, which answers with an index.
fn ask_a_follower(driver: &mut Driver, read: u64, index: u64) {
    driver.replica.query(driver.now, ReadId(read), ()).expect("a follower takes a read");
    driver.act();
    let Some(&MessageKind::ReadRequest { context }) = driver.sent.last() else {
        panic!("it asks its leader: {:?}", driver.sent);
    };
    driver.hear(2, 1, MessageKind::ReadReply { context, index: Some(Index(index)) });
}

#[test]
fn query_at_a_follower_waits_until_that_is_applied_which_it_must_see() {
    let config = Config { reads_waiting_max: 1, ..config() };
    let mut driver = Driver::new(config, 1, [1, 2, 3]);
    driver.hear(2, 1, append(at(0, 0), 1, vec![entry(1, 1, "a")]));
    ask_a_follower(&mut driver, 1, 1);
    assert_eq!(driver.answers, [(ReadId(1), Ok(vec![Bytes::from_static(b"a")]))]);
    ask_a_follower(&mut driver, 2, 2);
    assert_eq!(driver.answers.len(), 1, "it has not seen 2");
    let full = Refused::Overloaded("reads_waiting_max");
    assert_eq!(driver.replica.query(driver.now, ReadId(3), ()), Err(full));
    driver.hear(2, 1, append(at(1, 1), 2, vec![entry(2, 1, "b")]));
    let seen = [b"a", b"b"].map(|command| Bytes::from_static(command));
    assert_eq!(driver.answers[1], (ReadId(2), Ok(seen.to_vec())));
}

/// Proposes a command of 68 bytes, which counts 100, and says whether a capture followed.
fn grow(driver: &mut Driver, ticket: u64) -> bool {
    let before = driver.captures.len();
    let command = Payload::Command(Bytes::from(vec![b'x'; 68]));
    driver.try_propose(ticket, command, LATER).expect("a leader takes a proposal");
    driver.captures.len() > before
}

/// How many such commands it takes until a capture is due.
fn grow_until_due(driver: &mut Driver) -> u64 {
    let ticket = driver.replica.applied().index.0;
    (1..=1_000).find(|more| grow(driver, ticket + more)).expect("a capture is due some time")
}

fn small(id: u64) -> Driver {
    Driver::alone(Config { snapshot_log_bytes_min: 1_600, retained_bytes: 0, ..config() }, id)
}

#[test]
fn capture_is_due_by_bytes() {
    // Member 8 waits for 1,600 bytes, of which the entry of its term is 32.
    let mut driver = small(8);
    assert_eq!(grow_until_due(&mut driver), 16);
    assert_eq!(driver.captures, [at(17, 1)]);

    // While it is stored, none other is due, however much is applied.
    assert!((100..150).all(|ticket| !grow(&mut driver, ticket)));

    // It is as large as 25 entries: so much log has to be applied before the next.
    driver.replica.captured(Some(root(at(17, 1), 2_500, founders([8]))));
    driver.act();
    assert_eq!(driver.replica.status().snapshot.map(|root| root.position), Some(at(17, 1)));
    assert_eq!(driver.replica.status().first, Index(18));
    assert_eq!(driver.captures, [at(17, 1), at(67, 1)], "what was applied meanwhile counts");
    driver.replica.captured(Some(root(at(67, 1), 2_500, founders([8]))));
    driver.act();
    assert_eq!(grow_until_due(&mut driver), 25);
}

#[test]
fn capture_that_could_not_be_stored_is_tried_again_later() {
    let mut driver = small(8);
    assert_eq!(grow_until_due(&mut driver), 16);
    driver.replica.captured(None);
    driver.act();
    assert_eq!(driver.replica.status().first, Index(1), "the log stays");
    assert_eq!(grow_until_due(&mut driver), 16);
}

#[test]
fn members_stagger_their_captures() {
    let due: Vec<u64> = (1..=3).map(|id| grow_until_due(&mut small(id))).collect();
    assert_eq!(due, [17, 18, 19]);
}

/// What the disk of member 3 holds after it was recovered: entries of the old group, the last of
/// them never committed there, and its own membership.
fn recovered_alone() -> (Arc<Membership>, Recovered) {
    let alone = Arc::new(founders(1..=3).recovered(NodeId(3)).expect("3 is a founder"));
    let membership = Payload::Membership(alone.clone());
    let last = Entry { payload: membership, ..entry(3, 7, "") };
    let hard_state = HardState { term: Term(7), vote: Some(NodeId(3)) };
    let mut recovered = Recovered { hard_state, ..Recovered::default() };
    for entry in [entry(1, 1, "a"), entry(2, 1, "b"), last] {
        recovered.push(entry, u64::MAX);
    }
    (alone, recovered)
}

#[test]
fn survivor_leads_alone_and_its_machine_learns_of_the_recovery() {
    let (alone, recovered) = recovered_alone();
    assert_eq!((alone.recoveries(), alone.last_id()), (1, NodeId(3)));
    assert_eq!(founders([1, 2]).recovered(NodeId(3)), None);
    let mut driver = Driver::new(config(), 3, [1, 2, 3]);
    let machine = Journal::default();
    driver.replica =
        Replica::new(config(), NodeId(3), founders(1..=3), recovered, machine, 3, Instant(0));
    driver.tick();
    let status = driver.replica.status();
    assert_eq!((status.role, status.term), (RoleKind::Leader, Term(8)));
    assert_eq!(status.membership, alone);
    assert_eq!(status.commit, Index(4), "all of its log, and its own first entry");
    let machine = driver.replica.machine();
    assert_eq!((machine.commands.len(), machine.recovered), (2, 1));
}

#[test]
fn recovery_within_a_snapshot_is_not_told_again() {
    let (alone, recovered) = recovered_alone();
    let root = root(at(3, 7), 100, alone);
    let log = Log::new(root.position);
    let snapshot = Some(root.clone());
    let hard_state = recovered.hard_state;
    let recovered = Recovered { hard_state, snapshot, log, memberships: Vec::new() };
    let machine = Journal::default();
    let mut driver = Driver::new(config(), 3, [1, 2, 3]);
    driver.replica =
        Replica::new(config(), NodeId(3), founders(1..=3), recovered, machine, 3, Instant(0));
    driver.tick();
    driver.propose(1, "c", 1_000);
    assert_eq!(driver.replica.machine().recovered, 0);
    assert_eq!(driver.replica.machine().commands.len(), 1);

    // Nor is one in a snapshot that a leader sends.
    let mut follower = Driver::new(config(), 4, [1, 2, 3]);
    assert!(follower.install(&root, ["a"]));
    follower.act();
    assert_eq!(follower.replica.machine().recovered, 0);
}
