//! The threads of P.

use std::thread;

use anyhow::Result;

use crate::THREADS;

/// Has every thread do `work`, which is told its number, and waits for all.
///
/// # Errors
/// The first one.
pub(crate) fn run<T: Send>(work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            (0..THREADS).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    })
}
