//! How commands talk, as every command line of ours does, and what the end of a request means for
//! them.

pub(crate) use daemon::output::{Output, Table, line, put_bytes, raw, shown, unwritable, value};
pub(crate) use shardctl::{malformed, refused};
