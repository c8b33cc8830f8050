//! What a reply says.

use proto::{
    raft::{Reason, Refusal as Undone},
    shard::{self as pb, RefusedCode, change_reply, query_reply},
};
use raftd::edge::never;

use crate::{
    ShardMachine,
    ids::{GroupId, Number, ShardId},
    machine::{Reported, Roster},
    outcome::Refusal,
    placement::Placement,
    target::Target,
};

/// What came of a request for a configuration, or would.
pub(crate) fn changed(
    number: Number,
    duplicate: bool,
    moves: Vec<pb::Reassigned>,
) -> pb::ChangeReply {
    let changed = pb::Changed { number: number.0, duplicate, moves };
    pb::ChangeReply { outcome: Some(change_reply::Outcome::Changed(changed)) }
}

/// The shards whose owner differs between two configurations.
pub(crate) fn moves(before: &Target, after: &Target) -> Vec<pb::Reassigned> {
    let owners = (0..).zip(&*after.owners);
    let both = owners.map(|(shard, &to)| (shard, before.owner(ShardId(shard)), to));
    let moved = both.filter(|(_, from, to)| from != to);
    moved
        .map(|(shard, from, to)| pb::Reassigned { shard, from: number(from), to: number(to) })
        .collect()
}

/// A request for a configuration was refused.
pub(crate) fn unchanged(refusal: &Refusal) -> Result<pb::ChangeReply, Undone> {
    let refused = refused(refusal)?;
    Ok(pb::ChangeReply { outcome: Some(change_reply::Outcome::Refused(refused)) })
}

/// What a part of a report came to.
pub(crate) fn result<T>(done: Result<T, Refusal>) -> Result<pb::ReportResult, Undone> {
    let refused = done.err().map(|refusal| refused(&refusal)).transpose()?;
    Ok(pb::ReportResult { refused })
}

/// A configuration, or the latest, and where everything is.
pub(crate) fn queried(machine: &ShardMachine, asked: Option<Number>) -> pb::QueryReply {
    let latest = machine.latest_or_empty(0);
    let found = match asked {
        Some(asked) if asked != latest.number => machine.configuration(asked).cloned(),
        Some(_) | None => Some(latest.clone()),
    };
    let outcome = match (found, asked) {
        (Some(target), _) => query_reply::Outcome::State(pb::State {
            revision: machine.revision(),
            configuration: Some(configuration(&target)),
            latest: latest.number.0,
            placements: placements(machine),
            groups: groups(machine),
        }),
        (None, asked) => {
            let oldest = machine.history().next().map_or(Number(0), |target| target.number);
            let asked = asked.unwrap_or_default();
            let message = format!(
                "there is no configuration {asked}; kept are those from {oldest} to {}",
                latest.number
            );
            let code = RefusedCode::NotKept.into();
            query_reply::Outcome::Refused(pb::Refused { code, message })
        }
    };
    pb::QueryReply { outcome: Some(outcome) }
}

/// So many configurations before one, the newest first.
pub(crate) fn history(
    machine: &ShardMachine,
    before: Option<Number>,
    limit: usize,
) -> pb::HistoryReply {
    let older = |number: Number| before.is_none_or(|before| number < before);
    let mut found = machine.history().rev().filter(|target| older(target.number));
    let configurations = found.by_ref().take(limit).map(|target| configuration(target)).collect();
    pb::HistoryReply { configurations, more: found.next().is_some() }
}

/// Where each shard is.
pub(crate) fn placements(machine: &ShardMachine) -> Vec<pb::Placement> {
    (0..).zip(machine.placements()).map(|(shard, it)| placement(shard, *it)).collect()
}

/// Who the groups are.
pub(crate) fn groups(machine: &ShardMachine) -> Vec<pb::Group> {
    machine.rosters().iter().map(|(id, roster)| group(*id, roster)).collect()
}

pub(crate) fn placement(shard: u32, placement: Placement) -> pb::Placement {
    let Placement { owner, since, last, recovered_at, moving } = placement;
    let moving = moving.map(|moving| {
        let to = number(Some(moving.to));
        pb::ShardMove { to, cancelling: moving.cancelling }
    });
    pb::Placement {
        shard,
        owner: number(owner),
        since: since.0,
        last: last.0,
        r#move: moving,
        recovered_at: recovered_at.0,
    }
}

pub(crate) fn group(id: GroupId, roster: &Roster) -> pb::Group {
    let reported = roster.reported.map(|Reported { identity, index, shards }| pb::Reported {
        identity: identity.to_vec().into(),
        index,
        shards: shards.map_or(0, Into::into),
    });
    pb::Group { group: number(Some(id)), members: roster.members.clone(), reported }
}

fn configuration(target: &Target) -> pb::Configuration {
    let weights = target.weights.iter();
    let pins = target.pins.iter();
    pb::Configuration {
        number: target.number.0,
        owners: target.owners.iter().map(|&owner| number(owner)).collect(),
        weights: weights
            .map(|(&group, &weight)| pb::Weight { group: number(Some(group)), weight })
            .collect(),
        pins: pins
            .map(|(shard, &group)| pb::Pin { shard: shard.0, group: number(Some(group)) })
            .collect(),
    }
}

fn number(group: Option<GroupId>) -> u32 {
    group.map_or(0, |group| group.0.get())
}

/// Why the machine did not execute a command: told as part of a reply, unless it could not even read
/// it.
fn refused(refusal: &Refusal) -> Result<pb::Refused, Undone> {
    let message = refusal.to_string();
    let code = match refusal {
        Refusal::Bad(_) => return Err(never(Reason::Invalid, message)),
        Refusal::RefusedBefore => RefusedCode::RefusedBefore,
        Refusal::OtherShards { .. } => RefusedCode::OtherShards,
        Refusal::Limit { .. } => RefusedCode::Limit,
        Refusal::NoShard { .. } => RefusedCode::NoShard,
        Refusal::NoGroups => RefusedCode::NoGroups,
        Refusal::Twice(_) => RefusedCode::Twice,
        Refusal::NotJoined(_) => RefusedCode::NotJoined,
        Refusal::Joined { .. } => RefusedCode::Joined,
        Refusal::Unknown(_) => RefusedCode::UnknownGroup,
        Refusal::NoMembers(_) => RefusedCode::NoMembers,
        Refusal::NoWeight => RefusedCode::NoWeight,
        Refusal::NotEmpty => RefusedCode::NotEmpty,
        Refusal::NothingToAdopt(_) => RefusedCode::NothingToAdopt,
        Refusal::OtherIdentity(_) => RefusedCode::OtherIdentity,
        Refusal::Stale => RefusedCode::Stale,
    };
    Ok(pb::Refused { code: code.into(), message })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use raft::{Applied, StateMachine};

    use super::*;
    use crate::command::{Command, Joining, Request};

    const SHARDS: NonZeroU32 = NonZeroU32::new(4).unwrap();

    fn joined(groups: &[u32]) -> ShardMachine {
        let mut machine = ShardMachine::default();
        for &number in groups {
            let (group, members) = (GroupId::new(number).unwrap(), vec!["kvd:7300".to_owned()]);
            let request = Request::Join(vec![Joining { group, weight: 1, members }]);
            let command = Command::Request { id: None, shards: SHARDS, request };
            machine.apply(Applied::default(), &command.encode()).unwrap();
        }
        machine
    }

    fn state(machine: &ShardMachine, asked: Option<u64>) -> Result<pb::State, pb::Refused> {
        match queried(machine, asked.map(Number)).outcome.unwrap() {
            query_reply::Outcome::State(state) => Ok(state),
            query_reply::Outcome::Refused(refused) => Err(refused),
        }
    }

    #[test]
    fn a_configuration_is_found_or_missed_by_its_number() {
        let machine = joined(&[1, 2]);
        let latest = state(&machine, None).unwrap();
        assert_eq!((latest.latest, latest.revision), (2, 2));
        assert_eq!(state(&machine, Some(2)), Ok(latest.clone()));
        let configuration = latest.configuration.unwrap();
        assert_eq!((configuration.number, configuration.owners), (2, vec![1, 1, 2, 2]));
        let first = state(&machine, Some(1)).unwrap();
        assert_eq!(first.configuration.unwrap().owners, [1; 4]);
        assert_eq!((first.latest, first.placements), (2, latest.placements));
        let missed = state(&machine, Some(3)).unwrap_err();
        assert_eq!(missed.code(), RefusedCode::NotKept);
        assert!(missed.message.contains("from 0 to 2"), "{}", missed.message);
        let nothing = state(&ShardMachine::default(), None).unwrap();
        assert_eq!((nothing.latest, nothing.placements.len()), (0, 0));
        assert_eq!(state(&ShardMachine::default(), Some(0)), Ok(nothing));
    }

    #[test]
    fn history_goes_back_page_by_page() {
        let machine = joined(&[1, 2, 3]);
        let page = |before: Option<u64>, limit| {
            let reply = history(&machine, before.map(Number), limit);
            let numbers: Vec<_> = reply.configurations.iter().map(|it| it.number).collect();
            (numbers, reply.more)
        };
        assert_eq!(page(None, 2), (vec![3, 2], true));
        assert_eq!(page(Some(2), 2), (vec![1, 0], false));
        assert_eq!(page(Some(9), 4), (vec![3, 2, 1, 0], false));
    }

    #[test]
    fn moves_are_between_what_should_be_and_what_shall_be() {
        let machine = joined(&[1, 2]);
        let [one, two] = [1, 2].map(|number| machine.configuration(Number(number)).unwrap());
        let moved = |shard| pb::Reassigned { shard, from: 1, to: 2 };
        assert_eq!(moves(one, two), [moved(2), moved(3)]);
        assert!(moves(two, two).is_empty());
        let first = |shard| pb::Reassigned { shard, from: 0, to: 1 };
        let nothing = Target::empty(0);
        assert_eq!(moves(&nothing, one), [0, 1, 2, 3].map(first));
    }
}
