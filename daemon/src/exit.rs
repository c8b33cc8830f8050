//! How a process ends: its exit codes, and the error that leads to each of them.
//!
//! A supervisor reads the code, a person reads the message, so a failure always carries both.
//! Which code fits is decided where the failure happens, because only there is it known whether
//! a restart may help.

use std::error::Error;
use std::process::{ExitCode, Termination};

/// The exit codes of all Flotilla binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Done; for a daemon, stopped by SIGTERM or SIGINT after a graceful shutdown.
    Done = 0,
    /// Command line: the request failed, and it is known that it did.
    Failed = 1,
    /// Command line: it was called in a wrong way.
    WrongCall = 2,
    /// Command line: nobody answered.
    Unreachable = 3,
    /// Command line: the work was cancelled.
    Cancelled = 4,
    /// Command line: what should be made exists already.
    Exists = 5,
    /// Command line: what was asked for does not exist.
    NotFound = 6,
    /// Command line: the request may have been executed.
    Unknown = 7,
    /// Command line: what was waited for did not come about in time.
    TimedOut = 8,
    /// Daemon: it was called in a wrong way.
    Usage = 64,
    /// Daemon: a panic, which is a defect of ours.
    Panic = 70,
    /// Daemon: the machine refused (failed write, no space, busy port). A restart may help.
    Machine = 71,
    /// Daemon: data is damaged or lost. A restart never helps.
    Damaged = 74,
    /// Daemon: the configuration or the identity on disk is wrong. A restart never helps.
    Configuration = 78,
    /// Ended at once by SIGINT.
    Interrupted = 130,
    /// Ended at once by SIGTERM.
    Terminated = 143,
}

impl Termination for Code {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Why a process ends other than well.
///
/// The message says what happened and, where that helps, what to do; the cause is in the source
/// and never repeated in the text.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: Code,
    message: String,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure that ends the process with `code`.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), source: None }
    }

    /// A daemon was called in a wrong way.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    /// The machine refused: a failed write or sync, no space, a busy port, an unwritable
    /// directory. A restart may help.
    pub fn machine(message: impl Into<String>) -> Self {
        Self::new(Code::Machine, message)
    }

    /// Data is damaged or lost: a restart never helps.
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new(Code::Damaged, message)
    }

    /// The configuration, or the identity on disk, is wrong.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(Code::Configuration, message)
    }

    /// The same failure with what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The exit code that this failure ends the process with.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The message and all its causes on one line, outermost first.
    pub fn chain(&self) -> String {
        let mut line = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }

    /// Tells the person at the terminal: the whole chain, on stderr, after the program's name.
    pub fn print(&self, program: &str) {
        eprintln!("{program}: {}", self.chain());
    }

    /// Tells whoever reads the log, or stderr as long as (or if) nothing is logged.
    pub(crate) fn tell(&self, program: &str) {
        if tracing::enabled!(tracing::Level::ERROR) {
            let exit_code = self.code as u8;
            tracing::error!(daemon = program, exit_code, error = self.chain(), "daemon failed");
        } else {
            self.print(program);
        }
    }
}
