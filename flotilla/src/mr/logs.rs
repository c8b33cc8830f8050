//! `flotilla mr logs`: what a job's attempts wrote to standard error.
//!
//! Logs are read where workers left them, below the shared root, a piece at a time. The coordinator is
//! asked only when there are none, whether there is such a job and task at all: it may be away, and may
//! forget a job sooner than its logs go.

use std::fs::File;
use std::io::{self, Read, Write};
use std::str::FromStr;

use client::JobClient;
use daemon::{Code, Failure};
use mr_coordinator::ids::{
    AttemptId, AttemptNumber, JobId, NotAJobId, TaskId, TaskKind, WORK_ROOT,
};
use mr_coordinator::logs;
use mr_coordinator::root::{PathError, Root};
use proto::mapreduce::Job;
use serde_json::{Value, json};

use super::results::Where;
use crate::output::{Output, refused, unwritable};
use crate::whereabouts;

pub(super) const HELP: &str = "\
Examples:
  All that a job's attempts said:
    flotilla mr logs 01890a5d-ac96-774b-bcce-b302099a8057
  The attempts at one of its tasks, as `flotilla mr tasks` names them, or one of these:
    flotilla mr logs 01890a5d-ac96-774b-bcce-b302099a8057 map-3
    flotilla mr logs 01890a5d-ac96-774b-bcce-b302099a8057 map-3.1-7

An attempt that says nothing has no log. A log keeps the first 8 MiB (mr-worker --log-bytes-max); all
logs of a job go a week after its end (mr-coordinator --logs-kept-s).";

/// How much of a log is in memory at a time.
const PIECE_BYTES: usize = 64 << 10;

/// The arguments of `flotilla mr logs`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Logs {
    #[command(flatten)]
    of: Where,
    /// Only those of a task, such as map-3 or reduce-0, or of one attempt at it, such as map-3.1-7
    #[arg(value_name = "TASK[.ATTEMPT]")]
    which: Option<Which>,
}

/// A task, and perhaps one attempt at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Which {
    task: TaskId,
    attempt: Option<AttemptNumber>,
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unlike = || format!("{text:?} is not like map-3, reduce-0 or map-3.1-7");
        let (task, attempt) = match text.split_once('.') {
            Some((task, attempt)) => (task, Some(attempt)),
            None => (text, None),
        };
        // As it is shown, too, where a shell is told that it is one word.
        let (kind, number) = task.split_once(['-', ' ']).ok_or_else(unlike)?;
        let number = number.parse().map_err(|_| unlike())?;
        let task = match kind {
            "map" => TaskId::map(number),
            "reduce" => TaskId::reduce(number),
            _ => return Err(unlike()),
        };
        let attempt = attempt.map(|attempt| {
            let (epoch, sequence) = attempt.split_once(['-', '.'])?;
            Some(AttemptNumber { epoch: epoch.parse().ok()?, sequence: sequence.parse().ok()? })
        });
        match attempt {
            Some(None) => Err(unlike()),
            Some(attempt) => Ok(Self { task, attempt }),
            None => Ok(Self { task, attempt: None }),
        }
    }
}

impl Which {
    fn holds(self, attempt: &AttemptId) -> bool {
        self.task == attempt.task && self.attempt.is_none_or(|number| number == attempt.number)
    }
}

/// Prints the logs of a job, a task or an attempt.
///
/// # Errors
/// Not found, when there is no such job or task; failed, when the root is not the jobs'.
pub(super) async fn print(jobs: &JobClient, logs: &Logs, output: Output) -> Result<(), Failure> {
    let id: JobId = logs.of.job.parse().map_err(|error: NotAJobId| {
        Failure::new(Code::WrongCall, format!("{:?} names no job", logs.of.job)).because(error)
    })?;
    let root = open_root(logs)?;
    let found = logs::list(&root, id).map_err(|error| {
        Failure::new(Code::Failed, format!("the logs of {id} cannot be listed")).because(error)
    })?;
    let mut out = io::stdout().lock();
    let mut printed = 0_usize;
    for attempt in found.iter().filter(|found| logs.which.is_none_or(|which| which.holds(found))) {
        let Some(mut log) = Log::open(&root, attempt)? else { continue };
        if output.is_json() {
            log.put_json(&mut out)?;
        } else {
            if printed > 0 {
                out.write_all(b"\n").map_err(unwritable)?;
            }
            log.put_text(&mut out)?;
        }
        printed += 1;
    }
    out.flush().map_err(unwritable)?;
    drop(out);
    if printed == 0 {
        let job = jobs.get(&logs.of.job, 0).await.map_err(refused)?;
        let silent = silence(&job, logs.which)?;
        output.note(&format!("{silent} wrote nothing to standard error, or its logs are gone"));
    }
    Ok(())
}

fn open_root(logs: &Logs) -> Result<Root, Failure> {
    let path = whereabouts::root(logs.of.root.as_deref())?;
    let wrong = |why: &str| {
        let message = format!(
            "{} {why}; --root names the directory that coordinator and workers share",
            path.display()
        );
        Failure::new(Code::Failed, message)
    };
    let root = Root::open(&path).map_err(|error| wrong("is no directory").because(error))?;
    // A coordinator makes it when it starts.
    if root.join(WORK_ROOT).is_dir() { Ok(root) } else { Err(wrong("has nothing of any job")) }
}

/// Who has no logs.
///
/// # Errors
/// Not found, when the job has no such task.
fn silence(job: &Job, which: Option<Which>) -> Result<String, Failure> {
    let id = &job.id;
    let Some(Which { task, attempt }) = which else { return Ok(id.clone()) };
    let (tasks, kind) = match task.kind {
        TaskKind::Map => (job.maps, "maps"),
        TaskKind::Reduce => (job.reduces, "reduces"),
    };
    let total = tasks.unwrap_or_default().total;
    if task.number >= total {
        let message = format!("{id} has no {task}: it has {total} {kind}, counted from 0");
        return Err(Failure::new(Code::NotFound, message));
    }
    Ok(match attempt {
        None => format!("{task} of {id}"),
        Some(number) => format!("attempt {number} at {task} of {id}"),
    })
}

/// A log that is read.
struct Log<'a> {
    attempt: &'a AttemptId,
    /// Relative to the root.
    path: String,
    file: File,
    bytes: u64,
}

impl<'a> Log<'a> {
    /// None, when it was removed since it was listed.
    fn open(root: &Root, attempt: &'a AttemptId) -> Result<Option<Self>, Failure> {
        let path = logs::path(attempt);
        let file = match root.confine(&path, &root.join(&path)).map(File::open) {
            Ok(Ok(file)) => file,
            Ok(Err(source)) | Err(PathError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            Ok(Err(error)) => return Err(unreadable(&path, error)),
            Err(error) => return Err(unreadable(&path, error)),
        };
        let bytes = file.metadata().map_err(|error| unreadable(&path, error))?.len();
        Ok(Some(Self { attempt, path, file, bytes }))
    }

    /// A header and what was said, as it is, but for a line feed at its end.
    fn put_text(&mut self, out: &mut impl Write) -> Result<(), Failure> {
        let AttemptId { task, number, .. } = self.attempt;
        writeln!(out, "==> {task}, attempt {number} <==").map_err(unwritable)?;
        let mut last = b'\n';
        self.each_piece(|piece| {
            last = piece.last().copied().unwrap_or(last);
            out.write_all(piece)
        })?;
        if last == b'\n' { Ok(()) } else { out.write_all(b"\n").map_err(unwritable) }
    }

    /// An object on a line of its own. What is no text becomes replacement characters.
    fn put_json(&mut self, out: &mut impl Write) -> Result<(), Failure> {
        let AttemptId { job, task, number } = self.attempt;
        let head = json!({
            "job": job.to_string(),
            "task": task.to_string(),
            "attempt": number.to_string(),
            "bytes": self.bytes,
            "path": self.path,
        });
        let head = head.to_string();
        write!(out, "{},\"text\":\"", head.trim_end_matches('}')).map_err(unwritable)?;
        let mut left = Vec::new();
        self.each_piece(|piece| {
            left.extend_from_slice(piece);
            let whole = whole_characters(&left);
            put_escaped(&left[..whole], out)?;
            left.drain(..whole);
            Ok(())
        })?;
        put_escaped(&left, out).and_then(|()| out.write_all(b"\"}\n")).map_err(unwritable)
    }

    /// Goes through what it has now; more may come.
    fn each_piece(&mut self, mut put: impl FnMut(&[u8]) -> io::Result<()>) -> Result<(), Failure> {
        let mut pieces = (&mut self.file).take(self.bytes);
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = pieces.read(&mut buffer).map_err(|error| unreadable(&self.path, error))?;
            if read == 0 {
                return Ok(());
            }
            put(&buffer[..read]).map_err(unwritable)?;
        }
    }
}

fn unreadable(path: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::new(Code::Failed, format!("the log {path} cannot be read")).because(error)
}

/// How many bytes there are before a character that is cut off at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        Some(chunk)
            if std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none()) =>
        {
            bytes.len() - chunk.invalid().len()
        }
        Some(_) | None => bytes.len(),
    }
}

/// What stands between the quotes of a text in JSON.
fn put_escaped(bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
    let quoted = Value::from(String::from_utf8_lossy(bytes)).to_string();
    out.write_all(&quoted.as_bytes()[1..quoted.len() - 1])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proto::mapreduce::TaskProgress;

    use super::*;

    #[test]
    fn tasks_and_attempts_are_read_as_they_are_told() {
        let which = |text: &str| text.parse::<Which>();
        let map = Which { task: TaskId::map(3), attempt: None };
        assert_eq!(which("map-3"), Ok(map));
        assert_eq!(which("map 3"), Ok(map));
        let attempt = Some(AttemptNumber { epoch: 1, sequence: 7 });
        let reduce = Which { task: TaskId::reduce(5), attempt };
        assert_eq!(which("reduce-5.1-7"), Ok(reduce));
        assert_eq!(which("reduce-5.1.7"), Ok(reduce));
        for bad in
            ["", "map", "3", "map-", "map-x", "map--3", "job-1", "map-3.", "map-3.7", "map-3.1-"]
        {
            assert!(which(bad).unwrap_err().contains("map-3"), "{bad:?}");
        }
    }

    #[test]
    fn a_task_that_is_not_there_is_told_from_one_that_is_silent() {
        let maps = Some(TaskProgress { total: 4, ..TaskProgress::default() });
        let job = Job { id: "JOB".to_owned(), maps, ..Job::default() };
        let silent = |which: &str| silence(&job, Some(which.parse().unwrap()));
        assert_eq!(silence(&job, None).unwrap(), "JOB");
        assert_eq!(silent("map-3").unwrap(), "map 3 of JOB");
        assert_eq!(silent("map-3.1-7").unwrap(), "attempt 1-7 at map 3 of JOB");
        for absent in ["map-4", "reduce-0"] {
            assert_eq!(silent(absent).unwrap_err().code(), Code::NotFound, "{absent}");
        }
    }

    fn log_of(text: &[u8]) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        let number = AttemptNumber { epoch: 1, sequence: 7 };
        let attempt = AttemptId { job: JobId(1), task: TaskId::map(3), number };
        assert!(Log::open(&root, &attempt).unwrap().is_none());
        let path = root.join(&logs::path(&attempt));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        let mut outs = [Vec::new(), Vec::new()];
        Log::open(&root, &attempt).unwrap().unwrap().put_text(&mut outs[0]).unwrap();
        Log::open(&root, &attempt).unwrap().unwrap().put_json(&mut outs[1]).unwrap();
        let [text, json] = outs.map(|out| String::from_utf8_lossy(&out).into_owned());
        (text, json)
    }

    #[test]
    fn a_log_is_told_with_whose_it_is_to_people_and_to_programs() {
        let (text, json) = log_of(b"\"bad\"\tline\nand half");
        assert_eq!(text, "==> map 3, attempt 1-7 <==\n\"bad\"\tline\nand half\n");
        let value: Value = serde_json::from_str(&json).unwrap();
        let path = ".flotilla/logs/00000000-0000-0000-0000-000000000001/m-3-1-7.log";
        let expected = json!({
            "job": "00000000-0000-0000-0000-000000000001", "task": "map 3", "attempt": "1-7",
            "bytes": 19, "path": path, "text": "\"bad\"\tline\nand half",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn characters_are_whole_wherever_a_piece_ends() {
        // One byte, then pairs: every piece ends within a character.
        let long = format!("x{}", "é".repeat(PIECE_BYTES));
        let (_, json) = log_of(long.as_bytes());
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["text"], long);
        let (_, json) = log_of(b"a\xffb\xc3");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap()["text"], "a\u{fffd}b\u{fffd}");
    }
}
