//! Which group is asked for what: the one mechanism by which the library, a kvd that passes on what
//! its group does not serve, and `kvd route` send a request to whoever has its shard.
//!
//! Decides by the shard controller's map, as it was told last. The map may be late, so who is asked
//! says so when the shard is not there ([`Reason::WrongGroup`](proto::raft::Reason), never executed),
//! and the request is sent again, the same: to the group that it names, else when the map has changed
//! or a while has passed. Whoever knows no controller knows one group, whose members pass requests on.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use proto::{
    kv::{WatchReply, WatchRequest, forward_reply, request},
    lock,
    metadata::{self, EXECUTED, NEVER},
    raft::Refusal,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::{Status, Streaming, metadata::AsciiMetadataValue};

use crate::{
    InvalidEndpoint, Options,
    calls::{self, Ended, Patience, Route},
    gather::is_gathered,
    kv::stub,
    members::{Member, Members},
    routed::{Attempt, Place, Routed},
    shards::ShardMap,
};

/// The map as it was told last; none: it was not told yet.
pub type ToldMap = watch::Receiver<Option<Arc<ShardMap>>>;

/// The longest attempt at a request that waits for something. Each attempt is told of the place that
/// the first one took.
pub(crate) const ATTEMPT_MAX: Duration = Duration::from_secs(30);

/// How often a group may say in a call that it does not have the shard before its members are asked
/// to pass the request on: the map may be late here and not there.
const DIRECT_MAX: u32 = 4;

/// Sends requests to whoever has their shards.
#[derive(Debug)]
pub struct Router {
    options: Options,
    ways: Ways,
}

#[derive(Debug)]
enum Ways {
    /// One group, or one that passes on what is not its own.
    One(Arc<Members>),
    /// Those of a map.
    Many(Groups),
}

/// All groups that are known.
#[derive(Debug)]
pub(crate) struct Groups {
    told: ToldMap,
    table: RwLock<Table>,
    options: Options,
    /// Whether groups may be asked to pass requests on.
    may_relay: bool,
}

/// The members of the groups of one map.
#[derive(Debug, Default)]
struct Table {
    map: Option<Arc<ShardMap>>,
    groups: BTreeMap<u32, Arc<Members>>,
}

impl Router {
    /// To the members of one group, some or all (`host:port` of their client ports). Must be called on
    /// a runtime.
    ///
    /// # Errors
    /// [`InvalidEndpoint`].
    pub fn one(endpoints: &[String], options: Options) -> Result<Self, InvalidEndpoint> {
        let ways = Ways::One(Arc::new(Members::new(endpoints, &options)?));
        Ok(Self { options, ways })
    }

    /// To the groups of a map, always by it: none is asked to pass anything on. Must be used on a
    /// runtime.
    pub fn direct(told: ToldMap, options: Options) -> Self {
        Self::many(told, options, false)
    }

    /// To the groups of a map; members are asked to pass requests on where it seems to be late.
    pub(crate) fn relayed(told: ToldMap, options: Options) -> Self {
        Self::many(told, options, true)
    }

    fn many(told: ToldMap, options: Options, may_relay: bool) -> Self {
        let (table, of_groups) = (RwLock::default(), options.clone());
        let ways = Ways::Many(Groups { told, table, options: of_groups, may_relay });
        Self { options, ways }
    }

    /// The group that has what a request is about, if that is in one shard, as far as is known.
    pub fn owner(&self, place: Place<'_>) -> Option<u32> {
        match &self.ways {
            Ways::Many(groups) if place.is_one() => owner(groups.map()?.as_ref(), place),
            Ways::Many(_) | Ways::One(_) => None,
        }
    }

    /// Whether it was told already that groups have shards.
    pub fn knows_groups(&self) -> bool {
        match &self.ways {
            Ways::Many(_) => self.current_map().is_some(),
            Ways::One(_) => true,
        }
    }

    /// The group other than this one that has what a request is about, or is taking it over from this
    /// one; and a member of it, as far as is known.
    pub fn elsewhere(&self, place: Place<'_>, own: u32) -> Option<(u32, String)> {
        let Ways::Many(groups) = &self.ways else { return None };
        let map = groups.map()?;
        let shard = place.shard(u32::try_from(map.placements.len()).ok()?)?;
        let placement = map.placements.get(shard as usize)?;
        let coming = placement.r#move.filter(|moving| !moving.cancelling).map(|moving| moving.to);
        let group = Some(placement.owner).filter(|owner| *owner != own).or(coming)?;
        Some((group, groups.members(&map, group)?.address()))
    }

    /// Sends a request until it is answered or its deadline passes.
    ///
    /// # Errors
    /// The refusal, which says whether it may have been executed. One of unknown fate was not sent
    /// again if that could mean twice.
    pub async fn ask(
        &self,
        kind: &request::Kind,
        deadline: Instant,
    ) -> Result<forward_reply::Kind, Refusal> {
        self.call_kv(kind, self.by(kind, deadline)).await.map_err(|ended| ended.refusal())
    }

    /// The same for a request about a lock.
    ///
    /// # Errors
    /// As [`Router::ask`].
    pub async fn ask_lock(
        &self,
        kind: &lock::forward_request::Kind,
        deadline: Instant,
    ) -> Result<lock::forward_reply::Kind, Refusal> {
        self.call(kind, self.by(kind, deadline)).await.map_err(|ended| ended.refusal())
    }

    /// Patience until a deadline.
    fn by(&self, kind: &impl Routed, deadline: Instant) -> Patience {
        let attempt = (self.options.attempt + kind.wait()).min(ATTEMPT_MAX);
        Patience { deadline, attempt, overtime: Duration::ZERO }
    }

    /// Sends a request to the store until it ends, to as many groups as it concerns.
    pub(crate) async fn call_kv(
        &self,
        kind: &request::Kind,
        patience: Patience,
    ) -> Result<forward_reply::Kind, Ended> {
        match (kind, &self.ways) {
            (request::Kind::Scan(scan), Ways::Many(groups)) if is_gathered(kind) => {
                let page = Box::pin(self.gather(groups, scan, patience)).await?;
                Ok(forward_reply::Kind::Scan(page))
            }
            _ => self.call(kind, patience).await,
        }
    }

    /// Begins a stream of changes with a group; with none, the one that there is.
    pub(crate) async fn subscribe(
        &self,
        group: Option<u32>,
        request: &WatchRequest,
    ) -> Result<Streaming<WatchReply>, Refusal> {
        let members = match (&self.ways, group) {
            (Ways::One(members), _) => Some(members.clone()),
            (Ways::Many(groups), group) => {
                groups.map().zip(group).and_then(|(map, group)| groups.members(&map, group))
            }
        };
        let Some(members) = members else {
            return Err(metadata::refusal(&nobody(
                "where the members of the group are is not known",
            )));
        };
        let send = |member: Arc<Member>, limit, _| {
            // The limit is for the beginning alone.
            let (request, mut stub) = (request.clone(), stub(member.channel()));
            async move {
                timeout(limit, stub.watch(request))
                    .await
                    .unwrap_or_else(|_| Err(Status::unavailable("no answer")))
            }
        };
        let patience = Patience::of(&self.options);
        let begun = calls::call_route(Route::To(&members), patience, true, send).await;
        begun.map_err(|ended| ended.refusal())
    }

    /// The map as it is told, if there is one.
    pub(crate) fn told_map(&self) -> Option<ToldMap> {
        match &self.ways {
            Ways::Many(groups) => Some(groups.told.clone()),
            Ways::One(_) => None,
        }
    }

    /// The map, once groups have shards.
    pub(crate) fn current_map(&self) -> Option<Arc<ShardMap>> {
        match &self.ways {
            Ways::Many(groups) => groups.map().filter(|map| !map.placements.is_empty()),
            Ways::One(_) => None,
        }
    }

    /// Whether there is one group alone, as far as is known here.
    pub(crate) fn is_one(&self) -> bool {
        matches!(self.ways, Ways::One(_))
    }

    /// Sends a request until it ends.
    pub(crate) async fn call<K: Routed>(
        &self,
        kind: &K,
        patience: Patience,
    ) -> Result<K::Reply, Ended> {
        let transport = self.options.transport;
        match &self.ways {
            Ways::One(members) => {
                let send = |member, limit, _| {
                    kind.clone().send(transport, member, Attempt { limit, direct: false })
                };
                calls::call_route(Route::To(members), patience, kind.may_repeat(), send).await
            }
            Ways::Many(groups) => {
                let way = Way { groups, place: kind.place() };
                let send = |member, limit, wrong_groups| {
                    let direct = !groups.may_relay || wrong_groups < DIRECT_MAX;
                    kind.clone().send(transport, member, Attempt { limit, direct })
                };
                calls::call_route(Route::By(way), patience, kind.may_repeat(), send).await
            }
        }
    }
}

impl Groups {
    /// Waits until the map is another one, but not longer than until then.
    pub(crate) async fn changed(&self, until: Instant) {
        let mut told = self.told.clone();
        told.mark_unchanged();
        if timeout_at(until, told.changed()).await.is_ok_and(|changed| changed.is_err()) {
            // Nobody tells any more.
            sleep_until(until).await;
        }
    }

    pub(crate) fn map(&self) -> Option<Arc<ShardMap>> {
        self.told.borrow().clone()
    }

    /// The members of a group of this map.
    fn members(&self, map: &Arc<ShardMap>, group: u32) -> Option<Arc<Members>> {
        {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            if table.map.as_ref().is_some_and(|known| Arc::ptr_eq(known, map)) {
                return table.groups.get(&group).cloned();
            }
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.follow(map, &self.options);
        table.groups.get(&group).cloned()
    }
}

impl Table {
    /// Takes over what a map says, and keeps the connections to those that are as before.
    fn follow(&mut self, map: &Arc<ShardMap>, options: &Options) {
        let Self { map: before, groups } = self;
        let before = before.replace(map.clone());
        let known = |group| before.as_ref().and_then(|map| Some(&map.groups.get(group)?.members));
        groups.retain(|group, _| map.groups.contains_key(group));
        for (number, group) in &map.groups {
            match groups.get(number) {
                Some(_) if known(number) == Some(&group.members) => {}
                Some(members) => members.renew(&group.members),
                None => {
                    // Of a group that has told nothing usable nothing is known.
                    if let Ok(members) = Members::new(&group.members, options) {
                        groups.insert(*number, Arc::new(members));
                    }
                }
            }
        }
    }
}

/// The way of one request.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    groups: &'a Groups,
    place: Place<'a>,
}

impl Way<'_> {
    /// The group to ask now; else why there is none.
    pub(crate) fn group(&self) -> Result<(Option<u32>, Arc<Members>), Status> {
        let map =
            self.groups.map().ok_or_else(|| nobody("no shard controller has answered yet"))?;
        let group = owner(&map, self.place).ok_or_else(|| nobody("no group has the shard yet"))?;
        let members = self.groups.members(&map, group);
        members
            .map(|members| (Some(group), members))
            .ok_or_else(|| nobody(&format!("where the members of group {group} are is not known")))
    }

    /// A group that another one has named, if its members are known.
    pub(crate) fn named(&self, group: u32) -> Option<(u32, Arc<Members>)> {
        Some((group, self.groups.members(&self.groups.map()?, group)?))
    }

    /// Waits until another group is to be asked than this one, but not longer than until then.
    pub(crate) async fn moved(&self, from: Option<u32>, until: Instant) {
        let mut told = self.groups.told.clone();
        let moved = told.wait_for(|map| {
            let map = map.as_ref();
            map.and_then(|map| owner_with_members(map, self.place)) != from
        });
        let ended = timeout_at(until, moved).await.is_ok_and(|told| told.is_err());
        if ended {
            // Nobody tells any more.
            sleep_until(until).await;
        }
    }
}

/// The group that has what a request is about; what may be anywhere, any group that has something.
pub(crate) fn owner(map: &ShardMap, place: Place<'_>) -> Option<u32> {
    let shards = u32::try_from(map.placements.len()).unwrap_or(0);
    let owner = |placement: &proto::shard::Placement| Some(placement.owner).filter(|it| *it > 0);
    if shards == 0 {
        return None;
    }
    match place.shard(shards) {
        Some(shard) => map.placements.get(shard as usize).and_then(owner),
        None => map.placements.iter().find_map(owner),
    }
}

fn owner_with_members(map: &ShardMap, place: Place<'_>) -> Option<u32> {
    let group = owner(map, place)?;
    map.groups.get(&group).filter(|group| !group.members.is_empty()).map(|_| group)
}

/// There is nobody to ask.
pub(crate) fn nobody(why: &str) -> Status {
    let mut status = Status::unavailable(why);
    status.metadata_mut().insert(EXECUTED, AsciiMetadataValue::from_static(NEVER));
    status
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proto::shard::{Group, Placement};

    use super::*;

    fn map(owners: &[u32], groups: &[(u32, &[&str])]) -> Arc<ShardMap> {
        let shards = (0..).zip(owners);
        let placements =
            shards.map(|(shard, &owner)| Placement { shard, owner, ..Placement::default() });
        let group = |&(group, members): &(u32, &[&str])| {
            let members = members.iter().map(|&it| it.to_owned()).collect();
            (group, Group { group, members, ..Group::default() })
        };
        let groups = groups.iter().map(group).collect();
        Arc::new(ShardMap { placements: placements.collect(), groups, ..ShardMap::default() })
    }

    fn asked(router: &Router, place: Place<'_>) -> Result<(u32, String), String> {
        let Ways::Many(groups) = &router.ways else { panic!("there is a map") };
        match (Way { groups, place }).group() {
            Ok((group, members)) => Ok((group.unwrap(), members.address())),
            Err(status) => Err(status.message().to_owned()),
        }
    }

    #[tokio::test]
    async fn the_group_that_has_the_shard_is_asked_where_it_is_now() {
        let (tell, told) = watch::channel(None);
        let router = Router::direct(told, Options::default());
        let shard = Place::Shard;
        assert!(asked(&router, shard(0)).unwrap_err().contains("no shard controller"));
        tell.send_replace(Some(map(&[], &[])));
        assert!(asked(&router, shard(0)).unwrap_err().contains("no group has"));
        tell.send_replace(Some(map(&[1, 2, 0], &[(1, &["a:1"]), (2, &[])])));
        assert_eq!(asked(&router, shard(0)), Ok((1, "a:1".to_owned())));
        assert!(asked(&router, shard(1)).unwrap_err().contains("group 2"));
        assert!(asked(&router, shard(2)).unwrap_err().contains("no group has"));
        assert!(asked(&router, shard(3)).unwrap_err().contains("no group has"));
        assert_eq!(asked(&router, Place::Any), Ok((1, "a:1".to_owned())));
        // Another group has it, and members have moved.
        tell.send_replace(Some(map(&[2, 2, 0], &[(1, &["a:1"]), (2, &["b:1"])])));
        assert_eq!(asked(&router, shard(0)), Ok((2, "b:1".to_owned())));
        tell.send_replace(Some(map(&[2, 2, 0], &[(2, &["b:2", "nonsense"])])));
        assert_eq!(asked(&router, shard(0)), Ok((2, "b:2".to_owned())));
        let key = Place::Key(b"key");
        assert_eq!(router.owner(key).is_some(), proto::shard_of(b"key", 3) != 2);
    }

    #[tokio::test]
    async fn a_request_waits_for_its_own_shard_alone() {
        let groups: &[(u32, &[&str])] = &[(1, &["a:1"]), (2, &["b:1"])];
        let (tell, told) = watch::channel(Some(map(&[1, 1], groups)));
        let router = Router::direct(told, Options::default());
        let Ways::Many(known) = &router.ways else { panic!("there is a map") };
        let way = Way { groups: known, place: Place::Shard(0) };
        let far = Instant::now() + Duration::from_secs(60);
        let mut moved = Box::pin(way.moved(Some(1), far));
        assert!((&mut moved).now_or_never().is_none());
        tell.send_replace(Some(map(&[1, 2], groups)));
        assert!((&mut moved).now_or_never().is_none());
        tell.send_replace(Some(map(&[2, 2], groups)));
        moved.await;
        // Once nobody tells any more, only the time ends it.
        drop(tell);
        assert!(way.moved(Some(2), far).now_or_never().is_none());
        way.moved(Some(2), Instant::now()).await;
    }
}
