//! The slot's own side.

use std::{
    env,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use daemon::Failure;
use prost::Message;
use proto::mapreduce::{Assignment, AttemptProgress};
use tokio::signal::unix::{SignalKind, signal};

use super::{Kind, PROTOCOL, frame, frame_length};
use crate::{outcome::Progress, panics, task::Bench};

/// How often progress is told: several times in the shortest heartbeat.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Serves as a slot until the input ends. Apps find the shared root as their working directory, no
/// input, and their output with the slot's standard error.
pub(crate) fn serve(bench: &Bench<'_>) -> Result<(), Failure> {
    let refuse = |what: &'static str| {
        move |error: io::Error| Failure::machine(format!("a slot cannot {what}")).because(error)
    };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| refuse("follow its worker into death")(error.into()))?;
    // All that an app or a program starts stays in this session, so that the worker finds it.
    rustix::process::setsid().map_err(|error| refuse("begin a session")(error.into()))?;
    let _signals = outlive_signals().map_err(refuse("catch signals"))?;
    let (mut input, output) = take_pipes().map_err(refuse("take its pipes"))?;
    env::set_current_dir(bench.root.path()).map_err(refuse("enter the shared root"))?;
    panics::remember();
    let output = Arc::new(Mutex::new(output));
    send(&output, Kind::Ready, &[PROTOCOL]).map_err(refuse("talk to its worker"))?;
    while let Some(payload) = read_assignment(&mut input).map_err(refuse("read its orders"))? {
        let assignment = Assignment::decode(&payload[..]).map_err(|error| {
            Failure::machine("a slot got an order it cannot read").because(error)
        })?;
        let progress = progress(&assignment, &output);
        let executed = bench.execute(&assignment, progress);
        // What an app printed without the end of a line is its own, not the next one's. Where
        // standard error is closed nobody wants to know.
        let _ = io::stdout().flush();
        let sent = match executed {
            Ok(success) => send(&output, Kind::Success, &success.encode_to_vec()),
            Err(reason) => send(&output, Kind::Failure, &reason.encode_to_vec()),
        };
        sent.map_err(refuse("talk to its worker"))?;
    }
    Ok(())
}

type Pipe = Arc<Mutex<File>>;

/// A worker that is told to stop lets its tasks finish, so signals that reach the whole group must
/// not end its slots. Handlers stay for as long as the process, whoever polls them.
fn outlive_signals() -> io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        drop(signal(kind)?);
    }
    drop(_inside);
    Ok(runtime)
}

/// Takes the pipes away from standard input and output, where an app could disturb them.
fn take_pipes() -> io::Result<(File, File)> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok((input, output))
}

fn progress(assignment: &Assignment, output: &Pipe) -> Progress {
    let (attempt, output) = (assignment.attempt.clone(), Arc::clone(output));
    let mut told = Instant::now();
    Progress::new(move |records, bytes| {
        if told.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        told = Instant::now();
        let progress = AttemptProgress { attempt: attempt.clone(), records, bytes, queued: false };
        // A worker that is gone takes this process with it.
        let _ = send(&output, Kind::Progress, &progress.encode_to_vec());
    })
}

fn send(output: &Pipe, kind: Kind, payload: &[u8]) -> io::Result<()> {
    output.lock().unwrap_or_else(PoisonError::into_inner).write_all(&frame(kind, payload))
}

/// The next order, or nothing at the end of the input.
fn read_assignment(input: &mut File) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 4];
    if input.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut header[1..])?;
    let length = frame_length(header).ok_or(io::ErrorKind::InvalidData)?;
    let mut payload = vec![0; length];
    input.read_exact(&mut payload)?;
    match Kind::from_byte(payload.remove(0)) {
        Some(Kind::Assignment) => Ok(Some(payload)),
        Some(_) | None => Err(io::ErrorKind::InvalidData.into()),
    }
}
