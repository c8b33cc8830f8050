//! The results of a job: printed, or copied to a directory or a file of one's own.
//!
//! What is read is what `_SUCCESS` says, file by file, and not what lies in the directory. A result
//! that is not as it was committed is an error, at its end at the latest.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use client::JobClient;
use daemon::{Code, Failure};
use mr_coordinator::publish::{SUCCESS_FILE, Success, SuccessPart};
use proto::mapreduce::{Job, JobState};
use serde_json::json;

use super::state_name;
use crate::output::{Output, refused, unwritable};
use crate::{units, whereabouts};

/// The largest `_SUCCESS` file that is read: ten times what the largest job writes.
const SUCCESS_BYTES_MAX: u64 = 4 << 20;

/// What the name of a compressed result ends with.
const ZSTD_SUFFIX: &str = ".zst";

/// Where results, or logs, are looked for.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Where {
    /// The job's id
    pub(super) job: String,
    /// The root that coordinator and workers share [default: that of the running `flotilla up`, or
    /// the working directory]
    #[arg(long, value_name = "DIR", env = "FLOTILLA_ROOT")]
    pub(super) root: Option<PathBuf>,
}

/// The results of a job that has succeeded.
struct Results {
    directory: PathBuf,
    success: Success,
}

/// Prints all results, partition after partition.
///
/// # Errors
/// When there are none, or they are not what they were, or nobody takes them.
pub(super) async fn cat(jobs: &JobClient, of: &Where) -> Result<(), Failure> {
    let results = Results::find(jobs, of).await?;
    let mut out = io::stdout().lock();
    results.unpack_into(&mut out)?;
    out.flush().map_err(unwritable)
}

/// Prints the first lines of the results.
///
/// # Errors
/// As [`cat`].
pub(super) async fn head(jobs: &JobClient, of: &Where, mut lines: u64) -> Result<(), Failure> {
    let results = Results::find(jobs, of).await?;
    let mut out = io::stdout().lock();
    let mut line = Vec::new();
    for part in &results.success.parts {
        let mut unpacked = BufReader::new(results.unpacked(part)?);
        while lines > 0 {
            line.clear();
            if unpacked.read_until(b'\n', &mut line).map_err(|error| results.bad(part, error))? == 0
            {
                break;
            }
            out.write_all(&line).map_err(unwritable)?;
            lines -= 1;
        }
    }
    out.flush().map_err(unwritable)
}

/// Copies the results to a new directory, as they are, or unpacked to one new file.
///
/// # Errors
/// As [`cat`]; exists already, when the target does.
pub(super) async fn get_output(
    jobs: &JobClient,
    of: &Where,
    target: &Path,
    merge: bool,
    output: Output,
) -> Result<(), Failure> {
    let results = Results::find(jobs, of).await?;
    if target.symlink_metadata().is_ok() {
        let message = format!("{} exists already; nothing was copied", target.display());
        return Err(Failure::new(Code::Exists, message));
    }
    // Whoever sees the target sees all of it.
    let mut draft = target.as_os_str().to_owned();
    draft.push(format!(".{}", uuid::Uuid::now_v7()));
    let draft = PathBuf::from(draft);
    let copied = if merge { results.merge(&draft) } else { results.copy(&draft) };
    let moved =
        copied.and_then(|()| fs::rename(&draft, target).map_err(|error| bad_target(target, error)));
    if let Err(failure) = moved {
        let removed = if merge { fs::remove_file(&draft) } else { fs::remove_dir_all(&draft) };
        let failure = match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let left = format!("what was copied stays in {}", draft.display());
                Failure::new(failure.code(), format!("{failure}; {left}"))
            }
            Ok(()) | Err(_) => failure,
        };
        return Err(failure);
    }
    let bytes: u64 = results.success.parts.iter().map(|part| part.bytes).sum();
    let files = results.success.parts.len();
    let text = format!("{}: {files} results, {}", target.display(), units::bytes(bytes));
    output.result(
        &text,
        &json!({ "target": target, "files": files, "bytes": bytes, "merged": merge }),
    )
}

/// Tells a job's counters.
///
/// # Errors
/// When there is no such job, or nobody answers.
pub(super) async fn counters(jobs: &JobClient, id: &str, output: Output) -> Result<(), Failure> {
    let job = jobs.get(id, 0).await.map_err(refused)?;
    let mut names: Vec<_> = job.counters.iter().collect();
    names.sort();
    let width = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        names.iter().map(|(name, count)| format!("{name:width$}  {count}")).collect();
    let text =
        if lines.is_empty() { format!("{id} has counted nothing yet") } else { lines.join("\n") };
    let state = state_name(job.state());
    output.result(&text, &json!({ "job": job.id, "state": state, "counters": job.counters }))
}

impl Results {
    async fn find(jobs: &JobClient, of: &Where) -> Result<Self, Failure> {
        let job = jobs.get(&of.job, 0).await.map_err(refused)?;
        if job.state() != JobState::Succeeded {
            let message = format!("{} has no results: it is {}", job.id, state_name(job.state()));
            return Err(Failure::new(Code::Failed, message));
        }
        Self::of(&job, &whereabouts::root(of.root.as_deref())?)
    }

    fn of(job: &Job, root: &Path) -> Result<Self, Failure> {
        let output = job.spec.as_ref().map_or("", |spec| spec.output.as_str());
        let directory = root.join(output);
        let path = directory.join(SUCCESS_FILE);
        let unreadable = |why: &dyn std::fmt::Display| {
            let message = format!(
                "{} cannot be read: {why}; --root names the directory that coordinator and workers share",
                path.display()
            );
            Failure::new(Code::Failed, message)
        };
        let file = File::open(&path).map_err(|error| unreadable(&error))?;
        let mut text = Vec::new();
        file.take(SUCCESS_BYTES_MAX).read_to_end(&mut text).map_err(|error| unreadable(&error))?;
        let success: Success = serde_json::from_slice(&text).map_err(|error| unreadable(&error))?;
        if success.job != job.id {
            let message = format!("{} has the results of {} now", directory.display(), success.job);
            return Err(Failure::new(Code::Failed, message));
        }
        if let Some(part) = success.parts.iter().find(|part| !is_plain(&part.name)) {
            return Err(unreadable(&format!("{:?} is no file's name", part.name)));
        }
        Ok(Self { directory, success })
    }

    fn bad(&self, part: &SuccessPart, error: io::Error) -> Failure {
        let path = self.directory.join(&part.name);
        Failure::new(Code::Failed, format!("the result {} cannot be read", path.display()))
            .because(error)
    }

    /// A result as it lies there.
    fn open(&self, part: &SuccessPart) -> Result<Verified, Failure> {
        let file =
            File::open(self.directory.join(&part.name)).map_err(|error| self.bad(part, error))?;
        let crc = u32::from_str_radix(&part.crc32c, 16).ok();
        Ok(Verified { file, bytes: 0, crc: 0, expected: (part.bytes, crc) })
    }

    /// A result, unpacked if it is compressed.
    fn unpacked(&self, part: &SuccessPart) -> Result<Box<dyn Read>, Failure> {
        let raw = self.open(part)?;
        if !part.name.ends_with(ZSTD_SUFFIX) {
            return Ok(Box::new(raw));
        }
        let decoder = zstd::stream::read::Decoder::new(raw);
        Ok(Box::new(decoder.map_err(|error| self.bad(part, error))?))
    }

    fn unpack_into(&self, out: &mut dyn Write) -> Result<(), Failure> {
        for part in &self.success.parts {
            let mut from = self.unpacked(part)?;
            let mut buffer = vec![0; 1 << 18];
            loop {
                let read = from.read(&mut buffer).map_err(|error| self.bad(part, error))?;
                if read == 0 {
                    break;
                }
                out.write_all(&buffer[..read]).map_err(unwritable)?;
            }
        }
        Ok(())
    }

    fn merge(&self, target: &Path) -> Result<(), Failure> {
        let mut file = File::create_new(target).map_err(|error| bad_target(target, error))?;
        self.unpack_into(&mut file)?;
        file.sync_all().map_err(|error| bad_target(target, error))
    }

    fn copy(&self, target: &Path) -> Result<(), Failure> {
        fs::create_dir(target).map_err(|error| bad_target(target, error))?;
        for part in &self.success.parts {
            let mut from = self.open(part)?;
            let to = target.join(&part.name);
            let copied = File::create_new(&to).and_then(|mut to| {
                io::copy(&mut from, &mut to)?;
                to.sync_all()
            });
            copied.map_err(|error| self.bad(part, error))?;
        }
        let name = target.join(SUCCESS_FILE);
        fs::copy(self.directory.join(SUCCESS_FILE), &name)
            .map_err(|error| bad_target(&name, error))?;
        Ok(())
    }
}

fn bad_target(target: &Path, error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("{} cannot be written", target.display())).because(error)
}

/// A name within its directory.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|found| found == name)
}

/// A file whose end is only there if all of it was what is expected.
struct Verified {
    file: File,
    bytes: u64,
    crc: u32,
    expected: (u64, Option<u32>),
}

impl Read for Verified {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes += read as u64;
        self.crc = crc32c::crc32c_append(self.crc, &buffer[..read]);
        if read == 0 && !buffer.is_empty() && (self.bytes, Some(self.crc)) != self.expected {
            return Err(io::Error::other(
                "it is not what the job wrote: its size or checksum differ",
            ));
        }
        Ok(read)
    }
}
