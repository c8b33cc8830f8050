//! A store of three groups under three controllers, whose shards move while members, whole groups and
//! the controllers' leader die.
//!
//! Some ask by the map, some ask members of one group, which pass on what is not theirs. In the end
//! nothing of any shard is in two groups.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::shards::{Change, Changed};
use client::{Error, KvClient, Options, ShardClient};
use flotilla::local::Instance;
use proto::admin::Role;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::clients::{Appetite, Caller};
use crate::faults::Crowd;
use crate::support::TestCluster;
use crate::support::groups::{
    SETTLE_LIMIT, SHARDS, controller, expect_apart, join, settled, start,
};
use crate::{DEADLINES, Judged, PATIENCE, Plan, Torment, Tormented};

const GROUPS: u16 = 3;
const MEMBERS: u16 = 3;
const CONTROLLERS: u16 = 3;

/// How many ask by the map, and how many ask the members of one group.
const BY_MAP: usize = 7;
const BY_GROUP: usize = 3;

/// How long a member may take to say how it is.
const STATUS_LIMIT: Duration = Duration::from_millis(500);

/// What happens to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upheaval {
    /// A group comes that is not there, or one goes.
    JoinOrLeave,
    /// One goes, or the one that is not there comes.
    LeaveOrJoin,
    MoveShards,
    KillMember,
    KillGroup,
    /// In the middle of a change.
    KillControllersLeader,
}

impl Upheaval {
    pub(crate) const ALL: [Self; 6] = [
        Self::JoinOrLeave,
        Self::LeaveOrJoin,
        Self::MoveShards,
        Self::KillMember,
        Self::KillGroup,
        Self::KillControllersLeader,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::JoinOrLeave => "a group joins",
            Self::LeaveOrJoin => "a group leaves",
            Self::MoveShards => "shards are moved",
            Self::KillMember => "a member killed",
            Self::KillGroup => "a whole group killed",
            Self::KillControllersLeader => "the controllers' leader killed",
        }
    }
}

/// The store.
pub(crate) struct Fleet {
    test: TestCluster,
    shards: ShardClient,
    /// The groups that take part.
    joined: BTreeSet<u16>,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        let test = start(GROUPS, MEMBERS, CONTROLLERS).await;
        let shards = controller(&test);
        shards.change(&join(&test, &[1, 2]), Some(SHARDS)).await.unwrap();
        settled(&shards).await;
        Self { test, shards, joined: BTreeSet::from([1, 2]) }
    }

    /// A change that makes more groups, or fewer, as it is wanted and can be.
    fn change(&mut self, more: bool, rng: &mut StdRng) -> Change {
        let absent: Vec<_> = (1..=GROUPS).filter(|group| !self.joined.contains(group)).collect();
        let comes = if more { !absent.is_empty() } else { self.joined.len() == 1 };
        if comes {
            let group = absent.into_iter().choose(rng).unwrap();
            self.joined.insert(group);
            return join(&self.test, &[group]);
        }
        let group = *self.joined.iter().choose(rng).unwrap();
        self.joined.remove(&group);
        Change::Leave(vec![group.into()])
    }

    async fn ask(&self, change: &Change) -> Changed {
        self.shards.change(change, None).await.unwrap_or_else(|error| panic!("{change:?}: {error}"))
    }

    async fn strike(&mut self, upheaval: Upheaval, hold: Duration, rng: &mut StdRng) {
        match upheaval {
            Upheaval::JoinOrLeave | Upheaval::LeaveOrJoin => {
                let change = self.change(upheaval == Upheaval::JoinOrLeave, rng);
                self.ask(&change).await;
            }
            Upheaval::MoveShards => {
                for _ in 0..3 {
                    let shard = rng.random_range(0..SHARDS);
                    let group = u32::from(*self.joined.iter().choose(rng).unwrap());
                    self.ask(&Change::Move { shard, group }).await;
                }
            }
            Upheaval::KillMember => {
                let victim = rng.random_range(1..=GROUPS * MEMBERS);
                self.kill(&[Instance::Kvd(victim)], hold).await;
            }
            Upheaval::KillGroup => {
                let group = rng.random_range(1..=GROUPS);
                let members = self.test.cluster.description().group(group);
                self.kill(&members.map(Instance::Kvd).collect::<Vec<_>>(), hold).await;
            }
            Upheaval::KillControllersLeader => {
                let more = rng.random();
                let change = self.change(more, rng);
                let leader = self.controllers_leader().await;
                let shards = self.shards.clone();
                let asked: JoinHandle<Result<Changed, Error>> =
                    tokio::spawn(async move { shards.change(&change, None).await });
                self.kill(&[leader], hold).await;
                asked.await.unwrap().unwrap();
            }
        }
    }

    async fn kill(&mut self, victims: &[Instance], hold: Duration) {
        for victim in victims {
            self.test.cluster.kill(*victim).unwrap();
        }
        sleep(hold).await;
        for victim in victims {
            self.test.cluster.restart(*victim).unwrap();
        }
    }

    fn controllers(&self) -> Vec<String> {
        self.test.cluster.description().controller_endpoints()
    }

    async fn controllers_leader(&self) -> Instance {
        let until = Instant::now() + SETTLE_LIMIT;
        loop {
            for (number, endpoint) in (1..).zip(self.controllers()) {
                if let Ok(status) = client::admin::status(&endpoint, STATUS_LIMIT).await
                    && status.role() == Role::Leader
                {
                    return Instance::Shardctl(number);
                }
            }
            assert!(Instant::now() < until, "no controller leads");
        }
    }

    fn by_map(&self, deadline: Duration) -> Caller {
        let attempt = (deadline / 3).min(Options::default().attempt);
        let options = Options { attempt, ..Options::with_deadline(deadline) };
        Caller::Library(KvClient::connect_sharded(self.controllers(), options).unwrap())
    }
}

impl Tormented for Fleet {
    type Fault = Upheaval;

    fn callers(&self) -> Vec<(Caller, Appetite)> {
        let deadline = |number: usize| DEADLINES[number % DEADLINES.len()];
        let by_map = (0..BY_MAP).map(|number| self.by_map(deadline(number)));
        let description = self.test.cluster.description();
        let by_group = (0..BY_GROUP).zip(1..).map(|(number, group)| {
            Caller::library(description.group_endpoints(group), deadline(number))
        });
        let bare = description.kv_endpoints().into_iter().map(|endpoint| Caller::bare(&endpoint));
        by_map.chain(by_group).chain(bare).map(|caller| (caller, Appetite::Everything)).collect()
    }

    fn reader(&self) -> Caller {
        self.by_map(PATIENCE)
    }

    fn watched(&self) -> Vec<Vec<String>> {
        let description = self.test.cluster.description();
        let groups = (1..=GROUPS).map(|group| description.group_endpoints(group));
        groups.chain([self.controllers()]).collect()
    }

    async fn torment(
        &mut self,
        plan: &Plan<Upheaval>,
        crowd: Crowd,
        judge: &JoinHandle<Result<Judged, String>>,
    ) -> BTreeMap<&'static str, u64> {
        let mut rng = StdRng::seed_from_u64(crowd.seed);
        let mut torment = Torment::new(plan, Upheaval::name);
        while !judge.is_finished()
            && let Some(upheaval) = torment.next(&mut rng, &crowd.tally, Upheaval::name)
        {
            let hold = Duration::from_millis(rng.random_range(plan.hold_ms.clone()));
            self.strike(upheaval, hold, &mut rng).await;
            // Some changes come before the last one is complete.
            if rng.random() {
                settled(&self.shards).await;
            }
            sleep(plan.rest).await;
        }
        settled(&self.shards).await;
        torment.faults
    }

    async fn check(&mut self) {
        let ended = self.test.cluster.take_ended();
        assert!(ended.is_empty(), "ended by themselves: {ended:?}");
        let map = settled(&self.shards).await;
        let loads = expect_apart(&self.test, &[1, 2, 3], &map).await;
        eprintln!("shards of the groups in the end: {loads:?}");
    }
}
