//! Lives under strace, and disks in the course of such a life.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::disk::{Disk, Fate};
use super::life::{self, Life, Told};
use super::trace::{self, Call, What};
use crate::member::{contents, copy};

/// A life as it was traced.
pub(crate) struct Traced {
    /// What the disk held before it.
    base: PathBuf,
    calls: Vec<Call>,
    /// The beginnings and ends of the calls, in order.
    moments: Vec<Moment>,
    lives: Vec<Life>,
    told: Told,
}

impl Traced {
    /// Lives, after these lives, from what the last one has left in `base`.
    pub(crate) fn live(base: &Path, lives: Vec<Life>, told: Told, context: &str) -> Self {
        let root = base.with_extension("lived");
        copy(base, &root);
        let command = life::living(&root.join("a/member"), &lives, &told);
        let calls = trace::trace(&command, &root, context);
        let (moments, told) = (Vec::new(), Told { writes: 0, ..told });
        let mut traced = Self { base: base.to_owned(), calls, moments, lives, told };
        traced.settle(&root, context);
        fs::remove_dir_all(&root).unwrap();
        traced
    }

    /// The trace accounts for everything that is in the directory, which shows in what order calls
    /// took effect that ran at the same time: when it starts, sled cuts off free segments at the
    /// file's end in one thread and writes zeros over them in another.
    fn settle(&mut self, root: &Path, context: &str) {
        let unordered = unordered(&self.calls);
        assert!(unordered.len() <= UNORDERED_MAX, "{context}: {} calls at once", unordered.len());
        let mut differences = Vec::new();
        for orders in 0..1_u32 << unordered.len() {
            let late = unordered.iter().enumerate().filter(|(bit, _)| orders >> bit & 1 == 1);
            self.moments = moments(&self.calls, &late.map(|(_, at)| *at).collect());
            match self.difference(root) {
                None => return,
                Some(difference) => differences.push(difference),
            }
        }
        panic!("{context}: no order of the calls leaves what is there: {differences:#?}");
    }

    /// In what the directory is not as the trace leaves it.
    fn difference(&self, root: &Path) -> Option<String> {
        let mut replay = Replay::new(self);
        replay.run_to(self.end());
        let image = root.with_extension("replayed");
        fs::create_dir(&image).unwrap();
        replay.disk.image(&image, &mut Fate::whole(&mut StdRng::seed_from_u64(0)));
        let (lived, replayed) = (contents(root), contents(&image));
        fs::remove_dir_all(&image).unwrap();
        if lived.len() != replayed.len() {
            return Some(format!("{} files, not {}", lived.len(), replayed.len()));
        }
        let mut files = lived.iter().zip(&replayed);
        let ((path, lived), (_, replayed)) = files.find(|((_, a), (_, b))| a != b)?;
        let same = lived.iter().zip(replayed).take_while(|(a, b)| a == b).count();
        let (path, lens) = (path.display(), (lived.len(), replayed.len()));
        Some(format!("{path} is different from byte {same} on, lengths {lens:?}"))
    }

    /// The last moment.
    pub(crate) fn end(&self) -> usize {
        self.moments.len()
    }

    /// The moment at which the group had been born and the store was open.
    pub(crate) fn birth(&self) -> usize {
        let born = |moment: &Moment| match &self.calls[moment.at].what {
            What::Tell(said) => Told::read(said).is_some_and(|told| told.born),
            _ => false,
        };
        self.moments.iter().position(born).unwrap()
    }
}

/// A call begins or ends.
struct Moment {
    ends: bool,
    at: usize,
}

/// More calls of a life that may have taken effect before one another are not tried in all orders.
const UNORDERED_MAX: usize = 8;

/// Calls that ran while another one did and whose order with that one shows.
fn unordered(calls: &[Call]) -> BTreeSet<usize> {
    let mut unordered = BTreeSet::new();
    for (at, call) in calls.iter().enumerate() {
        let later = calls.iter().enumerate().skip(at + 1);
        let meanwhile = later.take_while(|(_, other)| call.end.is_none_or(|end| other.begin < end));
        for (other, _) in meanwhile.filter(|(_, other)| call.what.is_ordered_with(&other.what)) {
            unordered.extend([at, other]);
        }
    }
    unordered
}

/// Calls take effect when they begin, these when they end.
fn moments(calls: &[Call], late: &BTreeSet<usize>) -> Vec<Moment> {
    let begins = calls.iter().enumerate().map(|(at, call)| {
        let effect = if late.contains(&at) { call.end.unwrap_or(usize::MAX) } else { call.begin };
        (effect, false, at)
    });
    let ends = calls.iter().enumerate();
    let ends = ends.filter_map(|(at, call)| call.end.map(|end| (end, true, at)));
    let mut moments: Vec<_> = begins.chain(ends).collect();
    moments.sort_unstable();
    moments.into_iter().map(|(_, ends, at)| Moment { ends, at }).collect()
}

/// A disk in the course of a life.
pub(crate) struct Replay<'a> {
    traced: &'a Traced,
    /// How many moments have passed.
    passed: usize,
    pub(crate) disk: Disk,
    /// Everything that has been told by now.
    pub(crate) told: Told,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(traced: &'a Traced) -> Self {
        let disk = Disk::load(&traced.base);
        Self { traced, passed: 0, disk, told: traced.told }
    }

    /// Goes on until so many moments have passed.
    pub(crate) fn run_to(&mut self, moment: usize) {
        for Moment { ends, at } in &self.traced.moments[self.passed..moment] {
            let call = &self.traced.calls[*at];
            if *ends {
                self.disk.end(call);
            } else {
                self.disk.begin(call);
                if let What::Tell(said) = &call.what {
                    self.told = Told::read(said).unwrap_or(self.told);
                }
            }
        }
        self.passed = moment;
    }

    /// What began or ended last.
    pub(crate) fn last(&self) -> &What {
        &self.traced.calls[self.traced.moments[self.passed - 1].at].what
    }

    /// The lives until now.
    pub(crate) fn lives(&self) -> Vec<Life> {
        let mut lives = self.traced.lives.clone();
        lives.last_mut().unwrap().writes = self.told.writes;
        lives
    }
}
