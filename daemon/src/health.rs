//! The `health` subcommand: asks a daemon's own `/readyz`, so that an image needs no HTTP client.
//!
//! The request is made by hand: it is one line, and a check that runs every few seconds should
//! start no runtime.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::addresses::dialable;
use crate::exit::{Code, Failure};

/// How long the whole check may take.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Asks the daemon whose admin port is at `admin` whether it is ready.
///
/// # Errors
/// [`Code::Failed`] with the daemon's reason when it is not ready; [`Code::Unreachable`] when it
/// gives no answer in time or one that is none of ours.
pub fn check(admin: SocketAddr) -> Result<(), Failure> {
    let unreachable =
        || Failure::new(Code::Unreachable, format!("the daemon at {admin} gives no answer"));
    let answer = ask(dialable(admin)).map_err(|error| unreachable().because(error))?;
    let (status, reason) = parse(&answer)
        .ok_or_else(|| unreachable().because("what it says is not an answer to /readyz"))?;
    match status {
        200 => Ok(()),
        _ => Err(Failure::new(Code::Failed, format!("the daemon at {admin} is not ready"))
            .because(reason)),
    }
}

/// Checks, and prints the outcome.
///
/// # Errors
/// The exit code, as [`check`].
pub fn run(program: &str, admin: SocketAddr) -> Result<(), Code> {
    check(admin).map_err(|failure| {
        failure.print(program);
        failure.code()
    })?;
    println!("ready");
    Ok(())
}

fn ask(admin: SocketAddr) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + DEADLINE;
    let mut stream = TcpStream::connect_timeout(&admin, DEADLINE)?;
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(answer);
        }
        answer.extend_from_slice(&buffer[..length]);
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the answer is too long"));
        }
    }
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Status and text of the answer. Axum gives short texts a length, so there are no chunks.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    matches!(status, 200 | 503).then(|| (status, body.trim().to_owned()))
}
