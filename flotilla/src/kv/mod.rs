//! `flotilla kv`: reads, writes and watches keys. Keys and values are bytes, in and out.

mod lease;
mod scan;
mod txn;
mod watch;

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use client::{Condition, Guard, KvClient, Options, Pair, PutIf, PutOptions, VALUE_BYTES_MAX};
use daemon::{Code, Failure};
use serde_json::{Map, Value, json};

use crate::output::{Output, malformed, put_bytes, refused, shown, value};
use crate::units;
use crate::whereabouts::Endpoints;

pub(crate) const HELP: &str = "\
Examples:
  flotilla kv put greeting hello
  flotilla kv get greeting
  flotilla kv put greeting hi --if-version 1    only if nobody wrote meanwhile
  flotilla kv get greeting --rev 1              as it was after revision 1 of its shard
  flotilla kv scan --prefix book/ --keys-only
  flotilla kv watch --prefix book/ --previous
  flotilla kv txn --if 'version {a}/x = 3' --then 'put {a}/x 1' --then 'delete {a}/y' --else 'get {a}/x'
  flotilla kv lease grant '{session}' 30s
  flotilla kv put '{session}/user' anna --lease ID

Revisions count the changes of a shard. Keys with the same text between { and } share a shard, which
is what transactions and leases need.";

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
        /// As it was after this revision of its shard
        #[arg(long, value_name = "REVISION")]
        rev: Option<u64>,
        /// From whatever the member that is asked knows, however old
        #[arg(long)]
        stale: bool,
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
        /// Only while the key was last written at this revision; 0: only while it does not exist
        #[arg(long, value_name = "REVISION", conflicts_with = "if_version")]
        if_rev: Option<u64>,
        /// Let the key go with this lease
        #[arg(long, value_name = "LEASE")]
        lease: Option<u64>,
        #[command(flatten)]
        guard: GuardOption,
    },
    /// Append to a key's value; an absent key counts as empty
    Append {
        /// The key
        #[arg(allow_hyphen_values = true)]
        key: OsString,
        /// What is added, or - for what comes from stdin
        #[arg(allow_hyphen_values = true)]
        value: OsString,
        #[command(flatten)]
        guard: GuardOption,
    },
    /// Remove a key; exit code 6 if there is no such key
    Delete {
        /// The key
        #[arg(allow_hyphen_values = true)]
        key: OsString,
        #[command(flatten)]
        guard: GuardOption,
    },
    /// Print pairs in the order of their keys, or count them
    Scan(scan::Arguments),
    /// Compare keys of one shard, and execute one list of operations or the other
    #[command(after_help = txn::HELP)]
    Txn(txn::Arguments),
    /// Print changes as they happen, until Ctrl-C
    Watch(watch::Arguments),
    /// Make, keep and end leases
    Lease(lease::Arguments),
    /// Forget the changes of shards: reads and watches from earlier revisions end
    Compact {
        /// Of this shard only
        #[arg(long, value_name = "NUMBER")]
        shard: Option<u32>,
        /// Up to this revision only
        #[arg(long, value_name = "REVISION", requires = "shard")]
        rev: Option<u64>,
    },
}

/// Lets a change happen only while a lock is held.
#[derive(clap::Args, Clone, Debug)]
struct GuardOption {
    /// Only while this lock is held with this fencing token
    #[arg(long, num_args = 2, value_names = ["LOCK", "TOKEN"])]
    guard: Option<Vec<OsString>>,
}

/// Executes one request.
pub(crate) async fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let options = Options::with_deadline(Duration::from_millis(arguments.timeout));
    let connect = |endpoints| KvClient::connect(endpoints, options).map_err(malformed);
    let endpoints = arguments.endpoints.resolve()?;
    match arguments.command {
        Command::Get { key, rev, stale } => {
            get(&connect(endpoints)?, bytes(key), rev, stale, output).await
        }
        Command::Put { key, value, if_version, if_rev, lease, guard } => {
            let condition = condition(if_version, if_rev);
            let options = PutOptions { condition, lease_id: lease, guard: guard.read()? };
            put(&connect(endpoints)?, bytes(key), read(value)?, options, output).await
        }
        Command::Append { key, value, guard } => {
            let (value, guard) = (read(value)?, guard.read()?);
            append(&connect(endpoints)?, bytes(key), value, guard, output).await
        }
        Command::Delete { key, guard } => {
            let guard = guard.read()?;
            delete(&connect(endpoints)?, bytes(key), guard, output).await
        }
        Command::Scan(arguments) => scan::run(&connect(endpoints)?, arguments, output).await,
        Command::Txn(arguments) => txn::run(&connect(endpoints)?, arguments, output).await,
        Command::Watch(arguments) => watch::run(&connect(endpoints)?, arguments, output).await,
        Command::Lease(arguments) => lease::run(&connect(endpoints)?, arguments, output).await,
        Command::Compact { shard, rev } => {
            scan::compact(&connect(endpoints)?, shard, rev, output).await
        }
    }
}

async fn get(
    client: &KvClient,
    key: Bytes,
    rev: Option<u64>,
    stale: bool,
    output: Output,
) -> Result<(), Failure> {
    let found = match (rev, stale) {
        (Some(rev), _) => client.get_at(key.clone(), rev).await,
        (None, true) => client.get_stale(key.clone()).await,
        (None, false) => client.get(key.clone()).await,
    };
    let found = found.map_err(refused)?;
    let pair = found.ok_or_else(|| no_such_key(&key))?;
    if output.is_json() { output.result("", &describe(&key, &pair)) } else { value(&pair.value) }
}

async fn put(
    client: &KvClient,
    key: Bytes,
    value: Bytes,
    options: PutOptions,
    output: Output,
) -> Result<(), Failure> {
    let condition = options.condition;
    let written = match client.put_with(key.clone(), value, options).await.map_err(refused)? {
        PutIf::Written(written) => written,
        PutIf::Mismatch(current) => return Err(mismatch(&key, condition, current.as_ref())),
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
    guard: Option<Guard>,
    output: Output,
) -> Result<(), Failure> {
    let appended = match guard {
        Some(guard) => client.append_guarded(key, value, &guard).await,
        None => client.append(key, value).await,
    };
    let appended = appended.map_err(refused)?;
    let mut object = Map::new();
    object.insert("version".to_owned(), appended.written.version.into());
    object.insert("mod_revision".to_owned(), appended.written.mod_revision.into());
    if let Some(old_value) = &appended.old_value {
        put_bytes(&mut object, "old_value", old_value);
    }
    let text = format!("appended, version {}", appended.written.version);
    output.result(&text, &object.into())
}

async fn delete(
    client: &KvClient,
    key: Bytes,
    guard: Option<Guard>,
    output: Output,
) -> Result<(), Failure> {
    let removed = match guard {
        Some(guard) => client.delete_guarded(key.clone(), &guard).await,
        None => client.delete(key.clone()).await,
    };
    let removed = removed.map_err(refused)?.ok_or_else(|| no_such_key(&key))?;
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
    if let Some(lease) = pair.lease_id {
        object.insert("lease_id".to_owned(), lease.into());
    }
    object.into()
}

fn no_such_key(key: &[u8]) -> Failure {
    Failure::new(Code::NotFound, format!("there is no key \"{}\"", shown(key)))
}

fn mismatch(key: &[u8], condition: Option<Condition>, current: Option<&Pair>) -> Failure {
    let found = match current {
        Some(pair) => format!("has version {}, of revision {}", pair.version, pair.mod_revision),
        None => "does not exist".to_owned(),
    };
    let expected = match condition {
        Some(Condition::Absent) => ", and should not exist".to_owned(),
        Some(Condition::Version(version)) => format!(", not version {version}"),
        Some(Condition::ModRevision(revision)) => format!(", not revision {revision}"),
        None => String::new(),
    };
    let key = shown(key);
    Failure::new(Code::Failed, format!("nothing written: the key \"{key}\" {found}{expected}"))
}

fn condition(version: Option<u64>, revision: Option<u64>) -> Option<Condition> {
    match (version, revision) {
        (Some(0), _) | (None, Some(0)) => Some(Condition::Absent),
        (Some(version), _) => Some(Condition::Version(version)),
        (None, Some(revision)) => Some(Condition::ModRevision(revision)),
        (None, None) => None,
    }
}

impl GuardOption {
    fn read(self) -> Result<Option<Guard>, Failure> {
        let Some(words) = self.guard else { return Ok(None) };
        let wrong = || Failure::new(Code::WrongCall, "--guard takes a lock's name and a token");
        let [lock, token] = <[OsString; 2]>::try_from(words).map_err(|_| wrong())?;
        let token = token.to_str().and_then(|token| token.parse().ok()).ok_or_else(wrong)?;
        Ok(Some(Guard { lock: bytes(lock), token }))
    }
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
