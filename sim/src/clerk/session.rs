//! The numbers of a clerk's requests to one shard, as the client library gives them out: what they
//! acknowledge, and when they expire.

use std::collections::VecDeque;

use kvd::{
    command::{ClientId, RequestId},
    outcome::ShardTime,
};

/// How long what is known of a shard's time is good for.
const TIME_GOOD_FOR_US: u64 = 30_000_000;
/// The longest that a request may live, with a margin below the servers' 5 minutes.
const LIFE_US_MAX: u64 = 250_000_000;

/// What a clerk knows of a shard.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Every sequence up to this one has ended.
    acknowledged: u64,
    /// The sequences behind it, in order: whether each has ended.
    ended: VecDeque<bool>,
    /// The shard's time, in milliseconds, and when it was told.
    time: Option<(u64, u64)>,
}

impl Session {
    pub(super) fn learn(&mut self, time: ShardTime, now_us: u64) {
        self.time = Some((time.0, now_us));
    }

    /// Gives a request that may live for so long its number; none if the shard's time is not known
    /// well enough.
    pub(super) fn open(
        &mut self,
        client: ClientId,
        now_us: u64,
        life_us: u64,
    ) -> Option<RequestId> {
        let (told_ms, told_us) = self.time?;
        let passed_us = now_us - told_us;
        if passed_us > TIME_GOOD_FOR_US {
            return None;
        }
        self.ended.push_back(false);
        Some(RequestId {
            client,
            sequence: self.acknowledged + self.ended.len() as u64,
            acknowledged: self.acknowledged,
            expires: ShardTime(told_ms + (passed_us + life_us.min(LIFE_US_MAX)) / 1_000),
        })
    }

    /// A request is over, and its clerk will never ask about it again.
    pub(super) fn close(&mut self, sequence: u64) {
        let place = usize::try_from(sequence - self.acknowledged - 1).unwrap_or(usize::MAX);
        if let Some(ended) = self.ended.get_mut(place) {
            *ended = true;
        }
        while self.ended.front() == Some(&true) {
            self.ended.pop_front();
            self.acknowledged += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_and_endings_acknowledge_in_order() {
        let mut session = Session::default();
        let client = ClientId([1; 16]);
        assert_eq!(session.open(client, 5, 1_000_000), None);
        session.learn(ShardTime(70), 1_000_000);
        let open = |session: &mut Session| session.open(client, 3_000_000, 5_000_000).unwrap();
        let (first, second) = (open(&mut session), open(&mut session));
        assert_eq!((first.sequence, second.sequence, second.acknowledged), (1, 2, 0));
        assert_eq!(first.expires, ShardTime(70 + 2_000 + 5_000));
        session.close(2);
        assert_eq!(open(&mut session).acknowledged, 0);
        session.close(1);
        let fourth = open(&mut session);
        assert_eq!((fourth.sequence, fourth.acknowledged), (4, 2));
        assert_eq!(session.open(client, 31_000_001, 1), None);
    }
}
