//! A program that runs: its pipes, its group, its end.
//!
//! One loop feeds standard input and empties standard output and standard error as each is ready,
//! so that a program may read all before it writes, write before it reads, or do either never,
//! without a thread or an unbounded queue. What is left of its process group is killed when it has
//! ended, in whatever way, and when the attempt is given up.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{self, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    pipe::fcntl_setpipe_size,
    process::{Pid, Signal, kill_process_group},
};

use super::{
    framing::{Cutter, Framing, Sink, put},
    launch::{self, Launcher, Limits},
    words::{Word, Words},
};
use crate::{
    failure::{Failure, ProgramEnd},
    outcome::Pulse,
};

/// How much a pipe is asked to hold, so that program and task change places less often.
const PIPE_BYTES: usize = 1 << 20;

/// How many bytes of single pairs are gathered before they are written.
const GATHER_BYTES: usize = 256 << 10;

/// How much of standard error is read at a time.
const WORDS_BYTES: usize = 16 << 10;

/// How long to wait for a sign of the program before its end is looked for.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A program that has ended may have left a process that still writes for it, such as `tee`: it is
/// waited for until it is quiet for so long, and no longer than this in all.
const LINGER_QUIET: Duration = Duration::from_secs(5);
const LINGER_MAX: Duration = Duration::from_secs(60);

/// What to run, and how.
pub(super) struct Order<'a> {
    pub(super) launcher: &'a Launcher,
    pub(super) argv: &'a [String],
    /// The working directory.
    pub(super) dir: &'a Path,
    pub(super) environment: Vec<(String, String)>,
    pub(super) limits: Limits,
    pub(super) framing: Framing,
    pub(super) line_bytes_max: usize,
    pub(super) pulse: Pulse,
}

/// A program that runs.
pub(super) struct Child {
    process: process::Child,
    /// The program, for people.
    named: String,
    limits: Limits,
    framing: Framing,
    pulse: Pulse,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    cutter: Cutter,
    words: Words,
    /// What is still to be written to it.
    gathered: Vec<u8>,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts a program.
    pub(super) fn start(order: &Order<'_>) -> Result<Self, Failure> {
        launch::check(order.argv, order.dir, &order.environment)?;
        let mut command = Command::new(&order.launcher.program);
        command
            .args(&order.launcher.arguments)
            .args(order.limits.flags())
            .arg("--")
            .args(order.argv)
            .current_dir(order.dir)
            .env_clear()
            .envs(order.environment.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let named = order.argv.join(" ");
        let failed =
            |error: io::Error| Failure::Internal(format!("`{named}` cannot start: {error}"));
        let mut process = command.spawn().map_err(failed)?;
        let (stdin, stdout, stderr) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let child = Self {
            process,
            named: named.clone(),
            limits: order.limits,
            framing: order.framing,
            pulse: order.pulse.clone(),
            stdin,
            stdout,
            stderr,
            cutter: Cutter::new(order.framing, order.line_bytes_max),
            words: Words::new(order.limits.stderr_bytes()),
            gathered: Vec::with_capacity(GATHER_BYTES + (64 << 10)),
            ended: None,
        };
        let pipes = [
            child.stdin.as_ref().map(AsFd::as_fd),
            child.stdout.as_ref().map(AsFd::as_fd),
            child.stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            prepare(pipe).map_err(|error| failed(error.into()))?;
        }
        Ok(child)
    }

    /// Hands it whole lines, as they are.
    pub(super) fn lines(&mut self, bytes: &[u8], sink: &mut dyn Sink) -> Result<(), Failure> {
        self.flush(sink)?;
        self.feed(bytes, sink)?;
        if bytes.last().is_some_and(|last| *last != b'\n') {
            self.feed(b"\n", sink)?;
        }
        Ok(())
    }

    /// Hands it a record without a key.
    pub(super) fn value(&mut self, value: &[u8], sink: &mut dyn Sink) -> Result<(), Failure> {
        match self.framing {
            Framing::Lines => {
                self.gathered.extend_from_slice(value);
                self.gathered.push(b'\n');
            }
            Framing::Lengths => put(&mut self.gathered, self.framing, b"", value),
        }
        self.put(sink)
    }

    /// Hands it a pair.
    pub(super) fn pair(
        &mut self,
        key: &[u8],
        value: &[u8],
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        put(&mut self.gathered, self.framing, key, value);
        self.put(sink)
    }

    fn put(&mut self, sink: &mut dyn Sink) -> Result<(), Failure> {
        if self.gathered.len() >= GATHER_BYTES { self.flush(sink) } else { Ok(()) }
    }

    fn flush(&mut self, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut gathered = std::mem::take(&mut self.gathered);
        let fed = self.feed(&gathered, sink);
        gathered.clear();
        self.gathered = gathered;
        fed
    }

    /// Writes all of the bytes, unless it reads no more, which is its right.
    fn feed(&mut self, mut bytes: &[u8], sink: &mut dyn Sink) -> Result<(), Failure> {
        while !bytes.is_empty() {
            if self.stdin.is_none() {
                // Nothing that follows would change what a program that failed has done.
                return match self.look()? {
                    Some(status) if !status.success() => self.conclude(sink),
                    Some(_) | None => Ok(()),
                };
            }
            self.turn(&mut bytes, sink)?;
        }
        Ok(())
    }

    /// Lets it come to its end, and takes what it still writes.
    pub(super) fn finish(mut self, sink: &mut dyn Sink) -> Result<(), Failure> {
        self.flush(sink)?;
        self.stdin = None;
        self.conclude(sink)
    }

    fn conclude(&mut self, sink: &mut dyn Sink) -> Result<(), Failure> {
        self.stdin = None;
        self.linger(sink)?;
        let status = match self.ended {
            Some(status) => status,
            None => self.process.wait().map_err(|error| self.lost(&error))?,
        };
        self.ended = Some(status);
        self.kill();
        // What is left of its words; whoever may still hold that pipe is not waited for.
        for _ in 0..PIPE_BYTES / WORDS_BYTES {
            if !self.read_words(sink)? {
                break;
            }
        }
        self.words.end(&mut |word| heard(word, sink))?;
        if !status.success() {
            return Err(self.failure(status));
        }
        self.cutter.end(sink).map_err(|failure| self.said(failure))
    }

    /// Takes what it writes until it and whoever writes for it have ended.
    fn linger(&mut self, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut ended = None;
        let mut active = Instant::now();
        while self.stdout.is_some() || (self.stderr.is_some() && self.look()?.is_none()) {
            let happened = self.turn(&mut &b""[..], sink)?;
            if self.look()?.is_none() {
                continue;
            }
            let now = Instant::now();
            let ended = *ended.get_or_insert(now);
            if happened || now == ended {
                active = now;
            }
            if now - active >= LINGER_QUIET {
                break;
            }
            if now - ended >= LINGER_MAX {
                let message = "it ended and left a process that still writes for it";
                return Err(self.said(Failure::user(message)));
            }
        }
        Ok(())
    }

    /// Waits until something can be done, and does it; whether there was something. `bytes` is what
    /// may be written.
    fn turn(&mut self, bytes: &mut &[u8], sink: &mut dyn Sink) -> Result<bool, Failure> {
        let nothing = PollFlags::empty();
        let [mut writable, mut readable, mut speaking] = [nothing; 3];
        let mut polled = Vec::with_capacity(3);
        let mut place = Vec::with_capacity(3);
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !bytes.is_empty()) {
            polled.push(PollFd::new(stdin, PollFlags::OUT));
            place.push(&mut writable);
        }
        if let Some(stdout) = &self.stdout {
            polled.push(PollFd::new(stdout, PollFlags::IN));
            place.push(&mut readable);
        }
        if let Some(stderr) = &self.stderr {
            polled.push(PollFd::new(stderr, PollFlags::IN));
            place.push(&mut speaking);
        }
        match poll(&mut polled, Some(&LOOK)) {
            Ok(0) => {
                // It may have ended, and a child of its own may keep the pipe.
                if self.look()?.is_some() {
                    self.stdin = None;
                }
                return Ok(false);
            }
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(false),
            Err(error) => return Err(self.lost(&error.into())),
        }
        for (place, polled) in place.into_iter().zip(&polled) {
            *place = polled.revents();
        }
        if !writable.is_empty() {
            self.write(bytes)?;
        }
        if !readable.is_empty() {
            self.read_output(sink)?;
        }
        if !speaking.is_empty() {
            self.read_words(sink)?;
        }
        Ok(true)
    }

    fn write(&mut self, bytes: &mut &[u8]) -> Result<(), Failure> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        match stdin.write(bytes) {
            Ok(written) => *bytes = &bytes[written..],
            Err(error) if is_for_now(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.stdin = None,
            Err(error) => return Err(self.lost(&error)),
        }
        Ok(())
    }

    /// Reads standard output once; whether there was something.
    fn read_output(&mut self, sink: &mut dyn Sink) -> Result<bool, Failure> {
        let Some(stdout) = &mut self.stdout else { return Ok(false) };
        match self.cutter.read(stdout) {
            Ok(0) => self.stdout = None,
            Ok(_) => {
                self.pulse.beat();
                self.cutter.cut(sink).map_err(|failure| self.said(failure))?;
                return Ok(true);
            }
            Err(error) if is_for_now(&error) => {}
            Err(error) => return Err(self.lost(&error)),
        }
        Ok(false)
    }

    /// Reads standard error once; whether there was something.
    fn read_words(&mut self, sink: &mut dyn Sink) -> Result<bool, Failure> {
        let Some(stderr) = &mut self.stderr else { return Ok(false) };
        let mut buffer = [0; WORDS_BYTES];
        match stderr.read(&mut buffer) {
            Ok(0) => self.stderr = None,
            Ok(read) => {
                let pulse = &self.pulse;
                self.words.take(&buffer[..read], &mut |word| {
                    pulse.beat();
                    heard(word, sink)
                })?;
                return Ok(true);
            }
            Err(error) if is_for_now(&error) => {}
            Err(error) => return Err(self.lost(&error)),
        }
        Ok(false)
    }

    /// How it ended, if it has.
    fn look(&mut self) -> Result<Option<ExitStatus>, Failure> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().map_err(|error| self.lost(&error))?;
        }
        Ok(self.ended)
    }

    /// Kills what is left of its group. The number of a group is nobody else's while the group has
    /// a member.
    fn kill(&self) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        match pid.map(|pid| kill_process_group(pid, Signal::KILL)) {
            Some(Ok(()) | Err(Errno::SRCH)) | None => {}
            Some(Err(error)) => {
                eprintln!("the group of `{}` cannot be killed: {error}", self.named);
            }
        }
    }

    fn lost(&self, error: &io::Error) -> Failure {
        Failure::Internal(format!("the pipes of `{}`: {error}", self.named))
    }

    /// What it wrote is at fault.
    fn said(&self, failure: Failure) -> Failure {
        match failure {
            Failure::User { message, place, permanent } => Failure::Program {
                message: format!("`{}`: {message}", self.named),
                place,
                end: if permanent { ProgramEnd::Unfit } else { ProgramEnd::Failed },
                stderr: self.words.last(),
            },
            other => other,
        }
    }

    fn failure(&mut self, status: ExitStatus) -> Failure {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => format!("ended: {status}"),
        };
        // A shell tells the signal that ended its last command as a code.
        let of_command = status.code().filter(|code| *code > 128).map(|code| code - 128);
        let signal = status.signal().or(of_command);
        let exceeded = self.limits.exceeded(signal, self.words.tail());
        let (end, why) = match exceeded {
            Some(limit) => (ProgramEnd::Exhausted, format!(": it met {limit}")),
            None => (ProgramEnd::Failed, String::new()),
        };
        let message = format!("`{}` {how}{why}", self.named);
        Failure::Program { message, place: None, end, stderr: self.words.last() }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // It is dead or dying, and shall not stay a zombie for as long as its slot lives.
        if self.ended.is_none()
            && let Err(error) = self.process.wait()
        {
            eprintln!("`{}` was not seen to end: {error}", self.named);
        }
    }
}

fn heard(word: Word<'_>, sink: &mut dyn Sink) -> Result<(), Failure> {
    match word {
        Word::Count { counter, count } => sink.count(counter, count),
        Word::Status => Ok(()),
    }
}

/// Our end of a pipe never blocks, and the pipe holds more, if the system lets it.
fn prepare(pipe: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = fcntl_getfl(pipe)?;
    fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?;
    // A user has only so much memory for pipes; a smaller one does as well.
    let _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
    Ok(())
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
