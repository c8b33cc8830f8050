//! A member together with its state machine: what a host drives and a simulator runs.
//!
//! Decides what becomes of proposals and reads, and when a snapshot is due. Still pure. What becomes
//! of a state that is not what it should be is in `audit.rs` and `mending.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::{
    Applied, Audited, Change, ChangeRefused, Config, Entry, Envelope, Event, Fetch, GroupTime,
    Index, Install, Instant, Membership, Message, Node, NodeId, Payload, Position, ReadId,
    ReadOutcome, Recovered, Refused, Replay, SnapshotRoot, State, StateMachine, Status, TicketId,
    Write, WriteId, audit::Audit,
};

/// A member and the state machine that it replicates.
///
/// Keeps: the machine has applied exactly the committed entries up to `applied`, in order. A ticket
/// that was taken ends exactly once.
#[derive(Debug)]
pub struct Replica<S: StateMachine> {
    pub(crate) id: NodeId,
    config: Config,
    pub(crate) node: Node,
    pub(crate) live: State<S>,
    /// How many recoveries the group had seen when it was founded.
    pub(crate) founded: u64,
    /// What is known of the state, beside what it is.
    pub(crate) audit: Audit,
    /// Ascending by the index that each was appended at. An index can be in dispute between tickets
    /// of several terms; what is applied there decides.
    tickets: VecDeque<Ticket>,
    /// Changes of the members that are certain, and wait for their end.
    changes: Vec<Ticket>,
    /// Who belongs to the group for certain, if that has not been told.
    committed_membership: Option<Arc<Membership>>,
    queries: BTreeMap<ReadId, Question<S::Query>>,
    /// Those that wait for the state to have seen an index.
    ready: BTreeSet<(Index, ReadId)>,
    /// Log applied since the last capture.
    pub(crate) bytes_since_capture: u64,
    pub(crate) capturing: bool,
    /// Since the capture that runs was taken, the state was found to be in doubt.
    pub(crate) capture_spoiled: bool,
    /// Another member needs a snapshot, however little the log has grown.
    pub(crate) capture_wanted: bool,
    pub(crate) outcomes: Vec<(TicketId, Outcome<S::Response>)>,
}

/// What reads came to.
pub type Ends<T> = Vec<(ReadId, Result<T, Refused>)>;

#[derive(Debug)]
struct Ticket {
    id: TicketId,
    /// Where it was appended.
    at: Position,
    deadline: Instant,
}

/// What is read.
#[derive(Debug)]
enum Question<Q> {
    Answer(Q),
    /// All of it.
    State,
}

/// How a proposal that was appended ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<R> {
    /// It was applied; none is the answer to an entry without a command.
    Done(Option<R>),
    /// Another entry was applied in its place: it never was and never will be executed.
    Rejected,
    /// It may have been executed, or may be yet.
    Unknown,
}

/// A state to be encoded and stored, away from the replica's thread.
#[derive(Debug)]
pub struct Frozen<C> {
    /// What the state has seen.
    pub position: Position,
    /// The stamp of the last entry that it has seen.
    pub stamp: GroupTime,
    /// Who belonged to the group at that entry.
    pub membership: Arc<Membership>,
    /// The state.
    pub capture: C,
}

/// What a driver has to do; see [`crate::Effects`].
#[derive(Debug)]
pub struct Output<S: StateMachine> {
    /// To be sent.
    pub messages: Vec<Envelope>,
    /// To be made durable.
    pub write: Option<Write>,
    /// To be read from the disk, and told to [`Replica::fetched`].
    pub fetches: Vec<Fetch>,
    /// There is more to apply at once: the driver comes again when it has taken in what else is there.
    pub again: bool,
    /// Proposals that have come to an end.
    pub outcomes: Vec<(TicketId, Outcome<S::Response>)>,
    /// Reads that have come to an end.
    pub answers: Ends<S::Answer>,
    /// States that were asked for and have come to an end.
    pub states: Ends<Frozen<S::Capture>>,
    /// A snapshot to be fetched.
    pub install: Option<Install>,
    /// Who belongs to the group now, if that has changed. It may be undone.
    pub membership: Option<Arc<Membership>>,
    /// Who belongs to the group for certain, if that has changed.
    pub committed_membership: Option<Arc<Membership>>,
    /// A snapshot to be stored; [`Replica::captured`] tells that it is.
    pub capture: Option<Frozen<S::Capture>>,
    /// What happened.
    pub events: Vec<Event>,
    /// What the check of the state has to say.
    pub audited: Audited,
    /// A state to be made once more; [`Replica::replayed`] tells what came of it. An earlier one that
    /// is not finished is not needed any more.
    pub replay: Option<Replay<S>>,
}

impl<S: StateMachine> Replica<S> {
    /// A replica that starts from what its disk holds; `machine` has been restored from the
    /// snapshot, if there is one. See [`Node::new`].
    pub fn new(
        config: Config,
        id: NodeId,
        founders: Arc<Membership>,
        recovered: Recovered,
        machine: S,
        seed: u64,
        now: Instant,
    ) -> Self {
        let root = recovered.snapshot.as_ref();
        let live = State::new(machine, root, founders.recoveries());
        let audit = Audit::new(&config, id, recovered.log.last().index);
        let committed = recovered.snapshot.as_ref().map_or(&founders, |root| &root.membership);
        let committed = committed.clone();
        Self {
            id,
            config,
            founded: founders.recoveries(),
            node: Node::new(config, id, founders, recovered, seed, now),
            live,
            audit,
            tickets: VecDeque::new(),
            changes: Vec::new(),
            committed_membership: Some(committed),
            queries: BTreeMap::new(),
            ready: BTreeSet::new(),
            bytes_since_capture: 0,
            capturing: false,
            capture_spoiled: false,
            capture_wanted: false,
            outcomes: Vec::new(),
        }
    }

    /// Takes a message from another member.
    pub fn step(&mut self, now: Instant, from: NodeId, message: Message) {
        self.node.step(now, from, message);
    }

    /// A tick has passed; missed ones count as one.
    pub fn tick(&mut self, now: Instant) {
        self.node.tick(now);
        let outcomes = &mut self.outcomes;
        let mut waits = |ticket: &Ticket| {
            let waits = ticket.deadline > now;
            if !waits {
                outcomes.push((ticket.id, Outcome::Unknown));
            }
            waits
        };
        self.tickets.retain(&mut waits);
        self.changes.retain(&mut waits);
        self.tick_audit(now);
    }

    /// Appends a command, or an entry that only tells the time. What becomes of it comes with a
    /// later [`Output`] under `ticket`, at the deadline at the latest.
    ///
    /// # Errors
    /// [`Refused`]: nothing was appended, and nothing will be executed.
    pub fn propose(
        &mut self,
        now: Instant,
        ticket: TicketId,
        payload: Payload,
        deadline: Instant,
    ) -> Result<(), Refused> {
        self.check_trust()?;
        let at = self.node.propose(now, payload)?;
        self.expect(at, ticket, deadline);
        Ok(())
    }

    /// Changes the members of the group, as [`Node::change`]. [`Outcome::Done`] says that the change
    /// is over.
    ///
    /// # Errors
    /// [`ChangeRefused`]: nothing was changed, and nothing will be.
    pub fn change(
        &mut self,
        now: Instant,
        ticket: TicketId,
        changes: &[Change],
        deadline: Instant,
    ) -> Result<(), ChangeRefused> {
        let at = self.node.change(now, changes)?;
        self.expect(at, ticket, deadline);
        Ok(())
    }

    fn expect(&mut self, at: Position, id: TicketId, deadline: Instant) {
        // The end, but for a leader that led before and has lost what it appended then.
        let place = self.tickets.partition_point(|ticket| ticket.at.index <= at.index);
        self.tickets.insert(place, Ticket { id, at, deadline });
    }

    /// Asks a linearizable question, as [`Node::read`]. The answer comes with a later [`Output`].
    ///
    /// # Errors
    /// [`Refused`]: there will be no answer.
    pub fn query(&mut self, now: Instant, id: ReadId, query: S::Query) -> Result<(), Refused> {
        self.ask(now, id, Question::Answer(query))
    }

    /// Freezes a state that has seen everything acknowledged before this call, for whoever wants all
    /// of it. It comes with a later [`Output`].
    ///
    /// # Errors
    /// [`Refused`]: there will be none.
    pub fn freeze(&mut self, now: Instant, id: ReadId) -> Result<(), Refused> {
        self.ask(now, id, Question::State)
    }

    fn ask(
        &mut self,
        now: Instant,
        id: ReadId,
        question: Question<S::Query>,
    ) -> Result<(), Refused> {
        self.check_trust()?;
        if self.ready.len() >= self.config.reads_waiting_max {
            return Err(Refused::Overloaded("reads_waiting_max"));
        }
        self.node.read(now, id)?;
        self.queries.insert(id, question);
        Ok(())
    }

    /// Hands the leadership over, as [`Node::transfer`].
    ///
    /// # Errors
    /// [`ChangeRefused`]: nothing was begun.
    pub fn transfer(&mut self, to: NodeId) -> Result<(), ChangeRefused> {
        self.node.transfer(to)
    }

    /// Answers from the state as it is here and now, however old, but not from one in doubt.
    ///
    /// # Errors
    /// [`Refused`]: there is no answer.
    pub fn query_stale(&self, query: S::Query) -> Result<S::Answer, Refused> {
        self.check_trust()?;
        Ok(self.live.machine.query(query))
    }

    /// The disk has made all writes up to `id` durable.
    pub fn written(&mut self, id: WriteId) {
        self.node.written(id);
    }

    /// The disk has read what [`Output::fetches`] asked for, as [`Node::fetched`].
    pub fn fetched(&mut self, reader: Option<NodeId>, entries: Vec<Entry>) {
        self.node.fetched(reader, entries);
    }

    /// Whether a snapshot of its state is on its way to the disk: between [`Output::capture`] and
    /// [`Replica::captured`].
    pub fn is_capturing(&self) -> bool {
        self.capturing
    }

    /// The snapshot of [`Output::capture`] is durable, or none if it could not be stored.
    pub fn captured(&mut self, root: Option<SnapshotRoot>) {
        self.capturing = false;
        // What was found to be in doubt meanwhile is no snapshot to build on.
        let spoiled = std::mem::take(&mut self.capture_spoiled);
        if let Some(root) = root.filter(|_| !spoiled) {
            self.node.compact(root);
        }
    }

    /// The snapshot of [`Output::install`], or one that a leader offered before, is durable here, and
    /// `machine` was restored from its chunks. Whether the two machines changed places; one that has
    /// been overtaken meanwhile changes nothing, unless the state here is wrong.
    pub fn installed(&mut self, root: SnapshotRoot, machine: &mut S) -> bool {
        let covered = root.position.index;
        if covered <= self.node.commit() {
            return self.rebuilt(root, machine);
        }
        std::mem::swap(&mut self.live.machine, machine);
        self.live.applied = Applied::from(&root);
        self.live.recoveries = root.membership.recoveries();
        self.audit.forget_own();
        self.capture_spoiled |= self.capturing;
        self.committed_membership = Some(root.membership.clone());
        self.bytes_since_capture = 0;
        let taken = self.node.installed(root);
        assert!(taken, "a snapshot beyond the commit index is taken");
        let behind = self.tickets.partition_point(|ticket| ticket.at.index <= covered);
        for ticket in self.tickets.drain(..behind).chain(self.changes.drain(..)) {
            self.outcomes.push((ticket.id, Outcome::Unknown));
        }
        true
    }

    /// The snapshot of [`Output::install`] can't be had.
    pub fn install_failed(&mut self) {
        self.node.install_failed();
    }

    /// Everything for the driver to do since the last call.
    pub fn take_output(&mut self) -> Output<S> {
        let effects = self.node.take_effects();
        for entry in effects.committed {
            self.apply(&entry);
        }
        let replay = self.conclude();
        let (answers, states) = self.answer(effects.reads);
        Output {
            messages: effects.messages,
            write: effects.write,
            fetches: effects.fetches,
            again: effects.again,
            outcomes: std::mem::take(&mut self.outcomes),
            answers,
            states,
            install: effects.install,
            membership: effects.membership,
            committed_membership: self.committed_membership.take(),
            capture: self.maybe_capture(),
            events: effects.events,
            audited: self.audit.take(),
            replay,
        }
    }

    /// How the member stands.
    pub fn status(&self) -> Status {
        self.node.status()
    }

    /// The core, for checkers.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The state machine.
    pub fn machine(&self) -> &S {
        &self.live.machine
    }

    /// The last entry that the state has seen.
    pub fn applied(&self) -> Applied {
        self.live.applied
    }

    fn apply(&mut self, entry: &Entry) {
        self.bytes_since_capture += entry.size();
        let mut response = self.live.apply(entry);
        match &entry.payload {
            Payload::Command(_) => {}
            Payload::Noop | Payload::Tick => self.sample(),
            Payload::Membership(membership) => {
                self.committed_membership = Some(membership.clone());
                self.pass_change(entry.position(), membership.is_joint());
            }
        }
        while let Some(ticket) = self.tickets.pop_front_if(|it| it.at.index == entry.index) {
            // A leader appends one entry at an index in its term, so the term tells whose it is.
            let outcome = if ticket.at.term == entry.term {
                self.believed(Outcome::Done(response.take()))
            } else {
                Outcome::Rejected
            };
            self.outcomes.push((ticket.id, outcome));
        }
    }

    /// A joint membership is the beginning of a change, whose ticket waits for the end.
    fn pass_change(&mut self, at: Position, begins: bool) {
        if begins {
            let own = self.tickets.iter().position(|ticket| ticket.at == at);
            self.changes.extend(own.and_then(|place| self.tickets.remove(place)));
            return;
        }
        for ticket in self.changes.drain(..) {
            self.outcomes.push((ticket.id, Outcome::Done(None)));
        }
    }

    /// Ends the reads that can be: a follower may be told of an index that it has yet to reach.
    fn answer(
        &mut self,
        outcomes: Vec<ReadOutcome>,
    ) -> (Ends<S::Answer>, Ends<Frozen<S::Capture>>) {
        let (mut answers, mut states) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            match outcome {
                ReadOutcome::Ready { id, index } => drop(self.ready.insert((index, id))),
                ReadOutcome::Refused { id, why } => match self.queries.remove(&id) {
                    Some(Question::State) => states.push((id, Err(why))),
                    Some(Question::Answer(_)) | None => answers.push((id, Err(why))),
                },
            }
        }
        while let Some(&(index, id)) = self.ready.first()
            && index <= self.live.applied.index
        {
            self.ready.pop_first();
            let trusted = self.check_trust();
            match self.queries.remove(&id).expect("every read has its question") {
                Question::Answer(query) => {
                    answers.push((id, trusted.map(|()| self.live.machine.query(query))));
                }
                Question::State => states.push((id, trusted.map(|()| self.frozen()))),
            }
        }
        (answers, states)
    }

    /// A snapshot is due when more log was applied since the last one than that one is large, so
    /// that writing snapshots never costs more than writing the log. Members stagger theirs.
    fn maybe_capture(&mut self) -> Option<Frozen<S::Capture>> {
        let last = self.node.snapshot().map_or(0, |root| root.bytes);
        let due = last.max(self.config.snapshot_log_bytes_min);
        let staggered = due + due / 16 * (self.id.0 % 8);
        let due = self.bytes_since_capture >= staggered || self.capture_wanted;
        if self.capturing || !due || !self.trust().serves() {
            return None;
        }
        (self.capturing, self.capture_wanted) = (true, false);
        self.bytes_since_capture = 0;
        Some(self.frozen())
    }

    fn frozen(&self) -> Frozen<S::Capture> {
        let applied = self.live.applied;
        let position = Position { term: applied.term, index: applied.index };
        let membership = self.node.membership_at(position.index);
        let membership = membership.expect("the one before the last snapshot is known").clone();
        let (stamp, capture) = (applied.time, self.live.machine.capture());
        Frozen { position, stamp, membership, capture }
    }
}
