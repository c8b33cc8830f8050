//! `flotilla mr run --local`: a job in this process, without a cluster.
//!
//! It is planned, its tasks are run and its results are published by the code that a cluster runs,
//! so what works here works there, to the byte. What a cluster adds is left out: nothing is tried
//! again, and an app that ends its process ends this one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use daemon::progress::Progress;
use daemon::{Code, Failure};
use mr_coordinator::cleanup;
use mr_coordinator::ids::{AttemptId, AttemptNumber, JobId, TaskId, TaskKind, job_directory};
use mr_coordinator::output::{self as place, OutputError};
use mr_coordinator::plan::{self, PlanError};
use mr_coordinator::publish::{self, AllSteps, Part, Publication};
use mr_coordinator::root::{PathError, Root};
use mr_coordinator::schedule::{Assignment, Run, Work};
use mr_coordinator::spec::Spec;
use mr_coordinator::wire;
use mr_worker::stream::{Allowed, Launcher};
use mr_worker::task::Bench;
use proto::mapreduce::{
    self as pb, FailureReason, Job, JobFailure, JobSpec, JobState, Success, TaskProgress,
};

use super::{programs::unkept, submit, watch};
use crate::output::Output;
use crate::units;

/// The memory of a task without a wish, in bytes.
const MEMORY_DEFAULT: u64 = 256 << 20;

/// What runs a job here.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Here {
    /// Run the job in this process, without a cluster
    #[arg(long)]
    pub(super) local: bool,
    /// With --local: the directory that inputs and output are below [default: the working
    /// directory]
    #[arg(long, value_name = "DIR", requires = "local")]
    root: Option<PathBuf>,
    /// With --local: run this many tasks at a time [default: as many as there are processors]
    #[arg(long, value_name = "COUNT", requires = "local")]
    slots: Option<usize>,
    /// With --local: the memory of a task for sorting, combining and merging [default: 256MiB]
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value_t = MEMORY_DEFAULT,
          requires = "local", hide_default_value = true)]
    memory: u64,
}

/// The term of everything that runs here: there is one leader, this process.
const EPOCH: u64 = 1;

impl Here {
    /// In this directory, with what is usual.
    pub(super) fn below(root: &Path) -> Self {
        Self { local: true, root: Some(root.to_owned()), slots: None, memory: MEMORY_DEFAULT }
    }

    fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(|| PathBuf::from("."))
    }

    fn missing(&self, error: io::Error) -> Failure {
        let message = format!("the root {} is no directory", self.root().display());
        Failure::new(Code::NotFound, message).because(error)
    }
}

/// Runs a job to its end, and tells how it ended.
///
/// # Errors
/// Why there is no result.
pub(super) fn run(job: submit::Arguments, here: &Here, output: Output) -> Result<(), Failure> {
    let programs = job.programs.clone();
    let mut spec = submit::spec(job)?;
    let side = tempfile::tempdir().map_err(unkept)?;
    spec.files = programs.keep(side.path())?;
    watch::conclude(&self::job(spec, here, side.path())?, output)
}

/// Runs a job to its end. What goes along with it lies below `side`.
///
/// # Errors
/// Why there is no result.
pub(super) fn job(spec: JobSpec, local: &Here, side: &Path) -> Result<Job, Failure> {
    let began = now_ms();
    let spec = wire::spec(spec).map_err(|bad| Failure::new(Code::Failed, bad.to_string()))?;
    let path = local.root();
    let missing = |error| local.missing(error);
    let (root, worker_root) = (
        Root::open(&path).map_err(missing)?,
        mr_worker::paths::Root::open(&path).map_err(missing)?,
    );
    // Apps find the root as their working directory, as in a worker's slots.
    std::env::set_current_dir(root.path()).map_err(missing)?;
    let programs = mr_worker::apps::all(&[], true);
    let slots =
        local.slots.unwrap_or_else(|| thread::available_parallelism().map_or(1, Into::into));
    let memory_bytes = usize::try_from(local.memory).unwrap_or(usize::MAX);
    // Who runs a job here allows its programs.
    let launcher = Launcher::of_this_program(&["mr-worker"]);
    let allowed = Allowed { launcher, blobs: side.join(proto::BLOBS_DIR) };
    let programs_of_jobs = Some(&allowed);
    let bench = Bench {
        programs: &programs,
        root: &worker_root,
        memory_bytes,
        durable: true,
        programs_of_jobs,
    };
    let job = JobId(uuid::Uuid::now_v7().as_u128());
    let tasks = Tasks { root: &root, bench: &bench, job, slots };
    let ended = tasks.run(&Arc::new(spec));
    if let Err(error) = cleanup::remove_job(&root, job) {
        eprintln!("the directory {} stays: {error}", job_directory(job));
    }
    let mut ended = ended?;
    (ended.submitted_unix_ms, ended.ended_unix_ms) = (began, now_ms());
    Ok(ended)
}

fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// What runs the tasks of a job.
struct Tasks<'a> {
    root: &'a Root,
    bench: &'a Bench<'a>,
    job: JobId,
    slots: usize,
}

/// Why a task failed, and which.
type TaskFailure = Box<(AttemptId, FailureReason)>;

impl Tasks<'_> {
    /// Plans the job, runs it and publishes its results.
    fn run(&self, spec: &Arc<Spec>) -> Result<Job, Failure> {
        let root = self.root;
        let failed = |error: &dyn std::error::Error| Failure::new(Code::Failed, error.to_string());
        let can_exchange = spec.overwrite && root.can_exchange().map_err(|error| failed(&error))?;
        let key = place::check(root, spec, can_exchange).map_err(|error| bad_output(&error))?;
        let inputs = plan::inputs(root, spec).map_err(|error| bad_inputs(&error))?;
        place::check_apart(root, spec, &key, &inputs).map_err(|error| bad_output(&error))?;
        let slots = u32::try_from(self.slots).unwrap_or(u32::MAX);
        let plan = plan::make(root, self.job, spec, slots).map_err(|error| bad_inputs(&error))?;
        let plan = Arc::new(plan.1);
        let mut job = Job {
            id: self.job.to_string(),
            spec: Some(wire::spec_to_wire(spec)),
            workers: 1,
            ..Job::default()
        };
        let mut shown = Progress::default();
        let mut counters = BTreeMap::new();
        let count = u32::try_from(plan.maps.len()).unwrap_or(u32::MAX);
        let work = Work::Map(plan);
        let done = match self.all(TaskKind::Map, count, spec, &work, &mut shown) {
            Ok(maps) => {
                job.maps = Some(all_committed(&maps, &mut counters));
                let runs = Work::Reduce(Arc::new(self.runs(&maps)));
                let reduces = self.all(TaskKind::Reduce, spec.reduces, spec, &runs, &mut shown);
                reduces.map(|reduces| {
                    job.reduces = Some(all_committed(&reduces, &mut counters));
                    if spec.reduces == 0 { maps } else { reduces }
                })
            }
            Err(failure) => Err(failure),
        };
        shown.finish();
        match done {
            Ok(last) => {
                let publication = self.publication(spec, key, &last, counters.clone());
                publish::publish(root, &publication, &mut AllSteps).map_err(|e| failed(&e))?;
                let directory = spec.output.trim_end_matches('/');
                let part = |number| format!("{directory}/{}", spec.part_name(number));
                job.outputs = publication.parts.iter().map(|is| part(is.partition)).collect();
                job.state = JobState::Succeeded.into();
                job.counters = counters.into_iter().collect();
            }
            Err(failure) => {
                let (attempt, reason) = *failure;
                job.state = JobState::Failed.into();
                job.failure = Some(JobFailure {
                    message: format!("TaskFailed: {}", attempt.task),
                    // Not by the job's name: what it said was seen, and is in no log.
                    attempt: Some(pb::AttemptId {
                        job: String::new(),
                        ..wire::attempt_to_wire(&attempt)
                    }),
                    worker: "this process".to_owned(),
                    reason: Some(reason),
                });
            }
        }
        Ok(job)
    }

    fn attempt(&self, kind: TaskKind, number: u32) -> AttemptId {
        let sequence = number;
        let number_of_attempt = AttemptNumber { epoch: EPOCH, sequence };
        AttemptId { job: self.job, task: TaskId { kind, number }, number: number_of_attempt }
    }

    /// Runs all tasks of a kind, as many at a time as there are slots; their results in order.
    fn all(
        &self,
        kind: TaskKind,
        count: u32,
        spec: &Arc<Spec>,
        work: &Work,
        shown: &mut Progress,
    ) -> Result<Vec<Success>, TaskFailure> {
        let phase = match kind {
            TaskKind::Map => "map",
            TaskKind::Reduce => "reduce",
        };
        let next = AtomicUsize::new(0);
        let ended = Mutex::new((vec![None; count as usize], 0_u64, None, shown));
        let serve = || loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(number) = u32::try_from(number).ok().filter(|number| *number < count) else {
                return;
            };
            let attempt = self.attempt(kind, number);
            let assignment = Assignment {
                attempt,
                lease_ms: spec.lease_ms,
                spec: spec.clone(),
                work: work.clone(),
                careful: false,
                skip: Vec::new(),
                backup: false,
            };
            let silent = mr_worker::outcome::Progress::new(|_, _| {});
            let result = self.bench.execute(&wire::assignment(&assignment), silent);
            let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            let (results, done, failure, shown) = &mut *ended;
            match result {
                Ok(success) => results[number as usize] = Some(success),
                Err(reason) => {
                    // Nothing more begins.
                    next.store(count as usize, Ordering::Relaxed);
                    failure.get_or_insert((attempt, reason));
                }
            }
            *done += 1;
            shown.draw(*done, count.into(), phase, format!("{phase} {done}/{count}"));
            self.stay_young();
        };
        thread::scope(|scope| {
            for _ in 0..self.slots.clamp(1, count.max(1) as usize) {
                scope.spawn(serve);
            }
        });
        let (results, _, failure, _) = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        match failure {
            Some(failure) => Err(Box::new(failure)),
            None => Ok(results.into_iter().flatten().collect()),
        }
    }

    /// A coordinator with the same root removes old directories of jobs that it does not know.
    fn stay_young(&self) {
        let directory = self.root.join(&job_directory(self.job));
        // Should that fail, a task will say what is wrong with the directory.
        let _ = File::open(directory).and_then(|file| file.set_modified(SystemTime::now()));
    }

    fn runs(&self, maps: &[Success]) -> Vec<Run> {
        let run = |(number, success): (u32, &Success)| Run {
            attempt: self.attempt(TaskKind::Map, number),
            bytes: success.bytes,
            footer_crc: success.crc,
        };
        (0..).zip(maps).map(run).collect()
    }

    fn publication(
        &self,
        spec: &Spec,
        output_key: String,
        last: &[Success],
        counters: BTreeMap<String, u64>,
    ) -> Publication {
        let kind = spec.last_kind();
        let part = |(number, success): (u32, &Success)| Part {
            partition: number,
            source: self.attempt(kind, number).part(),
            bytes: success.bytes,
            crc: success.crc,
        };
        let parts = (0..).zip(last).map(part).collect();
        let (job, spec) = (self.job, spec.clone());
        let skipped = Vec::new();
        Publication { job, epoch: EPOCH, spec, output_key, parts, counters, skipped }
    }
}

fn all_committed(tasks: &[Success], counters: &mut BTreeMap<String, u64>) -> TaskProgress {
    for (name, count) in tasks.iter().flat_map(|success| &success.counters) {
        *counters.entry(name.clone()).or_default() += count;
    }
    let count = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
    TaskProgress { total: count, committed: count, ..TaskProgress::default() }
}

fn bad_path(error: &PathError) -> Code {
    match error {
        PathError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Code::NotFound
        }
        PathError::Io { .. } | PathError::Refused { .. } => Code::Failed,
    }
}

pub(super) fn bad_output(error: &OutputError) -> Failure {
    let code = match error {
        OutputError::Exists { .. } => Code::Exists,
        OutputError::Path(path) => bad_path(path),
        OutputError::Spec(_) => Code::Failed,
    };
    Failure::new(code, error.to_string())
}

pub(super) fn bad_inputs(error: &PlanError) -> Failure {
    let code = match error {
        PlanError::NoMatch(_) => Code::NotFound,
        PlanError::Path(path) => bad_path(path),
        PlanError::Spec(_) | PlanError::Store(_) | PlanError::Damaged(_) => Code::Failed,
    };
    Failure::new(code, error.to_string())
}
