//! Slows writes to shards that leave, before the changes that are kept for their destinations are more
//! than may be: beyond that they are dropped, and the copy begins anew.
//!
//! Decides how long a write waits, by how full the log of changes is. A write that waits past its
//! deadline was not executed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::outcome::Standing;

/// How long after each other writes to a shard come whose log of changes is full.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long a write waits for its turn at most; others are refused.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(2);

/// By how much writes are slowed, for each shard. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Brakes {
    pressed: Arc<AtomicBool>,
    slowed: Arc<Mutex<BTreeMap<u32, Slowed>>>,
}

/// A shard to which writes are slowed.
#[derive(Clone, Copy, Debug)]
struct Slowed {
    /// How long after each other they come.
    pause: Duration,
    /// When the next one may.
    next: Instant,
}

impl Brakes {
    /// Takes note of how the shards stand.
    pub(crate) fn set<'a>(&self, standings: impl IntoIterator<Item = &'a Standing>) {
        let now = Instant::now();
        let mut slowed = self.slowed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *slowed);
        for (shard, standing) in (0..).zip(standings) {
            let pause = standing.held.map_or(Duration::ZERO, |(held, limit)| pause(held, limit));
            if !pause.is_zero() {
                let next = before.get(&shard).map_or(now, |slowed| slowed.next);
                slowed.insert(shard, Slowed { pause, next });
            }
        }
        self.pressed.store(!slowed.is_empty(), Relaxed);
    }

    /// Whether any writes are slowed.
    pub(crate) fn are_pressed(&self) -> bool {
        self.pressed.load(Relaxed)
    }

    /// When a write to a shard may go on, which then has had its turn; none: others wait already for
    /// as long as any may.
    pub(crate) fn turn(&self, shard: u32) -> Option<Instant> {
        let now = Instant::now();
        let mut slowed = self.slowed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slowed) = slowed.get_mut(&shard) else { return Some(now) };
        let turn = slowed.next.max(now);
        if turn > now + WAIT_MAX {
            return None;
        }
        slowed.next = turn + slowed.pause;
        Some(turn)
    }
}

/// Nothing up to half of the limit; then ever more.
fn pause(held: u64, limit: u64) -> Duration {
    let half = (limit / 2).max(1);
    #[expect(clippy::cast_precision_loss, reason = "a part of a limit")]
    let over = held.saturating_sub(limit / 2).min(half) as f64 / half as f64;
    PAUSE_MAX.mul_f64(over.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{custody::Custody, outcome::Revision};

    #[test]
    fn the_fuller_the_log_the_longer_the_pause() {
        assert_eq!(pause(0, 1_000), Duration::ZERO);
        assert_eq!(pause(500, 1_000), Duration::ZERO);
        assert_eq!(pause(750, 1_000), Duration::from_millis(125));
        assert_eq!(pause(1_000, 1_000), PAUSE_MAX);
        assert_eq!(pause(u64::MAX, 1_000), PAUSE_MAX);
        assert_eq!(pause(1, 0), PAUSE_MAX);
    }

    #[test]
    fn only_shards_that_leave_are_slowed() {
        let standing = |held| Standing {
            custody: Custody::absent(),
            keys: 0,
            bytes: 0,
            revision: Revision(0),
            held,
        };
        let brakes = Brakes::default();
        brakes.set(&[standing(None), standing(Some((1_000, 1_000)))]);
        assert!(brakes.are_pressed());
        assert!((0..9).all(|_| brakes.turn(0).unwrap() <= Instant::now()));
        let turns: Vec<_> = (0..9).map_while(|_| brakes.turn(1)).collect();
        assert_eq!(turns.len(), 3, "at 0 s, 1 s and 2 s");
        assert!(turns.windows(2).all(|turns| turns[1] - turns[0] == PAUSE_MAX));
        // A look at the shards gives no turn back.
        brakes.set(&[standing(None), standing(Some((1_000, 1_000)))]);
        assert_eq!(brakes.turn(1), None);
        brakes.set(&[standing(None), standing(Some((9, 1_000)))]);
        assert!(!brakes.are_pressed() && brakes.turn(1).is_some());
    }
}
