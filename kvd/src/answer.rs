//! Answers to questions.
//!
//! Decides how a question finds its shard. Each takes a short, bounded time; what may take longer
//! is asked of a [`View`].

use proto::shard_of;
use raft::GroupTime;

use crate::{
    command::{Command, LeaseId},
    handoff::Contents,
    limits::{DUE_LEASES_TOLD_MAX, PairLimits},
    machine::KvMachine,
    outcome::{Answer, Claim, DueLease, DueLeases, Header, Query, Refusal, Response, Scope},
    shard::Shard,
    view::{Part, View},
};

impl KvMachine {
    pub(crate) fn answer(&self, query: Query) -> Answer {
        if let Err(refusal) = self.check_asked(&query) {
            return Answer::Refused(refusal);
        }
        match query {
            Query::Get(key) => {
                let pair = self.shard_of(&key).and_then(|shard| shard.pairs.get(&key)).cloned();
                Answer::Pair(self.header_of(&key), pair)
            }
            Query::Time(key) => Answer::Time(self.header_of(&key)),
            Query::Created => Answer::Created(self.created()),
            Query::View(scope) => self.view(&scope).map_or_else(Answer::Refused, Answer::View),
            Query::Txn(command) => Answer::Txn(self.ask(&command)),
            Query::Lease { lease, attached } => {
                let header = self.header(lease.shard());
                let shard = self.shards.get(lease.shard() as usize);
                let state = shard.and_then(|it| it.lease_state(lease, attached, header.time));
                Answer::Lease(header, state)
            }
            Query::Lock(name) => {
                let header = self.header_of(&name);
                let state = self.shard_of(&name).map(|shard| shard.lock_state(&name, header.time));
                Answer::Lock(header, state.unwrap_or_default())
            }
            Query::Claim { name, lease } => {
                let header = self.header_of(&name);
                let claim = self.shard_of(&name).map(|it| it.claim(&name, lease, header.time));
                Answer::Claim(header, claim.unwrap_or(Claim::Gone(None)))
            }
            Query::DueLeases { until, most } => Answer::DueLeases(self.due_leases(until, most)),
            Query::Custody => {
                Answer::Custody(self.shards.iter().map(|shard| shard.custody).collect())
            }
            Query::Standings => {
                Answer::Standings(self.shards.iter().map(Shard::standing).collect())
            }
            Query::Contents(number) => {
                let shard = self.shards.get(number as usize);
                Answer::Contents(shard.map(|shard| Box::new(Contents(shard.clone()))))
            }
        }
    }

    /// Whether the shard that a question is about is served here, unless it finds out by itself.
    fn check_asked(&self, query: &Query) -> Result<(), Refusal> {
        let shards = self.shards();
        let number = match query {
            Query::Get(key) | Query::Time(key) | Query::Lock(key) => shard_of(key, shards),
            Query::Claim { name, .. } => shard_of(name, shards),
            Query::Lease { lease, .. } => lease.shard(),
            Query::View(_)
            | Query::Txn(_)
            | Query::Created
            | Query::DueLeases { .. }
            | Query::Custody
            | Query::Standings
            | Query::Contents(_) => return Ok(()),
        };
        self.shards.get(number as usize).map_or(Ok(()), Shard::check_served)
    }

    fn shard_of(&self, key: &[u8]) -> Option<&Shard> {
        self.shards.get(shard_of(key, self.shards()) as usize)
    }

    fn view(&self, scope: &Scope) -> Result<View, Refusal> {
        let shards = self.shards();
        let wanted: Option<Vec<u32>> = match scope {
            Scope::All => None,
            Scope::Shard(number) => Some(vec![*number]),
            Scope::Served(numbers) => Some(numbers.clone()),
            Scope::Ranges(ranges) => ranges.iter().map(|range| range.shard(shards)).collect(),
        };
        let part = |shard: &Shard| Part {
            header: shard.header(shards, self.time.0),
            pairs: shard.pairs.map().clone(),
            changes: shard.changes.clone(),
        };
        let mut wanted = wanted.unwrap_or_else(|| (0..shards).collect());
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|number| *number < shards);
        let mut parts = Vec::with_capacity(wanted.len());
        for number in wanted {
            match self.shards.get(number as usize).map(|shard| (shard, shard.check_served())) {
                Some((shard, Ok(()))) => parts.push(part(shard)),
                Some((_, Err(_))) if matches!(scope, Scope::All | Scope::Served(_)) => {}
                Some((_, Err(refusal))) => return Err(refusal),
                // Before the first command there are none, and they are looked at all the same.
                None => parts.push(part(&self.empty_shard(number))),
            }
        }
        Ok(View { shards, parts })
    }

    fn ask(&self, command: &[u8]) -> Response {
        let refused =
            |refusal| Response { header: Header::default(), result: Err::<_, Refusal>(refusal) };
        let command = match Command::decode(command) {
            Ok(command) => command,
            Err(bad) => return refused(bad.into()),
        };
        let shards = self.shards();
        if command.shards != shards {
            return refused(Refusal::OtherShards { created: shards, proposed: command.shards });
        }
        let checked = command.check(&PairLimits::default()).and_then(|()| command.shard());
        match checked {
            Ok(number) => match self.shards.get(number as usize) {
                Some(shard) => match shard.check_served() {
                    Ok(()) => shard.answer(&self.group(), &command),
                    Err(refusal) => refused(refusal),
                },
                None => self.empty_shard(number).answer(&self.group(), &command),
            },
            Err(refusal) => refused(refusal),
        }
    }

    /// The leases that are over by a time: those of the shard whose first is over first, then the
    /// next shard's.
    fn due_leases(&self, until: GroupTime, most: usize) -> DueLeases {
        let most = most.min(DUE_LEASES_TOLD_MAX);
        let mut told = DueLeases::default();
        let mut later = |at: u64| {
            let at = GroupTime(at);
            told.next = Some(told.next.map_or(at, |next| next.min(at)));
        };
        let mut due: Vec<DueLease> = Vec::new();
        for &(first, number) in &self.due {
            if first > until.0 || due.len() >= most {
                later(first);
                break;
            }
            let shard = &self.shards[number as usize];
            for (deadline, lease) in shard.leases.due() {
                let deadline = shard.group_time_ms(deadline);
                if deadline > until.0 || due.len() >= most {
                    later(deadline);
                    break;
                }
                due.push(due_lease(shard, lease, deadline));
            }
        }
        told.due = due;
        told
    }
}

fn due_lease(shard: &Shard, lease: LeaseId, deadline_ms: u64) -> DueLease {
    let renewal = shard.leases.get(lease).map_or(0, |lease| lease.renewal);
    DueLease { lease, renewal, deadline: GroupTime(deadline_ms) }
}
