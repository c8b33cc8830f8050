//! MapReduce workers: the data plane, and the daemon that runs it for a coordinator.
//!
//! **The data plane** is plain functions of files. A map ([`map`]) reads pieces of inputs
//! ([`input`]) as blocks, lets an app ([`app`], [`apps`]) emit pairs into a combining table
//! ([`combine`]) within a budget of memory, spills what does not fit, and leaves one run ([`run`])
//! with all reduce partitions. A reduce ([`reduce`]) merges its partition of every run and leaves
//! one part. [`local`] strings tasks to a job, for tests and for jobs without a cluster.
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
//!
//! Not here yet: streaming programs, compressed inputs and runs, sorting by value, total order,
//! maps without reduces, and the other formats and partitioners.

pub mod app;
pub mod apps;
mod calls;
pub mod cli;
pub mod combine;
pub mod config;
mod dispatch;
pub mod failure;
pub mod fold;
pub mod input;
pub mod local;
pub mod map;
mod merge;
pub mod outcome;
mod panics;
pub mod paths;
pub mod reduce;
pub mod run;
mod session;
mod slot;
mod spill;
mod task;
pub mod words;
pub mod worker;

pub use config::Config;
pub use slot::SlotCommand;
