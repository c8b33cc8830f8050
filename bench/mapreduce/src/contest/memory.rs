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
    cluster::{Cluster, Workers},
    inputs::Inputs,
    process::Watch,
    report::{Bar, Report},
    works::looked_at,
};
use crate::{
    digest::{Digest, Form},
    random::Random,
    sizes,
};

/// One worker with two slots.
const WORKERS: Workers = Workers { count: 1, slots: 2, lease: Duration::from_secs(10) };

/// The memory of a slot for sorting, combining and merging: a worker's default.
const SORT_BYTES: u64 = 256 << 20;

/// What each slot, and the worker itself, may have beside it.
const BESIDE_BYTES: u64 = 64 << 20;

/// What a worker may have.
const BOUND_BYTES: u64 = WORKERS.slots as u64 * (SORT_BYTES + BESIDE_BYTES) + BESIDE_BYTES;

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
    for case in cases {
        let what = format!("{}: MiB of the worker, at most {}", case.name, BOUND_BYTES >> 20);
        match one(settings, inputs, &case) {
            Ok((seconds, greatest, sum)) => {
                let mebibytes = |bytes: u64| format!("{}", bytes >> 20);
                let time = super::report::seconds(seconds);
                rows.push(vec![case.name.to_owned(), time, mebibytes(sum), mebibytes(greatest)]);
                let (aim, found) = (BOUND_BYTES >> 20, sum as f64 / f64::from(1 << 20));
                bars.push(Bar::at_most(what, aim as f64, found));
                figures.push(json!({ "case": case.name, "seconds": seconds,
                    "greatest_bytes": greatest, "sum_bytes": sum }));
            }
            Err(error) => {
                bars.push(Bar::unknown(what));
                troubles.push(format!("{}: {error:#}", case.name));
            }
        }
    }
    let title = format!(
        "memory: {values} values of one key, {keys} keys of 8 MiB; {} slots of {}",
        WORKERS.slots,
        sizes::shown(SORT_BYTES)
    );
    Ok(Report { title, rows, bars, troubles, figures: json!(figures) })
}

/// Runs a job on fresh workers: its seconds, the peak of the greatest process of the worker and that
/// of all of them.
fn one(settings: &Settings, inputs: &Inputs, case: &Case) -> Result<(f64, u64, u64)> {
    let input = inputs.scratch().join(case.input);
    let expected = Digest::of(&input, &case.form)?;
    let mut cluster = Cluster::start(settings, inputs, WORKERS)?;
    let watch = Watch::start(&[cluster.worker(0)], None);
    let name = Inputs::scratch_name(case.input);
    let job = cluster.job(&[case.flags, &["--input", &name]].concat());
    let (peak, _) = watch.finish();
    let job = job?;
    looked_at(&job.output, &Form::Lines, Some(expected))?;
    fs::remove_dir_all(&job.output)?;
    Ok((job.seconds, peak.greatest_bytes, peak.sum_bytes))
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
