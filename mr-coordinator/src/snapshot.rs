//! The state as bytes: equal states give equal chunks, and a small change changes few of them.
//!
//! Decides the order of items: workers, then jobs in order of submission, each with its spec, its
//! head and its tasks.

#![deny(clippy::disallowed_types)]

use std::sync::Arc;

use bytes::Bytes;
use imbl::OrdMap;
use raft::Capture;
use raftd::chunks::Chunks;
use xxhash_rust::xxh3::xxh3_128;

use crate::{
    codec::{BadBytes, Decoder, Encoder},
    command::{put_plan_root, put_texts, take_plan_root, take_texts},
    failure::{Record, put_cause, put_record, take_cause, take_record},
    ids::{AttemptNumber, JobId, TaskId, WorkerId, put_number, put_task, take_number, take_task},
    job::{Counters, Job, JobState, Manifest, Task},
    machine::{Machine, WorkerRecord},
    spec::{Spec, put_spec, take_spec},
};

/// The version of the encoding.
const SNAPSHOT_VERSION: u8 = 1;

const META: u8 = 1;
const WORKER: u8 = 2;
const SPEC: u8 = 3;
const HEAD: u8 = 4;
const TASK: u8 = 5;

/// A frozen state.
#[derive(Clone, Debug)]
pub struct Frozen {
    machine: Machine,
}

impl Frozen {
    /// Freezes a state; both share their parts.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        Self { machine: machine.clone() }
    }
}

impl Capture for Frozen {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        let mut chunks = Chunks::default();
        chunks.item(&[META], &framed(&meta_item(&self.machine)));
        for worker in self.machine.workers.values() {
            chunks.item(&key(WORKER, worker.id.0), &framed(&worker_item(worker)));
        }
        for job in self.machine.jobs.values() {
            chunks.item(&key(SPEC, job.number), &framed(&spec_item(job.number, &job.spec)));
            chunks.item(&key(HEAD, job.number), &framed(&head_item(job)));
            for (id, task) in &job.tasks {
                let item = framed(&task_item(job.number, *id, task));
                chunks.item(&task_key(job.number, *id), &item);
            }
        }
        chunks.finish()
    }
}

/// An item behind its length.
fn framed(item: &[u8]) -> Vec<u8> {
    let mut out = Encoder::new();
    out.bytes(item);
    out.finish()
}

fn key(kind: u8, number: u64) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u8(kind);
    out.u64(number);
    out.finish()
}

fn task_key(job: u64, task: TaskId) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u8(TASK);
    out.u64(job);
    put_task(&mut out, task);
    out.finish()
}

fn meta_item(machine: &Machine) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u8(META);
    out.u8(SNAPSHOT_VERSION);
    out.u64(machine.last_worker);
    out.finish()
}

fn worker_item(worker: &WorkerRecord) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u8(WORKER);
    out.u64(worker.id.0);
    out.text(&worker.name);
    out.u128(worker.incarnation);
    out.u32(worker.slots);
    put_texts(&mut out, &worker.apps);
    out.finish()
}

fn spec_item(number: u64, spec: &Spec) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u8(SPEC);
    out.u64(number);
    put_spec(&mut out, spec);
    out.finish()
}

fn head_item(job: &Job) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u8(HEAD);
    out.u64(job.number);
    out.u128(job.id.0);
    out.text(&job.token);
    out.text(&job.output_key);
    out.u8(state_byte(job.state));
    out.option(job.plan, put_plan_root);
    for pair in [job.committed, job.retries] {
        out.u32(pair[0]);
        out.u32(pair[1]);
    }
    out.u64(job.bytes_committed);
    out.u32(job.taken_back);
    put_texts(&mut out, &job.counters.names);
    for sum in &job.counters.sums {
        out.u64(*sum);
    }
    put_number(&mut out, job.reduce_floor);
    out.u32(job.skipped);
    out.option(job.cause.as_deref(), put_cause);
    out.u64(job.submitted_unix_ms);
    out.u64(job.ended_unix_ms);
    out.u64(job.version);
    out.finish()
}

fn task_item(job: u64, id: TaskId, task: &Task) -> Vec<u8> {
    let mut out = Encoder::new();
    out.u8(TASK);
    out.u64(job);
    put_task(&mut out, id);
    out.option(task.committed.as_deref(), put_manifest);
    for numbers in [&task.failed, &task.lost] {
        out.count(numbers.len());
        for number in numbers {
            put_number(&mut out, *number);
        }
    }
    out.option(task.invalidated, put_number);
    out.u32(task.invalidations);
    out.option(task.previous_hash, Encoder::u64);
    for records in [&task.suspects, &task.skipped] {
        out.count(records.len());
        for record in records {
            put_record(&mut out, record);
        }
    }
    out.finish()
}

fn put_manifest(out: &mut Encoder, manifest: &Manifest) {
    put_number(out, manifest.attempt);
    out.u64(manifest.worker.0);
    out.u64(manifest.bytes);
    out.u64(manifest.records);
    out.u32(manifest.crc);
    out.u64(manifest.content_hash);
    out.u64(manifest.input_bytes);
    out.count(manifest.counters.len());
    for (place, value) in &manifest.counters {
        out.u16(*place);
        out.u64(*value);
    }
}

/// What the counter of workers adds to the digest.
pub(crate) fn meta_digest(machine: &Machine) -> u128 {
    // An empty state has digest 0, as a fresh machine does.
    if machine.last_worker == 0 { 0 } else { xxh3_128(&meta_item(machine)) }
}

/// What a worker adds to the digest.
pub(crate) fn worker_digest(worker: &WorkerRecord) -> u128 {
    xxh3_128(&worker_item(worker))
}

/// What a task adds to the digest.
pub(crate) fn task_digest(job: u64, id: TaskId, task: &Task) -> u128 {
    xxh3_128(&task_item(job, id, task))
}

/// What a job with its spec and its tasks adds to the digest.
pub(crate) fn job_digest(job: &Job) -> u128 {
    // The spec never changes and may be long: its own digest, with the number, stands for it.
    let mut out = Encoder::new();
    out.u64(job.number);
    out.u128(job.spec_digest);
    let spec = xxh3_128(&out.finish());
    xxh3_128(&head_item(job)).wrapping_add(spec).wrapping_add(job.tasks_digest)
}

/// The state that the chunks encode.
pub(crate) fn restore(chunks: &mut dyn Iterator<Item = Bytes>) -> Result<Machine, BadBytes> {
    let mut stream = Vec::new();
    for chunk in chunks {
        stream.extend_from_slice(&chunk);
    }
    let mut from = Decoder::new(&stream);
    let mut machine = take_meta(&mut Decoder::new(from.bytes()?))?;
    machine.digest = meta_digest(&machine);
    let mut spec: Option<(u64, Arc<Spec>)> = None;
    let mut open: Option<Job> = None;
    while from.left() > 0 {
        let mut item = Decoder::new(from.bytes()?);
        match item.u8()? {
            WORKER => {
                let worker = take_worker(&mut item)?;
                if worker.id.0 > machine.last_worker || machine.workers.contains_key(&worker.id) {
                    return Err(BadBytes::Wrong("a worker's id cannot be"));
                }
                machine.put_worker(Arc::new(worker));
            }
            SPEC => spec = Some((item.u64()?, Arc::new(take_spec(&mut item)?))),
            HEAD => {
                let spec = spec.take().ok_or(BadBytes::Wrong("a job has no spec"))?;
                let job = take_head(&mut item, spec)?;
                close(&mut machine, open.replace(job))?;
            }
            TASK => {
                let job = open.as_mut().ok_or(BadBytes::Wrong("a task has no job"))?;
                take_task_item(&mut item, job)?;
            }
            other => return Err(BadBytes::tag("snapshot item", other)),
        }
        item.end()?;
    }
    close(&mut machine, open)?;
    Ok(machine)
}

/// Checks a job that is complete and takes it in.
fn close(machine: &mut Machine, job: Option<Job>) -> Result<(), BadBytes> {
    let Some(job) = job else { return Ok(()) };
    let mut committed = [0; 2];
    for (id, task) in &job.tasks {
        committed[id.kind.slot()] += u32::from(task.committed.is_some());
    }
    if !job.state.terminal() && committed != job.committed {
        return Err(BadBytes::Wrong("a job's count of committed tasks is wrong"));
    }
    let known = machine.numbers.contains_key(&job.id) || machine.tokens.contains_key(&job.token);
    if known || machine.jobs.contains_key(&job.number) {
        return Err(BadBytes::Wrong("a job is there twice"));
    }
    machine.put_job(Arc::new(job));
    Ok(())
}

fn take_meta(from: &mut Decoder<'_>) -> Result<Machine, BadBytes> {
    if from.u8()? != META {
        return Err(BadBytes::Wrong("it does not begin with its version"));
    }
    let version = from.u8()?;
    if version != SNAPSHOT_VERSION {
        return Err(BadBytes::tag("snapshot version", version));
    }
    let machine = Machine { last_worker: from.u64()?, ..Machine::default() };
    from.end()?;
    Ok(machine)
}

fn take_worker(from: &mut Decoder<'_>) -> Result<WorkerRecord, BadBytes> {
    Ok(WorkerRecord {
        id: WorkerId(from.u64()?),
        name: from.text()?,
        incarnation: from.u128()?,
        slots: from.u32()?,
        apps: take_texts(from)?,
    })
}

fn take_head(from: &mut Decoder<'_>, spec: (u64, Arc<Spec>)) -> Result<Job, BadBytes> {
    let number = from.u64()?;
    if number != spec.0 {
        return Err(BadBytes::Wrong("a job has another's spec"));
    }
    let spec_digest = spec.1.digest();
    let id = JobId(from.u128()?);
    let token = from.text()?;
    let output_key = from.text()?;
    let state = take_state(from)?;
    let plan = from.option(take_plan_root)?;
    let committed = [from.u32()?, from.u32()?];
    let retries = [from.u32()?, from.u32()?];
    let bytes_committed = from.u64()?;
    let taken_back = from.u32()?;
    let names = take_texts(from)?;
    let sums = names.iter().map(|_| from.u64()).collect::<Result<_, _>>()?;
    Ok(Job {
        id,
        number,
        token,
        spec: spec.1,
        spec_digest,
        output_key,
        state,
        plan,
        tasks: OrdMap::new(),
        tasks_digest: 0,
        committed,
        bytes_committed,
        retries,
        taken_back,
        counters: Arc::new(Counters { names: Arc::new(names), sums }),
        reduce_floor: take_number(from)?,
        skipped: from.u32()?,
        cause: from.option(take_cause)?.map(Arc::new),
        submitted_unix_ms: from.u64()?,
        ended_unix_ms: from.u64()?,
        version: from.u64()?,
    })
}

fn take_task_item(from: &mut Decoder<'_>, job: &mut Job) -> Result<(), BadBytes> {
    if from.u64()? != job.number {
        return Err(BadBytes::Wrong("a task has another's job"));
    }
    let id = take_task(from)?;
    let committed = from.option(take_manifest)?;
    let numbers = |from: &mut Decoder<'_>| -> Result<Vec<AttemptNumber>, BadBytes> {
        (0..from.count()?).map(|_| take_number(from)).collect()
    };
    let records = |from: &mut Decoder<'_>| -> Result<Vec<Record>, BadBytes> {
        (0..from.count()?).map(|_| take_record(from)).collect()
    };
    let task = Task {
        committed: committed.map(Arc::new),
        failed: numbers(from)?,
        lost: numbers(from)?,
        invalidated: from.option(take_number)?,
        invalidations: from.u32()?,
        previous_hash: from.option(Decoder::u64)?,
        suspects: records(from)?,
        skipped: records(from)?,
    };
    if id.number >= job.total(id.kind) || job.tasks.contains_key(&id) {
        return Err(BadBytes::Wrong("a task's number cannot be"));
    }
    job.put_task(id, task);
    Ok(())
}

fn take_manifest(from: &mut Decoder<'_>) -> Result<Manifest, BadBytes> {
    Ok(Manifest {
        attempt: take_number(from)?,
        worker: WorkerId(from.u64()?),
        bytes: from.u64()?,
        records: from.u64()?,
        crc: from.u32()?,
        content_hash: from.u64()?,
        input_bytes: from.u64()?,
        counters: (0..from.count()?)
            .map(|_| Ok((from.u16()?, from.u64()?)))
            .collect::<Result<_, BadBytes>>()?,
    })
}

fn state_byte(state: JobState) -> u8 {
    match state {
        JobState::Queued => 1,
        JobState::Mapping => 2,
        JobState::Reducing => 3,
        JobState::Committing => 4,
        JobState::Succeeded => 5,
        JobState::Failing => 6,
        JobState::Failed => 7,
        JobState::Cancelling => 8,
        JobState::Cancelled => 9,
    }
}

fn take_state(from: &mut Decoder<'_>) -> Result<JobState, BadBytes> {
    Ok(match from.u8()? {
        1 => JobState::Queued,
        2 => JobState::Mapping,
        3 => JobState::Reducing,
        4 => JobState::Committing,
        5 => JobState::Succeeded,
        6 => JobState::Failing,
        7 => JobState::Failed,
        8 => JobState::Cancelling,
        9 => JobState::Cancelled,
        other => return Err(BadBytes::tag("job state", other)),
    })
}
