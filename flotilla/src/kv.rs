//! `flotilla kv`: reads and writes single keys. Keys and values are bytes, in and out.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use client::{Condition, KvClient, Options, Pair, PutIf, VALUE_BYTES_MAX};
use daemon::{Code, Failure};
use serde_json::{Map, Value, json};

use crate::output::{Output, malformed, put_bytes, refused, shown, value};
use crate::units;
use crate::whereabouts::Endpoints;

/// What stands for a value that comes from stdin.
const STDIN: &str = "-";

/// The arguments of `flotilla kv`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    endpoints: Endpoints,
    /// How long to try
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "10s",
          global = true)]
    timeout: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Print a key's value, byte for byte; exit code 6 if there is no such key
    Get {
        /// The key
        #[arg(allow_hyphen_values = true)]
        key: OsString,
    },
    /// Write a key
    Put {
        /// The key
        #[arg(allow_hyphen_values = true)]
        key: OsString,
        /// The value, or - for what comes from stdin
        #[arg(allow_hyphen_values = true)]
        value: OsString,
        /// Only while the key has this version; 0: only while it does not exist
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// Append to a key's value; an absent key counts as empty
    Append {
        /// The key
        #[arg(allow_hyphen_values = true)]
        key: OsString,
        /// What is added, or - for what comes from stdin
        #[arg(allow_hyphen_values = true)]
        value: OsString,
    },
    /// Remove a key; exit code 6 if there is no such key
    Delete {
        /// The key
        #[arg(allow_hyphen_values = true)]
        key: OsString,
    },
}

/// Executes one request.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let options = Options::with_deadline(Duration::from_millis(arguments.timeout));
    let connect = |endpoints| KvClient::connect(endpoints, options).map_err(malformed);
    let endpoints = arguments.endpoints.resolve()?;
    match arguments.command {
        Command::Get { key } => get(&connect(endpoints)?, bytes(key), output).await,
        Command::Put { key, value, if_version } => {
            let value = read(value)?;
            put(&connect(endpoints)?, bytes(key), value, if_version, output).await
        }
        Command::Append { key, value } => {
            let value = read(value)?;
            append(&connect(endpoints)?, bytes(key), value, output).await
        }
        Command::Delete { key } => delete(&connect(endpoints)?, bytes(key), output).await,
    }
}

async fn get(client: &KvClient, key: Bytes, output: Output) -> Result<(), Failure> {
    let found = client.get(key.clone()).await.map_err(refused)?;
    let pair = found.ok_or_else(|| no_such_key(&key))?;
    if output.is_json() { output.result("", &describe(&key, &pair)) } else { value(&pair.value) }
}

async fn put(
    client: &KvClient,
    key: Bytes,
    value: Bytes,
    if_version: Option<u64>,
    output: Output,
) -> Result<(), Failure> {
    let written = match if_version {
        None => client.put(key, value).await.map_err(refused)?,
        Some(version) => {
            let condition = match version {
                0 => Condition::Absent,
                version => Condition::Version(version),
            };
            match client.put_if(key.clone(), value, condition).await.map_err(refused)? {
                PutIf::Written(written) => written,
                PutIf::Mismatch(current) => return Err(mismatch(&key, version, current)),
            }
        }
    };
    output.result(
        &format!("written, version {}", written.version),
        &json!({ "version": written.version, "mod_revision": written.mod_revision }),
    )
}

async fn append(
    client: &KvClient,
    key: Bytes,
    value: Bytes,
    output: Output,
) -> Result<(), Failure> {
    let appended = client.append(key, value).await.map_err(refused)?;
    let mut object = Map::new();
    object.insert("version".to_owned(), appended.written.version.into());
    object.insert("mod_revision".to_owned(), appended.written.mod_revision.into());
    if let Some(old_value) = &appended.old_value {
        put_bytes(&mut object, "old_value", old_value);
    }
    let text = format!("appended, version {}", appended.written.version);
    output.result(&text, &object.into())
}

async fn delete(client: &KvClient, key: Bytes, output: Output) -> Result<(), Failure> {
    let removed = client.delete(key.clone()).await.map_err(refused)?;
    let removed = removed.ok_or_else(|| no_such_key(&key))?;
    let value = json!({
        "removed": describe(&key, &removed.pair),
        "mod_revision": removed.mod_revision,
    });
    output.result(&format!("removed, it had version {}", removed.pair.version), &value)
}

fn describe(key: &[u8], pair: &Pair) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    put_bytes(&mut object, "value", &pair.value);
    object.insert("version".to_owned(), pair.version.into());
    object.insert("create_revision".to_owned(), pair.create_revision.into());
    object.insert("mod_revision".to_owned(), pair.mod_revision.into());
    object.into()
}

fn no_such_key(key: &[u8]) -> Failure {
    Failure::new(Code::NotFound, format!("there is no key \"{}\"", shown(key)))
}

fn mismatch(key: &[u8], expected: u64, current: Option<Pair>) -> Failure {
    let found = match current {
        Some(pair) => format!("has version {}", pair.version),
        None => "does not exist".to_owned(),
    };
    Failure::new(
        Code::Failed,
        format!("nothing written: the key \"{}\" {found}, not version {expected}", shown(key)),
    )
}

fn bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

/// The value that an argument stands for.
fn read(argument: OsString) -> Result<Bytes, Failure> {
    if argument != STDIN {
        return Ok(bytes(argument));
    }
    let mut value = Vec::new();
    // One byte more than is allowed, so that the client sees and refuses what is too long.
    std::io::stdin().lock().take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value).map_err(
        |error| Failure::new(Code::Failed, "the value cannot be read from stdin").because(error),
    )?;
    Ok(value.into())
}
