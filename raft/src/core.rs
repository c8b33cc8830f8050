//! What a member keeps in every role, and the few things that every role does with it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Config, DropReason, Entry, Envelope, Event, Fetch, GroupTime, HardState, Index, Install,
    Instant, Log, Membership, Message, MessageKind, NodeId, Payload, Position, ReadId, ReadOutcome,
    Recovered, Refused, SnapshotRoot, SnapshotWrite, Term, WriteId, clock::Clock,
    durability::Durability, membership::Memberships,
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
    /// The size of what is behind it, as far as it is in memory: what is not was found on the disk.
    uncommitted_bytes: u64,
    /// Everything up to here was handed to the state machine.
    handed: Index,
    /// The size of what lies between, of the entries from `counted` on.
    unapplied_bytes: u64,
    /// The first entry that was in memory when the member started, or came later.
    counted: Index,
    /// Entries for the state machine that were not in memory.
    fetched: Vec<Entry>,
    /// For whom entries are being read.
    pub(crate) fetching: BTreeSet<Option<NodeId>>,
    /// The last snapshot, taken or installed.
    pub(crate) snapshot: Option<SnapshotRoot>,
    /// A snapshot that the driver is fetching.
    pub(crate) installing: Option<SnapshotRoot>,
    pub(crate) clock: Clock,
    /// Before this member votes only for whom the leader itself asked to campaign: it has heard a
    /// leader, which may answer reads because of it, or has started and can't know whether it had. No
    /// change of role or term takes that back. By the clock, since ticks may come in haste after a
    /// pause.
    bound_until: Instant,
    rng: StdRng,
    /// The name of the last question for reads. The first is drawn: the leader may still answer those
    /// of an earlier life of this member, which must not be taken for answers to new ones.
    read_context: u64,
    /// Messages that wait for the hard state under which they speak.
    held: VecDeque<Envelope>,
    pub(crate) messages: Vec<Envelope>,
    pub(crate) reads: Vec<ReadOutcome>,
    pub(crate) fetches: Vec<Fetch>,
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
        let log = recovered.log;
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
        let mut rng = StdRng::seed_from_u64(seed);
        let mut memberships = Memberships::new(covered, founders);
        for (index, membership) in recovered.memberships {
            if index > covered {
                memberships.append(index, membership);
            }
        }
        let alone = memberships.current().is_only_voter(id);
        let free = recovered.hard_state == HardState::default()
            // Who led it before has left, or leads without leases.
            || alone && !memberships.current().lease_reads();
        let counted = log.held_first();
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
            unapplied_bytes: 0,
            counted,
            fetched: Vec::new(),
            fetching: BTreeSet::new(),
            snapshot: recovered.snapshot,
            installing: None,
            clock: Clock::new(now, config.tick_us),
            bound_until: if free { now } else { Instant(now.0 + config.bound_us()) },
            read_context: rng.random(),
            rng,
            held: VecDeque::new(),
            messages: Vec::new(),
            reads: Vec::new(),
            fetches: Vec::new(),
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

    /// A leader was heard: this member elects no other for a while (thesis, section 4.2.3).
    pub(crate) fn bind(&mut self) {
        self.bound_until = Instant(self.clock.now().0.saturating_add(self.config.bound_us()));
    }

    /// Whether it may elect nobody now, itself included.
    pub(crate) fn is_bound(&self) -> bool {
        self.clock.now() < self.bound_until
    }

    /// A fresh election timeout (section 5.2). A member that is alone need not wait for anybody.
    pub(crate) fn draw_timeout_ticks(&mut self) -> u32 {
        let least = self.config.election_ticks_min;
        let alone = self.membership().is_only_voter(self.id);
        if alone { 1 } else { self.rng.random_range(least..2 * least) }
    }

    /// A name for a question that none ever had.
    pub(crate) fn next_read_context(&mut self) -> u64 {
        self.read_context = self.read_context.wrapping_add(1);
        self.read_context
    }

    pub(crate) fn refuse_reads(&mut self, ids: impl IntoIterator<Item = ReadId>, why: Refused) {
        self.reads.extend(ids.into_iter().map(|id| ReadOutcome::Refused { id, why }));
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
        let behind = self.uncommitted_bytes + self.unapplied_bytes;
        let behind = behind.max(self.durability.waiting_bytes());
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
        self.counted = self.counted.min(from);
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

    /// The stamp at `index`, of an entry in memory or of the snapshot; of another entry the latest
    /// that is known not to be above it.
    pub(crate) fn stamp_at(&self, index: Index) -> GroupTime {
        let snapshot = self.snapshot.as_ref().filter(|root| root.position.index == index);
        let entry = self.log.get(index).map(|entry| entry.stamp);
        let known = entry.or(snapshot.map(|root| root.stamp));
        known.unwrap_or_else(|| self.log.stamp_not_after(index))
    }

    /// Everything up to `index` is committed; older news is ignored.
    pub(crate) fn commit_to(&mut self, index: Index) {
        if index > self.commit {
            assert!(
                index <= self.log.last().index,
                "commit {index} is behind the log's end {}",
                self.log.last()
            );
            let bytes: u64 = self.log.range(self.commit.next(), index).map(Entry::size).sum();
            self.uncommitted_bytes -= bytes;
            self.unapplied_bytes += bytes;
            self.commit = index;
            self.events.push(Event::Committed { index });
        }
    }

    /// The next entries for the state machine. Those that are not in memory are fetched first.
    pub(crate) fn take_committed(&mut self) -> Vec<Entry> {
        let next = self.handed.next();
        if next > self.commit {
            return Vec::new();
        }
        let entries = if next >= self.log.held_first() {
            self.log.slice_to(next, self.commit, self.config.apply_bytes_max)
        } else {
            std::mem::take(&mut self.fetched)
        };
        if let Some(last) = entries.last() {
            assert_eq!(entries[0].index, next, "entries are handed out in order");
            self.handed = last.index;
            let counted = entries.iter().filter(|entry| entry.index >= self.counted);
            let bytes = counted.map(Entry::size).sum();
            self.unapplied_bytes = self.unapplied_bytes.saturating_sub(bytes);
        }
        // The disk reads while the state machine works.
        let to = self.commit.min(self.log.held_first().previous());
        if self.handed < to {
            self.fetch(None, self.handed.next(), to, self.config.apply_bytes_max);
        }
        entries
    }

    /// Asks for entries that are not in memory, unless some are being read for the same reader.
    pub(crate) fn fetch(&mut self, reader: Option<NodeId>, from: Index, to: Index, bytes_max: u64) {
        if self.fetching.insert(reader) {
            self.fetches.push(Fetch { reader, from, to, bytes_max });
        }
    }

    /// Whether the state machine can be given more at once.
    pub(crate) fn has_committed(&self) -> bool {
        let next = self.handed.next();
        next <= self.commit && (next >= self.log.held_first() || !self.fetched.is_empty())
    }

    /// The disk has read entries for the state machine; not those that it needs next, if a snapshot
    /// has taken their place meanwhile.
    pub(crate) fn fetched(&mut self, entries: Vec<Entry>) {
        if entries.first().is_some_and(|first| first.index == self.handed.next()) {
            assert!(self.holds(&entries), "the disk holds another log than was written");
            self.fetched = entries;
        }
    }

    /// Whether these are entries of the log as it is now: their positions prove it (section 5.3).
    pub(crate) fn holds(&self, entries: &[Entry]) -> bool {
        entries.iter().all(|entry| self.log.term_at(entry.index) == Some(entry.term))
    }

    /// Lets go of entries that the disk holds and that are not likely to be needed.
    pub(crate) fn forget(&mut self) {
        let upto = self.commit.min(self.durability.index());
        self.log.forget(upto, self.config.log_window_bytes);
    }

    /// A snapshot of the state at or below what was handed out is durable. The log from `needed` on
    /// has to stay.
    pub(crate) fn compact(&mut self, root: SnapshotRoot, needed: Option<Index>) {
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
        let tail = self.log.first_of_tail(covered, self.config.retained_bytes);
        let first = needed.map_or(tail, |needed| needed.min(tail)).max(self.log.first());
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
        self.unapplied_bytes = 0;
        self.counted = self.counted.min(covered.index.next());
        self.fetched.clear();
        // The log on the disk may end with what was truncated here and is gathered anew: when nothing
        // follows the snapshot, the disk must not keep that either.
        let reset = self.log.last() == covered;
        let first = covered.index.next();
        self.durability.snapshot(SnapshotWrite { root: root.clone(), first, reset });
        self.events.push(Event::Installed { root, suffix_kept });
        true
    }

    /// The state machine is put back: what is behind `to` is handed out again.
    pub(crate) fn rewind(&mut self, to: Index) {
        assert!(to >= self.log.base().index, "the log begins at {} behind {to}", self.log.first());
        assert!(to <= self.handed, "{to} is not put back from {}", self.handed);
        self.handed = to;
        self.fetched.clear();
        self.counted = self.log.held_first();
        self.unapplied_bytes = self.log.range(to.next(), self.commit).map(Entry::size).sum();
    }

    /// A snapshot of what this log amounts to takes the place of a state that is wrong, and of the
    /// snapshot before it, which may be as wrong. The log stays. Whether it does: one of another
    /// history, or older than the one before, does not.
    pub(crate) fn rebuild(&mut self, root: SnapshotRoot) -> bool {
        self.installing = None;
        if !self.may_rebuild(&root) || root.position.index > self.handed {
            return false;
        }
        let covered = root.position.index;
        self.rewind(covered);
        self.memberships.compact(covered);
        self.snapshot = Some(root.clone());
        let first = self.log.first();
        self.durability.snapshot(SnapshotWrite { root: root.clone(), first, reset: false });
        self.events.push(Event::Installed { root, suffix_kept: true });
        true
    }

    /// Whether a snapshot is of this log, as far as that can be told.
    pub(crate) fn may_rebuild(&self, root: &SnapshotRoot) -> bool {
        let index = root.position.index;
        let last = self.snapshot.as_ref().map_or(Index(0), |last| last.position.index);
        let stamped = self.log.get(index).is_none_or(|entry| entry.stamp == root.stamp)
            && self.log.get(index.next()).is_none_or(|next| next.stamp >= root.stamp);
        index >= last
            && index <= self.commit
            && stamped
            && self.log.term_at(index) == Some(root.position.term)
            && self.memberships.at(index) == Some(&root.membership)
    }

    pub(crate) fn drop_message(&mut self, from: NodeId, reason: DropReason) {
        self.events.push(Event::Dropped { from, reason });
    }
}
