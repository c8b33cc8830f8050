//! `flotilla backup` and `flotilla restore`: the state of a running cluster as one file, and a new
//! cluster made of one.
//!
//! Decides who is asked for a backup, and what a person is told to do with what was restored. What a
//! backup is, and how a directory is made of one, is raftd's business.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{Error, Rejected, admin};
use daemon::{Code, Failure, ports};
use kvd::KvMachine;
use prost::Message as _;
use proto::SHARDS_DEFAULT;
use proto::admin::{BackupEnd, BackupHead, BackupPart};
use raft::NodeId;
use raftd::backup::{BadBackup, Check, FIRST_LINE};
use raftd::cli::Configuration;
use raftd::log::LogMachine;
use raftd::restoration::{self, Plan, Restored};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::output::{Output, refused};
use crate::status::hexadecimal;
use crate::units;
use crate::whereabouts::Endpoints;

pub(crate) const BACKUP_HELP: &str = "\
Examples:
  flotilla backup store.backup                  the key/value store of the running `flotilla up`
  flotilla backup log.backup --endpoints 10.0.0.1:7100
  flotilla restore store.backup --check         whether a file is whole, and what it is of

A backup has seen everything that was acknowledged before this command. Any member makes one; writes
go on meanwhile.";

pub(crate) const RESTORE_HELP: &str = "\
Examples:
  flotilla restore store.backup data1
  kvd --data data1                              the restored member, alone in a new group
  kvd --node 2 --listen 127.0.0.1:7301 --data data2 --join 127.0.0.1:7350
  flotilla members add 127.0.0.1:7351           and so on, for as many members as there should be

The new group has an identity of its own: members of the old one are never listened to. Versions,
revisions and tokens go on 2^32 behind those of the backup, so that none is given out twice. Who restores
a backup for the second time, or one that was made before its group was recovered from the loss of its
majority, says so with --generation 2, and so on.";

/// The arguments of `flotilla backup`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BackupArguments {
    /// The file that is to be written; it must not exist
    file: PathBuf,
    #[command(flatten)]
    endpoints: Endpoints,
    /// How long to wait for an answer
    #[arg(long, value_name = "DURATION", value_parser = units::milliseconds, default_value = "10s")]
    timeout: u64,
}

/// The arguments of `flotilla restore`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RestoreArguments {
    /// The file of the backup
    file: PathBuf,
    /// The data directory that is to be made; one that exists must be empty
    #[arg(required_unless_present = "check")]
    data: Option<PathBuf>,
    /// Only look whether the file is whole, and tell what it is of
    #[arg(long, conflicts_with_all = ["data", "node", "cluster", "advertise", "peer_advertise"])]
    check: bool,
    /// The id of the member
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    node: u64,
    /// How often this backup was restored, this time included: versions and revisions go on so often
    /// 2^32 behind it
    #[arg(long, value_name = "COUNT", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=1_000))]
    generation: u64,
    /// The name of the new cluster [default: that of the backup]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Where clients will reach the member [default: 127.0.0.1 and the port of its daemon]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where its peers will reach it [default: 50 ports above that]
    #[arg(long, value_name = "HOST:PORT")]
    peer_advertise: Option<String>,
}

/// Writes a backup.
pub(crate) async fn backup(arguments: BackupArguments, output: Output) -> Result<(), Failure> {
    let BackupArguments { file, endpoints, timeout } = arguments;
    check_absent(&file)?;
    let limit = Duration::from_millis(timeout);
    let mut backup = begin(&endpoints.resolve()?, limit).await?;
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    // It gets its name when it is whole; until then nobody takes it for a backup.
    let unfinished = NamedTempFile::new_in(directory).map_err(|error| unwritable(&file, error))?;
    let (head, end) = receive(&mut backup, unfinished.as_file(), &file).await?;
    unfinished.persist_noclobber(&file).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => exists(&file),
        _ => unwritable(&file, error.error),
    })?;
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| unwritable(&file, error))?;
    output
        .result(&format!("{}: {}", file.display(), shown(&head, &end)), &value(&file, &head, &end))
}

/// The first of the members that can make a backup.
async fn begin(endpoints: &[String], limit: Duration) -> Result<admin::Backup, Failure> {
    let mut last = None;
    for endpoint in endpoints {
        match admin::backup(endpoint, limit).await {
            Ok(backup) => return Ok(backup),
            Err(error @ Error::Rejected(Rejected::Unavailable(_) | Rejected::Limit(_))) => {
                last = Some(error);
            }
            Err(error) => return Err(refused(error)),
        }
    }
    Err(last.map_or_else(|| Failure::new(Code::WrongCall, "no member was named"), refused))
}

/// Writes what comes, durably, and checks that it is whole.
async fn receive(
    backup: &mut admin::Backup,
    to: &File,
    file: &Path,
) -> Result<(BackupHead, BackupEnd), Failure> {
    let mut check = Check::default();
    let mut out = BufWriter::with_capacity(256 << 10, to);
    out.write_all(FIRST_LINE).map_err(|error| unwritable(file, error))?;
    while let Some(part) = backup.next().await.map_err(refused)? {
        check.take(&part).map_err(garbled)?;
        write(&mut out, &part).map_err(|error| unwritable(file, error))?;
    }
    let whole = check.finish().map_err(garbled)?;
    let written = out.flush().and_then(|()| to.sync_all());
    written.map_err(|error| unwritable(file, error))?;
    Ok(whole)
}

fn write(out: &mut impl Write, part: &BackupPart) -> io::Result<()> {
    out.write_all(&part.encode_length_delimited_to_vec())
}

/// Restores a backup, or tells what it is of.
pub(crate) async fn restore(arguments: RestoreArguments, output: Output) -> Result<(), Failure> {
    let (head, end) = restoration::look(&arguments.file)?;
    let Some(data) = arguments.data else {
        let text = format!("{} is whole: {}", arguments.file.display(), shown(&head, &end));
        return output.result(&text, &value(&arguments.file, &head, &end));
    };
    let port = match head.daemon.as_str() {
        kvd::Config::NAME => ports::KVD,
        raftd::log::Config::NAME => ports::RAFTD,
        daemon => return Err(no_restore(daemon)),
    };
    let local = |port: u16| format!("127.0.0.1:{port}");
    let plan = Plan {
        file: arguments.file,
        data,
        cluster: arguments.cluster,
        node: NodeId(arguments.node),
        generation: arguments.generation,
        client_address: arguments.advertise.unwrap_or_else(|| local(port)),
        peer_address: arguments.peer_advertise.unwrap_or_else(|| local(port + ports::PEER_OFFSET)),
    };
    if head.daemon == kvd::Config::NAME {
        let empty = KvMachine::new(SHARDS_DEFAULT);
        let (restored, machine) = restoration::restore(&plan, empty).await?;
        // It is fixed for ever, and a member that is set to another number does not start.
        let shards = machine.created().filter(|shards| *shards != SHARDS_DEFAULT);
        let further = shards.map_or_else(String::new, |shards| format!(" --shards {shards}"));
        return tell(&plan, &restored, &further, output);
    }
    let (restored, _) = restoration::restore(&plan, LogMachine::default()).await?;
    tell(&plan, &restored, "", output)
}

fn tell(plan: &Plan, restored: &Restored, further: &str, output: Output) -> Result<(), Failure> {
    let Plan { data, node, .. } = plan;
    let Restored { head, end, cluster, group } = restored;
    let (daemon, peer) = (&head.daemon, &plan.peer_address);
    let text = format!(
        "{}: {}\nIt is member {node} of a group of its own in {}.\n\
         Next: start it with\n  {daemon} --cluster {cluster} --node {node} --data {} --listen {}{further}\n\
         then others with further ids, empty directories and --join {peer}, and\n  \
         flotilla members add HOST:PORT\nwith the peer address of each.",
        plan.file.display(),
        shown(head, end),
        data.display(),
        data.display(),
        plan.client_address,
    );
    let mut value = value(&plan.file, head, end);
    value["restored"] = json!({
        "data": data,
        "node": node.0,
        "cluster": cluster,
        "group": hexadecimal(group),
    });
    output.result(&text, &value)
}

fn shown(head: &BackupHead, end: &BackupEnd) -> String {
    format!(
        "{} of the cluster \"{}\" as of entry {}, {} bytes",
        head.daemon, head.cluster, head.index, end.bytes
    )
}

fn value(file: &Path, head: &BackupHead, end: &BackupEnd) -> Value {
    json!({
        "file": file,
        "daemon": head.daemon,
        "version": head.version,
        "cluster": head.cluster,
        "group": hexadecimal(&head.group),
        "index": head.index,
        "term": head.term,
        "group_time_ms": head.group_time_ms,
        "chunks": end.chunks,
        "bytes": end.bytes,
        "digest": hexadecimal(&end.digest),
    })
}

fn check_absent(file: &Path) -> Result<(), Failure> {
    if file.exists() { Err(exists(file)) } else { Ok(()) }
}

fn exists(file: &Path) -> Failure {
    let message = format!("{} exists already: name another file, or remove it", file.display());
    Failure::new(Code::Exists, message)
}

fn unwritable(file: &Path, error: io::Error) -> Failure {
    Failure::new(Code::Failed, format!("{} can't be written", file.display())).because(error)
}

fn garbled(bad: BadBackup) -> Failure {
    Failure::new(Code::Failed, "what the member sent is no whole backup").because(bad)
}

fn no_restore(daemon: &str) -> Failure {
    let message = format!(
        "the state of {daemon} can't be restored: kvd's and raftd's can, and what a coordinator \
         knows belongs to its shared root"
    );
    Failure::new(Code::Failed, message)
}
