//! What a slot says on standard error, attempt by attempt.
//!
//! One task owns the pipe: it keeps the end of what an attempt said for its failure, and writes all
//! of it to the attempt's log. Decides what is whose: what the slot said before it told how an
//! attempt ended lies in the pipe by then, so that when the pipe has been emptied once, all of the
//! attempt was heard. No word is waited for by time.

use std::{collections::VecDeque, io};

use rustix::{io::Errno, pipe::fcntl_getpipe_size};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::Receiver,
    process::ChildStderr,
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use super::log::Log;

/// How much of the end of what an attempt says is kept, in bytes.
const TAIL_BYTES: usize = 4_096;

/// How much is read at a time, in bytes.
const READ_BYTES: usize = 16 << 10;

/// How much a pipe holds at least, in bytes, should the system not say.
const PIPE_BYTES: usize = 64 << 10;

/// The words of a slot. Dropped, it lets the last log be finished with what lies in the pipe.
#[derive(Debug)]
pub(super) struct Stderr {
    turns: mpsc::Sender<Turn>,
}

/// What is said from now on is another's.
struct Turn {
    /// Where that goes.
    log: Option<Log>,
    /// Who wants the last words of whoever spoke before.
    said: oneshot::Sender<String>,
}

impl Stderr {
    /// Listens to a slot from now on.
    pub(super) fn listen(pipe: ChildStderr) -> io::Result<Self> {
        let pipe = Receiver::from_owned_fd(pipe.into_owned_fd()?)?;
        let (turns, queue) = mpsc::channel(1);
        let listener = Listener { pipe, is_open: true, tail: Tail::default(), log: None };
        tokio::spawn(listener.run(queue));
        Ok(Self { turns })
    }

    /// An attempt begins: what is said from now on is its own.
    pub(super) async fn begin(&self, log: Option<Log>) {
        self.turn(log).await;
    }

    /// An attempt has ended, and its slot has said so or is dead. Finishes its log; its last words.
    pub(super) async fn end(&self) -> String {
        self.turn(None).await
    }

    async fn turn(&self, log: Option<Log>) -> String {
        let (said, last_words) = oneshot::channel();
        // The task ends with this handle only, or with the runtime, when nobody listens any more.
        if self.turns.send(Turn { log, said }).await.is_err() {
            return String::new();
        }
        last_words.await.unwrap_or_default()
    }
}

/// The task.
struct Listener {
    pipe: Receiver,
    /// Whether anybody can still say anything.
    is_open: bool,
    tail: Tail,
    log: Option<Log>,
}

impl Listener {
    async fn run(mut self, mut turns: mpsc::Receiver<Turn>) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            tokio::select! {
                biased;
                turn = turns.recv() => {
                    self.empty(&mut buffer).await;
                    let said = self.end().await;
                    let Some(turn) = turn else { return };
                    self.log = turn.log;
                    // Who asked may have been cancelled.
                    let _ = turn.said.send(said);
                }
                read = self.pipe.read(&mut buffer), if self.is_open => match read {
                    Ok(0) | Err(_) => self.is_open = false,
                    Ok(length) => self.hear(&buffer[..length]).await,
                },
            }
        }
    }

    /// Hears all that lies in the pipe. What comes meanwhile may be heard as well, but no more than
    /// the pipe holds, however much a process that was left behind may say.
    async fn empty(&mut self, buffer: &mut [u8]) {
        let mut left = fcntl_getpipe_size(&self.pipe).unwrap_or(PIPE_BYTES);
        while self.is_open && left > 0 {
            // Not by way of the runtime, which may not know yet that there is something.
            match rustix::io::read(&self.pipe, &mut *buffer) {
                Ok(0) => self.is_open = false,
                Ok(length) => {
                    left = left.saturating_sub(length);
                    self.hear(&buffer[..length]).await;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.is_open = false,
            }
        }
    }

    async fn hear(&mut self, said: &[u8]) {
        tracing::debug!(said = %String::from_utf8_lossy(said), "a slot wrote to standard error");
        self.tail.extend(said);
        let Some(mut log) = self.log.take() else { return };
        if !log.has_room() {
            log.drop_bytes(said.len());
            self.log = Some(log);
            return;
        }
        let said = said.to_vec();
        let appended = spawn_blocking(move || {
            log.append(&said);
            log
        });
        // It fails only when the runtime ends.
        self.log = appended.await.ok();
    }

    /// Finishes what there is of an attempt; its last words.
    async fn end(&mut self) -> String {
        if let Some(log) = self.log.take().filter(Log::is_open) {
            // It fails only when the runtime ends.
            let _ = spawn_blocking(move || log.end()).await;
        }
        self.tail.take()
    }
}

/// The end of what an attempt says.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
}

impl Tail {
    fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let surplus = self.bytes.len().saturating_sub(TAIL_BYTES);
        self.bytes.drain(..surplus);
    }

    fn take(&mut self) -> String {
        let mut text = String::from_utf8_lossy(self.bytes.make_contiguous()).into_owned();
        self.bytes.clear();
        // A character cut in two became a longer replacement.
        let surplus = text.len().saturating_sub(TAIL_BYTES);
        text.drain(..text.ceil_char_boundary(surplus));
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
        process::Stdio,
        sync::Arc,
        time::{Duration, Instant},
    };

    use proto::mapreduce::AttemptId;
    use tokio::{io::AsyncWriteExt, process::Command};

    use super::{super::log::Logs, *};
    use crate::paths::Root;

    #[test]
    fn the_tail_is_the_end_and_whole_characters() {
        let mut tail = Tail::default();
        tail.extend("x".repeat(TAIL_BYTES).as_bytes());
        tail.extend("é".repeat(TAIL_BYTES / 2 - 1).as_bytes());
        tail.extend(b"!");
        let text = tail.take();
        assert!(text.len() <= TAIL_BYTES && text.ends_with("éé!"), "{text}");
        assert_eq!(tail.take(), "");
    }

    fn log(root: &Path, sequence: u32, bytes_max: u64) -> (Option<Log>, PathBuf) {
        let logs = Logs { root: Arc::new(Root::open(root).unwrap()), bytes_max };
        let attempt = AttemptId { job: "job".to_owned(), sequence, ..AttemptId::default() };
        let path = root.join(format!(".flotilla/logs/job/m-0-0-{sequence}.log"));
        (Some(Log::new(Arc::new(logs), &attempt)), path)
    }

    /// Who says each line that it reads, and answers when it has.
    fn parrot() -> tokio::process::Child {
        let script = r#"while read -r line; do printf %s "$line" >&2; echo; done"#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
    }

    async fn until(holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "not in time");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn all_that_was_said_before_the_end_is_heard_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let mut parrot = parrot();
        let (mut input, mut output) = (parrot.stdin.take().unwrap(), parrot.stdout.take().unwrap());
        let stderr = Stderr::listen(parrot.stderr.take().unwrap()).unwrap();
        // The answer overtakes what was said whenever the runtime looks at it first.
        for sequence in 0..100 {
            let (log, path) = log(dir.path(), sequence, 1 << 20);
            stderr.begin(log).await;
            let said = format!("{sequence}: {}", "x".repeat(10_000));
            input.write_all(format!("{said}\n").as_bytes()).await.unwrap();
            output.read_u8().await.unwrap();
            assert_eq!(stderr.end().await, said[said.len() - TAIL_BYTES..]);
            assert_eq!(fs::read_to_string(path).unwrap(), said);
        }
    }

    #[tokio::test]
    async fn who_is_left_behind_and_goes_on_talking_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo; while :; do echo and so on; done >&2"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut chatterbox = command.spawn().unwrap();
        let (log, path) = log(dir.path(), 1, 1_000);
        let stderr = Stderr::listen(chatterbox.stderr.take().unwrap()).unwrap();
        stderr.begin(log).await;
        chatterbox.stdout.take().unwrap().read_u8().await.unwrap();
        until(|| path.exists()).await;
        assert!(stderr.end().await.contains("and so on"));
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with("and so on\n") && text.ends_with(" log_bytes_max, 1000)\n"));
        assert!(text.len() < 1_200, "{}", text.len());
    }

    #[tokio::test]
    async fn a_dropped_slots_log_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let mut parrot = parrot();
        let (mut input, mut output) = (parrot.stdin.take().unwrap(), parrot.stdout.take().unwrap());
        let (log, path) = log(dir.path(), 1, 5);
        let stderr = Stderr::listen(parrot.stderr.take().unwrap()).unwrap();
        stderr.begin(log).await;
        input.write_all(b"beyond the limit\n").await.unwrap();
        output.read_u8().await.unwrap();
        drop(stderr);
        until(|| fs::read_to_string(&path).is_ok_and(|text| text.ends_with(")\n"))).await;
    }
}
