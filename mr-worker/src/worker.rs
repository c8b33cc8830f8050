//! The daemon: puts slots, dispatch and the admin port together.

use std::{ffi::OsString, path::PathBuf, sync::Arc};

use daemon::{Failure, Readiness, Shutdown, addresses, admin::Admin, metrics::Metrics};
use proto::STREAMING_APP;
use rand::RngExt;

use crate::{
    app::Program,
    calls::Identity,
    config::Config,
    dispatch::{Dispatch, Setup},
    paths::Root,
    session::Coordinators,
    slot::{Logs, Slot, SlotCommand},
};

/// Works for a coordinator until shutdown.
///
/// `slot` starts a slot of this program, without the arguments that this function adds.
///
/// # Errors
/// Configuration, when settings or the shared root are wrong; machine, when the admin port is busy
/// or no coordinator is heard of for too long.
pub async fn run(
    config: &Config,
    programs: &[&'static dyn Program],
    slot: SlotCommand,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let coordinators = Coordinators::new(config.coordinators()?);
    let root = Root::open(&config.root).map_err(|error| {
        let root = config.root.display();
        Failure::configuration(format!("the shared root {root} is no directory")).because(error)
    })?;
    let root = Arc::new(root);
    // Else it would take tasks and fail them one after the other.
    root.check_writable().map_err(|error| {
        Failure::machine("this worker cannot write in the shared root").because(error)
    })?;
    let slots = config.slot_count()?;
    let slot = Arc::new(with_arguments(slot, &root, config)?);
    let logs = Arc::new(Logs { root: Arc::clone(&root), bytes_max: config.log_bytes()? });
    let admin = addresses::resolve("admin", &config.admin)?;
    addresses::check_exposed(admin, config.insecure)?;
    let listener = addresses::listen(admin)?;
    let port = listener.local_addr().map_or(admin.port(), |address| address.port());
    let identity = Identity {
        name: config.worker_name(port)?,
        incarnation: rand::rng().random::<[u8; 16]>().to_vec(),
        slots,
        apps: names(programs, config.allow_exec)?,
    };
    tracing::info!(name = identity.name, slots, admin_port = port, "worker set up");
    let readiness = Readiness::waiting("not registered with a coordinator");
    let admin = Admin::new(readiness.clone(), Metrics::install("mr-worker")?);
    let end = Shutdown::new();
    let dispatch = Dispatch::new(Setup {
        identity,
        root,
        coordinators,
        slots: (0..slots).map(|_| Slot::new(Arc::clone(&slot), Arc::clone(&logs))).collect(),
        ready: config.ready_count()?,
        drain_grace: config.drain_grace(),
        lost_timeout: config.coordinator_lost_timeout(),
        readiness,
    });
    // The admin port outlives the wish to stop: draining can be watched.
    let served = admin.serve(listener, end.clone());
    tokio::select! {
        biased;
        ended = dispatch.run(shutdown) => ended,
        served = served => served,
    }
}

/// The names of the apps, each once; of what stands for programs of jobs, if they are allowed.
///
/// # Errors
/// Configuration, when an app has that name.
fn names(programs: &[&'static dyn Program], allow_exec: bool) -> Result<Vec<String>, Failure> {
    let mut names: Vec<String> = Vec::with_capacity(programs.len() + 1);
    for program in programs {
        if program.name() == STREAMING_APP {
            let message = format!("an app is named {STREAMING_APP:?}, which no app can be");
            return Err(Failure::configuration(message));
        }
        if names.iter().all(|name| name != program.name()) {
            names.push(program.name().to_owned());
        }
    }
    if allow_exec {
        names.push(STREAMING_APP.to_owned());
    }
    Ok(names)
}

/// What a slot must know is given to it as arguments.
fn with_arguments(
    mut slot: SlotCommand,
    root: &Root,
    config: &Config,
) -> Result<SlotCommand, Failure> {
    slot.arguments.extend([
        OsString::from("--root"),
        PathBuf::from(root.path()).into_os_string(),
        OsString::from("--memory-bytes"),
        OsString::from(config.table_bytes()?.to_string()),
    ]);
    if config.lab_apps {
        slot.arguments.push(OsString::from("--lab-apps"));
    }
    if config.allow_exec {
        slot.arguments.push(OsString::from("--allow-exec"));
    }
    Ok(slot)
}
