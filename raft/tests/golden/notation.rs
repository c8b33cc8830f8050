//! The notation of the scripts: how messages, entries, writes and events are printed, and how
//! crafted messages are read.
//!
//! ```text
//! 4@2 x                                            an entry: index, term, command
//! n1@2 -> n2 append prev=3@1 commit=2 round=4 [4@2 x]
//! n2@2 -> n1 append-reply matched=4 round=4
//! ```

use std::sync::Arc;

use bytes::Bytes;
use flotilla_raft::{
    AppendResult, Ballot, Change, Digest, DropReason, Entry, Event, GroupTime, HardState, Index,
    Membership, Message, MessageKind, NodeId, Payload, Position, RoleKind, SnapshotRoot, Standing,
    Status, Term, Write,
};

/// Prints with or without the stamps of entries, which most scripts are not about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Notation {
    pub(crate) stamps: bool,
}

impl Notation {
    pub(crate) fn entry(self, entry: &Entry) -> String {
        let payload = match &entry.payload {
            Payload::Noop => "noop".to_owned(),
            Payload::Tick => "tick".to_owned(),
            Payload::Command(command) => {
                String::from_utf8_lossy(command).trim_end_matches('.').to_owned()
            }
            Payload::Membership(membership) => self::membership(membership),
        };
        let stamp = if self.stamps { format!(" t={}", entry.stamp) } else { String::new() };
        format!("{} {payload}{stamp}", entry.position())
    }

    pub(crate) fn entries<'a>(self, entries: impl IntoIterator<Item = &'a Entry>) -> String {
        let entries: Vec<String> = entries.into_iter().map(|entry| self.entry(entry)).collect();
        format!("[{}]", entries.join(", "))
    }

    pub(crate) fn message(self, from: NodeId, to: NodeId, message: &Message) -> String {
        format!("n{from}@{} -> n{to} {}", message.term, self.kind(&message.kind))
    }

    fn kind(self, kind: &MessageKind) -> String {
        let dry = |pre_vote| if pre_vote { "pre-vote" } else { "vote" };
        match kind {
            MessageKind::VoteRequest { ballot, last } => {
                let kind = match ballot {
                    Ballot::PreVote => "pre-vote",
                    Ballot::Vote => "vote",
                    Ballot::Transfer => "transfer-vote",
                };
                format!("{kind}? last={last}")
            }
            MessageKind::TimeoutNow => "timeout-now".to_owned(),
            MessageKind::VoteReply { pre_vote, granted } => {
                format!("{} {}", dry(*pre_vote), if *granted { "yes" } else { "no" })
            }
            MessageKind::AppendRequest { previous, commit, round, entries } => {
                let entries = if entries.is_empty() {
                    String::new()
                } else {
                    format!(" {}", self.entries(entries))
                };
                format!("append prev={previous} commit={commit} round={round}{entries}")
            }
            MessageKind::AppendReply { round, result: AppendResult::Matched(index) } => {
                format!("append-reply matched={index} round={round}")
            }
            MessageKind::AppendReply {
                round,
                result: AppendResult::Conflict { refused, hint },
            } => {
                format!("append-reply conflict refused={refused} hint={hint} round={round}")
            }
            MessageKind::SnapshotOffer(root) => format!("offer {}", root.position),
            MessageKind::ReadRequest { context } => format!("read? {}", question(*context)),
            MessageKind::ReadReply { context, index: Some(index) } => {
                format!("read-reply {} at {index}", question(*context))
            }
            MessageKind::ReadReply { context, index: None } => {
                format!("read-reply {} refused", question(*context))
            }
        }
    }

    pub(crate) fn write(self, write: &Write) -> String {
        let mut text = format!("#{}", write.id);
        if let Some(snapshot) = &write.snapshot {
            let reset = if snapshot.reset { " reset" } else { "" };
            text +=
                &format!(" snapshot={} first={}{reset}", snapshot.root.position, snapshot.first);
        }
        if !write.entries.is_empty() {
            text += &format!(" {}", self.entries(&write.entries));
        }
        if let Some(hard) = write.hard_state {
            text += &format!(" {}", hard_state(hard));
        }
        text
    }
}

/// The end of a question's name, which is enough to tell it from others.
fn question(context: u64) -> String {
    format!("q{:04x}", context & 0xffff)
}

fn hard_state(hard: HardState) -> String {
    let vote = hard.vote.map_or("nobody".to_owned(), |vote| format!("n{vote}"));
    format!("term={} vote={vote}", hard.term)
}

pub(crate) fn event(event: &Event) -> String {
    match event {
        Event::Following { term, leader: Some(leader) } => format!("follows n{leader} in {term}"),
        Event::Following { term, leader: None } => format!("follows nobody in {term}"),
        Event::PreCampaigning { term } => format!("pre-campaigns for {term}"),
        Event::Campaigning { term } => format!("campaigns in {term}"),
        Event::Leading { term, last } => format!("leads {term} from {last}"),
        Event::Removed { term } => format!("leaves in {term}"),
        Event::Reconfigured { index, membership: now } => {
            format!("is ruled by {} since {index}", membership(now))
        }
        Event::Transferring { to } => format!("hands over to n{to}"),
        Event::SlowDisk { ticks } => format!("has a disk that is silent for {ticks} ticks"),
        Event::TransferFailed { to } => format!("keeps what n{to} did not take over"),
        Event::LostQuorum { term } => format!("lost its quorum in {term}"),
        Event::Voted { term, candidate } => format!("votes for n{candidate} in {term}"),
        Event::Truncated { from } => format!("truncates from {from}"),
        Event::Committed { index } => format!("commits {index}"),
        Event::Installing { from, root } => format!("wants {} of n{from}", root.position),
        Event::Installed { root, suffix_kept } => {
            let rest = if *suffix_kept { "keeps what is behind" } else { "resets its log" };
            format!("installs {} and {rest}", root.position)
        }
        Event::Compacted { root, first } => {
            format!("compacts at {}, keeps from {first}", root.position)
        }
        Event::Dropped { from, reason } => {
            let reason = match reason {
                DropReason::Stranger => "stranger",
                DropReason::Malformed => "malformed",
                DropReason::LeaderAlive => "leader alive",
                DropReason::Stale => "stale",
                DropReason::Contradiction => "contradiction",
            };
            format!("drops a message of n{from}: {reason}")
        }
    }
}

pub(crate) fn status(id: NodeId, status: &Status) -> String {
    let role = match (status.role, status.leader) {
        (RoleKind::Leader, _) => "leads".to_owned(),
        (RoleKind::Candidate, _) => "campaigns".to_owned(),
        (RoleKind::Follower, Some(leader)) => format!("follows n{leader}"),
        (RoleKind::Follower, None) => "follows nobody".to_owned(),
    };
    let vote = status.vote.map_or(String::new(), |vote| format!(" vote=n{vote}"));
    let snapshot = status
        .snapshot
        .as_ref()
        .map_or(String::new(), |root| format!(" snapshot={}", root.position));
    let mut text = format!(
        "n{id}@{} {role}{vote} log={}..{} durable={} commit={}{snapshot}",
        status.term, status.first, status.last, status.durable, status.commit
    );
    for peer in &status.peers {
        let silent = if peer.active { "" } else { " silent" };
        text += &format!(" (n{} matched={}{silent})", peer.node, peer.matched);
    }
    text
}

/// A root whose chunks nobody looks at.
pub(crate) fn root(
    position: Position,
    stamp: GroupTime,
    membership: Arc<Membership>,
) -> SnapshotRoot {
    let manifest = Digest::default();
    SnapshotRoot { position, stamp, manifest, chunks: 1, bytes: 0, membership }
}

/// `{n1 +n2 -n3 ~n4 (n5)}`: n1 votes, n2 will, n3 did and leaves, n4 did and becomes a learner, n5 is
/// a learner; `leases` if reads may be answered by them.
fn membership(membership: &Membership) -> String {
    let members = membership.members().iter().map(|(id, member)| {
        let contact = String::from_utf8_lossy(&member.contact);
        let at = if contact.is_empty() { String::new() } else { format!("={contact}") };
        match member.standing {
            Standing::Voter => format!("n{id}{at}"),
            Standing::Incoming => format!("+n{id}{at}"),
            Standing::Outgoing => format!("-n{id}{at}"),
            Standing::Demoted => format!("~n{id}{at}"),
            Standing::Learner => format!("(n{id}{at})"),
        }
    });
    let leases = if membership.lease_reads() { " leases" } else { "" };
    format!("{{{}{leases}}}", members.collect::<Vec<_>>().join(" "))
}

/// `add n4 promote n5 demote n6 remove n2 update n3=elsewhere leases on`
pub(crate) fn parse_changes(words: &[&str]) -> Vec<Change> {
    let change = |words: &[&str]| {
        if words[0] == "leases" {
            return Change::LeaseReads(words[1] == "on");
        }
        let (id, contact) = words[1].split_once('=').unwrap_or((words[1], ""));
        let (id, contact) = (parse_node(id), Bytes::copy_from_slice(contact.as_bytes()));
        match words[0] {
            "add" => Change::AddLearner { id, contact },
            "promote" => Change::Promote(id),
            "demote" => Change::Demote(id),
            "remove" => Change::Remove(id),
            "update" => Change::Update { id, contact },
            other => panic!("{other:?} is no change"),
        }
    };
    words.chunks(2).map(change).collect()
}

pub(crate) fn parse_number(text: &str) -> u64 {
    if text == "max" {
        return u64::MAX;
    }
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

pub(crate) fn parse_node(text: &str) -> NodeId {
    if text == "max" {
        return NodeId(u64::MAX);
    }
    let number = text.strip_prefix('n').unwrap_or_else(|| panic!("{text:?} is no member"));
    NodeId(parse_number(number))
}

pub(crate) fn parse_position(text: &str) -> Position {
    let (index, term) = text.split_once('@').unwrap_or_else(|| panic!("{text:?} is no position"));
    Position { term: Term(parse_number(term)), index: Index(parse_number(index)) }
}

/// A command `a:1000` is padded to that many bytes; `noop` and `tick` are those.
pub(crate) fn parse_payload(text: &str) -> Payload {
    match text {
        "noop" => Payload::Noop,
        "tick" => Payload::Tick,
        command => {
            let mut bytes = command.as_bytes().to_vec();
            if let Some((_, length)) = command.split_once(':') {
                let length = usize::try_from(parse_number(length)).expect("a length fits");
                bytes.resize(length, b'.');
            }
            Payload::Command(Bytes::from(bytes))
        }
    }
}

fn parse_entry(text: &str) -> Entry {
    let mut words = text.split_whitespace();
    let position = parse_position(words.next().expect("an entry has a position"));
    let payload = parse_payload(words.next().expect("an entry has a payload"));
    let stamp = words
        .next()
        .map_or(0, |word| parse_number(word.strip_prefix("t=").expect("a stamp is written t=..")));
    Entry { index: position.index, term: position.term, stamp: GroupTime(stamp), payload }
}

/// Reads `n2@2 -> n1 append prev=3@1 ...`: the sender, the receiver and the message.
pub(crate) fn parse_message(text: &str, founders: &Arc<Membership>) -> (NodeId, NodeId, Message) {
    let (head, entries) = match text.split_once('[') {
        Some((head, entries)) => (head, entries.trim_end_matches(']')),
        None => (text, ""),
    };
    let words: Vec<&str> = head.split_whitespace().collect();
    let [sender, "->", receiver, kind, rest @ ..] = words.as_slice() else {
        panic!("{text:?} is no message");
    };
    let (from, term) = sender.split_once('@').expect("a sender is written n1@2");
    let value = |name: &str| {
        rest.iter()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_else(|| panic!("{text:?} lacks {name}="))
    };
    let number = |name: &str| parse_number(value(name));
    let kind = match *kind {
        "timeout-now" => MessageKind::TimeoutNow,
        "vote?" | "pre-vote?" | "transfer-vote?" => MessageKind::VoteRequest {
            ballot: match *kind {
                "pre-vote?" => Ballot::PreVote,
                "vote?" => Ballot::Vote,
                _ => Ballot::Transfer,
            },
            last: parse_position(value("last")),
        },
        "vote" | "pre-vote" => {
            MessageKind::VoteReply { pre_vote: *kind == "pre-vote", granted: rest == ["yes"] }
        }
        "append" => MessageKind::AppendRequest {
            previous: parse_position(value("prev")),
            commit: Index(number("commit")),
            round: number("round"),
            entries: entries.split_terminator(", ").map(parse_entry).collect(),
        },
        "append-reply" => {
            let result = if rest.contains(&"conflict") {
                AppendResult::Conflict {
                    refused: Index(number("refused")),
                    hint: parse_position(value("hint")),
                }
            } else {
                AppendResult::Matched(Index(number("matched")))
            };
            MessageKind::AppendReply { round: number("round"), result }
        }
        "offer" => {
            let position = parse_position(rest[0]);
            MessageKind::SnapshotOffer(root(position, GroupTime(number("t")), founders.clone()))
        }
        other => panic!("{other:?} is no kind of message"),
    };
    let message = Message { term: Term(parse_number(term)), kind };
    (parse_node(from), parse_node(receiver), message)
}
