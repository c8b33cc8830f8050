//! `flotilla members recover`: a survivor of a lost majority goes on as a group of its own.
//!
//! Works on directories, not on daemons. Decides what a person is told before and after; what is
//! done, and in which order, is `raftd::recovery`'s.

use std::path::{Path, PathBuf};

use daemon::{Code, Failure};
use raft::{Position, Standing};
use raftd::recovery::{self, Recovery, Survivor};
use serde_json::{Value, json};

use crate::output::Output;
use crate::status::hexadecimal;

/// The arguments of `flotilla members recover`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The data directory of a member that does not run; several are compared
    #[arg(long = "dir", value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Do it, to one directory; nothing is copied
    #[arg(long)]
    yes: bool,
    /// Only tell what would be done, as without --yes. The log is copied to the temporary directory
    /// (TMPDIR) meanwhile, so that nothing is changed
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// Tells what would be done, or does it.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    match (arguments.yes, arguments.dirs.as_slice()) {
        (true, [dir]) => recover(dir, output),
        (true, _) => {
            let message = "one survivor goes on, not several: give --yes with the best --dir alone";
            Err(Failure::new(Code::WrongCall, message))
        }
        (false, dirs) => tell(dirs, output),
    }
}

fn recover(dir: &Path, output: Output) -> Result<(), Failure> {
    raftd::failpoint::arm_from_environment()?;
    check_exists(dir)?;
    let (survivor, recovery) = recovery::recover(dir).map_err(|failure| refused(dir, failure))?;
    let node = survivor.node;
    let Some(Recovery { group, entry }) = recovery else {
        let text = format!("member {node} is the only voter of its group: nothing to recover");
        return output.result(&text, &json!({ "recovered": false, "node": node.0 }));
    };
    let (group, next) = (hexadecimal(&group), survivor.last_id.0 + 1);
    let text = format!(
        "member {node} is the only voter of its group, which is {group} now. Its log goes on \
         behind entry {entry}.\n\
         Next: start it; wipe the directories of all others; start new members with ids from \
         {next} on, --join and empty directories; and `flotilla members add` them.\n\
         A coordinator of MapReduce finds its shared root again when that text is in \
         ROOT/.flotilla-root."
    );
    let value = json!({
        "recovered": true,
        "node": node.0,
        "group": group,
        "entry": position(entry),
        "next_id": next,
    });
    output.result(&text, &value)
}

fn tell(dirs: &[PathBuf], output: Output) -> Result<(), Failure> {
    let survivors = dirs.iter().map(|dir| look(dir)).collect::<Result<Vec<_>, _>>()?;
    let same =
        |one: &Survivor| (one.group, &one.cluster) == (survivors[0].group, &survivors[0].cluster);
    if !survivors.iter().all(same) {
        let message = "these are members of several groups: give the directories of one";
        return Err(Failure::new(Code::WrongCall, message));
    }
    // The first of equals, as a person would take it.
    let best =
        (0..dirs.len()).rev().max_by_key(|&at| (survivors[at].last.term, survivors[at].last.index));
    let best = best.unwrap_or_default();
    let mut texts: Vec<String> =
        dirs.iter().zip(&survivors).map(|(dir, it)| shown(dir, it)).collect();
    texts.push(advice(&dirs[best], &survivors[best], dirs.len() > 1));
    let values: Vec<Value> = dirs.iter().zip(&survivors).map(|(dir, it)| value(dir, it)).collect();
    let value = json!({ "recovered": false, "survivors": values, "best": dirs[best] });
    output.result(&texts.join("\n\n"), &value)
}

fn check_exists(dir: &Path) -> Result<(), Failure> {
    if dir.is_dir() {
        return Ok(());
    }
    Err(Failure::new(Code::NotFound, format!("there is no directory {}", dir.display())))
}

/// Looks at a copy of the log in the temporary directory, so that nothing is changed in this one.
fn look(dir: &Path) -> Result<Survivor, Failure> {
    check_exists(dir)?;
    let scratch = tempfile::tempdir().map_err(|error| {
        Failure::new(Code::Failed, "there is no place for a copy of the log").because(error)
    })?;
    recovery::look(dir, scratch.path()).map_err(|failure| refused(dir, failure))
}

fn refused(dir: &Path, failure: Failure) -> Failure {
    let dir = dir.display();
    let (code, message) = match failure.code() {
        Code::NotFound => (Code::NotFound, "there is nothing to recover".to_owned()),
        Code::Configuration => (Code::WrongCall, format!("the member in {dir} can't go on")),
        Code::Damaged => (
            Code::Failed,
            format!("{dir} is damaged, or something that was acknowledged is missing in it"),
        ),
        _ => (Code::Failed, format!("the member in {dir} can't be recovered now")),
    };
    Failure::new(code, message).because(failure)
}

fn shown(dir: &Path, survivor: &Survivor) -> String {
    let Survivor { cluster, group, node, term, last, snapshot, .. } = survivor;
    let mut lines = vec![
        format!("{}", dir.display()),
        format!("  cluster    {cluster}"),
        format!("  group      {}", hexadecimal(group)),
        format!("  member     {node}, in term {term}"),
        format!("  log        ends at entry {} of term {}", last.index, last.term),
        match snapshot {
            Some(at) => format!("  snapshot   of entry {}: up to there it was committed", at.index),
            None => "  snapshot   none: what was committed is not known".to_owned(),
        },
    ];
    for (place, (member, standing)) in survivor.members.iter().enumerate() {
        let begin = if place == 0 { "members" } else { "" };
        let (id, part, at) = (member.node, part(*standing), &member.peer_address);
        let own = if id == *node { ", this one" } else { "" };
        lines.push(format!("  {begin:<10} {id}, {part}, at {at}{own}"));
    }
    if survivor.is_unfinished {
        lines.push("  a recovery was begun here and is not finished: --yes goes on".to_owned());
    }
    lines.join("\n")
}

fn advice(dir: &Path, survivor: &Survivor, compared: bool) -> String {
    if survivor.is_alone() && !survivor.is_unfinished {
        let node = survivor.node;
        return format!(
            "Member {node} is the only voter of its group: there is nothing to recover."
        );
    }
    let (dir, last) = (dir.display(), survivor.last);
    let mut lines = Vec::new();
    if compared {
        lines.push(format!("The longest log of these is in {dir}."));
    }
    lines.push(format!(
        "With --yes member {} goes on alone, in a group with a new identity:\n\
         - What the others acknowledged without it is lost: entries that its log, which ends at \
         (term {}, entry {}), does not have. If other directories are left, compare: the highest \
         term, then the highest entry, has the most. Several --dir do that.",
        survivor.node, last.term, last.index
    ));
    let known = survivor.snapshot.map_or(0, |at| at.index.0);
    lines.push(format!(
        "- Its entries behind {known} become committed, also those that never were acknowledged.\n\
         - No other member is ever listened to again: wipe their directories. Be sure that they \
         don't run: together they would go on without this one.\n\
         - Revisions, versions and terms move on by 2^32, so that none is ever given out twice.\n\
         Nothing was changed. Keep a copy of {dir} before you go on."
    ));
    lines.join("\n")
}

fn value(dir: &Path, survivor: &Survivor) -> Value {
    let members = survivor.members.iter().map(|(member, standing)| {
        json!({
            "node": member.node.0,
            "part": part(*standing),
            "peer_address": member.peer_address,
            "client_address": member.client_address,
        })
    });
    json!({
        "dir": dir,
        "cluster": survivor.cluster,
        "group": hexadecimal(&survivor.group),
        "node": survivor.node.0,
        "term": survivor.term.0,
        "last": position(survivor.last),
        "snapshot": survivor.snapshot.map(position),
        "members": members.collect::<Vec<_>>(),
        "alone": survivor.is_alone(),
        "unfinished": survivor.is_unfinished,
    })
}

fn position(at: Position) -> Value {
    json!({ "term": at.term.0, "index": at.index.0 })
}

fn part(standing: Standing) -> &'static str {
    match standing {
        Standing::Learner => "learner",
        Standing::Voter => "voter",
        Standing::Incoming => "becomes a voter",
        Standing::Outgoing => "leaves",
        Standing::Demoted => "becomes a learner",
    }
}
