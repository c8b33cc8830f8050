//! Carries out what a group has to do about its shards, for as long as this member leads it.
//!
//! Decides when to look and what is done at a time; what a shard needs is decided in `steward.rs`, and
//! in which order steps follow each other by the log. So a member that only believes that it leads, or
//! that looks at an old map, does no harm. Nothing here is kept: the next leader goes on with what is
//! in the log.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use client::{
    ShardClient,
    shards::{self, ReportRequest, ShardMap, StepKind},
};
use futures::stream::{StreamExt, iter};
use raftd::{
    Handle, Outcome, Role,
    failpoint::{self, Failpoint},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use crate::{
    KvMachine,
    brakes::Brakes,
    custody::{Custody, MoveNumber, Phase},
    intake::{Coming, Intake},
    outcome::{Answer, Query},
    pull::{Puller, Stopped},
    routing::Tally,
    step::{Deed, Step},
    steward::{Act, Ended, GroupNumber, Move, Placement},
};

/// How long nothing is looked at when nothing happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked at how much is kept for shards that leave.
const BRAKES_INTERVAL: Duration = Duration::from_millis(50);

/// How long to wait after something was done whose effect may not show yet.
const PAUSE: Duration = Duration::from_millis(10);

/// How long the controller has to show what it was told, before it is told again.
const REPORT_AGAIN: Duration = Duration::from_secs(1);

/// How long until a controller that knows another group by this number is told again of this one.
const DISOWNED_AGAIN: Duration = Duration::from_secs(60);

/// How long the controller must have meant that others have what is served here, before a person is told.
const ESTRANGED_FOR: Duration = Duration::from_secs(5);

/// How many steps are proposed at a time.
const PROPOSALS_MAX: usize = 16;

/// How many steps one report tells.
const REPORTED_MAX: usize = 1_024;

/// How often what came may be wrong before a person is told.
const DAMAGED_MAX: u32 = 3;

/// How long a step may take.
pub(crate) const STEP_LIMIT: Duration = Duration::from_secs(5);

/// The map as the shard controller told it last.
pub(crate) type Map = watch::Receiver<Option<Arc<ShardMap>>>;

/// What a member of one of many groups knows.
#[derive(Clone, Debug)]
pub(crate) struct Grouped {
    /// Its group.
    pub(crate) group: GroupNumber,
    /// How many shards there are.
    pub(crate) shards: u32,
    pub(crate) controller: ShardClient,
    pub(crate) map: Map,
    /// Slows writes to shards that leave.
    pub(crate) brakes: Brakes,
    /// Counts requests.
    pub(crate) tally: Tally,
    /// How many shards it takes in from each of the other groups at a time.
    pub(crate) moves_max: usize,
    /// How many bytes of them it takes in each second; 0: as many as come.
    pub(crate) bytes_per_second: u64,
}

impl Grouped {
    /// Whether the controller means this Raft group by its number; none: it was told of no group by that
    /// number yet.
    pub(crate) fn is_meant(&self, map: &ShardMap, handle: &Handle<KvMachine>) -> Option<bool> {
        let known = map.groups.get(&self.group)?.reported.as_ref()?;
        Some(known.identity[..] == handle.status().group?[..])
    }
}

/// What the controller says of a shard.
pub(crate) fn placement(told: &shards::Placement) -> Placement {
    let shards::Placement { owner, since, last, recovered_at, r#move, .. } = *told;
    Placement {
        owner: (owner != 0).then_some(owner),
        since: MoveNumber(since),
        last: MoveNumber(last),
        recovered_at: MoveNumber(recovered_at),
        moving: r#move.map(|moving| Move { to: moving.to, cancelling: moving.cancelling }),
    }
}

/// Carries it out for as long as the member runs.
pub(crate) async fn run(handle: Handle<KvMachine>, grouped: Grouped) -> Infallible {
    let mut status = handle.watch_status();
    loop {
        let led = status.wait_for(|status| status.role == Role::Leader).await.is_ok();
        if !led {
            // The host has ended, which is told elsewhere.
            return std::future::pending().await;
        }
        Leading::new(handle.clone(), grouped.clone()).run().await;
    }
}

/// What is under way on a leader.
struct Leading {
    handle: Handle<KvMachine>,
    grouped: Grouped,
    puller: Arc<Puller>,
    tasks: JoinSet<Ending>,
    intake: Intake<AbortHandle>,
    /// What the controller was told, and when.
    told: BTreeMap<(u32, MoveNumber), Instant>,
    told_members: Option<(ReportRequest, Instant)>,
    reporting: bool,
    /// It was said that the numbers of shards differ.
    warned: bool,
    /// It was said that the controller knows another group by this number.
    disowned: bool,
    /// The shards that are served here and are others' by the map, and since when.
    estranged: BTreeMap<u32, Instant>,
    /// It was said that there are some.
    told_estranged: bool,
}

/// What a task has come to.
enum Ending {
    Pulled { shard: u32, number: MoveNumber, result: Result<(), Stopped> },
    Reported(Result<(), client::Error>),
}

/// What is to be done now, shard by shard.
#[derive(Default)]
struct Acts {
    proposals: Vec<(u32, MoveNumber, Deed<'static>)>,
    pulls: Vec<Coming>,
    reports: Vec<(u32, MoveNumber, Ended)>,
}

impl Leading {
    fn new(handle: Handle<KvMachine>, grouped: Grouped) -> Self {
        let puller = Arc::new(Puller::new(handle.clone(), grouped.clone()));
        let intake = Intake::new(grouped.moves_max);
        Self {
            handle,
            grouped,
            puller,
            tasks: JoinSet::new(),
            intake,
            told: BTreeMap::new(),
            told_members: None,
            reporting: false,
            warned: false,
            disowned: false,
            estranged: BTreeMap::new(),
            told_estranged: false,
        }
    }

    /// Looks and acts until the member leads no more.
    async fn run(mut self) {
        let mut status = self.handle.watch_status();
        while self.handle.leads() {
            let map = self.grouped.map.borrow_and_update().clone();
            let next = match map {
                Some(map) => self.look(&map).await,
                None => Instant::now() + LOOK_INTERVAL,
            };
            let next = self.intake.next(Instant::now()).map_or(next, |rested| rested.min(next));
            tokio::select! {
                biased;
                _ = status.wait_for(|status| status.role != Role::Leader) => {}
                Some(ended) = self.tasks.join_next() => self.note(ended),
                Ok(()) = self.grouped.map.changed() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// Does what is to be done now; when to look again if nothing happens.
    async fn look(&mut self, map: &ShardMap) -> Instant {
        let now = Instant::now();
        let Ok(Answer::Custody(custodies)) = self.handle.query_stale(Query::Custody).await else {
            // A member that has too much to do looks again.
            return now + PAUSE;
        };
        if !self.agrees(map) || !self.is_known_as_itself(map) {
            self.report(map, custodies.len(), &[]);
            return now + LOOK_INTERVAL;
        }
        self.look_for_estranged(map, &custodies);
        let acts = self.acts(map, &custodies);
        self.pull(acts.pulls);
        self.report(map, custodies.len(), &acts.reports);
        let leaving = custodies.iter().any(Custody::is_leaving);
        if leaving || self.grouped.brakes.are_pressed() {
            self.brake().await;
        }
        if acts.proposals.is_empty() {
            return now + if leaving { BRAKES_INTERVAL } else { LOOK_INTERVAL };
        }
        self.propose(acts.proposals).await;
        Instant::now() + PAUSE
    }

    /// Slows writes to shards for which much is kept, and no others.
    async fn brake(&self) {
        if let Ok(Answer::Standings(standings)) = self.handle.query_stale(Query::Standings).await {
            self.grouped.brakes.set(&standings);
        }
    }

    /// Whether the controller has as many shards as this group.
    fn agrees(&mut self, map: &ShardMap) -> bool {
        let (controller, own) = (map.placements.len(), self.grouped.shards);
        let agrees = controller == 0 || controller == own as usize;
        if !agrees && !self.warned {
            tracing::error!(
                controller,
                own,
                "the shard controller has another number of shards than this group, which takes \
                 part in nothing: start a group without data with --shards as the controller has"
            );
        }
        self.warned = !agrees;
        agrees
    }

    /// Whether the controller means this Raft group by its number, as far as it can be known: it acts on
    /// nothing before it has told who it is, and never on what is another's.
    fn is_known_as_itself(&mut self, map: &ShardMap) -> bool {
        let Some(itself) = self.grouped.is_meant(map, &self.handle) else { return false };
        if !itself && !self.disowned {
            tracing::error!(
                group = self.grouped.group,
                "the shard controller knows another Raft group by this number: this one takes part \
                 in nothing. Was it made anew, or recovered from the loss of its majority, or is \
                 the number given twice?"
            );
        }
        self.disowned = !itself;
        itself
    }

    /// Tells a person of shards that this group serves, and for a while has not had by the map.
    fn look_for_estranged(&mut self, map: &ShardMap, custodies: &[Custody]) {
        let (group, now) = (self.grouped.group, Instant::now());
        let placed = (0..).zip(map.placements.iter().map(placement).zip(custodies));
        let estranged = placed.filter(|(_, (placed, custody))| placed.is_estranged(group, custody));
        let since = |shard: u32| (shard, self.estranged.get(&shard).copied().unwrap_or(now));
        self.estranged = estranged.map(|(shard, _)| since(shard)).collect();
        let mut lasting = self.estranged.iter().filter(|(_, since)| now - **since >= ESTRANGED_FOR);
        let Some((shard, _)) = lasting.next() else {
            self.told_estranged = false;
            return;
        };
        if !self.told_estranged {
            self.told_estranged = true;
            tracing::error!(
                shard,
                others = lasting.count(),
                "by the shard controller's map this group does not have a shard that it serves: it \
                 keeps it, and takes no part in its moves. Is it the controller that it always had, \
                 and can it be reached? Did the group stand alone, and joined instead of being adopted?"
            );
        }
    }

    fn acts(&self, map: &ShardMap, custodies: &[Custody]) -> Acts {
        let mut acts = Acts::default();
        for (shard, told) in (0..).zip(&map.placements) {
            // Without a first step there is nothing here.
            let custody = custodies.get(shard as usize).copied().unwrap_or(Custody::absent());
            match placement(told).act(self.grouped.group, &custody) {
                None => {}
                Some(Act::Propose(number, deed)) => acts.proposals.push((shard, number, deed)),
                Some(Act::Pull { number, from }) => {
                    let begun = matches!(custody.phase, Phase::Incoming { .. });
                    acts.pulls.push(Coming { begun, shard, number, from });
                }
                Some(Act::Report(number, ended)) => acts.reports.push((shard, number, ended)),
            }
        }
        acts
    }

    /// Proposes steps, and waits for what becomes of them. Those that came to nothing are due again.
    async fn propose(&self, proposals: Vec<(u32, MoveNumber, Deed<'static>)>) {
        let shards = self.grouped.shards;
        let proposed = proposals.into_iter().map(|(shard, number, deed)| async move {
            if matches!(deed, Deed::Delete) {
                failpoint::reach(Failpoint::MoveDeleteBefore);
            }
            let step = Step { shards, shard, number, deed };
            let deadline = Instant::now() + STEP_LIMIT;
            match self.handle.propose(step.encode(), deadline).await {
                Outcome::Done(response) => {
                    tracing::debug!(shard, number = number.0, ?deed, result = ?response.result);
                    if matches!(deed, Deed::Delete | Deed::Discard) {
                        failpoint::reach(Failpoint::MoveDeleteAfter);
                    }
                }
                Outcome::Rejected(_) | Outcome::Unknown => {
                    tracing::debug!(shard, number = number.0, ?deed, "a step was not confirmed");
                }
            }
        });
        iter(proposed).for_each_concurrent(PROPOSALS_MAX, |proposed| proposed).await;
    }

    /// Takes in what is to come, and ends what is not any more.
    fn pull(&mut self, wanted: Vec<Coming>) {
        let now = Instant::now();
        for task in self.intake.keep(&wanted, now) {
            task.abort();
        }
        let (puller, tasks) = (&self.puller, &mut self.tasks);
        self.intake.begin(wanted, now, |Coming { shard, number, from, .. }| {
            let puller = puller.clone();
            tasks.spawn(async move {
                let result = puller.pull(shard, number, from).await;
                Ending::Pulled { shard, number, result }
            })
        });
    }

    /// Tells the controller what has become of moves, and who the group's members are, unless it was
    /// told lately.
    fn report(&mut self, map: &ShardMap, created: usize, ended: &[(u32, MoveNumber, Ended)]) {
        let now = Instant::now();
        let again = if self.disowned { DISOWNED_AGAIN } else { REPORT_AGAIN };
        let lately = |at: &Instant| now.duration_since(*at) < again;
        self.told.retain(|_, at| lately(at));
        let mut steps = Vec::new();
        for (shard, number, ended) in ended {
            if steps.len() < REPORTED_MAX && !self.told.contains_key(&(*shard, *number)) {
                steps.push(step(*shard, *number, *ended));
            }
        }
        let Some(members) = self.members(created) else { return };
        let known =
            map.groups.get(&self.grouped.group).is_some_and(|group| is_known(group, &members));
        let just_told = self.told_members.as_ref().is_some_and(|(told, at)| {
            lately(at) && (&told.members, told.shards) == (&members.members, members.shards)
        });
        if self.reporting || steps.is_empty() && (known || just_told) {
            return;
        }
        self.told.extend(steps.iter().map(|it| ((it.shard, MoveNumber(it.number)), now)));
        self.told_members = Some((members.clone(), now));
        self.reporting = true;
        let report = ReportRequest { steps, ..members };
        let controller = self.grouped.controller.clone();
        self.tasks.spawn(async move {
            let reported = controller.report(&report).await;
            failpoint::reach(Failpoint::MoveReportAfter);
            Ending::Reported(reported.map(|reply| check(&reply)))
        });
    }

    /// Who the members are, if the group is born.
    fn members(&self, created: usize) -> Option<ReportRequest> {
        let status = self.handle.status();
        let members = status.members.into_iter().map(|member| member.member.client_address);
        Some(ReportRequest {
            group: self.grouped.group,
            identity: status.group?.to_vec().into(),
            index: status.applied.0,
            shards: u32::try_from(created).unwrap_or(u32::MAX),
            members: members.collect(),
            steps: Vec::new(),
        })
    }

    /// Takes note of what a task has come to.
    fn note(&mut self, ended: Result<Ending, tokio::task::JoinError>) {
        match ended {
            Ok(Ending::Reported(reported)) => {
                self.reporting = false;
                if let Err(error) = reported {
                    self.told.clear();
                    tracing::warn!(%error, "the shard controller was told nothing");
                }
            }
            Ok(Ending::Pulled { shard, number, result }) => {
                self.note_copy(shard, number, &result);
            }
            // It was not wanted any more.
            Err(_) => {}
        }
    }

    fn note_copy(&mut self, shard: u32, number: MoveNumber, result: &Result<(), Stopped>) {
        let Err(reason) = result else { return self.intake.done(shard, number) };
        let is_damaged = matches!(reason, Stopped::Damaged(_));
        let damaged = self.intake.stopped(shard, number, is_damaged, Instant::now());
        let number = number.0;
        if is_damaged && damaged >= DAMAGED_MAX {
            tracing::error!(shard, number, damaged, %reason, "a shard does not arrive whole");
        } else {
            tracing::debug!(shard, number, %reason, "a copy has stopped");
        }
    }
}

/// Whether the controller knows these members.
fn is_known(group: &shards::Group, members: &ReportRequest) -> bool {
    group.members == members.members
        && group.reported.as_ref().is_some_and(|reported| {
            reported.identity == members.identity
                && (members.shards == 0 || reported.shards == members.shards)
        })
}

fn step(shard: u32, number: MoveNumber, ended: Ended) -> shards::Step {
    let kind = match ended {
        Ended::Settled => StepKind::Settled,
        Ended::Cancelled => StepKind::Cancelled,
        Ended::Aborted => StepKind::Aborted,
    };
    shards::Step { shard, number: number.0, kind: kind.into() }
}

/// Says what the controller has refused. What is stale was told before.
fn check(reply: &shards::ReportReply) {
    let refused = reply.group.iter().chain(&reply.steps).filter_map(|told| told.refused.as_ref());
    for refused in refused.filter(|it| it.code() != shards::RefusedCode::Stale) {
        tracing::error!(reason = refused.message, "the shard controller refuses what it was told");
    }
}
