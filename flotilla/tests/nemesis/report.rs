//! What happened in a run, and whether that was enough to mean anything.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sim::operation::Verdict;

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    Get,
    Put,
    PutIf,
    Append,
    Delete,
    Scan,
    Txn,
}

impl Verb {
    pub(crate) const ALL: [Self; 7] =
        [Self::Get, Self::Put, Self::PutIf, Self::Append, Self::Delete, Self::Scan, Self::Txn];

    fn writes(self) -> bool {
        match self {
            Self::Get | Self::Scan => false,
            Self::Put | Self::PutIf | Self::Append | Self::Delete | Self::Txn => true,
        }
    }
}

/// How questions ended.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    answered: u64,
    unknown: u64,
    never: u64,
}

/// What clients were told, counted.
pub(crate) struct Tally {
    ends: Mutex<BTreeMap<(&'static str, Verb), Ends>>,
    /// When a write was last acknowledged, and the longest time without.
    writes: Mutex<(Instant, Duration)>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let writes = Mutex::new((Instant::now(), Duration::ZERO));
        Self { ends: Mutex::default(), writes }
    }

    pub(crate) fn count(&self, caller: &'static str, verb: Verb, verdict: &Verdict) {
        let mut all = self.ends.lock().unwrap();
        let ends = all.entry((caller, verb)).or_default();
        match verdict {
            Verdict::Done(_) => ends.answered += 1,
            Verdict::Unknown => ends.unknown += 1,
            Verdict::Never => ends.never += 1,
        }
        drop(all);
        if verb.writes() && matches!(verdict, Verdict::Done(_)) {
            let (last, longest) = &mut *self.writes.lock().unwrap();
            *longest = (*longest).max(last.elapsed());
            *last = Instant::now();
        }
    }

    /// How many operations were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.ends.lock().unwrap().values().map(|ends| ends.answered).sum()
    }

    fn answered_of(&self, verb: Verb) -> u64 {
        let all = self.ends.lock().unwrap();
        all.iter().filter(|((_, it), _)| *it == verb).map(|(_, ends)| ends.answered).sum()
    }
}

/// The least that a run has to have seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gates {
    pub(crate) operations: u64,
    /// Of each verb.
    pub(crate) each_verb: u64,
    pub(crate) faults: u64,
    /// Of each kind of fault that can be had.
    pub(crate) each_fault: u64,
    pub(crate) leader_changes: usize,
}

/// A run that is over.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    pub(crate) clients: u64,
    pub(crate) tally: std::sync::Arc<Tally>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) leader_changes: usize,
    /// Records with an answer that were judged; a scan has one for each key.
    pub(crate) judged: u64,
}

impl Report {
    /// What is missing for the run to mean anything.
    pub(crate) fn inconclusive(&self, gates: Gates) -> Vec<String> {
        let mut missing = Vec::new();
        let mut need = |what: &str, had: u64, wanted: u64| {
            if had < wanted {
                missing.push(format!("{had} of {wanted} {what}"));
            }
        };
        need("operations", self.tally.answered(), gates.operations);
        for verb in Verb::ALL {
            need(&format!("{verb:?}"), self.tally.answered_of(verb), gates.each_verb);
        }
        need("faults", self.faults.values().sum(), gates.faults);
        for (fault, times) in &self.faults {
            need(fault, *times, gates.each_fault);
        }
        need("leader changes", self.leader_changes as u64, gates.leader_changes as u64);
        missing
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = self.tally.ends.lock().unwrap();
        let of = |pick: fn(&Ends) -> u64| ends.values().map(pick).sum::<u64>();
        let (_, longest) = *self.tally.writes.lock().unwrap();
        writeln!(
            f,
            "seed {}: {} operations of {} clients in {:.0?}, {} unknown, {} never; {} faults, {} \
             leader changes; longest time without an acknowledged write {longest:.1?}; {} judged",
            self.seed,
            of(|ends| ends.answered),
            self.clients,
            self.length,
            of(|ends| ends.unknown),
            of(|ends| ends.never),
            self.faults.values().sum::<u64>(),
            self.leader_changes,
            self.judged,
        )?;
        for ((caller, verb), Ends { answered, unknown, never }) in &*ends {
            writeln!(f, "  {caller} {verb:?}: {answered}, {unknown} unknown, {never} never")?;
        }
        let faults = self.faults.iter().map(|(name, times)| format!("{name} {times}"));
        write!(f, "  faults: {}", faults.collect::<Vec<_>>().join(", "))
    }
}
