//! What a member keeps in every role, and the few things that every role does with it.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Config, DropReason, Entry, Envelope, Event, GroupTime, HardState, Index, Install, Instant,
    Membership, Message, MessageKind, NodeId, Payload, Position, ReadOutcome, Recovered, Refused,
    SnapshotRoot, SnapshotWrite, Term, WriteId, clock::Clock, durability::Durability, log::Log,
    membership::Memberships,
};

/// How many messages wait for the hard state. On a disk that does not answer the oldest go first:
/// a lost message costs a repetition.
const HELD_MAX: usize = 1_024;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) id: NodeId,
    pub(crate) memberships: Memberships,
    /// The driver has not been told who rules now.
    reconfigured: bool,
    pub(crate) hard: HardState,
    pub(crate) log: Log,
    pub(crate) durability: Durability,
    /// Everything up to here is committed.
    pub(crate) commit: Index,
    /// The size of what is behind it.
    pub(crate) uncommitted_bytes: u64,
    /// Everything up to here was handed to the state machine.
    handed: Index,
    /// The last snapshot, taken or installed.
    pub(crate) snapshot: Option<SnapshotRoot>,
    /// A snapshot that the driver is fetching.
    pub(crate) installing: Option<SnapshotRoot>,
    pub(crate) clock: Clock,
    rng: StdRng,
    /// Messages that wait for the hard state under which they speak.
    held: VecDeque<Envelope>,
    pub(crate) messages: Vec<Envelope>,
    pub(crate) reads: Vec<ReadOutcome>,
    pub(crate) install: Option<Install>,
    pub(crate) events: Vec<Event>,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        id: NodeId,
        founders: Arc<Membership>,
        recovered: Recovered,
        seed: u64,
        now: Instant,
    ) -> Self {
        let covered = recovered.snapshot.as_ref().map_or(Index(0), |root| root.position.index);
        let log = Log::new(recovered.base, recovered.entries);
        assert!(
            log.base().index <= covered,
            "the log begins at {} behind the snapshot {covered}",
            log.first()
        );
        assert!(
            log.last().index >= covered,
            "the log ends at {} before the snapshot {covered}",
            log.last()
        );
        let founders = recovered.snapshot.as_ref().map_or(founders, |root| root.membership.clone());
        let mut memberships = Memberships::new(covered, founders);
        for entry in log.range(covered.next(), log.last().index) {
            if let Payload::Membership(membership) = &entry.payload {
                memberships.append(entry.index, membership.clone());
            }
        }
        let uncommitted_bytes = log.range(covered.next(), log.last().index).map(Entry::size).sum();
        Self {
            config,
            id,
            memberships,
            reconfigured: true,
            hard: recovered.hard_state,
            durability: Durability::new(log.last().index),
            log,
            commit: covered,
            uncommitted_bytes,
            handed: covered,
            snapshot: recovered.snapshot,
            installing: None,
            clock: Clock::new(now, config.tick_us),
            rng: StdRng::seed_from_u64(seed),
            held: VecDeque::new(),
            messages: Vec::new(),
            reads: Vec::new(),
            install: None,
            events: Vec::new(),
        }
    }

    /// Who belongs to the group.
    pub(crate) fn membership(&self) -> &Arc<Membership> {
        self.memberships.current()
    }

    /// Whether it is this member's part to lead, if it can.
    pub(crate) fn may_campaign(&self) -> bool {
        self.memberships.may_need(self.id, self.commit)
    }

    /// Who belongs to the group, if that has changed since the last call.
    pub(crate) fn take_membership(&mut self) -> Option<Arc<Membership>> {
        std::mem::take(&mut self.reconfigured).then(|| self.membership().clone())
    }

    fn tell_membership(&mut self) {
        self.reconfigured = true;
        let (index, membership) = (self.memberships.index(), self.membership().clone());
        self.events.push(Event::Reconfigured { index, membership });
    }

    /// A fresh election timeout (section 5.2). A member that is alone need not wait for anybody.
    pub(crate) fn draw_timeout_ticks(&mut self) -> u32 {
        let least = self.config.election_ticks_min;
        let alone = self.membership().voters().all(|voter| voter == self.id);
        if alone { 1 } else { self.rng.random_range(least..2 * least) }
    }

    /// Enters `term`, in which it has not voted.
    pub(crate) fn enter(&mut self, term: Term, vote: Option<NodeId>) {
        assert!(term > self.hard.term, "terms only grow: {term} after {}", self.hard.term);
        self.held.clear();
        self.save(HardState { term, vote });
    }

    /// Votes in the current term.
    pub(crate) fn vote(&mut self, candidate: NodeId) {
        assert!(
            self.hard.vote.is_none_or(|vote| vote == candidate),
            "a member votes once in a term"
        );
        self.events.push(Event::Voted { term: self.hard.term, candidate });
        if self.hard.vote.is_none() {
            self.save(HardState { vote: Some(candidate), ..self.hard });
        }
    }

    fn save(&mut self, hard: HardState) {
        self.hard = hard;
        self.durability.save(hard);
    }

    /// Speaks under the current term. The message does not leave before term and vote are durable:
    /// a vote is sent by the disk's answer, and so is everything else of a new term.
    pub(crate) fn send(&mut self, to: NodeId, kind: MessageKind) {
        self.send_as(self.hard.term, to, kind);
    }

    /// Speaks under another term, as only a pre-vote and its reply do.
    pub(crate) fn send_as(&mut self, term: Term, to: NodeId, kind: MessageKind) {
        let envelope = Envelope { to, message: Message { term, kind } };
        if self.durability.hard_state_is_durable() {
            self.messages.push(envelope);
        } else {
            if self.held.len() == HELD_MAX {
                self.held.pop_front();
            }
            self.held.push_back(envelope);
        }
    }

    /// The disk has answered for all writes up to `id`.
    pub(crate) fn written(&mut self, id: WriteId) {
        self.durability.written(id);
        if self.durability.hard_state_is_durable() {
            self.messages.extend(self.held.drain(..));
        }
    }

    /// Whether another entry may be taken on.
    pub(crate) fn check_budget(&self) -> Result<(), Refused> {
        // The others commit without this member's disk, which may hang without an error.
        let behind = self.uncommitted_bytes.max(self.durability.waiting_bytes());
        if behind >= self.config.uncommitted_bytes_max {
            return Err(Refused::Overloaded("uncommitted_bytes_max"));
        }
        Ok(())
    }

    /// Appends an entry of the current term. Only a leader does so.
    pub(crate) fn propose(&mut self, payload: Payload) -> Position {
        let stamp = self.clock.group_time().max(self.last_stamp());
        let index = self.log.last().index.next();
        let entry = Entry { index, term: self.hard.term, stamp, payload };
        self.append(entry);
        self.log.last()
    }

    pub(crate) fn append(&mut self, entry: Entry) {
        self.uncommitted_bytes += entry.size();
        if let Payload::Membership(membership) = &entry.payload {
            self.memberships.append(entry.index, membership.clone());
            self.tell_membership();
        }
        self.durability.append(entry.clone());
        self.log.push(entry);
    }

    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(
            from > self.commit,
            "truncation at {from} would remove what is committed ({})",
            self.commit
        );
        self.uncommitted_bytes -=
            self.log.range(from, self.log.last().index).map(Entry::size).sum::<u64>();
        self.log.truncate(from);
        self.durability.truncate(from);
        self.events.push(Event::Truncated { from });
        if self.memberships.truncate(from) {
            self.tell_membership();
        }
    }

    /// The stamp of the last entry, or of the snapshot behind which the log is empty.
    pub(crate) fn last_stamp(&self) -> GroupTime {
        self.stamp_at(self.log.last().index)
    }

    /// The stamp at `index`, of an entry in the log or of the snapshot.
    pub(crate) fn stamp_at(&self, index: Index) -> GroupTime {
        let snapshot = self.snapshot.as_ref().filter(|root| root.position.index == index);
        let entry = self.log.get(index).map(|entry| entry.stamp);
        entry.or(snapshot.map(|root| root.stamp)).unwrap_or_default()
    }

    /// Everything up to `index` is committed; older news is ignored.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.commit {
            assert!(
                index <= self.log.last().index,
                "commit {index} is behind the log's end {}",
                self.log.last()
            );
            self.uncommitted_bytes -=
                self.log.range(self.commit.next(), index).map(Entry::size).sum::<u64>();
            self.commit = index;
            self.events.push(Event::Committed { index });
        }
    }

    /// The entries that the state machine has not been given yet.
    pub(crate) fn take_committed(&mut self) -> Vec<Entry> {
        let entries: Vec<Entry> =
            self.log.range(self.handed.next(), self.commit).cloned().collect();
        assert_eq!(
            entries.len() as u64,
            self.commit.0 - self.handed.0,
            "what is committed is in the log"
        );
        self.handed = self.commit;
        entries
    }

    /// A snapshot of the state at or below what was handed out is durable.
    pub(crate) fn compact(&mut self, root: SnapshotRoot) {
        let covered = root.position.index;
        assert!(
            covered <= self.handed,
            "a snapshot at {covered} of a state that has seen {}",
            self.handed
        );
        if self.snapshot.as_ref().is_some_and(|last| last.position.index >= covered) {
            return;
        }
        assert_eq!(
            self.log.term_at(covered),
            Some(root.position.term),
            "a snapshot of another history"
        );
        assert_eq!(
            self.memberships.at(covered),
            Some(&root.membership),
            "a snapshot of another group"
        );
        let first =
            self.log.first_of_tail(covered, self.config.retained_bytes).max(self.log.first());
        self.log.compact(first);
        self.memberships.compact(covered);
        self.snapshot = Some(root.clone());
        self.durability.snapshot(SnapshotWrite { root: root.clone(), first, reset: false });
        self.events.push(Event::Compacted { root, first });
    }

    /// The driver has fetched a snapshot and made its chunks durable. Whether it takes the place of
    /// the state (figure 13, steps 6 to 8); an older one is ignored.
    pub(crate) fn install(&mut self, root: SnapshotRoot) -> bool {
        self.installing = None;
        let covered = root.position;
        if covered.index <= self.commit {
            return false;
        }
        let suffix_kept = self.log.term_at(covered.index) == Some(covered.term);
        if suffix_kept {
            self.commit_to(covered.index);
            self.log.compact(covered.index.next());
            self.memberships.compact(covered.index);
        } else {
            // What stands behind the commit index conflicts with what the snapshot stands for.
            if self.log.last().index > self.commit {
                self.truncate(self.commit.next());
            }
            self.log.reset(covered);
            let news = self.membership() != &root.membership;
            self.memberships = Memberships::new(covered.index, root.membership.clone());
            if news {
                self.tell_membership();
            }
        }
        self.snapshot = Some(root.clone());
        self.commit = covered.index;
        self.handed = covered.index;
        // The log on the disk may end with what was truncated here and is gathered anew: when nothing
        // follows the snapshot, the disk must not keep that either.
        let reset = self.log.last() == covered;
        let first = covered.index.next();
        self.durability.snapshot(SnapshotWrite { root: root.clone(), first, reset });
        self.events.push(Event::Installed { root, suffix_kept });
        true
    }

    pub(crate) fn drop_message(&mut self, from: NodeId, reason: DropReason) {
        self.events.push(Event::Dropped { from, reason });
    }
}
