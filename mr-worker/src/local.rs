//! A whole job in this process, task after task: what a cluster computes, without one.
//!
//! It runs the tasks of a plan that was made elsewhere and leaves the parts in the directories of
//! their attempts. The same code runs them as in a cluster, so the same bytes come out.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    app::{Context, Program},
    args::Args,
    failure::Failure,
    input::{Piece, Reading},
    map::MapTask,
    outcome::{Counters, Outcome, Progress},
    part::PartStyle,
    partition::Partitioning,
    reduce::{InputRun, Patience, ReduceTask},
    run::Codec,
};

/// A job to run here.
pub struct LocalJob<'a> {
    /// The app.
    pub program: &'a dyn Program,
    /// What it is told.
    pub args: Args,
    /// What each map reads, in order.
    pub maps: Vec<Vec<Piece>>,
    /// How it is read.
    pub reading: Reading,
    /// How many reduce partitions; 0: what maps write is the result.
    pub partitions: u32,
    /// How keys are spread over them.
    pub partitioning: Partitioning,
    /// How results are written.
    pub style: PartStyle,
    /// How runs are compressed.
    pub codec: Codec,
    /// The memory of a task, in bytes.
    pub memory_bytes: usize,
    /// How many tasks run at a time.
    pub slots: usize,
    /// An existing directory for everything that the job writes.
    pub dir: &'a Path,
}

/// What a job left.
#[derive(Debug)]
pub struct LocalResult {
    /// The parts, by partition.
    pub parts: Vec<PathBuf>,
    /// The maps' outcomes.
    pub maps: Vec<Outcome>,
    /// The reduces' outcomes.
    pub reduces: Vec<Outcome>,
    /// The sums of all counters.
    pub counters: Counters,
}

impl LocalJob<'_> {
    /// Runs it. `done` is told of each task that ends, with its kind, its number and how many there
    /// are of the kind.
    ///
    /// # Errors
    /// Why the first task failed that did.
    pub fn run(&self, done: &(dyn Fn(&str, usize, usize) + Sync)) -> Result<LocalResult, Failure> {
        let maps = self.all(self.maps.len(), &|number| {
            let outcome = self.map(number)?;
            done("map", number, self.maps.len());
            Ok(outcome)
        })?;
        let place = |kind: &str, number: usize, outcome: &Outcome| {
            self.dir.join(format!("{kind}-{number}")).join(outcome.file)
        };
        let runs: Vec<InputRun> = maps
            .iter()
            .enumerate()
            .map(|(number, outcome)| InputRun {
                path: place("m", number, outcome),
                bytes: outcome.bytes,
                footer_crc: outcome.crc,
            })
            .collect();
        let reduces = self.all(self.partitions as usize, &|number| {
            let outcome = self.reduce(number, &runs)?;
            done("reduce", number, self.partitions as usize);
            Ok(outcome)
        })?;
        let (kind, last) = if self.partitions == 0 { ("m", &maps) } else { ("r", &reduces) };
        let parts = last.iter().enumerate().map(|(number, outcome)| place(kind, number, outcome));
        let parts = parts.collect();
        let mut counters = Counters::default();
        for outcome in maps.iter().chain(&reduces) {
            counters.merge(&outcome.counters);
        }
        Ok(LocalResult { parts, maps, reduces, counters })
    }

    /// Runs so many tasks, as many at a time as there are slots; their outcomes in order.
    fn all(
        &self,
        count: usize,
        run: &(dyn Fn(usize) -> Result<Outcome, Failure> + Sync),
    ) -> Result<Vec<Outcome>, Failure> {
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new((0..count).map(|_| None).collect::<Vec<_>>());
        let failure = Mutex::new(None);
        let work = || loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            match run(number) {
                Ok(outcome) => lock(&outcomes)[number] = Some(outcome),
                Err(error) => {
                    // Nothing more begins.
                    next.store(count, Ordering::Relaxed);
                    lock(&failure).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.slots.clamp(1, count.max(1)) {
                scope.spawn(work);
            }
        });
        if let Some(failure) = lock(&failure).take() {
            return Err(failure);
        }
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let missing = || Failure::Internal("a task ended without a result".to_owned());
        outcomes.into_iter().map(|outcome| outcome.ok_or_else(missing)).collect()
    }

    fn context(&self, number: usize) -> Context {
        let args = self.args.clone();
        let task = number as u32;
        let (partitions, records) = (self.partitions, self.reading.records);
        Context { job: "local".to_owned(), task, partitions, records, args }
    }

    fn map(&self, number: usize) -> Result<Outcome, Failure> {
        let task = MapTask {
            context: self.context(number),
            pieces: self.maps[number].clone(),
            reading: self.reading,
            partitioning: self.partitioning.clone(),
            codec: self.codec,
            style: self.style,
            dir: self.attempt_dir(&format!("m-{number}"))?,
            memory_bytes: self.memory_bytes,
            maps: self.maps.len() as u32,
            care: None,
        };
        self.program.map(task, &mut Progress::new(|_, _| {}))
    }

    fn reduce(&self, number: usize, runs: &[InputRun]) -> Result<Outcome, Failure> {
        let task = ReduceTask {
            context: self.context(number),
            partition: number as u32,
            runs: runs.to_vec(),
            style: self.style,
            dir: self.attempt_dir(&format!("r-{number}"))?,
            memory_bytes: self.memory_bytes,
            patience: Patience::default(),
        };
        self.program.reduce(&task, &mut Progress::new(|_, _| {}))
    }

    fn attempt_dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).map_err(|error| Failure::io(&dir, &error))?;
        Ok(dir)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
