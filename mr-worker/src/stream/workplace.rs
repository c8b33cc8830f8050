//! Where a program runs: a directory of its own with the job's side files, and an environment that
//! holds what the job says and nothing of the worker's.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{app::Context, failure::Failure, input::Piece, outcome::Pulse};

/// The directory in the attempt's.
const DIR: &str = "program";

/// A file that each program finds in its working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// Its name there.
    pub name: String,
    /// The SHA-256 of its bytes, which is its name among the blobs.
    pub sha256: [u8; 32],
    /// Whether it can be executed.
    pub executable: bool,
}

impl SideFile {
    fn blob(&self) -> String {
        self.sha256.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Map,
    Reduce,
}

/// A directory and an environment.
#[derive(Clone)]
pub(super) struct Workplace {
    pub(super) dir: PathBuf,
    environment: Vec<(String, String)>,
    pub(super) pulse: Pulse,
}

impl Workplace {
    /// Makes the directory and puts the side files there.
    pub(super) fn set_up(
        attempt_dir: &Path,
        files: &[SideFile],
        blobs: &Path,
        mut environment: Vec<(String, String)>,
        pulse: Pulse,
    ) -> Result<Self, Failure> {
        let dir = attempt_dir.join(DIR);
        let dir = std::path::absolute(&dir).map_err(|error| Failure::io(&dir, &error))?;
        let tmp = dir.join("tmp");
        fs::create_dir_all(&tmp).map_err(|error| Failure::io(&tmp, &error))?;
        for file in files {
            place(file, blobs, &dir)?;
        }
        let path = env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".to_owned());
        let dir_text = dir.to_string_lossy();
        // Hadoop finds side files without `./`, too.
        environment.push(("PATH".to_owned(), format!("{dir_text}:{path}")));
        environment.push(("HOME".to_owned(), dir_text.clone().into_owned()));
        environment.push(("TMPDIR".to_owned(), tmp.to_string_lossy().into_owned()));
        let language = env::var("LANG").unwrap_or_else(|_| "C.UTF-8".to_owned());
        environment.push(("LANG".to_owned(), language));
        Ok(Self { dir, environment, pulse })
    }

    /// The environment of a program; of a map's, with the piece that it begins with.
    pub(super) fn environment_of(&self, input: Option<&Piece>) -> Vec<(String, String)> {
        let mut environment = self.environment.clone();
        let start = input.map(|piece| piece.start.to_string()).unwrap_or_default();
        let file = input.map(|piece| piece.document.clone()).unwrap_or_default();
        for (name, value) in [
            ("FLOTILLA_INPUT_FILE", &file),
            ("FLOTILLA_INPUT_START", &start),
            ("mapreduce_map_input_file", &file),
            ("mapreduce_map_input_start", &start),
        ] {
            environment.push((name.to_owned(), value.clone()));
        }
        environment
    }

    /// Removes the directory when the attempt has succeeded. What stays goes with the job's.
    pub(super) fn leave(&self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} stays until the job ends: {error}", self.dir.display());
        }
    }
}

/// What a program finds in its environment beside where it runs. What comes later goes before what
/// comes first, so that no argument takes the place of anything else.
pub(super) fn environment(kind: Kind, context: &Context, attempt: &str) -> Vec<(String, String)> {
    let Context { job, task, partitions, .. } = context;
    let letter = match kind {
        Kind::Map => "m",
        Kind::Reduce => "r",
    };
    let mut environment: Vec<(String, String)> =
        context.args.iter().map(|(name, value)| (variable(name), value.to_owned())).collect();
    let task_name = format!("task_{job}_{letter}_{task:06}");
    let attempt_name = format!("attempt_{job}_{letter}_{task:06}_{attempt}");
    for (name, value) in [
        ("FLOTILLA_JOB_ID", job.clone()),
        ("FLOTILLA_TASK_ID", format!("{letter}-{task}")),
        ("FLOTILLA_ATTEMPT", attempt.to_owned()),
        ("FLOTILLA_PARTITION", task.to_string()),
        ("mapreduce_job_id", job.clone()),
        ("mapreduce_task_id", task_name),
        ("mapreduce_task_attempt_id", attempt_name),
        ("mapreduce_task_partition", task.to_string()),
        ("mapreduce_task_ismap", (kind == Kind::Map).to_string()),
        ("mapreduce_job_reduces", partitions.to_string()),
    ] {
        environment.push((name.to_owned(), value));
    }
    environment
}

/// An argument's name as Hadoop makes a variable of it: all but ASCII letters and digits become `_`.
fn variable(name: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    name.chars().map(plain).collect()
}

/// Copies a side file. A copy, since a program could change what a link leads to; its digest is
/// looked at on the way.
fn place(file: &SideFile, blobs: &Path, dir: &Path) -> Result<(), Failure> {
    if file.name.is_empty() || file.name.contains(['/', '\0']) || file.name.starts_with('.') {
        return Err(Failure::Internal(format!("a side file is named {:?}", file.name)));
    }
    let (from, to) = (blobs.join(file.blob()), dir.join(&file.name));
    let lost = |error: io::Error| {
        let message = format!("the side file cannot be read: {error}; submit the job again");
        Failure::Io { path: from.clone(), message }
    };
    let mut source = File::open(&from).map_err(lost)?;
    let mode = if file.executable { 0o555 } else { 0o444 };
    let failed = |error: io::Error| Failure::io(&to, &error);
    let mut target =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&to).map_err(failed)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = source.read(&mut buffer).map_err(lost)?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        target.write_all(&buffer[..read]).map_err(failed)?;
    }
    if digest.finalize()[..] != file.sha256 {
        return Err(lost(io::Error::other("its bytes are not those that were sent along")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Progress;

    #[test]
    fn arguments_become_variables_and_take_nothing_elses_place() {
        let given = [("mapreduce.job.id", "mine"), ("a.b-c", "1"), ("PATH", "/evil")];
        let args = given.into_iter().collect();
        let context = Context { job: "j".to_owned(), task: 3, args, ..Context::default() };
        let environment = environment(Kind::Map, &context, "1-2");
        let dir = tempfile::tempdir().unwrap();
        let pulse = Progress::new(|_, _| {}).pulse();
        let place = Workplace::set_up(dir.path(), &[], dir.path(), environment, pulse).unwrap();
        let found: std::collections::HashMap<_, _> =
            place.environment_of(None).into_iter().collect();
        assert_eq!(found["a_b_c"], "1");
        assert_eq!(found["mapreduce_job_id"], "j");
        assert_eq!(found["mapreduce_task_id"], "task_j_m_000003");
        assert_eq!(found["FLOTILLA_TASK_ID"], "m-3");
        assert!(found["PATH"].starts_with(&*place.dir.to_string_lossy()), "{}", found["PATH"]);
        assert!(!found.contains_key("CARGO"), "nothing of this process's environment");
    }
}
