//! The end of a run: the faults stop, and every group has to come to rest (R23), with logs that are
//! bounded (R22); all that its clients saw is judged.
//!
//! Safety alone is easily had by doing nothing. Within bounded virtual time there must be a leader
//! whom all follow and who stays, a new entry must get committed, all members must have applied the same and be
//! in the same state, and no request may be left open; every lock can be had (L6).

use std::collections::BTreeMap;

use raft::{Entry, NodeId, Replica, RoleKind};

use crate::{
    World,
    group::{Group, GroupId, Leaderships},
    invariants::{self, Violation},
    member::{ClockRate, Member},
    step::broken_disk,
};

/// Until the last fault is over: a stalled sync, or a message that is late or is sent again, may
/// still be under way when the nemesis stops.
const FAULTS_END_WITHIN_US: u64 = 6_000_000;
/// From the end of all faults to a leader: ten election timeouts of up to half a second.
const LEADER_WITHIN_US: u64 = 5_000_000;
/// From a leader to a group in which everybody who is lost has a successor that votes, if anybody
/// is: changes of the members, one after the other, and a newcomer that has to catch up.
const REPLACED_WITHIN_US: u64 = 60_000_000;
/// From a leader to a commit, when no older entries have to be committed first.
const COMMIT_WITHIN_US: u64 = 2_000_000;
/// From there until all are equal, when nobody is far behind.
const EQUAL_WITHIN_US: u64 = 5_000_000;
/// For each entry that a member lacks on top: settings may be so small that each takes a round trip
/// of its own, of 10 ms at most, and a sync, of 2 ms at most.
const ENTRY_WITHIN_US: u64 = 12_000;

/// Until all moves are over of shards that have a few records each.
const MOVES_WITHIN_US: u64 = 20_000_000;
/// Until everybody has seen that.
const MAPS_WITHIN_US: u64 = 2_000_000;

/// Until the last snapshot that was due when all came to rest is stored.
const COMPACT_WITHIN_US: u64 = 1_000_000;

impl World {
    /// Ends all faults, waits for every group to come to rest, and judges all that clients saw.
    ///
    /// # Errors
    /// A violation; `R23` if one does not come to rest.
    pub fn settle(&mut self) -> Result<(), Violation> {
        let rest = self.come_to_rest();
        invariants::wanted(self.only, rest)?;
        for group in self.groups() {
            let judged = self.groups.get_mut(group).history.judge(u64::MAX);
            judged.map_err(|violation| violation.of(group))?;
            let judged = self.groups.get_mut(group).kv_history.judge();
            judged.map_err(|violation| violation.of(group))?;
        }
        Ok(())
    }

    fn come_to_rest(&mut self) -> Result<(), Violation> {
        self.end_faults()?;
        self.run_for(FAULTS_END_WITHIN_US)?;
        let groups = self.groups();
        // What each group had seen when it was led and nobody was to be replaced any more.
        let mut before: BTreeMap<GroupId, Leaderships> = BTreeMap::new();
        let mut led = |world: &Self, group| {
            let led = world.followed_leader(group).is_some();
            if led && !world.is_bereft(group) {
                before.entry(group).or_insert(world.groups.get(group).leaderships);
            }
            led
        };
        self.all_must(LEADER_WITHIN_US, "no leader whom all follow", &mut led)?;
        let replaced = |world: &Self, group| led(world, group) && !world.is_bereft(group);
        self.all_must(REPLACED_WITHIN_US, "who is lost is not replaced", replaced)?;
        self.end_moves()?;
        for &group in &groups {
            let backlog_us = ENTRY_WITHIN_US * self.backlog(group);
            if !self.commit_within(group, COMMIT_WITHIN_US + backlog_us)? {
                return Err(self.restless(group, "nothing gets committed"));
            }
            let limit_us = EQUAL_WITHIN_US + backlog_us;
            if !self.run_until(limit_us, |world| world.is_at_rest(group))? {
                return Err(self.restless(group, "the members differ"));
            }
        }
        for &group in &groups {
            let (before, now) = (before[&group], self.groups.get(group).leaderships);
            // A change of the members that was under way may remove the leader in the end.
            let excused = now.leaders_removed - before.leaders_removed;
            if now.elections > before.elections + excused {
                return Err(self.restless(group, "a leader whom all followed was replaced"));
            }
            self.finish(group)?;
        }
        self.trace.line(self.agenda.now_us(), format_args!("all at rest"));
        for group in groups {
            self.audit(group)?;
            self.audit_locks(group)?;
        }
        Ok(())
    }

    /// What can only be said when all is over.
    fn finish(&mut self, group: GroupId) -> Result<(), Violation> {
        if !self.run_until(COMPACT_WITHIN_US, |world| world.is_compact(group))? {
            let what = self.standings(group, "the log is not compacted");
            return Err(Violation::new("R22", what));
        }
        let belonging: Vec<NodeId> = self.belonging(group).map(|member| member.id).collect();
        for id in belonging.into_iter().map(|id| group.member(id)) {
            let surplus = self.groups.member_mut(id).disk.tidy_up();
            let surplus = surplus.map_err(|why| broken_disk(id, &why))?;
            if surplus > 0 {
                let what = format!("the store of {id} has {surplus} bytes that nobody needs");
                return Err(Violation::new("R22", what));
            }
        }
        let Group { members, invariants, .. } = self.groups.get(group);
        invariants.finish(members)
    }

    /// Something has to be so of all groups within this time.
    fn all_must(
        &mut self,
        limit_us: u64,
        what: &str,
        mut holds: impl FnMut(&Self, GroupId) -> bool,
    ) -> Result<(), Violation> {
        let groups = self.groups();
        // Each is looked at, whatever another one is like.
        let hold = |world: &Self| groups.iter().filter(|&&group| !holds(world, group)).count() == 0;
        self.run_until(limit_us, hold)?;
        match groups.into_iter().find(|&group| !holds(self, group)) {
            Some(group) => Err(self.restless(group, what)),
            None => Ok(()),
        }
    }

    /// Waits until every shard is where it shall be, and nowhere else, and all know that.
    fn end_moves(&mut self) -> Result<(), Violation> {
        if !self.mix.is_sharded() {
            return Ok(());
        }
        self.run_until(MOVES_WITHIN_US, |world| world.moves_are_over().is_ok())?;
        invariants::wanted(self.only, self.moves_are_over())?;
        self.run_for(MAPS_WITHIN_US)
    }

    /// Whether every shard is where it shall be, by what is committed, and nowhere else.
    ///
    /// # Errors
    /// `H9` or `H10`, and what is not over yet.
    pub fn moves_are_over(&self) -> Result<(), Violation> {
        let Some(controller) = self.groups.get(GroupId::FIRST).ghost().controller() else {
            return Ok(());
        };
        let stores = self.groups.iter();
        let stores = stores.filter_map(|(id, group)| Some((id, group.ghost().store()?)));
        invariants::progress::check(controller, &stores.collect::<Vec<_>>())
    }

    fn end_faults(&mut self) -> Result<(), Violation> {
        self.trace.line(self.agenda.now_us(), format_args!("the faults stop"));
        self.mix = self.mix.calmed();
        self.clients_rest = true;
        self.agenda.forget_faults();
        self.network.repair();
        for group in self.groups() {
            self.groups.get_mut(group).stopped = false;
        }
        for id in self.groups.members() {
            let member = self.groups.member_mut(id);
            member.clock_rate = ClockRate::TRUE;
            member.disk.full = false;
            self.start(id)?;
            self.resume(id);
        }
        Ok(())
    }

    /// Those who belong to the group in the end: who was removed, never added, or is lost, need not
    /// come to rest.
    fn belonging(&self, group: GroupId) -> impl Iterator<Item = &Member> {
        let group = self.groups.get(group);
        let members = group.ghost().membership().members();
        let belongs =
            move |it: &&Member| members.contains_key(&it.id) && it.disk().lost().is_none();
        group.members.values().filter(belongs)
    }

    /// The leader, if all members follow it. Who votes no more may lead, but not for long.
    fn followed_leader(&self, group: GroupId) -> Option<NodeId> {
        let membership = self.groups.get(group).ghost().membership();
        let leader = self.leader_of(group).filter(|leader| membership.is_voter(*leader))?;
        let followed = self.belonging(group).all(|member| {
            let standing = member.standing();
            standing.leader == Some(leader)
                && (member.id == leader || standing.role == RoleKind::Follower)
        });
        followed.then_some(leader)
    }

    /// How many entries the member lacks that is furthest behind.
    fn backlog(&self, group: GroupId) -> u64 {
        let lasts = self.belonging(group).map(|member| member.standing().last.index.0);
        let applied = self.belonging(group).map(|member| member.standing().applied.0);
        lasts.max().unwrap_or(0).saturating_sub(applied.min().unwrap_or(0))
    }

    fn commit_within(&mut self, group: GroupId, limit_us: u64) -> Result<bool, Violation> {
        let until_us = self.now_us() + limit_us;
        while self.now_us() < until_us {
            let Some(leader) = self.leader_of(group) else {
                self.run_for(10_000)?;
                continue;
            };
            let command = self.propose_to(group.member(leader), 0);
            let committed = self.run_until(500_000, |world| {
                world.groups.get(group).ghost().index_of(command).is_some()
            })?;
            if committed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_at_rest(&self, group: GroupId) -> bool {
        let ghost = self.groups.get(group).ghost();
        let committed = ghost.committed();
        // A change that is under way has to come to its end, too.
        let settled = !ghost.membership().is_joint();
        settled
            && self.belonging(group).all(|member| {
                let standing = member.standing();
                member.is_up()
                    && standing.applied == committed
                    && standing.last.index == committed
                    && member.requests_open() == 0
            })
    }

    /// Whether every log is bounded: by what may be behind the last snapshot, which is at most half
    /// as much again as makes one due, since members stagger theirs, and by what is kept before it.
    /// After a snapshot that failed a log grows until the next one is due.
    fn is_compact(&self, group: GroupId) -> bool {
        self.belonging(group).filter(|member| !member.snapshot_failed).all(|member| {
            let Some(status) = member.replica().map(Replica::status) else { return false };
            let snapshot_bytes = status.snapshot.map_or(0, |root| root.bytes);
            let due = member.config.snapshot_log_bytes_min.max(snapshot_bytes);
            let sizes = || member.disk().image().entries().map(Entry::size);
            let largest = sizes().max().unwrap_or(0);
            let kept = member.config.retained_bytes.max(member.config.retained_bytes_max);
            sizes().sum::<u64>() <= due + due / 2 + kept.max(snapshot_bytes) + 2 * largest
        })
    }

    fn restless(&self, group: GroupId, why: &str) -> Violation {
        Violation::new("R23", self.standings(group, why))
    }

    fn standings(&self, group: GroupId, why: &str) -> String {
        let members = self.groups.members_of(group).into_iter();
        let standings: Vec<String> =
            members.map(|id| format!("{id} {:?}", self.groups.member(id).standing())).collect();
        format!("{why}:\n{}", standings.join("\n"))
    }
}
