//! What the threads of a store tell each other: how busy the log is, and that all is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::store::StoreError;

/// The log counts as busy this long after a batch.
const BUSY: Duration = Duration::from_millis(20);

/// How long work that can wait gives way at most.
const GIVE_WAY_MAX: Duration = Duration::from_millis(20);

/// How busy the log is: work that can wait gives way to appends in proportion to what they take.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    /// When the last batch was done, in microseconds since `began`; 0 for never.
    last_micros: AtomicU64,
    /// How long it took.
    took_micros: AtomicU64,
}

impl Pace {
    pub(super) fn new() -> Self {
        let (last_micros, took_micros) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { began: Instant::now(), last_micros, took_micros }
    }

    /// A batch was written, beginning at `since`.
    pub(super) fn wrote(&self, since: Instant) {
        let took = since.elapsed();
        self.took_micros.store(micros(took), Ordering::Relaxed);
        self.last_micros.store(micros(self.began.elapsed()).max(1), Ordering::Relaxed);
    }

    /// Gives way, if the log is busy.
    pub(super) fn wait(&self) {
        let last = self.last_micros.load(Ordering::Relaxed);
        let now = micros(self.began.elapsed());
        if last > 0 && now.saturating_sub(last) < micros(BUSY) {
            let took = Duration::from_micros(self.took_micros.load(Ordering::Relaxed));
            std::thread::sleep((took * 4).min(GIVE_WAY_MAX));
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

type Callback = Box<dyn FnOnce(StoreError) + Send>;

/// Tells once why the process must end.
pub(super) struct Fatal(Mutex<Option<Callback>>);

impl std::fmt::Debug for Fatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fatal").field("told", &self.is_told()).finish()
    }
}

impl Fatal {
    pub(super) fn new(callback: Callback) -> Self {
        Self(Mutex::new(Some(callback)))
    }

    pub(super) fn tell(&self, error: StoreError) {
        let callback = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(callback) = callback {
            callback(error);
        }
    }

    pub(super) fn is_told(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}
