//! A deterministic simulator: groups of real replicas in a world whose time, network, disks and
//! faults come out of one seed.
//!
//! # What runs
//!
//! The members are `raft::Replica`s, the very code of the daemons, driven as their host drives
//! them: inputs gather in an inbox, are taken in together, and then the output is done. What a host
//! would do with sockets, files and clocks is played: [`network`], [`disk`], the agenda of virtual
//! time. In half of the runs the disks are written by the daemons' own store, on a simulated
//! database. A tick is 10 ms of virtual time. [`fault::Mix`] draws from the seed how bad the world
//! is; [`invariants`] look at every step; when the faults stop, every group must come to rest within
//! bounded virtual time: a leader, a commit, all members at the same index with the same state. What
//! clients saw is judged on its own, by [`linearizability`].
//!
//! # How to replay a seed
//!
//! A failure prints its seed, what was broken, the last lines of the trace and the command that
//! shows it again:
//!
//! ```text
//! cargo run -p flotilla-sim -- --seed 17 --members 3 --trace
//! ```
//!
//! Many seeds run with `cargo run --release -p flotilla-sim -- sweep --seeds 0..2000`, on all cores;
//! each failure is followed by the command that shows it again.
//!
//! The same seed and the same build give the same trace, byte for byte, and therefore the same
//! hash, which the command prints with every run. Another version of the code draws other dice: a seed belongs to
//! a commit.
//!
//! # How to read a trace
//!
//! One line is one event: the virtual time in seconds, who, what. A position is written
//! `index@term`.
//!
//! ```text
//!    0.482110 n1 pre-campaigns for t1          what the core reports of itself
//!    0.482110 n1 > n2 t1 pre-vote? 0@0         n1 sends n2 a message of term 1 ...
//!    0.482110 n1 > n3 t1 pre-vote? 0@0 (lost)  ... and one that will not arrive
//!    0.483551 n2 < n1 t1 pre-vote? 0@0         n2 takes the message in
//!    0.483551 n1 writes w1: t1 vote n1         n1 hands a write to its disk
//!    0.484020 n1 written w1                    and learns that it is durable
//!    0.491000 n1 asked c2.7 write              a client's request arrives
//!    0.499310 n1 answers c2.7 Done(Index(9))   and is answered
//!    0.700000 n3 crashes, 1 write survives     the nemesis strikes
//! ```
//!
//! Members of further groups are `g2.n1` and so on. Start at the end, find the member that the
//! violation names, and go backwards to where it parted from the others;
//! `grep 'leads\|crashes\|truncates'` gives the outline. Of a history that can't be the violation
//! names the requests: `grep 'c2\.7 '`.
//!
//! # What is absent
//!
//! Damage of snapshots' chunks, and the services around the machines. Groups replicate registers or
//! the machine of kvd or of the shard controller, the very code of the daemons; clerks use the store
//! as its client library does. Of what kvd's hosts do about shards that move, the decisions are
//! kvd's, and what carries them out is played (`steward.rs`).
//! docs/testing.md says what of the labs' requirements is there.

mod admin;
mod agenda;
pub mod application;
mod clerk;
pub mod client;
pub mod disk;
pub mod fault;
mod group;
mod history;
mod host;
pub mod invariants;
pub mod kv_history;
mod kv_script;
pub mod linearizability;
mod lock_script;
pub mod machine;
pub mod member;
mod nemesis;
pub mod network;
pub mod operation;
pub mod patch;
mod recover;
mod replace;
mod reshape;
mod script;
mod settle;
mod step;
mod steward;
mod tally;
mod tenant;
pub mod trace;
mod workload;
mod world;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

pub use fault::Mix;
pub use group::{GroupId, MemberId};
pub use history::HISTORY;
pub use invariants::Violation;
pub use kv_history::KV_HISTORY;
pub use kv_script::Wish;
pub use lock_script::{Grip, Hold};
pub use script::Fullness;
pub use tally::Tally;
pub use workload::{Keys, KvMix, Workload};
pub use world::World;

/// How long a tick is, in virtual time.
pub const TICK_US: u64 = 10_000;
/// How long faults happen in a run, in virtual time.
pub const CHAOS_US: u64 = 20_000_000;

/// A bug that is planted around the core, to show that an invariant catches it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plant {
    /// No bug.
    #[default]
    None,
    /// The host tells the core that a write is durable as soon as it is handed out.
    AnswerBeforeDurable,
    /// The host does so for a new term or vote only.
    SkipHardStateWait,
    /// A crash loses a vote that was durable.
    LoseVote,
    /// A crash loses the last two entries that were durable.
    LoseEntries,
    /// The network turns a refused vote into a granted one.
    ForgeVotes,
    /// The network changes an entry on its way.
    CorruptEntries,
    /// The network makes a member acknowledge more than it said.
    ForgeAcknowledgements,
    /// The machine of one member forgets to execute some commands.
    SkipApply,
    /// A leader answers reads without asking anybody whether it still leads.
    StaleReads,
    /// The host says of a write whose end is unknown that it was rejected.
    RejectUnknown,
    /// No clock ever ticks.
    StoppedClocks,
    /// The network makes the log of every candidate look longer than it is.
    InflateLogs,
    /// New entries are written together with what is committed before them.
    WriteCommittedAgain,
    /// A snapshot lacks its last chunk.
    CutSnapshots,
    /// The disk keeps the log that a snapshot replaces.
    KeepReplacedLog,
    /// A member that starts does not look at its vote.
    StartWithoutVote,
    /// The host tells a leader at every tick that its followers have answered.
    ForgeAnswers,
    /// The host tells a member that asks about an election that all are for it.
    ForgePreVotes,
    /// Members run with other limits than they should.
    IgnoreLimits,
    /// Members listen to those of other groups.
    HearOtherGroups,
    /// The network gives a client's request to a member a second time, later.
    AskTwice,
    /// The host gives two clients that are answered together each other's answers.
    SwapAnswers,
}

/// Which faults happen in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Faults {
    /// Those that the seed draws.
    #[default]
    Drawn,
    /// Those of the labs' unreliable churn, of which [`Mix::labs`] tells.
    Labs,
}

/// Which run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// How many members the group has.
    pub members: u64,
    /// How long faults happen.
    pub chaos_us: u64,
    /// Which faults happen.
    pub faults: Faults,
    /// A bug to be caught.
    pub plant: Plant,
    /// The one invariant that is looked at; all, if none is named.
    pub only: Option<&'static str>,
    /// Whether members have the real store, whatever the seed draws.
    pub store: bool,
    /// Whether groups replicate a key/value store, whatever the seed draws.
    pub kv: bool,
}

impl Options {
    /// A run of a seed without planted bugs.
    pub fn new(seed: u64, members: u64) -> Self {
        let (faults, plant) = (Faults::Drawn, Plant::None);
        Self {
            seed,
            members,
            chaos_us: CHAOS_US,
            faults,
            plant,
            only: None,
            store: false,
            kv: false,
        }
    }

    /// The command that shows this run, of which it can't tell planted bugs.
    pub fn command(&self) -> String {
        let Self { seed, members, chaos_us, faults, store, kv, .. } = self;
        let ticks = match chaos_us {
            &CHAOS_US => String::new(),
            chaos_us => format!(" --ticks {}", chaos_us / TICK_US),
        };
        let faults = match faults {
            Faults::Drawn => "",
            Faults::Labs => " --labs",
        };
        let store = if *store { " --store" } else { "" };
        let kv = if *kv { " --kv" } else { "" };
        let world = format!("--seed {seed} --members {members}{ticks}{faults}{store}{kv}");
        format!("cargo run -p flotilla-sim -- {world} --trace")
    }
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// Which it was.
    pub options: Options,
    /// How long it was, in virtual time.
    pub virtual_us: u64,
    /// How many lines the trace has.
    pub lines: u64,
    /// The hash of the trace.
    pub trace_hash: String,
    /// What happened how often.
    pub tally: Tally,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// Why a run failed, and how to see it again.
#[derive(Debug)]
pub struct Failure {
    /// Which run it was.
    pub options: Options,
    /// What was broken.
    pub violation: Violation,
    /// The last lines of the trace.
    pub recent: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { seed, members, .. } = self.options;
        writeln!(f, "seed {seed} with {members} members: {}", self.violation)?;
        for line in &self.recent {
            writeln!(f, "{line}")?;
        }
        write!(f, "again: {}", self.options.command())
    }
}

/// Runs a seed. `listener` hears every line of the trace.
pub fn run(options: Options, listener: Option<trace::Listener>) -> Report {
    let mut mix = match options.faults {
        Faults::Drawn => Mix::draw(options.seed),
        Faults::Labs => Mix::labs(),
    };
    // What a planted bug does to the model of a disk, the store knows nothing of.
    mix.store = (mix.store || options.store) && options.plant == Plant::None;
    // Bugs around the core are looked for in registers, unless somebody asks for keys.
    let drawn = mix.kv.filter(|_| options.plant == Plant::None);
    mix.kv = if options.kv { Some(KvMix::draw(options.seed)) } else { drawn };
    // Only the real store is recovered, and only under registers: what clerks were told of entries
    // that are lost with a majority can't be judged.
    mix.majority_lost &= mix.store && mix.kv.is_none();
    let mut world = World::new(options, mix, listener);
    // An assertion of the core that fails is a finding like any other, with a trace to it.
    let outcome = catch_unwind(AssertUnwindSafe(|| world.live(options.chaos_us)));
    let violation = match outcome {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(Violation::new("assertion", said(panic.as_ref()))),
    };
    let failure = violation.map(|violation| Failure {
        options,
        violation,
        recent: world.trace().recent().map(str::to_owned).collect(),
    });
    Report {
        options,
        virtual_us: world.now_us(),
        lines: world.trace().lines(),
        trace_hash: world.trace().hash(),
        tally: world.tally(),
        failure,
    }
}

/// What a panic said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it says nothing").to_owned()
}
