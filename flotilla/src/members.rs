//! `flotilla members`: what operators do to the members of a group.

use std::fmt::Display;
use std::time::{Duration, Instant};

use client::admin::MemberChange;
use client::{Error, Rejected};
use daemon::{Code, Failure};
use proto::admin::{Member, Standing, StatusReply};
use serde_json::json;

use crate::output::{Output, Table, refused};
use crate::recover;
use crate::status;
use crate::units;
use crate::whereabouts::Endpoints;

/// How often a group without a leader, and a learner that has not caught up, are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How often somebody who waits is told for what.
const TELL_INTERVAL: Duration = Duration::from_secs(2);

/// The arguments of `flotilla members`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    endpoints: Endpoints,
    /// How long to wait for an answer
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = units::milliseconds,
        default_value = "10s",
        global = true
    )]
    timeout: u64,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Show who belongs to the group, and how far each has come
    List,
    /// Add a member, and let it vote when it has caught up
    ///
    /// Start the new member first, with an id that the group has never used, an empty directory, and
    /// `--join` with the peer address of a member; it waits to be added. Its id and its addresses are
    /// asked at the address given here. If this command is interrupted, the same command goes on
    /// where it was.
    Add {
        /// The peer address of the new member
        #[arg(value_name = "HOST:PORT")]
        peer: String,
        /// It is to stay a learner: it gets everything and decides nothing
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        patience: Patience,
    },
    /// Put a new member into the place of another, in one step
    ///
    /// The new one is added as a learner; when it has caught up it votes from the very moment that
    /// the old one leaves. Start it as for `add`. If this command is interrupted, the same command
    /// goes on where it was.
    Replace {
        /// The member that leaves
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        node: u64,
        /// The peer address of the new member
        #[arg(value_name = "HOST:PORT")]
        peer: String,
        #[command(flatten)]
        patience: Patience,
    },
    /// Let a learner vote
    Promote {
        /// The learner
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        node: u64,
        #[command(flatten)]
        patience: Patience,
    },
    /// Make a voter a learner
    Demote {
        /// The voter
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        node: u64,
    },
    /// Remove members, all at once
    ///
    /// Refused if too few of those that remain answer. A member that was removed ends with exit
    /// code 78; its id is never used again, and its directory is of no more use.
    Remove {
        /// The members that leave
        #[arg(
            value_name = "ID",
            required = true,
            value_parser = clap::value_parser!(u64).range(1..)
        )]
        nodes: Vec<u64>,
    },
    /// Tell the group where a member is reached that has moved
    ///
    /// Start it at its new place first, with its directory and its new addresses. They are asked at
    /// the address given here.
    Update {
        /// The peer address where it is reached now
        #[arg(value_name = "HOST:PORT")]
        peer: String,
    },
    /// Go on with a survivor when the majority of a group is lost for ever
    ///
    /// Works on the data directory of a member that does not run, whichever daemon it is of. It
    /// becomes the only voter of a group with a new identity, and everything that the lost members
    /// acknowledged without it is lost. Without `--yes` this only tells what it would do. Give the
    /// directories of all survivors first, to learn which has the most.
    Recover(recover::Arguments),
    /// Let the leader answer reads by a lease, or forbid it
    ///
    /// With a lease, reads cost no messages. It trusts that clocks of members differ by less than
    /// 10 % in speed and go on while a machine sleeps; docs/operations.md says where they do. It is
    /// off unless it is turned on.
    LeaseReads {
        /// Whether it may
        #[arg(value_enum)]
        switch: Switch,
    },
    /// Hand the leadership over to another member, before its machine is stopped for example
    ///
    /// Requests wait for the moment that it takes; none fails. A leader that is stopped with SIGTERM
    /// does this by itself. The members of a log and the coordinators of MapReduce are members
    /// of a group too: name one with --endpoints.
    Transfer {
        /// The member that is to lead [default: the one that has most of the log]
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
        to: Option<u64>,
    },
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    On,
    Off,
}

#[derive(clap::Args, Clone, Debug)]
struct Patience {
    /// How long to wait until it has caught up
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = units::milliseconds,
        default_value = "10m"
    )]
    wait: u64,
}

/// Does it, and says what came of it.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let limit = Duration::from_millis(arguments.timeout);
    let endpoints = match &arguments.command {
        // It asks nobody, and must not need a cluster.
        Command::Recover(_) => Vec::new(),
        _ => arguments.endpoints.resolve()?,
    };
    let group = Group { endpoints, limit };
    match arguments.command {
        Command::List => list(&group, output).await,
        Command::Add { peer, learner, patience } => {
            add(&group, &peer, learner, &patience, output).await
        }
        Command::Replace { node, peer, patience } => {
            replace(&group, node, &peer, &patience, output).await
        }
        Command::Promote { node, patience } => {
            group.promote(&[MemberChange::Promote(node)], &patience, output).await?;
            output.result(&format!("member {node} votes"), &json!({ "promoted": node }))
        }
        Command::Demote { node } => {
            group.change(&[MemberChange::Demote(node)], output).await?.map_err(refused)?;
            output.result(&format!("member {node} is a learner"), &json!({ "demoted": node }))
        }
        Command::Remove { nodes } => {
            let changes: Vec<_> = nodes.iter().copied().map(MemberChange::Remove).collect();
            group.change(&changes, output).await?.map_err(refused)?;
            let ids: Vec<String> = nodes.iter().map(u64::to_string).collect();
            let text = format!("removed from the group: {}", ids.join(", "));
            output.result(&text, &json!({ "removed": nodes }))
        }
        Command::Update { peer } => {
            group.change(&[MemberChange::Update(peer.clone())], output).await?.map_err(refused)?;
            let text = format!("the group knows that a member is reached at {peer}");
            output.result(&text, &json!({ "updated": peer }))
        }
        Command::LeaseReads { switch } => {
            let on = switch == Switch::On;
            group.change(&[MemberChange::LeaseReads(on)], output).await?.map_err(refused)?;
            output.result(&format!("lease reads are {}", word(on)), &json!({ "lease_reads": on }))
        }
        Command::Transfer { to } => transfer(&group, to, output).await,
        Command::Recover(asked) => recover::run(&asked, output),
    }
}

/// A group, as its members are reached from here.
struct Group {
    endpoints: Vec<String>,
    limit: Duration,
}

impl Group {
    /// The leader, and where it answers. A group that is just electing one is given the time.
    async fn leader(&self) -> Result<(String, StatusReply), Failure> {
        let until = Instant::now() + self.limit;
        loop {
            if let Some(leader) = self.present_leader().await? {
                return Ok(leader);
            }
            if Instant::now() >= until {
                let message = "the group has no leader, or it does not answer";
                return Err(Failure::new(Code::Failed, message));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn present_leader(&self) -> Result<Option<(String, StatusReply)>, Failure> {
        let answers = status::ask(self.endpoints.clone(), self.limit).await;
        if let Some(error) = status::malformed(&answers) {
            return Err(refused(error));
        }
        let heard: Vec<_> = answers
            .iter()
            .filter_map(|(endpoint, answer)| Some((endpoint, answer.as_ref().ok()?)))
            .collect();
        if heard.is_empty() {
            let asked: Vec<&str> = answers.keys().map(String::as_str).collect();
            let message = format!("no member answers at {}", asked.join(", "));
            return Err(Failure::new(Code::Unreachable, message));
        }
        // Who is being started may not know its group yet.
        let mut groups = heard.iter().map(|(_, reply)| &reply.group).filter(|it| !it.is_empty());
        let first = groups.next();
        if groups.any(|group| Some(group) != first) {
            let message = "these are members of several groups: name those of one with --endpoints";
            return Err(Failure::new(Code::WrongCall, message));
        }
        let leader = status::leader(heard.iter().map(|(_, reply)| *reply));
        let leads = |reply: &StatusReply| leader.is_some_and(|leader| leader.node == reply.node);
        let found = heard.iter().find(|(_, reply)| leads(reply));
        Ok(found.map(|(endpoint, reply)| ((*endpoint).clone(), (*reply).clone())))
    }

    /// The members, when no change is under way.
    async fn members(&self, output: Output) -> Result<Vec<Member>, Failure> {
        let mut wait = Wait::new(self.limit);
        loop {
            let (_, leader) = self.leader().await?;
            let settled = |member: &Member| match member.standing() {
                Standing::Learner | Standing::Voter | Standing::Unspecified => true,
                Standing::Incoming | Standing::Outgoing | Standing::Demoted => false,
            };
            if leader.members.iter().all(settled) {
                return Ok(leader.members);
            }
            let why = "another change of the members is under way";
            if wait.is_over() {
                return Err(Failure::new(Code::Failed, why));
            }
            wait.tell(&why, output).await;
        }
    }

    /// Changes the members; whom each of the changes was about, or why the leader did not. What
    /// passes by itself, a change of leaders or a member that is just being started, is waited for.
    async fn change(
        &self,
        changes: &[MemberChange],
        output: Output,
    ) -> Result<Result<Vec<u64>, Error>, Failure> {
        let mut wait = Wait::new(self.limit);
        loop {
            let endpoint = match self.leader().await {
                Ok((endpoint, _)) => endpoint,
                Err(failure) if failure.code() == Code::Unreachable && !wait.is_over() => {
                    wait.tell(&failure, output).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            match client::admin::change_members(&endpoint, changes, self.limit).await {
                Err(error @ Error::Rejected(Rejected::Unavailable(_))) if !wait.is_over() => {
                    wait.tell(&error, output).await;
                }
                ended => return Ok(ended),
            }
        }
    }

    /// Asks for a change of the member that answers at a peer address; its id.
    async fn change_at(&self, change: MemberChange, output: Output) -> Result<u64, Failure> {
        let nodes = self.change(&[change], output).await?.map_err(refused)?;
        nodes.first().copied().ok_or_else(|| {
            Failure::new(Code::Failed, "it is done, but the leader does not name the member")
        })
    }

    /// Asks for `changes`, which let a learner vote, until it has caught up.
    async fn promote(
        &self,
        changes: &[MemberChange],
        patience: &Patience,
        output: Output,
    ) -> Result<(), Failure> {
        let mut wait = Wait::new(Duration::from_millis(patience.wait));
        loop {
            match self.change(changes, output).await? {
                Ok(_) => return Ok(()),
                Err(error @ Error::Rejected(Rejected::Refused(_))) if !wait.is_over() => {
                    wait.tell(&error, output).await;
                }
                Err(error) => return Err(refused(error)),
            }
        }
    }
}

/// Waits for what passes by itself, and tells people for what.
struct Wait {
    until: Instant,
    tell: Instant,
}

impl Wait {
    fn new(limit: Duration) -> Self {
        let now = Instant::now();
        Self { until: now + limit, tell: now + TELL_INTERVAL }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    async fn tell(&mut self, error: &impl Display, output: Output) {
        if Instant::now() >= self.tell {
            self.tell += TELL_INTERVAL;
            output.note(&format!("waiting: {error}"));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Adds a member, or goes on where an earlier attempt was.
async fn add(
    group: &Group,
    peer: &str,
    learner: bool,
    patience: &Patience,
    output: Output,
) -> Result<(), Failure> {
    let before = group.members(output).await?;
    let node = group.change_at(MemberChange::Add(peer.to_owned()), output).await?;
    let was = standing(&before, node);
    if learner && was == Some(Standing::Voter) {
        let message = format!("member {node} belongs to the group already, and votes: see demote");
        return Err(Failure::new(Code::Exists, message));
    }
    if !learner && was != Some(Standing::Voter) {
        group.promote(&[MemberChange::Promote(node)], patience, output).await?;
    }
    let part = if learner { "a learner" } else { "a voter" };
    let already = match was {
        None => "",
        Some(Standing::Learner) if !learner => "; it was there already, as a learner",
        Some(_) => "; it was there already",
    };
    let text = format!("member {node} belongs to the group, as {part}{already}");
    output.result(&text, &json!({ "added": node, "voter": !learner, "already": was.is_some() }))
}

/// Puts a member into the place of another, or goes on where an earlier attempt was.
async fn replace(
    group: &Group,
    old: u64,
    peer: &str,
    patience: &Patience,
    output: Output,
) -> Result<(), Failure> {
    let before = group.members(output).await?;
    let leaves = standing(&before, old).is_some();
    // Without the old one there is nobody to replace, unless this was done before.
    let change = if leaves { MemberChange::Add } else { MemberChange::Update };
    let node = group.change_at(change(peer.to_owned()), output).await.map_err(|failure| {
        let missing = failure.code() == Code::NotFound;
        let message = format!("neither member {old} nor the one at {peer} belongs to the group");
        if missing { Failure::new(Code::NotFound, message) } else { failure }
    })?;
    let was = standing(&before, node);
    if leaves && was == Some(Standing::Voter) {
        // Promoting and removing are one change, so this is no replacement that broke off.
        let message = format!("the one at {peer} is member {node}, which votes already");
        return Err(Failure::new(Code::Exists, message));
    }
    let mut changes = Vec::new();
    if was != Some(Standing::Voter) {
        changes.push(MemberChange::Promote(node));
    }
    if leaves {
        changes.push(MemberChange::Remove(old));
    }
    if !changes.is_empty() {
        group.promote(&changes, patience, output).await?;
    }
    let already = match (was, changes.is_empty()) {
        (_, true) => "; it had already",
        (Some(_), false) => "; it was there already",
        (None, false) => "",
    };
    let text = format!("member {node} has taken the place of member {old}{already}");
    output.result(&text, &json!({ "added": node, "removed": [old], "already": was.is_some() }))
}

fn standing(members: &[Member], node: u64) -> Option<Standing> {
    members.iter().find(|member| member.node == node).map(Member::standing)
}

async fn list(group: &Group, output: Output) -> Result<(), Failure> {
    let (_, leader) = group.leader().await?;
    let mut table =
        Table::new(["member", "part", "peers reach it", "clients reach it", "lacks", ""]);
    for member in &leader.members {
        let lacks = leader.last_index.saturating_sub(member.matched_index);
        let state = match (member.node == leader.node, member.active) {
            (true, _) => "leads",
            (false, true) => "",
            (false, false) => "silent",
        };
        table.row([
            member.node.to_string(),
            part(member).to_owned(),
            member.peer_address.clone(),
            member.client_address.clone(),
            lacks.to_string(),
            state.to_owned(),
        ]);
    }
    let members = leader.members.iter().map(|member| {
        json!({
            "node": member.node,
            "part": part(member),
            "peer_address": member.peer_address,
            "client_address": member.client_address,
            "matched_index": member.matched_index,
            "active": member.active,
        })
    });
    let members: Vec<_> = members.collect();
    output.result(
        &format!("{}\nlease reads: {}", table.text(), word(leader.lease_reads)),
        &json!({
            "leader": leader.node,
            "lease_reads": leader.lease_reads,
            "members": members,
        }),
    )
}

fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn part(member: &Member) -> &'static str {
    match member.standing() {
        Standing::Unspecified => "unknown",
        Standing::Learner => "learner",
        Standing::Voter => "voter",
        Standing::Incoming => "becomes a voter",
        Standing::Outgoing => "leaves",
        Standing::Demoted => "becomes a learner",
    }
}

async fn transfer(group: &Group, to: Option<u64>, output: Output) -> Result<(), Failure> {
    let (endpoint, before) = group.leader().await?;
    let leads = client::admin::transfer(&endpoint, to, group.limit).await.map_err(refused)?;
    let text = match leads == before.node {
        true => format!("member {leads} leads, as before"),
        false => format!("member {leads} leads; before it was member {}", before.node),
    };
    output.result(&text, &json!({ "leader": leads, "before": before.node }))
}
