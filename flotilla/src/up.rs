//! `flotilla up`: a local cluster in the foreground.
//!
//! It tells where everything is and what to type, and then looks after the processes: one that ends
//! is reported and started again, unless its exit code says that this never helps or it keeps
//! ending. Ctrl-C stops everything; the same command goes on with the same data.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::{Code, Failure, Shutdown, ports};
use serde_json::json;
use tokio::time::{Instant, interval};

use crate::local::place::beside;
use crate::local::process::Ended;
use crate::local::{Cluster, Description, Instance, Place, Plan};
use crate::output::Output;
use crate::whereabouts::DIR_DEFAULT;

pub(crate) const HELP: &str = "\
Examples:
  flotilla up
  flotilla up --kv 1 --workers 0                a single key/value server
  flotilla up --log 3 --kv 0 --workers 0        a replicated log and nothing else
  flotilla up --workers 4 --root /data          jobs read and write below /data
  flotilla up --dir second --base-port 17300    another cluster beside it

The directory keeps the data: the same command after Ctrl-C goes on with it.";

/// How long the cluster may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the processes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How often in a row a process is started again.
const RESTARTS_MAX: u32 = 5;

/// How long to wait before the first of them; each further wait is twice as long.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// A process that ran so long is believed to be well again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// How many members a new key/value store has.
const KV_DEFAULT: u16 = 3;

/// The arguments of `flotilla up`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// How many members the key/value store has, 0 to 7 [default: as before, or 3]
    #[arg(long, value_name = "COUNT")]
    kv: Option<u16>,
    /// How many members the replicated log has, 0 to 7 [default: as before, or 0]
    #[arg(long, value_name = "COUNT")]
    log: Option<u16>,
    /// How many MapReduce workers there are; with any there is a coordinator
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    workers: u16,
    /// How many tasks each worker runs at a time [default: one for each processor]
    #[arg(long, value_name = "COUNT")]
    slots: Option<u32>,
    /// Keep all data here
    #[arg(long, default_value = DIR_DEFAULT)]
    dir: PathBuf,
    /// Jobs read and write below this directory [default: DIR/shared]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The port of the first member, from which all others are counted [default: 7300]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// Listen on this address [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    listen_ip: Option<IpAddr>,
    /// Accept an address that other machines can reach; nothing is encrypted
    #[arg(long)]
    insecure: bool,
}

/// Runs the cluster until it is interrupted.
pub(crate) async fn run(
    arguments: Arguments,
    program: &str,
    output: Output,
) -> Result<(), Failure> {
    let shutdown = Shutdown::on_signals()?;
    let binary = std::env::current_exe()
        .map_err(|error| Failure::machine("this binary cannot be found").because(error))?;
    let before = Description::read(&arguments.dir)?;
    let kv = arguments.kv.or(before.as_ref().map(|before| before.kv)).unwrap_or(KV_DEFAULT);
    let mut plan = Plan::new(binary, &arguments.dir, kv, arguments.workers);
    plan.log = arguments.log.or(before.as_ref().map(|before| before.log)).unwrap_or(0);
    plan.controllers = before.as_ref().map_or(0, |before| before.controllers);
    plan.place = Some(place(&arguments, before.as_ref()));
    plan.root.clone_from(&arguments.root);
    plan.slots = arguments.slots;
    plan.insecure = arguments.insecure;
    let mut cluster = Cluster::start(&plan)?;
    eprintln!("starting {} ...", described(&cluster));
    let ready = tokio::select! {
        biased;
        () = shutdown.requested() => None,
        ready = cluster.ready(READY_TIMEOUT) => Some(ready),
    };
    let ended = match ready {
        None => Ok(()),
        Some(Ok(())) => match announce(&cluster, program, &arguments, output) {
            Ok(()) => look_after(&mut cluster, &shutdown).await,
            Err(failure) => Err(failure),
        },
        Some(Err(failure)) => Err(failure),
    };
    eprintln!("stopping ...");
    cluster.stop().await;
    ended
}

/// Where the cluster is to listen: where the user says, else where it was, else as usual.
fn place(arguments: &Arguments, before: Option<&Description>) -> Place {
    let usual = before.map(|before| before.place).unwrap_or_default();
    Place {
        ip: arguments.listen_ip.unwrap_or(usual.ip),
        base_port: arguments.base_port.unwrap_or(usual.base_port),
    }
}

fn described(cluster: &Cluster) -> String {
    let description = cluster.description();
    let plural = |count: u16, one: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    };
    let mut parts = Vec::new();
    if description.kv > 0 {
        parts.push(plural(description.kv, "key/value member"));
    }
    if description.log > 0 {
        parts.push(plural(description.log, "log member"));
    }
    if description.workers > 0 {
        parts.push("1 coordinator".to_owned());
        parts.push(plural(description.workers, "worker"));
    }
    parts.join(", ")
}

/// Tells where everything is, and what to type next.
fn announce(
    cluster: &Cluster,
    program: &str,
    arguments: &Arguments,
    output: Output,
) -> Result<(), Failure> {
    let description = cluster.description();
    let kv = description.kv_endpoints();
    let log = description.log_endpoints();
    let coordinator = description.coordinator();
    let value = json!({
        "dir": cluster.dir(),
        "kv": kv,
        "log": log,
        "coordinator": coordinator,
        "root": coordinator.is_some().then_some(&description.root),
        "pid": std::process::id(),
    });
    let mut lines = vec![format!("Flotilla is up: {}.", described(cluster)), String::new()];
    let mut tell = |name: &str, text: String| lines.push(format!("  {name:<14}{text}"));
    if description.kv > 0 {
        tell("key/value", kv.join("  "));
    }
    if description.log > 0 {
        tell("log", log.join("  "));
    }
    if let Some(coordinator) = &coordinator {
        tell("jobs", coordinator.clone());
        tell("shared root", description.root.display().to_string());
    }
    tell("data, logs", cluster.dir().display().to_string());
    let first = if description.kv > 0 {
        beside(description.place.kvd(1))[1]
    } else if description.log > 0 {
        beside(description.place.raftd(1))[1]
    } else {
        beside(description.place.coordinator())[1]
    };
    tell("metrics", format!("http://{first}/metrics, and each other port plus 1000"));
    lines.push(String::new());
    lines.push("Try, in another terminal in this directory:".to_owned());
    lines.extend(commands(cluster, program, arguments).into_iter().map(|text| format!("  {text}")));
    lines.push(String::new());
    lines.push("Ctrl-C stops it; the same command goes on with the same data.".to_owned());
    output.result(&lines.join("\n"), &value)
}

/// What to copy and paste. The address is said where the commands would not find it themselves.
fn commands(cluster: &Cluster, program: &str, arguments: &Arguments) -> Vec<String> {
    let description = cluster.description();
    let found = arguments.dir.as_os_str() == DIR_DEFAULT
        || description.place == Place { base_port: ports::KVD, ..Place::default() };
    let at = |endpoints: &[String]| match endpoints.first() {
        Some(first) if !found => format!(" --endpoints {first}"),
        Some(_) | None => String::new(),
    };
    let (kv, log) = (description.kv_endpoints(), description.log_endpoints());
    let mut commands = Vec::new();
    if let Some(first) = kv.first() {
        let at = at(&kv);
        commands.push(format!("{program} kv{at} put greeting hello"));
        commands.push(format!("{program} kv{at} get greeting"));
        commands.push(format!(
            "grpcurl -plaintext -d '{{\"key\":\"Z3JlZXRpbmc=\"}}' {first} flotilla.kv.v1.Kv/Get"
        ));
    }
    if !log.is_empty() {
        let at = at(&log);
        commands.push(format!("{program} log{at} append hello"));
        commands.push(format!("{program} log{at} tail --follow"));
    }
    if let Some(coordinator) = description.coordinator() {
        let at = if found { String::new() } else { format!(" --coordinator {coordinator}") };
        let root = if found && arguments.root.is_none() {
            String::new()
        } else {
            format!(" --root {}", description.root.display())
        };
        let books = description.root.join("books");
        let books = books.display();
        commands.push(format!("mkdir -p {books} && cp *.txt {books}/"));
        commands.push(format!(
            "{program} mr{at} submit --app wc --input 'books/*.txt' --output counts --wait"
        ));
        commands.push(format!("{program} mr{at} list"));
        commands.push(format!("{program} mr{at} cat JOB{root} | sort -k2 -nr | head"));
    }
    // Unless it is told, status asks the key/value store.
    let status = match (kv.first(), log.first().cloned().or(description.coordinator())) {
        (None, Some(other)) => format!(" --endpoints {other}"),
        (Some(_), _) | (None, None) => at(&kv),
    };
    commands.push(format!("{program} status{status}"));
    commands
}

/// How often a process was started again, and when it may be the next time.
#[derive(Debug)]
struct Trouble {
    restarts: u32,
    started: Instant,
    due: Option<Instant>,
}

/// Looks after the processes until shutdown, or until there is nothing left to look after.
async fn look_after(cluster: &mut Cluster, shutdown: &Shutdown) -> Result<(), Failure> {
    let mut troubles: BTreeMap<Instance, Trouble> = BTreeMap::new();
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = shutdown.requested() => return Ok(()),
            _ = looks.tick() => {}
        }
        let now = Instant::now();
        for ended in cluster.take_ended() {
            eprintln!("{ended}");
            consider(
                &ended,
                troubles.entry(ended.instance).or_insert(Trouble {
                    restarts: 0,
                    started: now,
                    due: None,
                }),
                now,
            );
        }
        for (instance, trouble) in &mut troubles {
            if trouble.due.is_some_and(|due| due <= now) {
                trouble.due = None;
                trouble.started = now;
                cluster.restart(*instance)?;
                eprintln!("{instance} is started again");
            }
        }
        let instances = cluster.instances();
        let waiting = troubles.values().any(|trouble| trouble.due.is_some());
        let running = |cluster: &mut Cluster| {
            instances.iter().any(|instance| {
                cluster.process(*instance).is_ok_and(|process| process.pid().is_some())
            })
        };
        if !waiting && !running(cluster) {
            return Err(Failure::new(Code::Failed, "no process is left running"));
        }
    }
}

/// Decides whether and when a process that ended is started again.
fn consider(ended: &Ended, trouble: &mut Trouble, now: Instant) {
    if now.duration_since(trouble.started) >= WELL_AFTER {
        trouble.restarts = 0;
    }
    let hopeless = [Code::Usage, Code::Damaged, Code::Configuration].map(|code| code as i32);
    if ended.status.code().is_some_and(|code| hopeless.contains(&code)) {
        eprintln!("{} is not started again: that would not help", ended.instance);
        return;
    }
    if trouble.restarts == RESTARTS_MAX {
        eprintln!("{} is not started again: it ended too often", ended.instance);
        return;
    }
    trouble.due = Some(now + RESTART_DELAY * 2_u32.pow(trouble.restarts));
    trouble.restarts += 1;
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn ended(code: i32) -> Ended {
        let status = ExitStatus::from_raw(code << 8);
        Ended { instance: Instance::Kvd(1), status, tail: String::new() }
    }

    #[test]
    fn a_process_is_started_again_ever_later_and_not_for_ever() {
        let now = Instant::now();
        let mut trouble = Trouble { restarts: 0, started: now, due: None };
        let mut waits = Vec::new();
        for _ in 0..=RESTARTS_MAX {
            consider(&ended(70), &mut trouble, now);
            waits.extend(trouble.due.take().map(|due| due.duration_since(now).as_millis()));
        }
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000]);
        consider(&ended(70), &mut trouble, now + WELL_AFTER);
        assert!(trouble.due.is_some(), "it was well for a while");
    }

    #[test]
    fn a_process_that_a_restart_cannot_help_stays_down() {
        for code in [64, 74, 78] {
            let now = Instant::now();
            let mut trouble = Trouble { restarts: 0, started: now, due: None };
            consider(&ended(code), &mut trouble, now);
            assert_eq!(trouble.due, None, "{code}");
        }
    }
}
