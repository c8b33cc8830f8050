//! Asks the groups what only they know: who leads, who is behind, and how each shard stands there.
//!
//! Decides whom to ask, and how long to wait: all groups beside each other, each for a time, so that
//! one that is dead holds up nobody. What a group does not tell is missing by name, never made up.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use client::{
    Options, admin,
    handoff::{HandoffClient, ShardStanding},
    shards::Group,
};
use futures::{StreamExt, future::join_all, stream};
use proto::admin::{Role, StatusReply};
use tokio::time::timeout;

/// How many groups are asked at a time.
const GROUPS_AT_A_TIME: usize = 64;

/// What a group told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// What each member told, by its address; or why it told nothing.
    pub(super) members: BTreeMap<String, Result<Member, String>>,
}

/// What a member told.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// How it is.
    pub(super) status: StatusReply,
    /// How the shards stand as far as it has applied; or why that is not known.
    pub(super) standings: Result<Standings, String>,
}

/// How the shards stand in a group.
#[derive(Clone, Debug)]
pub(super) struct Standings {
    /// When they did.
    pub(super) at: Instant,
    /// By number; none: the group has made none yet.
    pub(super) shards: Vec<ShardStanding>,
}

/// Asks each group, by its number. A member is waited for until `limit`, and if it answers, as long
/// again.
pub(super) async fn ask(groups: &[Group], limit: Duration) -> BTreeMap<u32, Told> {
    let asked =
        groups.iter().map(|group| async move { (group.group, ask_group(group, limit).await) });
    stream::iter(asked).buffer_unordered(GROUPS_AT_A_TIME).collect().await
}

async fn ask_group(group: &Group, limit: Duration) -> Told {
    let identity = group.reported.as_ref().map(|reported| &reported.identity[..]);
    let asked = group.members.iter().map(|address| async move {
        (address.clone(), ask_member(address, identity, limit).await)
    });
    Told { members: join_all(asked).await.into_iter().collect() }
}

async fn ask_member(
    address: &str,
    identity: Option<&[u8]>,
    limit: Duration,
) -> Result<Member, String> {
    let status = admin::status(address, limit).await.map_err(|error| error.to_string())?;
    let status = check_identity(status, identity)?;
    let standings = match timeout(limit, ask_standings(address, limit)).await {
        Ok(standings) => standings,
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    };
    Ok(Member { status, standings })
}

/// Refuses an answer that somebody else gave at the address.
fn check_identity(reply: StatusReply, identity: Option<&[u8]>) -> Result<StatusReply, String> {
    match identity.is_none_or(|identity| reply.group == identity) {
        true => Ok(reply),
        false => Err(format!("a {} of another group answers there", reply.daemon)),
    }
}

async fn ask_standings(address: &str, limit: Duration) -> Result<Standings, String> {
    let options = Options { attempt: limit, ..Options::with_deadline(limit) };
    let client =
        HandoffClient::connect(&[address.to_owned()], options).map_err(|it| it.to_string())?;
    let reply = client.inspect().await.map_err(|error| error.to_string())?;
    Ok(Standings { at: Instant::now(), shards: reply.shards })
}

impl Told {
    /// How the shards stand, as told by the first that did: the leader, else who has applied most.
    pub(super) fn standings(&self) -> Result<&Standings, &str> {
        let leader = self.leader().map(|(address, _)| address);
        let mut members: Vec<_> = self.answering().collect();
        members.sort_by_key(|(address, member)| {
            (leader != Some(*address), Reverse(member.status.applied_index))
        });
        let mut refused = "no member answers";
        for (_, member) in members {
            match &member.standings {
                Ok(standings) => return Ok(standings),
                Err(why) => refused = why,
            }
        }
        Err(refused)
    }

    /// Who leads: of several who say so the one of the highest term.
    pub(super) fn leader(&self) -> Option<(&str, &StatusReply)> {
        let all = self.answering().map(|(address, member)| (address, &member.status));
        let leaders = all.filter(|(_, status)| status.role() == Role::Leader);
        leaders.max_by_key(|(_, status)| status.term)
    }

    /// The members that answered, by address.
    pub(super) fn answering(&self) -> impl Iterator<Item = (&str, &Member)> {
        self.members.iter().filter_map(|(at, member)| Some((at.as_str(), member.as_ref().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that tells its index as the settled move of a shard.
    fn member(role: Role, term: u64, applied_index: u64) -> Result<Member, String> {
        let role = role.into();
        let status = StatusReply { role, term, applied_index, ..StatusReply::default() };
        let shards = vec![ShardStanding { settled: applied_index, ..ShardStanding::default() }];
        Ok(Member { status, standings: Ok(Standings { at: Instant::now(), shards }) })
    }

    #[test]
    fn the_leader_is_believed_first_and_who_is_silent_not_at_all() {
        let members = [
            ("a:1", member(Role::Leader, 2, 90)),
            ("b:1", member(Role::Follower, 3, 70)),
            ("c:1", member(Role::Leader, 3, 50)),
            ("d:1", Err("gone".to_owned())),
        ];
        let members = members.map(|(address, member)| (address.to_owned(), member)).into();
        let mut told = Told { members };
        let believed = |told: &Told| told.standings().map(|it| it.shards[0].settled).ok();
        assert_eq!(told.leader().map(|(address, _)| address), Some("c:1"));
        assert_eq!(believed(&told), Some(50));
        for (silent, then) in [("c:1", Some(90)), ("a:1", Some(70)), ("b:1", None)] {
            let member = told.members.get_mut(silent).and_then(|it| it.as_mut().ok()).unwrap();
            member.standings = Err("busy".to_owned());
            assert_eq!(believed(&told), then);
        }
        assert_eq!(told.standings().unwrap_err(), "busy");
    }

    #[test]
    fn an_answer_of_another_group_counts_as_none() {
        let reply = |identity: &'static [u8]| StatusReply {
            daemon: "kvd".to_owned(),
            group: identity.into(),
            ..StatusReply::default()
        };
        assert!(check_identity(reply(b"one"), Some(b"one")).is_ok());
        assert!(check_identity(reply(b"one"), None).is_ok());
        let refused = check_identity(reply(b"two"), Some(b"one")).unwrap_err();
        assert_eq!(refused, "a kvd of another group answers there");
    }
}
