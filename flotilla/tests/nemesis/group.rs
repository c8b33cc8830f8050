//! The members that are tormented: real processes at addresses that stay, whoever is behind them.
//!
//! Each runs behind a proxy on its peer port, or in a network namespace of its own; two of those in
//! namespaces have a disk of their own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flotilla::local::Instance;
use flotilla::local::place::{Claim, Place, beside};
use flotilla::local::process::{Launch, Process, tail};
use proto::admin::{Role, StatusReply};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::disk::Disk;
use crate::network::{Network, address};
use crate::support::proxy::Proxies;
use crate::support::{FLOTILLA, READY_TIMEOUT, flotilla, well};

/// What a member ends with whose disk is another one.
const CONFIGURATION: Option<i32> = Some(78);

const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a member may take to say how it is.
const STATUS_LIMIT: Duration = Duration::from_millis(500);

/// A member that has applied so much more without more room on its disk goes on.
const APPLIED_WITHOUT_ROOM: u64 = 10_000;

/// So many of the members in namespaces have a disk of their own.
const DISKS: u16 = 2;

/// A place for a member.
pub(crate) struct Slot {
    process: Process,
    /// Who is there.
    pub(crate) node: u64,
    /// It was there when the group was born, and knows nobody but those.
    is_founder: bool,
    client: SocketAddr,
    /// Where its peers reach it.
    peer: SocketAddr,
    data: PathBuf,
    pub(crate) disk: Option<Disk>,
    further: Vec<String>,
}

/// What is between the members.
pub(crate) enum Between {
    /// A proxy on the way to each.
    Proxies(Vec<Proxies>),
    Network(Network),
}

/// The members, by the number of their slot.
pub(crate) struct Group {
    // Dropped in this order: processes end before their disks and their directory go.
    pub(crate) slots: Vec<Slot>,
    pub(crate) between: Between,
    last_node: u64,
    _claim: Option<Claim>,
    _dir: TempDir,
}

impl Group {
    /// Starts members on a loopback address of their own, each behind a proxy.
    pub(crate) async fn behind_proxies(members: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (place, claim) = Place::draw().unwrap();
        let (mut proxies, mut slots) = (Vec::new(), Vec::new());
        for slot in 0..members {
            let client = place.kvd(slot + 1);
            let [peer, _] = beside(client);
            let mut proxy = Proxies::new();
            let way = proxy.open(peer).await;
            proxies.push(proxy);
            let further = vec![format!("--peer-advertise={way}")];
            let data = dir.path().join(format!("data-{slot}"));
            slots.push(Slot::new(&dir, FLOTILLA.into(), slot, client, way, data, further));
        }
        Self::start(slots, Between::Proxies(proxies), Some(claim), dir).await
    }

    /// Starts members in network namespaces.
    pub(crate) async fn in_namespaces(members: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::new(members);
        let member = |slot: u16| {
            let program = Network::program(dir.path(), FLOTILLA, slot);
            let (client, [peer, _]) = (address(slot), beside(address(slot)));
            let disk = (slot < DISKS).then(|| Disk::new(dir.path(), &format!("disk-{slot}")));
            let data = dir.path().join(format!("data-{slot}"));
            let data = disk.as_ref().map_or(data, Disk::data);
            let further = vec!["--insecure".to_owned()];
            let slot = Slot::new(&dir, program, slot, client, peer, data, further);
            Slot { disk, ..slot }
        };
        let slots = (0..members).map(member).collect();
        Self::start(slots, Between::Network(network), None, dir).await
    }

    async fn start(
        mut slots: Vec<Slot>,
        between: Between,
        claim: Option<Claim>,
        dir: TempDir,
    ) -> Self {
        let member = |slot: &Slot| format!("--member={}={},{}", slot.node, slot.client, slot.peer);
        let founders: Vec<String> = slots.iter().map(member).collect();
        for slot in &mut slots {
            slot.begin_with(&founders);
        }
        let last_node = slots.len() as u64;
        let mut group = Self { slots, between, last_node, _claim: claim, _dir: dir };
        group.caught_up().await;
        group
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Where clients reach each member.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.slots.iter().map(|slot| slot.client.to_string()).collect()
    }

    /// The slots whose members have a disk of their own.
    pub(crate) fn with_disks(&self) -> Vec<usize> {
        (0..self.len()).filter(|slot| self.slots[*slot].disk.is_some()).collect()
    }

    pub(crate) fn kill(&mut self, slot: usize) {
        self.slots[slot].process.kill();
    }

    pub(crate) fn restart(&mut self, slot: usize) {
        self.slots[slot].process.start().unwrap_or_else(|failure| panic!("{failure}"));
    }

    pub(crate) fn pause(&self, slot: usize) {
        self.slots[slot].process.signal(Signal::STOP);
    }

    pub(crate) fn resume(&self, slot: usize) {
        self.slots[slot].process.signal(Signal::CONT);
    }

    /// Nobody ends whom nobody ended.
    pub(crate) fn check_alive(&mut self) {
        for slot in &mut self.slots {
            if let Some(ended) = slot.process.take_end() {
                panic!("{ended}");
            }
        }
    }

    /// Waits for a member that ends by itself: its exit code and its last words.
    async fn end_of(&mut self, slot: usize) -> (Option<i32>, String) {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(ended) = self.slots[slot].process.take_end() {
                return (ended.status.code(), ended.tail);
            }
            self.check_time(deadline, slot, "still runs");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits for what comes of a member that gets no more room on its disk: it ends, with this exit
    /// code and these last words, or what it writes has room where it wrote before, and it goes on.
    pub(crate) async fn without_room(&mut self, slot: usize) -> Option<(Option<i32>, String)> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut enough = None;
        loop {
            // What it gives back, it does not get again.
            self.slots[slot].disk.as_ref().unwrap().fill();
            if let Some(ended) = self.slots[slot].process.take_end() {
                return Some((ended.status.code(), ended.tail));
            }
            let status = client::admin::status(&self.endpoints()[slot], STATUS_LIMIT).await;
            if let Ok(StatusReply { applied_index, .. }) = status
                && applied_index >= *enough.get_or_insert(applied_index + APPLIED_WITHOUT_ROOM)
            {
                return None;
            }
            self.check_time(deadline, slot, "neither ends nor goes on");
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn check_time(&self, deadline: Instant, slot: usize, what: &str) {
        if Instant::now() >= deadline {
            let words = tail(self.slots[slot].process.log());
            panic!("the member at {} {what}: {words}", slot + 1);
        }
    }

    /// The slot of the member that leads.
    pub(crate) async fn leader(&mut self) -> usize {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let statuses = (0..).zip(self.statuses().await);
            let leads = statuses.filter(|(_, status)| {
                status.as_ref().is_some_and(|status| status.role() == Role::Leader)
            });
            let newest = leads.max_by_key(|(_, status)| status.as_ref().map(|status| status.term));
            if let Some((slot, _)) = newest {
                return slot;
            }
            assert!(Instant::now() < deadline, "nobody leads");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until every member knows a leader and has applied all that was committed before.
    pub(crate) async fn caught_up(&mut self) {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut committed = 0;
        loop {
            self.check_alive();
            let statuses = self.statuses().await;
            if committed == 0 {
                let commits = statuses.iter().flatten().map(|status| status.commit_index);
                committed = commits.max().unwrap_or(0);
            }
            let is_back = |status: &Option<StatusReply>| {
                let back = |it: &StatusReply| it.leader != 0 && it.applied_index >= committed;
                status.as_ref().is_some_and(back)
            };
            if committed > 0 && statuses.iter().all(is_back) {
                return;
            }
            let tell = |status: &StatusReply| {
                (status.node, status.term, status.leader, status.applied_index)
            };
            let told: Vec<_> = statuses.iter().map(|it| it.as_ref().map(tell)).collect();
            assert!(Instant::now() < deadline, "not all are back, to {committed}: {told:?}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    async fn statuses(&self) -> Vec<Option<StatusReply>> {
        let mut statuses = Vec::new();
        for endpoint in self.endpoints() {
            statuses.push(client::admin::status(&endpoint, STATUS_LIMIT).await.ok());
        }
        statuses
    }

    /// Has a member lose its disk: it is refused, removed, and another one comes to its place.
    pub(crate) async fn wipe(&mut self, slot: usize) {
        self.kill(slot);
        std::fs::remove_dir_all(&self.slots[slot].data).unwrap();
        self.restart(slot);
        if self.is_told_of_its_loss(slot) {
            let (code, words) = self.end_of(slot).await;
            assert_eq!(code, CONFIGURATION, "{words}");
            assert!(words.contains("has lost its data"), "{words}");
        } else {
            self.stays_unborn(slot).await;
            self.kill(slot);
        }
        self.members(&["remove", &self.slots[slot].node.to_string()]);
        std::fs::remove_dir_all(&self.slots[slot].data).unwrap();
        let others = self.slots.iter().enumerate().filter(|(at, _)| *at != slot);
        let join: Vec<String> = others.map(|(_, other)| format!("--join={}", other.peer)).collect();
        self.last_node += 1;
        self.slots[slot].node = self.last_node;
        self.slots[slot].is_founder = false;
        self.slots[slot].begin_with(&join);
        self.members(&["add", &self.slots[slot].peer.to_string()]);
    }

    /// A founder believes those whom its settings name, and waits for them if all were replaced.
    fn is_told_of_its_loss(&self, slot: usize) -> bool {
        let mut others = self.slots.iter().enumerate().filter(|(at, _)| *at != slot);
        !self.slots[slot].is_founder || others.any(|(_, other)| other.is_founder)
    }

    /// Waits until a member says that it takes no part.
    async fn stays_unborn(&mut self, slot: usize) {
        let deadline = Instant::now() + READY_TIMEOUT;
        let endpoint = self.slots[slot].client.to_string();
        loop {
            self.check_alive();
            let status = client::admin::status(&endpoint, STATUS_LIMIT).await;
            if status.is_ok_and(|status| status.role() == Role::Unborn) {
                return;
            }
            assert!(Instant::now() < deadline, "{endpoint} does not say that it is unborn");
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn members(&self, words: &[&str]) {
        let endpoints = self.endpoints().join(",");
        let options = ["--endpoints", &endpoints, "--timeout", "60s"];
        well(&flotilla(&[&["members"], words, &options].concat()));
    }
}

impl Slot {
    fn new(
        dir: &TempDir,
        program: PathBuf,
        slot: u16,
        client: SocketAddr,
        peer: SocketAddr,
        data: PathBuf,
        further: Vec<String>,
    ) -> Self {
        let instance = Instance::Kvd(slot + 1);
        let [_, admin] = beside(client);
        let log = dir.path().join(format!("{instance}.log"));
        let launch = Launch { program, arguments: Vec::new(), log, admin };
        let process = Process::new(instance, launch);
        let node = u64::from(slot) + 1;
        let is_founder = true;
        Self { process, node, is_founder, client, peer, data, disk: None, further }
    }

    /// Starts who is there, with what is said of the others.
    fn begin_with(&mut self, others: &[String]) {
        let mut arguments = vec![
            "kvd".to_owned(),
            format!("--listen={}", self.client),
            format!("--node={}", self.node),
            format!("--data={}", self.data.display()),
        ];
        arguments.extend(self.further.iter().chain(others).cloned());
        self.process.set_arguments(arguments);
        self.process.start().unwrap_or_else(|failure| panic!("{failure}"));
    }
}
