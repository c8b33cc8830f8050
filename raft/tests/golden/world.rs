//! A small world of members under explicit control: nothing moves unless a script says so, except
//! that effects are taken after every command and a disk answers at once unless it is held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use flotilla_raft::{
    Change, Config, Effects, Entry, Envelope, Fetch, HardState, Index, Install, Instant,
    Membership, Message, Node, NodeId, Payload, ReadOutcome, RoleKind, SnapshotRoot, WriteId,
};

use super::{
    disk::Disk,
    notation::{self, Notation},
};

/// Election timeouts are drawn from this and up to twice as much. It is so long that no member
/// campaigns before a script says so, whatever was drawn.
const ELECTION_TICKS: u32 = 1_000;
/// More deliveries than any script needs: a world that goes on after them never settles.
const DELIVERIES_MAX: usize = 500;

pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) notation: Notation,
    pub(crate) now: Instant,
    pub(crate) founders: Arc<Membership>,
    pub(crate) members: BTreeMap<NodeId, Member>,
    /// Sent, neither delivered nor lost.
    network: Vec<(NodeId, NodeId, Message)>,
    cut: BTreeSet<(NodeId, NodeId)>,
    output: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Member {
    /// None while it is down.
    node: Option<Node>,
    pub(crate) disk: Disk,
    /// Its disk does not answer.
    pub(crate) held: bool,
    /// Its effects are not taken: what it is told meanwhile makes one batch.
    pub(crate) gathers: bool,
    install: Option<Install>,
    /// What it wants to read while its disk does not answer.
    fetches: Vec<Fetch>,
    /// What was applied, or is covered by a snapshot: where a snapshot can be taken.
    applied: BTreeMap<Index, SnapshotRoot>,
    /// How often it was started: each life draws other dice.
    lives: u64,
}

/// Which of the messages from one member to another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pick {
    All,
    /// The first is 1.
    Nth(usize),
    Last,
}

impl World {
    pub(crate) fn new() -> Self {
        let config = Config {
            tick_us: 10_000,
            heartbeat_ticks: ELECTION_TICKS / 2,
            election_ticks_min: ELECTION_TICKS,
            retained_bytes: 0,
            retained_bytes_max: 0,
            slow_disk_ticks: u32::MAX,
            ..Config::default()
        };
        Self {
            config,
            notation: Notation::default(),
            now: Instant(0),
            founders: Arc::default(),
            members: BTreeMap::new(),
            network: Vec::new(),
            cut: BTreeSet::new(),
            output: Vec::new(),
        }
    }

    pub(crate) fn take_output(&mut self) -> Vec<String> {
        std::mem::take(&mut self.output)
    }

    pub(crate) fn say(&mut self, line: String) {
        self.output.push(line);
    }

    pub(crate) fn start_group(&mut self, members: u64) {
        let founders = (1..=members).map(|id| (NodeId(id), Bytes::new()));
        self.founders = Arc::new(Membership::founders(founders));
        for id in (1..=members).map(NodeId) {
            self.join(id);
            // Who has been there before waits until it may vote.
            if self.member(id).disk.hard_state != HardState::default() {
                self.tick(id, self.config.election_ticks_min);
            }
        }
    }

    /// Starts one that has not been there before.
    pub(crate) fn join(&mut self, id: NodeId) {
        self.members.entry(id).or_default();
        self.start(id);
    }

    /// Changes the members of the group.
    pub(crate) fn change(&mut self, id: NodeId, changes: &[Change]) {
        let now = self.now;
        if let Err(refused) = self.node(id).change(now, changes) {
            self.say(format!("n{id} refuses: {refused}"));
        }
    }

    /// Starts a member from what its disk holds.
    pub(crate) fn start(&mut self, id: NodeId) {
        let (config, founders, now) = (self.config, self.founders.clone(), self.now);
        let member = self.member(id);
        // A disk may be prepared before there is a group.
        if let Some(root) = &mut member.disk.snapshot
            && root.membership.members().is_empty()
        {
            root.membership = founders.clone();
        }
        let recovered = member.disk.recovered(config.log_window_bytes);
        member.applied =
            recovered.snapshot.iter().map(|root| (root.position.index, root.clone())).collect();
        member.lives += 1;
        let seed = 1_000 * (member.lives - 1) + id.0;
        member.node = Some(Node::new(config, id, founders, recovered, seed, now));
    }

    /// Loses what is not durable.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let member = self.member(id);
        member.node = None;
        member.install = None;
        member.fetches.clear();
        member.disk.pending.clear();
    }

    pub(crate) fn member(&mut self, id: NodeId) -> &mut Member {
        self.members.get_mut(&id).unwrap_or_else(|| panic!("there is no n{id}"))
    }

    pub(crate) fn node(&mut self, id: NodeId) -> &mut Node {
        self.member(id).node.as_mut().unwrap_or_else(|| panic!("n{id} is down"))
    }

    pub(crate) fn tick(&mut self, id: NodeId, ticks: u32) {
        for _ in 0..ticks {
            self.now.0 += self.config.tick_us;
            let now = self.now;
            self.node(id).tick(now);
            self.flush(id);
        }
    }

    /// Ticks until the member stands for election.
    pub(crate) fn campaign(&mut self, id: NodeId) {
        let before = self.node(id).status();
        for _ in 0..2 * self.config.election_ticks_min {
            self.tick(id, 1);
            let status = self.node(id).status();
            if status.term > before.term || self.output_says_campaign(id) {
                return;
            }
        }
        panic!("n{id} never campaigns");
    }

    fn output_says_campaign(&mut self, id: NodeId) -> bool {
        let candidate = self.node(id).status().role == RoleKind::Candidate;
        candidate
            && self.output.iter().any(|line| line.starts_with(&format!("n{id} pre-campaigns")))
    }

    /// Does what a member asks for, until it asks for nothing more.
    pub(crate) fn flush(&mut self, id: NodeId) {
        loop {
            let member = self.member(id);
            let Some(node) = member.node.as_mut().filter(|_| !member.gathers) else { return };
            let effects = node.take_effects();
            if !self.act(id, effects) {
                return;
            }
        }
    }

    /// Whether there was something to do.
    fn act(&mut self, id: NodeId, effects: Effects) -> bool {
        // What it would tell of the membership, events tell too.
        let Effects {
            messages,
            write,
            fetches,
            committed,
            again,
            reads,
            install,
            membership: _,
            events,
        } = effects;
        let idle = !again
            && messages.is_empty()
            && write.is_none()
            && fetches.is_empty()
            && committed.is_empty()
            && reads.is_empty()
            && install.is_none()
            && events.is_empty();
        for event in &events {
            self.say(format!("n{id} {}", notation::event(event)));
        }
        self.apply(id, &committed);
        for read in reads {
            self.say(match read {
                ReadOutcome::Ready { id: read, index } => {
                    format!("n{id} answers read {read} at {index}")
                }
                ReadOutcome::Refused { id: read, why } => {
                    format!("n{id} refuses read {read}: {why}")
                }
            });
        }
        if let Some(install) = install {
            self.member(id).install = Some(install);
        }
        self.fetch(id, fetches);
        if let Some(write) = write {
            let held = self.member(id).held;
            let note = if held { " (held)" } else { "" };
            let text = self.notation.write(&write);
            self.say(format!("n{id} writes {text}{note}"));
            let write_id = write.id;
            self.member(id).disk.pending.push_back(write);
            if !held {
                self.send(id, messages);
                self.written(id, write_id);
                return true;
            }
        }
        self.send(id, messages);
        !idle
    }

    /// Reads what a member wants to have read, unless its disk does not answer.
    fn fetch(&mut self, id: NodeId, fetches: Vec<Fetch>) {
        let held = self.member(id).held;
        let note = if held { " (held)" } else { "" };
        for fetch in fetches {
            let Fetch { reader, from, to, .. } = fetch;
            let whom = reader.map_or_else(|| "itself".to_owned(), |reader| format!("n{reader}"));
            self.say(format!("n{id} reads {from}..{to} for {whom}{note}"));
            self.member(id).fetches.push(fetch);
        }
        if !held {
            self.fetched(id);
        }
    }

    /// The disk has read what a member wanted to have read.
    pub(crate) fn fetched(&mut self, id: NodeId) {
        for fetch in std::mem::take(&mut self.member(id).fetches) {
            let entries = self.member(id).disk.read(fetch);
            self.node(id).fetched(fetch.reader, entries);
        }
    }

    fn send(&mut self, from: NodeId, messages: Vec<Envelope>) {
        for envelope in messages {
            let text = self.notation.message(from, envelope.to, &envelope.message);
            if self.cut.contains(&(from, envelope.to)) {
                self.say(format!("{text} (lost)"));
            } else {
                self.say(text);
                self.network.push((from, envelope.to, envelope.message));
            }
        }
    }

    fn apply(&mut self, id: NodeId, committed: &[Entry]) {
        if committed.is_empty() {
            return;
        }
        let text = self.notation.entries(committed);
        self.say(format!("n{id} applies {text}"));
        let mut membership = self.founders.clone();
        let applied = &mut self.member(id).applied;
        for entry in committed {
            if let Some((&last, root)) = applied.last_key_value() {
                assert_eq!(entry.index, last.next(), "n{id} applies without a gap");
                assert!(entry.stamp >= root.stamp, "n{id}: group time never falls");
                membership = root.membership.clone();
            }
            if let Payload::Membership(changed) = &entry.payload {
                membership = changed.clone();
            }
            let root = notation::root(entry.position(), entry.stamp, membership.clone());
            applied.insert(entry.index, root);
        }
    }

    /// The disk answers for all writes up to one.
    pub(crate) fn written(&mut self, id: NodeId, write: WriteId) {
        self.member(id).disk.sync(write);
        self.node(id).written(write);
    }

    /// The pending writes of a member, by their ids.
    pub(crate) fn pending(&mut self, id: NodeId) -> Vec<WriteId> {
        self.member(id).disk.pending.iter().map(|write| write.id).collect()
    }

    pub(crate) fn compact(&mut self, id: NodeId, index: Index) {
        let root = self.member(id).applied.get(&index).cloned();
        let root = root.unwrap_or_else(|| panic!("n{id} has not applied {index}"));
        self.node(id).compact(root);
    }

    /// The driver has fetched the snapshot that the member wants.
    pub(crate) fn install(&mut self, id: NodeId) {
        let install = self.member(id).install.take();
        let root = install.unwrap_or_else(|| panic!("n{id} wants no snapshot")).root;
        if self.node(id).installed(root.clone()) {
            let applied = &mut self.member(id).applied;
            applied.clear();
            applied.insert(root.position.index, root);
        } else {
            self.say(format!("n{id} ignores {}", root.position));
        }
    }

    pub(crate) fn fail_install(&mut self, id: NodeId) {
        assert!(self.member(id).install.take().is_some(), "n{id} wants no snapshot");
        self.node(id).install_failed();
    }

    pub(crate) fn cut(&mut self, a: NodeId, b: NodeId) {
        self.cut.extend([(a, b), (b, a)]);
        self.network.retain(|&(from, to, _)| (from, to) != (a, b) && (from, to) != (b, a));
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(crate) fn others(&self, id: NodeId) -> Vec<NodeId> {
        self.members.keys().copied().filter(|&member| member != id).collect()
    }

    /// Takes messages out of the network.
    pub(crate) fn take(
        &mut self,
        from: NodeId,
        to: NodeId,
        pick: Pick,
    ) -> Vec<(NodeId, NodeId, Message)> {
        let on_way: Vec<usize> = (0..self.network.len())
            .filter(|&place| (self.network[place].0, self.network[place].1) == (from, to))
            .collect();
        let picked: Vec<usize> = match pick {
            Pick::All => on_way,
            Pick::Nth(nth) => on_way.get(nth - 1).copied().into_iter().collect(),
            Pick::Last => on_way.last().copied().into_iter().collect(),
        };
        assert!(!picked.is_empty(), "nothing is on its way from n{from} to n{to}");
        let mut taken: Vec<_> =
            picked.into_iter().rev().map(|place| self.network.remove(place)).collect();
        taken.reverse();
        taken
    }

    /// Puts a message at the end of what is on its way.
    pub(crate) fn put(&mut self, message: (NodeId, NodeId, Message)) {
        self.network.push(message);
    }

    pub(crate) fn deliver(&mut self, (from, to, message): (NodeId, NodeId, Message)) {
        let now = self.now;
        // A member may be down, or not there yet.
        if let Some(node) = self.members.get_mut(&to).and_then(|member| member.node.as_mut()) {
            node.step(now, from, message);
            self.flush(to);
        }
    }

    /// Delivers everything that is on its way, but nothing that is sent in answer.
    pub(crate) fn deliver_all(&mut self) {
        for message in std::mem::take(&mut self.network) {
            self.deliver(message);
        }
    }

    /// Delivers until nothing is on its way.
    pub(crate) fn settle(&mut self) {
        for _ in 0..DELIVERIES_MAX {
            if self.network.is_empty() {
                return;
            }
            let message = self.network.remove(0);
            self.deliver(message);
        }
        panic!("the group does not settle; the last it did: {:#?}", self.tail());
    }

    fn tail(&self) -> &[String] {
        &self.output[self.output.len().saturating_sub(12)..]
    }

    pub(crate) fn status(&mut self, id: NodeId) {
        let line = match &self.member(id).node {
            Some(node) => notation::status(id, &node.status()),
            None => format!("n{id} is down"),
        };
        self.say(line);
    }

    pub(crate) fn log(&mut self, id: NodeId) {
        let notation = self.notation;
        let node = self.node(id);
        let first = node.status().first;
        let line = format!("n{id} {}", notation.entries(node.log(first)));
        self.say(line);
    }

    /// All members.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }
}
