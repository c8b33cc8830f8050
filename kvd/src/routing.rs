//! Requests whose shard another group has: they are passed on to it, over its client port, unless
//! their client wants to be told.
//!
//! Decides whether a request is answered here: unless the map says otherwise, the own machine is asked
//! first, and it alone knows what it serves. Who has a shard then, and how often the map is looked at
//! again, is decided by the [`Router`], which asks for direct answers: so a request is passed on once,
//! whatever the maps of the groups say.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use client::{Options, Router, routed::Place, router::ToldMap};
use metrics::Counter;
use proto::{
    kv::{forward_reply, request},
    raft::{Executed, Reason, Refusal},
};
use raftd::{edge::Replied, forward::with_margin};
use tokio::time::Instant;

/// Knows the other groups. Clones share everything.
#[derive(Clone)]
pub(crate) struct Routing {
    /// This group's number.
    own: u32,
    router: Arc<Router>,
    tally: Tally,
    passed_on: Counter,
}

/// How many requests about each shard were answered here. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Tally(Arc<[AtomicU64]>);

impl Tally {
    pub(crate) fn new(shards: u32) -> Self {
        Self((0..shards).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn of(&self, shard: u32) -> u64 {
        self.0.get(shard as usize).map_or(0, |count| count.load(Relaxed))
    }

    fn count(&self, place: Place<'_>) {
        let shards = u32::try_from(self.0.len()).unwrap_or(0);
        let count = place.shard(shards).and_then(|shard| self.0.get(shard as usize));
        if let Some(count) = count {
            count.fetch_add(1, Relaxed);
        }
    }
}

/// What counts of a request where groups are concerned.
#[derive(Clone, Copy)]
pub(crate) struct Concerned<'a> {
    pub(crate) place: Place<'a>,
    /// Whether it may be sent again after an attempt of unknown fate.
    pub(crate) may_repeat: bool,
    /// Its client wants to be told if another group has the shard.
    pub(crate) direct: bool,
}

impl Routing {
    /// Must be used on a runtime.
    pub(crate) fn new(own: u32, told: ToldMap, tally: Tally) -> Self {
        const PASSED_ON: &str = "flotilla_kv_requests_passed_on_total";
        metrics::describe_counter!(PASSED_ON, "requests that another group was asked to answer");
        let router = Arc::new(Router::direct(told, Options::default()));
        Self { own, router, tally, passed_on: metrics::counter!(PASSED_ON) }
    }

    pub(crate) fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Has a request answered by as many groups as it concerns.
    pub(crate) async fn gather(
        &self,
        kind: &request::Kind,
        deadline: Instant,
    ) -> Result<Replied<forward_reply::Kind>, Refusal> {
        self.passed_on.increment(1);
        passed_on(Box::pin(self.router.ask(kind, with_margin(deadline))).await)
    }

    /// Answers a request `here`, or has it answered `there`.
    pub(crate) async fn answer<R, Sent: Future<Output = Result<R, Refusal>>>(
        &self,
        request: Concerned<'_>,
        here: impl Future<Output = Result<Replied<R>, Refusal>>,
        there: impl FnOnce() -> Sent,
    ) -> Result<Replied<R>, Refusal> {
        let Concerned { place, may_repeat, direct } = request;
        let mut never_executed = true;
        if direct || !self.is_elsewhere(place) {
            let refusal = match here.await {
                Ok(reply) => {
                    self.tally.count(place);
                    return Ok(reply);
                }
                Err(refusal) if refusal.reason() == Reason::WrongGroup => refusal,
                refused => return refused,
            };
            if direct {
                return Err(self.told(place, refusal));
            }
            never_executed = refusal.executed() == Executed::Never;
            let may_be_sent = never_executed || may_repeat;
            if !place.is_one() || !may_be_sent || !self.router.knows_groups() {
                return Err(refusal);
            }
        }
        self.passed_on.increment(1);
        // In a place of its own: what is sent to another group is large, and every request, also one
        // that is answered here, would be as large as it.
        let answered = Box::pin(there()).await.map_err(|mut refusal| {
            if !never_executed {
                refusal.set_executed(Executed::Maybe);
            }
            refusal
        });
        passed_on(answered)
    }

    fn is_elsewhere(&self, place: Place<'_>) -> bool {
        self.router.owner(place).is_some_and(|owner| owner != self.own)
    }

    /// The refusal with what is known of who has the shard.
    fn told(&self, place: Place<'_>, refusal: Refusal) -> Refusal {
        match self.router.elsewhere(place, self.own) {
            Some((group, leader)) => {
                let message = format!("{}; ask group {group}", refusal.message);
                Refusal { message, leader, group, ..refusal }
            }
            None => refusal,
        }
    }
}

/// What a client is told that has asked here what another group has answered.
pub(crate) fn passed_on<R>(answered: Result<R, Refusal>) -> Result<Replied<R>, Refusal> {
    match answered {
        Ok(reply) => Ok(Replied { reply, leader: None }),
        // Whom it names is in another group, of which the client need not know.
        Err(refusal) => Err(Refusal { leader: String::new(), group: 0, ..refusal }),
    }
}

#[cfg(test)]
mod tests {
    use client::shards::{Group, Placement, ShardMap, ShardMove};
    use proto::shard_of;
    use raftd::edge::{maybe, never};
    use tokio::sync::watch;

    use super::*;

    const SHARDS: u32 = 4;
    const LEAVING: u32 = 3;

    /// The second of two groups, which has half of the shards as far as the map says.
    fn routing() -> Routing {
        let placements = (0..SHARDS).map(|shard| {
            let owner = 1 + shard % 2;
            let r#move = (shard == LEAVING).then_some(ShardMove { to: 1, cancelling: false });
            Placement { shard, owner, r#move, ..Placement::default() }
        });
        let group = |group| {
            let members = vec![format!("10.0.0.{group}:7300")];
            (group, Group { group, members, ..Group::default() })
        };
        let groups = [group(1), group(2)].into();
        let placements = placements.collect();
        let map = ShardMap { placements, groups, ..ShardMap::default() };
        Routing::new(2, watch::channel(Some(Arc::new(map))).1, Tally::new(SHARDS))
    }

    /// What became of a request: who was asked, and what its client is told.
    async fn answered(
        request: Concerned<'_>,
        here: Result<(), Refusal>,
        there: Result<(), Refusal>,
    ) -> (&'static str, Result<(), Refusal>) {
        let asked = std::cell::Cell::new("");
        let here = async {
            asked.set("here");
            here.map(|reply| Replied { reply, leader: None })
        };
        let there = || async {
            asked.set(if asked.get() == "here" { "both" } else { "there" });
            there
        };
        let answered = routing().answer(request, here, there).await;
        (asked.get(), answered.map(|replied| replied.reply))
    }

    #[tokio::test]
    async fn what_is_answered_here_is_counted() {
        let routing = routing();
        let answer = |request, answer: Result<(), Refusal>| {
            let here = async { answer.map(|reply| Replied { reply, leader: None }) };
            routing.answer(request, here, || async { Ok(()) })
        };
        answer(about(1), Ok(())).await.unwrap();
        answer(Concerned { direct: true, ..about(1) }, Ok(())).await.unwrap();
        answer(Concerned { place: Place::Key(b"k"), direct: true, ..about(0) }, Ok(()))
            .await
            .unwrap();
        answer(Concerned { place: Place::Any, ..about(0) }, Ok(())).await.unwrap();
        answer(about(0), Ok(())).await.unwrap();
        answer(about(3), Err(never(Reason::NoSpace, "full"))).await.unwrap_err();
        answer(about(3), Err(wrong_group())).await.unwrap();
        let mut counts = [0, 2, 0, 0];
        counts[shard_of(b"k", SHARDS) as usize] += 1;
        assert_eq!([0, 1, 2, 3].map(|shard| routing.tally.of(shard)), counts);
    }

    fn wrong_group() -> Refusal {
        never(Reason::WrongGroup, "not served here")
    }

    fn about(shard: u32) -> Concerned<'static> {
        Concerned { place: Place::Shard(shard), may_repeat: false, direct: false }
    }

    #[tokio::test]
    async fn what_another_group_has_is_passed_on() {
        assert_eq!(answered(about(1), Ok(()), Ok(())).await, ("here", Ok(())));
        assert_eq!(answered(about(0), Ok(()), Ok(())).await, ("there", Ok(())));
        // The map is late.
        assert_eq!(answered(about(1), Err(wrong_group()), Ok(())).await, ("both", Ok(())));
        // Other refusals are the own group's last word.
        let full = never(Reason::NoSpace, "full");
        assert_eq!(answered(about(1), Err(full.clone()), Ok(())).await, ("here", Err(full)));
        let key = Concerned { place: Place::Key(b"k"), ..about(0) };
        let whose = if shard_of(b"k", SHARDS) % 2 == 1 { "here" } else { "there" };
        assert_eq!(answered(key, Ok(()), Ok(())).await.0, whose);
    }

    #[tokio::test]
    async fn who_wants_to_be_told_is_told() {
        let direct = Concerned { direct: true, ..about(0) };
        let (asked, told) = answered(direct, Err(wrong_group()), Ok(())).await;
        let told = told.unwrap_err();
        assert_eq!((asked, told.group, &*told.leader), ("here", 1, "10.0.0.1:7300"));
        assert!(told.message.ends_with("ask group 1"), "{}", told.message);
        // It has gone, and the controller does not know yet.
        let (_, told) =
            answered(Concerned { direct: true, ..about(LEAVING) }, Err(wrong_group()), Ok(()))
                .await;
        assert_eq!(told.unwrap_err().group, 1);
        // The map is late: nothing is known.
        let direct = Concerned { direct: true, ..about(1) };
        let (_, told) = answered(direct, Err(wrong_group()), Ok(())).await;
        assert_eq!(told, Err(wrong_group()));
        // The map is early: what is served is answered.
        let direct = Concerned { direct: true, ..about(0) };
        assert_eq!(answered(direct, Ok(()), Ok(())).await, ("here", Ok(())));
    }

    #[tokio::test]
    async fn what_may_have_been_executed_is_passed_on_only_if_it_has_a_name() {
        let perhaps = || Err(maybe(Reason::WrongGroup, "it waited when the shard went"));
        let (asked, told) = answered(about(1), perhaps(), Ok(())).await;
        assert_eq!((asked, told.unwrap_err().executed()), ("here", Executed::Maybe));
        let named = Concerned { may_repeat: true, ..about(1) };
        assert_eq!(answered(named, perhaps(), Ok(())).await, ("both", Ok(())));
        // What is certain of the last attempt is not of the one before.
        let (_, told) = answered(named, perhaps(), Err(wrong_group())).await;
        assert_eq!(told.unwrap_err().executed(), Executed::Maybe);
    }

    #[tokio::test]
    async fn before_there_are_shards_nobody_is_asked_for_them() {
        let told = watch::channel(Some(Arc::default())).1;
        let routing = Routing::new(2, told, Tally::new(SHARDS));
        let here = async { Err::<Replied<()>, _>(wrong_group()) };
        let there = || async { Ok(()) };
        let told = routing.answer(about(0), here, there).await;
        assert_eq!(told.unwrap_err(), wrong_group());
    }

    #[tokio::test]
    async fn members_of_other_groups_are_not_named_to_who_asks_this_one() {
        let refusal = Refusal { leader: "10.0.0.1:7300".to_owned(), ..wrong_group() };
        let (_, told) = answered(about(0), Ok(()), Err(refusal)).await;
        assert_eq!(told.unwrap_err().leader, "");
    }

    #[tokio::test]
    async fn what_is_in_many_shards_is_not_passed_on_as_a_whole() {
        let many = Concerned { place: Place::Any, ..about(0) };
        assert_eq!(answered(many, Ok(()), Ok(())).await, ("here", Ok(())));
        assert_eq!(answered(many, Err(wrong_group()), Ok(())).await, ("here", Err(wrong_group())));
    }
}
