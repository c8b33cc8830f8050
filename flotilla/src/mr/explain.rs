//! `flotilla mr explain`: what a job would read and how that would be cut, before it is submitted.
//!
//! The coordinator's own planner says so; nothing is run or written.

use std::path::PathBuf;
use std::thread;

use daemon::{Code, Failure};
use mr_coordinator::flow::Partitioner;
use mr_coordinator::output as place;
use mr_coordinator::plan;
use mr_coordinator::root::Root;
use mr_coordinator::spec::{Packing, Spec, Split};
use mr_coordinator::wire;
use serde_json::{Value, json};

use super::local::{bad_inputs, bad_output};
use super::submit;
use crate::output::{Output, Table};
use crate::units;

/// The arguments of `flotilla mr explain`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Explain {
    #[command(flatten)]
    job: submit::Arguments,
    /// The directory that inputs and output are below, as this machine sees it [default: the working
    /// directory]
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    root: PathBuf,
    /// How many slots the workers have together, which decides how large splits are [default: as
    /// many as there are processors here]
    #[arg(long, value_name = "COUNT")]
    slots: Option<u32>,
    /// Show so many maps
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    maps: usize,
}

/// Tells how a job would be cut.
///
/// # Errors
/// Why it would be refused.
pub(super) fn run(arguments: Explain, output: Output) -> Result<(), Failure> {
    let Explain { job, root, slots, maps } = arguments;
    let spec = submit::spec(job)?;
    let spec = wire::spec(spec).map_err(|bad| Failure::new(Code::Failed, bad.to_string()))?;
    let missing = |error| {
        let message = format!("the root {} is no directory", root.display());
        Failure::new(Code::NotFound, message).because(error)
    };
    let root = Root::open(&root).map_err(missing)?;
    // Whether one result can be exchanged for another is for the coordinator to find out.
    let key = place::check(&root, &spec, true).map_err(|error| bad_output(&error))?;
    let files = plan::inputs(&root, &spec).map_err(|error| bad_inputs(&error))?;
    place::check_apart(&root, &spec, &key, &files).map_err(|error| bad_output(&error))?;
    let slots = slots.unwrap_or_else(|| {
        let here = thread::available_parallelism().map_or(1, Into::into);
        u32::try_from(here).unwrap_or(u32::MAX)
    });
    let cut = plan::split(&spec, &files, slots)
        .map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    let packed = files.iter().filter(|file| file.packing != Packing::None).count();
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let text = [
        format!(
            "{} files, {}, of which {packed} compressed, in {} maps for {slots} slots",
            units::count(files.len() as u64),
            units::bytes(bytes),
            units::count(cut.maps.len() as u64),
        ),
        reduces(&spec),
        table(&cut.maps, maps),
    ];
    let value = json!({
        "files": files.len(),
        "compressed": packed,
        "bytes": bytes,
        "slots": slots,
        "reduces": spec.reduces,
        "maps": cut.maps.iter().map(|pieces| json!({
            "bytes": size(pieces),
            "pieces": pieces.iter().map(piece).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    output.result(&text.join("\n"), &value)
}

fn reduces(spec: &Spec) -> String {
    let how = match spec.flow.partitioner {
        _ if spec.reduces == 0 => return "no reduce: what maps write is the result".to_owned(),
        Partitioner::Hash => "by the hash of the key".to_owned(),
        Partitioner::Prefix(bytes) => format!("by the hash of the key's first {bytes} bytes"),
        Partitioner::Range { samples, .. } => {
            format!("in the order of keys, by a sample of {} of them", units::count(samples.into()))
        }
    };
    format!("{} reduces {how}", spec.reduces)
}

fn size(pieces: &[Split]) -> u64 {
    pieces.iter().map(|piece| piece.bytes).sum()
}

/// The maps in the order of their numbers; the longest begin first.
fn table(maps: &[Vec<Split>], most: usize) -> String {
    let mut table = Table::new(["MAP", "BYTES", "FILES", "READS"]);
    for (number, pieces) in maps.iter().enumerate().take(most) {
        let reads = match pieces.as_slice() {
            [] => String::new(),
            [only] if only.bytes == only.file_bytes => only.path.clone(),
            [only] => format!("{} from byte {}", only.path, only.start),
            [first, .., last] => format!("{} to {}", first.path, last.path),
        };
        table.row([
            number.to_string(),
            units::count(size(pieces)),
            pieces.len().to_string(),
            reads,
        ]);
    }
    let mut text = table.text();
    if maps.len() > most {
        text.push_str(&format!("\n... and {} more (--maps)", maps.len() - most));
    }
    text
}

fn piece(piece: &Split) -> Value {
    json!({
        "path": piece.path,
        "start": piece.start,
        "bytes": piece.bytes,
        "file_bytes": piece.file_bytes,
        "tag": piece.tag,
    })
}
