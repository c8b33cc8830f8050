//! Programs of any language as mapper, combiner and reducer: their flags, the files that go along,
//! and `flotilla mr test`, which runs them on a sample.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use client::JobClient;
use daemon::{Code, Failure};
use mr_coordinator::blobs::{Blob, BlobError, Upload};
use mr_coordinator::limits::BLOB_BYTES_DEFAULT;
use mr_coordinator::root::Root;
use proto::mapreduce::{self as wire, JobSpec, SideFile};

use super::local;
use super::told;
use crate::output::{Output, refused, unwritable};
use crate::units;

/// How much of a file is read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What makes a job of programs.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Programs {
    /// A program that reads records on standard input, a line each, and writes pairs, key TAB value;
    /// absent: the lines are the pairs
    #[arg(long, value_name = "COMMAND")]
    mapper: Option<String>,
    /// A program that reads a map's pairs, sorted by key, and writes fewer
    #[arg(long, value_name = "COMMAND")]
    combiner: Option<String>,
    /// A program that reads pairs, sorted by key, and writes results; absent: the pairs are the
    /// results
    #[arg(long, value_name = "COMMAND")]
    reducer: Option<String>,
    /// Hand each command to a shell (sh -c) instead of running it as it is
    #[arg(long)]
    shell: bool,
    /// A file that goes along: programs find it in their working directory. Say it again for more
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// How records and pairs are told apart
    #[arg(long, value_name = "HOW", default_value = "lines")]
    framing: Framing,
    /// The address space of each process of a program [default: any]
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "0",
          hide_default_value = true)]
    exec_memory: u64,
    /// The processor time of each process of a program, in whole seconds [default: any]
    #[arg(long, value_name = "SECONDS", default_value_t = 0, hide_default_value = true)]
    exec_cpu: u64,
    /// The open files of each process of a program [default: 1,024]
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    exec_open_files: u64,
    /// The largest file that a program may write [default: any]
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "0",
          hide_default_value = true)]
    exec_file_size: u64,
    /// How much of a program's standard error is logged [default: 8MiB]
    #[arg(long, value_name = "BYTES", value_parser = units::size, default_value = "0",
          hide_default_value = true)]
    exec_stderr: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Framing {
    /// By line feeds, key and value by the first TAB
    Lines,
    /// By lengths before key and value, as u32, little-endian
    Lengths,
}

/// The arguments of `flotilla mr test`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Test {
    #[command(flatten)]
    programs: Programs,
    /// What programs find in their environment; say it again for more
    #[arg(short = 'D', value_name = "NAME=VALUE")]
    define: Vec<String>,
    /// How many reduce tasks; 0: what the mapper writes is the result
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    reduces: u32,
}

impl Programs {
    /// What the job's spec says of them; none if the job has an app.
    ///
    /// # Errors
    /// A wrong call, naming the flag.
    pub(super) fn streaming(&self) -> Result<Option<wire::Streaming>, Failure> {
        if self.mapper.is_none() && self.reducer.is_none() {
            if self.shell || self.combiner.is_some() || !self.files.is_empty() {
                let message = "--combiner, --shell and --file go with a --mapper or a --reducer";
                return Err(Failure::new(Code::WrongCall, message));
            }
            return Ok(None);
        }
        let framing = match self.framing {
            Framing::Lines => wire::Framing::Lines,
            Framing::Lengths => wire::Framing::Lengths,
        };
        let limits = wire::ProgramLimits {
            memory_bytes: self.exec_memory,
            cpu_seconds: self.exec_cpu,
            open_files: self.exec_open_files,
            file_bytes: self.exec_file_size,
            stderr_bytes: self.exec_stderr,
        };
        Ok(Some(wire::Streaming {
            mapper: self.command("mapper", self.mapper.as_deref())?,
            combiner: self.command("combiner", self.combiner.as_deref())?,
            reducer: self.command("reducer", self.reducer.as_deref())?,
            framing: framing.into(),
            limits: Some(limits),
        }))
    }

    /// A command as words, quotes taken as a shell takes them; or as one word for a shell.
    fn command(&self, flag: &str, text: Option<&str>) -> Result<Option<wire::Command>, Failure> {
        let Some(text) = text else { return Ok(None) };
        let wrong =
            |problem: &str| Failure::new(Code::WrongCall, format!("--{flag} {text:?}: {problem}"));
        if self.shell {
            let argv = ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
            return Ok(Some(wire::Command { argv }));
        }
        let argv = shlex::split(text).ok_or_else(|| wrong("a quote is not closed"))?;
        if argv.is_empty() {
            return Err(wrong("it names no program"));
        }
        if argv.iter().any(|word| ["|", "<", ">", ">>", "&&", "||", ";", "&"].contains(&&**word)) {
            return Err(wrong("no shell reads it, unless you say --shell"));
        }
        Ok(Some(wire::Command { argv }))
    }

    /// Sends the files to the coordinator, and names them.
    pub(super) async fn send(&self, jobs: &JobClient) -> Result<Vec<SideFile>, Failure> {
        let mut sent = Vec::with_capacity(self.files.len());
        for path in &self.files {
            let unreadable = |error| unreadable(path, error);
            let content = tokio::fs::read(path).await.map_err(unreadable)?;
            let blob = jobs.put_blob(content.into()).await.map_err(refused)?;
            sent.push(named(path, blob.sha256.to_vec(), blob.bytes)?);
        }
        Ok(sent)
    }

    /// Puts the files below a directory where a job in this process finds them, and names them.
    pub(super) fn keep(&self, dir: &Path) -> Result<Vec<SideFile>, Failure> {
        let root = &Root::open(dir).map_err(unkept)?;
        let mut kept = Vec::with_capacity(self.files.len());
        for path in &self.files {
            let failed = |error: BlobError| {
                Failure::new(Code::Failed, format!("{} cannot go along", path.display()))
                    .because(error)
            };
            let mut file = File::open(path).map_err(|error| unreadable(path, error))?;
            let mut upload = Upload::begin(root, BLOB_BYTES_DEFAULT).map_err(failed)?;
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                let read = file.read(&mut piece).map_err(|error| unreadable(path, error))?;
                if read == 0 {
                    break;
                }
                upload.push(&piece[..read]).map_err(failed)?;
            }
            let Blob { sha256, bytes } = upload.finish().map_err(failed)?;
            kept.push(named(path, sha256.to_vec(), bytes)?);
        }
        Ok(kept)
    }
}

pub(super) fn unkept(error: io::Error) -> Failure {
    Failure::new(Code::Failed, "the temporary directory cannot be used").because(error)
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        _ => Code::Failed,
    };
    Failure::new(code, format!("--file {}", path.display())).because(error)
}

fn named(path: &Path, sha256: Vec<u8>, bytes: u64) -> Result<SideFile, Failure> {
    let mode = fs::metadata(path).map_err(|error| unreadable(path, error))?.permissions().mode();
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        let message = format!("--file {}: its name must be UTF-8", path.display());
        Failure::new(Code::WrongCall, message)
    })?;
    let (name, executable) = (name.to_owned(), mode & 0o111 != 0);
    Ok(SideFile { name, sha256: sha256.into(), bytes, executable })
}

/// Runs the programs on what standard input holds: results go to standard output, counters and what
/// the programs say to standard error.
pub(super) fn test(test: &Test, output: Output) -> Result<(), Failure> {
    let wrong = || {
        let message = "there is nothing to test: name a --mapper or a --reducer";
        Failure::new(Code::WrongCall, message)
    };
    let streaming = test.programs.streaming()?.ok_or_else(wrong)?;
    let failed = unkept;
    let dir = tempfile::tempdir().map_err(failed)?;
    let mut sample = File::create(dir.path().join("sample")).map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut sample).map_err(failed)?;
    let spec = JobSpec {
        inputs: vec!["sample".to_owned()],
        output: "results".to_owned(),
        reduces: test.reduces,
        streaming: Some(streaming),
        files: test.programs.keep(dir.path())?,
        args: super::submit::definitions(&test.define)?,
        ..JobSpec::default()
    };
    let here = local::Here::below(dir.path());
    let job = local::job(spec, &here, dir.path())?;
    if let Some(failure) = &job.failure {
        return Err(Failure::new(Code::Failed, told::explain(failure)));
    }
    if output.is_json() {
        return output.result("", &told::job(&job));
    }
    let mut out = io::stdout().lock();
    for part in &job.outputs {
        let mut part = File::open(dir.path().join(part)).map_err(failed)?;
        io::copy(&mut part, &mut out).map_err(unwritable)?;
    }
    out.flush().map_err(unwritable)?;
    let mut counters: Vec<_> = job.counters.iter().collect();
    counters.sort();
    for (name, count) in counters {
        eprintln!("{name:<24}{count:>16}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        test: Test,
    }

    fn argv(line: &[&str]) -> Result<Vec<String>, Failure> {
        let line = Line::parse_from(["test"].iter().chain(line)).test.programs;
        Ok(line.streaming()?.unwrap().mapper.unwrap().argv)
    }

    #[test]
    fn commands_become_words_and_no_shell_reads_them() {
        assert_eq!(
            argv(&["--mapper", "./m.py -x 'a b' \"$c\""]).unwrap(),
            ["./m.py", "-x", "a b", "$c"]
        );
        assert_eq!(argv(&["--mapper", "a | b", "--shell"]).unwrap(), ["/bin/sh", "-c", "a | b"]);
        for (bad, word) in [("a 'b", "quote"), ("", "no program"), ("a | b", "--shell")] {
            let refused = argv(&["--mapper", bad]).unwrap_err();
            assert_eq!(refused.code(), Code::WrongCall);
            assert!(refused.to_string().contains(word), "{refused}");
        }
    }
}
