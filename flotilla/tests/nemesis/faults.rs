//! The nemesis: what is done to the members, in an order that a seed draws, and that after each blow
//! the group is whole again within bounded time.

use std::sync::Arc;
use std::time::Duration;

use client::KvClient;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clients::{Appetite, Caller, Client};
use crate::group::{Between, Group};
use crate::history::Generations;
use crate::report::Tally;
use crate::support::proxy::Proxies;

/// What a member ends with whose disk is full.
const MACHINE: Option<i32> = Some(71);

/// How long a killed member stays away, in milliseconds.
const AWAY_MS: std::ops::Range<u64> = 100..1_500;

/// How long everything that passes a slow way takes, in milliseconds.
const SLOW_MS: std::ops::Range<u64> = 5..60;

/// How many members are killed in a storm, and how long it is until the next one, in milliseconds.
const STORM: std::ops::Range<u32> = 6..12;
const STORM_MS: std::ops::Range<u64> = 10..300;

/// How many readers come to a member that goes on, and how long before that.
const CROWD: usize = 32;
const CROWD_ARRIVES: Duration = Duration::from_millis(50);

/// What may be done to the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    KillOne,
    KillLeader,
    KillMajority,
    KillAll,
    PauseLeader,
    PauseFollower,
    RestartStorm,
    WipedMember,
    /// All ways are slow.
    SlowLinks,
    /// Nothing reaches one member.
    BlackHole,
    /// As many as can be missed are cut off.
    CutMinority,
    CutLeader,
    /// The leader hears nobody, and is heard.
    DeafLeader,
    /// Nobody hears the leader, who hears all.
    MuteLeader,
    /// Each member has its two neighbours, and with them a majority of its own.
    Ring,
    /// Two halves that only one member joins.
    Bridge,
    FullDisk,
    PowerCut,
}

impl Fault {
    /// What takes processes and proxies.
    pub(crate) const WITHOUT_ROOT: [Self; 10] = [
        Self::KillOne,
        Self::KillLeader,
        Self::KillMajority,
        Self::KillAll,
        Self::PauseLeader,
        Self::PauseFollower,
        Self::RestartStorm,
        Self::WipedMember,
        Self::SlowLinks,
        Self::BlackHole,
    ];

    /// What takes namespaces and disks.
    pub(crate) const WITH_ROOT: [Self; 16] = [
        Self::KillOne,
        Self::KillLeader,
        Self::KillMajority,
        Self::KillAll,
        Self::PauseLeader,
        Self::PauseFollower,
        Self::RestartStorm,
        Self::WipedMember,
        Self::CutMinority,
        Self::CutLeader,
        Self::DeafLeader,
        Self::MuteLeader,
        Self::Ring,
        Self::Bridge,
        Self::FullDisk,
        Self::PowerCut,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillOne => "one killed",
            Self::KillLeader => "leader killed",
            Self::KillMajority => "majority killed",
            Self::KillAll => "all killed",
            Self::PauseLeader => "leader paused",
            Self::PauseFollower => "follower paused",
            Self::RestartStorm => "restart storm",
            Self::WipedMember => "member wiped",
            Self::SlowLinks => "slow links",
            Self::BlackHole => "black hole",
            Self::CutMinority => "minority cut off",
            Self::CutLeader => "leader cut off",
            Self::DeafLeader => "leader deaf",
            Self::MuteLeader => "leader mute",
            Self::Ring => "ring",
            Self::Bridge => "bridge",
            Self::FullDisk => "disk full",
            Self::PowerCut => "power cut",
        }
    }
}

/// Who strikes.
pub(crate) struct Nemesis {
    pub(crate) rng: StdRng,
    /// How long members stand still and ways are cut, in milliseconds.
    pub(crate) hold_ms: std::ops::Range<u64>,
    /// Tells whether writes go on.
    pub(crate) probe: KvClient,
    pub(crate) crowd: Crowd,
}

/// Readers who come at once, for a leader that is about to go on.
pub(crate) struct Crowd {
    pub(crate) hot: Arc<Generations>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) seed: u64,
    /// The number of the last of them.
    pub(crate) last: u64,
}

impl Crowd {
    /// Each asks for one thing in this way. They go when they have been told.
    fn come(&mut self, caller: &Caller) -> JoinSet<()> {
        let mut crowd = JoinSet::new();
        for _ in 0..CROWD {
            self.last += 1;
            let reader = Client::new(caller.clone(), self.last, self.seed, self.tally.clone());
            crowd.spawn(reader.with(Appetite::Reads).work_once(self.hot.clone()));
        }
        crowd
    }
}

impl Nemesis {
    /// Strikes once, lets the group heal, and sees that it is whole.
    pub(crate) async fn strike(&mut self, fault: Fault, group: &mut Group) {
        let all: Vec<usize> = (0..group.len()).collect();
        let any = *all.choose(&mut self.rng).unwrap();
        match fault {
            Fault::KillOne => self.kill(group, &[any]).await,
            Fault::KillLeader => {
                let leader = group.leader().await;
                self.kill(group, &[leader]).await;
            }
            Fault::KillMajority => {
                let victims: Vec<_> =
                    all.sample(&mut self.rng, all.len() / 2 + 1).copied().collect();
                self.kill(group, &victims).await;
            }
            Fault::KillAll => self.kill(group, &all).await,
            Fault::PauseLeader => {
                let leader = group.leader().await;
                self.pause(group, leader).await;
            }
            Fault::PauseFollower => {
                let leader = group.leader().await;
                let followers: Vec<_> = all.into_iter().filter(|slot| *slot != leader).collect();
                let follower = *followers.choose(&mut self.rng).unwrap();
                self.pause(group, follower).await;
            }
            Fault::RestartStorm => self.storm(group).await,
            Fault::WipedMember => group.wipe(any).await,
            Fault::SlowLinks | Fault::BlackHole => self.weather(fault, group, any).await,
            Fault::CutMinority
            | Fault::CutLeader
            | Fault::DeafLeader
            | Fault::MuteLeader
            | Fault::Ring
            | Fault::Bridge => self.cut(fault, group).await,
            Fault::FullDisk => self.fill_a_disk(group).await,
            Fault::PowerCut => self.cut_power(group).await,
        }
        group.caught_up().await;
        self.writes_go_on(fault).await;
    }

    async fn writes_go_on(&self, fault: Fault) {
        let written = self.probe.put("nemesis", fault.name()).await;
        assert!(written.is_ok(), "{}: {}", fault.name(), written.unwrap_err());
    }

    /// For as long as this lasts, a majority is there: writes go on all the while.
    async fn hold(&mut self, fault: Fault) {
        let end = Instant::now() + self.drawn(self.hold_ms.clone());
        self.writes_go_on(fault).await;
        sleep_until(end).await;
        self.writes_go_on(fault).await;
    }

    fn drawn(&mut self, milliseconds: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(milliseconds))
    }

    async fn kill(&mut self, group: &mut Group, victims: &[usize]) {
        victims.iter().for_each(|victim| group.kill(*victim));
        sleep(self.drawn(AWAY_MS)).await;
        victims.iter().for_each(|victim| group.restart(*victim));
    }

    async fn pause(&mut self, group: &mut Group, victim: usize) {
        let caller = Caller::connected(&group.endpoints()[victim]).await;
        group.pause(victim);
        self.hold(Fault::PauseLeader).await;
        // What they ask lies in the sockets when the member goes on.
        let crowd = self.crowd.come(&caller);
        sleep(CROWD_ARRIVES).await;
        group.resume(victim);
        crowd.join_all().await;
    }

    async fn storm(&mut self, group: &mut Group) {
        for _ in 0..self.rng.random_range(STORM) {
            let victim = self.rng.random_range(0..group.len());
            group.kill(victim);
            sleep(self.drawn(STORM_MS)).await;
            group.restart(victim);
        }
    }

    async fn weather(&mut self, fault: Fault, group: &mut Group, any: usize) {
        let delay = self.drawn(SLOW_MS);
        let Between::Proxies(ways) = &group.between else { panic!("there are no proxies") };
        match fault {
            Fault::BlackHole => ways[any].swallow(),
            _ => ways.iter().for_each(|way| way.slow(delay)),
        }
        self.hold(fault).await;
        ways.iter().for_each(Proxies::heal);
    }

    async fn cut(&mut self, fault: Fault, group: &mut Group) {
        let leader = u16::try_from(group.leader().await).unwrap();
        let members = u16::try_from(group.len()).unwrap();
        let Between::Network(network) = &group.between else { panic!("there is no network") };
        let mut order: Vec<u16> = (0..members).collect();
        order.shuffle(&mut self.rng);
        network.cut(&deaf(fault, leader, &order));
        self.hold(fault).await;
        network.heal();
    }

    /// A follower with a disk of its own: a leader with little space refuses what grows.
    async fn fill_a_disk(&mut self, group: &mut Group) {
        let leader = group.leader().await;
        let mut followers = group.with_disks();
        followers.retain(|slot| *slot != leader);
        let victim = *followers.choose(&mut self.rng).unwrap();
        let ended = group.without_room(victim).await;
        self.writes_go_on(Fault::FullDisk).await;
        group.slots[victim].disk.as_ref().unwrap().empty();
        if let Some((code, words)) = ended {
            assert_eq!(code, MACHINE, "{words}");
            group.restart(victim);
        }
    }

    /// What the kernel has not written of what the member wrote is gone.
    async fn cut_power(&mut self, group: &mut Group) {
        let victim = *group.with_disks().choose(&mut self.rng).unwrap();
        group.pause(victim);
        group.slots[victim].disk.as_ref().unwrap().copy();
        group.kill(victim);
        group.slots[victim].disk.as_ref().unwrap().put_copy_back();
        self.writes_go_on(Fault::PowerCut).await;
        group.restart(victim);
    }
}

/// Who hears whom no more: pairs of one who is deaf, and to whom. The order is drawn.
fn deaf(fault: Fault, leader: u16, order: &[u16]) -> Vec<(u16, u16)> {
    let middle = order.len() / 2;
    let others = order.iter().copied().filter(|slot| *slot != leader);
    let both = |pairs: Vec<(u16, u16)>| {
        let turned: Vec<_> = pairs.iter().map(|&(one, other)| (other, one)).collect();
        [pairs, turned].concat()
    };
    let between = |some: &[u16], rest: &[u16]| {
        some.iter().flat_map(|one| rest.iter().map(move |other| (*one, *other))).collect()
    };
    match fault {
        Fault::CutMinority => both(between(&order[..middle], &order[middle..])),
        Fault::CutLeader => both(others.map(|other| (leader, other)).collect()),
        Fault::DeafLeader => others.map(|other| (leader, other)).collect(),
        Fault::MuteLeader => others.map(|other| (other, leader)).collect(),
        Fault::Ring => {
            let apart = |one: usize, other: usize| {
                let distance = one.abs_diff(other);
                distance > 1 && distance < order.len() - 1
            };
            let places = 0..order.len();
            let pairs = places.clone().flat_map(|one| places.clone().map(move |two| (one, two)));
            let pairs = pairs.filter(|&(one, other)| apart(one, other));
            pairs.map(|(one, other)| (order[one], order[other])).collect()
        }
        Fault::Bridge => both(between(&order[..middle], &order[middle + 1..])),
        _ => panic!("{} cuts nothing", fault.name()),
    }
}
