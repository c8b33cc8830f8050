//! A reduce task: one partition of every map's run in, one part of the output out.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    thread,
    time::Duration,
};

use crate::{
    app::{App, Context, Output, Reducer, Values},
    collect::{Collector, Layout, reduce_bytes},
    cursor::{Cursor, Folding},
    failure::Failure,
    fold::Fold,
    merge::{AHEAD_BYTES_MAX, Joined, Merge, Origin, Share, discard, drain, fitting, write_run},
    outcome::{
        Counters, Outcome, Progress, REDUCE_INPUT_GROUPS, REDUCE_INPUT_RECORDS,
        REDUCE_OUTPUT_RECORDS,
    },
    panics,
    part::{Part, PartStyle},
    partition::{Partitioning, shown},
    run::{Codec, Order, Partition, Run, RunError},
};

/// A committed run of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRun {
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The checksum of its tail.
    pub footer_crc: u32,
}

/// A reduce task.
#[derive(Debug, Clone)]
pub struct ReduceTask {
    /// What the app is told.
    pub context: Context,
    /// Which partition.
    pub partition: u32,
    /// The runs, in the order of their map tasks.
    pub runs: Vec<InputRun>,
    /// How results are written.
    pub style: PartStyle,
    /// The attempt's directory; it exists.
    pub dir: PathBuf,
    /// How much memory merging may use, in bytes.
    pub memory_bytes: usize,
    /// How often a run that is missing or too short is looked for again, since a network file
    /// system may show late what another machine wrote.
    pub patience: Patience,
}

/// How long to wait for what another machine has written: with pauses that double.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The first pause.
    pub first: Duration,
    /// How many pauses there are.
    pub pauses: u32,
}

impl Default for Patience {
    /// Seven pauses, 6.3 s together: more than the 3 s for which NFS caches a directory at least.
    fn default() -> Self {
        Self { first: Duration::from_millis(50), pauses: 7 }
    }
}

/// How much memory a byte of a run needs at most in a table: a short key and a number take three
/// bytes in the run.
const MEMORY_OF_BYTE: usize = 64;

/// Runs a reduce task.
pub(crate) fn run<A: App>(
    app: &A,
    task: &ReduceTask,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let mut reducer = app.reducer(&task.context)?;
    let mut part = Part::create(&task.dir, task.style)?;
    let mut counters = Counters::default();
    let mut tally = Tally::default();
    let mut key = Vec::new();
    let reduced = catch_unwind(AssertUnwindSafe(|| {
        let mut out = Output { part: &mut part, counters: &mut counters };
        let mut cursor = open::<A::Fold>(task, &mut tally, progress)?;
        reduce_groups(&mut reducer, &mut cursor, &mut key, &mut out, &mut tally, progress)
    }));
    reduced.unwrap_or_else(|panic| Err(Failure::user(panics::message(&*panic)))).map_err(
        |failure| match failure {
            Failure::User { message, place, permanent } => {
                let message = format!("{message} (key {:?})", String::from_utf8_lossy(shown(&key)));
                Failure::User { message, place, permanent }
            }
            other => other,
        },
    )?;
    progress.tell();
    let mut outcome = part.finish(REDUCE_OUTPUT_RECORDS)?;
    outcome.counters.extend(counters);
    outcome.counters.add(REDUCE_INPUT_GROUPS, tally.groups);
    outcome.counters.add(REDUCE_INPUT_RECORDS, tally.records);
    Ok(outcome)
}

/// What a reduce counts.
#[derive(Default)]
pub(crate) struct Tally {
    groups: u64,
    /// The records of the runs.
    pub(crate) records: u64,
}

/// Lets the app reduce one group after the other, and skips what it leaves. `key` is the one that it
/// is at.
fn reduce_groups<R: Reducer>(
    reducer: &mut R,
    cursor: &mut Cursor,
    key: &mut Vec<u8>,
    out: &mut Output<'_>,
    tally: &mut Tally,
    progress: &mut Progress,
) -> Result<(), Failure> {
    while let Some((next, _)) = cursor.top() {
        key.clear();
        key.extend_from_slice(next);
        tally.groups += 1;
        let mut values = Values::new(cursor, key, tally, progress);
        reducer.reduce(key, &mut values, out)?;
        while values.next()?.is_some() {}
    }
    reducer.finish(out)
}

/// A partition that waits to be merged.
enum Waiting {
    /// Of a committed run, by its place; nothing was read of it but what it needs.
    Input(usize, (usize, bool)),
    /// Of this attempt's own, with what it needs.
    Own(PathBuf, (usize, bool)),
}

impl Waiting {
    fn needs(&self) -> (usize, bool) {
        match self {
            Self::Input(_, needs) | Self::Own(_, needs) => *needs,
        }
    }

    fn share(&self, task: &ReduceTask) -> Result<Share, Failure> {
        match self {
            Self::Input(input, _) => input_share(task, *input),
            Self::Own(path, _) => own_share(path),
        }
    }
}

/// Opens the partition of every run.
fn open<F: Fold>(
    task: &ReduceTask,
    tally: &mut Tally,
    progress: &mut Progress,
) -> Result<Cursor, Failure> {
    let (mut waiting, mut bytes, mut sorted) = (Vec::new(), 0, true);
    for input in 0..task.runs.len() {
        let share = input_share(task, input)?;
        if share.partition.bytes() > 0 {
            waiting.push(Waiting::Input(input, share.needs()));
            bytes += share.partition.bytes();
            sorted &= share.partition.order() == Order::ByKey;
        }
    }
    if !sorted {
        return gather::<F>(task, &waiting, bytes, tally, progress);
    }
    let merge = merge_all(task, waiting)?;
    if F::COMBINES {
        return Ok(Cursor::Folded(Box::new(Folding::<F>::new(merge, false)?)));
    }
    Ok(Cursor::Merge(merge))
}

/// Reads everything into a table: the maps have not sorted it.
fn gather<F: Fold>(
    task: &ReduceTask,
    inputs: &[Waiting],
    bytes: u64,
    tally: &mut Tally,
    progress: &mut Progress,
) -> Result<Cursor, Failure> {
    let most = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_mul(MEMORY_OF_BYTE);
    let mut collector: Collector<F::Written> = Collector::new(Layout {
        dir: task.dir.clone(),
        partitions: 1,
        partitioning: Partitioning::Hash,
        codec: Codec::None,
        memory_bytes: reduce_bytes(task.memory_bytes).min(most),
        maps: 0,
    });
    for input in inputs {
        let Share { partition, origin } = input.share(task)?;
        let ahead = usize::try_from(partition.bytes()).unwrap_or(usize::MAX);
        let mut reader = partition.read(ahead.min(AHEAD_BYTES_MAX));
        while reader.advance().map_err(|error| origin.failure(&error))? {
            let (text, key) = reader.key_in_text();
            collector.add_part(text, key, F::read(reader.value())?);
            tally.records += 1;
            progress.advance(1, 0);
        }
        collector.check()?;
    }
    collector.into_cursor()
}

/// Merges sorted runs, in as many passes as memory asks for.
fn merge_all(task: &ReduceTask, mut waiting: Vec<Waiting>) -> Result<Merge, Failure> {
    let mut passes = 0;
    loop {
        let fits = fitting(waiting.iter().map(Waiting::needs), task.memory_bytes);
        if fits == waiting.len() {
            break;
        }
        let mut merged = Vec::new();
        let mut rest = &waiting[..];
        while !rest.is_empty() {
            let fits = fitting(rest.iter().map(Waiting::needs), task.memory_bytes);
            let (group, behind) = rest.split_at(fits);
            rest = behind;
            passes += 1;
            merged.push(merge_pass(task, group, passes)?);
        }
        waiting = merged;
    }
    let merge = merge(task, &waiting)?;
    // The readers keep the files open; their names are no longer needed.
    discard_own(&waiting)?;
    Ok(merge)
}

fn merge(task: &ReduceTask, group: &[Waiting]) -> Result<Merge, Failure> {
    let shares = group.iter().map(|waiting| waiting.share(task)).collect::<Result<Vec<_>, _>>()?;
    Merge::new(shares, task.memory_bytes)
}

fn merge_pass(task: &ReduceTask, group: &[Waiting], pass: u32) -> Result<Waiting, Failure> {
    let path = task.dir.join(format!("merge-{pass}.run"));
    let mut merge = merge(task, group)?;
    write_run(&path, 1, Codec::None, Order::ByKey, |writer| {
        let mut to = Joined::new(writer, &path, None);
        drain(&mut merge, 0, &mut to)?;
        to.finish()
    })?;
    discard_own(group)?;
    let needs = own_share(&path)?.needs();
    Ok(Waiting::Own(path, needs))
}

fn discard_own(group: &[Waiting]) -> Result<(), Failure> {
    group.iter().try_for_each(|waiting| match waiting {
        Waiting::Own(path, _) => discard(path),
        Waiting::Input(..) => Ok(()),
    })
}

fn own_share(path: &std::path::Path) -> Result<Share, Failure> {
    let origin = Origin::Own(path.to_owned());
    let partition = Run::open(path, None).and_then(|run| run.partition(0));
    Ok(Share { partition: partition.map_err(|error| origin.failure(&error))?, origin })
}

fn input_share(task: &ReduceTask, input: usize) -> Result<Share, Failure> {
    let origin = Origin::Input(input);
    let partition = open_patiently(&task.runs[input], task.partition, task.patience);
    Ok(Share { partition: partition.map_err(|error| origin.failure(&error))?, origin })
}

/// Opens a run that may not be visible here yet.
fn open_patiently(
    run: &InputRun,
    partition: u32,
    patience: Patience,
) -> Result<Partition, RunError> {
    let open = || {
        Run::open(&run.path, Some((run.bytes, run.footer_crc)))
            .and_then(|run| run.partition(partition))
    };
    let mut pause = patience.first;
    for _ in 0..patience.pauses {
        match open() {
            Err(error) if may_come(&error) => thread::sleep(pause),
            settled => return settled,
        }
        pause *= 2;
    }
    open()
}

fn may_come(error: &RunError) -> bool {
    match error {
        RunError::Io(error) => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle)
        }
        RunError::Length { found, expected } => found < expected,
        RunError::Damaged(_) | RunError::Newer(_) => false,
    }
}
