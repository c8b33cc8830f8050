//! The nemesis: crashes, pauses, partitions, bad and clogged links, full disks, and how each ends.

use raft::NodeId;
use rand::RngExt;

use crate::{
    World,
    agenda::{Happening, Input, Mend},
    client::address,
    disk::Survival,
    fault::{Fault, Rate},
    group::{Group, GroupId, MemberId},
    invariants::Violation,
    network::{Link, Quality},
    step::broken_disk,
};

/// For how long a new leader is deposed.
const DEPOSED_US_MAX: u64 = 1_000_000;

impl World {
    pub(crate) fn plan_strike(&mut self, rate: Rate) {
        let delay_us = self.rng.random_range(1..=2 * rate.every_us);
        self.agenda.after(delay_us, Happening::Strike(rate));
    }

    pub(crate) fn strike(&mut self, rate: Rate) -> Result<(), Violation> {
        self.plan_strike(rate);
        let now_us = self.now_us();
        let lasts_us = self.rng.random_range(1..=rate.lasts_us_max);
        let victim = self.draw_victim();
        self.trace.line(now_us, format_args!("nemesis: {} for {lasts_us} us", rate.fault.name()));
        match rate.fault {
            Fault::Crash => {
                self.crash(victim)?;
                self.agenda.after(lasts_us, Happening::Mend(Mend::Start(victim)));
            }
            Fault::CrashMany => {
                let all = self.rng.random_range(0..3) == 0;
                for id in self.groups.members() {
                    if all || self.rng.random_range(0..2) == 0 {
                        self.crash(id)?;
                        let down_us = self.rng.random_range(1..=lasts_us);
                        self.agenda.after(down_us, Happening::Mend(Mend::Start(id)));
                    }
                }
            }
            Fault::Pause => {
                self.pause(victim);
                self.agenda.after(lasts_us, Happening::Mend(Mend::Resume(victim)));
            }
            Fault::Partition => {
                let mut cut = self.draw_cut(victim);
                cut.extend(self.draw_client_cut(victim));
                self.part(cut, lasts_us);
            }
            Fault::Clog => {
                let links = self.draw_cut(victim);
                self.tally.clogs += 1;
                self.trace.line(now_us, format_args!("clogged: {links:?}"));
                self.network.clog(links, now_us + lasts_us);
            }
            Fault::Degrade => {
                let links = self.draw_cut(victim);
                let lossy = self.rng.random_range(0..2) == 0;
                let quality = if lossy {
                    Quality { slower: 1, loss_per_mille: 500 }
                } else {
                    Quality { slower: self.rng.random_range(2..=20), loss_per_mille: 0 }
                };
                self.tally.degraded += 1;
                self.trace.line(now_us, format_args!("{quality:?}: {links:?}"));
                self.network.degrade(links, now_us + lasts_us, quality);
            }
            Fault::FullDisk => {
                self.trace.line(now_us, format_args!("the disk of {victim} is full"));
                self.groups.member_mut(victim).disk.full = true;
                self.agenda.after(lasts_us, Happening::Mend(Mend::FreeDisk(victim)));
            }
            // Whoever takes itself for a leader is asked, also one that is none any more.
            Fault::Transfer => {
                let to = self.draw_member(victim.group);
                for id in self.groups.members_of(victim.group) {
                    self.transfer(id, to.node);
                }
            }
            Fault::Reshape => self.reshape(victim.group)?,
            Fault::StopGroup => {
                self.stop_group(victim.group)?;
                self.agenda.after(lasts_us, Happening::Mend(Mend::StartGroup(victim.group)));
            }
        }
        Ok(())
    }

    /// Takes these links away, and gives back those that were taken before.
    fn part(&mut self, cut: Vec<Link>, lasts_us: u64) {
        self.partitions += 1;
        self.tally.partitions += 1;
        self.trace.line(self.agenda.now_us(), format_args!("cut: {cut:?}"));
        self.network.heal();
        self.network.cut(cut);
        let partition = self.partitions;
        self.agenda.after(lasts_us, Happening::Mend(Mend::Heal { partition }));
    }

    /// A new leader dies, or is cut off, alone or with one other: so logs part from each other. The
    /// other is often the leader before, which loses then what third ones have of it: that is how
    /// figure 8 of the paper begins.
    pub(crate) fn depose(&mut self, leader: MemberId) -> Result<(), Violation> {
        let lasts_us = self.rng.random_range(1..=DEPOSED_US_MAX);
        self.trace.line(self.now_us(), format_args!("nemesis: deposes {leader}"));
        self.tally.deposed += 1;
        if self.rng.random_range(0..3) == 0 {
            self.crash(leader)?;
            self.agenda.after(lasts_us, Happening::Mend(Mend::Start(leader)));
            return Ok(());
        }
        let any = self.draw_member(leader.group);
        let before = self.groups.get_mut(leader.group).last_deposed.replace(leader.node);
        let before = before.filter(|_| self.rng.random_range(0..2) == 0);
        let companion = before.map_or(any, |before| leader.group.member(before));
        let inside = |id: &MemberId| *id == leader || *id == companion;
        let (few, others): (Vec<MemberId>, Vec<MemberId>) =
            self.groups.members_of(leader.group).into_iter().partition(inside);
        let pairs = few.iter().flat_map(|&a| others.iter().flat_map(move |&b| [(a, b), (b, a)]));
        self.part(pairs.collect(), lasts_us);
        Ok(())
    }

    pub(crate) fn mend(&mut self, mend: Mend) -> Result<(), Violation> {
        match mend {
            Mend::Start(id) => self.start(id),
            Mend::ReplaceLost(group) => self.replace_lost(group),
            Mend::Resume(id) => {
                self.resume(id);
                Ok(())
            }
            Mend::FreeDisk(id) => {
                self.trace.line(self.agenda.now_us(), format_args!("the disk of {id} has room"));
                self.groups.member_mut(id).disk.full = false;
                Ok(())
            }
            Mend::StartGroup(group) => self.start_group(group),
            Mend::Heal { partition } => {
                if partition == self.partitions {
                    self.trace.line(self.agenda.now_us(), format_args!("healed"));
                    self.network.heal();
                }
                Ok(())
            }
        }
    }

    /// The power of a member fails. Nothing happens if it is down.
    pub(crate) fn crash(&mut self, id: MemberId) -> Result<(), Violation> {
        let now_us = self.now_us();
        let damage = self.draw_damage(id);
        let member = self.groups.member_mut(id);
        if !member.is_up() {
            return Ok(());
        }
        let survival = member.crash(&mut self.rng, &self.mix, damage);
        let survival = survival.map_err(|why| broken_disk(id, &why))?;
        let Survival { writes, torn, damaged } = survival;
        let refused = member.disk().lost().is_some();
        if damaged {
            self.tally.disks_refused += u64::from(refused);
            self.tally.damage_harmless += u64::from(!refused);
            self.trace.line(now_us, format_args!("{id} has a damaged disk: {damage:?}"));
        }
        self.tally.crashes += 1;
        self.tally.torn += u64::from(torn);
        let part = if torn { " and a part of the next" } else { "" };
        self.trace.line(now_us, format_args!("{id} crashes, {writes} writes survive{part}"));
        let Group { members, invariants, .. } = self.groups.get_mut(id.group);
        invariants.disk_changed(id.node, members)
    }

    /// All members of a group go down, and stay so.
    pub(crate) fn stop_group(&mut self, group: GroupId) -> Result<(), Violation> {
        self.tally.groups_stopped += 1;
        self.groups.get_mut(group).stopped = true;
        self.groups.members_of(group).into_iter().try_for_each(|id| self.crash(id))
    }

    /// All members of a group start that are not up.
    pub(crate) fn start_group(&mut self, group: GroupId) -> Result<(), Violation> {
        self.groups.get_mut(group).stopped = false;
        self.groups.members_of(group).into_iter().try_for_each(|id| self.start(id))
    }

    /// A message may come to a member of another group that has the same name there.
    pub(crate) fn misdirect(&mut self, to: MemberId) -> MemberId {
        if !self.mix.chance(&mut self.rng, self.mix.misdirected_per_mille) {
            return to;
        }
        let group = self.draw_group();
        let is_there = self.groups.get(group).members.contains_key(&to.node);
        if is_there { group.member(to.node) } else { to }
    }

    /// A member starts, unless it is up or its group is stopped.
    pub(crate) fn start(&mut self, id: MemberId) -> Result<(), Violation> {
        let now_us = self.now_us();
        let config = self.mix.config;
        let Group { founders, members, invariants, stopped, .. } = self.groups.get_mut(id.group);
        let member = members.get_mut(&id.node).expect("every id is a member's");
        if member.is_up() || *stopped {
            return Ok(());
        }
        let seed = self.rng.random();
        let started = member.start(config, founders.clone(), seed, now_us);
        if !started.map_err(|why| broken_disk(id, &why))? {
            let why = member.disk().lost().unwrap_or_default();
            self.trace.line(now_us, format_args!("{id} refuses to start: {why}"));
            return self.call_operator(id.group);
        }
        let image = member.disk().image();
        let (base, last) = (image.base().0, image.last());
        let hard = image.hard_state;
        let line = format_args!("{id} starts: t{} {:?} log {base}..{last}", hard.term, hard.vote);
        self.trace.line(now_us, line);
        invariants.started(member)?;
        let life = member.life();
        self.plan_tick(life);
        self.plan_tending(life);
        Ok(())
    }

    /// A member is stopped; it does not notice.
    pub(crate) fn pause(&mut self, id: MemberId) {
        let now_us = self.now_us();
        let member = self.groups.member_mut(id);
        if member.is_up() && !member.paused {
            member.paused = true;
            self.tally.pauses += 1;
            self.trace.line(now_us, format_args!("{id} is paused"));
        }
    }

    /// A member goes on, with all that has come in the meantime.
    pub(crate) fn resume(&mut self, id: MemberId) {
        let now_us = self.now_us();
        let member = self.groups.member_mut(id);
        if member.paused {
            member.paused = false;
            self.trace.line(now_us, format_args!("{id} goes on"));
            self.give(id, Input::Tick);
            let member = self.groups.member_mut(id);
            if !member.run_is_due {
                member.run_is_due = true;
                let life = member.life();
                self.agenda.after(0, Happening::Run(life));
            }
        }
    }

    /// Asks a member to hand its leadership over. Nothing happens if it has none.
    pub(crate) fn transfer(&mut self, from: MemberId, to: NodeId) {
        if self.groups.leads(from) {
            self.give(from, Input::Transfer(to));
        }
    }

    /// Any group. The dice are rolled only where there are several.
    fn draw_group(&mut self) -> GroupId {
        let groups: Vec<GroupId> = self.groups.ids().collect();
        match groups.as_slice() {
            [only] => *only,
            several => several[self.rng.random_range(0..several.len())],
        }
    }

    fn draw_victim(&mut self) -> MemberId {
        let group = self.draw_group();
        let any = self.draw_member(group);
        let members = self.groups.members_of(group);
        let leader = members.into_iter().find(|&id| self.groups.leads(id));
        if self.mix.chance(&mut self.rng, self.mix.leader_per_mille) {
            leader.unwrap_or(any)
        } else {
            any
        }
    }

    /// Which links a fault of the network is about: those to or from one member, those between two halves, the
    /// same but for one member that both reach, or a single one.
    fn draw_cut(&mut self, victim: MemberId) -> Vec<Link> {
        let all = self.groups.members();
        let is_peer = |id: &MemberId| id.group == victim.group && *id != victim;
        let others: Vec<MemberId> = all.iter().copied().filter(is_peer).collect();
        let into = others.iter().map(|&other| (other, victim));
        let out_of = others.iter().map(|&other| (victim, other));
        match self.rng.random_range(0..6) {
            0 => into.chain(out_of).collect(),
            1 => into.collect(),
            2 => out_of.collect(),
            kind @ (3 | 4) => {
                let sides: Vec<(MemberId, bool)> =
                    all.iter().map(|&id| (id, self.rng.random_range(0..2) == 0)).collect();
                let bridge = (kind == 4).then_some(victim);
                let apart = |a: &(MemberId, bool), b: &(MemberId, bool)| {
                    let linked = a.0.group == b.0.group;
                    linked && a.1 != b.1 && Some(a.0) != bridge && Some(b.0) != bridge
                };
                let pairs = sides.iter().flat_map(|a| sides.iter().map(move |b| (a, b)));
                pairs.filter(|(a, b)| apart(a, b)).map(|(a, b)| (a.0, b.0)).collect()
            }
            _ => into.take(1).collect(),
        }
    }

    /// Which clients lose a member, or only its answers.
    fn draw_client_cut(&mut self, victim: MemberId) -> Vec<Link> {
        let mut cut = Vec::new();
        for client in (1..=self.mix.clients).map(|client| address(victim.group, client)) {
            match self.rng.random_range(0..6) {
                0 => cut.extend([(client, victim), (victim, client)]),
                1 => cut.push((victim, client)),
                _ => {}
            }
        }
        cut
    }
}
