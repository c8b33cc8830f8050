//! `flotilla lock`: runs a command while holding a lock, or tells how a lock stands.
//!
//! The command is told to end so long before the lock may be lost that it has its grace, and is
//! killed when it may be: before anybody else can have it, since the client gives up earlier than
//! the servers do. What it writes elsewhere is fenced off by the token that it is given. If this
//! process itself is killed, nobody stops the command: the token is what is left then.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use bytes::Bytes;
use client::{HeldLock, KvClient, LockClient, LockOptions, Options};
use daemon::{Code, Failure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::output::{Output, malformed, refused, shown};
use crate::units;
use crate::whereabouts::Endpoints;

pub(crate) const HELP: &str = "\
Examples:
  flotilla lock nightly -- ./report.sh          waits for the lock, then runs the command
  flotilla lock nightly --try -- ./report.sh    ends with 125 if somebody else holds it
  flotilla lock nightly --show

The command finds the lock's name in FLOTILLA_LOCK, the fencing token in FLOTILLA_LOCK_TOKEN and the
lease in FLOTILLA_LOCK_LEASE. `flotilla kv put --guard NAME TOKEN` writes only while the lock is held;
a resource of another kind should refuse tokens lower than the highest that it has seen.

When nobody answers and the lock may soon be lost, the command gets SIGTERM, and SIGKILL --grace later.
Without a terminal it has a process group of its own, and all of that is stopped.
Exit code: the command's, or 128 and its signal, or 125 when the lock was not had or was lost, or the
command could not be run.";

/// Exit code when the lock was not had, or was lost, or the command could not be run: the others are
/// the command's.
const NOT_HELD: i32 = 125;

/// The arguments of `flotilla lock`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The lock
    name: OsString,
    #[command(flatten)]
    endpoints: Endpoints,
    /// Tell who holds it and who waits
    #[arg(long, conflicts_with_all = ["command", "attempt", "wait", "ttl", "owner", "grace"])]
    show: bool,
    /// Do not wait for it
    #[arg(long = "try", conflicts_with = "wait")]
    attempt: bool,
    /// How long to wait for it [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds)]
    wait: Option<u64>,
    /// How long the lock stays with a holder that is gone
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "10s")]
    ttl: u64,
    /// What people who look at the lock are told [default: this machine and process]
    #[arg(long, value_name = "TEXT")]
    owner: Option<OsString>,
    /// How long the command may take to end when the lock may be lost
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "1s")]
    grace: u64,
    /// How long to try to reach the cluster
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "10s")]
    timeout: u64,
    /// The command and its arguments
    #[arg(last = true, required_unless_present = "show")]
    command: Vec<OsString>,
}

/// Does what is asked. When a command was run, this ends the process with its code.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let options = Options::with_deadline(Duration::from_millis(arguments.timeout));
    let endpoints = arguments.endpoints.resolve()?;
    let client = KvClient::connect(endpoints, options).map_err(malformed)?;
    let locks = LockClient::new(client);
    let name = Bytes::from(arguments.name.clone().into_vec());
    if arguments.show {
        return show(&locks, name, output).await;
    }
    if arguments.grace.saturating_mul(2) > arguments.ttl {
        let message =
            "--grace is at most half of --ttl: the command has to end before the lock does";
        return Err(Failure::new(Code::WrongCall, message));
    }
    let code = locked(&locks, &name, &arguments, output).await.unwrap_or_else(|failure| {
        output.failure(&failure);
        NOT_HELD
    });
    std::process::exit(code)
}

/// Runs the command under the lock. The exit code.
async fn locked(
    locks: &LockClient,
    name: &Bytes,
    arguments: &Arguments,
    output: Output,
) -> Result<i32, Failure> {
    let Some(held) = acquire(locks, name, arguments).await.map_err(refused)? else {
        output.note(&format!("somebody else holds the lock \"{}\"", shown(name)));
        return Ok(NOT_HELD);
    };
    let (ended, lost) = match execute(&held, name, arguments, output).await {
        Ok((status, stopped)) => (Ok(status), stopped || held.is_lost()),
        Err(failure) => (Err(failure), held.is_lost()),
    };
    if !lost && let Err(error) = held.release().await {
        // It is free when its time is over.
        output.note(&format!("the lock could not be given back: {error}"));
    }
    Ok(match ended? {
        _ if lost => NOT_HELD,
        status => status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(NOT_HELD),
    })
}

async fn acquire(
    locks: &LockClient,
    name: &Bytes,
    arguments: &Arguments,
) -> Result<Option<HeldLock>, client::Error> {
    let wait = match (arguments.attempt, arguments.wait) {
        (true, _) => Some(Duration::ZERO),
        (false, Some(ms)) => Some(Duration::from_millis(ms)),
        (false, None) => None,
    };
    let owner = arguments.owner.clone().map_or_else(whoami, OsString::into_vec);
    let ttl = Duration::from_millis(arguments.ttl);
    let mut options = LockOptions { ttl, owner: owner.into(), ..LockOptions::default() };
    loop {
        options.wait = wait.unwrap_or(options.wait);
        let held = locks.acquire(name.clone(), &options).await?;
        if held.is_some() || wait.is_some() {
            return Ok(held);
        }
    }
}

/// Runs the command until it ends, or stops it before the lock may be lost. Whether it was stopped.
async fn execute(
    held: &HeldLock,
    name: &Bytes,
    arguments: &Arguments,
    output: Output,
) -> Result<(ExitStatus, bool), Failure> {
    let signals = |kind| {
        signal(kind)
            .map_err(|error| Failure::new(Code::Failed, "signals can't be had").because(error))
    };
    let mut interrupt = signals(SignalKind::interrupt())?;
    let mut terminate = signals(SignalKind::terminate())?;
    let (program, rest) = arguments
        .command
        .split_first()
        .ok_or_else(|| Failure::new(Code::WrongCall, "there is no command"))?;
    // What reads a terminal has to stay in the group that has it.
    let own_group = !std::io::stdin().is_terminal();
    let mut command = Command::new(program);
    command
        .args(rest)
        .env("FLOTILLA_LOCK", OsString::from_vec(name.to_vec()))
        .env("FLOTILLA_LOCK_TOKEN", held.token().to_string())
        .env("FLOTILLA_LOCK_LEASE", held.lease_id().to_string());
    if own_group {
        command.process_group(0);
    }
    let mut child = command.spawn().map_err(|error| {
        let program = program.to_string_lossy();
        Failure::new(Code::Failed, format!("{program} can't be run")).because(error)
    })?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let tell = |signal| {
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ =
                if own_group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
        }
    };
    let grace = Duration::from_millis(arguments.grace);
    let mut ended = tokio::task::spawn_blocking(move || child.wait());
    loop {
        tokio::select! {
            biased;
            status = &mut ended => return Ok((waited(status)?, false)),
            () = held.lost_within(grace) => break,
            // From a terminal the command gets the same.
            _ = interrupt.recv() => if own_group { tell(Signal::INT) },
            _ = terminate.recv() => tell(Signal::TERM),
        }
    }
    output.note("the lock may be lost: the command is stopped");
    tell(Signal::TERM);
    Ok((stop(&mut ended, grace, || tell(Signal::KILL)).await?, true))
}

/// Waits for the end, and kills when there is none in time.
async fn stop(
    ended: &mut JoinHandle<std::io::Result<ExitStatus>>,
    grace: Duration,
    kill: impl FnOnce(),
) -> Result<ExitStatus, Failure> {
    if let Ok(status) = timeout(grace, &mut *ended).await {
        return waited(status);
    }
    kill();
    waited(ended.await)
}

fn waited(
    status: Result<std::io::Result<ExitStatus>, tokio::task::JoinError>,
) -> Result<ExitStatus, Failure> {
    let status = status.map_err(std::io::Error::other).and_then(|status| status);
    status.map_err(|error| {
        Failure::new(Code::Failed, "the command can't be waited for").because(error)
    })
}

async fn show(locks: &LockClient, name: Bytes, output: Output) -> Result<(), Failure> {
    let state = locks.inspect(name.clone()).await.map_err(refused)?;
    let mut lines = Vec::new();
    match &state.holder {
        None => lines.push(format!("nobody holds the lock \"{}\"", shown(&name))),
        Some(holder) => lines.push(format!(
            "held by {} with token {} under lease {}, for {} at least",
            shown(&holder.owner),
            holder.token,
            holder.lease_id,
            units::duration(holder.remaining)
        )),
    }
    lines.extend(state.waiters.iter().map(|owner| format!("waiting: {}", shown(owner))));
    let value = json!({
        "holder": state.holder.map(|holder| json!({
            "token": holder.token,
            "lease_id": holder.lease_id,
            "remaining_ms": holder.remaining.as_millis() as u64,
            "owner": shown(&holder.owner),
        })),
        "waiters": state.waiters.iter().map(|owner| shown(owner)).collect::<Vec<_>>(),
        "waiting": state.waiting,
    });
    output.result(&lines.join("\n"), &value)
}

/// What tells people which process it is.
fn whoami() -> Vec<u8> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}, process {}", std::process::id()).into_bytes()
}
