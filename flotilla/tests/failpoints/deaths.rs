//! Who dies where and when, how it is told to, and how it comes back.

use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use flotilla::local::Instance;
use proto::admin::StatusReply;
use raftd::failpoint::{Failpoint, VARIABLE};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use super::support::TestCluster;

pub(super) const MEMBERS: u16 = 3;
pub(super) const CLIENTS: usize = 4;

/// How long anything may take that is waited for.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Small logs, so that snapshots are due all the time and a dead member needs one.
pub(super) const SETTINGS: &str =
    "[group]\nsnapshot_log_bytes_min = 20000\nretained_bytes = 1000\nretained_bytes_max = 1000\n";

/// Clients write for so long, and then pause: what can wait waits until nobody writes.
pub(super) const BURST: Duration = Duration::from_millis(700);
pub(super) const PAUSE: Duration = Duration::from_millis(350);

/// How much of each member's log is told when one does not die.
const TOLD_LINES: usize = 40;

const ABORTED: Option<i32> = Some(6);

/// A member that dies.
#[derive(Debug)]
struct Death {
    at: Failpoint,
    /// At which visit.
    visit: u64,
    /// Whether it leads when it dies, if it comes to that in time.
    leads: bool,
}

/// How often a member comes to a place.
pub(super) enum Visits {
    /// With every write.
    Often,
    /// Some times in a second.
    Sometimes,
    /// When it starts, or when it votes.
    Seldom,
    /// When the log has outgrown the member.
    Behind,
    /// When leases are over, if it leads.
    Leases,
    /// No member of these groups dies there; `recover.rs`, `corruption.rs`, `moving.rs` and
    /// `job_journal.rs` look at these.
    Never,
}

pub(super) fn visits(at: Failpoint) -> Visits {
    match at {
        Failpoint::LogAppendBefore
        | Failpoint::LogSyncBefore
        | Failpoint::LogSyncAfter
        | Failpoint::FloorWriteBefore
        | Failpoint::AnswerBefore
        | Failpoint::ApplyBefore
        | Failpoint::ApplyAfter => Visits::Often,
        Failpoint::FloorSyncBefore
        | Failpoint::FloorSyncAfter
        | Failpoint::SnapshotCreateBefore
        | Failpoint::SnapshotCreateBetween
        | Failpoint::SnapshotCreateAfter
        | Failpoint::CompactRootBefore
        | Failpoint::CompactRootAfter
        | Failpoint::CompactSweepBefore
        | Failpoint::CompactSweepAfter
        | Failpoint::CompactRepackAfter
        | Failpoint::CompactChunksAfter => Visits::Sometimes,
        Failpoint::OpenFloorBefore | Failpoint::FloorWriteBetween => Visits::Seldom,
        Failpoint::SnapshotInstallBetween
        | Failpoint::SnapshotInstallBefore
        | Failpoint::SnapshotInstallAfter => Visits::Behind,
        Failpoint::ExpireProposeBefore | Failpoint::ExpireProposeAfter => Visits::Leases,
        Failpoint::StateFlip
        | Failpoint::MoveHoldAfter
        | Failpoint::MoveBeginAfter
        | Failpoint::MoveImportAfter
        | Failpoint::MoveFreezeAfter
        | Failpoint::MoveInstallBefore
        | Failpoint::MoveInstallAfter
        | Failpoint::MoveReportAfter
        | Failpoint::MoveDeleteBefore
        | Failpoint::MoveDeleteAfter
        | Failpoint::PublishMoveBefore
        | Failpoint::PublishSuccessBefore
        | Failpoint::PublishSwapBefore
        | Failpoint::PublishSwapAfter
        | Failpoint::RecoverIdentityBefore
        | Failpoint::RecoverEntryBefore
        | Failpoint::RecoverEndBefore
        | Failpoint::RecoverEndAfter => Visits::Never,
    }
}

impl Death {
    fn draw(at: Failpoint, rng: &mut StdRng) -> Self {
        let leads = matches!(visits(at), Visits::Leases) || rng.random();
        let visit = match (visits(at), leads) {
            (Visits::Often, false) => rng.random_range(1..400),
            // It takes a while to lead.
            (Visits::Often, true) => rng.random_range(600..1_200),
            (Visits::Sometimes | Visits::Leases, _) => rng.random_range(1..=3),
            (Visits::Seldom | Visits::Behind | Visits::Never, _) => 1,
        };
        Self { at, visit, leads }
    }
}

/// Three members of a service, of which one after the other dies.
pub(super) struct Victims {
    pub(super) test: TestCluster,
    /// Its members' client ports, in the order of their numbers.
    pub(super) endpoints: Vec<String>,
    instance: fn(u16) -> Instance,
    rng: StdRng,
    /// How many members died, and how many of them as leaders.
    deaths: usize,
    leaders: usize,
}

impl Victims {
    pub(super) fn new(
        test: TestCluster,
        endpoints: Vec<String>,
        instance: fn(u16) -> Instance,
    ) -> Self {
        let seed = std::env::var("FLOTILLA_FAILPOINT_SEED").map_or(1, |seed| seed.parse().unwrap());
        let rng = StdRng::seed_from_u64(seed);
        Self { test, endpoints, instance, rng, deaths: 0, leaders: 0 }
    }

    pub(super) fn endpoint(&self, node: u16) -> String {
        self.endpoints[usize::from(node) - 1].clone()
    }

    pub(super) async fn status(&self, node: u16) -> Option<StatusReply> {
        client::admin::status(&self.endpoint(node), Duration::from_millis(500)).await.ok()
    }

    /// Which of the members leads, except one.
    async fn leader_but(&self, but: u16) -> u16 {
        let deadline = Instant::now() + DEADLINE;
        loop {
            for node in (1..=MEMBERS).filter(|node| *node != but) {
                if let Some(status) = self.status(node).await
                    && status.leader == u64::from(node)
                {
                    return node;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// One member dies at this place and comes back.
    pub(super) async fn round(&mut self, at: Failpoint) {
        let begun = Instant::now();
        let death = Death::draw(at, &mut self.rng);
        let leader = self.leader_but(0).await;
        let follower = (leader + self.rng.random_range(0..MEMBERS - 1)) % MEMBERS + 1;
        let victim = if death.leads { leader } else { follower };
        self.die(victim, &death).await;
        let instance = (self.instance)(victim);
        self.test.cluster.process(instance).unwrap().set_environment(Vec::new());
        self.test.cluster.restart(instance).unwrap();
        self.test.cluster.ready_one(instance, Instant::now() + DEADLINE).await.unwrap();
        self.deaths += 1;
        let Death { at, visit, leads } = death;
        eprintln!("{}@{visit}, leader: {leads}, {:?}", at.name(), begun.elapsed());
    }

    /// Tells how it went, and whether it was worth it.
    pub(super) fn finish(&self, acknowledged: usize) {
        let Self { deaths, leaders, .. } = self;
        eprintln!("{deaths} deaths, {leaders} of leaders, {acknowledged} writes acknowledged");
        assert!(acknowledged > 50 * deaths, "the clients hardly wrote");
        assert!(*deaths < 20 || *leaders > 0, "no leader ever died");
    }

    /// Starts a member anew that dies where and when it is told, and waits for that.
    async fn die(&mut self, victim: u16, death: &Death) {
        let instance = (self.instance)(victim);
        self.test.cluster.kill(instance).unwrap();
        let deadline = Instant::now() + DEADLINE;
        if matches!(visits(death.at), Visits::Behind) {
            self.leave_behind(victim, deadline).await;
        }
        let asked = format!("{}=crash@{}", death.at.name(), death.visit);
        let process = self.test.cluster.process(instance).unwrap();
        process.set_environment(vec![(VARIABLE.to_owned(), asked)]);
        process.start().unwrap();
        let mut led = false;
        let ended = loop {
            if let Some(ended) = self.test.cluster.take_ended().into_iter().next() {
                break ended;
            }
            if Instant::now() >= deadline {
                panic!("{instance} does not die: {death:?}{}", self.told().await);
            }
            if death.leads && !led && !matches!(visits(death.at), Visits::Seldom) {
                led = self.hand_over(victim).await;
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.leaders += usize::from(led);
        assert_eq!((ended.instance, ended.status.signal()), (instance, ABORTED), "{ended}");
        // Other threads may say something between the words and the end.
        let tells = |words: &str| {
            words.contains("ERROR")
                && words.contains("crashing at a failpoint")
                && words.contains(death.at.name())
        };
        assert!(ended.tail.lines().any(tells), "{death:?}: {}", ended.tail);
    }

    /// Waits until only a snapshot helps one that died: nobody has what comes behind its log.
    async fn leave_behind(&self, dead: u16, deadline: Instant) {
        let others = || (1..=MEMBERS).filter(|node| *node != dead);
        let mut end = 0;
        for node in others() {
            // The first that is told may be older than the death; what comes after it is not.
            let first = self.status_when(node, deadline, |_| true).await.last_index;
            let next = self.status_when(node, deadline, |next| next.last_index > first).await;
            end = end.max(next.last_index);
        }
        for node in others() {
            self.status_when(node, deadline, |status| status.first_index > end + 1).await;
        }
    }

    async fn status_when(
        &self,
        node: u16,
        deadline: Instant,
        is_so: impl Fn(&StatusReply) -> bool,
    ) -> StatusReply {
        loop {
            match self.status(node).await {
                Some(status) if is_so(&status) => return status,
                status => assert!(Instant::now() < deadline, "{node} tells only {status:?}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the members say of themselves, and what they said last but for snapshots.
    async fn told(&mut self) -> String {
        let mut told = String::new();
        for node in 1..=MEMBERS {
            let status = self.status(node).await;
            let process = self.test.cluster.process((self.instance)(node)).unwrap();
            let log = std::fs::read_to_string(process.log()).unwrap();
            let lines: Vec<_> =
                log.lines().filter(|line| !line.contains("stored a snap")).collect();
            let last = lines[lines.len().saturating_sub(TOLD_LINES)..].join("\n");
            write!(told, "\n{node}: {status:?}\n{last}").unwrap();
        }
        told
    }

    /// Makes a member the leader. False: not yet.
    async fn hand_over(&self, to: u16) -> bool {
        for node in (1..=MEMBERS).filter(|node| *node != to) {
            let (endpoint, limit) = (self.endpoint(node), Duration::from_secs(2));
            match client::admin::transfer(&endpoint, Some(to.into()), limit).await {
                Ok(leader) if leader == u64::from(to) => return true,
                Ok(_) | Err(_) => {}
            }
        }
        false
    }
}
