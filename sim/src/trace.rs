//! What happens in a run, one line per event, and the hash of all lines.
//!
//! Two runs of one seed by one build have the same trace, byte for byte; the hash says so without
//! keeping the lines.

use std::{
    collections::VecDeque,
    fmt::{self, Write},
};

use raft::{AppendResult, Ballot, DropReason, Event, Message, MessageKind};
use xxhash_rust::xxh3::Xxh3;

/// How many lines are kept for the report of a failure.
pub const RECENT_LINES_MAX: usize = 50;

/// Hears every line of a trace.
pub type Listener = Box<dyn FnMut(&str)>;

/// The trace of a run.
pub struct Trace {
    hasher: Xxh3,
    recent: VecDeque<String>,
    lines: u64,
    listener: Option<Listener>,
}

impl Trace {
    pub(crate) fn new(listener: Option<Listener>) -> Self {
        Self { hasher: Xxh3::new(), recent: VecDeque::new(), lines: 0, listener }
    }

    pub(crate) fn line(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        let mut line = if self.recent.len() == RECENT_LINES_MAX {
            self.recent.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        push_time(&mut line, now_us);
        writeln!(line, "{what}").expect("a string takes everything");
        self.hasher.update(line.as_bytes());
        line.pop();
        if let Some(listener) = &mut self.listener {
            listener(&line);
        }
        self.recent.push_back(line);
        self.lines += 1;
    }

    /// The hash of all lines.
    pub fn hash(&self) -> String {
        format!("{:032x}", self.hasher.digest128())
    }

    /// How many lines there were.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The last lines.
    pub fn recent(&self) -> impl Iterator<Item = &str> {
        self.recent.iter().map(String::as_str)
    }
}

/// Seconds, right-aligned, with six digits behind the point. By hand: every line begins with it.
fn push_time(line: &mut String, now_us: u64) {
    let mut digits = *b"   0.000000 ";
    let (mut seconds, mut micros) = (now_us / 1_000_000, now_us % 1_000_000);
    for digit in digits[5..11].iter_mut().rev() {
        *digit = b'0' + u8::try_from(micros % 10).unwrap_or(0);
        micros /= 10;
    }
    for digit in digits[..4].iter_mut().rev() {
        *digit = b'0' + u8::try_from(seconds % 10).unwrap_or(0);
        seconds /= 10;
        if seconds == 0 {
            break;
        }
    }
    if seconds > 0 {
        line.push_str(&seconds.to_string());
    }
    line.extend(digits.iter().map(|&digit| char::from(digit)));
}

/// A message as the trace shows it.
pub(crate) struct Shown<'a>(pub(crate) &'a Message);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Message { term, kind } = self.0;
        write!(f, "t{term} ")?;
        match kind {
            MessageKind::VoteRequest { ballot, last } => {
                let kind = match ballot {
                    Ballot::PreVote => "pre-vote",
                    Ballot::Vote => "vote",
                    Ballot::Transfer => "transfer-vote",
                };
                write!(f, "{kind}? {last}")
            }
            MessageKind::TimeoutNow => f.write_str("timeout-now"),
            MessageKind::VoteReply { pre_vote, granted } => {
                write!(f, "{}vote {}", pre(*pre_vote), if *granted { "yes" } else { "no" })
            }
            MessageKind::AppendRequest { previous, commit, round, entries } => {
                write!(f, "append {previous}+{} commit {commit} round {round}", entries.len())
            }
            MessageKind::AppendReply { round, result: AppendResult::Matched(index) } => {
                write!(f, "matched {index} round {round}")
            }
            MessageKind::AppendReply {
                round,
                result: AppendResult::Conflict { refused, hint },
            } => {
                write!(f, "conflict {refused} hint {hint} round {round}")
            }
            MessageKind::SnapshotOffer(root) => write!(f, "offer {}", root.position),
            MessageKind::ReadRequest { context } => write!(f, "read? {context:x}"),
            MessageKind::ReadReply { context, index: Some(index) } => {
                write!(f, "read {context:x} at {index}")
            }
            MessageKind::ReadReply { context, index: None } => write!(f, "no read {context:x}"),
        }
    }
}

fn pre(pre_vote: bool) -> &'static str {
    if pre_vote { "pre-" } else { "" }
}

/// An event as the trace shows it.
pub(crate) struct Happened<'a>(pub(crate) &'a Event);

impl fmt::Display for Happened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Event::Following { term, leader: Some(leader) } => {
                write!(f, "follows n{leader} in t{term}")
            }
            Event::Following { term, leader: None } => write!(f, "follows nobody in t{term}"),
            Event::PreCampaigning { term } => write!(f, "pre-campaigns for t{term}"),
            Event::Campaigning { term } => write!(f, "campaigns in t{term}"),
            Event::Leading { term, last } => write!(f, "leads t{term} from {last}"),
            Event::Transferring { to } => write!(f, "hands over to n{to}"),
            Event::SlowDisk { ticks } => write!(f, "its disk is silent for {ticks} ticks"),
            Event::TransferFailed { to } => write!(f, "n{to} did not take over"),
            Event::LostQuorum { term } => write!(f, "leads t{term} no more: no quorum"),
            Event::Removed { term } => write!(f, "leads t{term} no more: votes no more"),
            Event::Reconfigured { index, membership } => {
                write!(f, "is ruled since {index} by")?;
                for (id, member) in membership.members() {
                    write!(f, " n{id}:{:?}", member.standing)?;
                }
                Ok(())
            }
            Event::Voted { term, candidate } => write!(f, "votes for n{candidate} in t{term}"),
            Event::Truncated { from } => write!(f, "truncates from {from}"),
            Event::Committed { index } => write!(f, "knows {index} committed"),
            Event::Installing { from, root } => {
                write!(f, "fetches snapshot {} from n{from}", root.position)
            }
            Event::Installed { root, suffix_kept } => {
                let rest = if *suffix_kept { "keeping what follows" } else { "alone" };
                write!(f, "installs snapshot {} {rest}", root.position)
            }
            Event::Compacted { root, first } => {
                write!(f, "compacts: snapshot {}, log from {first}", root.position)
            }
            Event::Dropped { from, reason } => {
                let reason = match reason {
                    DropReason::Stranger => "stranger",
                    DropReason::Malformed => "malformed",
                    DropReason::LeaderAlive => "leader is alive",
                    DropReason::Stale => "stale",
                    DropReason::Contradiction => "contradiction",
                };
                write!(f, "drops that of n{from}: {reason}")
            }
        }
    }
}
