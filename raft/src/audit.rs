//! The corruption check: whether members that have applied the same entries hold the same state.
//!
//! Every member remembers the digest of its state behind each entry that tells the time or begins a
//! term, so all choose the same places without talking, and tells it to the others. Everybody judges
//! itself. Who differs from a majority is wrong, serves nothing more, and is rebuilt from a snapshot
//! of a member that agrees with it. Where no majority can agree, each makes its state once more
//! from its last snapshot and its log and trusts that; where these differ as well, a person decides.
//! A member whose state is in doubt goes on voting and storing, since its log is whole. It serves
//! again when a majority agrees with it about an entry at or behind the one that raised the doubt.
//! Decides all of that; who is asked and what is swapped is `replica.rs`. Left out: what a digest
//! covers, which is the machine's affair, and a group of one, which has nobody to compare with.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Config, Index, Membership, NUMBER_MAX, NodeId, SnapshotRoot};

/// At how many places a member remembers the digest of its own state, and those of others: the
/// others may be a few checks behind or ahead.
const PLACES_MAX: usize = 64;

/// What a member makes of its own state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Nothing speaks against it.
    #[default]
    Sound,
    /// It was in doubt before this member was started again, and was not compared since.
    Unverified,
    /// It differs from a majority's, and is being rebuilt.
    Wrong,
    /// Members differ and no majority agrees: it is made once more from the last snapshot and the log.
    Doubtful,
    /// They differ after that, too: a person has to decide.
    Undecided,
}

impl Trust {
    /// Whether anything is answered from the state.
    pub fn serves(self) -> bool {
        self == Self::Sound
    }
}

/// What members say to each other about their states. It may be lost, and is said again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditMessage {
    /// What the sender's state was.
    Report(Report),
    /// The sender needs another place to compare: the leader is to make one.
    CheckWanted,
    /// The sender's state is wrong; it needs a snapshot at or behind this index.
    SnapshotWanted {
        /// Its own last snapshot, which is as doubtful as its state.
        from: Index,
    },
    /// Here is one.
    SnapshotOffer(SnapshotRoot),
}

/// What a state was behind an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The entry.
    pub index: Index,
    /// The digest.
    pub digest: u128,
    /// The state was made once more since members differed.
    pub replayed: bool,
    /// It answers another's, and needs no answer.
    pub is_answer: bool,
}

/// Something that the check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// This member's state is wrong.
    Wrong {
        /// Behind this entry.
        index: Index,
        /// Its digest.
        own: u128,
        /// The digest that a majority has.
        majority: u128,
        /// Who has it.
        agreed: Vec<NodeId>,
    },
    /// Members differ, and no majority agrees.
    Doubtful {
        /// Behind this entry.
        index: Index,
        /// What each that was heard has.
        digests: Vec<(NodeId, u128)>,
    },
    /// This member's state was made once more.
    Replayed {
        /// Up to this entry.
        index: Index,
        /// Its digest was so.
        before: u128,
        /// It is so now.
        after: u128,
    },
    /// Members differ after all of them have made their states once more.
    Undecided {
        /// Behind this entry.
        index: Index,
        /// What each has.
        digests: Vec<(NodeId, u128)>,
    },
    /// A majority agrees with this member's state, which was in doubt.
    Sound {
        /// Behind this entry.
        index: Index,
    },
}

/// What the check asks of a driver.
#[derive(Debug, Default)]
pub struct Audited {
    /// To be sent; they may be lost.
    pub messages: Vec<(NodeId, AuditMessage)>,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// What a member is when a tick passes.
pub(crate) struct Surroundings<'a> {
    pub(crate) leader: Option<NodeId>,
    pub(crate) applied: Index,
    /// The end of its last snapshot.
    pub(crate) snapshot: Index,
    pub(crate) membership: &'a Membership,
}

/// What a member knows of its own state and of the others'.
#[derive(Debug)]
pub(crate) struct Audit {
    id: NodeId,
    /// Between two checks; 0: there are none.
    check_ticks: u32,
    /// How long to wait for who has not told its digest, once two differ.
    patience_ticks: u32,
    trust: Trust,
    /// The entry that raised the doubt.
    since: Index,
    own: BTreeMap<Index, u128>,
    heard: BTreeMap<Index, BTreeMap<NodeId, Report>>,
    /// Everything up to here was applied when this member was started: it was made from the disk.
    started_at: Index,
    /// The state was made once more since the doubt.
    replayed: bool,
    /// Up to where the state is being made once more, and its digest there.
    replaying: Option<(Index, u128)>,
    /// Who has what a majority has, if this member has not.
    agreed: Vec<NodeId>,
    /// How often they were asked to help.
    attempts: usize,
    /// A snapshot of theirs has taken the place of the state.
    rebuilt: bool,
    /// Something was learned since the last judgement.
    news: bool,
    /// For so many ticks two were known to differ without a judgement.
    open_ticks: Option<u32>,
    ticks: u32,
    asked: bool,
    told: Index,
    out: Audited,
}

/// What the digests behind an entry say about this member's.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    Agreed,
    Wrong(u128),
    Split,
}

impl Audit {
    pub(crate) fn new(config: &Config, id: NodeId, started_at: Index) -> Self {
        Self {
            id,
            check_ticks: config.check_ticks,
            patience_ticks: config.election_ticks_min.saturating_mul(2),
            trust: Trust::Sound,
            since: Index(0),
            own: BTreeMap::new(),
            heard: BTreeMap::new(),
            started_at,
            replayed: false,
            replaying: None,
            agreed: Vec::new(),
            attempts: 0,
            rebuilt: false,
            news: false,
            open_ticks: None,
            ticks: 0,
            asked: false,
            told: Index(0),
            out: Audited::default(),
        }
    }

    pub(crate) fn trust(&self) -> Trust {
        self.trust
    }

    /// Whether there are checks at all.
    pub(crate) fn is_on(&self) -> bool {
        self.check_ticks > 0
    }

    /// The state was in doubt when this member ended.
    pub(crate) fn distrust(&mut self) {
        self.trust = Trust::Unverified;
    }

    /// Who has the right state, in turns; none, unless this member's is wrong.
    pub(crate) fn helper(&self) -> Option<NodeId> {
        let wrong = self.trust == Trust::Wrong && !self.agreed.is_empty();
        wrong.then(|| self.agreed[self.attempts % self.agreed.len()])
    }

    /// Whether another state is needed: not while the one that was put in its place is to be
    /// compared.
    fn needs_state(&self) -> bool {
        self.trust == Trust::Wrong && !self.rebuilt
    }

    /// Whether a snapshot of this member may take the place of the state.
    pub(crate) fn is_helped_by(&self, from: NodeId) -> bool {
        self.needs_state() && self.agreed.contains(&from)
    }

    /// The state behind an entry at which all members look.
    pub(crate) fn sample(&mut self, index: Index, digest: u128) {
        self.own.insert(index, digest);
        if self.own.len() > PLACES_MAX {
            self.own.pop_first();
        }
        self.news = true;
    }

    /// Another state has taken the place of the one that was looked at.
    pub(crate) fn forget_own(&mut self) {
        self.own.clear();
        self.told = Index(0);
        self.rebuilt = true;
    }

    /// A member tells its digest. Whoever is no member is not listened to.
    pub(crate) fn hear(&mut self, from: NodeId, report: Report, membership: &Membership) {
        let known = membership.members().contains_key(&from) && from != self.id;
        if !self.is_on() || !known || report.index.0 > NUMBER_MAX {
            return;
        }
        let newest = self.own.last_key_value().map_or(Index(0), |(index, _)| *index);
        if report.index > newest || self.own.contains_key(&report.index) {
            self.heard.entry(report.index).or_default().insert(from, report);
            self.news = true;
        }
        let is_useful = |index: &Index| *index > newest || self.own.contains_key(index);
        self.heard.retain(|index, _| is_useful(index));
        // The farthest is said again when this member has got there.
        if self.heard.len() > PLACES_MAX {
            self.heard.pop_last();
        }
        if !report.is_answer
            && let Some(own) = self.own_report(report.index)
        {
            let answer = Report { is_answer: true, ..own };
            self.out.messages.push((from, AuditMessage::Report(answer)));
        }
    }

    /// Somebody needs another place to compare.
    pub(crate) fn ask_check(&mut self) {
        self.asked = self.is_on();
    }

    /// None, too, of a state that is known to be wrong: with somebody silent it would only bring
    /// those that are right into doubt.
    fn own_report(&self, index: Index) -> Option<Report> {
        if self.needs_state() {
            return None;
        }
        let digest = *self.own.get(&index)?;
        let replayed = self.replayed || index <= self.started_at;
        Some(Report { index, digest, replayed, is_answer: false })
    }

    /// A tick has passed. Whether the leader, if this is it, is to make a place to compare.
    pub(crate) fn tick(&mut self, around: &Surroundings<'_>) -> bool {
        if !self.is_on() {
            return false;
        }
        if let Some(ticks) = &mut self.open_ticks {
            *ticks = ticks.saturating_add(1);
            self.news = true;
        }
        self.ticks = self.ticks.saturating_add(1);
        let in_haste = match self.trust {
            Trust::Sound | Trust::Undecided => self.asked,
            Trust::Unverified | Trust::Wrong | Trust::Doubtful => true,
        };
        let due =
            if in_haste { self.patience_ticks.min(self.check_ticks) } else { self.check_ticks };
        if self.ticks < due {
            return false;
        }
        self.ticks = 0;
        self.seek_help(around);
        let newest = self.own.last_key_value().map(|(index, _)| *index);
        let leads = around.leader == Some(self.id);
        let alone = around.membership.members().len() == 1;
        let changed = around.applied > newest.unwrap_or(Index(0)) && !alone;
        if leads && (changed || self.asked) {
            self.asked = false;
            return true;
        }
        self.tell_again(newest, around.membership);
        false
    }

    /// Asks for what a state in doubt needs.
    fn seek_help(&mut self, around: &Surroundings<'_>) {
        let compares = match self.trust {
            Trust::Sound => return,
            Trust::Wrong => self.rebuilt,
            Trust::Unverified | Trust::Doubtful | Trust::Undecided => true,
        };
        match around.leader {
            Some(leader) if leader == self.id => self.asked |= compares,
            Some(leader) if compares => {
                self.out.messages.push((leader, AuditMessage::CheckWanted));
            }
            Some(_) | None => {}
        }
        if self.needs_state()
            && let Some(helper) = self.helper()
        {
            self.attempts += 1;
            let wanted = AuditMessage::SnapshotWanted { from: around.snapshot };
            self.out.messages.push((helper, wanted));
        }
    }

    /// Tells those of whom nothing was heard at the newest place; they answer, if they are there.
    fn tell_again(&mut self, newest: Option<Index>, membership: &Membership) {
        let Some(report) = newest.and_then(|newest| self.own_report(newest)) else { return };
        let heard = self.heard.get(&report.index);
        let silent = |node: &&NodeId| heard.is_none_or(|heard| !heard.contains_key(node));
        let others = membership.members().keys().filter(|node| **node != self.id);
        let messages = others.filter(silent).map(|to| (*to, AuditMessage::Report(report)));
        self.out.messages.extend(messages);
    }

    /// Tells everybody what is new, and judges. Where the state is to be made once more, if so.
    pub(crate) fn conclude(&mut self, around: &Surroundings<'_>) -> Option<Index> {
        if !self.is_on() || !std::mem::take(&mut self.news) {
            return None;
        }
        self.tell_newest(around.membership);
        let mut differs = false;
        let places: Vec<_> = self.own.iter().rev().map(|(index, own)| (*index, *own)).collect();
        for (index, own) in places {
            let (verdict, differs_here) = self.judge(index, own, around.membership);
            differs |= differs_here;
            match verdict {
                Verdict::Open => {}
                Verdict::Agreed => {
                    self.agree(index);
                    break;
                }
                Verdict::Wrong(majority) => {
                    self.contradict(index, own, majority);
                    break;
                }
                Verdict::Split => {
                    self.doubt(index);
                    break;
                }
            }
        }
        self.open_ticks = differs.then(|| self.open_ticks.unwrap_or(0));
        self.replay(around)
    }

    fn tell_newest(&mut self, membership: &Membership) {
        let newest = self.own.last_key_value().map(|(index, _)| *index);
        let Some(newest) = newest.filter(|newest| *newest > self.told) else { return };
        let Some(report) = self.own_report(newest) else { return };
        self.told = newest;
        let others = membership.members().keys().filter(|node| **node != self.id);
        self.out.messages.extend(others.map(|to| (*to, AuditMessage::Report(report))));
    }

    /// What the digests behind an entry say, and whether any differ.
    fn judge(&self, index: Index, own: u128, membership: &Membership) -> (Verdict, bool) {
        let heard = self.heard.get(&index);
        let digest_of = |node: NodeId| {
            let told = heard.and_then(|heard| heard.get(&node)).map(|report| report.digest);
            if node == self.id { Some(own) } else { told }
        };
        let agrees = |digest| membership.has_quorum(|voter| digest_of(voter) == Some(digest));
        if agrees(own) {
            return (Verdict::Agreed, false);
        }
        let voters = membership.members().keys().filter(|node| membership.is_voter(**node));
        let told: BTreeSet<u128> = voters.filter_map(|node| digest_of(*node)).collect();
        if let Some(&majority) = told.iter().find(|digest| agrees(**digest)) {
            return (Verdict::Wrong(majority), true);
        }
        if !told.iter().any(|digest| *digest != own) {
            return (Verdict::Open, false);
        }
        // Whether those who have not told theirs could bring about a majority.
        let could = |digest| {
            membership.has_quorum(|voter| digest_of(voter).is_none_or(|told| told == digest))
        };
        let waits = self.open_ticks.is_none_or(|ticks| ticks < self.patience_ticks);
        if waits && told.into_iter().any(could) {
            return (Verdict::Open, true);
        }
        (Verdict::Split, true)
    }

    fn agree(&mut self, index: Index) {
        if self.trust.serves() || index < self.since {
            return;
        }
        self.trust = Trust::Sound;
        (self.replayed, self.replaying, self.rebuilt) = (false, None, false);
        (self.agreed, self.attempts) = (Vec::new(), 0);
        self.out.findings.push(Finding::Sound { index });
    }

    fn contradict(&mut self, index: Index, own: u128, majority: u128) {
        let told = self.heard.get(&index).into_iter().flatten();
        let agreed = told.filter(|(_, report)| report.digest == majority).map(|(node, _)| *node);
        self.agreed = agreed.collect();
        self.since = self.since.max(index);
        (self.rebuilt, self.replaying) = (false, None);
        if self.trust != Trust::Wrong {
            self.trust = Trust::Wrong;
            // Help is sought with the next tick.
            self.ticks = self.patience_ticks.max(self.check_ticks);
            let agreed = self.agreed.clone();
            self.out.findings.push(Finding::Wrong { index, own, majority, agreed });
        }
    }

    fn doubt(&mut self, index: Index) {
        match self.trust {
            Trust::Sound | Trust::Unverified => {
                self.trust = Trust::Doubtful;
                self.since = self.since.max(index);
                let digests = self.digests(index);
                self.out.findings.push(Finding::Doubtful { index, digests });
            }
            Trust::Doubtful if self.is_replayed_by_all(index) => {
                self.trust = Trust::Undecided;
                let digests = self.digests(index);
                self.out.findings.push(Finding::Undecided { index, digests });
            }
            Trust::Doubtful | Trust::Undecided | Trust::Wrong => {}
        }
    }

    fn digests(&self, index: Index) -> Vec<(NodeId, u128)> {
        let own = self.own.get(&index).map(|digest| (self.id, *digest));
        let heard = self.heard.get(&index).into_iter().flatten();
        own.into_iter().chain(heard.map(|(node, report)| (*node, report.digest))).collect()
    }

    fn is_replayed_by_all(&self, index: Index) -> bool {
        let own = self.own_report(index);
        let mut told = self.heard.get(&index).into_iter().flat_map(BTreeMap::values);
        own.is_some_and(|own| own.replayed) && told.all(|report| report.replayed)
    }

    /// The newest entry up to which the state is to be made once more, if that is not done yet.
    fn replay(&mut self, around: &Surroundings<'_>) -> Option<Index> {
        if self.trust != Trust::Doubtful || self.replaying.is_some() || self.replayed {
            return None;
        }
        let (&newest, &digest) = self.own.last_key_value()?;
        // Of what the snapshot covers there is no log; the leader makes another place.
        if newest < around.snapshot || newest <= self.started_at {
            return None;
        }
        self.replaying = Some((newest, digest));
        Some(newest)
    }

    /// The state was made once more up to an entry. Whether it has to take the place of the live
    /// one; none: nobody needs it any more.
    pub(crate) fn replayed(&mut self, index: Index, digest: u128) -> Option<bool> {
        let (_, before) = self.replaying.take_if(|(upto, _)| *upto == index)?;
        self.replayed = true;
        self.news = true;
        self.told = Index(0);
        self.out.findings.push(Finding::Replayed { index, before, after: digest });
        Some(digest != before)
    }

    /// The state can't be made once more now.
    pub(crate) fn replay_failed(&mut self) {
        self.replaying = None;
    }

    /// Says what there is to say, beside what was found.
    pub(crate) fn send(&mut self, to: NodeId, message: AuditMessage) {
        self.out.messages.push((to, message));
    }

    /// At how many places others' digests are remembered, and how many in all.
    #[cfg(test)]
    pub(crate) fn places_heard(&self) -> (usize, usize) {
        (self.heard.len(), self.heard.values().map(BTreeMap::len).sum())
    }

    pub(crate) fn take(&mut self) -> Audited {
        std::mem::take(&mut self.out)
    }
}
