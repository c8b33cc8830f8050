//! Lives under strace, and disks in the course of such a life.

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
        let (moments, told) = (moments(&calls), Told { writes: 0, ..told });
        let traced = Self { base: base.to_owned(), calls, moments, lives, told };
        traced.check(&root, context);
        fs::remove_dir_all(&root).unwrap();
        traced
    }

    /// The trace accounts for everything that is in the directory.
    fn check(&self, root: &Path, context: &str) {
        let mut replay = Replay::new(self);
        replay.run_to(self.end());
        let image = root.with_extension("replayed");
        fs::create_dir(&image).unwrap();
        replay.disk.image(&image, &mut Fate::whole(&mut StdRng::seed_from_u64(0)));
        let (lived, replayed) = (contents(root), contents(&image));
        assert_eq!(lived.len(), replayed.len(), "{context}: other files");
        for ((path, lived), (_, replayed)) in lived.iter().zip(&replayed) {
            assert!(lived == replayed, "{context}: {} is different", path.display());
        }
        fs::remove_dir_all(&image).unwrap();
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

fn moments(calls: &[Call]) -> Vec<Moment> {
    let begins = calls.iter().enumerate().map(|(at, call)| (call.begin, false, at));
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
