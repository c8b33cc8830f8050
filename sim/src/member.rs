//! A member: its replica while it is up, its disk in any case, and what a host would keep for both.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::{
    AppendResult, Capture, ChangeRefused, Config, Entry, Index, Instant, Membership, Message,
    MessageKind, NodeId, Output, Payload, Position, ReadId, Refused, Replica, RoleKind,
    SnapshotRoot, StateMachine, Status, Term, TicketId, Write,
};
use rand::rngs::StdRng;

use crate::{
    Plant,
    agenda::{Input, Life},
    client::{Reply, Request, TICKET_US},
    disk::{Broken, Disk, Stored, Survival},
    fault::{Damage, Mix},
    group::{GroupId, MemberId},
    host::Chores,
    machine::{CommandId, Machine, manifest},
    steward::Steward,
};

/// How many inputs wait for a member that is paused; what comes on top is lost, as it is when a
/// socket's buffers are full.
const INBOX_MAX: usize = 2_000;

/// A member.
#[derive(Debug)]
pub struct Member {
    /// Its group.
    pub group: GroupId,
    /// Its name.
    pub id: NodeId,
    incarnation: u64,
    /// The settings that it should keep to.
    pub(crate) config: Config,
    replica: Option<Replica<Machine>>,
    pub(crate) disk: Disk,
    pub(crate) paused: bool,
    inbox: Vec<Input>,
    pub(crate) run_is_due: bool,
    tickets: BTreeMap<TicketId, Asked>,
    reads: BTreeMap<ReadId, Asked>,
    asked: u64,
    pub(crate) standing: Standing,
    pub(crate) clock_rate: ClockRate,
    /// What its clock said when it was read last, and when that was.
    clock_us: (u64, u64),
    pub(crate) plant: Plant,
    /// What it replicates, before anything is in it.
    blank: Machine,
    /// No snapshot was stored since one could not be.
    pub(crate) snapshot_failed: bool,
    pub(crate) chores: Chores,
    pub(crate) steward: Steward,
}

/// How the clock of a member goes: so many times faster than it should, or slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockRate {
    pub(crate) faster: u64,
    pub(crate) slower: u64,
}

impl ClockRate {
    pub(crate) const TRUE: Self = Self { faster: 1, slower: 1 };
}

/// How a member stood after its last step: what invariants compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it is.
    pub role: RoleKind,
    /// In which term.
    pub term: Term,
    /// Whom it voted for.
    pub vote: Option<NodeId>,
    /// Whom it follows.
    pub leader: Option<NodeId>,
    /// The first entry that its log holds.
    pub first: Index,
    /// The end of its log.
    pub last: Position,
    /// What it knows to be committed.
    pub commit: Index,
    /// What its machine has seen.
    pub applied: Index,
    /// The end of its last snapshot.
    pub snapshot: Index,
    /// Who belongs to the group, as it knows.
    pub membership: Arc<Membership>,
    /// Where that stands in its log.
    pub membership_index: Index,
}

/// A request that a member has taken on.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// By whom.
    pub client: u64,
    /// Which of that client's.
    pub number: u64,
    /// What anybody had seen committed when it was taken on.
    pub floor: Index,
}

impl Member {
    pub(crate) fn new(id: MemberId, plant: Plant, blank: Machine) -> Self {
        Self {
            group: id.group,
            id: id.node,
            incarnation: 0,
            config: Config::default(),
            replica: None,
            disk: Disk::default(),
            paused: false,
            inbox: Vec::new(),
            run_is_due: false,
            tickets: BTreeMap::new(),
            reads: BTreeMap::new(),
            asked: 0,
            standing: Standing::default(),
            clock_rate: ClockRate::TRUE,
            // Each member's clock began at another time.
            clock_us: (id.node.0 * 1_000_003, 0),
            plant,
            blank,
            snapshot_failed: false,
            chores: Chores::default(),
            steward: Steward::default(),
        }
    }

    pub(crate) fn life(&self) -> Life {
        Life { id: self.group.member(self.id), incarnation: self.incarnation }
    }

    /// Its replica, if it is up.
    pub fn replica(&self) -> Option<&Replica<Machine>> {
        self.replica.as_ref()
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The entries of its log from `from` on, while it is up: those in memory, and before them those
    /// on its disk.
    pub fn log(&self, from: Index) -> impl Iterator<Item = &Entry> {
        let node = self.replica().map(Replica::node);
        let held = node.and_then(|node| node.log(Index(0)).next()).map(|entry| entry.index);
        let on_disk = self.disk.image().entries_behind(from.previous());
        let older = on_disk.take_while(move |entry| held.is_some_and(|held| entry.index < held));
        older.chain(node.into_iter().flat_map(move |node| node.log(from)))
    }

    /// The entry of its log at `index`.
    pub fn entry(&self, index: Index) -> Option<&Entry> {
        self.log(index).next().filter(|entry| entry.index == index)
    }

    /// How it stood after its last step.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What a ticket was given for.
    pub fn ticket(&self, id: TicketId) -> Option<Asked> {
        self.tickets.get(&id).copied()
    }

    /// What a read was taken on for.
    pub fn read(&self, id: ReadId) -> Option<Asked> {
        self.reads.get(&id).copied()
    }

    /// The last read that it was asked.
    pub(crate) fn last_read(&self) -> ReadId {
        ReadId(self.asked)
    }

    /// How many requests it has taken on and not answered.
    pub fn requests_open(&self) -> usize {
        self.tickets.len() + self.reads.len()
    }

    /// Starts from what the disk holds. False: its store refuses.
    pub(crate) fn start(
        &mut self,
        config: Config,
        founders: Arc<Membership>,
        seed: u64,
        now_us: u64,
    ) -> Result<bool, Broken> {
        let opened = self.disk.open(config.log_window_bytes)?;
        let Some(mut recovered) = opened else { return Ok(false) };
        if self.plant == Plant::StartWithoutVote {
            recovered.hard_state.vote = None;
        }
        let skips = self.plant == Plant::SkipApply && self.id.0 == 2;
        let mut machine = self.blank.skipping(skips);
        if let Some(root) = &recovered.snapshot {
            let stored = self.disk.stored(root);
            let stored = stored.ok_or_else(|| "the chunks of the snapshot are gone".to_owned())?;
            let mut chunks = stored.chunks.iter().cloned();
            machine.restore(&mut chunks).map_err(|error| error.to_string())?;
        }
        let (id, now) = (self.id, self.clock(now_us));
        self.config = config;
        let limitless = self.plant == Plant::IgnoreLimits;
        let config = if limitless {
            let Config { inflight_messages_max, inflight_bytes_max, .. } = Config::default();
            let uncommitted_bytes_max = Config::default().uncommitted_bytes_max;
            Config { inflight_messages_max, inflight_bytes_max, uncommitted_bytes_max, ..config }
        } else {
            config
        };
        self.replica = Some(Replica::new(config, id, founders, recovered, machine, seed, now));
        self.standing = self.stand();
        Ok(true)
    }

    /// Dies. What of the writes on their way survived.
    pub(crate) fn crash(
        &mut self,
        rng: &mut StdRng,
        mix: &Mix,
        damage: Option<Damage>,
    ) -> Result<Survival, Broken> {
        self.replica = None;
        self.incarnation += 1;
        self.paused = false;
        self.inbox.clear();
        self.run_is_due = false;
        self.tickets.clear();
        self.reads.clear();
        self.chores = Chores::default();
        self.steward = Steward::default();
        let survival = self.disk.crash(rng, mix, damage)?;
        if self.plant == Plant::LoseVote {
            self.disk.lose_vote();
        }
        if self.plant == Plant::LoseEntries {
            self.disk.lose_entries(2);
        }
        Ok(survival)
    }

    /// Puts something into the inbox. Whether there was room and somebody to read it.
    pub(crate) fn give(&mut self, input: Input) -> bool {
        let tick_waits = || self.inbox.iter().any(|waiting| matches!(waiting, Input::Tick));
        let stands_still = self.plant == Plant::StoppedClocks;
        let superfluous = matches!(input, Input::Tick) && (stands_still || tick_waits());
        let droppable = matches!(input, Input::Message { .. } | Input::Ask { .. });
        let full = droppable && self.inbox.len() >= INBOX_MAX;
        let taken = self.is_up() && !superfluous && !full;
        if taken {
            self.inbox.push(input);
        }
        taken
    }

    /// Takes the oldest inputs out of the inbox. Whether there are more.
    pub(crate) fn take_inbox(&mut self, count_max: usize) -> (Vec<Input>, bool) {
        let rest = self.inbox.split_off(count_max.min(self.inbox.len()));
        let inputs = std::mem::replace(&mut self.inbox, rest);
        (inputs, !self.inbox.is_empty())
    }

    /// Hands an input to the replica. A request that it does not take on is answered at once.
    pub(crate) fn take_in(&mut self, now_us: u64, input: Input, floor: Index) -> Option<Reply> {
        let now = self.clock(now_us);
        let replica = self.replica.as_mut().expect("only a member that is up takes in anything");
        match input {
            Input::Message { from, message } => replica.step(now, from, message),
            Input::Tick => {
                replica.tick(now);
                forge(self.plant, self.id, replica, now);
            }
            Input::Written(id) => replica.written(id),
            Input::Captured(root) => replica.captured(root),
            Input::Fetched(root, Some(chunks)) => {
                let mut machine = replica.machine().empty();
                machine.restore(&mut chunks.into_iter()).expect("chunks that were stored decode");
                replica.installed(root, &mut machine);
            }
            Input::Fetched(_, None) => replica.install_failed(),
            Input::Read(reader, entries) => replica.fetched(reader, entries),
            // Refused when it leads no more, or hands over to another already.
            Input::Transfer(to) => drop(replica.transfer(to)),
            Input::Ask { client, number, request } => {
                let asked = Asked { client, number, floor };
                return self.ask(now, asked, request).err().map(|reply| *reply);
            }
        }
        None
    }

    fn ask(&mut self, now: Instant, asked: Asked, request: Request) -> Result<(), Box<Reply>> {
        let replica = self.replica.as_mut().expect("only a member that is up is asked");
        self.asked += 1;
        let leader = replica.node().leader();
        let refused = |_: Refused| Box::new(Reply::Refused { leader });
        match request {
            Request::Write { command } => {
                let ticket = TicketId(self.asked);
                let deadline = Instant(now.0 + TICKET_US);
                replica
                    .propose(now, ticket, Payload::Command(command), deadline)
                    .map_err(refused)?;
                self.tickets.insert(ticket, asked);
            }
            Request::Tick => {
                let ticket = TicketId(self.asked);
                let deadline = Instant(now.0 + TICKET_US);
                replica.propose(now, ticket, Payload::Tick, deadline).map_err(refused)?;
                self.tickets.insert(ticket, asked);
            }
            Request::Read { question }
                if self.plant == Plant::StaleReads && self.standing.role == RoleKind::Leader =>
            {
                return Err(Box::new(replica.query_stale(question).map_err(refused)?.into()));
            }
            Request::Change { changes } => {
                let ticket = TicketId(self.asked);
                let deadline = Instant(now.0 + TICKET_US);
                let changed = replica.change(now, ticket, &changes, deadline);
                changed.map_err(|_: ChangeRefused| Box::new(Reply::Refused { leader }))?;
                self.tickets.insert(ticket, asked);
            }
            Request::Read { question } => {
                let read = ReadId(self.asked);
                replica.query(now, read, question).map_err(refused)?;
                self.reads.insert(read, asked);
            }
        }
        Ok(())
    }

    pub(crate) fn take_output(&mut self) -> (Output<Machine>, Standing) {
        let replica = self.replica.as_mut().expect("only a member that is up has an output");
        let mut output = replica.take_output();
        if let Some(write) = &mut output.write {
            spoil(self.plant, self.standing.commit, replica, write);
        }
        if self.plant == Plant::RejectUnknown {
            let unknown = |outcome: &&mut raft::Outcome<_>| **outcome == raft::Outcome::Unknown;
            let outcomes = output.outcomes.iter_mut().map(|(_, outcome)| outcome);
            outcomes.filter(unknown).for_each(|outcome| *outcome = raft::Outcome::Rejected);
        }
        if self.plant == Plant::SwapAnswers
            && let [first, second, ..] = output.outcomes.as_mut_slice()
        {
            std::mem::swap(&mut first.1, &mut second.1);
        }
        let standing = self.stand();
        (output, std::mem::replace(&mut self.standing, standing))
    }

    /// A ticket or a read has come to an end.
    pub(crate) fn close_ticket(&mut self, id: TicketId) -> Option<Asked> {
        self.tickets.remove(&id)
    }

    pub(crate) fn close_read(&mut self, id: ReadId) -> Option<Asked> {
        self.reads.remove(&id)
    }

    /// Whether a planted bug answers a write before it is durable.
    pub(crate) fn answers_early(&self, write: &Write) -> bool {
        let only_hard_state = write.hard_state.is_some() && write.entries.is_empty();
        self.plant == Plant::AnswerBeforeDurable
            || (self.plant == Plant::SkipHardStateWait && only_hard_state)
    }

    /// What its clock says, which it does at its own rate.
    pub(crate) fn clock(&mut self, now_us: u64) -> Instant {
        let (said_us, at_us) = self.clock_us;
        let ClockRate { faster, slower } = self.clock_rate;
        // What does not make a whole microsecond counts the next time.
        let scaled = (now_us - at_us) * faster;
        self.clock_us = (said_us + scaled / slower, now_us - scaled % slower / faster);
        Instant(self.clock_us.0)
    }

    fn stand(&self) -> Standing {
        let replica = self.replica.as_ref().expect("only a member that is up stands");
        let Status { role, term, vote, leader, first, last, commit, snapshot, .. } =
            replica.status();
        let node = replica.node();
        Standing {
            membership: node.membership().clone(),
            membership_index: node.membership_index(),
            role,
            term,
            vote,
            leader,
            first,
            last,
            commit,
            applied: replica.applied().index,
            snapshot: snapshot.map_or(Index(0), |root| root.position.index),
        }
    }
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            role: RoleKind::Follower,
            term: Term(0),
            vote: None,
            leader: None,
            first: Index(1),
            last: Position::default(),
            commit: Index(0),
            applied: Index(0),
            snapshot: Index(0),
            membership: Arc::default(),
            membership_index: Index(0),
        }
    }
}

/// Planted bugs: messages that nobody sent.
fn forge(plant: Plant, id: NodeId, replica: &mut Replica<Machine>, now: Instant) {
    let Status { role, term, .. } = replica.status();
    let message = match (plant, role) {
        (Plant::ForgeAnswers, RoleKind::Leader) => {
            let result = AppendResult::Matched(Index(0));
            Message { term, kind: MessageKind::AppendReply { round: 0, result } }
        }
        (Plant::ForgePreVotes, RoleKind::Candidate) => {
            let kind = MessageKind::VoteReply { pre_vote: true, granted: true };
            Message { term: term.next(), kind }
        }
        _ => return,
    };
    for peer in (1..=3).map(NodeId).filter(|peer| *peer != id) {
        replica.step(now, peer, message.clone());
    }
}

/// Planted bugs: a write that is not what the core asked for.
fn spoil(plant: Plant, commit: Index, replica: &Replica<Machine>, write: &mut Write) {
    if plant == Plant::KeepReplacedLog
        && let Some(snapshot) = &mut write.snapshot
    {
        snapshot.reset = false;
    }
    if plant == Plant::WriteCommittedAgain
        && let Some(first) = write.entries.first().map(|entry| entry.index)
    {
        let again = replica.node().log(commit).take_while(|entry| entry.index < first);
        write.entries.splice(0..0, again.cloned().collect::<Vec<_>>());
    }
}

/// The snapshot that a frozen state makes.
pub(crate) fn encode(frozen: raft::Frozen<crate::machine::Frozen>, plant: Plant) -> Stored {
    let history = frozen.capture.history();
    let mut chunks: Vec<bytes::Bytes> = frozen.capture.chunks().collect();
    if plant == Plant::CutSnapshots {
        chunks.pop();
    }
    let root = SnapshotRoot {
        position: frozen.position,
        stamp: frozen.stamp,
        manifest: manifest(&chunks),
        chunks: chunks.len() as u64,
        bytes: chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        membership: frozen.membership,
    };
    Stored { root, chunks, history }
}

/// The name of the command that a request carries.
pub(crate) fn command_of(asked: &Asked) -> CommandId {
    CommandId { client: asked.client, number: asked.number }
}
