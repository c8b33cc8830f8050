//! The allocator of every program that links this crate.
//!
//! glibc's keeps what snapshots took of memory for a moment, and asks the kernel anew for each large
//! page of a database.

use crate::exit::Failure;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Gives unused memory back to the system on a thread of its own: threads that are idle would keep
/// theirs.
///
/// # Errors
/// The thread can't be started.
pub(crate) fn give_back() -> Result<(), Failure> {
    tikv_jemalloc_ctl::background_thread::write(true).map_err(|error| {
        Failure::machine("the allocator's thread cannot start").because(error.to_string())
    })
}
