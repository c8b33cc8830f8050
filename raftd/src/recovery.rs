//! Recovery from the loss of a majority, on the directory of a survivor that does not run.
//!
//! The survivor becomes the only voter of a group that goes on with its log. No majority has agreed
//! to that, so it is another group: its identity is drawn anew, and from the moment that the floor
//! has it nobody of the former group is listened to. Only then does the log get the membership, as
//! an entry like any other, in a term of its own. A crash in between leaves a directory with which
//! no daemon starts, and [`recover`] goes on from there. What was counted up by the members that
//! are lost is never counted again: the term moves on by [`RECOVERY_GAP`] here, and state machines
//! move theirs when they see the entry.

use std::path::Path;
use std::sync::Arc;

use daemon::{Code, Failure};
use raft::{
    Entry, GroupTime, HardState, Membership, NodeId, Payload, Position, RECOVERY_GAP, Recovered,
    Standing, Term, WriteId,
};

use crate::failpoint::{self, Failpoint};
use crate::identity::GroupId;
use crate::membership::{self, Contact};
use crate::settings::Member;
use crate::store::gathered::Gathered;
use crate::store::offline::{self, Offline};
use crate::store::records::Records;
use crate::store::slots::Slots;
use crate::store::{Engine, FloorState};

/// What the directory of a survivor holds.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// The name of its cluster.
    pub cluster: String,
    /// The group that it belongs to.
    pub group: GroupId,
    /// Which member it is.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
    /// The end of its log: of several survivors the one with the highest has the most.
    pub last: Position,
    /// The last entry of its snapshot; everything up to there is known to be committed.
    pub snapshot: Option<Position>,
    /// The members, as it knows them, and what part each has.
    pub members: Vec<(Member, Standing)>,
    /// The highest id that a member ever had.
    pub last_id: NodeId,
    /// Whether a recovery was begun and not finished.
    pub is_unfinished: bool,
    membership: Arc<Membership>,
}

/// What came of a recovery.
#[derive(Clone, Copy, Debug)]
pub struct Recovery {
    /// The new identity of the group.
    pub group: GroupId,
    /// Where the membership stands in the log, which is its last entry.
    pub entry: Position,
}

/// Refuses a directory that holds no member of a group.
fn check_holds_member(data: &Path) -> Result<(), Failure> {
    if offline::holds_member(data)? {
        return Ok(());
    }
    let message = format!("{} is no directory of a member of a group", data.display());
    Err(Failure::new(Code::NotFound, message))
}

/// Looks at the directory of a member that does not run, without changing a byte of it. A copy of
/// its log is made in the empty directory `scratch`.
///
/// # Errors
/// Not found: it is no directory of a member of a group. Configuration: of one that can't go on.
/// Damaged: something that was acknowledged is missing. Machine: a process uses it, or the machine
/// refuses.
pub fn look(data: &Path, scratch: &Path) -> Result<Survivor, Failure> {
    check_holds_member(data)?;
    let (state, recovered) = offline::look(data, scratch)?;
    survivor(&state, &recovered)
}

/// Makes the member of a directory the only voter of a group with a new identity: as it was before,
/// and what came of it. None: it is the only voter already, and nothing was done.
///
/// # Errors
/// As [`look`]; whatever was begun goes on when this is called again.
pub fn recover(data: &Path) -> Result<(Survivor, Option<Recovery>), Failure> {
    check_holds_member(data)?;
    let mut offline = Offline::open(data)?;
    let survivor = survivor(offline.engine.state(), &offline.recovered)?;
    Ok((survivor, recover_store(&mut offline.engine, &offline.recovered, rand::random())?))
}

/// As [`recover`], of a store that is open and what was found in it; `id` is the new identity, unless
/// one was drawn before.
///
/// # Errors
/// As [`recover`].
///
/// # Panics
/// If the store is of no group.
pub fn recover_store<R: Records, S: Slots>(
    engine: &mut Engine<R, S>,
    recovered: &Recovered,
    id: GroupId,
) -> Result<Option<Recovery>, Failure> {
    let survivor = survivor(engine.state(), recovered)?;
    if survivor.is_alone() && !survivor.is_unfinished {
        return Ok(None);
    }
    let latest = &survivor.membership;
    let recoveries = match engine.state().recovering {
        Some(recoveries) => recoveries,
        None => {
            let recoveries = latest.recoveries() + 1;
            failpoint::reach(Failpoint::RecoverIdentityBefore);
            engine.begin_recovery(id, recoveries)?;
            recoveries
        }
    };
    let mut entry = survivor.last;
    if latest.recoveries() < recoveries {
        failpoint::reach(Failpoint::RecoverEntryBefore);
        let written = survivor.first_entry(last_stamp(recovered))?;
        entry = written.entries.last().map_or(entry, Entry::position);
        engine.write(&written)?;
    }
    failpoint::reach(Failpoint::RecoverEndBefore);
    engine.end_recovery()?;
    failpoint::reach(Failpoint::RecoverEndAfter);
    let group = engine.state().group.as_ref().map_or(survivor.group, |group| group.id);
    Ok(Some(Recovery { group, entry }))
}

impl Survivor {
    /// Whether there is no other voter, whose loss could be a loss.
    pub fn is_alone(&self) -> bool {
        self.membership.voters().eq([self.node])
    }

    /// The membership of this member alone, as a leader of a term that nobody else ever has would
    /// append it.
    fn first_entry(&self, stamp: GroupTime) -> Result<Gathered, Failure> {
        let membership = self.membership.recovered(self.node).ok_or_else(|| self.no_member())?;
        let term = Term(self.term.0 + RECOVERY_GAP);
        let index = self.last.index.next();
        let entry = Entry { index, term, stamp, payload: Payload::Membership(membership.into()) };
        Ok(Gathered {
            id: WriteId::default(),
            hard_state: Some(HardState { term, vote: Some(self.node) }),
            snapshot: None,
            entries: vec![entry],
        })
    }

    fn no_member(&self) -> Failure {
        Failure::configuration(format!(
            "member {} does not belong to the group, as far as its own log says: it was removed, or \
             never got the log",
            self.node
        ))
    }
}

fn survivor(state: &FloorState, recovered: &Recovered) -> Result<Survivor, Failure> {
    let group = state.group.as_ref().expect("a directory without a group was refused");
    let in_snapshot = recovered.snapshot.as_ref().map(|root| root.membership.clone());
    let in_log = recovered.memberships.last().map(|(_, membership)| membership.clone());
    let as_born = || membership::of_founders(&group.founders);
    let membership = in_log.or(in_snapshot).unwrap_or_else(as_born);
    let members = membership.members().iter().filter_map(|(&node, member)| {
        let Contact { peer_address, client_address, .. } = Contact::decode(&member.contact)?;
        Some((Member { node, peer_address, client_address }, member.standing))
    });
    let survivor = Survivor {
        cluster: state.cluster.clone(),
        group: group.id,
        node: state.node,
        term: recovered.hard_state.term,
        last: recovered.log.last(),
        snapshot: recovered.snapshot.as_ref().map(|root| root.position),
        members: members.collect(),
        last_id: membership.last_id(),
        is_unfinished: state.recovering.is_some(),
        membership,
    };
    let is_member = survivor.membership.members().contains_key(&survivor.node);
    if is_member { Ok(survivor) } else { Err(survivor.no_member()) }
}

fn last_stamp(recovered: &Recovered) -> GroupTime {
    let in_log = recovered.log.entries().last().map(|entry| entry.stamp);
    in_log.or(recovered.snapshot.as_ref().map(|root| root.stamp)).unwrap_or_default()
}
