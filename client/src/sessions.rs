//! The identities of requests: per shard (a log counts as one) a sequence, what has been acknowledged, and the shard's
//! time.
//!
//! Decides the number of a request, what it acknowledges and when it expires. Every number that was
//! given out comes back, also when the caller drops the call half way: that is giving up, and
//! giving up acknowledges.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// How many requests to one shard may be open: as many replies as a server keeps for a client.
const OPEN_MAX: usize = 256;

/// How long what is known of a shard's time is good for.
const TIME_GOOD_FOR: Duration = Duration::from_secs(30);

/// What is added to a request's retry budget, since the time that a server tells may be 10 s old.
const TIME_SLACK: Duration = Duration::from_secs(15);

/// The longest that a request may live, with a margin below the servers' 5 minutes.
const LIFE_MAX: Duration = Duration::from_secs(250);

/// The most shards that a server may tell of: bounds what a wrong one makes a client allocate.
pub(crate) const SHARDS_MAX: u32 = 16 * 1024;

/// All shards of one cluster, as one client sees them.
#[derive(Debug)]
pub(crate) struct Sessions {
    client: [u8; 16],
    shards: Box<[Mutex<Session>]>,
    /// Wakes requests that wait for room in a shard.
    room: Notify,
}

#[derive(Debug, Default)]
struct Session {
    /// Every sequence up to this one has ended.
    acknowledged: u64,
    /// The sequences behind it, in order: whether each has ended.
    ended: VecDeque<bool>,
    /// The shard's time, in milliseconds, and when it was told.
    time: Option<(u64, Instant)>,
}

/// What names a request, whatever its service's message for that is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) client: Bytes,
    pub(crate) sequence: u64,
    pub(crate) acknowledged: u64,
    pub(crate) expires_ms: u64,
}

/// A request that has a number.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    sessions: &'a Sessions,
    shard: u32,
    pub(crate) id: Identity,
}

/// Why there is no number.
pub(crate) enum NotOpened {
    /// The shard's time is not known well enough: ask.
    TimeUnknown,
    /// Too many requests to the shard were open until the deadline.
    Full,
}

impl Sessions {
    pub(crate) fn new(shards: u32) -> Self {
        let shards = (0..shards.clamp(1, SHARDS_MAX)).map(|_| Mutex::default()).collect();
        Self { client: rand::random(), shards, room: Notify::new() }
    }

    /// The shard of a key.
    pub(crate) fn shard_of(&self, key: &[u8]) -> u32 {
        proto::shard_of(key, self.count())
    }

    /// How many shards there are.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.shards.len()).expect("there are at most SHARDS_MAX")
    }

    /// Notes what a reply to a mutation or a question for the time says. Replies to reads don't
    /// count: on an idle cluster the last entry may be hours old.
    pub(crate) fn learn(&self, shard: u32, time_ms: u64) {
        self.learn_at(shard, time_ms, Instant::now());
    }

    fn learn_at(&self, shard: u32, time_ms: u64, now: Instant) {
        if let Some(session) = self.shards.get(shard as usize) {
            lock(session).time = Some((time_ms, now));
        }
    }

    /// Gives a request its number, waiting until `deadline` for room.
    pub(crate) async fn open(&self, shard: u32, deadline: Instant) -> Result<Open<'_>, NotOpened> {
        loop {
            if let Some(opened) = self.try_open(shard, Instant::now(), deadline) {
                return opened;
            }
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if let Some(opened) = self.try_open(shard, Instant::now(), deadline) {
                return opened;
            }
            if timeout_at(deadline, room).await.is_err() {
                return Err(NotOpened::Full);
            }
        }
    }

    /// None when there is no room.
    fn try_open(
        &self,
        shard: u32,
        now: Instant,
        deadline: Instant,
    ) -> Option<Result<Open<'_>, NotOpened>> {
        let mut session = lock(self.shards.get(shard as usize)?);
        if session.ended.len() >= OPEN_MAX {
            return None;
        }
        let Some((told_ms, told_at)) =
            session.time.filter(|(_, at)| now.saturating_duration_since(*at) <= TIME_GOOD_FOR)
        else {
            return Some(Err(NotOpened::TimeUnknown));
        };
        let life = (deadline.saturating_duration_since(now) + TIME_SLACK).min(LIFE_MAX);
        let ahead = millis(now.saturating_duration_since(told_at) + life);
        session.ended.push_back(false);
        let id = Identity {
            client: Bytes::copy_from_slice(&self.client),
            sequence: session.acknowledged + session.ended.len() as u64,
            acknowledged: session.acknowledged,
            expires_ms: told_ms.saturating_add(ahead),
        };
        Some(Ok(Open { sessions: self, shard, id }))
    }

    fn close(&self, shard: u32, sequence: u64) {
        let Some(session) = self.shards.get(shard as usize) else { return };
        let mut session = lock(session);
        let was_full = session.ended.len() >= OPEN_MAX;
        let place = usize::try_from(sequence - session.acknowledged - 1).unwrap_or(usize::MAX);
        if let Some(ended) = session.ended.get_mut(place) {
            *ended = true;
        }
        while session.ended.front() == Some(&true) {
            session.ended.pop_front();
            session.acknowledged += 1;
        }
        if was_full && session.ended.len() < OPEN_MAX {
            self.room.notify_waiters();
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.sessions.close(self.shard, self.id.sequence);
    }
}

/// No code panics while it holds the lock, so poison means nothing.
fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(shard_time_ms: u64) -> (Sessions, Instant) {
        let (sessions, now) = (Sessions::new(8), Instant::now());
        sessions.learn_at(3, shard_time_ms, now);
        (sessions, now)
    }

    fn open<'a>(sessions: &'a Sessions, now: Instant, budget_ms: u64) -> Open<'a> {
        match sessions.try_open(3, now, now + Duration::from_millis(budget_ms)) {
            Some(Ok(open)) => open,
            Some(Err(_)) => panic!("the time is not known"),
            None => panic!("there is no room"),
        }
    }

    #[test]
    fn numbers_count_and_endings_acknowledge_in_order() {
        let (sessions, now) = told(1_000);
        let (first, second) = (open(&sessions, now, 5_000), open(&sessions, now, 5_000));
        assert_eq!((first.id.sequence, second.id.sequence), (1, 2));
        drop(second);
        let third = open(&sessions, now, 5_000);
        assert_eq!((third.id.sequence, third.id.acknowledged), (3, 0));
        drop(first);
        let fourth = open(&sessions, now, 5_000);
        assert_eq!((fourth.id.sequence, fourth.id.acknowledged), (4, 2));
        assert_eq!(fourth.id.expires_ms, 1_000 + 5_000 + 15_000);
    }

    #[test]
    fn time_goes_on_by_the_clients_clock_until_it_is_too_old() {
        let (sessions, now) = told(1_000);
        let later = now + Duration::from_secs(30);
        assert_eq!(open(&sessions, later, 600_000).id.expires_ms, 1_000 + 30_000 + 250_000);
        let too_late = later + Duration::from_millis(1);
        let opened = sessions.try_open(3, too_late, too_late);
        assert!(matches!(opened, Some(Err(NotOpened::TimeUnknown))));
        assert!(matches!(sessions.try_open(4, now, now), Some(Err(NotOpened::TimeUnknown))));
    }

    #[tokio::test]
    async fn the_257th_open_request_waits_for_the_first_to_end() {
        let (sessions, now) = told(1_000);
        let deadline = now + Duration::from_secs(5);
        let mut opened: Vec<_> = (0..OPEN_MAX).map(|_| open(&sessions, now, 5_000)).collect();
        assert!(matches!(sessions.open(3, now).await, Err(NotOpened::Full)));
        let waiting = sessions.open(3, deadline);
        let first = opened.remove(0);
        let (found, ()) = tokio::join!(waiting, async move {
            tokio::task::yield_now().await;
            drop(first);
        });
        assert!(matches!(found, Ok(open) if open.id.sequence == 257 && open.id.acknowledged == 1));
    }
}
