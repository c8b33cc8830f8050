//! How a job's results appear: all at once, by one rename, whatever happens on the way.
//!
//! Decides the order of steps (mapreduce.md 6.3, 5). The parts are renamed into a staging
//! directory beside the output, whose name holds the leader's term; `_SUCCESS` is written there;
//! everything is synced; then the staging directory becomes the output. Each step finds out by
//! itself whether it was done before, so a run after a crash at any point ends the same. A new
//! leader's first step renames older staging to its own name: what an old leader still tries then
//! fails for want of its directory. Labs may have results appear in a directory that exists; these
//! are renamed one by one, `_SUCCESS` last.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use raftd::failpoint::{self, Failpoint};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, job_directory},
    root::{Root, create_dir, read_file, sync_dir, unsupported, write_file},
    spec::{OutputFormat, Spec},
};

/// The file that says that all results are there.
pub const SUCCESS_FILE: &str = "_SUCCESS";

/// The directory of the results that names what was left out of them, if anything was.
pub const SKIPPED_DIRECTORY: &str = "_skipped";
/// The file in it: a line for each record, `PATH:OFFSET TASK`.
pub const SKIPPED_FILE: &str = "records";

/// The largest `_SUCCESS` file that is read: 4,096 parts and 120 counters take a tenth of it.
const SUCCESS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A part to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its partition.
    pub partition: u32,
    /// Where the accepted attempt left it, relative to the root.
    pub source: String,
    /// Its size.
    pub bytes: u64,
    /// CRC-32C of its bytes.
    pub crc: u32,
}

/// Everything that publishing needs to know of a job.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The job.
    pub job: JobId,
    /// The leader's term.
    pub epoch: u64,
    /// What it is to do.
    pub spec: Spec,
    /// Its output in normal form, relative to the root.
    pub output_key: String,
    /// Its parts, in order of partitions.
    pub parts: Vec<Part>,
    /// Its counters.
    pub counters: BTreeMap<String, u64>,
    /// The records that were left out, a line for each.
    pub skipped: Vec<String>,
}

/// What `_SUCCESS` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// The version of this file.
    pub version: u32,
    /// The job whose results these are.
    pub job: String,
    /// Its app.
    pub app: String,
    /// The results, in order of partitions.
    pub parts: Vec<SuccessPart>,
    /// The job's counters.
    pub counters: BTreeMap<String, u64>,
}

/// One file of the results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessPart {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// CRC-32C of its bytes, as eight hexadecimal digits.
    pub crc32c: String,
}

/// Why results were not published now.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// These partitions' results are gone: they have to be made again.
    #[error("the results of partitions {0:?} are lost")]
    Lost(Vec<u32>),
    /// Something else is where the output should be.
    #[error("the output {0} exists and is not this job's")]
    Conflict(String),
    /// A newer leader publishes this job.
    #[error("a leader of term {0} publishes this job")]
    Deposed(u64),
    /// The file system refuses.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Is told of each step before it is taken; a test ends the run there, as a crash would.
pub trait Steps {
    /// The next step is about to be taken.
    ///
    /// # Errors
    /// Ends the run.
    fn before(&mut self, step: &'static str) -> io::Result<()>;
}

/// Steps before which a process can be told to die.
const MOVE_PART: &str = "moving a part";
const MOVE_SUCCESS: &str = "moving _SUCCESS";
const SWAP: &str = "renaming staging to the output";
const SYNC_PLACE: &str = "syncing the output's place";

/// Takes every step.
#[derive(Clone, Copy, Debug)]
pub struct AllSteps;

impl Steps for AllSteps {
    fn before(&mut self, step: &'static str) -> io::Result<()> {
        match step {
            MOVE_PART => failpoint::reach(Failpoint::PublishMoveBefore),
            MOVE_SUCCESS => failpoint::reach(Failpoint::PublishSuccessBefore),
            SWAP => failpoint::reach(Failpoint::PublishSwapBefore),
            SYNC_PLACE => failpoint::reach(Failpoint::PublishSwapAfter),
            _ => {}
        }
        Ok(())
    }
}

/// Publishes a job's results, or finds them published.
///
/// # Errors
/// [`PublishError`]; another run may end well after each of them.
pub fn publish(
    root: &Root,
    publication: &Publication,
    steps: &mut dyn Steps,
) -> Result<(), PublishError> {
    let mut run = Run::new(root, publication, steps)?;
    if run.is_published()? {
        return run.clear_up();
    }
    run.fence()?;
    match run.way()? {
        Way::Whole => run.publish_whole(),
        Way::Into => run.publish_into(),
    }
}

/// Removes every staging directory of a job that has ended.
///
/// # Errors
/// When one cannot be removed.
pub fn clear_staging(root: &Root, publication: &Publication) -> Result<(), PublishError> {
    let mut steps = AllSteps;
    let mut run = Run::new(root, publication, &mut steps)?;
    for (_, staging) in run.step("looking for staging", Run::stagings)? {
        run.step("removing staging", |_| fs::remove_dir_all(&staging))?;
    }
    Ok(())
}

/// Whether the output directory holds the results of this job.
///
/// # Errors
/// When it cannot be read.
pub fn is_published(output: &Path, job: JobId) -> io::Result<bool> {
    match read_file(&output.join(SUCCESS_FILE), SUCCESS_BYTES_MAX) {
        Ok(bytes) => {
            let success: Option<Success> = serde_json::from_slice(&bytes).ok();
            Ok(success.is_some_and(|success| success.job == job.to_string()))
        }
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// How the results appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As a new directory, or in place of one.
    Whole,
    /// File by file in a directory that is there.
    Into,
}

struct Run<'a> {
    root: &'a Root,
    publication: &'a Publication,
    steps: &'a mut dyn Steps,
    output: PathBuf,
    parent: PathBuf,
    staging: PathBuf,
    /// What the names of all staging directories of this job begin with.
    staging_prefix: String,
}

impl<'a> Run<'a> {
    fn new(
        root: &'a Root,
        publication: &'a Publication,
        steps: &'a mut dyn Steps,
    ) -> Result<Self, PublishError> {
        let step = "finding the output's place";
        let refuse = |message: String| PublishError::Io { step, source: io::Error::other(message) };
        let output = root
            .place(&publication.spec.output, &publication.output_key)
            .map_err(|error| refuse(error.to_string()))?;
        let (parent, name) = output
            .parent()
            .zip(output.file_name().and_then(|name| name.to_str()))
            .ok_or_else(|| refuse("it has no name".to_owned()))?;
        let staging_prefix = format!("{name}.flotilla-{}.", publication.job);
        let staging = parent.join(format!("{staging_prefix}{}", publication.epoch));
        let parent = parent.to_owned();
        Ok(Self { root, publication, steps, output, parent, staging, staging_prefix })
    }

    /// Takes a step.
    fn step<T>(
        &mut self,
        step: &'static str,
        act: impl FnOnce(&Self) -> io::Result<T>,
    ) -> Result<T, PublishError> {
        let done = self.steps.before(step).and_then(|()| act(self));
        done.map_err(|source| PublishError::Io { step, source })
    }

    fn is_published(&mut self) -> Result<bool, PublishError> {
        self.step("looking for results", |run| is_published(&run.output, run.publication.job))
    }

    /// The staging directories of this job, with their terms.
    fn stagings(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.parent) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(found),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let term = name.to_str().and_then(|name| name.strip_prefix(&self.staging_prefix));
            if let Some(term) = term.and_then(|term| term.parse().ok()) {
                found.push((term, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Takes older leaders' staging away from them.
    fn fence(&mut self) -> Result<(), PublishError> {
        let epoch = self.publication.epoch;
        let stagings = self.step("looking for staging", Self::stagings)?;
        if let Some((newer, _)) = stagings.iter().find(|(term, _)| *term > epoch) {
            return Err(PublishError::Deposed(*newer));
        }
        let mut own = stagings.iter().any(|(term, _)| *term == epoch);
        for (_, older) in stagings.iter().filter(|(term, _)| *term < epoch) {
            if own {
                self.step("emptying older staging", |run| run.merge(older))?;
            } else {
                self.step("renaming older staging", |run| fs::rename(older, &run.staging))?;
                own = true;
            }
        }
        if stagings.iter().any(|(term, _)| *term < epoch) {
            self.step("syncing the fence", |run| sync_dir(&run.parent))?;
        }
        Ok(())
    }

    /// Moves what a further staging directory holds into the own one.
    fn merge(&self, older: &Path) -> io::Result<()> {
        for entry in fs::read_dir(older)? {
            let entry = entry?;
            let to = self.staging.join(entry.file_name());
            if to.symlink_metadata().is_err_and(|error| is_absent(&error)) {
                fs::rename(entry.path(), to)?;
            }
        }
        fs::remove_dir_all(older)
    }

    fn way(&mut self) -> Result<Way, PublishError> {
        let exists = self.step("looking at the output", |run| is_dir(&run.output))?;
        let spec = &self.publication.spec;
        let into = exists && spec.output_format == OutputFormat::Lab && !spec.overwrite;
        Ok(if into { Way::Into } else { Way::Whole })
    }

    fn publish_whole(&mut self) -> Result<(), PublishError> {
        self.step("creating staging", |run| {
            create_dirs(&run.parent)?;
            create_dir(&run.staging)
        })?;
        let staging = self.staging.clone();
        self.move_parts(&staging)?;
        self.write_skipped(&staging)?;
        self.write_success(&staging)?;
        self.step("removing strangers", |run| run.remove_strangers(&staging))?;
        self.step("syncing staging", |run| sync_dir(&run.staging))?;
        self.swap()?;
        self.step(SYNC_PLACE, |run| sync_dir(&run.parent))?;
        self.clear_up()
    }

    fn publish_into(&mut self) -> Result<(), PublishError> {
        let output = self.output.clone();
        self.move_parts(&output)?;
        self.write_skipped(&output)?;
        self.step("syncing the output", |run| sync_dir(&run.output))?;
        self.write_success(&output)?;
        self.step("syncing the output", |run| sync_dir(&run.output))?;
        self.clear_up()
    }

    /// Moves every part to its place, from the attempt's directory or from staging.
    fn move_parts(&mut self, to: &Path) -> Result<(), PublishError> {
        let mut lost = Vec::new();
        for part in &self.publication.parts {
            let name = self.publication.spec.part_name(part.partition);
            let place = to.join(&name);
            if self.step("verifying a part in its place", |_| is_part(&place, part))? {
                continue;
            }
            let sources = [self.root.join(&part.source), self.staging.join(&name)];
            let mut moved = false;
            for source in sources.iter().filter(|source| **source != place) {
                if self.step("verifying a part", |_| is_part(source, part))? {
                    self.step("syncing a part", |_| File::open(source)?.sync_all())?;
                    self.step(MOVE_PART, |_| fs::rename(source, &place))?;
                    moved = true;
                    break;
                }
            }
            if !moved {
                lost.push(part.partition);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        // An old leader that created its staging too late leaves nothing behind; a directory that
        // holds parts cannot be removed this way.
        match fs::remove_dir(&self.staging) {
            Ok(()) => tracing::debug!("empty staging removed"),
            Err(error) => tracing::debug!(%error, "staging stays"),
        }
        Err(PublishError::Lost(lost))
    }

    /// Names the records that were left out, if there are any.
    fn write_skipped(&mut self, to: &Path) -> Result<(), PublishError> {
        if self.publication.skipped.is_empty() {
            return Ok(());
        }
        let directory = to.join(SKIPPED_DIRECTORY);
        let mut lines = self.publication.skipped.join("\n");
        lines.push('\n');
        self.step("naming what was left out", |_| {
            fs::create_dir_all(&directory)?;
            write_file(&directory.join(SKIPPED_FILE), lines.as_bytes())?;
            sync_dir(&directory)
        })
    }

    /// Writes `_SUCCESS`, whole: its name appears when its content is durable.
    fn write_success(&mut self, to: &Path) -> Result<(), PublishError> {
        let part = |part: &Part| SuccessPart {
            name: self.publication.spec.part_name(part.partition),
            bytes: part.bytes,
            crc32c: format!("{:08x}", part.crc),
        };
        let success = Success {
            version: 1,
            job: self.publication.job.to_string(),
            app: self.publication.spec.app.clone(),
            parts: self.publication.parts.iter().map(part).collect(),
            counters: self.publication.counters.clone(),
        };
        let directory = self.root.join(&job_directory(self.publication.job));
        let draft = directory.join(format!("{SUCCESS_FILE}.{}", self.publication.epoch));
        self.step("writing _SUCCESS", |_| {
            let mut json = serde_json::to_vec_pretty(&success).map_err(io::Error::other)?;
            json.push(b'\n');
            fs::create_dir_all(&directory)?;
            write_file(&draft, &json)
        })?;
        self.step(MOVE_SUCCESS, |_| fs::rename(&draft, to.join(SUCCESS_FILE)))
    }

    /// What is in staging beside the results was put there by nobody.
    fn remove_strangers(&self, staging: &Path) -> io::Result<()> {
        let spec = &self.publication.spec;
        let parts = self.publication.parts.iter();
        let mut names: Vec<String> = parts.map(|part| spec.part_name(part.partition)).collect();
        names.push(SUCCESS_FILE.to_owned());
        if !self.publication.skipped.is_empty() {
            names.push(SKIPPED_DIRECTORY.to_owned());
        }
        for entry in fs::read_dir(staging)? {
            let entry = entry?;
            if names.iter().any(|name| entry.file_name() == name.as_str()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The one step by which all results appear.
    fn swap(&mut self) -> Result<(), PublishError> {
        let step = SWAP;
        self.step(step, |_| Ok(()))?;
        match rename_new(&self.staging, &self.output) {
            Ok(()) => Ok(()),
            Err(error) if self.publication.spec.overwrite && is_in_the_way(&error) => {
                let output = &self.output;
                let exchanged =
                    renameat_with(CWD, &self.staging, CWD, output, RenameFlags::EXCHANGE);
                exchanged.map_err(|error| PublishError::Io { step, source: error.into() })
            }
            Err(error) if is_in_the_way(&error) => {
                Err(PublishError::Conflict(self.output.display().to_string()))
            }
            Err(source) => Err(PublishError::Io { step, source }),
        }
    }

    /// Removes staging that is left: emptied, or what the output took the place of.
    fn clear_up(&mut self) -> Result<(), PublishError> {
        self.step(SYNC_PLACE, |run| sync_dir(&run.parent))?;
        for (_, staging) in self.step("looking for staging", Self::stagings)? {
            self.step("removing staging", |_| fs::remove_dir_all(&staging))?;
        }
        Ok(())
    }
}

fn is_dir(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_in_the_way(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotADirectory};
    matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotADirectory)
}

/// Renames a directory to a name that must be free. Where the file system cannot be told so, a
/// plain rename of a directory replaces an empty directory at most, which loses nothing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(error) if unsupported(error) => fs::rename(from, to),
        Err(error) => Err(error.into()),
    }
}

/// Creates a directory and what is missing above it, durably.
fn create_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().ok_or(io::ErrorKind::NotFound)?;
    create_dirs(parent)?;
    create_dir(path)?;
    sync_dir(parent)
}

/// Whether a file is there and is this part, to the byte.
fn is_part(path: &Path, part: &Part) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    if !metadata.is_file() || metadata.len() != part.bytes {
        return Ok(false);
    }
    Ok(checksum(path)? == part.crc)
}

/// CRC-32C of a file.
fn checksum(path: &Path) -> io::Result<u32> {
    const BUFFER_BYTES: usize = 256 * 1024;
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut crc = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            count => crc = crc32c::crc32c_append(crc, &buffer[..count]),
        }
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
