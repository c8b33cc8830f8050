//! What a local cluster is to be made of.

use std::path::PathBuf;

use daemon::{Code, Failure};

use super::place::{LOG_BASE_PORT_MIN, MEMBERS_MAX, Place, WORKERS_MAX};

/// What is to be started.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The binary that is every daemon by its name.
    pub program: PathBuf,
    /// The directory of the cluster; made if it is absent.
    pub dir: PathBuf,
    /// How many key/value members, or with groups how many of each, 0 to 7.
    pub kv: u16,
    /// How many groups of them share the shards, 0 to 7; 0: one group that stands alone. They take
    /// part when they join, which takes a shard controller.
    pub groups: u16,
    /// How many members of the log, 0 to 7.
    pub log: u16,
    /// How many members of the shard controller, 0 to 7.
    pub controllers: u16,
    /// How many MapReduce workers; with any there is one coordinator.
    pub workers: u16,
    /// Where to listen; none: wherever it was, or an address of its own.
    pub place: Option<Place>,
    /// The directory that coordinator and workers share; none: in the cluster's directory.
    pub root: Option<PathBuf>,
    /// How many tasks a worker runs at a time; none: its default.
    pub slots: Option<u32>,
    /// Whether addresses that other machines can reach are accepted without encryption.
    pub insecure: bool,
    /// Further arguments for all processes of a kind, for tests.
    pub further: Further,
}

/// Further arguments, by kind of process.
#[derive(Clone, Debug, Default)]
pub struct Further {
    /// For key/value members.
    pub kvd: Vec<String>,
    /// For members of the log.
    pub raftd: Vec<String>,
    /// For members of the shard controller.
    pub shardctl: Vec<String>,
    /// For the coordinator.
    pub coordinator: Vec<String>,
    /// For workers.
    pub worker: Vec<String>,
}

impl Plan {
    /// A cluster of `kv` members and `workers` workers in `dir`, without a log or a shard controller,
    /// at an address of its own.
    pub fn new(
        program: impl Into<PathBuf>,
        dir: impl Into<PathBuf>,
        kv: u16,
        workers: u16,
    ) -> Self {
        Self {
            program: program.into(),
            dir: dir.into(),
            kv,
            groups: 0,
            log: 0,
            controllers: 0,
            workers,
            place: None,
            root: None,
            slots: None,
            insecure: false,
            further: Further::default(),
        }
    }

    /// Checks that it makes sense by itself.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let refuse = |message: String| Err(Failure::new(Code::WrongCall, message));
        for (count, name) in [
            (self.kv, "key/value members"),
            (self.groups, "groups"),
            (self.log, "members of the log"),
            (self.controllers, "members of the shard controller"),
        ] {
            if count > MEMBERS_MAX {
                return refuse(format!("{count} {name}; at most {MEMBERS_MAX}"));
            }
        }
        if self.groups > 0 && (self.kv == 0 || self.controllers == 0) {
            return refuse(format!(
                "{} groups need members (--kv) and a shard controller (--controllers)",
                self.groups
            ));
        }
        if self.workers > WORKERS_MAX {
            return refuse(format!("{} workers; at most {WORKERS_MAX}", self.workers));
        }
        if self.kv + self.log + self.controllers + self.workers == 0 {
            return refuse("a cluster of no members and no workers".to_owned());
        }
        if let Some(place) = self.place.filter(|place| place.base_port < LOG_BASE_PORT_MIN)
            && self.log + self.controllers > 0
        {
            return refuse(format!(
                "the base port is {}, but must be at least {LOG_BASE_PORT_MIN} with a log or a \
                 shard controller, whose ports are below it",
                place.base_port
            ));
        }
        self.place.map_or(Ok(()), |place| place.check(self.insecure))
    }
}
