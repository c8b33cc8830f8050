//! The world: members, clients and network, moved from event to event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use raft::{Membership, NodeId, RoleKind};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Options, Plant,
    agenda::{Agenda, Happening, Input},
    client::{CHANGER, Client, OPERATOR, PATIENCE_US, Reply, Request},
    fault::Mix,
    invariants::{Ghost, Invariants, Violation},
    machine::{CommandId, REGISTERS},
    member::{ClockRate, Member},
    network::{Kind, Link, MESSAGE_BYTES, Network, Parcel, Quality},
    trace::{Listener, Shown, Trace},
};

/// Clients sit at addresses that no member has.
const CLIENT_ADDRESSES: u64 = 1_000_000;

/// Where a client sits on the network.
pub(crate) fn address(client: u64) -> NodeId {
    NodeId(CLIENT_ADDRESSES + client)
}

/// A world.
///
/// Keeps: everything in it is a function of the seed, the mix and the calls made to it.
pub struct World {
    pub(crate) mix: Mix,
    pub(crate) plant: Plant,
    pub(crate) rng: StdRng,
    pub(crate) agenda: Agenda,
    pub(crate) network: Network,
    pub(crate) members: BTreeMap<NodeId, Member>,
    /// Everybody, from 1 on, whether it belongs to the group or not.
    pub(crate) ids: BTreeSet<NodeId>,
    pub(crate) founders: Arc<Membership>,
    clients: BTreeMap<u64, Client>,
    pub(crate) clients_rest: bool,
    pub(crate) invariants: Invariants,
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    pub(crate) partitions: u64,
    /// The leader that the nemesis cut off last.
    pub(crate) last_deposed: Option<NodeId>,
    /// What became of the requests that scripts made.
    pub(crate) replies: BTreeMap<CommandId, Reply>,
    pub(crate) operator_number: u64,
}

/// What happened how often: a run in which nothing happened proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Elections won.
    pub elections: u64,
    /// Entries committed.
    pub commits: u64,
    /// Times that a member removed what conflicted.
    pub truncations: u64,
    /// Snapshots taken and stored.
    pub snapshots: u64,
    /// Snapshots that could not be stored.
    pub snapshots_failed: u64,
    /// Times that a leader began to hand over because of its disk.
    pub slow_disks: u64,
    /// Times that entries were read from a disk for a state machine.
    pub reads_to_apply: u64,
    /// Times that entries were read from a disk for a follower.
    pub reads_to_send: u64,
    /// Snapshots installed from another member.
    pub installs: u64,
    /// Of those, the ones that kept what followed.
    pub suffixes_kept: u64,
    /// Leaders that stepped down for want of a quorum.
    pub quorums_lost: u64,
    /// Times that a leader began to hand over.
    pub transfers: u64,
    /// Of those, the ones that it gave up.
    pub transfers_failed: u64,
    /// Times that another membership came to rule a member.
    pub reconfigured: u64,
    /// Changes of the members that were over when they were answered.
    pub changes: u64,
    /// Leaders that left because they voted no more.
    pub leaders_removed: u64,
    /// Crashes.
    pub crashes: u64,
    /// Pauses.
    pub pauses: u64,
    /// Partitions.
    pub partitions: u64,
    /// Times that links were clogged.
    pub clogs: u64,
    /// Times that links were bad.
    pub degraded: u64,
    /// New leaders that were struck at once.
    pub deposed: u64,
    /// Syncs that failed.
    pub disk_errors: u64,
    /// Crashes that left a part of a write.
    pub torn: u64,
    /// Messages that members sent to each other.
    pub sent: u64,
    /// Of those, the ones that ask for an answer: what the labs count as calls.
    pub requests: u64,
    /// The size of all that were sent.
    pub bytes: u64,
    /// Messages between members that arrived.
    pub messages: u64,
    /// Writes acknowledged.
    pub done: u64,
    /// Writes rejected.
    pub rejected: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// Reads answered.
    pub reads: u64,
    /// Of those, the ones that were answered at once: by a lease, or by who votes alone.
    pub reads_at_once: u64,
    /// Requests refused.
    pub refused: u64,
    /// Answers that got lost on their way to a client.
    pub answers_lost: u64,
}

impl Tally {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.elections += other.elections;
        self.commits += other.commits;
        self.truncations += other.truncations;
        self.snapshots += other.snapshots;
        self.snapshots_failed += other.snapshots_failed;
        self.slow_disks += other.slow_disks;
        self.reads_to_apply += other.reads_to_apply;
        self.reads_to_send += other.reads_to_send;
        self.installs += other.installs;
        self.suffixes_kept += other.suffixes_kept;
        self.quorums_lost += other.quorums_lost;
        self.transfers += other.transfers;
        self.transfers_failed += other.transfers_failed;
        self.reconfigured += other.reconfigured;
        self.changes += other.changes;
        self.leaders_removed += other.leaders_removed;
        self.crashes += other.crashes;
        self.pauses += other.pauses;
        self.partitions += other.partitions;
        self.clogs += other.clogs;
        self.degraded += other.degraded;
        self.deposed += other.deposed;
        self.disk_errors += other.disk_errors;
        self.torn += other.torn;
        self.sent += other.sent;
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.messages += other.messages;
        self.done += other.done;
        self.rejected += other.rejected;
        self.unknown += other.unknown;
        self.reads += other.reads;
        self.reads_at_once += other.reads_at_once;
        self.refused += other.refused;
        self.answers_lost += other.answers_lost;
    }
}

impl World {
    /// A world whose members have just been started for the first time.
    pub fn new(options: Options, mix: Mix, listener: Option<Listener>) -> Self {
        let ids: BTreeSet<NodeId> = (1..=options.members).map(NodeId).collect();
        let founders = ids.iter().map(|&id| (id, Bytes::new()));
        let founders = Membership::founders(founders);
        let (members, last_id) = (founders.members().clone(), founders.last_id());
        let founders = Arc::new(Membership::from_parts(members, last_id, mix.lease_reads));
        let members = ids.iter().map(|&id| (id, Member::new(id, options.plant))).collect();
        let clients = (1..=mix.clients).map(|id| (id, Client::new(NodeId(1)))).collect();
        let mut world = Self {
            plant: options.plant,
            rng: StdRng::seed_from_u64(options.seed),
            agenda: Agenda::default(),
            network: Network::default(),
            members,
            ids,
            founders: founders.clone(),
            clients,
            clients_rest: false,
            invariants: Invariants::new(options.only, founders),
            trace: Trace::new(listener),
            tally: Tally::default(),
            partitions: 0,
            last_deposed: None,
            replies: BTreeMap::new(),
            operator_number: 0,
            mix,
        };
        let config = world.mix.config;
        world.trace.line(0, format_args!("{} members with {config:?}", options.members));
        for id in world.ids.clone() {
            let clock_rate = world.draw_clock_rate();
            world.members.get_mut(&id).expect("every id is a member's").clock_rate = clock_rate;
            world.start(id).expect("a member starts from an empty disk");
        }
        world.draw_links();
        for client in 1..=world.mix.clients {
            let delay_us = world.rng.random_range(0..=world.mix.think_us_max);
            world.agenda.after(delay_us, Happening::Think { client });
        }
        for rate in world.mix.rates.clone() {
            world.plan_strike(rate);
        }
        world
    }

    pub(crate) fn draw_clock_rate(&mut self) -> ClockRate {
        let Mix { clock_unit, slow_clock_max, fast_clock_max, .. } = self.mix;
        let slower = self.rng.random_range(clock_unit..=slow_clock_max);
        let faster = self.rng.random_range(clock_unit..=fast_clock_max);
        ClockRate { faster, slower }
    }

    /// Each link between members draws what it is like, in each direction.
    fn draw_links(&mut self) {
        let Mix { link_slower_max, link_loss_per_mille_max, .. } = self.mix;
        if link_slower_max == 1 && link_loss_per_mille_max == 0 {
            return;
        }
        for link in self.ids.iter().flat_map(|&a| self.ids.iter().map(move |&b| (a, b))) {
            let slower = self.rng.random_range(1..=link_slower_max);
            let loss_per_mille = self.rng.random_range(0..=link_loss_per_mille_max);
            self.network.make_uneven(link, Quality { slower, loss_per_mille });
        }
    }

    /// A whole run: faults for a while, then rest.
    ///
    /// # Errors
    /// The first violation.
    pub fn live(&mut self, chaos_us: u64) -> Result<(), Violation> {
        self.run_for(chaos_us)?;
        let settled = self.settle();
        self.invariants.keep(settled)
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// The first violation.
    pub fn run_for(&mut self, duration_us: u64) -> Result<(), Violation> {
        self.run_until(duration_us, |_| false).map(drop)
    }

    /// Lets time pass until something holds, `duration_us` at most. Whether it does.
    ///
    /// # Errors
    /// The first violation.
    pub fn run_until(
        &mut self,
        duration_us: u64,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Result<bool, Violation> {
        let until_us = self.now_us() + duration_us;
        while !holds(self) {
            let Some(happening) = self.agenda.next(until_us) else { return Ok(holds(self)) };
            self.happen(happening)?;
        }
        Ok(true)
    }

    /// Virtual time, in microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        self.agenda.now_us()
    }

    /// The trace so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What happened so far, how often.
    pub fn tally(&self) -> Tally {
        Tally { commits: self.ghost().committed().0, ..self.tally }
    }

    /// What the run has shown so far.
    pub fn ghost(&self) -> &Ghost {
        self.invariants.ghost()
    }

    /// A member.
    pub fn member(&self, id: NodeId) -> &Member {
        &self.members[&id]
    }

    /// All members.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The member that leads, of those that the others can reach; of several, the one in the
    /// latest term.
    pub fn leader(&self) -> Option<NodeId> {
        self.members
            .values()
            .filter(|member| {
                let leads = member.is_up() && member.standing().role == RoleKind::Leader;
                leads && self.network.is_plugged_in(member.id)
            })
            .max_by_key(|member| member.standing().term)
            .map(|member| member.id)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::Deliver { from, to, message } => {
                if self.network.is_open((from, to)) {
                    self.tally.messages += 1;
                    self.give(to, Input::Message { from, message });
                } else {
                    let shown = Shown(&message);
                    self.trace.line(self.agenda.now_us(), format_args!("n{to} x n{from} {shown}"));
                }
            }
            Happening::Tick(life) => {
                if self.is_alive(life) {
                    self.plan_tick(life);
                    self.give(life.node, Input::Tick);
                }
            }
            Happening::Run(life) => {
                if self.is_alive(life) {
                    self.run_member(life.node)?;
                }
            }
            Happening::Synced(life) => {
                if self.is_alive(life) {
                    self.synced(life.node)?;
                }
            }
            Happening::Captured(life, stored) => {
                if self.is_alive(life) {
                    self.captured(life.node, stored)?;
                }
            }
            Happening::Fetched(life, install) => {
                if self.is_alive(life) {
                    self.fetched(life.node, install)?;
                }
            }
            Happening::Restored(life, root, chunks) => {
                if self.is_alive(life) {
                    self.give(life.node, Input::Fetched(root, Some(chunks)));
                }
            }
            Happening::Read(life, fetch) => {
                if self.is_alive(life) {
                    let entries = self.members[&life.node].disk.read(fetch);
                    self.give(life.node, Input::Read(fetch.reader, entries));
                }
            }
            Happening::Think { client } => self.think(client),
            Happening::LoseHope { client, number } => self.lose_hope(client, number),
            Happening::Ask { to, client, number, request } => {
                if self.network.is_open((address(client), to)) {
                    self.ask(to, client, number, request)?;
                }
            }
            Happening::Answer { from, client, number, reply } => {
                if self.network.is_open((from, address(client))) {
                    self.hear(client, number, reply);
                } else {
                    self.lose_answer(client, number);
                }
            }
            Happening::Strike(rate) => self.strike(rate)?,
            Happening::Depose(life) => {
                if self.is_alive(life) {
                    self.depose(life.node)?;
                }
            }
            Happening::Mend(mend) => self.mend(mend)?,
        }
        Ok(())
    }

    /// A request arrives. The machine of a member that is down may say so.
    fn ask(
        &mut self,
        to: NodeId,
        client: u64,
        number: u64,
        request: Request,
    ) -> Result<(), Violation> {
        if !self.refuses(to) {
            self.give(to, Input::Ask { client, number, request });
            return Ok(());
        }
        let (reply, floor) = (Reply::Refused { leader: None }, self.ghost().committed());
        self.invariants.answered_at_once(to, client, number, reply, floor)?;
        self.reply(to, client, number, reply);
        Ok(())
    }

    /// Puts an input into a member's inbox and makes sure that it will be read.
    pub(crate) fn give(&mut self, id: NodeId, input: Input) {
        let batch_us = self.rng.random_range(0..=self.mix.batch_us_max);
        let member = self.members.get_mut(&id).expect("every id is a member's");
        if member.give(input) && !member.run_is_due && !member.paused {
            member.run_is_due = true;
            self.agenda.after(batch_us, Happening::Run(member.life()));
        }
    }

    fn think(&mut self, id: u64) {
        if self.clients_rest {
            return;
        }
        let client = self.clients.get_mut(&id).expect("only clients think");
        client.number += 1;
        let (number, mut to) = (client.number, client.target);
        let register = self.rng.random_range(0..REGISTERS);
        let request = if self.mix.chance(&mut self.rng, self.mix.read_per_mille) {
            if self.mix.chance(&mut self.rng, self.mix.read_anywhere_per_mille) {
                to = self.draw_member();
            }
            Request::Read { register }
        } else {
            let padding_bytes = self.rng.random_range(0..=self.mix.padding_bytes_max);
            let name = CommandId { client: id, number };
            Request::Write { command: name.write_to(register, padding_bytes) }
        };
        self.agenda.after(PATIENCE_US, Happening::LoseHope { client: id, number });
        if let Some(time_us) = self.client_arrival((address(id), to), Kind::Request) {
            self.agenda.at(time_us, Happening::Ask { to, client: id, number, request });
        }
        if self.mix.clients_do_not_wait {
            self.plan_thought(id);
        }
    }

    /// Requests and replies get lost and are late, but come once: a command is sent only once.
    fn client_arrival(&mut self, link: Link, kind: Kind) -> Option<u64> {
        let now_us = self.agenda.now_us();
        let parcel = Parcel { link, kind, bytes: MESSAGE_BYTES };
        self.network.arrivals(now_us, parcel, &mut self.rng, &self.mix).first().copied()
    }

    /// A member answers.
    pub(crate) fn reply(&mut self, from: NodeId, client: u64, number: u64, reply: Reply) {
        match reply {
            Reply::Done(_) if client == CHANGER => self.tally.changes += 1,
            Reply::Done(_) => self.tally.done += 1,
            Reply::Rejected => self.tally.rejected += 1,
            Reply::Unknown => self.tally.unknown += 1,
            Reply::Refused { .. } => self.tally.refused += 1,
            Reply::Read(_) => self.tally.reads += 1,
        }
        let now_us = self.agenda.now_us();
        self.trace.line(now_us, format_args!("n{from} answers c{client}.{number} {reply:?}"));
        if client == OPERATOR || client == CHANGER {
            self.replies.insert(CommandId { client, number }, reply);
        } else {
            let link = (from, address(client));
            if let Some(time_us) = self.client_arrival(link, Kind::Reply) {
                self.agenda.at(time_us, Happening::Answer { from, client, number, reply });
            } else {
                self.lose_answer(client, number);
            }
        }
    }

    /// What was asked for is done, or was refused, and the client is in the dark. Whoever reads the
    /// trace is not.
    fn lose_answer(&mut self, client: u64, number: u64) {
        self.tally.answers_lost += 1;
        let now_us = self.agenda.now_us();
        self.trace.line(now_us, format_args!("c{client}.{number} never hears the answer"));
    }

    fn hear(&mut self, id: u64, number: u64, reply: Reply) {
        let other = self.draw_member();
        let client = self.clients.get_mut(&id).expect("only clients hear");
        if client.answered >= number {
            return;
        }
        client.answered = number;
        if let Reply::Refused { leader } = reply {
            client.target = leader.unwrap_or(other);
        }
        if !self.mix.clients_do_not_wait {
            self.plan_thought(id);
        }
    }

    fn lose_hope(&mut self, id: u64, number: u64) {
        let other = self.draw_member();
        let client = self.clients.get_mut(&id).expect("only clients hope");
        if client.answered >= number {
            return;
        }
        client.answered = number;
        client.target = other;
        if !self.mix.clients_do_not_wait {
            self.plan_thought(id);
        }
    }

    fn draw_member(&mut self) -> NodeId {
        NodeId(self.rng.random_range(1..=self.ids.len() as u64))
    }

    fn plan_thought(&mut self, client: u64) {
        let delay_us = 1_000 + self.rng.random_range(0..=self.mix.think_us_max);
        self.agenda.after(delay_us, Happening::Think { client });
    }
}
