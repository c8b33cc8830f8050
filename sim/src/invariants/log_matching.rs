//! R3, log matching: two logs that hold an entry of one index and term are equal up to there
//! (figure 3).
//!
//! Each entry that appears in a member's memory is hashed together with everything before it, once,
//! and compared with what anybody ever had at that index and term.

use raft::{Entry, Index};

use super::{Ghost, Step, Violation, ghost::MemoryLog};
use crate::{machine::History, member::Member};

/// How many steps of a member pass until a stretch of its log is hashed anew, the next one each
/// time, so that a long log costs no more than a short one.
const STEPS_UNTIL_RECHECK: u32 = 1_000;
/// How long that stretch is.
const RECHECKED_MAX: usize = 500;

/// A member has a log in memory again.
pub(super) fn started(ghost: &mut Ghost, member: &Member) -> Result<(), Violation> {
    let (base, base_history) = member.disk().image().base();
    let known = ghost.history_at(base.index);
    if known != Some(base_history) {
        let what = format!("n{} starts behind {base}, which nobody committed", member.id);
        return Err(Violation::new("R3", what));
    }
    // The disk's own hashes were made when the entries were written. The last stands for all.
    let image = member.disk().image();
    let (last, history) = (image.last(), image.history_at(image.last().index));
    let known = ghost.prefixes.get(&(last.index, last.term)).copied();
    if last != base && (history.is_none() || history != known) {
        let what = format!("n{} starts with another log up to {last}", member.id);
        return Err(Violation::new("R3", what));
    }
    let entries = image.hashed_entries().collect();
    let log = MemoryLog { base: base.index, base_history, entries, ..MemoryLog::default() };
    ghost.logs.insert(member.id, log);
    Ok(())
}

/// Follows what a member's memory has become.
pub(super) fn check(ghost: &mut Ghost, step: Step<'_>) -> Result<(), Violation> {
    let member = step.member();
    let Some(mut log) = ghost.logs.remove(&step.node) else {
        return Err(Violation::new("R3", format!("n{} was never started", step.node)));
    };
    let followed = follow(ghost, &mut log, member);
    log.steps += 1;
    let due = log.steps >= STEPS_UNTIL_RECHECK;
    let rechecked = if due && followed.is_ok() {
        log.steps = 0;
        recheck_stretch(ghost, &mut log, member)
    } else {
        Ok(())
    };
    ghost.logs.insert(step.node, log);
    followed.and(rechecked)
}

fn follow(ghost: &mut Ghost, log: &mut MemoryLog, member: &Member) -> Result<(), Violation> {
    let Some(replica) = member.replica() else { return Ok(()) };
    let standing = member.standing();
    compact(ghost, log, member, standing.first.previous())?;
    while log.last_index() > standing.last.index {
        log.entries.pop_back();
    }
    while let Some(&(term, _)) = log.entries.back()
        && replica.node().term_at(log.last_index()) != Some(term)
    {
        log.entries.pop_back();
    }
    for entry in replica.node().log(log.last_index().next()) {
        append(ghost, log, member, entry)?;
    }
    Ok(())
}

/// The log in memory begins later than before: behind something committed. If what was there is
/// something else, a snapshot has replaced it all.
fn compact(
    ghost: &Ghost,
    log: &mut MemoryLog,
    member: &Member,
    base: Index,
) -> Result<(), Violation> {
    if log.base == base {
        return Ok(());
    }
    let Some(history) = ghost.history_at(base) else {
        let what = format!("n{} begins behind {base}, which nobody committed", member.id);
        return Err(Violation::new("R3", what));
    };
    if log.history_at(base) == Some(history) {
        let removed = usize::try_from(base.0 - log.base.0).unwrap_or(usize::MAX);
        log.entries.drain(..removed);
    } else {
        log.entries.clear();
    }
    (log.base, log.base_history) = (base, history);
    Ok(())
}

fn append(
    ghost: &mut Ghost,
    log: &mut MemoryLog,
    member: &Member,
    entry: &Entry,
) -> Result<(), Violation> {
    let history = log.last_history().then_entry(entry);
    let known = *ghost.prefixes.entry((entry.index, entry.term)).or_insert(history);
    if known != history || entry.index != log.last_index().next() {
        let what = format!(
            "n{} has {} behind another log than others had: {history} is not {known}",
            member.id,
            entry.position()
        );
        return Err(Violation::new("R3", what));
    }
    ghost.largest_entry_bytes = ghost.largest_entry_bytes.max(entry.size());
    log.entries.push_back((entry.term, history));
    Ok(())
}

/// Hashes the next stretch of a member's log anew, in memory and on its disk.
fn recheck_stretch(ghost: &Ghost, log: &mut MemoryLog, member: &Member) -> Result<(), Violation> {
    let behind = log.last_index();
    let from = if (log.base..behind).contains(&log.rechecked) { log.rechecked } else { log.base };
    log.rechecked = Index(from.0 + RECHECKED_MAX as u64);
    if let Some(history) = log.history_at(from).filter(|_| member.is_up()) {
        compare(ghost, member, history, member.log(from.next()).take(RECHECKED_MAX))?;
    }
    let image = member.disk().image();
    if let Some(history) = image.history_at(from) {
        compare(ghost, member, history, image.entries_behind(from).take(RECHECKED_MAX))?;
    }
    Ok(())
}

/// Hashes a member's whole log anew, in memory and on its disk.
pub(super) fn recheck(ghost: &Ghost, member: &Member) -> Result<(), Violation> {
    let base = member.standing().first.previous();
    if let Some(history) = ghost.history_at(base).filter(|_| member.is_up()) {
        compare(ghost, member, history, member.log(base.next()))?;
    }
    let (_, history) = member.disk().image().base();
    compare(ghost, member, history, member.disk().image().entries())
}

fn compare<'a>(
    ghost: &Ghost,
    member: &Member,
    mut history: History,
    entries: impl Iterator<Item = &'a Entry>,
) -> Result<(), Violation> {
    for entry in entries {
        history = history.then_entry(entry);
        let known = ghost.prefixes.get(&(entry.index, entry.term));
        if known != Some(&history) {
            let what = format!("n{} holds another log up to {}", member.id, entry.position());
            return Err(Violation::new("R3", what));
        }
    }
    Ok(())
}
