//! The worker's side of a slot.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
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
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Kind, PROTOCOL, family, frame, frame_length};
use crate::task::internal;

/// How much of a slot's standard error is kept, in bytes.
const STDERR_TAIL_BYTES: usize = 4_096;

/// How long a slot may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait for a killed slot to be gone, and for the rest of its standard error.
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
    tail: Arc<Tail>,
    stderr: JoinHandle<()>,
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
    pub(crate) fn new(command: Arc<SlotCommand>) -> Self {
        Self { command, running: None }
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
        let running = match self.ready().await {
            Ok(running) => running,
            Err(error) => return End::Failure(internal(format!("a slot cannot start: {error}"))),
        };
        running.tail.clear();
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
                Kind::Failure => FailureReason::decode(&payload[..]).map(|mut reason| {
                    // A program of the job's has words of its own.
                    if reason.stderr_tail.is_empty() {
                        reason.stderr_tail = running.tail.text();
                    }
                    End::Failure(reason)
                }),
                Kind::Ready | Kind::Assignment => {
                    self.kill().await;
                    return End::Failure(internal(format!("a slot sent {kind:?}")));
                }
            };
            return end.unwrap_or_else(|error| {
                End::Failure(internal(format!("a slot's answer: {error}")))
            });
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
        // A process that the app started may hold standard error open; its words are not waited for.
        let _ = timeout(END_TIMEOUT, &mut running.stderr).await;
        End::Failure(FailureReason {
            kind: Some(failure_reason::Kind::Exit(user_exit(status))),
            stderr_tail: running.tail.text(),
        })
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
        let tail = Arc::new(Tail::default());
        let stderr = tokio::spawn(follow(stderr, Arc::clone(&tail)));
        let said = read_frame(&mut output).await;
        match said {
            Ok((Kind::Ready, payload)) if payload == [PROTOCOL] => {}
            Ok((kind, payload)) => {
                return Err(io::Error::other(format!("it says {kind:?} {payload:?}")));
            }
            Err(error) => {
                let _ = timeout(END_TIMEOUT, stderr).await;
                return Err(io::Error::other(format!("{error}; it says {:?}", tail.text())));
            }
        }
        Ok(Box::new(Self { child, input, output, tail, stderr }))
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

/// The end of what a slot says on standard error.
#[derive(Debug, Default)]
struct Tail {
    bytes: Mutex<VecDeque<u8>>,
}

impl Tail {
    fn extend(&self, bytes: &[u8]) {
        let mut tail = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..surplus);
    }

    fn clear(&self) {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn text(&self) -> String {
        let mut tail = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from_utf8_lossy(tail.make_contiguous()).into_owned();
        // A character cut in two became a longer replacement.
        let surplus = text.len().saturating_sub(STDERR_TAIL_BYTES);
        text.drain(..text.ceil_char_boundary(surplus));
        text
    }
}

async fn follow(mut stderr: ChildStderr, tail: Arc<Tail>) {
    let mut buffer = vec![0; STDERR_TAIL_BYTES];
    loop {
        match stderr.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let said = String::from_utf8_lossy(&buffer[..length]);
                tracing::debug!(%said, "a slot wrote to standard error");
                tail.extend(&buffer[..length]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_end_and_whole_characters() {
        let tail = Tail::default();
        tail.extend("x".repeat(STDERR_TAIL_BYTES).as_bytes());
        tail.extend("é".repeat(STDERR_TAIL_BYTES / 2 - 1).as_bytes());
        tail.extend(b"!");
        let text = tail.text();
        assert!(text.len() <= STDERR_TAIL_BYTES && text.ends_with("éé!"), "{text}");
        tail.clear();
        assert_eq!(tail.text(), "");
    }

    async fn run(program: &str, arguments: &[&str]) -> FailureReason {
        let arguments = arguments.iter().map(OsString::from).collect();
        let command = SlotCommand { program: program.into(), arguments };
        let mut slot = Slot::new(Arc::new(command));
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
