//! The nemesis: crashes, pauses, partitions, bad and clogged links, full disks, and how each ends.

use raft::{NodeId, RoleKind};
use rand::RngExt;

use crate::{
    World,
    agenda::{Happening, Input, Mend},
    disk::Survival,
    fault::{Fault, Rate},
    invariants::Violation,
    network::{Link, Quality},
    step::broken_disk,
    world::address,
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
                for id in self.ids.clone() {
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
                self.trace.line(now_us, format_args!("the disk of n{victim} is full"));
                self.members.get_mut(&victim).expect("every id is a member's").disk.full = true;
                self.agenda.after(lasts_us, Happening::Mend(Mend::FreeDisk(victim)));
            }
            // Whoever takes itself for a leader is asked, also one that is none any more.
            Fault::Transfer => {
                let to = NodeId(self.rng.random_range(1..=self.ids.len() as u64));
                for id in self.ids.clone() {
                    self.transfer(id, to);
                }
            }
            Fault::Reshape => self.reshape()?,
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
    pub(crate) fn depose(&mut self, leader: NodeId) -> Result<(), Violation> {
        let lasts_us = self.rng.random_range(1..=DEPOSED_US_MAX);
        self.trace.line(self.now_us(), format_args!("nemesis: deposes n{leader}"));
        self.tally.deposed += 1;
        if self.rng.random_range(0..3) == 0 {
            self.crash(leader)?;
            self.agenda.after(lasts_us, Happening::Mend(Mend::Start(leader)));
            return Ok(());
        }
        let any = NodeId(self.rng.random_range(1..=self.ids.len() as u64));
        let before = self.last_deposed.replace(leader).filter(|_| self.rng.random_range(0..2) == 0);
        let companion = before.unwrap_or(any);
        let inside = |id: &NodeId| *id == leader || *id == companion;
        let (few, others): (Vec<NodeId>, Vec<NodeId>) = self.ids.iter().partition(|id| inside(id));
        let pairs = few.iter().flat_map(|&a| others.iter().flat_map(move |&b| [(a, b), (b, a)]));
        self.part(pairs.collect(), lasts_us);
        Ok(())
    }

    pub(crate) fn mend(&mut self, mend: Mend) -> Result<(), Violation> {
        match mend {
            Mend::Start(id) => self.start(id),
            Mend::ReplaceLost => self.replace_lost(),
            Mend::Resume(id) => {
                self.resume(id);
                Ok(())
            }
            Mend::FreeDisk(id) => {
                self.trace.line(self.agenda.now_us(), format_args!("the disk of n{id} has room"));
                self.members.get_mut(&id).expect("every id is a member's").disk.full = false;
                Ok(())
            }
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
    pub(crate) fn crash(&mut self, id: NodeId) -> Result<(), Violation> {
        let now_us = self.now_us();
        let damage = self.draw_damage(id);
        let member = self.members.get_mut(&id).expect("every id is a member's");
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
            self.trace.line(now_us, format_args!("n{id} has a damaged disk: {damage:?}"));
        }
        self.tally.crashes += 1;
        self.tally.torn += u64::from(torn);
        let part = if torn { " and a part of the next" } else { "" };
        self.trace.line(now_us, format_args!("n{id} crashes, {writes} writes survive{part}"));
        self.invariants.disk_changed(id, &self.members)
    }

    /// A member starts, unless it is up.
    pub(crate) fn start(&mut self, id: NodeId) -> Result<(), Violation> {
        let now_us = self.now_us();
        let config = self.mix.config;
        let founders = self.founders.clone();
        let member = self.members.get_mut(&id).expect("every id is a member's");
        if member.is_up() {
            return Ok(());
        }
        let seed = self.rng.random();
        let started = member.start(config, founders, seed, now_us);
        if !started.map_err(|why| broken_disk(id, &why))? {
            let why = member.disk().lost().unwrap_or_default();
            self.trace.line(now_us, format_args!("n{id} refuses to start: {why}"));
            return self.replace_lost();
        }
        let image = member.disk().image();
        let (base, last) = (image.base().0, image.last());
        let hard = image.hard_state;
        let line = format_args!("n{id} starts: t{} {:?} log {base}..{last}", hard.term, hard.vote);
        self.trace.line(now_us, line);
        self.invariants.started(member)?;
        let life = member.life();
        self.plan_tick(life);
        Ok(())
    }

    /// A member is stopped; it does not notice.
    pub(crate) fn pause(&mut self, id: NodeId) {
        let now_us = self.now_us();
        let member = self.members.get_mut(&id).expect("every id is a member's");
        if member.is_up() && !member.paused {
            member.paused = true;
            self.tally.pauses += 1;
            self.trace.line(now_us, format_args!("n{id} is paused"));
        }
    }

    /// A member goes on, with all that has come in the meantime.
    pub(crate) fn resume(&mut self, id: NodeId) {
        let now_us = self.now_us();
        let member = self.members.get_mut(&id).expect("every id is a member's");
        if member.paused {
            member.paused = false;
            self.trace.line(now_us, format_args!("n{id} goes on"));
            self.give(id, Input::Tick);
            let member = self.members.get_mut(&id).expect("every id is a member's");
            if !member.run_is_due {
                member.run_is_due = true;
                let life = member.life();
                self.agenda.after(0, Happening::Run(life));
            }
        }
    }

    /// Asks a member to hand its leadership over. Nothing happens if it has none.
    pub(crate) fn transfer(&mut self, from: NodeId, to: NodeId) {
        let member = &self.members[&from];
        if member.is_up() && member.standing().role == RoleKind::Leader {
            self.give(from, Input::Transfer(to));
        }
    }

    fn draw_victim(&mut self) -> NodeId {
        let any = NodeId(self.rng.random_range(1..=self.ids.len() as u64));
        let leads = |id: &NodeId| {
            let member = &self.members[id];
            member.is_up() && member.standing().role == RoleKind::Leader
        };
        let leader = self.ids.iter().copied().find(leads);
        if self.mix.chance(&mut self.rng, self.mix.leader_per_mille) {
            leader.unwrap_or(any)
        } else {
            any
        }
    }

    /// Which links a fault of the network is about: those to or from one member, those between two halves, the
    /// same but for one member that both reach, or a single one.
    fn draw_cut(&mut self, victim: NodeId) -> Vec<Link> {
        let all: Vec<NodeId> = self.ids.iter().copied().collect();
        let others: Vec<NodeId> = all.iter().copied().filter(|&id| id != victim).collect();
        let into = others.iter().map(|&other| (other, victim));
        let out_of = others.iter().map(|&other| (victim, other));
        match self.rng.random_range(0..6) {
            0 => into.chain(out_of).collect(),
            1 => into.collect(),
            2 => out_of.collect(),
            kind @ (3 | 4) => {
                let sides: Vec<(NodeId, bool)> =
                    all.iter().map(|&id| (id, self.rng.random_range(0..2) == 0)).collect();
                let bridge = (kind == 4).then_some(victim);
                let apart = |a: &(NodeId, bool), b: &(NodeId, bool)| {
                    a.1 != b.1 && Some(a.0) != bridge && Some(b.0) != bridge
                };
                let pairs = sides.iter().flat_map(|a| sides.iter().map(move |b| (a, b)));
                pairs.filter(|(a, b)| apart(a, b)).map(|(a, b)| (a.0, b.0)).collect()
            }
            _ => into.take(1).collect(),
        }
    }

    /// Which clients lose a member, or only its answers.
    fn draw_client_cut(&mut self, victim: NodeId) -> Vec<Link> {
        let mut cut = Vec::new();
        for client in (1..=self.mix.clients).map(address) {
            match self.rng.random_range(0..6) {
                0 => cut.extend([(client, victim), (victim, client)]),
                1 => cut.push((victim, client)),
                _ => {}
            }
        }
        cut
    }
}
