//! `flotilla status`: asks every member how it is.
//!
//! A member that is asked names the others, so one endpoint is enough to see a whole group. Each
//! member speaks for itself: what it does not know of the others is not made up here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use client::{Error, Rejected};
use daemon::{Code, Failure};
use proto::admin::{Role, StatusReply, Transfer, Trust};
use serde_json::{Value, json};

use crate::output::{Output, Table, refused};
use crate::units;
use crate::whereabouts::{self, Endpoints};

/// The most members that are asked: all that `flotilla up` can start, and strays.
const MEMBERS_MAX: usize = 128;

/// How many digits of a digest are shown to people, who compare them.
const DIGEST_DIGITS: usize = 8;

/// The arguments of `flotilla status`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoints: Endpoints,
    /// How long to wait for each member
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "2s")]
    timeout: u64,
}

/// What became of asking one member.
pub(crate) type Answer = Result<StatusReply, Error>;

/// Asks, shows, and says by the exit code whether all is well.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let running = if arguments.endpoints.given() { None } else { whereabouts::running()? };
    let endpoints = match running {
        Some(running) => {
            let groups =
                [running.kv_endpoints(), running.log_endpoints(), running.controller_endpoints()];
            groups.concat().into_iter().chain(running.coordinator()).collect()
        }
        None => arguments.endpoints.resolve()?,
    };
    let answers = ask(endpoints, Duration::from_millis(arguments.timeout)).await;
    if let Some(error) = malformed(&answers) {
        return Err(refused(error));
    }
    output.result(&table(&answers), &values(&answers))?;
    judge(&answers)
}

/// Asks these members, and then those that they name and that have not answered at another address:
/// the addresses that members know each other by may be out of reach for the asker.
pub(crate) async fn ask(endpoints: Vec<String>, timeout: Duration) -> BTreeMap<String, Answer> {
    let mut answers = BTreeMap::new();
    let mut next: BTreeSet<String> = endpoints.into_iter().take(MEMBERS_MAX).collect();
    while !next.is_empty() {
        let mut asked = tokio::task::JoinSet::new();
        for endpoint in next {
            asked.spawn(async move {
                let answer = client::admin::status(&endpoint, timeout).await;
                (endpoint, answer)
            });
        }
        answers.extend(asked.join_all().await);
        next = unheard(&answers).take(MEMBERS_MAX.saturating_sub(answers.len())).collect();
    }
    answers
}

/// Where members are said to be that were neither heard nor asked there.
fn unheard(answers: &BTreeMap<String, Answer>) -> impl Iterator<Item = String> {
    let heard: BTreeSet<_> = replies(answers).map(|reply| (group(reply), reply.node)).collect();
    replies(answers)
        .flat_map(|reply| reply.members.iter().map(move |member| (group(reply), member)))
        .filter(move |(group, member)| !heard.contains(&(group.clone(), member.node)))
        .map(|(_, member)| member.client_address.clone())
        .filter(|address| !answers.contains_key(address))
}

fn replies(answers: &BTreeMap<String, Answer>) -> impl Iterator<Item = &StatusReply> {
    answers.values().filter_map(|answer| answer.as_ref().ok())
}

/// What tells groups apart: daemon and identity.
fn group(reply: &StatusReply) -> (String, Vec<u8>) {
    (reply.daemon.clone(), reply.group.to_vec())
}

/// The member that leads the group with the highest term, if one says that it leads.
pub(crate) fn leader<'a>(
    replies: impl IntoIterator<Item = &'a StatusReply>,
) -> Option<&'a StatusReply> {
    let leaders = replies.into_iter().filter(|reply| reply.role() == Role::Leader);
    leaders.max_by_key(|reply| reply.term)
}

/// A wrong call rather than an absent member.
pub(crate) fn malformed(answers: &BTreeMap<String, Answer>) -> Option<Error> {
    let invalid = |answer: &Answer| match answer {
        Err(error @ Error::Rejected(Rejected::Invalid(_))) => Some(error.clone()),
        Ok(_) | Err(_) => None,
    };
    answers.values().find_map(invalid)
}

/// The replies of each group.
fn groups(answers: &BTreeMap<String, Answer>) -> BTreeMap<(String, Vec<u8>), Vec<&StatusReply>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for reply in replies(answers) {
        groups.entry(group(reply)).or_default().push(reply);
    }
    groups
}

/// Well is: every member answers, and every group has one leader whom nobody contradicts.
fn judge(answers: &BTreeMap<String, Answer>) -> Result<(), Failure> {
    let silent: Vec<&str> = answers
        .iter()
        .filter(|(_, answer)| answer.is_err())
        .map(|(endpoint, _)| endpoint.as_str())
        .collect();
    if silent.len() == answers.len() {
        let message = format!("no member answers at {}", silent.join(", "));
        return Err(Failure::new(Code::Unreachable, message));
    }
    if !silent.is_empty() {
        let message = format!("no answer from {}", silent.join(", "));
        return Err(Failure::new(Code::Failed, message));
    }
    for ((daemon, _), replies) in groups(answers) {
        let leads = |reply: &&&StatusReply| reply.role() == Role::Leader;
        let leaders = replies.iter().filter(leads).count();
        if leaders != 1 {
            let message = format!("{daemon} has {leaders} leaders");
            return Err(Failure::new(Code::Failed, message));
        }
    }
    Ok(())
}

fn role(reply: &StatusReply) -> &'static str {
    match reply.role() {
        Role::Unspecified => "unknown",
        Role::Unborn => "unborn",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

/// How many entries a member has not applied that the leader knows to be committed.
fn lag(reply: &StatusReply, group: &[&StatusReply]) -> Option<u64> {
    let leader = leader(group.iter().copied())?;
    Some(leader.commit_index.saturating_sub(reply.applied_index))
}

/// Its last snapshot and whether it takes one, or how far the one has come that it is fetching.
fn snapshot(reply: &StatusReply) -> String {
    match &reply.transfer {
        None if reply.taking_snapshot => {
            format!("{}, taking one", units::bytes(reply.snapshot_bytes))
        }
        None => units::bytes(reply.snapshot_bytes),
        Some(Transfer { from, done_bytes, total_bytes }) => {
            let (done, total) = (units::bytes(*done_bytes), units::bytes(*total_bytes));
            format!("{done} of {total} from {from}")
        }
    }
}

/// What is wrong with its state, if anything is.
fn doubt(reply: &StatusReply) -> &'static str {
    match reply.trust() {
        Trust::Unspecified | Trust::Sound => "",
        Trust::Unverified => ", state unverified",
        Trust::Wrong => ", state wrong, rebuilding",
        Trust::Doubtful => ", state in doubt, replaying",
        Trust::Undecided => ", state undecided",
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn table(answers: &BTreeMap<String, Answer>) -> String {
    let groups = groups(answers);
    let mut table = Table::new([
        "MEMBER", "ADDRESS", "ROLE", "TERM", "LEADER", "LAST", "COMMIT", "APPLIED", "LAG", "LOG",
        "SNAPSHOT", "DIGEST",
    ]);
    for (endpoint, answer) in answers {
        let Ok(reply) = answer else {
            table.row(["-", endpoint, "no answer"].map(str::to_owned));
            continue;
        };
        let group = &groups[&group(reply)];
        let leader = if reply.leader == 0 { "-".to_owned() } else { reply.leader.to_string() };
        let digest: String = hexadecimal(&reply.state_digest).chars().take(DIGEST_DIGITS).collect();
        table.row([
            format!("{} {}", reply.daemon, reply.node),
            endpoint.clone(),
            format!(
                "{}{}{}",
                role(reply),
                if reply.low_on_space { ", disk full" } else { "" },
                doubt(reply)
            ),
            reply.term.to_string(),
            leader,
            reply.last_index.to_string(),
            reply.commit_index.to_string(),
            reply.applied_index.to_string(),
            lag(reply, group).map_or("-".to_owned(), |lag| lag.to_string()),
            units::bytes(reply.log_bytes),
            snapshot(reply),
            digest,
        ]);
    }
    table.text()
}

fn values(answers: &BTreeMap<String, Answer>) -> Value {
    let groups = groups(answers);
    let members = answers.iter().map(|(endpoint, answer)| match answer {
        Err(error) => json!({ "address": endpoint, "error": error.to_string() }),
        Ok(reply) => json!({
            "address": endpoint,
            "daemon": reply.daemon,
            "version": reply.version,
            "cluster": reply.cluster,
            "group": hexadecimal(&reply.group),
            "node": reply.node,
            "role": role(reply),
            "term": reply.term,
            "leader": (reply.leader != 0).then_some(reply.leader),
            "first_index": reply.first_index,
            "last_index": reply.last_index,
            "durable_index": reply.durable_index,
            "commit_index": reply.commit_index,
            "applied_index": reply.applied_index,
            "lag": lag(reply, &groups[&group(reply)]),
            "log_bytes": reply.log_bytes,
            "snapshot_index": (reply.snapshot_index != 0).then_some(reply.snapshot_index),
            "snapshot_bytes": reply.snapshot_bytes,
            "transfer": reply.transfer.map(|transfer| json!({
                "from": transfer.from,
                "done_bytes": transfer.done_bytes,
                "total_bytes": transfer.total_bytes,
            })),
            "taking_snapshot": reply.taking_snapshot,
            "state_digest": hexadecimal(&reply.state_digest),
            "group_time_ms": reply.group_time_ms,
            "low_on_space": reply.low_on_space,
            "trust": reply.trust().as_str_name().trim_start_matches("TRUST_").to_lowercase(),
        }),
    });
    let leaders: Vec<_> = groups.values().map(|group| leader(group.iter().copied())).collect();
    // Of one group, which is what is mostly asked for, the leader stands where it is easily found.
    let only = match leaders.as_slice() {
        [Some(only)] => Some(only.node),
        _ => None,
    };
    json!({ "leader": only, "members": members.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(node: u64, role: Role, term: u64) -> StatusReply {
        let daemon = "kvd".to_owned();
        StatusReply { daemon, node, role: role.into(), term, ..StatusReply::default() }
    }

    fn code(answers: &[Answer]) -> Option<Code> {
        let answers = answers.iter().cloned().enumerate();
        let answers = answers.map(|(number, answer)| (number.to_string(), answer)).collect();
        judge(&answers).err().map(|failure| failure.code())
    }

    #[test]
    fn well_is_one_leader_and_no_silence() {
        let absent = || Err(Rejected::Unavailable("gone".to_owned()).into());
        let (leader, follower) = (reply(1, Role::Leader, 3), reply(2, Role::Follower, 3));
        assert_eq!(code(&[Ok(leader.clone()), Ok(follower.clone())]), None);
        assert_eq!(code(&[Ok(follower.clone())]), Some(Code::Failed));
        assert_eq!(code(&[Ok(leader.clone()), Ok(leader.clone())]), Some(Code::Failed));
        assert_eq!(code(&[Ok(leader), absent()]), Some(Code::Failed));
        assert_eq!(code(&[absent(), absent()]), Some(Code::Unreachable));
    }

    #[test]
    fn two_groups_have_a_leader_each() {
        let jobs = StatusReply { daemon: "mr".to_owned(), ..reply(1, Role::Leader, 1) };
        assert_eq!(code(&[Ok(reply(1, Role::Leader, 3)), Ok(jobs.clone())]), None);
        assert_eq!(code(&[Ok(reply(1, Role::Follower, 3)), Ok(jobs)]), Some(Code::Failed));
    }

    #[test]
    fn members_are_asked_where_they_are_said_to_be_unless_they_were_heard() {
        let member = |node: u64, address: &str| proto::admin::Member {
            node,
            client_address: address.to_owned(),
            ..proto::admin::Member::default()
        };
        let members = vec![member(1, "inside:1"), member(2, "inside:2"), member(3, "c:3")];
        let told =
            |node| StatusReply { members: members.clone(), ..reply(node, Role::Follower, 1) };
        let absent: Answer = Err(Rejected::Unavailable("gone".to_owned()).into());
        let answers = [("a:1", Ok(told(1))), ("b:2", Ok(told(2))), ("c:3", absent)];
        let answers = answers.map(|(endpoint, answer)| (endpoint.to_owned(), answer));
        let mut answers = BTreeMap::from(answers);
        assert_eq!(unheard(&answers).count(), 0);
        answers.remove("b:2");
        assert_eq!(unheard(&answers).collect::<Vec<_>>(), ["inside:2"]);
    }

    #[test]
    fn the_leader_of_the_highest_term_counts() {
        let replies = [reply(1, Role::Leader, 3), reply(2, Role::Leader, 4)];
        assert_eq!(leader(&replies).map(|reply| reply.node), Some(2));
    }

    #[test]
    fn a_transfer_that_runs_stands_where_the_snapshot_will() {
        let idle = StatusReply { snapshot_bytes: 4096, ..reply(1, Role::Follower, 1) };
        assert_eq!(snapshot(&idle), units::bytes(4096));
        let taking = StatusReply { taking_snapshot: true, ..idle.clone() };
        assert_eq!(snapshot(&taking), format!("{}, taking one", units::bytes(4096)));
        let transfer = Some(Transfer { from: 2, done_bytes: 1024, total_bytes: 4096 });
        let shown = snapshot(&StatusReply { transfer, ..idle });
        assert_eq!(shown, format!("{} of {} from 2", units::bytes(1024), units::bytes(4096)));
    }

    #[test]
    fn lag_is_counted_from_what_the_leader_committed() {
        let ahead = StatusReply { commit_index: 9, applied_index: 9, ..reply(1, Role::Leader, 1) };
        let behind = StatusReply { applied_index: 4, ..reply(2, Role::Follower, 1) };
        assert_eq!(lag(&behind, &[&ahead, &behind]), Some(5));
        assert_eq!(lag(&ahead, &[&ahead, &behind]), Some(0));
        assert_eq!(lag(&behind, &[&behind]), None);
    }
}
