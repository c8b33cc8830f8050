//! From a job's input patterns to the pieces that its map tasks read, and the plan file.
//!
//! Decides which files are meant, in which order, and how they are cut. Names stay as the user
//! wrote them, with wildcards replaced: apps see them. The plan file is durable before the log
//! learns its digest, and never changes.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    codec::{Decoder, Encoder},
    flow::Partitioner,
    glob,
    ids::{JobId, WORK_ROOT, job_directory},
    limits::*,
    root::{PathError, Root, create_dir, read_file, shown, sync_dir, write_file},
    sample,
    schedule::Trouble,
    spec::{BadSpec, Cuts, InputFormat, Packing, Plan, PlanRoot, Spec, Split, put_plan, take_plan},
};

/// What a plan file begins with; the digit is the version.
const MAGIC: &[u8; 8] = b"FLOTPLN2";
/// The largest plan file.
const PLAN_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// How deep directories are followed: beyond any honest tree, and an end to circles of links.
const DEPTH_MAX: usize = 64;
/// How many directories are listed: links can make few look like many.
const DIRECTORIES_MAX: usize = 100_000;
/// The largest list of inputs.
const LIST_FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a job cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An input matches nothing.
    #[error("inputs: `{0}` matches no file")]
    NoMatch(String),
    /// The spec asks for something that cannot be.
    #[error(transparent)]
    Spec(#[from] BadSpec),
    /// A path is refused or cannot be read.
    #[error("inputs: {0}")]
    Path(#[from] PathError),
    /// The plan file cannot be written or read.
    #[error("the plan of the job: {0}")]
    Store(#[source] io::Error),
    /// The plan file is not what the log says.
    #[error("the plan of the job is damaged: {0}")]
    Damaged(&'static str),
}

impl PlanError {
    /// Whether the same look may show something else later.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Store(_) | Self::Path(PathError::Io { .. }) => Trouble::Passing(self.to_string()),
            Self::NoMatch(_)
            | Self::Spec(_)
            | Self::Path(PathError::Refused { .. })
            | Self::Damaged(_) => Trouble::Final(self.to_string()),
        }
    }
}

/// An input file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its name as the user wrote it.
    pub path: String,
    /// Where it is, links followed.
    pub real: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was modified, in nanoseconds since 1970.
    pub modified_ns: u64,
    /// How it is compressed.
    pub packing: Packing,
    /// What the job calls files like this one.
    pub tag: String,
}

/// The files that a spec's inputs name, in the order of the patterns and, within one, of the bytes
/// of their names.
///
/// # Errors
/// [`PlanError`] naming the first pattern that cannot be taken.
pub fn inputs(root: &Root, spec: &Spec) -> Result<Vec<Input>, PlanError> {
    let mut found =
        Found { root, files: Vec::new(), path_bytes: 0, directories: 0, tag: String::new() };
    for (number, pattern) in spec.inputs.iter().enumerate() {
        found.tag = spec.flow.tags.get(number).cloned().unwrap_or_default();
        match pattern.strip_prefix('@') {
            Some(list) => {
                for line in read_list(root, list)? {
                    found.expand(&line)?;
                }
            }
            None => found.expand(pattern)?,
        }
    }
    Ok(found.files)
}

/// Checks that a spec's inputs could be names below the root, without looking for them.
///
/// # Errors
/// [`PlanError::Path`] naming the first that cannot.
pub fn check_names(root: &Root, spec: &Spec) -> Result<(), PlanError> {
    for pattern in &spec.inputs {
        root.normal(pattern.strip_prefix('@').unwrap_or(pattern))?;
    }
    Ok(())
}

/// The lines of a file of inputs.
fn read_list(root: &Root, list: &str) -> Result<Vec<String>, PlanError> {
    let path = root.confine(list, &root.join(&root.normal(list)?))?;
    let bytes = read_file(&path, LIST_FILE_BYTES_MAX).map_err(|e| PathError::io(list, e))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| PathError::refused(list, "the list of inputs is not UTF-8"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

struct Found<'a> {
    root: &'a Root,
    files: Vec<Input>,
    path_bytes: usize,
    directories: usize,
    /// What files of the present pattern are called.
    tag: String,
}

impl Found<'_> {
    fn expand(&mut self, pattern: &str) -> Result<(), PlanError> {
        self.root.normal(pattern)?;
        let before = self.files.len();
        let absolute = pattern.starts_with('/');
        let full = self.root.path().join(pattern);
        match fs::metadata(&full) {
            Ok(metadata) => self.take(pattern, &full, &metadata, 0, true)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parts: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
                let base = if absolute { Path::new("/") } else { self.root.path() };
                let named = if absolute { "/" } else { "" };
                self.walk(base, named, &parts)?;
            }
            Err(error) => return Err(PathError::io(pattern, error).into()),
        }
        if self.files.len() == before {
            return Err(PlanError::NoMatch(shown(pattern)));
        }
        Ok(())
    }

    /// Follows a pattern part by part.
    fn walk(&mut self, at: &Path, named: &str, parts: &[&str]) -> Result<(), PlanError> {
        let Some((part, rest)) = parts.split_first() else { return Ok(()) };
        let names = if glob::is_pattern(part) {
            self.names(at, named, |name| glob::matches(part, name))?
        } else {
            vec![(*part).to_owned()]
        };
        for name in names {
            let path = at.join(&name);
            let named = join(named, &name);
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(PathError::io(&named, error).into()),
            };
            if rest.is_empty() {
                self.take(&named, &path, &metadata, 0, true)?;
            } else if metadata.is_dir() {
                self.walk(&path, &named, rest)?;
            }
        }
        Ok(())
    }

    /// The names in a directory that fulfil a condition, in the order of their bytes.
    fn names(
        &mut self,
        at: &Path,
        named: &str,
        condition: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, PlanError> {
        let refuse = |error| PathError::io(named, error);
        self.directories += 1;
        if self.directories > DIRECTORIES_MAX {
            return Err(PathError::refused(named, "there are too many directories").into());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(at).map_err(refuse)? {
            let name = entry.map_err(refuse)?.file_name();
            match name.into_string() {
                Ok(name) if condition(&name) => names.push(name),
                Ok(_) => {}
                Err(name) => {
                    let name = join(named, &name.to_string_lossy());
                    return Err(PathError::refused(&name, "its name is not UTF-8").into());
                }
            }
            if names.len() > INPUT_FILES_MAX {
                return Err(too_many().into());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Takes a file, or everything in a directory but what is hidden.
    fn take(
        &mut self,
        named: &str,
        path: &Path,
        metadata: &Metadata,
        depth: usize,
        asked_for: bool,
    ) -> Result<(), PlanError> {
        let real = self.root.confine(named, path)?;
        if real.starts_with(self.root.join(WORK_ROOT)) {
            return Err(PathError::refused(named, "it is Flotilla's own").into());
        }
        if metadata.is_dir() {
            if depth >= DEPTH_MAX {
                return Err(PathError::refused(named, "directories lie too deep").into());
            }
            for name in self.names(path, named, |name| !glob::is_hidden(name))? {
                let (path, named) = (path.join(&name), join(named, &name));
                let metadata = fs::metadata(&path).map_err(|e| PathError::io(&named, e))?;
                self.take(&named, &path, &metadata, depth + 1, false)?;
            }
            return Ok(());
        }
        if !metadata.is_file() {
            if asked_for {
                return Err(PathError::refused(named, "it is no regular file").into());
            }
            return Ok(());
        }
        self.path_bytes += named.len();
        if self.files.len() >= INPUT_FILES_MAX || self.path_bytes > INPUT_PATH_BYTES_MAX {
            return Err(too_many().into());
        }
        let modified_ns = modified_ns(metadata);
        let bytes = metadata.len();
        let packing = packing(&real).map_err(|error| PathError::io(named, error))?;
        let (path, tag) = (named.to_owned(), self.tag.clone());
        self.files.push(Input { path, real, bytes, modified_ns, packing, tag });
        Ok(())
    }
}

fn too_many() -> BadSpec {
    let problem =
        format!("more than {INPUT_FILES_MAX} files, or {INPUT_PATH_BYTES_MAX} bytes of paths");
    BadSpec::new("inputs", problem)
}

/// How a file is compressed: by its name, or else by its first bytes.
fn packing(path: &Path) -> io::Result<Packing> {
    use io::Read;
    const GZIP: [u8; 3] = [0x1f, 0x8b, 0x08];
    const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let named = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => Some(Packing::Gzip),
        Some("zst") => Some(Packing::Zstd),
        Some(_) | None => None,
    };
    if let Some(named) = named {
        return Ok(named);
    }
    let mut head = Vec::with_capacity(ZSTD.len());
    fs::File::open(path)?.take(ZSTD.len() as u64).read_to_end(&mut head)?;
    Ok(match &head[..] {
        head if head.starts_with(&GZIP) => Packing::Gzip,
        head if head.starts_with(&ZSTD) => Packing::Zstd,
        _ => Packing::None,
    })
}

fn join(named: &str, name: &str) -> String {
    match named {
        "" => name.to_owned(),
        named if named.ends_with('/') => format!("{named}{name}"),
        named => format!("{named}/{name}"),
    }
}

fn modified_ns(metadata: &Metadata) -> u64 {
    let ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    u64::try_from(ns).unwrap_or(0)
}

/// Cuts input files into map tasks. `slots` is how many tasks run at a time: without a wish of the
/// user's each slot gets some four of them.
///
/// # Errors
/// When there would be more tasks than [`MAPS_MAX`].
pub fn split(spec: &Spec, files: &[Input], slots: u32) -> Result<Plan, BadSpec> {
    match spec.input_format {
        InputFormat::Whole => split_whole(files),
        InputFormat::Text | InputFormat::KeyValue | InputFormat::Fixed(_)
            if spec.split_bytes > 0 =>
        {
            split_text(files, spec.split_bytes)
        }
        InputFormat::Text | InputFormat::KeyValue | InputFormat::Fixed(_) => {
            let total: u64 = files.iter().map(|file| file.bytes).sum();
            let share = total.div_ceil(4 * u64::from(slots.max(1)));
            let mut largest = share.clamp(SPLIT_BYTES_SMALL, SPLIT_BYTES_DEFAULT);
            loop {
                match split_text(files, largest) {
                    Err(_) if largest <= total => largest *= 2,
                    other => return other,
                }
            }
        }
    }
}

/// One task for each file, or for as many neighbours as it takes to stay within the limit.
fn split_whole(files: &[Input]) -> Result<Plan, BadSpec> {
    let per_task = files.len().div_ceil(MAPS_MAX as usize).max(1);
    let mut tasks = Tasks::default();
    for file in files {
        tasks.add(piece(file, 0, file.bytes), |task| task.splits.len() >= per_task);
    }
    tasks.finish()
}

/// Pieces of at most `largest` bytes, but compressed files whole; neighbours that fit together share
/// a task. Empty files have no record, so they have no piece.
fn split_text(files: &[Input], largest: u64) -> Result<Plan, BadSpec> {
    let mut tasks = Tasks::default();
    for file in files {
        let mut start = 0;
        while start < file.bytes {
            let bytes = match file.packing {
                Packing::None => largest.min(file.bytes - start),
                Packing::Gzip | Packing::Zstd => file.bytes,
            };
            tasks.add(piece(file, start, bytes), |task| task.bytes + bytes > largest);
            if tasks.done.len() > MAPS_MAX as usize {
                break;
            }
            start += bytes;
        }
    }
    tasks.finish()
}

fn piece(file: &Input, start: u64, bytes: u64) -> Split {
    Split {
        path: file.path.clone(),
        start,
        bytes,
        file_bytes: file.bytes,
        modified_ns: file.modified_ns,
        packing: file.packing,
        tag: file.tag.clone(),
    }
}

#[derive(Default)]
struct Tasks {
    done: Vec<Vec<Split>>,
    open: OpenTask,
}

#[derive(Default)]
struct OpenTask {
    splits: Vec<Split>,
    bytes: u64,
    path_bytes: usize,
}

impl Tasks {
    fn add(&mut self, split: Split, full: impl Fn(&OpenTask) -> bool) {
        let open = &self.open;
        let path_bytes = open.path_bytes + split.path.len();
        let over = open.splits.len() >= SPLITS_PER_TASK_MAX || path_bytes > SPLIT_PATH_BYTES_MAX;
        if !open.splits.is_empty() && (over || full(open)) {
            self.close();
        }
        self.open.bytes += split.bytes;
        self.open.path_bytes += split.path.len();
        self.open.splits.push(split);
    }

    fn close(&mut self) {
        let task = std::mem::take(&mut self.open);
        if !task.splits.is_empty() {
            self.done.push(task.splits);
        }
    }

    fn finish(mut self) -> Result<Plan, BadSpec> {
        self.close();
        if self.done.len() > MAPS_MAX as usize {
            let problem = format!("it makes more than {MAPS_MAX} map tasks: take a larger one");
            return Err(BadSpec::new("split_bytes", problem));
        }
        Ok(Plan { maps: self.done, cuts: None })
    }
}

/// Plans a job: lists, cuts, and stores the plan durably in the job's directory.
///
/// # Errors
/// [`PlanError`].
pub fn make(
    root: &Root,
    job: JobId,
    spec: &Spec,
    slots: u32,
) -> Result<(PlanRoot, Plan), PlanError> {
    let files = inputs(root, spec)?;
    let mut plan = split(spec, &files, slots)?;
    if let Partitioner::Range { samples, key_bytes } = spec.flow.partitioner {
        plan.cuts = Some(cut(root, job, spec, &files, (samples, key_bytes))?);
    }
    let mut out = Encoder::new();
    out.raw(MAGIC);
    put_plan(&mut out, &plan);
    let bytes = out.finish();
    let digest = *blake3::hash(&bytes).as_bytes();
    store(root, job, &plan_name(&digest), &bytes).map_err(PlanError::Store)?;
    let maps = u32::try_from(plan.maps.len()).expect("MAPS_MAX was checked");
    Ok((PlanRoot { digest, maps, bytes: plan.bytes() }, plan))
}

/// Finds and stores the cut points of a total order.
fn cut(
    root: &Root,
    job: JobId,
    spec: &Spec,
    files: &[Input],
    (samples, key_bytes): (u32, u32),
) -> Result<Cuts, PlanError> {
    let cuts = sample::cuts(spec, files, samples, key_bytes)?;
    let bytes = sample::encode(&cuts);
    let name = format!("cuts-{}", blake3::hash(&bytes).to_hex());
    store(root, job, &name, &bytes).map_err(PlanError::Store)?;
    Ok(Cuts { path: format!("{}/{name}", job_directory(job)), crc: crc32c::crc32c(&bytes) })
}

/// Stores a file in the job's directory, durably. It is named by its content, so that two leaders
/// cannot disturb each other.
fn store(root: &Root, job: JobId, name: &str, bytes: &[u8]) -> io::Result<()> {
    let work = root.join(WORK_ROOT);
    let directory = root.join(&job_directory(job));
    create_dir(&work)?;
    create_dir(&directory)?;
    let draft = directory.join(format!("{}.draft", uuid::Uuid::new_v4()));
    write_file(&draft, bytes)?;
    fs::rename(&draft, directory.join(name))?;
    sync_dir(&directory)?;
    sync_dir(&work)?;
    sync_dir(root.path())
}

fn plan_name(digest: &[u8; 32]) -> String {
    format!("plan-{}", blake3::Hash::from_bytes(*digest).to_hex())
}

/// Reads a job's plan, which must be the one that the log names.
///
/// # Errors
/// [`PlanError`] when it is not there or not the same.
pub fn load(root: &Root, job: JobId, is: PlanRoot) -> Result<Plan, PlanError> {
    let path = root.join(&job_directory(job)).join(plan_name(&is.digest));
    let bytes = read_file(&path, PLAN_BYTES_MAX).map_err(PlanError::Store)?;
    if *blake3::hash(&bytes).as_bytes() != is.digest {
        return Err(PlanError::Damaged("its digest is not the one in the log"));
    }
    let plan = bytes.strip_prefix(MAGIC).ok_or(PlanError::Damaged("it is no plan"))?;
    let mut from = Decoder::new(plan);
    let plan = take_plan(&mut from).map_err(|_| PlanError::Damaged("it does not decode"))?;
    if plan.maps.len() != is.maps as usize || from.end().is_err() {
        return Err(PlanError::Damaged("its length is not the one in the log"));
    }
    Ok(plan)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
