//! `flotilla log`: appends to a replicated log, reads and trims it. Entries are bytes, in and out.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Stdin};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use client::log::{APPEND_BYTES_MAX, APPEND_ENTRIES_MAX, ENTRY_BYTES_MAX, LogEntry, Range};
use client::{LogClient, Options};
use daemon::{Code, Failure};
use serde_json::{Map, Value, json};

use crate::output::{Output, malformed, put_bytes, raw, refused};
use crate::units;
use crate::whereabouts::LogEndpoints;

pub(crate) const HELP: &str = "\
Examples:
  flotilla log append 'first entry' 'second'    prints their indexes
  journalctl -f | flotilla log append --lines   each line becomes an entry, as it comes
  flotilla log tail                             what is there, then ends
  flotilla log tail --last 10 --follow          the last ten, and what comes
  flotilla log trim 1000                        removes the entries below 1000
  flotilla log status

A log begins with index 1 and has no gaps. Nothing is removed but by trim; reading below the first
index that is kept, or trimming beyond the end, ends with exit code 6. When the log has reached its
quota, append ends with 1 until it is trimmed.";

/// What stands for an entry that comes from stdin.
const STDIN: &str = "-";

/// The arguments of `flotilla log`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoints: LogEndpoints,
    /// How long to try to reach the log
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "10s",
          global = true)]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Append entries, all or none of them, and print their indexes
    Append {
        /// The entries; - is what comes from stdin, as one entry
        #[arg(value_name = "ENTRY", allow_hyphen_values = true, required_unless_present = "lines")]
        entries: Vec<OsString>,
        /// Make an entry of each line of stdin, as they come; lines that come together are appended
        /// together
        #[arg(long, conflicts_with = "entries")]
        lines: bool,
    },
    /// Print entries, each on a line of its own, byte for byte
    Tail {
        /// The first entry [default: the first that is kept]
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u64).range(1..))]
        from: Option<u64>,
        /// Only so many of the last entries
        #[arg(long, value_name = "COUNT", conflicts_with = "from")]
        last: Option<u64>,
        /// Go on with what is appended later, until Ctrl-C
        #[arg(long, short)]
        follow: bool,
        /// Print each entry's index before it
        #[arg(long)]
        indexes: bool,
    },
    /// Remove all entries below an index
    Trim {
        /// The first entry that is kept
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        index: u64,
    },
    /// Tell which indexes the log has, and how full it is
    Status,
}

/// Does what is asked.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let options = Options::with_deadline(Duration::from_millis(arguments.timeout));
    let endpoints = arguments.endpoints.resolve()?;
    let client = LogClient::connect(endpoints, options).map_err(malformed)?;
    match arguments.command {
        Command::Append { entries, lines: false } => append(&client, entries, output).await,
        Command::Append { lines: true, .. } => append_lines(&client, output).await,
        Command::Tail { from, last, follow, indexes } => {
            let range = range(&client, from, last, follow).await?;
            tail(&client, range, indexes, output).await
        }
        Command::Trim { index } => {
            let first = client.trim(index).await.map_err(refused)?;
            output.result(&format!("the first index is {first}"), &json!({ "first_index": first }))
        }
        Command::Status => status(&client, output).await,
    }
}

async fn append(client: &LogClient, entries: Vec<OsString>, output: Output) -> Result<(), Failure> {
    let entries = entries.into_iter().map(entry).collect::<Result<_, _>>()?;
    append_all(client, entries, output).await
}

async fn append_all(
    client: &LogClient,
    entries: Vec<Bytes>,
    output: Output,
) -> Result<(), Failure> {
    let appended = client.append_all(entries).await.map_err(refused)?;
    let (first, last) = (appended.first_index, appended.last_index);
    let text = if first == last { format!("{first}") } else { format!("{first} to {last}") };
    output.result(&text, &json!({ "first_index": first, "last_index": last }))
}

/// The entry that an argument stands for.
fn entry(argument: OsString) -> Result<Bytes, Failure> {
    if argument != STDIN {
        return Ok(argument.into_vec().into());
    }
    let mut entry = Vec::new();
    // One byte more than is allowed, so that the client sees and refuses what is too long.
    let limited = std::io::stdin().lock().take(ENTRY_BYTES_MAX as u64 + 1).read_to_end(&mut entry);
    limited.map_err(unreadable)?;
    Ok(entry.into())
}

/// Appends lines until stdin ends. Reading blocks, and nothing else goes on meanwhile.
async fn append_lines(client: &LogClient, output: Output) -> Result<(), Failure> {
    // As much as is appended at once, so that lines that wait are seen to wait.
    let mut stdin = BufReader::with_capacity(APPEND_BYTES_MAX, std::io::stdin());
    loop {
        let lines = read_lines(&mut stdin)?;
        if lines.is_empty() {
            return Ok(());
        }
        append_all(client, lines, output).await?;
    }
}

/// The next line, and those that are there already, as many as may be appended together.
fn read_lines(stdin: &mut BufReader<Stdin>) -> Result<Vec<Bytes>, Failure> {
    let (mut lines, mut bytes) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        let longest = ENTRY_BYTES_MAX as u64 + 2;
        stdin.by_ref().take(longest).read_until(b'\n', &mut line).map_err(unreadable)?;
        if line.is_empty() {
            return Ok(lines);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        bytes += line.len();
        lines.push(line.into());
        let room = bytes + ENTRY_BYTES_MAX <= APPEND_BYTES_MAX && lines.len() < APPEND_ENTRIES_MAX;
        if !room || !stdin.buffer().contains(&b'\n') {
            return Ok(lines);
        }
    }
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::new(Code::Failed, "stdin cannot be read").because(error)
}

/// What to read. The end is asked for first, so that nothing is missed between.
async fn range(
    client: &LogClient,
    from: Option<u64>,
    last: Option<u64>,
    follow: bool,
) -> Result<Range, Failure> {
    let everything = Range { from_index: from.unwrap_or(0), ..Range::default() };
    if follow && last.is_none() {
        return Ok(everything);
    }
    let status = client.status().await.map_err(refused)?;
    if let Some(from) = from.filter(|from| *from > status.last_index + 1) {
        let last = status.last_index;
        let message = format!("the log has no index {from} yet: its last index is {last}");
        return Err(Failure::new(Code::NotFound, message));
    }
    let to_index = (!follow).then_some(status.last_index);
    let from_index = match last {
        Some(last) => (status.last_index + 1).saturating_sub(last).max(status.first_index),
        None => everything.from_index,
    };
    Ok(Range { from_index, to_index, ..everything })
}

async fn tail(
    client: &LogClient,
    range: Range,
    indexes: bool,
    output: Output,
) -> Result<(), Failure> {
    let mut entries = client.tail(range);
    while let Some(entry) = entries.next().await.map_err(|error| refused(error.into()))? {
        raw(&shown(&entry, indexes, output))?;
    }
    Ok(())
}

/// An entry on a line of its own.
fn shown(entry: &LogEntry, indexes: bool, output: Output) -> Vec<u8> {
    let mut line = if output.is_json() {
        let mut object = Map::new();
        object.insert("index".to_owned(), entry.index.into());
        put_bytes(&mut object, "entry", &entry.payload);
        Value::from(object).to_string().into_bytes()
    } else {
        let index = if indexes { format!("{}\t", entry.index) } else { String::new() };
        [index.as_bytes(), &entry.payload].concat()
    };
    line.push(b'\n');
    line
}

async fn status(client: &LogClient, output: Output) -> Result<(), Failure> {
    let status = client.status().await.map_err(refused)?;
    let entries = (status.last_index + 1).saturating_sub(status.first_index);
    let which = match entries {
        0 => format!("no entries; the next has index {}", status.last_index + 1),
        _ => format!("{entries} entries, {} to {}", status.first_index, status.last_index),
    };
    output.result(
        &format!("{which}\n{} of {} bytes", status.bytes, status.quota_bytes),
        &json!({
            "first_index": status.first_index,
            "last_index": status.last_index,
            "bytes": status.bytes,
            "quota_bytes": status.quota_bytes,
        }),
    )
}
