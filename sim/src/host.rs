//! What a host of kvd's machine does besides, as the daemon's does: the leader proposes the end of
//! leases that are over (`kvd/src/expiry.rs`), by the same estimate and with the same commands, and an
//! entry that only tells the time before it answers who asks for that (`raftd/src/forward.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kvd::{
    due::{self, EXPIRE_LIMIT, Estimate, LOOK_INTERVAL},
    outcome::{Answer, DueLease, Query},
};
use raft::{RoleKind, StateMachine};

use crate::{
    World,
    agenda::Input,
    client::{HOST, Reply, Request},
    group::MemberId,
    machine::{CommandId, Question},
    member::Member,
};

/// How old the time is at most that is told.
const TIME_AGE_MAX: Duration = Duration::from_secs(8);

/// What a host keeps for that. All times are by its own clock.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    lookout: Lookout,
    /// When the time was told last.
    told_at: Option<Duration>,
    /// Who waits for the time to be told, by the number of the proposal.
    untold: BTreeMap<u64, (u64, u64, Request)>,
}

/// What a leader knows of its leases.
#[derive(Debug, Default)]
struct Lookout {
    /// None while it does not lead, or there are none.
    estimate: Option<Estimate>,
    looked_at: Duration,
    /// The proposals of which it has not been told the end.
    open: BTreeSet<u64>,
}

impl Lookout {
    fn is_due(&self, now: Duration) -> bool {
        let pause = if self.open.is_empty() { LOOK_INTERVAL } else { EXPIRE_LIMIT };
        self.estimate.is_none() || now >= self.looked_at + pause
    }
}

/// The leases that are over, as far as a leader can tell; none: it is not to look.
fn look(member: &mut Member, now_us: u64) -> Option<Vec<DueLease>> {
    let kv = member.replica().and_then(|replica| replica.machine().application().kv());
    let some = kv.is_some_and(|kv| kv.leases() > 0);
    if member.paused || member.standing().role != RoleKind::Leader || !some {
        member.chores.lookout.estimate = None;
        return None;
    }
    let now = Duration::from_micros(member.clock(now_us).0);
    if !member.chores.lookout.is_due(now) {
        return None;
    }
    let replica = member.replica()?;
    let applied = replica.applied();
    let first = || Estimate::new(applied.index, applied.time, now);
    let mut estimate = member.chores.lookout.estimate.unwrap_or_else(first);
    estimate.hear(applied.index, applied.time, now);
    let question = due::question(estimate.group_time(now));
    let told = replica.machine().application().kv()?.query(question);
    let estimate = Some(estimate);
    member.chores.lookout = Lookout { estimate, looked_at: now, open: BTreeSet::new() };
    match told {
        Answer::DueLeases(leases) => Some(leases.due),
        _ => None,
    }
}

impl World {
    /// A member's clock has ticked: if it leads, it may look whether leases are over.
    pub(crate) fn look_at_leases(&mut self, id: MemberId) {
        let now_us = self.agenda.now_us();
        let Some(settings) = self.groups.get(id.group).service.kv() else { return };
        let over = look(self.groups.member_mut(id), now_us);
        for lease in over.into_iter().flatten() {
            let number = self.groups.get_mut(id.group).next_operation();
            let name = CommandId { client: HOST, number };
            let command = name.name(&due::expire(settings.shards, &lease));
            self.groups.member_mut(id).chores.lookout.open.insert(number);
            let request = Request::Write { command };
            self.give(id, Input::Ask { client: HOST, number, request });
            self.tally.expires += 1;
        }
    }

    /// A member is asked. If it leads and has not told the time for long, it does so first where that
    /// is what is wanted.
    pub(crate) fn put_request(&mut self, to: MemberId, client: u64, number: u64, request: Request) {
        let now_us = self.agenda.now_us();
        let wants_time = match &request {
            Request::Read { question: Question::Kv(Query::Time(_)) } => true,
            Request::Read { .. }
            | Request::Write { .. }
            | Request::Change { .. }
            | Request::Tick => false,
        };
        let leads = wants_time && self.groups.leads(to);
        if !leads || !is_stale(self.groups.member_mut(to), now_us) {
            self.give(to, Input::Ask { client, number, request });
            return;
        }
        let tick = self.groups.get_mut(to.group).next_operation();
        let waiting = (client, number, request);
        self.groups.member_mut(to).chores.untold.insert(tick, waiting);
        self.give(to, Input::Ask { client: HOST, number: tick, request: Request::Tick });
    }

    /// Something has come to an end that a host proposed.
    pub(crate) fn hear_as_host(&mut self, id: MemberId, number: u64, reply: &Reply) {
        self.hear_as_steward(id, number, reply);
        let now_us = self.agenda.now_us();
        let member = self.groups.member_mut(id);
        member.chores.lookout.open.remove(&number);
        let Some((client, asked, request)) = member.chores.untold.remove(&number) else { return };
        if matches!(reply, Reply::Done(_)) {
            member.chores.told_at = Some(Duration::from_micros(member.clock(now_us).0));
            self.tally.ticks += 1;
            self.give(id, Input::Ask { client, number: asked, request });
        } else {
            self.reply(id, client, asked, Reply::Refused { leader: None });
        }
    }
}

/// Whether the time that it would tell may be too old.
fn is_stale(member: &mut Member, now_us: u64) -> bool {
    let now = Duration::from_micros(member.clock(now_us).0);
    member.chores.told_at.is_none_or(|told_at| now.saturating_sub(told_at) > TIME_AGE_MAX)
}
