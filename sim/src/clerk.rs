//! Clerks: clients of the key/value store in virtual time, each as honest as the client library.
//!
//! A clerk learns the time of a shard before it writes to it, gives a request one identity over all
//! its attempts, follows hints, asks somebody else after too long a silence, and gives up at a
//! deadline; giving up acknowledges. Whether any attempt may have been executed decides between
//! "never" and "unknown". Each attempt has a name of its own in the log.

mod session;

use std::collections::BTreeMap;

use bytes::Bytes;
use kvd::{
    command::{ClientId, RequestId},
    outcome::{Answer, Header, Outcome, Query, Refusal, Revision, Version},
};
use raft::NodeId;
use rand::{RngExt, seq::IndexedRandom};

use crate::{
    World,
    agenda::Happening,
    client::{Reply, Request, address},
    group::{Group, GroupId},
    invariants::Violation,
    machine::{CommandId, Question},
    network::Kind as Parcels,
    operation::{Done, Kind, Operation, OperationName, Verdict},
    tenant::Tenant,
    workload::KvMix,
};
use session::Session;

/// How long a clerk pauses at most before it asks again after a refusal.
const PAUSE_US_MAX: u64 = 20_000;

/// Where shards move, one of so many requests goes to any group.
const ASTRAY_ONE_IN: u32 = 50;

/// What a clerk saw of a key last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) version: Version,
    pub(crate) modified: Revision,
    pub(crate) bytes: u64,
}

/// A clerk.
#[derive(Debug)]
pub(crate) struct Clerk {
    client: u64,
    id: ClientId,
    /// Whom it asks in each group.
    targets: BTreeMap<GroupId, NodeId>,
    /// Who has each shard, as it saw that last; empty where all have the group that is its home.
    owners: Vec<Option<GroupId>>,
    /// Somebody did not have what it should have, or nobody answers: the map may be old.
    is_lost: bool,
    /// Who has everything, as it believes whatever it is told.
    misled: Option<GroupId>,
    /// The members that it knows of; all, if there are none here.
    members: Vec<NodeId>,
    /// It does what a script tells it, and nothing by itself.
    scripted: bool,
    attempts: u64,
    operations: u64,
    /// The shards of keys.
    places: BTreeMap<Bytes, u32>,
    sessions: BTreeMap<u32, Session>,
    open: BTreeMap<u64, Open>,
    known: BTreeMap<Bytes, Known>,
    tenant: Tenant,
}

/// An operation that is not over.
#[derive(Debug)]
struct Open {
    operation: Operation,
    deadline_us: u64,
    /// The group that was asked last.
    group: GroupId,
    /// Its identity and the shard to which that belongs, once it has one.
    identity: Option<(u32, RequestId)>,
    /// The last attempt, while its answer may come.
    attempt: Option<u64>,
    /// No attempt can have been executed so far.
    never: bool,
}

/// What an answer leads to.
enum Next {
    /// Asking again: at once, or after a pause.
    Again,
    Pause,
    Elsewhere,
    Over(Verdict),
}

impl Clerk {
    pub(crate) fn new(group: GroupId, client: u64) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&group.0.to_le_bytes());
        id[8..].copy_from_slice(&client.to_le_bytes());
        Self {
            client,
            id: ClientId(id),
            targets: BTreeMap::new(),
            owners: Vec::new(),
            is_lost: true,
            misled: None,
            members: Vec::new(),
            scripted: false,
            attempts: 0,
            operations: 0,
            places: BTreeMap::new(),
            sessions: BTreeMap::new(),
            open: BTreeMap::new(),
            known: BTreeMap::new(),
            tenant: Tenant::default(),
        }
    }

    /// One that does what a script tells it.
    pub(crate) fn scripted(group: GroupId, client: u64) -> Self {
        Self { scripted: true, ..Self::new(group, client) }
    }

    /// From now on it knows of these members only.
    pub(crate) fn confine(&mut self, members: &[NodeId]) {
        self.members = members.to_vec();
        self.targets.clear();
    }

    /// From now on it takes a group for the owner of everything.
    pub(crate) fn mislead(&mut self, group: GroupId) {
        self.misled = Some(group);
    }

    /// Whom it asks in a group.
    fn target(&self, group: GroupId) -> NodeId {
        let first = self.members.first().copied().unwrap_or(NodeId(1));
        self.targets.get(&group).copied().unwrap_or(first)
    }

    /// Whether it waits for nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// The name of the operation that it begins next.
    pub(crate) fn next_name(&self) -> OperationName {
        OperationName { client: self.client, number: self.operations + 1 }
    }

    /// The operation of which an attempt is the last.
    fn asked_as(&self, attempt: u64) -> Option<u64> {
        let mut open = self.open.iter();
        open.find(|(_, open)| open.attempt == Some(attempt)).map(|(&number, _)| number)
    }

    /// The next attempt of an operation, and what is asked.
    fn next_request(&mut self, number: u64, now_us: u64, mix: &KvMix) -> Option<(u64, Request)> {
        let open = self.open.get_mut(&number)?;
        self.attempts += 1;
        open.attempt = Some(self.attempts);
        let key = &open.operation.key;
        let name = CommandId { client: self.client, number: self.attempts };
        if let Some(query) = open.operation.query() {
            return Some((self.attempts, Request::Read { question: Question::Kv(query) }));
        }
        if !open.operation.takes_id() {
            let command = open.operation.command(name, mix.settings.shards, None)?;
            return Some((self.attempts, Request::Write { command }));
        }
        if open.identity.is_none()
            && let Some(&shard) = self.places.get(key)
        {
            let life_us = open.deadline_us.saturating_sub(now_us) + mix.slack_us;
            let session = self.sessions.entry(shard).or_default();
            open.identity = session.open(self.id, now_us, life_us).map(|id| (shard, id));
        }
        let command = open
            .identity
            .and_then(|(_, id)| open.operation.command(name, mix.settings.shards, Some(id)));
        let request = match command {
            Some(command) => Request::Write { command },
            None => Request::Read { question: Question::Kv(Query::Time(key.clone())) },
        };
        Some((self.attempts, request))
    }

    /// An answer to the last attempt of an operation.
    fn take(&mut self, number: u64, reply: Reply, now_us: u64) -> Next {
        let Some(open) = self.open.get_mut(&number) else { return Next::Again };
        open.attempt = None;
        match reply {
            Reply::Refused { leader } => {
                let known =
                    |leader: &NodeId| self.members.is_empty() || self.members.contains(leader);
                if let Some(leader) = leader.filter(known) {
                    self.targets.insert(open.group, leader);
                }
                Next::Pause
            }
            Reply::Rejected => Next::Again,
            Reply::Unknown => {
                open.never = false;
                Next::Pause
            }
            Reply::Found(_, Answer::Pair(header, pair)) => {
                Next::Over(Verdict::Done(Done::Read(header, pair)))
            }
            Reply::Found(_, Answer::Claim(header, claim)) => {
                Next::Over(Verdict::Done(Done::Claim(header, claim)))
            }
            Reply::Found(_, Answer::Time(header)) => {
                let key = open.operation.key.clone();
                self.places.insert(key, header.shard);
                self.learn(header, now_us);
                Next::Again
            }
            Reply::Applied(_, response) => self.conclude(number, response, now_us),
            // Nothing was executed.
            Reply::Found(_, Answer::Refused(Refusal::NotServed { .. })) => Next::Elsewhere,
            // That is not what it asked for.
            Reply::Found(..)
            | Reply::Done(_)
            | Reply::Read(_)
            | Reply::Configured(..)
            | Reply::Configuration(..) => Next::Pause,
        }
    }

    fn conclude(&mut self, number: u64, response: kvd::outcome::Response, now_us: u64) -> Next {
        let never = self.open.get(&number).is_some_and(|open| open.never);
        match response.result {
            Ok(answered) => {
                self.learn(response.header, now_us);
                Next::Over(Verdict::Done(Done::Executed(response.header, answered)))
            }
            // Nor was this, now or later, and it is not remembered.
            Err(Refusal::NotServed { .. }) => Next::Elsewhere,
            // There may be room later.
            Err(Refusal::Limit { .. }) => Next::Pause,
            // It may have been executed before.
            Err(Refusal::Expired { .. }) => Next::Over(Verdict::Unknown),
            Err(_) => Next::Over(if never { Verdict::Never } else { Verdict::Unknown }),
        }
    }

    fn learn(&mut self, header: Header, now_us: u64) {
        self.sessions.entry(header.shard).or_default().learn(header.time, now_us);
    }

    /// An operation is over: its name, itself and its identity.
    fn close(
        &mut self,
        number: u64,
        verdict: &Verdict,
    ) -> Option<(Operation, Option<RequestId>, u32)> {
        let Open { operation, identity, .. } = self.open.remove(&number)?;
        let (shard, id) = identity.map_or((0, None), |(shard, id)| (shard, Some(id)));
        if let (Some(id), Some(session)) = (id, self.sessions.get_mut(&shard)) {
            session.close(id.sequence);
        }
        self.note(&operation, verdict);
        Some((operation, id, shard))
    }

    /// Keeps in mind how a key stands.
    fn note(&mut self, operation: &Operation, verdict: &Verdict) {
        let Verdict::Done(done) = verdict else { return };
        if !operation.is_of_one_key() {
            return self.tenant.note(operation, done);
        }
        let written = match &operation.kind {
            Kind::Put { value, .. } | Kind::Append { value, .. } => value.len() as u64,
            Kind::Get | Kind::Delete | Kind::Command(_) | Kind::Claim(_) => 0,
        };
        let pair = |pair: &kvd::outcome::Pair| Known {
            version: pair.version,
            modified: pair.mod_revision,
            bytes: pair.value.len() as u64,
        };
        let known = match done {
            Done::Read(_, found) => found.as_ref().map(pair),
            Done::Claim(..) => None,
            Done::Executed(_, answered) => match &answered.outcome {
                Outcome::Written(it) => {
                    Some(Known { version: it.version, modified: it.revision, bytes: written })
                }
                Outcome::Appended { written: it, old } => {
                    let bytes = old.len() as u64 + written;
                    Some(Known { version: it.version, modified: it.revision, bytes })
                }
                Outcome::Mismatch(found) => found.as_ref().map(pair),
                Outcome::TooLarge { limit, .. } => {
                    let known = self.known.get(&operation.key).copied().unwrap_or_default();
                    Some(Known { bytes: *limit, ..known })
                }
                // What was removed, or never was; nothing else is asked for.
                _ => None,
            },
        };
        match known {
            Some(known) => drop(self.known.insert(operation.key.clone(), known)),
            None => drop(self.known.remove(&operation.key)),
        }
    }
}

impl World {
    /// A clerk does something by itself, if it has time.
    pub(crate) fn think_of_keys(&mut self, group: GroupId, client: u64, mix: &KvMix) {
        if self.clients_rest {
            return;
        }
        let Group { clerks, .. } = self.groups.get_mut(group);
        let Some(clerk) = clerks.get(&client) else { return };
        let through = mix.workload.operations_max.is_some_and(|max| clerk.operations >= max);
        if through || clerk.scripted {
            return;
        }
        if clerk.open.len() < mix.in_flight_max {
            let name = clerk.next_name();
            let joint =
                mix.workload.joint > 0 && self.rng.random_range(0..100) < mix.workload.joint;
            let operation = if joint {
                clerk.tenant.draw(&mut self.rng, name, &mix.workload)
            } else {
                let known = |key: &Bytes| clerk.known.get(key).copied();
                mix.workload.draw(&mut self.rng, name, known)
            };
            self.begin_operation(group, client, operation);
        }
        if mix.in_flight_max > 1 {
            self.plan_thought(group, client);
        }
    }

    /// A clerk wants something from now on.
    pub(crate) fn begin_operation(
        &mut self,
        group: GroupId,
        client: u64,
        operation: Operation,
    ) -> OperationName {
        let now_us = self.agenda.now_us();
        let deadline_us = now_us + self.mix.kv_or_calm().deadline_us;
        let Group { clerks, kv_history, locks, .. } = self.groups.get_mut(group);
        locks.extend(operation.takes_lock().cloned());
        let clerk = clerks.entry(client).or_insert_with(|| Clerk::scripted(group, client));
        let name = clerk.next_name();
        self.trace.line(now_us, format_args!("{name} wants {operation:?}"));
        kv_history.begin(now_us, name, operation.clone());
        clerk.operations += 1;
        let (identity, attempt, never) = (None, None, true);
        let open = Open { operation, deadline_us, group, identity, attempt, never };
        clerk.open.insert(name.number, open);
        let at_once = Happening::Attempt { group, client, operation: name.number };
        self.agenda.after(0, at_once);
        name
    }

    /// A clerk asks, or gives up.
    pub(crate) fn attempt(
        &mut self,
        group: GroupId,
        client: u64,
        number: u64,
    ) -> Result<(), Violation> {
        let now_us = self.agenda.now_us();
        let mix = self.mix.kv_or_calm();
        let Some(clerk) = self.groups.get_mut(group).clerks.get_mut(&client) else { return Ok(()) };
        let Some(open) = clerk.open.get(&number) else { return Ok(()) };
        let left_us = open.deadline_us.saturating_sub(now_us);
        if left_us == 0 {
            let verdict = if open.never { Verdict::Never } else { Verdict::Unknown };
            return self.end_operation(group, client, number, verdict);
        }
        let Some(asked) = self.route(group, client, number) else {
            let pause_us = self.rng.random_range(1..=PAUSE_US_MAX);
            self.agenda.after(pause_us, Happening::Attempt { group, client, operation: number });
            return Ok(());
        };
        let Some(clerk) = self.groups.get_mut(group).clerks.get_mut(&client) else { return Ok(()) };
        let to = asked.member(clerk.target(asked));
        let Some((attempt, request)) = clerk.next_request(number, now_us, &mix) else {
            return Ok(());
        };
        self.trace
            .line(now_us, format_args!("c{client}/{number} asks {to} as c{client}.{attempt}"));
        let hope_us = mix.attempt_us.min(left_us);
        self.agenda.after(hope_us, Happening::LoseHope { group, client, number: attempt });
        if let Some(time_us) = self.client_arrival((address(asked, client), to), Parcels::Request) {
            self.agenda.at(time_us, Happening::Ask { to, client, number: attempt, request });
        }
        Ok(())
    }

    /// A clerk hears an answer. One to an attempt that it waits for no more says nothing.
    pub(crate) fn hear_of_keys(
        &mut self,
        group: GroupId,
        client: u64,
        attempt: u64,
        reply: Reply,
    ) -> Result<(), Violation> {
        let now_us = self.agenda.now_us();
        let lost = matches!(reply, Reply::Refused { leader: None } | Reply::Unknown);
        let Some(clerk) = self.groups.get_mut(group).clerks.get_mut(&client) else { return Ok(()) };
        let Some(number) = clerk.asked_as(attempt) else { return Ok(()) };
        let next = clerk.take(number, reply, now_us);
        if lost {
            self.turn_elsewhere(group, client, number);
        }
        let pause_us = match next {
            Next::Over(verdict) => return self.end_operation(group, client, number, verdict),
            Next::Again => 0,
            Next::Elsewhere => {
                self.tally.misrouted += 1;
                self.lose_way(group, client);
                self.rng.random_range(1..=PAUSE_US_MAX)
            }
            Next::Pause => self.rng.random_range(1..=PAUSE_US_MAX),
        };
        self.agenda.after(pause_us, Happening::Attempt { group, client, operation: number });
        Ok(())
    }

    /// A clerk waits no more for an answer.
    pub(crate) fn lose_hope_of_keys(
        &mut self,
        group: GroupId,
        client: u64,
        attempt: u64,
    ) -> Result<(), Violation> {
        let Some(clerk) = self.groups.get_mut(group).clerks.get_mut(&client) else { return Ok(()) };
        let Some(number) = clerk.asked_as(attempt) else { return Ok(()) };
        if let Some(open) = clerk.open.get_mut(&number) {
            open.attempt = None;
            // Of what needs an identity only what carries one can be executed.
            let harmless = open.operation.query().is_some()
                || (open.operation.takes_id() && open.identity.is_none());
            open.never &= harmless;
        }
        self.turn_elsewhere(group, client, number);
        self.lose_way(group, client);
        self.attempt(group, client, number)
    }

    /// A clerk asks another member from now on for what it wants.
    fn turn_elsewhere(&mut self, group: GroupId, client: u64, number: u64) {
        let clerk = self.groups.get(group).clerks.get(&client);
        let Some(open) = clerk.and_then(|clerk| clerk.open.get(&number)) else { return };
        let asked = open.group;
        let any = self.draw_member(asked).node;
        let Some(clerk) = self.groups.get_mut(group).clerks.get_mut(&client) else { return };
        let target = clerk.members.choose(&mut self.rng).copied().unwrap_or(any);
        clerk.targets.insert(asked, target);
    }

    /// A clerk's map may be old.
    fn lose_way(&mut self, group: GroupId, client: u64) {
        if let Some(clerk) = self.groups.get_mut(group).clerks.get_mut(&client) {
            clerk.is_lost = true;
        }
    }

    /// Which group a clerk asks for something: where shards move, the one that has the shard by its
    /// map, and now and then any other; none: nobody has it.
    fn route(&mut self, home: GroupId, client: u64, number: u64) -> Option<GroupId> {
        if !self.mix.is_sharded() {
            return Some(home);
        }
        let is_lost = self.groups.get(home).clerks.get(&client)?.is_lost;
        let owners = if is_lost { self.look_at_owners() } else { None };
        let astray = self.rng.random_range(0..ASTRAY_ONE_IN) == 0;
        let any = self.draw_store();
        let shards = self.mix.kv_or_calm().settings.shards;
        let clerk = self.groups.get_mut(home).clerks.get_mut(&client)?;
        if let Some(owners) = owners {
            (clerk.owners, clerk.is_lost) = (owners, false);
        }
        let open = clerk.open.get_mut(&number)?;
        let shard = usize::try_from(open.operation.shard(shards)).ok()?;
        let owner = clerk.owners.get(shard).copied().flatten();
        clerk.is_lost |= owner.is_none();
        open.group = match clerk.misled {
            Some(group) => group,
            None if astray => any,
            None => owner?,
        };
        Some(open.group)
    }

    fn end_operation(
        &mut self,
        group: GroupId,
        client: u64,
        number: u64,
        verdict: Verdict,
    ) -> Result<(), Violation> {
        let now_us = self.agenda.now_us();
        let name = OperationName { client, number };
        let Group { clerks, kv_history, verdicts, .. } = self.groups.get_mut(group);
        let Some(clerk) = clerks.get_mut(&client) else { return Ok(()) };
        let Some((_, id, shard)) = clerk.close(number, &verdict) else { return Ok(()) };
        self.trace.line(now_us, format_args!("{name} is over: {verdict:?}"));
        self.tally.operations += 1;
        match &verdict {
            Verdict::Done(Done::Executed(_, answered)) => {
                self.tally.duplicates += u64::from(answered.duplicate);
                self.tally.bodies_dropped += u64::from(answered.body_dropped);
            }
            Verdict::Done(Done::Read(..) | Done::Claim(..)) => {}
            Verdict::Never => self.tally.operations_never += 1,
            Verdict::Unknown => self.tally.operations_unknown += 1,
        }
        let scripted = clerk.scripted;
        if let Some(id) = id {
            let ledger = self.ledgers.get_mut(&group).expect("every home has one");
            let found = ledger.concluded(name, shard, &id, &verdict);
            found.map_err(|violation| violation.of(group))?;
        }
        kv_history.end(now_us, name, verdict.clone());
        if scripted {
            verdicts.insert(name, verdict);
        } else if self.mix.kv_or_calm().in_flight_max <= 1 {
            self.plan_thought(group, client);
        }
        Ok(())
    }
}
