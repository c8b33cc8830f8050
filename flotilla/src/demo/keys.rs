//! The first act: the leader of the key/value store dies while it is written to.

use std::time::Duration;

use client::{KvClient, Options};
use daemon::{Code, Failure};
use proto::admin::StatusReply;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::load::{Acknowledged, Told, WRITERS, Writers, missing};
use super::report::Story;
use crate::local::cluster::LOOK_INTERVAL;
use crate::local::{Cluster, Instance};
use crate::output::{malformed, refused};
use crate::{status, units};

/// How many keys are written and read at first.
const KEYS: u32 = 300;

/// How many writes are acknowledged before the leader is killed, and how many after.
const WRITES_BEFORE: usize = 1_000;
const WRITES_AFTER: usize = 1_000;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Plays the act.
pub(super) async fn act(cluster: &mut Cluster, story: &mut Story) -> Result<(), Failure> {
    let endpoints = cluster.description().kv_endpoints();
    let client = KvClient::connect(endpoints.clone(), Options::with_deadline(PATIENCE))
        .map_err(malformed)?;
    story.chapter("Keys and values")?;
    write_and_read(&client, story).await?;

    story.chapter("The leader is killed while it is written to")?;
    let leader = leader(&endpoints, None).await?;
    story.say(&format!(
        "kvd-{} leads in term {}. {WRITERS} clients write to the store without a pause.",
        leader.node, leader.term
    ))?;
    let instance = Instance::Kvd(u16::try_from(leader.node).unwrap_or(u16::MAX));
    let writes = write_over_a_kill(&client, cluster, instance).await?;
    story.say(&format!(
        "SIGKILL to kvd-{} after {} acknowledged writes. The first write after it was \
         acknowledged {} after the last one before.",
        leader.node,
        units::count(writes.before as u64),
        units::duration(writes.gap)
    ))?;
    story.duration(
        "failover_ms",
        "without a leader: last write before to first write after",
        writes.gap,
    );
    let next = self::leader(&endpoints, Some(leader.term)).await?;
    story.say(&format!("kvd-{} leads now, in term {}.", next.node, next.term))?;

    let total = writes.acknowledged.len();
    let missing = missing(&client, writes.acknowledged).await?;
    story.check(
        format!(
            "all {} acknowledged writes are there after the leader was killed",
            units::count(total as u64)
        ),
        missing == 0,
    )?;
    story.number("acknowledged_writes", total as u64);
    story.number("missing_writes", missing);
    story.number("unknown_writes", writes.unknown);
    rejoin(cluster, instance, &endpoints, story).await
}

async fn write_and_read(client: &KvClient, story: &mut Story) -> Result<(), Failure> {
    let pair = |number: u32| (format!("ship/{number}"), format!("cargo of ship {number}"));
    let began = Instant::now();
    for number in 0..KEYS {
        let (key, value) = pair(number);
        client.put(key, value).await.map_err(refused)?;
    }
    let wrote = began.elapsed();
    let mut right = true;
    let began = Instant::now();
    for number in 0..KEYS {
        let (key, value) = pair(number);
        let found = client.get(key).await.map_err(refused)?;
        right &= found.is_some_and(|found| found.value == value);
    }
    let read = began.elapsed();
    story.say(&format!(
        "One client, one request after the other: {KEYS} writes, each on the disks of a majority, \
         in {}; {KEYS} reads in {}.",
        units::duration(wrote),
        units::duration(read)
    ))?;
    story.check(format!("{KEYS} keys read as they were written"), right)
}

/// What came of writing while the leader died.
struct Writes {
    acknowledged: Vec<Acknowledged>,
    unknown: u64,
    before: usize,
    /// The longest time without an acknowledgement from the kill on.
    gap: Duration,
}

async fn write_over_a_kill(
    client: &KvClient,
    cluster: &mut Cluster,
    leader: Instance,
) -> Result<Writes, Failure> {
    let mut writers = Writers::start(client);
    let deadline = Instant::now() + PATIENCE;
    let mut writes =
        Writes { acknowledged: Vec::new(), unknown: 0, before: 0, gap: Duration::ZERO };
    let mut killed: Option<Instant> = None;
    let mut after = 0;
    while after < WRITES_AFTER {
        match writers.next(deadline).await? {
            Told::Unknown => writes.unknown += 1,
            Told::Failed(failure) => return Err(failure),
            Told::Acknowledged(write) => {
                after += usize::from(killed.is_some_and(|killed| write.asked > killed));
                writes.acknowledged.push(write);
            }
        }
        if killed.is_none() && writes.acknowledged.len() >= WRITES_BEFORE {
            cluster.process(leader)?.signal(Signal::KILL);
            killed = Some(Instant::now());
            writes.before = writes.acknowledged.len();
        }
    }
    writers.stop();
    while let Some(last) = writers.told.recv().await {
        match last {
            Told::Unknown => writes.unknown += 1,
            Told::Failed(failure) => return Err(failure),
            Told::Acknowledged(write) => writes.acknowledged.push(write),
        }
    }
    cluster.kill(leader)?;
    writes.acknowledged.sort_by_key(|write| write.at);
    let pairs = writes.acknowledged.windows(2).map(|pair| (pair[0].at, pair[1].at));
    let gaps = pairs.filter(|(_, later)| killed.is_some_and(|killed| *later > killed));
    writes.gap = gaps.map(|(before, after)| after - before).max().unwrap_or_default();
    Ok(writes)
}

/// The member that leads in a term above `term`.
async fn leader(endpoints: &[String], term: Option<u64>) -> Result<StatusReply, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answers = status::ask(endpoints.to_vec(), Duration::from_secs(1)).await;
        let found = status::leader(answers.values().filter_map(|answer| answer.as_ref().ok()));
        if let Some(found) = found.filter(|found| term.is_none_or(|term| found.term > term)) {
            return Ok(found.clone());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(Code::Failed, "no member leads"));
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Starts the killed member again and waits until it has all that the others have.
async fn rejoin(
    cluster: &mut Cluster,
    instance: Instance,
    endpoints: &[String],
    story: &mut Story,
) -> Result<(), Failure> {
    let began = Instant::now();
    let deadline = began + PATIENCE;
    cluster.restart(instance)?;
    cluster.ready_one(instance, deadline).await?;
    let Instance::Kvd(node) = instance else {
        return Err(Failure::new(Code::Failed, "only a kvd can come back here"));
    };
    loop {
        let answers = status::ask(endpoints.to_vec(), Duration::from_secs(1)).await;
        let replies: Vec<_> = answers.values().filter_map(|answer| answer.as_ref().ok()).collect();
        let back = replies.iter().find(|reply| reply.node == u64::from(node));
        if let (Some(back), Some(leader)) = (back, status::leader(replies.iter().copied()))
            && back.applied_index == leader.applied_index
            && back.applied_index > 0
        {
            let took = began.elapsed();
            story.say(&format!(
                "{instance} was started again and has caught up after {}.",
                units::duration(took)
            ))?;
            story.duration("rejoin_ms", "for the killed member to start and catch up", took);
            let same = back.state_digest == leader.state_digest;
            return story
                .check("all members that are compared hold the same state".to_owned(), same);
        }
        if Instant::now() >= deadline {
            let message = format!("{instance} does not catch up");
            return Err(Failure::new(Code::Failed, message));
        }
        sleep(LOOK_INTERVAL).await;
    }
}
