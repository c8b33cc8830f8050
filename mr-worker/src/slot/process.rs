//! The worker's side of a slot.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prost::Message;
use proto::mapreduce::{
    Assignment, AttemptProgress, FailureReason, Success, UserExit, failure_reason,
};
use rustix::process::Pid;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Kind, PROTOCOL, family, frame, frame_length,
    log::{Log, Logs},
    stderr::Stderr,
};
use crate::task::internal;

/// How long a slot may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait for a killed slot to be gone, and for what an attempt said to be in its log.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// How to start a slot.
#[derive(Debug, Clone)]
pub struct SlotCommand {
    /// The program.
    pub program: PathBuf,
    /// What makes it a slot.
    pub arguments: Vec<OsString>,
}

/// A slot, with or without its process.
#[derive(Debug)]
pub(crate) struct Slot {
    command: Arc<SlotCommand>,
    logs: Arc<Logs>,
    running: Option<Box<Running>>,
}

/// How far an attempt has come.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    records: AtomicU64,
    bytes: AtomicU64,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It wrote its result.
    Success(Success),
    /// It did not.
    Failure(FailureReason),
    /// It was stopped on order.
    Aborted,
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    stderr: Stderr,
}

impl Counts {
    /// Records and bytes.
    pub(crate) fn get(&self) -> (u64, u64) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    fn set(&self, progress: &AttemptProgress) {
        self.records.store(progress.records, Ordering::Relaxed);
        self.bytes.store(progress.bytes, Ordering::Relaxed);
    }
}

impl Slot {
    /// A slot whose process starts with its first task.
    pub(crate) fn new(command: Arc<SlotCommand>, logs: Arc<Logs>) -> Self {
        Self { command, logs, running: None }
    }

    /// Runs an attempt to its end, or until `abort`, which kills the process.
    pub(crate) async fn run(
        &mut self,
        assignment: &Assignment,
        counts: &Counts,
        abort: &CancellationToken,
    ) -> End {
        let end = tokio::select! {
            biased;
            () = abort.cancelled() => End::Aborted,
            end = self.attempt(assignment, counts) => end,
        };
        if matches!(end, End::Aborted) {
            self.kill().await;
        }
        end
    }

    /// Not to be called again after it was cancelled, except for a new process.
    async fn attempt(&mut self, assignment: &Assignment, counts: &Counts) -> End {
        let logs = Arc::clone(&self.logs);
        let running = match self.ready().await {
            Ok(running) => running,
            Err(error) => return End::Failure(internal(format!("a slot cannot start: {error}"))),
        };
        let log = assignment.attempt.as_ref().map(|attempt| Log::new(logs, attempt));
        running.stderr.begin(log).await;
        let order = frame(Kind::Assignment, &assignment.encode_to_vec());
        if let Err(error) = running.input.write_all(&order).await {
            tracing::warn!(%error, "a slot does not take its order");
            return self.ended().await;
        }
        loop {
            let Ok((kind, payload)) = read_frame(&mut running.output).await else {
                return self.ended().await;
            };
            let end = match kind {
                Kind::Progress => {
                    match AttemptProgress::decode(&payload[..]) {
                        Ok(progress) => counts.set(&progress),
                        Err(error) => tracing::warn!(%error, "a slot tells no progress"),
                    }
                    continue;
                }
                Kind::Success => Success::decode(&payload[..]).map(End::Success),
                Kind::Failure => FailureReason::decode(&payload[..]).map(End::Failure),
                Kind::Ready | Kind::Assignment => {
                    self.kill().await;
                    return End::Failure(internal(format!("a slot sent {kind:?}")));
                }
            };
            let last_words = self.last_words().await;
            return match end {
                Ok(End::Failure(mut reason)) => {
                    // A program of the job's has words of its own.
                    if reason.stderr_tail.is_empty() {
                        reason.stderr_tail = last_words;
                    }
                    End::Failure(reason)
                }
                Ok(end) => end,
                Err(error) => End::Failure(internal(format!("a slot's answer: {error}"))),
            };
        }
    }

    /// What an attempt said in the end, when all of it is in its log.
    async fn last_words(&mut self) -> String {
        let Some(running) = &self.running else { return String::new() };
        match timeout(END_TIMEOUT, running.stderr.end()).await {
            Ok(last_words) => last_words,
            Err(_) => {
                // The next attempt's words shall not come behind these.
                tracing::warn!("a log takes too long to be written; its slot starts anew");
                self.kill().await;
                String::new()
            }
        }
    }

    /// A process that waits for an order: the one that is there, or a new one.
    async fn ready(&mut self) -> io::Result<&mut Box<Running>> {
        if let Some(running) = &mut self.running
            && running.child.try_wait()?.is_some()
        {
            self.running = None;
        }
        let running = match self.running.take() {
            Some(running) => running,
            None => timeout(START_TIMEOUT, Running::start(&self.command)).await??,
        };
        Ok(self.running.insert(running))
    }

    /// The process ended, or can no longer be understood.
    async fn ended(&mut self) -> End {
        let Some(mut running) = self.running.take() else { return End::Aborted };
        let session = running.pid();
        let status = match timeout(END_TIMEOUT, running.child.wait()).await {
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return End::Failure(internal(format!("a slot's end: {error}"))),
            Err(_) => {
                running.kill().await;
                return End::Failure(internal("a slot closed its output and went on".to_owned()));
            }
        };
        end_session(session).await;
        let stderr_tail = timeout(END_TIMEOUT, running.stderr.end()).await.unwrap_or_default();
        let kind = Some(failure_reason::Kind::Exit(user_exit(status)));
        End::Failure(FailureReason { kind, stderr_tail })
    }

    async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().await;
        }
    }
}

impl Running {
    async fn start(command: &SlotCommand) -> io::Result<Box<Self>> {
        // Started by a thread of the runtime, which lives as long as the worker: the kernel kills
        // a slot when the thread that started it ends.
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(mut output), Some(stderr)) = taken else {
            return Err(io::Error::other("it has no pipes"));
        };
        let stderr = Stderr::listen(stderr)?;
        let said = read_frame(&mut output).await;
        match said {
            Ok((Kind::Ready, payload)) if payload == [PROTOCOL] => {}
            Ok((kind, payload)) => {
                return Err(io::Error::other(format!("it says {kind:?} {payload:?}")));
            }
            Err(error) => {
                return Err(io::Error::other(format!("{error}; it says {:?}", stderr.end().await)));
            }
        }
        Ok(Box::new(Self { child, input, output, stderr }))
    }

    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    /// Kills the process and whatever it started.
    async fn kill(&mut self) {
        let session = self.pid();
        match timeout(END_TIMEOUT, self.child.kill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a slot cannot be killed"),
            Err(_) => tracing::warn!("a killed slot is not gone yet"),
        }
        end_session(session).await;
    }
}

/// Kills what a slot that has ended left behind.
async fn end_session(session: Option<Pid>) {
    let Some(session) = session else { return };
    let ended = tokio::task::spawn_blocking(move || family::end(session)).await;
    match ended.map_err(io::Error::other).flatten() {
        Ok(0) => {}
        Ok(killed) => tracing::info!(killed, "processes that a slot left behind were killed"),
        Err(error) => tracing::warn!(%error, "what a slot left behind cannot be killed"),
    }
}

async fn read_frame(output: &mut ChildStdout) -> io::Result<(Kind, Vec<u8>)> {
    let mut header = [0; 4];
    output.read_exact(&mut header).await?;
    let length = frame_length(header).ok_or(io::ErrorKind::InvalidData)?;
    let kind = output.read_u8().await?;
    let mut payload = vec![0; length - 1];
    output.read_exact(&mut payload).await?;
    let kind = Kind::from_byte(kind).ok_or(io::ErrorKind::InvalidData)?;
    Ok((kind, payload))
}

fn user_exit(status: ExitStatus) -> UserExit {
    UserExit { code: status.code(), signal: status.signal(), ..UserExit::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Root;

    async fn run(program: &str, arguments: &[&str]) -> FailureReason {
        let arguments = arguments.iter().map(OsString::from).collect();
        let command = SlotCommand { program: program.into(), arguments };
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let mut slot = Slot::new(Arc::new(command), Arc::new(Logs { root, bytes_max: 0 }));
        let (counts, abort) = (Counts::default(), CancellationToken::new());
        match slot.run(&Assignment::default(), &counts, &abort).await {
            End::Failure(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn an_exit_is_told_with_its_code_and_last_words() {
        // Ready, then the first byte of the order, then the end.
        let script =
            r"printf '\002\000\000\000\001\001'; head -c 1 >/dev/null; echo dying >&2; exit 3";
        let reason = run("sh", &["-c", script]).await;
        let exit = UserExit { code: Some(3), signal: None, ..UserExit::default() };
        assert_eq!(reason.kind, Some(failure_reason::Kind::Exit(exit)));
        assert_eq!(reason.stderr_tail, "dying\n");
    }

    #[tokio::test]
    async fn a_slot_that_cannot_start_is_a_defect_with_a_reason() {
        for (program, arguments, word) in [
            ("/no/such/program", &[][..], "No such file"),
            ("sh", &["-c", "echo sorry >&2"], "sorry"),
            ("sh", &["-c", r"printf '\002\000\000\000\001\377'; sleep 60"], "Ready [255]"),
        ] {
            match run(program, arguments).await.kind {
                Some(failure_reason::Kind::Internal(internal)) => {
                    assert!(internal.message.contains(word), "{internal:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
