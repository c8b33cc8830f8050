//! MapReduce workers: the data plane, and the daemon that runs it for a coordinator.
//!
//! **Apps** ([`app`]) are a mapper, a fold that combines and a reducer; [`lab`] takes the labs' two
//! functions. [`main!`] makes a worker of one's own apps: whoever writes one begins with
//! [`prelude`].
//!
//! **The data plane** is plain functions of files. A map ([`map`]) reads pieces of inputs
//! ([`input`]) as blocks of records ([`record`]), lets an app emit pairs, which are collected
//! (`collect.rs`) in a combining table ([`combine`]) or a sort buffer (`sort.rs`) within a budget of
//! memory, spills what does not fit, and leaves one run ([`run`]) with all reduce partitions. A
//! reduce ([`reduce`]) merges its partition of every run (`merge.rs`) and leaves one part
//! ([`part`]). [`local`] strings tasks to a job, for tests and for jobs without a cluster.
//!
//! What makes it trustworthy: a task writes only below its own new directory; every byte of a run is
//! under a checksum that its readers verify, and anything else than what was committed is the loss
//! of that run, never another result; the order of values is that of maps and of emission, so the
//! bytes of results do not depend on splits, memory or schedule.
//!
//! What makes it fast: the whole way from a block to the table is one loop without a virtual call
//! or an allocation for a word, and what leaves a map is a record for each distinct key.
//!
//! **The daemon** ([`worker`]) registers, asks for work, runs it in slots, which are processes of
//! their own, tells that it lives, and reports. It decides nothing about jobs; when it cannot know
//! (no coordinator answers), it goes on and keeps its results.

pub mod app;
pub mod apps;
pub mod args;
mod calls;
pub mod cli;
pub mod codec;
mod collect;
pub mod combine;
pub mod config;
mod cursor;
mod dispatch;
mod ended;
pub mod failure;
pub mod fold;
pub mod input;
pub mod lab;
pub mod local;
pub mod map;
mod merge;
pub mod outcome;
mod panics;
pub mod part;
pub mod partition;
pub mod paths;
pub mod prelude;
pub mod record;
pub mod reduce;
pub mod run;
mod session;
mod slot;
mod sort;
pub mod stream;
pub mod task;
pub mod words;
pub mod worker;

pub use config::Config;
pub use slot::SlotCommand;

/// The whole program of a worker that has these apps beside the built-in ones.
///
/// ```text
/// mr_worker::main![Anagrams, Lengths];
/// ```
#[macro_export]
macro_rules! main {
    [$($app:expr),+ $(,)?] => {
        fn main() -> $crate::Code {
            const OWN: &[&dyn $crate::app::Program] = &[$(&$app),+];
            $crate::cli::main(::std::env::args_os(), &[], OWN)
        }
    };
}

pub use daemon::Code;
