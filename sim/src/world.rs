//! The world: members, clients and network, moved from event to event.

use std::collections::BTreeMap;

use raft::{Message, NodeId};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Options, Plant, Tally,
    agenda::{Agenda, Happening, Input, Life},
    application::Service,
    client::address,
    fault::Mix,
    group::{Group, GroupId, Groups, MemberId},
    invariants::{Ghost, Ledger, Violation, wanted},
    member::{ClockRate, Member},
    network::{Network, Quality},
    step::broken_disk,
    trace::{Listener, Shown, Trace},
};

/// A world.
///
/// Keeps: everything in it is a function of the seed, the mix and the calls made to it.
pub struct World {
    pub(crate) mix: Mix,
    pub(crate) plant: Plant,
    pub(crate) only: Option<&'static str>,
    pub(crate) rng: StdRng,
    pub(crate) agenda: Agenda,
    pub(crate) network: Network,
    pub(crate) groups: Groups,
    /// What was executed in each store, under the group that clerks count as its home.
    pub(crate) ledgers: BTreeMap<GroupId, Ledger>,
    /// The group that scripts speak of.
    pub(crate) spoken_of: GroupId,
    pub(crate) clients_rest: bool,
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    pub(crate) partitions: u64,
}

impl World {
    /// A world whose members have just been started for the first time.
    pub fn new(options: Options, mix: Mix, listener: Option<Listener>) -> Self {
        let mut world = Self {
            plant: options.plant,
            only: options.only,
            rng: StdRng::seed_from_u64(options.seed),
            agenda: Agenda::default(),
            network: Network::default(),
            groups: Groups::default(),
            ledgers: BTreeMap::new(),
            spoken_of: GroupId::FIRST,
            clients_rest: false,
            trace: Trace::new(listener),
            tally: Tally::default(),
            partitions: 0,
            mix,
        };
        let (at_once, later) = match world.mix.further_groups.clone().split_last() {
            Some((&last, others)) => (others.to_vec(), Some(last)),
            None => (Vec::new(), None),
        };
        for members in std::iter::once(options.members).chain(at_once) {
            world.found(members).expect("members start from empty disks");
        }
        if let Some(members) = later {
            world.agenda.after(world.mix.last_founded_us, Happening::Found { members });
        }
        for rate in world.mix.rates.clone() {
            world.plan_strike(rate);
        }
        world
    }

    /// A group is founded: its members start for the first time. Its name.
    ///
    /// # Errors
    /// A violation.
    pub fn found(&mut self, members: u64) -> Result<GroupId, Violation> {
        let (id, now_us) = (self.groups.next_id(), self.now_us());
        let config = self.mix.config;
        match id {
            GroupId::FIRST => {
                self.trace.line(now_us, format_args!("{members} members with {config:?}"));
            }
            GroupId(id) => {
                self.trace.line(now_us, format_args!("g{id} is founded by {members} members"));
            }
        }
        let service = match (self.mix.controller, self.mix.kv) {
            (Some(shards), _) if id == GroupId::FIRST => Service::Shards { shards },
            (Some(_), Some(kv)) => Service::Kv(kv.settings),
            // Of several groups those that were founded second and fourth have registers.
            (_, Some(kv)) if id.0 % 2 == 1 => Service::Kv(kv.settings),
            _ => Service::Registers,
        };
        self.groups.insert(id, Group::new(id, members, &self.mix, self.plant, self.only, service));
        let only = self.only;
        let ledger = if self.mix.is_sharded() { Ledger::shared } else { Ledger::alone };
        self.ledgers.entry(self.home(id)).or_insert_with(|| ledger(only));
        for member in self.groups.members_of(id) {
            let clock_rate = self.draw_clock_rate();
            self.groups.member_mut(member).clock_rate = clock_rate;
            self.make_disk(member).map_err(|why| broken_disk(member, &why))?;
            self.start(member)?;
        }
        self.draw_links(id);
        let at_home = if self.home(id) == id { self.mix.clients } else { 0 };
        for client in 1..=at_home {
            let delay_us = self.rng.random_range(0..=self.mix.think_us_max);
            self.agenda.after(delay_us, Happening::Think { group: id, client });
        }
        Ok(id)
    }

    /// Where the clerks of a group are at home: with the first, if shards move between the others.
    pub(crate) fn home(&self, group: GroupId) -> GroupId {
        if self.mix.is_sharded() { GroupId::FIRST } else { group }
    }

    /// Whether clerks are at home there.
    pub(crate) fn has_clerks(&self, group: GroupId) -> bool {
        let sharded = self.mix.is_sharded();
        self.groups.get(group).service.kv().is_some() || sharded && group == GroupId::FIRST
    }

    pub(crate) fn draw_clock_rate(&mut self) -> ClockRate {
        let Mix { clock_unit, slow_clock_max, fast_clock_max, .. } = self.mix;
        let slower = self.rng.random_range(clock_unit..=slow_clock_max);
        let faster = self.rng.random_range(clock_unit..=fast_clock_max);
        ClockRate { faster, slower }
    }

    /// Each link between members draws what it is like, in each direction.
    fn draw_links(&mut self, group: GroupId) {
        let Mix { link_slower_max, link_loss_per_mille_max, .. } = self.mix;
        if link_slower_max == 1 && link_loss_per_mille_max == 0 {
            return;
        }
        let members = self.groups.members_of(group);
        for link in members.iter().flat_map(|&a| members.iter().map(move |&b| (a, b))) {
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
        self.run_for(chaos_us / 2)?;
        if self.mix.majority_lost && self.groups.get(GroupId::FIRST).founders.voters().count() > 2 {
            let lost = self.lose_majority(GroupId::FIRST);
            wanted(self.only, lost)?;
        }
        self.run_for(chaos_us - chaos_us / 2)?;
        self.settle()
    }

    /// What the clients of a group saw is looked at, so far as it can't change any more.
    fn judge(&mut self, group: GroupId) -> Result<(), Violation> {
        let now_us = self.now_us();
        let judged = self.groups.get_mut(group).history.judge(now_us);
        judged.map_err(|violation| violation.of(group))
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
        let groups = || self.groups.iter().map(|(_, group)| group);
        Tally {
            commits: groups().map(|group| group.ghost().committed().0).sum(),
            judged: groups().map(|group| group.history.judged + group.kv_history.judged).sum(),
            groups: groups().count() as u64,
            moves: self.ledgers.values().map(Ledger::moves).sum(),
            ..self.tally
        }
    }

    /// The groups that were founded so far.
    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.ids().collect()
    }

    /// What the run has shown so far.
    pub fn ghost(&self) -> &Ghost {
        self.groups.get(self.spoken_of).ghost()
    }

    /// A member.
    pub fn member(&self, id: NodeId) -> &Member {
        self.groups.member(self.spoken_of.member(id))
    }

    /// All members.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.groups.get(self.spoken_of).members.values()
    }

    /// The member that leads, of those that the others can reach; of several, the one in the
    /// latest term.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader_of(self.spoken_of)
    }

    pub(crate) fn leader_of(&self, group: GroupId) -> Option<NodeId> {
        let members = self.groups.get(group).members.values();
        let leaders = members.filter(|member| {
            let id = group.member(member.id);
            self.groups.leads(id) && self.network.is_plugged_in(id)
        });
        leaders.max_by_key(|member| member.standing().term).map(|member| member.id)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        // What was meant for an earlier life of a member is void.
        if happening.life().is_some_and(|life| !self.is_alive(life)) {
            return Ok(());
        }
        match happening {
            Happening::Deliver { from, to, message } => self.deliver(from, to, message),
            Happening::Tick(life) => self.tick(life),
            Happening::Run(life) => self.run_member(life.id)?,
            Happening::Synced(life) => self.synced(life.id)?,
            Happening::Captured(life, stored) => self.captured(life.id, stored)?,
            Happening::Fetched(life, install) => self.fetched(life.id, install)?,
            Happening::Restored(life, root, chunks) => {
                self.give(life.id, Input::Fetched(root, Some(chunks)));
            }
            Happening::Read(life, fetch) => self.read(life.id, fetch)?,
            Happening::Tend(life) => self.tend(life),
            Happening::Talk { from, to, talk } => self.hear_talk(from, to, talk),
            Happening::Think { group, client } => {
                self.judge(group)?;
                self.think(group, client);
            }
            Happening::Attempt { group, client, operation } => {
                self.attempt(group, client, operation)?;
            }
            Happening::LoseHope { group, client, number } => {
                self.lose_hope(group, client, number)?;
            }
            Happening::Ask { to, client, number, request } => {
                if self.network.is_open((address(to.group, client), to)) {
                    self.ask(to, client, number, request)?;
                }
            }
            Happening::Answer { from, client, number, reply } => {
                if self.network.is_open((from, address(from.group, client))) {
                    self.hear(from.group, client, number, reply)?;
                } else {
                    self.lose_answer(client, number);
                }
            }
            Happening::Found { members } => drop(self.found(members)?),
            Happening::Strike(rate) => self.strike(rate)?,
            Happening::Depose(life) => self.depose(life.id)?,
            Happening::Mend(mend) => self.mend(mend)?,
        }
        Ok(())
    }

    fn tick(&mut self, life: Life) {
        self.plan_tick(life);
        self.give(life.id, Input::Tick);
        self.look_at_leases(life.id);
    }

    /// A message arrives. What comes from another group is refused, whoever it says it is, as
    /// raftd's check of identities does.
    fn deliver(&mut self, from: MemberId, to: MemberId, message: Message) {
        let open = self.network.is_open((from, to));
        let known = from.group == to.group || self.plant == Plant::HearOtherGroups;
        if open && known {
            self.tally.messages += 1;
            self.give(to, Input::Message { from: from.node, message });
            return;
        }
        self.tally.strangers += u64::from(open);
        let how = if open { "refuses" } else { "x" };
        let shown = Shown(&message);
        self.trace.line(self.agenda.now_us(), format_args!("{to} {how} {from} {shown}"));
    }

    /// Puts an input into a member's inbox and makes sure that it will be read.
    pub(crate) fn give(&mut self, id: MemberId, input: Input) {
        let batch_us = self.rng.random_range(0..=self.mix.batch_us_max);
        let member = self.groups.member_mut(id);
        if member.give(input) && !member.run_is_due && !member.paused {
            member.run_is_due = true;
            self.agenda.after(batch_us, Happening::Run(member.life()));
        }
    }

    pub(crate) fn draw_member(&mut self, group: GroupId) -> MemberId {
        let members = self.groups.get(group).members.len() as u64;
        group.member(NodeId(self.rng.random_range(1..=members)))
    }
}
