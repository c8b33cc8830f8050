//! `flotilla up`: a local cluster in the foreground.
//!
//! Groups that share the shards take part by themselves, once. It tells where everything is and what
//! to type ([`announce`]), and then looks after the processes: one that ends is reported and started
//! again, unless its exit code says that this never helps or it keeps ending. Ctrl-C stops
//! everything; the same command goes on with the same data.

mod announce;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use daemon::{Code, Failure, Shutdown};
use tokio::time::{Instant, interval};

use self::announce::{announce, described};
use crate::local::process::Ended;
use crate::local::{Cluster, Description, Instance, Place, Plan, sharing};
use crate::output::Output;
use crate::whereabouts::DIR_DEFAULT;

pub(crate) const HELP: &str = "\
Examples:
  flotilla up
  flotilla up --kv 1 --workers 0                a single key/value server
  flotilla up --log 3 --kv 0 --workers 0        a replicated log and nothing else
  flotilla up --groups 2 --kv 3                 two groups of three share the keys
  flotilla up --workers 4 --root /data          jobs read and write below /data
  flotilla up --dir second --base-port 17300    another cluster beside it

With --groups each group has a part of the keys, as a shard controller says. At the first start all
groups take part; `flotilla shardctl status` shows who has what, `flotilla shardctl --help` tells how
to change that, and what you change stays. How many groups there are is fixed for the directory.

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

/// How long the shards may take until each is in a group.
const PLACED_TIMEOUT: Duration = Duration::from_secs(60);

/// How many members a new key/value store has.
const KV_DEFAULT: u16 = 3;

/// How many members a new shard controller has, if groups of so many can lose one, too.
const CONTROLLERS_DEFAULT: u16 = 3;

/// The arguments of `flotilla up`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// How many members the key/value store has, or with --groups each group, 0 to 7 [default: as
    /// before, or 3]
    #[arg(long, value_name = "COUNT")]
    kv: Option<u16>,
    /// How many groups share the keys, 0 to 7; 0: one that has them all and needs no controller
    /// [default: as before, or 0]
    #[arg(long, value_name = "COUNT")]
    groups: Option<u16>,
    /// How many members the shard controller has, 0 to 7 [default: as before, or with --groups 3,
    /// or 1 if groups have less than 3 members]
    #[arg(long, value_name = "COUNT")]
    controllers: Option<u16>,
    /// How many members the replicated log has, 0 to 7 [default: as before, or 0]
    #[arg(long, value_name = "COUNT")]
    log: Option<u16>,
    /// How many MapReduce workers there are; with any there is a coordinator
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    workers: u16,
    /// How many tasks each worker runs at a time [default: one for each processor]
    #[arg(long, value_name = "COUNT")]
    slots: Option<u32>,
    /// Let workers run programs that jobs bring, which can do whatever you can
    #[arg(long)]
    allow_exec: bool,
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
    let plan = plan(&arguments, before.as_ref(), binary);
    let mut cluster = Cluster::start(&plan)?;
    eprintln!("starting {} ...", described(cluster.description()));
    let ready = tokio::select! {
        biased;
        () = shutdown.requested() => None,
        ready = make_ready(&mut cluster) => Some(ready),
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

/// What the arguments mean: what they do not say is as before, else as usual.
fn plan(arguments: &Arguments, before: Option<&Description>, program: PathBuf) -> Plan {
    let kept = |count: fn(&Description) -> u16| before.map(count);
    let kv = arguments.kv.or(kept(|before| before.kv)).unwrap_or(KV_DEFAULT);
    let mut plan = Plan::new(program, &arguments.dir, kv, arguments.workers);
    plan.groups = arguments.groups.or(kept(|before| before.groups)).unwrap_or(0);
    plan.log = arguments.log.or(kept(|before| before.log)).unwrap_or(0);
    let kept = kept(|before| before.controllers).filter(|count| *count > 0);
    plan.controllers = arguments.controllers.or(kept).unwrap_or(match (plan.groups, kv) {
        (0, _) => 0,
        (_, CONTROLLERS_DEFAULT..) => CONTROLLERS_DEFAULT,
        (..) => 1,
    });
    plan.place = Some(place(arguments, before));
    plan.root.clone_from(&arguments.root);
    plan.slots = arguments.slots;
    plan.insecure = arguments.insecure;
    if arguments.allow_exec {
        plan.further.worker.push("--allow-exec".to_owned());
    }
    plan
}

/// Waits until all processes are ready, and each shard is in a group if groups share them.
async fn make_ready(cluster: &mut Cluster) -> Result<(), Failure> {
    cluster.ready(READY_TIMEOUT).await?;
    let description = cluster.description();
    if description.groups == 0 {
        return Ok(());
    }
    let client = sharing::controller(description, PLACED_TIMEOUT)?;
    if sharing::join_once(&client, description).await? {
        eprintln!("{} groups take part", description.groups);
    }
    sharing::placed(&client, PLACED_TIMEOUT).await.map(drop)
}

/// Where the cluster is to listen: where the user says, else where it was, else as usual.
fn place(arguments: &Arguments, before: Option<&Description>) -> Place {
    let usual = before.map(|before| before.place).unwrap_or_default();
    Place {
        ip: arguments.listen_ip.unwrap_or(usual.ip),
        base_port: arguments.base_port.unwrap_or(usual.base_port),
    }
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

    /// What is started in a directory with such a cluster, by what is said.
    fn planned(said: &[&str], before: Option<&str>) -> [u16; 3] {
        #[derive(clap::Parser)]
        struct Call {
            #[command(flatten)]
            arguments: Arguments,
        }
        let call = ["up"].iter().chain(said);
        let arguments = <Call as clap::Parser>::try_parse_from(call).unwrap().arguments;
        let before = before.map(|text| serde_json::from_str::<Description>(text).unwrap());
        let plan = plan(&arguments, before.as_ref(), PathBuf::new());
        [plan.groups, plan.kv, plan.controllers]
    }

    #[test]
    fn groups_come_with_a_controller_and_both_stay() {
        assert_eq!(planned(&[], None), [0, 3, 0]);
        assert_eq!(planned(&["--groups", "2"], None), [2, 3, 3]);
        assert_eq!(planned(&["--groups", "2", "--kv", "1"], None), [2, 1, 1]);
        assert_eq!(planned(&["--groups", "2", "--controllers", "5"], None), [2, 3, 5]);
        assert_eq!(planned(&["--controllers", "1"], None), [0, 3, 1]);
        let before = r#"{"format": 2, "place": {"ip": "127.0.0.1", "base_port": 7300},
            "kv": 3, "groups": 2, "controllers": 1, "workers": 0, "root": "/"}"#;
        assert_eq!(planned(&[], Some(before)), [2, 3, 1]);
        // That it cannot be is said when it is compared.
        assert_eq!(planned(&["--groups", "3"], Some(before)), [3, 3, 1]);
    }

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
