//! What a request asks.

use std::num::NonZeroU32;

use daemon::addresses::host_and_port;
use proto::{
    raft::{Reason, Refusal},
    shard::{self as pb, request},
};
use raftd::edge::never;

use crate::{
    command::{Command, Joining, Request, Step},
    ids::{GroupId, Identity, MoveNumber, Number, RequestId, ShardId},
    limits::{HISTORY_PAGE_MAX, STEPS_MAX},
    machine::{Reported, Roster},
};

/// What a request asks of the controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// To be told something; `stale`: by this member, however little it knows.
    Read { read: Read, stale: bool },
    /// Another configuration.
    Change { id: Option<RequestId>, wish: Wish },
    /// To take in what a group tells, and then what it did.
    Report { group: GroupId, roster: Roster, steps: Vec<Command> },
}

/// What changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// This configuration, or the latest.
    Query(Option<Number>),
    /// So many configurations, before this one.
    History { before: Option<Number>, limit: usize },
    /// What a request would come to.
    Plan(Wish),
}

/// A request for a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// Of so many shards; none: of as many as there are.
    pub(crate) shards: Option<NonZeroU32>,
    pub(crate) request: Request,
}

/// Checks a request and says what it asks.
pub(crate) fn ask(kind: &request::Kind) -> Result<Ask, Refusal> {
    use request::Kind;
    Ok(match kind {
        Kind::Query(query) => {
            Ask::Read { read: Read::Query(query.number.map(Number)), stale: query.stale }
        }
        Kind::History(history) => {
            let before = Some(Number(history.before)).filter(|before| before.0 > 0);
            let limit = history.limit as usize;
            let limit = if limit == 0 { HISTORY_PAGE_MAX } else { limit.min(HISTORY_PAGE_MAX) };
            Ask::Read { read: Read::History { before, limit }, stale: history.stale }
        }
        Kind::Join(join) => {
            let groups = (0..).zip(&join.groups).map(|(at, it)| joining(at, it));
            change(join.options.as_ref(), Request::Join(groups.collect::<Result<_, _>>()?))?
        }
        Kind::Leave(leave) => {
            let groups = leave.groups.iter().map(|&number| group("groups", number));
            change(leave.options.as_ref(), Request::Leave(groups.collect::<Result<_, _>>()?))?
        }
        Kind::Weigh(weigh) => {
            let (group, weight) = (group("group", weigh.group)?, weigh.weight);
            change(weigh.options.as_ref(), Request::Weigh { group, weight })?
        }
        Kind::Move(to) => {
            let (shard, group) = (ShardId(to.shard), group("group", to.group)?);
            change(to.options.as_ref(), Request::Move { shard, group })?
        }
        Kind::Unpin(unpin) => change(unpin.options.as_ref(), Request::Unpin(ShardId(unpin.shard)))?,
        Kind::Adopt(adopt) => {
            change(adopt.options.as_ref(), Request::Adopt(group("group", adopt.group)?))?
        }
        Kind::Report(report) => self::report(report)?,
    })
}

fn change(options: Option<&pb::ChangeOptions>, request: Request) -> Result<Ask, Refusal> {
    let Some(pb::ChangeOptions { id, shards, dry_run }) = options else {
        return Ok(Ask::Change { id: None, wish: Wish { shards: None, request } });
    };
    let id = match id.len() {
        0 => None,
        length => Some(RequestId(id[..].try_into().map_err(|_| {
            invalid(format!("options.id has {length} bytes; it must have 16, or none"))
        })?)),
    };
    let wish = Wish { shards: NonZeroU32::new(*shards), request };
    Ok(match dry_run {
        true => Ask::Read { read: Read::Plan(wish), stale: false },
        false => Ask::Change { id, wish },
    })
}

fn joining(at: usize, joining: &pb::Joining) -> Result<Joining, Refusal> {
    let pb::Joining { group: number, weight, members } = joining;
    Ok(Joining {
        group: group(&format!("groups[{at}].group"), *number)?,
        weight: weight.unwrap_or(1),
        members: self::members(&format!("groups[{at}].members"), members)?,
    })
}

fn report(report: &pb::ReportRequest) -> Result<Ask, Refusal> {
    let pb::ReportRequest { group: number, identity, index, shards, members, steps } = report;
    let group = group("group", *number)?;
    let identity: Identity = identity[..]
        .try_into()
        .map_err(|_| invalid(format!("identity has {} bytes; it must have 32", identity.len())))?;
    if steps.len() > STEPS_MAX {
        let message = format!("{} steps; the limit steps_max is {STEPS_MAX}", steps.len());
        return Err(invalid(message));
    }
    let steps = (0..).zip(steps).map(|(at, step)| self::step(at, group, identity, step));
    let steps = steps.collect::<Result<_, _>>()?;
    let (shards, members) = (NonZeroU32::new(*shards), self::members("members", members)?);
    let reported = Some(Reported { identity, index: *index, shards });
    Ok(Ask::Report { group, roster: Roster { reported, members }, steps })
}

fn step(
    at: usize,
    group: GroupId,
    identity: Identity,
    step: &pb::Step,
) -> Result<Command, Refusal> {
    let kind = match step.kind() {
        pb::StepKind::Settled => Command::Settled,
        pb::StepKind::Cancelled => Command::Cancelled,
        pb::StepKind::Aborted => Command::Aborted,
        pb::StepKind::Unspecified => {
            return Err(invalid(format!("steps[{at}].kind is {}, which is no kind", step.kind)));
        }
    };
    let (shard, number) = (ShardId(step.shard), MoveNumber(step.number));
    Ok(kind(Step { group, identity, shard, number }))
}

fn group(field: &str, number: u32) -> Result<GroupId, Refusal> {
    GroupId::new(number).ok_or_else(|| invalid(format!("{field} is 0; groups count from 1")))
}

fn members(field: &str, members: &[String]) -> Result<Vec<String>, Refusal> {
    for member in members {
        host_and_port(field, member).map_err(|failure| invalid(failure.to_string()))?;
    }
    Ok(members.to_vec())
}

fn invalid(message: String) -> Refusal {
    never(Reason::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: &request::Kind) -> String {
        let refusal = ask(kind).unwrap_err();
        assert_eq!(refusal.reason(), Reason::Invalid);
        refusal.message
    }

    fn options(id: usize, shards: u32, dry_run: bool) -> Option<pb::ChangeOptions> {
        Some(pb::ChangeOptions { id: vec![7; id].into(), shards, dry_run })
    }

    fn leave(options: Option<pb::ChangeOptions>) -> request::Kind {
        request::Kind::Leave(pb::LeaveRequest { options, groups: vec![1] })
    }

    fn usual_report() -> pb::ReportRequest {
        let step = pb::Step { shard: 3, number: 9, kind: pb::StepKind::Settled.into() };
        pb::ReportRequest {
            group: 2,
            identity: vec![5; 32].into(),
            index: 8,
            shards: 0,
            members: vec!["kvd-1:7300".to_owned(), "[::1]:7301".to_owned()],
            steps: vec![step],
        }
    }

    #[test]
    fn what_is_not_said_has_its_usual_meaning() {
        let request = Request::Leave(vec![GroupId::new(1).unwrap()]);
        let wish = |shards| Wish { shards: NonZeroU32::new(shards), request: request.clone() };
        let change = |id, shards| Ok(Ask::Change { id, wish: wish(shards) });
        assert_eq!(ask(&leave(None)), change(None, 0));
        assert_eq!(ask(&leave(options(0, 0, false))), change(None, 0));
        assert_eq!(ask(&leave(options(16, 4, false))), change(Some(RequestId([7; 16])), 4));
        let planned = Ask::Read { read: Read::Plan(wish(4)), stale: false };
        assert_eq!(ask(&leave(options(16, 4, true))), Ok(planned));
        let weight = |weight| {
            let joining = pb::Joining { group: 1, weight, members: Vec::new() };
            let join = pb::JoinRequest { options: None, groups: vec![joining] };
            match ask(&request::Kind::Join(join)).unwrap() {
                Ask::Change { wish: Wish { request: Request::Join(groups), .. }, .. } => {
                    groups[0].weight
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((weight(None), weight(Some(0)), weight(Some(7))), (1, 0, 7));
        let page = |before, limit| {
            let history = pb::HistoryRequest { before, limit, stale: true };
            match ask(&request::Kind::History(history)).unwrap() {
                Ask::Read { read: Read::History { before, limit }, stale: true } => (before, limit),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(page(0, 0), (None, HISTORY_PAGE_MAX));
        assert_eq!(page(0, u32::MAX), (None, HISTORY_PAGE_MAX));
        assert_eq!(page(9, 2), (Some(Number(9)), 2));
    }

    #[test]
    fn a_report_says_what_its_group_did() {
        let Ask::Report { group, roster, steps } =
            ask(&request::Kind::Report(usual_report())).unwrap()
        else {
            panic!("another ask");
        };
        let identity = [5; 32];
        assert_eq!(roster.reported, Some(Reported { identity, index: 8, shards: None }));
        let (shard, number) = (ShardId(3), MoveNumber(9));
        assert_eq!(steps, [Command::Settled(Step { group, identity, shard, number })]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name() {
        for length in [1, 15, 17, 4_000] {
            assert!(refused(&leave(options(length, 0, false))).contains("options.id"), "{length}");
        }
        let join = |group, members: &[&str]| {
            let members = members.iter().map(|&member| member.to_owned()).collect();
            let fine = pb::Joining { group: 1, weight: None, members: Vec::new() };
            let joining = pb::Joining { group, weight: None, members };
            request::Kind::Join(pb::JoinRequest { options: None, groups: vec![fine, joining] })
        };
        assert!(refused(&join(0, &[])).contains("groups[1].group is 0"));
        for address in ["", "kvd", "kvd:", ":7300", "kvd:70000", "http://kvd:1", "a b:1", "ü:1"] {
            let message = refused(&join(2, &["kvd:7300", address]));
            assert!(message.contains("groups[1].members"), "{address}: {message}");
        }
        let leave = pb::LeaveRequest { options: None, groups: vec![1, 0] };
        assert!(refused(&request::Kind::Leave(leave)).contains("groups is 0"));
        let wrong = |change: &dyn Fn(&mut pb::ReportRequest)| {
            let mut report = usual_report();
            change(&mut report);
            refused(&request::Kind::Report(report))
        };
        assert!(wrong(&|report| report.group = 0).contains("group is 0"));
        assert!(wrong(&|report| report.identity = vec![0; 31].into()).contains("31 bytes"));
        assert!(wrong(&|report| report.members[1] = "kvd".to_owned()).contains("members is"));
        assert!(wrong(&|report| report.steps[0].kind = 0).contains("steps[0].kind is 0"));
        assert!(wrong(&|report| report.steps[0].kind = -1).contains("steps[0].kind is -1"));
        let many = wrong(&|report| report.steps = vec![report.steps[0]; STEPS_MAX + 1]);
        assert!(many.contains("1025 steps; the limit steps_max is 1024"), "{many}");
    }
}
