//! How much memory a worker has at most: for a key with millions of values, and for keys of
//! megabytes.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    time::Duration,
};

use anyhow::Result;
use serde_json::json;

use super::{
    Settings,
    cluster::{Cluster, MEMORY_BYTES_DEFAULT, Workers},
    inputs::Inputs,
    process::{Peak, Watch},
    report::{self, Bar, Report},
    works::looked_at,
};
use crate::{
    digest::{Digest, Form},
    random::Random,
};

/// The slots of the one worker.
const SLOTS: u32 = 2;

/// The memories of a slot for sorting, combining and merging that are tried: what a worker has by
/// itself, and so little that a few long keys are all of it.
const MEMORIES: [u64; 2] = [MEMORY_BYTES_DEFAULT, 16 << 20];

/// What each slot, and the worker itself, may have beside it.
const BESIDE_BYTES: u64 = 64 << 20;

/// How many values one key has.
const VALUES: u64 = 10_000_000;

/// How long long keys are, and how many there are of them: four times what one slot may hold.
const KEY_BYTES: usize = 8 << 20;
const KEYS: u64 = 128;

/// A job that could take too much.
struct Case {
    name: &'static str,
    input: &'static str,
    flags: &'static [&'static str],
    /// How its results follow from its input.
    form: Form,
}

/// Runs such jobs and watches the worker.
///
/// # Errors
/// That there is no room, or that a job fails or has wrong results.
pub(super) fn run(settings: &Settings, inputs: &Inputs) -> Result<Report> {
    let (values, keys) = (inputs.scaled(VALUES), inputs.scaled(KEYS));
    inputs.room_for(3 * (keys * KEY_BYTES as u64 + values * 16))?;
    let scratch = inputs.scratch();
    write(&scratch.join("values"), |out| one_key(out, values))?;
    write(&scratch.join("keys"), |out| long_keys(out, keys))?;
    let cases = [
        Case {
            name: "sort, all values of one key",
            input: "values",
            flags: &["--app", "sort", "--input-format", "kv"],
            form: Form::Lines,
        },
        Case {
            name: "sort, keys of 8 MiB",
            input: "keys",
            flags: &["--app", "sort", "--line-limit", "16MiB"],
            form: Form::Lines,
        },
        Case {
            name: "wc, words of 8 MiB",
            input: "keys",
            flags: &["--app", "wc", "--line-limit", "16MiB"],
            form: Form::Once,
        },
    ];
    let mut rows =
        vec![["", "s", "worker MiB", "greatest process MiB"].map(str::to_owned).to_vec()];
    let (mut bars, mut figures, mut troubles) = (Vec::new(), Vec::new(), Vec::new());
    for (case, memory_bytes) in
        cases.iter().flat_map(|case| MEMORIES.map(|memory_bytes| (case, memory_bytes)))
    {
        let bound = (u64::from(SLOTS) * (memory_bytes + BESIDE_BYTES) + BESIDE_BYTES) >> 20;
        let name = format!("{}, {} MiB a slot", case.name, memory_bytes >> 20);
        let what = format!("{name}: MiB of the worker, at most {bound}");
        match one(settings, inputs, case, memory_bytes) {
            Ok((seconds, peak)) => {
                let mebibytes = |bytes: u64| (bytes >> 20).to_string();
                rows.push(vec![
                    case.name.to_owned(),
                    mebibytes(memory_bytes),
                    report::seconds(seconds),
                    mebibytes(peak.sum_bytes),
                    mebibytes(peak.greatest_bytes),
                    bound.to_string(),
                ]);
                let found = peak.sum_bytes as f64 / f64::from(1 << 20);
                bars.push(Bar::at_most(what, bound as f64, found));
                figures.push(json!({ "case": case.name, "memory_bytes": memory_bytes,
                    "seconds": seconds, "greatest_bytes": peak.greatest_bytes,
                    "sum_bytes": peak.sum_bytes }));
            }
            Err(error) => {
                bars.push(Bar::unknown(what));
                troubles.push(format!("{name}: {error:#}"));
            }
        }
    }
    let title = format!(
        "memory: one worker of {SLOTS} slots, {values} values of one key, {keys} keys of 8 MiB"
    );
    Ok(Report { title, rows, bars, troubles, figures: json!(figures) })
}

/// Runs a job on a fresh worker: how long it took, and the most memory of worker and slots.
fn one(
    settings: &Settings,
    inputs: &Inputs,
    case: &Case,
    memory_bytes: u64,
) -> Result<(f64, Peak)> {
    let input = inputs.scratch().join(case.input);
    let expected = Digest::of(&input, &case.form)?;
    let lease = Duration::from_secs(10);
    let workers = Workers { count: 1, slots: SLOTS, memory_bytes, lease };
    let mut cluster = Cluster::start(settings, inputs, workers)?;
    let watch = Watch::start(&[cluster.worker(0)], None);
    let name = Inputs::scratch_name(case.input);
    let job = cluster.job(&[case.flags, &["--input", &name]].concat());
    let (peak, _) = watch.finish();
    let job = job?;
    looked_at(&job.output, &Form::Lines, Some(expected))?;
    fs::remove_dir_all(&job.output)?;
    Ok((job.seconds, peak))
}

/// Writes a file in a directory of its own.
fn write(
    directory: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    fs::create_dir(directory)?;
    let mut out = BufWriter::new(File::create(directory.join("piece-000"))?);
    fill(&mut out)?;
    Ok(out.into_inner()?.sync_all()?)
}

/// So many pairs of the same key.
fn one_key(out: &mut impl Write, values: u64) -> io::Result<()> {
    (0..values).try_for_each(|value| writeln!(out, "key\t{value}"))
}

/// So many lines of one long word each, which begin alike and end otherwise.
fn long_keys(out: &mut impl Write, keys: u64) -> io::Result<()> {
    let mut random = Random::new(1, 0);
    let mut line = vec![b'k'; KEY_BYTES + 1];
    line[KEY_BYTES] = b'\n';
    for _ in 0..keys {
        for byte in &mut line[KEY_BYTES / 2..KEY_BYTES] {
            *byte = b'a' + random.below(26) as u8;
        }
        out.write_all(&line)?;
    }
    Ok(())
}
