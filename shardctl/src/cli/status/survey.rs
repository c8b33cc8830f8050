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
    /// How each member is, by its address; or why that is not known.
    pub(super) members: BTreeMap<String, Result<StatusReply, String>>,
    /// How the shards stand; or why that is not known.
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

/// Asks each group, by its number. A member is waited for until `limit`, and then one of those that
/// answer as long again.
pub(super) async fn ask(groups: &[Group], limit: Duration) -> BTreeMap<u32, Told> {
    let asked =
        groups.iter().map(|group| async move { (group.group, ask_group(group, limit).await) });
    stream::iter(asked).buffer_unordered(GROUPS_AT_A_TIME).collect().await
}

async fn ask_group(group: &Group, limit: Duration) -> Told {
    let identity = group.reported.as_ref().map(|reported| &reported.identity[..]);
    let asked = group.members.iter().map(|address| async move {
        let answer = admin::status(address, limit).await.map_err(|error| error.to_string());
        (address.clone(), answer.and_then(|reply| check_identity(reply, identity)))
    });
    let members: BTreeMap<_, _> = join_all(asked).await.into_iter().collect();
    let standings = match timeout(limit, ask_standings(&members, limit)).await {
        Ok(standings) => standings,
        Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
    };
    Told { members, standings }
}

/// Refuses an answer that somebody else gave at the address.
fn check_identity(reply: StatusReply, identity: Option<&[u8]>) -> Result<StatusReply, String> {
    match identity.is_none_or(|identity| reply.group == identity) {
        true => Ok(reply),
        false => Err(format!("a {} of another group answers there", reply.daemon)),
    }
}

/// How the shards stand, as told by the first that can: the leader, else who has applied most.
async fn ask_standings(
    members: &BTreeMap<String, Result<StatusReply, String>>,
    limit: Duration,
) -> Result<Standings, String> {
    let mut refused = "no member answers".to_owned();
    for address in in_order(members) {
        let options = Options { attempt: limit, ..Options::with_deadline(limit) };
        let client = match HandoffClient::connect(&[address], options) {
            Ok(client) => client,
            Err(invalid) => {
                refused = invalid.to_string();
                continue;
            }
        };
        match client.inspect().await {
            Ok(reply) => return Ok(Standings { at: Instant::now(), shards: reply.shards }),
            Err(error) => refused = error.to_string(),
        }
    }
    Err(refused)
}

/// The members that answered, in the order in which they are asked further.
fn in_order(members: &BTreeMap<String, Result<StatusReply, String>>) -> Vec<String> {
    let leader = leader(members).map(|(address, _)| address);
    let mut answering: Vec<_> = members
        .iter()
        .filter_map(|(address, reply)| Some((address, reply.as_ref().ok()?)))
        .collect();
    answering.sort_by_key(|(address, reply)| {
        (leader != Some(address.as_str()), Reverse(reply.applied_index))
    });
    answering.into_iter().map(|(address, _)| address.clone()).collect()
}

/// Who leads: of several who say so the one of the highest term.
pub(super) fn leader(
    members: &BTreeMap<String, Result<StatusReply, String>>,
) -> Option<(&str, &StatusReply)> {
    let replies =
        members.iter().filter_map(|(at, reply)| Some((at.as_str(), reply.as_ref().ok()?)));
    replies.filter(|(_, reply)| reply.role() == Role::Leader).max_by_key(|(_, reply)| reply.term)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(role: Role, term: u64, applied_index: u64) -> Result<StatusReply, String> {
        Ok(StatusReply { role: role.into(), term, applied_index, ..StatusReply::default() })
    }

    #[test]
    fn the_leader_is_asked_first_and_who_is_silent_not_at_all() {
        let members = [
            ("a:1", reply(Role::Leader, 2, 90)),
            ("b:1", reply(Role::Follower, 3, 70)),
            ("c:1", reply(Role::Leader, 3, 50)),
            ("d:1", Err("gone".to_owned())),
        ];
        let members = members.map(|(address, reply)| (address.to_owned(), reply)).into();
        assert_eq!(leader(&members).map(|(address, _)| address), Some("c:1"));
        assert_eq!(in_order(&members), ["c:1", "a:1", "b:1"]);
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
