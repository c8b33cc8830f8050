//! Every bound of the coordinator, with its name and its reason.
//!
//! Decides how much of everything there may be; what happens beyond a limit is decided where the
//! limit is checked.

#![deny(clippy::disallowed_types)]

/// The longest client token, in bytes: the wire says so.
pub const TOKEN_BYTES_MAX: usize = 128;
/// Jobs that have not ended: each costs the leader a plan in memory.
pub const JOBS_ACTIVE_MAX: usize = 256;
/// Ended jobs that are remembered, with their tokens; the oldest is forgotten first.
pub const JOBS_ENDED_MAX: usize = 1_000;
/// Jobs that are planned and run at a time; the others stay queued in order of submission.
pub const JOBS_RUNNING_MAX: usize = 16;
/// Registered workers.
pub const WORKERS_MAX: usize = 1_000;
/// Apps that one worker may name.
pub const APPS_MAX: usize = 256;
/// The longest name of an app, a worker or a job, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Task slots of one worker.
pub const SLOTS_MAX: u32 = 1_024;
/// Input patterns of one job.
pub const INPUTS_MAX: usize = 10_000;
/// Bytes of all input patterns of one job: they travel in the replicated spec.
pub const INPUT_PATTERN_BYTES_MAX: usize = 512 * 1024;
/// The longest path, in bytes: what Linux takes.
pub const PATH_BYTES_MAX: usize = 4_096;
/// Input files of one job.
pub const INPUT_FILES_MAX: usize = 1_000_000;
/// Bytes of all input paths of one job: the leader holds them in memory.
pub const INPUT_PATH_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Map tasks of one job: the list of runs that each reduce task is sent stays under 2 MiB.
pub const MAPS_MAX: u32 = 10_000;
/// Reduce tasks of one job: the wire says so.
pub const REDUCES_MAX: u32 = 4_096;
/// Pieces of input files in one map task: bounds an assignment.
pub const SPLITS_PER_TASK_MAX: usize = 1_000;
/// Bytes of the paths in one map task: bounds an assignment.
pub const SPLIT_PATH_BYTES_MAX: usize = 256 * 1024;
/// The smallest split that a user may ask for.
pub const SPLIT_BYTES_MIN: u64 = 1;
/// The largest split without a wish of the user's: a second or so of work, since maps that combine
/// leave the fewer records the more they see.
pub const SPLIT_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
/// The smallest split without a wish of the user's: below it a task costs more than its work.
pub const SPLIT_BYTES_SMALL: u64 = 1024 * 1024;
/// Input runs in all reduce assignments of one reply: bounds the reply to some 3 MiB.
pub const RUNS_PER_REPLY_MAX: usize = 15_000;
/// Splits in all map assignments of one reply, likewise.
pub const SPLITS_PER_REPLY_MAX: usize = 4_000;
/// Arguments of one job.
pub const ARGS_MAX: usize = 256;
/// Bytes of all arguments of one job: they travel in the replicated spec and in each assignment.
pub const ARG_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the names and arguments of a job's programs, which travel likewise.
pub const ARGV_BYTES_MAX: usize = 128 * 1024;
/// Files that are sent along with one job.
pub const SIDE_FILES_MAX: usize = 64;
/// The longest name of one, in bytes: what Linux takes.
pub const SIDE_FILE_NAME_BYTES_MAX: usize = 255;
/// The largest of them without a wish of the operator's, in bytes: each attempt copies it.
pub const BLOB_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
/// The largest piece of one that is taken in at a time, in bytes.
pub const BLOB_CHUNK_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Files that are taken in at a time: each holds a piece in memory.
pub const UPLOADS_MAX: usize = 16;
/// The least address space of a program, in bytes: less holds not even a C library.
pub const PROGRAM_MEMORY_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// The fewest open files of a program: it begins with three, and its loader opens more.
pub const PROGRAM_OPEN_FILES_MIN: u64 = 16;
/// The widest record of one width, in bytes.
pub const RECORD_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// The longest line that a job may allow, in bytes: a worker holds it in memory.
pub const LINE_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// The longest line without a wish of the user's.
pub const LINE_BYTES_DEFAULT: u32 = 16 * 1024 * 1024;
/// How many times its size an input may unpack to without a wish of the user's: honest gzip stays
/// below 1,033.
pub const EXPANSION_DEFAULT: u32 = 2_000;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: u32 = 8 * 1024 * 1024;
/// Keys that are looked at for cut points: the leader holds them in memory.
pub const SAMPLES_MAX: u32 = 1_000_000;
/// Keys that are looked at without a wish of the user's.
pub const SAMPLES_DEFAULT: u32 = 100_000;
/// Bytes of all cut points of one job: every map reads them.
pub const CUTS_BYTES_MAX: usize = 1024 * 1024;
/// Counters of one attempt.
pub const ATTEMPT_COUNTERS_MAX: usize = 64;
/// Different counter names of one job.
pub const JOB_COUNTERS_MAX: usize = 120;
/// The longest counter name, in bytes.
pub const COUNTER_NAME_BYTES_MAX: usize = 64;
/// The longest message or stderr tail that is kept, in bytes.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// Counted failures that a user may allow a task.
pub const ATTEMPTS_MAX: u32 = 100;
/// Counted failures of a task without a wish of the user's.
pub const ATTEMPTS_DEFAULT: u32 = 4;
/// The highest priority of a job.
pub const PRIORITY_MAX: u8 = 9;
/// Queues with a weight of their own, and the largest weight.
pub const QUEUES_MAX: usize = 256;
/// The largest weight of a queue: shares are compared in whole numbers.
pub const QUEUE_WEIGHT_MAX: u32 = 1_000_000;
/// Jobs that one job may come after: each is looked for at every submission and every end.
pub const AFTER_MAX: usize = 16;
/// Records that one job may leave out: each is replicated with its path.
pub const SKIP_MAX: u32 = 10_000;
/// Tasks that a worker may keep ready beyond its slots.
pub const PREFETCH_MAX: u32 = SLOTS_MAX;
/// Workers that may be lost while running one task before it counts as poison.
pub const LOST_WORKERS_MAX: usize = 3;
/// How often the committed output of one map task may turn out lost.
pub const INVALIDATIONS_MAX: u32 = 3;
/// The shortest lease: a worker must get several heartbeats into it.
pub const LEASE_MS_MIN: u64 = 1_000;
/// The longest lease.
pub const LEASE_MS_MAX: u64 = 3_600_000;
/// The lease without a wish of the user's.
pub const LEASE_MS_DEFAULT: u64 = 10_000;
/// The longest time without progress that a user may allow.
pub const TASK_TIMEOUT_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// The shortest.
pub const TASK_TIMEOUT_MS_MIN: u64 = 1_000;
/// The time without progress without a wish of the user's.
pub const TASK_TIMEOUT_MS_DEFAULT: u64 = 600_000;
/// The longest artificial delay of a task.
pub const SLOW_MS_MAX: u64 = 3_600_000;
/// Attempts that a worker may list in one call.
pub const RUNNING_LISTED_MAX: usize = 4_096;
/// The longest wait of a poll: the wire says 20 s, some of which is left for the way back.
pub const POLL_WAIT_MS: u64 = 15_000;
/// The longest wait of a `Get`.
pub const GET_WAIT_MS: u64 = 10_000;
/// Calls that wait for a job to change.
pub const WATCHERS_MAX: usize = 4_096;
/// Polls that wait for work: one of each worker.
pub const POLLS_MAX: usize = WORKERS_MAX;
/// Jobs of one page.
pub const LIST_MAX: u32 = 1_000;
/// Jobs of one page without a wish of the user's.
pub const LIST_DEFAULT: u32 = 100;
/// Bytes of one page of jobs, below the 4 MiB that gRPC clients take.
pub const LIST_BYTES_MAX: usize = 2 * 1024 * 1024;

const _: () = assert!(POLL_WAIT_MS < 20_000);
const _: () = assert!(MAPS_MAX as usize <= RUNS_PER_REPLY_MAX);
const _: () = assert!(SPLITS_PER_TASK_MAX <= SPLITS_PER_REPLY_MAX);

/// How long logs of an ended job are kept without a wish of the operator's, in seconds: long enough
/// for a person to come back from a week's end.
pub const LOGS_KEPT_S_DEFAULT: u64 = 7 * 24 * 3_600;
/// The longest, ten years: who wants more moves them elsewhere.
pub const LOGS_KEPT_S_MAX: u64 = 3_650 * 24 * 3_600;

/// Ended jobs whose attempts a leader still shows.
pub const PAST_JOBS_MAX: usize = 16;

/// Their attempts.
pub const PAST_ATTEMPTS_MAX: usize = 100_000;
