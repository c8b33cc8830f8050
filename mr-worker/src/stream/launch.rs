//! The step between a slot and a program: this very program, started with a hidden subcommand,
//! takes on the limits and becomes the program.
//!
//! So limits hold from the program's first instruction, and the kernel kills it when its slot dies,
//! which no later call from outside could promise.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{Access, access},
    process::{Resource, Rlimit, Signal, getppid, getrlimit, setrlimit},
};

use crate::failure::{Failure, ProgramEnd};

/// Open files without a wish of the job's.
const OPEN_FILES_DEFAULT: u64 = 1_024;

/// How much of a program's standard error is logged without a wish of the job's.
const STDERR_BYTES_DEFAULT: u64 = 8 << 20;

/// What programs say when memory runs out, since the kernel only refuses it to them.
const MEMORY_WORDS: [&str; 6] = [
    "MemoryError",
    "annot allocate memory",
    "ut of memory",
    "emory allocation",
    "memory exhausted",
    "bad_alloc",
];

/// How this program is started to become another.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// What makes it a launcher.
    pub arguments: Vec<OsString>,
}

impl Launcher {
    /// This program; `prefix` is what must stand before a worker's subcommands.
    #[must_use]
    pub fn of_this_program(prefix: &[&str]) -> Self {
        let arguments = prefix.iter().chain(&["launch"]).map(OsString::from).collect();
        Self { program: this_program(), arguments }
    }
}

/// This program's file. It may have been replaced since; what runs is then still found through /proc.
pub(crate) fn this_program() -> PathBuf {
    let found = env::current_exe().ok().filter(|path| path.is_file());
    found.unwrap_or_else(|| Path::new("/proc/self/exe").to_owned())
}

/// What a program may use; 0: any, or what is usual.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Limits {
    /// Its address space, in bytes.
    #[arg(long, default_value_t = 0)]
    pub memory_bytes: u64,
    /// Its processor time, in seconds.
    #[arg(long, default_value_t = 0)]
    pub cpu_seconds: u64,
    /// Its open files.
    #[arg(long, default_value_t = 0)]
    pub open_files: u64,
    /// The largest file that it may write, in bytes.
    #[arg(long, default_value_t = 0)]
    pub file_bytes: u64,
    /// How much of its standard error is logged, in bytes.
    #[arg(skip)]
    pub stderr_bytes: u64,
}

impl Limits {
    /// The flags of the launcher.
    pub(super) fn flags(&self) -> Vec<String> {
        vec![
            format!("--parent={}", std::process::id()),
            format!("--memory-bytes={}", self.memory_bytes),
            format!("--cpu-seconds={}", self.cpu_seconds),
            format!("--open-files={}", self.open_files),
            format!("--file-bytes={}", self.file_bytes),
        ]
    }

    pub(super) fn stderr_bytes(&self) -> u64 {
        if self.stderr_bytes == 0 { STDERR_BYTES_DEFAULT } else { self.stderr_bytes }
    }

    fn open_files(&self) -> u64 {
        if self.open_files == 0 { OPEN_FILES_DEFAULT } else { self.open_files }
    }

    /// The limit that a program which failed has met, as far as its signal and its last words tell.
    pub(super) fn exceeded(&self, signal: Option<i32>, words: &[u8]) -> Option<String> {
        let says = |word: &str| memchr::memmem::find(words, word.as_bytes()).is_some();
        let Self { memory_bytes, cpu_seconds, file_bytes, .. } = self;
        let is = |expected: Signal| signal == Some(expected.as_raw());
        if *cpu_seconds > 0 && is(Signal::XCPU) {
            return Some(format!("its limit cpu_seconds of {cpu_seconds} s (--exec-cpu)"));
        }
        if *file_bytes > 0 && (is(Signal::XFSZ) || says("File too large")) {
            return Some(format!("its limit file_bytes of {file_bytes} bytes (--exec-file-size)"));
        }
        if says("Too many open files") {
            let most = self.open_files();
            return Some(format!("its limit open_files of {most} (--exec-open-files)"));
        }
        if *memory_bytes > 0 && MEMORY_WORDS.into_iter().any(says) {
            return Some(format!("its limit memory_bytes of {memory_bytes} bytes (--exec-memory)"));
        }
        None
    }

    /// Takes them on, as far as what this process may have at most goes.
    fn take_on(&self) -> io::Result<()> {
        let wanted = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
        // A second between the signal that names the limit and the one that ends all.
        let cpu = wanted(self.cpu_seconds).map(|soft| (soft, soft.saturating_add(1)));
        let same = |limit: Option<u64>| limit.map(|limit| (limit, limit));
        for (resource, limit) in [
            (Resource::Cpu, cpu),
            (Resource::Nofile, same(Some(self.open_files()))),
            (Resource::Fsize, same(wanted(self.file_bytes))),
            (Resource::Core, Some((0, 0))),
            (Resource::As, same(wanted(self.memory_bytes))),
        ] {
            let Some((soft, hard)) = limit else { continue };
            let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let (soft, hard) = (Some(soft.min(most)), Some(hard.min(most)));
            setrlimit(resource, Rlimit { current: soft, maximum: hard })?;
        }
        Ok(())
    }
}

/// The arguments of the launcher.
#[derive(clap::Args, Debug)]
pub(crate) struct LaunchArguments {
    /// Who started it.
    #[arg(long)]
    parent: i32,
    #[command(flatten)]
    limits: Limits,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    argv: Vec<OsString>,
}

/// Becomes the program.
pub(crate) fn launch(arguments: &LaunchArguments) -> daemon::Failure {
    let Some((program, rest)) = arguments.argv.split_first() else {
        return daemon::Failure::machine("there is no program to launch");
    };
    let mut command = Command::new(program);
    command.args(rest);
    let refuse = |error: io::Error| {
        let program = program.to_string_lossy();
        daemon::Failure::machine(format!("`{program}` cannot be executed")).because(error)
    };
    let prepared = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .and_then(|()| rustix::thread::set_no_new_privs(true));
    if let Err(error) = prepared {
        return refuse(error.into());
    }
    // Who started it may have died before the kernel was told to tell.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != arguments.parent) {
        return daemon::Failure::machine("the slot is gone");
    }
    match arguments.limits.take_on() {
        Ok(()) => refuse(command.exec()),
        Err(error) => refuse(error),
    }
}

/// Says what is wrong with a program that cannot run, before anything is started for it.
pub(super) fn check(
    argv: &[String],
    dir: &Path,
    environment: &[(String, String)],
) -> Result<(), Failure> {
    let unfit = |message: String| Failure::Program {
        message,
        place: None,
        end: ProgramEnd::Unfit,
        stderr: String::new(),
    };
    let name = argv.first().ok_or_else(|| unfit("a program has no name".to_owned()))?;
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or("", |(_, path)| path.as_str());
    let found = match name.contains('/') {
        true => Some(dir.join(name)).filter(|found| found.is_file()),
        false => {
            let places = env::split_paths(path).map(|place| place.join(name));
            places.into_iter().find(|found| found.is_file())
        }
    };
    let Some(found) = found else {
        return Err(unfit(format!(
            "`{name}`: command not found. A file of yours goes along with --file {name} and is then \
             ./{}; a program of the worker's must be in {path}",
            name.trim_start_matches("./")
        )));
    };
    if access(&found, Access::EXEC_OK).is_err() {
        return Err(unfit(format!(
            "`{name}`: not executable. Make it so (chmod +x) before it is sent along, or name what \
             runs it: --mapper 'python3 {name}'"
        )));
    }
    beginning(&found, name).map_or(Ok(()), |problem| Err(unfit(problem)))
}

/// What is wrong with a program's first bytes.
fn beginning(found: &Path, name: &str) -> Option<String> {
    let mut first = [0; 256];
    let read = File::open(found).and_then(|mut file| file.read(&mut first));
    // One that may be executed and not read is the kernel's to judge.
    let first = &first[..read.ok()?];
    if first.starts_with(b"\x7fELF") {
        return None;
    }
    let Some(line) = first.strip_prefix(b"#!") else {
        return Some(format!(
            "`{name}`: missing #! line, so that the kernel cannot run it. Begin it with a line such \
             as #!/usr/bin/env python3, or name what runs it: --mapper 'python3 {name}'"
        ));
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    if line.ends_with('\r') {
        return Some(format!(
            "`{name}`: its #! line ends with a carriage return, which the kernel takes for a part \
             of the name. Save it with Unix line ends"
        ));
    }
    let interpreter = line.split_whitespace().next().unwrap_or_default();
    if !Path::new(interpreter).is_absolute() || Path::new(interpreter).is_file() {
        return None;
    }
    Some(format!("`{name}`: its #! line names {interpreter}, which this worker does not have"))
}
